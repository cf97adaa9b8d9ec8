//! How a statement runs: on which connection, within which limits, and what an error costs.
//!
//! [`Database`] is sqlx's executor for a single statement, and [`Transaction`] for several. A connection that an error belongs
//! to is closed, and so is one whose statement was given up, which the server still carries out. A single statement is then
//! tried once more, on a connection that is new.
//!
//! Nothing is ever set for a session: behind a pooler that shares server connections, it would reach other clients.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use futures::{FutureExt, TryFutureExt, TryStreamExt};
use sqlx::error::BoxDynError;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Describe, Either, Error, Execute, Executor, PgConnection, Postgres, SqlStr};

use super::errors::Class;
use super::{Database, connections, said, unless_of_a_row};

/// What a statement answers: rows, and how many were affected.
type Step = Either<PgQueryResult, PgRow>;

/// A connection on loan from the pool. Dropped, it is closed, unless [`Lent::well`] gives it back.
struct Lent(Option<PoolConnection<Postgres>>);

impl Lent {
    async fn of(database: &Database, kept: Option<&Kept>) -> Result<Self, Error> {
        let connection = match kept.and_then(Kept::take) {
            Some(connection) => connection,
            None => database.acquire().await?,
        };
        Ok(Self(Some(connection)))
    }

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
    /// Where to run a statement on it.
    pub(super) fn of<'a>(&'a self, database: &'a Database) -> On<'a> {
        On { database, kept: Some(self) }
    }

    fn take(&self) -> Option<PoolConnection<Postgres>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn keep(&self, connection: PoolConnection<Postgres>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
    }
}

impl Clone for Kept {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// Where a single statement runs.
#[derive(Clone, Copy)]
pub(super) struct On<'a> {
    database: &'a Database,
    kept: Option<&'a Kept>,
}

impl fmt::Debug for On<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("On(the database)")
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

impl On<'_> {
    async fn run(self, statement: Result<Repeatable, Error>) -> Result<Vec<Step>, Error> {
        let statement = statement?;
        match self.once(statement.clone()).await? {
            Err(error) if Class::from(&error) == Class::Connection => {
                tracing::warn!(
                    error = said(&error),
                    "a statement failed with its connection, trying another"
                );
                self.once(statement).await?
            }
            done => done,
        }
    }

    /// The outer error: there is no connection.
    async fn once(self, statement: Repeatable) -> Result<Result<Vec<Step>, Error>, Error> {
        let mut lent = Lent::of(self.database, self.kept).await?;
        let done = self.carry_out(lent.connection(), statement).await;
        match (&done, self.kept) {
            (Err(error), _) if Class::from(error) == Class::Connection => self.database.distrust(),
            (Ok(_), Some(kept)) => kept.keep(lent.well()),
            _ => drop(lent.well()),
        }
        Ok(done)
    }

    async fn carry_out(
        self,
        connection: &mut PgConnection,
        statement: Repeatable,
    ) -> Result<Vec<Step>, Error> {
        let Some(begin) = self.database.begins_with(statement.named) else {
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
}

impl Database {
    /// Several statements that are carried out together, or not at all. Each is tried once.
    pub(super) async fn transaction(&self) -> Result<Transaction<'_>, Error> {
        let mut lent = Lent::of(self, None).await?;
        sqlx::raw_sql(self.known.begin())
            .execute(lent.connection())
            .await
            .inspect_err(|error| self.costs(error))?;
        Ok(Transaction { database: self, lent })
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

/// Several statements in one transaction. Dropped before its end, its connection is closed, and nothing was done.
pub(super) struct Transaction<'a> {
    database: &'a Database,
    lent: Lent,
}

impl Transaction<'_> {
    pub(super) async fn commit(mut self) -> Result<(), Error> {
        let committed = sqlx::raw_sql("COMMIT").execute(self.lent.connection()).await;
        committed.inspect_err(|error| self.database.costs(error))?;
        drop(self.lent.well());
        Ok(())
    }

    /// What follows is of one row, until [`Transaction::end_row`].
    pub(super) async fn begin_row(&mut self) -> Result<(), Error> {
        self.say("SAVEPOINT of_a_row").await
    }

    /// If it failed for a fault of the row, which is in the inner error, nothing of it was done, and the transaction goes on.
    pub(super) async fn end_row<T>(&mut self, done: Result<T, Error>) -> Result<Result<T, Error>, Error> {
        let done = unless_of_a_row(done)?;
        if done.is_err() {
            self.say("ROLLBACK TO SAVEPOINT of_a_row").await?;
        }
        self.say("RELEASE SAVEPOINT of_a_row").await?;
        Ok(done)
    }

    async fn say(&mut self, statement: &'static str) -> Result<(), Error> {
        let said = sqlx::raw_sql(statement).execute(self.lent.connection()).await;
        said.map(drop).inspect_err(|error| self.database.costs(error))
    }

    pub(super) async fn rollback(mut self) -> Result<(), Error> {
        let undone = sqlx::raw_sql("ROLLBACK").execute(self.lent.connection()).await;
        undone.inspect_err(|error| self.database.costs(error))?;
        drop(self.lent.well());
        Ok(())
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

/// The three executors differ in where a statement runs, and in how they say whether it has a name.
macro_rules! executor {
    ($type:ty, $executor:ident => $named:expr, $run:expr) => {
        impl<'c> Executor<'c> for $type {
            type Database = Postgres;

            fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Step, Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, Postgres>,
            {
                let $executor = self;
                let statement = Repeatable::new(query, $named);
                steps($run.run(statement))
            }

            fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, Postgres>,
            {
                let $executor = self;
                let statement = Repeatable::new(query, $named);
                $run.run(statement).map_ok(first_row).boxed()
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

executor!(&'c Database, database => database.names_statements(), On { database, kept: None });
executor!(On<'c>, on => on.database.names_statements(), on);
executor!(&'c mut Transaction<'_>, transaction => transaction.database.names_statements(), transaction);
