//! What the functions that refresh tokens share: from the configuration to a service, and from a cycle to its logged
//! report.
//!
//! Knows nothing of Lambda and decides nothing about a streamer.

use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Datelike, TimeDelta, Utc};
use domain::policy::Policy;
use domain::ports::StoreError;
use domain::refresh::{Cycle, RefreshService};
use domain::report::{Report, Stop};
use domain::schedule::Trigger;
use domain::{CancellationToken, Clock, Monotonic};
use tokio::time::Instant;

use crate::SystemClock;
use crate::config::{RefreshConfig, TwitchConfig};
use crate::secrets::Secrets;
use crate::signals::AwsSignals;
use crate::store::{Database, PgStore, Purpose};
use crate::telemetry::RefreshLog;
use crate::telemetry::metrics::Metric;
use crate::twitch::{Bounded, SetUpError, TwitchClient};

/// Connections to Twitch over which something was answered within this long are taken to be alive; older ones may have
/// slept in a frozen sandbox. Shorter than any server or NAT gateway keeps an idle connection.
const WARM: TimeDelta = TimeDelta::seconds(20);

/// A cycle that counts as failed: a human has to mend something first.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no way to talk to Twitch.
    #[error(transparent)]
    SetUp(#[from] SetUpError),
    /// It stopped by a fault of ours.
    #[error("{0}")]
    Stopped(Stop),
}

/// What outlives an event or a request.
pub struct Runner {
    store: PgStore,
    twitch_config: TwitchConfig,
    /// The client of the last event.
    warm: Mutex<Option<Arc<TwitchClient>>>,
    signals: AwsSignals,
    policy: Policy,
    secrets: Secrets,
    /// The time that all hosts agree on.
    clock: Arc<dyn Clock>,
    /// The time that is agreed with others than the database.
    machine: Arc<dyn Clock>,
    stop: CancellationToken,
}

impl Runner {
    /// Connects to the database.
    ///
    /// # Errors
    ///
    /// If that can't be reached, or is not on this program's schema.
    pub async fn open(config: RefreshConfig) -> Result<Self, StoreError> {
        Self::open_until(config, None).await
    }

    /// The same, for what may wait until `give_up_at` for a database that is away.
    ///
    /// # Errors
    ///
    /// As [`Runner::open`].
    pub async fn open_until(
        config: RefreshConfig,
        give_up_at: Option<Monotonic>,
    ) -> Result<Self, StoreError> {
        let machine = Arc::new(SystemClock);
        let database =
            Database::open_until(config.database.clone(), Purpose::Write, give_up_at, machine.clone())
                .await?;
        let clock = Arc::new(database.clock());
        Ok(Self::new(config, database, clock, machine))
    }

    /// The same, on another clock.
    ///
    /// # Errors
    ///
    /// As [`Runner::open`].
    pub async fn open_at(config: RefreshConfig, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let database = Database::open(config.database.clone()).await?;
        Ok(Self::new(config, database, clock.clone(), clock))
    }

    fn new(
        config: RefreshConfig,
        database: Database,
        clock: Arc<dyn Clock>,
        machine: Arc<dyn Clock>,
    ) -> Self {
        let RefreshConfig { database: _, cipher, twitch: twitch_config, policy, signals, secrets } = config;
        let store = PgStore::new(database, cipher, clock.clone());
        let signals = AwsSignals::new(signals, secrets.sdk(), machine.clone());
        Self {
            store,
            twitch_config,
            warm: Mutex::default(),
            signals,
            policy,
            secrets,
            clock,
            machine,
            stop: CancellationToken::default(),
        }
    }

    /// Ends cycles in order when `stop` is given.
    #[must_use]
    pub fn stopped_by(self, stop: CancellationToken) -> Self {
        Self { stop, ..self }
    }

    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Where the streamers are kept.
    #[must_use]
    pub fn database(&self) -> &Database {
        self.store.database()
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// The monotonic clock.
    #[must_use]
    pub fn monotonic(&self) -> Monotonic {
        self.clock.monotonic()
    }

    pub(crate) fn policy(&self) -> Policy {
        self.policy
    }

    pub(crate) fn client_id(&self) -> String {
        self.twitch_config.credentials.current().client_id.clone()
    }

    /// Runs this cycle, logs its report and counts it. Twitch being down is no error: the next trigger goes on.
    ///
    /// # Errors
    ///
    /// If it stopped for what a human has to mend.
    pub async fn run(&self, cycle: &Cycle) -> Result<Report, RunError> {
        self.renew_secrets().await;
        let service = self.service(None)?;
        let report = Box::pin(service.run(cycle, &RefreshLog)).await;
        Metric::CycleDuration.record(report.duration.as_seconds_f64() * 1_000.0);
        match &report.stopped {
            Some(stop) if stop.is_ours() => return Err(RunError::Stopped(stop.clone())),
            _ if cycle.trigger == Trigger::Retry => {}
            _ => Metric::CyclesSucceeded.add(1),
        }
        Ok(report)
    }

    /// For the beginning of an event or a request, see [`Secrets::renew`].
    pub(crate) async fn renew_secrets(&self) {
        self.secrets.renew(&RefreshConfig::SECRETS).await;
    }

    /// A service whose calls to Twitch end by `until`.
    pub(crate) fn service(
        &self,
        until: Option<Instant>,
    ) -> Result<RefreshService<PgStore, Bounded, AwsSignals>, SetUpError> {
        let service = RefreshService::new(
            self.store.clone(),
            Bounded::new(self.twitch()?, until),
            self.signals.clone(),
            self.clock.clone(),
            self.policy,
            self.twitch_config.in_flight(),
        );
        Ok(service.stopped_by(self.stop.clone()))
    }

    /// The client of the last event, if its connections are still warm. An event that asks Twitch nothing warms none.
    fn twitch(&self) -> Result<Arc<TwitchClient>, SetUpError> {
        let now = self.machine.now();
        let mut warm = self.warm.lock().unwrap_or_else(PoisonError::into_inner);
        let client = match warm.take() {
            Some(client) if client.idle_since().is_none_or(|since| (now - since).abs() < WARM) => client,
            _ => Arc::new(TwitchClient::new(self.twitch_config.clone(), self.machine.clone())?),
        };
        *warm = Some(client.clone());
        Ok(client)
    }
}

/// When a function is ended by force, from the milliseconds since 1970 in which Lambda gives it. One in 1970 is none: `cargo
/// lambda watch`, which ends nothing, gives the ten minutes that it would be in.
#[must_use]
pub fn deadline(milliseconds: u64) -> Option<Monotonic> {
    let at = i64::try_from(milliseconds).ok().and_then(DateTime::from_timestamp_millis)?;
    (at.year() > 1970).then(|| SystemClock.monotonic() + (at - SystemClock.now()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_in_1970_is_none() {
        assert_eq!(deadline(600_000), None);
        assert_eq!(deadline(u64::MAX), None);
        let in_a_minute = u64::try_from((SystemClock.now() + TimeDelta::minutes(1)).timestamp_millis());
        let left = deadline(in_a_minute.unwrap()).unwrap() - SystemClock.monotonic();
        assert!(left > TimeDelta::zero() && left <= TimeDelta::minutes(1), "{left}");
    }
}
