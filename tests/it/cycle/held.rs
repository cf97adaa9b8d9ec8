//! No token is sent under a lease that has ended, whichever clock says so.

use std::time::Duration;

use anyhow::Result;
use chrono::TimeDelta;
use tokens_domain::Clock as _;
use tokens_domain::report::{Outcome, Skip};
use tokens_local::clock::TurnableClock;
use tokens_local::twitch::{Endpoint, Fault};
use tokens_local::world::NewStreamer;
use tokens_tests::cycles::planned;
use tokens_tests::{Ran, Still, run, with_change_at};

/// Twitch is busy with the first call, and while its answer is on its way this happens. Then the quick retry is due.
async fn before_a_quick_retry(fault: Fault, happens: fn(&TurnableClock)) -> Result<(Still, Ran)> {
    let still = Still::one_time().await?;
    let world = &still.world;
    world.add(NewStreamer::due("aria")).await?;
    world.twitch.fault("aria", fault.on(Endpoint::Token).times(1))?;
    let gate = world.twitch.pause("aria")?;
    let service = world.service(&[]).await?;
    let happens = async {
        happens(&still.clock);
        Ok(())
    };
    let cycle = planned();
    let ran = with_change_at(gate, run(&service, &cycle), happens).await?;
    Ok((still, ran))
}

#[tokio::test]
async fn a_process_that_stood_still_sends_nothing_when_it_goes_on() -> Result<()> {
    let busy = [
        Fault::ServiceUnavailable { retry_after: None },
        Fault::ServiceUnavailable { retry_after: Some(1) },
        Fault::TooManyRequests { retry_after: Some(0), ratelimit_reset: None },
    ];
    let frozen: [fn(&TurnableClock); 3] = [
        // Slow: both clocks have gone on.
        |clock| clock.advance(Duration::from_mins(3)),
        // Asleep: the monotonic clock stood still.
        |clock| clock.set(clock.now() + TimeDelta::minutes(3)),
        // Slow, and the wall clock was set back.
        |clock| {
            clock.advance(Duration::from_mins(3));
            clock.set(clock.now() - TimeDelta::minutes(10));
        },
    ];
    for (fault, happens) in busy.into_iter().zip(frozen) {
        let (still, ran) = before_a_quick_retry(fault, happens).await?;
        assert_eq!(ran.outcome("aria"), &Outcome::Skipped(Skip::LeaseEnded), "{fault}");
        assert_eq!(still.world.twitch.totals().token_requests, 1, "{fault}");
        let (leases, marks): (i64, i64) = sqlx::query_as(
            "SELECT count(leased_until), count(token_refresh_failed_at) FROM token_refresh.streamers
             JOIN streamers ON id = streamer_id",
        )
        .fetch_one(&still.world.pool)
        .await?;
        assert_eq!((leases, marks), (0, 0), "{fault}: given back, and nothing is marked");
    }
    Ok(())
}

#[tokio::test]
async fn a_pause_within_the_lease_costs_nothing() -> Result<()> {
    let busy = Fault::ServiceUnavailable { retry_after: None };
    let (_, ran) = before_a_quick_retry(busy, |clock| clock.advance(Duration::from_secs(100))).await?;
    assert!(matches!(ran.outcome("aria"), Outcome::Refreshed { .. }), "{:?}", ran.outcome("aria"));
    Ok(())
}

/// The pace holds the second streamer's call back until the first has been answered, minutes later.
#[tokio::test]
async fn a_call_that_waited_for_its_turn_too_long_is_not_sent() -> Result<()> {
    let still = Still::one_time().await?;
    let world = &still.world;
    world.add_all(["aria", "bastien"].map(NewStreamer::due).into()).await?;
    let service = world.service(&[("TWITCH_MAX_PER_SECOND", "1")]).await?;
    let cycle = planned();
    let asleep = async {
        world.twitch.wait_until(|totals| totals.token_requests == 1).await;
        still.clock.set(still.now() + TimeDelta::minutes(3));
    };
    let (ran, ()) = tokio::join!(run(&service, &cycle), asleep);
    assert_eq!(ran.report.success + ran.report.skipped, 2, "{:?}", ran.report);
    assert_eq!(ran.report.skipped, 1, "{:?}", ran.report);
    assert_eq!(world.twitch.totals().token_requests, 1);
    assert_eq!(world.twitch.totals().reuses, 0);
    Ok(())
}
