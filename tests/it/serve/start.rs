//! How `tokens serve` starts: with a sweep, whatever was missed, and in spite of what is away.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokens_local::twitch::{Fault, RefreshTokens};
use tokens_local::world::NewStreamer;
use tokens_tests::doomed::{until, world as with_tokens};
use tokens_tests::relay::{Refusal, Relay};
use tokens_tests::requests::{authorization_path, check_path, membership};
use tokens_tests::{binary, changed, tokens, world};
use tokio::net::TcpListener;
use tokio::process::Command;

use super::server::{KEYS, Server, send, soon};

#[tokio::test]
async fn a_start_sweeps_and_serves_the_api_under_the_callers_name() -> Result<()> {
    let world = world().await?;
    let due = world.add(NewStreamer::due("aria")).await?;
    let fresh = world.add(NewStreamer::fresh("brindille")).await?;
    let server = Server::start(&world, &[]).await?;
    server.logged("[Scheduler] Token refresh scheduler started").await?;
    let report = server.logged("cycle finished").await?;
    assert_eq!((&report["success"], &report["failed"]), (&1.into(), &0.into()), "{report}");
    assert!(world.has_live_token(due).await?);

    assert_eq!(server.send("GET", "/healthz", &[]).await?.status, 200);
    let ready = server.readiness(200).await?;
    assert_eq!(
        (&ready["status"], &ready["database"]["ok"], &ready["cycles"]["ok"]),
        (&"ready".into(), &true.into(), &true.into())
    );
    assert_eq!(server.send("GET", "/readyz", &[]).await?.body, serde_json::json!({"status": "ready"}));

    let key = membership(&world, fresh).await?;
    let granted = server.ask("POST", &authorization_path(key)).await?;
    assert_eq!((granted.status, &granted.body["authorized"]), (200, &true.into()), "{granted:?}");
    assert_eq!(server.ask("GET", &authorization_path(key)).await?.status, 200);
    let checked = server.ask("POST", &check_path(key.campaign)).await?;
    assert_eq!((checked.status, &checked.body["healthy"]), (200, &true.into()), "{checked:?}");
    let answered = server.logged("request answered").await?;
    assert_eq!(
        (&answered["span"]["caller"], &answered["span"]["client"]),
        (&"backend".into(), &"127.0.0.1".into())
    );
    let callers: Vec<Option<String>> =
        sqlx::query_scalar("SELECT caller FROM token_refresh.refreshes WHERE trigger = 'grant'")
            .fetch_all(&world.pool)
            .await?;
    assert_eq!(callers, [Some("backend".to_owned())]);

    let metrics = server.ask("GET", "/metrics").await?;
    let metrics = metrics.body.as_str().context("no text")?.to_owned();
    for line in ["token_refresh_refreshed_total 2", "token_refresh_cycles_succeeded_total 1"] {
        assert!(metrics.lines().any(|said| said == line), "{line} is not in\n{metrics}");
    }
    server.end().await
}

#[tokio::test]
async fn a_failure_is_retried_in_process() -> Result<()> {
    let world = world().await?;
    world.add(NewStreamer::due("aria")).await?;
    world.twitch.fault_for_everybody(Fault::ServerError);
    let server = Server::start(&world, &[("RETRY_DELAY", "1")]).await?;
    let report = server.logged("cycle finished").await?;
    assert_eq!(report["failed"], 1, "{report}");
    world.twitch.clear_faults_for_everybody();
    soon("the retry", world.twitch.wait_until(|totals| totals.refreshes == 1)).await?;
    server.logged_times("cycle finished", 2).await?;
    let (trigger, minute): (String, i32) = sqlx::query_as(
        "SELECT trigger, extract(minute FROM started_at)::int FROM token_refresh.refreshes ORDER BY started_at DESC LIMIT 1",
    )
    .fetch_one(&world.pool)
    .await?;
    // A sweep at the same minute comes first.
    assert!(trigger == "retry" || trigger == "sweep" && minute % 15 == 7, "{trigger} at {minute}");
    server.end().await
}

#[tokio::test]
async fn two_at_once_refresh_nothing_twice() -> Result<()> {
    const STREAMERS: u64 = 60;
    let world = with_tokens(RefreshTokens::OneTime, Duration::from_millis(20)).await?;
    let ids = world.add_all((0..STREAMERS).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    let few = [("TWITCH_MAX_IN_FLIGHT", "8")];
    let (one, other) = tokio::try_join!(Server::start(&world, &few), Server::start(&world, &few))?;
    for server in [&one, &other] {
        let report = server.logged("cycle finished").await?;
        assert_eq!(report["failed"], 0, "{report}");
    }
    let totals = world.twitch.totals();
    assert_eq!((totals.refreshes, totals.reuses), (STREAMERS, 0));
    for id in ids {
        assert!(world.has_live_token(id).await?);
    }
    one.end().await?;
    other.end().await
}

#[tokio::test]
async fn a_database_that_is_away_at_the_start_is_waited_for() -> Result<()> {
    let world = world().await?;
    let id = world.add(NewStreamer::due("aria")).await?;
    let relay = Relay::start(&world)?;
    relay.refuse(usize::MAX, Refusal::Closes);
    let server = Server::start(&world, &[("DATABASE_URL", &relay.url())]).await?;
    server.logged("the service can't be opened").await?;
    let ready = server.readiness(503).await?;
    let reason = ready["database"]["detail"].as_str().context("no reason")?;
    assert!(reason.contains("database") && ready["database"]["ok"] == false, "{ready}");
    let without_key = server.send("GET", "/readyz", &[]).await?;
    assert_eq!((without_key.status, without_key.body), (503, serde_json::json!({"status": "not_ready"})));
    assert_eq!(server.send("GET", "/healthz", &[]).await?.status, 200);
    let path = authorization_path(membership(&world, id).await?);
    let refused = server.ask("GET", &path).await?;
    assert_eq!((refused.status, refused.problem()), (503, "database-unavailable"));

    relay.refuse(0, Refusal::Closes);
    server.readiness(200).await?;
    server.logged("cycle finished").await?;
    assert!(world.has_live_token(id).await?);

    // And away later: said within a second or so, and good again by itself.
    relay.freeze();
    relay.refuse(usize::MAX, Refusal::Closes);
    server.readiness(503).await?;
    relay.refuse(0, Refusal::Closes);
    server.readiness(200).await?;
    assert_eq!(server.ask("GET", &path).await?.status, 200);
    server.end().await
}

#[tokio::test]
async fn an_older_or_a_newer_schema_is_waited_for() -> Result<()> {
    let world = world().await?;
    let id = world.add(NewStreamer::due("aria")).await?;
    let sql = async |text: &'static str| sqlx::raw_sql(text).execute(&world.pool).await;
    sql("CREATE TABLE newest AS SELECT max(version) AS version FROM token_refresh._sqlx_migrations;
         CREATE TABLE taken AS SELECT * FROM token_refresh._sqlx_migrations
             WHERE version = (SELECT version FROM newest);
         DELETE FROM token_refresh._sqlx_migrations WHERE version = (SELECT version FROM newest)")
    .await?;
    let server = Server::start(&world, &[]).await?;
    server.logged("the service can't be opened").await?;
    let ready = server.readiness(503).await?;
    assert!(
        ready["database"]["detail"].as_str().is_some_and(|text| text.contains("tokens migrate")),
        "{ready}"
    );
    sql("INSERT INTO token_refresh._sqlx_migrations SELECT * FROM taken").await?;
    server.readiness(200).await?;
    server.logged("cycle finished").await?;
    assert!(world.has_live_token(id).await?);

    sql("UPDATE token_refresh._sqlx_migrations SET version = version + 1000
             WHERE version = (SELECT version FROM newest);
         CREATE OR REPLACE FUNCTION token_refresh.minimum_version() RETURNS bigint
             LANGUAGE sql SET search_path = pg_catalog, pg_temp AS 'SELECT 900::bigint'")
    .await?;
    let ready = server.readiness(503).await?;
    assert!(
        ready["database"]["detail"].as_str().is_some_and(|text| text.contains("deploy the program")),
        "{ready}"
    );
    server.end().await
}

#[tokio::test]
async fn a_port_in_use_and_wrong_settings_end_the_start() -> Result<()> {
    let world = world().await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let printed = tokens(&world.environment(), &["serve", "--listen", &address]).await?;
    assert_eq!(printed.code, 1, "{printed:?}");
    assert!(printed.stderr.contains(&format!("can't listen on {address}: ")), "{printed:?}");
    assert_eq!(world.twitch.totals().token_requests, 0);

    let wrong = [("API_KEYS", "backend:,backend:"), ("PUBLIC_URL", "here"), ("TRUSTED_PROXIES", "there")];
    let printed =
        tokens(&changed(world.environment(), &wrong), &["serve", "--listen", "127.0.0.1:0"]).await?;
    assert_eq!(printed.code, 1, "{printed:?}");
    assert_eq!(printed.stderr.matches("API_KEYS has a key `backend` with an empty hash").count(), 2);
    assert!(
        printed.stderr.contains("PUBLIC_URL") && printed.stderr.contains("TRUSTED_PROXIES"),
        "{printed:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_full_disk_for_logs_stops_nothing() -> Result<()> {
    let world = world().await?;
    let id = world.add(NewStreamer::due("aria")).await?;
    let address = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.to_string();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full")?;
    let mut server = Command::new(binary("tokens").await?)
        .args(["serve", "--listen", &address])
        .env_clear()
        .envs(changed(world.environment(), &[("API_KEYS", KEYS), ("LOG_LEVEL", "debug")]))
        .current_dir(std::env::temp_dir())
        .stdout(full.try_clone()?)
        .stderr(Stdio::from(full))
        .kill_on_drop(true)
        .spawn()?;
    soon("the sweep", until(&world, "SELECT last_token_refresh_at IS NOT NULL FROM streamers")).await??;
    assert!(world.has_live_token(id).await?);
    assert_eq!(send(&address, "GET", "/healthz", &[]).await?.status, 200);
    assert_eq!(send(&address, "GET", "/metrics", &[]).await?.status, 401, "refused and logged");
    let pid = server.id().context("it has ended")?;
    let sent = Command::new("sh").arg("-c").arg(format!("kill -TERM {pid}")).status().await?;
    assert!(sent.success());
    assert_eq!(soon("the end", server.wait()).await??.code(), Some(0));
    Ok(())
}
