//! The cycle on a real PostgreSQL and a simulated Twitch over HTTP, on a clock that is turned.

use adapters::twitch::TwitchClient;
use anyhow::Result;
use chrono::TimeDelta;
use domain::policy::{Demand, FailureKind, NotDue};
use domain::refresh::{Cycle, Limits};
use domain::report::{Outcome, Skip, Standing, Stop};
use domain::schedule::Trigger;
use end_to_end::{Still, run, with_change_at};
use local::twitch::{Endpoint, Fault, RefreshTokens, Settings};
use local::world::NewStreamer;

fn planned() -> Cycle {
    Cycle::new(Trigger::Planned)
}

fn sweep() -> Cycle {
    Cycle::new(Trigger::Sweep)
}

fn forced() -> Cycle {
    Cycle { demand: Demand::Everybody, ..Cycle::new(Trigger::Command) }
}

fn failed_as(outcome: &Outcome) -> Option<FailureKind> {
    match outcome {
        Outcome::Failed { standing: Standing::Recorded { kind, .. }, .. } => Some(*kind),
        _ => None,
    }
}

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
    sqlx::query(
        "WITH other AS (INSERT INTO campaigns (name, owner_id, created_at, updated_at)
             SELECT 'Other', owner_id, created_at, updated_at FROM campaigns, generate_series(1, 2) RETURNING id)
         INSERT INTO campaign_memberships (campaign_id, streamer_id, status, invited_at, created_at, updated_at,
             poll_authorization_expires_at)
         SELECT other.id, m.streamer_id, 'ACTIVE', m.invited_at, m.created_at, m.updated_at,
             m.poll_authorization_expires_at FROM other, campaign_memberships m",
    )
    .execute(&world.pool)
    .await?;
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
    let still =
        Still::with(Settings { refresh_tokens: RefreshTokens::OneTime, ..Settings::default() }).await?;
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
async fn the_same_event_many_times_at_once_refreshes_everybody_once() -> Result<()> {
    let still =
        Still::with(Settings { refresh_tokens: RefreshTokens::OneTime, ..Settings::default() }).await?;
    let world = &still.world;
    let ids = world.add_all((0..150).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    let mut services = Vec::new();
    for _ in 0..4 {
        services.push(world.service(&[]).await?);
    }

    let (planned, sweep) = (planned(), sweep());
    let (a, b, c, d) = tokio::join!(
        run(&services[0], &planned),
        run(&services[1], &planned),
        run(&services[2], &sweep),
        run(&services[3], &sweep)
    );

    let success: u64 = [&a, &b, &c, &d].iter().map(|ran| ran.report.success).sum();
    let failed: u64 = [&a, &b, &c, &d].iter().map(|ran| ran.report.failed).sum();
    assert_eq!((success, failed), (150, 0));
    assert_eq!((world.twitch.totals().refreshes, world.twitch.totals().reuses), (150, 0));
    for id in ids {
        assert!(world.has_live_token(id).await?);
    }
    Ok(())
}

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
    assert!(
        ran.outcome("someone").to_string().contains("no connection to Twitch"),
        "{}",
        ran.outcome("someone")
    );

    still.turn(15);
    world.twitch.fault("someone", Fault::Hang)?;
    let ran = run(&world.service(&[]).await?, &planned()).await;
    assert_eq!(failed_as(ran.outcome("someone")), Some(FailureKind::Outage));
    assert!(ran.outcome("someone").to_string().contains("within 10 s"), "{}", ran.outcome("someone"));
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
    let active = async || {
        sqlx::query_scalar::<_, i64>("SELECT count(*) FROM streamers WHERE is_active")
            .fetch_one(&world.pool)
            .await
    };
    run(&world.service(&[]).await?, &planned()).await;
    still.turn(15);
    let ran = run(&world.service(&[("DEACTIVATION", "off")]).await?, &planned()).await;
    assert_eq!((ran.report.deactivated, active().await?), (0, 10), "switched off");

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
        (ran.report.deactivated, ran.report.alarms, active().await?),
        (3, 7, 7),
        "the budget of ten is 3"
    );
    still.turn(61);
    let ran = run(&service, &planned()).await;
    assert_eq!((ran.report.deactivated, active().await?), (3, 4), "an hour later there is a new one");
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
async fn the_writer_who_came_first_is_right() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let service = world.service(&[]).await?;
    for login in ["reconnected", "refused", "refused_again"] {
        let id = world.add(NewStreamer::due(login)).await?;
        if login == "refused_again" {
            sqlx::query("UPDATE streamers SET token_refresh_failed_at = $1 WHERE id = $2")
                .bind(still.now() - TimeDelta::minutes(20))
                .bind(id.0)
                .execute(&world.pool)
                .await?;
        }
        let gate = world.twitch.pause(login)?;
        let theirs = async {
            sqlx::query(
                "UPDATE streamers SET access_token_encrypted = 'theirs', refresh_token_encrypted = 'theirs',
                     token_refresh_failed_at = NULL
                 WHERE id = $1",
            )
            .bind(id.0)
            .execute(&world.pool)
            .await?;
            if login != "reconnected" {
                world.twitch.disconnect(login)?;
            }
            Ok(())
        };
        let ran = with_change_at(gate, run(&service, &planned()), theirs).await?;
        assert_eq!(ran.outcome(login), &Outcome::Skipped(Skip::Superseded));
        let row = world.row(id).await?;
        assert_eq!(row.refresh_token_encrypted.as_deref(), Some("theirs"));
        assert_eq!((row.token_refresh_failed_at, row.is_active), (None, true));
        // Out of the way of the next.
        sqlx::query("UPDATE streamers SET is_active = false WHERE id = $1")
            .bind(id.0)
            .execute(&world.pool)
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_result_under_a_lost_lease_is_not_written() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let id = world.add(NewStreamer::due("slow")).await?;
    let before = world.row(id).await?;
    let service = world.service(&[]).await?;
    let gate = world.twitch.pause("slow")?;
    let takeover = async {
        assert_eq!(run(&service, &sweep()).await.outcome("slow"), &Outcome::Skipped(Skip::Leased));
        // As if the lease had run out and another run had taken it.
        sqlx::query("UPDATE token_refresh.streamers SET fence = fence + 1").execute(&world.pool).await?;
        Ok(())
    };
    let ran = with_change_at(gate, run(&service, &planned()), takeover).await?;
    assert_eq!(ran.outcome("slow"), &Outcome::Skipped(Skip::Superseded));
    assert_eq!(world.row(id).await?, before);
    Ok(())
}

#[tokio::test]
async fn a_lease_that_was_left_behind_runs_out() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.add(NewStreamer::due("left")).await?;
    let service = world.service(&[]).await?;
    let gate = world.twitch.pause("left")?;
    {
        let cycle = planned();
        tokio::select! {
            biased;
            () = gate.arrived() => {}
            _ = run(&service, &cycle) => panic!("the gate is closed"),
        }
        // Here the run is dropped in the middle of its call, as when a function is killed.
    }
    gate.release();
    assert_eq!(run(&service, &planned()).await.outcome("left"), &Outcome::Skipped(Skip::Leased));
    still.turn(4);
    assert_eq!(run(&service, &planned()).await.report.success, 1);
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
        assert!(matches!(ran.outcome(login), Outcome::Failed { alarm: true, .. }), "{login} rings the alarm");
    }
    assert!(matches!(ran.outcome("healthy"), Outcome::Refreshed { .. }));
    assert!(matches!(ran.outcome("no_access"), Outcome::Refreshed { .. }), "a refresh token is all it takes");
    assert_eq!((ran.report.failed, ran.report.success, ran.report.alarms), (5, 2, 2));
    Ok(())
}

#[tokio::test]
async fn both_formats_are_read_and_the_configured_one_is_written() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let id = world.add(NewStreamer::due("moving")).await?;
    let key = "2026:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    let to_own = [("TOKEN_KEYS", key), ("TOKEN_CIPHER", "aes-gcm")];
    assert_eq!(run(&world.service(&to_own).await?, &planned()).await.report.success, 1);
    assert!(world.row(id).await?.refresh_token_encrypted.unwrap().starts_with("v1.2026."));
    let back = [("TOKEN_KEYS", key), ("TOKEN_CIPHER", "adonis")];
    assert_eq!(run(&world.service(&back).await?, &forced()).await.report.success, 1);
    assert!(world.has_live_token(id).await?, "the existing backend can read it");
    Ok(())
}

#[tokio::test]
async fn a_pair_without_a_lifetime_is_stored_and_then_asked_about() -> Result<()> {
    let still =
        Still::with(Settings { refresh_tokens: RefreshTokens::OneTime, ..Settings::default() }).await?;
    let world = &still.world;
    let told = world.add(NewStreamer::due("told")).await?;
    let untold = world.add(NewStreamer::due("untold")).await?;
    world.twitch.fault("told", Fault::NoExpiresIn.on(Endpoint::Token))?;
    world.twitch.fault("untold", Fault::NoExpiresIn.on(Endpoint::Token))?;
    world.twitch.fault("untold", Fault::ServerError.on(Endpoint::Validate))?;
    let service = world.service(&[]).await?;

    let ran = run(&service, &planned()).await;

    assert_eq!(ran.report.success, 2);
    assert_eq!(world.row(told).await?.token_expires_at, Some(still.now() + TimeDelta::seconds(14_124)));
    assert_eq!(world.row(untold).await?.token_expires_at, None);
    assert!(world.has_live_token(told).await? && world.has_live_token(untold).await?);
    world.twitch.clear_faults("untold")?;
    let ran = run(&service, &sweep()).await;
    assert!(matches!(ran.outcome("untold"), Outcome::Refreshed { expires_at: Some(_) }), "unknown is due");
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
async fn a_disconnected_streamer_is_found_out_by_the_sweep() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let id = world.add(NewStreamer::fresh("gone")).await?;
    world.twitch.disconnect("gone")?;
    let ran = run(&world.service(&[]).await?, &sweep()).await;
    assert_eq!(failed_as(ran.outcome("gone")), Some(FailureKind::Refusal));
    assert_eq!(world.row(id).await?.token_expires_at, Some(still.now()), "it is known to be dead");
    still.turn(15);
    run(&world.service(&[]).await?, &sweep()).await;
    assert!(!world.row(id).await?.is_active);
    Ok(())
}

#[tokio::test]
async fn a_shorter_life_that_validation_tells_is_believed() -> Result<()> {
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
async fn a_dry_run_calls_nobody_and_writes_nothing() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let id = world.add(NewStreamer::due("due")).await?;
    world.add(NewStreamer::fresh("fresh")).await?;
    let before = world.row(id).await?;
    let service = world.service(&[]).await?;
    for cycle in [planned(), forced(), sweep()] {
        let ran = run(&service, &Cycle { dry_run: true, ..cycle }).await;
        assert_eq!(ran.outcome("due"), &Outcome::WouldRefresh);
        assert_eq!(ran.report.would_refresh + ran.report.skipped, 2);
    }
    assert_eq!(world.row(id).await?, before);
    let totals = world.twitch.totals();
    assert_eq!((totals.token_requests, totals.validate_requests), (0, 0));
    let ours: i64 =
        sqlx::query_scalar("SELECT count(*) FROM token_refresh.streamers").fetch_one(&world.pool).await?;
    assert_eq!(ours, 0, "not even a lease");
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
    let deadline = Some(still.now() + TimeDelta::seconds(90));
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

    let deadline = Some(still.now() + TimeDelta::minutes(5));
    let ran = run(&service, &Cycle { limits: Limits::of_function(deadline), ..planned() }).await;
    assert_eq!((ran.report.success, ran.report.stopped), (100, None));
    Ok(())
}

#[tokio::test]
async fn a_function_without_time_says_so() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.add(NewStreamer::due("someone")).await?;
    let deadline = Some(still.now() + TimeDelta::seconds(60));
    let ran =
        run(&world.service(&[]).await?, &Cycle { limits: Limits::of_function(deadline), ..planned() }).await;
    assert_eq!((ran.report.stopped, ran.report.total), (Some(Stop::NoTime), 0));
    Ok(())
}

/// Somebody locks the table for longer than a call to Twitch may take.
#[tokio::test]
async fn a_slow_database_loses_no_pair() -> Result<()> {
    let still =
        Still::with(Settings { refresh_tokens: RefreshTokens::OneTime, ..Settings::default() }).await?;
    let world = &still.world;
    world.add_all((0..1_000).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    let service = world.service(&[]).await?;
    let mut lock = world.pool.begin().await?;
    sqlx::query("LOCK TABLE streamers IN SHARE MODE").execute(&mut *lock).await?;
    let until_later = async {
        sqlx::query("SELECT pg_sleep(12)").execute(&mut *lock).await?;
        lock.commit().await
    };
    let cycle = planned();
    let (ran, held) = tokio::join!(run(&service, &cycle), until_later);
    held?;
    assert_eq!((ran.report.success, ran.report.failed, ran.report.stopped), (1_000, 0, None));
    assert_eq!(world.twitch.totals().reuses, 0);
    Ok(())
}

#[tokio::test]
async fn a_database_that_hangs_up_loses_no_pair() -> Result<()> {
    let still =
        Still::with(Settings { refresh_tokens: RefreshTokens::OneTime, ..Settings::default() }).await?;
    let world = &still.world;
    let id = world.add(NewStreamer::due("someone")).await?;
    let gate = world.twitch.pause("someone")?;
    let hang_up = async {
        sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .execute(&world.pool)
        .await?;
        Ok(())
    };
    let service = world.service(&[]).await?;
    let ran = with_change_at(gate, run(&service, &planned()), hang_up).await?;
    assert_eq!(ran.report.success, 1);
    assert!(world.has_live_token(id).await?);
    Ok(())
}

#[tokio::test]
async fn a_rate_limit_of_ours_slows_down_and_fails_nobody() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.add_all((0..60).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    let ran = run(&world.service(&[("TWITCH_MAX_PER_SECOND", "20")]).await?, &planned()).await;
    assert_eq!((ran.report.success, ran.report.failed), (60, 0));
    assert!(ran.report.duration == TimeDelta::zero(), "the world's time stands still");
    Ok(())
}

#[tokio::test]
async fn an_endpoint_that_accepts_and_never_speaks_does_not_hold_the_cycle() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.add_all((0..200).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("https://{}", mute.local_addr()?);
    let ran = run(&world.service(&[("TWITCH_ID_URL", &url)]).await?, &planned()).await;
    assert_eq!(ran.report.stopped, Some(Stop::Outages));
    assert!(ran.report.failed < 200, "all who waited for the handshake share its outcome");
    Ok(())
}

#[tokio::test]
async fn a_streamer_deleted_meanwhile_does_no_harm() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let id = world.add(NewStreamer::due("leaving")).await?;
    world.add(NewStreamer::due("staying")).await?;
    let service = world.service(&[]).await?;
    let gate = world.twitch.pause("leaving")?;
    let leave = async {
        sqlx::query("DELETE FROM streamers WHERE id = $1").bind(id.0).execute(&world.pool).await?;
        Ok(())
    };
    let ran = with_change_at(gate, run(&service, &planned()), leave).await?;
    assert_eq!(ran.outcome("leaving"), &Outcome::Skipped(Skip::Superseded));
    assert!(matches!(ran.outcome("staying"), Outcome::Refreshed { .. }));
    Ok(())
}
