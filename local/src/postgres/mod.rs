//! A private PostgreSQL for one machine: the demo, the tests and the benchmark run on it.
//!
//! [`Postgres`] starts a [`Server`] of its own, which cannot outlive this process, or uses the server that
//! `LOCAL_POSTGRES_URL` names. Either way it only ever touches databases that it created itself, and it never reads
//! `DATABASE_URL`: that could name a database that somebody needs.
//!
//! Nobody decides anything by these errors, a person reads them; that is why they are [`anyhow`]'s.

mod cluster;
mod programs;
mod server;
mod user;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use tokio::sync::OnceCell;

use self::cluster::Cluster;
pub use self::cluster::Database;
pub use self::server::{Server, Settings};
use crate::env;

/// A server on which every caller gets a database of its own.
///
/// It belongs to no async runtime, so tests, each of which has its own, can share one.
pub struct Postgres {
    cluster: Arc<Cluster>,
    /// A failed preparation leaves its cell empty, and the next caller tries again.
    templates: Mutex<HashMap<String, Arc<OnceCell<Database>>>>,
}

impl Postgres {
    /// The server that all tests of this process share, started by whoever asks first.
    pub async fn shared() -> anyhow::Result<&'static Self> {
        static SHARED: OnceCell<Postgres> = OnceCell::const_new();
        SHARED.get_or_try_init(|| Self::start(Settings::default())).await
    }

    /// The server that `LOCAL_POSTGRES_URL` names, otherwise one of our own with these settings.
    pub async fn start(settings: Settings) -> anyhow::Result<Self> {
        match env::var("LOCAL_POSTGRES_URL") {
            Some(url) => Self::at(&url).await.context("LOCAL_POSTGRES_URL cannot be used"),
            None => Self::own(settings).await,
        }
    }

    /// A server of our own, which stops when the last of this value and its databases is dropped.
    pub async fn own(settings: Settings) -> anyhow::Result<Self> {
        let server = Server::start(settings).await?;
        Ok(Self::on(Cluster::own(server).await?))
    }

    /// A server that runs already. The URL's role must be allowed to create databases.
    pub async fn at(url: &str) -> anyhow::Result<Self> {
        Ok(Self::on(Cluster::at(url).await?))
    }

    fn on(cluster: Cluster) -> Self {
        Self { cluster: Arc::new(cluster), templates: Mutex::default() }
    }

    /// Our own server; `None` on one that we did not start.
    pub fn server(&self) -> Option<&Server> {
        self.cluster.server()
    }

    /// A new database with nothing in it.
    pub async fn create_empty(&self) -> anyhow::Result<Database> {
        Cluster::create_empty(&self.cluster).await
    }

    /// A new copy of a database that `prepare` filled: it runs once for each `template` name, however many callers
    /// ask at the same time. It is given the URL and must have closed its connections when it returns, because
    /// PostgreSQL does not copy a database that is in use.
    pub async fn database<E: Into<anyhow::Error>>(
        &self,
        template: &str,
        prepare: impl AsyncFnOnce(&str) -> Result<(), E>,
    ) -> anyhow::Result<Database> {
        let cell = {
            let mut templates = self.templates.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(templates.entry(template.to_owned()).or_default())
        };
        let filled = cell
            .get_or_try_init(async || {
                let database = self.create_empty().await?;
                prepare(database.url()).await.map_err(Into::into)?;
                anyhow::Ok(database)
            })
            .await
            .with_context(|| format!("could not prepare the template database `{template}`"))?;
        filled.copy().await
    }
}
