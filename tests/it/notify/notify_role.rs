//! The database role of the function notify: it delivers the outbox, and can read no token.

use anyhow::{Context as _, Result};
use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokens_domain::notification::PushAnswer;
use tokens_local::postgres::{Postgres, Settings};
use tokens_store::{MissingTables, migrate};
use tokens_tests::Still;
use tokens_tests::people::{RecordingPush, deliver, device, notify_as, refused_streamer, two_runs};

/// Every session begins as a member of the group that has put the group's role on.
fn as_notify(url: &str) -> Result<PgConnectOptions> {
    Ok(url.parse::<PgConnectOptions>()?.options([("role", "token_refresh_notify")]))
}

async fn refused(connection: &mut PgConnection, sql: &str) {
    let Err(error) = sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await else {
        panic!("it may `{sql}`");
    };
    let code = error.as_database_error().and_then(|error| error.code().map(|code| code.to_string()));
    assert_eq!(code.as_deref(), Some("42501"), "insufficient privilege for `{sql}`: {error}");
}

#[tokio::test]
async fn the_role_delivers_the_whole_outbox() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let (_, owner) = refused_streamer(world, "aria").await?;
    let push = RecordingPush::default();
    for (name, answer) in [
        ("accepted", PushAnswer::Accepted),
        ("gone", PushAnswer::Gone),
        ("busy", PushAnswer::Busy { retry_after: None, reason: "503".to_owned() }),
        ("rejected", PushAnswer::Rejected("413".to_owned())),
    ] {
        device(world, owner, name).await?;
        push.answer(name, answer);
    }
    let away = device(world, owner, "away").await?;
    two_runs(&still).await?;
    sqlx::query("DELETE FROM push_subscriptions WHERE id = $1").bind(away).execute(&world.pool).await?;

    let report = deliver(&notify_as(world, as_notify(world.database_url())?, &push).await?).await?;

    assert_eq!(
        (report.delivered, report.gone, report.postponed, report.given_up, report.obsolete),
        (1, 1, 1, 1, 1)
    );
    let kept: Vec<String> = sqlx::query_scalar("SELECT device_name FROM push_subscriptions ORDER BY 1")
        .fetch_all(&world.pool)
        .await?;
    assert_eq!(kept, ["accepted", "busy", "rejected"]);
    Ok(())
}

#[tokio::test]
async fn the_role_can_read_no_token_and_change_nothing_else() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    refused_streamer(world, "aria").await?;
    let mut notify = PgConnection::connect_with(&as_notify(world.database_url())?).await?;
    let user: String = sqlx::query_scalar("SELECT current_user::text").fetch_one(&mut notify).await?;
    assert_eq!(user, "token_refresh_notify");
    for sql in [
        "SELECT access_token_encrypted FROM streamers",
        "SELECT refresh_token_encrypted FROM streamers",
        "SELECT * FROM streamers",
        "SELECT s FROM streamers s",
        "SELECT id FROM streamers WHERE refresh_token_encrypted LIKE 'a%'",
        "UPDATE streamers SET is_active = true RETURNING refresh_token_encrypted",
        "UPDATE streamers SET is_active = true",
        "DELETE FROM streamers",
        "COPY streamers TO STDOUT",
        "SELECT * FROM token_refresh.streamers",
        "SELECT * FROM token_refresh.refreshes",
        "SELECT * FROM token_refresh.deactivations",
        "SELECT * FROM users",
        "SELECT * FROM campaigns",
        "SELECT * FROM campaign_memberships",
        "INSERT INTO token_refresh.outbox DEFAULT VALUES",
        "DELETE FROM token_refresh.outbox",
        "UPDATE token_refresh.outbox SET subscription_id = gen_random_uuid()",
        "INSERT INTO push_subscriptions DEFAULT VALUES",
        "UPDATE push_subscriptions SET endpoint = 'https://push.example.com/other'",
        "UPDATE notification_preferences SET push_enabled = true",
        "DELETE FROM token_refresh._sqlx_migrations",
        "CREATE TABLE token_refresh.mine ()",
    ] {
        refused(&mut notify, sql).await;
    }
    // What it may is what it needs.
    sqlx::raw_sql(
        "SELECT id, is_active FROM streamers; SELECT * FROM push_subscriptions;
                   SELECT * FROM notification_preferences; SELECT * FROM token_refresh.outbox",
    )
    .execute(&mut notify)
    .await?;
    Ok(())
}

/// Migrated by a role that may create no roles: it says what to run, and that is enough.
#[tokio::test]
async fn a_migration_without_the_right_to_create_roles_says_what_to_run() -> Result<()> {
    // A server of its own, on which no other test has created the role.
    let postgres = Postgres::own(Settings::default()).await?;
    let database = postgres.create_empty().await?;
    let superuser = PgPool::connect(database.url()).await?;
    let name: String = sqlx::query_scalar("SELECT current_database()::text").fetch_one(&superuser).await?;
    sqlx::raw_sql(AssertSqlSafe(format!(
        "CREATE ROLE app LOGIN; ALTER DATABASE {name} OWNER TO app; ALTER SCHEMA public OWNER TO app"
    )))
    .execute(&superuser)
    .await?;
    let app = database.url().parse::<PgConnectOptions>()?.username("app");

    migrate(&app, MissingTables::Create).await?;
    migrate(&app, MissingTables::Create).await?;

    assert!(PgConnection::connect_with(&as_notify(database.url())?).await.is_err(), "there is no such role");
    sqlx::raw_sql("CREATE ROLE token_refresh_notify NOLOGIN").execute(&superuser).await?;
    let mut app = PgConnection::connect_with(&app).await?;
    sqlx::raw_sql("CALL token_refresh.grant_notify()")
        .execute(&mut app)
        .await
        .context("as the tables' owner")?;
    sqlx::raw_sql("CALL token_refresh.grant_notify()").execute(&mut app).await.context("once more")?;
    let mut notify = PgConnection::connect_with(&as_notify(database.url())?).await?;
    sqlx::raw_sql("SELECT id FROM token_refresh.outbox").execute(&mut notify).await?;
    refused(&mut notify, "SELECT refresh_token_encrypted FROM streamers").await;
    Ok(())
}

/// Roles belong to the whole server: databases that are migrated at once all want to create it.
#[tokio::test]
async fn several_databases_migrate_at_once() -> Result<()> {
    let postgres = Postgres::own(Settings::default()).await?;
    let mut databases = Vec::new();
    for _ in 0..4 {
        databases.push(postgres.create_empty().await?);
    }
    let options: Vec<PgConnectOptions> =
        databases.iter().map(|database| database.url().parse()).collect::<Result<_, _>>()?;
    let (a, b, c, d) = tokio::join!(
        migrate(&options[0], MissingTables::Create),
        migrate(&options[1], MissingTables::Create),
        migrate(&options[2], MissingTables::Create),
        migrate(&options[3], MissingTables::Create)
    );
    for done in [a, b, c, d] {
        done?;
    }
    for database in &databases {
        let mut notify = PgConnection::connect_with(&as_notify(database.url())?).await?;
        sqlx::raw_sql("SELECT id FROM token_refresh.outbox").execute(&mut notify).await?;
    }
    Ok(())
}
