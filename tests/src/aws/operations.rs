//! What each operation answers, from the request and what the services keep.

use std::collections::{BTreeMap, HashMap};

use chrono::{NaiveDateTime, TimeDelta};
use serde_json::{Value, json};
use url::form_urlencoded;
use uuid::Uuid;
use wiremock::matchers::{header, method, path, path_regex};
use wiremock::{Mock, MockBuilder, Request};

use super::{ACCOUNT, Answer, Event, KEY_ID, NAME, REGION, ROLE, SECRET, Schedule, Service, Shared};

/// An operation: its service, the requests that are for it, and its answer.
pub(super) type Operation = (Service, fn() -> MockBuilder, fn(&Shared, &Request) -> Answer);

pub(super) const OPERATIONS: [Operation; 7] = [
    (
        Service::Scheduler,
        || Mock::given(method("POST")).and(path_regex("^/schedules/[0-9a-zA-Z_.-]{1,64}$")),
        create_schedule,
    ),
    (
        Service::Scheduler,
        || Mock::given(method("GET")).and(path_regex("^/schedule-groups/[^/]+$")),
        get_schedule_group,
    ),
    (Service::Events, || Mock::given(header("x-amz-target", "AWSEvents.PutEvents")), put_events),
    (
        Service::Secrets,
        || Mock::given(header("x-amz-target", "secretsmanager.GetSecretValue")),
        get_secret_value,
    ),
    (
        Service::CloudFormation,
        || Mock::given(method("POST")).and(header("content-type", "application/x-www-form-urlencoded")),
        describe_stacks,
    ),
    (
        Service::Lambda,
        || Mock::given(method("GET")).and(path_regex("^/2015-03-31/functions/[^/]+/configuration$")),
        get_function_configuration,
    ),
    (
        Service::Portal,
        || Mock::given(method("GET")).and(path("/federation/credentials")),
        get_role_credentials,
    ),
];

fn not_found(message: String) -> (u16, &'static str, String) {
    (404, "ResourceNotFoundException", message)
}

/// The request's body as JSON; null if it is not JSON.
fn json_of(request: &Request) -> Value {
    serde_json::from_slice(&request.body).unwrap_or_default()
}

fn last_segment(request: &Request) -> &str {
    request.url.path().rsplit('/').next().unwrap_or_default()
}

/// Checks what the real one would refuse for reasons outside the request: the group, the time and the name. A test holds
/// the request itself against the exact JSON.
fn create_schedule(shared: &Shared, request: &Request) -> Answer {
    let invalid = |message: &str| (400, "ValidationException", message.to_owned());
    let name = last_segment(request);
    let mut body = json_of(request);
    let token = body.as_object_mut().and_then(|body| body.remove("ClientToken"));
    if !token.is_some_and(|token| token.is_string()) {
        return Err(invalid("no ClientToken"));
    }
    if body["GroupName"] != NAME {
        return Err(not_found(format!("Schedule group {} does not exist.", body["GroupName"])));
    }
    let expression = body["ScheduleExpression"].as_str().unwrap_or_default();
    let at = NaiveDateTime::parse_from_str(expression, "at(%Y-%m-%dT%H:%M:%S)")
        .map_err(|_| invalid("Invalid Schedule Expression"))?
        .and_utc();
    if at <= shared.clock.now() {
        return Err(invalid("The schedule is in the past"));
    }
    let mut state = shared.lock();
    if state.schedules.contains_key(name) {
        return Err((409, "ConflictException", format!("Schedule {name} already exists.")));
    }
    state.schedules.insert(name.to_owned(), Schedule { name: name.to_owned(), at, body });
    let arn = format!("arn:aws:scheduler:{REGION}:{ACCOUNT}:schedule/{NAME}/{name}");
    Ok(json!({ "ScheduleArn": arn }))
}

fn get_schedule_group(_: &Shared, request: &Request) -> Answer {
    match last_segment(request) {
        NAME => Ok(json!({ "Name": NAME, "State": "ACTIVE" })),
        other => Err(not_found(format!("Schedule group {other} does not exist."))),
    }
}

fn put_events(shared: &Shared, request: &Request) -> Answer {
    let mut entries = Vec::new();
    for entry in json_of(request)["Entries"].as_array().into_iter().flatten() {
        entries.push(match serde_json::from_value::<Event>(entry.clone()) {
            Ok(event) if event.bus == NAME => {
                shared.lock().events.push(event);
                json!({ "EventId": Uuid::new_v4() })
            }
            Ok(event) => {
                let message = format!("Event bus {} does not exist.", event.bus);
                json!({ "ErrorCode": "InvalidArgument", "ErrorMessage": message })
            }
            Err(error) => json!({ "ErrorCode": "MalformedDetail", "ErrorMessage": error.to_string() }),
        });
    }
    if entries.is_empty() {
        return Err((400, "ValidationException", "1 to 10 entries are needed".to_owned()));
    }
    let failed = entries.iter().filter(|entry| entry.get("ErrorCode").is_some()).count();
    Ok(json!({ "FailedEntryCount": failed, "Entries": entries }))
}

/// The real ones end in six random characters.
pub(super) fn secret_arn(name: &str) -> String {
    format!("arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:{name}-l0CaL5")
}

fn get_secret_value(shared: &Shared, request: &Request) -> Answer {
    let body = json_of(request);
    let id = body["SecretId"].as_str().unwrap_or_default();
    let state = shared.lock();
    let found = state.secrets.iter().find(|(name, _)| *name == id || secret_arn(name) == id);
    let (name, value) = found.ok_or_else(|| {
        let message = "Secrets Manager can't find the specified secret.".to_owned();
        (400, "ResourceNotFoundException", message)
    })?;
    Ok(json!({ "Name": name, "SecretString": value }))
}

fn describe_stacks(shared: &Shared, request: &Request) -> Answer {
    let form: HashMap<_, _> = form_urlencoded::parse(&request.body).into_owned().collect();
    let name = form.get("StackName").map(String::as_str).unwrap_or_default();
    let state = shared.lock();
    let outputs = state
        .stacks
        .get(name)
        .filter(|_| form["Action"] == "DescribeStacks")
        .ok_or_else(|| (400, "ValidationError", format!("Stack with id {name} does not exist")))?;
    let escaped = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let member = |(key, value): (&String, &String)| {
        let value = escaped(value);
        format!("<member><OutputKey>{key}</OutputKey><OutputValue>{value}</OutputValue></member>")
    };
    let outputs: String = outputs.iter().map(member).collect();
    Ok(Value::String(format!(
        "<DescribeStacksResponse><DescribeStacksResult><Stacks><member><StackName>{name}</StackName>\
         <CreationTime>2026-11-23T04:00:00Z</CreationTime><StackStatus>CREATE_COMPLETE</StackStatus>\
         <Outputs>{outputs}</Outputs></member></Stacks></DescribeStacksResult></DescribeStacksResponse>"
    )))
}

fn get_function_configuration(shared: &Shared, request: &Request) -> Answer {
    let name = request.url.path_segments().and_then(|mut segments| segments.nth(2)).unwrap_or_default();
    let state = shared.lock();
    let variables = state.functions.get(name).ok_or_else(|| {
        not_found(format!("Function not found: arn:aws:lambda:{REGION}:{ACCOUNT}:function:{name}"))
    })?;
    Ok(json!({ "FunctionName": name, "Environment": { "Variables": variables } }))
}

fn get_role_credentials(shared: &Shared, request: &Request) -> Answer {
    let query: BTreeMap<_, _> = request.url.query_pairs().into_owned().collect();
    let expected = [("account_id", ACCOUNT), ("role_name", ROLE)];
    if query != expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into() {
        return Err((403, "ForbiddenException", "No access".to_owned()));
    }
    let expiration = (shared.clock.now() + TimeDelta::hours(1)).timestamp_millis();
    let credentials = json!({
        "accessKeyId": KEY_ID, "secretAccessKey": SECRET, "sessionToken": "of-a-session", "expiration": expiration,
    });
    Ok(json!({ "roleCredentials": credentials }))
}
