//! The HTTP API over a real database and a simulated Twitch, without a socket, on a clock that stands still. Every answer is
//! compared with the API's description.

mod authorizations;
mod checks;

use std::sync::Arc;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::AssertSqlSafe;
use tokens_api::Context;
use tokens_domain::refresh::Cycle;
use tokens_domain::report::Report;
use tokens_domain::schedule::Trigger;
use tokens_domain::{Caller, CampaignId, MembershipKey, StreamerId};
use tokens_local::twitch::Gate;
use tokens_local::world::NewStreamer;
use tokens_tests::requests::{CALLER, REQUEST_ID, authorization_path, authorizations_path, membership};
use tokens_tests::{Still, run};
use tower::ServiceExt;
use uuid::Uuid;

/// A still world and the API on it.
struct Scene {
    still: Still,
    router: Router,
}

/// An answer, taken apart.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    /// Null if it is empty.
    body: Value,
}

impl Answer {
    /// The answer is this problem.
    #[track_caller]
    fn is(&self, status: StatusCode, name: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.body["type"], format!("urn:problem:twitch-token-refresh:{name}"), "{self:?}");
        assert_eq!(self.body["request_id"], REQUEST_ID);
    }

    /// The caller should try again after so many seconds.
    #[track_caller]
    fn retry_after(&self, seconds: u64) {
        assert_eq!(self.headers[RETRY_AFTER], seconds.to_string(), "{self:?}");
    }
}

impl Scene {
    async fn new() -> Result<Self> {
        Self::with(&[]).await
    }

    /// With some variables of the environment changed.
    async fn with(changes: &[(&str, &str)]) -> Result<Self> {
        let still = Still::new().await?;
        let host = still.world.host(changes);
        Ok(Self { still, router: tokens_api::whole(Arc::new(host)) })
    }

    /// Sends a request of an authenticated caller.
    async fn send(&self, method: Method, path: &str) -> Result<Answer> {
        let context = Context {
            caller: Caller(CALLER.to_owned()),
            request_id: REQUEST_ID.to_owned(),
            client: None,
            deadline: None,
        };
        let request = Request::builder().method(method.clone()).uri(path).extension(context);
        let response = self.router.clone().oneshot(request.body(Body::empty())?).await?;
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await?;
        let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body)? };
        let answer = Answer { status: parts.status, headers: parts.headers, body };
        assert_eq!(answer.headers["x-request-id"], REQUEST_ID);
        is_described(&method, path, &answer)?;
        Ok(answer)
    }

    async fn grant(&self, key: MembershipKey) -> Result<Answer> {
        self.send(Method::POST, &authorization_path(key)).await
    }

    async fn status(&self, key: MembershipKey) -> Result<Answer> {
        self.send(Method::GET, &authorization_path(key)).await
    }

    async fn revoke(&self, key: MembershipKey) -> Result<Answer> {
        self.send(Method::DELETE, &authorization_path(key)).await
    }

    async fn list(&self, streamer: StreamerId) -> Result<Answer> {
        self.send(Method::GET, &authorizations_path(streamer)).await
    }

    async fn check(&self, campaign: CampaignId) -> Result<Answer> {
        self.send(Method::POST, &format!("/campaigns/{campaign}/health-check")).await
    }

    /// Adds a streamer.
    async fn add(&self, streamer: NewStreamer) -> Result<MembershipKey> {
        membership(&self.still.world, self.still.world.add(streamer).await?).await
    }

    async fn sql(&self, statements: &str) -> Result<()> {
        sqlx::raw_sql(AssertSqlSafe(statements)).execute(&self.still.world.pool).await?;
        Ok(())
    }

    /// The attempts that the history has of this streamer: outcome, trigger, caller.
    async fn history(&self, login: &str) -> Result<Vec<(String, String, Option<String>)>> {
        let history = "SELECT outcome, trigger, caller FROM token_refresh.refreshes
                       JOIN streamers ON id = streamer_id WHERE twitch_login = $1 ORDER BY fence";
        Ok(sqlx::query_as(history).bind(login).fetch_all(&self.still.world.pool).await?)
    }

    /// Runs a cycle until Twitch is asked for this streamer, then `meanwhile`, then lets Twitch answer. The cycle's report.
    async fn during_a_refresh<T>(
        &self,
        login: &str,
        trigger: Trigger,
        meanwhile: impl AsyncFnOnce(Gate) -> Result<T>,
    ) -> Result<(Report, T)> {
        let service = self.still.world.service(&[]).await?;
        let gate = self.still.world.twitch.pause(login)?;
        let cycle = Cycle::new(trigger);
        let meanwhile = async {
            gate.arrived().await;
            meanwhile(gate).await
        };
        let (ran, met) = tokio::join!(run(&service, &cycle), meanwhile);
        Ok((ran.report, met?))
    }
}

/// The answer has the form that the description documents.
fn is_described(method: &Method, path: &str, answer: &Answer) -> Result<()> {
    let document = serde_json::to_value(tokens_api::document())?;
    let segments: Vec<_> = path.split('/').collect();
    let paths = document["paths"].as_object().context("paths")?;
    let operations = paths.iter().find(|(template, _)| {
        let template: Vec<_> = template.split('/').collect();
        template.len() == segments.len()
            && template.iter().zip(&segments).all(|(part, segment)| part.starts_with('{') || part == segment)
    });
    let Some(operation) = operations.and_then(|(_, of)| of.get(method.as_str().to_lowercase())) else {
        return Ok(());
    };
    let response = &operation["responses"][answer.status.as_str()];
    assert!(response.is_object(), "{method} {path} is not documented to answer {answer:?}");
    for (name, _) in response["headers"].as_object().context("headers")? {
        let optional = name == "retry-after";
        assert!(optional || answer.headers.contains_key(name), "{name} is missing in {answer:?}");
    }
    if let Some(content) = response["content"].as_object() {
        let media_type = answer.headers[CONTENT_TYPE].to_str()?;
        let mut schema = content[media_type]["schema"].clone();
        schema["components"] = document["components"].clone();
        let schema = jsonschema::options().should_validate_formats(true).build(&schema)?;
        let faults: Vec<_> = schema.iter_errors(&answer.body).map(|fault| fault.to_string()).collect();
        assert!(faults.is_empty(), "{faults:?} in {answer:?}");
    } else {
        assert_eq!(answer.body, Value::Null);
    }
    Ok(())
}

fn time(value: &Value) -> DateTime<Utc> {
    let text = value.as_str().expect("a text");
    assert!(text.ends_with('Z'), "{text}");
    text.parse().expect("a time")
}

fn unauthorized(login: &str) -> NewStreamer {
    NewStreamer { authorized_for: None, ..NewStreamer::fresh(login) }
}

#[tokio::test]
async fn unknown_ids_are_not_found() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(NewStreamer::fresh("brindille")).await?;
    let other = scene.add(NewStreamer::fresh("sable")).await?;
    let unknown = Uuid::new_v4();
    for method in [Method::POST, Method::GET, Method::DELETE] {
        for (key, expected) in [
            (MembershipKey { campaign: CampaignId(unknown), ..key }, "unknown-campaign"),
            (MembershipKey { streamer: StreamerId(unknown), ..key }, "unknown-streamer"),
            (MembershipKey { streamer: other.streamer, ..key }, "unknown-membership"),
        ] {
            scene.send(method.clone(), &authorization_path(key)).await?.is(StatusCode::NOT_FOUND, expected);
        }
    }
    scene.list(StreamerId(unknown)).await?.is(StatusCode::NOT_FOUND, "unknown-streamer");
    scene.check(CampaignId(unknown)).await?.is(StatusCode::NOT_FOUND, "unknown-campaign");
    assert_eq!(scene.still.world.twitch.totals().token_requests, 0);
    Ok(())
}

#[tokio::test]
async fn each_path_takes_its_methods_and_ids() -> Result<()> {
    let scene = Scene::new().await?;
    let id = Uuid::new_v4();
    let authorization =
        |campaign: &str, streamer: &str| format!("/campaigns/{campaign}/streamers/{streamer}/authorization");
    let (health, list) = (format!("/campaigns/{id}/health-check"), format!("/streamers/{id}/authorizations"));
    let key = authorization(&id.to_string(), &id.to_string());
    for (path, allowed) in [(&key, "DELETE,GET,HEAD,POST"), (&health, "POST"), (&list, "GET,HEAD")] {
        for method in [Method::PUT, Method::PATCH, Method::OPTIONS] {
            let answer = scene.send(method, path).await?;
            answer.is(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed");
            let mut methods: Vec<_> = answer.headers[ALLOW].to_str()?.split(',').collect();
            methods.sort_unstable();
            assert_eq!(methods.join(","), allowed, "{path}");
        }
    }
    for wrong in ["1", "%ff"] {
        for (method, path, field) in [
            (Method::POST, authorization(wrong, &id.to_string()), "campaign_id"),
            (Method::GET, authorization(&id.to_string(), wrong), "streamer_id"),
            (Method::GET, format!("/streamers/{wrong}/authorizations"), "streamer_id"),
            (Method::POST, format!("/campaigns/{wrong}/health-check"), "campaign_id"),
        ] {
            let answer = scene.send(method, &path).await?;
            answer.is(StatusCode::BAD_REQUEST, "invalid-id");
            assert_eq!(answer.body["field"], field, "{path}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_database_that_fails_or_does_not_answer_is_unavailable() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(NewStreamer::fresh("brindille")).await?;
    let list = authorizations_path(key.streamer);
    let mut locked = scene.still.world.pool.begin().await?;
    sqlx::query("LOCK TABLE campaign_memberships IN ACCESS EXCLUSIVE MODE").execute(&mut *locked).await?;
    let (granted, revoked, listed) =
        tokio::join!(scene.grant(key), scene.revoke(key), scene.list(key.streamer));
    for answer in [granted?, revoked?, listed?] {
        answer.is(StatusCode::SERVICE_UNAVAILABLE, "database-unavailable");
    }
    locked.rollback().await?;
    scene.sql("ALTER TABLE campaign_memberships RENAME TO elsewhere").await?;
    for (method, path) in [
        (Method::POST, authorization_path(key)),
        (Method::GET, authorization_path(key)),
        (Method::DELETE, authorization_path(key)),
        (Method::GET, list),
        (Method::POST, format!("/campaigns/{}/health-check", key.campaign)),
    ] {
        let answer = scene.send(method, &path).await?;
        answer.is(StatusCode::SERVICE_UNAVAILABLE, "database-unavailable");
        answer.retry_after(30);
        assert!(!answer.body.to_string().contains("campaign_memberships"), "{answer:?}");
    }
    assert_eq!(scene.still.world.twitch.totals().token_requests, 0);
    Ok(())
}
