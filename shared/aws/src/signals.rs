//! What wakes others: EventBridge Scheduler for retries, an EventBridge bus for domain events. Either may be absent:
//! then the sweep retries, or events are logged at `debug`.
//!
//! A signal only wakes: what it says stands in the database. So it may fail, and must never hold a cycle up: what is
//! out of reach is left alone for a while. Nothing of the SDK is loaded before the first signal.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokens_domain::Clock;
use tokens_domain::ports::{EventPublisher, RetryScheduler, SignalError, StreamerDeactivated};

use crate::Sdk;
use crate::events::Events;
use crate::retries::{Retries, RetryConfig};

/// Where to signal to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SignalsConfig {
    /// `RETRY_*`. Without it the sweep retries.
    pub retries: Option<RetryConfig>,
    /// `EVENT_BUS_NAME`, a name or an ARN. Without it events are logged at `debug`.
    pub event_bus: Option<String>,
}

/// Where neither a scheduler nor a bus is configured: the sweep retries. The log of a cycle names each deactivation, so an
/// event is logged at `debug` only.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSignals;

impl RetryScheduler for NoSignals {
    async fn arm_retry(&self, _minute: DateTime<Utc>) -> Result<(), SignalError> {
        Ok(())
    }
}

impl EventPublisher for NoSignals {
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

impl RetryScheduler for AwsSignals {
    async fn arm_retry(&self, minute: DateTime<Utc>) -> Result<(), SignalError> {
        match &self.0.retries {
            Some(retries) => retries.arm(minute).await,
            None => NoSignals.arm_retry(minute).await,
        }
    }
}

impl EventPublisher for AwsSignals {
    async fn publish(&self, event: &StreamerDeactivated) -> Result<(), SignalError> {
        match &self.0.events {
            Some(events) => events.publish(event).await,
            None => NoSignals.publish(event).await,
        }
    }
}
