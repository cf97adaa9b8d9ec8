//! Functions that are killed in the middle of their work, and what is left of it.
//!
//! Nothing here waits for a length of time: each kill waits for what Twitch, a push service or PostgreSQL sees of the
//! function, and leases run out by being turned back.

use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use chrono::TimeDelta;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection};
use tokens_cipher::Column;
use tokens_domain::{RefreshToken, StreamerId, TokenPair};
use tokens_local::lambda::Function;
use tokens_local::twitch::{RefreshTokens, Settings};
use tokens_local::world::{StreamerRow, World};
use tokens_local::{postgres::Postgres, twitch::Totals};

use crate::{binary, changed};

/// How the connections of functions are called in the database.
const DOOMED: &str = "doomed";

/// What a function is given.
const TIME_LEFT: Duration = Duration::from_mins(5);

/// As long as design.md has it: three minutes.
pub const LEASE: TimeDelta = TimeDelta::minutes(3);

/// For how long a notification that is being pushed is claimed.
pub const CLAIM: TimeDelta = TimeDelta::seconds(30);

/// A world on the machine's time, whose Twitch treats refresh tokens like this.
pub async fn world(refresh_tokens: RefreshTokens, latency: Duration) -> Result<World> {
    binary("tokens").await?;
    World::start(Postgres::shared().await?, Settings { refresh_tokens, latency, ..Settings::default() }).await
}

/// Starts a function whose connections to the database are distinct from ours.
pub async fn function(world: &World, name: &str, more: &[(&str, &str)]) -> Result<Function> {
    let url = world.database_url();
    let separator = if url.contains('?') { '&' } else { '?' };
    let url = format!("{url}{separator}application_name={DOOMED}");
    let environment = changed(changed(world.environment(), &[("DATABASE_URL", &url)]), more);
    Function::start(&binary(name).await?, &environment, Stdio::null()).await
}

/// Hands the event in and kills the function as soon as `reached` is done.
///
/// # Errors
///
/// If the function answers before.
pub async fn kill_at(
    function: Function,
    event: Value,
    reached: impl Future<Output = Result<()>>,
) -> Result<()> {
    {
        let mut answer = pin!(function.invoke(event, TIME_LEFT));
        tokio::select! {
            biased;
            reached = reached => reached?,
            outcome = &mut answer => bail!("the function was to be killed before it answered {outcome:?}"),
        }
    }
    function.kill().await
}

/// Like [`kill_at`]; whether it was killed. A function that answers before is done and ends by itself.
pub async fn kill_at_or_let_end(
    function: Function,
    event: Value,
    reached: impl Future<Output = ()>,
) -> Result<bool> {
    let killed = {
        let mut answer = pin!(function.invoke(event, TIME_LEFT));
        tokio::select! {
            biased;
            () = reached => true,
            outcome = &mut answer => outcome.map(|_| false)?,
        }
    };
    function.kill().await?;
    Ok(killed)
}

/// Runs the function to its end; what it answers.
pub async fn run(world: &World, name: &str, event: Value, more: &[(&str, &str)]) -> Result<Value> {
    Ok(function(world, name, more).await?.invoke(event, TIME_LEFT).await?)
}

/// Waits until this is true in the database.
pub async fn until(world: &World, condition: &str) -> Result<()> {
    let sql = format!("SELECT coalesce(({condition}), false)");
    loop {
        let true_now: bool = sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_one(&world.pool).await?;
        if true_now {
            return Ok(());
        }
        tokio::task::yield_now().await;
    }
}

/// For [`until`]: a statement waits for a lock that the test holds.
pub const A_LOCK_IS_WAITED_FOR: &str = "SELECT count(*) > 0 FROM pg_stat_activity
     WHERE datname = current_database() AND wait_event_type = 'Lock'";

/// For [`lock`]: what a transaction that deactivates has to itself.
pub const TURN: &str = "LOCK TABLE token_refresh.deactivations IN SHARE ROW EXCLUSIVE MODE";

/// Waits until a statement of the function's waits for a lock, which the test holds.
pub async fn blocked(world: &World) -> Result<()> {
    let condition = format!("SELECT count(*) > 0 FROM ({CONNECTIONS}) c WHERE wait_event_type = 'Lock'");
    until(world, &condition).await
}

/// The connections of functions to this database.
const CONNECTIONS: &str = "SELECT pid, wait_event_type FROM pg_stat_activity
     WHERE datname = current_database() AND application_name = 'doomed'";

/// Waits until nothing of the killed function is under way: its requests to Twitch are dropped, and PostgreSQL has carried out
/// or rolled back what it was sent.
pub async fn settled(world: &World) -> Result<()> {
    world.twitch.wait_until(|Totals { in_flight, .. }| *in_flight == 0).await;
    until(world, &format!("SELECT count(*) = 0 FROM ({CONNECTIONS}) c")).await
}

/// The database, too, drops what the killed function sent.
pub async fn hang_up(world: &World) -> Result<()> {
    let connections = format!("SELECT pg_terminate_backend(pid) FROM ({CONNECTIONS}) c");
    sqlx::query(AssertSqlSafe(connections)).execute(&world.pool).await?;
    settled(world).await
}

/// How long the lease on this streamer goes on; none, if there is none.
pub async fn lease(world: &World, id: StreamerId) -> Result<Option<TimeDelta>> {
    let until = sqlx::query_scalar("SELECT leased_until FROM token_refresh.streamers WHERE streamer_id = $1");
    let until: Option<Option<_>> = until.bind(id.0).fetch_optional(&world.pool).await?;
    let now = world.clock.now();
    Ok(until.flatten().map(|until: chrono::DateTime<chrono::Utc>| until - now))
}

/// Turns all leases back to now, which is what three minutes do to them.
pub async fn three_minutes_later(world: &World) -> Result<()> {
    let leases = "UPDATE token_refresh.streamers SET leased_until = now() WHERE leased_until IS NOT NULL";
    sqlx::query(leases).execute(&world.pool).await?;
    Ok(())
}

/// Turns the claims on all notifications back to now, which is what half a minute does to them.
pub async fn half_a_minute_later(world: &World) -> Result<()> {
    let claims = "UPDATE token_refresh.outbox SET next_attempt_at = now() WHERE state = 'pending'";
    sqlx::query(claims).execute(&world.pool).await?;
    Ok(())
}

/// The pair that is stored for this streamer.
pub fn stored(world: &World, id: StreamerId, row: &StreamerRow) -> Result<TokenPair> {
    let cipher = world.config(&[])?.cipher;
    let read = |column, text: &Option<String>| {
        let text = text.as_deref().context("a token is missing")?;
        cipher.decrypt(id.0, column, text, world.clock.now()).map_err(anyhow::Error::from)
    };
    Ok(TokenPair {
        access: tokens_domain::AccessToken::new(
            read(Column::AccessToken, &row.access_token_encrypted)?.as_str(),
        ),
        refresh: RefreshToken::new(read(Column::RefreshToken, &row.refresh_token_encrypted)?.as_str()),
    })
}

/// Whether what is stored is the pair that Twitch issued last.
pub async fn has_newest_pair(world: &World, id: StreamerId, login: &str) -> Result<bool> {
    let stored = stored(world, id, &world.row(id).await?)?;
    Ok(world.twitch.current_tokens(login).is_some_and(|newest| newest == stored))
}

/// Holds a lock for as long as the transaction lives.
pub async fn lock(connection: &mut PgConnection, statement: &'static str) -> Result<()> {
    sqlx::query(statement).execute(connection).await?;
    Ok(())
}
