//! The databases that we create on a server, and how they go again.
//!
//! A server that is not ours is shared with others, and a process can be killed before it has dropped its databases.
//! So their names begin with an owner, unique to the process that made them, and that process keeps one session open
//! under the owner's name. Databases whose owner has no session are leftovers; the next process drops them. (A
//! process id alone would not do: the server may be shared by several machines.)

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use sqlx::ConnectOptions as _;
use sqlx::postgres::PgConnectOptions;
use url::Url;

use super::server::Server;
use super::session::Session;

/// The names that [`Cluster::create`] gives, in the server's regular expressions.
const NAMES: &str = "^token_refresh_local_[0-9]+_[0-9a-f]{16}_[0-9]+$";

/// How long a drop may hold up who dropped it. It takes some 10 ms; without an answer the next process does it.
const DROP_DEADLINE: Duration = Duration::from_secs(20);

pub(super) struct Cluster {
    session: Session,
    /// The URL of any of its databases.
    url: Url,
    owner: String,
    created: AtomicU32,
    /// Declared last, because it is to stop after the session.
    server: Option<Server>,
}

impl Cluster {
    pub(super) async fn own(server: Server) -> anyhow::Result<Self> {
        let url = server.url("postgres").parse().context("the URL of our own server is none")?;
        Self::connect(url, Some(server)).await.context("our own PostgreSQL started and refuses connections")
    }

    pub(super) async fn at(url: &str) -> anyhow::Result<Self> {
        // The URL is not part of any message: it may hold a password.
        let url: Url = url.parse().context("it is no URL")?;
        ensure!(matches!(url.scheme(), "postgres" | "postgresql"), "it is no URL of PostgreSQL");
        ensure!(
            !url.query_pairs().any(|(key, _)| key == "dbname"),
            "its parameter `dbname` would hide the names of our own databases: write the name as the URL's path"
        );
        let cluster = Self::connect(url, None)
            .await
            .context("no connection to its server: does it run, and are role and password right?")?;
        cluster.drop_leftovers().await?;
        Ok(cluster)
    }

    async fn connect(url: Url, server: Option<Server>) -> anyhow::Result<Self> {
        let owner = format!("token_refresh_local_{}_{:016x}", process::id(), getrandom::u64()?);
        let options = PgConnectOptions::from_url(&url)?.application_name(&owner);
        let session = Session::open(options).await?;
        Ok(Self { session, url, owner, created: AtomicU32::new(0), server })
    }

    pub(super) fn server(&self) -> Option<&Server> {
        self.server.as_ref()
    }

    async fn drop_leftovers(&self) -> anyhow::Result<()> {
        let leftovers = format!(
            "SELECT d.datname::text FROM pg_database d WHERE d.datname ~ '{NAMES}' AND NOT EXISTS \
             (SELECT FROM pg_stat_activity s WHERE starts_with(d.datname, s.application_name || '_'))"
        );
        for name in self.session.run(leftovers).await.context("our leftover databases cannot be listed")? {
            // Another process may be at it too, or it may belong to another role: then it is theirs to drop.
            if let Err(error) = self.session.run(drop_database(&name)).await {
                tracing::warn!(database = name, "a leftover database was not dropped: {error:#}");
            }
        }
        Ok(())
    }

    /// A database that is empty, with the same encoding and order on every server.
    pub(super) async fn create_empty(self: &Arc<Self>) -> anyhow::Result<Database> {
        self.create("template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'").await
    }

    async fn create(self: &Arc<Self>, template: &str) -> anyhow::Result<Database> {
        let name = format!("{}_{}", self.owner, self.created.fetch_add(1, Ordering::Relaxed));
        let mut url = self.url.clone();
        url.set_path(&name);
        // Before it exists: a caller that stops waiting for it drops it all the same.
        let database = Database { name, url: url.into(), cluster: Arc::clone(self) };
        let create = format!("CREATE DATABASE {} TEMPLATE {template}", database.name);
        self.session
            .run(create)
            .await
            .with_context(|| format!("could not create database {}", database.name))?;
        Ok(database)
    }
}

/// A database that nobody else uses. Dropping it drops it on the server too, whoever is still connected.
pub struct Database {
    name: String,
    url: String,
    cluster: Arc<Cluster>,
}

impl Database {
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    pub(super) async fn copy(&self) -> anyhow::Result<Self> {
        self.cluster.create(&self.name).await
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (dropped, is_dropped) = mpsc::channel();
        // Who has stopped waiting does not need the answer.
        self.cluster.session.send(drop_database(&self.name), move |result| drop(dropped.send(result)));
        // Waits, because a process that ended at once would leave the database behind.
        match is_dropped.recv_timeout(DROP_DEADLINE) {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(database = self.name, "the database was not dropped: {error}"),
            Err(_) => tracing::warn!(
                database = self.name,
                "the database was not dropped: the server does not answer"
            ),
        }
    }
}

/// Names are made by us, of characters that need no quotes.
fn drop_database(name: &str) -> String {
    format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")
}
