//! What functions and commands read of a database in which nearly all authorizations are over: about as many rows as there are
//! due, and no table as a whole. So none costs more where the tables are larger.

use std::fmt::Write as _;
use std::fs::{read, read_dir};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use tokens_local::binaries::workspace;
use tokens_local::lambda::Function;
use tokens_local::world::{NewStreamer, World};
use tokens_push::VapidKey;
use tokens_tests::people::{device, refused_for_good, sender, user};
use tokens_tests::requests::{authorization_path, check_path, event, membership};
use tokens_tests::{binary, tokens, world};

const TIME_LEFT: Duration = Duration::from_mins(5);

/// Streamers whose authorizations ended in the last 90 days, and what 30 days of them leave behind.
const PAST: &str = "
    SET session_replication_role = replica; -- their triggers would check references that are all good
    INSERT INTO users (id, display_name) SELECT md5('user ' || n)::uuid, 'User ' || n FROM generate_series(1, 20000) n;
    INSERT INTO campaigns (id, name, owner_id, created_at, updated_at)
    SELECT md5('campaign ' || n)::uuid, 'Campaign ' || n, md5('user ' || n)::uuid, now(), now() FROM generate_series(1, 500) n;
    INSERT INTO streamers (id, user_id, twitch_user_id, twitch_login, twitch_display_name, access_token_encrypted,
        refresh_token_encrypted, is_active, token_expires_at, created_at, updated_at)
    SELECT md5('streamer ' || n)::uuid, md5('user ' || n)::uuid, n, 'streamer_' || n, 'Streamer ' || n, repeat('a', 128),
        repeat('r', 160), n % 50 <> 1, now() - n % 90 * interval '1 day', now(), now() FROM generate_series(1, 20000) n;
    INSERT INTO campaign_memberships (campaign_id, streamer_id, status, invited_at, created_at, updated_at,
        poll_authorization_granted_at, poll_authorization_expires_at)
    SELECT md5('campaign ' || (n * 7 + k) % 500 + 1)::uuid, md5('streamer ' || n)::uuid, 'ACTIVE', now(), now(), now(),
        until - interval '12 hours', until
    FROM generate_series(1, 20000) n, generate_series(1, 2) k, LATERAL (SELECT now() - interval '2 days'
        - n % 88 * interval '1 day' AS until) ended WHERE k = 1 OR n % 2 = 0;
    INSERT INTO token_refresh.streamers (streamer_id, fence, validated_at) SELECT md5('streamer ' || n)::uuid, 9, now()
    FROM generate_series(1, 20000) n;
    INSERT INTO token_refresh.refreshes (streamer_id, fence, trigger, started_at, ended_at, outcome)
    SELECT md5('streamer ' || n)::uuid, fence, 'planned', at, at, 'refreshed' FROM generate_series(1, 20000) n,
        generate_series(1, 3) fence, LATERAL (SELECT now() - interval '2 days' - n % 27 * interval '1 day' AS at) refresh;
    INSERT INTO token_refresh.deactivations (streamer_id, deactivated_at)
    SELECT md5('streamer ' || n)::uuid, now() - interval '2 days' - n % 27 * interval '1 day' FROM generate_series(1, 20000) n;
    INSERT INTO push_subscriptions (user_id, endpoint, p256dh, auth, created_at, updated_at)
    SELECT md5('user ' || n)::uuid, 'https://push.example/' || n, repeat('k', 87), repeat('s', 22), now(), now()
    FROM generate_series(1, 20000) n;
    INSERT INTO notification_preferences (user_id, created_at, updated_at)
    SELECT md5('user ' || n)::uuid, now(), now() FROM generate_series(1, 20000) n;
    INSERT INTO token_refresh.sessions (membership_id, granted_at, streamer_id, campaign_id, ends_at)
    SELECT id, poll_authorization_granted_at, streamer_id, campaign_id, poll_authorization_expires_at
    FROM campaign_memberships WHERE poll_authorization_expires_at BETWEEN now() - interval '29 days' AND now();
    INSERT INTO token_refresh.outbox (subscription_id, user_id, user_name, streamer_id, streamer_name, created_at, state,
        attempt, next_attempt_at, settled_at)
    SELECT p.id, p.user_id, 'User', s.id, 'Streamer', at, 'delivered', 1, at, at
    FROM push_subscriptions p JOIN streamers s USING (user_id), LATERAL (SELECT now() - interval '3 days' AS at) settled;
    RESET session_replication_role;
    ANALYZE;
    SELECT pg_stat_reset()";

/// Streamers who are authorized and due now.
const DUE: i64 = 50;

/// What may be read of a table: so many rows for each that is due. The tables have 20,000 and more.
const ROWS_FOR_EACH: i64 = 10;

/// Runs this, and fails if more was read of a table than its share. All is counted once its connections are closed.
async fn reads_little(world: &World, what: &str, work: impl Future<Output = Result<()>>) -> Result<()> {
    let mut connection = PgConnection::connect(world.database_url()).await?;
    sqlx::raw_sql("SELECT pg_stat_reset()").execute(&mut connection).await?;
    work.await?;
    let others = "SELECT count(*) FROM pg_stat_activity
                  WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
    while sqlx::query_scalar::<_, i64>(others).fetch_one(&mut connection).await? > 0 {
        tokio::task::yield_now().await;
    }
    let tables: Vec<(String, i64, i64)> = sqlx::query_as(
        "SELECT relid::regclass::text, seq_tup_read,
                (SELECT coalesce(sum(idx_tup_read), 0)::bigint FROM pg_stat_user_indexes i WHERE i.relid = t.relid)
         FROM pg_stat_user_tables t JOIN pg_class c ON c.oid = t.relid WHERE c.reltuples >= 5000",
    )
    .fetch_all(&mut connection)
    .await?;
    ensure!(tables.len() >= 10, "only these tables are large: {tables:?}");
    ensure!(tables.iter().any(|(_, scanned, found)| scanned + found > 0), "{what}: nothing was read");
    for (table, scanned, found) in tables {
        if scanned + found > DUE * ROWS_FOR_EACH {
            let plans = scans(&mut connection, &table).await?;
            bail!(
                "{what} reads {scanned} rows of {table} in scans and {found} by its indexes, for {DUE} that are due. {plans}"
            );
        }
    }
    Ok(())
}

/// The plans of the statements that scan this table, whatever their parameters.
async fn scans(connection: &mut PgConnection, table: &str) -> Result<String> {
    let mut plans = String::new();
    sqlx::raw_sql("SET plan_cache_mode = force_generic_plan").execute(&mut *connection).await?;
    for file in read_dir(workspace().join("shared/store/.sqlx"))? {
        let checked: Value = serde_json::from_slice(&read(file?.path())?)?;
        let (statement, describe) = (checked["query"].as_str().context("a statement")?, &checked["describe"]);
        let count = describe["parameters"]["Left"].as_array().map_or(0, Vec::len);
        let values = if count == 0 { String::new() } else { format!("({})", vec!["NULL"; count].join(", ")) };
        let explain = format!("DEALLOCATE ALL; PREPARE one AS {statement}; EXPLAIN EXECUTE one{values}");
        let Ok(lines) = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_all(&mut *connection).await else {
            continue;
        };
        let plan: Vec<String> = lines.iter().map(|line| line.try_get(0)).collect::<Result<_, _>>()?;
        let scan = format!("Seq Scan on {}", table.trim_start_matches("token_refresh."));
        if statement.contains(table) && plan.iter().any(|line| line.contains(&scan)) {
            write!(plans, "\n\n{statement}\n\n{}", plan.join("\n"))?;
        }
    }
    Ok(plans)
}

#[tokio::test]
async fn no_more_is_read_where_the_tables_are_larger() -> Result<()> {
    let world = world().await?;
    let due = world.add_all((1..DUE).map(|n| NewStreamer::due(format!("due{n}"))).collect()).await?;
    let refused = world.add(NewStreamer::due("refused")).await?;
    world.twitch.disconnect("refused")?;
    refused_for_good(&world, refused).await?;
    let user = user(&world, "refused").await?;
    device(&world, user, "phone").await?;
    sqlx::query("UPDATE streamers SET user_id = $2 WHERE id = $1")
        .bind(refused.0)
        .bind(user)
        .execute(&world.pool)
        .await?;
    let key = membership(&world, due[0]).await?;
    sqlx::raw_sql(PAST).execute(&world.pool).await?;
    world.pool.close().await;

    let environment: Vec<_> = world.environment().into_iter().chain(sender(&VapidKey::generate()?)).collect();
    let invoke = async |function: &str, event: Value| {
        let function = Function::start(&binary(function).await?, &environment, Stdio::null()).await?;
        let answer = function.invoke(event, TIME_LEFT).await.map_err(|error| anyhow::anyhow!("{error}"))?;
        function.kill().await?;
        anyhow::Ok(answer)
    };
    for (function, event, answered) in [
        ("scheduled-refresh", json!({"trigger": "planned"}), "\"success\":49"),
        ("scheduled-refresh", json!({"trigger": "sweep"}), "\"skipped\":49"),
        ("notify", json!({"trigger": "timer"}), "1"),
        ("grant-refresh", event("POST", &authorization_path(key)), "authorized"),
        ("grant-refresh", event("GET", &authorization_path(key)), "authorized"),
        ("health-check", event("POST", &check_path(key.campaign)), "healthy"),
        ("grant-refresh", event("DELETE", &authorization_path(key)), "204"),
    ] {
        let what = format!("{function} with {}", event["rawPath"].as_str().unwrap_or(&event.to_string()));
        reads_little(&world, &what, async {
            let answer = invoke(function, event).await?.to_string();
            ensure!(answer.contains(answered), "{what}: {answer}");
            Ok(())
        })
        .await?;
    }
    let id = due[1].to_string();
    for arguments in [
        &["status"][..],
        &["history", &id],
        &["refresh", &id, "--force"],
        &["reactivate", "--since", "1h", "--dry-run"],
    ] {
        reads_little(&world, &arguments.join(" "), async {
            let printed = tokens(&environment, arguments).await?;
            ensure!(printed.code == 0 && !printed.stdout.is_empty(), "{arguments:?}: {printed:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}
