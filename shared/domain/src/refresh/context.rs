//! What the parts of a cycle share.

use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;

use super::cycle::Cycle;
use super::progress::Progress;
use crate::clock::{Clock, Monotonic};
use crate::policy::Policy;
use crate::ports::StoreError;
use crate::report::Stop;

/// What is asked for, what has been seen so far, the rules and the time.
pub(super) struct Context<'a> {
    pub(super) cycle: &'a Cycle,
    pub(super) progress: Progress<'a>,
    pub(super) policy: &'a Policy,
    pub(super) clock: &'a dyn Clock,
    pub(super) stop: &'a CancellationToken,
}

impl Context<'_> {
    pub(super) fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// Whether nothing new is to be begun.
    pub(super) fn must_stop(&self) -> bool {
        if self.cycle.limits.start.is_some_and(|at| self.clock.monotonic() > at) {
            self.progress.stop(Stop::Deadline);
        }
        if self.stop.is_cancelled() {
            self.progress.stop(Stop::Interrupted);
        }
        self.progress.stopped()
    }

    /// Until when it is tried to read or to lease.
    pub(super) fn last_read(&self) -> Monotonic {
        self.cycle.last_read(self.clock.monotonic())
    }

    /// Until when it is tried to write. An error if the database is away and was waited for until now, when nothing is tried
    /// any more: what is left would pass the deadline, one after the other.
    pub(super) fn last_write(&self) -> Result<Monotonic, StoreError> {
        let now = self.clock.monotonic();
        let give_up_at = self.cycle.last_write(now);
        match &self.progress.state().not_stored {
            Some(error) if now >= give_up_at => Err(error.clone()),
            _ => Ok(give_up_at),
        }
    }
}
