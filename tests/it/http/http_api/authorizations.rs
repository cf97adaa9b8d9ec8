//! Grants, revocations, their status, and what is refused.

use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::http::{Method, StatusCode};
use chrono::TimeDelta;
use end_to_end::people::{campaign, user};
use end_to_end::requests::CALLER;
use local::twitch::Fault;
use local::world::NewStreamer;
use serde_json::{Value, json};

use super::{Scene, time, unauthorized};

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
    let now = scene.still.now();
    assert_eq!(granted.body["authorized"], true);
    assert_eq!(granted.body["remaining_seconds"], 12 * 60 * 60);
    assert_eq!(time(&granted.body["granted_at"]), now);
    assert_eq!(time(&granted.body["expires_at"]), now + TimeDelta::hours(12));
    let row = scene.still.world.row(key.streamer).await?;
    assert_eq!(row.last_token_refresh_at, Some(now));
    assert_eq!(time(&granted.body["token_expires_at"]), row.token_expires_at.context("an expiry")?);
    assert!(row.token_expires_at > Some(now + TimeDelta::hours(3)), "it was refreshed, whatever was left");
    assert_eq!(
        scene.history(key.streamer).await?,
        [("refreshed".to_owned(), "grant".to_owned(), Some(CALLER.to_owned()))]
    );

    // What was answered is what is stored, and what the list says.
    assert_eq!(scene.status(key).await?.body, granted.body);
    let list = scene.send(Method::GET, &format!("/streamers/{}/authorizations", key.streamer)).await?;
    assert_eq!(list.body, json!({"streamer_id": key.streamer, "authorizations": [granted.body]}));
    Ok(())
}

#[tokio::test]
async fn a_double_click_costs_twitch_one_call() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(unauthorized("brindille")).await?;
    let first = scene.grant(key).await?;
    scene.still.clock.advance(Duration::from_secs(30));
    let second = scene.grant(key).await?;
    assert_eq!((first.status, second.status), (StatusCode::OK, StatusCode::OK));
    assert_eq!(scene.still.world.twitch.totals().token_requests, 1);
    assert_eq!(time(&second.body["granted_at"]), scene.still.now(), "the hours are from now");
    assert_eq!(second.body["token_expires_at"], first.body["token_expires_at"]);

    scene.still.turn(1);
    assert_eq!(scene.grant(key).await?.status, StatusCode::OK);
    assert_eq!(scene.still.world.twitch.totals().token_requests, 2);
    Ok(())
}

#[tokio::test]
async fn a_revocation_ends_the_hours_now() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(unauthorized("brindille")).await?;
    let none = scene.revoke(key).await?;
    assert_eq!((none.status, none.body), (StatusCode::NO_CONTENT, Value::Null), "there was none");

    let granted = scene.grant(key).await?;
    scene.still.turn(60);
    assert_eq!(scene.status(key).await?.body["remaining_seconds"], 11 * 60 * 60);
    assert_eq!(scene.revoke(key).await?.status, StatusCode::NO_CONTENT);
    let revoked = scene.status(key).await?.body;
    assert_eq!(revoked["authorized"], false);
    assert_eq!(revoked["remaining_seconds"], 0);
    assert_eq!(revoked["granted_at"], granted.body["granted_at"]);
    assert_eq!(time(&revoked["expires_at"]), scene.still.now());

    scene.still.turn(60);
    assert_eq!(scene.revoke(key).await?.status, StatusCode::NO_CONTENT);
    assert_eq!(scene.status(key).await?.body["expires_at"], revoked["expires_at"], "the first one counts");
    Ok(())
}

#[tokio::test]
async fn a_list_has_every_campaign_that_invited_the_streamer() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(NewStreamer::fresh("brindille")).await?;
    let world = &scene.still.world;
    let owner = user(world, "Corvin").await?;
    let pending = campaign(world, key.streamer, "Abysses", owner, "PENDING").await?;
    let list = scene.send(Method::GET, &format!("/streamers/{}/authorizations", key.streamer)).await?;
    let [first, second] = list.body["authorizations"].as_array().context("a list")?.as_slice() else {
        panic!("{list:?}");
    };
    assert_eq!((&first["campaign_id"], &first["membership"]), (&json!(pending), &json!("PENDING")));
    assert_eq!(first["authorized"], false);
    assert_eq!(
        (&second["campaign_name"], &second["authorized"]),
        (&json!("Campaign of brindille"), &json!(true))
    );

    scene.execute("DELETE FROM campaign_memberships WHERE streamer_id = $1", key.streamer.0).await?;
    let list = scene.send(Method::GET, &format!("/streamers/{}/authorizations", key.streamer)).await?;
    assert_eq!(list.body["authorizations"], json!([]));
    Ok(())
}

#[tokio::test]
async fn nothing_is_granted_to_who_may_not_be() -> Result<()> {
    let scene = Scene::new().await?;
    let pending = scene.add(unauthorized("pending")).await?;
    let inactive = scene.add(NewStreamer { is_active: false, ..unauthorized("inactive") }).await?;
    scene
        .execute(
            "UPDATE campaign_memberships SET status = 'PENDING' WHERE streamer_id = $1",
            pending.streamer.0,
        )
        .await?;
    scene.grant(pending).await?.is(StatusCode::CONFLICT, "membership-pending");
    scene.grant(inactive).await?.is(StatusCode::CONFLICT, "streamer-inactive");
    for key in [pending, inactive] {
        let status = scene.status(key).await?.body;
        assert_eq!((&status["authorized"], &status["granted_at"]), (&json!(false), &Value::Null));
    }
    assert_eq!(scene.still.world.twitch.totals().token_requests, 0);
    Ok(())
}

#[tokio::test]
async fn a_refused_grant_is_a_failure_like_any_other() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(unauthorized("brindille")).await?;
    scene.still.world.twitch.disconnect("brindille")?;
    scene.grant(key).await?.is(StatusCode::CONFLICT, "refused-by-twitch");
    let row = scene.still.world.row(key.streamer).await?;
    assert_eq!((row.is_active, row.token_refresh_failed_at), (true, Some(scene.still.now())));
    assert_eq!(scene.status(key).await?.body["granted_at"], Value::Null);

    // A second click counts for nothing; a second refusal a quarter of an hour later deactivates.
    scene.grant(key).await?.is(StatusCode::CONFLICT, "refused-by-twitch");
    assert!(scene.still.world.row(key.streamer).await?.is_active);
    scene.still.turn(16);
    scene.grant(key).await?.is(StatusCode::CONFLICT, "refused-by-twitch");
    assert!(!scene.still.world.row(key.streamer).await?.is_active);
    scene.grant(key).await?.is(StatusCode::CONFLICT, "streamer-inactive");
    Ok(())
}

#[tokio::test]
async fn an_outage_grants_nothing_and_says_when_to_come_back() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(unauthorized("brindille")).await?;
    scene.still.world.twitch.fault_for_everybody(Fault::ServerError);
    let answer = scene.grant(key).await?;
    answer.is(StatusCode::SERVICE_UNAVAILABLE, "twitch-unavailable");
    answer.retry_after(60);
    assert_eq!(scene.status(key).await?.body["granted_at"], Value::Null);

    scene.still.world.twitch.clear_faults_for_everybody();
    assert_eq!(scene.grant(key).await?.status, StatusCode::OK, "no caller has to wait once Twitch is back");
    assert_eq!(scene.still.world.row(key.streamer).await?.token_refresh_failed_at, None);
    Ok(())
}

#[tokio::test]
async fn a_fault_of_ours_says_so_and_not_which() -> Result<()> {
    for changes in [("TWITCH_CLIENT_SECRET", "wrong"), ("APP_KEY", "another-app-key-than-the-worlds-own")] {
        let scene = Scene::with(&[changes]).await?;
        let key = scene.add(unauthorized("brindille")).await?;
        let answer = scene.grant(key).await?;
        answer.is(StatusCode::SERVICE_UNAVAILABLE, "misconfigured");
        answer.retry_after(300);
        assert!(!answer.body.to_string().contains(changes.0), "{answer:?}");
        let row = scene.still.world.row(key.streamer).await?;
        assert!(row.is_active);
    }
    Ok(())
}

#[tokio::test]
async fn who_meets_anothers_lease_waits_and_is_told_to_come_back() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(unauthorized("brindille")).await?;
    let lease = "INSERT INTO token_refresh.streamers (streamer_id, fence, leased_until)
                 VALUES ($1, 1, now() + interval '1 hour')";
    scene.execute(lease, key.streamer.0).await?;
    let answer = scene.grant(key).await?;
    answer.is(StatusCode::SERVICE_UNAVAILABLE, "refresh-in-progress");
    answer.retry_after(5);
    Ok(())
}
