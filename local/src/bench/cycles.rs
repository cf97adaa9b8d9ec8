//! Cycles: the deployed function's release binary, handed one event by a Runtime API; beside a strictly sequential loop in
//! the same run.
//!
//! The function is a process of its own, so its CPU time and memory are its own too.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokens_cipher::Column;
use tokens_domain::RefreshToken;
use tokens_domain::ports::{Permit, Twitch};
use tokens_twitch::TwitchClient;
use uuid::Uuid;

use super::{LATENCY, world};
use crate::binaries::Binaries;
use crate::lambda::Function;
use crate::postgres::Postgres;

/// The longest that Lambda lets a function run.
const TIME_LEFT: Duration = Duration::from_mins(15);

/// Streamers for the sequential loop: 40 s of it.
const SEQUENTIAL: usize = 500;

/// Due streamers and calls in flight.
const RUNS: [(usize, usize); 5] = [(500, 64), (10_000, 64), (10_000, 256), (100_000, 64), (100_000, 256)];

/// One line of the table.
struct Measured {
    per_second: f64,
    cpu: Duration,
    peak_kb: u64,
    statements: usize,
    commits: usize,
}

/// Prints the table of cycles.
#[expect(clippy::print_stdout, reason = "the table is what it is for")]
#[expect(clippy::cast_precision_loss, reason = "counts of at most 100,000")]
pub(super) async fn run(binaries: &Binaries, postgres: &Postgres) -> Result<()> {
    let sequential = sequential(postgres).await?;
    println!("{SEQUENTIAL} streamers one after the other: {sequential:.1} a second\n");
    println!(
        "streamers  in flight  a second  of ideal  × sequential  CPU µs each  peak MB  SQL each  commits each"
    );
    for (streamers, in_flight) in RUNS {
        let run = cycle(binaries, postgres, streamers, in_flight).await?;
        let (count, ideal) = (streamers as f64, in_flight as f64 / LATENCY.as_secs_f64());
        println!(
            "{streamers:>9}  {in_flight:>9}  {:>8.0}  {:>7.0}%  {:>12.1}  {:>11.0}  {:>7.1}  {:>8.3}  {:>12.3}",
            run.per_second,
            100.0 * run.per_second / ideal,
            run.per_second / sequential,
            run.cpu.as_secs_f64() * 1e6 / count,
            run.peak_kb as f64 / 1024.0,
            run.statements as f64 / count,
            run.commits as f64 / count,
        );
    }
    Ok(())
}

/// One event to a new function.
async fn cycle(
    binaries: &Binaries,
    postgres: &Postgres,
    streamers: usize,
    in_flight: usize,
) -> Result<Measured> {
    let world = world(postgres, streamers).await?;
    let mut environment = world.environment();
    environment.push(("TWITCH_MAX_IN_FLIGHT".to_owned(), in_flight.to_string()));
    environment.push(("LOG_LEVEL".to_owned(), "warn".to_owned()));
    let log = &postgres.server().context("the benchmark's server is its own")?.log_path();
    let logged = fs::metadata(log)?.len();

    let function =
        Function::start(binaries.path("scheduled-refresh")?, &environment, Stdio::inherit()).await?;
    let report = function.invoke(json!({"trigger": "planned"}), TIME_LEFT).await?;
    let (cpu, peak_kb) = (cpu_time(function.pid())?, peak_memory_kb(function.pid())?);
    drop(function);

    ensure!(report["success"] == json!(streamers), "not everybody was refreshed: {report}");
    let seconds = report["duration_ms"].as_f64().context("the report has no duration")? / 1e3;
    let text = fs::read(log)?;
    let (statements, commits) = statements(&String::from_utf8_lossy(&text[usize::try_from(logged)?..]));
    #[expect(clippy::cast_precision_loss, reason = "counts of at most 100,000")]
    let per_second = streamers as f64 / seconds;
    Ok(Measured { per_second, cpu, peak_kb, statements, commits })
}

/// The existing backend's way: one streamer after the other, with a read and two updates each. Answers how many a
/// second that makes.
async fn sequential(postgres: &Postgres) -> Result<f64> {
    let world = world(postgres, SEQUENTIAL).await?;
    let config = world.config(&[])?;
    let (twitch, cipher) = (TwitchClient::new(config.twitch, world.clock.clone())?, config.cipher);
    let ids: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM streamers").fetch_all(&world.pool).await?;
    let started = Instant::now();
    for id in &ids {
        let stored: String =
            sqlx::query_scalar("SELECT refresh_token_encrypted FROM streamers WHERE id = $1")
                .bind(id)
                .fetch_one(&world.pool)
                .await?;
        let now = world.clock.now();
        let refresh = cipher.decrypt(*id, Column::RefreshToken, &stored, now)?;
        let grant = twitch.refresh(&RefreshToken::new(refresh.as_str()), &Permit::UNCONDITIONAL).await?;
        sqlx::query(
            "UPDATE streamers SET access_token_encrypted = $2, refresh_token_encrypted = $3 WHERE id = $1",
        )
        .bind(id)
        .bind(cipher.encrypt(*id, Column::AccessToken, grant.pair.access.expose())?)
        .bind(cipher.encrypt(*id, Column::RefreshToken, grant.pair.refresh.expose())?)
        .execute(&world.pool)
        .await?;
        sqlx::query(
            "UPDATE streamers SET token_expires_at = $2, last_token_refresh_at = $3, token_refresh_failed_at = NULL,
                 updated_at = $3 WHERE id = $1",
        )
        .bind(id)
        .bind(grant.expires_in.map(|left| now + left))
        .bind(now)
        .execute(&world.pool)
        .await?;
    }
    #[expect(clippy::cast_precision_loss, reason = "500")]
    let count = ids.len() as f64;
    Ok(count / started.elapsed().as_secs_f64())
}

/// What all threads of a process spent on a core so far.
fn cpu_time(pid: u32) -> Result<Duration> {
    let mut nanoseconds = 0;
    for thread in
        fs::read_dir(format!("/proc/{pid}/task")).context("the benchmark reads /proc, which Linux has")?
    {
        let spent = fs::read_to_string(thread?.path().join("schedstat"))?;
        nanoseconds += spent.split(' ').next().context("schedstat is empty")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

fn peak_memory_kb(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kb = peak.and_then(|peak| peak.split_whitespace().next()).context("no VmHWM in /proc")?;
    Ok(kb.parse()?)
}

/// How many statements the server logged, and how many of them wrote: each of those was a commit of its own.
fn statements(log: &str) -> (usize, usize) {
    let executed = log.split(" execute ").skip(1).map(|statement| {
        // `sqlx_s_1: ` and the text, which may begin on the next line.
        let text = statement.split_once(": ").map_or(statement, |(_, text)| text);
        text.split_whitespace().next().is_some_and(|verb| verb != "SELECT")
    });
    executed.fold((0, 0), |(all, writing), writes| (all + 1, writing + usize::from(writes)))
}
