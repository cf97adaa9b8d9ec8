//! Whether the server can do its work: the database is there, on a schema that fits, and cycles succeed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use tokens_service::Host;
use tokio::time::timeout;

/// Three sweeps. The start counts as a success.
const CYCLE_WITHIN: TimeDelta = TimeDelta::minutes(45);

/// The database is asked no more often than this, however many callers there are.
const ASK_EVERY: Duration = Duration::from_secs(1);

const DATABASE_TIMEOUT: Duration = Duration::from_secs(3);

pub struct Readiness {
    host: Arc<Host>,
    state: Mutex<State>,
    asked: tokio::sync::Mutex<Option<(Instant, Part)>>,
}

struct State {
    not_opened: String,
    succeeded_at: DateTime<Utc>,
    failure: Option<String>,
}

/// The answer to a caller with a key.
#[derive(Serialize)]
struct Answer {
    status: &'static str,
    database: Part,
    cycles: Part,
}

#[derive(Clone, Serialize)]
struct Part {
    ok: bool,
    detail: String,
}

impl Readiness {
    pub fn new(host: Arc<Host>) -> Self {
        let state = State {
            not_opened: "it was not reached yet".to_owned(),
            succeeded_at: host.now(),
            failure: None,
        };
        Self { host, state: Mutex::new(state), asked: tokio::sync::Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The service could not be opened, for this reason.
    pub fn not_opened(&self, reason: String) {
        self.state().not_opened = reason;
    }

    /// A cycle has ended like this.
    pub fn ran(&self, result: Result<(), String>, now: DateTime<Utc>) {
        let mut state = self.state();
        match result {
            Ok(()) => (state.succeeded_at, state.failure) = (now, None),
            Err(failure) => state.failure = Some(failure),
        }
    }

    /// 200 or 503, with the reasons for a caller with a key.
    pub async fn answer(&self, has_key: bool) -> Response {
        let (database, cycles) = (self.database().await, self.cycles());
        let (code, status) = if database.ok && cycles.ok {
            (StatusCode::OK, "ready")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "not_ready")
        };
        if has_key {
            return (code, Json(Answer { status, database, cycles })).into_response();
        }
        (code, Json(serde_json::json!({ "status": status }))).into_response()
    }

    async fn database(&self) -> Part {
        let Some(service) = self.host.opened() else {
            return Part { ok: false, detail: self.state().not_opened.clone() };
        };
        let mut asked = self.asked.lock().await;
        match &*asked {
            Some((at, part)) if at.elapsed() < ASK_EVERY => return part.clone(),
            _ => {}
        }
        let part = match timeout(DATABASE_TIMEOUT, service.database().check_schema()).await {
            Ok(Ok(version)) => Part { ok: true, detail: format!("at version {version}") },
            Ok(Err(error)) => Part { ok: false, detail: error.to_string() },
            Err(_) => {
                Part { ok: false, detail: format!("no answer within {} s", DATABASE_TIMEOUT.as_secs()) }
            }
        };
        *asked = Some((Instant::now(), part.clone()));
        part
    }

    fn cycles(&self) -> Part {
        let state = self.state();
        let ok = self.host.now() - state.succeeded_at < CYCLE_WITHIN;
        let at = state.succeeded_at.format("%Y-%m-%dT%H:%M:%SZ");
        let detail = match &state.failure {
            Some(failure) => format!("none has succeeded since {at}: {failure}"),
            None => format!("succeeded, or started, at {at}"),
        };
        Part { ok, detail }
    }
}
