//! Delivers the outbox to push services.

use std::sync::Arc;

use tokens_domain::notify::{NotifyReport, NotifyService, Observer};
use tokens_domain::ports::StoreError;
use tokens_domain::{Clock, Monotonic};
use tokens_push::{Loopback, Vapid, WebPush};
use tokens_store::{Database, Login, PgOutbox, Purpose};

use crate::config::{NotifyConfig, Secret, Source};
use crate::opened::{Open, OpenError, Opening};
use crate::process::Process;

/// Delivers what is due in the outbox.
pub struct Notifier {
    service: NotifyService<PgOutbox, WebPush>,
    clock: Arc<dyn Clock>,
}

impl Notifier {
    /// Prepares it. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// If our VAPID key or subject is wrong.
    pub fn new(config: NotifyConfig, database: Database, process: &Process) -> Result<Self, OpenError> {
        let NotifyConfig { database: _, vapid, presentation } = config;
        let loopback = if vapid.loopback { Loopback::Allowed } else { Loopback::Refused };
        let keys = Vapid::new(&vapid.public_key, vapid.private_key.expose(), &vapid.subject)?;
        let push = WebPush::new(keys, loopback, process.clock.clone())?;
        let clock = process.clock_of(&database);
        let outbox = PgOutbox::new(database, clock.clone());
        let service = NotifyService::new(outbox, push, clock.clone(), presentation);
        Ok(Self { service: service.stopped_by(process.stop.clone()), clock })
    }

    /// The monotonic clock.
    #[must_use]
    pub fn monotonic(&self) -> Monotonic {
        self.clock.monotonic()
    }

    /// Delivers what is due, until near the deadline.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn run(
        &self,
        deadline: Option<Monotonic>,
        observer: Observer<'_>,
    ) -> Result<NotifyReport, StoreError> {
        self.service.run(deadline, observer).await
    }
}

impl Open for Notifier {
    const SECRETS: &'static [Secret] = &[Secret::Database, Secret::Vapid];

    async fn open(source: &Source, process: &Process, opening: Opening) -> Result<Self, OpenError> {
        let config = NotifyConfig::read(source)?;
        let login = Login::replaced_by(config.database.clone(), opening.other_login);
        let clock = process.clock.clone();
        let database = Database::open_until(login, Purpose::Write, opening.give_up_at, clock).await?;
        Self::new(config, database, process)
    }
}
