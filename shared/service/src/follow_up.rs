//! What follows a cycle over all authorized streamers, in the time that is left: sessions are remembered, what is old is
//! forgotten, and the gauges are measured.
//!
//! The cycle is done and must not be repeated for any of it: what fails, or finds no time, is logged, and the next run
//! does it again.

use std::time::Duration;

use tokens_domain::Monotonic;
use tokens_domain::ports::StoreError;
use tokens_domain::refresh::DEADLINE_MARGIN;
use tokens_domain::schedule::Trigger;
use tokio::time::timeout;

use crate::service::Service;

/// Each takes seconds with 100,000 streamers; what takes longer is given up.
const TIMEOUT: Duration = Duration::from_secs(30);

impl Service {
    /// Does what follows a cycle, in a host that is killed at `deadline`.
    pub async fn follow_up(&self, trigger: Trigger, deadline: Option<Monotonic>) {
        let (database, now) = (self.database(), self.now());
        self.in_time(deadline, "not all was remembered or forgotten", database.keep_up(now)).await;
        if trigger == Trigger::Sweep {
            self.in_time(deadline, "not all was measured", self.measure()).await;
        }
    }

    async fn in_time(
        &self,
        deadline: Option<Monotonic>,
        otherwise: &str,
        work: impl Future<Output = Result<(), StoreError>>,
    ) {
        let left = deadline
            .map_or(TIMEOUT, |at| (at - DEADLINE_MARGIN - self.monotonic()).to_std().unwrap_or_default());
        let done = tokio::select! {
            biased;
            () = self.stop().cancelled() => return,
            done = timeout(left.min(TIMEOUT), work) => done,
        };
        let failure = match done {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "there was not enough time".to_owned(),
        };
        tracing::warn!(failure, "{otherwise}; the next run does it again");
    }
}
