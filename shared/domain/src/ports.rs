//! What the services need from outside: where streamers and notifications are kept, Twitch, push services, and what
//! wakes others.

mod outbox;
mod signals;
mod store;
mod twitch;

pub use outbox::*;
pub use signals::*;
pub use store::*;
pub use twitch::*;
