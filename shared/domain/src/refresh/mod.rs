//! The cycle: *refresh what is due now*. Every trigger runs this one path: load, decide, (stop here in a dry run,)
//! claim, ask Twitch, write.
//!
//! Four loops run side by side: the first reads the authorized streamers page by page and leases what is due, the
//! second keeps a bounded number of calls to Twitch in flight, the third writes what has arrived in batches, and the
//! fourth signals what follows from that: when a retry is due, who was deactivated. All run on the caller's task: nothing
//! is spawned, and dropping the future stops everything. Bounded channels between them hold back the one that is ahead; a
//! slow database never keeps an answer of Twitch's from being read.

mod attempt;
mod cycle;
mod failure;
#[cfg(test)]
mod fleet;
mod lease;
mod progress;
mod signal;
mod write;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use futures::channel::mpsc;
use futures::future;
use futures::{SinkExt, StreamExt};
use tokio_util::sync::CancellationToken;

pub use self::cycle::{Cycle, DEADLINE_MARGIN, Limits, MAX_CALL, MIN_CYCLE, SIGNAL_TIMEOUT, Scope};
use self::failure::Failed;
pub(crate) use self::lease::unreadable;
use self::progress::Progress;
use self::signal::Signaller;
use crate::clock::{Clock, Monotonic};
use crate::evidence::Proof;
use crate::policy::{Failure, Policy};
use crate::ports::{Attempt, Change, Signals, Store, Twitch};
use crate::report::{Observer, Outcome, Report, Stop};
use crate::streamer::{Streamer, StreamerId};

/// How many results one statement writes at most.
const WRITE_BATCH: usize = 256;

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

/// What became of one streamer, on its way to the database.
enum Attempted {
    Arrived(Arrived),
    Refused(Refused),
}

/// A result, with what the observer is to hear of it once it is stored.
struct Arrived {
    attempt: Attempt,
    outcome: Outcome,
}

/// A refusal that deactivates if it is confirmed.
struct Refused {
    attempt: Attempt,
    failed: Failed,
    /// The failure that stood before.
    before: Option<Failure>,
}

impl Refused {
    /// The attempt, if it is confirmed.
    fn deactivation(&self) -> Attempt {
        let Failed { reason, expires_at, memory, .. } = &self.failed;
        let change =
            Change::Deactivated { reason: reason.clone(), expires_at: *expires_at, memory: memory.clone() };
        Attempt { change, ..self.attempt.clone() }
    }
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
        let progress = Progress::new(observer);
        if cycle.limits.start.is_some_and(|at| at < started_at) {
            progress.stop(Stop::NoTime);
        }
        let (claims_in, claims) = mpsc::channel(self.in_flight);
        let (arrived_in, arrived) = mpsc::channel(WRITE_BATCH);
        let (refused_in, refused) = mpsc::channel(WRITE_BATCH);
        let (signals_in, mut signals) = mpsc::unbounded();
        let (stuck_in, stuck) = mpsc::unbounded();
        let signaller = &Signaller { progress: &progress, signals: signals_in, stuck: stuck_in };

        let lease = async {
            if let Err(error) = self.lease_what_is_due(cycle, &progress, claims_in).await {
                progress.stop(Stop::Store(error));
            }
        };
        let ask = async {
            let ask_one = |claim| {
                let (mut arrived_in, mut refused_in) = (arrived_in.clone(), refused_in.clone());
                let progress = &progress;
                async move {
                    // The loop that writes outlives this one.
                    let _ = match self.attempt_guarded(cycle, progress, claim).await {
                        Attempted::Arrived(one) => arrived_in.send(one).await,
                        Attempted::Refused(one) => refused_in.send(one).await,
                    };
                }
            };
            claims.for_each_concurrent(self.in_flight, ask_one).await;
            drop((arrived_in, refused_in));
        };
        // Loops where `for_each` would be shorter: the compiler doesn't see that the futures of its closures are `Send`,
        // which a server's have to be.
        let record = async {
            let mut batches = arrived.ready_chunks(WRITE_BATCH);
            while let Some(batch) = batches.next().await {
                self.record(cycle, signaller, batch).await;
            }
        };
        let deactivate = async {
            let mut batches = refused.ready_chunks(WRITE_BATCH);
            // What another streamer's refresh may still confirm is judged when all have been asked about.
            let mut open = Vec::new();
            while let Some(batch) = batches.next().await {
                let is_clear = |one: &Refused| one.failed.proof == Some(Proof::NothingToAsk);
                let (confirmed, more): (_, Vec<_>) = batch.into_iter().partition(is_clear);
                self.deactivate(cycle, signaller, confirmed).await;
                open.extend(more);
                if open.len() > WRITE_BATCH {
                    self.judge(cycle, signaller, std::mem::take(&mut open)).await;
                }
            }
            self.judge(cycle, signaller, open).await;
        };
        let rows = async {
            future::join(record, deactivate).await;
            // Whatever is stuck is known by now.
            signaller.stuck.close_channel();
        };
        let see_to = async {
            let see_to_one = |one| async move { self.see_to(cycle, signaller, one).await };
            stuck.for_each_concurrent(None, see_to_one).await;
        };
        let write = async {
            future::join(rows, see_to).await;
            self.arm_for_the_rest(signaller);
            // The loop that signals ends.
            signaller.signals.close_channel();
        };
        let signal = async {
            while let Some(signal) = signals.next().await {
                self.signal(cycle, &progress, signal).await;
            }
        };
        future::join4(lease, ask, write, signal).await;

        let mut report = progress.into_report();
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
