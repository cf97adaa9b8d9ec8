//! The Lambda functions behind the HTTP API, as their own binaries, fed with API Gateway's events.

use std::fs::read_to_string;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use domain::MembershipKey;
use end_to_end::requests::{CALLER, REQUEST_ID, authorization_path, event, membership};
use end_to_end::{binary, changed, world};
use local::lambda::Function;
use local::world::{NewStreamer, World};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use uuid::Uuid;

/// As much as API Gateway waits.
const TIME_LEFT: Duration = Duration::from_secs(30);

/// A function and what it logged.
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

    /// Invents a streamer without an authorization.
    async fn add(&self) -> Result<MembershipKey> {
        let new = NewStreamer { authorized_for: None, ..NewStreamer::fresh("brindille") };
        membership(&self.world, self.world.add(new).await?).await
    }
}

#[tokio::test]
async fn a_streamer_grants_sees_and_revokes() -> Result<()> {
    let scene = Scene::new("grant-refresh").await?;
    let key = scene.add().await?;
    let path = authorization_path(key);
    let (status, headers, granted) = scene.answered(event("POST", &path)).await?;
    assert_eq!(status, 200, "{granted}");
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(headers["x-request-id"], REQUEST_ID);
    assert_eq!(granted["authorized"], true);
    let row = scene.world.row(key.streamer).await?;
    assert_eq!(granted["token_expires_at"], json!(row.token_expires_at));
    assert!(scene.world.has_live_token(key.streamer).await?);

    let (status, _, seen) = scene.answered(event("GET", &path)).await?;
    assert_eq!((status, &seen["expires_at"]), (200, &granted["expires_at"]));
    let (status, _, list) =
        scene.answered(event("GET", &format!("/streamers/{}/authorizations", key.streamer))).await?;
    assert_eq!((status, &list["authorizations"][0]["granted_at"]), (200, &granted["granted_at"]));
    let (status, _, body) = scene.answered(event("DELETE", &path)).await?;
    assert_eq!((status, body), (204, Value::Null));
    let (_, _, seen) = scene.answered(event("GET", &path)).await?;
    assert_eq!((&seen["authorized"], &seen["remaining_seconds"]), (&json!(false), &json!(0)));

    // What the check answers is not this function's.
    scene
        .refused(event("POST", &format!("/campaigns/{}/health-check", key.campaign)), 404, "unknown-route")
        .await
}

#[tokio::test]
async fn a_check_refreshes_on_the_way_and_says_so_in_its_log() -> Result<()> {
    let scene = Scene::new("health-check").await?;
    let streamer = scene.world.add(NewStreamer::due("brindille")).await?;
    let campaign: Uuid = sqlx::query_scalar("SELECT id FROM campaigns").fetch_one(&scene.world.pool).await?;
    let (status, _, report) =
        scene.answered(event("POST", &format!("/campaigns/{campaign}/health-check"))).await?;
    assert_eq!((status, &report["healthy"]), (200, &json!(true)), "{report}");
    assert_eq!(report["streamers"][0]["status"], "refreshed");
    assert!(scene.world.has_live_token(streamer).await?);

    let log = scene.log()?;
    let said: Vec<_> = log.iter().filter_map(|line| line["message"].as_str()).collect();
    let place = |text: &str| said.iter().position(|line| *line == text);
    let (asked, done) = (
        place("[HealthCheck] Token invalid for streamer brindille, attempting refresh..."),
        place("[HealthCheck] Token refreshed successfully for streamer brindille"),
    );
    assert!(asked.is_some() && asked < done, "{said:?}");
    // Every line of a request says whose it is; the last one how it ended.
    for line in &log {
        assert_eq!(line["span"]["request_id"], REQUEST_ID, "{line}");
        assert_eq!(line["span"]["caller"], CALLER, "{line}");
    }
    let last = log.last().context("a line")?;
    assert_eq!((&last["message"], &last["status"]), (&json!("request answered"), &json!(200)));
    assert!(last["duration_ms"].is_u64(), "{last}");
    let caller: Option<String> =
        sqlx::query_scalar("SELECT caller FROM token_refresh.refreshes").fetch_one(&scene.world.pool).await?;
    assert_eq!(caller.as_deref(), Some(CALLER));
    Ok(())
}

#[tokio::test]
async fn nobody_gets_in_whom_api_gateway_does_not_name() -> Result<()> {
    let scene = Scene::new("grant-refresh").await?;
    let path = authorization_path(scene.add().await?);
    let mut open = event("POST", &path);
    open["requestContext"].as_object_mut().context("an object")?.remove("authorizer");
    scene.refused(open.clone(), 403, "caller-unidentified").await?;

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
    assert_eq!(refused.len(), 3, "{log:?}");
    assert!(
        refused.iter().all(|line| line["level"] == "WARN" && line["request_id"] == REQUEST_ID),
        "{log:?}"
    );
    assert_eq!(scene.world.twitch.totals().token_requests, 0);
    Ok(())
}

#[tokio::test]
async fn a_stage_of_any_name_serves_the_same_paths() -> Result<()> {
    let scene = Scene::new("grant-refresh").await?;
    let path = authorization_path(scene.add().await?);
    for (stage, sent) in
        [("prod", format!("/prod{path}")), ("prod", path.clone()), ("$default", path.clone())]
    {
        let mut event = event("GET", &sent);
        event["requestContext"]["stage"] = json!(stage);
        let (status, _, body) = scene.answered(event).await?;
        assert_eq!(status, 200, "{stage} {sent}: {body}");
    }
    scene.refused(event("GET", &format!("/prod{path}")), 404, "unknown-route").await
}

#[tokio::test]
async fn bodies_are_refused_in_every_form_that_api_gateway_has() -> Result<()> {
    let scene = Scene::new("grant-refresh").await?;
    let path = authorization_path(scene.add().await?);
    let with = |body: &str, encoded: bool| {
        let mut event = event("POST", &path);
        (event["body"], event["isBase64Encoded"]) = (json!(body), json!(encoded));
        event
    };
    for body in [r#"{"hours": 24}"#, "\u{0}", "hours=24"] {
        scene.refused(with(body, false), 400, "unexpected-body").await?;
    }
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
async fn what_the_function_lacks_its_callers_learn_as_a_problem_and_the_log_says_it() -> Result<()> {
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
