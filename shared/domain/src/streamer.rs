//! Who the tokens belong to, and until when a session needs them.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::policy::Failure;

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

/// Who asked for something, as AWS IAM knows them: the ARN of a user or of an assumed role's session.
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
    /// When the access token dies; `None` if nobody knows.
    pub expires_at: Option<DateTime<Utc>>,
    /// The last refresh that succeeded.
    pub refreshed_at: Option<DateTime<Utc>>,
    /// The last time that Twitch called the access token valid.
    pub validated_at: Option<DateTime<Utc>>,
    /// The failure that stands, if the last refresh failed.
    pub failure: Option<Failure>,
}

/// An authorized streamer: active, with a membership `ACTIVE` whose authorization is not over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorized {
    /// Who.
    pub streamer: Streamer,
    /// When the last of the streamer's authorizations ends.
    pub until: DateTime<Utc>,
    /// The state of the streamer's tokens.
    pub token: TokenState,
}
