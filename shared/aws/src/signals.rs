//! What wakes others: EventBridge Scheduler for retries, an EventBridge bus for domain events. Either may be absent:
//! then the sweep retries, or events are logged at `debug`.
//!
//! A signal only wakes: what it says stands in the database. So it may fail, and must never hold a cycle up: what is
//! out of reach is left alone for a while. Nothing of the SDK is loaded before the first signal.

use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use domain::Clock;
use domain::ports::{SignalError, Signals, StreamerDeactivated};

use crate::events::Events;
use crate::retries::Retries;
use crate::sdk::LONGEST_OPERATION;
use crate::{Failure, Sdk};

/// Where to signal to. `None`: nobody listens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SignalsConfig {
    /// `RETRY_*`. Without it the sweep retries.
    pub retries: Option<RetryConfig>,
    /// `EVENT_BUS_NAME`, a name or an ARN. Without it events are logged at `debug`.
    pub event_bus: Option<String>,
}

/// How EventBridge Scheduler runs a cycle again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryConfig {
    /// `RETRY_GROUP`: the schedule group.
    pub group: String,
    /// `RETRY_TARGET_ARN`: the function that is invoked.
    pub target_arn: String,
    /// `RETRY_ROLE_ARN`: the role under which it is invoked.
    pub role_arn: String,
    /// `RETRY_DLQ_ARN`: the SQS queue for what could not be delivered.
    pub dlq_arn: Option<String>,
}

/// For how long a service that can't be reached is left alone. A cycle loses [`LONGEST_OPERATION`] to it at most twice a
/// minute, however many signals it has to give.
const LEFT_ALONE: TimeDelta = TimeDelta::seconds(30);

/// Where neither a scheduler nor a bus is configured: the sweep retries. Whoever runs a cycle tells of each deactivation, so
/// an event is logged at `debug` only.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSignals;

impl Signals for NoSignals {
    async fn arm_retry(&self, _minute: DateTime<Utc>) -> Result<(), SignalError> {
        Ok(())
    }

    async fn publish(&self, event: &StreamerDeactivated) -> Result<(), SignalError> {
        tracing::debug!(streamer = %event.streamer_id, "streamer deactivated");
        Ok(())
    }
}

/// The signals as they are configured. Clones share what was armed and what was connected.
#[derive(Clone)]
pub struct AwsSignals(Arc<Parts>);

struct Parts {
    retries: Option<Retries>,
    events: Option<Events>,
}

impl AwsSignals {
    /// Connects to nothing yet. The clock says which minutes are past.
    #[must_use]
    pub fn new(config: SignalsConfig, sdk: impl Into<Sdk>, clock: Arc<dyn Clock>) -> Self {
        let sdk = sdk.into();
        let retries = config.retries.map(|config| Retries::new(config, sdk.clone(), clock.clone()));
        let events = config.event_bus.map(|bus| Events::new(bus, sdk, clock));
        Self(Arc::new(Parts { retries, events }))
    }
}

impl Signals for AwsSignals {
    async fn arm_retry(&self, minute: DateTime<Utc>) -> Result<(), SignalError> {
        match &self.0.retries {
            Some(retries) => retries.arm(minute).await,
            None => NoSignals.arm_retry(minute).await,
        }
    }

    async fn publish(&self, event: &StreamerDeactivated) -> Result<(), SignalError> {
        match &self.0.events {
            Some(events) => events.publish(event).await,
            None => NoSignals.publish(event).await,
        }
    }
}

/// Calls a service, unless it was out of reach a moment ago.
pub(super) struct Guard {
    clock: Arc<dyn Clock>,
    left_alone_until: Mutex<Option<DateTime<Utc>>>,
}

impl Guard {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, left_alone_until: Mutex::default() }
    }

    pub(super) async fn call<T>(&self, call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let until = *self.left_alone_until.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that was set back must not leave it alone for ever.
        let wait = until.map(|until| until - self.clock.now());
        if wait.is_some_and(|wait| wait > TimeDelta::zero() && wait <= LEFT_ALONE) {
            return Err(Failure::lasting("it was out of reach a moment ago and is left alone for a while"));
        }
        let done = tokio::time::timeout(LONGEST_OPERATION, call).await.unwrap_or_else(|_| {
            Err(Failure::lasting(format!("no answer within {} s", LONGEST_OPERATION.as_secs())))
        });
        if done.as_ref().is_err_and(|failure| failure.lasts) {
            let until = self.clock.now() + LEFT_ALONE;
            *self.left_alone_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
        }
        done
    }
}
