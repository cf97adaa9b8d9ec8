//! What the functions that run a cycle share: from the configuration to the logged report.
//!
//! Knows nothing of Lambda and decides nothing about a streamer.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use domain::Clock;
use domain::policy::Policy;
use domain::ports::StoreError;
use domain::refresh::{Cycle, RefreshService};
use domain::report::{Report, Stop};

use crate::SystemClock;
use crate::config::{RefreshConfig, TwitchConfig};
use crate::signals::{Access, AwsSignals};
use crate::store::{Database, PgStore};
use crate::telemetry::{log_outcome, log_report};
use crate::twitch::{SetUpError, TwitchClient};

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

/// What outlives a cycle.
pub struct Runner {
    store: PgStore,
    twitch: TwitchConfig,
    signals: AwsSignals,
    policy: Policy,
    clock: Arc<dyn Clock>,
}

impl Runner {
    /// Connects to the database.
    ///
    /// # Errors
    ///
    /// If that can't be reached, or is not on this program's schema.
    pub async fn open(config: RefreshConfig) -> Result<Self, StoreError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let database = Database::open(config.database).await?;
        let store = PgStore::new(database, config.cipher, clock.clone());
        let signals = AwsSignals::new(config.signals, Access::Found, clock.clone());
        Ok(Self { store, twitch: config.twitch, signals, policy: config.policy, clock })
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

    /// Runs this cycle and logs its report. Twitch being down is no error: the next trigger goes on.
    ///
    /// # Errors
    ///
    /// If it stopped for what a human has to mend.
    pub async fn run(&self, cycle: &Cycle) -> Result<Report, RunError> {
        // A new client for each event: a connection may have slept in a frozen sandbox.
        let twitch = TwitchClient::new(self.twitch.clone(), self.clock.clone())?;
        let service = RefreshService::new(
            self.store.clone(),
            twitch,
            self.signals.clone(),
            self.clock.clone(),
            self.policy,
            self.twitch.in_flight(),
        );
        let report = service.run(cycle, &log_outcome).await;
        log_report(&report);
        match &report.stopped {
            Some(stop) if stop.is_ours() => Err(RunError::Stopped(stop.clone())),
            _ => Ok(report),
        }
    }
}

/// When a function is ended by force, from the milliseconds since 1970 in which Lambda gives it.
#[must_use]
pub fn deadline(milliseconds: u64) -> Option<DateTime<Utc>> {
    i64::try_from(milliseconds).ok().and_then(DateTime::from_timestamp_millis)
}
