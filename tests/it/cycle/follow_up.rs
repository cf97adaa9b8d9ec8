//! What a function does when its cycle is over, and that it ends in time.

use adapters::store::HISTORY_KEPT;
use anyhow::Result;
use chrono::TimeDelta;
use domain::Clock as _;
use domain::refresh::DEADLINE_MARGIN;
use domain::schedule::Trigger;
use end_to_end::Still;
use end_to_end::requests::runner;
use local::world::World;
use sqlx::AssertSqlSafe;

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
    runner(&still.world).await?.follow_up(Trigger::Planned, None).await;
    assert_eq!(kept(&still.world).await?, 0);
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
    runner(&still.world).await?.follow_up(Trigger::Planned, None).await;
    assert_eq!(kept(&still.world).await?, OLD - 10_000);
    Ok(())
}

/// Whether there was time for the first depends on the machine.
#[tokio::test]
async fn what_takes_too_long_is_given_up() -> Result<()> {
    let still = with_old_history().await?;
    at_the_second_deletion(&still.world, "PERFORM pg_sleep(3600)").await?;
    let deadline = still.clock.monotonic() + DEADLINE_MARGIN + TimeDelta::seconds(2);
    runner(&still.world).await?.follow_up(Trigger::Planned, Some(deadline)).await;
    let kept = kept(&still.world).await?;
    assert!([OLD, OLD - 10_000].contains(&kept), "{kept}");
    Ok(())
}
