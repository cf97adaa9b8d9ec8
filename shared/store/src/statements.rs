//! How a statement runs: on which connection, within which limits, and what an error costs.
//!
//! [`Database`] is sqlx's executor for a single statement, and [`Transaction`] for several. A connection that an error belongs
//! to is closed, and so is one whose statement was given up, which the server still carries out. A single statement is then
//! tried once more, on a connection that is new.
//!
//! Nothing is ever set for a session: behind a pooler that shares server connections, it would reach other clients.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use futures::{FutureExt, TryFutureExt, TryStreamExt};
use sqlx::error::BoxDynError;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Describe, Either, Error, Execute, Executor, PgConnection, Postgres, SqlStr};

use super::errors::Class;
use super::{Database, connections, said};

/// What a statement answers: rows, and how many were affected.
type Step = Either<PgQueryResult, PgRow>;

/// A connection on loan from the pool. Dropped, it is closed, unless [`Lent::well`] gives it back.
struct Lent(Option<PoolConnection<Postgres>>);

impl Lent {
    fn connection(&mut self) -> &mut PgConnection {
        self.0.as_mut().expect("it is there until it is dropped or given back")
    }

    fn well(mut self) -> PoolConnection<Postgres> {
        self.0.take().expect("it is there until it is dropped or given back")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(connection) = &mut self.0 {
            connection.close_on_drop();
        }
    }
}

/// A connection that is kept between statements. The pool asks each that is given back whether it is well, which is a
/// round trip more for each statement.
#[derive(Default)]
pub(super) struct Kept(Mutex<Option<PoolConnection<Postgres>>>);

impl Kept {
    fn slot(&self) -> MutexGuard<'_, Option<PoolConnection<Postgres>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Each keeps its own.
impl Clone for Kept {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Its options hold the password.
        f.write_str("Database(redacted)")
    }
}

/// A statement that can be repeated.
#[derive(Clone)]
struct Repeatable {
    sql: SqlStr,
    arguments: Option<PgArguments>,
    /// Whether the server remembers it under a name.
    named: bool,
}

impl Repeatable {
    fn new<'q>(mut query: impl Execute<'q, Postgres>, named: bool) -> Result<Self, Error> {
        let arguments = query.take_arguments().map_err(Error::Encode)?;
        let named = named && query.persistent();
        Ok(Self { sql: query.sql(), arguments, named })
    }

    async fn run(self, connection: &mut PgConnection) -> Result<Vec<Step>, Error> {
        connection.fetch_many(self).try_collect().await
    }
}

impl Execute<'_, Postgres> for Repeatable {
    fn sql(self) -> SqlStr {
        self.sql
    }

    fn statement(&self) -> Option<&PgStatement> {
        None
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxDynError> {
        Ok(self.arguments.take())
    }

    fn persistent(&self) -> bool {
        self.named
    }
}

impl Database {
    /// The same, for statements that follow one another: the connection is kept between them.
    pub(super) fn keeping(&self) -> Self {
        Self { kept: Some(Kept::default()), ..self.clone() }
    }

    async fn lend(&self) -> Result<Lent, Error> {
        let kept = self.kept.as_ref().and_then(|kept| kept.slot().take());
        let connection = match kept {
            Some(connection) => connection,
            None => self.acquire().await?,
        };
        Ok(Lent(Some(connection)))
    }

    async fn run(&self, statement: Result<Repeatable, Error>) -> Result<Vec<Step>, Error> {
        let statement = statement?;
        let lent = self.lend().await?;
        match self.run_on(lent, statement.clone()).await {
            Err(error) if Class::from(&error) == Class::Connection => {
                tracing::warn!(
                    error = said(&error),
                    "a statement failed with its connection, trying another"
                );
                let another = self.lend().await?;
                self.run_on(another, statement).await
            }
            done => done,
        }
    }

    async fn run_on(&self, mut lent: Lent, statement: Repeatable) -> Result<Vec<Step>, Error> {
        let done = self.carry_out(lent.connection(), statement).await;
        match (&done, &self.kept) {
            (Err(error), _) if Class::from(error) == Class::Connection => self.distrust(),
            (Ok(_), Some(kept)) => *kept.slot() = Some(lent.well()),
            _ => drop(lent.well()),
        }
        done
    }

    async fn carry_out(
        &self,
        connection: &mut PgConnection,
        statement: Repeatable,
    ) -> Result<Vec<Step>, Error> {
        let Some(begin) = self.begins_with(statement.named) else {
            return statement.run(connection).await;
        };
        sqlx::raw_sql(begin).execute(&mut *connection).await?;
        let done = statement.run(connection).await;
        let end = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
        match (sqlx::raw_sql(end).execute(connection).await, done) {
            (Err(error), Ok(_)) => Err(error),
            (_, done) => done,
        }
    }

    /// Several statements that are carried out together, or not at all. Each is tried once.
    pub(super) async fn transaction(&self) -> Result<Transaction<'_>, Error> {
        let lent = self.lend().await?;
        let mut transaction = Transaction { database: self, lent };
        transaction.say(self.known.begin()).await?;
        Ok(transaction)
    }

    /// How the transaction of a single statement begins; `None` if none is needed: the login is as it should be, and whatever
    /// is between the server and us can tell our statements by their names. A pooler of transactions can't: from one message of
    /// a statement to the next it might take another server connection.
    fn begins_with(&self, named: bool) -> Option<&'static str> {
        let begin = self.known.begin();
        Some(begin).filter(|begin| *begin != connections::BEGIN || !named)
    }

    fn costs(&self, error: &Error) {
        if Class::from(error) == Class::Connection {
            self.distrust();
        }
    }
}

/// What became of one row in a transaction.
pub(super) enum OfRow<T> {
    Done(T),
    /// It can't be read or written, and nothing of it was done.
    Failed(Error),
}

/// Several statements in one transaction. Dropped before its end, its connection is closed, and nothing was done.
pub(super) struct Transaction<'a> {
    database: &'a Database,
    lent: Lent,
}

impl Transaction<'_> {
    pub(super) async fn commit(self) -> Result<(), Error> {
        self.end("COMMIT").await
    }

    pub(super) async fn rollback(self) -> Result<(), Error> {
        self.end("ROLLBACK").await
    }

    async fn end(mut self, how: &'static str) -> Result<(), Error> {
        self.say(how).await?;
        drop(self.lent.well());
        Ok(())
    }

    /// What follows is of one row, until [`Transaction::end_row`].
    pub(super) async fn begin_row(&mut self) -> Result<(), Error> {
        self.say("SAVEPOINT of_a_row").await
    }

    /// If it failed for a fault of the row, it is undone and the transaction goes on.
    pub(super) async fn end_row<T>(&mut self, done: Result<T, Error>) -> Result<OfRow<T>, Error> {
        let done = match done {
            Ok(done) => OfRow::Done(done),
            Err(error) if Class::from(&error).is_of_a_row() => {
                self.say("ROLLBACK TO SAVEPOINT of_a_row").await?;
                OfRow::Failed(error)
            }
            Err(error) => return Err(error),
        };
        self.say("RELEASE SAVEPOINT of_a_row").await?;
        Ok(done)
    }

    async fn say(&mut self, statement: &'static str) -> Result<(), Error> {
        let said = sqlx::raw_sql(statement).execute(self.lent.connection()).await;
        said.map(drop).inspect_err(|error| self.database.costs(error))
    }

    async fn run(&mut self, statement: Result<Repeatable, Error>) -> Result<Vec<Step>, Error> {
        let done = statement?.run(self.lent.connection()).await;
        done.inspect_err(|error| self.database.costs(error))
    }
}

impl fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transaction")
    }
}

fn steps<'e>(
    done: impl Future<Output = Result<Vec<Step>, Error>> + Send + 'e,
) -> BoxStream<'e, Result<Step, Error>> {
    done.map_ok(|steps| stream::iter(steps).map(Ok)).try_flatten_stream().boxed()
}

fn first_row(steps: Vec<Step>) -> Option<PgRow> {
    steps.into_iter().find_map(Either::right)
}

/// What no statement of ours asks for.
fn not_prepared<'e, T: Send + 'e>() -> BoxFuture<'e, Result<T, Error>> {
    async { Err(Error::InvalidArgument("statements are prepared where they run".to_owned())) }.boxed()
}

/// The two executors differ in where a statement runs.
macro_rules! executor {
    ($type:ty, $executor:ident => $database:expr) => {
        impl<'c> Executor<'c> for $type {
            type Database = Postgres;

            fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Step, Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, Postgres>,
            {
                let $executor = self;
                let statement = Repeatable::new(query, $database.names_statements());
                steps($executor.run(statement))
            }

            fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, Postgres>,
            {
                let $executor = self;
                let statement = Repeatable::new(query, $database.names_statements());
                $executor.run(statement).map_ok(first_row).boxed()
            }

            fn prepare_with<'e>(
                self,
                _: SqlStr,
                _: &'e [PgTypeInfo],
            ) -> BoxFuture<'e, Result<PgStatement, Error>>
            where
                'c: 'e,
            {
                not_prepared()
            }

            fn describe<'e>(self, _: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
            where
                'c: 'e,
            {
                not_prepared()
            }
        }
    };
}

executor!(&'c Database, database => database);
executor!(&'c mut Transaction<'_>, transaction => transaction.database);
