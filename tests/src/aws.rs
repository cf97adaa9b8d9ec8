//! The services of AWS that the program calls, on loopback: each takes the requests that the program makes, signed for it,
//! keeps what it is given, and answers as the real one does. It refuses every other request.

mod operations;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::{Value, json};
use tokens_aws::Access;
use tokens_domain::Clock;
use tokens_local::clock::TurnableClock;
use wiremock::{MockServer, Request, ResponseTemplate};

use self::operations::{OPERATIONS, secret_arn};

/// The region and the account of every ARN.
const REGION: &str = "eu-west-3";
const ACCOUNT: &str = "123456789012";

const KEY_ID: &str = "AKIALOCALSIMULATION0";
const SECRET: &str = "local-secret-of-the-simulated-aws";

/// The session of a person who signed in to IAM Identity Center, and the role that the session may take.
const SSO_TOKEN: &str = "local-token-of-the-simulated-portal";
const ROLE: &str = "operator";

/// The name of the only schedule group, and of the only event bus.
const NAME: &str = "token-refresh";

/// Longer than any client waits.
const STALLED: Duration = Duration::from_hours(1);

/// A service of AWS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// EventBridge Scheduler.
    Scheduler,
    /// EventBridge.
    Events,
    /// Secrets Manager.
    Secrets,
    /// `CloudFormation`.
    CloudFormation,
    /// Lambda.
    Lambda,
    /// The portal of IAM Identity Center, whose requests carry a token and no signature.
    Portal,
}

/// How requests fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Too many requests.
    Throttle,
    /// The service fails.
    ServerError,
    /// The caller may not do this.
    AccessDenied,
    /// The connection is closed without an answer.
    HangUp,
    /// There is no answer while the client waits.
    Stall,
    /// `PutEvents` answers 200, and has taken no entry.
    FailEntries,
}

/// A one-shot schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Unique.
    pub name: String,
    /// When it fires.
    pub at: DateTime<Utc>,
    /// The request that created it, without the SDK's `ClientToken`.
    pub body: Value,
}

impl Schedule {
    /// The event that the target gets.
    ///
    /// # Panics
    ///
    /// If it is not JSON.
    pub fn input(&self) -> Value {
        let input = self.body["Target"]["Input"].as_str().unwrap_or_default();
        serde_json::from_str(input).expect("the input is JSON")
    }
}

/// An event on the bus.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Event {
    /// The bus's name.
    #[serde(rename = "EventBusName")]
    pub bus: String,
    /// The program.
    pub source: String,
    /// The kind of event.
    pub detail_type: String,
    /// JSON, which is sent as text.
    #[serde(deserialize_with = "from_text")]
    pub detail: Value,
}

fn from_text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    let text = String::deserialize(deserializer)?;
    serde_json::from_str(&text).map_err(serde::de::Error::custom)
}

/// The running services. They stop when this is dropped.
pub struct SimulatedAws {
    server: MockServer,
    shared: Arc<Shared>,
}

/// What the services keep.
#[derive(Default)]
struct State {
    schedules: BTreeMap<String, Schedule>,
    events: Vec<Event>,
    /// Values, by name.
    secrets: HashMap<String, String>,
    /// Outputs, by the stack's name.
    stacks: HashMap<String, BTreeMap<String, String>>,
    /// Variables, by the function's name.
    functions: HashMap<String, BTreeMap<String, String>>,
    requests: HashMap<Service, usize>,
    /// The fault of each service, and how many requests it has yet to meet.
    faults: HashMap<Service, (Fault, usize)>,
}

struct Shared {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an operation answers: a body, or an error's status, code and message.
type Answer = Result<Value, (u16, &'static str, String)>;

impl SimulatedAws {
    /// Starts them, on the machine's time.
    pub async fn start() -> Result<Self> {
        Self::start_on(Arc::new(TurnableClock::running())).await
    }

    /// Starts them, on this clock: no schedule can be created for its past.
    pub async fn start_on(clock: Arc<dyn Clock>) -> Result<Self> {
        let server = MockServer::start().await;
        let shared = Arc::new(Shared { clock, state: Mutex::default() });
        for (service, requests, answer) in OPERATIONS {
            let state = shared.clone();
            let hangs_up =
                move |_: &Request| state.lock().meets(service, |fault| fault == Fault::HangUp).is_some();
            let reset = |_: &Request| io::Error::from(io::ErrorKind::ConnectionReset);
            requests().and(hangs_up).respond_with_err(reset).with_priority(1).mount(&server).await;

            let state = shared.clone();
            let respond = move |request: &Request| {
                *state.lock().requests.entry(service).or_default() += 1;
                let fault = state.lock().meets(service, |_| true);
                service.respond(match fault {
                    Some(Fault::Stall) => return ResponseTemplate::new(200).set_delay(STALLED),
                    Some(Fault::FailEntries) => {
                        let entry =
                            json!({ "ErrorCode": "InternalFailure", "ErrorMessage": "Something went wrong" });
                        Ok(json!({ "FailedEntryCount": 1, "Entries": [entry] }))
                    }
                    Some(fault) => Err(service.failure(fault)),
                    None => service.check_signature(request).and_then(|()| answer(&state, request)),
                })
            };
            requests().respond_with(respond).mount(&server).await;
        }
        Ok(Self { server, shared })
    }

    /// The base URL, without a slash at the end.
    pub fn endpoint(&self) -> String {
        self.server.uri()
    }

    /// The environment in which the program's binaries use these services.
    pub fn environment(&self) -> Vec<(String, String)> {
        let arn = |service, resource| format!("arn:aws:{service}:{REGION}:{ACCOUNT}:{resource}");
        [
            ("AWS_ENDPOINT_URL", self.endpoint()),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_ACCESS_KEY_ID", KEY_ID.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
            ("RETRY_GROUP", NAME.to_owned()),
            ("RETRY_TARGET_ARN", arn("lambda", "function:retry-refresh")),
            ("RETRY_ROLE_ARN", format!("arn:aws:iam::{ACCOUNT}:role/retry-refresh-schedules")),
            ("RETRY_DLQ_ARN", arn("sqs", "retry-refresh-dlq")),
            ("EVENT_BUS_NAME", NAME.to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// How this process uses them.
    pub fn access(&self) -> Access {
        Access::At {
            endpoint: self.endpoint(),
            region: REGION.to_owned(),
            key_id: KEY_ID.to_owned(),
            secret: SECRET.to_owned().into(),
        }
    }

    /// The schedules that have not fired, by name.
    pub fn schedules(&self) -> Vec<Schedule> {
        self.shared.lock().schedules.values().cloned().collect()
    }

    /// Removes the schedules that fire by then, the earliest first.
    pub fn due(&self, by: DateTime<Utc>) -> Vec<Schedule> {
        let mut state = self.shared.lock();
        let mut due: Vec<_> =
            state.schedules.extract_if(.., |_, one| one.at <= by).map(|(_, one)| one).collect();
        due.sort_by_key(|one| one.at);
        due
    }

    /// The events so far, in order.
    pub fn events(&self) -> Vec<Event> {
        self.shared.lock().events.clone()
    }

    /// Gives this secret a new value; it need not exist. Answers its ARN.
    pub fn put_secret(&self, name: &str, value: impl Into<String>) -> String {
        self.shared.lock().secrets.insert(name.to_owned(), value.into());
        secret_arn(name)
    }

    /// Deploys a stack with these outputs.
    pub fn put_stack(&self, name: &str, outputs: &[(&str, &str)]) {
        let outputs = outputs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        self.shared.lock().stacks.insert(name.to_owned(), outputs.collect());
    }

    /// Deploys a function with these variables.
    pub fn put_function(&self, name: &str, variables: &[(String, String)]) {
        self.shared.lock().functions.insert(name.to_owned(), variables.iter().cloned().collect());
    }

    /// The profile of a person who has signed in to IAM Identity Center, and the session's token as the AWS CLI keeps it.
    pub fn portal(&self) -> (String, String) {
        let profile = format!(
            "[sso-session polls]\nsso_region = {REGION}\nsso_start_url = https://polls.awsapps.com/start\n\
             [default]\nregion = {REGION}\nsso_session = polls\nsso_account_id = {ACCOUNT}\nsso_role_name = {ROLE}\n"
        );
        let expires_at = (self.shared.clock.now() + TimeDelta::hours(1)).format("%Y-%m-%dT%H:%M:%SZ");
        let token = format!(
            r#"{{ "accessToken": "{SSO_TOKEN}", "expiresAt": "{expires_at}", "region": "{REGION}" }}"#
        );
        (profile, token)
    }

    /// How many requests this service has got, failed ones included.
    pub fn requests(&self, service: Service) -> usize {
        self.shared.lock().requests.get(&service).copied().unwrap_or_default()
    }

    /// Every request so far: its line, its headers and its body.
    ///
    /// # Panics
    ///
    /// Never: requests are recorded.
    pub async fn recorded(&self) -> Vec<String> {
        let requests = self.server.received_requests().await.expect("requests are recorded");
        let text = |request: &Request| {
            let body = String::from_utf8_lossy(&request.body);
            let query = request.url.query().map(|query| format!("?{query}")).unwrap_or_default();
            format!("{} {}{query}\n{:?}\n{body}", request.method, request.url.path(), request.headers)
        };
        requests.iter().map(text).collect()
    }

    /// The next requests to this service, as many as `times`, fail like this. It replaces an earlier fault.
    pub fn fault(&self, service: Service, fault: Fault, times: usize) {
        self.shared.lock().faults.insert(service, (fault, times));
    }

    /// Ends all faults.
    pub fn clear_faults(&self) {
        self.shared.lock().faults.clear();
    }
}

impl State {
    /// The fault that a request to this service meets, if it is one of these.
    fn meets(&mut self, service: Service, one_of: impl Fn(Fault) -> bool) -> Option<Fault> {
        let (fault, times) =
            self.faults.get_mut(&service).filter(|(fault, times)| *times > 0 && one_of(*fault))?;
        *times -= 1;
        let fault = *fault;
        // The one that hangs up is met before a request is answered and counted.
        if fault == Fault::HangUp {
            *self.requests.entry(service).or_default() += 1;
        }
        Some(fault)
    }
}

impl Service {
    /// The name in a signature's scope, and the right that a caller needs.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Scheduler => ("scheduler", "scheduler:CreateSchedule"),
            Self::Events => ("events", "events:PutEvents"),
            Self::Secrets => ("secretsmanager", "secretsmanager:GetSecretValue"),
            Self::CloudFormation => ("cloudformation", "cloudformation:DescribeStacks"),
            Self::Lambda => ("lambda", "lambda:GetFunctionConfiguration"),
            Self::Portal => ("", "sso:GetRoleCredentials"),
        }
    }

    /// Whether errors are sent with the status 400, and their code in the body (JSON 1.1).
    fn is_json_1_1(self) -> bool {
        matches!(self, Self::Events | Self::Secrets)
    }

    /// By our key, for this service and region. The signature itself is the SDK's business.
    fn check_signature(self, request: &Request) -> Result<(), (u16, &'static str, String)> {
        let text =
            |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let is_signed = if self == Self::Portal {
            text("x-amz-sso_bearer_token") == SSO_TOKEN
        } else {
            let scope = format!("/{REGION}/{}/aws4_request, SignedHeaders=", self.names().0);
            let authorization = text("authorization");
            authorization.starts_with(&format!("AWS4-HMAC-SHA256 Credential={KEY_ID}/"))
                && authorization.contains(&scope)
                && authorization.contains("host")
                && authorization.contains(", Signature=")
        };
        let refusal =
            || (403, "IncompleteSignatureException", "The request is not signed for this".to_owned());
        is_signed.then_some(()).ok_or_else(refusal)
    }

    fn failure(self, fault: Fault) -> (u16, &'static str, String) {
        let status = |status| if self.is_json_1_1() { 400 } else { status };
        match fault {
            Fault::Throttle => {
                let code = match self {
                    Self::CloudFormation => "Throttling",
                    Self::Lambda | Self::Portal => "TooManyRequestsException",
                    Self::Scheduler | Self::Events | Self::Secrets => "ThrottlingException",
                };
                (status(429), code, "Rate exceeded".to_owned())
            }
            Fault::AccessDenied => {
                let code =
                    if self == Self::CloudFormation { "AccessDenied" } else { "AccessDeniedException" };
                let message = format!("User is not authorized to perform: {}", self.names().1);
                (status(403), code, message)
            }
            _ => (500, "InternalServerException", "Unexpected error".to_owned()),
        }
    }

    /// The answer in this service's protocol.
    fn respond(self, answer: Answer) -> ResponseTemplate {
        match answer {
            Ok(Value::String(xml)) => ResponseTemplate::new(200).set_body_raw(xml, "text/xml"),
            Ok(body) => ResponseTemplate::new(200).set_body_json(body),
            Err((status, code, message)) if self == Self::CloudFormation => {
                let xml = format!(
                    "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>\
                     </ErrorResponse>"
                );
                ResponseTemplate::new(status).set_body_raw(xml, "text/xml")
            }
            Err((status, code, message)) if self.is_json_1_1() => {
                ResponseTemplate::new(status).set_body_json(json!({ "__type": code, "message": message }))
            }
            Err((status, code, message)) => ResponseTemplate::new(status)
                .insert_header("x-amzn-errortype", code)
                .set_body_json(json!({ "Message": message })),
        }
    }
}
