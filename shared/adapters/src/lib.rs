//! How it is done: PostgreSQL, Twitch, the cipher, the configuration, the clock, the log, the metrics.
#![warn(missing_docs)]

pub mod aws;
pub mod cipher;
mod clock;
pub mod config;
mod follow_up;
mod gauges;
pub mod requests;
pub mod runner;
pub mod secrets;
pub mod shutdown;
pub mod signals;
pub mod store;
pub mod telemetry;
pub mod twitch;

pub use clock::{CLOCK_TOLERANCE, DatabaseClock, SystemClock};
