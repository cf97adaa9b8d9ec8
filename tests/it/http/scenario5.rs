//! The brief's scenario 5, literally: its SQL lets a token expire soon, the check before a session refreshes it and says so
//! in the brief's words, and the session can begin. The functions' own binaries, on the machine's time.

use anyhow::{Context as _, Result};
use chrono::TimeDelta;
use end_to_end::api::Api;
use end_to_end::requests::{check_path, membership};
use end_to_end::world;
use local::world::{NewStreamer, World};
use serde_json::{Value, json};

/// The brief's own SQL.
const EXPIRES_SOON: &str =
    "UPDATE streamers SET token_expires_at = NOW() + INTERVAL '30 minutes' WHERE twitch_login = 'aria'";

/// The brief's own log.
const LOG: [&str; 2] = [
    "[HealthCheck] Token invalid for streamer aria, attempting refresh...",
    "[HealthCheck] Token refreshed successfully for streamer aria",
];

fn member(login: &str) -> NewStreamer {
    NewStreamer {
        campaign: "Les Brumes".to_owned(),
        game_master: "Corvin".to_owned(),
        ..NewStreamer::fresh(login)
    }
}

/// Each streamer's status, by login.
fn found(report: &Value) -> Result<Vec<(&str, &str)>> {
    let streamers = report["streamers"].as_array().context("nobody was checked")?;
    let texts = streamers.iter().map(|one| Some((one["login"].as_str()?, one["status"].as_str()?)));
    texts.collect::<Option<_>>().context("not all have a status")
}

/// The lines of health checks in the log are these.
fn logged(api: &Api, expected: &[&str]) -> Result<()> {
    let log = api.log()?;
    let lines: Vec<_> = log.lines().filter(|line| line.contains("[HealthCheck]")).collect();
    assert_eq!(lines.len(), expected.len(), "{log}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.contains(expected), "not `{expected}` but `{line}`");
    }
    Ok(())
}

async fn scenario(world: &World, api: &Api) -> Result<()> {
    let aria = world.add(member("aria")).await?;
    world.add(member("bastien")).await?;
    let path = check_path(membership(world, aria).await?.campaign);
    assert_eq!(sqlx::query(EXPIRES_SOON).execute(&world.pool).await?.rows_affected(), 1);

    let answer = api.ask("POST", &path).await?;

    assert_eq!((answer.status, &answer.body["healthy"]), (200, &json!(true)), "{answer:?}");
    assert_eq!(found(&answer.body)?, [("aria", "refreshed"), ("bastien", "ok")]);
    logged(api, &LOG)?;
    let row = world.row(aria).await?;
    assert_eq!(answer.body["streamers"][0]["token_expires_at"], json!(row.token_expires_at));
    assert!(row.token_expires_at > row.last_token_refresh_at.map(|at| at + TimeDelta::hours(3)), "{row:?}");
    assert!(world.has_live_token(aria).await?);
    let refreshes = |login| world.twitch.activity(login).map(|activity| activity.refresh_requests);
    assert_eq!((refreshes("aria")?, refreshes("bastien")?), (1, 0));

    // The session begins: there is nothing to mend any more.
    let answer = api.ask("POST", &path).await?;
    assert_eq!((answer.status, &answer.body["healthy"]), (200, &json!(true)), "{answer:?}");
    assert_eq!(found(&answer.body)?, [("aria", "ok"), ("bastien", "ok")]);
    logged(api, &LOG)
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
