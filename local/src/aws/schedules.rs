//! EventBridge Scheduler's REST API, as far as one-shots need it.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, NaiveDateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Refusal, rest};
use super::{ACCOUNT, GROUP, REGION, Schedule, Service, Simulation};

/// In bytes.
const LARGEST_INPUT: usize = 256 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct CreateSchedule {
    action_after_completion: Option<String>,
    client_token: Option<String>,
    flexible_time_window: FlexibleTimeWindow,
    group_name: Option<String>,
    schedule_expression: String,
    schedule_expression_timezone: Option<String>,
    target: Target,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct FlexibleTimeWindow {
    mode: String,
    maximum_window_in_minutes: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Target {
    arn: String,
    role_arn: String,
    input: Option<String>,
    retry_policy: Option<RetryPolicy>,
    dead_letter_config: Option<DeadLetterConfig>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct RetryPolicy {
    maximum_event_age_in_seconds: Option<u32>,
    maximum_retry_attempts: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct DeadLetterConfig {
    arn: Option<String>,
}

pub(super) async fn create(
    State(simulation): State<Arc<Simulation>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    admitted(&simulation, &headers, || {
        let schedule = read(name, &body, simulation.clock.now())?;
        let arn = schedule.arn();
        let mut taken = false;
        simulation.held.send_if_modified(|held| {
            let key = (schedule.group.clone(), schedule.name.clone());
            let former = held.schedules.get(&key);
            // The same call again, whose first answer was lost.
            let repeated = former.is_some_and(|former| former.client_token == schedule.client_token);
            taken = former.is_some() && !(repeated && schedule.client_token.is_some());
            let is_new = former.is_none();
            if is_new {
                held.schedules.insert(key, schedule);
            }
            is_new
        });
        if taken {
            let message = format!("The schedule {arn} already exists.");
            return Err(Refusal::new(Service::Scheduler, StatusCode::CONFLICT, "ConflictException", message));
        }
        Ok(rest(StatusCode::OK, &json!({ "ScheduleArn": arn })))
    })
}

pub(super) async fn get(
    State(simulation): State<Arc<Simulation>>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    admitted(&simulation, &headers, || {
        let held = simulation.held.borrow();
        let schedule = held.schedules.get(&key(&name, query.as_deref())).ok_or_else(|| not_found(&name))?;
        Ok(rest(StatusCode::OK, &shown(schedule)))
    })
}

pub(super) async fn delete(
    State(simulation): State<Arc<Simulation>>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    admitted(&simulation, &headers, || {
        let mut removed = None;
        simulation.held.send_modify(|held| removed = held.schedules.remove(&key(&name, query.as_deref())));
        removed.map(|_| rest(StatusCode::OK, &json!({}))).ok_or_else(|| not_found(&name))
    })
}

pub(super) async fn list(
    State(simulation): State<Arc<Simulation>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    admitted(&simulation, &headers, || {
        let of = |name| parameter(query.as_deref(), name);
        let (group, prefix) = (of("ScheduleGroup"), of("NamePrefix").unwrap_or_default());
        if let Some(group) = &group {
            known_group(group)?;
        }
        let held = simulation.held.borrow();
        let fitting = held.schedules().filter(|schedule| {
            group.as_ref().is_none_or(|group| schedule.group == *group) && schedule.name.starts_with(&prefix)
        });
        let summary = |schedule: &Schedule| {
            json!({
                "Arn": schedule.arn(),
                "Name": schedule.name,
                "GroupName": schedule.group,
                "State": "ENABLED",
                "Target": { "Arn": schedule.target_arn },
            })
        };
        Ok(rest(StatusCode::OK, &json!({ "Schedules": fitting.map(summary).collect::<Vec<_>>() })))
    })
}

pub(super) async fn get_group(
    State(simulation): State<Arc<Simulation>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    admitted(&simulation, &headers, || {
        known_group(&name)?;
        let arn = format!("arn:aws:scheduler:{REGION}:{ACCOUNT}:schedule-group/{name}");
        Ok(rest(StatusCode::OK, &json!({ "Arn": arn, "Name": name, "State": "ACTIVE" })))
    })
}

fn admitted(
    simulation: &Simulation,
    headers: &HeaderMap,
    answer: impl FnOnce() -> Result<Response, Refusal>,
) -> Response {
    let admitted = simulation.admit(Service::Scheduler, headers);
    admitted.and_then(|_| answer()).unwrap_or_else(Refusal::into_response)
}

/// Checks all that the real one checks.
fn read(name: String, body: &[u8], now: DateTime<Utc>) -> Result<Schedule, Refusal> {
    let invalid = |message: String| Refusal::invalid(Service::Scheduler, message);
    let asked: CreateSchedule = serde_json::from_slice(body).map_err(|error| invalid(error.to_string()))?;
    if !is_name(&name) {
        return Err(invalid(
            "Value at 'name' failed to satisfy constraint: [0-9a-zA-Z-_.]+, 1 to 64".to_owned(),
        ));
    }
    let group = asked.group_name.unwrap_or_else(|| "default".to_owned());
    known_group(&group)?;
    match (asked.flexible_time_window.mode.as_str(), asked.flexible_time_window.maximum_window_in_minutes) {
        ("OFF", None) | ("FLEXIBLE", Some(1..=1440)) => {}
        _ => return Err(invalid("Invalid FlexibleTimeWindow".to_owned())),
    }
    let timezone = asked.schedule_expression_timezone.unwrap_or_else(|| "UTC".to_owned());
    if timezone != "UTC" {
        return Err(invalid(format!("The simulation knows no time zone but UTC, not {timezone}")));
    }
    let at = at(&asked.schedule_expression)
        .ok_or_else(|| invalid(format!("Invalid Schedule Expression {}.", asked.schedule_expression)))?;
    if at <= now {
        return Err(invalid(format!("{} is in the past", asked.schedule_expression)));
    }
    let action_after_completion = asked.action_after_completion.unwrap_or_else(|| "NONE".to_owned());
    if !["NONE", "DELETE"].contains(&action_after_completion.as_str()) {
        return Err(invalid("Invalid ActionAfterCompletion".to_owned()));
    }
    let target = asked.target;
    if !target.arn.starts_with(&format!("arn:aws:lambda:{REGION}:{ACCOUNT}:function:")) {
        return Err(invalid(format!("Provided Arn is not in correct format: {}", target.arn)));
    }
    if !target.role_arn.starts_with(&format!("arn:aws:iam::{ACCOUNT}:role/")) {
        return Err(invalid(format!("Provided RoleArn is not in correct format: {}", target.role_arn)));
    }
    let dead_letter_arn = target.dead_letter_config.and_then(|config| config.arn);
    if dead_letter_arn
        .as_ref()
        .is_some_and(|arn| !arn.starts_with(&format!("arn:aws:sqs:{REGION}:{ACCOUNT}:")))
    {
        return Err(invalid("Provided dead-letter queue Arn is not in correct format".to_owned()));
    }
    let policy = target.retry_policy;
    let maximum_event_age =
        policy.as_ref().and_then(|policy| policy.maximum_event_age_in_seconds).unwrap_or(86_400);
    let maximum_retry_attempts =
        policy.as_ref().and_then(|policy| policy.maximum_retry_attempts).unwrap_or(185);
    if !(60..=86_400).contains(&maximum_event_age) || maximum_retry_attempts > 185 {
        return Err(invalid("Invalid RetryPolicy: 60 to 86400 seconds, 0 to 185 attempts".to_owned()));
    }
    let input = target.input.unwrap_or_else(|| "{}".to_owned());
    let input = serde_json::from_str(&input).ok().filter(|_| input.len() <= LARGEST_INPUT);
    let input: Value = input.ok_or_else(|| invalid("Input is not JSON, or too large".to_owned()))?;
    if asked.client_token.as_ref().is_some_and(|token| token.is_empty() || token.len() > 64) {
        return Err(invalid("Invalid ClientToken".to_owned()));
    }
    Ok(Schedule {
        group,
        name,
        expression: asked.schedule_expression,
        timezone,
        at,
        action_after_completion,
        target_arn: target.arn,
        role_arn: target.role_arn,
        input,
        maximum_event_age,
        maximum_retry_attempts,
        dead_letter_arn,
        completed: false,
        client_token: asked.client_token,
    })
}

fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=64).contains(&text.len()) && text.bytes().all(allowed)
}

/// `at(yyyy-mm-ddThh:mm:ss)`, and nothing else: no offset, no fraction.
fn at(expression: &str) -> Option<DateTime<Utc>> {
    let text = expression.strip_prefix("at(")?.strip_suffix(')')?;
    let at = NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S").ok()?.and_utc();
    (text.len() == 19).then_some(at)
}

fn known_group(group: &str) -> Result<(), Refusal> {
    if [GROUP, "default"].contains(&group) {
        return Ok(());
    }
    let message = format!("Schedule group {group} does not exist.");
    Err(Refusal::new(Service::Scheduler, StatusCode::NOT_FOUND, "ResourceNotFoundException", message))
}

fn not_found(name: &str) -> Refusal {
    let message = format!("Schedule {name} does not exist.");
    Refusal::new(Service::Scheduler, StatusCode::NOT_FOUND, "ResourceNotFoundException", message)
}

fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let query = query.unwrap_or_default().as_bytes();
    url::form_urlencoded::parse(query).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

fn key(name: &str, query: Option<&str>) -> (String, String) {
    (parameter(query, "groupName").unwrap_or_else(|| "default".to_owned()), name.to_owned())
}

fn shown(schedule: &Schedule) -> Value {
    json!({
        "Arn": schedule.arn(),
        "Name": schedule.name,
        "GroupName": schedule.group,
        "ActionAfterCompletion": schedule.action_after_completion,
        "FlexibleTimeWindow": { "Mode": "OFF" },
        "ScheduleExpression": schedule.expression,
        "ScheduleExpressionTimezone": schedule.timezone,
        "State": "ENABLED",
        "Target": {
            "Arn": schedule.target_arn,
            "RoleArn": schedule.role_arn,
            "Input": schedule.input.to_string(),
            "RetryPolicy": {
                "MaximumEventAgeInSeconds": schedule.maximum_event_age,
                "MaximumRetryAttempts": schedule.maximum_retry_attempts,
            },
            "DeadLetterConfig": schedule.dead_letter_arn.as_ref().map(|arn| json!({ "Arn": arn })),
        },
    })
}
