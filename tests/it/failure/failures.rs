//! What becomes of failures: each answer's class, and the failure rule over a whole cycle.

use std::pin::pin;

use anyhow::Result;
use chrono::TimeDelta;
use domain::policy::{FailureKind, NotDue};
use domain::ports::{Permit, RefreshError, Twitch as _};
use domain::report::{Outcome, Skip, Standing, Stop};
use end_to_end::cycles::{failed_as, forced, planned, sweep};
use end_to_end::entrance::Entrance;
use end_to_end::people::refused_before;
use end_to_end::{Still, run};
use local::twitch::{Endpoint, Fault, Settings};
use local::world::NewStreamer;
use tokio::net::TcpListener;
use twitch::TwitchClient;

/// Each answer that Twitch can give, and what it makes of the streamer.
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
        // that was told to wait would not call again.
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
async fn twitch_out_of_reach_or_silent_is_an_outage() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let id = world.add(NewStreamer::due("someone")).await?;
    // Port 9 is discard: nobody listens there.
    let service = world.service(&[("TWITCH_ID_URL", "http://127.0.0.1:9")]).await?;
    let ran = run(&service, &planned()).await;
    assert_eq!(failed_as(ran.outcome("someone")), Some(FailureKind::Outage));
    let Outcome::Failed { reason, .. } = ran.outcome("someone") else { panic!("{:?}", ran.report) };
    assert!(reason.contains("no connection to Twitch"), "{reason}");

    still.turn(15);
    world.twitch.fault("someone", Fault::Hang)?;
    let ran = run(&world.service(&[]).await?, &planned()).await;
    assert_eq!(failed_as(ran.outcome("someone")), Some(FailureKind::Outage));
    let Outcome::Failed { reason, .. } = ran.outcome("someone") else { panic!("{:?}", ran.report) };
    assert!(reason.contains("within 10 s"), "{reason}");
    assert!(world.row(id).await?.is_active);
    Ok(())
}

#[tokio::test]
async fn a_busy_twitch_is_asked_again_at_once_but_not_one_that_may_have_processed_it() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    for (fault, requests, success) in [
        (Fault::TooManyRequests { retry_after: Some(1), ratelimit_reset: None }, 3, true),
        (Fault::ServiceUnavailable { retry_after: None }, 3, true),
        (Fault::ServerError, 1, false),
        (Fault::ProcessedButLost, 1, false),
    ] {
        world.add(NewStreamer::due(fault.name())).await?;
        world.twitch.fault(fault.name(), fault.times(2))?;
        let ran = run(&world.service(&[]).await?, &planned()).await;
        let refreshed = matches!(ran.outcome(fault.name()), Outcome::Refreshed { .. });
        assert_eq!(refreshed, success, "{}", fault.name());
        assert_eq!(world.twitch.activity(fault.name())?.refresh_requests, requests, "{}", fault.name());
    }
    Ok(())
}

#[tokio::test]
async fn a_silence_without_end_is_an_outage_and_no_panic() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.add(NewStreamer::due("someone")).await?;
    let for_ever = Some(i64::MAX.unsigned_abs());
    for fault in [
        Fault::TooManyRequests { retry_after: for_ever, ratelimit_reset: None },
        Fault::TooManyRequests { retry_after: None, ratelimit_reset: for_ever },
    ] {
        world.twitch.fault("someone", fault)?;
        let ran = run(&world.service(&[]).await?, &planned()).await;
        assert_eq!(
            failed_as(ran.outcome("someone")),
            Some(FailureKind::Outage),
            "{:?}",
            ran.outcome("someone")
        );
        still.turn(15);
    }
    Ok(())
}

#[tokio::test]
async fn a_second_refusal_after_the_delay_deactivates_and_a_success_forgives() -> Result<()> {
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
async fn outages_never_deactivate_however_many() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let id = world.add(NewStreamer::due("patient")).await?;
    world.twitch.fault("patient", Fault::ServerError)?;
    let service = world.service(&[]).await?;
    for _ in 0..12 {
        assert_eq!(run(&service, &sweep()).await.report.failed, 1);
        assert!(world.row(id).await?.is_active);
        still.turn(15);
    }
    Ok(())
}

#[tokio::test]
async fn a_refusal_while_the_access_token_lives_is_an_outage() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let id = world.add(NewStreamer::due("victim")).await?;
    world.twitch.fault_for_everybody(Fault::InvalidRefreshToken.on(Endpoint::Token));
    let service = world.service(&[]).await?;
    let ran = run(&service, &planned()).await;
    assert_eq!(failed_as(ran.outcome("victim")), Some(FailureKind::Outage));
    still.turn(15);
    run(&service, &planned()).await;
    assert!(world.row(id).await?.is_active);
    Ok(())
}

#[tokio::test]
async fn a_refusal_that_nobody_confirms_is_an_outage() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let healthy = world.add(NewStreamer::due("healthy")).await?;
    let gone = world.add(NewStreamer::due("gone")).await?;
    world.twitch.disconnect("gone")?;
    world.twitch.fault_for_everybody(Fault::InvalidRefreshToken.on(Endpoint::Token));
    world.twitch.fault_for_everybody(Fault::ServerError.on(Endpoint::Validate));
    let service = world.service(&[]).await?;
    for _ in 0..3 {
        let ran = run(&service, &planned()).await;
        for login in ["healthy", "gone"] {
            assert_eq!(failed_as(ran.outcome(login)), Some(FailureKind::Outage), "{login}");
        }
        still.turn(15);
    }

    world.twitch.clear_faults_for_everybody();
    let ran = run(&service, &planned()).await;
    assert!(matches!(ran.outcome("healthy"), Outcome::Refreshed { .. }));
    assert_eq!(failed_as(ran.outcome("gone")), Some(FailureKind::Refusal), "the first that counts");
    still.turn(15);
    run(&service, &planned()).await;
    assert_eq!((world.row(healthy).await?.is_active, world.row(gone).await?.is_active), (true, false));
    Ok(())
}

#[tokio::test]
async fn a_failure_that_another_writer_recorded_counts_as_a_refusal() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let id = world.add(NewStreamer::due("old")).await?;
    world.twitch.fault("old", Fault::ServerError)?;
    let service = world.service(&[]).await?;
    run(&service, &planned()).await;
    // We remember an outage, but the existing backend writes a failure of its own over it.
    still.turn(20);
    sqlx::query("UPDATE streamers SET token_refresh_failed_at = $1")
        .bind(still.now() - TimeDelta::minutes(16))
        .execute(&world.pool)
        .await?;
    world.twitch.clear_faults("old")?;
    world.twitch.disconnect("old")?;
    run(&service, &planned()).await;
    assert!(!world.row(id).await?.is_active);
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
    // Refreshed with the first refusals, which so are the streamers' affair and no fault of Twitch's.
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

/// Whoever was deactivated before the hour is not authorized any more, however long the authorization goes on.
#[tokio::test]
async fn the_budget_is_a_fifth_of_who_was_active_when_the_hour_began() -> Result<()> {
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
    assert_eq!(sqlx::query_scalar::<_, i64>(deactivated).fetch_one(&world.pool).await?, 8);
    Ok(())
}

#[tokio::test]
async fn wrong_credentials_mark_nobody_and_end_the_cycle() -> Result<()> {
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
    // The leases were given back: the next run with the right secret refreshes everybody.
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
async fn where_only_validation_is_down_who_is_due_is_refreshed() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.add_all((0..200).map(|n| NewStreamer::fresh(format!("s{n}"))).collect()).await?;
    // A cycle goes by the end of the authorization: they are the last.
    let late = Some(TimeDelta::hours(13));
    for login in ["due", "gone"] {
        world.add(NewStreamer { authorized_for: late, ..NewStreamer::due(login) }).await?;
    }
    world.twitch.disconnect("gone")?;
    world.twitch.fault_for_everybody(Fault::ServerError.on(Endpoint::Validate));
    let ran = run(&world.service(&[("TWITCH_MAX_IN_FLIGHT", "8")]).await?, &sweep()).await;
    assert_eq!(ran.report.stopped, None);
    assert!(matches!(ran.outcome("due"), Outcome::Refreshed { .. }));
    assert_eq!(failed_as(ran.outcome("gone")), Some(FailureKind::Outage), "nobody confirms the refusal");
    let requests = world.twitch.totals().validate_requests;
    assert!((20..=28).contains(&requests), "{requests} requests");
    Ok(())
}

#[tokio::test]
async fn an_endpoint_that_accepts_and_never_speaks_does_not_hold_the_cycle() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.add_all((0..200).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    let mute = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("https://{}", mute.local_addr()?);
    let service = world.service(&[("TWITCH_ID_URL", &url)]).await?;
    let cycle = planned();
    let mut cycle = pin!(run(&service, &cycle));
    let mut connections = Vec::new();
    let ran = loop {
        tokio::select! {
            ran = &mut cycle => break ran,
            accepted = mute.accept() => connections.push(accepted?),
        }
    };
    assert_eq!(ran.report.stopped, Some(Stop::Outages));
    assert!(ran.report.failed < 200, "{:?}", ran.report);
    assert!(connections.len() <= 20, "who waits for a handshake shares its outcome: {}", connections.len());
    Ok(())
}

/// The first handshake is nobody's call, the second that of those who call first.
#[tokio::test]
async fn connections_that_break_are_made_anew_at_once() -> Result<()> {
    let still = Still::with(Settings { tls: true, ..Settings::default() }).await?;
    let world = &still.world;
    world.add_all((0..100).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    let entrance = Entrance::start(world, 2).await?;
    let ran = run(&world.service(&[("TWITCH_ID_URL", entrance.url())]).await?, &planned()).await;
    assert_eq!((ran.report.success, ran.report.failed, ran.report.stopped), (100, 0, None));
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

/// The first call on it is lost, and Twitch may have processed it; the next has a new connection.
#[tokio::test]
async fn an_http2_connection_that_is_silently_dead_is_replaced() -> Result<()> {
    let still = Still::with(Settings { tls: true, ..Settings::default() }).await?;
    let world = &still.world;
    let refresh_token = world.twitch.add_streamer("1", "someone").refresh;
    let entrance = Entrance::start(world, 0).await?;
    let config = world.config(&[("TWITCH_ID_URL", entrance.url()), ("TWITCH_MAX_IN_FLIGHT", "1")])?;
    let twitch = TwitchClient::new(config.twitch, world.clock.clone())?;
    twitch.refresh(&refresh_token, &Permit::UNCONDITIONAL).await?;
    let connections = entrance.connections();
    entrance.freeze();
    let lost = twitch.refresh(&refresh_token, &Permit::UNCONDITIONAL).await;
    assert!(matches!(&lost, Err(RefreshError::Outage(outage)) if outage.0.contains("broke off")), "{lost:?}");
    twitch.refresh(&refresh_token, &Permit::UNCONDITIONAL).await?;
    assert_eq!(entrance.connections(), connections + 1);
    Ok(())
}
