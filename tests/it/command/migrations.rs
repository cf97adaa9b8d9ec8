//! The migrations, on an empty database and on those that the existing application has.

use std::fs::{DirEntry, read, read_dir, read_to_string};

use anyhow::{Context as _, Result};
use serde_json::Value;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgPool, SqlSafeStr as _};
use tokens_domain::Clock as _;
use tokens_domain::SystemClock;
use tokens_local::binaries::workspace;
use tokens_local::postgres::{Postgres, Settings};
use tokens_local::world::NewStreamer;
use tokens_store::{Database, MissingTables, SchemaVersion, migrate};
use tokens_tests::cycles::planned;
use tokens_tests::roles::hostile_search_path;
use tokens_tests::{Sql as _, Still, run};

/// The application's tables as its own migrations made them, before it knew of refreshes.
const APPLICATION: &str = "
    CREATE TABLE users (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), display_name varchar(255) NOT NULL,
        email varchar(255) UNIQUE, created_at timestamptz DEFAULT now(), updated_at timestamptz DEFAULT now(),
        theme varchar(20));
    CREATE TABLE streamers (id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        user_id uuid REFERENCES users ON DELETE CASCADE, twitch_user_id varchar(255) NOT NULL UNIQUE,
        twitch_login varchar(255) NOT NULL, twitch_display_name varchar(255) NOT NULL,
        access_token_encrypted text, refresh_token_encrypted text, scopes jsonb,
        is_active boolean NOT NULL DEFAULT true, created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,
        profile_image_url text, broadcaster_type varchar(255));
    CREATE TABLE campaigns (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name varchar(255) NOT NULL,
        description text, owner_id uuid NOT NULL REFERENCES users, created_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL, is_active boolean DEFAULT true, invitation_code text);
    CREATE TABLE campaign_memberships (id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        campaign_id uuid REFERENCES campaigns, streamer_id uuid REFERENCES streamers,
        status text DEFAULT 'PENDING' CHECK (status IN ('PENDING', 'ACTIVE')), invited_at timestamptz NOT NULL,
        accepted_at timestamptz, created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,
        poll_authorization_granted_at timestamptz, poll_authorization_expires_at timestamptz,
        UNIQUE (campaign_id, streamer_id));
    INSERT INTO streamers (twitch_user_id, twitch_login, twitch_display_name, refresh_token_encrypted, created_at,
        updated_at) VALUES ('1', 'kept', 'Kept', 'as it was', now(), now());";

const NOTIFICATIONS: &str = "
    CREATE TABLE push_subscriptions (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), user_id uuid REFERENCES users,
        endpoint text UNIQUE NOT NULL, p256dh text, auth text NOT NULL, user_agent text, device_name varchar(100),
        created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL, last_used_at timestamptz);
    CREATE TABLE notification_preferences (id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        user_id uuid UNIQUE REFERENCES users, push_enabled boolean DEFAULT true,
        token_refresh_failed boolean DEFAULT true, created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL)";

const THREE_COLUMNS: &str = "ALTER TABLE streamers ADD token_expires_at timestamptz,
    ADD last_token_refresh_at timestamptz, ADD token_refresh_failed_at timestamptz;
    UPDATE streamers SET token_expires_at = '2026-11-23 20:00:00+00'";

async fn migrated(before: &[&'static str]) -> Result<(tokens_local::postgres::Database, PgPool)> {
    let database = Postgres::shared().await?.create_empty().await?;
    let pool = PgPool::connect(database.url()).await?;
    for sql in before {
        sqlx::raw_sql(*sql).execute(&pool).await?;
    }
    let options = database.url().parse()?;
    migrate(&options, MissingTables::Create).await?;
    migrate(&options, MissingTables::Create).await?;
    Database::open(options).await?;
    Ok((database, pool))
}

#[tokio::test]
async fn an_empty_database_is_given_the_applications_tables() -> Result<()> {
    let (_database, pool) = migrated(&[]).await?;
    let tables: Vec<String> =
        sqlx::query_scalar("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
            .fetch_all(&pool)
            .await?;
    assert_eq!(
        tables,
        [
            "campaign_memberships",
            "campaigns",
            "notification_preferences",
            "push_subscriptions",
            "streamers",
            "users"
        ]
    );
    Ok(())
}

#[tokio::test]
async fn the_applications_database_with_and_without_the_three_columns() -> Result<()> {
    for before in [&[APPLICATION][..], &[APPLICATION, THREE_COLUMNS]] {
        let (_database, pool) = migrated(before).await?;
        let (token, expiry): (String, bool) =
            sqlx::query_as("SELECT refresh_token_encrypted, token_expires_at IS NOT NULL FROM streamers")
                .fetch_one(&pool)
                .await?;
        assert_eq!(token, "as it was");
        assert_eq!(expiry, before.len() == 2);
    }
    Ok(())
}

#[tokio::test]
async fn several_at_once() -> Result<()> {
    let database = Postgres::shared().await?.create_empty().await?;
    let options = database.url().parse()?;
    let (a, b, c) = tokio::join!(
        migrate(&options, MissingTables::Create),
        migrate(&options, MissingTables::Create),
        migrate(&options, MissingTables::Create)
    );
    a?;
    b?;
    c?;
    Ok(())
}

/// Between `tokens migrate` and `sam deploy`, and after a deployment that failed and was rolled back: processes go on, and new ones
/// start, each under its own login.
#[tokio::test]
async fn an_older_program_works_on_a_newer_schema_unless_the_database_names_a_minimum_above_it() -> Result<()>
{
    let still = Still::new().await?;
    let world = &still.world;
    world.add(NewStreamer::due("someone")).await?;
    let running = world.service(&[]).await?;
    let newest = world.count("UPDATE token_refresh._sqlx_migrations SET version = version + 1000
             WHERE version = (SELECT max(version) FROM token_refresh._sqlx_migrations) RETURNING version - 1000").await?;
    assert_eq!(run(&running, &planned()).await.report.success, 1);

    let options: PgConnectOptions = world.database_url().parse()?;
    world.service(&[]).await?;
    let version = SchemaVersion { database: newest + 1000, program: newest };
    assert_eq!(migrate(&options, MissingTables::Refuse).await?, version);
    for (named, is_accepted) in [("$1", true), ("$1 + 1", false)] {
        let minimum = named.replace("$1", &newest.to_string());
        let function = format!(
            "CREATE OR REPLACE FUNCTION token_refresh.minimum_version() RETURNS bigint
            LANGUAGE sql SET search_path = pg_catalog, pg_temp AS 'SELECT ({minimum})::bigint'"
        );
        sqlx::raw_sql(AssertSqlSafe(function)).execute(&world.pool).await?;
        let opened = Database::open(options.clone()).await.map(|_| ());
        for outcome in [opened, migrate(&options, MissingTables::Refuse).await.map(|_| ())] {
            match outcome {
                Ok(()) => assert!(is_accepted, "a minimum of {minimum}"),
                Err(refused) => {
                    assert!(!is_accepted, "a minimum of {minimum}: {refused}");
                    let says = format!(
                        "needs programs of version {} or newer, and this one is of version {newest}: \
                        deploy the program that migrated it",
                        newest + 1
                    );
                    assert!(refused.to_string().contains(&says), "{refused}");
                }
            }
        }
    }
    world.sql("DROP FUNCTION token_refresh.minimum_version()").await?;
    let another = Database::open(options).await.map(|_| ()).unwrap_err();
    assert!(another.to_string().contains("does not follow this program's"), "{another}");
    Ok(())
}

#[tokio::test]
async fn any_login_may_read_the_minimum_version() -> Result<()> {
    let (_database, pool) =
        migrated(&["ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC"]).await?;
    let (may, minimum): (bool, i64) = sqlx::query_as(
        "SELECT has_function_privilege('pg_monitor', 'token_refresh.minimum_version()', 'EXECUTE'),
                token_refresh.minimum_version()",
    )
    .fetch_one(&pool)
    .await?;
    assert!(may);
    assert_eq!(minimum, 5, "the first released version's");
    Ok(())
}

/// On a migrated database, with nothing on the search path.
async fn without_a_search_path() -> Result<(Still, PgConnection)> {
    let still = Still::new().await?;
    let mut connection = PgConnection::connect(still.world.database_url()).await?;
    sqlx::raw_sql("SET search_path = ''").execute(&mut connection).await?;
    Ok((still, connection))
}

#[tokio::test]
async fn every_statement_names_its_schema() -> Result<()> {
    let (_still, mut connection) = without_a_search_path().await?;
    let files: Vec<_> = read_dir(workspace().join("shared/store/.sqlx"))?.collect::<Result<_, _>>()?;
    assert!(files.len() > 30);
    for file in files {
        let checked: Value = serde_json::from_slice(&read(file.path())?)?;
        let statement = checked["query"].as_str().context("a statement")?;
        let prepared = connection.prepare(AssertSqlSafe(statement).into_sql_str()).await;
        prepared.with_context(|| format!("of {statement}"))?;
    }
    Ok(())
}

/// Those from 0006 on by their texts, which run without a search path. Those before are released: they run with the
/// application's schema alone on it.
#[tokio::test]
async fn migrations_and_functions_name_their_schemas() -> Result<()> {
    let (_still, mut connection) = without_a_search_path().await?;
    let mut files: Vec<_> = read_dir(workspace().join("migrations"))?.collect::<Result<_, _>>()?;
    files.sort_by_key(DirEntry::file_name);
    for file in files.iter().filter(|file| file.file_name() > *"0006") {
        let statements = read_to_string(file.path())?;
        let ran = sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut connection).await;
        ran.with_context(|| format!("{} a second time", file.path().display()))?;
    }
    let unpinned: Vec<String> = sqlx::query_scalar(
        "SELECT proname::text FROM pg_proc WHERE pronamespace = 'token_refresh'::regnamespace
           AND NOT coalesce(proconfig, '{}') @> '{\"search_path=pg_catalog, pg_temp\"}'",
    )
    .fetch_all(&mut connection)
    .await?;
    assert_eq!(unpinned, [""; 0]);
    Ok(())
}

/// The tables that the search path finds first belong to another program.
#[tokio::test]
async fn application_tables_are_found_whatever_the_search_path_is() -> Result<()> {
    let postgres = Postgres::own(Settings::default()).await?;
    let database = postgres.create_empty().await?;
    let pool = PgPool::connect(database.url()).await?;
    sqlx::raw_sql(APPLICATION).execute(&pool).await?;
    sqlx::raw_sql(NOTIFICATIONS).execute(&pool).await?;
    sqlx::raw_sql("CREATE ROLE owner LOGIN SUPERUSER").execute(&pool).await?;
    hostile_search_path(&pool, "owner").await?;
    let options = database.url().parse::<PgConnectOptions>()?.username("owner");

    migrate(&options, MissingTables::Refuse).await?;

    let columns = "SELECT array_agg(table_schema::text) FROM information_schema.columns
                   WHERE column_name = 'token_expires_at'";
    assert_eq!(sqlx::query_scalar::<_, Vec<String>>(columns).fetch_one(&pool).await?, ["public"]);
    let indexes =
        "SELECT DISTINCT schemaname::text FROM pg_indexes WHERE indexname LIKE 'token\\_refresh\\_%'";
    assert_eq!(sqlx::query_scalar::<_, String>(indexes).fetch_all(&pool).await?, ["public"]);
    Database::open(options).await?;
    Ok(())
}

/// Runs the migrations up to this one.
async fn migrate_to(version: i64, connection: &mut PgConnection) -> Result<()> {
    let all = Migrator::new(workspace().join("migrations")).await?;
    let some = all.iter().filter(|migration| migration.version <= version).cloned().collect();
    let mut some = Migrator { migrations: some, ..Migrator::DEFAULT };
    some.dangerous_set_table_name("token_refresh._sqlx_migrations");
    some.create_schema("token_refresh");
    Ok(some.run(connection).await?)
}

/// The version before took the tables that its search path found first: its own, in another schema.
#[tokio::test]
async fn an_installation_in_another_schema_is_moved_to_the_applications_tables() -> Result<()> {
    let database = Postgres::shared().await?.create_empty().await?;
    let pool = PgPool::connect(database.url()).await?;
    sqlx::raw_sql(APPLICATION).execute(&pool).await?;
    sqlx::raw_sql(NOTIFICATIONS).execute(&pool).await?;
    let mut astray = PgConnection::connect(database.url()).await?;
    sqlx::raw_sql("CREATE SCHEMA other; SET search_path = other").execute(&mut astray).await?;
    migrate_to(5, &mut astray).await?;
    sqlx::raw_sql(
        "INSERT INTO other.streamers (twitch_user_id, twitch_login, twitch_display_name, created_at, updated_at)
             VALUES ('9', 'astray', 'Astray', now(), now());
         INSERT INTO token_refresh.streamers (streamer_id, fence) SELECT id, 1 FROM other.streamers",
    )
    .execute(&mut astray)
    .await?;

    migrate(&database.url().parse()?, MissingTables::Refuse).await?;

    sqlx::raw_sql(
        "INSERT INTO token_refresh.streamers (streamer_id, fence) SELECT id, 1 FROM public.streamers",
    )
    .execute(&pool)
    .await?;
    let kept: i64 =
        sqlx::query_scalar("SELECT count(*) FROM token_refresh.streamers").fetch_one(&pool).await?;
    assert_eq!(kept, 1);
    sqlx::query("SELECT token_expires_at FROM public.streamers").execute(&pool).await?;
    Ok(())
}

/// A database at this version.
async fn migrated_to(version: i64) -> Result<(tokens_local::postgres::Database, PgPool)> {
    let database = Postgres::shared().await?.create_empty().await?;
    let pool = PgPool::connect(database.url()).await?;
    sqlx::raw_sql(APPLICATION).execute(&pool).await?;
    sqlx::raw_sql(NOTIFICATIONS).execute(&pool).await?;
    migrate_to(version, &mut PgConnection::connect(database.url()).await?).await?;
    Ok((database, pool))
}

/// Its application drops its tables one by one, as its `migration:rollback` does, and makes them again, as it knows them.
async fn fresh(pool: &PgPool) -> Result<()> {
    for table in [
        "notification_preferences",
        "push_subscriptions",
        "campaign_memberships",
        "campaigns",
        "streamers",
        "users",
    ] {
        sqlx::raw_sql(AssertSqlSafe(format!("DROP TABLE {table}"))).execute(pool).await?;
    }
    sqlx::raw_sql(APPLICATION).execute(pool).await?;
    sqlx::raw_sql(NOTIFICATIONS).execute(pool).await?;
    Ok(())
}

#[tokio::test]
async fn what_the_applications_migrations_drop_is_missed_and_restored() -> Result<()> {
    for version in [10, i64::MAX] {
        let (database, pool) = migrated_to(version).await?;
        let options: PgConnectOptions = database.url().parse()?;
        migrate(&options, MissingTables::Refuse).await?;
        let remember = "INSERT INTO token_refresh.streamers (streamer_id, fence) SELECT id, 1 FROM streamers";
        sqlx::raw_sql(remember).execute(&pool).await?;
        let ours = Database::open(options.clone()).await?;
        assert_eq!(ours.tables().await?.missing, [""; 0]);
        let notify = "SELECT string_agg(relname || relacl::text, ' ' ORDER BY relname) FROM pg_class
                      WHERE relacl::text LIKE '%token_refresh_notify%' AND relnamespace = 'public'::regnamespace";
        let before: String = sqlx::query_scalar(notify).fetch_one(&pool).await?;

        fresh(&pool).await?;

        let tables = ours.tables().await?;
        assert_eq!(tables.missing.len(), 8, "{tables:?}");
        assert_eq!(tables.faults.len(), 3, "{tables:?}");
        assert!(tables.faults[0].ends_with("which `tokens migrate` adds"), "{tables:?}");
        migrate(&options, MissingTables::Refuse).await?;
        let tables = ours.tables().await?;
        assert_eq!((tables.missing, tables.faults), (vec![], vec![]));
        assert_eq!(sqlx::query_scalar::<_, String>(notify).fetch_one(&pool).await?, before);
        sqlx::raw_sql(remember).execute(&pool).await?;
        // Of those that were there before.
        assert_eq!(ours.forget_gone(SystemClock.now()).await?, 1);
    }
    Ok(())
}

#[tokio::test]
async fn an_index_that_the_application_has_is_not_made_again() -> Result<()> {
    let database = Postgres::shared().await?.create_empty().await?;
    let pool = PgPool::connect(database.url()).await?;
    sqlx::raw_sql(APPLICATION).execute(&pool).await?;
    sqlx::raw_sql(NOTIFICATIONS).execute(&pool).await?;
    sqlx::raw_sql(
        "CREATE INDEX theirs ON push_subscriptions (user_id);
         CREATE INDEX also ON campaign_memberships (streamer_id, poll_authorization_expires_at) WHERE status = 'ACTIVE'",
    )
    .execute(&pool)
    .await?;
    let options: PgConnectOptions = database.url().parse()?;
    let ours = async || -> Result<Vec<String>> {
        migrate(&options, MissingTables::Refuse).await?;
        let names =
            "SELECT indexname::text FROM pg_indexes WHERE indexname LIKE 'token\\_refresh\\_%' ORDER BY 1";
        Ok(sqlx::query_scalar(names).fetch_all(&pool).await?)
    };
    assert_eq!(ours().await?, ["token_refresh_authorized_idx", "token_refresh_streamers_user_idx"]);
    let looked = Database::open(options.clone()).await?;
    assert_eq!(looked.tables().await?.missing, [""; 0]);
    sqlx::raw_sql("DROP INDEX theirs").execute(&pool).await?;
    assert_eq!(
        looked.tables().await?.missing,
        ["the index token_refresh_push_subscriptions_idx on public.push_subscriptions"]
    );
    assert_eq!(ours().await?.len(), 3);
    // One of our name on a table that was put aside does not serve.
    sqlx::raw_sql(
        "DROP INDEX token_refresh_streamers_user_idx; CREATE TABLE streamers_old (user_id uuid);
         CREATE INDEX token_refresh_streamers_user_idx ON streamers_old (user_id)",
    )
    .execute(&pool)
    .await?;
    assert_eq!(
        looked.tables().await?.missing,
        ["the index token_refresh_streamers_user_idx on public.streamers"]
    );
    ours().await?;
    assert_eq!(looked.tables().await?.missing, [""; 0]);
    Ok(())
}

/// The logins were given their rights on the version before.
#[tokio::test]
async fn a_role_that_may_update_our_streamers_may_delete_them() -> Result<()> {
    let postgres = Postgres::own(Settings::default()).await?;
    let database = postgres.create_empty().await?;
    let pool = PgPool::connect(database.url()).await?;
    migrate_to(10, &mut PgConnection::connect(database.url()).await?).await?;
    sqlx::raw_sql(
        "CREATE ROLE \"the app\"; CREATE ROLE viewer; GRANT UPDATE ON token_refresh.streamers TO \"the app\";
         GRANT SELECT ON token_refresh.streamers TO viewer",
    )
    .execute(&pool)
    .await?;
    migrate(&database.url().parse()?, MissingTables::Refuse).await?;
    let may: (bool, bool) = sqlx::query_as(
        "SELECT has_table_privilege('the app', 'token_refresh.streamers', 'DELETE'),
                has_table_privilege('viewer', 'token_refresh.streamers', 'DELETE')",
    )
    .fetch_one(&pool)
    .await?;
    assert_eq!(may, (true, false));
    Ok(())
}

#[tokio::test]
async fn tables_that_are_not_the_applications_are_named_before_anything_is_written() -> Result<()> {
    for (before, says) in [
        (
            "CREATE TABLE public.streamers (id bigint PRIMARY KEY)",
            "public.streamers.id is of the type bigint, and has to be uuid",
        ),
        ("CREATE VIEW public.streamers AS SELECT 1 AS id", "public.streamers is not a table but a view"),
    ] {
        let database = Postgres::shared().await?.create_empty().await?;
        let pool = PgPool::connect(database.url()).await?;
        sqlx::raw_sql(before).execute(&pool).await?;
        for missing in [MissingTables::Refuse, MissingTables::Create] {
            let refused = migrate(&database.url().parse()?, missing).await.err().context("refused")?;
            assert!(refused.to_string().contains(says), "{refused}");
        }
        let tables = "SELECT count(*) FROM pg_class WHERE relnamespace IN
                          ('public'::regnamespace, to_regnamespace('token_refresh')) AND relkind IN ('r', 'v')";
        assert_eq!(sqlx::query_scalar::<_, i64>(tables).fetch_one(&pool).await?, 1);
    }
    Ok(())
}
