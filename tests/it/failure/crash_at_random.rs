//! Functions are killed (SIGKILL) at random, many times, and started again. The seed is printed; `CRASH_SEED` sets it.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use chrono::TimeDelta;
use fastrand::Rng;
use serde_json::{Value, json};
use tokens_domain::{StreamerId, TokenPair};
use tokens_local::twitch::RefreshTokens;
use tokens_local::world::{NewStreamer, World};
use tokens_tests::doomed::{
    LEASE, function, kill_at_or_let_end, lease, run, settled, stored, three_minutes_later, world,
};
use tokens_tests::people::reconnect;

/// With this many streamers, this many rounds of up to [`KILLS`] kills.
const STREAMERS: u64 = 60;
const ROUNDS: u64 = 7;
const KILLS: u64 = 3;

/// Long enough for requests to overlap, half of it before Twitch rotates a pair and half after.
const LATENCY: Duration = Duration::from_millis(4);

/// Calls in flight: fewer than there are streamers, so that a kill meets some before their turn and some after.
const IN_FLIGHT: &str = "8";

/// A new seed, or the one that a failed run has printed.
#[expect(clippy::print_stderr, reason = "a failure is repeated with its seed")]
fn seed() -> Result<u64> {
    let seed = match tokens_local::env::var("CRASH_SEED") {
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

/// All tokens expire soon, and no failure stands.
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

/// Kills functions in the middle of cycles over all streamers, then lets one finish. The number of kills, and of pairs that were
/// lost in the window.
async fn round(world: &World, streamers: &[(StreamerId, String)], random: &mut Rng) -> Result<(u64, usize)> {
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

    // What is left: each row is as before or complete, and a streamer that lost a pair was in the window.
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
    assert_eq!(report["failed"], json!(lost.len()), "{report}");
    assert_eq!(world.twitch.totals().reuses - reuses, lost.len() as u64);
    for (id, login) in streamers {
        let row = world.row(*id).await?;
        assert!(row.is_active, "{login} is deactivated for a crash");
        assert_eq!(lease(world, *id).await?, None, "{login}");
        if lost.contains(id) {
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

#[tokio::test]
async fn kills_at_random_lose_no_pair_outside_of_an_attempt() -> Result<()> {
    let seed = seed()?;
    let mut random = Rng::with_seed(seed);
    let world = world(RefreshTokens::OneTime, LATENCY).await?;
    let logins: Vec<_> = (0..STREAMERS).map(|n| format!("s{n}")).collect();
    let ids = world.add_all(logins.iter().map(NewStreamer::due).collect()).await?;
    let streamers: Vec<_> = ids.into_iter().zip(logins).collect();
    let (mut kills, mut lost) = (0, 0);
    for number in 1..=ROUNDS {
        let done = round(&world, &streamers, &mut random);
        let done = done.await.with_context(|| format!("CRASH_SEED={seed}, round {number}"))?;
        kills += done.0;
        lost += done.1;
    }
    // The first kill of a round always comes before the last streamer's result.
    assert!(kills >= ROUNDS, "{kills} kills, {lost} lost");
    Ok(())
}
