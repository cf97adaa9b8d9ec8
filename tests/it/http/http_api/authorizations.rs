//! Grants, revocations, their status, and what is refused.

use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::http::StatusCode;
use chrono::TimeDelta;
use serde_json::{Value, json};
use tokens_domain::schedule::Trigger;
use tokens_local::twitch::{Endpoint, Fault};
use tokens_local::world::NewStreamer;
use tokens_tests::people::{campaign, user};
use tokens_tests::requests::{CALLER, authorization, sessions, waits_for_a_lease};
use tokens_tests::run;

use super::{Scene, time, unauthorized};

const TWELVE_HOURS: TimeDelta = TimeDelta::hours(12);

#[tokio::test]
async fn a_grant_refreshes_the_token_and_authorizes_for_twelve_hours() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(unauthorized("brindille")).await?;
    let before = scene.status(key).await?;
    assert_eq!(before.status, StatusCode::OK);
    assert_eq!(
        before.body,
        json!({
            "campaign_id": key.campaign,
            "campaign_name": "Campaign of brindille",
            "streamer_id": key.streamer,
            "membership": "ACTIVE",
            "streamer_active": true,
            "authorized": false,
            "granted_at": null,
            "expires_at": null,
            "remaining_seconds": 0,
            "token_expires_at": before.body["token_expires_at"],
        })
    );

    let granted = scene.grant(key).await?;
    assert_eq!(granted.status, StatusCode::OK, "{granted:?}");
    let (world, now) = (&scene.still.world, scene.still.now());
    assert_eq!(granted.body["authorized"], true);
    assert_eq!(granted.body["remaining_seconds"], 12 * 60 * 60);
    assert_eq!(time(&granted.body["granted_at"]), now);
    assert_eq!(time(&granted.body["expires_at"]), now + TWELVE_HOURS);
    assert_eq!(authorization(world, key).await?, (Some(now), Some(now + TWELVE_HOURS)));
    assert_eq!(sessions(world, key).await?, [(now, now + TWELVE_HOURS)]);
    let row = world.row(key.streamer).await?;
    assert_eq!(row.last_token_refresh_at, Some(now));
    assert_eq!(time(&granted.body["token_expires_at"]), row.token_expires_at.context("an expiry")?);
    assert!(row.token_expires_at > Some(now + TimeDelta::hours(3)), "it was refreshed, whatever was left");
    assert!(world.has_live_token(key.streamer).await?);
    let attempt = ("refreshed".to_owned(), "grant".to_owned(), Some(CALLER.to_owned()));
    assert_eq!(scene.history("brindille").await?, [attempt]);

    // The answer is what is stored, and what the list shows.
    assert_eq!(scene.status(key).await?.body, granted.body);
    let list = scene.list(key.streamer).await?;
    assert_eq!(list.body, json!({"streamer_id": key.streamer, "authorizations": [granted.body]}));
    Ok(())
}

#[tokio::test]
async fn a_double_click_within_a_minute_costs_one_refresh() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(unauthorized("brindille")).await?;
    let refreshes = || scene.still.world.twitch.totals().token_requests;
    let (one, other) = tokio::join!(scene.grant(key), scene.grant(key));
    let first = one?;
    assert_eq!((first.status, &first.body), (StatusCode::OK, &other?.body));

    scene.still.clock.advance(Duration::from_secs(59));
    let second = scene.grant(key).await?;
    assert_eq!((second.status, refreshes()), (StatusCode::OK, 1));
    assert_eq!(time(&second.body["granted_at"]), scene.still.now(), "the hours are from now");
    assert_eq!(second.body["token_expires_at"], first.body["token_expires_at"]);

    scene.still.clock.advance(Duration::from_secs(1));
    assert_eq!((scene.grant(key).await?.status, refreshes()), (StatusCode::OK, 2));
    Ok(())
}

#[tokio::test]
async fn a_revocation_ends_the_authorization_at_once_and_exactly() -> Result<()> {
    let scene = Scene::new().await?;
    let world = &scene.still.world;
    let key = scene.add(unauthorized("brindille")).await?;
    let none = scene.revoke(key).await?;
    assert_eq!((none.status, none.body), (StatusCode::NO_CONTENT, Value::Null), "there was none");

    let granted = scene.grant(key).await?;
    let granted_at = scene.still.now();
    scene.still.turn(60);
    assert_eq!(scene.status(key).await?.body["remaining_seconds"], 11 * 60 * 60);
    assert_eq!(scene.revoke(key).await?.status, StatusCode::NO_CONTENT);
    let revoked = scene.status(key).await?.body;
    assert_eq!((&revoked["authorized"], &revoked["remaining_seconds"]), (&json!(false), &json!(0)));
    assert_eq!(revoked["granted_at"], granted.body["granted_at"]);
    let revoked_at = scene.still.now();
    assert_eq!(time(&revoked["expires_at"]), revoked_at);

    scene.still.turn(60);
    assert_eq!(scene.revoke(key).await?.status, StatusCode::NO_CONTENT);
    assert_eq!(scene.status(key).await?.body["expires_at"], revoked["expires_at"], "the first one counts");
    assert_eq!(sessions(world, key).await?, [(granted_at, revoked_at)], "no sweep has seen it");
    let swept = run(&world.service(&[]).await?, &tokens_domain::refresh::Cycle::new(Trigger::Sweep)).await;
    assert_eq!(swept.report.total, 0, "nothing is refreshed for it any more");

    // A grant of the application's own, which no run of ours has seen.
    let theirs = scene.add(NewStreamer::fresh("sable")).await?;
    let granted_at = scene.still.now();
    scene.still.turn(3);
    assert_eq!(scene.revoke(theirs).await?.status, StatusCode::NO_CONTENT);
    assert_eq!(sessions(world, theirs).await?, [(granted_at, scene.still.now())]);
    Ok(())
}

#[tokio::test]
async fn a_list_has_every_campaign_that_invited_the_streamer() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(NewStreamer::fresh("brindille")).await?;
    let world = &scene.still.world;
    let owner = user(world, "Corvin").await?;
    let pending = campaign(world, key.streamer, "Abysses", owner, "PENDING").await?;
    let list = scene.list(key.streamer).await?;
    let [first, second] = list.body["authorizations"].as_array().context("a list")?.as_slice() else {
        panic!("{list:?}");
    };
    assert_eq!((&first["campaign_id"], &first["membership"]), (&json!(pending), &json!("PENDING")));
    assert_eq!(first["authorized"], false);
    assert_eq!(
        (&second["campaign_name"], &second["authorized"]),
        (&json!("Campaign of brindille"), &json!(true))
    );

    scene.sql("DELETE FROM campaign_memberships").await?;
    assert_eq!(scene.list(key.streamer).await?.body["authorizations"], json!([]));
    Ok(())
}

#[tokio::test]
async fn pending_members_and_inactive_streamers_are_granted_nothing() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(unauthorized("brindille")).await?;
    for (change, problem) in [
        ("UPDATE campaign_memberships SET status = 'PENDING'", "membership-pending"),
        ("UPDATE campaign_memberships SET status = NULL", "membership-pending"),
        ("UPDATE streamers SET is_active = false", "streamer-inactive"),
    ] {
        scene.sql(change).await?;
        scene.grant(key).await?.is(StatusCode::CONFLICT, problem);
    }
    assert_eq!(scene.status(key).await?.body["granted_at"], Value::Null);
    assert_eq!(scene.still.world.twitch.totals().token_requests, 0);
    Ok(())
}

#[tokio::test]
async fn a_refused_grant_counts_as_any_other_refusal() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(unauthorized("brindille")).await?;
    scene.still.world.twitch.disconnect("brindille")?;
    let first = scene.still.now();
    for (minutes, what) in [(0, "recorded"), (5, "too soon to count"), (11, "the second, after 16 minutes")] {
        scene.still.turn(minutes);
        scene.grant(key).await?.is(StatusCode::CONFLICT, "refused-by-twitch");
        let row = scene.still.world.row(key.streamer).await?;
        let expected = if minutes == 11 { (false, None) } else { (true, Some(first)) };
        assert_eq!((row.is_active, row.token_refresh_failed_at), expected, "{what}");
    }
    scene.grant(key).await?.is(StatusCode::CONFLICT, "streamer-inactive");
    assert_eq!(authorization(&scene.still.world, key).await?, (None, None));
    assert_eq!(sessions(&scene.still.world, key).await?, []);
    Ok(())
}

#[tokio::test]
async fn an_outage_grants_nothing_and_may_be_asked_about_again() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(unauthorized("brindille")).await?;
    scene.still.world.twitch.fault_for_everybody(Fault::ServerError);
    let failed_at = async || anyhow::Ok(scene.still.world.row(key.streamer).await?.token_refresh_failed_at);
    let first = scene.still.now();
    for minutes in [0, 1] {
        scene.still.turn(minutes);
        let answer = scene.grant(key).await?;
        answer.is(StatusCode::SERVICE_UNAVAILABLE, "twitch-unavailable");
        answer.retry_after(60);
        assert_eq!(failed_at().await?, Some(first), "asking again counts for nothing");
    }
    assert_eq!(scene.status(key).await?.body["granted_at"], Value::Null);

    scene.still.world.twitch.clear_faults_for_everybody();
    assert_eq!(scene.grant(key).await?.status, StatusCode::OK, "no caller has to wait once Twitch is back");
    assert_eq!(failed_at().await?, None);
    Ok(())
}

#[tokio::test]
async fn a_misconfiguration_is_no_failure_of_the_streamer_and_not_shown_to_the_caller() -> Result<()> {
    for change in [("TWITCH_CLIENT_SECRET", "wrong"), ("APP_KEY", "another-app-key-than-the-worlds-own")] {
        let scene = Scene::with(&[change]).await?;
        let key = scene.add(unauthorized("brindille")).await?;
        let answer = scene.grant(key).await?;
        answer.is(StatusCode::SERVICE_UNAVAILABLE, "misconfigured");
        answer.retry_after(300);
        assert!(!answer.body.to_string().contains(change.0), "{answer:?}");
        let row = scene.still.world.row(key.streamer).await?;
        assert!(row.is_active);
        // A row that can't be read waits for its retry; credentials that Twitch refuses concern no row.
        assert_eq!(row.token_refresh_failed_at.is_some(), change.0 == "APP_KEY");
    }
    Ok(())
}

#[tokio::test]
async fn a_lease_that_is_not_given_back_is_not_waited_for_forever() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(unauthorized("brindille")).await?;
    scene
        .sql(
            "INSERT INTO token_refresh.streamers (streamer_id, fence, leased_until)
             SELECT id, 1, now() + interval '1 hour' FROM streamers",
        )
        .await?;
    let answer = scene.grant(key).await?;
    answer.is(StatusCode::SERVICE_UNAVAILABLE, "refresh-in-progress");
    answer.retry_after(5);
    assert_eq!(scene.still.world.twitch.totals().token_requests, 0);
    Ok(())
}

#[tokio::test]
async fn a_pair_is_stored_though_the_membership_is_gone_by_then() -> Result<()> {
    for (change, status, problem) in [
        ("UPDATE campaign_memberships SET status = 'PENDING'", StatusCode::CONFLICT, "membership-pending"),
        ("DELETE FROM campaign_memberships", StatusCode::NOT_FOUND, "unknown-membership"),
    ] {
        let scene = Scene::new().await?;
        let key = scene.add(unauthorized("brindille")).await?;
        let gate = scene.still.world.twitch.pause("brindille")?;
        let meanwhile = async {
            gate.arrived().await;
            scene.sql(change).await?;
            gate.release();
            anyhow::Ok(())
        };
        let (answer, changed) = tokio::join!(scene.grant(key), meanwhile);
        changed?;
        answer?.is(status, problem);
        assert!(scene.still.world.has_live_token(key.streamer).await?);
        let row = scene.still.world.row(key.streamer).await?;
        assert_eq!(row.last_token_refresh_at, Some(scene.still.now()));
    }
    Ok(())
}

/// Twitch doesn't always say how long a token lives: the pair and the grant are stored first, then it is asked.
#[tokio::test]
async fn a_missing_expiry_is_asked_for_after_the_grant() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(unauthorized("brindille")).await?;
    scene.still.world.twitch.fault("brindille", Fault::NoExpiresIn.on(Endpoint::Token))?;
    let granted = scene.grant(key).await?.body;
    assert!(time(&granted["token_expires_at"]) > scene.still.now() + TimeDelta::hours(3));
    assert_eq!(authorization(&scene.still.world, key).await?.0, Some(scene.still.now()));
    Ok(())
}

#[tokio::test]
async fn a_grant_that_meets_a_cycle_waits_for_its_outcome() -> Result<()> {
    let scene = Scene::new().await?;
    let world = &scene.still.world;
    let key = scene.add(NewStreamer::due("brindille")).await?;
    let (report, granted) = scene
        .during_a_refresh("brindille", Trigger::Planned, async |gate| {
            let release = async {
                waits_for_a_lease(world).await?;
                gate.release();
                anyhow::Ok(())
            };
            let (granted, released) = tokio::join!(scene.grant(key), release);
            released?;
            granted
        })
        .await?;
    assert_eq!((report.success, world.twitch.totals().token_requests), (1, 1));
    assert_eq!(time(&granted.body["granted_at"]), scene.still.now());
    Ok(())
}

#[tokio::test]
async fn a_revocation_during_a_refresh_keeps_the_pair() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(NewStreamer::due("brindille")).await?;
    let (report, revoked) = scene
        .during_a_refresh("brindille", Trigger::Sweep, async |gate| {
            let revoked = scene.revoke(key).await?;
            gate.release();
            Ok(revoked)
        })
        .await?;
    assert_eq!((report.success, revoked.status), (1, StatusCode::NO_CONTENT));
    assert!(scene.still.world.has_live_token(key.streamer).await?);
    assert_eq!(authorization(&scene.still.world, key).await?.1, Some(scene.still.now()));
    Ok(())
}

#[tokio::test]
async fn a_grant_in_the_last_second_of_the_old_one_begins_a_new_session() -> Result<()> {
    let scene = Scene::new().await?;
    let world = &scene.still.world;
    let ends = NewStreamer { authorized_for: Some(TimeDelta::seconds(1)), ..NewStreamer::fresh("brindille") };
    let key = scene.add(ends).await?;
    world.service(&[]).await?.store().database().remember_sessions(scene.still.now()).await?;
    let began = authorization(world, key).await?.0.context("it began")?;
    scene.grant(key).await?;
    let now = scene.still.now();
    assert_eq!(sessions(world, key).await?, [(began, now), (now, now + TWELVE_HOURS)], "no gap, no overlap");
    Ok(())
}
