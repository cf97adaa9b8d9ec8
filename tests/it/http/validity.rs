//! What `/oauth2/validate` answers about a token besides that it lives, and what follows from it.

use anyhow::Result;
use chrono::TimeDelta;
use tokens_domain::health::{Detail, Finding, HealthReport, Issue, TwitchHealth};
use tokens_domain::policy::NotDue;
use tokens_domain::refresh::Cycle;
use tokens_domain::report::{Outcome, Skip, Unusable};
use tokens_domain::schedule::Trigger;
use tokens_domain::{NoExpiry, StreamerId};
use tokens_local::twitch::{Endpoint, Fault};
use tokens_local::world::{NewStreamer, World};
use tokens_tests::cycles::{forced, planned, sweep};
use tokens_tests::requests::{membership, request};
use tokens_tests::{Sql as _, Still, run};

fn left(login: &str, minutes: i64) -> NewStreamer {
    NewStreamer {
        token_left: TimeDelta::minutes(minutes),
        authorized_for: Some(TimeDelta::hours(48)),
        campaign: "Brumes".to_owned(),
        ..NewStreamer::due(login)
    }
}

async fn check(world: &World, id: StreamerId, changes: &[(&str, &str)]) -> Result<HealthReport> {
    let host = world.host(changes);
    Ok(host.check(membership(world, id).await?.campaign, &request()).await?)
}

/// It does not deactivate, then or when the token has expired; and a health check calls the token unusable.
#[tokio::test]
async fn a_token_of_another_application_or_user_is_an_alarm_and_never_deactivates() -> Result<()> {
    for fault in [Fault::OtherClient, Fault::OtherUser] {
        let still = Still::new().await?;
        let world = &still.world;
        let id = world.add(left("aria", 120)).await?;
        let healthy = world.add(left("bastien", 20)).await?;
        world.twitch.fault("aria", fault.on(Endpoint::Validate))?;
        world.twitch.fault("aria", Fault::InvalidRefreshToken.on(Endpoint::Token))?;
        let service = world.service(&[]).await?;

        let ran = run(&service, &sweep()).await;
        let outcome = ran.outcome("aria");
        let Outcome::Skipped(Skip::Unusable { why, .. }) = outcome else { panic!("{outcome:?}") };
        assert_eq!(matches!(why, Unusable::OtherClient(_)), fault == Fault::OtherClient);
        assert_eq!((ran.report.alarms.misplaced, ran.report.validated), (1, 0));
        let client_id = world.config(&[])?.twitch.credentials.client_id.clone();
        let misplaced = service.store().database().misplaced(&client_id).await?;
        assert_eq!(misplaced.len(), 1);
        assert_eq!(misplaced[0].other_client.is_some(), fault == Fault::OtherClient);

        let report = check(world, id, &[]).await?;
        let aria = report.streamers.iter().find(|one| one.participant.streamer.id == id).unwrap();
        assert_eq!(aria.finding, Finding::Issue(Issue::TokenInvalid));
        assert_eq!(report.twitch, TwitchHealth::Available);

        // Past its expiry, when validation says no more than that it is dead.
        world.twitch.disconnect("aria")?;
        for _ in 0..20 {
            still.turn(15);
            let ran = run(&service, &forced()).await;
            assert_eq!((ran.report.deactivated, ran.report.alarms.misplaced), (0, 1), "{fault:?}");
        }
        assert!(world.row(id).await?.is_active && world.row(healthy).await?.is_active);
    }
    Ok(())
}

#[tokio::test]
async fn a_health_check_names_the_scopes_that_are_missing() -> Result<()> {
    let needs = [("REQUIRED_SCOPES", "channel:manage:polls, channel:read:polls bits:read")];
    for minutes in [120, 20] {
        let still = Still::new().await?;
        let world = &still.world;
        let id = world.add(left("aria", minutes)).await?;
        assert!(check(world, id, &[]).await?.is_healthy(), "none is required");
        let has = [("REQUIRED_SCOPES", "channel:manage:polls")];
        assert!(check(world, id, &has).await?.is_healthy());
        still.turn(200);
        let report = check(world, id, &needs).await?;
        let aria = &report.streamers[0];
        assert_eq!(aria.finding, Finding::Issue(Issue::TokenInvalid));
        assert_eq!(aria.detail, Some(Detail::MissingScopes(vec!["bits:read".to_owned()])));
        assert!(world.has_live_token(id).await?, "it was refreshed all the same");
        // To a sweep that token is as good as any.
        still.turn(45);
        let ran = run(&world.service(&needs).await?, &sweep()).await;
        assert_eq!(ran.report.validated, 1);
    }
    Ok(())
}

/// How often Twitch is asked for a new pair, and whether the token lives, in a day of sweeps and planned runs.
async fn a_day(fault: Fault, endpoint: Option<Endpoint>) -> Result<(u64, u64)> {
    let still = Still::new().await?;
    let world = &still.world;
    let id = world.add(left("aria", 30)).await?;
    match endpoint {
        Some(endpoint) => world.twitch.fault("aria", fault.on(endpoint))?,
        None => world.twitch.fault("aria", fault)?,
    }
    let service = world.service(&[]).await?;
    for quarter in 0..96 {
        let cycle = if quarter % 14 == 0 { planned() } else { sweep() };
        assert_eq!(run(&service, &cycle).await.report.failed, 0);
        let lives = world.has_live_token(id).await?;
        // A token that never expires, as Twitch says, and does, is found dead by a validation.
        assert!(lives || fault == Fault::ZeroExpiresIn, "{fault:?} at {quarter}");
        still.turn(15);
    }
    if endpoint.is_none() {
        let retry = run(&service, &Cycle::new(Trigger::Retry)).await;
        assert_eq!(retry.report.success, 0, "a retry is for others");
    }
    let totals = world.twitch.totals();
    Ok((totals.token_requests, totals.validate_requests))
}

#[tokio::test]
async fn a_token_without_an_expiry_is_validated_hourly_and_not_refreshed_by_every_sweep() -> Result<()> {
    // Seven planned runs; and what dies in between is refreshed when a sweep finds it dead.
    let (refreshes, validations) = a_day(Fault::NoExpiresIn, None).await?;
    assert!((7..=10).contains(&refreshes) && (20..=40).contains(&validations), "{refreshes} {validations}");
    // Only validation says nothing: what the token endpoint said stands.
    let (refreshes, _) = a_day(Fault::NoExpiresIn, Some(Endpoint::Validate)).await?;
    assert!((6..=10).contains(&refreshes), "{refreshes}");
    // The simulated token expires all the same: it is refreshed when it is found dead.
    let (refreshes, validations) = a_day(Fault::ZeroExpiresIn, None).await?;
    assert!((5..=8).contains(&refreshes) && (20..=40).contains(&validations), "{refreshes} {validations}");
    Ok(())
}

#[tokio::test]
async fn a_token_that_never_expires_is_not_due() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let id = world.add(left("aria", 30)).await?;
    world.twitch.fault("aria", Fault::ZeroExpiresIn)?;
    let service = world.service(&[]).await?;
    assert_eq!(run(&service, &planned()).await.report.success, 1);
    assert_eq!(world.row(id).await?.token_expires_at, None);
    let page = service.store().database().authorized(None, still.now()).await?;
    assert_eq!(page[0].token.no_expiry, Some(NoExpiry::Never));
    let ran = run(&service, &planned()).await;
    assert_eq!(ran.outcome("aria"), &Outcome::Skipped(Skip::NotDue(NotDue::NoExpiry)));
    let report = check(world, id, &[]).await?;
    assert_eq!((&report.streamers[0].finding, report.streamers[0].token_expires_at), (&Finding::Ok, None));
    assert_eq!(world.twitch.totals().token_requests, 1);
    Ok(())
}

/// A text in no known format is decided without Twitch, which may be down.
#[tokio::test]
async fn twitch_is_not_called_available_where_it_was_not_asked() -> Result<()> {
    for (down, others, expected) in [
        (true, 0, TwitchHealth::NotAsked),
        (false, 0, TwitchHealth::NotAsked),
        (true, 1, TwitchHealth::Unavailable),
        (false, 1, TwitchHealth::Available),
    ] {
        let still = Still::new().await?;
        let world = &still.world;
        let id = world.add(left("aria", 120)).await?;
        world.sql("UPDATE streamers SET access_token_encrypted = 'invalid'").await?;
        for n in 0..others {
            world.add(left(&format!("other{n}"), 20)).await?;
        }
        if down {
            world.twitch.fault_for_everybody(Fault::ServerError);
        }
        let report = check(world, id, &[]).await?;
        let aria = report.streamers.iter().find(|one| one.participant.streamer.id == id).unwrap();
        assert_eq!(aria.finding, Finding::Issue(Issue::TokenInvalid));
        assert_eq!(report.twitch, expected, "down: {down}, others: {others}");
    }
    Ok(())
}
