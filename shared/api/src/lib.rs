//! The HTTP API: routes, bodies, problems, and the description of them all (OpenAPI).
//!
//! Knows axum, and neither Lambda nor SQL. It is closed by default: a request that carries no [`Context`] is refused, and
//! only what lets requests in (the functions, from what API Gateway says of its caller; the local stack) can put one in. A
//! header never can.
#![warn(missing_docs)]

mod body;
mod document;
mod enter;
mod problem;
mod routes;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use adapters::requests::Request;
use adapters::runner::Runner;
use axum::Router;
use chrono::TimeDelta;
use domain::{Caller, Monotonic};

pub use document::document;
pub use problem::Problem;

/// Who asks and under which id, as those know it who let the request in: an extension of the request.
#[derive(Clone, Debug)]
pub struct Context {
    /// Who asks.
    pub caller: Caller,
    /// By which the log and the answer know the request.
    pub request_id: String,
    /// When the function is killed at its timeout, if it has one.
    pub deadline: Option<Monotonic>,
}

impl From<Context> for Request {
    fn from(Context { caller, deadline, .. }: Context) -> Self {
        Self { caller, deadline }
    }
}

/// What a streamer grants to campaigns: to grant, to see and to revoke it.
pub fn grants(runner: Arc<Runner>) -> Router {
    enter::closed(routes::grants().with_state(runner).into())
}

/// The check of a campaign before a session, which is answered within `time`.
pub fn health(runner: Arc<Runner>, time: TimeDelta) -> Router {
    enter::closed(routes::health().with_state((runner, time)).into())
}

/// Both in one.
pub fn whole(runner: Arc<Runner>, time: TimeDelta) -> Router {
    let (grants, health) =
        (routes::grants().with_state(runner.clone()), routes::health().with_state((runner, time)));
    enter::closed(grants.merge(health).into())
}
