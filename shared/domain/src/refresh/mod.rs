//! The cycle: *refresh what is due now*. Every trigger runs this one path: load, decide, (stop here in a dry run,)
//! claim, ask Twitch, write.
//!
//! Four parts run side by side: `lease` reads the authorized streamers page by page and leases what is due, `ask` keeps a
//! bounded number of calls to Twitch in flight, `write` stores what has arrived in batches, and `announce` arms retries
//! and publishes deactivations. `judge` serves two of them, where an answer of Twitch's is not enough. All run on the
//! caller's task: nothing is spawned, and dropping the future stops everything. Bounded channels between them hold back the
//! one that is ahead; a slow database never keeps an answer of Twitch's from being read.

mod announce;
mod ask;
mod context;
mod cycle;
#[cfg(test)]
mod fleet;
mod judge;
mod lease;
mod progress;
mod write;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures::channel::mpsc;
use futures::future;
use futures::{SinkExt, StreamExt};
use tokio_util::sync::CancellationToken;

use self::announce::{Announcements, Announcing};
use self::ask::Asking;
use self::context::Context;
pub use self::cycle::{Cycle, DEADLINE_MARGIN, Limits, MAX_CALL, MIN_CYCLE, SIGNAL_TIMEOUT, Scope};
use self::judge::Judging;
use self::lease::Leasing;
use self::progress::Progress;
use self::write::{WRITE_BATCH, Writing};
use crate::attempt::Resolution;
use crate::clock::{Clock, Monotonic};
use crate::policy::Policy;
use crate::ports::{EventPublisher, RetryScheduler, Store, Twitch};
use crate::report::{Observer, Report, Stop};

/// Refreshes tokens: the rules of [`Policy`] applied through the ports.
pub struct RefreshService<S, T, R, E> {
    store: S,
    twitch: T,
    retries: R,
    events: E,
    clock: Arc<dyn Clock>,
    policy: Policy,
    in_flight: usize,
    stop: CancellationToken,
}

impl<S: Store, T: Twitch, R: RetryScheduler, E: EventPublisher> RefreshService<S, T, R, E> {
    /// `in_flight` is how many calls to Twitch a cycle has under way at once.
    pub fn new(
        store: S,
        twitch: T,
        retries: R,
        events: E,
        clock: Arc<dyn Clock>,
        policy: Policy,
        in_flight: usize,
    ) -> Self {
        let (in_flight, stop) = (in_flight.max(1), CancellationToken::default());
        Self { store, twitch, retries, events, clock, policy, in_flight, stop }
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

    pub(crate) fn clock(&self) -> &dyn Clock {
        self.clock.as_ref()
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
        let context = Context {
            cycle,
            progress: Progress::new(observer),
            policy: &self.policy,
            clock: self.clock.as_ref(),
            stop: &self.stop,
        };
        if cycle.limits.start.is_some_and(|at| at < started_at) {
            context.progress.stop(Stop::NoTime);
        }
        let (claims_in, claims) = mpsc::channel(self.in_flight);
        let (arrived_in, arrived) = mpsc::channel(WRITE_BATCH);
        let (refused_in, refused) = mpsc::channel(WRITE_BATCH);
        let (stuck_in, stuck) = mpsc::unbounded();
        let (announcements_in, announcements) = mpsc::unbounded();

        let leasing = Leasing::new(&context, &self.store, &self.twitch, self.in_flight, claims_in);
        let asking = &Asking { context: &context, twitch: &self.twitch };
        let announcing = Announcing { context: &context, retries: &self.retries, events: &self.events };
        let announced = Announcements::new(&context, announcements_in);
        let writing = &Writing::new(&context, &self.store, announced, stuck_in);
        let judging = &Judging { context: &context, store: &self.store, asking, writing };

        let ask = async {
            let ask_one = |claim| {
                let (mut arrived_in, mut refused_in) = (arrived_in.clone(), refused_in.clone());
                async move {
                    let attempt = asking.attempt(claim).await;
                    // The parts that these are sent to outlive this one.
                    let _ = match attempt.resolution {
                        Resolution::Deactivate { .. } => refused_in.send(attempt).await,
                        // Boxed: it is rare, and every attempt would carry its size.
                        _ if judging.is_incomplete(&attempt) => {
                            match Box::pin(judging.complete(attempt)).await {
                                Some(completed) => arrived_in.send(completed).await,
                                None => Ok(()),
                            }
                        }
                        _ => arrived_in.send(attempt).await,
                    };
                }
            };
            claims.for_each_concurrent(self.in_flight, ask_one).await;
            drop((arrived_in, refused_in));
        };
        let write = async {
            let rows = async {
                future::join(writing.run(arrived), judging.run(refused)).await;
                writing.close_stuck();
            };
            future::join(rows, writing.run_stuck(stuck)).await;
            writing.close();
        };
        future::join4(leasing.run(), ask, write, announcing.run(announcements)).await;

        let mut report = context.progress.into_report();
        report.duration = self.clock.monotonic() - started_at;
        observer.finished(&report);
        report
    }
}
