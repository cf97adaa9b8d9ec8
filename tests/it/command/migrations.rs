//! The migrations, on an empty database and on those that the existing application has.

use adapters::store::{Database, migrate};
use anyhow::{Context as _, Result};
use end_to_end::cycles::planned;
use end_to_end::{Still, run};
use local::postgres::Postgres;
use local::world::NewStreamer;
use sqlx::PgPool;

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

const THREE_COLUMNS: &str = "ALTER TABLE streamers ADD token_expires_at timestamptz,
    ADD last_token_refresh_at timestamptz, ADD token_refresh_failed_at timestamptz;
    UPDATE streamers SET token_expires_at = '2026-11-23 20:00:00+00'";

async fn migrated(before: &[&'static str]) -> Result<(local::postgres::Database, PgPool)> {
    let database = Postgres::shared().await?.create_empty().await?;
    let pool = PgPool::connect(database.url()).await?;
    for sql in before {
        sqlx::raw_sql(*sql).execute(&pool).await?;
    }
    let options = database.url().parse()?;
    migrate(&options).await?;
    migrate(&options).await?;
    Database::open(options).await?;
    Ok((database, pool))
}

#[tokio::test]
async fn an_empty_database() -> Result<()> {
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
    let (a, b, c) = tokio::join!(migrate(&options), migrate(&options), migrate(&options));
    a?;
    b?;
    c?;
    Ok(())
}

/// Between `tokens migrate` and `sam deploy`: a migration has to suit them.
#[tokio::test]
async fn who_is_at_work_goes_on_when_the_schema_becomes_newer() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.add(NewStreamer::due("someone")).await?;
    let service = world.service(&[]).await?;
    sqlx::query("UPDATE token_refresh._sqlx_migrations SET version = version + 1000")
        .execute(&world.pool)
        .await?;
    assert_eq!(run(&service, &planned()).await.report.success, 1);
    let refused = world.service(&[]).await.err().context("it is too old")?;
    assert!(refused.to_string().contains("deploy the program that migrated it"), "{refused}");
    Ok(())
}

/// The pages of a cycle walk the index: no sort, no scan of a whole table.
#[tokio::test]
async fn a_page_reads_no_more_than_it_returns() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.add_all((0..3_000).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    sqlx::query("UPDATE campaign_memberships SET poll_authorization_expires_at = now() - random() * interval '90 days'
                 WHERE random() < 0.9").execute(&world.pool).await?;
    sqlx::raw_sql("ANALYZE").execute(&world.pool).await?;
    let plan = local::plans::page(&world.pool, still.now()).await?;
    assert!(plan.contains("token_refresh_authorized_idx"), "{plan}");
    assert!(!plan.contains("Seq Scan") && !plan.contains("Sort"), "{plan}");
    Ok(())
}
