//! Results, on their way to the database in batches; what is stored is reported. Runs that deactivate take turns under the
//! budget, so deactivations have a lane of their own, in which no new pair waits behind them.

use chrono::TimeDelta;

use super::lease::LEASE;
use super::{Arrived, Cycle, Progress, RefreshService, Refused, Signaller};
use crate::clock::Monotonic;
use crate::evidence::Proof;
use crate::notification::Told;
use crate::policy::FailureKind;
use crate::ports::{Attempt, Change, Deactivation, Recorded, Signals, Store, StoreError, Twitch};
use crate::report::{Alarm, Outcome, Skip, Standing, TwitchHealth};
use crate::streamer::StreamerId;

/// For how long a new pair whose row can't be written is still tried after the process was asked to stop: longer than a lock of the
/// application's lasts, and shorter than the ten seconds after which Docker kills.
const WRITE_AFTER_STOP: TimeDelta = TimeDelta::seconds(6);

/// Of what people are notified when results are recorded.
#[derive(Clone, Copy)]
enum Notify {
    OfNothing,
    /// Of those that nothing confirms.
    OfLastingRefusals,
}

impl<S: Store, T: Twitch, G: Signals> RefreshService<S, T, G> {
    /// Deactivates those of these whose refusal is confirmed, and records the others.
    pub(super) async fn judge(&self, cycle: &Cycle, signaller: &Signaller<'_>, refused: Vec<Refused>) {
        if refused.is_empty() {
            return;
        }
        // What can't be read confirms nothing.
        let history = self.store.history(&self.twitch.client_id()).await.ok().map(|mut history| {
            history.extend(&signaller.progress.state().history);
            history
        });
        let is_confirmed = |one: &Refused, proof| {
            let since = one.before.and_then(|before| before.refused_since).unwrap_or(one.attempt.started_at);
            history.as_ref().is_some_and(|history| history.confirms(proof, one.attempt.streamer.id, since))
        };
        let hangs_on_validation = |one: &Refused| {
            one.failed.proof == Some(Proof::DeadBeforeExpiry)
                && is_confirmed(one, Proof::DeadBeforeExpiry)
                && !is_confirmed(one, Proof::Nothing)
        };
        let is_wrong = refused.iter().any(hangs_on_validation)
            && self.validation_is_wrong(cycle, signaller.progress, &refused).await;
        let (confirmed, rest): (Vec<_>, Vec<_>) = refused.into_iter().partition(|one| {
            let proof = one.failed.proof.filter(|_| !is_wrong).unwrap_or(Proof::Nothing);
            is_confirmed(one, proof)
        });
        let rest = rest.into_iter().map(|one| self.counted_as(FailureKind::Refusal, one)).collect();
        self.deactivate(cycle, signaller, confirmed).await;
        self.record_and(cycle, signaller, rest, Notify::OfLastingRefusals).await;
    }

    /// Whether Twitch calls dead whatever it is asked about, or can't say: asked about another streamer, whose token should
    /// live. One that is called valid is enough; where there is no other streamer, there is nothing to ask.
    async fn validation_is_wrong(&self, cycle: &Cycle, progress: &Progress<'_>, refused: &[Refused]) -> bool {
        let now = self.clock.now();
        let ids: Vec<_> = refused.iter().map(|one| one.attempt.streamer.id).collect();
        let Ok(others) = self.store.healthy(&ids, now).await else { return true };
        if others.is_empty() {
            return false;
        }
        let claims = self.store.claim(&others, now, now + LEASE, self.clock.monotonic()).await;
        let mut is_wrong = true;
        let mut settled = Vec::new();
        for claim in claims.unwrap_or_default() {
            let (attempt, lives) = self.control(cycle, progress, claim, !is_wrong).await;
            is_wrong &= !lives;
            settled.push(attempt);
        }
        // What can't be written is a lease that ends by itself, or a proof that the next sweep gets again.
        let _ = self.store_results(cycle, progress, &settled).await;
        is_wrong
    }

    /// Deactivates those whose refusal is confirmed, as far as the budget goes, then reports it.
    pub(super) async fn deactivate(&self, cycle: &Cycle, signaller: &Signaller<'_>, refused: Vec<Refused>) {
        if refused.is_empty() {
            return;
        }
        let progress = signaller.progress;
        if !self.policy.deactivation {
            let why = "deactivation is switched off";
            let held_back = refused.into_iter().map(|one| self.held_back(one, why)).collect();
            return self.record(cycle, signaller, held_back).await;
        }
        let attempts: Vec<_> = refused.iter().map(Refused::deactivation).collect();
        let give_up_at = cycle.last_write(self.clock.monotonic());
        let over_budget = progress.state().over_budget;
        let done = match self.waited_for(progress, give_up_at) {
            Some(error) => Err(error),
            None if over_budget => Ok(vec![Deactivation::OverBudget; attempts.len()]),
            None => self.store.deactivate(&attempts, give_up_at).await,
        };
        let deactivated = |one: &Refused, told| one.failed.outcome(Standing::Deactivated { told });
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                progress.not_stored(&error);
                for one in refused {
                    let outcome = not_stored(deactivated(&one, Vec::new()), &error);
                    progress.done(&one.attempt.streamer, &outcome);
                }
                return;
            }
        };
        let mut held_back = Vec::new();
        for ((attempt, one), done) in attempts.into_iter().zip(refused).zip(done) {
            let outcome = match done {
                Deactivation::Done(told) => {
                    signaller.deactivated(&attempt, &told);
                    deactivated(&one, told)
                }
                Deactivation::Superseded => Outcome::Skipped(Skip::Superseded),
                Deactivation::Refused(error) => {
                    signaller.stuck(attempt, deactivated(&one, Vec::new()), error);
                    continue;
                }
                Deactivation::OverBudget => {
                    progress.state().over_budget = true;
                    held_back.push(self.held_back(one, "too many were deactivated within the hour"));
                    continue;
                }
            };
            progress.done(&attempt.streamer, &outcome);
        }
        self.record(cycle, signaller, held_back).await;
    }

    /// Writes what has arrived in one statement, then reports it.
    pub(super) async fn record(&self, cycle: &Cycle, signaller: &Signaller<'_>, batch: Vec<Arrived>) {
        self.record_and(cycle, signaller, batch, Notify::OfNothing).await;
    }

    async fn record_and(
        &self,
        cycle: &Cycle,
        signaller: &Signaller<'_>,
        batch: Vec<Arrived>,
        notify: Notify,
    ) {
        if batch.is_empty() {
            return;
        }
        let progress = signaller.progress;
        let (attempts, told): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|one| (one.attempt, one.outcome)).unzip();
        match self.store_results(cycle, progress, &attempts).await {
            Ok(recorded) => {
                let noticed = match notify {
                    Notify::OfNothing => Vec::new(),
                    Notify::OfLastingRefusals => self.notice(cycle, progress, &attempts, &recorded).await,
                };
                for ((attempt, outcome), recorded) in attempts.iter().zip(told).zip(recorded) {
                    if let Recorded::Refused(error) = recorded {
                        progress.row_refused(&error);
                        signaller.stuck(attempt.clone(), outcome, error);
                        continue;
                    }
                    progress.row_written();
                    let outcome = stored_as(outcome, recorded, attempt);
                    let told = noticed.iter().find(|(id, _)| *id == attempt.streamer.id);
                    let outcome = noticed_as(outcome, told.map(|(_, told)| told));
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
            let insisting = self.stop.run_until_cancelled(self.store.insist(&attempt, give_up_at));
            let tried = if let Some(tried) = insisting.await {
                tried
            } else {
                let soon = self.clock.monotonic() + WRITE_AFTER_STOP;
                self.store.insist(&attempt, give_up_at.min(soon)).await
            };
            match tried {
                Ok(recorded) => {
                    let outcome = stored_as(outcome, recorded, &attempt);
                    signaller.recorded(&outcome, self.clock.now());
                    progress.done(&attempt.streamer, &outcome);
                    return;
                }
                Err(last) => error = last,
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

    /// Notifies people of refusals that nothing confirms and that have lasted too long, once, as far as the budget goes.
    async fn notice(
        &self,
        cycle: &Cycle,
        progress: &Progress<'_>,
        attempts: &[Attempt],
        recorded: &[Recorded],
    ) -> Vec<(StreamerId, Vec<Told>)> {
        let lasting: Vec<_> = attempts
            .iter()
            .zip(recorded)
            .filter(|(attempt, recorded)| {
                let lasts = matches!(&attempt.change, Change::Failed { failure, .. }
                    if failure.at == attempt.started_at && self.policy.is_to_be_noticed(failure));
                lasts && matches!(recorded, Recorded::Written { .. })
            })
            .map(|(attempt, _)| attempt.clone())
            .collect();
        if lasting.is_empty() || progress.state().over_budget {
            return Vec::new();
        }
        // What can't be written is tried at the next refusal.
        let give_up_at = cycle.last_write(self.clock.monotonic());
        let noticed = self.store.notice(&lasting, give_up_at).await.unwrap_or_default();
        let ids = lasting.iter().map(|attempt| attempt.streamer.id);
        ids.zip(noticed).filter_map(|(id, told)| Some((id, told?))).collect()
    }

    /// The refusal is not to deactivate, however confirmed: it counts as an outage, and an alarm says so.
    fn held_back(&self, mut one: Refused, why: &str) -> Arrived {
        one.failed.reason = format!("{}, but {why}", one.failed.reason);
        one.failed.alarm = Some(Alarm::HeldBack);
        self.counted_as(FailureKind::Outage, one)
    }

    /// A refusal that deactivates nothing, as a failure of this kind.
    fn counted_as(&self, kind: FailureKind, one: Refused) -> Arrived {
        let Refused { mut attempt, failed, before } = one;
        let (change, outcome) = self.recorded_as(kind, before, failed, attempt.started_at);
        attempt.change = change;
        Arrived { attempt, outcome }
    }
}

/// The outcome, once these people were notified of it.
fn noticed_as(mut outcome: Outcome, told: Option<&Vec<Told>>) -> Outcome {
    if let (Some(told), Outcome::Failed { standing, .. }) = (told, &mut outcome)
        && let Standing::Recorded { retry_at, .. } = *standing
    {
        *standing = Standing::Noticed { retry_at, told: told.clone() };
    }
    outcome
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
        Outcome::Failed { kind, reason, alarm: Some(Alarm::NotStored), twitch, .. } => {
            not_recorded(kind, format!("{reason}; the row is set aside"), twitch)
        }
        other => {
            let reason = format!("{other}; but its row can't be written and is set aside: {error}");
            not_recorded(FailureKind::Outage, reason, TwitchHealth::Available)
        }
    }
}

/// Twitch has answered, but what it said could not be written.
pub(super) fn not_stored(outcome: Outcome, error: &StoreError) -> Outcome {
    match outcome {
        Outcome::Refreshed { .. } => not_recorded(
            FailureKind::Outage,
            format!("refreshed, but the new tokens could not be stored: {error}"),
            TwitchHealth::Available,
        ),
        Outcome::Failed { kind, reason, standing, twitch, .. } if standing != Standing::NotRecorded => {
            not_recorded(kind, format!("{reason}; this could not be stored: {error}"), twitch)
        }
        other => other,
    }
}

pub(super) fn not_recorded(kind: FailureKind, reason: String, twitch: TwitchHealth) -> Outcome {
    let (token_expires_at, standing, alarm) = (None, Standing::NotRecorded, Some(Alarm::NotStored));
    Outcome::Failed { kind, reason, token_expires_at, standing, alarm, twitch }
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
            twitch: TwitchHealth::Available,
        },
        Recorded::Superseded => Outcome::Skipped(Skip::Superseded),
        Recorded::Written { granted: None } => outcome,
        // The pair is stored; the caller asked for more.
        Recorded::NotGranted(error) => not_recorded(
            FailureKind::Outage,
            format!("the authorization could not be written: {error}"),
            TwitchHealth::Available,
        ),
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
