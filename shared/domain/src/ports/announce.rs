//! What wakes others: retries, and the event of a deactivation.

use std::future::Future;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::authorization::CampaignId;
use crate::schedule::Trigger;
use crate::streamer::StreamerId;

/// Has a cycle run again. What is due stands in the database: a retry that is lost is recovered by the next sweep.
pub trait RetryScheduler: Send + Sync {
    /// Has a cycle run in this minute. A minute that was asked for already is fine.
    fn arm_retry(&self, minute: DateTime<Utc>) -> impl Future<Output = Result<(), SignalError>> + Send;
}

/// Publishes domain events. They say nothing that the database doesn't hold: what one that is lost would have started, a timer
/// starts later.
pub trait EventPublisher: Send + Sync {
    /// Publishes a deactivation.
    fn publish(&self, event: &StreamerDeactivated) -> impl Future<Output = Result<(), SignalError>> + Send;
}

/// A retry could not be armed, or an event not published. The text holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SignalError(pub String);

/// The domain event `streamer deactivated`. Ids only: no names, no tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StreamerDeactivated {
    /// The version of this structure.
    pub version: u32,
    /// Who.
    pub streamer_id: StreamerId,
    /// When.
    pub deactivated_at: DateTime<Utc>,
    /// What the cycle ran for.
    pub trigger: Trigger,
    /// The campaigns whose game masters are notified, at most 1,000.
    pub campaign_ids: Vec<CampaignId>,
}
