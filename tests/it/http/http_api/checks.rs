//! Health checks.

use anyhow::{Context as _, Result};
use axum::http::StatusCode;
use chrono::TimeDelta;
use domain::{CampaignId, StreamerId};
use end_to_end::requests::CALLER;
use local::twitch::{Endpoint, Fault};
use local::world::NewStreamer;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Scene, time, unauthorized};

/// A campaign with one streamer for each finding, besides its game master's own channel.
async fn company(scene: &Scene) -> Result<CampaignId> {
    let member = |new: NewStreamer| NewStreamer {
        campaign: "Les Brumes".to_owned(),
        game_master: "Corvin".to_owned(),
        ..new
    };
    let world = &scene.still.world;
    let key = scene.add(member(NewStreamer::fresh("ok"))).await?;
    scene.add(member(NewStreamer::due("refreshed"))).await?;
    scene.add(member(NewStreamer { is_active: false, ..NewStreamer::fresh("inactive") })).await?;
    scene.add(member(unauthorized("missing"))).await?;
    scene
        .add(member(NewStreamer {
            authorized_for: Some(-TimeDelta::hours(1)),
            ..NewStreamer::fresh("expired")
        }))
        .await?;
    let bare = scene.add(member(NewStreamer::fresh("bare"))).await?;
    scene
        .execute("UPDATE streamers SET refresh_token_encrypted = NULL WHERE id = $1", bare.streamer.0)
        .await?;
    scene.add(member(NewStreamer::fresh("invalid"))).await?;
    world.twitch.disconnect("invalid")?;
    scene.add(member(NewStreamer::fresh("unknown"))).await?;
    world.twitch.fault("unknown", Fault::ServerError.on(Endpoint::Validate))?;
    // The master's own channel is in no campaign.
    let master = scene.add(NewStreamer::due("master")).await?;
    scene.execute("DELETE FROM campaign_memberships WHERE streamer_id = $1", master.streamer.0).await?;
    scene
        .execute("UPDATE streamers SET user_id = md5('user Corvin')::uuid WHERE id = $1", master.streamer.0)
        .await?;
    Ok(key.campaign)
}

#[tokio::test]
async fn a_check_finds_each_channel_and_refreshes_what_it_can() -> Result<()> {
    let scene = Scene::new().await?;
    let campaign = company(&scene).await?;
    let answer = scene.check(campaign).await?;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let report = &answer.body;
    assert_eq!((&report["campaign_id"], &report["healthy"]), (&json!(campaign), &json!(false)));
    assert_eq!(time(&report["checked_at"]), scene.still.now());
    assert_eq!(report["services"]["database"]["status"], "available");
    assert_eq!(report["services"]["twitch"]["status"], "available");
    let found: Vec<_> = report["streamers"]
        .as_array()
        .context("a list")?
        .iter()
        .map(|one| ["login", "role", "status", "issue"].map(|member| one[member].as_str().unwrap_or("-")))
        .collect();
    assert_eq!(
        found,
        [
            ["master", "game_master", "refreshed", "-"],
            ["bare", "member", "issue", "token_missing"],
            ["expired", "member", "issue", "authorization_expired"],
            ["inactive", "member", "issue", "streamer_inactive"],
            ["invalid", "member", "issue", "token_invalid"],
            ["missing", "member", "issue", "authorization_missing"],
            ["ok", "member", "ok", "-"],
            ["refreshed", "member", "refreshed", "-"],
            ["unknown", "member", "unknown", "-"],
        ]
    );
    for one in report["streamers"].as_array().context("a list")? {
        let is_fine = ["ok", "refreshed"].contains(&one["status"].as_str().context("a status")?);
        assert_eq!(one["action"].is_null(), is_fine, "{one}");
        if is_fine {
            assert!(time(&one["token_expires_at"]) > scene.still.now() + TimeDelta::hours(1), "{one}");
        }
        let has_hours = !["master", "missing"].contains(&one["login"].as_str().context("a login")?);
        assert_eq!(one["authorization_expires_at"].is_string(), has_hours, "{one}");
    }
    let master: Uuid = sqlx::query_scalar("SELECT id FROM streamers WHERE twitch_login = 'master'")
        .fetch_one(&scene.still.world.pool)
        .await?;
    assert_eq!(
        scene.history(StreamerId(master)).await?,
        [("refreshed".to_owned(), "health_check".to_owned(), Some(CALLER.to_owned()))]
    );
    Ok(())
}

#[tokio::test]
async fn a_healthy_campaign_is_healthy() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(NewStreamer::due("brindille")).await?;
    for status in ["refreshed", "ok"] {
        let report = scene.check(key.campaign).await?.body;
        assert_eq!((&report["healthy"], &report["streamers"][0]["status"]), (&json!(true), &json!(status)));
    }
    scene.execute("DELETE FROM campaign_memberships WHERE campaign_id = $1", key.campaign.0).await?;
    let report = scene.check(key.campaign).await?.body;
    assert_eq!(
        (&report["healthy"], &report["streamers"]),
        (&json!(true), &json!([])),
        "no channel is needed"
    );
    assert_eq!(report["services"]["twitch"]["status"], "not_asked");
    Ok(())
}

#[tokio::test]
async fn a_check_during_an_outage_knows_that_it_does_not_know() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(NewStreamer::fresh("brindille")).await?;
    scene.still.world.twitch.fault_for_everybody(Fault::ServerError);
    let report = scene.check(key.campaign).await?.body;
    assert_eq!((&report["healthy"], &report["streamers"][0]["status"]), (&json!(false), &json!("unknown")));
    assert_eq!(report["streamers"][0]["issue"], Value::Null, "an outage is no invalid token");
    assert_eq!(report["services"]["twitch"]["status"], "unavailable");
    Ok(())
}

#[tokio::test]
async fn a_check_does_not_wait_for_a_twitch_that_hangs() -> Result<()> {
    let scene = Scene::with(&[("HEALTH_CHECK_TIMEOUT", "5")]).await?;
    let campaign = "Les Brumes".to_owned();
    let key = scene.add(NewStreamer { campaign: campaign.clone(), ..NewStreamer::fresh("fine") }).await?;
    scene.add(NewStreamer { campaign, ..NewStreamer::fresh("hangs") }).await?;
    scene.still.world.twitch.fault("hangs", Fault::Hang)?;
    let report = scene.check(key.campaign).await?.body;
    let found: Vec<_> =
        report["streamers"].as_array().context("a list")?.iter().map(|one| &one["status"]).collect();
    assert_eq!(found, ["ok", "unknown"], "{report}");
    assert_eq!(report["services"]["twitch"]["status"], "available", "it answered for one");
    Ok(())
}

#[tokio::test]
async fn a_fault_of_ours_is_not_in_a_report() -> Result<()> {
    let scene = Scene::with(&[("APP_KEY", "another-app-key-than-the-worlds-own")]).await?;
    let key = scene.add(NewStreamer::due("brindille")).await?;
    let report = scene.check(key.campaign).await?.body;
    let one = &report["streamers"][0];
    assert_eq!(one["status"], "unknown", "{report}");
    assert_eq!(one["detail"], "a fault of this service's own; its log says which");
    Ok(())
}
