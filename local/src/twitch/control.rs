//! Routes for the person who keeps the simulation running.
//!
//! | request | effect |
//! |---|---|
//! | `PUT /simulation/faults/{login or *}`, body: the name of a [`Fault`] | requests of this streamer, or of all, fail like this |
//! | `DELETE /simulation/faults/{login or *}` | they no longer do |
//! | `POST /simulation/streamers/{login}/disconnect` | the streamer disconnects the application |
//! | `GET /simulation/devices` | the codes that wait for a streamer to confirm them |
//! | `POST /simulation/devices/{code}/confirm`, body: a login | this streamer confirms the code, which connects the application |
//! | `POST /simulation/devices/{code}/deny` | the streamer denies it |
//! | `PUT /simulation/client-secret`, body: the new one | the application gets a new secret, and the former one is refused |

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post, put},
};
use serde_json::json;

use super::{
    Fault, Simulation, SimulationState, UnknownStreamer, accounts,
    answer::Answer,
    device::{Decision, UnknownCode},
    faults::Target,
};

/// In place of a login: all streamers.
const ALL: &str = "*";

pub(super) fn routes() -> Router<Arc<Simulation>> {
    Router::new()
        .route("/simulation/faults/{target}", put(set_fault).delete(clear_faults))
        .route("/simulation/streamers/{login}/disconnect", post(disconnect))
        .route("/simulation/devices", get(devices))
        .route("/simulation/devices/{code}/confirm", post(confirm))
        .route("/simulation/devices/{code}/deny", post(deny))
        .route("/simulation/client-secret", put(change_client_secret))
}

async fn set_fault(
    State(simulation): State<Arc<Simulation>>,
    Path(name): Path<String>,
    fault: String,
) -> Result<Answer, Answer> {
    let mut state = simulation.lock();
    let target = find_target(&state, &name)?;
    let fault: Fault = fault.trim().parse().map_err(|error| Answer::bad_request(format!("{error}")))?;
    state.faults.set(target, fault.into());
    Ok(Answer::ok(json!({ "target": name, "fault": fault.name() })))
}

async fn clear_faults(
    State(simulation): State<Arc<Simulation>>,
    Path(name): Path<String>,
) -> Result<Answer, Answer> {
    let mut state = simulation.lock();
    let target = find_target(&state, &name)?;
    state.faults.clear(target);
    Ok(Answer::ok(json!({ "target": name, "fault": null })))
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

async fn devices(State(simulation): State<Arc<Simulation>>) -> Answer {
    let state = simulation.lock();
    Answer::ok(json!({ "waiting": state.devices.waiting().collect::<Vec<_>>() }))
}

/// A login that is not known yet is a new Twitch user.
async fn confirm(
    State(simulation): State<Arc<Simulation>>,
    Path(code): Path<String>,
    login: String,
) -> Result<Answer, Answer> {
    let login = login.trim();
    if login.is_empty() {
        return Err(Answer::bad_request("the body must be the streamer's login; it is empty"));
    }
    let mut state = simulation.lock();
    let user_id = state.accounts.user_id(login).map_or_else(accounts::random_user_id, str::to_owned);
    state.devices.decide(&code, Decision::Confirmed { user_id, login: login.to_owned() })?;
    Ok(Answer::ok(json!({ "login": login, "confirmed": true })))
}

async fn deny(State(simulation): State<Arc<Simulation>>, Path(code): Path<String>) -> Result<Answer, Answer> {
    simulation.lock().devices.decide(&code, Decision::Denied)?;
    Ok(Answer::ok(json!({ "confirmed": false })))
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
    if name == ALL { Ok(Target::All) } else { state.accounts.find(name).map(Target::Streamer) }
}

impl From<UnknownCode> for Answer {
    fn from(error: UnknownCode) -> Self {
        Self::error(StatusCode::NOT_FOUND, error.to_string())
    }
}

impl From<UnknownStreamer> for Answer {
    fn from(error: UnknownStreamer) -> Self {
        Self::error(StatusCode::NOT_FOUND, error.to_string())
    }
}
