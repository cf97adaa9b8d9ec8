//! Leaves a service alone that is out of reach.

use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use tokens_domain::Clock;

use crate::Failure;
use crate::sdk::OPERATION_TIMEOUT;

/// For how long a service that can't be reached is left alone. A cycle loses [`OPERATION_TIMEOUT`] to it at most twice a
/// minute, however many signals it has to give.
const LEFT_ALONE: TimeDelta = TimeDelta::seconds(30);

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
        let done = tokio::time::timeout(OPERATION_TIMEOUT, call).await.unwrap_or_else(|_| {
            Err(Failure::lasting(format!("no answer within {} s", OPERATION_TIMEOUT.as_secs())))
        });
        if done.as_ref().is_err_and(|failure| failure.lasts) {
            let until = self.clock.now() + LEFT_ALONE;
            *self.left_alone_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
        }
        done
    }
}
