//! What is signalled: when a retry is due, and who was deactivated. It follows from what is stored, and only then.

use chrono::{DateTime, TimeDelta, Utc};
use futures::channel::mpsc::UnboundedSender;

use super::write::Stuck;
use super::{Cycle, Progress, RefreshService};
use crate::notification::Told;
use crate::ports::{Attempt, SignalError, Signals, Store, StoreError, StreamerDeactivated, Twitch};
use crate::report::{Outcome, Skip, Standing, Stop};
use crate::schedule::retry_minute;

/// Of the structure [`StreamerDeactivated`].
const EVENT_VERSION: u32 = 1;

/// More would not fit into an event with everything else.
const MAX_CAMPAIGN_IDS: usize = 1_000;

/// A retry for what a cycle had no time for comes no earlier: a schedule needs to exist before its minute begins.
const NEXT_MINUTE: TimeDelta = TimeDelta::minutes(1);

/// On its way to the [`Signals`].
pub(super) enum Signal {
    Retry(DateTime<Utc>),
    Deactivated(StreamerDeactivated),
}

/// Where the loop that writes says what follows from it.
pub(super) struct Signaller<'a> {
    pub(super) progress: &'a Progress<'a>,
    pub(super) signals: UnboundedSender<Signal>,
    pub(super) stuck: UnboundedSender<Stuck>,
}

impl Signaller<'_> {
    /// A row that can't be written is seen to apart from the others.
    pub(super) fn stuck(&self, attempt: Attempt, outcome: Outcome, error: StoreError) {
        // The loop that sees to them outlives those that write.
        let _ = self.stuck.unbounded_send(Stuck { attempt, outcome, error });
    }

    /// A failure that is stored will be retried, and at once what was only too late.
    pub(super) fn recorded(&self, outcome: &Outcome, now: DateTime<Utc>) {
        if let Outcome::Skipped(Skip::LeaseEnded) = outcome {
            self.retry(now + NEXT_MINUTE);
        }
        if let Outcome::Failed {
            standing:
                Standing::Recorded { retry_at, .. }
                | Standing::Noticed { retry_at, .. }
                | Standing::Repeated { retry_at },
            ..
        } = outcome
        {
            self.retry(*retry_at);
        }
    }

    /// Each minute once, however many failures it is for.
    fn retry(&self, at: DateTime<Utc>) {
        let minute = retry_minute(at);
        if self.progress.state().retries.insert(minute) {
            self.send(Signal::Retry(minute));
        }
    }

    pub(super) fn deactivated(&self, attempt: &Attempt, told: &[Told]) {
        self.send(Signal::Deactivated(StreamerDeactivated {
            version: EVENT_VERSION,
            streamer_id: attempt.streamer.id,
            deactivated_at: attempt.ended_at,
            trigger: attempt.trigger,
            campaign_ids: told
                .iter()
                .flat_map(|told| told.campaigns.iter().copied())
                .take(MAX_CAMPAIGN_IDS)
                .collect(),
        }));
    }

    fn send(&self, signal: Signal) {
        // The loop that signals outlives the one that writes.
        let _ = self.signals.unbounded_send(signal);
    }
}

impl<S: Store, T: Twitch, G: Signals> RefreshService<S, T, G> {
    /// A cycle that stopped early leaves the rest to a retry: soon if it ran out of time, later if Twitch is down. A
    /// scheduled run that fails is repeated as a whole.
    pub(super) fn arm_for_the_rest(&self, signaller: &Signaller<'_>) {
        let stopped = signaller.progress.state().report.stopped.clone();
        match stopped {
            Some(Stop::Deadline | Stop::Interrupted) => signaller.retry(self.clock.now() + NEXT_MINUTE),
            Some(Stop::Outages) => signaller.retry(self.clock.now() + self.policy.retry_delay),
            Some(Stop::NoTime | Stop::Misconfigured(_) | Stop::Store(_)) | None => {}
        }
    }

    /// A signal that can't be given is counted; what it would have said stands in the database. The last of many slow
    /// ones must not cost the report.
    pub(super) async fn signal(&self, cycle: &Cycle, progress: &Progress<'_>, signal: Signal) {
        let late = cycle.limits.signal.is_some_and(|at| self.clock.monotonic() > at);
        let given = match signal {
            _ if late => Err(SignalError(
                "no time was left for it before the deadline; the next sweep and the timer of the notifications make \
                 it good"
                    .to_owned(),
            )),
            Signal::Retry(minute) => self.signals.arm_retry(minute).await,
            Signal::Deactivated(event) => self.signals.publish(&event).await,
        };
        if let Err(error) = given {
            let mut state = progress.state();
            state.report.signals_failed += 1;
            state.report.signal_failure = Some(error.0);
        }
    }
}
