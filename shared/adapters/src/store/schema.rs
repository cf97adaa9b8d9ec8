//! The schema: migrating it, and refusing to start on another than ours.

use domain::ports::StoreError;
use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Error, PgConnection, PgExecutor, Row};

use tokio::time::timeout;

use super::connections::ANSWER_TIMEOUT;
use super::tables::{self, Found, MissingTables};
use super::{Class, Database, failed, network, said};

static MIGRATIONS: Migrator = sqlx::migrate!("../../migrations");

/// The first migrations name no schema. PostgreSQL's own comes before it, as it always does unless a path names it.
const SEARCH_PATH: &str = "SET search_path = public";

/// Brings the database to this program's schema, and looks at what is there before and after. Safe to run twice, and by two
/// at once. Answers the version.
///
/// # Errors
///
/// If the database can't be reached, if its tables are not the application's, if the role may not create what is needed, or
/// if the schema is newer than this program.
pub async fn migrate(options: &PgConnectOptions, missing: MissingTables) -> Result<i64, StoreError> {
    let mut connection = connect(options).await.map_err(|error| unreachable(&error, options))?;
    let done = migrate_through(&mut connection, missing).await;
    // Nothing is lost if saying goodbye fails.
    let _ = connection.close().await;
    done
}

async fn migrate_through(connection: &mut PgConnection, missing: MissingTables) -> Result<i64, StoreError> {
    sqlx::raw_sql(SEARCH_PATH).execute(&mut *connection).await.map_err(failed("setting its search path"))?;
    let newest = newest();
    match applied(&mut *connection).await {
        Ok(Some(found)) if found > newest => return Err(newer(found)),
        Ok(_) => {}
        Err(error) => {
            return Err(StoreError(format!("the schema's version can't be read: {}", said(&error))));
        }
    }
    let faults = look(connection).await?.before(missing);
    if !faults.is_empty() {
        return Err(StoreError(format!("nothing was migrated: {}", faults.join("; "))));
    }
    MIGRATIONS.run(&mut *connection).await.map_err(|error| {
        StoreError(format!("the migration failed, and what it began was undone: {error}"))
    })?;
    let faults = look(connection).await?.after();
    if !faults.is_empty() {
        return Err(StoreError(format!("migrated, but {}", faults.join("; "))));
    }
    Ok(newest)
}

async fn look(connection: &mut PgConnection) -> Result<Found, StoreError> {
    tables::look(connection).await.map_err(failed("looking at the application's tables"))
}

/// Says what is wrong if the database isn't on this program's schema; otherwise answers its version.
pub(super) async fn check(database: &Database) -> Result<i64, StoreError> {
    let options = database.options.current();
    let acquired = match database.acquire().await {
        Err(Error::PoolTimedOut) => Err(why_not(&options).await),
        acquired => acquired,
    };
    drop(acquired.map_err(|error| unreachable(&error, &options))?);
    match applied(database).await {
        Ok(Some(found)) if found == newest() => Ok(found),
        Ok(Some(found)) if found > newest() => Err(newer(found)),
        Ok(found) => Err(StoreError(format!(
            "the database's schema is at version {} and this program needs {}: run `tokens migrate`",
            found.unwrap_or(0),
            newest()
        ))),
        Err(error) => Err(StoreError(format!("the schema's version can't be read: {}", said(&error)))),
    }
}

fn newest() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// The newest migration that was applied; `None` if none ever was.
async fn applied(database: impl PgExecutor<'_>) -> Result<Option<i64>, Error> {
    // Not a checked query: on a fresh database the table isn't there, which is what is being asked.
    let newest =
        sqlx::raw_sql("SELECT pg_catalog.max(version) FROM token_refresh._sqlx_migrations WHERE success");
    match newest.fetch_one(database).await {
        Ok(row) => row.try_get(0),
        // `undefined_table`, `invalid_schema_name`
        Err(Error::Database(error)) if matches!(error.code().as_deref(), Some("42P01" | "3F000")) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection, Error> {
    network::checked(options).await?.connect().await
}

fn newer(found: i64) -> StoreError {
    StoreError(format!(
        "the database's schema is at version {found}, newer than this program's {}: deploy the program that \
         migrated it",
        newest()
    ))
}

/// Why the pool found no connection, which it doesn't say: it tried again until the end of its time.
async fn why_not(options: &PgConnectOptions) -> Error {
    match timeout(ANSWER_TIMEOUT, connect(options)).await {
        Ok(Err(error)) => error,
        Ok(Ok(_)) | Err(_) => Error::PoolTimedOut,
    }
}

/// Where, but never with which password.
pub(super) fn unreachable(error: &Error, options: &PgConnectOptions) -> StoreError {
    let (place, user) = (place(options), options.get_username());
    let what = match error {
        Error::Database(_) if Class::from(error) == Class::Permanent => {
            format!("does not accept the login {user}")
        }
        _ => "can't be reached".to_owned(),
    };
    StoreError(format!(
        "the database {} at {place} {what}: {}; check DATABASE_URL, or the secret that DATABASE_SECRET_ID names",
        options.get_database().unwrap_or("(default)"),
        said(error)
    ))
}

pub(super) fn place(options: &PgConnectOptions) -> String {
    match options.get_socket() {
        Some(socket) => format!("the socket directory {}", socket.display()),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    }
}
