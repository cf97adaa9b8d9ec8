//! Sessions are remembered as they were, whatever becomes of their memberships.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use tokens_domain::StreamerId;
use tokens_local::lambda::Function;
use tokens_local::world::{NewStreamer, World};
use tokens_tests::{Sql as _, Still, binary, tokens, world};

/// Granted when and ending when, of one streamer, in the order of time.
async fn sessions(world: &World, id: StreamerId) -> Result<Vec<(DateTime<Utc>, DateTime<Utc>)>> {
    let sessions = sqlx::query_as(
        "SELECT granted_at, ends_at FROM token_refresh.sessions WHERE streamer_id = $1 ORDER BY granted_at",
    );
    Ok(sessions.bind(id.0).fetch_all(&world.pool).await?)
}

async fn change(world: &World, id: StreamerId, sql: &'static str, at: DateTime<Utc>) -> Result<()> {
    sqlx::query(sql).bind(id.0).bind(at).execute(&world.pool).await?;
    Ok(())
}

#[tokio::test]
async fn a_session_ends_when_its_grant_does() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let database = world.database().await?;
    let mut ids = Vec::new();
    for login in ["kept", "revoked", "ended", "granted_anew", "removed", "pending", "inactive", "extended"] {
        ids.push(world.add(NewStreamer::due(login)).await?);
    }
    let unwritten = world.add(NewStreamer::due("unwritten")).await?;
    change(
        world,
        unwritten,
        "UPDATE campaign_memberships SET poll_authorization_granted_at = NULL
        WHERE streamer_id = $1 AND $2 IS NOT NULL",
        still.now(),
    )
    .await?;
    world.add(NewStreamer { authorized_for: None, ..NewStreamer::due("never") }).await?;
    world.add(NewStreamer { authorized_for: Some(TimeDelta::zero()), ..NewStreamer::due("over") }).await?;
    world.add(NewStreamer { is_active: false, ..NewStreamer::due("was_inactive") }).await?;
    let begin = still.now();
    let end = begin + TimeDelta::hours(12);

    assert_eq!(database.remember_sessions(begin).await?, 9);
    assert_eq!(database.remember_sessions(begin).await?, 0, "nothing has changed");
    for id in ids.iter().chain([&unwritten]) {
        assert_eq!(sessions(world, *id).await?, [(begin, end)]);
    }

    still.turn(60);
    let (ended, now) = (begin + TimeDelta::minutes(50), still.now());
    let [_, revoked, ended_early, granted_anew, removed, pending, inactive, extended] = ids[..] else {
        unreachable!("eight were added")
    };
    for (id, sql) in [
        (
            revoked,
            "UPDATE campaign_memberships SET poll_authorization_granted_at = NULL,
            poll_authorization_expires_at = NULL WHERE streamer_id = $1 AND $2 IS NOT NULL",
        ),
        (
            ended_early,
            "UPDATE campaign_memberships SET poll_authorization_expires_at = $2 WHERE streamer_id = $1",
        ),
        (
            granted_anew,
            "UPDATE campaign_memberships SET poll_authorization_granted_at = $2,
            poll_authorization_expires_at = $2 + interval '12 hours' WHERE streamer_id = $1",
        ),
        (removed, "DELETE FROM campaign_memberships WHERE streamer_id = $1 AND $2 IS NOT NULL"),
        (
            pending,
            "UPDATE campaign_memberships SET status = 'PENDING' WHERE streamer_id = $1 AND $2 IS NOT NULL",
        ),
        (inactive, "UPDATE streamers SET is_active = false WHERE id = $1 AND $2 IS NOT NULL"),
        (
            extended,
            "UPDATE campaign_memberships SET poll_authorization_expires_at = $2 + interval '14 hours'
            WHERE streamer_id = $1",
        ),
    ] {
        change(world, id, sql, ended).await?;
    }
    // Two functions at once.
    let (one, other) = tokio::join!(database.remember_sessions(now), database.remember_sessions(now));
    assert!(one? + other? >= 8);
    assert_eq!(database.remember_sessions(now).await?, 0);

    for id in [revoked, removed, pending, inactive] {
        assert_eq!(sessions(world, id).await?, [(begin, now)]);
    }
    assert_eq!(sessions(world, ended_early).await?, [(begin, ended)]);
    assert_eq!(sessions(world, granted_anew).await?, [(begin, ended), (ended, ended + TimeDelta::hours(12))]);
    assert_eq!(sessions(world, extended).await?, [(begin, ended + TimeDelta::hours(14))]);

    // What is over stays as it was.
    still.turn(24 * 60);
    assert_eq!(database.remember_sessions(still.now()).await?, 0);
    assert_eq!(sessions(world, ids[0]).await?, [(begin, end)]);

    still.turn(30 * 24 * 60);
    database.forget_old_history(still.now()).await?;
    let kept = world.count("SELECT count(*) FROM token_refresh.sessions").await?;
    assert_eq!(kept, 0, "all are older than 30 days");
    Ok(())
}

#[tokio::test]
async fn the_function_remembers_sessions_and_the_command_prints_them() -> Result<()> {
    let world = world().await?;
    let printed = tokens(&world.environment(), &["coverage"]).await?;
    assert_eq!(printed.code, 0, "{printed:?}");
    assert!(printed.stdout.starts_with("No session since "), "{}", printed.stdout);

    // The first began 10 hours ago, and its token has been dead for 30 minutes.
    let session = NewStreamer {
        authorized_for: Some(TimeDelta::hours(2)),
        token_left: TimeDelta::minutes(-30),
        ..NewStreamer::due("aria")
    };
    let id = world.add(session).await?;
    world.add(NewStreamer { token_left: TimeDelta::hours(3), ..NewStreamer::due("bastien") }).await?;
    let function =
        Function::start(&binary("scheduled-refresh").await?, &world.environment(), Stdio::null()).await?;
    function.invoke(json!({"trigger": "sweep"}), Duration::from_mins(5)).await?;
    assert_eq!(sessions(&world, id).await?.len(), 1);

    let printed = tokens(&world.environment(), &["coverage", "--since", "2d"]).await?;
    assert_eq!(printed.code, 0, "{printed:?}");
    for text in [" 2, 10 h ", "Dead: 30 min in 1 of them; 50 % had none", "Aria (aria), Campaign of aria, "] {
        assert!(printed.stdout.contains(text), "no `{text}` in\n{}", printed.stdout);
    }
    assert!(printed.stdout.contains("dead  30 min  no refresh was tried"), "{}", printed.stdout);

    let printed = tokens(&world.environment(), &["coverage", "--since", "90m", "--json"]).await?;
    let document: Value = serde_json::from_str(&printed.stdout)?;
    assert_eq!((&document["sessions"], &document["sessions_with_gaps"]), (&json!(2), &json!(1)));
    assert_eq!(document["worst"][0]["streamer_id"], json!(id.to_string()));
    assert_eq!(document["worst"][0]["gaps"][0]["kind"], "dead");

    for (length, says) in [("7x", "90m, 2h or 7d"), ("31d", "longer than 30d")] {
        let printed = tokens(&world.environment(), &["coverage", "--since", length]).await?;
        assert_eq!(printed.code, 2, "{printed:?}");
        assert!(printed.stderr.contains(says), "{}", printed.stderr);
    }
    Ok(())
}
