//! How `tokens serve` ends: in order when it is asked to, and without a loss outside the window of a request when it is killed.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokens_local::twitch::RefreshTokens;
use tokens_local::world::{NewStreamer, World};
use tokens_tests::doomed::{has_newest_pair, settled, three_minutes_later, until, world as with_tokens};
use tokens_tests::requests::{authorization_path, membership};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::server::{KEY, Server, send, soon};

/// A world whose tokens are lost if an answer of Twitch is.
async fn one_time() -> Result<World> {
    with_tokens(RefreshTokens::OneTime, Duration::ZERO).await
}

async fn no_lease(world: &World) -> Result<()> {
    let leases = "SELECT count(*) FROM token_refresh.streamers WHERE leased_until IS NOT NULL";
    let leases: i64 = sqlx::query_scalar(leases).fetch_one(&world.pool).await?;
    assert_eq!(leases, 0, "leases left");
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_asked_to_end_finishes_cycle_and_requests() -> Result<()> {
    for name in ["TERM", "INT"] {
        let world = one_time().await?;
        let due = world.add(NewStreamer::due("aria")).await?;
        let fresh = world.add(NewStreamer::fresh("brindille")).await?;
        let gates = [world.twitch.pause_answers("aria")?, world.twitch.pause_answers("brindille")?];
        let mut server = Server::start(&world, &[]).await?;
        soon("the sweep's refresh", gates[0].arrived()).await?;
        let path = authorization_path(membership(&world, fresh).await?);
        let address = server.address.clone();
        let grant = tokio::spawn(async move {
            send(&address, "POST", &path, &[("authorization", &format!("Bearer {KEY}"))]).await
        });
        soon("the grant's refresh", gates[1].arrived()).await?;
        server.signal(name).await?;
        server.logged("asked to end").await?;
        let refused = async {
            while TcpStream::connect(&server.address).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        soon("the closed port", refused).await?;
        gates.into_iter().for_each(tokens_local::twitch::Gate::release);
        let granted = grant.await??;
        assert_eq!((granted.status, &granted.body["authorized"]), (200, &true.into()), "{granted:?}");
        assert_eq!(server.ended().await?, Some(0), "{:?}", server.log());
        assert!(has_newest_pair(&world, due, "aria").await?, "SIG{name}");
        assert!(has_newest_pair(&world, fresh, "brindille").await?, "SIG{name}");
        no_lease(&world).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_sends_half_a_request_does_not_hold_the_end_up() -> Result<()> {
    let world = one_time().await?;
    let mut server = Server::start(&world, &[]).await?;
    let mut client = TcpStream::connect(&server.address).await?;
    client.write_all(b"GET /healthz HT").await?;
    // The server has read it: it answers what came later.
    assert_eq!(server.ask("GET", "/healthz").await?.status, 200);
    server.signal("TERM").await?;
    assert_eq!(server.ended().await?, Some(0), "{:?}", server.log());
    drop(client);
    Ok(())
}

#[tokio::test]
async fn a_second_signal_ends_a_server_at_once() -> Result<()> {
    let world = one_time().await?;
    world.add(NewStreamer::due("aria")).await?;
    let gate = world.twitch.pause("aria")?;
    let mut server = Server::start(&world, &[]).await?;
    soon("the sweep's refresh", gate.arrived()).await?;
    server.signal("TERM").await?;
    server.logged("asked to end").await?;
    server.signal("TERM").await?;
    assert_eq!(server.ended().await?, Some(143));
    Ok(())
}

#[tokio::test]
async fn a_grant_whose_caller_hangs_up_is_finished() -> Result<()> {
    let world = one_time().await?;
    let fresh = world.add(NewStreamer::fresh("aria")).await?;
    let server = Server::start(&world, &[]).await?;
    server.readiness(200).await?;
    let gate = world.twitch.pause_answers("aria")?;
    let path = authorization_path(membership(&world, fresh).await?);
    let mut caller = TcpStream::connect(&server.address).await?;
    let request =
        format!("POST {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {KEY}\r\n\r\n", server.address);
    caller.write_all(request.as_bytes()).await?;
    soon("the grant's refresh", gate.arrived()).await?;
    drop(caller);
    // It has heard of it once it answers on another connection that was made later.
    assert_eq!(server.send("GET", "/healthz", &[]).await?.status, 200);
    gate.release();
    soon("the result", until(&world, "SELECT last_token_refresh_at IS NOT NULL FROM streamers")).await??;
    assert!(has_newest_pair(&world, fresh, "aria").await?);
    server.logged("request answered").await?;
    server.end().await
}

/// What is lost is what Twitch had answered and was not written yet, and nothing else.
#[tokio::test]
async fn a_server_that_is_killed_in_a_sweep_goes_on_after_its_start() -> Result<()> {
    const STREAMERS: usize = 80;
    const IN_FLIGHT: [(&str, &str); 1] = [("TWITCH_MAX_IN_FLIGHT", "4")];
    let world = with_tokens(RefreshTokens::OneTime, Duration::from_millis(20)).await?;
    let logins: Vec<_> = (0..STREAMERS).map(|n| format!("s{n}")).collect();
    let ids = world.add_all(logins.iter().map(NewStreamer::due).collect()).await?;
    let mut server = Server::start(&world, &IN_FLIGHT).await?;
    soon("a third of the sweep", world.twitch.wait_until(|totals| totals.refreshes >= 25)).await?;
    server.signal("KILL").await?;
    assert_eq!(server.ended().await?, None, "killed");
    soon("the end of its requests", world.twitch.wait_until(|totals| totals.in_flight == 0)).await?;
    settled(&world).await?;
    let refreshed = world.twitch.totals().refreshes;
    assert!(refreshed < STREAMERS as u64, "killed too late");
    let written = "SELECT count(*) FROM streamers WHERE last_token_refresh_at IS NOT NULL";
    let written: i64 = sqlx::query_scalar(written).fetch_one(&world.pool).await?;
    let in_the_window = refreshed - u64::try_from(written)?;
    three_minutes_later(&world).await?;

    let server = Server::start(&world, &IN_FLIGHT).await?;
    let report = server.logged("cycle finished").await?;
    let lost = report["failed"].as_u64().context("no count")?;
    assert_eq!(lost, in_the_window, "{report}");
    let mut without = 0;
    for (id, login) in ids.into_iter().zip(&logins) {
        without += u64::from(!has_newest_pair(&world, id, login).await?);
    }
    assert_eq!(without, lost, "{report}");
    no_lease(&world).await?;
    server.end().await
}
