//! Functions are killed (SIGKILL) at each step of a refresh, a grant, a deactivation and a notification, and started again.
//!
//! What must hold: outside the window that the design names, from the moment a request is sent until its pair is
//! committed, no pair is lost; nothing is granted without a pair that is stored; nobody is kept waiting for longer than a
//! lease; whoever is deactivated is told, and nobody is told of what did not happen.

use std::time::Duration;

use anyhow::Result;
use domain::{MembershipKey, StreamerId};
use end_to_end::doomed::{
    CLAIM, LEASE, blocked, function, half_a_minute_later, hang_up, has_newest_pair, kill_at, lease, lock,
    run, settled, three_minutes_later, until, world,
};
use end_to_end::people::{campaign, refused_before, refused_streamer, subscribe, user};
use end_to_end::requests::{authorization, authorization_path, event, membership};
use end_to_end::wait_for_locks;
use local::aws::SimulatedAws;
use local::push::{Fault, SimulatedPush};
use local::twitch::{Endpoint, Fault as TwitchFault, RefreshTokens};
use local::world::{NewStreamer, StreamerRow, World};
use push::VapidKey;
use serde_json::{Value, json};
use tokio::net::TcpListener;

const KINDS: [RefreshTokens; 3] = [RefreshTokens::Kept, RefreshTokens::Rotated, RefreshTokens::OneTime];

fn planned() -> Value {
    json!({"trigger": "planned"})
}

fn retry() -> Value {
    json!({"trigger": "retry", "minute": "2026-11-23T04:15:00Z"})
}

/// Aria, in whose refresh the function dies, and two others who are due as well.
struct Scene {
    world: World,
    kind: RefreshTokens,
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
    async fn new(kind: RefreshTokens) -> Result<Self> {
        let world = world(kind, Duration::ZERO).await?;
        let aria = world.add(NewStreamer::due("aria")).await?;
        let others = [
            (world.add(NewStreamer::due("bastien")).await?, "bastien"),
            (world.add(NewStreamer::due("corvin")).await?, "corvin"),
        ];
        let before = world.row(aria).await?;
        Ok(Self { world, kind, aria, others, before })
    }

    /// Waits until what the function does for the others is stored.
    async fn others_are_done(&self) -> Result<()> {
        let done = "SELECT count(last_token_refresh_at) = 2 FROM streamers WHERE twitch_login <> 'aria'";
        until(&self.world, done).await
    }

    async fn others_are_fresh(&self) -> Result<()> {
        for (id, login) in self.others {
            assert!(has_newest_pair(&self.world, id, login).await?, "{login} has lost a pair");
            assert!(self.world.has_live_token(id).await?, "{login} is dead");
        }
        Ok(())
    }

    /// The function is dead and all that it sent has been heard: looks at what is left, and how it mends.
    async fn mends(&self, left: Left) -> Result<()> {
        let Self { world, kind, aria, .. } = self;
        settled(world).await?;
        let row = world.row(*aria).await?;
        if left.written {
            assert!(has_newest_pair(world, *aria, "aria").await?, "{kind:?}: the new pair is not there");
        } else {
            assert_eq!(row, self.before, "{kind:?}: a row is as before, or complete");
        }
        match lease(world, *aria).await? {
            Some(rest) => assert!(left.leased && rest <= LEASE, "{kind:?}: leased for another {rest}"),
            None => assert!(!left.leased, "{kind:?}: the lease is gone"),
        }
        if !left.written {
            self.mends_after_the_lease(left).await?;
        }
        self.others_are_fresh().await
    }

    async fn mends_after_the_lease(&self, left: Left) -> Result<()> {
        let Self { world, kind, aria, .. } = self;
        let requests = || world.twitch.activity("aria").map(|activity| activity.refresh_requests);
        let sent = requests()?;
        let report = run(world, "retry-refresh", retry(), &[]).await?;
        assert_eq!((&report["success"], &report["failed"]), (&json!(0), &json!(0)), "{kind:?}: {report}");
        assert_eq!(requests()?, sent, "{kind:?}: somebody may still be at work, for as long as the lease");

        three_minutes_later(world).await?;
        let report = run(world, "scheduled-refresh", planned(), &[]).await?;
        if left.lost && *kind == RefreshTokens::OneTime {
            assert_eq!((&report["success"], &report["failed"]), (&json!(0), &json!(1)), "{report}");
            assert_eq!(world.twitch.totals().reuses, 1);
            let row = world.row(*aria).await?;
            assert!(row.is_active && row.token_refresh_failed_at.is_some(), "a first refusal: {row:?}");
        } else {
            assert_eq!((&report["success"], &report["failed"]), (&json!(1), &json!(0)), "{kind:?}: {report}");
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
    for kind in KINDS {
        let scene = Scene::new(kind).await?;
        let world = &scene.world;
        let mut held = world.pool.begin().await?;
        lock(&mut held, "LOCK TABLE token_refresh.streamers IN EXCLUSIVE MODE").await?;
        kill_at(function(world, "scheduled-refresh", &[]).await?, planned(), blocked(world)).await?;
        held.rollback().await?;
        settled(world).await?;
        assert_eq!(world.twitch.totals().token_requests, 0);
        assert_eq!(world.row(scene.aria).await?, scene.before);
        // PostgreSQL has carried out what it was sent, for somebody who is not there any more.
        for id in [scene.aria, scene.others[0].0, scene.others[1].0] {
            assert!(lease(world, id).await?.is_none_or(|rest| rest <= LEASE));
        }
        three_minutes_later(world).await?;
        let report = run(world, "retry-refresh", retry(), &[]).await?;
        assert_eq!((&report["success"], &report["failed"]), (&json!(3), &json!(0)), "{kind:?}: {report}");
        assert_eq!(world.twitch.totals().reuses, 0);
        assert!(has_newest_pair(world, scene.aria, "aria").await?);
        scene.others_are_fresh().await?;
    }
    Ok(())
}

#[tokio::test]
async fn killed_before_twitch_has_processed_the_request() -> Result<()> {
    for kind in KINDS {
        let scene = Scene::new(kind).await?;
        let gate = scene.world.twitch.pause("aria")?;
        let reached = async {
            gate.arrived().await;
            scene.others_are_done().await
        };
        kill_at(function(&scene.world, "scheduled-refresh", &[]).await?, planned(), reached).await?;
        // Twitch notices that the caller is gone, and drops what it asked.
        settled(&scene.world).await?;
        gate.release();
        assert_eq!(scene.world.twitch.activity("aria")?.refreshes, 0);
        scene.mends(Left { leased: true, written: false, lost: false }).await?;
    }
    Ok(())
}

#[tokio::test]
async fn killed_after_twitch_has_processed_the_request() -> Result<()> {
    for kind in KINDS {
        let scene = Scene::new(kind).await?;
        let gate = scene.world.twitch.pause_answers("aria")?;
        let reached = async {
            gate.arrived().await;
            scene.others_are_done().await
        };
        kill_at(function(&scene.world, "scheduled-refresh", &[]).await?, planned(), reached).await?;
        settled(&scene.world).await?;
        gate.release();
        assert_eq!(scene.world.twitch.activity("aria")?.refreshes, 1);
        scene.mends(Left { leased: true, written: false, lost: true }).await?;
    }
    Ok(())
}

/// Aria's result is on its way to her row, which somebody else holds. Whether the others are done is not left to chance:
/// her answer waits for them.
async fn killed_while_writing(kind: RefreshTokens, database_hangs_up: bool) -> Result<()> {
    let scene = Scene::new(kind).await?;
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
    scene.mends(Left { leased: !written, written, lost: !written }).await
}

#[tokio::test]
async fn killed_while_writing_after_the_database_has_the_pair() -> Result<()> {
    for kind in KINDS {
        killed_while_writing(kind, false).await?;
    }
    Ok(())
}

#[tokio::test]
async fn killed_while_writing_and_the_database_with_it() -> Result<()> {
    for kind in KINDS {
        killed_while_writing(kind, true).await?;
    }
    Ok(())
}

/// Aria authorizes a campaign, and the function dies of it.
struct Granting {
    world: World,
    kind: RefreshTokens,
    key: MembershipKey,
    before: StreamerRow,
}

impl Granting {
    async fn new(kind: RefreshTokens) -> Result<Self> {
        let world = world(kind, Duration::ZERO).await?;
        let aria = NewStreamer { authorized_for: None, ..NewStreamer::due("aria") };
        let key = membership(&world, world.add(aria).await?).await?;
        let before = world.row(key.streamer).await?;
        Ok(Self { world, kind, key, before })
    }

    fn event(&self) -> Value {
        event("POST", &authorization_path(self.key))
    }

    async fn killed_at(&self, reached: impl Future<Output = Result<()>>) -> Result<()> {
        kill_at(function(&self.world, "grant-refresh", &[]).await?, self.event(), reached).await
    }

    /// The pair that Twitch has issued is stored nowhere, and so nothing is granted: not by half, and not until a next grant
    /// has stored a pair.
    async fn mends(&self) -> Result<()> {
        let Self { world, kind, key, before } = self;
        settled(world).await?;
        assert_eq!(world.twitch.activity("aria")?.refreshes, 1, "{kind:?}");
        assert_eq!(authorization(world, *key).await?, (None, None), "{kind:?}");
        assert_eq!(world.row(key.streamer).await?, *before, "{kind:?}");
        assert!(lease(world, key.streamer).await?.is_some_and(|rest| rest <= LEASE), "{kind:?}");

        three_minutes_later(world).await?;
        let answer = run(world, "grant-refresh", self.event(), &[]).await?;
        if *kind == RefreshTokens::OneTime {
            assert_eq!(answer["statusCode"], 409, "{answer}");
            assert_eq!(authorization(world, *key).await?, (None, None), "{kind:?}");
        } else {
            self.is_granted(&answer).await?;
        }
        assert_eq!(lease(world, key.streamer).await?, None, "{kind:?}: given back");
        Ok(())
    }

    async fn is_granted(&self, answer: &Value) -> Result<()> {
        let Self { world, kind, key, .. } = self;
        assert_eq!(answer["statusCode"], 200, "{kind:?}: {answer}");
        assert!(authorization(world, *key).await?.1 > Some(world.clock.now()), "{kind:?}");
        assert!(has_newest_pair(world, key.streamer, "aria").await?, "{kind:?}: a pair is lost");
        assert_eq!(world.twitch.totals().reuses, 0, "{kind:?}");
        Ok(())
    }
}

#[tokio::test]
async fn a_grant_killed_before_twitchs_answer_has_come() -> Result<()> {
    for kind in KINDS {
        let granting = Granting::new(kind).await?;
        let gate = granting.world.twitch.pause_answers("aria")?;
        let reached = async {
            gate.arrived().await;
            Ok(())
        };
        granting.killed_at(reached).await?;
        settled(&granting.world).await?;
        gate.release();
        granting.mends().await?;
    }
    Ok(())
}

/// The pair and the authorization are on their way: either all of it is stored, or nothing.
#[tokio::test]
async fn a_grant_killed_while_writing() -> Result<()> {
    for held_row in [
        "SELECT FROM streamers WHERE twitch_login = 'aria' FOR NO KEY UPDATE",
        "SELECT FROM campaign_memberships FOR NO KEY UPDATE",
    ] {
        for kind in KINDS {
            let granting = Granting::new(kind).await?;
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
            granting.mends().await?;
        }
    }
    Ok(())
}

/// All is stored, and nobody is told. Twitch hasn't said how long the token lives, and is asked for it afterwards.
#[tokio::test]
async fn a_grant_killed_after_it_is_written() -> Result<()> {
    for kind in KINDS {
        let granting = Granting::new(kind).await?;
        let Granting { world, key, .. } = &granting;
        world.twitch.fault("aria", TwitchFault::NoExpiresIn.on(Endpoint::Token))?;
        world.twitch.fault("aria", TwitchFault::Hang.on(Endpoint::Validate))?;
        let written = "SELECT count(poll_authorization_expires_at) = 1 FROM campaign_memberships";
        granting.killed_at(until(world, written)).await?;
        settled(world).await?;
        world.twitch.clear_faults("aria")?;
        assert!(authorization(world, *key).await?.1 > Some(world.clock.now()), "{kind:?}");
        assert!(has_newest_pair(world, key.streamer, "aria").await?, "{kind:?}");
        assert!(lease(world, key.streamer).await?.is_none_or(|rest| rest <= LEASE), "{kind:?}");

        three_minutes_later(world).await?;
        granting.is_granted(&run(world, "grant-refresh", granting.event(), &[]).await?).await?;
    }
    Ok(())
}

/// Aria's grant is dead, and the next refusal deactivates her. She has a phone, as has Corvin, whose campaign she is in.
struct Doom {
    world: World,
    push: SimulatedPush,
    aria: StreamerId,
    vapid: Vec<(&'static str, String)>,
}

impl Doom {
    async fn new() -> Result<Self> {
        let world = world(RefreshTokens::OneTime, Duration::ZERO).await?;
        let push = SimulatedPush::start(local::push::Settings::default()).await?;
        let (aria, account) = refused_streamer(&world, "aria").await?;
        refused_before(&world, aria).await?;
        subscribe(&world, account, &push.subscribe("aria's phone")).await?;
        let corvin = user(&world, "Corvin").await?;
        campaign(&world, aria, "Brumes", corvin, "ACTIVE").await?;
        subscribe(&world, corvin, &push.subscribe("corvin's phone")).await?;
        let key = VapidKey::generate()?;
        let vapid = vec![
            ("VAPID_PUBLIC_KEY", key.public()),
            ("VAPID_PRIVATE_KEY", key.expose_private().to_string()),
            ("VAPID_SUBJECT", "mailto:operator@twitch-polls.net".to_owned()),
            ("PUSH_LOOPBACK", "on".to_owned()),
        ];
        Ok(Self { world, push, aria, vapid })
    }

    fn vapid(&self) -> Vec<(&str, &str)> {
        self.vapid.iter().map(|(name, value)| (*name, value.as_str())).collect()
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
    for table in [
        "LOCK TABLE token_refresh.deactivations IN SHARE ROW EXCLUSIVE MODE",
        "LOCK TABLE token_refresh.outbox IN EXCLUSIVE MODE",
    ] {
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
        assert_eq!(doom.deliver().await?["delivered"], 0, "nobody is told of what did not happen");

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
        assert_eq!(claimed, 2, "nobody waits for longer than a claim");
        assert_eq!(doom.deliver().await?["delivered"], 0, "somebody may still be at work");

        half_a_minute_later(world).await?;
        assert_eq!(doom.deliver().await?["delivered"], 2);
        assert_eq!(doom.state().await?, (false, 1, 0));
        let sent = if taken { 2 } else { 1 };
        assert_eq!(doom.phones()?, [(sent, 1); 2], "at least once, and shown once");
    }
    Ok(())
}
