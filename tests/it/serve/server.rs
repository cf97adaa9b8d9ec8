//! A `tokens serve` of the world: its log as it is written, and requests to it.

use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tokens_local::world::World;
use tokens_tests::{binary, changed};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// The key of the caller `backend`, which has the rights `api` and `view`.
pub const KEY: &str = "key";

/// The keys of a server that names no others.
pub const KEYS: &str = "backend:2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683:api+view";

/// Longer than anything takes on a machine under load; a retry alone may take a minute.
const PATIENCE: Duration = Duration::from_mins(3);

/// Between two looks at the readiness.
const POLL_PAUSE: Duration = Duration::from_millis(20);

/// Whatever is waited for comes within [`PATIENCE`].
pub async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> Result<T> {
    timeout(PATIENCE, wait).await.with_context(|| format!("{what} never came"))
}

pub struct Server {
    child: Child,
    pub address: String,
    log: Arc<Mutex<Vec<Value>>>,
    lines: watch::Receiver<usize>,
}

impl Server {
    /// Starts one with this world's environment and these changes, and returns once it listens.
    pub async fn start(world: &World, changes: &[(&str, &str)]) -> Result<Self> {
        let mut environment = changed(world.environment(), &[("API_KEYS", KEYS), ("LOG_FORMAT", "json")]);
        environment = changed(environment, changes);
        let mut child = Command::new(binary("tokens").await?)
            .args(["serve", "--listen", "127.0.0.1:0"])
            .env_clear()
            .envs(environment)
            .current_dir(std::env::temp_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut stderr = BufReader::new(child.stderr.take().context("its log")?).lines();
        let (log, (count, lines)) = (Arc::<Mutex<Vec<Value>>>::default(), watch::channel(0));
        let written = log.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = stderr.next_line().await {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                written.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                count.send_modify(|count| *count += 1);
            }
        });
        let mut server = Self { child, address: String::new(), log, lines };
        let listening = server.logged("listening").await?;
        listening["address"].as_str().context("no address")?.clone_into(&mut server.address);
        Ok(server)
    }

    /// What is logged so far.
    pub fn log(&self) -> Vec<Value> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until a line's message contains this; the first such line.
    pub async fn logged(&self, message: &str) -> Result<Value> {
        self.logged_times(message, 1).await
    }

    /// Waits until so many lines' messages contain this; the last of them.
    pub async fn logged_times(&self, message: &str, times: usize) -> Result<Value> {
        let mut lines = self.lines.clone();
        let find = || {
            let says = |line: &&Value| line["message"].as_str().is_some_and(|text| text.contains(message));
            self.log().iter().filter(says).nth(times - 1).cloned()
        };
        let wait = async {
            loop {
                lines.mark_unchanged();
                if let Some(line) = find() {
                    return Ok(line);
                }
                if lines.changed().await.is_err() {
                    return find().with_context(|| format!("it ended without `{message}`: {:?}", self.log()));
                }
            }
        };
        soon(message, wait).await?
    }

    /// Sends this signal.
    pub async fn signal(&self, name: &str) -> Result<()> {
        let pid = self.child.id().context("it has ended")?;
        let sent = Command::new("sh").arg("-c").arg(format!("kill -{name} {pid}")).status().await?;
        anyhow::ensure!(sent.success(), "no process {pid}");
        Ok(())
    }

    /// Its exit code.
    pub async fn ended(&mut self) -> Result<Option<i32>> {
        Ok(soon("the end", self.child.wait()).await??.code())
    }

    /// Ends it in order.
    pub async fn end(mut self) -> Result<()> {
        self.signal("TERM").await?;
        let code = self.ended().await?;
        anyhow::ensure!(code == Some(0), "{code:?}: {:?}", self.log());
        Ok(())
    }

    /// Asks with the key of `backend`.
    pub async fn ask(&self, method: &str, path: &str) -> Result<Answer> {
        self.send(method, path, &[("authorization", &format!("Bearer {KEY}"))]).await
    }

    /// Asks with these headers.
    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        send(&self.address, method, path, headers).await
    }

    /// Waits until `/readyz` answers with this status; what it says to a caller with a key.
    pub async fn readiness(&self, status: u16) -> Result<Value> {
        let wait = async {
            loop {
                let answer = self.ask("GET", "/readyz").await?;
                if answer.status == status {
                    return anyhow::Ok(answer.body);
                }
                sleep(POLL_PAUSE).await;
            }
        };
        soon("the readiness", wait).await?
    }
}

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// In lower case.
    pub head: String,
    /// JSON, or a string.
    pub body: Value,
}

impl Answer {
    /// The last part of a problem's type.
    pub fn problem(&self) -> &str {
        self.body["type"].as_str().and_then(|name| name.rsplit(':').next()).unwrap_or_default()
    }
}

/// One request on a connection of its own.
pub async fn send(address: &str, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
    let mut connection = TcpStream::connect(address).await?;
    let host = [("host", address)];
    let host = if headers.iter().any(|(name, _)| *name == "host") { &[][..] } else { &host };
    let headers: Vec<_> =
        host.iter().chain(headers).map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let request = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n{}\r\n", headers.concat());
    connection.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    soon("the answer", connection.read_to_end(&mut answer)).await??;
    read(&String::from_utf8(answer)?)
}

fn read(answer: &str) -> Result<Answer> {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("no answer: {answer:?}") };
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    let body = serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned()));
    Ok(Answer { status, head: head.to_ascii_lowercase(), body })
}
