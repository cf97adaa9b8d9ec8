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

/// Whether a failover has made a standby of the server, which goes on answering, to a connection from before; and whether a
/// limit is missing; and the server's time, in microseconds since 1970.
const CONDITION: &str = "SELECT current_setting('transaction_read_only') = 'on', '0' IN \
    (current_setting('lock_timeout'), current_setting('idle_in_transaction_session_timeout')), \
    (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";

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
                let (refuses, unlimited) = condition(connection, &clock).await?;
                read_only.store(refuses, Ordering::Relaxed);
                if refuses {
                    return Err(standby());
                }
                if unlimited {
                    sqlx::raw_sql(LIMITS).execute(connection).await?;
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
        .is_ok_and(|answer| matches!(answer, Ok((false, _))))
}

async fn condition(connection: &mut PgConnection, clock: &DatabaseClock) -> Result<(bool, bool), Error> {
    let asked_at = clock.machine().monotonic();
    let row = sqlx::raw_sql(CONDITION).fetch_one(connection).await?;
    let (answered_at, round_trip) = (clock.machine().now(), clock.machine().monotonic() - asked_at);
    if let Some(theirs) = DateTime::from_timestamp_micros(row.try_get(2)?) {
        clock.correct(theirs, answered_at, round_trip);
    }
    Ok((row.try_get(0)?, row.try_get(1)?))
}
