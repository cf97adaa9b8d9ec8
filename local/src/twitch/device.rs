//! The device code flow (RFC 8628): a code that a streamer confirms in a browser, here by a control route.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use serde_json::json;
use tokio::time::Instant;

use super::{
    Simulation, accounts,
    answer::Answer,
    form::{Form, read_form},
};
use crate::clock::later;

pub(super) const GRANT_TYPE: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// How long a code is valid.
const LIFETIME: Duration = Duration::from_mins(30);

/// How much longer a client has to wait after each `slow_down`.
const SLOW_DOWN: Duration = Duration::from_secs(5);

/// No streamer is asked to confirm such a code.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no code ‘{user_code}’ waits to be confirmed at the simulated Twitch")]
pub struct UnknownCode {
    pub user_code: String,
}

/// All codes that were issued and not used, by the code that the client has. There is no `Debug`, since it holds them.
#[derive(Default)]
pub(super) struct Devices(HashMap<String, Device>);

struct Device {
    user_code: String,
    scopes: Vec<String>,
    expires_at: DateTime<Utc>,
    interval: Duration,
    asked_at: DateTime<Utc>,
    decided: Option<Decision>,
}

/// What the streamer said.
pub(super) enum Decision {
    /// Yes, and this is whose channel it is.
    Confirmed {
        user_id: String,
        login: String,
    },
    Denied,
}

impl Devices {
    /// The codes that wait for a streamer, as a browser shows them.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &str> {
        self.0.values().filter(|device| device.decided.is_none()).map(|device| device.user_code.as_str())
    }

    pub(super) fn decide(&mut self, user_code: &str, decision: Decision) -> Result<(), UnknownCode> {
        let waits = |device: &&mut Device| device.user_code == user_code && device.decided.is_none();
        let unknown = || UnknownCode { user_code: user_code.to_owned() };
        self.0.values_mut().find(waits).ok_or_else(unknown)?.decided = Some(decision);
        Ok(())
    }
}

pub(super) async fn device(State(simulation): State<Arc<Simulation>>, request: Request) -> Response {
    let _in_flight = simulation.in_flight();
    let sent = Instant::now();
    let here = simulation.travel(sent).await;
    let answer = match read_form(request).await {
        Ok(form) => issue(&simulation, &form),
        Err(refusal) => refusal,
    };
    simulation.travel(here).await;
    answer.into_response()
}

fn issue(simulation: &Simulation, form: &Form) -> Answer {
    match form.get("client_id") {
        None => return Answer::bad_request("missing client id"),
        Some(id) if id != simulation.settings.client_id => return Answer::invalid_client(),
        Some(_) => {}
    }
    let Some(scopes) = form.get("scopes") else { return Answer::bad_request("missing scopes") };
    let scopes: Vec<_> = scopes.split(' ').map(str::to_owned).collect();
    if scopes.iter().any(|scope| !scope.contains(':')) {
        return Answer::bad_request("invalid scope requested");
    }
    let (now, interval) = (simulation.settings.clock.now(), simulation.settings.device_interval);
    let (device_code, user_code) = (accounts::random_device_code(), accounts::random_user_code());
    let device = Device {
        user_code: user_code.clone(),
        scopes,
        expires_at: later(now, LIFETIME),
        interval,
        asked_at: now,
        decided: None,
    };
    simulation.lock().devices.0.insert(device_code.clone(), device);
    simulation.changed.send_replace(());
    Answer::ok(json!({
        "device_code": device_code,
        "expires_in": LIFETIME.as_secs(),
        "interval": interval.as_secs(),
        "user_code": user_code,
        "verification_uri": format!("https://www.twitch.tv/activate?public=true&device-code={user_code}"),
    }))
}

/// A code is good for one pair. Twitch calls all others invalid, whatever they were.
pub(super) fn tokens(simulation: &Simulation, form: &Form) -> Answer {
    let Some(device_code) = form.get("device_code") else {
        return Answer::bad_request("missing device code");
    };
    let Some(scopes) = form.get("scopes") else { return Answer::bad_request("missing scopes") };
    let (now, lifetime) = (simulation.settings.clock.now(), simulation.settings.token_lifetime);
    let mut state = simulation.lock();
    let invalid = || Answer::bad_request("invalid device code");
    let Some(device) = state.devices.0.get_mut(device_code) else { return invalid() };
    if device.expires_at <= now || device.scopes.join(" ") != scopes {
        return invalid();
    }
    let is_too_fast = now < later(device.asked_at, device.interval);
    device.asked_at = now;
    if is_too_fast {
        device.interval += SLOW_DOWN;
        return Answer::bad_request("slow_down");
    }
    if device.decided.is_none() {
        return Answer::bad_request("authorization_pending");
    }
    let Some(Device { scopes, decided: Some(Decision::Confirmed { user_id, login }), .. }) =
        state.devices.0.remove(device_code)
    else {
        return invalid();
    };
    let pair = state.accounts.connect(&user_id, &login, &scopes, lifetime, now);
    Answer::ok(json!({
        "access_token": pair.access.expose(),
        "refresh_token": pair.refresh.expose(),
        "scope": scopes,
        "token_type": "bearer",
        "expires_in": lifetime.as_secs(),
    }))
}
