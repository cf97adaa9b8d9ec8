//! Killed between a refusal and the notification of a deactivation.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tokens_domain::StreamerId;
use tokens_local::push::{Fault, SimulatedPush};
use tokens_local::twitch::RefreshTokens;
use tokens_local::world::World;
use tokens_push::VapidKey;
use tokens_tests::aws::SimulatedAws;
use tokens_tests::doomed::{
    CLAIM, LEASE, TURN, blocked, function, half_a_minute_later, hang_up, kill_at, lease, lock, run, settled,
    three_minutes_later, world,
};
use tokens_tests::people::{campaign, refused_before, refused_streamer, sender, subscribe, user};
use tokio::net::TcpListener;

use super::{planned, retry};

/// Aria's grant is dead, and the next refusal deactivates her. She has a phone, as does Corvin, whose campaign she is in.
struct Doom {
    world: World,
    push: SimulatedPush,
    aria: StreamerId,
    vapid: Vec<(String, String)>,
}

impl Doom {
    async fn new() -> Result<Self> {
        let world = world(RefreshTokens::OneTime, Duration::ZERO).await?;
        let push = SimulatedPush::start(tokens_local::push::Settings::default()).await?;
        let (aria, account) = refused_streamer(&world, "aria").await?;
        refused_before(&world, aria).await?;
        subscribe(&world, account, &push.subscribe("aria's phone")).await?;
        let corvin = user(&world, "Corvin").await?;
        campaign(&world, aria, "Brumes", corvin, "ACTIVE").await?;
        subscribe(&world, corvin, &push.subscribe("corvin's phone")).await?;
        Ok(Self { world, push, aria, vapid: sender(&VapidKey::generate()?) })
    }

    fn vapid(&self) -> Vec<(&str, &str)> {
        self.vapid.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    /// Whether she is active, how many deactivations are counted, and how many notifications wait.
    async fn state(&self) -> Result<(bool, i64, i64)> {
        let state = sqlx::query_as(
            "SELECT is_active, (SELECT count(*) FROM token_refresh.deactivations),
                    (SELECT count(*) FROM token_refresh.outbox WHERE state = 'pending')
             FROM streamers WHERE id = $1",
        );
        Ok(state.bind(self.aria.0).fetch_one(&self.world.pool).await?)
    }

    async fn deliver(&self) -> Result<Value> {
        run(&self.world, "notify", json!({"trigger": "timer"}), &self.vapid()).await
    }

    /// How many messages each phone was sent, and how many it shows.
    fn phones(&self) -> Result<[(usize, usize); 2]> {
        let phone = |name| anyhow::Ok((self.push.messages(name)?.len(), self.push.shown(name)?.len()));
        Ok([phone("aria's phone")?, phone("corvin's phone")?])
    }
}

#[tokio::test]
async fn killed_during_a_deactivation() -> Result<()> {
    for table in [TURN, "LOCK TABLE token_refresh.outbox IN EXCLUSIVE MODE"] {
        let doom = Doom::new().await?;
        let world = &doom.world;
        let before = world.row(doom.aria).await?;
        let mut held = world.pool.begin().await?;
        lock(&mut held, table).await?;
        kill_at(function(world, "retry-refresh", &[]).await?, retry(), blocked(world)).await?;
        held.rollback().await?;
        settled(world).await?;
        assert_eq!(doom.state().await?, (true, 0, 0), "all of it or nothing: {table}");
        assert_eq!(world.row(doom.aria).await?, before);
        assert!(lease(world, doom.aria).await?.is_some_and(|rest| rest <= LEASE));
        assert_eq!(doom.deliver().await?["delivered"], 0, "no notice of what did not happen");

        three_minutes_later(world).await?;
        let report = run(world, "retry-refresh", retry(), &[]).await?;
        assert_eq!(report["deactivated"], 1, "{report}");
        assert_eq!(doom.state().await?, (false, 1, 2));
        assert_eq!(doom.deliver().await?["delivered"], 2);
        assert_eq!(doom.phones()?, [(1, 1); 2]);
    }
    Ok(())
}

/// The deactivation is stored, and the event that would have woken notify never leaves.
#[tokio::test]
async fn killed_between_a_deactivation_and_its_event() -> Result<()> {
    let doom = Doom::new().await?;
    let world = &doom.world;
    let mute = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", mute.local_addr()?);
    let aws = SimulatedAws::start().await?;
    let mut environment = aws.environment();
    environment.push(("AWS_ENDPOINT_URL".to_owned(), endpoint));
    let environment: Vec<_> =
        environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let reached = async {
        mute.accept().await?;
        Ok(())
    };
    kill_at(function(world, "retry-refresh", &environment).await?, retry(), reached).await?;
    settled(world).await?;
    assert_eq!(doom.state().await?, (false, 1, 2), "all of it or nothing");
    assert_eq!(lease(world, doom.aria).await?, None);

    assert_eq!(doom.deliver().await?["delivered"], 2, "the timer wakes notify as well");
    assert_eq!(doom.phones()?, [(1, 1); 2]);
    let report = run(world, "scheduled-refresh", planned(), &[]).await?;
    assert_eq!(report["total"], 0, "{report}");
    assert_eq!(doom.state().await?, (false, 1, 0), "once");
    Ok(())
}

#[tokio::test]
async fn notify_killed_before_the_push_is_taken_and_after() -> Result<()> {
    for taken in [false, true] {
        let doom = Doom::new().await?;
        let (world, push) = (&doom.world, &doom.push);
        run(world, "retry-refresh", retry(), &[]).await?;
        let mut held = world.pool.begin().await?;
        if taken {
            // The result of a delivery can't be written.
            lock(&mut held, "SELECT FROM push_subscriptions FOR UPDATE").await?;
        } else {
            push.fault_for_everybody(Fault::Hang);
        }
        let reached = async {
            push.wait_until(|totals| totals.requests == 2).await;
            if taken {
                push.wait_for(2).await;
                blocked(world).await?;
            }
            Ok(())
        };
        let notify = function(world, "notify", &doom.vapid()).await?;
        kill_at(notify, json!({"trigger": "timer"}), reached).await?;
        hang_up(world).await?;
        held.rollback().await?;
        push.clear_fault_for_everybody();

        assert_eq!(doom.state().await?, (false, 1, 2), "taken: {taken}");
        let claimed = "SELECT count(*) FROM token_refresh.outbox WHERE attempt = 1 AND next_attempt_at <= $1";
        let claimed: i64 =
            sqlx::query_scalar(claimed).bind(world.clock.now() + CLAIM).fetch_one(&world.pool).await?;
        assert_eq!(claimed, 2, "no device waits for longer than a claim");
        assert_eq!(doom.deliver().await?["delivered"], 0, "another run may still be at work");

        half_a_minute_later(world).await?;
        assert_eq!(doom.deliver().await?["delivered"], 2);
        assert_eq!(doom.state().await?, (false, 1, 0));
        let sent = if taken { 2 } else { 1 };
        assert_eq!(doom.phones()?, [(sent, 1); 2], "at least once, and shown once");
    }
    Ok(())
}
