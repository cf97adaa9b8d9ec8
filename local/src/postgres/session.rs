//! One connection for everything that is done to whole databases.
//!
//! It lives on a thread of its own: callers come from async runtimes that end while it stays, and from `Drop`, which
//! cannot wait for a future.

use std::thread;

use anyhow::Context as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _};
use tokio::runtime;
use tokio::sync::{mpsc, oneshot};

/// The first column of the rows.
type Answer = Result<Vec<String>, sqlx::Error>;

struct Request {
    sql: String,
    reply: Box<dyn FnOnce(Answer) + Send>,
}

/// Statements run one after the other, in the order in which they were sent.
pub(super) struct Session {
    requests: mpsc::UnboundedSender<Request>,
}

impl Session {
    pub(super) async fn open(options: PgConnectOptions) -> anyhow::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (requests, received) = mpsc::unbounded_channel();
        let (opened, is_open) = oneshot::channel();
        thread::Builder::new()
            .name("postgres-session".to_owned())
            .spawn(move || runtime.block_on(serve(options, opened, received)))?;
        is_open.await.context("the thread of the connection ended early")??;
        Ok(Self { requests })
    }

    pub(super) async fn run(&self, sql: String) -> anyhow::Result<Vec<String>> {
        let (sender, answer) = oneshot::channel();
        // Who has stopped waiting does not need the answer.
        self.send(sql, move |result| drop(sender.send(result)));
        Ok(answer.await.context("the connection to PostgreSQL has ended")??)
    }

    /// Without waiting; `reply` is called on the session's thread, or never if that has ended.
    pub(super) fn send(&self, sql: String, reply: impl FnOnce(Answer) + Send + 'static) {
        // A request that nobody receives is dropped with its `reply`, and who waits for that learns it.
        drop(self.requests.send(Request { sql, reply: Box::new(reply) }));
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
    // Nobody is left to tell.
    drop(connection.close().await);
}

async fn answer(connection: &mut PgConnection, sql: String) -> Answer {
    let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(connection).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}
