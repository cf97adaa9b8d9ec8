//! Notifications and the push services that take them.

use std::future::Future;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};

use super::error::StoreError;
use crate::clock::Monotonic;
use crate::notification::{Next, Notification, PushAnswer, Subscription};

/// Where notifications wait until they are delivered.
pub trait Outbox: Send + Sync {
    /// Takes up to `limit` notifications that are to be tried now, first attempts before repeats and of either those that
    /// have waited longest first; no other run takes them before `until`. Those that are obsolete are settled and not
    /// handed out: the person does not want them, the device is gone, or the streamer is active again.
    fn claim(
        &self,
        now: DateTime<Utc>,
        until: DateTime<Utc>,
        limit: usize,
    ) -> impl Future<Output = Result<Claimed, StoreError>> + Send;

    /// Writes what became of an attempt, unless a later attempt has begun. While the database is away it tries again
    /// until `give_up_at`.
    fn settle(
        &self,
        notification: &Notification,
        next: Next,
        reason: Option<&str>,
        now: DateTime<Utc>,
        give_up_at: Monotonic,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// What [`Outbox::claim`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claimed {
    /// To be delivered now.
    pub notifications: Vec<Notification>,
    /// How many were settled because they are obsolete.
    pub obsolete: u64,
}

/// The push services of the browsers' vendors (RFC 8030).
pub trait Push: Send + Sync {
    /// Encrypts the payload for this subscription and hands it to its push service.
    fn send(
        &self,
        subscription: &Subscription,
        message: &PushMessage,
    ) -> impl Future<Output = PushAnswer> + Send;
}

impl<P: Push> Push for Arc<P> {
    async fn send(&self, subscription: &Subscription, message: &PushMessage) -> PushAnswer {
        self.as_ref().send(subscription, message).await
    }
}

/// Writes notifications as the devices' service worker reads them.
pub trait Compose: Send + Sync {
    /// What is pushed, in plain.
    fn payload(&self, notification: &Notification) -> Vec<u8>;
}

/// What is pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushMessage {
    /// In plain.
    pub payload: Vec<u8>,
    /// A later message with the same topic replaces this one.
    pub topic: String,
    /// How long the push service may keep it.
    pub time_to_live: TimeDelta,
}
