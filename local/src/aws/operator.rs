//! What the command asks and the functions don't: CloudFormation's `DescribeStacks` (Query), Lambda's
//! `GetFunctionConfiguration` and `GetRoleCredentials` of IAM Identity Center's portal (REST, JSON).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use chrono::TimeDelta;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::answer::{self, Refusal, xml};
use super::{ACCOUNT, KEY_ID, REGION, ROLE, SECRET, Service, Simulation};

/// What a stack says: its outputs.
pub(super) type Outputs = BTreeMap<String, String>;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct DescribeStacks {
    action: String,
    version: String,
    stack_name: String,
}

pub(super) fn describe(simulation: &Simulation, body: &Bytes) -> Result<Response, Refusal> {
    let refused =
        |code, message: String| Refusal::new(Service::CloudFormation, StatusCode::BAD_REQUEST, code, message);
    let DescribeStacks { action, version, stack_name } =
        form(body).map_err(|message| refused("ValidationError", message))?;
    if (action.as_str(), version.as_str()) != ("DescribeStacks", "2010-05-15") {
        return Err(refused(
            "InvalidAction",
            format!("Could not find operation {action} for version {version}"),
        ));
    }
    let held = simulation.held.borrow();
    let outputs = held
        .stacks
        .get(&stack_name)
        .ok_or_else(|| refused("ValidationError", format!("Stack with id {stack_name} does not exist")))?;
    let mut members = String::new();
    for (key, value) in outputs {
        let value = xml(value);
        let _ = write!(
            members,
            "<member><OutputKey>{key}</OutputKey><OutputValue>{value}</OutputValue></member>"
        );
    }
    let name = xml(&stack_name);
    let created = simulation.clock.now().format("%Y-%m-%dT%H:%M:%SZ");
    Ok(answer::query(
        StatusCode::OK,
        format!(
            "<DescribeStacksResponse xmlns=\"http://cloudformation.amazonaws.com/doc/2010-05-15/\"><DescribeStacksResult>\
             <Stacks><member><StackId>arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack/{name}/1</StackId><StackName>{name}\
             </StackName><CreationTime>{created}</CreationTime><StackStatus>CREATE_COMPLETE</StackStatus>\
             <Outputs>{members}</Outputs></member></Stacks></DescribeStacksResult></DescribeStacksResponse>"
        ),
    ))
}

fn form<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    let pairs: BTreeMap<String, String> = url::form_urlencoded::parse(text).into_owned().collect();
    serde_json::from_value(json!(pairs)).map_err(|error| error.to_string())
}

pub(super) async fn function(
    State(simulation): State<Arc<Simulation>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    let found = simulation.admit(Service::Lambda, &headers).and_then(|_| {
        let held = simulation.held.borrow();
        let arn = format!("arn:aws:lambda:{REGION}:{ACCOUNT}:function:{name}");
        let variables = held.functions.get(&name).ok_or_else(|| {
            let message = format!("Function not found: {arn}");
            Refusal::new(Service::Lambda, StatusCode::NOT_FOUND, "ResourceNotFoundException", message)
        })?;
        let body = json!({
            "FunctionName": name,
            "FunctionArn": arn,
            "Environment": { "Variables": variables },
        });
        Ok(answer::rest(StatusCode::OK, &body))
    });
    found.unwrap_or_else(Refusal::into_response)
}

/// What a role's credentials are asked for with; all of it has to be that of the one who has signed in.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfRole {
    role_name: String,
    account_id: String,
}

pub(super) async fn credentials(
    State(simulation): State<Arc<Simulation>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let found = simulation.admit(Service::Portal, &headers).and_then(|_| {
        let asked = form(query.unwrap_or_default().as_bytes());
        let is_known = asked.is_ok_and(|of: OfRole| of.account_id == ACCOUNT && of.role_name == ROLE);
        if !is_known {
            return Err(Refusal::new(Service::Portal, StatusCode::FORBIDDEN, "ForbiddenException", "No access"));
        }
        let expiration = (simulation.clock.now() + TimeDelta::hours(1)).timestamp_millis();
        let credentials = json!({
            "accessKeyId": KEY_ID, "secretAccessKey": SECRET, "sessionToken": "of-a-session", "expiration": expiration,
        });
        Ok(answer::rest(StatusCode::OK, &json!({ "roleCredentials": credentials })))
    });
    found.unwrap_or_else(Refusal::into_response)
}
