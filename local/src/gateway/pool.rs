//! The sandboxes of one function: a process for each request at a time, and again for the next.

use std::fs::OpenOptions;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use axum::http::StatusCode;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinSet;

use super::{AtLimit, FunctionSpec, Log};
use crate::lambda::Function;

pub(super) struct Pool {
    function: FunctionSpec,
    at_limit: AtLimit,
    /// One for each sandbox that may be busy.
    free: Arc<Semaphore>,
    /// `None` once it is closed.
    sandboxes: Mutex<Option<Sandboxes>>,
}

#[derive(Default)]
struct Sandboxes {
    /// The one that was used last is the last.
    idle: Vec<Function>,
    invocations: JoinSet<()>,
}

impl Pool {
    pub(super) fn new(function: FunctionSpec, at_limit: AtLimit) -> Self {
        let free = Arc::new(Semaphore::new(function.concurrency));
        Self { function, at_limit, free, sandboxes: Mutex::new(Some(Sandboxes::default())) }
    }

    /// Hands the event to a sandbox that nobody else uses, and waits for the answer. As on Lambda, the function is not
    /// stopped when nobody waits for it any more.
    pub(super) async fn invoke(self: &Arc<Self>, event: Value) -> Result<Value, StatusCode> {
        let permit = self.permit().await?;
        let sandbox = match self.idle() {
            Some(sandbox) => sandbox,
            None => start(&self.function).await.map_err(|error| {
                tracing::error!("{error:#}");
                StatusCode::INTERNAL_SERVER_ERROR
            })?,
        };
        let (tell, told) = oneshot::channel();
        let pool = self.clone();
        self.spawn(async move {
            let answer = pool.run(sandbox, event).await;
            drop(permit);
            // Nobody may be waiting any more.
            let _ = tell.send(answer);
        })?;
        told.await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?
    }

    /// Ends all sandboxes, whatever they do. There will be no more.
    pub(super) fn close(&self) {
        drop(self.sandboxes().take());
    }

    /// That API Gateway says 503 when Lambda throttles is not documented.
    async fn permit(&self) -> Result<OwnedSemaphorePermit, StatusCode> {
        let free = self.free.clone();
        match self.at_limit {
            AtLimit::Throttle => free.try_acquire_owned().ok(),
            AtLimit::Wait => free.acquire_owned().await.ok(),
        }
        .ok_or(StatusCode::SERVICE_UNAVAILABLE)
    }

    fn idle(&self) -> Option<Function> {
        let mut sandboxes = self.sandboxes();
        let idle = &mut sandboxes.as_mut()?.idle;
        idle.retain(|sandbox| !sandbox.has_ended());
        idle.pop()
    }

    fn spawn(&self, invocation: impl Future<Output = ()> + Send + 'static) -> Result<(), StatusCode> {
        let mut sandboxes = self.sandboxes();
        let invocations = &mut sandboxes.as_mut().ok_or(StatusCode::SERVICE_UNAVAILABLE)?.invocations;
        while invocations.try_join_next().is_some() {}
        invocations.spawn(invocation);
        Ok(())
    }

    async fn run(&self, sandbox: Function, event: Value) -> Result<Value, StatusCode> {
        let name = self.function.binary.display();
        let timeout = self.function.timeout;
        let answered = tokio::time::timeout(timeout, sandbox.invoke(event, timeout)).await;
        let Ok(answer) = answered else {
            // The sandbox ends here, as it does on Lambda.
            tracing::warn!("{name} timed out after {timeout:?}");
            return Err(StatusCode::INTERNAL_SERVER_ERROR);
        };
        if let Some(sandboxes) = &mut *self.sandboxes() {
            sandboxes.idle.push(sandbox);
        }
        answer.map_err(|error| {
            tracing::warn!("{name} failed: {error}");
            StatusCode::INTERNAL_SERVER_ERROR
        })
    }

    fn sandboxes(&self) -> MutexGuard<'_, Option<Sandboxes>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn start(function: &FunctionSpec) -> Result<Function> {
    let log = match &function.log {
        Log::Discard => Stdio::null(),
        Log::Inherit => Stdio::inherit(),
        Log::File(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            file.with_context(|| format!("no log can be written to {}", path.display()))?.into()
        }
    };
    Function::start(&function.binary, &function.environment, log).await
}
