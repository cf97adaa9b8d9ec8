//! Connections to the database that break, freeze or are spoilt: they are replaced, and fail nothing.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use chrono::{DateTime, TimeDelta};
use futures::future::join_all;
use serde_json::json;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnectOptions;
use tokens_domain::Clock as _;
use tokens_domain::MembershipKey;
use tokens_domain::SystemClock;
use tokens_domain::grant::GrantError;
use tokens_domain::health::Finding;
use tokens_domain::ports::{Outbox as _, Store as _};
use tokens_domain::schedule::Trigger;
use tokens_local::binaries::workspace;
use tokens_local::postgres::{Postgres, Settings as ServerSettings};
use tokens_local::twitch::{Gate, Settings};
use tokens_local::world::{NewStreamer, World};
use tokens_service::config::Source;
use tokens_service::{Host, Process};
use tokens_store::{Database, Lookup, PgOutbox, PgStore, Purpose};
use tokens_tests::aws::{Fault, Service, SimulatedAws};
use tokens_tests::cycles::{forced, planned};
use tokens_tests::doomed::{A_LOCK_IS_WAITED_FOR, TURN, lock, until};
use tokens_tests::people::{deactivation, device, refused_streamer};
use tokens_tests::relay::{Refusal, Relay};
use tokens_tests::requests::{host, membership, request};
use tokens_tests::{Sql as _, Still, changed, run, set_for_database, wait_for_locks};
use tokio::time::timeout;

/// As many as a process has at most.
const CONNECTIONS: usize = 4;

/// Reads something, as often as there are connections.
async fn reads(database: &Database, key: MembershipKey) -> Vec<bool> {
    let reads = join_all((0..CONNECTIONS).map(|_| database.membership(key, DateTime::UNIX_EPOCH))).await;
    reads.into_iter().map(|read| read.is_ok()).collect()
}

async fn through_a_relay(world: &World) -> Result<(Relay, Database, MembershipKey)> {
    let key = membership(world, world.add(NewStreamer::fresh("someone")).await?).await?;
    let relay = Relay::start(world)?;
    let database = Database::open(relay.options()).await?;
    assert_eq!(reads(&database, key).await, [true; CONNECTIONS]);
    Ok((relay, database, key))
}

#[tokio::test]
async fn connections_to_a_host_that_has_vanished_are_replaced() -> Result<()> {
    for is_tested_before_use in [false, true] {
        let still = Still::new().await?;
        let (relay, database, key) = through_a_relay(&still.world).await?;
        relay.freeze();
        if is_tested_before_use {
            // A connection that was idle for a second is.
            still.world.sql("SELECT pg_sleep(1.1)").await?;
        } else {
            // These may fail, and keep no connection.
            reads(&database, key).await;
        }
        assert_eq!(reads(&database, key).await, [true; CONNECTIONS], "{is_tested_before_use}");
    }
    Ok(())
}

#[tokio::test]
async fn a_standby_is_refused() -> Result<()> {
    let still = Still::new().await?;
    set_for_database(&still.world, "default_transaction_read_only = on").await?;
    let refused = still.world.service(&[]).await.err().context("nothing can be written there")?.to_string();
    assert!(refused.contains("the server takes no writes"), "{refused}");
    Ok(())
}

/// Behind a pooler the next transaction of a connection may be another client's.
#[tokio::test]
async fn nothing_is_set_beyond_a_transaction_and_nothing_to_a_login_that_has_its_limits() -> Result<()> {
    let postgres = Postgres::own(ServerSettings::default()).await?;
    let world = World::start(&postgres, Settings::default()).await?;
    world.sql("ALTER ROLE postgres SET log_statement = 'all'").await?;
    let log = postgres.server().context("a server")?.log_path();
    let key = membership(&world, world.add(NewStreamer::due("someone")).await?).await?;
    // What was set in the program's connections, of two transactions at least.
    let logged = async || -> Result<Vec<String>> {
        let before = std::fs::read_to_string(&log)?.len();
        let database = Database::open(PgConnectOptions::from_str(world.database_url())?).await?;
        database.membership(key, DateTime::UNIX_EPOCH).await?;
        run(&world.service(&[]).await?, &forced()).await;
        let text = std::fs::read_to_string(&log)?.split_off(before);
        let text = text.split(['\n', ';']).filter_map(|part| Some(part.split("SET ").nth(1)?.to_owned()));
        Ok(text.filter(|set| set.contains("timeout")).collect())
    };
    let all = logged().await?;
    assert!(all.len() > 4 && all.iter().all(|set| set.starts_with("LOCAL ")), "{all:?}");

    let logins = std::fs::read_to_string(workspace().join("infra/logins.sql"))?;
    for login in ["token_app", "token_notify"] {
        let limits = logins.lines().filter(|line| line.starts_with(&format!("ALTER ROLE {login} SET ")));
        for limit in limits.map(|line| line.replace(login, "postgres")) {
            sqlx::query(AssertSqlSafe(limit)).execute(&world.pool).await?;
        }
        assert_eq!(logged().await?, [""; 0], "nothing to {login}");
        for limit in ["lock_timeout", "idle_in_transaction_session_timeout"] {
            sqlx::query(AssertSqlSafe(format!("ALTER ROLE postgres RESET {limit}")))
                .execute(&world.pool)
                .await?;
        }
    }
    Ok(())
}

/// What a pooler in transaction mode needs: `.ci/pgbouncer/run` tries it on one.
#[tokio::test]
async fn without_a_statement_cache_nothing_has_a_name_and_all_is_in_transactions() -> Result<()> {
    let postgres = Postgres::own(ServerSettings::default()).await?;
    let world = World::start(&postgres, Settings::default()).await?;
    let key = membership(&world, world.add(NewStreamer::due("someone")).await?).await?;
    world.sql("ALTER ROLE postgres SET log_statement = 'all'").await?;
    let log = postgres.server().context("a server")?.log_path();
    let before = std::fs::read_to_string(&log)?.len();
    let url = format!("{}&statement-cache-capacity=0", world.database_url());
    let host = Host::new(world.source(&[("DATABASE_URL", &url)]), Process::default());
    everything(&host, key).await?;
    let text = std::fs::read_to_string(&log)?.split_off(before);
    let (unnamed, named) =
        (text.matches("execute <unnamed>").count(), text.matches("execute sqlx_s_").count());
    assert!(unnamed > 10 && named == 0, "{unnamed} unnamed and {named} named");
    Ok(())
}

/// As many as there are connections, at the same time: all of them have their plans afterwards.
async fn warm(host: &Host, key: MembershipKey) -> Result<()> {
    let all = join_all((0..CONNECTIONS).map(async |_| everything(host, key).await)).await;
    all.into_iter().collect()
}

/// What runs statements: requests, cycles, what follows them, what looks.
async fn everything(host: &Host, key: MembershipKey) -> Result<()> {
    let service = host.service().await?;
    let database = service.database();
    host.memberships(key.streamer).await?;
    let checkup = host.check(key.campaign, &request()).await?;
    assert!(checkup.streamers.iter().all(|one| matches!(one.finding, Finding::Ok | Finding::Refreshed)));
    host.grant(key, &request()).await?;
    let report = host.run(&forced(), None).await?;
    assert_eq!((report.failed, report.stopped), (0, None));
    service.follow_up(Trigger::Sweep, None).await;
    let now = host.now();
    database.coverage(now - TimeDelta::days(1), now).await?;
    database.history(key.streamer, 1).await?;
    database.notification_counts().await?;
    database.missing_rights().await?;
    assert!(matches!(database.find(key.streamer, now).await?, Lookup::Authorized(_)));
    PgOutbox::new(database.clone(), Arc::new(SystemClock)).claim(now, now, 1).await?;
    Ok(())
}

/// A migration of the application under a process that has prepared its statements, on all connections.
#[tokio::test]
async fn ddl_under_a_warm_process_fails_nothing() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let key = membership(world, world.add(NewStreamer::due("someone")).await?).await?;
    let host = host(world);
    warm(&host, key).await?;
    for change in [
        "ALTER TABLE streamers ALTER twitch_login TYPE text, ALTER twitch_display_name TYPE text",
        "ALTER TABLE streamers ALTER refresh_token_encrypted TYPE varchar(4000)",
        "ALTER TABLE campaigns ALTER name TYPE text",
        "ALTER TABLE campaign_memberships ALTER status TYPE varchar(20)",
        "ALTER TABLE push_subscriptions ALTER endpoint TYPE varchar(2000)",
        "ALTER TABLE token_refresh.refreshes ALTER reason TYPE varchar(9000)",
    ] {
        sqlx::query(change).execute(&world.pool).await?;
        everything(&host, key).await.context(change)?;
        warm(&host, key).await.context(change)?;
    }
    Ok(())
}

/// What a statement of the application's does to the connection that it runs on.
#[tokio::test]
async fn a_connection_that_is_spoilt_fails_nothing() -> Result<()> {
    for spoils in [
        // 26000: the statements are gone.
        "DEALLOCATE ALL",
        // 25006: the server takes no writes any more.
        "SET default_transaction_read_only = on",
    ] {
        let still = Still::new().await?;
        let world = &still.world;
        let key = membership(world, world.add(NewStreamer::due("someone")).await?).await?;
        let host = host(world);
        warm(&host, key).await?;
        for table in ["streamers", "token_refresh.streamers", "token_refresh.sessions"] {
            let function = format!(
                "CREATE OR REPLACE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN EXECUTE '{spoils}'; RETURN NULL; END $$"
            );
            let trigger = format!("CREATE TRIGGER spoil AFTER UPDATE ON {table} EXECUTE FUNCTION spoil()");
            for statement in [function, trigger] {
                sqlx::query(AssertSqlSafe(statement)).execute(&world.pool).await?;
            }
        }
        for _ in 0..3 {
            everything(&host, key).await.context(spoils)?;
            let report = timeout(Duration::from_mins(1), host.run(&forced(), None)).await??;
            assert_eq!((report.success, report.stopped), (1, None), "{spoils}");
        }
    }
    Ok(())
}

/// Ends all connections but one, and waits until they are gone.
async fn end_connections(world: &World) -> Result<()> {
    let mut connection = world.pool.acquire().await?;
    let ended: Vec<i32> = sqlx::query_scalar(
        "SELECT pid FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'",
    )
    .fetch_all(&mut *connection)
    .await?;
    let end = sqlx::query("SELECT pg_terminate_backend(pid) FROM unnest($1::integer[]) AS ended (pid)");
    end.bind(&ended).execute(&mut *connection).await?;
    let left = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY($1)";
    while sqlx::query_scalar::<_, i64>(left).bind(&ended).fetch_one(&mut *connection).await? > 0 {
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// 57P01, and then the end of the connection.
#[tokio::test]
async fn connections_that_the_server_ends_fail_nothing() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let key = membership(world, world.add(NewStreamer::due("someone")).await?).await?;
    let host = host(world);
    for _ in 0..3 {
        warm(&host, key).await?;
        end_connections(world).await?;
        everything(&host, key).await?;
    }
    Ok(())
}

/// A proxy without a server behind it, in three ways.
const REFUSALS: [Refusal; 3] = [
    Refusal::Closes,
    Refusal::Says(b"HTTP/1.1 503 Service Unavailable\r\n\r\n"),
    // `57P03`, as a server says that shuts down.
    Refusal::Says(b"E\0\0\0\x30SFATAL\0C57P03\0Mthe system is shutting down\0\0"),
];

#[tokio::test]
async fn a_server_that_is_away_at_the_beginning_is_waited_for() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let key = membership(world, world.add(NewStreamer::due("someone")).await?).await?;
    let relay = Relay::start(world)?;
    for refusal in REFUSALS {
        relay.refuse(4, refusal);
        let host = world.host(&[("DATABASE_URL", &relay.url())]);
        host.service().await.with_context(|| format!("{refusal:?}"))?;
        assert_eq!(relay.to_be_refused(), 0);
        everything(&host, key).await?;
    }
    Ok(())
}

/// For as long as there is time, which is more than a request has.
#[tokio::test]
async fn a_server_that_is_away_for_longer_is_waited_for_until_the_deadline() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let relay = Relay::start(world)?;
    let open = |seconds| {
        let give_up_at = SystemClock.monotonic() + TimeDelta::seconds(seconds);
        Database::open_until(relay.options(), Purpose::Write, Some(give_up_at), Arc::new(SystemClock))
    };
    relay.refuse(usize::MAX, Refusal::Closes);
    let refused = timeout(Duration::from_secs(10), open(1)).await?.err().context("it is away")?.to_string();
    assert!(refused.contains("can't be reached"), "{refused}");
    // Tries are two seconds apart at most: these take 23 s.
    relay.refuse(15, Refusal::Closes);
    open(60).await?;
    assert_eq!(relay.to_be_refused(), 0);
    Ok(())
}

/// The pairs have arrived, and there is nothing to write them to.
#[tokio::test]
async fn a_server_that_goes_away_under_a_cycle_costs_no_pair() -> Result<()> {
    for refusal in REFUSALS {
        let still = Still::new().await?;
        let world = &still.world;
        let logins: Vec<_> = (0..5).map(|n| format!("s{n}")).collect();
        let ids = world.add_all(logins.iter().map(NewStreamer::due).collect()).await?;
        let relay = Relay::start(world)?;
        let host = world.host(&[("DATABASE_URL", &relay.url())]);
        host.service().await?;
        let gates: Vec<_> =
            logins.iter().map(|login| world.twitch.pause_answers(login)).collect::<Result<_, _>>()?;
        let vanish = async {
            for gate in &gates {
                gate.arrived().await;
            }
            relay.refuse(6, refusal);
            end_connections(world).await?;
            gates.into_iter().for_each(Gate::release);
            anyhow::Ok(())
        };
        let cycle = forced();
        let (report, vanished) = tokio::join!(host.run(&cycle, None), vanish);
        vanished?;
        let report = report?;
        assert_eq!((report.success, report.stopped, relay.to_be_refused()), (5, None, 0), "{refusal:?}");
        for id in ids {
            assert!(world.has_live_token(id).await?, "{refusal:?}");
        }
    }
    Ok(())
}

/// It has its turn to deactivate, and the next has to wait for that.
#[tokio::test]
async fn a_transaction_of_a_host_that_has_vanished_holds_up_the_next_for_seconds() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let (streamer, user) = refused_streamer(world, "aria").await?;
    device(world, user, "phone").await?;
    wait_for_locks(world).await?;
    let relay = Relay::start(world)?;
    let database = Database::open(relay.options()).await?;
    let store = PgStore::new(database, world.config(&[])?.cipher, world.clock.clone());
    let now = still.now();
    let attempts = [deactivation(&store, streamer, now).await?];
    let mut outbox = world.pool.begin().await?;
    sqlx::query("LOCK TABLE token_refresh.outbox IN EXCLUSIVE MODE").execute(&mut *outbox).await?;
    let vanish = async {
        until(world, A_LOCK_IS_WAITED_FOR).await?;
        relay.freeze();
        outbox.rollback().await?;
        anyhow::Ok(())
    };
    let (deactivated, vanished) = tokio::join!(store.deactivate(&attempts, still.clock.monotonic()), vanish);
    vanished?;
    assert!(deactivated.is_err(), "{deactivated:?}");

    let mut next = world.pool.begin().await?;
    timeout(Duration::from_mins(1), lock(&mut next, TURN)).await??;
    assert!(world.row(streamer).await?.is_active);
    Ok(())
}

#[tokio::test]
async fn a_claim_that_is_cut_off_keeps_its_leases_and_reads_again() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.add_all((0..20).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    let relay = Relay::start(world)?;
    let host = world.host(&[("DATABASE_URL", &relay.url())]);
    // A claim says this when it has its leases and reads what they protect.
    relay.hang_up_at("AS leased (id, fence)");

    let report = Box::pin(host.run(&planned(), None)).await?;

    assert!(relay.hung_up());
    assert_eq!((report.success, report.total, report.stopped), (20, 20, None));
    Ok(())
}

/// A token is under a key that we don't have, and Secrets Manager, which might, doesn't answer.
#[tokio::test]
async fn a_stalled_secrets_manager_is_not_taken_for_the_database() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let aws = SimulatedAws::start_on(still.clock.clone()).await?;
    let (keys, others): (Vec<_>, Vec<_>) =
        world.environment().into_iter().partition(|(name, _)| name == "APP_KEY");
    aws.put_secret("keys", json!({ "APP_KEY": keys[0].1 }).to_string());
    let source: Source = changed(others, &[("TOKEN_KEYS_SECRET_ID", "keys")]).into_iter().collect();
    let host = Host::new(source, Process::on(still.clock.clone()).with_sdk(aws.access()));
    let key = membership(world, world.add(NewStreamer::due("someone")).await?).await?;
    sqlx::query("UPDATE streamers SET refresh_token_encrypted = 'v1.2027.AAAA.AAAA'")
        .execute(&world.pool)
        .await?;
    // The secrets are read when the service is opened.
    host.service().await?;
    aws.fault(Service::Secrets, Fault::Stall, usize::MAX);

    // The second finds neither a lease that was left behind nor a need to ask again.
    for _ in 0..2 {
        let Err(GrantError::Ours(reason)) = host.grant(key, &request()).await else { bail!("which key?") };
        assert!(reason.contains("2027"), "{reason}");
    }
    Ok(())
}
