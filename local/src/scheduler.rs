//! The schedules on a clock that is turned, which also keep the domain events: tests look at them.

use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use tokens_domain::ports::{EventPublisher, RetryScheduler, SignalError, StreamerDeactivated};
pub use tokens_service::scheduler::Job;
use tokens_service::scheduler::Scheduler;

/// The rules, the armed retries, and the events so far. Clones are the same scheduler.
#[derive(Clone, Debug, Default)]
pub struct LocalScheduler {
    scheduler: Scheduler,
    events: Arc<Mutex<Vec<StreamerDeactivated>>>,
}

impl LocalScheduler {
    /// The domain events so far.
    #[must_use]
    pub fn events(&self) -> Vec<StreamerDeactivated> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The minutes for which a retry is armed.
    #[must_use]
    pub fn retries(&self) -> Vec<DateTime<Utc>> {
        self.scheduler.retries()
    }

    /// As [`Scheduler::take_next`].
    #[must_use]
    pub fn take_next(&self, now: DateTime<Utc>, until: DateTime<Utc>) -> Option<(DateTime<Utc>, Job)> {
        self.scheduler.take_next(now, until)
    }
}

impl RetryScheduler for LocalScheduler {
    async fn arm_retry(&self, minute: DateTime<Utc>) -> Result<(), SignalError> {
        self.scheduler.arm_retry(minute);
        Ok(())
    }
}

impl EventPublisher for LocalScheduler {
    async fn publish(&self, event: &StreamerDeactivated) -> Result<(), SignalError> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event.clone());
        self.scheduler.wake_delivery();
        Ok(())
    }
}
