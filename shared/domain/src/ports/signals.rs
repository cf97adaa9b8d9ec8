//! What wakes others.

use std::future::Future;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::authorization::CampaignId;
use crate::schedule::Trigger;
use crate::streamer::StreamerId;

/// What wakes others: the one-shot that runs a cycle again, and the domain event of a deactivation. Neither carries
/// anything that the database doesn't hold: a lost one is recovered by the next sweep.
pub trait Signals: Send + Sync {
    /// Has a cycle run in this minute. A minute that was asked for already is fine.
    fn arm_retry(&self, minute: DateTime<Utc>) -> impl Future<Output = Result<(), SignalError>> + Send;

    /// Publishes a deactivation.
    fn publish(&self, event: &StreamerDeactivated) -> impl Future<Output = Result<(), SignalError>> + Send;
}

/// A signal could not be given. The text holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SignalError(pub String);

/// The domain event `streamer deactivated`. Ids only: no names, no tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StreamerDeactivated {
    /// Of this structure.
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
