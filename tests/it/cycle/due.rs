//! Which streamers a cycle refreshes, validates and leaves alone, on a real PostgreSQL and a simulated Twitch over HTTP, on a
//! clock that is turned.

use anyhow::Result;
use chrono::TimeDelta;
use tokens_domain::Clock as _;
use tokens_domain::policy::NotDue;
use tokens_domain::refresh::{Cycle, Limits};
use tokens_domain::report::{Outcome, Skip, Stop};
use tokens_local::world::NewStreamer;
use tokens_tests::cycles::{forced, planned, sweep};
use tokens_tests::{Sql as _, Still, run, with_change_at};
use tokens_twitch::TwitchClient;

#[tokio::test]
async fn what_is_due_is_refreshed_and_nothing_else() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let due = world.add(NewStreamer::due("due")).await?;
    let fresh = world.add(NewStreamer::fresh("fresh")).await?;
    world.add(NewStreamer { authorized_for: None, ..NewStreamer::due("never_asked") }).await?;
    let over = Some(TimeDelta::seconds(-1));
    world.add(NewStreamer { authorized_for: over, ..NewStreamer::due("over") }).await?;
    let last_second = Some(TimeDelta::seconds(1));
    world.add(NewStreamer { authorized_for: last_second, ..NewStreamer::due("last_second") }).await?;
    world.add(NewStreamer { is_active: false, ..NewStreamer::due("inactive") }).await?;
    let pending = world.add(NewStreamer::due("pending")).await?;
    sqlx::query("UPDATE campaign_memberships SET status = 'PENDING' WHERE streamer_id = $1")
        .bind(pending.0)
        .execute(&world.pool)
        .await?;
    let (before, fresh_before) = (world.row(due).await?, world.row(fresh).await?);
    still.turn(1);

    let ran = run(&world.service(&[]).await?, &planned()).await;

    assert_eq!(ran.logins(), ["due", "fresh"], "the second is over by now");
    let expires_at = still.now() + TimeDelta::seconds(14_124);
    assert_eq!(ran.outcome("due"), &Outcome::Refreshed { expires_at: Some(expires_at) });
    let left = TimeDelta::hours(3) - TimeDelta::minutes(1);
    assert_eq!(ran.outcome("fresh"), &Outcome::Skipped(Skip::NotDue(NotDue::Valid { left })));
    assert_eq!((ran.report.total, ran.report.success, ran.report.skipped), (2, 1, 1));
    let row = world.row(due).await?;
    assert_eq!(row.token_expires_at, Some(expires_at));
    assert_eq!(row.last_token_refresh_at, Some(still.now()));
    assert_eq!(row.updated_at, still.now());
    assert_ne!(row.access_token_encrypted, before.access_token_encrypted);
    assert!(world.has_live_token(due).await?);
    assert_eq!(world.row(fresh).await?, fresh_before);
    assert_eq!(world.twitch.totals().token_requests, 1);
    let history: (String, String) =
        sqlx::query_as("SELECT trigger, outcome FROM token_refresh.refreshes").fetch_one(&world.pool).await?;
    assert_eq!(history, ("planned".to_owned(), "refreshed".to_owned()));
    Ok(())
}

#[tokio::test]
async fn a_streamer_in_several_campaigns_is_refreshed_once_until_the_last_is_over() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let id = world
        .add(NewStreamer { authorized_for: Some(TimeDelta::minutes(30)), ..NewStreamer::due("both") })
        .await?;
    // The end of the second is the same as that of the first: neither may count twice.
    world.sql("WITH other AS (INSERT INTO campaigns (name, owner_id, created_at, updated_at)
             SELECT 'Other', owner_id, created_at, updated_at FROM campaigns, generate_series(1, 2) RETURNING id)
         INSERT INTO campaign_memberships (campaign_id, streamer_id, status, invited_at, created_at, updated_at,
             poll_authorization_expires_at)
         SELECT other.id, m.streamer_id, 'ACTIVE', m.invited_at, m.created_at, m.updated_at,
             m.poll_authorization_expires_at FROM other, campaign_memberships m").await?;
    let service = world.service(&[]).await?;

    let ran = run(&service, &planned()).await;
    assert_eq!((ran.report.total, ran.report.success), (1, 1));

    sqlx::query("UPDATE campaign_memberships SET poll_authorization_expires_at = poll_authorization_expires_at + interval '1 hour'
                 WHERE id = (SELECT id FROM campaign_memberships WHERE streamer_id = $1 LIMIT 1)")
        .bind(id.0)
        .execute(&world.pool)
        .await?;
    still.turn(60);
    assert_eq!(run(&service, &forced()).await.report.success, 1);
    still.turn(60);
    assert_eq!(run(&service, &forced()).await.report.total, 0);
    Ok(())
}

#[tokio::test]
async fn many_pages_are_walked_and_each_streamer_is_met_once() -> Result<()> {
    let still = Still::one_time().await?;
    let world = &still.world;
    // More than two pages; ends that differ and ends that don't.
    let streamers = (0..2_345_i64).map(|n| NewStreamer {
        authorized_for: Some(TimeDelta::seconds(3_600 + n % 700)),
        ..NewStreamer::due(format!("s{n}"))
    });
    world.add_all(streamers.collect()).await?;

    let ran = run(&world.service(&[]).await?, &planned()).await;

    assert_eq!((ran.report.total, ran.report.success), (2_345, 2_345));
    assert_eq!(ran.logins().len(), 2_345);
    let totals = world.twitch.totals();
    assert_eq!((totals.refreshes, totals.reuses), (2_345, 0));
    assert!(totals.peak_in_flight <= 64, "{} in flight", totals.peak_in_flight);
    Ok(())
}

#[tokio::test]
async fn the_sweep_validates_hourly_and_a_dead_token_is_due_at_once() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.add(NewStreamer::fresh("alive")).await?;
    let dead = world.add(NewStreamer::fresh("dead")).await?;
    let service = world.service(&[]).await?;
    run(&service, &forced()).await;
    let validations = |login: &str| world.twitch.activity(login).map(|activity| activity.validations);

    still.turn(39);
    assert_eq!(run(&service, &sweep()).await.report.validated, 0, "a refresh counts as a validation");
    still.turn(1);
    assert_eq!(run(&service, &planned()).await.report.validated, 0, "only the sweep validates");
    let ran = run(&service, &sweep()).await;
    assert_eq!((ran.report.validated, ran.report.skipped), (2, 2));
    still.turn(39);
    run(&service, &sweep()).await;
    assert_eq!(validations("alive")?, 1);

    // The access token dies, but not the grant: a new one can be had.
    still.turn(1);
    let config = world.config(&[])?;
    let twitch = TwitchClient::new(config.twitch, world.clock.clone())?;
    twitch.revoke(&world.twitch.current_tokens("dead").unwrap().access).await?;
    assert!(!world.has_live_token(dead).await?);
    let ran = run(&service, &sweep()).await;
    assert!(matches!(ran.outcome("alive"), Outcome::Skipped(Skip::Validated { .. })));
    assert!(matches!(ran.outcome("dead"), Outcome::Refreshed { .. }));
    assert!(world.has_live_token(dead).await?);
    Ok(())
}

#[tokio::test]
async fn a_shorter_lifetime_from_validation_is_stored() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let id =
        world.add(NewStreamer { token_left: TimeDelta::minutes(90), ..NewStreamer::due("short") }).await?;
    sqlx::query("UPDATE streamers SET token_expires_at = $1")
        .bind(still.now() + TimeDelta::hours(4))
        .execute(&world.pool)
        .await?;
    let service = world.service(&[]).await?;
    assert_eq!(run(&service, &sweep()).await.report.validated, 1);
    assert_eq!(world.row(id).await?.token_expires_at, Some(still.now() + TimeDelta::minutes(90)));

    sqlx::query("UPDATE streamers SET token_expires_at = $1")
        .bind(still.now() + TimeDelta::hours(5))
        .execute(&world.pool)
        .await?;
    still.turn(46);
    assert!(
        matches!(run(&service, &sweep()).await.outcome("short"), Outcome::Refreshed { .. }),
        "44 minutes are left"
    );
    Ok(())
}

#[tokio::test]
async fn near_its_deadline_a_cycle_leaves_the_rest_claimable() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.add(NewStreamer { authorized_for: Some(TimeDelta::hours(1)), ..NewStreamer::due("first") }).await?;
    world.add_all((0..100).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    let service = world.service(&[("TWITCH_MAX_IN_FLIGHT", "1")]).await?;
    let gate = world.twitch.pause("first")?;
    let deadline = Some(still.clock.monotonic() + TimeDelta::seconds(90));
    let time_passes = async {
        still.clock.advance(std::time::Duration::from_secs(40));
        Ok(())
    };
    let cycle = Cycle { limits: Limits::of_function(deadline), ..planned() };
    let ran = with_change_at(gate, run(&service, &cycle), time_passes).await?;
    assert_eq!(ran.report.stopped, Some(Stop::Deadline));
    assert_eq!(
        (ran.report.success, world.twitch.totals().token_requests),
        (1, 1),
        "what was begun is finished"
    );

    let deadline = Some(still.clock.monotonic() + TimeDelta::minutes(5));
    let ran = run(&service, &Cycle { limits: Limits::of_function(deadline), ..planned() }).await;
    assert_eq!((ran.report.success, ran.report.stopped), (100, None));
    Ok(())
}

#[tokio::test]
async fn a_cycle_without_time_begins_nothing_and_says_so() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.add(NewStreamer::due("someone")).await?;
    let deadline = Some(still.clock.monotonic() + TimeDelta::seconds(60));
    let ran =
        run(&world.service(&[]).await?, &Cycle { limits: Limits::of_function(deadline), ..planned() }).await;
    assert_eq!((ran.report.stopped, ran.report.total), (Some(Stop::NoTime), 0));
    Ok(())
}
