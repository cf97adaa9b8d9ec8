//! What only the database knows, measured once a sweep: how long the oldest refresh and the oldest notification have waited,
//! and whether the promise was kept.

use chrono::{DateTime, TimeDelta, Utc};
use tokens_domain::policy::ONLY_REFUSALS;
use tokens_domain::ports::StoreError;
use tokens_telemetry::metrics::Metric;

use crate::service::Service;

/// Over how long dead minutes are counted.
const PERIOD: TimeDelta = TimeDelta::days(1);

impl Service {
    /// Measures all.
    pub(crate) async fn measure(&self) -> Result<(), StoreError> {
        let now = self.now();
        Metric::OldestDueAge.record(self.oldest_due(now).await?.as_seconds_f64());
        let waiting_since = self.database().oldest_waiting().await?.unwrap_or(now);
        Metric::OutboxAge.record((now - waiting_since).as_seconds_f64());
        let dead = self.database().coverage(now - PERIOD, now).await?.dead_while_active();
        Metric::DeadMinutes.record(dead.as_seconds_f64() / 60.0);
        let refused_for = self.database().only_refused_for(self.client_id(), now).await?;
        Metric::RefusedOnlyAge.record(refused_for.as_seconds_f64());
        if refused_for >= ONLY_REFUSALS {
            tracing::error!(
                hours = refused_for.num_hours(),
                "Twitch refuses every refresh, and nothing succeeds: no streamer is deactivated for it, and it needs the operator"
            );
        }
        Ok(())
    }

    /// For how long the streamer that has waited longest has been due, over all authorized streamers, page by page.
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
