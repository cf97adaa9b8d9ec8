//! What wakes others: EventBridge Scheduler for retries, an EventBridge bus for domain events.

use chrono::{DateTime, Utc};
use domain::ports::{SignalError, Signals, StreamerDeactivated};

/// Where neither a scheduler nor a bus is configured: the sweep retries, and events are logged.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSignals;

impl Signals for NoSignals {
    async fn arm_retry(&self, _minute: DateTime<Utc>) -> Result<(), SignalError> {
        Ok(())
    }

    async fn publish(&self, event: &StreamerDeactivated) -> Result<(), SignalError> {
        tracing::info!(streamer = %event.streamer_id, "streamer deactivated");
        Ok(())
    }
}
