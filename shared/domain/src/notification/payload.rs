//! The JSON that the application's service worker reads.

use chrono::SecondsFormat;
use serde_json::{Map, json};

use super::{AlsoLost, Campaigns, Locale, Notification, Role, text};

/// The crate `web-push` encrypts no more bytes.
pub const MAX_PAYLOAD: usize = 3_052;

/// So many bytes of a link leave room for the longest names.
pub const MAX_LINK: usize = 500;

/// Stands for the campaign's id in a link.
pub const CAMPAIGN_ID: &str = "{campaign_id}";

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

impl Notification {
    /// The JSON that the application's service worker reads, of [`MAX_PAYLOAD`] bytes at most: of the streamers that are also
    /// lost it names as many as there is room for, and counts the rest.
    #[must_use]
    pub fn payload(&self, presentation: &Presentation) -> Vec<u8> {
        let AlsoLost { own, others } = &self.also_lost;
        let all = own.len() + others.len();
        let fits = |named: usize| {
            let payload = self.payload_naming(named, presentation);
            Some(payload).filter(|payload| payload.len() <= MAX_PAYLOAD)
        };
        fits(all).unwrap_or_else(|| {
            let named = (1..all).collect::<Vec<_>>().partition_point(|named| fits(*named).is_some());
            self.payload_naming(named, presentation)
        })
    }

    /// Names so many of those that are also lost.
    pub(super) fn payload_naming(&self, named: usize, presentation: &Presentation) -> Vec<u8> {
        let text = text::of(self, named, presentation.locale);
        let mut data = Map::new();
        let url = match &self.role {
            Role::Streamer => presentation.streamer_url.clone(),
            Role::GameMaster(Campaigns { first, .. }) => {
                data.insert("campaignId".to_owned(), json!(first));
                presentation.campaign_url.replace(CAMPAIGN_ID, &first.to_string())
            }
        };
        data.insert("url".to_owned(), json!(url));
        data.insert("streamerId".to_owned(), json!(self.streamer));
        json!({
            "type": "token:refresh_failed",
            "title": text.title,
            "body": text.body,
            "data": data,
            "actions": [{ "action": "open", "title": text.action }],
            "timestamp": self.created_at.to_rfc3339_opts(SecondsFormat::Millis, true),
        })
        .to_string()
        .into_bytes()
    }
}
