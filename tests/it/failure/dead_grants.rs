//! Grants that are truly dead, among many that live: over a session, trigger by trigger on the turned clock.

use std::collections::BTreeSet;

use anyhow::Result;
use domain::notification::Subscription;
use domain::report::{Outcome, Standing};
use end_to_end::people::{RecordingPush, subscribe};
use end_to_end::session::{Session, at, everybody_has_a_device, everybody_has_an_account, world_at_noon};
use local::push::{Settings, SimulatedPush};
use local::stage::Stage;
use local::world::{NewStreamer, World};
use push::{Loopback, Vapid, VapidKey, WebPush};

/// A push service and a sender, both on the world's clock.
async fn push_service(world: &World) -> Result<(SimulatedPush, WebPush)> {
    let service = SimulatedPush::start(Settings { port: 0, clock: world.clock.clone() }).await?;
    let key = VapidKey::generate()?;
    let vapid = Vapid::new(&key.public(), &key.expose_private(), "mailto:operator@twitch-polls.net")?;
    Ok((service, WebPush::new(vapid, Loopback::Allowed, world.clock.clone())?))
}

async fn sign_in(world: &World, user: &str, device: &Subscription) -> Result<()> {
    let id = sqlx::query_scalar("SELECT id FROM users WHERE display_name = $1");
    subscribe(world, id.bind(user).fetch_one(&world.pool).await?, device).await
}

#[tokio::test]
async fn forty_dead_grants_among_two_thousand_are_told_and_nobody_else() -> Result<()> {
    let login = |n| format!("s{n:04}");
    let streamers = (0..2_000).map(|n| NewStreamer {
        token_left: at(13, 10) + (at(15, 50) - at(13, 10)) * n / 2_000 - at(12, 0),
        ..NewStreamer::fresh(login(n))
    });
    let (world, clock) = world_at_noon(streamers.collect()).await?;
    everybody_has_an_account(&world).await?;
    let (service, sender) = push_service(&world).await?;
    // The dead, and as many who are well.
    let dead: BTreeSet<String> = (0..40).map(|n| login(50 * n)).collect();
    let well: BTreeSet<String> = (0..40).map(|n| login(50 * n + 1)).collect();
    for login in dead.iter().chain(&well) {
        for user in [login.clone(), format!("Master of {login}")] {
            sign_in(&world, &user, &service.subscribe(&user)).await?;
        }
    }

    let mut session = Session::watch(Stage::new(world, clock, sender)).await?;
    // Half of them at once, when nothing has been asked of Twitch yet; half when all tokens were called valid lately.
    for login in dead.iter().take(20) {
        session.stage.world.twitch.disconnect(login)?;
    }
    session.play(at(12, 30)).await?;
    assert_eq!(session.inactive().len(), 20, "found by a sweep, confirmed a quarter of an hour later");
    session.play(at(13, 0)).await?;
    for login in dead.iter().skip(20) {
        session.stage.world.twitch.disconnect(login)?;
    }
    session.play(at(14, 15)).await?;
    assert_eq!(session.inactive(), dead, "each token is validated hourly");
    session.play(at(16, 0)).await?;

    assert_eq!(session.inactive(), dead);
    assert_eq!(session.found_dead, dead, "no poll of the others met a dead token");
    assert!(session.not_fresh().is_empty());
    assert!(session.most_deactivations_in_an_hour().await? <= 2_000 / 5);
    assert_eq!(session.most_attempts_in_a_quarter_hour(), 1);

    let world = &session.stage.world;
    let inactive: BTreeSet<String> = sqlx::query_scalar("SELECT id::text FROM streamers WHERE NOT is_active")
        .fetch_all(&world.pool)
        .await?
        .into_iter()
        .collect();
    let events = session.stage.scheduler.events();
    assert_eq!(events.len(), 40);
    assert_eq!(events.iter().map(|event| event.streamer_id.0.to_string()).collect::<BTreeSet<_>>(), inactive);
    let outbox: Vec<(String, i64)> =
        sqlx::query_as("SELECT state, count(*) FROM token_refresh.outbox GROUP BY state")
            .fetch_all(&world.pool)
            .await?;
    assert_eq!(outbox, [("delivered".to_owned(), 80)]);
    let mut told = BTreeSet::new();
    for login in &dead {
        for user in [login.clone(), format!("Master of {login}")] {
            let messages = service.messages(&user)?;
            assert_eq!(messages.len(), 1, "{user}");
            let json = messages[0].json()?;
            assert_eq!(json["type"], "token:refresh_failed");
            told.extend(json["data"]["streamerId"].as_str().map(str::to_owned));
        }
    }
    assert_eq!(told, inactive);
    assert_eq!(service.totals().accepted, 80, "and nobody else");
    Ok(())
}

#[tokio::test]
async fn with_deactivation_off_nobody_is_deactivated_and_an_alarm_says_so() -> Result<()> {
    // The last one is refreshed when the dead are first refused, which so is their affair and no fault of Twitch's.
    let streamers = (0..19).map(|n| NewStreamer::fresh(format!("s{n:02}"))).chain([NewStreamer::due("s19")]);
    let (world, clock) = world_at_noon(streamers.collect()).await?;
    everybody_has_a_device(&world).await?;
    let dead: BTreeSet<String> = (0..4).map(|n| format!("s{n:02}")).collect();
    for login in &dead {
        world.twitch.disconnect(login)?;
    }
    let push = RecordingPush::default();
    let stage = Stage::new(world, clock, push.clone()).with(&[("DEACTIVATION", "off")]);
    let mut session = Session::watch(stage).await?;

    let cycles = session.play(at(23, 0)).await?;
    assert!(session.inactive().is_empty() && session.stage.scheduler.events().is_empty());
    assert!(push.sent().is_empty());
    assert_eq!(session.found_dead, dead);
    assert_eq!(session.most_attempts_in_a_quarter_hour(), 1);
    let first = cycles.iter().position(|cycle| cycle.report.failed > 0).expect("the dead are refused");
    let alarms: Vec<_> =
        cycles[first..].iter().map(|cycle| (cycle.report.failed, cycle.report.alarms.total())).collect();
    assert_eq!(alarms[0], (4, 0), "a first refusal may be an error");
    let says_so = |outcome: &Outcome| {
        matches!(outcome, Outcome::Failed { reason, standing: Standing::Recorded { .. }, alarm: Some(_), .. }
            if reason.ends_with("but deactivation is switched off"))
    };
    for login in &dead {
        let said = cycles.iter().flat_map(|cycle| &cycle.outcomes);
        let said = said.filter(|(streamer, outcome)| streamer.login == *login && says_so(outcome)).count();
        // A refusal that would have deactivated counts as an outage, and the next as a first one again.
        assert!(said >= session.attempts[login].len() / 2 - 1, "{login}: {said}");
    }

    session.stage = session.stage.with(&[("DEACTIVATION", "on")]);
    session.play(at(24, 0)).await?;
    assert!(session.most_deactivations_in_an_hour().await? <= 20 / 5);
    assert_eq!(session.inactive(), dead, "switched on again, they are deactivated");
    assert_eq!(push.sent().len(), 8);
    Ok(())
}
