//! Refreshes come before validations, and what Twitch limits on one endpoint holds back no other.

use anyhow::Result;
use chrono::TimeDelta;
use tokens_domain::report::{Outcome, Skip};
use tokens_local::twitch::{Endpoint, Fault};
use tokens_local::world::{NewStreamer, World};
use tokens_tests::cycles::sweep;
use tokens_tests::{Sql as _, Still, run, with_change_at};

const LIMITED: Fault = Fault::TooManyRequests { retry_after: Some(30), ratelimit_reset: None };

/// A cycle goes by the end of the authorization: these are the last.
fn last(streamer: NewStreamer) -> NewStreamer {
    NewStreamer { authorized_for: Some(TimeDelta::hours(13)), ..streamer }
}

async fn add(world: &World, count: usize, streamer: impl Fn(usize) -> NewStreamer) -> Result<()> {
    world.add_all((0..count).map(streamer).collect()).await?;
    Ok(())
}

#[tokio::test]
async fn a_limit_on_validations_holds_back_no_refresh() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.twitch.fault_for_everybody(LIMITED.on(Endpoint::Validate));
    add(world, 200, |n| NewStreamer::fresh(format!("fresh{n}"))).await?;
    let service = world.service(&[("TWITCH_MAX_IN_FLIGHT", "8"), ("TWITCH_MAX_PER_SECOND", "1000")]).await?;
    // The second sweep begins within the half minute that Twitch has asked for.
    for round in 0..2 {
        add(world, 10, |n| last(NewStreamer::due(format!("due{round}_{n}")))).await?;
        let ran = run(&service, &sweep()).await;
        assert_eq!((ran.report.success, ran.report.failed, &ran.report.stopped), (10, 0, &None));
        assert!(matches!(ran.outcome("fresh0"), Outcome::Skipped(Skip::NotValidated(_))));
    }
    Ok(())
}

#[tokio::test]
async fn a_limit_on_refreshes_holds_back_no_validation() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.twitch.fault_for_everybody(LIMITED.on(Endpoint::Token));
    world.add(NewStreamer::due("due")).await?;
    add(world, 20, |n| last(NewStreamer::fresh(format!("fresh{n}")))).await?;
    let ran = run(&world.service(&[]).await?, &sweep()).await;
    assert_eq!((ran.report.validated, ran.report.failed, ran.report.stopped), (20, 1, None));
    Ok(())
}

#[tokio::test]
async fn no_validation_begins_before_the_last_refresh() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    // Those that are due are on the second page.
    add(world, 1_001, |n| NewStreamer::fresh(format!("fresh{n}"))).await?;
    add(world, 2, |n| last(NewStreamer::due(format!("due{n}")))).await?;
    world.twitch.fault_for_everybody(Fault::ServerError.on(Endpoint::Validate));
    let service = world.service(&[("TWITCH_MAX_IN_FLIGHT", "1")]).await?;
    let gates = (world.twitch.pause("due0")?, world.twitch.pause("due1")?);
    let at_the_second = async {
        gates.1.arrived().await;
        assert_eq!(world.twitch.totals().validate_requests, 0);
        drop(gates.1);
        anyhow::Ok(())
    };
    let cycle = sweep();
    let cycle = async { with_change_at(gates.0, run(&service, &cycle), async { Ok(()) }).await };
    let (ran, seen) = tokio::join!(cycle, at_the_second);
    seen?;
    let report = ran?.report;
    assert_eq!((report.success, report.skipped, report.stopped), (2, 1_001, None));
    // When validations are given up, the rest is not even leased.
    assert!((20..=21).contains(&world.twitch.totals().validate_requests));
    let leased = world.count("SELECT count(*) FROM token_refresh.streamers WHERE fence > 0").await?;
    assert!(leased < 40, "{leased} were leased");
    Ok(())
}
