//! A simulated Twitch identity service (`id.twitch.tv`): real HTTP on loopback, as strict as the real one, with its
//! wording and its token lifetimes, and with faults that can be switched on while it runs.
//!
//! Tokens expire by the clock in [`Settings`], so that a turned clock kills them. Whatever isn't documented about the
//! real service is resolved towards the stricter behaviour: what works here must work there.
//!
//! Tests and benchmarks use [`SimulatedTwitch`]; people at a running demo use the routes in `control`.

mod accounts;
mod answer;
mod control;
mod device;
mod fault;
mod faults;
mod form;
mod gate;
mod oauth;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, http::StatusCode};
use tokens_domain::{AccessToken, Clock, TokenPair};
use tokio::{sync::watch, time::Instant};

pub use self::{
    accounts::Activity,
    device::UnknownCode,
    fault::{Endpoint, Fault, FaultRule, UnknownFault},
    gate::Gate,
};
use self::{
    accounts::{AccountId, Accounts},
    answer::Answer,
    device::{Decision, Devices},
    faults::{Faults, Target},
    gate::Passages,
};
pub use crate::server::StartError;
use crate::{
    clock::TurnableClock,
    server::{Bound, Server, Tls},
};

/// One of the lifetimes seen in the wild.
const TOKEN_LIFETIME: Duration = Duration::from_secs(14_124);

/// How the simulated Twitch is set up.
#[derive(Clone)]
pub struct Settings {
    /// The one application that is known.
    pub client_id: String,
    /// Its first secret, see [`SimulatedTwitch::change_client_secret`].
    pub client_secret: String,
    /// How long an access token lives.
    pub token_lifetime: Duration,
    /// What an OAuth request takes, half of it before it is processed and half after, like a journey there and back.
    pub latency: Duration,
    /// How long a client waits between two questions whether a device code is confirmed; whole seconds.
    pub device_interval: Duration,
    /// What becomes of a refresh token when it is used.
    pub refresh_tokens: RefreshTokens,
    /// Whether to serve TLS, with a certificate of a new authority ([`SimulatedTwitch::ca_pem`]).
    pub tls: bool,
    /// The port on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// What decides which tokens have expired.
    pub clock: Arc<dyn Clock>,
}

/// What Twitch does with the refresh token of a refresh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RefreshTokens {
    /// It stays the same, as for confidential clients.
    #[default]
    Kept,
    /// Each refresh returns a new one. The former ones work on.
    Rotated,
    /// Each refresh returns a new one, and a used one is dead. If it comes again, the newest pair dies too: somebody
    /// may have stolen it.
    OneTime,
}

impl Default for Settings {
    /// A confidential client with random credentials, in the clear and without latency, by the machine's time.
    fn default() -> Self {
        Self {
            client_id: accounts::random_credential(),
            client_secret: accounts::random_credential(),
            token_lifetime: TOKEN_LIFETIME,
            latency: Duration::ZERO,
            device_interval: Duration::from_secs(5),
            refresh_tokens: RefreshTokens::default(),
            tls: false,
            port: 0,
            clock: Arc::new(TurnableClock::running()),
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("client_id", &self.client_id)
            .field("client_secret", &"redacted")
            .field("token_lifetime", &self.token_lifetime)
            .field("latency", &self.latency)
            .field("device_interval", &self.device_interval)
            .field("refresh_tokens", &self.refresh_tokens)
            .field("tls", &self.tls)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// What everybody together asked of the simulation since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests to `/oauth2/token`, whatever came of them.
    pub token_requests: u64,
    /// Refreshes that were granted, even if their answer was then lost.
    pub refreshes: u64,
    /// Times a one-time refresh token was used again.
    pub reuses: u64,
    /// Requests to `/oauth2/validate`.
    pub validate_requests: u64,
    pub revoke_requests: u64,
    /// OAuth requests that are being processed right now.
    pub in_flight: usize,
    /// The most OAuth requests that were ever processed at the same time.
    pub peak_in_flight: usize,
}

/// No streamer with this login connected the application.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the simulated Twitch knows no streamer with the login ‘{login}’")]
pub struct UnknownStreamer {
    pub login: String,
}

/// A running simulation. It serves until it is dropped.
#[derive(Debug)]
pub struct SimulatedTwitch {
    simulation: Arc<Simulation>,
    base_url: String,
    ca_pem: Option<String>,
    _server: Server,
}

impl SimulatedTwitch {
    /// Starts to serve; once this returns, requests are answered.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        let port = settings.port;
        let tls = settings.tls.then(Tls::generate).transpose()?;
        let ca_pem = tls.as_ref().map(|tls| tls.ca_pem.clone());
        let simulation = Arc::new(Simulation::new(settings));
        let bound = Bound::new("Twitch", port).await?;
        let scheme = if ca_pem.is_some() { "https" } else { "http" };
        let base_url = format!("{scheme}://{}", bound.address);
        let server = bound.serve(router(Arc::clone(&simulation)), tls);
        Ok(Self { simulation, base_url, ca_pem, _server: server })
    }

    /// Where it serves, without a slash at the end: `http://127.0.0.1:40001`.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// With TLS, the certificate of the authority that a client must trust.
    pub fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }

    /// The streamer connects the application, and gets a pair of tokens that is valid from now. A login that is known
    /// already connects again, under its first user id: its earlier tokens work on.
    #[must_use = "nobody else keeps the pair for the streamer"]
    pub fn add_streamer(&self, user_id: &str, login: &str) -> TokenPair {
        self.add_streamer_with(user_id, login, self.simulation.settings.token_lifetime)
    }

    /// Like [`add_streamer`](Self::add_streamer), with another lifetime for this first access token. With zero it has
    /// already expired.
    #[must_use = "nobody else keeps the pair for the streamer"]
    pub fn add_streamer_with(
        &self,
        user_id: &str,
        login: &str,
        access_token_lifetime: Duration,
    ) -> TokenPair {
        let now = self.simulation.settings.clock.now();
        let scopes = oauth::SCOPES.map(str::to_owned);
        self.simulation.lock().accounts.connect(user_id, login, &scopes, access_token_lifetime, now)
    }

    /// The codes that wait for a streamer to confirm them, as a browser shows them.
    pub fn waiting_devices(&self) -> Vec<String> {
        self.simulation.lock().devices.waiting().map(str::to_owned).collect()
    }

    /// The streamer with this user id and login confirms the code, which connects the application.
    pub fn confirm_device(&self, user_code: &str, user_id: &str, login: &str) -> Result<(), UnknownCode> {
        let (user_id, login) = (user_id.to_owned(), login.to_owned());
        self.simulation.lock().devices.decide(user_code, Decision::Confirmed { user_id, login })
    }

    /// The streamer denies what the code asks for.
    pub fn deny_device(&self, user_code: &str) -> Result<(), UnknownCode> {
        self.simulation.lock().devices.decide(user_code, Decision::Denied)
    }

    /// The streamer disconnects the application on Twitch: all of their tokens are dead.
    pub fn disconnect(&self, login: &str) -> Result<(), UnknownStreamer> {
        let mut state = self.simulation.lock();
        let id = state.accounts.find(login)?;
        state.accounts.disconnect(id);
        Ok(())
    }

    /// The pair that Twitch issued last to this streamer, expired or not. None if the streamer is unknown or
    /// disconnected.
    pub fn current_tokens(&self, login: &str) -> Option<TokenPair> {
        let state = self.simulation.lock();
        state.accounts.current_tokens(state.accounts.find(login).ok()?)
    }

    /// Every token that Twitch issued to anybody, in plain, but for access tokens that are long over: what a test looks
    /// for where it must not be.
    pub fn issued_tokens(&self) -> Vec<String> {
        self.simulation.lock().accounts.issued().map(str::to_owned).collect()
    }

    /// Whether Twitch would accept this token now: what a poll would meet.
    pub fn access_token_is_live(&self, token: &AccessToken) -> bool {
        let now = self.simulation.settings.clock.now();
        self.simulation.lock().accounts.access_token_is_live(token.expose(), now)
    }

    /// How many access tokens of the application's own are alive, which no streamer granted.
    pub fn live_application_tokens(&self) -> usize {
        self.simulation.lock().accounts.live_of_application(self.simulation.settings.clock.now())
    }

    /// What this streamer's tokens were used for.
    pub fn activity(&self, login: &str) -> Result<Activity, UnknownStreamer> {
        let state = self.simulation.lock();
        Ok(state.accounts.get(state.accounts.find(login)?).activity)
    }

    /// What everybody together asked.
    pub fn totals(&self) -> Totals {
        self.simulation.totals(&self.simulation.lock())
    }

    /// The application gets a new secret. The former one is refused from now on, as at the real one.
    pub fn change_client_secret(&self, secret: impl Into<String>) {
        self.simulation.lock().client_secret = secret.into();
    }

    /// Switches a fault on for requests that carry a token of this streamer. It replaces the streamer's former fault
    /// on the same endpoint.
    pub fn fault(&self, login: &str, rule: impl Into<FaultRule>) -> Result<(), UnknownStreamer> {
        let mut state = self.simulation.lock();
        let target = Target::Streamer(state.accounts.find(login)?);
        state.faults.set(target, rule.into());
        Ok(())
    }

    /// Switches a fault on for every request that isn't hit by a fault of its streamer.
    pub fn fault_for_everybody(&self, rule: impl Into<FaultRule>) {
        self.simulation.lock().faults.set(Target::All, rule.into());
    }

    /// Switches off the faults of this streamer; those for everybody stay.
    pub fn clear_faults(&self, login: &str) -> Result<(), UnknownStreamer> {
        let mut state = self.simulation.lock();
        let target = Target::Streamer(state.accounts.find(login)?);
        state.faults.clear(target);
        Ok(())
    }

    /// Switches off the faults for everybody; those of single streamers stay.
    pub fn clear_faults_for_everybody(&self) {
        self.simulation.lock().faults.clear(Target::All);
    }

    /// Holds the refreshes of this streamer after their arrival and before their processing, until the gate is
    /// released or dropped.
    pub fn pause(&self, login: &str) -> Result<Gate, UnknownStreamer> {
        self.gate(login, |passages, gate| passages.before = Some(gate.passage()))
    }

    /// Holds the answers to the refreshes of this streamer, which have been processed by then (a refresh token has
    /// rotated), until the gate is released or dropped.
    pub fn pause_answers(&self, login: &str) -> Result<Gate, UnknownStreamer> {
        self.gate(login, |passages, gate| passages.after = Some(gate.passage()))
    }

    fn gate(&self, login: &str, place: fn(&mut Passages, &Gate)) -> Result<Gate, UnknownStreamer> {
        let mut state = self.simulation.lock();
        let id = state.accounts.find(login)?;
        let gate = Gate::new();
        place(state.gates.entry(id).or_default(), &gate);
        Ok(gate)
    }

    /// Waits until the totals are as wanted; returns at once if they are already.
    pub async fn wait_until(&self, mut wanted: impl FnMut(&Totals) -> bool) {
        let mut changed = self.simulation.changed.subscribe();
        while !wanted(&self.totals()) {
            // It can't fail: the simulation holds the sender, so the channel stays open.
            let _ = changed.changed().await;
        }
    }
}

/// What the routes share.
struct Simulation {
    settings: Settings,
    state: Mutex<SimulationState>,
    in_flight: AtomicUsize,
    peak_in_flight: AtomicUsize,
    /// Says that the totals have changed.
    changed: watch::Sender<()>,
}

struct SimulationState {
    client_secret: String,
    accounts: Accounts,
    devices: Devices,
    faults: Faults,
    /// Of each streamer who was ever paused.
    gates: HashMap<AccountId, Passages>,
    /// Without the numbers of requests in flight, which change when no lock is held.
    totals: Totals,
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Simulation {
    fn new(settings: Settings) -> Self {
        let state = SimulationState {
            client_secret: settings.client_secret.clone(),
            accounts: Accounts::new(settings.refresh_tokens),
            devices: Devices::default(),
            faults: Faults::default(),
            gates: HashMap::new(),
            totals: Totals::default(),
        };
        Self {
            settings,
            state: Mutex::new(state),
            in_flight: AtomicUsize::new(0),
            peak_in_flight: AtomicUsize::new(0),
            changed: watch::Sender::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, SimulationState> {
        // A panic in one test's thread must not become a riddle in all others.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, count: impl FnOnce(&mut Totals)) {
        count(&mut self.lock().totals);
        self.changed.send_replace(());
    }

    fn totals(&self, state: &SimulationState) -> Totals {
        Totals {
            in_flight: self.in_flight.load(Ordering::Relaxed),
            peak_in_flight: self.peak_in_flight.load(Ordering::Relaxed),
            ..state.totals
        }
    }

    /// Counts a request for as long as the guard lives, which ends with the client's patience if not before.
    fn in_flight(&self) -> InFlight<'_> {
        let now = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.peak_in_flight.fetch_max(now, Ordering::Relaxed);
        self.changed.send_replace(());
        InFlight(self)
    }

    /// One way of the journey between the client and Twitch, begun at `start`. Answers its end, from which the way
    /// back counts: a timer that is late must not make the whole journey longer by twice as much.
    async fn travel(&self, start: Instant) -> Instant {
        let end = start + self.settings.latency / 2;
        if !self.settings.latency.is_zero() {
            tokio::time::sleep_until(end).await;
        }
        end
    }
}

struct InFlight<'a>(&'a Simulation);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.0.changed.send_replace(());
    }
}

fn router(simulation: Arc<Simulation>) -> Router {
    Router::new()
        .merge(oauth::routes())
        .merge(control::routes())
        .fallback(async || Answer::error(StatusCode::NOT_FOUND, "not found"))
        .method_not_allowed_fallback(async || {
            Answer::error(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
        })
        .with_state(simulation)
}
