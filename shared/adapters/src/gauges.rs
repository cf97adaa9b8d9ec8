//! What only the database knows, measured once a sweep: how long somebody has waited for a refresh or for a notification,
//! and whether the promise was kept.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use domain::ports::StoreError;
use domain::refresh::LAST_WORDS;
use tokio::time::timeout;

use crate::runner::Runner;
use crate::telemetry::metrics::Metric;

/// Measuring takes seconds with 100,000 streamers; what takes longer is given up.
const LONGEST: Duration = Duration::from_secs(30);

/// Over how long dead minutes are counted.
const PERIOD: TimeDelta = TimeDelta::days(1);

impl Runner {
    /// Measures, in a function that is ended by force at `deadline`. What fails is logged and measured by the next sweep.
    pub async fn measure(&self, deadline: Option<DateTime<Utc>>) {
        let left = deadline.map_or(LONGEST, |at| (at - LAST_WORDS - self.now()).to_std().unwrap_or_default());
        let failure = match timeout(left.min(LONGEST), self.gauges()).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "there was not enough time".to_owned(),
        };
        tracing::warn!(failure, "not all was measured; the next sweep makes it good");
    }

    async fn gauges(&self) -> Result<(), StoreError> {
        let now = self.now();
        Metric::OldestDueAge.record(self.oldest_due(now).await?.as_seconds_f64());
        let waiting_since = self.database().oldest_waiting().await?.unwrap_or(now);
        Metric::OutboxAge.record((now - waiting_since).as_seconds_f64());
        let dead = self.database().coverage(now - PERIOD, now).await?.dead_while_active();
        Metric::DeadMinutes.record(dead.as_seconds_f64() / 60.0);
        Ok(())
    }

    /// For how long the one who waits longest has been due: over everybody, as a cycle walks.
    async fn oldest_due(&self, now: DateTime<Utc>) -> Result<TimeDelta, StoreError> {
        let (mut oldest, mut last) = (TimeDelta::zero(), None);
        loop {
            let page = self.database().authorized(last.as_ref(), now).await?;
            let waited = page.iter().filter_map(|streamer| self.policy().due_for(streamer, now)).max();
            oldest = oldest.max(waited.unwrap_or_default());
            last = page.into_iter().next_back();
            if last.is_none() {
                return Ok(oldest);
            }
        }
    }
}
