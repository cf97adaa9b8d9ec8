//! What is recorded of a refresh that failed.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// Whose fault a failed refresh is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The grant is dead: only the streamer can recover it.
    Refusal,
    /// Anything that is not the streamer's doing.
    Outage,
}

impl FailureKind {
    /// The kind as logs and the database spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refusal => "refusal",
            Self::Outage => "outage",
        }
    }
}

/// A failure that stands: the last refresh failed and none has succeeded since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When (`token_refresh_failed_at`).
    pub at: DateTime<Utc>,
    /// Whose fault.
    pub kind: FailureKind,
    /// Refusals recorded since the last success, this one included.
    pub refusals: u32,
    /// Our own first refusal since the last success.
    pub refused_since: Option<DateTime<Utc>>,
    /// Whether people were notified of refusals that nothing confirms, since the last success.
    pub noticed: bool,
}

impl Failure {
    /// The first failure after a success.
    #[must_use]
    pub fn first(kind: FailureKind, at: DateTime<Utc>) -> Self {
        let refused = kind == FailureKind::Refusal;
        Self { at, kind, refusals: refused.into(), refused_since: refused.then_some(at), noticed: false }
    }

    /// A failure of which only the time is known, because another program recorded it: a first refusal, but none of our
    /// own.
    #[must_use]
    pub fn recorded_elsewhere(at: DateTime<Utc>) -> Self {
        Self { refused_since: None, ..Self::first(FailureKind::Refusal, at) }
    }
}

/// The part of our configuration that a failure was recorded under. Once that is put right, the failure says nothing any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FailedUnder {
    /// Keys that did not open the stored tokens.
    WrongKeys,
    /// This client id.
    Client(String),
}
