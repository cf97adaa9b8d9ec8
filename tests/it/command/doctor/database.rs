//! The database: whether it lets the login in, its schema, its rights and its rows.

use std::fs::read_to_string;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokens_local::binaries::workspace;
use tokens_local::lambda::Function;
use tokens_local::postgres::{Postgres, Settings as ServerSettings};
use tokens_local::twitch::Settings;
use tokens_local::world::{NewStreamer, World};
use tokens_tests::people::{campaign, device, refused_before, refused_streamer, user};
use tokens_tests::requests::{authorization_path, authorizations_path, check_path, event, membership};
use tokens_tests::roles::{app_under_row_level_security, app_with_password, as_app, hostile_search_path};
use tokens_tests::{Sql as _, binary, changed, tokens};

use super::{Environment, doctor, sql, well, with};

/// What depends on a database that accepts the login and has our schema.
const IN_THE_SCHEMA: [&str; 6] = ["rights", "rows", "notify role", "tokens", "cycles", "outbox"];

#[tokio::test]
async fn a_database_that_refuses_the_login_is_a_fault() -> Result<()> {
    let world = well().await?;
    // Port 9 is discard: nothing listens there.
    let said = with(&world, &[("DATABASE_URL", "postgres://postgres@127.0.0.1:9/x")]).await?;
    said.only_fault("database", "127.0.0.1:9");
    assert_eq!(said.not_checked, [&["clock", "schema"][..], &IN_THE_SCHEMA].concat());
    said.says("twitch", "ok", "takes the client id");

    let postgres = Postgres::own(ServerSettings::default()).await?;
    let server = postgres.server().context("a server of its own")?;
    app_with_password(server, "right").await?;
    let said = with(&world, &[("DATABASE_URL", &as_app(&server.url("postgres"), "wr0ng"))]).await?;
    said.only_fault("database", "password authentication failed for user");
    assert!(!format!("{:?}", said.checks).contains("wr0ng"));
    Ok(())
}

#[tokio::test]
async fn a_schema_of_another_version_is_named() -> Result<()> {
    let world = well().await?;
    let empty = Postgres::shared().await?.create_empty().await?;
    let said = with(&world, &[("DATABASE_URL", empty.url())]).await?;
    said.only_fault("schema", "run `tokens migrate`");
    assert_eq!(said.not_checked, IN_THE_SCHEMA);

    sql(&world.pool, "UPDATE token_refresh._sqlx_migrations SET version = version + 1000").await?;
    let said = with(&world, &[]).await?;
    said.says("schema", "warning", "deploy the program that migrated it");
    said.says("rights", "ok", "");
    let function = "CREATE OR REPLACE FUNCTION token_refresh.minimum_version() RETURNS bigint LANGUAGE sql AS 'SELECT 1000::bigint'";
    sql(&world.pool, function).await?;
    with(&world, &[]).await?.only_fault("schema", "which needs programs of version 1000 or newer");
    Ok(())
}

#[tokio::test]
async fn an_index_that_is_missing_is_a_warning_and_migrate_restores_it() -> Result<()> {
    let world = well().await?;
    sql(&world.pool, "DROP INDEX token_refresh_authorized_idx").await?;
    let said = with(&world, &[]).await?;
    said.warns("schema", "the index token_refresh_authorized_idx on public.campaign_memberships");
    said.says("cycles", "ok", "2 authorized");
    ensure!(tokens(&world.environment(), &["migrate"]).await?.code == 0);
    with(&world, &[]).await?.says("schema", "ok", "at version");
    Ok(())
}

/// What the doctor asks for is what infra/logins.sql gives, and enough for everything but the function notify.
#[tokio::test]
async fn the_grants_of_logins_sql_are_all_that_is_needed() -> Result<()> {
    binary("tokens").await?;
    let postgres = Postgres::own(ServerSettings::default()).await?;
    let world = World::start(&postgres, Settings::default()).await?;
    sql(&world.pool, "CREATE ROLE token_app LOGIN").await?;
    let file = read_to_string(workspace().join("infra/logins.sql"))?;
    let of_app = |line: &&str| line.starts_with("GRANT ") && line.ends_with(" TO token_app;");
    let grants: Vec<_> = file.lines().filter(of_app).collect();
    let as_app = world.database_url().replace("postgres@", "token_app@");
    let environment = changed(world.environment(), &[("DATABASE_URL", &as_app)]);
    doctor(&environment).await?.only_fault("schema", "permission denied for schema token_refresh");
    let (to_look, to_work) = grants.split_at(2);
    for grant in to_look {
        sql(&world.pool, grant).await?;
    }

    let said = doctor(&environment).await?;
    let [(_, text)] = said.of("rights")[..] else { panic!("{:?}", said.checks) };
    let asked = text.split_once("owner, ").context("grants")?.1.replace('"', "");
    assert_eq!(asked.split("; ").map(|grant| format!("{grant};")).collect::<Vec<_>>(), to_work);
    for grant in to_work {
        sql(&world.pool, grant).await?;
    }
    let said = doctor(&environment).await?;
    said.says("rights", "ok", "token_app may do all that a cycle does");
    said.says("rows", "warning", "has no active streamer");
    // And whatever its search path is.
    hostile_search_path(&world.pool, "token_app").await?;
    everything_as(&world, &environment).await?;
    let said = doctor(&environment).await?;
    said.says("rows", "ok", "a streamer's row was leased, locked, written, and put back");

    sql(&world.pool, "REVOKE UPDATE (is_active) ON streamers FROM token_app").await?;
    let said = doctor(&environment).await?;
    said.says(
        "rights",
        "fault",
        r#"as the tables' owner, GRANT UPDATE (is_active) ON public.streamers TO "token_app""#,
    );
    assert!(!said.of("rights")[0].1.contains(';'), "{:?}", said.checks);
    Ok(())
}

/// Refreshes, a deactivation with a notice, grants, checks, rekeying, and every look.
async fn everything_as(world: &World, environment: &Environment) -> Result<()> {
    const TIME_LEFT: Duration = Duration::from_mins(5);
    let bastien = world.add(NewStreamer::due("bastien")).await?;
    let key = membership(world, bastien).await?;
    let (dead, of_dead) = refused_streamer(world, "dead").await?;
    let master = user(world, "Corvin").await?;
    campaign(world, dead, "Brumes", master, "ACTIVE").await?;
    device(world, of_dead, "phone").await?;
    device(world, master, "laptop").await?;
    refused_before(world, dead).await?;
    let invoke = async |function: &str, events: Vec<Value>| {
        let running = Function::start(&binary(function).await?, environment, Stdio::null()).await?;
        for event in events {
            let answer = running.invoke(event, TIME_LEFT).await.with_context(|| function.to_owned())?;
            let status = answer.get("statusCode").map_or(Some(200), Value::as_u64);
            ensure!(status.is_some_and(|status| status < 300), "{function}: {answer}");
        }
        anyhow::Ok(())
    };
    let rules = [json!({ "trigger": "planned" }), json!({ "trigger": "sweep" })];
    invoke("scheduled-refresh", rules.into()).await?;
    assert!(!world.row(dead).await?.is_active);
    let path = authorization_path(key);
    let list = authorizations_path(bastien);
    let grants = [("POST", &path), ("GET", &path), ("GET", &list), ("DELETE", &path), ("POST", &path)];
    invoke("grant-refresh", grants.map(|(method, path)| event(method, path)).into()).await?;
    invoke("health-check", vec![event("POST", &check_path(key.campaign))]).await?;
    let (id, dead) = (bastien.to_string(), dead.to_string());
    for command in [
        &["refresh", "--force"][..],
        &["status"],
        &["history", &id],
        &["coverage"],
        &["notifications"],
        &["rekey"],
        &["reactivate", &dead],
        &["reactivate", "--since", "1h"],
    ] {
        let printed = tokens(environment, command).await?;
        ensure!(printed.code == 0, "{command:?}: {printed:?}");
    }
    Ok(())
}

/// The doctor does what a cycle does.
#[tokio::test]
async fn rows_that_are_hidden_or_not_to_be_changed_are_a_fault() -> Result<()> {
    binary("tokens").await?;
    let postgres = Postgres::own(ServerSettings::default()).await?;
    let world = World::start(&postgres, Settings::default()).await?;
    app_under_row_level_security(&world.pool).await?;
    let aria = world.add(NewStreamer::due("aria")).await?;
    let before = world.row(aria).await?;
    let said = async |change: &str| {
        sql(&world.pool, change).await?;
        with(&world, &[("DATABASE_URL", &world.database_url().replace("postgres@", "app@"))]).await
    };
    said("").await?.says("rows", "ok", "leased, locked, written, and put back");
    let hidden = said("ALTER TABLE streamers ENABLE ROW LEVEL SECURITY").await?;
    hidden.says("rows", "fault", "app sees no row of public.streamers, where");
    let read = said("CREATE POLICY read ON streamers FOR SELECT USING (true)").await?;
    read.says("rows", "fault", "app can read Aria (aria) and not lock the row");
    let partly = said("CREATE POLICY own ON streamers FOR UPDATE USING (twitch_login = 'aria')").await?;
    partly.says("rows", "warning", "may hide rows of public.streamers from app");
    let ok = said("CREATE POLICY change ON streamers FOR UPDATE USING (true)").await?;
    ok.says("rows", "ok", "leased, locked, written, and put back");
    let devices = said("ALTER TABLE push_subscriptions ENABLE ROW LEVEL SECURITY").await?;
    devices.says("rows", "fault", "app sees no row of public.push_subscriptions, where");
    assert_eq!(world.row(aria).await?, before);
    let history = world.count("SELECT count(*) FROM token_refresh.refreshes").await?;
    assert_eq!(history, 0);
    Ok(())
}

#[tokio::test]
async fn without_a_login_for_notify_there_is_a_warning() -> Result<()> {
    binary("tokens").await?;
    let postgres = Postgres::own(ServerSettings::default()).await?;
    let world = World::start(&postgres, Settings::default()).await?;
    let grant = "GRANT token_refresh_notify TO the login in its secret. Where notify is not deployed, nothing has to be done";
    with(&world, &[]).await?.warns("notify role", grant);
    sql(&world.pool, "DROP OWNED BY token_refresh_notify; ALTER ROLE token_refresh_notify RENAME TO other")
        .await?;
    with(&world, &[]).await?.warns("notify role", "CREATE ROLE token_refresh_notify NOLOGIN");
    Ok(())
}
