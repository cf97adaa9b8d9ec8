//! The Lambda function that delivers the outbox: woken by the domain event of a deactivation, and by a timer for what
//! was left.
//!
//! It is the only function that calls addresses which users gave us. It needs no Twitch secret and no token key, and
//! its database role can read no token.

mod handler;

pub use handler::Handler;
