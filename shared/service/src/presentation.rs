//! How notifications are written, and where they lead: the JSON that the application's service worker reads.

#[cfg(test)]
mod tests;
mod text;

use std::str::FromStr;

use chrono::SecondsFormat;
use serde_json::{Map, json};
use tokens_domain::notification::{AlsoLost, Campaigns, Notification, Role};
use tokens_domain::ports::Compose;

/// The crate `web-push` encrypts no more bytes.
pub const MAX_PAYLOAD: usize = 3_052;

/// So many bytes of a link leave room for the longest names.
pub const MAX_LINK: usize = 500;

/// Stands for the campaign's id in a link.
pub const CAMPAIGN_ID: &str = "{campaign_id}";

/// The language of what people read (`NOTIFICATION_LOCALE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Locale {
    /// French.
    #[default]
    Fr,
    /// English.
    En,
}

impl FromStr for Locale {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "fr" => Ok(Self::Fr),
            "en" => Ok(Self::En),
            _ => Err(()),
        }
    }
}

/// How notifications are written, and where they lead. A link is a path of the frontend or an absolute URL of [`MAX_LINK`]
/// bytes at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presentation {
    /// The language of what people read.
    pub locale: Locale,
    /// Where a streamer reconnects.
    pub streamer_url: String,
    /// Where a game master sees the campaign, with [`CAMPAIGN_ID`] in the place of its id.
    pub campaign_url: String,
}

impl Default for Presentation {
    /// Pages that the existing frontend has.
    fn default() -> Self {
        Self {
            locale: Locale::default(),
            streamer_url: "/settings".to_owned(),
            campaign_url: format!("/mj/campaigns/{CAMPAIGN_ID}"),
        }
    }
}

impl Compose for Presentation {
    /// Of [`MAX_PAYLOAD`] bytes at most: of the streamers that are also lost it names as many as there is room for, and counts
    /// the rest.
    fn payload(&self, notification: &Notification) -> Vec<u8> {
        let AlsoLost { own, others } = &notification.also_lost;
        let all = own.len() + others.len();
        let fits = |named: usize| {
            let payload = self.payload_naming(notification, named);
            Some(payload).filter(|payload| payload.len() <= MAX_PAYLOAD)
        };
        fits(all).unwrap_or_else(|| {
            let named = (1..all).collect::<Vec<_>>().partition_point(|named| fits(*named).is_some());
            self.payload_naming(notification, named)
        })
    }
}

impl Presentation {
    /// Names so many of those that are also lost.
    fn payload_naming(&self, notification: &Notification, named: usize) -> Vec<u8> {
        let text = text::of(notification, named, self.locale);
        let mut data = Map::new();
        let url = match &notification.role {
            Role::Streamer => self.streamer_url.clone(),
            Role::GameMaster(Campaigns { first, .. }) => {
                data.insert("campaignId".to_owned(), json!(first));
                self.campaign_url.replace(CAMPAIGN_ID, &first.to_string())
            }
        };
        data.insert("url".to_owned(), json!(url));
        data.insert("streamerId".to_owned(), json!(notification.streamer));
        json!({
            "type": "token:refresh_failed",
            "title": text.title,
            "body": text.body,
            "data": data,
            "actions": [{ "action": "open", "title": text.action }],
            "timestamp": notification.created_at.to_rfc3339_opts(SecondsFormat::Millis, true),
        })
        .to_string()
        .into_bytes()
    }
}
