//! What a function does when its cycle is over, and that it ends in time.

use anyhow::Result;
use chrono::TimeDelta;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnectOptions;
use tokens_domain::Clock as _;
use tokens_domain::refresh::DEADLINE_MARGIN;
use tokens_domain::schedule::Trigger;
use tokens_local::world::{NewStreamer, World};
use tokens_store::{Database, HISTORY_KEPT};
use tokens_tests::cycles::{forced, planned};
use tokens_tests::requests::host;
use tokens_tests::roles::app_under_row_level_security;
use tokens_tests::{Sql as _, Still, run};

/// More than are forgotten at once.
const OLD: i64 = 25_000;

async fn with_old_history() -> Result<Still> {
    let still = Still::new().await?;
    let old =
        "INSERT INTO token_refresh.refreshes (streamer_id, fence, trigger, started_at, ended_at, outcome)
               SELECT gen_random_uuid(), 1, 'sweep', $1, $1, 'refreshed' FROM generate_series(1, $2)";
    let at = still.now() - HISTORY_KEPT - TimeDelta::hours(1);
    sqlx::query(old).bind(at).bind(OLD).execute(&still.world.pool).await?;
    Ok(still)
}

async fn kept(world: &World) -> Result<i64> {
    Ok(sqlx::query_scalar("SELECT count(*) FROM token_refresh.refreshes").fetch_one(&world.pool).await?)
}

#[tokio::test]
async fn all_old_history_is_forgotten_if_there_is_time() -> Result<()> {
    let still = with_old_history().await?;
    host(&still.world).service().await?.follow_up(Trigger::Planned, None).await;
    assert_eq!(kept(&still.world).await?, 0);
    Ok(())
}

#[tokio::test]
async fn after_a_sweep_nothing_is_left_of_streamers_that_are_gone() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.add_all((0..120).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    run(&world.service(&[]).await?, &planned()).await;
    world.sql("DELETE FROM streamers WHERE twitch_login <> 's0'").await?;
    let remembered = async || -> Result<i64> {
        Ok(sqlx::query_scalar("SELECT count(*) FROM token_refresh.streamers").fetch_one(&world.pool).await?)
    };
    assert_eq!(remembered().await?, 120);
    // What this login can't see is not gone.
    app_under_row_level_security(&world.pool).await?;
    world.sql("ALTER TABLE streamers ENABLE ROW LEVEL SECURITY").await?;
    let app = world.database_url().replace("postgres@", "app@");
    assert_eq!(Database::open(app.parse::<PgConnectOptions>()?).await?.forget_gone(still.now()).await?, 0);
    // A part that holds one that is there is the last one of a run.
    let host = host(world);
    for _ in 0..3 {
        host.service().await?.follow_up(Trigger::Sweep, None).await;
    }
    assert_eq!(remembered().await?, 1);
    Ok(())
}

/// Else its results would be taken for those that its history has under the same fence.
#[tokio::test]
async fn a_streamer_that_is_there_again_goes_on_where_its_history_ends() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let aria = world.add(NewStreamer::due("aria")).await?;
    let service = world.service(&[]).await?;
    run(&service, &planned()).await;
    world.sql("DELETE FROM token_refresh.streamers").await?;
    assert_eq!(run(&service, &forced()).await.report.success, 1);
    let fences = "SELECT array_agg(fence ORDER BY fence) FROM token_refresh.refreshes WHERE streamer_id = $1";
    let fences: Vec<i64> = sqlx::query_scalar(fences).bind(aria.0).fetch_one(&world.pool).await?;
    assert_eq!(fences, [1, 2]);
    Ok(())
}

#[tokio::test]
async fn what_is_leased_is_not_forgotten() -> Result<()> {
    let still = Still::new().await?;
    let leased = "INSERT INTO token_refresh.streamers (streamer_id, fence, leased_until) VALUES (gen_random_uuid(), 1, $1)";
    sqlx::query(leased).bind(still.now() + TimeDelta::minutes(1)).execute(&still.world.pool).await?;
    let database = still.world.database().await?;
    assert_eq!(database.forget_gone(still.now()).await?, 0);
    still.turn(1);
    assert_eq!(database.forget_gone(still.now()).await?, 1);
    Ok(())
}

/// What happens at the second deletion, which the first must not depend on.
async fn at_the_second_deletion(world: &World, what: &str) -> Result<()> {
    let function = format!(
        "CREATE FUNCTION second() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN IF nextval('deletions') > 1 THEN {what}; END IF; RETURN NULL; END $$"
    );
    for statement in [
        "CREATE SEQUENCE deletions",
        &function,
        "CREATE TRIGGER second AFTER DELETE ON token_refresh.refreshes EXECUTE FUNCTION second()",
    ] {
        sqlx::query(AssertSqlSafe(statement)).execute(&world.pool).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_was_forgotten_stays_so_where_the_rest_fails() -> Result<()> {
    let still = with_old_history().await?;
    at_the_second_deletion(&still.world, "RAISE EXCEPTION 'no'").await?;
    host(&still.world).service().await?.follow_up(Trigger::Planned, None).await;
    assert_eq!(kept(&still.world).await?, OLD - 10_000);
    Ok(())
}

/// Whether there was time for the first depends on the machine.
#[tokio::test]
async fn what_takes_too_long_is_given_up() -> Result<()> {
    let still = with_old_history().await?;
    at_the_second_deletion(&still.world, "PERFORM pg_sleep(3600)").await?;
    let deadline = still.clock.monotonic() + DEADLINE_MARGIN + TimeDelta::seconds(2);
    host(&still.world).service().await?.follow_up(Trigger::Planned, Some(deadline)).await;
    let kept = kept(&still.world).await?;
    assert!([OLD, OLD - 10_000].contains(&kept), "{kept}");
    Ok(())
}
