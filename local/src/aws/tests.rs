//! What the real services refuse is refused here.

use std::sync::Arc;

use chrono::TimeDelta;
use reqwest::{Client, Method};
use serde_json::{Value, json};

use super::*;

const NOW: &str = "2026-11-23T04:00:00Z";

struct Stage {
    aws: SimulatedAws,
    client: Client,
}

impl Stage {
    async fn new() -> Self {
        // A test's binary installs no provider; whichever comes first serves all.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let clock = Arc::new(TurnableClock::frozen_at(NOW.parse().unwrap()));
        Self {
            aws: SimulatedAws::start_on(clock).await.unwrap(),
            client: Client::builder().no_proxy().build().unwrap(),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, String)],
        body: &Value,
    ) -> (u16, String, Value) {
        let mut request = self.client.request(method, format!("{}{path}", self.aws.endpoint()));
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let response = request.body(body.to_string()).send().await.unwrap();
        let status = response.status().as_u16();
        let kind = response.headers().get("x-amzn-errortype").map(|kind| kind.to_str().unwrap().to_owned());
        let body: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or_default();
        let kind = kind.or_else(|| Some(body["__type"].as_str()?.to_owned()));
        (status, kind.unwrap_or_default(), body)
    }

    async fn schedule(&self, method: Method, path: &str, body: &Value) -> (u16, String, Value) {
        self.send(method, path, &signed("scheduler"), body).await
    }

    async fn secret(&self, body: &Value) -> (u16, String, Value) {
        let mut headers = signed("secretsmanager");
        headers.push(("x-amz-target", "secretsmanager.GetSecretValue".to_owned()));
        headers.push(("content-type", "application/x-amz-json-1.1".to_owned()));
        self.send(Method::POST, "/", &headers, body).await
    }

    async fn put(&self, body: &Value) -> (u16, String, Value) {
        let mut headers = signed("events");
        headers.push(("x-amz-target", "AWSEvents.PutEvents".to_owned()));
        headers.push(("content-type", "application/x-amz-json-1.1".to_owned()));
        self.send(Method::POST, "/", &headers, body).await
    }
}

fn signed(service: &str) -> Vec<(&'static str, String)> {
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={KEY_ID}/20261123/{REGION}/{service}/aws4_request, \
         SignedHeaders=host;x-amz-date, Signature={}",
        "0a".repeat(32)
    );
    vec![("authorization", authorization), ("x-amz-date", "20261123T040000Z".to_owned())]
}

/// A right one.
fn schedule() -> Value {
    json!({
        "ActionAfterCompletion": "DELETE",
        "FlexibleTimeWindow": { "Mode": "OFF" },
        "GroupName": GROUP,
        "ScheduleExpression": "at(2026-11-23T04:15:00)",
        "ScheduleExpressionTimezone": "UTC",
        "Target": {
            "Arn": "arn:aws:lambda:eu-west-3:123456789012:function:retry-refresh",
            "RoleArn": "arn:aws:iam::123456789012:role/retry",
            "Input": "{\"trigger\":\"retry\"}",
            "RetryPolicy": { "MaximumEventAgeInSeconds": 900, "MaximumRetryAttempts": 10 },
        },
    })
}

fn changed(mut value: Value, pointer: &str, new: Value) -> Value {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    value.pointer_mut(parent).unwrap()[name] = new;
    value
}

#[tokio::test]
async fn a_request_must_be_signed_for_the_service() {
    let stage = Stage::new().await;
    let unsigned = stage.send(Method::POST, "/schedules/one", &[], &schedule()).await;
    assert_eq!((unsigned.0, unsigned.1.as_str()), (403, "MissingAuthenticationTokenException"));
    let elsewhere = stage.send(Method::POST, "/schedules/one", &signed("events"), &schedule()).await;
    assert_eq!((elsewhere.0, elsewhere.1.as_str()), (403, "InvalidSignatureException"));
    for (from, to) in [
        ("AWS4-HMAC-SHA256 ", "AWS3 "),
        ("host;", ""),
        ("host;x-amz-date", "x-amz-date;host"),
        ("Signature=0a", "Signature=0A"),
        ("Signature=0a", "Signature="),
    ] {
        let mut headers = signed("scheduler");
        headers[0].1 = headers[0].1.replace(from, to);
        let (status, kind, _) = stage.send(Method::POST, "/schedules/one", &headers, &schedule()).await;
        assert_eq!((status, kind.as_str()), (403, "IncompleteSignatureException"), "{to}");
    }
    assert!(stage.aws.schedules().is_empty());
}

#[tokio::test]
async fn a_schedule_that_the_real_one_refuses_is_refused() {
    let stage = Stage::new().await;
    for (pointer, new) in [
        ("/ScheduleExpression", json!("at(2026-11-23T04:15:00Z)")),
        ("/ScheduleExpression", json!("at(2026-11-23T04:15)")),
        ("/ScheduleExpression", json!("at(2026-11-23 04:15:00)")),
        ("/ScheduleExpression", json!("at(2026-11-23T03:59:00)")),
        ("/ScheduleExpression", json!("2026-11-23T04:15:00")),
        ("/ScheduleExpressionTimezone", json!("Europe/Paris")),
        ("/ActionAfterCompletion", json!("delete")),
        ("/FlexibleTimeWindow", json!(null)),
        ("/FlexibleTimeWindow", json!({ "Mode": "FLEXIBLE" })),
        ("/Target/Arn", json!("retry-refresh")),
        ("/Target/RoleArn", json!("arn:aws:iam::123456789012:user/retry")),
        ("/Target/RoleArn", json!(null)),
        ("/Target/Input", json!("{")),
        ("/Target/RetryPolicy/MaximumEventAgeInSeconds", json!(59)),
        ("/Target/RetryPolicy/MaximumEventAgeInSeconds", json!(86_401)),
        ("/Target/RetryPolicy/MaximumRetryAttempts", json!(186)),
        ("/Target/DeadLetterConfig", json!({ "Arn": "retry-dlq" })),
        ("/Targets", json!([])),
    ] {
        let body = changed(schedule(), pointer, new);
        let (status, kind, body) = stage.schedule(Method::POST, "/schedules/one", &body).await;
        assert_eq!((status, kind.as_str()), (400, "ValidationException"), "{pointer}: {body}");
    }
    for name in ["one%20two", "one+two", &"x".repeat(65)] {
        let (status, ..) = stage.schedule(Method::POST, &format!("/schedules/{name}"), &schedule()).await;
        assert_eq!(status, 400, "{name}");
    }
    let body = changed(schedule(), "/GroupName", json!("elsewhere"));
    let (status, kind, _) = stage.schedule(Method::POST, "/schedules/one", &body).await;
    assert_eq!((status, kind.as_str()), (404, "ResourceNotFoundException"));
    assert!(stage.aws.schedules().is_empty());
}

#[tokio::test]
async fn a_name_is_taken_once_and_only_the_same_call_may_come_again() {
    let stage = Stage::new().await;
    let mine = changed(schedule(), "/ClientToken", json!("mine"));
    assert_eq!(stage.schedule(Method::POST, "/schedules/one", &mine).await.0, 200);
    assert_eq!(stage.schedule(Method::POST, "/schedules/one", &mine).await.0, 200);
    let theirs = changed(schedule(), "/ClientToken", json!("theirs"));
    for other in [schedule(), theirs] {
        let (status, kind, _) = stage.schedule(Method::POST, "/schedules/one", &other).await;
        assert_eq!((status, kind.as_str()), (409, "ConflictException"));
    }
    assert_eq!(stage.aws.schedules().len(), 1);
}

#[tokio::test]
async fn what_is_kept_can_be_looked_at_and_deleted() {
    let stage = Stage::new().await;
    let none = json!(null);
    stage.schedule(Method::POST, "/schedules/one", &schedule()).await;
    let (status, _, shown) =
        stage.schedule(Method::GET, "/schedules/one?groupName=token-refresh", &none).await;
    assert_eq!((status, &shown["ScheduleExpression"]), (200, &json!("at(2026-11-23T04:15:00)")));
    assert_eq!(stage.schedule(Method::GET, "/schedules/one", &none).await.0, 404, "in the group `default`");

    let (_, _, listed) = stage.schedule(Method::GET, "/schedules?ScheduleGroup=token-refresh", &none).await;
    assert_eq!(listed["Schedules"][0]["Name"], "one");
    let (_, _, listed) = stage.schedule(Method::GET, "/schedules?NamePrefix=two", &none).await;
    assert_eq!(listed["Schedules"], json!([]));

    assert_eq!(stage.schedule(Method::DELETE, "/schedules/one?groupName=token-refresh", &none).await.0, 200);
    assert_eq!(stage.schedule(Method::DELETE, "/schedules/one?groupName=token-refresh", &none).await.0, 404);
}

#[tokio::test]
async fn schedules_fire_in_their_order_and_once() {
    let stage = Stage::new().await;
    for (name, minute, after) in [("b", "04:16", "DELETE"), ("a", "04:17", "DELETE"), ("c", "04:15", "NONE")]
    {
        let body = changed(schedule(), "/ScheduleExpression", json!(format!("at(2026-11-23T{minute}:00)")));
        let body = changed(body, "/ActionAfterCompletion", json!(after));
        assert_eq!(stage.schedule(Method::POST, &format!("/schedules/{name}"), &body).await.0, 200);
    }
    let start: DateTime<Utc> = NOW.parse().unwrap();
    assert_eq!(stage.aws.next_due(), Some(start + TimeDelta::minutes(15)));
    assert_eq!(stage.aws.due(start + TimeDelta::minutes(14)), []);
    let names = |due: Vec<Due>| due.into_iter().map(|one| one.name).collect::<Vec<_>>();
    assert_eq!(names(stage.aws.due(start + TimeDelta::minutes(16))), ["c", "b"]);
    assert_eq!(names(stage.aws.due(start + TimeDelta::minutes(16))), [""; 0]);
    assert_eq!(names(stage.aws.due(start + TimeDelta::hours(1))), ["a"]);
    let left = stage.aws.schedules();
    assert_eq!((left.len(), left[0].name.as_str(), left[0].completed), (1, "c", true));
    assert_eq!(stage.aws.next_due(), None);
}

fn entry() -> Value {
    json!({ "EventBusName": BUS, "Source": "here", "DetailType": "something", "Detail": "{}" })
}

#[tokio::test]
async fn entries_are_taken_one_by_one() {
    let stage = Stage::new().await;
    let without = |name: &str| {
        let mut entry = entry();
        entry.as_object_mut().unwrap().remove(name);
        entry
    };
    for (bad, code) in [
        (changed(entry(), "/Detail", json!("[]")), "MalformedDetail"),
        (changed(entry(), "/Detail", json!("{")), "MalformedDetail"),
        (changed(entry(), "/Source", json!("aws.here")), "NotAuthorizedForSourceException"),
        (changed(entry(), "/EventBusName", json!("elsewhere")), "InvalidArgument"),
        (without("Source"), "InvalidArgument"),
        (without("DetailType"), "InvalidArgument"),
        (without("Detail"), "InvalidArgument"),
    ] {
        let taken = stage.aws.events().len();
        let (status, _, answer) = stage.put(&json!({ "Entries": [bad, entry()] })).await;
        assert_eq!((status, &answer["FailedEntryCount"]), (200, &json!(1)), "{answer}");
        assert_eq!(answer["Entries"][0]["ErrorCode"], code);
        assert!(answer["Entries"][1]["EventId"].is_string());
        assert_eq!(stage.aws.events().len(), taken + 1);
    }
}

#[tokio::test]
async fn a_request_with_too_much_or_nothing_in_it_is_refused() {
    let stage = Stage::new().await;
    let large = changed(entry(), "/Detail", json!(json!({ "text": "x".repeat(256 * 1024) }).to_string()));
    for entries in [json!([]), json!(vec![entry(); 11]), json!([large])] {
        let (status, kind, _) = stage.put(&json!({ "Entries": entries })).await;
        assert_eq!((status, kind.as_str()), (400, "ValidationException"));
    }
    let (_, kind, _) = stage.put(&json!({ "Entry": [] })).await;
    assert_eq!(kind, "SerializationException");
    let (_, kind, _) = stage.send(Method::POST, "/", &signed("events"), &json!({})).await;
    assert_eq!(kind, "UnknownOperationException");
}

#[tokio::test]
async fn a_secret_has_a_current_version_and_the_one_before() {
    let stage = Stage::new().await;
    let ask = async |more: Value| {
        let mut body = json!({ "SecretId": "one" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, kind, body) = stage.secret(&body).await;
        if status == 200 { body["SecretString"].as_str().unwrap().to_owned() } else { kind }
    };
    let missing = "ResourceNotFoundException";
    assert_eq!(ask(json!({})).await, missing);
    for text in ["oldest", "older", "newest"] {
        stage.aws.put_secret("one", text);
    }
    assert_eq!(ask(json!({})).await, "newest");
    assert_eq!(ask(json!({ "VersionStage": "AWSCURRENT" })).await, "newest");
    assert_eq!(ask(json!({ "VersionStage": "AWSPREVIOUS" })).await, "older");
    assert_eq!(ask(json!({ "VersionStage": "AWSPENDING" })).await, missing);
    let arn = stage.aws.put_secret("two", "of the other");
    let (_, _, two) = stage.secret(&json!({ "SecretId": arn })).await;
    assert_eq!((&two["SecretString"], &two["Name"]), (&json!("of the other"), &json!("two")));
    assert_eq!(ask(json!({ "VersionId": two["VersionId"] })).await, missing, "that is the other's");
    assert_eq!(ask(json!({ "Version": 1 })).await, "SerializationException");
    assert_eq!(stage.aws.requests(Service::Secrets), 8);
}

#[tokio::test]
async fn faults_strike_as_often_as_they_are_told() {
    let stage = Stage::new().await;
    let body = json!({ "Entries": [entry(), entry(), entry()] });
    stage.aws.fault(Service::Events, Fault::Throttle, 1);
    assert_eq!(stage.put(&body).await.1, "ThrottlingException");
    stage.aws.fault(Service::Events, Fault::FailEntries, 1);
    assert_eq!(stage.put(&body).await.2["FailedEntryCount"], 2);
    assert_eq!(stage.put(&body).await.2["FailedEntryCount"], 0);
    assert_eq!((stage.aws.events().len(), stage.aws.requests(Service::Events)), (1 + 3, 3));

    stage.aws.fault(Service::Scheduler, Fault::HangUp, 1);
    let path = format!("{}/schedules/one", stage.aws.endpoint());
    assert!(stage.client.post(path).send().await.is_err());
    stage.aws.fault(Service::Scheduler, Fault::AccessDenied, 7);
    assert_eq!(stage.schedule(Method::POST, "/schedules/one", &schedule()).await.1, "AccessDeniedException");
    stage.aws.clear_faults();
    assert_eq!(stage.schedule(Method::POST, "/schedules/one", &schedule()).await.0, 200);
}

#[tokio::test]
async fn whoever_waits_is_woken() {
    let stage = Stage::new().await;
    let woken = stage.aws.until(|held| held.events.len() == 2 && held.schedules().count() == 1);
    let given = async {
        stage.put(&json!({ "Entries": [entry()] })).await;
        stage.schedule(Method::POST, "/schedules/one", &schedule()).await;
        stage.put(&json!({ "Entries": [entry()] })).await;
    };
    tokio::join!(woken, given);
}
