//! Health checks before a session.

use anyhow::{Context as _, Result};
use axum::http::StatusCode;
use chrono::TimeDelta;
use serde_json::{Value, json};
use tokens_domain::CampaignId;
use tokens_domain::schedule::Trigger;
use tokens_local::twitch::{Endpoint, Fault};
use tokens_local::world::NewStreamer;
use tokens_tests::requests::{CALLER, waits_for_a_lease};

use super::{Answer, Scene, time, unauthorized};

fn member(new: NewStreamer) -> NewStreamer {
    NewStreamer { campaign: "Les Brumes".to_owned(), game_master: "Corvin".to_owned(), ..new }
}

/// A campaign with one streamer for each finding, besides its game master's own channel.
async fn company(scene: &Scene) -> Result<CampaignId> {
    let world = &scene.still.world;
    let expired = Some(TimeDelta::hours(-1));
    let key = scene.add(member(NewStreamer::fresh("ok"))).await?;
    let others = [
        NewStreamer::due("refreshed"),
        NewStreamer::fresh("no_access"),
        NewStreamer { is_active: false, ..unauthorized("inactive") },
        unauthorized("missing"),
        NewStreamer { authorized_for: expired, ..NewStreamer::fresh("expired") },
        NewStreamer::fresh("bare"),
        NewStreamer::fresh("invalid"),
        NewStreamer::fresh("disconnected"),
        NewStreamer::fresh("unknown"),
        NewStreamer::fresh("pending"),
    ];
    world.add_all(others.map(member).into()).await?;
    world.twitch.disconnect("disconnected")?;
    world.twitch.fault("unknown", Fault::ServerError.on(Endpoint::Validate))?;
    scene.add(NewStreamer { authorized_for: None, ..NewStreamer::due("master") }).await?;
    // The game master's own channel is in no campaign.
    scene
        .sql(
            "UPDATE streamers SET refresh_token_encrypted = NULL WHERE twitch_login = 'bare';
             UPDATE streamers SET access_token_encrypted = NULL WHERE twitch_login = 'no_access';
             UPDATE streamers SET access_token_encrypted = 'invalid' WHERE twitch_login = 'invalid';
             UPDATE streamers SET user_id = md5('user Corvin')::uuid WHERE twitch_login = 'master';
             DELETE FROM campaign_memberships m USING streamers s WHERE s.id = streamer_id AND twitch_login = 'master';
             UPDATE campaign_memberships SET status = 'PENDING'
             WHERE streamer_id = (SELECT id FROM streamers WHERE twitch_login = 'pending')",
        )
        .await?;
    Ok(key.campaign)
}

/// Login, role, status and issue of each channel.
fn found(answer: &Answer) -> Result<Vec<[&str; 4]>> {
    let streamers = answer.body["streamers"].as_array().context("a list")?;
    Ok(streamers
        .iter()
        .map(|one| ["login", "role", "status", "issue"].map(|member| one[member].as_str().unwrap_or("-")))
        .collect())
}

#[tokio::test]
async fn each_channel_is_listed_with_the_first_issue_that_applies() -> Result<()> {
    let scene = Scene::new().await?;
    let campaign = company(&scene).await?;
    let answer = scene.check(campaign).await?;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let report = &answer.body;
    assert_eq!((&report["campaign_id"], &report["healthy"]), (&json!(campaign), &json!(false)));
    assert_eq!(time(&report["checked_at"]), scene.still.now());
    assert_eq!(report["services"]["database"]["status"], "available");
    assert_eq!(report["services"]["twitch"]["status"], "available");
    assert_eq!(
        found(&answer)?,
        [
            ["master", "game_master", "refreshed", "-"],
            ["bare", "member", "issue", "token_missing"],
            ["disconnected", "member", "issue", "token_invalid"],
            ["expired", "member", "issue", "authorization_expired"],
            ["inactive", "member", "issue", "streamer_inactive"],
            ["invalid", "member", "issue", "token_invalid"],
            ["missing", "member", "issue", "authorization_missing"],
            ["no_access", "member", "refreshed", "-"],
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
        let has_hours =
            !["master", "missing", "inactive"].contains(&one["login"].as_str().context("a login")?);
        assert_eq!(one["authorization_expires_at"].is_string(), has_hours, "{one}");
    }
    let attempt = ("refreshed".to_owned(), "health_check".to_owned(), Some(CALLER.to_owned()));
    assert_eq!(scene.history("master").await?, [attempt]);
    Ok(())
}

#[tokio::test]
async fn a_healthy_campaign_is_healthy() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(member(NewStreamer::due("brindille"))).await?;
    for status in ["refreshed", "ok"] {
        let report = scene.check(key.campaign).await?.body;
        assert_eq!((&report["healthy"], &report["streamers"][0]["status"]), (&json!(true), &json!(status)));
    }
    // A game master whose own channel is a member of the campaign is listed once, and needs no authorization.
    scene
        .sql(
            "UPDATE streamers SET user_id = md5('user Corvin')::uuid;
             UPDATE campaign_memberships SET poll_authorization_granted_at = NULL, poll_authorization_expires_at = NULL",
        )
        .await?;
    let answer = scene.check(key.campaign).await?;
    assert_eq!(found(&answer)?, [["brindille", "game_master", "ok", "-"]]);
    scene.sql("DELETE FROM campaign_memberships; UPDATE streamers SET user_id = NULL").await?;
    let report = scene.check(key.campaign).await?.body;
    assert_eq!((&report["healthy"], &report["streamers"]), (&json!(true), &json!([])));
    assert_eq!(report["services"]["twitch"]["status"], "not_asked");
    Ok(())
}

#[tokio::test]
async fn an_outage_is_unknown_and_no_failure_of_the_streamer() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(NewStreamer::fresh("brindille")).await?;
    scene.still.world.twitch.fault_for_everybody(Fault::ServerError);
    let report = scene.check(key.campaign).await?.body;
    let one = &report["streamers"][0];
    assert_eq!((&report["healthy"], &one["status"]), (&json!(false), &json!("unknown")));
    assert_eq!(one["issue"], Value::Null, "an outage is not an invalid token");
    assert!(one["detail"].as_str().is_some_and(|detail| detail.contains("could not be validated")), "{one}");
    assert_eq!(report["services"]["twitch"]["status"], "unavailable");
    assert_eq!(scene.still.world.row(key.streamer).await?.token_refresh_failed_at, None);
    Ok(())
}

/// What Twitch calls dead is refreshed whatever the database says, and is invalid where no new pair can be had now.
#[tokio::test]
async fn a_token_that_twitch_calls_dead_is_refreshed_or_invalid() -> Result<()> {
    for (token_endpoint, expected) in [(None, "refreshed"), (Some(Fault::ServerError), "issue")] {
        let scene = Scene::new().await?;
        let left = TimeDelta::minutes(10);
        let key = scene.add(NewStreamer { token_left: left, ..NewStreamer::fresh("brindille") }).await?;
        scene.sql("UPDATE streamers SET token_expires_at = token_expires_at + interval '3 hours'").await?;
        if let Some(fault) = token_endpoint {
            scene.still.world.twitch.fault("brindille", fault.on(Endpoint::Token))?;
        }
        scene.still.turn(11);
        let report = scene.check(key.campaign).await?.body;
        assert_eq!(report["streamers"][0]["status"], expected, "{report}");
        let is_live = scene.still.world.has_live_token(key.streamer).await?;
        assert_eq!(is_live, token_endpoint.is_none());
    }
    Ok(())
}

#[tokio::test]
async fn a_check_that_meets_a_cycle_waits_for_its_outcome() -> Result<()> {
    let scene = Scene::new().await?;
    let world = &scene.still.world;
    let key = scene.add(NewStreamer::due("brindille")).await?;
    let (_, report) = scene
        .during_a_refresh("brindille", Trigger::Planned, async |gate| {
            let release = async {
                waits_for_a_lease(world).await?;
                gate.release();
                anyhow::Ok(())
            };
            let (checked, released) = tokio::join!(scene.check(key.campaign), release);
            released?;
            checked
        })
        .await?;
    assert_eq!(report.body["streamers"][0]["status"], "ok", "refreshed by the cycle");
    assert_eq!(world.twitch.totals().token_requests, 1);
    Ok(())
}

#[tokio::test]
async fn a_check_answers_in_its_time_with_what_it_knows() -> Result<()> {
    let scene = Scene::with(&[("HEALTH_CHECK_TIMEOUT", "5")]).await?;
    let key = scene.add(member(NewStreamer::fresh("fine"))).await?;
    scene.add(member(NewStreamer::fresh("hangs"))).await?;
    scene.add(member(NewStreamer::due("slow"))).await?;
    for login in ["hangs", "slow"] {
        scene.still.world.twitch.fault(login, Fault::Hang)?;
    }
    let answer = scene.check(key.campaign).await?;
    let statuses: Vec<_> = found(&answer)?.into_iter().map(|[login, _, status, _]| [login, status]).collect();
    assert_eq!(statuses, [["fine", "ok"], ["hangs", "unknown"], ["slow", "unknown"]], "{answer:?}");
    let detail = answer.body["streamers"][2]["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("in the time that the request had"), "{detail}");
    assert_eq!(answer.body["services"]["twitch"]["status"], "available", "it answered for one");
    Ok(())
}

#[tokio::test]
async fn a_misconfiguration_is_unknown_and_its_details_are_for_the_log() -> Result<()> {
    for (change, detail, twitch) in [
        (
            ("APP_KEY", "another-app-key-than-the-worlds-own"),
            "a fault of this service's own; its log says which",
            "not_asked",
        ),
        (
            ("TWITCH_CLIENT_SECRET", "wrong"),
            "Twitch does not take our application's credentials",
            "unavailable",
        ),
    ] {
        let scene = Scene::with(&[change]).await?;
        let key = scene.add(NewStreamer::due("brindille")).await?;
        let report = scene.check(key.campaign).await?.body;
        let one = &report["streamers"][0];
        assert_eq!((&one["status"], &one["detail"]), (&json!("unknown"), &json!(detail)), "{report}");
        assert_eq!(report["services"]["twitch"]["status"], twitch, "{report}");
        if twitch == "unavailable" {
            assert_eq!(scene.still.world.row(key.streamer).await?.token_refresh_failed_at, None);
        }
    }
    Ok(())
}
