//! A simulated AWS: EventBridge Scheduler, EventBridge, Secrets Manager, and what the command asks besides, over real HTTP on loopback,
//! as strict as the real ones, with faults that can be switched on while it runs.
//!
//! It keeps what it is given and never calls anybody: [`SimulatedAws::due`] hands out the schedules whose minute has
//! come, on a clock that can be turned, and whoever asked invokes the function. Whatever isn't documented about the
//! real services is resolved towards the stricter behaviour: what works here must work there.

mod answer;
mod events;
mod faults;
mod held;
mod operator;
mod schedules;
mod secrets;
mod signature;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use aws::Access;
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use chrono::{DateTime, TimeDelta, Utc};
use domain::Clock;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::answer::Refusal;
pub use self::faults::{Fault, Service};
pub use self::held::{Due, Event, Held, Schedule};
use crate::clock::TurnableClock;

/// Where everything is: the ARNs and signatures must name it.
const REGION: &str = "eu-west-3";
const ACCOUNT: &str = "123456789012";

/// The one access key that is known. It opens nothing but this simulation.
const KEY_ID: &str = "AKIALOCALSIMULATION0";
const SECRET: &str = "local-secret-of-the-simulated-aws";

/// Who has signed in to IAM Identity Center, and as what.
const SSO_TOKEN: &str = "local-token-of-the-simulated-portal";
const ROLE: &str = "operator";

/// The schedule group and the event bus that there are beside `default`.
const GROUP: &str = "token-refresh";
const BUS: &str = "token-refresh";

/// In bytes: above what any service takes.
const LARGEST_REQUEST: usize = 1024 * 1024;

/// A running simulation. It serves until it is dropped.
pub struct SimulatedAws {
    simulation: Arc<Simulation>,
    endpoint: String,
    serving: JoinHandle<()>,
}

struct Simulation {
    clock: Arc<dyn Clock>,
    held: watch::Sender<Held>,
    recorded: Mutex<Vec<String>>,
}

impl SimulatedAws {
    /// Serves on a free port of loopback, by the machine's time.
    ///
    /// # Errors
    ///
    /// If no port can be had.
    pub async fn start() -> std::io::Result<Self> {
        Self::start_on(Arc::new(TurnableClock::running())).await
    }

    /// Serves on a free port of loopback, by this clock: a schedule for what it calls the past is refused.
    ///
    /// # Errors
    ///
    /// If no port can be had.
    pub async fn start_on(clock: Arc<dyn Clock>) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let simulation =
            Arc::new(Simulation { clock, held: watch::Sender::default(), recorded: Mutex::default() });
        let router = router(simulation.clone());
        let serving = tokio::spawn(async move {
            // Serving ends with the task; there is no other way for it to fail.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { simulation, endpoint, serving })
    }

    /// Where it serves, without a slash at the end.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What the program's binaries need in their environment to signal through it.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let arn = |service, resource| format!("arn:aws:{service}:{REGION}:{ACCOUNT}:{resource}");
        [
            ("AWS_ENDPOINT_URL", self.endpoint.clone()),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_ACCESS_KEY_ID", KEY_ID.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
            ("RETRY_GROUP", GROUP.to_owned()),
            ("RETRY_TARGET_ARN", arn("lambda", "function:retry-refresh")),
            ("RETRY_ROLE_ARN", format!("arn:aws:iam::{ACCOUNT}:role/retry-refresh-schedules")),
            ("RETRY_DLQ_ARN", arn("sqs", "retry-refresh-dlq")),
            ("EVENT_BUS_NAME", BUS.to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// How a part of this process reaches it.
    #[must_use]
    pub fn access(&self) -> Access {
        Access::At {
            endpoint: self.endpoint.clone(),
            region: REGION.to_owned(),
            key_id: KEY_ID.to_owned(),
            secret: SECRET.to_owned().into(),
        }
    }

    /// The schedules that wait, by group and name.
    #[must_use]
    pub fn schedules(&self) -> Vec<Schedule> {
        self.simulation.held.borrow().schedules().cloned().collect()
    }

    /// The events that were taken, in their order.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.simulation.held.borrow().events.clone()
    }

    /// Makes this the current version of a secret; nobody needs to have made the secret before. Answers its ARN.
    pub fn put_secret(&self, name: &str, text: impl Into<String>) -> String {
        let text = text.into();
        self.simulation.held.send_modify(|held| held.secrets.entry(name.to_owned()).or_default().put(text));
        secrets::arn(name)
    }

    /// Deploys a stack with these outputs.
    pub fn put_stack(&self, name: &str, outputs: &[(&str, &str)]) {
        let outputs = outputs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.simulation.held.send_modify(|held| {
            held.stacks.insert(name.to_owned(), outputs);
        });
    }

    /// Deploys a function with these variables.
    pub fn put_function(&self, name: &str, variables: &[(String, String)]) {
        let variables = variables.iter().cloned().collect();
        self.simulation.held.send_modify(|held| {
            held.functions.insert(name.to_owned(), variables);
        });
    }

    /// A profile of a person who has signed in to IAM Identity Center, and the session's token as the AWS CLI keeps it.
    #[must_use]
    pub fn portal(&self) -> (String, String) {
        let profile = format!(
            "[sso-session polls]\nsso_region = {REGION}\nsso_start_url = https://polls.awsapps.com/start\n\
             [default]\nregion = {REGION}\nsso_session = polls\nsso_account_id = {ACCOUNT}\nsso_role_name = {ROLE}\n"
        );
        let expires_at = (self.simulation.clock.now() + TimeDelta::hours(1)).format("%Y-%m-%dT%H:%M:%SZ");
        let token = format!(
            r#"{{ "accessToken": "{SSO_TOKEN}", "expiresAt": "{expires_at}", "region": "{REGION}" }}"#
        );
        (profile, token)
    }

    /// Requests that came to this service, whatever became of them.
    #[must_use]
    pub fn requests(&self, service: Service) -> usize {
        self.simulation.held.borrow().requests(service)
    }

    /// Every request as it came, whatever became of it: its line, its headers and its body.
    #[must_use]
    pub fn recorded(&self) -> Vec<String> {
        self.simulation.recorded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until what is held fits; returns at once if it does already.
    pub async fn until(&self, condition: impl FnMut(&Held) -> bool) {
        // It can't fail: `self` holds a sender, so the channel stays open.
        let _ = self.simulation.held.subscribe().wait_for(condition).await;
    }

    /// Switches a fault on for the next `times` requests to this service. It replaces the former.
    pub fn fault(&self, service: Service, fault: Fault, times: usize) {
        self.simulation.held.send_modify(|held| held.faults.set(service, fault, times));
    }

    /// Switches all faults off.
    pub fn clear_faults(&self) {
        self.simulation.held.send_modify(|held| held.faults.clear());
    }

    /// When the next schedule fires.
    #[must_use]
    pub fn next_due(&self) -> Option<DateTime<Utc>> {
        self.simulation.held.borrow().schedules().filter(|one| !one.completed).map(|one| one.at).min()
    }

    /// Takes the schedules whose minute has come, the earliest first. Each is handed out once: it is deleted, or stays
    /// as completed, as it asked.
    #[must_use = "nobody else invokes their targets"]
    pub fn due(&self, now: DateTime<Utc>) -> Vec<Due> {
        let mut due = Vec::new();
        self.simulation.held.send_if_modified(|held| {
            due = held.take_due(now);
            !due.is_empty()
        });
        due
    }
}

impl Drop for SimulatedAws {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn router(simulation: Arc<Simulation>) -> Router {
    Router::new()
        .route("/", post(of_one_path))
        .route("/2015-03-31/functions/{name}/configuration", get(operator::function))
        .route("/federation/credentials", get(operator::credentials))
        .route("/schedule-groups/{name}", get(schedules::get_group))
        .route("/schedules", get(schedules::list))
        .route("/schedules/{name}", get(schedules::get).post(schedules::create).delete(schedules::delete))
        .fallback(async || {
            Refusal::new(Service::Scheduler, StatusCode::NOT_FOUND, "UnknownOperationException", "")
        })
        .layer(middleware::from_fn_with_state(simulation.clone(), record))
        .with_state(simulation)
}

/// Of the services that have one path for all, those that speak JSON 1.1 are told apart by the operation.
async fn of_one_path(State(simulation): State<Arc<Simulation>>, headers: HeaderMap, body: Bytes) -> Response {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if text("content-type") == Some("application/x-www-form-urlencoded") {
        let answer = simulation
            .admit(Service::CloudFormation, &headers)
            .and_then(|_| operator::describe(&simulation, &body));
        return answer.unwrap_or_else(Refusal::into_response);
    }
    let is_json = text("content-type") == Some("application/x-amz-json-1.1");
    let answer = match text("x-amz-target").filter(|_| is_json) {
        Some(events::TARGET) => simulation
            .admit(Service::Events, &headers)
            .and_then(|fault| events::put(&simulation, &body, fault)),
        Some(secrets::TARGET) => {
            simulation.admit(Service::Secrets, &headers).and_then(|_| secrets::get(&simulation, &body))
        }
        _ => Err(Refusal::new(Service::Events, StatusCode::BAD_REQUEST, "UnknownOperationException", "")),
    };
    answer.unwrap_or_else(Refusal::into_response)
}

async fn record(State(simulation): State<Arc<Simulation>>, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, LARGEST_REQUEST).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let text =
        format!("{} {}\n{:?}\n{}", head.method, head.uri, head.headers, String::from_utf8_lossy(&body));
    simulation.recorded.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    next.run(Request::from_parts(head, Body::from(body))).await
}

impl Simulation {
    /// What every request to a service goes through: it is counted, meets the fault that is switched on, and must be
    /// signed. A partial failure is the service's own to carry out.
    fn admit(&self, service: Service, headers: &HeaderMap) -> Result<Option<Fault>, Refusal> {
        let mut fault = None;
        self.held.send_modify(|held| fault = held.count(service));
        match fault {
            Some(Fault::HangUp) => Err(Refusal::HangUp),
            Some(Fault::Stall) => Err(Refusal::Stall),
            Some(Fault::Throttle) => Err(Refusal::throttled(service)),
            Some(Fault::ServerError) => Err(Refusal::internal(service)),
            Some(Fault::AccessDenied) => Err(Refusal::denied(service)),
            Some(Fault::FailEntries) | None => signature::check(service, headers).map(|()| fault),
        }
    }
}
