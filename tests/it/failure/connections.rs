//! Connections to the database that are no good any more: they are found out, and their places are free for others.

use std::str::FromStr;
use std::time::Duration;

use adapters::store::{Database, PgStore};
use anyhow::{Context as _, Result};
use chrono::DateTime;
use domain::Clock as _;
use domain::MembershipKey;
use domain::ports::Store as _;
use end_to_end::cycles::{forced, planned};
use end_to_end::doomed::until;
use end_to_end::people::{deactivation, device, refused_streamer};
use end_to_end::relay::Relay;
use end_to_end::requests::membership;
use end_to_end::{Still, run, set_for_database, wait_for_locks};
use futures::future::join_all;
use local::binaries::workspace;
use local::postgres::{Postgres, Settings as ServerSettings};
use local::twitch::Settings;
use local::world::{NewStreamer, World};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnectOptions;
use tokio::time::timeout;

/// As many as a process has at most.
const CONNECTIONS: usize = 4;

/// Reads something, as often as there are connections.
async fn reads(database: &Database, key: MembershipKey) -> Vec<bool> {
    let reads = join_all((0..CONNECTIONS).map(|_| database.membership(key, DateTime::UNIX_EPOCH))).await;
    reads.into_iter().map(|read| read.is_ok()).collect()
}

async fn through_a_relay(world: &World) -> Result<(Relay, Database, MembershipKey)> {
    let key = membership(world, world.add(NewStreamer::fresh("someone")).await?).await?;
    let relay = Relay::start(world)?;
    let database = Database::open(relay.options()).await?;
    assert_eq!(reads(&database, key).await, [true; CONNECTIONS]);
    Ok((relay, database, key))
}

#[tokio::test]
async fn statements_that_were_given_up_keep_no_connection() -> Result<()> {
    let still = Still::new().await?;
    let (relay, database, key) = through_a_relay(&still.world).await?;
    relay.freeze();
    // Whether they use the connections, or test them first.
    reads(&database, key).await;
    assert_eq!(reads(&database, key).await, [true; CONNECTIONS]);
    Ok(())
}

#[tokio::test]
async fn after_a_freeze_there_is_time_for_a_new_connection() -> Result<()> {
    let still = Still::new().await?;
    let (relay, database, key) = through_a_relay(&still.world).await?;
    relay.freeze();
    // From then on a connection is tested before it is used.
    sqlx::query("SELECT pg_sleep(1.1)").execute(&still.world.pool).await?;
    assert_eq!(reads(&database, key).await, [true; CONNECTIONS]);
    Ok(())
}

async fn takes_writes(world: &World, yes: bool) -> Result<()> {
    let read_only = if yes { "off" } else { "on" };
    set_for_database(world, &format!("default_transaction_read_only = {read_only}")).await
}

#[tokio::test]
async fn a_standby_is_called_one() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    takes_writes(world, false).await?;
    let refused = world.service(&[]).await.err().context("nothing can be written there")?.to_string();
    assert!(refused.contains("the server takes no writes"), "{refused}");
    takes_writes(world, true).await?;
    world.add(NewStreamer::due("someone")).await?;
    assert_eq!(run(&world.service(&[]).await?, &planned()).await.report.success, 1);
    Ok(())
}

/// Each connection is to a standby as soon as it has written once, and goes on answering.
#[tokio::test]
async fn connections_to_what_has_become_a_standby_are_not_used_again() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.add(NewStreamer::due("someone")).await?;
    for statement in [
        "CREATE FUNCTION fail_over() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN PERFORM set_config('default_transaction_read_only', 'on', false); RETURN NULL; END $$",
        "CREATE TRIGGER fail_over AFTER UPDATE ON streamers EXECUTE FUNCTION fail_over()",
        "CREATE TRIGGER fail_over AFTER INSERT OR UPDATE ON token_refresh.streamers EXECUTE FUNCTION fail_over()",
    ] {
        sqlx::query(statement).execute(&world.pool).await?;
    }
    let service = world.service(&[]).await?;
    for _ in 0..3 {
        let ran = timeout(Duration::from_mins(1), run(&service, &forced())).await?;
        assert_eq!((ran.report.success, ran.report.stopped), (1, None));
    }
    Ok(())
}

#[tokio::test]
async fn a_login_that_has_its_limits_is_told_none() -> Result<()> {
    let postgres = Postgres::own(ServerSettings::default()).await?;
    let world = World::start(&postgres, Settings::default()).await?;
    sqlx::query("ALTER ROLE postgres SET log_statement = 'all'").execute(&world.pool).await?;
    let log = postgres.server().context("a server")?.log_path();
    let told = async || -> Result<usize> {
        Database::open(PgConnectOptions::from_str(world.database_url())?).await?;
        Ok(std::fs::read_to_string(&log)?.matches("statement: SET lock_timeout").count())
    };
    assert_eq!(told().await?, 1);

    let logins = std::fs::read_to_string(workspace().join("infra/logins.sql"))?;
    for login in ["token_app", "token_notify"] {
        let limits = logins.lines().filter(|line| line.starts_with(&format!("ALTER ROLE {login} SET ")));
        for limit in limits.map(|line| line.replace(login, "postgres")) {
            sqlx::query(AssertSqlSafe(limit)).execute(&world.pool).await?;
        }
        assert_eq!(told().await?, 1, "nothing more to {login}");
        for limit in ["lock_timeout", "idle_in_transaction_session_timeout"] {
            sqlx::query(AssertSqlSafe(format!("ALTER ROLE postgres RESET {limit}")))
                .execute(&world.pool)
                .await?;
        }
    }
    Ok(())
}

/// It has its turn to deactivate, and the next has to wait for that.
#[tokio::test]
async fn a_transaction_of_a_host_that_has_vanished_holds_up_the_next_for_seconds() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let (streamer, user) = refused_streamer(world, "aria").await?;
    device(world, user, "phone").await?;
    wait_for_locks(world).await?;
    let relay = Relay::start(world)?;
    let database = Database::open(relay.options()).await?;
    let store = PgStore::new(database, world.config(&[])?.cipher, world.clock.clone());
    let now = still.now();
    let attempts = [deactivation(&store, streamer, now).await?];
    let mut outbox = world.pool.begin().await?;
    sqlx::query("LOCK TABLE token_refresh.outbox IN EXCLUSIVE MODE").execute(&mut *outbox).await?;
    let waits = "SELECT count(*) > 0 FROM pg_stat_activity
                 WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let vanish = async {
        until(world, waits).await?;
        relay.freeze();
        outbox.rollback().await?;
        anyhow::Ok(())
    };
    let (deactivated, vanished) = tokio::join!(store.deactivate(&attempts, still.clock.monotonic()), vanish);
    vanished?;
    assert!(deactivated.is_err(), "{deactivated:?}");

    let mut next = world.pool.begin().await?;
    let turn = sqlx::query("LOCK TABLE token_refresh.deactivations IN SHARE ROW EXCLUSIVE MODE");
    timeout(Duration::from_mins(1), turn.execute(&mut *next)).await??;
    assert!(world.row(streamer).await?.is_active);
    Ok(())
}
