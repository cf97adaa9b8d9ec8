//! The databases that this process creates on a server and drops again.
//!
//! A server that is not ours is shared with others, and a process can be killed before it has dropped its databases.
//! So their names begin with an owner, unique to the process that made them, and that process keeps one session open
//! under the owner's name. Databases whose owner has no session are leftovers; the next process drops them. (A
//! process id alone would not do: several machines may share the server.)

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc as blocking;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _};
use tokio::runtime;
use tokio::sync::{mpsc, oneshot};
use url::Url;

use super::server::Server;

/// The names that [`Cluster::create`] gives, in the server's regular expressions.
const NAMES: &str = "^token_refresh_local_[0-9]+_[0-9a-f]{16}_[0-9]+$";

/// How long dropping a [`Database`] may block. It takes some 10 ms; without an answer the next process drops it.
const DROP_TIMEOUT: Duration = Duration::from_secs(20);

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
        let url = server.url("postgres").parse().context("the URL of our own server is not valid")?;
        Self::connect(url, Some(server)).await.context("our own PostgreSQL started and refuses connections")
    }

    pub(super) async fn at(url: &str) -> anyhow::Result<Self> {
        // The URL is not part of any message: it may hold a password.
        let url: Url = url.parse().context("it is not a URL")?;
        ensure!(matches!(url.scheme(), "postgres" | "postgresql"), "it is not a URL of PostgreSQL");
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

/// A database of the caller alone. Dropping this drops it on the server too, and ends its connections.
pub struct Database {
    name: String,
    url: String,
    cluster: Arc<Cluster>,
}

impl Database {
    pub fn url(&self) -> &str {
        &self.url
    }

    pub(super) async fn copy(&self) -> anyhow::Result<Self> {
        self.cluster.create(&self.name).await
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (dropped, is_dropped) = blocking::channel();
        // A caller that has stopped waiting does not need the answer.
        self.cluster.session.send(drop_database(&self.name), move |result| drop(dropped.send(result)));
        // Waits, because a process that ended at once would leave the database behind.
        match is_dropped.recv_timeout(DROP_TIMEOUT) {
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

/// The first column of the rows.
type Answer = Result<Vec<String>, sqlx::Error>;

struct Request {
    sql: String,
    reply: Box<dyn FnOnce(Answer) + Send>,
}

/// One connection for everything that is done to whole databases, one statement after the other. It lives on a thread of
/// its own: callers come from async runtimes that end while it stays, and from `Drop`, which cannot wait for a future.
struct Session(mpsc::UnboundedSender<Request>);

impl Session {
    async fn open(options: PgConnectOptions) -> anyhow::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (requests, received) = mpsc::unbounded_channel();
        let (opened, is_open) = oneshot::channel();
        thread::Builder::new()
            .name("postgres-session".to_owned())
            .spawn(move || runtime.block_on(serve(options, opened, received)))?;
        is_open.await.context("the thread of the connection ended early")??;
        Ok(Self(requests))
    }

    async fn run(&self, sql: String) -> anyhow::Result<Vec<String>> {
        let (sender, answer) = oneshot::channel();
        // A caller that has stopped waiting does not need the answer.
        self.send(sql, move |result| drop(sender.send(result)));
        Ok(answer.await.context("the connection to PostgreSQL has ended")??)
    }

    /// Without waiting; `reply` is called on the session's thread, or dropped if that has ended.
    fn send(&self, sql: String, reply: impl FnOnce(Answer) + Send + 'static) {
        drop(self.0.send(Request { sql, reply: Box::new(reply) }));
    }
}

async fn serve(
    options: PgConnectOptions,
    opened: oneshot::Sender<Result<(), sqlx::Error>>,
    mut requests: mpsc::UnboundedReceiver<Request>,
) {
    let mut connection = match options.disable_statement_logging().connect().await {
        Ok(connection) => connection,
        Err(error) => return drop(opened.send(Err(error))),
    };
    drop(opened.send(Ok(())));
    while let Some(Request { sql, reply }) = requests.recv().await {
        reply(answer(&mut connection, sql).await);
    }
    // The end of the process closes it as well.
    drop(connection.close().await);
}

async fn answer(connection: &mut PgConnection, sql: String) -> Answer {
    let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(connection).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}
