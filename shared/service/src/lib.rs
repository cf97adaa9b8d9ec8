//! Configuration and wiring: what every host, the command and the tests share.
//!
//! [`Service`] is one opened service: a database, a Twitch client, and where signals go. [`Host`] keeps one open between events
//! and opens it again when a secret has changed. Knows nothing of Lambda or HTTP, and decides nothing about a streamer.
#![warn(missing_docs)]

pub mod config;
mod follow_up;
mod gauges;
mod host;
pub mod keys;
mod notifier;
mod opened;
pub mod presentation;
mod process;
pub mod scheduler;
mod secrets;
mod service;
pub mod shutdown;
mod signals;

pub use self::host::{Host, Request};
pub use self::notifier::Notifier;
pub use self::opened::{Open, OpenError, Opened, Opening};
pub use self::process::Process;
pub use self::secrets::with_secrets;
pub use self::service::{RunError, Service};
pub use self::signals::ServiceSignals;
