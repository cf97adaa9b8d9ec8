//! The schema: migrating it, and which versions of it this program works on.

use std::fmt::{self, Display, Formatter};

use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Error, PgConnection, PgExecutor, Row};
use tokens_domain::ports::{StoreError, StoreErrorKind};

use super::errors::store_error;
use super::tables::{self, Found, MissingTables};
use super::{Class, Database, failed, network, restore, said};

static MIGRATIONS: Migrator = sqlx::migrate!("../../migrations");

/// The first migrations name no schema. PostgreSQL's own comes before it, as it always does unless a path names it.
const SEARCH_PATH: &str = "SET search_path = public";

/// The version of a schema that this program works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchemaVersion {
    /// The newest migration that the database has.
    pub database: i64,
    /// The newest migration that this program has.
    pub program: i64,
}

impl SchemaVersion {
    /// Whether a newer program has migrated the database, as before each deployment and after a rollback.
    #[must_use]
    pub fn is_newer(self) -> bool {
        self.database > self.program
    }
}

impl Display for SchemaVersion {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { database, program } = self;
        if self.is_newer() {
            return write!(f, "{database}, newer than this program's {program}, which works on it as well");
        }
        write!(f, "{database}")
    }
}

/// Brings the database to this program's schema, and looks at what is there before and after. Safe to run twice, and by two
/// at once. A newer schema on which this program works is left as it is.
///
/// # Errors
///
/// If the database can't be reached, if its tables are not the application's, if the role may not create what is needed, or
/// if the schema is newer and needs a newer program.
pub async fn migrate(
    options: &PgConnectOptions,
    missing: MissingTables,
) -> Result<SchemaVersion, StoreError> {
    let mut connection = connect(options).await.map_err(|error| unreachable(&error, options))?;
    let done = migrate_through(&mut connection, missing).await;
    // Nothing is lost if saying goodbye fails.
    let _ = connection.close().await;
    done
}

async fn migrate_through(
    connection: &mut PgConnection,
    missing: MissingTables,
) -> Result<SchemaVersion, StoreError> {
    sqlx::raw_sql(SEARCH_PATH).execute(&mut *connection).await.map_err(failed("setting its search path"))?;
    let program = newest();
    let before = applied(&mut *connection).await.map_err(|error| unreadable(&error))?;
    if let Some(database) = before.filter(|database| *database > program) {
        let version = SchemaVersion { database, program };
        accept(&mut *connection, version).await?;
        return after(connection, version).await;
    }
    let faults = look(connection).await?.before(missing);
    if !faults.is_empty() {
        return Err(permanent(format!("nothing was migrated: {}", faults.join("; "))));
    }
    MIGRATIONS
        .run(&mut *connection)
        .await
        .map_err(|error| permanent(format!("the migration failed, and what it began was undone: {error}")))?;
    restore_all(connection).await.map_err(failed("restoring what is ours on the application's tables"))?;
    after(connection, SchemaVersion { database: program, program }).await
}

/// What dropped a table of the application's took along. All of it or nothing, and by one at a time.
async fn restore_all(connection: &mut PgConnection) -> Result<(), Error> {
    let mut transaction = connection.begin().await?;
    // Another that restores is waited for; a long reader of the application's tables is not, for all others would wait behind.
    sqlx::raw_sql(
        "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('token_refresh restore')); SET LOCAL lock_timeout = '5s'",
    )
    .execute(&mut *transaction)
    .await?;
    let mut statements = tables::look(&mut *transaction).await?.statements();
    statements.extend(restore::look(&mut *transaction).await?.statements());
    for statement in statements {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *transaction).await?;
    }
    transaction.commit().await
}

async fn after(connection: &mut PgConnection, version: SchemaVersion) -> Result<SchemaVersion, StoreError> {
    let faults = look(connection).await?.after();
    if !faults.is_empty() {
        return Err(permanent(format!("the database is at version {version}, but {}", faults.join("; "))));
    }
    Ok(version)
}

async fn look(connection: &mut PgConnection) -> Result<Found, StoreError> {
    tables::look(connection).await.map_err(failed("looking at the application's tables"))
}

/// Says what is wrong if this program does not work on the database's schema; otherwise answers its version.
pub(super) async fn check(database: &Database) -> Result<SchemaVersion, StoreError> {
    let options = &database.login.options();
    drop(database.acquire().await.map_err(|error| unreachable(&error, options))?);
    let version = SchemaVersion {
        database: applied(database).await.map_err(|error| unreadable(&error))?.unwrap_or(0),
        program: newest(),
    };
    let SchemaVersion { database: found, program } = version;
    if found < program {
        return Err(permanent(format!(
            "the database's schema is at version {found} and this program needs {program}: run `tokens migrate`"
        )));
    }
    if version.is_newer() {
        accept(database, version).await?;
    }
    Ok(version)
}

/// A newer schema is accepted unless the database names a minimum above this program's version.
async fn accept(database: impl PgExecutor<'_>, version: SchemaVersion) -> Result<(), StoreError> {
    let SchemaVersion { database: found, program } = version;
    match minimum(database).await.map_err(|error| unreadable(&error))? {
        Some(minimum) if minimum > program => Err(permanent(format!(
            "the database's schema is at version {found}, which needs programs of version {minimum} or newer, and this one is of \
             version {program}: deploy the program that migrated it"
        ))),
        Some(_) => Ok(()),
        None => Err(permanent(format!(
            "the database's schema is at version {found}, which does not follow this program's {program}: it names no minimum \
             (token_refresh.minimum_version()). Deploy the program that migrated it"
        ))),
    }
}

fn unreadable(error: &Error) -> StoreError {
    store_error(error, format!("the schema's version can't be read: {}", said(error)))
}

fn permanent(text: String) -> StoreError {
    StoreError::new(StoreErrorKind::Permanent, text)
}

fn newest() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// The newest migration that was applied; `None` if none ever was.
async fn applied(database: impl PgExecutor<'_>) -> Result<Option<i64>, Error> {
    // `undefined_table`, `invalid_schema_name`
    let newest = "SELECT pg_catalog.max(version) FROM token_refresh._sqlx_migrations WHERE success";
    number(database, newest, &["42P01", "3F000"]).await
}

/// The minimum that the database names for a program's version.
async fn minimum(database: impl PgExecutor<'_>) -> Result<Option<i64>, Error> {
    // `undefined_function`
    number(database, "SELECT token_refresh.minimum_version()", &["42883"]).await
}

/// Not a checked query: what it reads may be missing, which one of these errors says.
async fn number(
    database: impl PgExecutor<'_>,
    query: &'static str,
    missing: &[&str],
) -> Result<Option<i64>, Error> {
    match sqlx::raw_sql(query).fetch_one(database).await {
        Ok(row) => row.try_get(0),
        Err(Error::Database(error)) if error.code().is_some_and(|code| missing.contains(&code.as_ref())) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

pub(super) async fn connect(options: &PgConnectOptions) -> Result<PgConnection, Error> {
    network::checked(options).await?.connect().await
}

/// Where, but never with which password.
pub(super) fn unreachable(error: &Error, options: &PgConnectOptions) -> StoreError {
    let (place, user) = (place(options), options.get_username());
    let what = match error {
        Error::Database(_) if Class::from(error).is_permanent() => {
            format!("does not accept the login {user}")
        }
        _ => "can't be reached".to_owned(),
    };
    let text = format!(
        "the database {} at {place} {what}: {}; check DATABASE_URL, or the secret that DATABASE_SECRET_ID names",
        options.get_database().unwrap_or("(default)"),
        said(error)
    );
    store_error(error, text)
}

pub(super) fn place(options: &PgConnectOptions) -> String {
    match options.get_socket() {
        Some(socket) => format!("the socket directory {}", socket.display()),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    }
}
