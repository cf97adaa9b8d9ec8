//! The HTTP API over a real database and a simulated Twitch, without a socket. Every answer is compared with the API's
//! description.

use std::sync::Arc;

use adapters::runner::Runner;
use anyhow::{Context as _, Result};
use api::Context;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use chrono::{DateTime, TimeDelta, Utc};
use domain::{Caller, CampaignId, MembershipKey, StreamerId};
use end_to_end::Still;
use end_to_end::people::{campaign, user};
use end_to_end::requests::{CALLER, REQUEST_ID, authorization_path, membership};
use local::twitch::{Endpoint, Fault};
use local::world::NewStreamer;
use serde_json::{Value, json};
use tower::ServiceExt;
use uuid::Uuid;

/// For a check, where it is not about time.
const TIME: TimeDelta = TimeDelta::seconds(25);

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

    /// It is worth asking again after so many seconds.
    #[track_caller]
    fn retry_after(&self, seconds: u64) {
        assert_eq!(self.headers[RETRY_AFTER], seconds.to_string(), "{self:?}");
    }
}

impl Scene {
    async fn new() -> Result<Self> {
        Self::with(&[], TIME).await
    }

    /// With some variables of the environment changed, and this much time for a check.
    async fn with(changes: &[(&str, &str)], time: TimeDelta) -> Result<Self> {
        let still = Still::new().await?;
        let runner = Runner::open_at(still.world.config(changes)?, still.world.clock.clone()).await?;
        Ok(Self { still, router: api::whole(Arc::new(runner), time) })
    }

    /// Sends a request as a caller who is let in.
    async fn send(&self, method: Method, path: &str) -> Result<Answer> {
        let context =
            Context { caller: Caller(CALLER.to_owned()), request_id: REQUEST_ID.to_owned(), deadline: None };
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

    async fn check(&self, campaign: CampaignId) -> Result<Answer> {
        self.send(Method::POST, &format!("/campaigns/{campaign}/health-check")).await
    }

    /// Invents a streamer.
    async fn add(&self, streamer: NewStreamer) -> Result<MembershipKey> {
        membership(&self.still.world, self.still.world.add(streamer).await?).await
    }

    async fn execute(&self, statement: &'static str, id: Uuid) -> Result<()> {
        sqlx::query(statement).bind(id).execute(&self.still.world.pool).await?;
        Ok(())
    }

    /// How the history names the last attempt: outcome, trigger, caller.
    async fn history(&self, streamer: StreamerId) -> Result<Vec<(String, String, Option<String>)>> {
        let history = "SELECT outcome, trigger, caller FROM token_refresh.refreshes WHERE streamer_id = $1
                       ORDER BY fence";
        Ok(sqlx::query_as(history).bind(streamer.0).fetch_all(&self.still.world.pool).await?)
    }
}

/// The answer has the form that the description says.
fn is_described(method: &Method, path: &str, answer: &Answer) -> Result<()> {
    let document = serde_json::to_value(api::document())?;
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
    assert!(response.is_object(), "{method} {path} is not said to answer {answer:?}");
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
async fn a_grant_refreshes_the_token_and_authorizes_for_twelve_hours() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(unauthorized("brindille")).await?;
    let before = scene.status(key).await?;
    assert_eq!(before.status, StatusCode::OK);
    assert_eq!(
        before.body,
        json!({
            "campaign_id": key.campaign,
            "campaign_name": "Campaign of brindille",
            "streamer_id": key.streamer,
            "membership": "ACTIVE",
            "streamer_active": true,
            "authorized": false,
            "granted_at": null,
            "expires_at": null,
            "remaining_seconds": 0,
            "token_expires_at": before.body["token_expires_at"],
        })
    );

    let granted = scene.grant(key).await?;
    assert_eq!(granted.status, StatusCode::OK, "{granted:?}");
    let now = scene.still.now();
    assert_eq!(granted.body["authorized"], true);
    assert_eq!(granted.body["remaining_seconds"], 12 * 60 * 60);
    assert_eq!(time(&granted.body["granted_at"]), now);
    assert_eq!(time(&granted.body["expires_at"]), now + TimeDelta::hours(12));
    let row = scene.still.world.row(key.streamer).await?;
    assert_eq!(row.last_token_refresh_at, Some(now));
    assert_eq!(time(&granted.body["token_expires_at"]), row.token_expires_at.context("an expiry")?);
    assert!(row.token_expires_at > Some(now + TimeDelta::hours(3)), "it was refreshed, whatever was left");
    assert_eq!(
        scene.history(key.streamer).await?,
        [("refreshed".to_owned(), "grant".to_owned(), Some(CALLER.to_owned()))]
    );

    // What was answered is what is stored, and what the list says.
    assert_eq!(scene.status(key).await?.body, granted.body);
    let list = scene.send(Method::GET, &format!("/streamers/{}/authorizations", key.streamer)).await?;
    assert_eq!(list.body, json!({"streamer_id": key.streamer, "authorizations": [granted.body]}));
    Ok(())
}

#[tokio::test]
async fn a_double_click_costs_twitch_one_call() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(unauthorized("brindille")).await?;
    let first = scene.grant(key).await?;
    scene.still.clock.advance(std::time::Duration::from_secs(30));
    let second = scene.grant(key).await?;
    assert_eq!((first.status, second.status), (StatusCode::OK, StatusCode::OK));
    assert_eq!(scene.still.world.twitch.totals().token_requests, 1);
    assert_eq!(time(&second.body["granted_at"]), scene.still.now(), "the hours are from now");
    assert_eq!(second.body["token_expires_at"], first.body["token_expires_at"]);

    scene.still.turn(1);
    assert_eq!(scene.grant(key).await?.status, StatusCode::OK);
    assert_eq!(scene.still.world.twitch.totals().token_requests, 2);
    Ok(())
}

#[tokio::test]
async fn a_revocation_ends_the_hours_now() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(unauthorized("brindille")).await?;
    let none = scene.revoke(key).await?;
    assert_eq!((none.status, none.body), (StatusCode::NO_CONTENT, Value::Null), "there was none");

    let granted = scene.grant(key).await?;
    scene.still.turn(60);
    assert_eq!(scene.status(key).await?.body["remaining_seconds"], 11 * 60 * 60);
    assert_eq!(scene.revoke(key).await?.status, StatusCode::NO_CONTENT);
    let revoked = scene.status(key).await?.body;
    assert_eq!(revoked["authorized"], false);
    assert_eq!(revoked["remaining_seconds"], 0);
    assert_eq!(revoked["granted_at"], granted.body["granted_at"]);
    assert_eq!(time(&revoked["expires_at"]), scene.still.now());

    scene.still.turn(60);
    assert_eq!(scene.revoke(key).await?.status, StatusCode::NO_CONTENT);
    assert_eq!(scene.status(key).await?.body["expires_at"], revoked["expires_at"], "the first one counts");
    Ok(())
}

#[tokio::test]
async fn a_list_has_every_campaign_that_invited_the_streamer() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(NewStreamer::fresh("brindille")).await?;
    let world = &scene.still.world;
    let owner = user(world, "Corvin").await?;
    let pending = campaign(world, key.streamer, "Abysses", owner, "PENDING").await?;
    let list = scene.send(Method::GET, &format!("/streamers/{}/authorizations", key.streamer)).await?;
    let [first, second] = list.body["authorizations"].as_array().context("a list")?.as_slice() else {
        panic!("{list:?}");
    };
    assert_eq!((&first["campaign_id"], &first["membership"]), (&json!(pending), &json!("PENDING")));
    assert_eq!(first["authorized"], false);
    assert_eq!(
        (&second["campaign_name"], &second["authorized"]),
        (&json!("Campaign of brindille"), &json!(true))
    );

    scene.execute("DELETE FROM campaign_memberships WHERE streamer_id = $1", key.streamer.0).await?;
    let list = scene.send(Method::GET, &format!("/streamers/{}/authorizations", key.streamer)).await?;
    assert_eq!(list.body["authorizations"], json!([]));
    Ok(())
}

#[tokio::test]
async fn what_nobody_knows_is_not_found() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(NewStreamer::fresh("brindille")).await?;
    let other = scene.add(NewStreamer::fresh("sable")).await?;
    let nobody = Uuid::new_v4();
    for method in [Method::POST, Method::GET, Method::DELETE] {
        for (key, expected) in [
            (MembershipKey { campaign: CampaignId(nobody), ..key }, "unknown-campaign"),
            (MembershipKey { streamer: StreamerId(nobody), ..key }, "unknown-streamer"),
            (MembershipKey { streamer: other.streamer, ..key }, "unknown-membership"),
        ] {
            scene.send(method.clone(), &authorization_path(key)).await?.is(StatusCode::NOT_FOUND, expected);
        }
    }
    let list = scene.send(Method::GET, &format!("/streamers/{nobody}/authorizations")).await?;
    list.is(StatusCode::NOT_FOUND, "unknown-streamer");
    scene.check(CampaignId(nobody)).await?.is(StatusCode::NOT_FOUND, "unknown-campaign");
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
async fn nothing_is_granted_to_who_may_not_be() -> Result<()> {
    let scene = Scene::new().await?;
    let pending = scene.add(unauthorized("pending")).await?;
    let inactive = scene.add(NewStreamer { is_active: false, ..unauthorized("inactive") }).await?;
    scene
        .execute(
            "UPDATE campaign_memberships SET status = 'PENDING' WHERE streamer_id = $1",
            pending.streamer.0,
        )
        .await?;
    scene.grant(pending).await?.is(StatusCode::CONFLICT, "membership-pending");
    scene.grant(inactive).await?.is(StatusCode::CONFLICT, "streamer-inactive");
    for key in [pending, inactive] {
        let status = scene.status(key).await?.body;
        assert_eq!((&status["authorized"], &status["granted_at"]), (&json!(false), &Value::Null));
    }
    assert_eq!(scene.still.world.twitch.totals().token_requests, 0);
    Ok(())
}

#[tokio::test]
async fn a_refused_grant_is_a_failure_like_any_other() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(unauthorized("brindille")).await?;
    scene.still.world.twitch.disconnect("brindille")?;
    scene.grant(key).await?.is(StatusCode::CONFLICT, "refused-by-twitch");
    let row = scene.still.world.row(key.streamer).await?;
    assert_eq!((row.is_active, row.token_refresh_failed_at), (true, Some(scene.still.now())));
    assert_eq!(scene.status(key).await?.body["granted_at"], Value::Null);

    // A second click counts for nothing; a second refusal a quarter of an hour later deactivates.
    scene.grant(key).await?.is(StatusCode::CONFLICT, "refused-by-twitch");
    assert!(scene.still.world.row(key.streamer).await?.is_active);
    scene.still.turn(16);
    scene.grant(key).await?.is(StatusCode::CONFLICT, "refused-by-twitch");
    assert!(!scene.still.world.row(key.streamer).await?.is_active);
    scene.grant(key).await?.is(StatusCode::CONFLICT, "streamer-inactive");
    Ok(())
}

#[tokio::test]
async fn an_outage_grants_nothing_and_says_when_to_come_back() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(unauthorized("brindille")).await?;
    scene.still.world.twitch.fault_for_everybody(Fault::ServerError);
    let answer = scene.grant(key).await?;
    answer.is(StatusCode::SERVICE_UNAVAILABLE, "twitch-unavailable");
    answer.retry_after(60);
    assert_eq!(scene.status(key).await?.body["granted_at"], Value::Null);

    scene.still.world.twitch.clear_faults_for_everybody();
    assert_eq!(scene.grant(key).await?.status, StatusCode::OK, "nobody has to wait once Twitch is back");
    assert_eq!(scene.still.world.row(key.streamer).await?.token_refresh_failed_at, None);
    Ok(())
}

#[tokio::test]
async fn a_fault_of_ours_says_so_and_not_which() -> Result<()> {
    for changes in [("TWITCH_CLIENT_SECRET", "wrong"), ("APP_KEY", "another-app-key-than-the-worlds-own")] {
        let scene = Scene::with(&[changes], TIME).await?;
        let key = scene.add(unauthorized("brindille")).await?;
        let answer = scene.grant(key).await?;
        answer.is(StatusCode::SERVICE_UNAVAILABLE, "misconfigured");
        answer.retry_after(300);
        assert!(!answer.body.to_string().contains(changes.0), "{answer:?}");
        let row = scene.still.world.row(key.streamer).await?;
        assert!(row.is_active);
    }
    Ok(())
}

#[tokio::test]
async fn a_database_that_fails_is_unavailable() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(NewStreamer::fresh("brindille")).await?;
    sqlx::query("ALTER TABLE campaign_memberships RENAME TO elsewhere")
        .execute(&scene.still.world.pool)
        .await?;
    let list = format!("/streamers/{}/authorizations", key.streamer);
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
    Ok(())
}

#[tokio::test]
async fn who_meets_anothers_lease_waits_and_is_told_to_come_back() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(unauthorized("brindille")).await?;
    let lease = "INSERT INTO token_refresh.streamers (streamer_id, fence, leased_until)
                 VALUES ($1, 1, now() + interval '1 hour')";
    scene.execute(lease, key.streamer.0).await?;
    let answer = scene.grant(key).await?;
    answer.is(StatusCode::SERVICE_UNAVAILABLE, "refresh-in-progress");
    answer.retry_after(5);
    Ok(())
}

/// A campaign with one streamer for each finding, besides its game master's own channel.
async fn company(scene: &Scene) -> Result<CampaignId> {
    let member = |new: NewStreamer| NewStreamer {
        campaign: "Les Brumes".to_owned(),
        game_master: "Corvin".to_owned(),
        ..new
    };
    let world = &scene.still.world;
    let key = scene.add(member(NewStreamer::fresh("ok"))).await?;
    scene.add(member(NewStreamer::due("refreshed"))).await?;
    scene.add(member(NewStreamer { is_active: false, ..NewStreamer::fresh("inactive") })).await?;
    scene.add(member(unauthorized("missing"))).await?;
    scene
        .add(member(NewStreamer {
            authorized_for: Some(-TimeDelta::hours(1)),
            ..NewStreamer::fresh("expired")
        }))
        .await?;
    let bare = scene.add(member(NewStreamer::fresh("bare"))).await?;
    scene
        .execute("UPDATE streamers SET refresh_token_encrypted = NULL WHERE id = $1", bare.streamer.0)
        .await?;
    scene.add(member(NewStreamer::fresh("invalid"))).await?;
    world.twitch.disconnect("invalid")?;
    scene.add(member(NewStreamer::fresh("unknown"))).await?;
    world.twitch.fault("unknown", Fault::ServerError.on(Endpoint::Validate))?;
    // The master's own channel is in no campaign.
    let master = scene.add(NewStreamer::due("master")).await?;
    scene.execute("DELETE FROM campaign_memberships WHERE streamer_id = $1", master.streamer.0).await?;
    scene
        .execute("UPDATE streamers SET user_id = md5('user Corvin')::uuid WHERE id = $1", master.streamer.0)
        .await?;
    Ok(key.campaign)
}

#[tokio::test]
async fn a_check_finds_each_channel_and_mends_what_it_can() -> Result<()> {
    let scene = Scene::new().await?;
    let campaign = company(&scene).await?;
    let answer = scene.check(campaign).await?;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let report = &answer.body;
    assert_eq!((&report["campaign_id"], &report["healthy"]), (&json!(campaign), &json!(false)));
    assert_eq!(time(&report["checked_at"]), scene.still.now());
    assert_eq!(report["services"]["database"]["status"], "available");
    assert_eq!(report["services"]["twitch"]["status"], "available");
    let found: Vec<_> = report["streamers"]
        .as_array()
        .context("a list")?
        .iter()
        .map(|one| ["login", "role", "status", "issue"].map(|member| one[member].as_str().unwrap_or("-")))
        .collect();
    assert_eq!(
        found,
        [
            ["master", "game_master", "refreshed", "-"],
            ["bare", "member", "issue", "token_missing"],
            ["expired", "member", "issue", "authorization_expired"],
            ["inactive", "member", "issue", "streamer_inactive"],
            ["invalid", "member", "issue", "token_invalid"],
            ["missing", "member", "issue", "authorization_missing"],
            ["ok", "member", "ok", "-"],
            ["refreshed", "member", "refreshed", "-"],
            ["unknown", "member", "unknown", "-"],
        ]
    );
    for one in report["streamers"].as_array().context("a list")? {
        let is_fine = ["ok", "refreshed"].contains(&one["status"].as_str().context("a status")?);
        assert_eq!(one["action"].is_null(), is_fine, "{one}");
        if is_fine {
            assert!(time(&one["token_expires_at"]) > scene.still.now() + TimeDelta::hours(1), "{one}");
        }
        let has_hours = !["master", "missing"].contains(&one["login"].as_str().context("a login")?);
        assert_eq!(one["authorization_expires_at"].is_string(), has_hours, "{one}");
    }
    let master: Uuid = sqlx::query_scalar("SELECT id FROM streamers WHERE twitch_login = 'master'")
        .fetch_one(&scene.still.world.pool)
        .await?;
    assert_eq!(
        scene.history(StreamerId(master)).await?,
        [("refreshed".to_owned(), "health_check".to_owned(), Some(CALLER.to_owned()))]
    );
    Ok(())
}

#[tokio::test]
async fn a_healthy_campaign_is_healthy() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(NewStreamer::due("brindille")).await?;
    for status in ["refreshed", "ok"] {
        let report = scene.check(key.campaign).await?.body;
        assert_eq!((&report["healthy"], &report["streamers"][0]["status"]), (&json!(true), &json!(status)));
    }
    scene.execute("DELETE FROM campaign_memberships WHERE campaign_id = $1", key.campaign.0).await?;
    let report = scene.check(key.campaign).await?.body;
    assert_eq!((&report["healthy"], &report["streamers"]), (&json!(true), &json!([])), "nobody is needed");
    assert_eq!(report["services"]["twitch"]["status"], "not_asked");
    Ok(())
}

#[tokio::test]
async fn a_check_during_an_outage_knows_that_it_does_not_know() -> Result<()> {
    let scene = Scene::new().await?;
    let key = scene.add(NewStreamer::fresh("brindille")).await?;
    scene.still.world.twitch.fault_for_everybody(Fault::ServerError);
    let report = scene.check(key.campaign).await?.body;
    assert_eq!((&report["healthy"], &report["streamers"][0]["status"]), (&json!(false), &json!("unknown")));
    assert_eq!(report["streamers"][0]["issue"], Value::Null, "an outage is no invalid token");
    assert_eq!(report["services"]["twitch"]["status"], "unavailable");
    Ok(())
}

#[tokio::test]
async fn a_check_does_not_wait_for_a_twitch_that_hangs() -> Result<()> {
    let scene = Scene::with(&[], TimeDelta::seconds(5)).await?;
    let campaign = "Les Brumes".to_owned();
    let key = scene.add(NewStreamer { campaign: campaign.clone(), ..NewStreamer::fresh("fine") }).await?;
    scene.add(NewStreamer { campaign, ..NewStreamer::fresh("hangs") }).await?;
    scene.still.world.twitch.fault("hangs", Fault::Hang)?;
    let report = scene.check(key.campaign).await?.body;
    let found: Vec<_> =
        report["streamers"].as_array().context("a list")?.iter().map(|one| &one["status"]).collect();
    assert_eq!(found, ["ok", "unknown"], "{report}");
    assert_eq!(report["services"]["twitch"]["status"], "available", "it answered for one");
    Ok(())
}

#[tokio::test]
async fn a_fault_of_ours_is_not_in_a_report() -> Result<()> {
    let scene = Scene::with(&[("APP_KEY", "another-app-key-than-the-worlds-own")], TIME).await?;
    let key = scene.add(NewStreamer::due("brindille")).await?;
    let report = scene.check(key.campaign).await?.body;
    let one = &report["streamers"][0];
    assert_eq!(one["status"], "unknown", "{report}");
    assert_eq!(one["detail"], "a fault of this service's own; its log says which");
    Ok(())
}
