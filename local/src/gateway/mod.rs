//! A local API Gateway: an HTTP API on loopback in front of the functions' own binaries.
//!
//! Whoever calls it is the [`Caller`] of the settings, as if IAM had authenticated them; nothing in a request changes
//! that. A request becomes an event of payload format 2.0, and a function's answer the response. Limits and refusals
//! are those of the real one. Whatever isn't documented about it is resolved towards what others report of it or else
//! towards the stricter behaviour: what works here must work there. It has no list of routes: what no route of the real one
//! takes, which would get a 404 from there, here gets a function's own.

mod answer;
mod event;
mod pool;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use domain::Clock;
use domain::SystemClock;
use futures::TryStreamExt as _;
use uuid::Uuid;

use self::pool::Pool;
pub use crate::server::StartError;
use crate::server::{Bound, Server};

/// The account of the API, of the functions behind it and of the default caller.
pub const ACCOUNT: &str = "000000000000";

/// The longest that API Gateway waits for a function.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(30);

/// In bytes: API Gateway's quota for the request line and the values of the headers.
const LARGEST_HEAD: usize = 10_240;

/// In bytes: Lambda's quota for an event. No body reaches API Gateway's own, of 10 MB. How API Gateway says it for a body
/// between the two isn't documented.
const LARGEST_EVENT: usize = 6 * 1024 * 1024;

/// Those that concern one connection and not the message (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// How the gateway is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The port on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// Who calls; `None` is a route that lost its authorizer.
    pub caller: Option<Caller>,
    /// How long a function may take, before the request is answered without it.
    pub timeout: Duration,
    /// What becomes of a request whose function has no sandbox left.
    pub at_limit: AtLimit,
}

impl Default for Settings {
    /// A free port, a caller of our own account, and AWS's limits.
    fn default() -> Self {
        Self {
            port: 0,
            caller: Some(Caller::default()),
            timeout: LONGEST_TIMEOUT,
            at_limit: AtLimit::Throttle,
        }
    }
}

/// Whom IAM has authenticated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The account.
    pub account: String,
    /// The user or role.
    pub user_arn: String,
}

impl Default for Caller {
    fn default() -> Self {
        Self { account: ACCOUNT.to_owned(), user_arn: format!("arn:aws:iam::{ACCOUNT}:user/local") }
    }
}

/// What becomes of a request whose function runs as often as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtLimit {
    /// It is refused, as on AWS.
    Throttle,
    /// It waits until a sandbox is free, within its timeout.
    Wait,
}

/// Which function answers.
#[derive(Clone)]
pub struct Route {
    /// How the path ends, decoded; every path ends in nothing. The first route that fits counts.
    pub suffix: &'static str,
    /// Who answers.
    pub function: FunctionSpec,
}

/// A function and its settings on Lambda.
#[derive(Clone)]
pub struct FunctionSpec {
    /// The binary.
    pub binary: PathBuf,
    /// Its whole environment.
    pub environment: Vec<(String, String)>,
    /// Where its log goes.
    pub log: Log,
    /// How long it may take, which is the time left that it is told. After that its sandbox is ended.
    pub timeout: Duration,
    /// How many sandboxes it may have, and so how many requests at once.
    pub concurrency: usize,
}

impl FunctionSpec {
    /// A function without a log, with 30 s and ten sandboxes.
    #[must_use]
    pub fn new(binary: impl Into<PathBuf>, environment: Vec<(String, String)>) -> Self {
        Self {
            binary: binary.into(),
            environment,
            log: Log::Discard,
            timeout: LONGEST_TIMEOUT,
            concurrency: 10,
        }
    }
}

/// Where a function's log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Log {
    /// Nowhere.
    Discard,
    /// To our own standard error.
    Inherit,
    /// To the end of this file, from all sandboxes.
    File(PathBuf),
}

/// A running gateway. When it is dropped, it and all functions behind it end.
pub struct Gateway {
    shared: Arc<Shared>,
    base_url: String,
    _server: Server,
}

struct Shared {
    address: SocketAddr,
    caller: Option<Caller>,
    timeout: Duration,
    routes: Vec<(&'static str, Arc<Pool>)>,
}

impl Gateway {
    /// Starts to serve. Functions start when they are called.
    ///
    /// # Errors
    ///
    /// If the port is taken.
    pub async fn start(settings: Settings, routes: Vec<Route>) -> Result<Self, StartError> {
        let Settings { port, caller, timeout, at_limit } = settings;
        let bound = Bound::new("API Gateway", port).await?;
        let pool = |route: Route| (route.suffix, Arc::new(Pool::new(route.function, at_limit)));
        let routes = routes.into_iter().map(pool).collect();
        let shared = Arc::new(Shared { address: bound.address, caller, timeout, routes });
        let base_url = format!("http://{}", bound.address);
        let server = bound.serve(Router::new().fallback(handle).with_state(shared.clone()), None);
        Ok(Self { shared, base_url, _server: server })
    }

    /// Where it serves, without a slash at the end: `http://127.0.0.1:40001`.
    #[must_use]
    pub fn base_url(&self) -> &str {
        &self.base_url
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        for (_, pool) in &self.shared.routes {
            pool.close();
        }
    }
}

async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let id = Uuid::new_v4();
    let response = shared.answer(id, request).await.unwrap_or_else(answer::refusal);
    ([("apigw-requestid", id.to_string())], response).into_response()
}

impl Shared {
    async fn answer(&self, id: Uuid, request: Request) -> Result<Response, StatusCode> {
        let (parts, body) = request.into_parts();
        let host = self.admit(&parts)?;
        let path = event::path(&parts.uri);
        let fits = |(suffix, _): &&(&str, _)| path.ends_with(suffix);
        let (_, pool) = self.routes.iter().find(fits).ok_or(StatusCode::NOT_FOUND)?;
        let body = read(body).await?;
        let event = event::event(&parts, host, &body, self.caller.as_ref(), id, SystemClock.now());
        if event.to_string().len() > LARGEST_EVENT {
            return Err(StatusCode::PAYLOAD_TOO_LARGE);
        }
        let answered = tokio::time::timeout(self.timeout, pool.invoke(event)).await;
        let answer = answered.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)??;
        answer::response(answer).ok_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The host that was asked for, unless no function may see this request. Some other name that leads here (DNS
    /// rebinding) is a web page's attempt to call in the caller's name.
    fn admit<'a>(&self, parts: &'a Parts) -> Result<&'a str, StatusCode> {
        if !parts.uri.path().starts_with('/') {
            return Err(StatusCode::BAD_REQUEST);
        }
        let line = parts.method.as_str().len() + parts.uri.to_string().len();
        let values = parts.headers.values().map(|value| value.as_bytes().len()).sum::<usize>();
        if line + values > LARGEST_HEAD {
            return Err(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        }
        let header = || parts.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let host = parts.uri.authority().map(Authority::as_str).or_else(header);
        let ours = [self.address.to_string(), format!("localhost:{}", self.address.port())];
        host.filter(|host| ours.iter().any(|own| own == host)).ok_or(StatusCode::FORBIDDEN)
    }
}

/// Reads a body that is too large to its end as well: a client that is still sending wouldn't hear the answer.
async fn read(body: Body) -> Result<Vec<u8>, StatusCode> {
    let mut chunks = body.into_data_stream();
    let (mut body, mut length) = (Vec::new(), 0);
    while let Some(chunk) = chunks.try_next().await.map_err(|_| StatusCode::BAD_REQUEST)? {
        length += chunk.len();
        if length <= LARGEST_EVENT {
            body.extend_from_slice(&chunk);
        }
    }
    if length <= LARGEST_EVENT { Ok(body) } else { Err(StatusCode::PAYLOAD_TOO_LARGE) }
}

/// Removes what concerns one connection: the headers that always do, and those which `Connection` names.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named = named.flat_map(|names| names.split(',')).filter_map(|name| name.trim().parse().ok());
    let named: Vec<HeaderName> = named.collect();
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    for name in named {
        headers.remove(name);
    }
}
