//! One opened service.

use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use tokens_aws::AwsSignals;
use tokens_domain::policy::Policy;
use tokens_domain::ports::StoreError;
use tokens_domain::refresh::{Cycle, RefreshService};
use tokens_domain::report::{Observer, Report, Stop};
use tokens_domain::schedule::Trigger;
use tokens_domain::{CancellationToken, Clock, Monotonic};
use tokens_store::{Database, Login, PgStore, Purpose};
use tokens_telemetry::RefreshLog;
use tokens_telemetry::metrics::Metric;
use tokens_twitch::{Bounded, SetUpError, TwitchClient, TwitchConfig};
use tokio::time::Instant;

use crate::config::RefreshConfig;
use crate::opened::{OpenError, Opening};
use crate::process::Process;
use crate::signals::ServiceSignals;

/// Connections to Twitch over which something was answered within this long are taken to be alive; older ones may have
/// slept in a frozen sandbox. Shorter than any server or NAT gateway keeps an idle connection.
const WARM: TimeDelta = TimeDelta::seconds(20);

/// A cycle that counts as failed: something needs the operator first.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Nothing could be opened.
    #[error(transparent)]
    Open(OpenError),
    /// It stopped by a fault of ours.
    #[error("{0}")]
    Stopped(Stop),
}

/// What runs cycles: made of settings, and opened again when they have changed.
pub struct Service {
    store: PgStore,
    twitch_config: TwitchConfig,
    /// The client of the last event.
    warm: Mutex<Option<Arc<TwitchClient>>>,
    signals: ServiceSignals,
    policy: Policy,
    health_check_timeout: TimeDelta,
    /// The time that all hosts agree on.
    clock: Arc<dyn Clock>,
    /// The machine's time, for what is agreed with others than the database.
    machine: Arc<dyn Clock>,
    stop: CancellationToken,
}

impl Service {
    /// Connects to the database.
    ///
    /// # Errors
    ///
    /// If the database can't be reached, or is not on this program's schema.
    pub async fn open(
        config: RefreshConfig,
        process: &Process,
        purpose: Purpose,
        opening: Opening,
    ) -> Result<Self, StoreError> {
        let RefreshConfig { database, cipher, twitch, policy, health_check_timeout, signals } = config;
        let machine = process.clock.clone();
        let Opening { give_up_at, other_login } = opening;
        let login = Login::replaced_by(database, other_login);
        let database = Database::open_until(login, purpose, give_up_at, machine.clone()).await?;
        let clock = process.clock_of(&database);
        Ok(Self {
            store: PgStore::new(database, cipher, clock.clone()),
            twitch_config: twitch,
            warm: Mutex::default(),
            signals: ServiceSignals::new(
                AwsSignals::new(signals, process.sdk.clone(), machine.clone()),
                process.scheduler.clone(),
            ),
            policy,
            health_check_timeout,
            clock,
            machine,
            stop: process.stop.clone(),
        })
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

    pub(crate) fn health_check_timeout(&self) -> TimeDelta {
        self.health_check_timeout
    }

    pub(crate) fn client_id(&self) -> &str {
        &self.twitch_config.credentials.client_id
    }

    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Runs this cycle, logs its report and counts it. Twitch being down is no error: the next trigger goes on.
    ///
    /// # Errors
    ///
    /// If it stopped for what needs the operator.
    pub async fn run(&self, cycle: &Cycle) -> Result<Report, RunError> {
        let report = self.run_observed(cycle, &RefreshLog).await.map_err(OpenError::from)?;
        Metric::CycleDuration.record(report.duration.as_seconds_f64() * 1_000.0);
        match &report.stopped {
            Some(stop) if stop.is_ours() => return Err(RunError::Stopped(stop.clone())),
            _ if cycle.trigger == Trigger::Retry => {}
            _ => Metric::CyclesSucceeded.add(1),
        }
        Ok(report)
    }

    /// Runs this cycle, and neither logs nor counts it: the observer does what is to be done.
    ///
    /// # Errors
    ///
    /// If there is no way to talk to Twitch.
    pub async fn run_observed(&self, cycle: &Cycle, observer: &dyn Observer) -> Result<Report, SetUpError> {
        Ok(Box::pin(self.cycles(None)?.run(cycle, observer)).await)
    }

    /// What runs cycles whose calls to Twitch end by `until`.
    ///
    /// # Errors
    ///
    /// If there is no way to talk to Twitch.
    pub fn cycles(
        &self,
        until: Option<Instant>,
    ) -> Result<RefreshService<PgStore, Bounded, ServiceSignals, ServiceSignals>, SetUpError> {
        let store = if until.is_some() { self.store.of_request() } else { self.store.clone() };
        let service = RefreshService::new(
            store,
            Bounded::new(self.twitch()?, until),
            self.signals.clone(),
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
            // What Twitch has asked for still holds.
            Some(cold) => Arc::new(cold.reconnected()?),
            None => Arc::new(TwitchClient::new(self.twitch_config.clone(), self.machine.clone())?),
        };
        *warm = Some(client.clone());
        Ok(client)
    }
}
