//! How much `tokens serve` takes at once.

use std::time::Duration;

use anyhow::Result;
use tokens_local::world::{NewStreamer, World};
use tokens_tests::doomed::lock;
use tokens_tests::requests::{authorization_path, membership};
use tokens_tests::{wait_for_locks, world};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::server::{KEY, Server, send, soon};

/// As many as are answered at the same time.
const IN_FLIGHT: usize = 256;

async fn path(world: &World) -> Result<String> {
    let id = world.add(NewStreamer::fresh("aria")).await?;
    Ok(authorization_path(membership(world, id).await?))
}

#[tokio::test]
async fn requests_beyond_the_limit_are_sent_away_at_once_and_the_others_answered() -> Result<()> {
    const BEYOND: usize = 20;
    let world = world().await?;
    let path = path(&world).await?;
    wait_for_locks(&world).await?;
    let server = Server::start(&world, &[]).await?;
    server.logged("cycle finished").await?;
    let mut held = world.pool.begin().await?;
    lock(&mut held, "LOCK TABLE campaign_memberships IN ACCESS EXCLUSIVE MODE").await?;
    let mut requests = JoinSet::new();
    for _ in 0..IN_FLIGHT + BEYOND {
        let (address, path) = (server.address.clone(), path.clone());
        requests.spawn(async move {
            send(&address, "GET", &path, &[("authorization", &format!("Bearer {KEY}"))]).await
        });
    }
    for _ in 0..BEYOND {
        let Some(answer) = soon("a refusal", requests.join_next()).await? else { break };
        let answer = answer??;
        assert_eq!((answer.status, answer.problem()), (429, "too-many-requests"), "{answer:?}");
        assert!(answer.head.contains("retry-after: 1"), "{answer:?}");
    }
    assert_eq!(server.send("GET", "/healthz", &[]).await?.status, 200, "the server is alive");
    held.rollback().await?;
    while let Some(answer) = requests.join_next().await {
        // The pool's connections were waited for: what took too long is the database's 503.
        let answer = answer??;
        assert!([200, 503].contains(&answer.status), "{answer:?}");
    }
    assert_eq!(server.ask("GET", &path).await?.status, 200);
    server.end().await
}

#[tokio::test]
async fn ten_thousand_requests_at_once_leave_the_server_well() -> Result<()> {
    const CONNECTIONS: usize = 500;
    const EACH: usize = 20;
    let world = world().await?;
    let path = path(&world).await?;
    let server = Server::start(&world, &[]).await?;
    server.logged("cycle finished").await?;
    let mut connections = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (address, path) = (server.address.clone(), path.clone());
        connections.spawn(async move {
            let mut connection = TcpStream::connect(&address).await?;
            let request = |close| {
                format!(
                    "GET {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {KEY}\r\n{close}\r\n"
                )
            };
            let all = request("").repeat(EACH - 1) + &request("connection: close\r\n");
            connection.write_all(all.as_bytes()).await?;
            let mut answers = String::new();
            soon("the answers", connection.read_to_string(&mut answers)).await??;
            anyhow::Ok(answers)
        });
    }
    let (mut answered, mut fine) = (0, 0);
    while let Some(answers) = connections.join_next().await {
        let answers = answers??;
        for status in ["200 OK", "429 Too Many Requests", "503 Service Unavailable"] {
            answered += answers.matches(&format!("HTTP/1.1 {status}\r\n")).count();
        }
        fine += answers.matches("HTTP/1.1 200 OK\r\n").count();
    }
    assert_eq!(answered, CONNECTIONS * EACH);
    assert!(fine >= IN_FLIGHT, "{fine} were answered with what they asked for");
    assert_eq!(server.ask("GET", &path).await?.status, 200);
    server.end().await
}

#[tokio::test]
async fn what_is_too_large_is_refused() -> Result<()> {
    let world = world().await?;
    let path = path(&world).await?;
    let server = Server::start(&world, &[]).await?;
    server.readiness(200).await?;
    let bearer = format!("Bearer {KEY}");
    let large = "x".repeat(40 * 1024);
    let answer = server.send("GET", &path, &[("authorization", &bearer), ("x-large", &large)]).await?;
    assert_eq!(answer.status, 431, "{answer:?}");
    let many: Vec<_> = (0..80).map(|n| format!("x-{n}")).collect();
    let many: Vec<_> = many.iter().map(|name| (name.as_str(), "x")).collect();
    assert_eq!(server.send("GET", &path, &many).await?.status, 431);

    // A body that is announced, and too long for any route.
    let mut connection = TcpStream::connect(&server.address).await?;
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: {}\r\nauthorization: {bearer}\r\ncontent-length: 1000000\r\n\r\n{large}",
        server.address
    );
    connection.write_all(request.as_bytes()).await?;
    let mut answer = [0; 12];
    tokio::time::timeout(Duration::from_mins(1), connection.read_exact(&mut answer)).await??;
    assert_eq!(&answer, b"HTTP/1.1 413");
    server.end().await
}
