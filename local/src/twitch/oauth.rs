//! The endpoints that the real identity service has.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::json;
use tokio::time::Instant;

use super::{
    Endpoint, Simulation,
    accounts::Refused,
    answer::Answer,
    device,
    form::{Form, read_form},
};

/// What the streamers of this simulation granted: to run polls in their channel.
pub(super) const SCOPES: [&str; 2] = ["channel:manage:polls", "channel:read:polls"];

/// What Twitch gives its applications: about 60 days.
const APPLICATION_TOKEN_LIFETIME: Duration = Duration::from_hours(60 * 24);

pub(super) fn routes() -> Router<Arc<Simulation>> {
    Router::new()
        .route("/oauth2/device", post(device::device))
        .route("/oauth2/token", post(token))
        .route("/oauth2/validate", get(validate))
        .route("/oauth2/revoke", post(revoke))
}

async fn token(State(simulation): State<Arc<Simulation>>, request: Request) -> Response {
    let _in_flight = simulation.in_flight();
    let sent = Instant::now();
    simulation.count(|totals| totals.token_requests += 1);
    let form = match read_form(request).await {
        Ok(form) => form,
        Err(answer) => return answer.into_response(),
    };
    let (fault, gates) = {
        let mut state = simulation.lock();
        let streamer =
            form.get("refresh_token").and_then(|token| state.accounts.owner_of_refresh_token(token));
        if let Some(id) = streamer {
            state.accounts.get_mut(id).activity.refresh_requests += 1;
        }
        let gates = streamer.and_then(|id| state.gates.get(&id).cloned()).unwrap_or_default();
        (state.faults.hit(streamer, Endpoint::Token), gates)
    };
    let mut here = simulation.travel(sent).await;
    if let Some(passage) = gates.before {
        passage.pass().await;
        here = Instant::now();
    }
    let response = match fault {
        None => grant(&simulation, &form).into_response(),
        Some(fault) => match fault.before_processing(Endpoint::Token, &form.secrets()).await {
            Some(response) => response,
            None => fault.after_processing(grant(&simulation, &form)),
        },
    };
    if let Some(passage) = gates.after {
        passage.pass().await;
        here = Instant::now();
    }
    simulation.travel(here).await;
    response
}

fn grant(simulation: &Simulation, form: &Form) -> Answer {
    let settings = &simulation.settings;
    match form.get("client_id") {
        None => return Answer::bad_request("missing client id"),
        Some(id) if id != settings.client_id => return Answer::invalid_client(),
        Some(_) => {}
    }
    // A confirmed code proves more than a secret would.
    if form.get("grant_type") == Some(device::GRANT_TYPE) {
        return device::tokens(simulation, form);
    }
    match form.get("client_secret") {
        None => return Answer::missing_client_secret(),
        Some(secret) if secret != simulation.lock().client_secret => return Answer::invalid_client_secret(),
        Some(_) => {}
    }
    match form.get("grant_type") {
        None => Answer::bad_request("missing grant type"),
        Some("refresh_token") => refresh(simulation, form),
        Some("client_credentials") => application_token(simulation),
        Some(_) => Answer::bad_request("invalid grant type"),
    }
}

/// For the application itself: it tells only that id and secret are right, and touches no streamer.
fn application_token(simulation: &Simulation) -> Answer {
    let now = simulation.settings.clock.now();
    let token = simulation.lock().accounts.issue_to_application(APPLICATION_TOKEN_LIFETIME, now);
    Answer::ok(json!({
        "access_token": token.expose(),
        "expires_in": APPLICATION_TOKEN_LIFETIME.as_secs(),
        "token_type": "bearer",
    }))
}

fn refresh(simulation: &Simulation, form: &Form) -> Answer {
    let settings = &simulation.settings;
    let Some(refresh_token) = form.get("refresh_token") else {
        return Answer::bad_request("missing refresh token");
    };

    let now = settings.clock.now();
    let mut state = simulation.lock();
    match state.accounts.refresh(refresh_token, settings.token_lifetime, now) {
        Ok((pair, scopes)) => {
            drop(state);
            simulation.count(|totals| totals.refreshes += 1);
            Answer::ok(json!({
                "access_token": pair.access.expose(),
                "refresh_token": pair.refresh.expose(),
                "scope": scopes,
                "token_type": "bearer",
                "expires_in": settings.token_lifetime.as_secs(),
            }))
        }
        Err(refused) => {
            drop(state);
            simulation.count(|totals| totals.reuses += u64::from(refused == Refused::Reused));
            Answer::invalid_refresh_token(StatusCode::BAD_REQUEST)
        }
    }
}

async fn validate(State(simulation): State<Arc<Simulation>>, request: Request) -> Response {
    let _in_flight = simulation.in_flight();
    let sent = Instant::now();
    let access_token = bearer(&request).map(str::to_owned);
    simulation.count(|totals| totals.validate_requests += 1);
    let fault = {
        let mut state = simulation.lock();
        let streamer = access_token.as_deref().and_then(|token| state.accounts.owner_of_access_token(token));
        if let Some(id) = streamer {
            state.accounts.get_mut(id).activity.validations += 1;
        }
        state.faults.hit(streamer, Endpoint::Validate)
    };
    let here = simulation.travel(sent).await;
    let secrets: Vec<_> = access_token.as_deref().into_iter().collect();
    let validation = || validation(&simulation, access_token.as_deref());
    let response = match fault {
        None => validation().into_response(),
        Some(fault) => match fault.before_processing(Endpoint::Validate, &secrets).await {
            Some(response) => response,
            None => fault.after_processing(validation()),
        },
    };
    simulation.travel(here).await;
    response
}

fn validation(simulation: &Simulation, access_token: Option<&str>) -> Answer {
    let Some(access_token) = access_token else {
        return Answer::error(StatusCode::UNAUTHORIZED, "missing authorization token");
    };
    let now = simulation.settings.clock.now();
    let state = simulation.lock();
    if let Some(expires_in) = state.accounts.validate_of_application(access_token, now) {
        let client_id = &simulation.settings.client_id;
        return Answer::ok(json!({ "client_id": client_id, "scopes": null, "expires_in": expires_in }));
    }
    state.accounts.validate(access_token, now).map_or_else(Answer::invalid_access_token, |valid| {
        Answer::ok(json!({
            "client_id": simulation.settings.client_id,
            "login": valid.login,
            "scopes": valid.scopes,
            "user_id": valid.user_id,
            "expires_in": valid.expires_in_seconds,
        }))
    })
}

async fn revoke(State(simulation): State<Arc<Simulation>>, request: Request) -> Response {
    let _in_flight = simulation.in_flight();
    let sent = Instant::now();
    simulation.count(|totals| totals.revoke_requests += 1);
    let here = simulation.travel(sent).await;
    let answer = match read_form(request).await {
        Ok(form) => revocation(&simulation, &form),
        Err(refusal) => refusal.into_response(),
    };
    simulation.travel(here).await;
    answer
}

fn revocation(simulation: &Simulation, form: &Form) -> Response {
    match form.get("client_id") {
        None => return Answer::bad_request("missing client id").into_response(),
        Some(id) if id != simulation.settings.client_id => {
            return Answer::unknown_client().into_response();
        }
        Some(_) => {}
    }
    let now = simulation.settings.clock.now();
    if form.get("token").is_some_and(|token| simulation.lock().accounts.revoke(token, now)) {
        StatusCode::OK.into_response()
    } else {
        Answer::bad_request("Invalid token").into_response()
    }
}

/// The access token of an `Authorization` header, under Twitch's own scheme or the standard one.
fn bearer(request: &Request) -> Option<&str> {
    let (scheme, token) = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    ["OAuth", "Bearer"].iter().any(|known| scheme.eq_ignore_ascii_case(known)).then(|| token.trim())
}
