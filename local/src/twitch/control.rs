//! Routes for whoever keeps the simulation running: see what happens, make things fail. They never show a token.
//!
//! | request | effect |
//! |---|---|
//! | `GET /simulation` | settings, counters, streamers and faults |
//! | `PUT /simulation/faults/{login or *}`, body: a [`Fault`] as text; `?endpoint=token` or `validate`, `?times=N` | switches a fault on, for one streamer or for everybody |
//! | `DELETE /simulation/faults/{login or *}` | switches off what was switched on in this way |
//! | `POST /simulation/streamers/{login}/disconnect` | the streamer disconnects the application |
//! | `PUT /simulation/client-secret`, body: the new one | the application gets a new secret, and the former one is refused |

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, RawQuery, State},
    http::StatusCode,
    routing::{get, post, put},
};
use serde_json::{Value, json};

use super::{
    Endpoint, Fault, FaultRule, Simulation, SimulationState, UnknownStreamer, answer::Answer, faults::Target,
    form::Form,
};

/// Stands for everybody where a login is expected.
const EVERYBODY: &str = "*";

pub(super) fn routes() -> Router<Arc<Simulation>> {
    Router::new()
        .route("/simulation", get(show))
        .route("/simulation/faults/{target}", put(set_fault).delete(clear_faults))
        .route("/simulation/streamers/{login}/disconnect", post(disconnect))
        .route("/simulation/client-secret", put(change_client_secret))
}

async fn show(State(simulation): State<Arc<Simulation>>) -> Answer {
    let settings = &simulation.settings;
    let state = simulation.lock();
    let streamers: Vec<Value> = state
        .accounts
        .all()
        .map(|(id, account)| {
            json!({
                "login": account.login,
                "user_id": account.user_id,
                "connected": state.accounts.is_connected(id),
                "activity": account.activity,
                "faults": list_faults(&state, Target::Streamer(id)),
            })
        })
        .collect();
    Answer::ok(json!({
        "now": settings.clock.now(),
        "settings": {
            "client_id": settings.client_id,
            "token_lifetime_seconds": settings.token_lifetime.as_secs(),
            "latency_ms": u64::try_from(settings.latency.as_millis()).unwrap_or(u64::MAX),
            "refresh_tokens": settings.refresh_tokens.name(),
            "tls": settings.tls,
        },
        "totals": simulation.totals(&state),
        "faults": list_faults(&state, Target::Everybody),
        "streamers": streamers,
    }))
}

async fn set_fault(
    State(simulation): State<Arc<Simulation>>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    fault: String,
) -> Result<Answer, Answer> {
    let mut state = simulation.lock();
    let target = find_target(&state, &name)?;
    let fault: Fault = fault.parse().map_err(|error| Answer::bad_request(format!("{error}")))?;
    let rule = limit(fault.into(), &Form::parse(query.unwrap_or_default().as_bytes())?)?;
    state.faults.set(target, rule);
    Ok(faults_now(&state, &name, target))
}

async fn clear_faults(
    State(simulation): State<Arc<Simulation>>,
    Path(name): Path<String>,
) -> Result<Answer, Answer> {
    let mut state = simulation.lock();
    let target = find_target(&state, &name)?;
    state.faults.clear(target);
    Ok(faults_now(&state, &name, target))
}

async fn disconnect(
    State(simulation): State<Arc<Simulation>>,
    Path(login): Path<String>,
) -> Result<Answer, Answer> {
    let mut state = simulation.lock();
    let id = state.accounts.find(&login)?;
    state.accounts.disconnect(id);
    Ok(Answer::ok(json!({ "login": login, "connected": false })))
}

async fn change_client_secret(
    State(simulation): State<Arc<Simulation>>,
    secret: String,
) -> Result<Answer, Answer> {
    if secret.trim().is_empty() {
        return Err(Answer::bad_request("the body must be the new secret; it is empty"));
    }
    secret.trim().clone_into(&mut simulation.lock().client_secret);
    Ok(Answer::ok(json!({ "changed": true })))
}

fn find_target(state: &SimulationState, name: &str) -> Result<Target, UnknownStreamer> {
    if name == EVERYBODY { Ok(Target::Everybody) } else { state.accounts.find(name).map(Target::Streamer) }
}

/// Applies `endpoint` and `times` of the query.
fn limit(mut rule: FaultRule, query: &Form) -> Result<FaultRule, Answer> {
    if let Some(unknown) = query.names().find(|name| !matches!(*name, "endpoint" | "times")) {
        return Err(Answer::bad_request(format!("‘{unknown}’ is no parameter; there are: endpoint, times")));
    }
    if let Some(name) = query.get("endpoint") {
        let endpoint = [Endpoint::Token, Endpoint::Validate].into_iter().find(|known| known.name() == name);
        let unknown =
            || Answer::bad_request(format!("no endpoint is called ‘{name}’; there are: token, validate"));
        rule = rule.on(endpoint.ok_or_else(unknown)?);
    }
    if let Some(times) = query.get("times") {
        let number = times.parse().ok().filter(|number| *number > 0);
        let no_number =
            || Answer::bad_request(format!("times must be a whole number above 0, not ‘{times}’"));
        rule = rule.times(number.ok_or_else(no_number)?);
    }
    Ok(rule)
}

fn faults_now(state: &SimulationState, name: &str, target: Target) -> Answer {
    Answer::ok(json!({ "target": name, "faults": list_faults(state, target) }))
}

fn list_faults(state: &SimulationState, target: Target) -> Vec<Value> {
    let listed = |(endpoint, active): (Endpoint, super::faults::Active)| {
        json!({
            "endpoint": endpoint.name(),
            "fault": active.fault.to_string(),
            "remaining": active.remaining,
        })
    };
    state.faults.of(target).map(listed).collect()
}

impl From<UnknownStreamer> for Answer {
    fn from(error: UnknownStreamer) -> Self {
        Self::error(StatusCode::NOT_FOUND, error.to_string())
    }
}
