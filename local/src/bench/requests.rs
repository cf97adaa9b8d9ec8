//! Requests to the HTTP API, served from this process; beside bare calls to Twitch, by the same client in the same run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::{Value, json};
use tokens_domain::ports::{Permit, Priority, Twitch};
use tokens_domain::{CampaignId, MembershipKey, StreamerId};
use tokens_twitch::TwitchClient;
use tokio::task::JoinSet;
use tokio::time::interval;
use uuid::Uuid;

use super::world;
use crate::api::{Api, authorization_path, check_path};
use crate::postgres::Postgres;
use crate::world::{NewStreamer, World};

/// Grants that are measured one after the other.
const GRANTS: usize = 200;

/// Members of the campaign that is checked.
const MEMBERS: usize = 20;

/// Checks that are measured, one after the other.
const CHECKS: usize = 20;

/// For how long, and how far apart, requests come in the mixed run: 200 a second for a minute.
const MIXED: Duration = Duration::from_mins(1);
const APART: Duration = Duration::from_millis(5);

/// Prints what requests take.
#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
pub(super) async fn run(postgres: &Postgres) -> Result<()> {
    println!("Requests to the HTTP API, median of many; Twitch by the same client beside it:\n");
    let grants = world(postgres, 2 * GRANTS).await?;
    let (grant, bare) = (warm_grant(&grants).await?, bare_refresh(&grants).await?);
    println!(
        "  a warm grant         {:>6.1} ms, of which Twitch {:>6.1} ms: our share is {:.1} ms",
        ms(grant),
        ms(bare),
        ms(grant.saturating_sub(bare))
    );
    let (check, slowest) = check(postgres).await?;
    println!(
        "  a check of {MEMBERS}        {:>6.1} ms, of which Twitch for the slowest member {:>6.1} ms: {:.2} times",
        ms(check),
        ms(slowest),
        check.as_secs_f64() / slowest.as_secs_f64()
    );
    let mixed = mixed(postgres).await?;
    println!(
        "  {:.0} a second, grants and status in turn, for {} s: {} grants, {} status, no error, no lost update; \
         median {:.1} ms and {:.1} ms, 99 % within {:.1} ms and {:.1} ms\n",
        mixed.per_second,
        MIXED.as_secs(),
        mixed.grants.len(),
        mixed.status.len(),
        ms(percentile(&mixed.grants, 50)),
        ms(percentile(&mixed.status, 50)),
        ms(percentile(&mixed.grants, 99)),
        ms(percentile(&mixed.status, 99)),
    );
    Ok(())
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Of durations in ascending order.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted
        .get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default()
}

fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort_unstable();
    percentile(&durations, 50)
}

/// Asks, and has no other answer than a success that says so in this member.
async fn ask(api: &Api, method: &str, path: &str, success: &str) -> Result<Value> {
    let answer = api.ask(method, path).await?;
    ensure!(answer.status == 200 && answer.body[success] == json!(true), "{path}: {answer:?}");
    Ok(answer.body)
}

async fn grant(api: &Api, key: MembershipKey) -> Result<Granted> {
    Ok(serde_json::from_value(ask(api, "POST", &authorization_path(key), "authorized").await?)?)
}

/// What is read of an answer to a grant.
#[derive(Deserialize)]
struct Granted {
    granted_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
}

async fn memberships(world: &World) -> Result<Vec<MembershipKey>> {
    let rows: Vec<(Uuid, Uuid)> =
        sqlx::query_as("SELECT campaign_id, streamer_id FROM campaign_memberships ORDER BY streamer_id")
            .fetch_all(&world.pool)
            .await?;
    let key = |(campaign, streamer)| MembershipKey {
        campaign: CampaignId(campaign),
        streamer: StreamerId(streamer),
    };
    Ok(rows.into_iter().map(key).collect())
}

/// The first grant connects, and is not counted.
async fn warm_grant(world: &World) -> Result<Duration> {
    let api = Api::start(&world.environment()).await?;
    let keys = memberships(world).await?;
    let mut took = Vec::new();
    for key in keys.iter().take(GRANTS + 1) {
        let started = Instant::now();
        grant(&api, *key).await?;
        took.push(started.elapsed());
    }
    took.remove(0);
    Ok(median(took))
}

/// The pairs of the streamers whom nobody has refreshed, refreshed without a database.
async fn bare_refresh(world: &World) -> Result<Duration> {
    let twitch = TwitchClient::new(world.config(&[])?.twitch, world.clock.clone())?;
    let mut took = Vec::new();
    for n in 0..=GRANTS {
        let pair = world.twitch.current_tokens(&format!("streamer_{n}")).context("no such streamer")?;
        let started = Instant::now();
        twitch.refresh(&pair.refresh, &Permit::UNCONDITIONAL).await?;
        took.push(started.elapsed());
    }
    took.remove(0);
    Ok(median(took))
}

/// A check of a campaign in which half of the tokens expire soon, and one is dead although the database doesn't know:
/// that one is validated and then refreshed. Beside it what these two calls take.
async fn check(postgres: &Postgres) -> Result<(Duration, Duration)> {
    let world = world(postgres, 0).await?;
    let api = Api::start(&world.environment()).await?;
    let twitch = TwitchClient::new(world.config(&[])?.twitch, world.clock.clone())?;
    let (mut checks, mut calls) = (Vec::new(), Vec::new());
    for n in 0..=CHECKS {
        let member = |m: usize| NewStreamer {
            campaign: format!("Campaign {n}"),
            game_master: "Corvin".to_owned(),
            token_left: TimeDelta::minutes(match m {
                0 => -1,
                _ if m.is_multiple_of(2) => 30,
                _ => 180,
            }),
            ..NewStreamer::due(format!("check_{n}_{m}"))
        };
        let ids = world.add_all((0..MEMBERS).map(member).collect()).await?;
        sqlx::query(
            "UPDATE streamers SET token_expires_at = token_expires_at + interval '3 hours' WHERE id = $1",
        )
        .bind(ids[0].0)
        .execute(&world.pool)
        .await?;
        let campaign: Uuid =
            sqlx::query_scalar("SELECT campaign_id FROM campaign_memberships WHERE streamer_id = $1")
                .bind(ids[0].0)
                .fetch_one(&world.pool)
                .await?;
        let started = Instant::now();
        ask(&api, "POST", &check_path(CampaignId(campaign)), "healthy").await?;
        checks.push(started.elapsed());

        let pair = world.twitch.current_tokens(&format!("check_{n}_1")).context("no such streamer")?;
        let started = Instant::now();
        twitch.validate(&pair.access, Priority::Vital, &Permit::UNCONDITIONAL).await?;
        twitch.refresh(&pair.refresh, &Permit::UNCONDITIONAL).await?;
        calls.push(started.elapsed());
    }
    checks.remove(0);
    calls.remove(0);
    Ok((median(checks), median(calls)))
}

/// What the mixed run came to; durations in ascending order.
struct Mixed {
    per_second: f64,
    grants: Vec<Duration>,
    status: Vec<Duration>,
}

/// Requests come when they come, whether those before are answered or not.
async fn mixed(postgres: &Postgres) -> Result<Mixed> {
    let count = usize::try_from(MIXED.as_millis() / APART.as_millis())?;
    let world = world(postgres, count / 2).await?;
    let api = Arc::new(Api::start(&world.environment()).await?);
    let keys = memberships(&world).await?;
    let (mut tasks, mut ticks) = (JoinSet::new(), interval(APART));
    let started = Instant::now();
    for n in 0..count {
        ticks.tick().await;
        let (api, key) = (api.clone(), keys[n / 2]);
        tasks.spawn(async move {
            let began = Instant::now();
            let granted = if n.is_multiple_of(2) {
                Some((key, grant(&api, key).await?))
            } else {
                ask(&api, "GET", &authorization_path(key), "authorized").await?;
                None
            };
            anyhow::Ok((began.elapsed(), granted))
        });
    }
    #[expect(clippy::cast_precision_loss, reason = "some thousands")]
    let per_second = count as f64 / started.elapsed().as_secs_f64();
    let (mut grants, mut status, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(done) = tasks.join_next().await {
        match done?? {
            (took, Some(granted)) => {
                grants.push(took);
                answers.push(granted);
            }
            (took, None) => status.push(took),
        }
    }
    for (key, Granted { granted_at, expires_at }) in answers {
        let stored: (DateTime<Utc>, DateTime<Utc>) = sqlx::query_as(
            "SELECT poll_authorization_granted_at, poll_authorization_expires_at FROM campaign_memberships
             WHERE campaign_id = $1 AND streamer_id = $2",
        )
        .bind(key.campaign.0)
        .bind(key.streamer.0)
        .fetch_one(&world.pool)
        .await?;
        ensure!(stored == (granted_at, expires_at), "the update of {key:?} is lost");
        ensure!(world.has_live_token(key.streamer).await?, "{key:?} has no live token");
    }
    grants.sort_unstable();
    status.sort_unstable();
    Ok(Mixed { per_second, grants, status })
}
