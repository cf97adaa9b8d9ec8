//! The schema: migrating it, and refusing to start on another than ours.

use domain::ports::StoreError;
use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Error, PgConnection};

use tokio::time::timeout;

use super::connections::ANSWER_TIMEOUT;
use super::tables::{self, Found, MissingTables};
use super::{Database, failed, said};

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
    let mut connection = options.connect().await.map_err(|error| unreachable(&error, options))?;
    let done = migrate_through(&mut connection, missing).await;
    // Nothing is lost if saying goodbye fails.
    let _ = connection.close().await;
    done
}

async fn migrate_through(connection: &mut PgConnection, missing: MissingTables) -> Result<i64, StoreError> {
    sqlx::raw_sql(SEARCH_PATH).execute(&mut *connection).await.map_err(failed("setting its search path"))?;
    let newest = newest();
    match applied(connection).await {
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
    let mut connection = acquired.map_err(|error| unreachable(&error, &options))?;
    match applied(&mut connection).await {
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
async fn applied(connection: &mut PgConnection) -> Result<Option<i64>, Error> {
    // Not a checked query: on a fresh database the table isn't there, which is what is being asked.
    let exists: bool =
        sqlx::query_scalar("SELECT pg_catalog.to_regclass('token_refresh._sqlx_migrations') IS NOT NULL")
            .fetch_one(&mut *connection)
            .await?;
    if !exists {
        return Ok(None);
    }
    sqlx::query_scalar("SELECT max(version) FROM token_refresh._sqlx_migrations WHERE success")
        .fetch_one(connection)
        .await
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
    match timeout(ANSWER_TIMEOUT, options.connect()).await {
        Ok(Err(error)) => error,
        Ok(Ok(_)) | Err(_) => Error::PoolTimedOut,
    }
}

/// Where, but never with which password.
pub(super) fn unreachable(error: &Error, options: &PgConnectOptions) -> StoreError {
    let (place, user) = (place(options), options.get_username());
    let what = match error {
        Error::Io(_) | Error::PoolTimedOut => "can't be reached".to_owned(),
        _ => format!("does not let us in as {user}"),
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
