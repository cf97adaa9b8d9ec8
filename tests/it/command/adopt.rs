//! docs/deploy.md, as far as it goes on one machine: the database of an existing backend is taken over step by step, and given
//! back without a trace by the document's own statements.

use std::fs::read_to_string;

use anyhow::{Context as _, Result};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, PgPool};
use tokens_local::binaries::workspace;
use tokens_local::postgres::{Postgres, Settings as ServerSettings};
use tokens_local::twitch::Settings;
use tokens_local::world::{NewStreamer, World};
use tokens_store::{MissingTables, migrate};
use tokens_tests::people::refused_before;
use tokens_tests::{Printed, Sql as _, binary, changed, tokens};

/// The document's own statements, of which this is one.
fn statements(one: &str) -> Result<String> {
    let document = read_to_string(workspace().join("docs/deploy.md"))?;
    let blocks = document.split("```sql\n").skip(1).filter_map(|rest| rest.split_once("```"));
    let block = blocks.map(|(block, _)| block).find(|block| block.contains(one));
    Ok(block.context("the statements")?.to_owned())
}

/// What the document has run to be rid of us.
fn without_a_trace() -> Result<String> {
    statements("DROP SCHEMA token_refresh")
}

/// What is left of us, by name.
async fn ours(world: &World) -> Result<Vec<String>> {
    let names = "SELECT nspname::text FROM pg_namespace WHERE nspname = 'token_refresh'
                 UNION ALL SELECT indexname::text FROM pg_indexes WHERE indexname LIKE 'token\\_refresh\\_%'
                 UNION ALL SELECT relname || ' ' || attname FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
                           WHERE attacl::text LIKE '%token_refresh_notify%'
                 UNION ALL SELECT relname::text FROM pg_class WHERE relacl::text LIKE '%token_refresh_notify%'";
    Ok(sqlx::query_scalar(names).fetch_all(&world.pool).await?)
}

#[track_caller]
fn says(printed: &Printed, code: i32, text: &str) {
    assert_eq!(printed.code, code, "{printed:?}");
    assert!(printed.stdout.contains(text), "`{text}` is not in {}", printed.stdout);
}

/// The owner of the tables may not create roles, so there is none for notify.
#[tokio::test]
async fn without_the_right_to_create_roles_it_is_given_back_as_well() -> Result<()> {
    let postgres = Postgres::own(ServerSettings::default()).await?;
    let database = postgres.create_empty().await?;
    let superuser = PgPool::connect(database.url()).await?;
    let name: String = sqlx::query_scalar("SELECT current_database()").fetch_one(&superuser).await?;
    let owner = format!("CREATE ROLE owner LOGIN; ALTER DATABASE {name} OWNER TO owner");
    sqlx::raw_sql(AssertSqlSafe(owner)).execute(&superuser).await?;
    let options = database.url().parse::<PgConnectOptions>()?.username("owner");

    migrate(&options, MissingTables::Create).await?;

    let roles = "SELECT count(*) FROM pg_roles WHERE rolname = 'token_refresh_notify'";
    assert_eq!(sqlx::query_scalar::<_, i64>(roles).fetch_one(&superuser).await?, 0);
    let pool = PgPool::connect_with(options).await?;
    sqlx::raw_sql(AssertSqlSafe(without_a_trace()?)).execute(&pool).await?;
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'token_refresh'";
    assert_eq!(sqlx::query_scalar::<_, i64>(schemas).fetch_one(&pool).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_backends_database_is_taken_over_and_given_back() -> Result<()> {
    binary("tokens").await?;
    // A server of its own, because the role of notify belongs to the whole server.
    let postgres = Postgres::own(ServerSettings::default()).await?;
    let world = World::start(&postgres, Settings::default()).await?;
    let bastien = world.add(NewStreamer::due("bastien")).await?;
    let refused = world.add(NewStreamer::due("refused")).await?;
    // As the backend has it: without us, authorized for hours, with an expiry that it has not written and one that it has.
    world.sql(&without_a_trace()?).await?;
    world
        .sql("UPDATE campaign_memberships SET poll_authorization_expires_at = now() + interval '5 hours'")
        .await?;
    world.sql("UPDATE streamers SET token_expires_at = NULL WHERE twitch_login = 'refused'").await?;
    let refreshed = "UPDATE streamers SET last_token_refresh_at = now() - interval '2 hours' WHERE twitch_login = 'bastien'";
    world.sql(refreshed).await?;
    assert_eq!(ours(&world).await?, [""; 0]);
    let environment = changed(world.environment(), &[("DEACTIVATION", "off")]);
    let run = async |arguments: &[&str]| tokens(&environment, arguments).await;

    says(&run(&["doctor"]).await?, 1, "at version 0 and this program needs");
    says(&run(&["migrate"]).await?, 0, "The database is at version ");
    let looked = run(&["doctor"]).await?;
    says(&looked, 0, "stored texts: 4 under APP_KEY; a sample of each could be opened");
    says(
        &looked,
        0,
        "No planned run and no sweep has refreshed a streamer yet: before the rules are enabled, that is to be expected",
    );
    says(&run(&["refresh", "--dry-run"]).await?, 0, "Would refresh: 2");
    assert_eq!(world.twitch.totals().refreshes, 0);

    let id = bastien.to_string();
    says(&run(&["refresh", &id, "--force"]).await?, 0, "Success: 1");
    says(&run(&["history", &id]).await?, 0, "refreshed");
    world.twitch.disconnect("refused")?;
    refused_before(&world, refused).await?;
    says(&run(&["refresh"]).await?, 1, "Failed: 1");
    assert!(world.row(refused).await?.is_active, "no streamer is deactivated on the first day");

    // As its `token:refresh` leaves streamers, one of them long ago.
    let deactivated = "UPDATE streamers SET is_active = false, token_refresh_failed_at = now(),
                              updated_at = now() - CASE twitch_login WHEN 'refused' THEN interval '1 day' ELSE '1 minute' END";
    world.sql(deactivated).await?;
    world.sql(&statements("is_active = true")?).await?;
    let (undone, left) = (world.row(bastien).await?, world.row(refused).await?);
    assert_eq!((undone.is_active, undone.token_refresh_failed_at, left.is_active), (true, None, false));

    let before = world.row(bastien).await?;
    world.sql(&without_a_trace()?).await?;
    assert_eq!(ours(&world).await?, [""; 0]);
    assert_eq!(world.row(bastien).await?, before);
    assert!(world.has_live_token(bastien).await?, "the backend's key opens what we have written");
    says(&run(&["migrate"]).await?, 0, "The database is at version ");
    Ok(())
}
