//! What the end-to-end tests share. Every test has a database and a Twitch of its own.
#![expect(clippy::missing_errors_doc, clippy::must_use_candidate, reason = "any error fails the test")]

pub mod aws;
pub mod cycles;
pub mod doomed;
pub mod emf;
pub mod entrance;
pub mod histories;
pub mod marks;
pub mod parameters;
pub mod people;
pub mod relay;
pub mod requests;
pub mod roles;
pub mod session;
pub mod settings;
pub mod template;
pub mod watched;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Output;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnectOptions;
use tokens_domain::Streamer;
use tokens_domain::ports::{EventPublisher, RetryScheduler, Store, Twitch};
use tokens_domain::refresh::{Cycle, RefreshService};
use tokens_domain::report::{Outcome, Report};
use tokens_local::binaries::{Binaries, Profile};
use tokens_local::clock::TurnableClock;
use tokens_local::postgres::Postgres;
use tokens_local::twitch::{Gate, RefreshTokens, Settings};
use tokens_local::world::World;
use tokens_store::Database;
use tokio::process::Command;
use tokio::sync::OnceCell;

/// A world whose time stands still until it is turned. For cycles in this process.
pub struct Still {
    /// The world.
    pub world: World,
    /// Its clock.
    pub clock: Arc<TurnableClock>,
}

impl Still {
    /// A still world with the simulated Twitch's defaults.
    pub async fn new() -> Result<Self> {
        Self::with(Settings::default()).await
    }

    /// A still world with other settings.
    pub async fn with(settings: Settings) -> Result<Self> {
        let clock = Arc::new(TurnableClock::frozen());
        let settings = Settings { clock: clock.clone(), ..settings };
        Ok(Self { world: World::start(Postgres::shared().await?, settings).await?, clock })
    }

    /// A still world whose Twitch takes refresh tokens once.
    pub async fn one_time() -> Result<Self> {
        Self::with(Settings { refresh_tokens: RefreshTokens::OneTime, ..Settings::default() }).await
    }

    /// The time.
    pub fn now(&self) -> DateTime<Utc> {
        self.world.clock.now()
    }

    /// Turns the clock.
    pub fn turn(&self, minutes: u64) {
        self.clock.advance(std::time::Duration::from_secs(minutes * 60));
    }
}

/// Shorthands for a world's database.
pub trait Sql {
    /// Runs these statements.
    fn sql(&self, statements: &str) -> impl Future<Output = Result<()>>;

    /// What this query counts.
    fn count(&self, query: &str) -> impl Future<Output = Result<i64>>;

    /// Opens it as the program does.
    fn database(&self) -> impl Future<Output = Result<Database>>;
}

impl Sql for World {
    async fn sql(&self, statements: &str) -> Result<()> {
        let done = sqlx::raw_sql(AssertSqlSafe(statements)).execute(&self.pool).await;
        done.with_context(|| statements.to_owned())?;
        Ok(())
    }

    async fn count(&self, query: &str) -> Result<i64> {
        Ok(sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&self.pool).await?)
    }

    async fn database(&self) -> Result<Database> {
        Ok(Database::open(self.database_url().parse::<PgConnectOptions>()?).await?)
    }
}

/// A world on the machine's time. For binaries, which are built before it begins.
pub async fn world() -> Result<World> {
    binary("tokens").await?;
    World::start(Postgres::shared().await?, Settings::default()).await
}

/// What a cycle did, by login.
pub struct Ran {
    /// The counts.
    pub report: Report,
    outcomes: HashMap<String, Vec<Outcome>>,
}

impl Ran {
    /// The one outcome of this streamer.
    ///
    /// # Panics
    ///
    /// If there is none, or more than one.
    pub fn outcome(&self, login: &str) -> &Outcome {
        match self.outcomes.get(login).map(Vec::as_slice) {
            Some([outcome]) => outcome,
            other => panic!("{login} has these outcomes: {other:?}"),
        }
    }

    /// All streamers that were looked at.
    pub fn logins(&self) -> Vec<&str> {
        let mut logins: Vec<_> = self.outcomes.keys().map(String::as_str).collect();
        logins.sort_unstable();
        logins
    }
}

/// Runs a cycle and listens.
pub async fn run<S: Store, T: Twitch, R: RetryScheduler, E: EventPublisher>(
    service: &RefreshService<S, T, R, E>,
    cycle: &Cycle,
) -> Ran {
    let outcomes = Mutex::new(HashMap::<_, Vec<_>>::new());
    let observe = |streamer: &Streamer, outcome: &Outcome| {
        let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        outcomes.entry(streamer.login.clone()).or_default().push(outcome.clone());
    };
    // Boxed: tests hold several of them, and a cycle is large.
    let report = Box::pin(service.run(cycle, &observe)).await;
    Ran { report, outcomes: outcomes.into_inner().unwrap_or_else(PoisonError::into_inner) }
}

/// Runs a cycle and, once it has come to the gate, `change`; then opens the gate. What the cycle did is answered.
///
/// # Panics
///
/// If the cycle ends without having come to the gate.
pub async fn with_change_at(
    gate: Gate,
    cycle: impl Future<Output = Ran>,
    change: impl Future<Output = Result<()>>,
) -> Result<Ran> {
    let mut cycle = pin!(cycle);
    tokio::select! {
        biased;
        () = gate.arrived() => {}
        ran = &mut cycle => panic!("the cycle never came to the gate: {:?}", ran.report),
    }
    change.await?;
    gate.release();
    Ok(cycle.await)
}

/// The program's own binary, built if it is not up to date.
pub async fn binary(name: &str) -> Result<PathBuf> {
    Ok(binaries().await?.path(name)?.to_owned())
}

/// All of them.
pub async fn binaries() -> Result<&'static Binaries> {
    static BINARIES: OnceCell<Binaries> = OnceCell::const_new();
    BINARIES.get_or_try_init(|| Binaries::build(Profile::Dev)).await
}

/// What `tokens` printed, and how it ended.
#[derive(Debug)]
pub struct Printed {
    /// The exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs the command with this environment and no other.
pub async fn tokens(environment: &[(String, String)], arguments: &[&str]) -> Result<Printed> {
    // Not in the workspace, whose `.env` would be read.
    tokens_in(&std::env::temp_dir(), environment, arguments).await
}

/// Runs the command in this directory, with this environment and no other.
pub async fn tokens_in(
    directory: &Path,
    environment: &[(String, String)],
    arguments: &[&str],
) -> Result<Printed> {
    let mut command = Command::new(binary("tokens").await?);
    command.args(arguments).env_clear().envs(environment.iter().map(|(name, value)| (name, value)));
    command.current_dir(directory);
    let Output { status, stdout, stderr } = command.output().await?;
    Ok(Printed {
        code: status.code().context("the command was killed")?,
        stdout: String::from_utf8(stdout)?,
        stderr: String::from_utf8(stderr)?,
    })
}

/// Changes a setting of this world's database, for new connections.
pub async fn set_for_database(world: &World, setting: &str) -> Result<()> {
    let name: String = sqlx::query_scalar("SELECT current_database()").fetch_one(&world.pool).await?;
    let set = format!("ALTER DATABASE {name} SET {setting}");
    sqlx::query(AssertSqlSafe(set)).execute(&world.pool).await?;
    Ok(())
}

/// Creates a trigger of the application that does this on each write of a row for which the condition holds.
pub async fn on_write(world: &World, table: &str, condition: &str, happens: &str) -> Result<()> {
    let trigger = format!(
        "CREATE FUNCTION public.theirs() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN IF {condition} THEN {happens}; END IF; RETURN NEW; END $$;
         CREATE TRIGGER theirs BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION public.theirs()"
    );
    sqlx::raw_sql(AssertSqlSafe(trigger)).execute(&world.pool).await?;
    Ok(())
}

/// From now on, new connections wait for a lock until the test releases it. (A limit that is there is not set again.)
pub async fn wait_for_locks(world: &World) -> Result<()> {
    set_for_database(world, "lock_timeout = '1h'").await?;
    set_for_database(world, "idle_in_transaction_session_timeout = '5s'").await
}

/// An environment with some variables changed; an empty value takes one away.
pub fn changed(environment: Vec<(String, String)>, changes: &[(&str, &str)]) -> Vec<(String, String)> {
    let untouched =
        environment.into_iter().filter(|(name, _)| changes.iter().all(|(changed, _)| changed != name));
    let changes = changes.iter().filter(|(_, value)| !value.is_empty());
    untouched.chain(changes.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))).collect()
}
