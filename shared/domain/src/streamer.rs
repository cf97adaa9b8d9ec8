//! Who the tokens belong to, and until when a session needs them.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::authorization::AUTHORIZATION;
use crate::plain;
use crate::policy::{FailedUnder, Failure};

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

/// Why Twitch gives no expiry for an access token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoExpiry {
    /// The token never expires.
    Never,
    /// No answer says when.
    Unknown,
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

impl Authorized {
    /// When that authorization began; `None`: it is longer than ours are, and does not say.
    #[must_use]
    pub fn since(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        Some(self.until - AUTHORIZATION).filter(|since| *since <= now)
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::policy::{FailureKind, Policy};

    #[test]
    fn a_session_waits_from_when_the_token_is_due_or_the_authorization_begins() {
        let now = DateTime::from_timestamp(1_795_813_200, 0).unwrap();
        let minutes = TimeDelta::minutes;
        let due_for = |left: Option<i64>, failed_ago: Option<i64>, authorized_for| {
            let failure = failed_ago.map(|ago| Failure::first(FailureKind::Outage, now - minutes(ago)));
            let expires_at = left.map(|left| now + minutes(left));
            let authorized = Authorized {
                streamer: Streamer {
                    id: StreamerId(Uuid::nil()),
                    login: "aria".to_owned(),
                    display_name: "Aria".to_owned(),
                },
                until: now + AUTHORIZATION - minutes(authorized_for),
                token: TokenState { expires_at, failure, ..TokenState::default() },
            };
            Policy::default().due_for(&authorized, now).map(|waited| waited.num_minutes())
        };
        assert_eq!(due_for(Some(61), None, 300), None);
        assert_eq!(due_for(Some(60), None, 300), Some(0));
        assert_eq!(due_for(Some(-10), None, 300), Some(70));
        assert_eq!(due_for(Some(-10), None, 5), Some(5), "it was due before");
        assert_eq!(due_for(None, None, 20), Some(20), "an unknown expiry");
        assert_eq!(due_for(Some(-10), Some(14), 300), None, "its retry comes");
        assert_eq!(due_for(Some(-10), Some(40), 300), Some(25));
        assert_eq!(due_for(Some(-10), None, -43_200), Some(70), "an authorization of a month");
    }
}
