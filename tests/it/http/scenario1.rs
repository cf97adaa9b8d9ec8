//! The brief's scenario 1, literally: its SQL shows a token that dies soon, the streamer authorizes a campaign, and the same
//! SQL shows a fresh one. The functions' own binaries, on the machine's time.

use anyhow::{Context as _, Result};
use chrono::{DateTime, TimeDelta, Utc};
use domain::authorization::AUTHORIZATION;
use end_to_end::api::Api;
use end_to_end::requests::{authorization, authorization_path, membership};
use end_to_end::world;
use local::lambda::ACCOUNT;
use local::world::{NewStreamer, World};
use serde_json::json;

/// The brief's own SQL.
const LOOK: &str = "SELECT twitch_display_name, token_expires_at, last_token_refresh_at
                    FROM streamers WHERE twitch_login = 'aria'";

type Row = (String, Option<DateTime<Utc>>, Option<DateTime<Utc>>);

async fn look(world: &World) -> Result<Row> {
    Ok(sqlx::query_as(LOOK).fetch_one(&world.pool).await?)
}

async fn scenario(world: &World, api: &Api) -> Result<()> {
    let aria = NewStreamer { authorized_for: None, ..NewStreamer::due("aria") };
    let key = membership(world, world.add(aria).await?).await?;
    let (name, expires_at, refreshed_at) = look(world).await?;
    assert_eq!((name.as_str(), refreshed_at), ("Aria", None));
    assert!(expires_at < Some(world.clock.now() + TimeDelta::hours(1)));

    let before = world.clock.now();
    let answer = api.ask("POST", &authorization_path(key)).await?;
    let after = world.clock.now();

    assert_eq!(answer.status, 200, "{answer:?}");
    let (_, expires_at, refreshed_at) = look(world).await?;
    let (expires_at, refreshed_at) = (expires_at.context("no expiry")?, refreshed_at.context("no refresh")?);
    assert!(before <= refreshed_at && refreshed_at <= after, "now: {before} {refreshed_at} {after}");
    let left = expires_at - refreshed_at;
    assert!(TimeDelta::minutes(230) < left && left < TimeDelta::minutes(242), "about four hours: {left}");
    assert!(world.has_live_token(key.streamer).await?);
    assert_eq!(world.twitch.activity("aria")?.refreshes, 1);

    // What was answered is what stands in the database.
    let (granted_at, ends_at) = authorization(world, key).await?;
    let granted_at = granted_at.context("nothing was granted")?;
    assert!(before <= granted_at && granted_at <= after, "{before} {granted_at} {after}");
    assert_eq!(ends_at, Some(granted_at + AUTHORIZATION));
    let body = &answer.body;
    assert_eq!(
        [&body["authorized"], &body["granted_at"], &body["expires_at"], &body["token_expires_at"]],
        [&json!(true), &json!(granted_at), &json!(ends_at), &json!(expires_at)]
    );
    let remaining = body["remaining_seconds"].as_i64().context("no remaining time")?;
    assert!(0 < remaining && remaining <= AUTHORIZATION.num_seconds(), "{remaining}");
    let callers: Vec<String> =
        sqlx::query_scalar("SELECT caller FROM token_refresh.refreshes").fetch_all(&world.pool).await?;
    assert!(matches!(&callers[..], [caller] if caller.contains(ACCOUNT)), "{callers:?}");

    // And what is answered to whoever looks at it.
    let status = api.ask("GET", &authorization_path(key)).await?;
    assert_eq!((status.status, &status.body["expires_at"]), (200, &json!(ends_at)));
    Ok(())
}

#[tokio::test]
async fn over_a_socket() -> Result<()> {
    let world = world().await?;
    scenario(&world, &Api::over_a_socket(&world).await?).await
}

#[tokio::test]
async fn by_events_of_api_gateway() -> Result<()> {
    let world = world().await?;
    scenario(&world, &Api::by_events(&world)?).await
}
