//! The fourth part: arms retries and publishes deactivations. Both follow from what is stored, and only then.

use chrono::{DateTime, TimeDelta, Utc};
use futures::StreamExt;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender};

use super::context::Context;
use crate::attempt::Attempt;
use crate::notification::Recipient;
use crate::ports::{EventPublisher, RetryScheduler, SignalError, StreamerDeactivated};
use crate::report::{Outcome, Skip, Standing, Stop};
use crate::schedule::retry_minute;

/// Of the structure [`StreamerDeactivated`].
const EVENT_VERSION: u32 = 1;

/// Keeps an event small, whatever the number of campaigns.
const MAX_CAMPAIGN_IDS: usize = 1_000;

/// A retry for what a cycle had no time for comes no earlier: a schedule needs to exist before its minute begins.
const NEXT_MINUTE: TimeDelta = TimeDelta::minutes(1);

/// What is to be announced.
pub(super) enum Announcement {
    Retry(DateTime<Utc>),
    Deactivated(StreamerDeactivated),
}

/// Where the part that writes says what follows from what it has stored.
pub(super) struct Announcements<'a> {
    context: &'a Context<'a>,
    queue: UnboundedSender<Announcement>,
}

impl<'a> Announcements<'a> {
    pub(super) fn new(context: &'a Context<'a>, queue: UnboundedSender<Announcement>) -> Self {
        Self { context, queue }
    }

    /// A failure that is stored will be retried, and at once what was only too late; a deactivation is an event.
    pub(super) fn stored(&self, attempt: &Attempt, outcome: &Outcome) {
        match outcome {
            Outcome::Skipped(Skip::LeaseEnded) => self.retry(self.context.now() + NEXT_MINUTE),
            Outcome::Failed { standing, .. } => match standing {
                Standing::Recorded { retry_at, .. }
                | Standing::Noticed { retry_at, .. }
                | Standing::Repeated { retry_at } => self.retry(*retry_at),
                Standing::Deactivated { recipients } => {
                    self.send(Announcement::Deactivated(deactivated(attempt, recipients)));
                }
                Standing::Superseded | Standing::NotRecorded => {}
            },
            _ => {}
        }
    }

    /// All is stored. A cycle that stopped early leaves the rest to a retry: soon if it ran out of time, later if Twitch is
    /// down. A scheduled run that fails is repeated as a whole.
    pub(super) fn close(&self) {
        let stopped = self.context.progress.state().report.stopped.clone();
        match stopped {
            Some(Stop::Deadline | Stop::Interrupted) => self.retry(self.context.now() + NEXT_MINUTE),
            Some(Stop::Outages) => self.retry(self.context.now() + self.context.policy.retry_delay),
            Some(Stop::NoTime | Stop::Misconfigured(_) | Stop::UnknownKey(_) | Stop::Store(_)) | None => {}
        }
        self.queue.close_channel();
    }

    /// Each minute once, however many failures it is for.
    fn retry(&self, at: DateTime<Utc>) {
        let minute = retry_minute(at);
        if self.context.progress.state().retries.insert(minute) {
            self.send(Announcement::Retry(minute));
        }
    }

    fn send(&self, announcement: Announcement) {
        // The part that announces outlives the one that writes.
        let _ = self.queue.unbounded_send(announcement);
    }
}

fn deactivated(attempt: &Attempt, recipients: &[Recipient]) -> StreamerDeactivated {
    let campaigns = recipients.iter().flat_map(|one| one.campaigns.iter().copied());
    StreamerDeactivated {
        version: EVENT_VERSION,
        streamer_id: attempt.streamer.id,
        deactivated_at: attempt.ended_at,
        trigger: attempt.trigger,
        campaign_ids: campaigns.take(MAX_CAMPAIGN_IDS).collect(),
    }
}

/// Announces.
pub(super) struct Announcing<'a, R, E> {
    pub(super) context: &'a Context<'a>,
    pub(super) retries: &'a R,
    pub(super) events: &'a E,
}

impl<R: RetryScheduler, E: EventPublisher> Announcing<'_, R, E> {
    /// What can't be announced is counted; what it would have said stands in the database. The last of many slow
    /// announcements must not cost the report.
    pub(super) async fn run(self, mut queue: UnboundedReceiver<Announcement>) {
        while let Some(announcement) = queue.next().await {
            let Context { cycle, clock, progress, .. } = self.context;
            let late = cycle.limits.signal.is_some_and(|at| clock.monotonic() > at);
            let announced = match announcement {
                _ if late => Err(SignalError(
                    "no time was left for it before the deadline; the next sweep and the timer of the notifications \
                     recover it"
                        .to_owned(),
                )),
                Announcement::Retry(minute) => self.retries.arm_retry(minute).await,
                Announcement::Deactivated(event) => self.events.publish(&event).await,
            };
            if let Err(error) = announced {
                let mut state = progress.state();
                state.report.signals_failed += 1;
                state.report.signal_failure = Some(error.0);
            }
        }
    }
}
