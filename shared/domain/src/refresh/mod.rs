//! The cycle: *refresh what is due now*. Every trigger runs this one path: load, decide, (stop here in a dry run,)
//! claim, ask Twitch, write.
//!
//! Four loops run side by side: the first reads the authorized streamers page by page and leases what is due, the
//! second keeps a bounded number of calls to Twitch in flight, the third writes what has arrived in batches, and the
//! fourth tells others what follows from that: when a retry is due, who was deactivated. All run
//! on the caller's task: nothing is spawned, and dropping the future stops everything. Bounded channels between them
//! hold back the one that is ahead; a slow database never keeps an answer of Twitch's from being read.

mod attempt;
#[cfg(test)]
mod fleet;
mod signal;
mod write;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use futures::channel::mpsc;
use futures::future::{self, Either};
use futures::stream::FuturesUnordered;
use futures::{SinkExt, StreamExt};

use self::signal::Signaller;
use crate::authorization::CampaignId;
use crate::clock::{Clock, Monotonic};
use crate::evidence::{History, Proof};
use crate::policy::{Decision, Demand, Failure, FailureKind, OUTAGE_LIMIT, Policy};
use crate::ports::{Attempt, Change, Claim, Outage, Priority, SetAside, Signals, Store, StoreError, Twitch};
use crate::report::{Alarm, Heard, Observer, Outcome, Report, Skip, Standing, Stop};
use crate::schedule::Trigger;
use crate::streamer::{Authorized, Caller, Streamer, StreamerId, TokenState};
use tokio_util::sync::CancellationToken;

/// The longest that one call to Twitch may take, its quick retries included.
pub const LONGEST_CALL: TimeDelta = TimeDelta::seconds(20);

/// The longest that one streamer may take: validate, refresh, validate.
const LONGEST_ATTEMPT: TimeDelta = TimeDelta::seconds(3 * LONGEST_CALL.num_seconds());

/// How long a lease holds: the longest attempt, as long again for its turn to come, and a minute to write.
const LEASE: TimeDelta = TimeDelta::seconds(2 * LONGEST_ATTEMPT.num_seconds() + 60);

/// Kept free before a deadline, to tell what could not be written.
pub const LAST_WORDS: TimeDelta = TimeDelta::seconds(5);

/// The longest that one signal may take, its quick retries included.
pub const LONGEST_SIGNAL: TimeDelta = TimeDelta::seconds(2);

/// Kept free before a deadline for what follows the last signal: the report.
const REPORTING: TimeDelta = TimeDelta::seconds(1);

/// For how long a write is tried where there is no deadline: a database that fails over is back before.
const WRITE_PATIENCE: TimeDelta = TimeDelta::minutes(5);

/// For how long a cycle that can't read or lease is in suspense: a database that fails over is back within a minute.
const READ_PATIENCE: TimeDelta = TimeDelta::minutes(1);

/// The least time that a function must leave a cycle: enough for one attempt.
pub const SHORTEST_CYCLE: TimeDelta =
    TimeDelta::seconds(LONGEST_ATTEMPT.num_seconds() + LAST_WORDS.num_seconds());

/// The first batch of leases is this part of the calls in flight, and each is twice the one before: the first calls go
/// out early, and they don't all come back at the same moment.
const FIRST_BATCHES: usize = 8;

/// Whoever meets a lease of another's in a request waits for its outcome, but not longer.
const LEASE_PATIENCE: TimeDelta = TimeDelta::seconds(5);

/// Less time than this before a request is to be answered is too little to ask Twitch and write what it said.
const SHORTEST_REQUEST: TimeDelta = TimeDelta::seconds(3);

/// How many results one statement writes at most.
const WRITE_BATCH: usize = 256;

/// What a trigger asks for.
#[derive(Clone, Debug)]
pub struct Cycle {
    /// Why the cycle runs.
    pub trigger: Trigger,
    /// What it asks for beyond what is due.
    pub demand: Demand,
    /// Decide only: call nobody, write nothing.
    pub dry_run: bool,
    /// Over whom.
    pub whom: Whom,
    /// The campaign that is authorized with a token that is fresh.
    pub grants: Option<CampaignId>,
    /// Who asked for it, if it was somebody.
    pub caller: Option<Caller>,
    /// How long it may take.
    pub limits: Limits,
}

/// Over whom a cycle runs.
#[derive(Clone, Debug)]
pub enum Whom {
    /// Everybody who is authorized.
    Authorized,
    /// These, authorized or not, as they were found.
    These(Vec<(Streamer, TokenState)>),
}

impl Whom {
    /// Only this one.
    #[must_use]
    pub fn only(authorized: &Authorized) -> Self {
        Self::These(vec![(authorized.streamer.clone(), authorized.token.clone())])
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
    signal: Option<Monotonic>,
}

impl Limits {
    /// Of a function that is ended by force at `deadline`.
    #[must_use]
    pub fn of_function(deadline: Option<Monotonic>) -> Self {
        Self {
            start: deadline.map(|at| at - SHORTEST_CYCLE),
            write: deadline.map(|at| at - LAST_WORDS),
            signal: deadline.map(|at| at - LONGEST_SIGNAL - REPORTING),
        }
    }

    /// Of a command that began then and is to end within `time`. Where that is short, what it has begun by half of it is finished
    /// all the same.
    #[must_use]
    pub fn of_command(began: Monotonic, time: TimeDelta) -> Self {
        let (deadline, half) = (began + time, time / 2);
        Self {
            start: Some(deadline - SHORTEST_CYCLE.min(half)),
            write: Some(deadline - LAST_WORDS.min(half)),
            signal: Some(deadline - (LONGEST_SIGNAL + REPORTING).min(half)),
        }
    }

    /// Of a request that is to be answered by `answer_by`, in a function that is ended by force at `deadline`. Whoever asks
    /// Twitch has to see to it that no call outlasts `answer_by`. A new pair that can't be written is tried for as
    /// long as the function lives: it exists nowhere else.
    #[must_use]
    pub fn of_request(answer_by: Monotonic, deadline: Option<Monotonic>) -> Self {
        Self {
            start: Some(answer_by - SHORTEST_REQUEST),
            write: Some(deadline.map_or(answer_by, |at| at - LAST_WORDS).max(answer_by)),
            signal: Some(answer_by - LONGEST_SIGNAL),
        }
    }

    /// How much longer a request that began then waits for another's lease.
    pub(crate) fn lease_patience(&self, began: Monotonic, now: Monotonic) -> TimeDelta {
        let patient_until = began + LEASE_PATIENCE;
        self.start.map_or(patient_until, |start| start.min(patient_until)) - now
    }
}

impl Cycle {
    /// A cycle over everybody, with what its trigger asks for.
    #[must_use]
    pub fn new(trigger: Trigger) -> Self {
        let demand = match trigger {
            Trigger::Sweep => Demand::DueOrUnproven,
            Trigger::Grant => Demand::NotJustNow,
            Trigger::HealthCheck => Demand::Usable,
            Trigger::Retry => Demand::DueByTime,
            Trigger::Planned | Trigger::Command => Demand::Due,
        };
        Self {
            trigger,
            demand,
            dry_run: false,
            whom: Whom::Authorized,
            grants: None,
            caller: None,
            limits: Limits::default(),
        }
    }

    /// Only a sweep can leave a validation to the next one; elsewhere a caller waits for it.
    fn priority_of_validations(&self) -> Priority {
        if self.demand == Demand::DueOrUnproven { Priority::Optional } else { Priority::Vital }
    }

    fn last_write(&self, now: Monotonic) -> Monotonic {
        self.limits.write.unwrap_or(now + WRITE_PATIENCE)
    }

    /// Until when it is tried to read or to lease. Once, for those who ask for a few and wait for an answer.
    fn last_read(&self, now: Monotonic) -> Monotonic {
        let patient_until = now + READ_PATIENCE;
        match self.whom {
            Whom::Authorized => self.limits.start.map_or(patient_until, |start| start.min(patient_until)),
            Whom::These(_) => now,
        }
    }
}

/// Refreshes tokens: the rules of [`Policy`] applied through the ports.
pub struct RefreshService<S, T, G> {
    store: S,
    twitch: T,
    signals: G,
    clock: Arc<dyn Clock>,
    policy: Policy,
    in_flight: usize,
    stop: CancellationToken,
}

/// Keeps what it hears of.
struct Collector<'a> {
    observer: &'a dyn Observer,
    outcomes: Mutex<HashMap<StreamerId, Outcome>>,
}

impl Observer for Collector<'_> {
    fn refreshing(&self, streamer: &Streamer) {
        self.observer.refreshing(streamer);
    }

    fn done(&self, streamer: &Streamer, outcome: &Outcome) {
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        outcomes.insert(streamer.id, outcome.clone());
        drop(outcomes);
        self.observer.done(streamer, outcome);
    }

    fn finished(&self, report: &Report) {
        self.observer.finished(report);
    }
}

/// What has been seen so far, shared by the loops.
struct Progress<'a> {
    observer: &'a dyn Observer,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    report: Report,
    /// Refreshes that were outages, since the last success.
    refreshes_failed: u32,
    /// What became of the refreshes of this cycle.
    history: History,
    /// Validations that were outages, since the last answer.
    validations_failed: u32,
    /// Those among them that were vital.
    vital_validations_failed: u32,
    /// The hour's deactivations are used up: nobody else needs to be asked about.
    over_budget: bool,
    /// The minutes for which a retry was asked.
    retries: BTreeSet<DateTime<Utc>>,
    /// Somebody was leased.
    claimed: bool,
    /// Why a row can be read and not changed, if there is one.
    shut_out: Option<String>,
    /// Rows that could not be written, since the last that could.
    rows_refused: u32,
    /// Why results could not be stored, however often it was tried.
    not_stored: Option<StoreError>,
}

impl Progress<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn done(&self, streamer: &Streamer, outcome: &Outcome) {
        self.state().report.count(outcome);
        self.observer.done(streamer, outcome);
    }

    /// The first reason to stop is the one that counts; but one that somebody has to mend is not hidden by one that passes.
    fn stop(&self, reason: Stop) {
        let stopped = &mut self.state().report.stopped;
        if stopped.as_ref().is_none_or(|first| reason.is_ours() && !first.is_ours()) {
            *stopped = Some(reason);
        }
    }

    fn not_stored(&self, error: &StoreError) {
        self.stop(Stop::Store(error.0.clone()));
        self.state().not_stored = Some(error.clone());
    }

    /// One row costs itself alone. So many in a row are no fault of theirs, and each costs a pair.
    fn row_refused(&self, error: &StoreError) {
        let refused = {
            let mut state = self.state();
            state.rows_refused += 1;
            state.rows_refused
        };
        if refused >= OUTAGE_LIMIT {
            self.stop(Stop::Store(format!(
                "{refused} rows one after the other could not be written: {error}"
            )));
        }
    }

    /// A row that may not be changed costs itself alone; where that is all there was to do, the run did nothing.
    fn nobody_was_leased(&self) {
        let state = self.state();
        let shut_out = state.shut_out.clone().filter(|_| !state.claimed);
        drop(state);
        if let Some(reason) = shut_out {
            self.stop(Stop::Store(reason));
        }
    }

    fn row_written(&self) {
        self.state().rows_refused = 0;
    }

    fn stopped(&self) -> bool {
        self.state().report.stopped.is_some()
    }

    fn refreshed(&self, id: StreamerId, at: DateTime<Utc>) {
        let mut state = self.state();
        state.refreshes_failed = 0;
        state.history.add_success(id, at);
    }

    /// A refusal is an answer: it neither counts as an outage nor ends a row of them.
    fn refused(&self, id: StreamerId, at: DateTime<Utc>) {
        self.state().history.add_refusal(id, at);
    }

    fn refresh_failed(&self) {
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
    fn may_validate(&self, priority: Priority) -> Result<(), Outage> {
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

    fn validated(&self, priority: Priority, answered: bool) {
        let mut state = self.state();
        if answered {
            (state.validations_failed, state.vital_validations_failed) = (0, 0);
            return;
        }
        state.validations_failed += 1;
        state.vital_validations_failed += u32::from(priority == Priority::Vital);
    }
}

/// An attempt on its way to the database, with what is to be told of it once it is there.
struct Arrived {
    attempt: Attempt,
    outcome: Outcome,
    /// The failure that stood before.
    before: Option<Failure>,
    /// Of a refusal that deactivates if it is confirmed: what the pair shows by itself.
    proof: Option<Proof>,
}

impl<S: Store, T: Twitch, G: Signals> RefreshService<S, T, G> {
    /// `in_flight` is how many calls to Twitch a cycle has under way at once.
    pub fn new(
        store: S,
        twitch: T,
        signals: G,
        clock: Arc<dyn Clock>,
        policy: Policy,
        in_flight: usize,
    ) -> Self {
        Self {
            store,
            twitch,
            signals,
            clock,
            policy,
            in_flight: in_flight.max(1),
            stop: CancellationToken::default(),
        }
    }

    /// Ends cycles in order when `stop` is given: they begin nothing, finish what is in flight, and give leases back.
    #[must_use]
    pub fn stopped_by(self, stop: CancellationToken) -> Self {
        Self { stop, ..self }
    }

    /// Where the streamers are kept.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The time.
    pub fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// The monotonic clock.
    pub fn monotonic(&self) -> Monotonic {
        self.clock.monotonic()
    }

    /// Runs one cycle. `observer` hears of each streamer as soon as its result is stored.
    ///
    /// What goes wrong with one streamer is that streamer's outcome; what ends the cycle is in
    /// [`Report::stopped`]. Leases are given back either way.
    pub async fn run(&self, cycle: &Cycle, observer: &dyn Observer) -> Report {
        let started_at = self.clock.monotonic();
        let progress = Progress { observer, state: Mutex::default() };
        if cycle.limits.start.is_some_and(|at| at < started_at) {
            progress.stop(Stop::NoTime);
        }
        let (claims_in, claims) = mpsc::channel(self.in_flight);
        let (arrived_in, arrived) = mpsc::channel(WRITE_BATCH);
        let (refused_in, refused) = mpsc::channel(WRITE_BATCH);
        let (signals_in, mut signals) = mpsc::unbounded();
        let (stuck_in, mut stuck) = mpsc::unbounded();
        let signaller = Signaller { progress: &progress, signals: signals_in, stuck: stuck_in };

        let lease = async {
            if let Err(error) = self.lease_what_is_due(cycle, &progress, claims_in).await {
                progress.stop(Stop::Store(error.0));
            }
        };
        let ask = async {
            let ask_one = |claim| {
                let (mut arrived_in, mut refused_in) = (arrived_in.clone(), refused_in.clone());
                let progress = &progress;
                async move {
                    let one = self.attempt_guarded(cycle, progress, claim).await;
                    let lane = match &one.attempt.change {
                        Change::Deactivated { .. } => &mut refused_in,
                        _ => &mut arrived_in,
                    };
                    // The loop that writes outlives this one.
                    let _ = lane.send(one).await;
                }
            };
            claims.for_each_concurrent(self.in_flight, ask_one).await;
            drop((arrived_in, refused_in));
        };
        // Loops where `for_each` would be shorter: the compiler doesn't see that the futures of its closures are `Send`,
        // which a server's have to be.
        let write = async {
            let record = async {
                let mut batches = arrived.ready_chunks(WRITE_BATCH);
                while let Some(batch) = batches.next().await {
                    self.record(cycle, &signaller, batch).await;
                }
            };
            let deactivate = async {
                let mut batches = refused.ready_chunks(WRITE_BATCH);
                // What another streamer's refresh may still confirm is judged when all have been asked about.
                let mut open = Vec::new();
                while let Some(batch) = batches.next().await {
                    let more = self.settle_refusals(cycle, &signaller, batch).await;
                    open.extend(more);
                    if open.len() > WRITE_BATCH {
                        self.judge(cycle, &signaller, std::mem::take(&mut open)).await;
                    }
                }
                self.judge(cycle, &signaller, open).await;
            };
            let rows = async {
                future::join(record, deactivate).await;
                // Whatever is stuck is known by now.
                signaller.stuck.close_channel();
            };
            let see_to = async {
                let mut seen_to = FuturesUnordered::new();
                loop {
                    let next = if seen_to.is_empty() {
                        stuck.next().await
                    } else {
                        match future::select(stuck.next(), seen_to.next()).await {
                            Either::Left((next, _)) => next,
                            Either::Right(_) => continue,
                        }
                    };
                    let Some(one) = next else { break };
                    seen_to.push(self.see_to(cycle, &signaller, one));
                }
                while seen_to.next().await.is_some() {}
            };
            future::join(rows, see_to).await;
            self.arm_for_the_rest(&signaller);
            // The loop that signals ends when nobody has anything left to say.
            drop(signaller);
        };
        let signal = async {
            while let Some(signal) = signals.next().await {
                self.signal(cycle, &progress, signal).await;
            }
        };
        future::join4(lease, ask, write, signal).await;

        let mut report = progress.state.into_inner().unwrap_or_else(PoisonError::into_inner).report;
        report.duration = self.clock.monotonic() - started_at;
        observer.finished(&report);
        report
    }

    /// Runs one cycle over a few, and answers with what became of each.
    pub(crate) async fn run_for(
        &self,
        cycle: &Cycle,
        observer: &dyn Observer,
    ) -> (Report, HashMap<StreamerId, Outcome>) {
        let collector = Collector { observer, outcomes: Mutex::default() };
        let report = self.run(cycle, &collector).await;
        (report, collector.outcomes.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// The first loop. It is at most two batches of calls ahead.
    ///
    /// Refreshes come first, those of the last page too: what only validates has to wait, or it would use up the time,
    /// the calls or the limit that a refresh needs.
    async fn lease_what_is_due(
        &self,
        cycle: &Cycle,
        progress: &Progress<'_>,
        mut claims: mpsc::Sender<Claim>,
    ) -> Result<(), StoreError> {
        let mut batch = self.in_flight.div_ceil(FIRST_BATCHES);
        let mut last = None;
        let mut unproven = Vec::new();
        while !self.must_stop(cycle, progress) {
            let page = match &cycle.whom {
                Whom::These(these) => these.clone(),
                Whom::Authorized => {
                    let give_up_at = cycle.last_read(self.clock.monotonic());
                    let page = self.store.authorized(last, self.clock.now(), give_up_at);
                    // Nothing is held yet, so a stop need not wait for it.
                    let Some(page) = self.stop.run_until_cancelled(page).await.transpose()? else { continue };
                    last = page.last;
                    for (id, error) in page.unreadable {
                        progress.done(&Streamer::unnamed(id), &unreadable(error.0));
                    }
                    page.authorized.into_iter().map(|one| (one.streamer, one.token)).collect()
                }
            };
            let due = self.due(cycle, progress, page, &mut unproven);
            self.lease_all(cycle, &due, progress, &mut batch, &mut claims).await?;
            if last.is_none() {
                break;
            }
        }
        for some in unproven.chunks(self.in_flight) {
            if self.must_stop(cycle, progress) {
                break;
            }
            match progress.may_validate(cycle.priority_of_validations()) {
                Ok(()) => self.lease_all(cycle, some, progress, &mut batch, &mut claims).await?,
                // Not even a lease, which others would have to wait for.
                Err(Outage(reason)) => some.iter().for_each(|streamer| {
                    progress.done(streamer, &Outcome::Skipped(Skip::NotValidated(reason.clone())));
                }),
            }
        }
        progress.nobody_was_leased();
        Ok(())
    }

    /// Leases these in batches, for as long as the cycle goes on.
    async fn lease_all(
        &self,
        cycle: &Cycle,
        mut due: &[Streamer],
        progress: &Progress<'_>,
        batch: &mut usize,
        claims: &mut mpsc::Sender<Claim>,
    ) -> Result<(), StoreError> {
        while !due.is_empty() && !self.must_stop(cycle, progress) {
            let (now, later) = due.split_at((*batch).min(due.len()));
            self.lease(cycle, now, progress, claims).await?;
            *batch = (2 * *batch).min(self.in_flight);
            due = later;
        }
        Ok(())
    }

    /// Those of a page that are to be refreshed; those whose token is only to be validated are put into `unproven`. The
    /// others are done already, and in a dry run all are.
    fn due(
        &self,
        cycle: &Cycle,
        progress: &Progress<'_>,
        page: Vec<(Streamer, TokenState)>,
        unproven: &mut Vec<Streamer>,
    ) -> Vec<Streamer> {
        let mut due = Vec::new();
        for (streamer, token) in page {
            match self.policy.decide(&token, cycle.demand, self.clock.now()) {
                // A grant is more than a refresh: whether there is nothing to refresh is decided under the lease.
                _ if cycle.grants.is_some() => due.push(streamer),
                Decision::Skip(reason) => progress.done(&streamer, &Outcome::Skipped(Skip::NotDue(reason))),
                Decision::Refresh if cycle.dry_run => progress.done(&streamer, &Outcome::WouldRefresh),
                Decision::Validate if cycle.dry_run => progress.done(&streamer, &Outcome::WouldValidate),
                Decision::Refresh => due.push(streamer),
                Decision::Validate => unproven.push(streamer),
            }
        }
        due
    }

    async fn lease(
        &self,
        cycle: &Cycle,
        due: &[Streamer],
        progress: &Progress<'_>,
        claims: &mut mpsc::Sender<Claim>,
    ) -> Result<(), StoreError> {
        let ids: Vec<_> = due.iter().map(|streamer| streamer.id).collect();
        let now = self.clock.now();
        let claim = self.store.claim(&ids, now, now + LEASE, cycle.last_read(self.clock.monotonic()));
        let (claimed, ()) = future::join(claim, self.twitch.connect()).await;
        let claimed = claimed?;
        if !claimed.is_empty() {
            progress.state().claimed = true;
        }
        let leased: HashSet<_> = claimed.iter().map(|claim| claim.streamer.id).collect();
        let missed: Vec<_> = due.iter().filter(|streamer| !leased.contains(&streamer.id)).collect();
        let ids: Vec<_> = missed.iter().map(|streamer| streamer.id).collect();
        let aside = if ids.is_empty() { vec![] } else { self.store.are_set_aside(&ids, now).await? };
        for streamer in missed {
            let outcome = match aside.iter().find(|one| one.id == streamer.id) {
                None => Outcome::Skipped(Skip::Leased),
                // Found out by this claim.
                Some(SetAside { at, until, reason, .. }) if *at == now => {
                    if *until == now {
                        progress.state().shut_out.get_or_insert_with(|| reason.clone());
                    }
                    unreadable(reason.clone())
                }
                Some(SetAside { until, reason, .. }) => {
                    Outcome::Skipped(Skip::SetAside { until: *until, reason: reason.clone() })
                }
            };
            progress.done(streamer, &outcome);
        }
        for claim in claimed {
            // The loop that asks outlives this one.
            let _ = claims.send(claim).await;
        }
        Ok(())
    }

    fn must_stop(&self, cycle: &Cycle, progress: &Progress<'_>) -> bool {
        if cycle.limits.start.is_some_and(|at| self.clock.monotonic() > at) {
            progress.stop(Stop::Deadline);
        }
        if self.stop.is_cancelled() {
            progress.stop(Stop::Interrupted);
        }
        progress.stopped()
    }
}

/// The row can't be read.
fn unreadable(reason: String) -> Outcome {
    Outcome::Failed {
        kind: FailureKind::Outage,
        reason,
        token_expires_at: None,
        standing: Standing::NotRecorded,
        alarm: Some(Alarm::Unreadable),
        heard: Heard::NotAsked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optional_validations_that_fail_leave_vital_ones_their_tries() {
        let observer = |_: &Streamer, _: &Outcome| {};
        let progress = Progress { observer: &observer, state: Mutex::default() };
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
