//! What is reported of one streamer: it follows from what was decided and from what the store has made of it.

#[cfg(test)]
mod tests;

use chrono::{DateTime, Utc};

use crate::attempt::{Alarm, Attempt, FailedRefresh, Resolution, Skip, Stored, TwitchHealth};
use crate::authorization::Authorization;
use crate::failure::FailureKind;
use crate::policy::Verdict;
use crate::ports::{Expiry, StoreError};
use crate::recipient::Recipient;

/// What a cycle did with one streamer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A new pair is stored.
    Refreshed {
        /// When the new access token dies, as far as Twitch said so.
        expires_at: Option<DateTime<Utc>>,
    },
    /// A campaign is authorized, and the token is fresh.
    Granted {
        /// The hours.
        authorization: Authorization,
        /// When the access token dies, as far as Twitch said so.
        token_expires_at: Option<DateTime<Utc>>,
        /// Whether the token was refreshed for it, and not just before.
        refreshed: bool,
    },
    /// The refresh failed.
    Failed {
        /// Whose fault it is; what it counts as is in `standing`.
        kind: FailureKind,
        /// What happened, without secrets.
        reason: String,
        /// What is known of the access token's expiry by now.
        token_expires_at: Option<DateTime<Utc>>,
        /// Where that leaves the streamer.
        standing: Standing,
        /// What needs the operator, if anything.
        alarm: Option<Alarm>,
        /// Whether Twitch answered.
        twitch: TwitchHealth,
    },
    /// No refresh was called for.
    Skipped(Skip),
    /// A dry run: this streamer would have been refreshed.
    WouldRefresh,
    /// A dry run: Twitch would have been asked whether the token lives.
    WouldValidate,
}

impl Outcome {
    /// What is reported of an attempt, of which this is stored.
    #[must_use]
    pub fn of(attempt: &Attempt, stored: Stored) -> Self {
        match (&attempt.resolution, stored) {
            (_, Stored::Refused(error)) => Self::not_stored(attempt, &error),
            // The pair is stored; the caller asked for more.
            (_, Stored::NotGranted(error)) => Self::lost(
                FailureKind::Outage,
                format!("the authorization could not be written: {error}"),
                TwitchHealth::Available,
            ),
            (Resolution::Refreshed { .. }, Stored::Superseded) => Self::Failed {
                kind: FailureKind::Outage,
                reason:
                    "refreshed, but another writer changed the tokens meanwhile: the new pair was thrown away"
                        .to_owned(),
                token_expires_at: None,
                standing: Standing::Superseded,
                alarm: Some(Alarm::NotStored),
                twitch: TwitchHealth::Available,
            },
            (_, Stored::Superseded) => Self::Skipped(Skip::Superseded),
            (Resolution::Refreshed { memory, .. }, Stored::Granted(authorization)) => Self::Granted {
                authorization,
                token_expires_at: memory.expiry.and_then(Expiry::at),
                refreshed: true,
            },
            (_, Stored::Granted(authorization)) => {
                Self::Granted { authorization, token_expires_at: attempt.expires_before, refreshed: false }
            }
            (Resolution::Failed { cause, retry_at, .. }, Stored::Noticed(recipients)) => {
                Self::failed(cause, Standing::Noticed { retry_at: *retry_at, recipients })
            }
            (Resolution::Deactivate { cause, .. }, Stored::Deactivated(recipients)) => {
                Self::failed(cause, Standing::Deactivated { recipients })
            }
            (
                resolution,
                Stored::Written | Stored::Noticed(_) | Stored::Deactivated(_) | Stored::OverBudget,
            ) => Self::written(resolution, attempt.started_at),
        }
    }

    /// What is reported of an attempt that could not be written.
    #[must_use]
    pub fn not_stored(attempt: &Attempt, error: &StoreError) -> Self {
        match &attempt.resolution {
            Resolution::Refreshed { .. } => Self::lost(
                FailureKind::Outage,
                format!("refreshed, but the new tokens could not be stored: {error}"),
                TwitchHealth::Available,
            ),
            Resolution::Failed { cause, .. } | Resolution::Deactivate { cause, .. } => Self::lost(
                cause.kind(),
                format!("{}; this could not be stored: {error}", cause.reason),
                cause.twitch,
            ),
            resolution => Self::written(resolution, attempt.started_at),
        }
    }

    /// What is reported of an attempt whose row can't be written, though others can, and is set aside.
    #[must_use]
    pub fn set_aside(attempt: &Attempt, error: &StoreError) -> Self {
        match Self::not_stored(attempt, error) {
            Self::Failed { kind, reason, alarm: Some(Alarm::NotStored), twitch, .. } => {
                Self::lost(kind, format!("{reason}; the row is set aside"), twitch)
            }
            _ => Self::lost(
                FailureKind::Outage,
                format!("the row can't be written and is set aside: {error}"),
                TwitchHealth::Available,
            ),
        }
    }

    /// The row can't be read.
    #[must_use]
    pub fn unreadable(reason: String) -> Self {
        Self::Failed {
            kind: FailureKind::Outage,
            reason,
            token_expires_at: None,
            standing: Standing::NotRecorded,
            alarm: Some(Alarm::Unreadable),
            twitch: TwitchHealth::NotAsked,
        }
    }

    fn written(resolution: &Resolution, started_at: DateTime<Utc>) -> Self {
        let expires_at = resolution.expires_at();
        match resolution {
            Resolution::Refreshed { unusable: Some(why), .. }
            | Resolution::Completed { unusable: Some(why), .. }
            | Resolution::Validated { unusable: Some(why), .. } => {
                Self::Skipped(Skip::Unusable { why: why.clone(), expires_at })
            }
            Resolution::Completed { granted: Some(authorization), .. } => {
                Self::Granted { authorization: *authorization, token_expires_at: expires_at, refreshed: true }
            }
            Resolution::Refreshed { .. } | Resolution::Completed { .. } => Self::Refreshed { expires_at },
            Resolution::Validated { .. } => {
                Self::Skipped(Skip::Validated { left: expires_at.map(|at| at - started_at) })
            }
            Resolution::Failed { cause, verdict: Verdict::Recorded(failure), retry_at, .. } => {
                Self::failed(cause, Standing::Recorded { kind: failure.kind, retry_at: *retry_at })
            }
            Resolution::Failed { cause, verdict: Verdict::Repeated(_), retry_at, .. } => {
                Self::failed(cause, Standing::Repeated { retry_at: *retry_at })
            }
            Resolution::Deactivate { cause, .. } => Self::failed(cause, Standing::NotRecorded),
            Resolution::Skipped(skip) => Self::Skipped(skip.clone()),
            Resolution::Panicked => Self::lost(
                FailureKind::Outage,
                "the program failed here; its log has the panic".to_owned(),
                TwitchHealth::NotAsked,
            ),
        }
    }

    fn failed(cause: &FailedRefresh, standing: Standing) -> Self {
        Self::Failed {
            kind: cause.kind(),
            reason: cause.reason.clone(),
            token_expires_at: cause.expires_at,
            standing,
            alarm: cause.alarm,
            twitch: cause.twitch,
        }
    }

    fn lost(kind: FailureKind, reason: String, twitch: TwitchHealth) -> Self {
        let (token_expires_at, standing, alarm) = (None, Standing::NotRecorded, Some(Alarm::NotStored));
        Self::Failed { kind, reason, token_expires_at, standing, alarm, twitch }
    }
}

/// Where a failed refresh leaves the streamer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The failure is recorded; the streamer is tried again from `retry_at` on.
    Recorded {
        /// Whose fault.
        kind: FailureKind,
        /// When the next attempt is due.
        retry_at: DateTime<Utc>,
    },
    /// An earlier failure stands, younger than the retry delay: this one counts for nothing.
    Repeated {
        /// When the next attempt is due.
        retry_at: DateTime<Utc>,
    },
    /// As recorded; and people were notified, because refusals that nothing confirms have lasted too long.
    Noticed {
        /// When the next attempt is due.
        retry_at: DateTime<Utc>,
        /// Who is notified.
        recipients: Vec<Recipient>,
    },
    /// The streamer is deactivated.
    Deactivated {
        /// Who is notified.
        recipients: Vec<Recipient>,
    },
    /// Another writer changed the tokens meanwhile; theirs stand.
    Superseded,
    /// Nothing could be written.
    NotRecorded,
}
