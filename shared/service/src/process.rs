//! What belongs to the process rather than to its settings.

use std::sync::Arc;

use tokens_aws::Sdk;
use tokens_domain::{CancellationToken, Clock, SystemClock};
use tokens_store::Database;

use crate::scheduler::Scheduler;

/// What belongs to the process rather than to its settings.
#[derive(Clone)]
pub struct Process {
    /// Asks AWS.
    pub sdk: Sdk,
    /// The machine's clock.
    pub clock: Arc<dyn Clock>,
    /// Whether the machine's clock is corrected by the database's.
    follows_database: bool,
    /// Ends cycles in order when it is cancelled.
    pub stop: CancellationToken,
    /// Arms retries in this process, rather than at AWS.
    pub(crate) scheduler: Option<Scheduler>,
}

impl Default for Process {
    fn default() -> Self {
        let (sdk, stop) = (Sdk::default(), CancellationToken::default());
        Self { sdk, clock: Arc::new(SystemClock), follows_database: true, stop, scheduler: None }
    }
}

impl Process {
    /// One that ends cycles in order when `stop` is cancelled.
    #[must_use]
    pub fn stopped_by(stop: CancellationToken) -> Self {
        Self { stop, ..Self::default() }
    }

    /// One on a clock that is turned, and that the database's does not correct.
    #[must_use]
    pub fn on(clock: Arc<dyn Clock>) -> Self {
        Self { clock, follows_database: false, ..Self::default() }
    }

    /// The same, which asks AWS in this way.
    #[must_use]
    pub fn with_sdk(self, sdk: impl Into<Sdk>) -> Self {
        Self { sdk: sdk.into(), ..self }
    }

    /// The same, whose retries this scheduler fires.
    #[must_use]
    pub fn with_scheduler(self, scheduler: Scheduler) -> Self {
        Self { scheduler: Some(scheduler), ..self }
    }

    /// The time that all hosts of this database agree on.
    pub(crate) fn clock_of(&self, database: &Database) -> Arc<dyn Clock> {
        if self.follows_database { Arc::new(database.clock()) } else { self.clock.clone() }
    }
}
