//! The third part: stores what arrives, in batches, and reports it once it is stored.

use chrono::TimeDelta;
use futures::StreamExt;
use futures::channel::mpsc::{Receiver, UnboundedReceiver, UnboundedSender};

use super::announce::Announcements;
use super::context::Context;
use crate::attempt::{Attempt, Resolution, Stored};
use crate::notification::Recipient;
use crate::policy::Verdict;
use crate::ports::{Store, StoreError};
use crate::report::Outcome;
use crate::streamer::StreamerId;

/// How many results one statement writes at most.
pub(super) const WRITE_BATCH: usize = 256;

/// For how long a new pair whose row can't be written is still tried after the process was asked to stop: longer than a lock of the
/// application's lasts, and shorter than the ten seconds after which Docker kills.
const WRITE_AFTER_STOP: TimeDelta = TimeDelta::seconds(6);

/// Stores and reports.
pub(super) struct Writing<'a, S> {
    context: &'a Context<'a>,
    store: &'a S,
    announcements: Announcements<'a>,
    stuck: UnboundedSender<Stuck>,
}

/// A result whose row can't be written, though others can.
pub(super) struct Stuck {
    attempt: Attempt,
    error: StoreError,
}

impl<'a, S: Store> Writing<'a, S> {
    pub(super) fn new(
        context: &'a Context<'a>,
        store: &'a S,
        announcements: Announcements<'a>,
        stuck: UnboundedSender<Stuck>,
    ) -> Self {
        Self { context, store, announcements, stuck }
    }

    /// Stores what arrives.
    pub(super) async fn run(&self, arrived: Receiver<Attempt>) {
        let mut batches = arrived.ready_chunks(WRITE_BATCH);
        while let Some(batch) = batches.next().await {
            self.record(batch).await;
        }
    }

    /// No more rows get stuck.
    pub(super) fn close_stuck(&self) {
        self.stuck.close_channel();
    }

    /// Sees to rows that can't be written, apart from the others.
    pub(super) async fn run_stuck(&self, stuck: UnboundedReceiver<Stuck>) {
        stuck.for_each_concurrent(None, |one| self.see_to(one)).await;
    }

    /// All is stored.
    pub(super) fn close(&self) {
        self.announcements.close();
    }

    /// Stores these in one statement, then reports them.
    pub(super) async fn record(&self, attempts: Vec<Attempt>) {
        if attempts.is_empty() {
            return;
        }
        match self.store_all(&attempts).await {
            Ok(stored) => self.settle(attempts, stored),
            Err(error) => self.not_stored(&attempts, &error),
        }
    }

    /// The same for refusals that nothing confirms: people are notified of those that have lasted too long, once, as far as the
    /// budget goes.
    pub(super) async fn record_unconfirmed(&self, attempts: Vec<Attempt>) {
        if attempts.is_empty() {
            return;
        }
        match self.store_all(&attempts).await {
            Ok(stored) => {
                let mut noticed = self.notice(&attempts, &stored).await;
                let stored = attempts.iter().zip(stored).map(|(attempt, stored)| {
                    let found = noticed.iter().position(|(id, _)| *id == attempt.streamer.id);
                    found.map_or(stored, |n| Stored::Noticed(noticed.swap_remove(n).1))
                });
                let stored = stored.collect();
                self.settle(attempts, stored);
            }
            Err(error) => self.not_stored(&attempts, &error),
        }
    }

    /// Deactivates the streamers of these confirmed refusals, as far as the budget goes, then reports it.
    pub(super) async fn deactivate(&self, attempts: Vec<Attempt>) {
        if attempts.is_empty() {
            return;
        }
        let Context { policy, progress, .. } = self.context;
        let held_back = |attempts: Vec<Attempt>, why| {
            attempts.into_iter().map(|attempt| attempt.held_back(why, policy)).collect()
        };
        if !policy.deactivation {
            return self.record(held_back(attempts, "deactivation is switched off")).await;
        }
        let over_budget = progress.state().over_budget;
        let stored = match self.context.last_write() {
            Err(error) => Err(error),
            Ok(_) if over_budget => Ok(vec![Stored::OverBudget; attempts.len()]),
            Ok(give_up_at) => self.store.deactivate(&attempts, give_up_at).await,
        };
        match stored {
            Ok(stored) => {
                let (over, done): (Vec<_>, Vec<_>) =
                    attempts.into_iter().zip(stored).partition(|(_, stored)| *stored == Stored::OverBudget);
                for (attempt, stored) in done {
                    self.settle_one(attempt, stored);
                }
                if !over.is_empty() {
                    progress.state().over_budget = true;
                }
                let over = over.into_iter().map(|(attempt, _)| attempt).collect();
                self.record(held_back(over, "too many were deactivated within the hour")).await;
            }
            Err(error) => {
                progress.not_stored(&error);
                self.not_stored(&attempts, &error);
            }
        }
    }

    /// Stores these, for as long as there is time.
    pub(super) async fn store_all(&self, attempts: &[Attempt]) -> Result<Vec<Stored>, StoreError> {
        let stored = match self.context.last_write() {
            Ok(give_up_at) => self.store.record(attempts, give_up_at).await,
            Err(error) => Err(error),
        };
        stored.inspect_err(|error| self.context.progress.not_stored(error))
    }

    /// Reports these, of which this is stored.
    pub(super) fn settle(&self, attempts: Vec<Attempt>, stored: Vec<Stored>) {
        for (attempt, stored) in attempts.into_iter().zip(stored) {
            match &stored {
                Stored::Refused(error) => self.context.progress.row_refused(error),
                _ => self.context.progress.row_written(),
            }
            self.settle_one(attempt, stored);
        }
    }

    /// Reports this, or sees to it if its row can't be written.
    fn settle_one(&self, attempt: Attempt, stored: Stored) {
        match stored {
            Stored::Refused(error) => {
                // The loop that sees to them outlives those that write.
                let _ = self.stuck.unbounded_send(Stuck { attempt, error });
            }
            stored => self.report(&attempt, stored),
        }
    }

    /// It is stored.
    pub(super) fn report(&self, attempt: &Attempt, stored: Stored) {
        let outcome = Outcome::of(attempt, stored);
        self.announcements.stored(attempt, &outcome);
        self.context.progress.done(&attempt.streamer, &outcome);
    }

    /// Nothing of these is stored.
    pub(super) fn not_stored(&self, attempts: &[Attempt], error: &StoreError) {
        for attempt in attempts {
            self.context.progress.done(&attempt.streamer, &Outcome::not_stored(attempt, error));
        }
    }

    /// A new pair exists nowhere else, so it is tried for as long as there is time; then the row is set aside.
    async fn see_to(&self, Stuck { attempt, mut error }: Stuck) {
        let Context { cycle, progress, clock, stop, .. } = self.context;
        if let Resolution::Refreshed { .. } = attempt.resolution {
            let give_up_at = cycle.last_write(clock.monotonic());
            let insisting = stop.run_until_cancelled(self.store.insist(&attempt, give_up_at));
            let tried = if let Some(tried) = insisting.await {
                tried
            } else {
                let soon = clock.monotonic() + WRITE_AFTER_STOP;
                self.store.insist(&attempt, give_up_at.min(soon)).await
            };
            match tried {
                Ok(stored) => return self.report(&attempt, stored),
                Err(last) => error = last,
            }
        }
        let reason = format!("its row can't be written: {error}");
        // If not even that can be written, the lease runs out and the next run finds out again.
        let _ = self.store.set_aside(&attempt, &reason, self.context.now()).await;
        progress.done(&attempt.streamer, &Outcome::set_aside(&attempt, &error));
    }

    /// Who is notified of which of these.
    async fn notice(&self, attempts: &[Attempt], stored: &[Stored]) -> Vec<(StreamerId, Vec<Recipient>)> {
        let lasts = |attempt: &Attempt| {
            matches!(&attempt.resolution, Resolution::Failed { verdict: Verdict::Recorded(failure), .. }
                if self.context.policy.is_to_be_noticed(failure))
        };
        let both = attempts.iter().zip(stored);
        let lasting: Vec<_> = both
            .filter(|(attempt, stored)| **stored == Stored::Written && lasts(attempt))
            .map(|(attempt, _)| attempt.clone())
            .collect();
        if lasting.is_empty() || self.context.progress.state().over_budget {
            return Vec::new();
        }
        let Ok(give_up_at) = self.context.last_write() else { return Vec::new() };
        // What can't be written is written after the next refusal.
        let noticed = self.store.notice(&lasting, give_up_at).await.unwrap_or_default();
        let ids = lasting.iter().map(|attempt| attempt.streamer.id);
        ids.zip(noticed).filter_map(|(id, recipients)| Some((id, recipients?))).collect()
    }
}
