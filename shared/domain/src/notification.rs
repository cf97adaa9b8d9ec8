//! What people are told when a streamer is deactivated: whom it is for, what it says, and what an attempt to deliver
//! it changes. Pure functions.
//!
//! Nothing here sends or stores anything.

#[cfg(test)]
mod tests;
mod text;

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::authorization::CampaignId;
use crate::streamer::StreamerId;

/// What a notification says is stale after a day. It is given up then, and push services keep it no longer.
pub const TIME_TO_LIVE: TimeDelta = TimeDelta::hours(24);

/// A notification has room for as many names.
pub const NAMED_CAMPAIGNS: usize = 3;

/// The wait after a first failed delivery; it doubles with each, up to [`LONGEST_PAUSE`].
pub const FIRST_PAUSE: TimeDelta = TimeDelta::minutes(1);

/// A push service that comes back is noticed within this long.
pub const LONGEST_PAUSE: TimeDelta = TimeDelta::hours(1);

/// As many become the 32 characters of base64url that a topic may have.
const TOPIC_BYTES: usize = 24;

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

/// Whom a notification is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recipient {
    /// The streamer, who has to reconnect.
    Streamer,
    /// The owner of campaigns in which the streamer plays.
    GameMaster(Campaigns),
}

/// The campaigns of one game master, by their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Campaigns {
    /// The first, which a notification leads to.
    pub first: CampaignId,
    /// The names of the first [`NAMED_CAMPAIGNS`].
    pub names: Vec<String>,
    /// How many there are.
    pub count: usize,
}

impl Campaigns {
    /// One campaign.
    #[must_use]
    pub fn one(campaign: CampaignId, name: impl Into<String>) -> Self {
        Self { first: campaign, names: vec![name.into()], count: 1 }
    }

    /// The names, each as `quote` has it, and how many more there are.
    #[must_use]
    pub fn named(&self, quote: impl Fn(&str) -> String) -> (Vec<String>, usize) {
        let names: Vec<_> = self.names.iter().take(NAMED_CAMPAIGNS).map(|name| quote(name)).collect();
        let more = self.count.saturating_sub(names.len());
        (names, more)
    }

    /// For an operator: `A, B, C and 2 more`.
    #[must_use]
    pub fn listed(&self) -> String {
        let plain = |name: &str| name.chars().filter(|c| !c.is_control()).collect();
        match self.named(plain) {
            (names, 0) => names.join(", "),
            (names, more) => format!("{} and {more} more", names.join(", ")),
        }
    }
}

/// A browser's push subscription (RFC 8030), as the application stores it. All of it is user input.
#[derive(Clone, PartialEq, Eq)]
pub struct Subscription {
    /// Primary key.
    pub id: Uuid,
    /// Where the push service takes messages for this browser. Whoever knows it can try to push: it is never logged
    /// whole.
    pub endpoint: String,
    /// The browser's public key, base64url.
    pub p256dh: String,
    /// The secret that it shares with us, base64url.
    pub auth: String,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A notification on its way to one device, claimed for one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Primary key.
    pub id: Uuid,
    /// Which attempt this is, from 1 on. A result under an older one is not written.
    pub attempt: u32,
    /// When the streamer was deactivated.
    pub created_at: DateTime<Utc>,
    /// The device.
    pub subscription: Subscription,
    /// Who was deactivated.
    pub streamer: StreamerId,
    /// The streamer's name as viewers see it.
    pub streamer_name: String,
    /// Whom it is for.
    pub recipient: Recipient,
}

impl Notification {
    /// The JSON that the application's service worker reads.
    #[must_use]
    pub fn payload(&self, locale: Locale) -> Vec<u8> {
        let text = text::of(self, locale);
        let mut data = Map::new();
        let url = match &self.recipient {
            Recipient::Streamer => "/auth/twitch/redirect".to_owned(),
            Recipient::GameMaster(Campaigns { first, .. }) => {
                data.insert("campaignId".to_owned(), json!(first));
                format!("/mj/campaigns/{first}")
            }
        };
        data.insert("url".to_owned(), Value::String(url));
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

    /// A later notification with the same topic (RFC 8030, section 5.4) replaces this one while it waits for the device:
    /// 32 characters at most, of base64url's alphabet.
    #[must_use]
    pub fn topic(&self) -> String {
        // One streamer's notices to one person. Whole ids would be too long, and any part of an id may be shared.
        let mut ids = Sha256::new_with_prefix(self.streamer.0);
        if let Recipient::GameMaster(campaigns) = &self.recipient {
            ids.update(campaigns.first.0);
        }
        BASE64_URL_SAFE_NO_PAD.encode(&ids.finalize()[..TOPIC_BYTES])
    }

    /// How long a push service may keep it from now on.
    #[must_use]
    pub fn time_to_live(&self, now: DateTime<Utc>) -> TimeDelta {
        (self.created_at + TIME_TO_LIVE - now).max(TimeDelta::zero())
    }

    /// Whether what it says is too old to be said.
    #[must_use]
    pub fn is_stale(&self, now: DateTime<Utc>) -> bool {
        self.time_to_live(now).is_zero()
    }

    /// What an attempt changes that ended with `answer`.
    #[must_use]
    pub fn after_attempt(&self, answer: &PushAnswer, now: DateTime<Utc>) -> Next {
        let asked = match answer {
            PushAnswer::Accepted => return Next::Delivered,
            PushAnswer::Gone => return Next::Gone,
            PushAnswer::Rejected(_) => return Next::GivenUp,
            PushAnswer::Busy { retry_after, .. } => *retry_after,
            PushAnswer::Unauthorized(_) => None,
        };
        let doubled = FIRST_PAUSE * 2_i32.pow(self.attempt.saturating_sub(1).min(10));
        let pause = doubled.min(LONGEST_PAUSE).max(asked.unwrap_or_default().min(TIME_TO_LIVE));
        let at = now + pause;
        if at < self.created_at + TIME_TO_LIVE { Next::RetryAt(at) } else { Next::GivenUp }
    }
}

/// What a push service makes of a message. The texts hold no secret and no whole endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushAnswer {
    /// It will deliver.
    Accepted,
    /// The subscription is no more (404, 410).
    Gone,
    /// Not now: it is busy, failing or out of reach.
    Busy {
        /// For how long it asks to be left alone.
        retry_after: Option<TimeDelta>,
        /// What happened.
        reason: String,
    },
    /// It does not take our VAPID (401, 403): ours to mend, not the subscription's fault.
    Unauthorized(String),
    /// It will never take this, or we will never send it there.
    Rejected(String),
}

impl PushAnswer {
    /// What happened, if it was not accepted.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Accepted => None,
            Self::Gone => Some("the push service does not know the subscription any more"),
            Self::Busy { reason, .. } | Self::Unauthorized(reason) | Self::Rejected(reason) => Some(reason),
        }
    }
}

/// What becomes of a notification after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It was accepted.
    Delivered,
    /// Its subscription is to be deleted.
    Gone,
    /// It is to be tried again from then on.
    RetryAt(DateTime<Utc>),
    /// It is not tried again.
    GivenUp,
}

/// A person to whom a deactivation is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The person's name.
    pub name: String,
    /// As what.
    pub recipient: Recipient,
    /// On how many devices; 0 for one who has none or wants no such notice.
    pub devices: u32,
    /// All campaigns of a game master that it concerns; empty for the streamer.
    pub campaigns: Vec<CampaignId>,
}
