//! What a cycle did: an outcome per streamer while it runs, the counts at its end.

mod text;

use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Serialize, Serializer};

use crate::authorization::Authorization;
use crate::notification::Told;
use crate::policy::{FailureKind, NotDue};
use crate::ports::StoreError;
use crate::streamer::Streamer;

pub use self::text::Human;

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

/// Whether Twitch answered. One answer outweighs any silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TwitchHealth {
    /// It was not asked.
    NotAsked,
    /// It was asked and gave no answer that could be used.
    Unavailable,
    /// It answered.
    Available,
}

/// Why a token that lives is not usable, as Twitch describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// It was issued to another application, with this client id.
    OtherClient(String),
    /// It belongs to another Twitch user, with this id.
    OtherUser(String),
    /// It lacks these scopes, which `REQUIRED_SCOPES` names.
    MissingScopes(Vec<String>),
}

impl Unusable {
    /// Whether it needs the operator, and not the streamer.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        match self {
            Self::OtherClient(_) | Self::OtherUser(_) => true,
            Self::MissingScopes(_) => false,
        }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherClient(id) => {
                write!(
                    f,
                    "the access token belongs to another application (client id {id}): check TWITCH_CLIENT_ID"
                )
            }
            Self::OtherUser(id) => {
                write!(f, "the access token belongs to another Twitch user (id {id}) than the streamer")
            }
            Self::MissingScopes(scopes) => {
                write!(f, "the token lacks required scopes: {}", scopes.join(", "))
            }
        }
    }
}

/// What needs the operator after a failed refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// A stored token is under a key that we don't have, or fails authentication; or the row can't be read.
    Unreadable,
    /// What Twitch answered is lost: it could not be stored, another writer's tokens stand in its place, or the program
    /// panicked.
    NotStored,
    /// Twitch says that the stored token belongs to another application or another user.
    Misplaced,
    /// The streamer was refused for good and not deactivated: the hour's budget is used up, or deactivation is switched
    /// off.
    HeldBack,
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
        told: Vec<Told>,
    },
    /// The streamer is deactivated.
    Deactivated {
        /// Who is notified.
        told: Vec<Told>,
    },
    /// Another writer changed the tokens meanwhile; theirs stand.
    Superseded,
    /// Nothing could be written.
    NotRecorded,
}

/// Why a streamer was not refreshed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Skip {
    /// The policy says so.
    NotDue(NotDue),
    /// Twitch was asked and calls the token valid.
    Validated {
        /// How long the token has left; `None` if Twitch gives no expiry.
        left: Option<TimeDelta>,
    },
    /// Twitch was asked and calls the token valid, but it is not the one that is needed.
    Unusable {
        /// Why.
        why: Unusable,
        /// When the token expires, if Twitch says so.
        expires_at: Option<DateTime<Utc>>,
    },
    /// Twitch was asked whether the token lives and gave no answer.
    NotValidated(String),
    /// Another run holds the lease, the row is locked, or the streamer is no longer active.
    Leased,
    /// Another writer changed the tokens meanwhile; theirs stand, and nothing of ours is lost.
    Superseded,
    /// The cycle stopped first, or the lease was too short by the time its turn came.
    Stopped,
    /// The lease ended before the token was sent.
    LeaseEnded,
    /// The row could not be read or written lately.
    SetAside {
        /// Until when it is left alone.
        until: DateTime<Utc>,
        /// What is wrong with it.
        reason: String,
    },
}

impl Skip {
    /// Whether it waits for a retry: something has failed, and is not tried again yet.
    #[must_use]
    pub fn waits(&self) -> bool {
        matches!(self, Self::NotDue(NotDue::RetryAt(_)) | Self::SetAside { .. })
    }
}

/// Hears of each streamer while a cycle runs. Any function of a streamer and an outcome is one.
pub trait Observer: Send + Sync {
    /// Twitch is about to be asked for a new pair.
    fn refreshing(&self, streamer: &Streamer) {
        let _ = streamer;
    }

    /// This became of the streamer; it is stored.
    fn done(&self, streamer: &Streamer, outcome: &Outcome);

    /// The cycle is over.
    fn finished(&self, report: &Report) {
        let _ = report;
    }
}

impl<F: Fn(&Streamer, &Outcome) + Send + Sync> Observer for F {
    fn done(&self, streamer: &Streamer, outcome: &Outcome) {
        self(streamer, outcome);
    }
}

/// How often which [`Alarm`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Alarms {
    /// See [`Alarm::Unreadable`].
    pub unreadable: u64,
    /// See [`Alarm::NotStored`].
    pub not_stored: u64,
    /// See [`Alarm::Misplaced`].
    pub misplaced: u64,
    /// See [`Alarm::HeldBack`].
    pub held_back: u64,
}

impl Alarms {
    /// All of them.
    #[must_use]
    pub fn total(self) -> u64 {
        self.unreadable + self.not_stored + self.misplaced + self.held_back
    }

    fn count(&mut self, alarm: Alarm) {
        *match alarm {
            Alarm::Unreadable => &mut self.unreadable,
            Alarm::NotStored => &mut self.not_stored,
            Alarm::Misplaced => &mut self.misplaced,
            Alarm::HeldBack => &mut self.held_back,
        } += 1;
    }
}

/// The counts of a cycle. `total = success + failed + skipped + would_refresh`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Streamers looked at.
    pub total: u64,
    /// Refreshed.
    pub success: u64,
    /// Refresh failed.
    pub failed: u64,
    /// Neither refreshed nor failed: [`Skip`] says why.
    pub skipped: u64,
    /// Of the skipped, those that wait for a retry after a failure.
    pub waiting: u64,
    /// Of the skipped, those whose token Twitch has just called valid.
    pub validated: u64,
    /// Of the failed, those whose grant is dead.
    pub refused: u64,
    /// Of the failed, those that were Twitch's or the network's doing.
    pub outages: u64,
    /// Of the failed, those deactivated.
    pub deactivated: u64,
    /// Of the failed, those that need the operator; and of the skipped, those whose token is another's.
    pub alarms: Alarms,
    /// In a dry run, those that were due.
    pub would_refresh: u64,
    /// Retries that could not be armed and domain events that could not be published. The sweep and the timer of the
    /// notifications recover them.
    pub signals_failed: u64,
    /// Why the last of them failed.
    pub signal_failure: Option<String>,
    /// How long the cycle took; in milliseconds where it is serialized.
    #[serde(rename = "duration_ms", serialize_with = "milliseconds")]
    pub duration: TimeDelta,
    /// Why the cycle ended before all streamers were looked at, or could not store all that it knew; what needs the operator
    /// before what passes.
    pub stopped: Option<Stop>,
}

fn milliseconds<S: Serializer>(duration: &TimeDelta, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_i64(duration.num_milliseconds())
}

impl Report {
    /// Counts one streamer.
    pub(crate) fn count(&mut self, outcome: &Outcome) {
        self.total += 1;
        match outcome {
            Outcome::Refreshed { .. } | Outcome::Granted { refreshed: true, .. } => self.success += 1,
            Outcome::Failed { kind, standing, alarm, .. } => {
                self.failed += 1;
                match kind {
                    FailureKind::Refusal => self.refused += 1,
                    FailureKind::Outage => self.outages += u64::from(alarm.is_none()),
                }
                self.deactivated += u64::from(matches!(standing, Standing::Deactivated { .. }));
                if let Some(alarm) = alarm {
                    self.alarms.count(*alarm);
                }
            }
            Outcome::Skipped(skip) => {
                self.skipped += 1;
                self.waiting += u64::from(skip.waits());
                self.validated += u64::from(matches!(skip, Skip::Validated { .. }));
                if let Skip::Unusable { why, .. } = skip
                    && why.is_ours()
                {
                    self.alarms.count(Alarm::Misplaced);
                }
            }
            Outcome::WouldRefresh => self.would_refresh += 1,
            Outcome::WouldValidate | Outcome::Granted { refreshed: false, .. } => self.skipped += 1,
        }
    }
}

/// Why a cycle ended before all streamers were looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The function's timeout is shorter than one attempt can take.
    NoTime,
    /// The function's deadline is near; the rest can be claimed by the next run.
    Deadline,
    /// Too many outages in a row: Twitch is down.
    Outages,
    /// The process is asked to end.
    Interrupted,
    /// Our credentials are wrong.
    Misconfigured(String),
    /// The database failed.
    Store(StoreError),
}

impl Serialize for Stop {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Stop {
    /// Whether the run is to count as failed: something of ours needs the operator first.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        match self {
            Self::Deadline | Self::Outages | Self::Interrupted => false,
            Self::NoTime | Self::Misconfigured(_) | Self::Store(_) => true,
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTime => write!(
                f,
                "no time to begin: an attempt may take {} s; give the function a timeout of at least three minutes, or the command a longer --timeout",
                crate::refresh::MIN_CYCLE.num_seconds()
            ),
            Self::Deadline => f.write_str("the deadline is near; the rest is left to the next run"),
            Self::Outages => write!(
                f,
                "{} outages in a row: Twitch seems to be down; the rest is left to the next run",
                crate::policy::OUTAGE_LIMIT
            ),
            Self::Interrupted => f.write_str("it was interrupted; the rest is left to the next run"),
            Self::Misconfigured(reason) => f.write_str(reason),
            Self::Store(error) => error.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_times_keep_their_seconds() {
        for (milliseconds, text) in [
            (-1, "0 s"),
            (0, "0 s"),
            (1, "under 1 s"),
            (999, "under 1 s"),
            (13_000, "13 s"),
            (60_000, "1 min"),
            (119_999, "1 min 59 s"),
            (599_000, "9 min 59 s"),
            (659_000, "10 min"),
            (7_830_000, "2 h 10"),
        ] {
            assert_eq!(Human(TimeDelta::milliseconds(milliseconds)).to_string(), text);
        }
    }
}
