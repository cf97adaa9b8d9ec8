//! Killed during a grant.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use tokens_domain::MembershipKey;
use tokens_local::twitch::{Endpoint, Fault, RefreshTokens};
use tokens_local::world::{NewStreamer, StreamerRow, World};
use tokens_tests::doomed::{
    LEASE, blocked, function, has_newest_pair, kill_at, lease, lock, run, settled, three_minutes_later,
    until, world,
};
use tokens_tests::requests::{authorization, authorization_path, event, membership};

/// Aria authorizes a campaign, and the function dies of it.
struct Granting {
    world: World,
    key: MembershipKey,
    before: StreamerRow,
}

impl Granting {
    async fn new() -> Result<Self> {
        let world = world(RefreshTokens::OneTime, Duration::ZERO).await?;
        let aria = NewStreamer { authorized_for: None, ..NewStreamer::due("aria") };
        let key = membership(&world, world.add(aria).await?).await?;
        let before = world.row(key.streamer).await?;
        Ok(Self { world, key, before })
    }

    fn event(&self) -> Value {
        event("POST", &authorization_path(self.key))
    }

    async fn killed_at(&self, reached: impl Future<Output = Result<()>>) -> Result<()> {
        kill_at(function(&self.world, "grant-refresh", &[]).await?, self.event(), reached).await
    }

    /// The pair that Twitch has issued is stored nowhere, and so nothing is granted, then or by the next grant.
    async fn recovers(&self) -> Result<()> {
        let Self { world, key, before } = self;
        settled(world).await?;
        assert_eq!(world.twitch.activity("aria")?.refreshes, 1);
        assert_eq!(authorization(world, *key).await?, (None, None));
        assert_eq!(world.row(key.streamer).await?, *before);
        assert!(lease(world, key.streamer).await?.is_some_and(|rest| rest <= LEASE));

        three_minutes_later(world).await?;
        let answer = run(world, "grant-refresh", self.event(), &[]).await?;
        assert_eq!(answer["statusCode"], 409, "{answer}");
        assert_eq!(authorization(world, *key).await?, (None, None));
        assert_eq!(lease(world, key.streamer).await?, None, "given back");
        Ok(())
    }

    async fn is_granted(&self, answer: &Value) -> Result<()> {
        let Self { world, key, .. } = self;
        assert_eq!(answer["statusCode"], 200, "{answer}");
        assert!(authorization(world, *key).await?.1 > Some(world.clock.now()));
        assert!(has_newest_pair(world, key.streamer, "aria").await?, "a pair is lost");
        assert_eq!(world.twitch.totals().reuses, 0);
        Ok(())
    }
}

#[tokio::test]
async fn a_grant_killed_before_twitchs_answer_has_come() -> Result<()> {
    let granting = Granting::new().await?;
    let gate = granting.world.twitch.pause_answers("aria")?;
    let reached = async {
        gate.arrived().await;
        Ok(())
    };
    granting.killed_at(reached).await?;
    settled(&granting.world).await?;
    gate.release();
    granting.recovers().await?;
    Ok(())
}

/// The pair and the authorization are on their way: either all of it is stored, or nothing.
#[tokio::test]
async fn a_grant_killed_while_writing() -> Result<()> {
    for held_row in [
        "SELECT FROM streamers WHERE twitch_login = 'aria' FOR NO KEY UPDATE",
        "SELECT FROM campaign_memberships FOR NO KEY UPDATE",
    ] {
        let granting = Granting::new().await?;
        let world = &granting.world;
        let mut held = world.pool.begin().await?;
        let gate = world.twitch.pause_answers("aria")?;
        let reached = async {
            // Not before: of a row that is locked, no lease is taken.
            gate.arrived().await;
            lock(&mut held, held_row).await?;
            gate.release();
            blocked(world).await
        };
        granting.killed_at(reached).await?;
        held.rollback().await?;
        granting.recovers().await?;
    }
    Ok(())
}

/// All is stored, and the caller gets no answer. Twitch hasn't said how long the token lives, and is asked for it afterwards.
#[tokio::test]
async fn a_grant_killed_after_it_is_written() -> Result<()> {
    let granting = Granting::new().await?;
    let Granting { world, key, .. } = &granting;
    world.twitch.fault("aria", Fault::NoExpiresIn.on(Endpoint::Token))?;
    world.twitch.fault("aria", Fault::Hang.on(Endpoint::Validate))?;
    let written = "SELECT count(poll_authorization_expires_at) = 1 FROM campaign_memberships";
    granting.killed_at(until(world, written)).await?;
    settled(world).await?;
    world.twitch.clear_faults("aria")?;
    assert!(authorization(world, *key).await?.1 > Some(world.clock.now()));
    assert!(has_newest_pair(world, key.streamer, "aria").await?);
    assert!(lease(world, key.streamer).await?.is_none_or(|rest| rest <= LEASE));

    three_minutes_later(world).await?;
    granting.is_granted(&run(world, "grant-refresh", granting.event(), &[]).await?).await?;
    Ok(())
}
