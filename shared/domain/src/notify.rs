//! Delivering the outbox: claim what is to be tried now, push it, write what became of it, until nothing is left.
//!
//! A notification is delivered at least once: one whose result is lost is claimed again when its claim has run out.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use futures::{FutureExt, StreamExt, stream};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Monotonic};
use crate::notification::{Next, Notification, PushAnswer};
use crate::ports::{Compose, Outbox, Push, PushMessage, StoreError};

/// The longest that one push may take.
pub const PUSH_TIMEOUT: TimeDelta = TimeDelta::seconds(10);

/// Devices that are pushed to at the same time.
const IN_FLIGHT: usize = 32;

/// The longest that a result is tried to be written while the database is away.
const MAX_WRITE: TimeDelta = TimeDelta::seconds(10);

/// For how long no other run takes what was claimed: another push while it waits for its turn, its own, and a write.
const CLAIM: TimeDelta = TimeDelta::seconds(2 * PUSH_TIMEOUT.num_seconds() + MAX_WRITE.num_seconds());

/// A host that has left so many calls in a row without an answer is not called again in the same run: each would hold up
/// the others for as long as we wait.
const UNANSWERED: u32 = 3;

/// With less time left, a run delivers nothing.
pub const MIN_RUN: TimeDelta = CLAIM;

/// What a delivery did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NotifyReport {
    /// Accepted by a push service.
    pub delivered: u64,
    /// Subscriptions that are no more; they were deleted.
    pub gone: u64,
    /// To be tried again.
    pub postponed: u64,
    /// Never to be tried again.
    pub given_up: u64,
    /// Obsolete: reconnected, notifications turned off, or the device signed out.
    pub obsolete: u64,
    /// Of all these, those where a push service did not take our VAPID, if none took it: needs the operator.
    pub unauthorized: u64,
    /// Of all these, devices that have subscribed under another VAPID key: our VAPID was taken for others, or was before.
    pub other_key: u64,
}

impl NotifyReport {
    /// Everything that was looked at.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Self { delivered, gone, postponed, given_up, obsolete, unauthorized: _, other_key: _ } = self;
        delivered + gone + postponed + given_up + obsolete
    }

    fn count(&mut self, next: Next, answer: &PushAnswer) {
        match next {
            Next::Delivered => self.delivered += 1,
            Next::Gone => self.gone += 1,
            Next::RetryAt(_) => self.postponed += 1,
            Next::GivenUp => self.given_up += 1,
        }
        self.unauthorized += u64::from(matches!(answer, PushAnswer::Unauthorized(_)));
        self.other_key += u64::from(matches!(answer, PushAnswer::OtherKey(_)));
    }
}

/// Called with what became of each attempt as soon as it is stored.
pub type Observer<'a> = &'a (dyn Fn(&Notification, &PushAnswer, Next) + Send + Sync);

/// Delivers notifications through the ports.
pub struct NotifyService<O, P> {
    outbox: O,
    push: P,
    clock: Arc<dyn Clock>,
    compose: Box<dyn Compose>,
    stop: CancellationToken,
}

/// What a run knows of itself.
#[derive(Default)]
struct Run {
    report: NotifyReport,
    /// Calls in a row that were not answered, by host.
    unanswered: HashMap<String, u32>,
    /// Where our VAPID was not taken while it had not been for anybody: whose fault that is shows at the end.
    untaken: Vec<(Notification, String, Next)>,
    /// Why the run ends early. What is under way is still finished.
    failed: Option<StoreError>,
}

impl<O: Outbox, P: Push> NotifyService<O, P> {
    /// `compose` writes the notifications.
    pub fn new(outbox: O, push: P, clock: Arc<dyn Clock>, compose: impl Compose + 'static) -> Self {
        let compose = Box::new(compose);
        Self { outbox, push, clock, compose, stop: CancellationToken::default() }
    }

    /// Ends runs in order when `stop` is given: they claim nothing more, and finish what is in flight.
    #[must_use]
    pub fn stopped_by(self, stop: CancellationToken) -> Self {
        Self { stop, ..self }
    }

    /// Delivers what is to be tried now, until nothing is left or `deadline` is near.
    ///
    /// # Errors
    ///
    /// If the database fails. What was claimed then is tried again when its claim has run out.
    pub async fn run(
        &self,
        deadline: Option<Monotonic>,
        observer: Observer<'_>,
    ) -> Result<NotifyReport, StoreError> {
        let run = Mutex::new(Run::default());
        let claims = stream::unfold((), |()| async { Some((self.claim(deadline, &run).await?, ())) });
        claims
            .flat_map(stream::iter)
            .for_each_concurrent(IN_FLIGHT, |(notification, until)| {
                self.deliver(notification, until, &run, observer)
            })
            .await;
        self.judge(&run, observer).await;
        let Run { report, failed, .. } = run.into_inner().unwrap_or_else(PoisonError::into_inner);
        failed.map_or(Ok(report), Err)
    }

    /// The next ones and until when they are ours; `None` if there are none, or the run is to end.
    async fn claim(
        &self,
        deadline: Option<Monotonic>,
        run: &Mutex<Run>,
    ) -> Option<Vec<(Notification, DateTime<Utc>)>> {
        let now = self.clock.now();
        if lock(run).failed.is_some()
            || self.stop.is_cancelled()
            || deadline.is_some_and(|at| at - self.clock.monotonic() < CLAIM)
        {
            return None;
        }
        let until = now + CLAIM;
        match self.outbox.claim(now, until, IN_FLIGHT).await {
            Ok(claimed) if claimed.notifications.is_empty() && claimed.obsolete == 0 => None,
            Ok(claimed) => {
                lock(run).report.obsolete += claimed.obsolete;
                Some(claimed.notifications.into_iter().map(|notification| (notification, until)).collect())
            }
            Err(error) => {
                lock(run).failed = Some(error);
                None
            }
        }
    }

    async fn deliver(
        &self,
        mut notification: Notification,
        until: DateTime<Utc>,
        run: &Mutex<Run>,
        observer: Observer<'_>,
    ) {
        let now = self.clock.now();
        if until - now < PUSH_TIMEOUT + MAX_WRITE {
            // It waited too long for its turn: another run could take it before it is written what became of it.
            return;
        }
        let answer = if notification.is_stale(now) {
            PushAnswer::Rejected("older than a day".to_owned())
        } else {
            self.push_unless_silent(&notification, now, run).await
        };
        let now = self.clock.now();
        let answer = match answer {
            PushAnswer::Unauthorized(reason) if notification.other_key || lock(run).report.delivered > 0 => {
                other_key(&reason)
            }
            answer => answer,
        };
        notification.note(&answer, now);
        let next = notification.after_attempt(&answer, now);
        let give_up_at = self.clock.monotonic() + MAX_WRITE;
        match self.outbox.settle(&notification, next, answer.reason(), now, give_up_at).await {
            Ok(()) => {
                let mut run = lock(run);
                if let PushAnswer::Unauthorized(reason) = answer {
                    run.untaken.push((notification, reason, next));
                } else {
                    run.report.count(next, &answer);
                    drop(run);
                    observer(&notification, &answer, next);
                }
            }
            Err(error) => lock(run).failed = Some(error),
        }
    }

    /// Where our VAPID was not taken: if another device's service has taken it in this run, the device has subscribed under another
    /// key, which is remembered with the notification; otherwise ours is the suspect.
    async fn judge(&self, run: &Mutex<Run>, observer: Observer<'_>) {
        let (untaken, taken) = {
            let mut run = lock(run);
            (std::mem::take(&mut run.untaken), run.report.delivered > 0)
        };
        for (mut notification, reason, next) in untaken {
            let answer = if taken {
                let answer = other_key(&reason);
                let now = self.clock.now();
                notification.note(&answer, now);
                let give_up_at = self.clock.monotonic() + MAX_WRITE;
                let failed = lock(run).failed.is_some();
                if !failed {
                    let settled =
                        self.outbox.settle(&notification, next, answer.reason(), now, give_up_at).await;
                    if let Err(error) = settled {
                        lock(run).failed = Some(error);
                    }
                }
                answer
            } else {
                PushAnswer::Unauthorized(reason)
            };
            lock(run).report.count(next, &answer);
            observer(&notification, &answer, next);
        }
    }

    /// Pushes, unless the device's host has not answered others in this run.
    async fn push_unless_silent(
        &self,
        notification: &Notification,
        now: DateTime<Utc>,
        run: &Mutex<Run>,
    ) -> PushAnswer {
        let host = notification.subscription.host();
        if lock(run).unanswered.get(&host).is_some_and(|times| *times >= UNANSWERED) {
            return PushAnswer::NotAsked(format!(
                "the push service has not answered {UNANSWERED} calls just before"
            ));
        }
        let answer = self.push(notification, now).await;
        let mut run = lock(run);
        if answer.was_answered() {
            run.unanswered.remove(&host);
        } else if matches!(answer, PushAnswer::NoAnswer(_)) {
            *run.unanswered.entry(host).or_default() += 1;
        }
        drop(run);
        answer
    }

    /// A subscription is user input: one that makes the program panic must not keep the others from being notified.
    async fn push(&self, notification: &Notification, now: DateTime<Utc>) -> PushAnswer {
        let message = PushMessage {
            payload: self.compose.payload(notification),
            topic: notification.topic(),
            time_to_live: notification.time_to_live(now),
        };
        AssertUnwindSafe(self.push.send(&notification.subscription, &message))
            .catch_unwind()
            .await
            .unwrap_or_else(|_| PushAnswer::Busy {
                retry_after: None,
                reason: "the program panicked over this subscription".to_owned(),
            })
    }
}

fn other_key(reason: &str) -> PushAnswer {
    PushAnswer::OtherKey(format!("{reason}: the device has subscribed under another VAPID key"))
}

fn lock(run: &Mutex<Run>) -> MutexGuard<'_, Run> {
    run.lock().unwrap_or_else(PoisonError::into_inner)
}
