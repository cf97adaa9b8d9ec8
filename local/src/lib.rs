//! The whole system on one machine: what the demo, the tests and the benchmark stand on.
//!
//! What is not ours to run is simulated here, over the real protocol: [`twitch`], [`push`], [`lambda`]. What is ours is
//! real: [`postgres`], and the program's own [`binaries`]. A [`world`] is one of each, with people in it.
#![expect(
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    clippy::return_self_not_must_use,
    reason = "only our own tests and programs use it"
)]

pub mod api;
pub mod bench;
pub mod binaries;
pub mod clock;
pub mod demo;
pub mod env;
pub mod lambda;
pub mod postgres;
pub mod push;
pub mod scheduler;
mod server;
pub mod simulate;
pub mod stage;
pub mod twitch;
pub mod world;
