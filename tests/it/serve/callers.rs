//! Who may call `tokens serve`, and by which names.

use anyhow::{Context as _, Result};
use tokens_domain::MembershipKey;
use tokens_local::world::NewStreamer;
use tokens_tests::requests::{authorization_path, authorizations_path, check_path, membership};
use tokens_tests::{tokens, world};

use super::server::{KEY, Server};

const HASH: &str = "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683";

/// A key and its line, as the command makes them.
async fn generate(name: &str) -> Result<(String, String)> {
    let printed = tokens(&[], &["keys", "generate", name]).await?;
    let [_, key, _, line] = printed.stdout.lines().collect::<Vec<_>>()[..] else {
        anyhow::bail!("{printed:?}")
    };
    Ok((key.to_owned(), line.to_owned()))
}

#[tokio::test]
async fn without_a_valid_key_no_route_answers() -> Result<()> {
    let world = world().await?;
    let id = world.add(NewStreamer::fresh("aria")).await?;
    let (key, line) = generate("backend").await?;
    let server = Server::start(&world, &[("API_KEYS", &format!("{line}:api+view"))]).await?;
    server.readiness(200).await?;
    let path = authorization_path(membership(&world, id).await?);
    let bearer = format!("Bearer {key}");
    assert_eq!(server.send("GET", &path, &[("authorization", &bearer)]).await?.status, 200);
    let lower = format!("bearer {key}");
    assert_eq!(server.send("GET", &path, &[("authorization", &lower)]).await?.status, 200);

    let hash = format!("Bearer {}", line.split(':').nth(1).context("no hash")?);
    let (longer, shorter) = (format!("{bearer}x"), bearer[..bearer.len() - 1].to_owned());
    let expired = "Bearer eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjE1MDAwMDAwMDB9.c2lnbmF0dXJl";
    let basic = "Basic YmFja2VuZDprZXk=";
    for value in ["", "Bearer", "Bearer ", "Bearer wrong", expired, basic, &key, &hash, &longer, &shorter] {
        for path in [path.as_str(), "/metrics", "/elsewhere", "/"] {
            let answer = server.send("GET", path, &[("authorization", value)]).await?;
            assert_eq!((answer.status, answer.problem()), (401, "key-missing"), "{value}: {answer:?}");
            assert!(answer.head.contains("www-authenticate: bearer"), "{answer:?}");
        }
    }
    assert_eq!(server.send("POST", &path, &[]).await?.status, 401);
    let twice = [("authorization", bearer.as_str()), ("authorization", bearer.as_str())];
    assert_eq!(server.send("GET", &path, &twice).await?.status, 401);
    let log = format!("{:?}", server.log());
    assert!(!log.contains(&key) && log.contains("request refused"), "the key is not logged");
    server.end().await
}

#[tokio::test]
async fn a_key_reaches_what_its_rights_and_campaigns_allow() -> Result<()> {
    let world = world().await?;
    let (own, other) =
        (world.add(NewStreamer::fresh("aria")).await?, world.add(NewStreamer::fresh("brindille")).await?);
    let (own, other) = (membership(&world, own).await?, membership(&world, other).await?);
    let (limited, line) = generate("limited").await?;
    let keys = format!("backend:{HASH}, {line}:api+view:{}", own.campaign);
    let (viewer, line) = generate("viewer").await?;
    let keys = format!("{keys}, {line}:view");
    let server = Server::start(&world, &[("API_KEYS", &keys)]).await?;
    server.readiness(200).await?;
    let ask = async |key: &str, method: &str, path: &str| {
        let answer = server.send(method, path, &[("authorization", &format!("Bearer {key}"))]).await?;
        anyhow::Ok((answer.status, answer.problem().to_owned()))
    };
    let refused = |problem: &str| (403, problem.to_owned());
    for path in [authorization_path(own), authorization_path(other), authorizations_path(own.streamer)] {
        assert_eq!(ask(KEY, "GET", &path).await?.0, 200, "{path}");
        assert_eq!(ask(&viewer, "GET", &path).await?, refused("right-missing"), "{path}");
    }
    assert_eq!(ask(KEY, "GET", "/metrics").await?, refused("right-missing"));
    assert_eq!(ask(&viewer, "GET", "/metrics").await?.0, 200);

    assert_eq!(ask(&limited, "GET", &authorization_path(own)).await?.0, 200);
    assert_eq!(ask(&limited, "POST", &check_path(own.campaign)).await?.0, 200);
    let mixed = MembershipKey { campaign: other.campaign, streamer: own.streamer };
    let encoded = authorization_path(other).replacen("/campaigns/", "/campaigns/%", 1);
    for path in [
        authorization_path(other),
        authorization_path(mixed),
        authorizations_path(own.streamer),
        "/metrics".to_owned(),
        encoded,
    ] {
        assert_eq!(ask(&limited, "GET", &path).await?, refused("campaign-forbidden"), "{path}");
    }
    server.end().await
}

#[tokio::test]
async fn only_the_servers_own_names_are_answered() -> Result<()> {
    let world = world().await?;
    let id = world.add(NewStreamer::fresh("aria")).await?;
    let path = authorization_path(membership(&world, id).await?);
    let changes = [("PUBLIC_URL", "https://tokens.example.com"), ("TRUSTED_PROXIES", "127.0.0.2/32")];
    let server = Server::start(&world, &changes).await?;
    server.readiness(200).await?;
    let bearer = format!("Bearer {KEY}");
    let (_, port) = server.address.split_once(':').context("no port")?;
    let ask = async |host: &str, more: &[(&str, &str)]| {
        let headers = [&[("authorization", bearer.as_str()), ("host", host)], more].concat();
        server.send("GET", &path, &headers).await
    };
    for host in ["tokens.example.com", &format!("localhost:{port}"), &format!("127.0.0.1:{port}")] {
        assert_eq!(ask(host, &[]).await?.status, 200, "{host}");
    }
    let forwarded = [("x-forwarded-host", "tokens.example.com")];
    for (host, more) in [
        ("evil.example.com", &[][..]),
        (&format!("evil.example.com:{port}"), &[]),
        ("evil.example.com", &forwarded),
    ] {
        let answer = ask(host, more).await?;
        assert_eq!((answer.status, answer.problem()), (421, "unknown-host"), "{host}");
    }
    assert_eq!(server.send("GET", "/healthz", &[("host", "10.0.0.1")]).await?.status, 200);
    server.end().await
}
