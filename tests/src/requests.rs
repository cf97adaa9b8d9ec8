//! What grants and health checks are tested with.

use anyhow::Result;
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tokens_domain::{Caller, CampaignId, MembershipKey, StreamerId};
pub use tokens_local::api::{authorization_path, authorizations_path, check_path};
use tokens_local::lambda::ACCOUNT;
use tokens_local::world::World;
use tokens_service::{Host, Request};

use crate::doomed::until;

/// API Gateway's id of the request.
pub const REQUEST_ID: &str = "of-the-gateway=";

/// The caller.
pub const CALLER: &str = "arn:aws:sts::000000000000:assumed-role/backend/main";

/// A request of [`CALLER`].
pub fn request() -> Request {
    Request { caller: Caller(CALLER.to_owned()), deadline: None }
}

/// The event that API Gateway makes of a request of [`CALLER`]: the crate `aws_lambda_events`' own, with another method and
/// path, without a body, of the account that the functions run in.
///
/// # Panics
///
/// Never: the fixture is JSON.
pub fn event(method: &str, path: &str) -> Value {
    let fixture = include_str!("../fixtures/example-apigw-v2-request-iam.json");
    let mut event: Value = serde_json::from_str(fixture).expect("the fixture is JSON");
    event["rawPath"] = json!(path);
    event["requestContext"]["http"]["path"] = json!(path);
    event["requestContext"]["http"]["method"] = json!(method);
    event["requestContext"]["requestId"] = json!(REQUEST_ID);
    event["requestContext"]["authorizer"]["iam"]["accountId"] = json!(ACCOUNT);
    event["requestContext"]["authorizer"]["iam"]["userArn"] = json!(CALLER);
    event["body"] = Value::Null;
    event
}

/// What stands behind the HTTP API, in this process, on the world's clock.
pub fn host(world: &World) -> Host {
    world.host(&[])
}

/// Returns once a grant or a check has looked whether another's lease was given back. (The condition must not find
/// itself among the statements.)
pub async fn waits_for_a_lease(world: &World) -> Result<()> {
    until(
        world,
        "SELECT count(*) > 0 FROM pg_stat_activity
         WHERE datname = current_database() AND query LIKE '%leased_until > $' || '2%'",
    )
    .await
}

/// The membership that [`World::add`] gave this streamer.
pub async fn membership(world: &World, streamer: StreamerId) -> Result<MembershipKey> {
    let campaign = sqlx::query_scalar("SELECT campaign_id FROM campaign_memberships WHERE streamer_id = $1");
    let campaign = CampaignId(campaign.bind(streamer.0).fetch_one(&world.pool).await?);
    Ok(MembershipKey { campaign, streamer })
}

/// A membership's authorization as it stands in the database: from when, until when.
pub async fn authorization(
    world: &World,
    key: MembershipKey,
) -> Result<(Option<DateTime<Utc>>, Option<DateTime<Utc>>)> {
    let row = sqlx::query_as(
        "SELECT poll_authorization_granted_at, poll_authorization_expires_at FROM campaign_memberships
         WHERE campaign_id = $1 AND streamer_id = $2",
    );
    Ok(row.bind(key.campaign.0).bind(key.streamer.0).fetch_one(&world.pool).await?)
}

/// The sessions that are remembered of a membership, in order: from when, until when.
pub async fn sessions(world: &World, key: MembershipKey) -> Result<Vec<(DateTime<Utc>, DateTime<Utc>)>> {
    let rows = sqlx::query_as(
        "SELECT granted_at, ends_at FROM token_refresh.sessions WHERE campaign_id = $1 AND streamer_id = $2
         ORDER BY granted_at",
    );
    Ok(rows.bind(key.campaign.0).bind(key.streamer.0).fetch_all(&world.pool).await?)
}
