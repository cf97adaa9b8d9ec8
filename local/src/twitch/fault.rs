//! What can be made to go wrong: each fault, its name as text, and what it makes of a request.

use std::{fmt, future, mem::discriminant, str::FromStr, time::Duration};

use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::answer::{Answer, html, huge, json_text};
use crate::server::HangUp;

/// Longer than any sensible client waits for a token.
const DEFAULT_SLOWNESS: Duration = Duration::from_secs(30);

/// One way in which Twitch can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 400 `Invalid refresh token`: the streamer disconnected the application, or Twitch errs.
    InvalidRefreshToken,
    /// 400 `Invalid grant`.
    InvalidGrant,
    /// 401 that names the token.
    Unauthorized,
    /// 400 `invalid client`: the application's id is wrong.
    InvalidClient,
    /// 401 `invalid client`.
    UnauthorizedClient,
    /// 404 `client does not exist`.
    UnknownClient,
    /// 400 `missing client secret`.
    MissingClientSecret,
    /// 403 `invalid client secret`.
    InvalidClientSecret,
    /// 400 whose message repeats the tokens and the secret of the request.
    Reflect,
    /// 500 with Twitch's JSON.
    ServerError,
    /// 503 with Twitch's JSON.
    ServiceUnavailable {
        /// Seconds, for the header `Retry-After`.
        retry_after: Option<u64>,
    },
    /// 429 with Twitch's JSON.
    TooManyRequests {
        /// Seconds, for the header `Retry-After`.
        retry_after: Option<u64>,
        /// Unix seconds, for the header `Ratelimit-Reset`.
        ratelimit_reset: Option<u64>,
    },
    /// 502 with a load balancer's page.
    HtmlError,
    /// 200 with a page.
    HtmlSuccess,
    /// 200 with an empty body.
    Empty,
    /// 200 whose body calls itself JSON and isn't.
    NotJson,
    /// 200 with a body of 32 MiB.
    HugeBody,
    /// The connection is closed before Twitch processed the request.
    Disconnect,
    /// No answer comes, and the connection stays open.
    Hang,
    /// The request is processed this much later.
    Slow {
        /// What is added to the latency of the simulation.
        latency: Duration,
    },
    /// The request is processed, and the connection closed in the middle of the answer.
    Truncated,
    /// The request is processed (a refresh token rotates), and the connection closed without an answer.
    ProcessedButLost,
    /// Processed; in a success, strings stand where numbers belong and the other way round.
    OddTypes,
    /// Processed; a success doesn't say when the token expires.
    NoExpiresIn,
    /// Processed; a success gives the scopes as one string.
    ScopeString,
    /// Processed; a success gives null as scopes.
    ScopeNull,
    /// Processed; a success says that the token never expires.
    ZeroExpiresIn,
    /// Processed; a validation says that the token was issued to another application.
    OtherClient,
    /// Processed; a validation says that the token belongs to another user.
    OtherUser,
}

const NAMED: [(&str, Fault); 29] = [
    ("invalid-refresh-token", Fault::InvalidRefreshToken),
    ("invalid-grant", Fault::InvalidGrant),
    ("unauthorized", Fault::Unauthorized),
    ("invalid-client", Fault::InvalidClient),
    ("unauthorized-client", Fault::UnauthorizedClient),
    ("unknown-client", Fault::UnknownClient),
    ("missing-client-secret", Fault::MissingClientSecret),
    ("invalid-client-secret", Fault::InvalidClientSecret),
    ("reflect", Fault::Reflect),
    ("server-error", Fault::ServerError),
    ("service-unavailable", Fault::ServiceUnavailable { retry_after: None }),
    ("too-many-requests", Fault::TooManyRequests { retry_after: None, ratelimit_reset: None }),
    ("html-error", Fault::HtmlError),
    ("html-success", Fault::HtmlSuccess),
    ("empty", Fault::Empty),
    ("not-json", Fault::NotJson),
    ("huge-body", Fault::HugeBody),
    ("disconnect", Fault::Disconnect),
    ("hang", Fault::Hang),
    ("slow", Fault::Slow { latency: DEFAULT_SLOWNESS }),
    ("truncated", Fault::Truncated),
    ("processed-but-lost", Fault::ProcessedButLost),
    ("odd-types", Fault::OddTypes),
    ("no-expires-in", Fault::NoExpiresIn),
    ("scope-string", Fault::ScopeString),
    ("scope-null", Fault::ScopeNull),
    ("zero-expires-in", Fault::ZeroExpiresIn),
    ("other-client", Fault::OtherClient),
    ("other-user", Fault::OtherUser),
];

impl Fault {
    /// Every fault, with its parameters at their defaults.
    pub const ALL: [Self; NAMED.len()] = {
        let mut all = [Self::Hang; NAMED.len()];
        let mut place = 0;
        while place < all.len() {
            all[place] = NAMED[place].1;
            place += 1;
        }
        all
    };

    /// The name, by which the control routes know it with its parameters at their defaults.
    pub fn name(self) -> &'static str {
        let is_this = |(_, known): &&(&str, Self)| discriminant(known) == discriminant(&self);
        NAMED.iter().find(is_this).map_or("unnamed", |(name, _)| name)
    }

    /// This fault on `endpoint` only.
    pub fn on(self, endpoint: Endpoint) -> FaultRule {
        FaultRule::from(self).on(endpoint)
    }

    /// This fault for the next `times` requests to each of its endpoints.
    pub fn times(self, times: u32) -> FaultRule {
        FaultRule::from(self).times(times)
    }

    /// Where this fault can happen at the real Twitch: validation takes no refresh token and no client secret.
    pub(super) fn endpoints(self) -> &'static [Endpoint] {
        match self {
            Self::InvalidRefreshToken
            | Self::InvalidGrant
            | Self::InvalidClient
            | Self::UnauthorizedClient
            | Self::UnknownClient
            | Self::MissingClientSecret
            | Self::InvalidClientSecret => &[Endpoint::Token],
            Self::OtherClient | Self::OtherUser => &[Endpoint::Validate],
            _ => &[Endpoint::Token, Endpoint::Validate],
        }
    }

    /// What happens before the request is processed: an answer ends it here, nothing lets it go on. `secrets` are those
    /// of the request.
    pub(super) async fn before_processing(self, endpoint: Endpoint, secrets: &[&str]) -> Option<Response> {
        let answer = match self {
            Self::InvalidRefreshToken => Answer::invalid_refresh_token(StatusCode::BAD_REQUEST),
            Self::InvalidGrant => Answer::bad_request("Invalid grant"),
            Self::Unauthorized => match endpoint {
                Endpoint::Token => Answer::invalid_refresh_token(StatusCode::UNAUTHORIZED),
                Endpoint::Validate => Answer::invalid_access_token(),
            },
            Self::InvalidClient => Answer::invalid_client(),
            Self::UnauthorizedClient => {
                Answer::error(StatusCode::UNAUTHORIZED, "invalid client").with_reason()
            }
            Self::UnknownClient => Answer::unknown_client(),
            Self::MissingClientSecret => Answer::missing_client_secret(),
            Self::InvalidClientSecret => Answer::invalid_client_secret(),
            Self::Reflect => {
                Answer::bad_request(format!("invalid token {}", secrets.join(" "))).with_reason()
            }
            Self::ServerError => Answer::error(StatusCode::INTERNAL_SERVER_ERROR, "internal server error"),
            Self::ServiceUnavailable { retry_after } => {
                let answer = Answer::error(StatusCode::SERVICE_UNAVAILABLE, "service unavailable");
                return Some(with_headers(answer, [(header::RETRY_AFTER, retry_after)]));
            }
            Self::TooManyRequests { retry_after, ratelimit_reset } => {
                let answer = Answer::error(StatusCode::TOO_MANY_REQUESTS, "too many requests");
                return Some(with_headers(
                    answer,
                    [
                        (header::RETRY_AFTER, retry_after),
                        (HeaderName::from_static("ratelimit-reset"), ratelimit_reset),
                    ],
                ));
            }
            Self::HtmlError => return Some(html(StatusCode::BAD_GATEWAY)),
            Self::HtmlSuccess => return Some(html(StatusCode::OK)),
            Self::Empty => return Some(json_text(StatusCode::OK, "")),
            Self::NotJson => return Some(json_text(StatusCode::OK, "upstream connect error")),
            Self::HugeBody => return Some(huge()),
            Self::Disconnect => return Some(HangUp.into_response()),
            Self::Hang => future::pending().await,
            Self::Slow { latency } => {
                tokio::time::sleep(latency).await;
                return None;
            }
            Self::Truncated
            | Self::ProcessedButLost
            | Self::OddTypes
            | Self::NoExpiresIn
            | Self::ScopeString
            | Self::ScopeNull
            | Self::ZeroExpiresIn
            | Self::OtherClient
            | Self::OtherUser => return None,
        };
        Some(answer.into_response())
    }

    /// What becomes of the answer to a request that was processed. An error has no field that could be spoiled.
    pub(super) fn after_processing(self, mut answer: Answer) -> Response {
        match self {
            Self::ProcessedButLost => return HangUp.into_response(),
            Self::Truncated => return answer.truncated(),
            Self::OddTypes => {
                for field in ["access_token", "user_id"] {
                    answer.replace(field, |_| json!(12_345));
                }
                answer.replace("expires_in", |seconds| json!(seconds.to_string()));
            }
            Self::NoExpiresIn => {
                if let Some(fields) = answer.body.as_object_mut() {
                    fields.remove("expires_in");
                }
            }
            Self::ScopeString => answer.replace_scopes(|scopes| {
                let scopes: Vec<&str> =
                    scopes.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                json!(scopes.join(" "))
            }),
            Self::ScopeNull => answer.replace_scopes(|_| Value::Null),
            Self::ZeroExpiresIn => answer.replace("expires_in", |_| json!(0)),
            Self::OtherClient => answer.replace("client_id", |_| json!("another-application")),
            Self::OtherUser => answer.replace("user_id", |_| json!("1234567")),
            _ => {}
        }
        answer.into_response()
    }
}

impl Answer {
    fn replace(&mut self, field: &str, with: impl FnOnce(&Value) -> Value) {
        if let Some(value) = self.body.get_mut(field) {
            *value = with(value);
        }
    }

    /// The token endpoint says `scope`, validation says `scopes`.
    fn replace_scopes(&mut self, with: impl Fn(&Value) -> Value) {
        self.replace("scope", &with);
        self.replace("scopes", &with);
    }
}

fn with_headers<const N: usize>(answer: Answer, headers: [(HeaderName, Option<u64>); N]) -> Response {
    let mut response = answer.into_response();
    for (name, value) in headers {
        if let Some(value) = value {
            response.headers_mut().insert(name, HeaderValue::from(value));
        }
    }
    response
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = UnknownFault;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|fault| fault.name() == name);
        known.ok_or_else(|| UnknownFault(name.to_owned()))
    }
}

/// A text is not the name of a [`Fault`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no fault is called ‘{0}’; there are: {names}", names = Fault::ALL.map(Fault::name).join(", "))]
pub struct UnknownFault(String);

/// An endpoint that faults can hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `POST /oauth2/token`.
    Token,
    /// `GET /oauth2/validate`.
    Validate,
}

/// A fault, where it happens and how often. Made from a [`Fault`]: it then happens on every endpoint on which it
/// can, until it is cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultRule {
    pub(super) fault: Fault,
    pub(super) endpoint: Option<Endpoint>,
    pub(super) times: Option<u32>,
}

impl From<Fault> for FaultRule {
    fn from(fault: Fault) -> Self {
        Self { fault, endpoint: None, times: None }
    }
}

impl FaultRule {
    /// On `endpoint` only, even if the real Twitch wouldn't have this fault there.
    pub fn on(self, endpoint: Endpoint) -> Self {
        Self { endpoint: Some(endpoint), ..self }
    }

    /// For the next `times` requests to each of its endpoints.
    pub fn times(self, times: u32) -> Self {
        Self { times: Some(times), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_known_by_name_and_an_unknown_name_is_answered_with_all() {
        for fault in Fault::ALL {
            assert_eq!(fault.name().parse(), Ok(fault));
        }
        assert_eq!(
            Fault::TooManyRequests { retry_after: Some(1), ratelimit_reset: None }.name(),
            "too-many-requests"
        );
        let error = "sever-error".parse::<Fault>().unwrap_err().to_string();
        assert!(
            error.starts_with("no fault is called ‘sever-error’; there are: invalid-refresh-token, "),
            "{error}"
        );
    }
}
