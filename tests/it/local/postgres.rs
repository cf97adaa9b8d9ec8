//! The private PostgreSQL, against real servers.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context as _, Result, bail, ensure};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _};
use tokens_local::postgres::{Postgres, Server, Settings};
use tokens_tests::binary;

/// Far more than stopping a server takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

async fn until(what: &str, mut happened: impl FnMut() -> bool) -> Result<()> {
    let mut poll = tokio::time::interval(Duration::from_millis(20));
    let waited = tokio::time::timeout(DEADLINE, async {
        while !happened() {
            poll.tick().await;
        }
    });
    waited.await.with_context(|| format!("{what}: not within {DEADLINE:?}"))
}

async fn ask(url: &str, sql: &str) -> Result<String> {
    let mut connection = PgConnection::connect(url).await?;
    let answer = sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(answer)
}

async fn run(url: &str, sql: &'static str) -> Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    sqlx::raw_sql(sql).execute(&mut connection).await?;
    Ok(connection.close().await?)
}

/// The databases that are not PostgreSQL's own.
async fn databases(server: &Server) -> Result<String> {
    let sql = "SELECT coalesce(string_agg(datname, ' ' ORDER BY datname), '') FROM pg_database \
               WHERE datname <> 'postgres' AND NOT datistemplate";
    ask(&server.url("postgres"), sql).await
}

fn process_of(directory: &Path) -> Result<String> {
    let file = fs::read_to_string(directory.join("data/postmaster.pid"))?;
    Ok(file.lines().next().context("postmaster.pid is empty")?.to_owned())
}

fn is_running(process: &str) -> bool {
    let kill = Command::new("kill").args(["-0", process]).stderr(Stdio::null()).status();
    kill.expect("every system has `kill`").success()
}

#[tokio::test]
async fn a_server_starts_answers_and_leaves_nothing() -> Result<()> {
    let server = Server::start(Settings::default()).await?;
    let directory = server.socket_dir().to_owned();
    let process = process_of(&directory)?;
    ensure!(is_running(&process));
    ensure!(server.bin_dir().join("postgres").is_file());

    assert_eq!(ask(&server.url("postgres"), "SHOW listen_addresses").await?, "");
    assert_eq!(ask(&server.url("postgres"), "SHOW max_connections").await?, "300");
    assert_eq!(ask(&server.url("postgres"), "SHOW server_encoding").await?, "UTF8");
    assert_eq!(ask(&server.url("postgres"), "SHOW fsync").await?, "off");

    drop(server);
    ensure!(!is_running(&process), "dropping the server waits for its end");
    ensure!(!directory.exists(), "and for its files to be removed");
    Ok(())
}

#[tokio::test]
async fn a_benchmark_gets_a_durable_server_that_logs_statements() -> Result<()> {
    let server = Server::start(Settings { durable: true, log_statements: true }).await?;
    for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
        assert_eq!(ask(&server.url("postgres"), &format!("SHOW {setting}")).await?, "on", "{setting}");
    }
    ask(&server.url("postgres"), "SELECT 'this statement'").await?;
    let log = server.log_path();
    until("the statement is in the log", || {
        fs::read_to_string(&log)
            .is_ok_and(|log| log.contains("SELECT 'this statement'") && log.contains("duration: "))
    })
    .await
}

#[tokio::test]
async fn a_preparation_that_fails_says_why_and_is_tried_again() -> Result<()> {
    let postgres = Postgres::own(Settings::default()).await?;
    let server = postgres.server().context("it is our own")?;

    let failed = postgres.database("broken", async |url| run(url, "CREATE TABEL t ()").await).await;
    let error = format!("{:#}", failed.err().context("this is no SQL")?);
    ensure!(error.contains("the template database `broken`") && error.contains("TABEL"), "{error}");
    assert_eq!(databases(server).await?, "", "what was half prepared is dropped");

    let database = postgres.database("broken", async |url| run(url, "CREATE TABLE t ()").await).await?;
    run(database.url(), "SELECT FROM t").await
}

#[tokio::test]
async fn on_a_server_that_is_not_ours_only_our_databases_come_and_go() -> Result<()> {
    let server = Server::start(Settings::default()).await?;
    run(&server.url("postgres"), "CREATE DATABASE token_refresh_local_precious").await?;
    let theirs = "token_refresh_local_precious";

    let postgres = Postgres::at(&server.url("postgres")).await?;
    ensure!(postgres.server().is_none());
    let empty = postgres.create_empty().await?;
    let copy = postgres.database("t", async |url| run(url, "CREATE TABLE t ()").await).await?;
    assert_eq!(
        databases(&server).await?.split(' ').count(),
        4,
        "theirs, the empty one, the template and its copy"
    );

    // A client is still connected, as a test's pool may be.
    let _connected = PgConnection::connect(copy.url()).await?;
    drop((empty, copy));
    assert_eq!(databases(&server).await?.split(' ').count(), 2, "theirs and the template");
    drop(postgres);
    assert_eq!(databases(&server).await?, theirs);
    Ok(())
}

#[tokio::test]
async fn leftovers_are_dropped_once_their_process_is_gone() -> Result<()> {
    let server = Server::start(Settings::default()).await?;
    let url = server.url("postgres");
    let leftover = "token_refresh_local_1_0123456789abcdef_0";
    run(&url, "CREATE DATABASE token_refresh_local_1_0123456789abcdef_0").await?;
    let owner = format!("{url}&application_name=token_refresh_local_1_0123456789abcdef");
    let alive = PgConnection::connect(&owner).await?;

    drop(Postgres::at(&url).await?);
    assert_eq!(databases(&server).await?, leftover, "its owner may still need it");

    alive.close().await?;
    // The server forgets a session a moment after it has ended.
    let sessions =
        "SELECT count(*)::text FROM pg_stat_activity WHERE application_name LIKE 'token_refresh_local_1%'";
    while ask(&url, sessions).await? != "0" {}
    drop(Postgres::at(&url).await?);
    assert_eq!(databases(&server).await?, "");
    Ok(())
}

#[tokio::test]
async fn a_url_that_cannot_be_used_is_refused_without_its_password() {
    let refusals = [
        ("not a url", "it is not a URL"),
        ("mysql://root:s3cret@localhost/x", "not a URL of PostgreSQL"),
        ("postgres://app:s3cret@localhost/x?dbname=production", "`dbname`"),
        ("postgres://app:s3cret@localhost/x?host=/nowhere", "no connection to its server"),
    ];
    for (url, reason) in refusals {
        let error = format!("{:?}", Postgres::at(url).await.err().expect(url));
        assert!(error.contains(reason), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }
}

/// The demo, which keeps its server up until it is killed, and the server's socket directory.
fn process_with_a_server(demo: &Path) -> Result<(Child, PathBuf)> {
    let mut process = Command::new(demo).arg("--keep").stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut output = BufReader::new(process.stdout.take().context("it is piped")?);
    let mut line = String::new();
    while output.read_line(&mut line)? > 0 {
        let url = line.trim_end().strip_prefix("export DATABASE_URL='");
        if let Some((_, directory)) = url.and_then(|url| url.split_once("host=")) {
            let directory = directory.trim_end_matches('\'').replace("%2F", "/").into();
            // Kept open: the demo goes on talking.
            process.stdout = Some(output.into_inner());
            return Ok((process, directory));
        }
        line.clear();
    }
    bail!("the process ended before its server was ready")
}

#[tokio::test]
async fn a_server_does_not_survive_the_killing_of_its_process() -> Result<()> {
    let (mut parent, directory) = process_with_a_server(&binary("local").await?)?;
    let server = process_of(&directory)?;
    ensure!(is_running(&server));

    parent.kill()?; // SIGKILL: nothing of ours runs any more
    parent.wait()?;

    until("the server ends", || !is_running(&server)).await?;
    until("its files are removed", || !directory.exists()).await
}

#[tokio::test]
async fn when_the_server_dies_so_does_its_supervisor() -> Result<()> {
    let server = Server::start(Settings::default()).await?;
    let directory = server.socket_dir().to_owned();
    let killed = Command::new("kill").args(["-QUIT", &process_of(&directory)?]).status()?;
    ensure!(killed.success());
    until("the files are removed", || !directory.exists()).await?;
    // Returns at once, because the supervisor is gone; for one that is there it would wait 20 s.
    let (done, is_done) = std::sync::mpsc::channel();
    thread::spawn(move || {
        drop(server);
        done.send(())
    });
    is_done.recv_timeout(Duration::from_secs(15)).context("the supervisor is still there")
}
