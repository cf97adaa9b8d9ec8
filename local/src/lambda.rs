//! AWS Lambda on one machine: the Runtime API over HTTP, and a function's binary as a process that polls it.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::Value;
use tokens_domain::Clock;
use tokens_domain::SystemClock;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use uuid::Uuid;

/// The account of the functions and of their callers; not an account of AWS.
pub const ACCOUNT: &str = "000000000000";

/// A function's process and the Runtime API that it polls. Both end when this is dropped.
pub struct Function {
    process: Mutex<Child>,
    pid: u32,
    events: mpsc::Sender<Event>,
    outcomes: Mutex<mpsc::Receiver<Outcome>>,
    api: JoinHandle<()>,
}

/// What the function answered.
pub type Outcome = Result<Value, FunctionError>;

/// The function answered with an error, or ended.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, thiserror::Error)]
#[error("{error_type}: {error_message}")]
#[serde(rename_all = "camelCase")]
pub struct FunctionError {
    /// The error's type, as the Runtime API has it.
    pub error_type: String,
    pub error_message: String,
}

struct Event {
    payload: Value,
    time_left: Duration,
}

struct Api {
    events: Mutex<mpsc::Receiver<Event>>,
    outcomes: mpsc::Sender<Outcome>,
}

impl Function {
    /// Starts the binary with this environment and nothing of ours; its log goes to `log`.
    pub async fn start(binary: &Path, environment: &[(String, String)], log: Stdio) -> Result<Self> {
        Self::start_with_output(binary, environment, Stdio::null(), log).await
    }

    /// Like [`Function::start`], and what it prints, which is not its log, goes to `output`.
    pub async fn start_with_output(
        binary: &Path,
        environment: &[(String, String)],
        output: Stdio,
        log: Stdio,
    ) -> Result<Self> {
        let (events, next_events) = mpsc::channel(1);
        let (outcome, outcomes) = mpsc::channel(1);
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no port for the Runtime API")?;
        let address = listener.local_addr()?;
        let state = Arc::new(Api { events: Mutex::new(next_events), outcomes: outcome });
        let router = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/response", post(response))
            .route("/2018-06-01/runtime/invocation/{id}/error", post(error))
            .route("/2018-06-01/runtime/init/error", post(error_before_the_first))
            .with_state(state);
        let api = tokio::spawn(async move {
            // Serving ends with the task; there is no other way for it to fail.
            let _ = axum::serve(listener, router).await;
        });
        let name = binary.file_name().and_then(|name| name.to_str()).unwrap_or("function");
        let process = Command::new(binary)
            .env_clear()
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .env("AWS_LAMBDA_RUNTIME_API", address.to_string())
            .env("AWS_LAMBDA_FUNCTION_NAME", name)
            .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128")
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} can't be started", binary.display()))?;
        let pid = process.id().context("the function ended at once")?;
        Ok(Self { process: Mutex::new(process), pid, events, outcomes: Mutex::new(outcomes), api })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Hands an event in, as EventBridge would, and waits for the answer.
    pub async fn invoke(&self, payload: Value, time_left: Duration) -> Outcome {
        let exited = |status: String| FunctionError {
            error_type: "Runtime.ExitError".to_owned(),
            error_message: format!("the function ended: {status}"),
        };
        let mut outcomes = self.outcomes.lock().await;
        let mut process = self.process.lock().await;
        let answered = async {
            self.events.send(Event { payload, time_left }).await.ok()?;
            outcomes.recv().await
        };
        tokio::select! {
            biased;
            Some(outcome) = answered => outcome,
            status = process.wait() => Err(exited(status.map_or_else(|e| e.to_string(), |s| s.to_string()))),
        }
    }

    /// Ends the process as a crash does (SIGKILL), and waits until it has ended.
    pub async fn kill(self) -> Result<()> {
        self.process.lock().await.kill().await.context("the function can't be killed")
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        self.api.abort();
    }
}

/// Waits for the next event, as the real one does.
async fn next(State(api): State<Arc<Api>>) -> (StatusCode, HeaderMap, String) {
    let Some(event) = api.events.lock().await.recv().await else {
        return (StatusCode::GONE, HeaderMap::new(), String::new());
    };
    let deadline = SystemClock.now() + event.time_left;
    let headers = [
        ("lambda-runtime-aws-request-id", Uuid::new_v4().to_string()),
        ("lambda-runtime-deadline-ms", deadline.timestamp_millis().to_string()),
        ("lambda-runtime-invoked-function-arn", format!("arn:aws:lambda:local:{ACCOUNT}:function:local")),
        ("content-type", "application/json".to_owned()),
    ];
    let headers = headers.into_iter().filter_map(|(name, value)| {
        Some((HeaderName::from_static(name), HeaderValue::from_str(&value).ok()?))
    });
    (StatusCode::OK, headers.collect(), event.payload.to_string())
}

async fn response(State(api): State<Arc<Api>>, UrlPath(_id): UrlPath<String>, body: Bytes) -> StatusCode {
    tell(&api, serde_json::from_slice(&body).map_err(|_| unreadable())).await
}

async fn error(State(api): State<Arc<Api>>, UrlPath(_id): UrlPath<String>, body: Bytes) -> StatusCode {
    tell(&api, Err(serde_json::from_slice(&body).unwrap_or_else(|_| unreadable()))).await
}

async fn error_before_the_first(State(api): State<Arc<Api>>, body: Bytes) -> StatusCode {
    tell(&api, Err(serde_json::from_slice(&body).unwrap_or_else(|_| unreadable()))).await
}

async fn tell(api: &Api, outcome: Outcome) -> StatusCode {
    match api.outcomes.send(outcome).await {
        Ok(()) => StatusCode::ACCEPTED,
        Err(_) => StatusCode::GONE,
    }
}

fn unreadable() -> FunctionError {
    FunctionError {
        error_type: "Runtime.InvalidResponse".to_owned(),
        error_message: "the function's answer is not the JSON that the Runtime API takes".to_owned(),
    }
}
