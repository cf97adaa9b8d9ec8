//! What has been seen so far, shared by the parts.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};

use crate::evidence::History;
use crate::policy::OUTAGE_LIMIT;
use crate::ports::{Outage, Priority, StoreError};
use crate::report::{Observer, Outcome, Report, Stop};
use crate::streamer::{Streamer, StreamerId};

/// The report as it grows, and whether the cycle goes on.
pub(super) struct Progress<'a> {
    observer: &'a dyn Observer,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) report: Report,
    /// Refreshes that were outages, since the last success.
    refreshes_failed: u32,
    /// What became of the refreshes of this cycle.
    pub(super) history: History,
    /// Validations that were outages, since the last answer.
    validations_failed: u32,
    /// Those among them that were vital.
    vital_validations_failed: u32,
    /// The hour's deactivations are used up: the store need not be asked again.
    pub(super) over_budget: bool,
    /// The minutes for which a retry was asked.
    pub(super) retries: BTreeSet<DateTime<Utc>>,
    /// Rows that could not be written, since the last that could.
    rows_refused: u32,
    /// Why results could not be stored, however often it was tried.
    pub(super) not_stored: Option<StoreError>,
}

impl<'a> Progress<'a> {
    pub(super) fn new(observer: &'a dyn Observer) -> Self {
        Self { observer, state: Mutex::default() }
    }

    pub(super) fn into_report(self) -> Report {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner).report
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn refreshing(&self, streamer: &Streamer) {
        self.observer.refreshing(streamer);
    }

    pub(super) fn done(&self, streamer: &Streamer, outcome: &Outcome) {
        self.state().report.count(outcome);
        self.observer.done(streamer, outcome);
    }

    /// The first reason to stop is the one that counts; but one that needs the operator is not hidden by one that passes.
    pub(super) fn stop(&self, reason: Stop) {
        let stopped = &mut self.state().report.stopped;
        if stopped.as_ref().is_none_or(|first| reason.is_ours() && !first.is_ours()) {
            *stopped = Some(reason);
        }
    }

    pub(super) fn not_stored(&self, error: &StoreError) {
        self.stop(Stop::Store(error.clone()));
        self.state().not_stored = Some(error.clone());
    }

    /// One row does not affect the others. So many one after the other are no fault of theirs, and each loses a pair.
    pub(super) fn row_refused(&self, error: &StoreError) {
        let refused = {
            let mut state = self.state();
            state.rows_refused += 1;
            state.rows_refused
        };
        if refused >= OUTAGE_LIMIT {
            self.stop(Stop::Store(StoreError::new(
                error.kind,
                format!("{refused} rows one after the other could not be written: {error}"),
            )));
        }
    }

    pub(super) fn row_written(&self) {
        self.state().rows_refused = 0;
    }

    pub(super) fn stopped(&self) -> bool {
        self.state().report.stopped.is_some()
    }

    pub(super) fn refreshed(&self, id: StreamerId, at: DateTime<Utc>) {
        let mut state = self.state();
        state.refreshes_failed = 0;
        state.history.add_success(id, at);
    }

    /// A refusal is an answer: it neither counts as an outage nor ends a row of them.
    pub(super) fn refused(&self, id: StreamerId, at: DateTime<Utc>) {
        self.state().history.add_refusal(id, at);
    }

    pub(super) fn refresh_failed(&self) {
        let outages = {
            let mut state = self.state();
            state.refreshes_failed += 1;
            state.refreshes_failed
        };
        if outages >= OUTAGE_LIMIT {
            self.stop(Stop::Outages);
        }
    }

    /// Where only validations fail, they alone are given up: streamers that are due are refreshed. Optional ones that
    /// failed use up nothing of what vital ones may try.
    pub(super) fn may_validate(&self, priority: Priority) -> Result<(), Outage> {
        let state = self.state();
        let failed = match priority {
            Priority::Vital => state.vital_validations_failed,
            Priority::Optional => state.validations_failed,
        };
        if failed < OUTAGE_LIMIT {
            return Ok(());
        }
        Err(Outage(format!("{OUTAGE_LIMIT} validations in a row have failed")))
    }

    pub(super) fn validated(&self, priority: Priority, answered: bool) {
        let mut state = self.state();
        if answered {
            (state.validations_failed, state.vital_validations_failed) = (0, 0);
            return;
        }
        state.validations_failed += 1;
        state.vital_validations_failed += u32::from(priority == Priority::Vital);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optional_validations_that_fail_leave_vital_ones_their_tries() {
        let observer = |_: &Streamer, _: &Outcome| {};
        let progress = Progress::new(&observer);
        let may = |priority| progress.may_validate(priority).is_ok();
        for _ in 0..OUTAGE_LIMIT {
            assert!(may(Priority::Optional));
            progress.validated(Priority::Optional, false);
        }
        assert!(!may(Priority::Optional) && may(Priority::Vital));
        for _ in 0..OUTAGE_LIMIT {
            assert!(may(Priority::Vital));
            progress.validated(Priority::Vital, false);
        }
        assert!(!may(Priority::Optional) && !may(Priority::Vital));
        progress.validated(Priority::Vital, true);
        assert!(may(Priority::Optional) && may(Priority::Vital));
        assert!(!progress.stopped(), "refreshes go on");
    }
}
