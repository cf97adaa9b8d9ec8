//! The Lambda functions behind the HTTP API, as their own binaries, fed with API Gateway's events.

use std::fs::read_to_string;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokens_domain::MembershipKey;
use tokens_domain::authorization::AUTHORIZATION;
use tokens_local::lambda::Function;
use tokens_local::world::{NewStreamer, World};
use tokens_tests::requests::{
    CALLER, REQUEST_ID, authorization, authorization_path, authorizations_path, check_path, event, membership,
};
use tokens_tests::{binary, changed, world};

/// As much as API Gateway waits.
const TIME_LEFT: Duration = Duration::from_secs(30);

/// A function's own process, and its log.
struct Scene {
    world: World,
    function: Function,
    log: NamedTempFile,
}

impl Scene {
    async fn new(name: &str) -> Result<Self> {
        let world = world().await?;
        let log = NamedTempFile::new()?;
        let stdio = Stdio::from(log.reopen()?);
        let function = Function::start(&binary(name).await?, &world.environment(), stdio).await?;
        Ok(Self { world, function, log })
    }

    /// The answer that API Gateway would pass on: status, headers, body.
    async fn answered(&self, event: Value) -> Result<(u64, Value, Value)> {
        let answer = self.function.invoke(event, TIME_LEFT).await?;
        assert_eq!(answer["isBase64Encoded"], false, "{answer}");
        let status = answer["statusCode"].as_u64().context("a status")?;
        let body = answer["body"].as_str().filter(|body| !body.is_empty()).unwrap_or("null");
        Ok((status, answer["headers"].clone(), serde_json::from_str(body)?))
    }

    /// The answer is this problem.
    async fn refused(&self, event: Value, status: u64, name: &str) -> Result<()> {
        let (answered, headers, body) = self.answered(event).await?;
        assert_eq!(answered, status, "{body}");
        assert_eq!(body["type"], format!("urn:problem:twitch-token-refresh:{name}"));
        assert_eq!(headers["content-type"], "application/problem+json");
        assert_eq!(headers["x-request-id"], body["request_id"]);
        Ok(())
    }

    /// The lines of the log, which are all JSON.
    fn log(&self) -> Result<Vec<Value>> {
        read_to_string(self.log.path())?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// Adds a streamer without an authorization.
    async fn add(&self) -> Result<MembershipKey> {
        let new = NewStreamer { authorized_for: None, ..NewStreamer::fresh("brindille") };
        membership(&self.world, self.world.add(new).await?).await
    }
}

/// The brief's scenario 1, literally: its SQL shows a token that expires soon, the streamer authorizes a campaign, and the same
/// SQL shows a fresh one.
#[tokio::test]
async fn scenario_1_a_grant_refreshes_the_token() -> Result<()> {
    const LOOK: &str = "SELECT twitch_display_name, token_expires_at, last_token_refresh_at
                        FROM streamers WHERE twitch_login = 'aria'";
    type Row = (String, Option<DateTime<Utc>>, Option<DateTime<Utc>>);
    let scene = Scene::new("grant-refresh").await?;
    let world = &scene.world;
    let aria = NewStreamer { authorized_for: None, ..NewStreamer::due("aria") };
    let key = membership(world, world.add(aria).await?).await?;
    let (name, expires_at, refreshed_at): Row = sqlx::query_as(LOOK).fetch_one(&world.pool).await?;
    assert_eq!((name.as_str(), refreshed_at), ("Aria", None));
    assert!(expires_at < Some(world.clock.now() + TimeDelta::hours(1)));

    let before = world.clock.now();
    let path = authorization_path(key);
    let (status, headers, granted) = scene.answered(event("POST", &path)).await?;
    let after = world.clock.now();

    assert_eq!(status, 200, "{granted}");
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(headers["x-request-id"], REQUEST_ID);
    let (_, expires_at, refreshed_at): Row = sqlx::query_as(LOOK).fetch_one(&world.pool).await?;
    let refreshed_at = refreshed_at.context("no refresh")?;
    assert!(before <= refreshed_at && refreshed_at <= after, "{before} {refreshed_at} {after}");
    let left = expires_at.context("no expiry")? - refreshed_at;
    assert!(TimeDelta::minutes(230) < left && left < TimeDelta::minutes(242), "about four hours: {left}");
    assert!(world.has_live_token(key.streamer).await?);
    assert_eq!(world.twitch.activity("aria")?.refreshes, 1);
    let (granted_at, ends_at) = authorization(world, key).await?;
    assert_eq!(ends_at, granted_at.map(|at| at + AUTHORIZATION));
    assert_eq!(
        [
            &granted["authorized"],
            &granted["granted_at"],
            &granted["expires_at"],
            &granted["token_expires_at"]
        ],
        [&json!(true), &json!(granted_at), &json!(ends_at), &json!(expires_at)]
    );
    let callers: Vec<String> =
        sqlx::query_scalar("SELECT caller FROM token_refresh.refreshes").fetch_all(&world.pool).await?;
    assert_eq!(callers, [CALLER]);

    let (status, _, seen) = scene.answered(event("GET", &path)).await?;
    assert_eq!((status, &seen["expires_at"]), (200, &granted["expires_at"]));
    let (status, _, list) = scene.answered(event("GET", &authorizations_path(key.streamer))).await?;
    assert_eq!((status, &list["authorizations"][0]["granted_at"]), (200, &granted["granted_at"]));
    let (status, _, body) = scene.answered(event("DELETE", &path)).await?;
    assert_eq!((status, body), (204, Value::Null));
    let (_, _, seen) = scene.answered(event("GET", &path)).await?;
    assert_eq!((&seen["authorized"], &seen["remaining_seconds"]), (&json!(false), &json!(0)));
    // Health checks are another function's.
    scene.refused(event("POST", &check_path(key.campaign)), 404, "unknown-route").await
}

/// The brief's scenario 5, literally: its SQL lets a token expire soon, the check before a session refreshes it and logs the
/// brief's words, and the session can begin.
#[tokio::test]
async fn scenario_5_a_health_check_refreshes_what_expires_soon() -> Result<()> {
    const EXPIRES_SOON: &str =
        "UPDATE streamers SET token_expires_at = NOW() + INTERVAL '30 minutes' WHERE twitch_login = 'aria'";
    let scene = Scene::new("health-check").await?;
    let world = &scene.world;
    let member = |login: &str| NewStreamer { campaign: "Les Brumes".to_owned(), ..NewStreamer::fresh(login) };
    let aria = world.add(member("aria")).await?;
    world.add(member("bastien")).await?;
    let check = event("POST", &check_path(membership(world, aria).await?.campaign));
    assert_eq!(sqlx::query(EXPIRES_SOON).execute(&world.pool).await?.rows_affected(), 1);

    for expected in [[("aria", "refreshed"), ("bastien", "ok")], [("aria", "ok"), ("bastien", "ok")]] {
        let (status, _, report) = scene.answered(check.clone()).await?;
        assert_eq!((status, &report["healthy"]), (200, &json!(true)), "{report}");
        let streamers = report["streamers"].as_array().context("a list")?;
        let found: Vec<_> = streamers.iter().map(|one| (&one["login"], &one["status"])).collect();
        assert_eq!(json!(found), json!(expected));
    }

    let row = world.row(aria).await?;
    assert!(row.token_expires_at > row.last_token_refresh_at.map(|at| at + TimeDelta::hours(3)), "{row:?}");
    assert!(world.has_live_token(aria).await?);
    let refreshes = |login| world.twitch.activity(login).map(|activity| activity.refresh_requests);
    assert_eq!((refreshes("aria")?, refreshes("bastien")?), (1, 0));
    let callers: Vec<String> =
        sqlx::query_scalar("SELECT caller FROM token_refresh.refreshes").fetch_all(&world.pool).await?;
    assert_eq!(callers, [CALLER]);
    let log = scene.log()?;
    let messages: Vec<_> = log.iter().filter_map(|line| line["message"].as_str()).collect();
    let of_checks: Vec<_> = messages.iter().filter(|line| line.starts_with("[HealthCheck]")).collect();
    assert_eq!(
        of_checks,
        [
            &"[HealthCheck] Token invalid for streamer aria, attempting refresh...",
            &"[HealthCheck] Token refreshed successfully for streamer aria",
        ]
    );
    // Every line names the request and its caller; the last one the status and the duration.
    for line in &log {
        assert_eq!(line["span"]["request_id"], REQUEST_ID, "{line}");
        assert_eq!(line["span"]["caller"], CALLER, "{line}");
    }
    let last = log.last().context("a line")?;
    assert_eq!((&last["message"], &last["status"]), (&json!("request answered"), &json!(200)));
    assert!(last["duration_ms"].is_u64(), "{last}");
    Ok(())
}

#[tokio::test]
async fn only_callers_that_api_gateway_names_are_let_in() -> Result<()> {
    let scene = Scene::new("grant-refresh").await?;
    let path = authorization_path(scene.add().await?);
    let mut open = event("POST", &path);
    open["requestContext"].as_object_mut().context("an object")?.remove("authorizer");
    // Nothing that the caller writes takes its place.
    for header in
        ["x-amzn-request-context", "x-amzn-iam-user-arn", "x-caller", "x-request-context", "authorization"]
    {
        open["headers"][header] = json!(CALLER);
    }
    open["queryStringParameters"] = json!({"userArn": CALLER});
    open["pathParameters"] = json!({"userArn": CALLER});
    open["stageVariables"] = json!({"userArn": CALLER});
    open["body"] = json!(json!({"requestContext": event("POST", &path)["requestContext"]}).to_string());
    scene.refused(open, 403, "caller-unidentified").await?;

    let mut foreign = event("POST", &path);
    foreign["requestContext"]["authorizer"]["iam"]["accountId"] = json!("999999999999");
    foreign["requestContext"]["accountId"] = json!("000000000000");
    scene.refused(foreign, 403, "caller-foreign").await?;

    let log = scene.log()?;
    let refused: Vec<_> = log.iter().filter(|line| line["message"] == "refused").collect();
    assert_eq!(refused.len(), 2, "{log:?}");
    assert!(
        refused.iter().all(|line| line["level"] == "WARN" && line["request_id"] == REQUEST_ID),
        "{log:?}"
    );
    assert_eq!(scene.world.twitch.totals().token_requests, 0);
    Ok(())
}

/// What a body may say is tested in `api`; here, how API Gateway hands one over.
#[tokio::test]
async fn bodies_are_read_as_text_and_in_base64() -> Result<()> {
    let scene = Scene::new("grant-refresh").await?;
    let path = authorization_path(scene.add().await?);
    let with = |body: &str, encoded: bool| {
        let mut event = event("POST", &path);
        (event["body"], event["isBase64Encoded"]) = (json!(body), json!(encoded));
        event
    };
    scene.refused(with(r#"{"hours": 24}"#, false), 400, "unexpected-body").await?;
    scene.refused(with("/w==", true), 400, "unexpected-body").await?;
    scene.refused(with(&"x".repeat(1025), false), 413, "body-too-large").await?;
    assert_eq!(scene.world.twitch.totals().token_requests, 0);
    let (status, _, granted) = scene.answered(with("e30=", true)).await?;
    assert_eq!(status, 200, "an empty object: {granted}");
    Ok(())
}

#[tokio::test]
async fn an_event_of_another_kind_is_an_error_and_the_function_goes_on() -> Result<()> {
    let scene = Scene::new("grant-refresh").await?;
    let path = authorization_path(scene.add().await?);
    let rest: Value = serde_json::from_str(include_str!("../../fixtures/example-apigw-request.json"))?;
    for other in [rest, json!({"trigger": "sweep"}), json!({})] {
        let error = scene.function.invoke(other, TIME_LEFT).await.unwrap_err();
        assert!(error.error_message.contains("API Gateway"), "{error}");
    }
    let (status, _, seen) = scene.answered(event("GET", &path)).await?;
    assert_eq!((status, &seen["authorized"]), (200, &json!(false)));
    Ok(())
}

#[tokio::test]
async fn a_missing_setting_is_a_problem_for_the_caller_and_named_in_the_log() -> Result<()> {
    let world = world().await?;
    let log = NamedTempFile::new()?;
    let environment = changed(world.environment(), &[("APP_KEY", ""), ("TWITCH_CLIENT_SECRET", "")]);
    let function =
        Function::start(&binary("grant-refresh").await?, &environment, log.reopen()?.into()).await?;
    let scene = Scene { world, function, log };
    let key = scene.add().await?;
    scene.refused(event("GET", &authorization_path(key)), 503, "misconfigured").await?;
    let said =
        scene.log()?.into_iter().find(|line| line["level"] == "ERROR").context("an error")?.to_string();
    for part in ["APP_KEY and TOKEN_KEYS are missing", "TWITCH_CLIENT_SECRET is missing", REQUEST_ID] {
        assert!(said.contains(part), "{part} in {said}");
    }
    Ok(())
}
