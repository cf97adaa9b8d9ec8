//! A notification of a deactivation: who it is for, and what an attempt to deliver it changes. Pure functions.
//!
//! Nothing here sends or stores anything.

#[cfg(test)]
mod tests;

pub use crate::recipient::{Campaigns, NAMED_CAMPAIGNS, Recipient, Role};

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::streamer::StreamerId;

/// What a notification says is stale after a day. It is given up then, and push services keep it no longer.
pub const TIME_TO_LIVE: TimeDelta = TimeDelta::hours(24);

/// The wait after a first failed delivery; it doubles with each, up to [`MAX_PAUSE`].
pub const FIRST_PAUSE: TimeDelta = TimeDelta::minutes(1);

/// A push service that comes back is noticed within this long.
pub const MAX_PAUSE: TimeDelta = TimeDelta::hours(1);

/// For how long a push service's name must not exist before its subscription is deleted: a day, but for the hour in which
/// a notification's last attempt falls.
pub const NO_NAME_FOR: TimeDelta = TimeDelta::hours(23);

/// So many devices of a person are notified, those that signed in last.
pub const DEVICES_OF_A_PERSON: usize = 20;

/// As many become the 32 characters of base64url that a topic may have.
const TOPIC_BYTES: usize = 24;

/// Which other streamers a person was notified of and are still lost, by their names, the newest first. The service worker
/// shows one notification of a kind, so the newest says it of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AlsoLost {
    /// The person's own channels.
    pub own: Vec<String>,
    /// Streamers in the person's campaigns.
    pub others: Vec<String>,
}

/// A browser's push subscription (RFC 8030), as the application stores it. All of it is user input.
#[derive(Clone, PartialEq, Eq)]
pub struct Subscription {
    /// Primary key.
    pub id: Uuid,
    /// Where the push service takes messages for this browser. Knowing it is enough to try to push: it is never logged
    /// whole.
    pub endpoint: String,
    /// The browser's public key, base64url.
    pub p256dh: String,
    /// The secret that it shares with us, base64url.
    pub auth: String,
}

impl Subscription {
    /// The endpoint's host, to tell push services apart. It need not be one.
    #[must_use]
    pub fn host(&self) -> String {
        let endpoint = self.endpoint.trim().replace('\\', "/");
        let rest = endpoint.split_once("://").map_or(endpoint.as_str(), |(_, rest)| rest);
        let authority = rest.trim_start_matches('/').split(['/', '?', '#']).next().unwrap_or_default();
        let host = authority.rsplit('@').next().unwrap_or_default();
        host.trim_end_matches(":443").trim_end_matches('.').to_lowercase()
    }
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
    /// As what the person is notified.
    pub role: Role,
    /// What else the recipient has to know.
    pub also_lost: AlsoLost,
    /// Since when the push service's name does not exist, if it did not at the last attempt.
    pub no_name_since: Option<DateTime<Utc>>,
    /// Whether the device is known to have subscribed under another VAPID key than ours.
    pub other_key: bool,
}

impl Notification {
    /// A later notification with the same topic (RFC 8030, section 5.4) replaces this one while it waits for the device:
    /// 32 characters at most, of base64url's alphabet.
    #[must_use]
    pub fn topic(&self) -> String {
        // One streamer's notices to one person. Whole ids would be too long, and any part of an id may be shared.
        let mut ids = Sha256::new_with_prefix(self.streamer.0);
        if let Role::GameMaster(campaigns) = &self.role {
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

    /// Remembers what this answer says of the device.
    pub fn note(&mut self, answer: &PushAnswer, now: DateTime<Utc>) {
        self.no_name_since = match answer {
            PushAnswer::NoSuchName(_) => self.no_name_since.or(Some(now)),
            PushAnswer::NotAsked(_) => self.no_name_since,
            _ => None,
        };
        self.other_key = match answer {
            PushAnswer::OtherKey(_) => true,
            PushAnswer::Accepted => false,
            _ => self.other_key,
        };
    }

    /// What an attempt changes that ended with `answer`, once that is [noted](Self::note).
    #[must_use]
    pub fn after_attempt(&self, answer: &PushAnswer, now: DateTime<Utc>) -> Next {
        let end = self.created_at + TIME_TO_LIVE;
        let asked = match answer {
            PushAnswer::Accepted => return Next::Delivered,
            PushAnswer::Gone | PushAnswer::Unreachable(_) => return Next::Gone,
            PushAnswer::Rejected(_) => return Next::GivenUp,
            PushAnswer::NoSuchName(_)
                if self.no_name_since.is_some_and(|since| now - since >= NO_NAME_FOR) =>
            {
                return Next::Gone;
            }
            PushAnswer::Busy { retry_after, .. } => *retry_after,
            PushAnswer::Unauthorized(_)
            | PushAnswer::OtherKey(_)
            | PushAnswer::NoSuchName(_)
            | PushAnswer::NoAnswer(_)
            | PushAnswer::NotAsked(_) => None,
        };
        let doubled = FIRST_PAUSE * 2_i32.pow(self.attempt.saturating_sub(1).min(10));
        let pause = doubled.min(MAX_PAUSE).max(asked.unwrap_or_default().min(TIME_TO_LIVE));
        let at = now + pause;
        if at < end { Next::RetryAt(at) } else { Next::GivenUp }
    }
}

/// What a push service makes of a message. The texts hold no secret and no whole endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushAnswer {
    /// It will deliver.
    Accepted,
    /// The subscription is no more (404, 410).
    Gone,
    /// Not now: it is busy or failing.
    Busy {
        /// For how long it asks to be left alone.
        retry_after: Option<TimeDelta>,
        /// What happened.
        reason: String,
    },
    /// It did not answer.
    NoAnswer(String),
    /// It was not asked, because it did not answer others.
    NotAsked(String),
    /// Its name does not exist, while others do.
    NoSuchName(String),
    /// It can never be reached: no such address can be anybody's on the public internet.
    Unreachable(String),
    /// It does not take our VAPID: needs the operator, or the device has subscribed under another key.
    Unauthorized(String),
    /// It does not take our VAPID for this device, while other devices' services do: the device has subscribed under
    /// another key.
    OtherKey(String),
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
            Self::Busy { reason, .. }
            | Self::NoAnswer(reason)
            | Self::NotAsked(reason)
            | Self::NoSuchName(reason)
            | Self::Unreachable(reason)
            | Self::Unauthorized(reason)
            | Self::OtherKey(reason)
            | Self::Rejected(reason) => Some(reason),
        }
    }

    /// Whether it answered.
    #[must_use]
    pub fn was_answered(&self) -> bool {
        match self {
            Self::Accepted | Self::Gone | Self::Busy { .. } | Self::Unauthorized(_) | Self::OtherKey(_) => {
                true
            }
            Self::NoAnswer(_)
            | Self::NotAsked(_)
            | Self::NoSuchName(_)
            | Self::Unreachable(_)
            | Self::Rejected(_) => false,
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
