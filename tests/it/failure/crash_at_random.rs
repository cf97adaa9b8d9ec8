//! Functions are killed (SIGKILL) at random, many times, and started again. The seed is printed; `CRASH_SEED` sets it.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use chrono::TimeDelta;
use cipher::Column;
use domain::notification::DEVICES_OF_A_PERSON;
use domain::{StreamerId, TokenPair};
use end_to_end::doomed::{
    CLAIM, LEASE, function, half_a_minute_later, hang_up, kill_at_or_let_end, lease, run, settled, stored,
    three_minutes_later, world,
};
use end_to_end::people::{campaign, refused_before, refused_streamer, subscribe, user};
use fastrand::Rng;
use local::push::SimulatedPush;
use local::twitch::RefreshTokens;
use local::world::{NewStreamer, World};
use push::VapidKey;
use serde_json::{Value, json};

/// With this many streamers, for each kind of refresh tokens this many rounds of up to [`KILLS`] kills.
const STREAMERS: u64 = 60;
const ROUNDS: u64 = 7;
const KILLS: u64 = 3;

/// Long enough for requests to overlap, half of it before Twitch rotates a pair and half after.
const LATENCY: Duration = Duration::from_millis(4);

/// Calls in flight: fewer than there are streamers, so that a kill meets some before their turn and some after.
const IN_FLIGHT: &str = "8";

/// A new seed, or the one that a failed run has printed.
#[expect(clippy::print_stderr, reason = "whoever looks into a failure needs the seed")]
fn seed() -> Result<u64> {
    let seed = match local::env::var("CRASH_SEED") {
        Some(text) => text.parse().context("CRASH_SEED is no whole number")?,
        None => getrandom::u64()?,
    };
    eprintln!("CRASH_SEED={seed}");
    Ok(seed)
}

/// One of the triggers, with its function.
fn trigger(random: &mut Rng) -> (&'static str, Value) {
    match random.u8(0..3) {
        0 => ("scheduled-refresh", json!({"trigger": "planned"})),
        1 => ("scheduled-refresh", json!({"trigger": "sweep"})),
        _ => ("retry-refresh", json!({"trigger": "retry", "minute": "2026-11-23T04:15:00Z"})),
    }
}

/// Everybody's tokens expire soon, and no failure stands.
async fn all_become_due(world: &World) -> Result<()> {
    let due = "UPDATE streamers SET token_expires_at = now() + interval '30 minutes', token_refresh_failed_at = NULL";
    sqlx::query(due).execute(&world.pool).await?;
    Ok(())
}

async fn pairs(world: &World, streamers: &[(StreamerId, String)]) -> Result<HashMap<StreamerId, TokenPair>> {
    let mut pairs = HashMap::new();
    for (id, _) in streamers {
        pairs.insert(*id, stored(world, *id, &world.row(*id).await?)?);
    }
    Ok(pairs)
}

/// The streamer connects again, as the application would have it.
async fn reconnect(world: &World, id: StreamerId, login: &str) -> Result<()> {
    let pair = world.twitch.add_streamer(&id.to_string(), login);
    let cipher = world.config(&[])?.cipher;
    sqlx::query(
        "UPDATE streamers SET access_token_encrypted = $2, refresh_token_encrypted = $3, is_active = true,
             token_refresh_failed_at = NULL WHERE id = $1",
    )
    .bind(id.0)
    .bind(cipher.encrypt(id.0, Column::AccessToken, pair.access.expose())?)
    .bind(cipher.encrypt(id.0, Column::RefreshToken, pair.refresh.expose())?)
    .execute(&world.pool)
    .await?;
    Ok(())
}

/// Kills functions in the middle of cycles over everybody, then lets one finish. Answers how many kills there were, and how many
/// streamers the window has cost their pair.
async fn round(
    world: &World,
    kind: RefreshTokens,
    streamers: &[(StreamerId, String)],
    random: &mut Rng,
) -> Result<(u64, usize)> {
    all_become_due(world).await?;
    let before = pairs(world, streamers).await?;
    let mut kills = 0;
    for _ in 0..random.u64(1..=KILLS) {
        let totals = world.twitch.totals();
        let (rotated, after) = (random.bool(), random.u64(1..=STREAMERS));
        let reached = world.twitch.wait_until(|now| {
            if rotated {
                now.refreshes >= totals.refreshes + after
            } else {
                now.token_requests >= totals.token_requests + after
            }
        });
        let (name, event) = trigger(random);
        let doomed = function(world, name, &[("TWITCH_MAX_IN_FLIGHT", IN_FLIGHT)]).await?;
        kills += u64::from(kill_at_or_let_end(doomed, event, reached).await?);
        settled(world).await?;
    }

    // What is left: each row is as before or complete, and whoever lost a pair was in the window.
    let mut lost = Vec::new();
    for (id, login) in streamers {
        let newest = world.twitch.current_tokens(login).context("still connected")?;
        let stored = stored(world, *id, &world.row(*id).await?)?;
        let leased = lease(world, *id).await?;
        assert!(leased.is_none_or(|rest| rest <= LEASE), "{login} is leased for another {leased:?}");
        if stored != newest {
            assert_eq!(stored, before[id], "{login}: half a pair is stored");
            assert!(leased.is_some(), "{login} lost a pair outside of an attempt");
            lost.push(*id);
        }
    }

    three_minutes_later(world).await?;
    let reuses = world.twitch.totals().reuses;
    let (name, event) = trigger(random);
    let report = run(world, name, event, &[]).await?;
    let expected = if kind == RefreshTokens::OneTime { lost.len() } else { 0 };
    assert_eq!(report["failed"], json!(expected), "{} lost a pair: {report}", lost.len());
    assert_eq!(world.twitch.totals().reuses - reuses, expected as u64);
    for (id, login) in streamers {
        let row = world.row(*id).await?;
        assert!(row.is_active, "nobody is deactivated for a crash: {login}");
        assert_eq!(lease(world, *id).await?, None, "{login}");
        if expected > 0 && lost.contains(id) {
            assert!(row.token_refresh_failed_at.is_some(), "{login}");
            reconnect(world, *id, login).await?;
        } else {
            assert_eq!(world.twitch.current_tokens(login), Some(stored(world, *id, &row)?), "{login}");
            assert!(row.token_expires_at > Some(world.clock.now() + TimeDelta::hours(3)), "{login} is stale");
            assert!(world.has_live_token(*id).await?, "{login} is dead");
        }
    }
    Ok((kills, lost.len()))
}

async fn killed_at_random(kind: RefreshTokens) -> Result<()> {
    let seed = seed()?;
    let mut random = Rng::with_seed(seed);
    let world = world(kind, LATENCY).await?;
    let logins: Vec<_> = (0..STREAMERS).map(|n| format!("s{n}")).collect();
    let ids = world.add_all(logins.iter().map(NewStreamer::due).collect()).await?;
    let streamers: Vec<_> = ids.into_iter().zip(logins).collect();
    let (mut kills, mut lost) = (0, 0);
    for number in 1..=ROUNDS {
        let done = round(&world, kind, &streamers, &mut random);
        let done = done.await.with_context(|| format!("CRASH_SEED={seed}, round {number}"))?;
        kills += done.0;
        lost += done.1;
    }
    // The first kill of a round always comes before the last streamer's result.
    assert!(kills >= ROUNDS, "{kills} kills, {lost} lost");
    Ok(())
}

#[tokio::test]
async fn kept_refresh_tokens() -> Result<()> {
    killed_at_random(RefreshTokens::Kept).await
}

#[tokio::test]
async fn rotated_refresh_tokens() -> Result<()> {
    killed_at_random(RefreshTokens::Rotated).await
}

#[tokio::test]
async fn one_time_refresh_tokens() -> Result<()> {
    killed_at_random(RefreshTokens::OneTime).await
}

/// Everybody who is to be told of a deactivation is told, however often notify dies.
#[tokio::test]
async fn notify() -> Result<()> {
    const DEVICES: u64 = 60;
    const MOST_KILLS: u64 = 12;
    let seed = seed()?;
    let mut random = Rng::with_seed(seed);
    let world = world(RefreshTokens::Kept, Duration::ZERO).await?;
    let push = SimulatedPush::start(local::push::Settings::default()).await?;
    let (aria, _) = refused_streamer(&world, "aria").await?;
    refused_before(&world, aria).await?;
    let devices: Vec<_> = (0..DEVICES).map(|n| format!("device {n}")).collect();
    // As many as one person is notified on.
    for devices in devices.chunks(DEVICES_OF_A_PERSON) {
        let master = user(&world, &devices[0]).await?;
        campaign(&world, aria, "Brumes", master, "ACTIVE").await?;
        for device in devices {
            subscribe(&world, master, &push.subscribe(device)).await?;
        }
    }
    let report = run(&world, "scheduled-refresh", json!({"trigger": "planned"}), &[]).await?;
    assert_eq!(report["deactivated"], 1, "{report}");

    let key = VapidKey::generate()?;
    let (public, private) = (key.public(), key.expose_private());
    let vapid = [
        ("VAPID_PUBLIC_KEY", public.as_str()),
        ("VAPID_PRIVATE_KEY", private.as_str()),
        ("VAPID_SUBJECT", "mailto:operator@twitch-polls.net"),
        ("PUSH_LOOPBACK", "on"),
    ];
    let mut kills = 0;
    for _ in 0..random.u64(1..=MOST_KILLS) {
        let accepted = push.totals().accepted;
        let after = random.usize(1..=20);
        let doomed = function(&world, "notify", &vapid).await?;
        let reached = push.wait_for(accepted + after);
        let killed = kill_at_or_let_end(doomed, json!({"trigger": "timer"}), reached).await?;
        kills += usize::from(killed);
        hang_up(&world).await?;
        let late =
            "SELECT count(*) FROM token_refresh.outbox WHERE state = 'pending' AND next_attempt_at > $1";
        let late: i64 =
            sqlx::query_scalar(late).bind(world.clock.now() + CLAIM).fetch_one(&world.pool).await?;
        assert_eq!(late, 0, "CRASH_SEED={seed}: nobody waits for longer than a claim");
        half_a_minute_later(&world).await?;
    }
    run(&world, "notify", json!({"trigger": "timer"}), &vapid).await?;
    for device in &devices {
        let sent = push.messages(device)?.len();
        assert!((1..=kills + 1).contains(&sent), "CRASH_SEED={seed}: {device} was sent {sent}");
        assert_eq!(push.shown(device)?.len(), 1, "CRASH_SEED={seed}: {device}");
    }
    let settled = "SELECT count(*) FROM token_refresh.outbox WHERE state = 'delivered'";
    let settled: i64 = sqlx::query_scalar(settled).fetch_one(&world.pool).await?;
    assert_eq!(settled, i64::try_from(DEVICES)?, "CRASH_SEED={seed}");
    Ok(())
}
