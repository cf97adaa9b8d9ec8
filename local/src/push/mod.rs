//! A simulated push service (RFC 8030) with the devices behind it: real HTTP on loopback, as strict as the strictest
//! of the real ones, and with faults that can be switched on while it runs.
//!
//! It decrypts what it is sent, as the device would, with an implementation that shares nothing with the one that we
//! send with. Time is the clock's in [`Settings`]: a turned clock ends signatures and messages.
//!
//! Devices are asleep. What is sent to one waits, as long as it may and unless a later message with the same topic
//! replaces it, until somebody looks at the device ([`SimulatedPush::shown`]).

mod decrypt;
mod device;
mod faults;
mod receive;
mod vapid;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{Router, routing::post};
use chrono::{DateTime, TimeDelta, Utc};
use tokens_domain::{Clock, notification::Subscription};
use tokio::sync::watch;

use self::device::Device;
pub use self::faults::{Fault, FaultRule};
pub use crate::server::StartError;
use crate::{
    clock::TurnableClock,
    server::{Bound, Server},
};

/// How the simulated push service is set up.
#[derive(Clone)]
pub struct Settings {
    /// The port on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// What decides which signatures hold and which messages are over.
    pub clock: Arc<dyn Clock>,
}

impl Default for Settings {
    /// A free port, by the machine's time.
    fn default() -> Self {
        Self { port: 0, clock: Arc::new(TurnableClock::running()) }
    }
}

/// A message that the push service accepted.
#[derive(Clone, PartialEq, Eq)]
pub struct Received {
    /// What was pushed, decrypted.
    pub payload: Vec<u8>,
    /// For how long it may be kept.
    pub time_to_live: TimeDelta,
    /// `very-low`, `low`, `normal` or `high`.
    pub urgency: String,
    /// A later message with the same topic replaces this one, if it still waits.
    pub topic: Option<String>,
    pub at: DateTime<Utc>,
    /// The VAPID token under which it came.
    pub token: String,
}

impl Received {
    pub fn json(&self) -> serde_json::Result<serde_json::Value> {
        serde_json::from_slice(&self.payload)
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received")
            .field("payload", &String::from_utf8_lossy(&self.payload))
            .field("time_to_live", &self.time_to_live)
            .field("urgency", &self.urgency)
            .field("topic", &self.topic)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

/// What was asked of the simulation since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests to push, whatever came of them.
    pub requests: usize,
    /// Messages that were accepted, even if the answer was then lost.
    pub accepted: usize,
    /// Requests that came where a [redirect](Fault::Redirect) pointed to.
    pub redirected: usize,
}

/// No device has this name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the simulated push service knows no device called ‘{name}’")]
pub struct UnknownDevice {
    pub name: String,
}

/// A running simulation. It serves until it is dropped.
#[derive(Debug)]
pub struct SimulatedPush {
    simulation: Arc<Simulation>,
    _server: Server,
}

impl SimulatedPush {
    /// Starts to serve; once this returns, requests are answered.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        let bound = Bound::new("push service", settings.port).await?;
        let simulation = Arc::new(Simulation {
            clock: settings.clock,
            origin: format!("http://{}", bound.address),
            state: Mutex::default(),
            totals: watch::Sender::default(),
        });
        let router = Router::new()
            .route("/push/{subscription}", post(receive::push))
            .route("/redirected", post(receive::redirected))
            .with_state(Arc::clone(&simulation));
        Ok(Self { simulation, _server: bound.serve(router, None) })
    }

    /// Where it serves, without a slash at the end: `http://127.0.0.1:40001`.
    pub fn base_url(&self) -> &str {
        &self.simulation.origin
    }

    /// A device subscribes. One whose name is known already subscribes anew: its former subscription is gone.
    #[must_use = "nobody else knows the subscription"]
    pub fn subscribe(&self, name: &str) -> Subscription {
        self.subscribe_device(name, None)
    }

    /// Like [`subscribe`](Self::subscribe), but messages are taken only from the sender with this key
    /// (`VAPID_PUBLIC_KEY`).
    #[must_use = "nobody else knows the subscription"]
    pub fn subscribe_to(&self, name: &str, application_server_key: &str) -> Subscription {
        self.subscribe_device(name, Some(application_server_key.trim_end_matches('=').to_owned()))
    }

    fn subscribe_device(&self, name: &str, sender: Option<String>) -> Subscription {
        let (device, subscription) = Device::subscribe(self.base_url(), sender);
        let mut state = self.simulation.lock();
        let path = device.path.clone();
        if let Some(former) = state.names.insert(name.to_owned(), path.clone())
            && let Some(former) = state.devices.get_mut(&former)
        {
            former.expired = true;
        }
        state.devices.insert(path, device);
        subscription
    }

    /// The subscription ends: what is sent to it is answered with 410.
    pub fn expire(&self, name: &str) -> Result<(), UnknownDevice> {
        self.with(name, |device| device.expired = true)
    }

    /// All messages that were accepted for this device, oldest first.
    pub fn messages(&self, name: &str) -> Result<Vec<Received>, UnknownDevice> {
        self.with(name, |device| device.messages())
    }

    /// Wakes the device: it is handed what still waits for it, and this is everything that it has shown by now.
    pub fn shown(&self, name: &str) -> Result<Vec<Received>, UnknownDevice> {
        let now = self.simulation.clock.now();
        self.with(name, |device| device.shown(now))
    }

    /// Switches a fault on for what is sent to this device. It replaces the device's former one.
    pub fn fault(&self, name: &str, rule: impl Into<FaultRule>) -> Result<(), UnknownDevice> {
        self.with(name, |device| device.fault.set(rule.into()))
    }

    /// Switches a fault on for whatever isn't hit by a fault of its device.
    pub fn fault_for_everybody(&self, rule: impl Into<FaultRule>) {
        self.simulation.lock().fault.set(rule.into());
    }

    /// Switches off the fault for everybody; those of single devices stay.
    pub fn clear_fault_for_everybody(&self) {
        self.simulation.lock().fault.clear();
    }

    /// What everybody together asked.
    pub fn totals(&self) -> Totals {
        *self.simulation.totals.borrow()
    }

    /// Waits until `count` messages in all have been accepted; returns at once if they have been already.
    pub async fn wait_for(&self, count: usize) {
        self.wait_until(|totals| totals.accepted >= count).await;
    }

    /// Waits until the totals are as wanted, as when a request hangs that is never accepted.
    pub async fn wait_until(&self, mut wanted: impl FnMut(&Totals) -> bool) {
        // It can't fail: the simulation holds the sender, so the channel stays open.
        let _ = self.simulation.totals.subscribe().wait_for(|totals| wanted(totals)).await;
    }

    fn with<T>(&self, name: &str, act: impl FnOnce(&mut Device) -> T) -> Result<T, UnknownDevice> {
        let mut state = self.simulation.lock();
        let State { devices, names, .. } = &mut *state;
        let device = names.get(name).and_then(|path| devices.get_mut(path));
        device.map(act).ok_or_else(|| UnknownDevice { name: name.to_owned() })
    }
}

/// What the routes share.
struct Simulation {
    clock: Arc<dyn Clock>,
    /// What a VAPID token must name as its audience.
    origin: String,
    state: Mutex<State>,
    totals: watch::Sender<Totals>,
}

#[derive(Default)]
struct State {
    /// By the last part of their endpoint.
    devices: HashMap<String, Device>,
    /// The newest subscription of each name.
    names: HashMap<String, String>,
    fault: faults::Slot,
}

impl Simulation {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in one test's thread must not become a riddle in all others.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation").field("origin", &self.origin).finish_non_exhaustive()
    }
}
