//! Results, on their way to the database in batches; what is stored is told. Runs that deactivate take turns under the budget, so
//! deactivations have a lane of their own, in which no new pair waits behind them.

use std::pin::pin;

use futures::future::{self, Either};

use super::{Arrived, Cycle, Progress, RefreshService, Signaller};
use crate::clock::Monotonic;
use crate::notification::Told;
use crate::policy::FailureKind;
use crate::ports::{Attempt, Change, Deactivation, Recorded, Signals, Store, StoreError, Twitch};
use crate::report::{Alarm, Outcome, Skip, Standing};

impl<S: Store, T: Twitch, G: Signals> RefreshService<S, T, G> {
    /// Deactivates those who were refused for good, as far as the budget goes, then tells of it.
    pub(super) async fn deactivate(&self, cycle: &Cycle, signaller: &Signaller<'_>, refused: Vec<Arrived>) {
        let progress = signaller.progress;
        let give_up_at = cycle.last_write(self.clock.monotonic());
        let (attempts, rest): (Vec<_>, Vec<_>) =
            refused.into_iter().map(|one| (one.attempt, (one.outcome, one.before))).unzip();
        let over_budget = progress.state().over_budget;
        let done = match self.waited_for(progress, give_up_at) {
            Some(error) => Err(error),
            None if over_budget => Ok(vec![Deactivation::OverBudget; attempts.len()]),
            None => self.store.deactivate(&attempts, give_up_at).await,
        };
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                progress.not_stored(&error);
                for (attempt, (outcome, _)) in attempts.iter().zip(rest) {
                    progress.done(&attempt.streamer, &not_stored(outcome, &error));
                }
                return;
            }
        };
        let mut held_back = Vec::new();
        for ((attempt, (outcome, before)), done) in attempts.into_iter().zip(rest).zip(done) {
            let outcome = match done {
                Deactivation::Done(told) => {
                    signaller.deactivated(&attempt, &told);
                    deactivated(outcome, told)
                }
                Deactivation::Superseded => Outcome::Skipped(Skip::Superseded),
                Deactivation::Refused(error) => {
                    signaller.stuck(attempt, outcome, error);
                    continue;
                }
                Deactivation::OverBudget => {
                    progress.state().over_budget = true;
                    held_back.push(self.held_back(Arrived { attempt, outcome, before }));
                    continue;
                }
            };
            progress.done(&attempt.streamer, &outcome);
        }
        self.record(cycle, signaller, held_back).await;
    }

    /// Writes what has arrived in one statement, then tells of it.
    pub(super) async fn record(&self, cycle: &Cycle, signaller: &Signaller<'_>, batch: Vec<Arrived>) {
        if batch.is_empty() {
            return;
        }
        let progress = signaller.progress;
        let (attempts, told): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|one| (one.attempt, one.outcome)).unzip();
        match self.store_results(cycle, progress, &attempts).await {
            Ok(recorded) => {
                for ((attempt, outcome), recorded) in attempts.iter().zip(told).zip(recorded) {
                    if let Recorded::Refused(error) = recorded {
                        progress.row_refused(&error);
                        signaller.stuck(attempt.clone(), outcome, error);
                        continue;
                    }
                    progress.row_written();
                    let outcome = stored_as(outcome, recorded, attempt);
                    signaller.recorded(&outcome, self.clock.now());
                    progress.done(&attempt.streamer, &outcome);
                }
            }
            Err(error) => {
                for (attempt, outcome) in attempts.iter().zip(told) {
                    progress.done(&attempt.streamer, &not_stored(outcome, &error));
                }
            }
        }
    }

    /// Sees to a result whose row can't be written. A new pair exists nowhere else, so it is tried for as long as there is
    /// time; then the row is set aside.
    pub(super) async fn see_to(&self, cycle: &Cycle, signaller: &Signaller<'_>, stuck: Stuck) {
        let Stuck { attempt, outcome, mut error } = stuck;
        let progress = signaller.progress;
        if let Change::Refreshed { .. } = attempt.change {
            let give_up_at = cycle.last_write(self.clock.monotonic());
            let again = pin!(self.store.insist(&attempt, give_up_at));
            match future::select(again, pin!(self.stop.given())).await {
                Either::Left((Ok(recorded), _)) => {
                    let outcome = stored_as(outcome, recorded, &attempt);
                    signaller.recorded(&outcome, self.clock.now());
                    progress.done(&attempt.streamer, &outcome);
                    return;
                }
                Either::Left((Err(last), _)) => error = last,
                Either::Right(_) => {}
            }
        }
        let reason = format!("its row can't be written: {error}");
        // If not even that can be written, the lease runs out and the next run finds out again.
        let _ = self.store.set_aside(&attempt, &reason, self.clock.now()).await;
        progress.done(&attempt.streamer, &lost(outcome, &error));
    }

    /// Writes these, for as long as there is time.
    pub(super) async fn store_results(
        &self,
        cycle: &Cycle,
        progress: &Progress<'_>,
        attempts: &[Attempt],
    ) -> Result<Vec<Recorded>, StoreError> {
        let give_up_at = cycle.last_write(self.clock.monotonic());
        let recorded = match self.waited_for(progress, give_up_at) {
            Some(error) => Err(error),
            None => self.store.record(attempts, give_up_at).await,
        };
        recorded.inspect_err(|error| progress.not_stored(error))
    }

    /// The database is away and was waited for until now, when nothing is tried any more: what is left would pass the
    /// deadline, one after the other.
    fn waited_for(&self, progress: &Progress<'_>, give_up_at: Monotonic) -> Option<StoreError> {
        progress.state().not_stored.clone().filter(|_| self.clock.monotonic() >= give_up_at)
    }

    /// The budget is used up: the refusal counts as an outage, and an alarm says so.
    fn held_back(&self, one: Arrived) -> Arrived {
        let Arrived { mut attempt, outcome, before } = one;
        let (reason, expires_at) = match attempt.change {
            Change::Deactivated { reason, expires_at } => (reason, expires_at),
            _ => (outcome.to_string(), attempt.expires_before),
        };
        let reason = format!("{reason}, but too many were deactivated within the hour");
        let alarm = Some(Alarm::HeldBack);
        let (change, mut outcome) =
            self.failed(before, FailureKind::Outage, reason, alarm, expires_at, attempt.started_at);
        if let Outcome::Failed { kind, .. } = &mut outcome {
            *kind = FailureKind::Refusal;
        }
        attempt.change = change;
        Arrived { attempt, outcome, before }
    }
}

fn deactivated(outcome: Outcome, told: Vec<Told>) -> Outcome {
    match outcome {
        Outcome::Failed { kind, reason, token_expires_at, alarm, .. } => Outcome::Failed {
            kind,
            reason,
            token_expires_at,
            standing: Standing::Deactivated { told },
            alarm,
        },
        other => other,
    }
}

/// A result whose row can't be written, though others can.
pub(super) struct Stuck {
    pub(super) attempt: Attempt,
    pub(super) outcome: Outcome,
    pub(super) error: StoreError,
}

/// What Twitch said of one streamer could not be written, and the row is set aside.
fn lost(outcome: Outcome, error: &StoreError) -> Outcome {
    match not_stored(outcome, error) {
        Outcome::Failed { kind, reason, alarm: Some(Alarm::NotStored), .. } => {
            not_recorded(kind, format!("{reason}; the row is set aside"))
        }
        other => {
            let reason = format!("{other}; but its row can't be written and is set aside: {error}");
            not_recorded(FailureKind::Outage, reason)
        }
    }
}

/// Twitch has answered, but what it said could not be written.
pub(super) fn not_stored(outcome: Outcome, error: &StoreError) -> Outcome {
    match outcome {
        Outcome::Refreshed { .. } => not_recorded(
            FailureKind::Outage,
            format!("refreshed, but the new tokens could not be stored: {error}"),
        ),
        Outcome::Failed { kind, reason, standing, .. } if standing != Standing::NotRecorded => {
            not_recorded(kind, format!("{reason}; this could not be stored: {error}"))
        }
        other => other,
    }
}

pub(super) fn not_recorded(kind: FailureKind, reason: String) -> Outcome {
    let (token_expires_at, standing, alarm) = (None, Standing::NotRecorded, Some(Alarm::NotStored));
    Outcome::Failed { kind, reason, token_expires_at, standing, alarm }
}

/// The outcome, as it is once this was recorded.
pub(super) fn stored_as(outcome: Outcome, recorded: Recorded, attempt: &Attempt) -> Outcome {
    match recorded {
        Recorded::Superseded if matches!(attempt.change, Change::Refreshed { .. }) => Outcome::Failed {
            kind: FailureKind::Outage,
            reason:
                "refreshed, but another writer changed the tokens meanwhile: the new pair was thrown away"
                    .to_owned(),
            token_expires_at: None,
            standing: Standing::Superseded,
            alarm: Some(Alarm::NotStored),
        },
        Recorded::Superseded => Outcome::Skipped(Skip::Superseded),
        Recorded::Written { granted: None } => outcome,
        // The pair is stored; the caller asked for more.
        Recorded::NotGranted(error) => {
            not_recorded(FailureKind::Outage, format!("the authorization could not be written: {error}"))
        }
        Recorded::Refused(error) => not_stored(outcome, &error),
        Recorded::Written { granted: Some(authorization) } => {
            let (token_expires_at, refreshed) = match outcome {
                Outcome::Refreshed { expires_at } => (expires_at, true),
                _ => (attempt.expires_before, false),
            };
            Outcome::Granted { authorization, token_expires_at, refreshed }
        }
    }
}
