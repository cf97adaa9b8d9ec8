//! What a cycle makes of failures: the class of each answer, and the failure rule.

use anyhow::Result;
use chrono::TimeDelta;
use tokens_domain::policy::{FailureKind, NotDue};
use tokens_domain::report::{Outcome, Skip, Standing, Stop};
use tokens_local::twitch::{Endpoint, Fault};
use tokens_local::world::NewStreamer;
use tokens_tests::cycles::{failed_as, forced, planned, sweep};
use tokens_tests::people::refused_before;
use tokens_tests::{Sql as _, Still, run};

/// Each answer over a socket; the rules by which it is read are tested in `twitch::answer`.
#[tokio::test]
async fn each_answer_has_its_class() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let refusals = [Fault::InvalidRefreshToken, Fault::InvalidGrant, Fault::Unauthorized];
    let outages = [
        Fault::ServerError,
        Fault::ServiceUnavailable { retry_after: None },
        Fault::TooManyRequests { retry_after: Some(3_600), ratelimit_reset: None },
        Fault::HtmlError,
        Fault::HtmlSuccess,
        Fault::Empty,
        Fault::NotJson,
        Fault::HugeBody,
        Fault::Disconnect,
        Fault::Truncated,
        Fault::ProcessedButLost,
    ];
    let harmless = [Fault::OddTypes, Fault::NoExpiresIn, Fault::ScopeString, Fault::ScopeNull];
    for fault in refusals.into_iter().chain(outages).chain(harmless) {
        // A world's time stands still and its failures pile up, so each answer has a Twitch client of its own: one
        // that was asked to wait would not call again.
        let id = world
            .add(NewStreamer { token_left: TimeDelta::minutes(-1), ..NewStreamer::due(fault.name()) })
            .await?;
        world.twitch.fault(fault.name(), fault.on(Endpoint::Token))?;
        let service = world.service(&[]).await?;
        let ran = run(&service, &planned()).await;
        let (outcome, row) = (ran.outcome(fault.name()), world.row(id).await?);
        let expected = if refusals.contains(&fault) {
            Some(FailureKind::Refusal)
        } else if outages.contains(&fault) || fault == Fault::OddTypes {
            Some(FailureKind::Outage)
        } else {
            None
        };
        assert_eq!(failed_as(outcome), expected, "{}: {outcome:?}", fault.name());
        assert!(row.is_active, "{}", fault.name());
        assert_eq!(row.token_refresh_failed_at, expected.map(|_| still.now()), "{}", fault.name());
        assert_eq!(world.has_live_token(id).await?, expected.is_none(), "{}", fault.name());
        world.twitch.clear_faults(fault.name())?;
    }
    Ok(())
}

#[tokio::test]
async fn a_second_refusal_after_15_min_deactivates_and_a_success_clears_the_first() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let dead = world.add(NewStreamer::due("dead")).await?;
    let sick =
        world.add(NewStreamer { token_left: TimeDelta::minutes(-1), ..NewStreamer::due("sick") }).await?;
    world.twitch.disconnect("dead")?;
    world.twitch.fault("sick", Fault::InvalidGrant)?;
    let service = world.service(&[]).await?;

    let ran = run(&service, &planned()).await;
    let retry_at = still.now() + TimeDelta::minutes(15);
    for login in ["dead", "sick"] {
        let Outcome::Failed { standing, .. } = ran.outcome(login) else { panic!("{:?}", ran.outcome(login)) };
        assert_eq!(standing, &Standing::Recorded { kind: FailureKind::Refusal, retry_at });
    }

    still.turn(14);
    let ran = run(&service, &sweep()).await;
    assert_eq!(ran.outcome("dead"), &Outcome::Skipped(Skip::NotDue(NotDue::RetryAt(retry_at))));
    let ran = run(&service, &forced()).await;
    let Outcome::Failed { standing, .. } = ran.outcome("dead") else { panic!("{:?}", ran.outcome("dead")) };
    assert_eq!(standing, &Standing::Repeated { retry_at }, "a forced attempt counts for nothing");

    still.turn(1);
    world.twitch.clear_faults("sick")?;
    let ran = run(&service, &sweep()).await;
    assert_eq!(ran.report.deactivated, 1);
    let row = world.row(dead).await?;
    assert!(!row.is_active);
    assert_eq!((row.token_refresh_failed_at, row.updated_at), (None, still.now()));
    let row = world.row(sick).await?;
    assert_eq!((row.is_active, row.token_refresh_failed_at), (true, None));
    assert!(world.has_live_token(sick).await?);

    still.turn(1);
    assert_eq!(run(&service, &forced()).await.logins(), ["sick"], "a deactivated streamer is left alone");
    Ok(())
}

#[tokio::test]
async fn deactivation_has_a_switch_and_a_budget() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    for n in 0..10 {
        world.add(NewStreamer::due(format!("dead{n}"))).await?;
        world.twitch.disconnect(&format!("dead{n}"))?;
    }
    // Its success beside the first refusals confirms that Twitch is not at fault.
    world.add(NewStreamer::due("alive")).await?;
    let active = async || {
        sqlx::query_scalar::<_, i64>("SELECT count(*) FROM streamers WHERE is_active")
            .fetch_one(&world.pool)
            .await
    };
    run(&world.service(&[]).await?, &planned()).await;
    still.turn(15);
    let ran = run(&world.service(&[("DEACTIVATION", "off")]).await?, &planned()).await;
    assert_eq!((ran.report.deactivated, active().await?), (0, 11), "switched off");
    assert_eq!(ran.report.alarms.total(), 10);
    let Outcome::Failed { reason, .. } = ran.outcome("dead0") else { panic!("{:?}", ran.report) };
    assert!(reason.ends_with("but deactivation is switched off"), "{reason}");

    let service = world.service(&[]).await?;
    still.turn(15);
    assert_eq!(
        run(&service, &planned()).await.report.deactivated,
        0,
        "what came before counted as an outage"
    );
    still.turn(15);
    let ran = run(&service, &planned()).await;
    assert_eq!(
        (ran.report.deactivated, ran.report.alarms.total(), active().await?),
        (3, 7, 8),
        "the budget of eleven is 3"
    );
    still.turn(61);
    let ran = run(&service, &planned()).await;
    assert_eq!((ran.report.deactivated, active().await?), (3, 5), "an hour later there is a new one");
    Ok(())
}

/// Streamers that were deactivated before the hour are not authorized any more, however long their authorization goes on.
#[tokio::test]
async fn the_budget_is_a_fifth_of_the_streamers_active_when_the_hour_began() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let inactive = |n| NewStreamer { is_active: false, ..NewStreamer::fresh(format!("inactive{n}")) };
    world.add_all((0..60).map(inactive).collect()).await?;
    world.add_all((0..20).map(|n| NewStreamer::fresh(format!("alive{n}"))).collect()).await?;
    // Refreshed at the time of the refusals.
    world.add(NewStreamer::due("witness")).await?;
    let service = world.service(&[]).await?;
    // One and then the others: the one counts among the authorized, and against the budget of 41 / 5.
    for dead in [0..1, 1..20] {
        for n in dead {
            let id = world.add(NewStreamer::due(format!("dead{n}"))).await?;
            world.twitch.disconnect(&format!("dead{n}"))?;
            refused_before(world, id).await?;
        }
        run(&service, &planned()).await;
    }
    let deactivated = "SELECT count(*) FROM token_refresh.deactivations";
    assert_eq!(world.count(deactivated).await?, 8);
    Ok(())
}

#[tokio::test]
async fn wrong_credentials_end_the_cycle_and_mark_no_streamer() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let ids = world.add_all((0..200).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    let ran = run(&world.service(&[("TWITCH_CLIENT_SECRET", "wrong")]).await?, &planned()).await;
    let Some(Stop::Misconfigured(reason)) = &ran.report.stopped else { panic!("{:?}", ran.report) };
    assert!(reason.contains("check TWITCH_CLIENT_ID and TWITCH_CLIENT_SECRET"), "{reason}");
    assert_eq!((ran.report.failed, ran.report.success), (0, 0));
    assert!(world.twitch.totals().token_requests <= 64);
    for fault in [Fault::UnauthorizedClient, Fault::UnknownClient] {
        world.twitch.fault_for_everybody(fault);
        let ran = run(&world.service(&[]).await?, &planned()).await;
        assert!(matches!(ran.report.stopped, Some(Stop::Misconfigured(_))), "{fault:?}: {:?}", ran.report);
        assert_eq!(ran.report.failed, 0, "{fault:?}");
    }
    world.twitch.clear_faults_for_everybody();
    for id in &ids {
        assert_eq!(world.row(*id).await?.token_refresh_failed_at, None);
    }
    // The leases were given back: the next run with the right secret refreshes all.
    assert_eq!(run(&world.service(&[]).await?, &planned()).await.report.success, 200);
    Ok(())
}

#[tokio::test]
async fn a_twitch_that_is_down_is_not_hammered() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.add_all((0..500).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    world.twitch.fault_for_everybody(Fault::ServerError);
    let ran = run(&world.service(&[("TWITCH_MAX_IN_FLIGHT", "8")]).await?, &planned()).await;
    assert_eq!(ran.report.stopped, Some(Stop::Outages));
    let requests = world.twitch.totals().token_requests;
    assert!((20..=28).contains(&requests), "{requests} requests");
    world.twitch.clear_faults_for_everybody();
    let ran = run(&world.service(&[]).await?, &planned()).await;
    assert_eq!(ran.report.success, 500 - requests, "what failed waits, the rest was left claimable");
    Ok(())
}

#[tokio::test]
async fn a_row_that_cannot_be_read_fails_alone() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let set = async |login: &str, column: &str, text: Option<&str>| -> Result<()> {
        world.add(NewStreamer { token_left: TimeDelta::minutes(-1), ..NewStreamer::due(login) }).await?;
        let sql = format!("UPDATE streamers SET {column} = $1 WHERE twitch_login = $2");
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(text).bind(login).execute(&world.pool).await?;
        Ok(())
    };
    set("invalid", "access_token_encrypted", Some("invalid")).await?;
    set("no_refresh", "refresh_token_encrypted", None).await?;
    set("bad_refresh", "refresh_token_encrypted", Some("%%%")).await?;
    set("no_access", "access_token_encrypted", None).await?;
    set(
        "other_key",
        "refresh_token_encrypted",
        Some("v1.other.AAAAAAAAAAAAAAAA.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
    )
    .await?;
    // AdonisJS's own vector, made with another APP_KEY.
    let foreign = "vqNIldEtDHf7KVvNu2gcY3gBe9hdT8gBH7EzInGywb4.QUJDREVGR0hJSktMTU5PUA.92ju9yy9Som8otDaxGvIHf3xWcwdFi2m-Ftr81N_9kQ";
    set("foreign", "refresh_token_encrypted", Some(foreign)).await?;
    world.add(NewStreamer::due("healthy")).await?;

    let ran = run(&world.service(&[]).await?, &planned()).await;

    for login in ["invalid", "no_refresh", "bad_refresh"] {
        assert_eq!(failed_as(ran.outcome(login)), Some(FailureKind::Refusal), "{login}");
    }
    for login in ["other_key", "foreign"] {
        assert_eq!(failed_as(ran.outcome(login)), Some(FailureKind::Outage), "{login}");
        assert!(
            matches!(ran.outcome(login), Outcome::Failed { alarm: Some(_), .. }),
            "{login} rings the alarm"
        );
    }
    assert!(matches!(ran.outcome("healthy"), Outcome::Refreshed { .. }));
    assert!(matches!(ran.outcome("no_access"), Outcome::Refreshed { .. }), "a refresh token is all it takes");
    assert_eq!((ran.report.failed, ran.report.success, ran.report.alarms.total()), (5, 2, 2));
    Ok(())
}

#[tokio::test]
async fn retry_delay_is_a_setting() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.add(NewStreamer::due("aria")).await?;
    world.sql("UPDATE streamers SET access_token_encrypted = 'invalid'").await?;
    let service = world.service(&[("RETRY_DELAY", "60")]).await?;
    for (seconds, deactivated) in [(0, 0), (59, 0), (1, 1)] {
        still.clock.advance(std::time::Duration::from_secs(seconds));
        let ran = run(&service, &forced()).await;
        assert_eq!((ran.report.failed, ran.report.deactivated), (1, deactivated), "{seconds}");
    }
    Ok(())
}
