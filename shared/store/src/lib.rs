//! The PostgreSQL adapter: pages of authorized streamers, leases, results, history, sessions, the outbox.
//!
//! Every query that a cycle runs is one statement and commits by itself: no transaction is ever open while Twitch
//! is asked, and none spans two round trips (but for a deactivation and a grant). Time always comes in as a parameter.

#![allow(clippy::missing_errors_doc, reason = "every function fails if the database does")]

mod aside;
mod claim;
mod clock;
mod condition;
mod connect;
mod connections;
mod coverage;
mod deactivate;
mod errors;
mod evidence;
mod history;
mod login;
mod memberships;
mod moment;
pub mod network;
mod outbox;
mod pages;
mod reactivate;
mod record;
mod rekey;
mod restore;
mod schema;
mod sessions;
mod state;
mod statements;
mod tables;
mod visible;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::{ConnectOptions, Postgres};
use tokens_cipher::TokenCipher;
use tokens_domain::attempt::{Attempt, Stored};
use tokens_domain::evidence::History;
use tokens_domain::notification::Recipient;
use tokens_domain::ports::{Claim, Page, Place, SetAside, Store, StoreError};
use tokens_domain::{Clock, Monotonic, StreamerId, SystemClock};
use tokio::time::{sleep, timeout};

pub use self::clock::{CLOCK_TOLERANCE, DatabaseClock};
pub use self::condition::{LastRuns, NotifyRole, Server, StoredTexts, StoredUnder, Tables, Trust, Waiting};
pub use self::connect::{Channel, Connected};
use self::connections::Known;
pub use self::connections::Purpose;
pub use self::coverage::{BrokenSession, Coverage, Gap};
use self::errors::Class;
use self::errors::{failed, said};
pub use self::evidence::Misplaced;
pub use self::history::{HISTORY_KEPT, HistoryEntry};
pub use self::login::{Login, OtherLogin};
pub(crate) use self::moment::Moment;
pub use self::outbox::{OutboxCounts, OutboxEntry, PgOutbox};
pub use self::pages::Lookup;
pub use self::reactivate::{Deactivated, Reactivated};
pub use self::rekey::{Left, Rekeyed};
pub use self::schema::{SchemaVersion, migrate};
use self::statements::Kept;
pub use self::tables::MissingTables;
pub use self::visible::{Hidden, Rehearsal};

/// A statement of ours takes milliseconds; one that takes longer waits for a lock or for a server that is gone.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// What a statement gets that begins at the last moment: less than a cycle keeps free before its deadline.
const LAST_STATEMENT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a server that is away is waited for at the beginning, unless the caller knows better: less than the 30 s after which
/// API Gateway gives up a request.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);

/// The first wait before a failed write is tried again; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// A database that comes back is noticed within this long.
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// The database, on this program's schema. What needs no key is here.
#[derive(Clone)]
pub struct Database {
    pool: PgPool,
    login: Arc<Login>,
    known: Arc<Known>,
    /// For how long a connection is tried to be made.
    patience: Duration,
    /// When it was last found that no row of a streamer is hidden from us.
    hides_nothing_since: Arc<Mutex<Option<Instant>>>,
    /// The connection of the last statement, if it is kept for the next one.
    kept: Option<Kept>,
}

impl Database {
    /// Connects, and makes sure that this program works on its schema. Waits for a server that is away.
    ///
    /// # Errors
    ///
    /// If the database can't be reached or does not accept the login, and if its migrations are missing or need a newer
    /// program; the text says what to do.
    pub async fn open(login: impl Into<Login>) -> Result<Self, StoreError> {
        Self::open_for(login, Purpose::Write).await
    }

    /// The same, for this purpose.
    pub async fn open_for(login: impl Into<Login>, purpose: Purpose) -> Result<Self, StoreError> {
        Self::open_until(login, purpose, None, Arc::new(SystemClock)).await
    }

    /// The same, for a caller that has time until `give_up_at`, by this clock of the machine.
    pub async fn open_until(
        login: impl Into<Login>,
        purpose: Purpose,
        give_up_at: Option<Monotonic>,
        machine: Arc<dyn Clock>,
    ) -> Result<Self, StoreError> {
        let left = |at: Monotonic| (at - machine.monotonic()).to_std().unwrap_or_default();
        let patience = give_up_at.map_or(OPEN_TIMEOUT, left);
        let database = Self::prepare(login.into(), purpose, machine);
        let version = schema::check(&Self { patience, ..database.clone() }).await?;
        if version.is_newer() {
            tracing::info!("the database's schema is at version {version}");
        }
        Ok(database)
    }

    /// The version of the schema.
    ///
    /// # Errors
    ///
    /// If the database can't be reached, or is not on this program's schema.
    pub async fn check_schema(&self) -> Result<SchemaVersion, StoreError> {
        schema::check(self).await
    }

    /// Connects to nothing yet.
    fn prepare(login: Login, purpose: Purpose, machine: Arc<dyn Clock>) -> Self {
        let options = login.options();
        let known = Arc::new(Known::new(&options, DatabaseClock::new(machine), purpose));
        let pool = connections::pool(quiet(&options), &known);
        let (patience, hides_nothing_since) = (connections::CONNECT_TIMEOUT, Arc::default());
        Self { pool, login: Arc::new(login), known, patience, hides_nothing_since, kept: None }
    }

    /// The time that all hosts of this database agree on. It is corrected whenever a connection is made or checked, and so at
    /// the beginning of each cycle.
    #[must_use]
    pub fn clock(&self) -> DatabaseClock {
        self.known.clock()
    }

    /// A connection. Whatever may pass is waited for.
    async fn acquire(&self) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        let (began, mut pause) = (Instant::now(), FIRST_PAUSE);
        loop {
            match self.connect().await {
                Err(error)
                    if !Class::from(&error).is_permanent() && began.elapsed() + pause < self.patience =>
                {
                    tracing::warn!(error = said(&error), "no connection to the database, trying again");
                    sleep(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
                connected => return connected,
            }
        }
    }

    /// If the server refuses our login, once more with another, if there is one; connections that are open stay open.
    async fn connect(&self) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        let options = self.login.options();
        // Without TLS it connects only to an address that was looked at just now.
        if network::is_plaintext(&options) && self.pool.num_idle() == 0 {
            self.connect_with(&options).await?;
        }
        match self.pool.acquire().await {
            // Boxed: it is rare, and every statement would carry its size.
            Err(error) if Class::from(&error) == Class::LoginRefused => {
                if !Box::pin(self.login.replace()).await {
                    return Err(error);
                }
                self.connect_with(&self.login.options()).await?;
                self.pool.acquire().await
            }
            Err(sqlx::Error::PoolTimedOut) if self.known.lacks_writes() => Err(connections::standby()),
            Err(sqlx::Error::PoolTimedOut) => Err(Box::pin(why_not(&options)).await),
            acquired => acquired,
        }
    }

    /// The pool's next connections are made with these.
    async fn connect_with(&self, options: &PgConnectOptions) -> Result<(), sqlx::Error> {
        self.pool.set_connect_options(quiet(&network::checked(options).await?));
        Ok(())
    }

    fn distrust(&self) {
        self.known.distrust();
    }

    /// Whether the server may remember statements by names.
    fn names_statements(&self) -> bool {
        self.known.names_statements()
    }
}

/// Why the pool found no connection: it tries again until the end of its time, and doesn't say why it had to.
async fn why_not(options: &PgConnectOptions) -> sqlx::Error {
    match timeout(connections::ANSWER_TIMEOUT, schema::connect(options)).await {
        Ok(Err(error)) => error,
        Ok(Ok(_)) | Err(_) => sqlx::Error::PoolTimedOut,
    }
}

/// Without a log line for each statement.
fn quiet(options: &PgConnectOptions) -> PgConnectOptions {
    options.clone().disable_statement_logging()
}

/// The database, with the cipher that the tokens in it are encrypted with. Each clone writes through a connection of its
/// own.
#[derive(Clone)]
pub struct PgStore {
    database: Database,
    cipher: Arc<TokenCipher>,
    clock: Arc<dyn Clock>,
    /// The same, on a connection that is kept between the writes of a cycle.
    writing: Database,
}

impl PgStore {
    /// The clock says for how long a failing write may be repeated.
    #[must_use]
    pub fn new(database: Database, cipher: impl Into<Arc<TokenCipher>>, clock: Arc<dyn Clock>) -> Self {
        let writing = database.keeping();
        Self { database, cipher: cipher.into(), clock, writing }
    }

    /// The same for a request, of which there are many at once: it keeps no connection while it waits for Twitch.
    #[must_use]
    pub fn of_request(&self) -> Self {
        Self { writing: self.database.clone(), ..self.clone() }
    }

    /// What needs no key.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.database
    }
}

impl Store for PgStore {
    async fn authorized(
        &self,
        after: Option<Place>,
        now: DateTime<Utc>,
        give_up_at: Monotonic,
    ) -> Result<Page, StoreError> {
        let page = Box::pin(self.persistently(give_up_at, || self.database.page(after, now)))
            .await
            .map_err(failed("reading the authorized streamers"))?;
        if page.last.is_none() && after.is_none() {
            Box::pin(self.database.look_at_nothing()).await?;
        }
        Ok(page)
    }

    async fn claim(
        &self,
        ids: &[StreamerId],
        now: DateTime<Utc>,
        until: DateTime<Utc>,
        give_up_at: Monotonic,
    ) -> Result<Vec<Claim>, StoreError> {
        Box::pin(self.lease(ids, now, until, give_up_at)).await.map_err(failed("leasing streamers"))
    }

    async fn record(&self, attempts: &[Attempt], give_up_at: Monotonic) -> Result<Vec<Stored>, StoreError> {
        self.record_all(attempts, give_up_at).await.map_err(failed("writing results"))
    }

    async fn insist(&self, attempt: &Attempt, give_up_at: Monotonic) -> Result<Stored, StoreError> {
        // Boxed: it is rare, and every cycle would carry its size.
        Box::pin(self.write_stubbornly(attempt, give_up_at)).await.map_err(failed("writing a result"))
    }

    async fn set_aside(&self, attempt: &Attempt, reason: &str, now: DateTime<Utc>) -> Result<(), StoreError> {
        Box::pin(self.set_aside_attempt(attempt, reason, now)).await
    }

    async fn take_back(&self, ids: &[StreamerId], give_up_at: Monotonic) -> Result<(), StoreError> {
        let taken = Box::pin(self.persistently(give_up_at, || self.database.end_backoff(ids))).await;
        taken.map_err(failed("taking rows back that are set aside"))
    }

    async fn are_set_aside(
        &self,
        ids: &[StreamerId],
        now: DateTime<Utc>,
    ) -> Result<Vec<SetAside>, StoreError> {
        let mut aside = self.database.set_aside(ids, now).await?;
        let known: HashSet<_> = aside.iter().map(|one| one.id).collect();
        let others: Vec<_> = ids.iter().copied().filter(|id| !known.contains(id)).collect();
        let shut_out = Box::pin(self.database.shut_out(&others)).await?;
        aside.extend(shut_out.into_iter().map(|(id, error)| SetAside {
            id,
            at: now,
            until: now,
            reason: error.text,
        }));
        Ok(aside)
    }

    async fn deactivate(
        &self,
        attempts: &[Attempt],
        give_up_at: Monotonic,
    ) -> Result<Vec<Stored>, StoreError> {
        // Boxed: it is rare, and every cycle would carry its size.
        Box::pin(self.persistently(give_up_at, || self.deactivate_within_budget(attempts)))
            .await
            .map_err(failed("deactivating streamers"))
    }

    async fn notice(
        &self,
        attempts: &[Attempt],
        give_up_at: Monotonic,
    ) -> Result<Vec<Option<Vec<Recipient>>>, StoreError> {
        Box::pin(self.persistently(give_up_at, || self.notice_within_budget(attempts)))
            .await
            .map_err(failed("notifying of refusals"))
    }

    async fn history(&self, client_id: &str) -> Result<History, StoreError> {
        Box::pin(self.database.history_under(client_id)).await
    }

    async fn healthy(
        &self,
        except: &[StreamerId],
        now: DateTime<Utc>,
    ) -> Result<Vec<StreamerId>, StoreError> {
        Box::pin(self.database.healthy_except(except, now)).await
    }
}

impl PgStore {
    /// See [`persistently`].
    async fn persistently<T, F: Future<Output = Result<T, sqlx::Error>>>(
        &self,
        give_up_at: Monotonic,
        statement: impl Fn() -> F,
    ) -> Result<T, sqlx::Error> {
        persistently(self.clock.as_ref(), give_up_at, Class::can_pass, statement).await
    }

    /// The same for a statement on a batch, from which a locked row is left out instead.
    async fn unless_locked<T, F: Future<Output = Result<T, sqlx::Error>>>(
        &self,
        give_up_at: Monotonic,
        statement: impl Fn() -> F,
    ) -> Result<T, sqlx::Error> {
        let repeats = |class: Class| class.can_pass() && class != Class::Locked;
        persistently(self.clock.as_ref(), give_up_at, repeats, statement).await
    }
}

/// Runs a statement, or a transaction, again after errors of these classes, until `give_up_at`. It must be one that can be
/// repeated after its first answer was lost. The one that takes leases is not quite: it meets its own, as if they were
/// another run's, and they have to run out.
async fn persistently<T, F: Future<Output = Result<T, sqlx::Error>>>(
    clock: &dyn Clock,
    give_up_at: Monotonic,
    repeats: impl Fn(Class) -> bool,
    statement: impl Fn() -> F,
) -> Result<T, sqlx::Error> {
    let mut pause = FIRST_PAUSE;
    loop {
        let left = (give_up_at - clock.monotonic()).to_std().unwrap_or_default();
        let patience = left.clamp(LAST_STATEMENT_TIMEOUT, STATEMENT_TIMEOUT);
        let done = timeout(patience, statement()).await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        match done {
            Err(error)
                if repeats(Class::from(&error))
                    && give_up_at - clock.monotonic() > TimeDelta::from_std(pause).unwrap_or_default() =>
            {
                tracing::warn!(error = said(&error), "the database failed, trying again");
                sleep(pause).await;
                pause = (pause * 2).min(MAX_PAUSE);
            }
            done => return done,
        }
    }
}
