//! What the services need from outside: where streamers and notifications are kept, Twitch, push services, and what
//! wakes others.

mod announce;
mod claim;
mod error;
mod outbox;
mod store;
mod twitch;

pub use announce::*;
pub use claim::*;
pub use error::*;
pub use outbox::*;
pub use store::*;
pub use twitch::*;
