//! Connections to Twitch that are refused, silent, broken or idle.

use std::pin::pin;

use anyhow::Result;
use tokens_domain::grant::GrantError;
use tokens_domain::policy::FailureKind;
use tokens_domain::ports::{Permit, RefreshError, Twitch as _};
use tokens_domain::report::{Outcome, Stop};
use tokens_domain::{CampaignId, MembershipKey, StreamerId};
use tokens_local::twitch::{Fault, Settings};
use tokens_local::world::NewStreamer;
use tokens_service::Host;
use tokens_tests::cycles::{failed_as, planned};
use tokens_tests::entrance::Entrance;
use tokens_tests::requests::{membership, request};
use tokens_tests::{Still, run};
use tokens_twitch::TwitchClient;
use tokio::net::TcpListener;
use uuid::Uuid;

#[tokio::test]
async fn twitch_out_of_reach_or_silent_is_an_outage() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let id = world.add(NewStreamer::due("someone")).await?;
    // Port 9 is discard: nothing listens there.
    let service = world.service(&[("TWITCH_ID_URL", "http://127.0.0.1:9")]).await?;
    let ran = run(&service, &planned()).await;
    assert_eq!(failed_as(ran.outcome("someone")), Some(FailureKind::Outage));
    let Outcome::Failed { reason, .. } = ran.outcome("someone") else { panic!("{:?}", ran.report) };
    assert!(reason.contains("no connection to Twitch"), "{reason}");

    still.turn(15);
    world.twitch.fault("someone", Fault::Hang)?;
    let ran = run(&world.service(&[]).await?, &planned()).await;
    assert_eq!(failed_as(ran.outcome("someone")), Some(FailureKind::Outage));
    let Outcome::Failed { reason, .. } = ran.outcome("someone") else { panic!("{:?}", ran.report) };
    assert!(reason.contains("within 10 s"), "{reason}");
    assert!(world.row(id).await?.is_active);
    Ok(())
}

#[tokio::test]
async fn a_busy_twitch_is_asked_again_at_once_but_not_one_that_may_have_processed_it() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    for (fault, requests, success) in [
        (Fault::TooManyRequests { retry_after: Some(1), ratelimit_reset: None }, 3, true),
        (Fault::ServiceUnavailable { retry_after: None }, 3, true),
        (Fault::ServerError, 1, false),
        (Fault::ProcessedButLost, 1, false),
    ] {
        world.add(NewStreamer::due(fault.name())).await?;
        world.twitch.fault(fault.name(), fault.times(2))?;
        let ran = run(&world.service(&[]).await?, &planned()).await;
        let refreshed = matches!(ran.outcome(fault.name()), Outcome::Refreshed { .. });
        assert_eq!(refreshed, success, "{}", fault.name());
        assert_eq!(world.twitch.activity(fault.name())?.refresh_requests, requests, "{}", fault.name());
    }
    Ok(())
}

#[tokio::test]
async fn an_endpoint_that_accepts_and_never_speaks_does_not_hold_the_cycle() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.add_all((0..200).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    let mute = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("https://{}", mute.local_addr()?);
    let service = world.service(&[("TWITCH_ID_URL", &url)]).await?;
    let cycle = planned();
    let mut cycle = pin!(run(&service, &cycle));
    let mut connections = Vec::new();
    let ran = loop {
        tokio::select! {
            ran = &mut cycle => break ran,
            accepted = mute.accept() => connections.push(accepted?),
        }
    };
    assert_eq!(ran.report.stopped, Some(Stop::Outages));
    assert!(ran.report.failed < 200, "{:?}", ran.report);
    assert!(
        connections.len() <= 20,
        "calls that wait for one handshake share its outcome: {}",
        connections.len()
    );
    Ok(())
}

/// No call waits for the first handshake; the first calls wait for the second.
#[tokio::test]
async fn connections_that_break_are_made_anew_at_once() -> Result<()> {
    let still = Still::with(Settings { tls: true, ..Settings::default() }).await?;
    let world = &still.world;
    world.add_all((0..100).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    let entrance = Entrance::start(world, 2).await?;
    let ran = run(&world.service(&[("TWITCH_ID_URL", entrance.url())]).await?, &planned()).await;
    assert_eq!((ran.report.success, ran.report.failed, ran.report.stopped), (100, 0, None));
    Ok(())
}

/// The first call on it is lost, and Twitch may have processed it; the next has a new connection.
#[tokio::test]
async fn an_http2_connection_that_is_silently_dead_is_replaced() -> Result<()> {
    let still = Still::with(Settings { tls: true, ..Settings::default() }).await?;
    let world = &still.world;
    let refresh_token = world.twitch.add_streamer("1", "someone").refresh;
    let entrance = Entrance::start(world, 0).await?;
    let config = world.config(&[("TWITCH_ID_URL", entrance.url()), ("TWITCH_MAX_IN_FLIGHT", "1")])?;
    let twitch = TwitchClient::new(config.twitch, world.clock.clone())?;
    twitch.refresh(&refresh_token, &Permit::UNCONDITIONAL).await?;
    let connections = entrance.connections();
    entrance.freeze();
    let lost = twitch.refresh(&refresh_token, &Permit::UNCONDITIONAL).await;
    assert!(matches!(&lost, Err(RefreshError::Outage(outage)) if outage.0.contains("broke off")), "{lost:?}");
    twitch.refresh(&refresh_token, &Permit::UNCONDITIONAL).await?;
    assert_eq!(entrance.connections(), connections + 1);
    Ok(())
}

/// A warm process behind an [`Entrance`] that grants and refuses, one request after the other, 15 s apart.
struct Warm {
    still: Still,
    entrance: Entrance,
    host: Host,
}

impl Warm {
    async fn new(settings: Settings, in_flight: &str) -> Result<Self> {
        let still = Still::with(settings).await?;
        let entrance = Entrance::start(&still.world, 0).await?;
        let changes = [("TWITCH_ID_URL", entrance.url()), ("TWITCH_MAX_IN_FLIGHT", in_flight)];
        let host = still.world.host(&changes);
        Ok(Self { still, entrance, host })
    }

    /// A streamer's first grant; how many connections there have been by then.
    async fn grant(&self, login: &str) -> Result<usize> {
        let id =
            self.still.world.add(NewStreamer { authorized_for: None, ..NewStreamer::fresh(login) }).await?;
        self.host.grant(membership(&self.still.world, id).await?, &request()).await?;
        self.still.clock.advance(std::time::Duration::from_secs(15));
        Ok(self.entrance.connections())
    }

    /// A request that Twitch is not asked for.
    async fn refuse(&self) -> Result<()> {
        let key =
            MembershipKey { campaign: CampaignId(Uuid::new_v4()), streamer: StreamerId(Uuid::new_v4()) };
        assert!(matches!(self.host.grant(key, &request()).await, Err(GrantError::Unknown(_))));
        self.still.clock.advance(std::time::Duration::from_secs(15));
        Ok(())
    }
}

#[tokio::test]
async fn connections_are_warm_for_as_long_as_they_are_used() -> Result<()> {
    let warm = Warm::new(Settings::default(), "64").await?;
    for login in ["aria", "bastien", "celeste"] {
        assert_eq!(warm.grant(login).await?, 1, "{login}");
    }
    for _ in 0..3 {
        warm.refuse().await?;
    }
    assert_eq!(warm.grant("dorian").await?, 2);
    Ok(())
}

#[tokio::test]
async fn of_several_connections_none_may_have_slept() -> Result<()> {
    let warm = Warm::new(Settings { tls: true, ..Settings::default() }, "128").await?;
    // After the handshake that decides, each call takes the other one.
    for (login, connections) in [("aria", 2), ("bastien", 3), ("celeste", 5)] {
        assert_eq!(warm.grant(login).await?, connections, "{login}");
    }
    Ok(())
}
