//! What goes wrong, as callers read it: one table of cases, in the form of RFC 9457.
//!
//! No text here comes from inside: what a fault of ours is about stands in the log, under the request's id.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokens_domain::authorization::Unknown;
use tokens_domain::grant::GrantError;
use tokens_domain::health::CheckError;
use tokens_domain::ports::{MembershipError, StoreError};
use tokens_service::OpenError;
use utoipa::ToSchema;

/// The header that carries a request's id, in every answer.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The media type of a problem.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";

/// Before the name of each case, so that its `type` is a URI.
const NAMESPACE: &str = "urn:problem:twitch-token-refresh";

/// Something that a request can meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// An id in the path is not a UUID.
    InvalidId {
        /// Which.
        field: &'static str,
    },
    /// There is a body, and it is more than an empty object.
    UnexpectedBody,
    /// The body is longer than anything that could be meant.
    BodyTooLarge,
    /// The caller is not identified.
    CallerUnidentified,
    /// Who asks is of another AWS account.
    CallerForeign,
    /// There is no key with the request, or none that is known.
    KeyMissing,
    /// The key has not the right that the route needs.
    RightMissing,
    /// The key is limited to campaigns, and the path names none of them.
    CampaignForbidden,
    /// The request is for another host.
    UnknownHost,
    /// As many requests as the server takes are being answered.
    TooManyRequests,
    /// The answer took too long.
    TimedOut,
    /// There is no such path.
    UnknownRoute,
    /// The path is there, the method isn't.
    MethodNotAllowed,
    /// What the path names isn't there.
    Unknown(Unknown),
    /// The streamer hasn't accepted the invitation.
    MembershipPending,
    /// The streamer is deactivated.
    StreamerInactive,
    /// Twitch calls the streamer's grant dead.
    RefusedByTwitch,
    /// Twitch could not be asked.
    TwitchUnavailable,
    /// Another run is at it.
    RefreshInProgress,
    /// The database could not be asked.
    DatabaseUnavailable,
    /// A key or a credential of ours is wrong.
    Misconfigured,
    /// The program has a fault.
    Internal,
}

/// One line of the table.
pub(crate) struct Case {
    pub status: StatusCode,
    /// The last part of `type`.
    pub name: &'static str,
    pub title: &'static str,
    pub detail: &'static str,
    pub action: &'static str,
}

impl Problem {
    /// The table.
    #[expect(clippy::too_many_lines, reason = "a table")]
    pub(crate) fn case(self) -> Case {
        let (status, name, title, detail, action) = match self {
            Self::InvalidId { .. } => (
                StatusCode::BAD_REQUEST,
                "invalid-id",
                "An id in the path is not a UUID",
                "Ids are UUIDs in their usual form, such as 5c0e7a52-3a35-4b7c-9a8b-0f6d2a1c9e11.",
                "correct the id in the path",
            ),
            Self::UnexpectedBody => (
                StatusCode::BAD_REQUEST,
                "unexpected-body",
                "This request takes no body",
                "Requests have all parameters in the path. An empty JSON object counts as no body.",
                "send no body",
            ),
            Self::BodyTooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "body-too-large",
                "The body is too large",
                "No request takes a body, and none of more than 1 KiB is read.",
                "send no body",
            ),
            Self::CallerUnidentified => (
                StatusCode::FORBIDDEN,
                "caller-unidentified",
                "The caller is not identified",
                "The request did not come through an API that authenticates its callers with IAM.",
                "sign the request (AWS Signature Version 4) and send it to the API; if you did, the route has lost its \
                 authorizer",
            ),
            Self::CallerForeign => (
                StatusCode::FORBIDDEN,
                "caller-foreign",
                "The caller belongs to another AWS account",
                "Only callers of the account that the function runs in are answered.",
                "assume a role of that account and sign the request with it",
            ),
            Self::KeyMissing => (
                StatusCode::UNAUTHORIZED,
                "key-missing",
                "The request has no valid key",
                "`tokens serve` answers requests that have one of its keys in the header Authorization.",
                "send `Authorization: Bearer KEY`, with a key of this server",
            ),
            Self::RightMissing => (
                StatusCode::FORBIDDEN,
                "right-missing",
                "The key has not the right that this route needs",
                "Each key has the rights that its server's API_KEYS name.",
                "use another key, or have the operator add the right",
            ),
            Self::CampaignForbidden => (
                StatusCode::FORBIDDEN,
                "campaign-forbidden",
                "The key is limited to other campaigns",
                "Such a key reaches only routes with the id of one of its campaigns in the path.",
                "use another key, or have the operator add the campaign",
            ),
            Self::UnknownHost => (
                StatusCode::MISDIRECTED_REQUEST,
                "unknown-host",
                "The server does not have this name",
                "`tokens serve` answers under the name in its PUBLIC_URL and under loopback names.",
                "call it by that name, or have the operator set PUBLIC_URL",
            ),
            Self::TooManyRequests => (
                StatusCode::TOO_MANY_REQUESTS,
                "too-many-requests",
                "The server is answering as many requests as it takes",
                "Nothing has changed.",
                "ask again after the time in the header Retry-After",
            ),
            Self::TimedOut => (
                StatusCode::SERVICE_UNAVAILABLE,
                "timed-out",
                "The answer took too long",
                "What the request asked for goes on, and may have succeeded.",
                "look at the result, or ask again after the time in the header Retry-After",
            ),
            Self::UnknownRoute => (
                StatusCode::NOT_FOUND,
                "unknown-route",
                "There is nothing at this path",
                "The API has no such path.",
                "compare the path with the API's description",
            ),
            Self::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "The path does not support this method",
                "The header Allow lists the supported methods.",
                "use one of these methods",
            ),
            Self::Unknown(Unknown::Campaign) => (
                StatusCode::NOT_FOUND,
                "unknown-campaign",
                "No campaign has this id",
                "The database has no campaign with the id in the path.",
                "correct the id in the path",
            ),
            Self::Unknown(Unknown::Streamer) => (
                StatusCode::NOT_FOUND,
                "unknown-streamer",
                "No streamer has this id",
                "The database has no streamer with the id in the path.",
                "correct the id in the path",
            ),
            Self::Unknown(Unknown::Membership) => (
                StatusCode::NOT_FOUND,
                "unknown-membership",
                "The streamer is not a member of the campaign",
                "Both exist, but the streamer was never invited to this campaign.",
                "invite the streamer to the campaign first",
            ),
            Self::MembershipPending => (
                StatusCode::CONFLICT,
                "membership-pending",
                "The streamer has not accepted the invitation",
                "A campaign can be authorized once the streamer has accepted its invitation. Nothing was granted.",
                "have the streamer accept the invitation, then ask again",
            ),
            Self::StreamerInactive => (
                StatusCode::CONFLICT,
                "streamer-inactive",
                "The streamer is deactivated",
                "Twitch refused the tokens for good, or the streamer was deactivated by hand. Nothing was granted.",
                "have the streamer reconnect with Twitch, then ask again",
            ),
            Self::RefusedByTwitch => (
                StatusCode::CONFLICT,
                "refused-by-twitch",
                "Twitch refuses the streamer's tokens",
                "Without a fresh token nothing is granted. The refusal counts like that of any other refresh.",
                "have the streamer reconnect with Twitch, then ask again",
            ),
            Self::TwitchUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "twitch-unavailable",
                "Twitch gave no usable answer",
                "Without a fresh token nothing is granted. An outage never counts against the streamer.",
                "ask again after the time in the header Retry-After",
            ),
            Self::RefreshInProgress => (
                StatusCode::SERVICE_UNAVAILABLE,
                "refresh-in-progress",
                "The streamer's token is being refreshed by another run",
                "It did not end in time. Nothing was granted.",
                "ask again after the time in the header Retry-After",
            ),
            Self::DatabaseUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "database-unavailable",
                "The database gave no answer",
                "Nothing is known to have changed.",
                "ask again after the time in the header Retry-After",
            ),
            Self::Misconfigured => (
                StatusCode::SERVICE_UNAVAILABLE,
                "misconfigured",
                "The service has a fault of its own",
                "The operator has to fix it first; the log has the details under this request's id.",
                "tell the operator the request's id",
            ),
            Self::Internal => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "The program failed",
                "The log has the details under this request's id.",
                "tell the operator the request's id",
            ),
        };
        Case { status, name, title, detail, action }
    }

    /// What in the request is at fault, if something is.
    fn field(self) -> Option<&'static str> {
        match self {
            Self::InvalidId { field } => Some(field),
            Self::UnexpectedBody | Self::BodyTooLarge => Some("body"),
            Self::Unknown(Unknown::Campaign) => Some("campaign_id"),
            Self::Unknown(Unknown::Streamer) => Some("streamer_id"),
            _ => None,
        }
    }

    /// When it is worth asking again, in seconds, if that can be said.
    pub(crate) fn retry_after(self) -> Option<u64> {
        match self {
            // What is waited for takes seconds, a database that fails over half a minute, an outage of Twitch's a minute at
            // best, a human a few minutes.
            Self::TooManyRequests => Some(1),
            Self::RefreshInProgress | Self::TimedOut => Some(5),
            Self::TwitchUnavailable => Some(60),
            Self::DatabaseUnavailable => Some(30),
            Self::Misconfigured => Some(300),
            _ => None,
        }
    }

    /// The problem as it is sent in answer to this request.
    pub(crate) fn body(self, request_id: &str) -> ProblemBody {
        let Case { status, name, title, detail, action } = self.case();
        ProblemBody {
            r#type: format!("{NAMESPACE}:{name}"),
            title,
            status: status.as_u16(),
            detail,
            action,
            field: self.field(),
            request_id: request_id.to_owned(),
        }
    }

    /// The answer to this request. For what is refused before a router has seen it.
    #[must_use]
    pub fn answer(self, request_id: &str) -> Response {
        named(self.into_response(), request_id)
    }
}

/// Something that goes wrong (RFC 9457).
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemBody {
    /// Which case it is: stable, for programs.
    #[schema(format = "uri")]
    r#type: String,
    /// The case in words, the same each time.
    title: &'static str,
    /// The answer's status.
    status: u16,
    /// What the case means.
    detail: &'static str,
    /// What to do about it.
    action: &'static str,
    /// What in the request is at fault, if something is: `campaign_id`, `streamer_id` or `body`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    field: Option<&'static str>,
    /// By which the log knows the request.
    request_id: String,
}

/// The body needs the request's id, which `named` adds.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.case().status.into_response();
        if let Some(seconds) = self.retry_after() {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self == Self::KeyMissing {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// An answer with the request's id in it: in the header, and in the body of a problem.
pub(crate) fn named(mut response: Response, request_id: &str) -> Response {
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        // A struct of texts and a number always serializes.
        let body = serde_json::to_vec(&problem.body(request_id)).unwrap_or_default();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        *response.body_mut() = Body::from(body);
    }
    if let Ok(value) = HeaderValue::from_str(request_id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

impl From<Unknown> for Problem {
    fn from(unknown: Unknown) -> Self {
        Self::Unknown(unknown)
    }
}

impl From<OpenError> for Problem {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Store(error) => error.into(),
            other => Self::ours(&other.to_string()),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        tracing::error!(reason = error.text, "the database failed");
        Self::DatabaseUnavailable
    }
}

impl From<MembershipError> for Problem {
    fn from(error: MembershipError) -> Self {
        match error {
            MembershipError::Unknown(unknown) => unknown.into(),
            MembershipError::Store(error) => error.into(),
        }
    }
}

impl From<CheckError> for Problem {
    fn from(error: CheckError) -> Self {
        match error {
            CheckError::Unknown(unknown) => unknown.into(),
            CheckError::Store(error) => error.into(),
            CheckError::Ours(reason) | CheckError::Secrets(reason) => Self::ours(&reason),
        }
    }
}

impl Problem {
    /// Why nothing was granted.
    pub(crate) fn of_grant(error: GrantError) -> Self {
        match error {
            GrantError::Unknown(unknown) => unknown.into(),
            GrantError::Pending => Self::MembershipPending,
            GrantError::Inactive => Self::StreamerInactive,
            GrantError::Refused(_) => Self::RefusedByTwitch,
            GrantError::Outage(_) | GrantError::NoTime => Self::TwitchUnavailable,
            GrantError::Busy => Self::RefreshInProgress,
            GrantError::Store(error) => error.into(),
            GrantError::Ours(reason) | GrantError::Secrets(reason) => Self::ours(&reason),
        }
    }

    /// A fault of ours, which only the log names.
    fn ours(reason: &str) -> Self {
        tracing::error!(reason, "nothing can be done by a fault of ours");
        Self::Misconfigured
    }
}
