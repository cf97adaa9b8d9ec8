//! Who the tokens belong to, and until when a session needs them.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::failure::{FailedUnder, Failure};
use crate::plain::plain;

/// A streamer's primary key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StreamerId(pub Uuid);

impl fmt::Display for StreamerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A Twitch channel whose tokens we keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Streamer {
    /// Primary key.
    pub id: StreamerId,
    /// The channel's name in Twitch's URLs.
    pub login: String,
    /// The channel's name as viewers see it.
    pub display_name: String,
}

impl Streamer {
    /// With its names as they may be shown.
    #[must_use]
    pub fn new(id: StreamerId, login: impl AsRef<str>, display_name: impl AsRef<str>) -> Self {
        Self { id, login: plain(login), display_name: plain(display_name) }
    }

    /// One whose row can't be read.
    #[must_use]
    pub fn unnamed(id: StreamerId) -> Self {
        Self { id, login: id.to_string(), display_name: "?".to_owned() }
    }
}

/// Who asked for something, as the host has authenticated them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller(pub String);

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is known of a streamer's tokens without reading them; all that the policy decides on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenState {
    /// When the access token expires; `None` if that is unknown, or if it never does.
    pub expires_at: Option<DateTime<Utc>>,
    /// What Twitch says of the stored access token where it gives no expiry; `None` if it was not asked.
    pub no_expiry: Option<NoExpiry>,
    /// The last refresh that succeeded.
    pub refreshed_at: Option<DateTime<Utc>>,
    /// The last time that Twitch called the access token valid.
    pub validated_at: Option<DateTime<Utc>>,
    /// The failure that stands, if the last refresh failed.
    pub failure: Option<Failure>,
    /// What of ours it was recorded under, if we recorded it.
    pub failed_under: Option<FailedUnder>,
    /// That has been put right since: the retry is not waited for.
    pub repaired: bool,
}

impl TokenState {
    /// The state as it counts under today's configuration: what led to a failure of ours may have been put right.
    #[must_use]
    pub fn under(self, client_id: &str, keys_open_it: bool) -> Self {
        let repaired = match &self.failed_under {
            Some(FailedUnder::WrongKeys) => keys_open_it,
            Some(FailedUnder::Client(id)) => id != client_id,
            None => false,
        };
        Self { repaired, ..self }
    }

    /// The failure that counts: one by a fault of ours that has been put right says nothing of the streamer.
    #[must_use]
    pub fn standing_failure(&self) -> Option<Failure> {
        self.failure.filter(|_| !self.repaired)
    }
}

/// Why Twitch gives no expiry for an access token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoExpiry {
    /// The token never expires.
    Never,
    /// No answer says when.
    Unknown,
}
