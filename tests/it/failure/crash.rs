//! Functions are killed (SIGKILL) at each step of a refresh, a grant, a deactivation and a notification, and started again.
//!
//! What must hold: outside the window that the design names, from the moment a request is sent until its pair is
//! committed, no pair is lost; nothing is granted without a pair that is stored; no streamer waits for longer than a
//! lease; there is a notice of each deactivation, and of nothing that did not happen. Twitch takes refresh tokens once, so
//! that a lost or repeated one is seen.

mod grant;
mod notification;

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tokens_domain::StreamerId;
use tokens_local::twitch::{Gate, RefreshTokens};
use tokens_local::world::{NewStreamer, StreamerRow, World};
use tokens_tests::doomed::{
    LEASE, blocked, function, hang_up, has_newest_pair, kill_at, lease, lock, run, settled,
    three_minutes_later, until, world,
};
use tokens_tests::wait_for_locks;

fn planned() -> Value {
    json!({"trigger": "planned"})
}

fn retry() -> Value {
    json!({"trigger": "retry", "minute": "2026-11-23T04:15:00Z"})
}

/// Aria, in whose refresh the function dies, and two others who are due as well.
struct Scene {
    world: World,
    aria: StreamerId,
    others: [(StreamerId, &'static str); 2],
    /// Aria's row before anything was done.
    before: StreamerRow,
}

/// What the kill leaves of Aria.
#[derive(Clone, Copy, Debug)]
struct Left {
    /// Her lease still stands.
    leased: bool,
    /// The new pair is stored.
    written: bool,
    /// Twitch has rotated the pair, and the new one is stored nowhere.
    lost: bool,
}

impl Scene {
    async fn new() -> Result<Self> {
        let world = world(RefreshTokens::OneTime, Duration::ZERO).await?;
        let aria = world.add(NewStreamer::due("aria")).await?;
        let others = [
            (world.add(NewStreamer::due("bastien")).await?, "bastien"),
            (world.add(NewStreamer::due("corvin")).await?, "corvin"),
        ];
        let before = world.row(aria).await?;
        Ok(Self { world, aria, others, before })
    }

    /// Waits until what the function does for the others is stored.
    async fn others_are_done(&self) -> Result<()> {
        let done = "SELECT count(last_token_refresh_at) = 2 FROM streamers WHERE twitch_login <> 'aria'";
        until(&self.world, done).await
    }

    /// Kills the function when Aria's call has come to this gate and the others are done; then opens the gate.
    async fn killed_at(&self, gate: Gate) -> Result<()> {
        let reached = async {
            gate.arrived().await;
            self.others_are_done().await
        };
        kill_at(function(&self.world, "scheduled-refresh", &[]).await?, planned(), reached).await?;
        settled(&self.world).await?;
        gate.release();
        Ok(())
    }

    async fn others_are_fresh(&self) -> Result<()> {
        for (id, login) in self.others {
            assert!(has_newest_pair(&self.world, id, login).await?, "{login} has lost a pair");
            assert!(self.world.has_live_token(id).await?, "{login} is dead");
        }
        Ok(())
    }

    /// The function is dead and all that it sent has been heard: looks at what is left, and at how it recovers.
    async fn recovers(&self, left: Left) -> Result<()> {
        let Self { world, aria, .. } = self;
        settled(world).await?;
        let row = world.row(*aria).await?;
        if left.written {
            assert!(has_newest_pair(world, *aria, "aria").await?, "the new pair is not there");
        } else {
            assert_eq!(row, self.before, "a row is as before, or complete");
        }
        match lease(world, *aria).await? {
            Some(rest) => assert!(left.leased && rest <= LEASE, "leased for another {rest}"),
            None => assert!(!left.leased, "the lease is gone"),
        }
        if !left.written {
            self.recovers_after_the_lease(left).await?;
        }
        self.others_are_fresh().await
    }

    async fn recovers_after_the_lease(&self, left: Left) -> Result<()> {
        let Self { world, aria, .. } = self;
        let requests = || world.twitch.activity("aria").map(|activity| activity.refresh_requests);
        let sent = requests()?;
        let report = run(world, "retry-refresh", retry(), &[]).await?;
        assert_eq!((&report["success"], &report["failed"]), (&json!(0), &json!(0)), "{report}");
        assert_eq!(requests()?, sent, "another run may still be at work, for as long as the lease");

        three_minutes_later(world).await?;
        let report = run(world, "scheduled-refresh", planned(), &[]).await?;
        if left.lost {
            assert_eq!((&report["success"], &report["failed"]), (&json!(0), &json!(1)), "{report}");
            assert_eq!(world.twitch.totals().reuses, 1);
            let row = world.row(*aria).await?;
            assert!(row.is_active && row.token_refresh_failed_at.is_some(), "a first refusal: {row:?}");
        } else {
            assert_eq!((&report["success"], &report["failed"]), (&json!(1), &json!(0)), "{report}");
            assert_eq!(world.twitch.totals().reuses, 0);
            assert!(has_newest_pair(world, *aria, "aria").await? && world.has_live_token(*aria).await?);
            assert!(world.row(*aria).await?.token_expires_at > self.before.token_expires_at);
        }
        assert_eq!(lease(world, *aria).await?, None, "given back");
        Ok(())
    }
}

#[tokio::test]
async fn killed_before_the_lease() -> Result<()> {
    let scene = Scene::new().await?;
    let world = &scene.world;
    let mut held = world.pool.begin().await?;
    lock(&mut held, "LOCK TABLE token_refresh.streamers IN EXCLUSIVE MODE").await?;
    kill_at(function(world, "scheduled-refresh", &[]).await?, planned(), blocked(world)).await?;
    held.rollback().await?;
    settled(world).await?;
    assert_eq!(world.twitch.totals().token_requests, 0);
    assert_eq!(world.row(scene.aria).await?, scene.before);
    // PostgreSQL has carried out what it was sent, for a client that is gone.
    for id in [scene.aria, scene.others[0].0, scene.others[1].0] {
        assert!(lease(world, id).await?.is_none_or(|rest| rest <= LEASE));
    }
    three_minutes_later(world).await?;
    let report = run(world, "retry-refresh", retry(), &[]).await?;
    assert_eq!((&report["success"], &report["failed"]), (&json!(3), &json!(0)), "{report}");
    assert_eq!(world.twitch.totals().reuses, 0);
    assert!(has_newest_pair(world, scene.aria, "aria").await?);
    scene.others_are_fresh().await?;
    Ok(())
}

#[tokio::test]
async fn killed_before_twitch_has_processed_the_request() -> Result<()> {
    let scene = Scene::new().await?;
    // Twitch notices that the caller is gone, and drops what it asked.
    scene.killed_at(scene.world.twitch.pause("aria")?).await?;
    assert_eq!(scene.world.twitch.activity("aria")?.refreshes, 0);
    scene.recovers(Left { leased: true, written: false, lost: false }).await?;
    Ok(())
}

#[tokio::test]
async fn killed_after_twitch_has_processed_the_request() -> Result<()> {
    let scene = Scene::new().await?;
    scene.killed_at(scene.world.twitch.pause_answers("aria")?).await?;
    assert_eq!(scene.world.twitch.activity("aria")?.refreshes, 1);
    scene.recovers(Left { leased: true, written: false, lost: true }).await?;
    Ok(())
}

/// Aria's result is on its way to her row, which another transaction holds. Whether the others are done is not left to chance:
/// her answer waits for them.
async fn killed_while_writing(database_hangs_up: bool) -> Result<()> {
    let scene = Scene::new().await?;
    let world = &scene.world;
    wait_for_locks(world).await?;
    let gate = world.twitch.pause_answers("aria")?;
    let mut held = world.pool.begin().await?;
    let reached = async {
        gate.arrived().await;
        scene.others_are_done().await?;
        // A lock that lets leases pass, and no write.
        lock(&mut held, "SELECT FROM streamers WHERE twitch_login = 'aria' FOR NO KEY UPDATE").await?;
        gate.release();
        blocked(world).await
    };
    kill_at(function(world, "scheduled-refresh", &[]).await?, planned(), reached).await?;
    if database_hangs_up {
        hang_up(world).await?;
    }
    held.rollback().await?;
    let written = !database_hangs_up;
    scene.recovers(Left { leased: !written, written, lost: !written }).await
}

#[tokio::test]
async fn killed_while_writing_after_the_database_has_the_pair() -> Result<()> {
    killed_while_writing(false).await
}

#[tokio::test]
async fn killed_while_writing_and_the_database_with_it() -> Result<()> {
    killed_while_writing(true).await
}
