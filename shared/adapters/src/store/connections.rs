//! The pool's connections: what each is told when it is new, and which are not used any more.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{Error, PgConnection, Row};
use tokio::time::timeout;

/// How long a connection may take before the database counts as away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that was used within this long is taken to be alive; an older one may have slept in a frozen sandbox.
const UNTESTED_IDLE: Duration = Duration::from_secs(1);

/// A connection that is well answers at once. Short, so that there is time for another one.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// One connection to read and lease with, two to write with, and one for what is rare.
const CONNECTIONS: u32 = 4;

/// What a new connection is told. Nothing of ours waits for a lock for longer: less than any time limit of our own, so
/// that the server ends the statement, which would go on there if we only stopped waiting for it. And a transaction whose
/// function was ended in the middle of it keeps no locks until the server notices that nobody is there, which takes hours.
const SET_UP: &str =
    "SET lock_timeout = '2s'; SET idle_in_transaction_session_timeout = '5s'; SHOW transaction_read_only";

/// Whether a failover has made a standby of the server, which goes on answering, to a connection from before.
const TEST: &str = "SHOW transaction_read_only";

/// Whether this is RDS Proxy, to which a `SET` binds a connection to the database for as long as ours lives, so that no other
/// shares it. It sets up its connections itself, by its initialization query; among the options of ours it would refuse it.
fn is_proxy(host: &str) -> bool {
    host.contains(".proxy-") && host.contains(".rds.amazonaws.com")
}

/// A pool that connects when it has to. `read_only` says of its newest connection whether it takes no writes.
pub(super) fn pool(options: PgConnectOptions, read_only: Arc<AtomicBool>) -> PgPool {
    let set_up = if is_proxy(options.get_host()) { TEST } else { SET_UP };
    PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(CONNECT_TIMEOUT)
        .test_before_acquire(false)
        .after_connect(move |connection, _| {
            let read_only = read_only.clone();
            Box::pin(async move {
                let refuses = takes_no_writes(connection, set_up).await?;
                read_only.store(refuses, Ordering::Relaxed);
                if refuses { Err(standby()) } else { Ok(()) }
            })
        })
        .before_acquire(|connection, use_| {
            Box::pin(async move { Ok(use_.idle_for < UNTESTED_IDLE || is_well(connection).await) })
        })
        // A statement that was given up is still being carried out: whoever had the connection next would wait for it.
        .after_release(|connection, _| Box::pin(async move { Ok(is_well(connection).await) }))
        .connect_lazy_with(options)
}

/// Why there is no connection, if all that can be had take no writes.
pub(super) fn standby() -> Error {
    Error::Io(io::Error::other(
        "the server takes no writes: it is a standby, or was the writer before a failover",
    ))
}

async fn is_well(connection: &mut PgConnection) -> bool {
    let answered = timeout(ANSWER_TIMEOUT, takes_no_writes(connection, TEST)).await;
    answered.is_ok_and(|refuses| refuses.is_ok_and(|refuses| !refuses))
}

async fn takes_no_writes(connection: &mut PgConnection, statement: &'static str) -> Result<bool, Error> {
    let row = sqlx::raw_sql(statement).fetch_one(connection).await?;
    Ok(row.try_get::<String, _>(0)? == "on")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_known_by_its_name() {
        assert!(is_proxy("token-refresh.proxy-abcdefghijkl.eu-west-1.rds.amazonaws.com"));
        assert!(is_proxy("reader.endpoint.proxy-abcdefghijkl.cn-north-1.rds.amazonaws.com.cn"));
        for direct in
            ["cluster.cluster-abcdefghijkl.eu-west-1.rds.amazonaws.com", "localhost", "db.proxy-free.example"]
        {
            assert!(!is_proxy(direct), "{direct}");
        }
    }

    #[test]
    fn the_proxy_of_our_own_stack_sets_up_the_same() {
        let stack = include_str!("../../../../infra/database.yaml");
        let set = SET_UP.strip_suffix(TEST).unwrap().trim_end_matches("; ");
        assert!(stack.contains(&format!("InitQuery: \"{set}\"\n")), "{set}");
    }
}
