//! A function's process, up to its first request to the Runtime API. It gets no answer.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use super::Built;
use crate::env;

/// A start under callgrind takes a second; what takes this long never asks.
const LONGEST: Duration = Duration::from_mins(1);

/// As the template sets it. Nothing of this is there: whoever looked for it before the first event would fail.
const ENVIRONMENT: [(&str, &str); 15] = [
    ("AWS_REGION", "eu-west-3"),
    ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
    ("AWS_ACCESS_KEY_ID", "nobody"),
    ("AWS_SECRET_ACCESS_KEY", "nothing"),
    ("DATABASE_SECRET_ID", "database"),
    ("TWITCH_SECRET_ID", "twitch"),
    ("TOKEN_KEYS_SECRET_ID", "token-keys"),
    ("VAPID_SECRET_ID", "vapid"),
    ("VAPID_SUBJECT", "mailto:operator@example.com"),
    ("RETRY_GROUP", "group"),
    ("RETRY_TARGET_ARN", "arn:aws:lambda:eu-west-3:000000000000:function:retry-refresh"),
    ("RETRY_ROLE_ARN", "arn:aws:iam::000000000000:role/retry"),
    ("EVENT_BUS_NAME", "bus"),
    ("LOG_FORMAT", "json"),
    ("METRICS_STACK", "token-refresh"),
];

/// A process that has asked.
struct Started {
    process: Child,
    /// From the beginning of the process to its question.
    time: Duration,
    /// Open, so that it goes on waiting.
    _connection: TcpStream,
}

/// How long the function takes.
pub(super) async fn time(function: &Built) -> Result<Duration> {
    let mut started = start(function.binary.as_os_str(), &[]).await.with_context(|| function.name)?;
    started.process.kill().await?;
    Ok(started.time)
}

/// How many instructions it takes, without those of the kernel.
pub(super) async fn instructions(function: &Built) -> Result<u64> {
    let arguments = ["--tool=callgrind", "--callgrind-out-file=/dev/null"].map(OsStr::new);
    let arguments = [arguments.as_slice(), &[function.binary.as_os_str()]].concat();
    let started = start(OsStr::new("valgrind"), &arguments).await.with_context(|| function.name)?;
    let pid = started.process.id().context("valgrind has ended")?;
    // At this signal it says what it has counted; while the function waits, it counts nothing.
    let told = Command::new("kill").arg(pid.to_string()).status().await?;
    ensure!(told.success(), "valgrind has ended");
    let output = started.process.wait_with_output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    let count = said.lines().find_map(|line| line.split("Collected : ").nth(1)?.trim().parse().ok());
    count.with_context(|| format!("valgrind does not say how many instructions it counted: {said}"))
}

async fn start(program: &OsStr, arguments: &[&OsStr]) -> Result<Started> {
    let api = TcpListener::bind("127.0.0.1:0").await?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(ENVIRONMENT)
        .envs(env::var("PATH").map(|path| ("PATH", path)))
        .env("AWS_LAMBDA_RUNTIME_API", api.local_addr()?.to_string())
        .env("AWS_LAMBDA_FUNCTION_NAME", "function")
        .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
        .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let began = Instant::now();
    let mut process =
        command.spawn().with_context(|| format!("{} can't be started", program.to_string_lossy()))?;
    let asked = async {
        let (mut connection, _) = api.accept().await?;
        let mut line = String::new();
        BufReader::new(&mut connection).read_line(&mut line).await?;
        let time = began.elapsed();
        ensure!(line.starts_with("GET /2018-06-01/runtime/invocation/next "), "it asks for {line}");
        Ok((time, connection))
    };
    tokio::select! {
        asked = tokio::time::timeout(LONGEST, asked) => {
            let (time, connection) = asked.context("it asks for no event")??;
            Ok(Started { process, time, _connection: connection })
        }
        ended = process.wait() => bail!("it ends with {} before it asks for an event", ended?),
    }
}
