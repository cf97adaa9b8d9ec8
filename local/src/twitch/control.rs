//! Routes for the person who keeps the simulation running.
//!
//! | request | effect |
//! |---|---|
//! | `PUT /simulation/faults/{login or *}`, body: the name of a [`Fault`] | requests of this streamer, or of all, fail like this |
//! | `DELETE /simulation/faults/{login or *}` | they no longer do |
//! | `POST /simulation/streamers/{login}/disconnect` | the streamer disconnects the application |
//! | `PUT /simulation/client-secret`, body: the new one | the application gets a new secret, and the former one is refused |

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{post, put},
};
use serde_json::json;

use super::{Fault, Simulation, SimulationState, UnknownStreamer, answer::Answer, faults::Target};

/// In place of a login: all streamers.
const ALL: &str = "*";

pub(super) fn routes() -> Router<Arc<Simulation>> {
    Router::new()
        .route("/simulation/faults/{target}", put(set_fault).delete(clear_faults))
        .route("/simulation/streamers/{login}/disconnect", post(disconnect))
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

impl From<UnknownStreamer> for Answer {
    fn from(error: UnknownStreamer) -> Self {
        Self::error(StatusCode::NOT_FOUND, error.to_string())
    }
}
