//! The operations: each takes ids from the path, asks the [`Host`], and says what became of it.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::path::ErrorKind;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::{Extension, Json};
use tokens_domain::{CampaignId, MembershipKey, StreamerId};
use tokens_service::Host;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::Context;
use crate::answers::{CheckAnswers, GrantAnswers, ListAnswers, RevokeAnswers, StatusAnswers};
use crate::body::{Authorization, Authorizations, HealthReport};
use crate::problem::Problem;

/// The length of a UUID in its usual form; the crate takes others as well.
const UUID_LENGTH: usize = 36;

pub(crate) fn grants() -> OpenApiRouter<Arc<Host>> {
    OpenApiRouter::new().routes(routes!(grant, status, revoke)).routes(routes!(list))
}

pub(crate) fn health() -> OpenApiRouter<Arc<Host>> {
    OpenApiRouter::new().routes(routes!(check))
}

/// Authorize a campaign
///
/// The streamer's token is refreshed at once, whatever is left of it; then polls of this campaign may run on the channel
/// for 12 hours from now. A refresh that is less than a minute old counts, so that a repeated call costs Twitch nothing.
/// Without a fresh token nothing is granted.
#[utoipa::path(
    post,
    path = "/campaigns/{campaign_id}/streamers/{streamer_id}/authorization",
    operation_id = "grant_authorization",
    tag = "grants",
    params(
        ("campaign_id" = Uuid, Path, description = "The campaign."),
        ("streamer_id" = Uuid, Path, description = "The streamer.")
    ),
    responses(GrantAnswers),
)]
async fn grant(
    State(host): State<Arc<Host>>,
    Extension(context): Extension<Context>,
    Ids(key): Ids<MembershipKey>,
) -> Result<Json<Authorization>, Problem> {
    match host.grant(key, &context.into()).await {
        Ok(membership) => Ok(Json(Authorization::of(membership, host.now()))),
        Err(error) => Err(Problem::of_grant(error)),
    }
}

/// See an authorization
///
/// From the database; Twitch is not asked.
#[utoipa::path(
    get,
    path = "/campaigns/{campaign_id}/streamers/{streamer_id}/authorization",
    operation_id = "get_authorization",
    tag = "grants",
    params(
        ("campaign_id" = Uuid, Path, description = "The campaign."),
        ("streamer_id" = Uuid, Path, description = "The streamer.")
    ),
    responses(StatusAnswers),
)]
async fn status(
    State(host): State<Arc<Host>>,
    Ids(key): Ids<MembershipKey>,
) -> Result<Json<Authorization>, Problem> {
    let membership = host.membership(key).await?;
    Ok(Json(Authorization::of(membership, host.now())))
}

/// Revoke an authorization
///
/// It ends now. Repeating the call is safe, also if there was none.
#[utoipa::path(
    delete,
    path = "/campaigns/{campaign_id}/streamers/{streamer_id}/authorization",
    operation_id = "revoke_authorization",
    tag = "grants",
    params(
        ("campaign_id" = Uuid, Path, description = "The campaign."),
        ("streamer_id" = Uuid, Path, description = "The streamer.")
    ),
    responses(RevokeAnswers),
)]
async fn revoke(State(host): State<Arc<Host>>, Ids(key): Ids<MembershipKey>) -> Result<StatusCode, Problem> {
    host.revoke(key).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// See all authorizations of a streamer
///
/// One for each campaign that has invited the streamer, by the campaigns' names.
#[utoipa::path(
    get,
    path = "/streamers/{streamer_id}/authorizations",
    operation_id = "list_authorizations",
    tag = "grants",
    params(("streamer_id" = Uuid, Path, description = "The streamer.")),
    responses(ListAnswers),
)]
async fn list(
    State(host): State<Arc<Host>>,
    Ids(streamer): Ids<StreamerId>,
) -> Result<Json<Authorizations>, Problem> {
    let memberships = host.memberships(streamer).await?;
    Ok(Json(Authorizations::of(streamer, memberships, host.now())))
}

/// Check a campaign before a session
///
/// The game master's own channel, if there is one, and every active member, all at the same time: active, authorized, with
/// tokens that Twitch calls valid for another hour. What expires sooner or is invalid is refreshed. The answer is a report,
/// healthy or not, with what is known when the time is over.
#[utoipa::path(
    post,
    path = "/campaigns/{campaign_id}/health-check",
    operation_id = "check_campaign",
    tag = "health check",
    params(("campaign_id" = Uuid, Path, description = "The campaign.")),
    responses(CheckAnswers),
)]
async fn check(
    State(host): State<Arc<Host>>,
    Extension(context): Extension<Context>,
    Ids(campaign): Ids<CampaignId>,
) -> Result<Json<HealthReport>, Problem> {
    let report = host.check(campaign, &context.into()).await?;
    Ok(Json(HealthReport::of(campaign, report)))
}

/// The ids that a path names.
pub(crate) struct Ids<T>(pub T);

/// What [`Ids`] can be read as.
pub(crate) trait FromIds: Sized {
    fn read(id: impl Fn(&'static str) -> Result<Uuid, Problem>) -> Result<Self, Problem>;
}

impl FromIds for CampaignId {
    fn read(id: impl Fn(&'static str) -> Result<Uuid, Problem>) -> Result<Self, Problem> {
        id("campaign_id").map(Self)
    }
}

impl FromIds for StreamerId {
    fn read(id: impl Fn(&'static str) -> Result<Uuid, Problem>) -> Result<Self, Problem> {
        id("streamer_id").map(Self)
    }
}

impl FromIds for MembershipKey {
    fn read(id: impl Fn(&'static str) -> Result<Uuid, Problem>) -> Result<Self, Problem> {
        Ok(Self { campaign: CampaignId::read(&id)?, streamer: StreamerId::read(&id)? })
    }
}

impl<T: FromIds, S: Send + Sync> FromRequestParts<S> for Ids<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::<HashMap<String, String>>::from_request_parts(parts, state).await;
        let Path(ids) = path.map_err(|rejection| Problem::InvalidId { field: at_fault(&rejection) })?;
        T::read(|field| {
            let text = ids.get(field).filter(|text| text.len() == UUID_LENGTH);
            text.and_then(|text| Uuid::try_parse(text).ok()).ok_or(Problem::InvalidId { field })
        })
        .map(Self)
    }
}

/// The id whose percent-encoding is not UTF-8.
fn at_fault(rejection: &PathRejection) -> &'static str {
    match rejection {
        PathRejection::FailedToDeserializePathParams(error) => match error.kind() {
            ErrorKind::InvalidUtf8InPathParam { key } if key == "streamer_id" => "streamer_id",
            _ => "campaign_id",
        },
        _ => "campaign_id",
    }
}
