//! Where the signals of a service go: to AWS as its settings say, or to the scheduler of a process that has one.

use chrono::{DateTime, Utc};
use tokens_aws::AwsSignals;
use tokens_domain::ports::{EventPublisher, RetryScheduler, SignalError, StreamerDeactivated};

use crate::scheduler::Scheduler;

/// The signals of a service. Clones are the same.
#[derive(Clone)]
pub struct ServiceSignals {
    /// Retries where there is no scheduler, and events.
    aws: AwsSignals,
    scheduler: Option<Scheduler>,
}

impl ServiceSignals {
    pub(crate) fn new(aws: AwsSignals, scheduler: Option<Scheduler>) -> Self {
        Self { aws, scheduler }
    }
}

impl RetryScheduler for ServiceSignals {
    async fn arm_retry(&self, minute: DateTime<Utc>) -> Result<(), SignalError> {
        match &self.scheduler {
            Some(scheduler) => {
                scheduler.arm_retry(minute);
                Ok(())
            }
            None => self.aws.arm_retry(minute).await,
        }
    }
}

impl EventPublisher for ServiceSignals {
    async fn publish(&self, event: &StreamerDeactivated) -> Result<(), SignalError> {
        if let Some(scheduler) = &self.scheduler {
            scheduler.wake_delivery();
        }
        self.aws.publish(event).await
    }
}
