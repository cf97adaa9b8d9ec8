//! What a cycle did: an outcome per streamer while it runs, the counts at its end.

mod outcome;

use std::fmt;

use chrono::TimeDelta;
use serde::{Serialize, Serializer};

use crate::failure::FailureKind;
use crate::ports::StoreError;
use crate::streamer::Streamer;

pub use self::outcome::{Outcome, Standing};
pub use crate::attempt::{Alarm, Skip, TwitchHealth, Unusable};

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
    /// The time limit is shorter than one attempt may take.
    NoTime,
    /// The deadline is near; the rest can be claimed by the next run.
    Deadline,
    /// Too many outages in a row: Twitch is down.
    Outages,
    /// The process is asked to end.
    Interrupted,
    /// Our credentials are wrong.
    Misconfigured(String),
    /// A stored token is under a key that we don't have, or fails authentication; our keys may have changed.
    UnknownKey(String),
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
            Self::NoTime | Self::Misconfigured(_) | Self::UnknownKey(_) | Self::Store(_) => true,
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTime => {
                f.write_str("no time to begin: the time limit is shorter than one attempt may take")
            }
            Self::Deadline => f.write_str("the deadline is near; the rest is left to the next run"),
            Self::Outages => write!(
                f,
                "{} outages in a row: Twitch seems to be down; the rest is left to the next run",
                crate::policy::OUTAGE_LIMIT
            ),
            Self::Interrupted => f.write_str("it was interrupted; the rest is left to the next run"),
            Self::Misconfigured(reason) | Self::UnknownKey(reason) => f.write_str(reason),
            Self::Store(error) => error.fmt(f),
        }
    }
}
