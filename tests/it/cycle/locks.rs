//! Rows and tables that another transaction has locked, for however long.

use std::time::Duration;

use anyhow::Result;
use tokens_domain::grant::GrantError;
use tokens_domain::report::{Outcome, Skip};
use tokens_local::world::NewStreamer;
use tokens_service::Host;
use tokens_tests::cycles::planned;
use tokens_tests::requests::{host, membership, request};
use tokens_tests::{Still, run};
use tokio::time::timeout;

/// Nothing here takes so long, unless it waits for a lock that is not released.
const FOREVER: Duration = Duration::from_mins(1);

/// What a person in psql may have forgotten to end.
const FORGOTTEN: [&str; 4] = [
    "SELECT FROM streamers WHERE twitch_login = 'locked' FOR UPDATE",
    "SELECT FROM streamers WHERE twitch_login = 'locked' FOR NO KEY UPDATE",
    "UPDATE streamers SET twitch_display_name = 'Renamed' WHERE twitch_login = 'locked'",
    "DELETE FROM streamers WHERE twitch_login = 'locked'",
];

#[tokio::test]
async fn a_locked_row_holds_up_no_other_streamer_and_costs_no_pair() -> Result<()> {
    for forgotten in FORGOTTEN {
        let still = Still::one_time().await?;
        let world = &still.world;
        world.add(NewStreamer::due("other")).await?;
        let locked = world.add(NewStreamer::due("locked")).await?;
        let service = world.service(&[]).await?;
        let mut transaction = world.pool.begin().await?;
        sqlx::query(forgotten).execute(&mut *transaction).await?;

        let ran = timeout(FOREVER, run(&service, &planned())).await?;
        assert_eq!((ran.report.success, &ran.report.stopped), (1, &None), "{forgotten}");
        assert_eq!(ran.outcome("locked"), &Outcome::Skipped(Skip::Leased), "{forgotten}");
        assert_eq!(world.twitch.activity("locked")?.refresh_requests, 0, "{forgotten}");

        transaction.rollback().await?;
        let ran = run(&service, &planned()).await;
        assert!(matches!(ran.outcome("locked"), Outcome::Refreshed { .. }), "{forgotten}");
        assert!(world.has_live_token(locked).await?, "{forgotten}");
    }
    Ok(())
}

#[tokio::test]
async fn a_grant_waits_for_a_locked_row_as_for_a_lease() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let key = membership(world, world.add(NewStreamer::due("locked")).await?).await?;
    let host: Host = host(world);
    let mut transaction = world.pool.begin().await?;
    sqlx::query(FORGOTTEN[0]).execute(&mut *transaction).await?;
    assert_eq!(timeout(FOREVER, host.grant(key, &request())).await?, Err(GrantError::Busy));
    transaction.rollback().await?;
    assert!(host.grant(key, &request()).await.is_ok());
    Ok(())
}

/// As a migration of the application's does, for longer than any statement of ours waits for a lock.
#[tokio::test]
async fn a_locked_table_is_waited_for() -> Result<()> {
    for table in ["LOCK TABLE campaign_memberships, streamers", "LOCK TABLE token_refresh.streamers"] {
        let still = Still::new().await?;
        let world = &still.world;
        world.add(NewStreamer::due("someone")).await?;
        let service = world.service(&[]).await?;
        let mut transaction = world.pool.begin().await?;
        sqlx::query(table).execute(&mut *transaction).await?;
        let until_later = async {
            sqlx::query("SELECT pg_sleep(4)").execute(&mut *transaction).await?;
            transaction.rollback().await
        };
        let cycle = planned();
        let (ran, held) = tokio::join!(run(&service, &cycle), until_later);
        held?;
        assert_eq!((ran.report.success, ran.report.stopped), (1, None), "{table}");
    }
    Ok(())
}
