//! One line of the doctor's: what was looked at, and how it is.

use serde::{Serialize, Serializer};
use tokens_domain::plain;

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    Configuration,
    Database,
    Clock,
    Schema,
    Rights,
    Rows,
    NotifyRole,
    Tokens,
    Cycles,
    Outbox,
    Twitch,
    Vapid,
    Schedules,
}

impl Topic {
    /// In the order of the lines.
    pub const ALL: [Self; 13] = [
        Self::Configuration,
        Self::Database,
        Self::Clock,
        Self::Schema,
        Self::Rights,
        Self::Rows,
        Self::NotifyRole,
        Self::Tokens,
        Self::Cycles,
        Self::Outbox,
        Self::Twitch,
        Self::Vapid,
        Self::Schedules,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Database => "database",
            Self::Clock => "clock",
            Self::Schema => "schema",
            Self::Rights => "rights",
            Self::Rows => "rows",
            Self::NotifyRole => "notify role",
            Self::Tokens => "tokens",
            Self::Cycles => "cycles",
            Self::Outbox => "outbox",
            Self::Twitch => "twitch",
            Self::Vapid => "vapid",
            Self::Schedules => "schedules",
        }
    }

    /// The text may name tables, roles and policies of others.
    fn is(self, state: State, text: impl AsRef<str>) -> Check {
        Check { topic: self, state, text: plain(text) }
    }

    pub fn ok(self, text: impl AsRef<str>) -> Check {
        self.is(State::Ok, text)
    }

    pub fn warning(self, text: impl AsRef<str>) -> Check {
        self.is(State::Warning, text)
    }

    pub fn fault(self, text: impl AsRef<str>) -> Check {
        self.is(State::Fault, text)
    }
}

impl Serialize for Topic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// How a check turned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it should be.
    Ok,
    /// The operator should know, but everything works.
    Warning,
    /// Something does not work.
    Fault,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Fault => "fault",
        }
    }
}

/// One line: what was looked at, how it is, what that means and what to do.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    #[serde(rename = "name")]
    pub topic: Topic,
    pub state: State,
    pub text: String,
}

/// What has no line.
pub fn not_among(checks: &[Check]) -> Vec<Topic> {
    Topic::ALL.into_iter().filter(|topic| checks.iter().all(|check| check.topic != *topic)).collect()
}
