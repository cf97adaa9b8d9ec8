//! What is true of tokens, authorizations and time. No I/O.
//!
//! [`policy`] and [`schedule`] are pure: state and time in, a decision out. [`refresh`] carries the decisions out
//! through the [`ports`], which adapters implement.
#![warn(missing_docs)]

pub mod attempt;
pub mod authorization;
mod clock;
pub mod evidence;
mod failure;
pub mod grant;
pub mod health;
pub mod notification;
pub mod notify;
mod plain;
pub mod policy;
pub mod ports;
mod recipient;
pub mod refresh;
pub mod report;
mod request;
mod retry_after;
pub mod schedule;
mod streamer;
mod token;

pub use authorization::{Authorized, CampaignId, MembershipKey};
pub use clock::{Clock, Monotonic, SystemClock};
pub use plain::plain;
pub use retry_after::retry_after;
pub use streamer::{Caller, NoExpiry, Streamer, StreamerId, TokenState};
pub use token::{AccessToken, RefreshToken, TokenPair};
pub use tokio_util::sync::CancellationToken;
