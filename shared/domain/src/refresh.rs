//! The cycle: *refresh what is due now*. Every trigger runs this one path: load, decide, (stop here in a dry run,)
//! claim, ask Twitch, write.
//!
//! Three loops run side by side: the first reads the authorized streamers page by page and leases what is due, the
//! second keeps a bounded number of calls to Twitch in flight, the third writes what has arrived in batches. All run
//! on the caller's task: nothing is spawned, and dropping the future stops everything. Bounded channels between them
//! hold back the one that is ahead; a slow database never keeps an answer of Twitch's from being read.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use futures::channel::mpsc;
use futures::{FutureExt, SinkExt, StreamExt, future};

use crate::clock::Clock;
use crate::policy::{Decision, Demand, Failure, FailureKind, OUTAGE_LIMIT, Policy, Verdict};
use crate::ports::{
    Attempt, Change, Claim, Deactivation, Outage, Recorded, RefreshError, Store, StoreError, Twitch,
    Unreadable, Validity,
};
use crate::report::{Observer, Outcome, Report, Skip, Standing, Stop};
use crate::schedule::Trigger;
use crate::streamer::{Authorized, Streamer};

/// The longest that one call to Twitch may take, its quick retries included.
pub const LONGEST_CALL: TimeDelta = TimeDelta::seconds(20);

/// The longest that one streamer may take: validate, refresh, validate.
const LONGEST_ATTEMPT: TimeDelta = TimeDelta::seconds(3 * LONGEST_CALL.num_seconds());

/// How long a lease holds: the longest attempt, as long again for its turn to come, and a minute to write.
const LEASE: TimeDelta = TimeDelta::seconds(2 * LONGEST_ATTEMPT.num_seconds() + 60);

/// Kept free before a deadline, to tell what could not be written.
const LAST_WORDS: TimeDelta = TimeDelta::seconds(5);

/// For how long a write is tried where there is no deadline: a database that fails over is back before.
const WRITE_PATIENCE: TimeDelta = TimeDelta::minutes(5);

/// The least time that a function must leave a cycle: enough for one attempt.
pub const SHORTEST_CYCLE: TimeDelta =
    TimeDelta::seconds(LONGEST_ATTEMPT.num_seconds() + LAST_WORDS.num_seconds());

/// How many results one statement writes at most.
const WRITE_BATCH: usize = 256;

/// How many writes may be under way at once, so that calls to Twitch go on while one commits.
const WRITES_AT_ONCE: usize = 4;

/// What a trigger asks for.
#[derive(Clone, Debug)]
pub struct Cycle {
    /// Why the cycle runs.
    pub trigger: Trigger,
    /// What it asks for beyond what is due.
    pub demand: Demand,
    /// Decide only: call nobody, write nothing.
    pub dry_run: bool,
    /// Only this streamer.
    pub only: Option<Authorized>,
    /// When the function is ended by force; `None` for a command.
    pub deadline: Option<DateTime<Utc>>,
}

impl Cycle {
    /// A cycle over everybody, with what its trigger asks for: the sweep validates as well.
    #[must_use]
    pub fn new(trigger: Trigger) -> Self {
        let demand = Demand { force: false, validate: trigger == Trigger::Sweep };
        Self { trigger, demand, dry_run: false, only: None, deadline: None }
    }

    /// Past this nothing new is begun.
    fn last_start(&self) -> Option<DateTime<Utc>> {
        self.deadline.map(|at| at - SHORTEST_CYCLE)
    }

    /// Past this a result that can't be written is given up.
    fn last_write(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        self.deadline.map_or(now + WRITE_PATIENCE, |at| at - LAST_WORDS)
    }
}

/// Refreshes tokens: the rules of [`Policy`] applied through the ports.
pub struct RefreshService<S, T> {
    store: S,
    twitch: T,
    clock: Arc<dyn Clock>,
    policy: Policy,
    in_flight: usize,
}

/// What has been seen so far, shared by the two loops.
struct Progress<'a> {
    observer: Observer<'a>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    report: Report,
    outages_in_a_row: u32,
    /// The hour's deactivations are used up: nobody else needs to be asked about.
    over_budget: bool,
}

impl Progress<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn done(&self, streamer: &Streamer, outcome: &Outcome) {
        self.state().report.count(outcome);
        (self.observer)(streamer, outcome);
    }

    /// The first reason to stop is the one that counts.
    fn stop(&self, reason: Stop) {
        self.state().report.stopped.get_or_insert(reason);
    }

    fn stopped(&self) -> bool {
        self.state().report.stopped.is_some()
    }

    fn twitch_answered(&self) {
        self.state().outages_in_a_row = 0;
    }

    fn twitch_failed(&self) {
        let outages = {
            let mut state = self.state();
            state.outages_in_a_row += 1;
            state.outages_in_a_row
        };
        if outages >= OUTAGE_LIMIT {
            self.stop(Stop::Outages);
        }
    }
}

/// An attempt on its way to the database, with what is to be told of it once it is there.
struct Arrived {
    attempt: Attempt,
    outcome: Outcome,
    /// The failure that stood before.
    before: Option<Failure>,
}

impl<S: Store, T: Twitch> RefreshService<S, T> {
    /// `in_flight` is how many calls to Twitch a cycle has under way at once.
    pub fn new(store: S, twitch: T, clock: Arc<dyn Clock>, policy: Policy, in_flight: usize) -> Self {
        Self { store, twitch, clock, policy, in_flight: in_flight.max(1) }
    }

    /// Where the streamers are kept.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Runs one cycle. `observer` hears of each streamer as soon as its result is stored.
    ///
    /// What goes wrong with one streamer is that streamer's outcome; what ends the cycle is in
    /// [`Report::stopped`]. Leases are given back either way.
    pub async fn run(&self, cycle: &Cycle, observer: Observer<'_>) -> Report {
        let started_at = self.clock.now();
        let progress = Progress { observer, state: Mutex::default() };
        if cycle.last_start().is_some_and(|at| at < started_at) {
            progress.stop(Stop::NoTime);
        }
        let (claims_in, claims) = mpsc::channel(self.in_flight);
        let (arrived_in, arrived) = mpsc::channel(WRITE_BATCH);

        let lease = async {
            if let Err(error) = self.lease_what_is_due(cycle, &progress, claims_in).await {
                progress.stop(Stop::Store(error.0));
            }
        };
        let ask = async {
            let ask_one = |claim| {
                let mut arrived_in = arrived_in.clone();
                let progress = &progress;
                async move {
                    let one = self.attempt_guarded(cycle, progress, claim).await;
                    // The loop that writes outlives this one.
                    let _ = arrived_in.send(one).await;
                }
            };
            claims.for_each_concurrent(self.in_flight, ask_one).await;
            drop(arrived_in);
        };
        let write = arrived
            .ready_chunks(WRITE_BATCH)
            .for_each_concurrent(WRITES_AT_ONCE, |arrived| self.write(cycle, &progress, arrived));
        future::join3(lease, ask, write).await;

        let mut report = progress.state.into_inner().unwrap_or_else(PoisonError::into_inner).report;
        report.duration = self.clock.now() - started_at;
        report
    }

    /// The first loop. It is at most two batches of calls ahead.
    async fn lease_what_is_due(
        &self,
        cycle: &Cycle,
        progress: &Progress<'_>,
        mut claims: mpsc::Sender<Claim>,
    ) -> Result<(), StoreError> {
        let mut page = match &cycle.only {
            _ if self.must_stop(cycle, progress) => return Ok(()),
            Some(only) => vec![only.clone()],
            None => self.store.authorized(None, self.clock.now()).await?,
        };
        while let Some(last) = page.last().cloned() {
            let mut due = Vec::new();
            for authorized in page {
                match self.policy.decide(&authorized.token, cycle.demand, self.clock.now()) {
                    Decision::Skip(reason) => {
                        progress.done(&authorized.streamer, &Outcome::Skipped(Skip::NotDue(reason)));
                    }
                    Decision::Refresh if cycle.dry_run => {
                        progress.done(&authorized.streamer, &Outcome::WouldRefresh);
                    }
                    Decision::Validate if cycle.dry_run => {
                        progress.done(&authorized.streamer, &Outcome::WouldValidate);
                    }
                    Decision::Refresh | Decision::Validate => due.push(authorized.streamer),
                }
            }
            for due in due.chunks(self.in_flight) {
                if self.must_stop(cycle, progress) {
                    return Ok(());
                }
                self.lease(due, progress, &mut claims).await?;
            }
            if cycle.only.is_some() || self.must_stop(cycle, progress) {
                return Ok(());
            }
            page = self.store.authorized(Some(&last), self.clock.now()).await?;
        }
        Ok(())
    }

    async fn lease(
        &self,
        due: &[Streamer],
        progress: &Progress<'_>,
        claims: &mut mpsc::Sender<Claim>,
    ) -> Result<(), StoreError> {
        let ids: Vec<_> = due.iter().map(|streamer| streamer.id).collect();
        let now = self.clock.now();
        let claimed = self.store.claim(&ids, now, now + LEASE).await?;
        let leased: HashSet<_> = claimed.iter().map(|claim| claim.streamer.id).collect();
        for streamer in due.iter().filter(|streamer| !leased.contains(&streamer.id)) {
            progress.done(streamer, &Outcome::Skipped(Skip::Leased));
        }
        for claim in claimed {
            // The loop that asks outlives this one.
            let _ = claims.send(claim).await;
        }
        Ok(())
    }

    fn must_stop(&self, cycle: &Cycle, progress: &Progress<'_>) -> bool {
        if cycle.last_start().is_some_and(|at| self.clock.now() > at) {
            progress.stop(Stop::Deadline);
        }
        progress.stopped()
    }

    /// A panic fails one streamer, not the cycle.
    async fn attempt_guarded(&self, cycle: &Cycle, progress: &Progress<'_>, claim: Claim) -> Arrived {
        let started_at = self.clock.now();
        let mut attempt = Attempt {
            streamer: claim.streamer.clone(),
            lease: claim.lease.clone(),
            trigger: cycle.trigger,
            started_at,
            ended_at: started_at,
            expires_before: claim.token.expires_at,
            change: Change::Released,
        };
        let before = claim.token.failure;
        let settled =
            AssertUnwindSafe(self.attempt(cycle, progress, &claim, started_at)).catch_unwind().await;
        let (change, outcome) = settled.unwrap_or_else(|_| {
            progress.twitch_failed();
            let reason = "the program failed here; its log has the panic".to_owned();
            (Change::Released, Outcome::Failed { reason, standing: Standing::NotRecorded, alarm: true })
        });
        attempt.ended_at = self.clock.now();
        attempt.change = change;
        let arrived = Arrived { attempt, outcome, before };
        match arrived.attempt.change {
            Change::Refreshed { expires_at: None, .. } => self.learn_expiry(cycle, progress, arrived).await,
            _ => arrived,
        }
    }

    /// Twitch did not say how long the new token lives. The pair is stored first, and only then Twitch is asked; if
    /// that fails, the expiry stays unknown, which is due at the next trigger.
    async fn learn_expiry(&self, cycle: &Cycle, progress: &Progress<'_>, refreshed: Arrived) -> Arrived {
        let Arrived { mut attempt, outcome, before } = refreshed;
        let now = self.clock.now();
        let stored = self.store.record(std::slice::from_ref(&attempt), cycle.last_write(now)).await;
        let outcome = match stored.as_deref() {
            Ok([Recorded::Written]) => outcome,
            Ok(_) => Outcome::Skipped(Skip::Superseded),
            Err(error) => not_stored(outcome, error),
        };
        attempt.change = Change::Released;
        let asked = matches!(outcome, Outcome::Refreshed { .. }) && !self.must_stop(cycle, progress);
        let claims =
            if asked { self.store.claim(&[attempt.lease.id], now, now + LEASE).await } else { Ok(vec![]) };
        let Some(Claim { access: Ok(access), lease, .. }) = claims.ok().and_then(|mut claims| claims.pop())
        else {
            return Arrived { attempt, outcome, before };
        };
        attempt.lease = lease;
        attempt.started_at = now;
        let validity = self.validate(progress, &access).await;
        attempt.ended_at = self.clock.now();
        let outcome = match validity {
            Ok(Validity::Valid { expires_in }) => {
                attempt.change = Change::Validated { expires_at: now + expires_in };
                Outcome::Refreshed { expires_at: Some(now + expires_in) }
            }
            Ok(Validity::Invalid) | Err(_) => outcome,
        };
        Arrived { attempt, outcome, before }
    }

    /// Decides again on what the lease protects, for another run may have been here meanwhile, and carries it out.
    async fn attempt(
        &self,
        cycle: &Cycle,
        progress: &Progress<'_>,
        claim: &Claim,
        now: DateTime<Utc>,
    ) -> (Change, Outcome) {
        let skip = |reason| (Change::Released, Outcome::Skipped(reason));
        if self.must_stop(cycle, progress) || claim.lease.until - now < LONGEST_ATTEMPT {
            return skip(Skip::Stopped);
        }
        match self.policy.decide(&claim.token, cycle.demand, now) {
            Decision::Skip(reason) => skip(Skip::NotDue(reason)),
            Decision::Refresh => self.refresh(progress, claim, claim.token.expires_at, now).await,
            Decision::Validate => {
                let Ok(access) = &claim.access else {
                    return self.refresh(progress, claim, claim.token.expires_at, now).await;
                };
                match self.validate(progress, access).await {
                    Err(outage) => skip(Skip::NotValidated(outage.0)),
                    Ok(Validity::Invalid) => self.refresh(progress, claim, Some(now), now).await,
                    Ok(Validity::Valid { expires_in }) => {
                        let mut token = claim.token.clone();
                        token.expires_at = Some(now + expires_in);
                        token.validated_at = Some(now);
                        match self.policy.decide(&token, cycle.demand, now) {
                            Decision::Refresh => self.refresh(progress, claim, token.expires_at, now).await,
                            Decision::Validate | Decision::Skip(_) => (
                                Change::Validated { expires_at: now + expires_in },
                                Outcome::Skipped(Skip::Validated { left: expires_in }),
                            ),
                        }
                    }
                }
            }
        }
    }

    /// Asks Twitch for a new pair. `expires_at` is what is known of the old one.
    async fn refresh(
        &self,
        progress: &Progress<'_>,
        claim: &Claim,
        expires_at: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> (Change, Outcome) {
        let failed = |kind, reason, alarm, expires_at| {
            self.failed(claim.token.failure, kind, reason, alarm, expires_at, now)
        };
        let answer = match (&claim.access, &claim.refresh) {
            (_, Err(Unreadable::Keys(reason))) => {
                return failed(FailureKind::Outage, reason.clone(), true, expires_at);
            }
            (Err(error @ Unreadable::UnknownFormat), _) => {
                Err(RefreshError::Refused(format!("access token: {error}")))
            }
            (_, Err(error)) => Err(RefreshError::Refused(format!("refresh token: {error}"))),
            // An access token that can't be read, or none at all, is what a refresh mends.
            (_, Ok(refresh)) => self.twitch.refresh(refresh).await,
        };
        match answer {
            Ok(grant) => {
                progress.twitch_answered();
                let expires_at = grant.expires_in.map(|left| now + left);
                (Change::Refreshed { pair: grant.pair, expires_at }, Outcome::Refreshed { expires_at })
            }
            Err(RefreshError::Outage(Outage(reason))) => {
                progress.twitch_failed();
                failed(FailureKind::Outage, reason, false, expires_at)
            }
            Err(RefreshError::Refused(reason)) => {
                // Twitch once refused everybody for hours while the tokens lived: a refusal counts only if the
                // access token isn't proven alive.
                let validity = match &claim.access {
                    Ok(access) => self.validate(progress, access).await,
                    Err(Unreadable::Keys(ours)) => {
                        return failed(
                            FailureKind::Outage,
                            format!("{reason}; and {ours}"),
                            true,
                            expires_at,
                        );
                    }
                    Err(Unreadable::Missing | Unreadable::UnknownFormat) => Ok(Validity::Invalid),
                };
                match validity {
                    Ok(Validity::Valid { expires_in }) => {
                        let reason = format!("{reason}, but Twitch still calls the access token valid");
                        failed(FailureKind::Outage, reason, false, Some(now + expires_in))
                    }
                    Ok(Validity::Invalid) => failed(FailureKind::Refusal, reason, false, Some(now)),
                    Err(_) => failed(FailureKind::Refusal, reason, false, expires_at),
                }
            }
            Err(RefreshError::Misconfigured(reason)) => {
                progress.stop(Stop::Misconfigured(reason));
                (Change::Released, Outcome::Skipped(Skip::Stopped))
            }
        }
    }

    async fn validate(
        &self,
        progress: &Progress<'_>,
        access: &crate::token::AccessToken,
    ) -> Result<Validity, Outage> {
        let answer = self.twitch.validate(access).await;
        match answer {
            Ok(_) => progress.twitch_answered(),
            Err(_) => progress.twitch_failed(),
        }
        answer
    }

    fn failed(
        &self,
        before: Option<Failure>,
        kind: FailureKind,
        reason: String,
        alarm: bool,
        expires_at: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> (Change, Outcome) {
        let verdict = self.policy.after_failure(before, kind, now);
        let (failure, standing) = match verdict {
            Verdict::Deactivate => {
                let outcome =
                    Outcome::Failed { reason: reason.clone(), standing: Standing::Deactivated, alarm };
                return (Change::Deactivated { reason, expires_at }, outcome);
            }
            Verdict::Recorded(failure) => {
                let retry_at = failure.at + self.policy.retry_delay;
                (failure, Standing::Recorded { kind: failure.kind, retry_at })
            }
            Verdict::Repeated(failure) => {
                (failure, Standing::Repeated { retry_at: failure.at + self.policy.retry_delay })
            }
        };
        let outcome = Outcome::Failed { reason: reason.clone(), standing, alarm };
        (Change::Failed { failure, reason, expires_at }, outcome)
    }

    /// Writes what has arrived, then tells of it.
    async fn write(&self, cycle: &Cycle, progress: &Progress<'_>, arrived: Vec<Arrived>) {
        let mut batch = Vec::with_capacity(arrived.len());
        for one in arrived {
            match one.attempt.change {
                Change::Deactivated { .. } => batch.extend(self.deactivate(cycle, progress, one).await),
                _ => batch.push(one),
            }
        }
        if batch.is_empty() {
            return;
        }
        let give_up_at = cycle.last_write(self.clock.now());
        let (attempts, told): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|one| (one.attempt, one.outcome)).unzip();
        match self.store.record(&attempts, give_up_at).await {
            Ok(recorded) => {
                for ((attempt, outcome), recorded) in attempts.iter().zip(told).zip(recorded) {
                    let outcome = match recorded {
                        Recorded::Written => outcome,
                        Recorded::Superseded => Outcome::Skipped(Skip::Superseded),
                    };
                    progress.done(&attempt.streamer, &outcome);
                }
            }
            Err(error) => {
                progress.stop(Stop::Store(error.0.clone()));
                for (attempt, outcome) in attempts.iter().zip(told) {
                    progress.done(&attempt.streamer, &not_stored(outcome, &error));
                }
            }
        }
    }

    /// Deactivates, or gives the attempt back as an outage if the budget is used up.
    async fn deactivate(&self, cycle: &Cycle, progress: &Progress<'_>, one: Arrived) -> Option<Arrived> {
        let Arrived { mut attempt, outcome, before } = one;
        let over_budget = progress.state().over_budget;
        let done = if over_budget {
            Ok(Deactivation::OverBudget)
        } else {
            self.store.deactivate(&attempt, cycle.last_write(self.clock.now())).await
        };
        let outcome = match done {
            Ok(Deactivation::Done) => outcome,
            Ok(Deactivation::Superseded) => Outcome::Skipped(Skip::Superseded),
            Ok(Deactivation::OverBudget) => {
                progress.state().over_budget = true;
                let (reason, expires_at) = match attempt.change {
                    Change::Deactivated { reason, expires_at } => (reason, expires_at),
                    _ => (outcome.to_string(), attempt.expires_before),
                };
                let reason = format!("{reason}, but too many were deactivated within the hour");
                let (change, outcome) =
                    self.failed(before, FailureKind::Outage, reason, true, expires_at, attempt.started_at);
                attempt.change = change;
                return Some(Arrived { attempt, outcome, before });
            }
            Err(error) => {
                progress.stop(Stop::Store(error.0.clone()));
                not_stored(outcome, &error)
            }
        };
        progress.done(&attempt.streamer, &outcome);
        None
    }
}

/// Twitch has answered, but what it said could not be written.
fn not_stored(outcome: Outcome, error: &StoreError) -> Outcome {
    let reason = match outcome {
        Outcome::Refreshed { .. } => format!("refreshed, but the new tokens could not be stored: {error}"),
        Outcome::Failed { reason, .. } => format!("{reason}; this could not be stored: {error}"),
        other => return other,
    };
    Outcome::Failed { reason, standing: Standing::NotRecorded, alarm: true }
}
