//! What a function does when its cycle is over, and that it ends in time.

use adapters::store::HISTORY_KEPT;
use anyhow::Result;
use chrono::TimeDelta;
use domain::refresh::LAST_WORDS;
use domain::schedule::Trigger;
use end_to_end::Still;
use end_to_end::requests::runner;
use local::world::World;

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

/// Each deletion takes a second here, and there are less than three.
#[tokio::test]
async fn what_there_is_no_time_to_forget_stays_and_the_rest_is_forgotten() -> Result<()> {
    let still = with_old_history().await?;
    let world = &still.world;
    for statement in [
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$",
        "CREATE TRIGGER slow AFTER DELETE ON token_refresh.refreshes EXECUTE FUNCTION slow()",
    ] {
        sqlx::query(statement).execute(&world.pool).await?;
    }
    let deadline = still.now() + LAST_WORDS + TimeDelta::milliseconds(2_500);
    runner(world).await?.follow_up(Trigger::Planned, Some(deadline)).await;
    let kept = kept(world).await?;
    assert!(kept > 0 && kept < OLD, "{kept} are kept");
    Ok(())
}
