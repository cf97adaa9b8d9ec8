//! Delivering the outbox: claim what is to be tried now, push it, write what became of it, until nothing is left.
//!
//! A notification is delivered at least once: one whose result is lost is claimed again when its claim has run out.

use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt, stream};
use serde::Serialize;

use crate::clock::Clock;
use crate::notification::{Locale, Next, Notification, PushAnswer};
use crate::ports::{Outbox, Push, PushMessage, StoreError};

/// The longest that one push may take.
pub const LONGEST_PUSH: TimeDelta = TimeDelta::seconds(10);

/// Devices that are pushed to at the same time.
const AT_ONCE: usize = 32;

/// For how long nobody else takes what was claimed: two pushes, one waiting for its turn.
const CLAIM: TimeDelta = TimeDelta::seconds(3 * LONGEST_PUSH.num_seconds());

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
    /// Of all these, those where a push service did not take our VAPID: somebody has to look.
    pub unauthorized: u64,
}

impl NotifyReport {
    fn count(&mut self, next: Next, answer: &PushAnswer) {
        match next {
            Next::Delivered => self.delivered += 1,
            Next::Gone => self.gone += 1,
            Next::RetryAt(_) => self.postponed += 1,
            Next::GivenUp => self.given_up += 1,
        }
        self.unauthorized += u64::from(matches!(answer, PushAnswer::Unauthorized(_)));
    }
}

/// Called with what became of each attempt as soon as it is stored.
pub type Observer<'a> = &'a (dyn Fn(&Notification, &PushAnswer, Next) + Send + Sync);

/// Delivers notifications through the ports.
pub struct NotifyService<O, P> {
    outbox: O,
    push: P,
    clock: Arc<dyn Clock>,
    locale: Locale,
}

impl<O: Outbox, P: Push> NotifyService<O, P> {
    /// `locale` is the language of what people read.
    pub fn new(outbox: O, push: P, clock: Arc<dyn Clock>, locale: Locale) -> Self {
        Self { outbox, push, clock, locale }
    }

    /// Delivers what is to be tried now, until nothing is left or `deadline` is near.
    ///
    /// # Errors
    ///
    /// If the database fails. What was claimed then is tried again when its claim has run out.
    pub async fn run(
        &self,
        deadline: Option<DateTime<Utc>>,
        observer: Observer<'_>,
    ) -> Result<NotifyReport, StoreError> {
        let report = Mutex::new(NotifyReport::default());
        loop {
            let now = self.clock.now();
            if deadline.is_some_and(|at| at - now < CLAIM) {
                break;
            }
            let claimed = self.outbox.claim(now, now + CLAIM, AT_ONCE).await?;
            if claimed.is_empty() {
                break;
            }
            let delivered: Vec<_> = stream::iter(claimed)
                .map(|notification| self.deliver(notification, &report, observer))
                .buffer_unordered(AT_ONCE)
                .collect()
                .await;
            delivered.into_iter().collect::<Result<(), _>>()?;
        }
        Ok(report.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    async fn deliver(
        &self,
        notification: Notification,
        report: &Mutex<NotifyReport>,
        observer: Observer<'_>,
    ) -> Result<(), StoreError> {
        if notification.is_stale(self.clock.now()) {
            return self
                .settle(&notification, &PushAnswer::Rejected("a day old".to_owned()), report, observer)
                .await;
        }
        let message = PushMessage {
            payload: notification.payload(self.locale),
            topic: notification.topic(),
            time_to_live: notification.time_to_live(self.clock.now()),
        };
        let answer = self.push.send(&notification.subscription, &message).await;
        self.settle(&notification, &answer, report, observer).await
    }

    async fn settle(
        &self,
        notification: &Notification,
        answer: &PushAnswer,
        report: &Mutex<NotifyReport>,
        observer: Observer<'_>,
    ) -> Result<(), StoreError> {
        let now = self.clock.now();
        let next = notification.after_attempt(answer, now);
        let reason = match answer {
            PushAnswer::Accepted | PushAnswer::Gone => None,
            PushAnswer::Busy { reason, .. }
            | PushAnswer::Unauthorized(reason)
            | PushAnswer::Rejected(reason) => Some(reason.as_str()),
        };
        self.outbox.settle(notification, next, reason, now).await?;
        report.lock().unwrap_or_else(PoisonError::into_inner).count(next, answer);
        observer(notification, answer, next);
        Ok(())
    }
}
