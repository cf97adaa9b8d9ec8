//! The HTTP API: routes, bodies, problems, and the description of them all (OpenAPI).
//!
//! Knows axum, and neither Lambda nor SQL. It is closed by default: a request that carries no [`Context`] is refused, and
//! only what lets requests in (the functions, from what API Gateway says of its caller; the local stack) can put one in. A
//! header never can.
#![warn(missing_docs)]

mod answers;
mod body;
mod document;
mod enter;
mod problem;
mod routes;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use tokens_domain::{Caller, Monotonic};
use tokens_service::{Host, Request};

pub use document::document;
pub use problem::Problem;

/// Who asks and under which id, as those know it who let the request in: an extension of the request.
#[derive(Clone, Debug)]
pub struct Context {
    /// Who asks.
    pub caller: Caller,
    /// By which the log and the answer know the request.
    pub request_id: String,
    /// The client's address, where it is known. For the log.
    pub client: Option<IpAddr>,
    /// When the function is killed at its timeout, if it has one.
    pub deadline: Option<Monotonic>,
}

impl From<Context> for Request {
    fn from(Context { caller, deadline, .. }: Context) -> Self {
        Self { caller, deadline }
    }
}

/// What a streamer grants to campaigns: to grant, to see and to revoke it.
pub fn grants(host: Arc<Host>) -> Router {
    enter::closed(routes::grants().with_state(host).into())
}

/// The check of a campaign before a session.
pub fn health(host: Arc<Host>) -> Router {
    enter::closed(routes::health().with_state(host).into())
}

/// Both in one.
pub fn whole(host: Arc<Host>) -> Router {
    enter::closed(routes::grants().merge(routes::health()).with_state(host).into())
}
