//! What a trigger asks for: which streamers a cycle is for, and until when it may do what.

use chrono::TimeDelta;

use crate::authorization::{Authorized, Grant};
use crate::clock::Monotonic;
use crate::policy::RefreshMode;
use crate::ports::Priority;
use crate::schedule::Trigger;
use crate::streamer::{Caller, Streamer, TokenState};

/// The longest that one call to Twitch may take, its quick retries included.
pub const MAX_CALL: TimeDelta = TimeDelta::seconds(20);

/// The longest that one streamer may take: validate, refresh, validate.
pub(super) const MAX_ATTEMPT: TimeDelta = TimeDelta::seconds(3 * MAX_CALL.num_seconds());

/// How long a lease holds: the longest attempt, as long again for its turn to come, and a minute to write.
pub(super) const LEASE: TimeDelta = TimeDelta::seconds(2 * MAX_ATTEMPT.num_seconds() + 60);

/// Kept free before a deadline, to report what could not be written.
pub const DEADLINE_MARGIN: TimeDelta = TimeDelta::seconds(5);

/// The longest that one signal may take, its quick retries included.
pub const SIGNAL_TIMEOUT: TimeDelta = TimeDelta::seconds(2);

/// Kept free before a deadline for what follows the last signal: the report.
const REPORTING: TimeDelta = TimeDelta::seconds(1);

/// For how long a write is tried where there is no deadline: a database that fails over is back before.
const WRITE_PATIENCE: TimeDelta = TimeDelta::minutes(5);

/// For how long a cycle tries to read or to lease: a database that fails over is back within a minute.
const READ_PATIENCE: TimeDelta = TimeDelta::minutes(1);

/// The least time that a deadline must leave a cycle: enough for one attempt.
pub const MIN_CYCLE: TimeDelta =
    TimeDelta::seconds(MAX_ATTEMPT.num_seconds() + DEADLINE_MARGIN.num_seconds());

/// A request that meets another run's lease waits this long for its outcome.
const LEASE_PATIENCE: TimeDelta = TimeDelta::seconds(5);

/// Less time than this before a request is to be answered is too little to ask Twitch and write what it said.
const MIN_REQUEST: TimeDelta = TimeDelta::seconds(3);

/// What a trigger asks for.
#[derive(Clone, Debug)]
pub struct Cycle {
    /// Why the cycle runs.
    pub trigger: Trigger,
    /// What it asks for beyond what is due.
    pub mode: RefreshMode,
    /// Decide only: call nothing, write nothing.
    pub dry_run: bool,
    /// The streamers that it is for.
    pub scope: Scope,
    /// What is granted with a token that is fresh.
    pub grants: Option<Grant>,
    /// The caller that asked for it, if any.
    pub caller: Option<Caller>,
    /// Whether our keys were read just now: a token under another key is a failure then. Otherwise the cycle stops at it, for
    /// the key may have been added meanwhile.
    pub keys_are_current: bool,
    /// How long it may take.
    pub limits: Limits,
}

/// The streamers that a cycle is for.
#[derive(Clone, Debug)]
pub enum Scope {
    /// All that are authorized.
    Authorized,
    /// The listed ones, authorized or not, as they were found.
    Listed(Vec<(Streamer, TokenState)>),
}

impl Scope {
    /// Only this one.
    #[must_use]
    pub fn only(authorized: &Authorized) -> Self {
        Self::Listed(vec![(authorized.streamer.clone(), authorized.token.clone())])
    }
}

/// Until when a cycle may do what.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Past this nothing new is begun.
    pub start: Option<Monotonic>,
    /// Past this a result that can't be written is given up.
    write: Option<Monotonic>,
    /// Past this no signal is begun.
    pub(super) signal: Option<Monotonic>,
}

impl Limits {
    /// Of a process that is killed at `deadline`.
    #[must_use]
    pub fn of_function(deadline: Option<Monotonic>) -> Self {
        Self {
            start: deadline.map(|at| at - MIN_CYCLE),
            write: deadline.map(|at| at - DEADLINE_MARGIN),
            signal: deadline.map(|at| at - SIGNAL_TIMEOUT - REPORTING),
        }
    }

    /// Of a command that began then and is to end within `time`. Where that is short, what it has begun by half of it is finished
    /// all the same.
    #[must_use]
    pub fn of_command(began: Monotonic, time: TimeDelta) -> Self {
        let (deadline, half) = (began + time, time / 2);
        Self {
            start: Some(deadline - MIN_CYCLE.min(half)),
            write: Some(deadline - DEADLINE_MARGIN.min(half)),
            signal: Some(deadline - (SIGNAL_TIMEOUT + REPORTING).min(half)),
        }
    }

    /// Of a request that is to be answered by `answer_by`, in a process that is killed at `deadline`. No call
    /// to Twitch may outlast `answer_by`, which the caller sees to. A new pair that can't be written is tried for as long as
    /// the process lives: it exists nowhere else.
    #[must_use]
    pub fn of_request(answer_by: Monotonic, deadline: Option<Monotonic>) -> Self {
        Self {
            start: Some(answer_by - MIN_REQUEST),
            write: Some(deadline.map_or(answer_by, |at| at - DEADLINE_MARGIN).max(answer_by)),
            signal: Some(answer_by - SIGNAL_TIMEOUT),
        }
    }

    /// How much longer a request that began then waits for another's lease.
    pub(crate) fn lease_patience(&self, began: Monotonic, now: Monotonic) -> TimeDelta {
        let patient_until = began + LEASE_PATIENCE;
        self.start.map_or(patient_until, |start| start.min(patient_until)) - now
    }
}

impl Cycle {
    /// A cycle over all that are authorized, with what its trigger asks for.
    #[must_use]
    pub fn new(trigger: Trigger) -> Self {
        let mode = match trigger {
            Trigger::Sweep => RefreshMode::DueOrUnproven,
            Trigger::Grant => RefreshMode::NotJustNow,
            Trigger::HealthCheck => RefreshMode::Usable,
            Trigger::Retry => RefreshMode::DueByTime,
            Trigger::Planned | Trigger::Command => RefreshMode::Due,
        };
        Self {
            trigger,
            mode,
            dry_run: false,
            scope: Scope::Authorized,
            grants: None,
            caller: None,
            keys_are_current: true,
            limits: Limits::default(),
        }
    }

    /// Only a sweep can leave a validation to the next one; elsewhere a caller waits for it.
    pub(super) fn priority_of_validations(&self) -> Priority {
        if self.mode == RefreshMode::DueOrUnproven { Priority::Optional } else { Priority::Vital }
    }

    pub(super) fn last_write(&self, now: Monotonic) -> Monotonic {
        self.limits.write.unwrap_or(now + WRITE_PATIENCE)
    }

    /// Until when it is tried to read or to lease. Once, for those who ask for a few and wait for an answer.
    pub(super) fn last_read(&self, now: Monotonic) -> Monotonic {
        let patient_until = now + READ_PATIENCE;
        match self.scope {
            Scope::Authorized => self.limits.start.map_or(patient_until, |start| start.min(patient_until)),
            Scope::Listed(_) => now,
        }
    }
}
