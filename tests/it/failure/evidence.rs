//! Which refusals deactivate: a Twitch that refuses all against streamers that have disconnected, trigger by trigger on
//! the turned clock.

use std::collections::BTreeSet;

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use tokens_domain::grant::GrantError;
use tokens_domain::health::{Finding, Issue, TwitchHealth};
use tokens_domain::notification::PushAnswer;
use tokens_domain::policy::{BUDGET_PERIOD, FailureKind, ONLY_REFUSALS, deactivation_budget};
use tokens_domain::report::{Outcome, Standing};
use tokens_local::stage::Stage;
use tokens_local::twitch::{Endpoint, Fault};
use tokens_local::world::{NewStreamer, World};
use tokens_store::Database;
use tokens_tests::cycles::{failed_as, forced, planned, sweep};
use tokens_tests::people::{RecordingPush, refused_before};
use tokens_tests::requests::{host, membership, request};
use tokens_tests::session::{Session, all_users_have_a_device, at, world_at_noon};
use tokens_tests::{Still, run};

const LIVING: i64 = 180;
const EXPIRED: i64 = -10;

/// With so many minutes left, and authorized for longer than any test.
fn streamer(n: usize, left: i64) -> NewStreamer {
    NewStreamer {
        token_left: TimeDelta::minutes(left),
        authorized_for: Some(TimeDelta::hours(48)),
        ..NewStreamer::due(format!("s{n:03}"))
    }
}

/// Every user has a device.
async fn session(streamers: Vec<NewStreamer>) -> Result<(Session<RecordingPush>, RecordingPush)> {
    let (world, clock) = world_at_noon(streamers).await?;
    all_users_have_a_device(&world).await?;
    let push = RecordingPush::default();
    Ok((Session::watch(Stage::new(world, clock, push.clone())).await?, push))
}

async fn only_refused_for(world: &World, now: DateTime<Utc>) -> Result<TimeDelta> {
    let config = world.config(&[])?;
    let client_id = config.twitch.credentials.client_id.clone();
    Ok(Database::open(config.database).await?.only_refused_for(&client_id, now).await?)
}

/// No streamer is deactivated, notices stay in the budget, and the operator is alarmed after two hours.
async fn all_are_refused(lefts: &[i64], validate: Option<Fault>) -> Result<()> {
    let fleet: Vec<_> = lefts.iter().enumerate().map(|(n, left)| streamer(n, *left)).collect();
    let why = format!("{lefts:?}, {validate:?}");
    let (mut session, push) = session(fleet).await?;
    let twitch = &session.stage.world.twitch;
    twitch.fault_for_everybody(Fault::InvalidRefreshToken.on(Endpoint::Token));
    if let Some(fault) = validate {
        twitch.fault_for_everybody(fault.on(Endpoint::Validate));
    }
    let mut first = None;
    for hour in 13..=20 {
        let cycles = session.play(at(hour, 0)).await?;
        first = first.or(cycles.iter().find(|cycle| cycle.report.failed > 0).map(|cycle| cycle.at));
        assert!(cycles.iter().all(|cycle| cycle.report.deactivated == 0), "{why}");
        let refused_for = only_refused_for(&session.stage.world, at(hour, 0)).await?;
        assert_eq!(Some(at(hour, 0) - refused_for), first.or(Some(at(hour, 0))), "{why}");
    }
    assert!(at(20, 0) - first.expect("a refusal") >= ONLY_REFUSALS, "{why}");
    assert!(session.inactive().is_empty(), "{why}");
    let noticed: Vec<DateTime<Utc>> = sqlx::query_scalar(
        "SELECT deactivated_at FROM token_refresh.deactivations WHERE is_notice ORDER BY 1",
    )
    .fetch_all(&session.stage.world.pool)
    .await?;
    let budget = usize::try_from(deactivation_budget(lefts.len() as u64))?;
    for (n, at) in noticed.iter().enumerate() {
        let within = noticed[n..].iter().take_while(|later| **later - *at < BUDGET_PERIOD).count();
        assert!(within <= budget, "{why}: {noticed:?}");
    }
    // The streamer and the game master, once each.
    let notified: BTreeSet<_> = push.sent().into_iter().map(|(to, _)| to).collect();
    assert_eq!((push.sent().len(), notified.len()), (2 * noticed.len(), 2 * noticed.len()), "{why}");
    Ok(())
}

/// Other fleets, and thirty hours: `domain::refresh::fleet`, without a database.
#[tokio::test]
async fn while_twitch_refuses_all_no_streamer_is_deactivated() -> Result<()> {
    for (lefts, validate) in [
        (&[EXPIRED][..], None),
        (&[LIVING, LIVING], Some(Fault::Unauthorized)),
        (&[EXPIRED; 6], Some(Fault::ServerError)),
        (&[LIVING, EXPIRED, 30, 70, 100, 140], Some(Fault::Unauthorized)),
    ] {
        all_are_refused(lefts, validate).await?;
    }
    Ok(())
}

/// When s000, which disconnects at noon, is deactivated (`None`: not before 18:00), and how many notifications are sent.
async fn disconnected(lefts: &[i64]) -> Result<(Option<DateTime<Utc>>, usize)> {
    let fleet = lefts.iter().enumerate().map(|(n, left)| streamer(n, *left)).collect();
    let (mut session, push) = session(fleet).await?;
    session.stage.world.twitch.disconnect("s000")?;
    let cycles = session.play(at(18, 0)).await?;
    let deactivations: u64 = cycles.iter().map(|cycle| cycle.report.deactivated).sum();
    let inactive = session.inactive();
    assert_eq!(deactivations, inactive.len() as u64);
    assert!(inactive.iter().all(|login| login == "s000"), "{inactive:?}");
    let deactivated = cycles.iter().find(|cycle| cycle.report.deactivated > 0).map(|cycle| cycle.at);
    assert_eq!(session.stage.scheduler.events().len(), inactive.len());
    let notified: BTreeSet<_> = push.sent().into_iter().map(|(to, _)| to).collect();
    assert!(notified.len() <= 2, "{notified:?}");
    Ok((deactivated, push.sent().len()))
}

#[tokio::test]
async fn a_streamer_that_disconnects_is_deactivated_at_the_second_refusal() -> Result<()> {
    // The sweep at 12:07 validates and is refused; that of 12:22 is refused again.
    let second = Some(at(12, 22));
    assert_eq!(disconnected(&[LIVING]).await?, (second, 2), "alone, living");
    assert_eq!(disconnected(&[LIVING, LIVING, LIVING]).await?, (second, 2), "among others, living");
    assert_eq!(disconnected(&[EXPIRED, 30, 40]).await?, (second, 2), "others were refreshed since");
    Ok(())
}

#[tokio::test]
async fn a_refusal_that_nothing_confirms_notifies_once_after_half_an_hour() -> Result<()> {
    assert_eq!(disconnected(&[EXPIRED]).await?, (None, 2), "alone, expired: the notice");
    // The others are refreshed an hour before their tokens expire.
    let (deactivated, sent) = disconnected(&[EXPIRED, LIVING]).await?;
    assert_eq!((deactivated, sent), (Some(at(14, 7)), 4), "the notice, then the deactivation");
    Ok(())
}

/// A notice that could not be delivered says nothing any more once Twitch takes the tokens again.
#[tokio::test]
async fn a_notice_ends_when_the_tokens_are_taken_again() -> Result<()> {
    let (mut session, push) = session(vec![streamer(0, EXPIRED)]).await?;
    for device in ["s000", "Master of s000"] {
        push.answer(device, PushAnswer::Busy { retry_after: None, reason: "away".to_owned() });
    }
    session.stage.world.twitch.fault("s000", Fault::InvalidRefreshToken.on(Endpoint::Token))?;
    let cycles = session.play(at(12, 50)).await?;
    let noticed = cycles.iter().flat_map(|cycle| &cycle.outcomes).filter(|(_, outcome)| {
        matches!(outcome, Outcome::Failed { standing: Standing::Noticed { recipients, .. }, .. } if recipients.len() == 2)
    });
    assert_eq!(noticed.count(), 1);
    session.stage.world.twitch.clear_faults("s000")?;
    session.play(at(13, 30)).await?;
    let states: Vec<String> = sqlx::query_scalar("SELECT DISTINCT state FROM token_refresh.outbox")
        .fetch_all(&session.stage.world.pool)
        .await?;
    assert_eq!((states, session.not_fresh()), (vec!["obsolete".to_owned()], vec![]));
    Ok(())
}

#[tokio::test]
async fn a_refusal_is_one_for_callers_whether_it_is_confirmed_or_not() -> Result<()> {
    for (logins, lefts) in [(&["alone"][..], &[EXPIRED][..]), (&["one", "two"], &[LIVING, EXPIRED])] {
        let still = Still::new().await?;
        let world = &still.world;
        let mut keys = Vec::new();
        for (login, left) in logins.iter().zip(lefts) {
            let new = NewStreamer { campaign: "Brumes".to_owned(), ..streamer(0, *left) };
            let id = world.add(NewStreamer { login: (*login).to_owned(), ..new }).await?;
            world.twitch.disconnect(login)?;
            keys.push(membership(world, id).await?);
        }
        let host = host(world);
        for _ in 0..4 {
            let check = host.check(keys[0].campaign, &request()).await?;
            assert_eq!(check.twitch, TwitchHealth::Available);
            for one in &check.streamers {
                assert_eq!(one.finding, Finding::Issue(Issue::TokenInvalid), "{one:?}");
            }
            for key in &keys {
                let refused = host.grant(*key, &request()).await;
                assert!(matches!(refused, Err(GrantError::Refused(_))), "{refused:?}");
            }
            still.turn(10);
        }
    }
    Ok(())
}

/// A refusal is an answer of the token endpoint, whether or not the other endpoint can be asked what it means.
#[tokio::test]
async fn others_are_refreshed_behind_more_refusals_than_outages_end_a_cycle() -> Result<()> {
    let limited = Fault::TooManyRequests { retry_after: Some(30), ratelimit_reset: None };
    for validate in [None, Some(Fault::ServerError), Some(limited)] {
        let still = Still::new().await?;
        let world = &still.world;
        world.add_all((0..50).map(|n| streamer(n, EXPIRED)).collect()).await?;
        for n in 0..50 {
            world.twitch.disconnect(&format!("s{n:03}"))?;
        }
        // A cycle goes by the end of the authorization: these are the last.
        let late = Some(TimeDelta::hours(72));
        world
            .add_all((50..55).map(|n| NewStreamer { authorized_for: late, ..streamer(n, 30) }).collect())
            .await?;
        let kind = if validate.is_none() { FailureKind::Refusal } else { FailureKind::Outage };
        if let Some(fault) = validate {
            world.twitch.fault_for_everybody(fault.on(Endpoint::Validate));
        }
        let ran = run(&world.service(&[("TWITCH_MAX_IN_FLIGHT", "4")]).await?, &planned()).await;
        assert_eq!((ran.report.success, ran.report.failed, &ran.report.stopped), (5, 50, &None), "{kind:?}");
        assert_eq!(failed_as(ran.outcome("s049")), Some(kind));
    }
    Ok(())
}

/// What Twitch said of a pair is remembered for as long as the pair is stored, whatever becomes of the column.
#[tokio::test]
async fn a_token_that_died_before_its_time_confirms_every_later_refusal() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let id = world.add(streamer(0, LIVING)).await?;
    world.twitch.disconnect("s000")?;
    let service = world.service(&[]).await?;
    for round in 0..2 {
        run(&service, &forced()).await;
        assert!(world.row(id).await?.is_active);
        assert!(world.row(id).await?.token_expires_at <= Some(still.now()));
        still.turn(15);
        assert_eq!(run(&service, &forced()).await.report.deactivated, 1, "round {round}");
        // Hours after the expiry that the token had.
        still.turn(600);
        let active = service.store().database().reactivate(&[id], still.now()).await?;
        assert_eq!(active.active, [id]);
    }
    Ok(())
}

/// The existing backend marks outages as well. Its mark counts as a first refusal; an unconfirmed refusal of our own does not
/// deactivate after it.
#[tokio::test]
async fn after_another_programs_mark_only_a_confirmed_refusal_deactivates() -> Result<()> {
    // In the third case we remember an outage of our own, and the mark stands over it.
    for (left, outage, deactivated) in [(LIVING, false, 1), (EXPIRED, false, 0), (LIVING, true, 1)] {
        let still = Still::new().await?;
        let world = &still.world;
        let id = world.add(streamer(0, left)).await?;
        let service = world.service(&[]).await?;
        if outage {
            world.twitch.fault("s000", Fault::ServerError.times(1).on(Endpoint::Token))?;
            assert_eq!(run(&service, &forced()).await.report.outages, 1);
            still.turn(20);
        }
        world.twitch.disconnect("s000")?;
        refused_before(world, id).await?;
        let ran = run(&service, &forced()).await;
        assert_eq!(ran.report.deactivated, deactivated, "{left} {outage}");
    }
    Ok(())
}

#[tokio::test]
async fn a_successful_validation_clears_a_mark_of_ours_and_of_other_programs() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let ours = world.add(streamer(0, 100)).await?;
    let theirs = world.add(streamer(1, 100)).await?;
    let dead = world.add(streamer(2, 100)).await?;
    let service = world.service(&[]).await?;
    world.twitch.fault("s000", Fault::ServerError.times(1).on(Endpoint::Token))?;
    world.twitch.disconnect("s002")?;
    run(&service, &forced()).await;
    let mark = sqlx::query("UPDATE streamers SET token_refresh_failed_at = $1 WHERE id = $2");
    mark.bind(still.now()).bind(theirs.0).execute(&world.pool).await?;
    let asked = world.twitch.totals().token_requests;

    still.turn(5);
    let ran = run(&service, &sweep()).await;

    assert_eq!((ran.report.validated, world.twitch.totals().token_requests), (2, asked), "{:?}", ran.report);
    for (id, marked) in [(ours, false), (theirs, false), (dead, true)] {
        assert_eq!(world.row(id).await?.token_refresh_failed_at.is_some(), marked);
    }
    let mark = sqlx::query("UPDATE streamers SET token_refresh_failed_at = $1 WHERE id = $2");
    mark.bind(still.now()).bind(theirs.0).execute(&world.pool).await?;
    let campaign = membership(world, theirs).await?.campaign;
    let check = host(world).check(campaign, &request()).await?;
    assert!(check.is_healthy());
    assert_eq!(world.row(theirs).await?.token_refresh_failed_at, None);
    Ok(())
}
