//! The pool's connections: what each is told when it is new, and which are not used any more.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::DateTime;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{Error, PgConnection, Row};
use tokio::time::timeout;

use crate::DatabaseClock;

/// How long a connection may take before the database counts as away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that was used within this long is taken to be alive; an older one may have slept in a frozen sandbox.
const UNTESTED_IDLE: Duration = Duration::from_secs(1);

/// A connection that is well answers at once. Short, so that there is time for another one.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// One connection to read and lease with, two to write with, and one for what is rare.
const CONNECTIONS: u32 = 4;

/// What a new connection is told, unless its login has both limits already: RDS Proxy shares no connection on which something
/// was set, and takes no options with which a connection begins. Nothing of ours waits for a lock for longer: less than any
/// time limit of our own, so that the server ends the statement, which would go on there if we only stopped waiting for it.
/// And a transaction whose function was ended in the middle of it keeps no locks until the server notices that nobody is
/// there, which takes hours.
const LIMITS: &str = "SET lock_timeout = '2s'; SET idle_in_transaction_session_timeout = '5s'";

/// Whether a failover has made a standby of the server, which goes on answering, to a connection from before; whether a
/// limit is missing; and whether the login's search path names PostgreSQL's own schema behind others. Its own names don't
/// depend on that path. Last, the server's time, in microseconds since 1970.
const CONDITION: &str = r#"SELECT
    pg_catalog.current_setting('transaction_read_only') OPERATOR(pg_catalog.=) 'on',
    pg_catalog.current_setting('lock_timeout') OPERATOR(pg_catalog.=) '0'
        OR pg_catalog.current_setting('idle_in_transaction_session_timeout') OPERATOR(pg_catalog.=) '0',
    pg_catalog.current_setting('search_path') OPERATOR(pg_catalog.~) ',[ ]*"?pg_catalog',
    (extract(epoch FROM pg_catalog.clock_timestamp()) OPERATOR(pg_catalog.*) 1000000)::bigint"#;

/// Functions, operators and types are PostgreSQL's own, whatever else the path has of the same name: its schema comes first
/// unless a path names it elsewhere. What else is on the path stays there, for whoever shares the connection behind a pooler.
const OWN_NAMES_FIRST: &str = "SELECT pg_catalog.set_config('search_path', \
    pg_catalog.concat('pg_catalog, ', pg_catalog.current_setting('search_path')), false)";

struct Condition {
    read_only: bool,
    unlimited: bool,
    shadowed: bool,
}

/// A pool that connects when it has to. `read_only` says of its newest connection whether it takes no writes. Each answer of
/// the server corrects the clock.
pub(super) fn pool(options: PgConnectOptions, read_only: Arc<AtomicBool>, clock: &DatabaseClock) -> PgPool {
    let [new, idle, released] = [(); 3].map(|()| clock.clone());
    PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(CONNECT_TIMEOUT)
        .test_before_acquire(false)
        .after_connect(move |connection, _| {
            let (read_only, clock) = (read_only.clone(), new.clone());
            Box::pin(async move {
                let found = condition(connection, &clock).await?;
                read_only.store(found.read_only, Ordering::Relaxed);
                if found.read_only {
                    return Err(standby());
                }
                if found.unlimited {
                    sqlx::raw_sql(LIMITS).execute(&mut *connection).await?;
                }
                if found.shadowed {
                    sqlx::raw_sql(OWN_NAMES_FIRST).execute(connection).await?;
                }
                Ok(())
            })
        })
        .before_acquire(move |connection, use_| {
            let clock = idle.clone();
            Box::pin(async move { Ok(use_.idle_for < UNTESTED_IDLE || is_well(connection, &clock).await) })
        })
        // A statement that was given up is still being carried out: whoever had the connection next would wait for it.
        .after_release(move |connection, _| {
            let clock = released.clone();
            Box::pin(async move { Ok(is_well(connection, &clock).await) })
        })
        .connect_lazy_with(options)
}

/// Why there is no connection, if all that can be had take no writes.
pub(super) fn standby() -> Error {
    Error::Io(io::Error::other(
        "the server takes no writes: it is a standby, or was the writer before a failover",
    ))
}

async fn is_well(connection: &mut PgConnection, clock: &DatabaseClock) -> bool {
    timeout(ANSWER_TIMEOUT, condition(connection, clock))
        .await
        .is_ok_and(|answer| answer.is_ok_and(|found| !found.read_only))
}

async fn condition(connection: &mut PgConnection, clock: &DatabaseClock) -> Result<Condition, Error> {
    let asked_at = clock.machine().monotonic();
    let row = sqlx::raw_sql(CONDITION).fetch_one(connection).await?;
    let (answered_at, round_trip) = (clock.machine().now(), clock.machine().monotonic() - asked_at);
    if let Some(theirs) = DateTime::from_timestamp_micros(row.try_get(3)?) {
        clock.correct(theirs, answered_at, round_trip);
    }
    Ok(Condition { read_only: row.try_get(0)?, unlimited: row.try_get(1)?, shadowed: row.try_get(2)? })
}
