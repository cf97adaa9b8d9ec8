//! The pool's connections: what is asked of each new one, and which are not used any more.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::DateTime;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Error, PgConnection, Row};
use tokio::time::timeout;

use crate::clock::DatabaseClock;

/// How long a connection may take before the database counts as away.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that was used within this long is taken to be alive; an older one may have slept in a frozen sandbox.
const UNTESTED_IDLE: Duration = Duration::from_secs(1);

/// A connection that is well answers at once. Short, so that there is time for another one.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// One connection to read and lease with, two to write with, and one for what is rare.
const CONNECTIONS: u32 = 4;

/// Whether a failover has made a standby of the server, which goes on answering, to a connection from before; whether a
/// limit is missing; and whether the login's search path names PostgreSQL's own schema behind others. The names here don't
/// depend on that path. Last, the server's time, in microseconds since 1970.
const CONDITION: &str = r#"SELECT
    pg_catalog.current_setting('transaction_read_only') OPERATOR(pg_catalog.=) 'on',
    pg_catalog.current_setting('lock_timeout') OPERATOR(pg_catalog.=) '0'
        OR pg_catalog.current_setting('idle_in_transaction_session_timeout') OPERATOR(pg_catalog.=) '0',
    pg_catalog.current_setting('search_path') OPERATOR(pg_catalog.~) ',[ ]*"?pg_catalog',
    (extract(epoch FROM pg_catalog.clock_timestamp()) OPERATOR(pg_catalog.*) 1000000)::bigint"#;

/// What is set for a transaction if it is not for the login. For it alone: behind a pooler the next one on this connection may be
/// another client's; and as options of the connection, poolers and RDS Proxy would refuse it.
///
/// Nothing of ours waits for a lock for longer: less than any time limit of our own, so that the server ends the statement,
/// which would go on there if we only stopped waiting for it. And a transaction whose function was ended in the middle of it
/// keeps no locks until the server notices that its client is gone, which takes hours.
macro_rules! limits {
    () => {
        "SET LOCAL lock_timeout = '2s'; SET LOCAL idle_in_transaction_session_timeout = '5s'"
    };
}

/// Functions, operators and types are PostgreSQL's own, whatever else the path has of the same name: its schema comes first
/// unless a path names it elsewhere.
macro_rules! own_names_first {
    () => {
        "SELECT pg_catalog.set_config('search_path', \
         pg_catalog.concat('pg_catalog, ', pg_catalog.current_setting('search_path')), true)"
    };
}

struct Condition {
    read_only: bool,
    unlimited: bool,
    shadowed: bool,
}

/// How a transaction begins for which nothing has to be set.
pub(super) const BEGIN: &str = "BEGIN";

/// What a database is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To look: a standby, and a login whose transactions are read only, will do.
    Read,
    /// To refresh, and whatever else is written.
    Write,
}

impl Purpose {
    /// What a command needs that writes unless it is a dry run.
    #[must_use]
    pub fn of(dry_run: bool) -> Self {
        if dry_run { Self::Read } else { Self::Write }
    }
}

/// What is known of the pool's connections.
pub(super) struct Known {
    purpose: Purpose,
    /// What each answer of the server corrects.
    clock: DatabaseClock,
    /// The newest takes no writes.
    read_only: AtomicBool,
    /// The newest has both limits.
    limited: AtomicBool,
    /// Other names come before PostgreSQL's own on the path of the newest.
    shadowed: AtomicBool,
    /// They are made with `statement-cache-capacity=0`: a pooler of transactions stands before the server.
    unnamed: bool,
    /// When one was last found to be unusable, which may be true of all that were there then.
    distrusted_at: Mutex<Option<Instant>>,
}

impl Known {
    pub(super) fn new(options: &PgConnectOptions, clock: DatabaseClock, purpose: Purpose) -> Self {
        let unnamed = !has_statement_cache(options);
        let (read_only, limited, shadowed, distrusted_at) = Default::default();
        Self { purpose, clock, read_only, limited, shadowed, unnamed, distrusted_at }
    }

    pub(super) fn clock(&self) -> DatabaseClock {
        self.clock.clone()
    }

    pub(super) fn names_statements(&self) -> bool {
        !self.unnamed
    }

    /// The server takes no writes, and that is what it is for.
    pub(super) fn lacks_writes(&self) -> bool {
        self.purpose == Purpose::Write && self.read_only.load(Ordering::Relaxed)
    }

    fn suits(&self, found: &Condition) -> bool {
        self.purpose == Purpose::Read || !found.read_only
    }

    /// How a transaction begins.
    pub(super) fn begin(&self) -> &'static str {
        match (self.limited.load(Ordering::Relaxed), self.shadowed.load(Ordering::Relaxed)) {
            (true, false) => BEGIN,
            (false, false) => concat!("BEGIN; ", limits!()),
            (true, true) => concat!("BEGIN; ", own_names_first!()),
            (false, true) => concat!("BEGIN; ", limits!(), "; ", own_names_first!()),
        }
    }

    /// No connection that is there now is used again.
    pub(super) fn distrust(&self) {
        *self.distrusted_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn trusts(&self, age: Duration) -> bool {
        let distrusted_at = *self.distrusted_at.lock().unwrap_or_else(PoisonError::into_inner);
        distrusted_at.is_none_or(|at| at.elapsed() > age)
    }
}

fn has_statement_cache(options: &PgConnectOptions) -> bool {
    // There is no other way to ask. Not every host or user can stand in a URL.
    let url = options.clone().host("localhost").username("user").database("name").to_url_lossy();
    url.query_pairs().all(|(name, value)| name != "statement-cache-capacity" || value != "0")
}

/// A pool that connects when it has to.
pub(super) fn pool(options: PgConnectOptions, known: &Arc<Known>) -> PgPool {
    let [connected, acquired] = [(); 2].map(|()| known.clone());
    PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(CONNECT_TIMEOUT)
        .test_before_acquire(false)
        .after_connect(move |connection, _| {
            let known = connected.clone();
            Box::pin(async move {
                let found = condition(connection, &known.clock).await?;
                known.read_only.store(found.read_only, Ordering::Relaxed);
                known.limited.store(!found.unlimited, Ordering::Relaxed);
                known.shadowed.store(found.shadowed, Ordering::Relaxed);
                if known.suits(&found) { Ok(()) } else { Err(standby()) }
            })
        })
        .before_acquire(move |connection, use_| {
            let known = acquired.clone();
            Box::pin(async move {
                Ok(known.trusts(use_.age)
                    && (use_.idle_for < UNTESTED_IDLE || is_well(connection, &known).await))
            })
        })
        .connect_lazy_with(options)
}

/// Why there is no connection, if all that can be had take no writes.
pub(super) fn standby() -> Error {
    Error::Io(io::Error::other(
        "the server takes no writes: it is a standby, or was the writer before a failover",
    ))
}

async fn is_well(connection: &mut PgConnection, known: &Known) -> bool {
    timeout(ANSWER_TIMEOUT, condition(connection, &known.clock))
        .await
        .is_ok_and(|answer| answer.is_ok_and(|found| known.suits(&found)))
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
