//! What Twitch's answers mean: status and body become a class. No text made here repeats more of an answer than a few
//! plain words.

use std::time::Duration;

use chrono::TimeDelta;
use reqwest::StatusCode;
use serde_json::Value;
use tokens_domain::ports::{Lifetime, Outage, RefreshError, TokenResponse, Validation, Validity};
use tokens_domain::{AccessToken, RefreshToken, TokenPair};

use super::body::{Body, Object};

/// Where an answer says what is wrong: Twitch's own field, and those of RFC 6749.
const REASONS: [&str; 3] = ["message", "error_description", "error"];

/// An answer, as far as it came.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// How long Twitch asks us to leave it alone.
    pub(super) wait: Option<Duration>,
    pub(super) body: Body,
}

impl Answer {
    pub(super) fn into_token_response(
        self,
        sent: &RefreshToken,
        required_scopes: &[String],
    ) -> Result<TokenResponse, RefreshError> {
        let object = &self.body.object;
        if self.status.is_success()
            && let Some(pair) = pair(object, sent)
        {
            let expires_in = match lifetime(object.whole_field("expires_in")) {
                Lifetime::Limited(left) => Some(left),
                // Validation says whether it never expires.
                Lifetime::Unlimited | Lifetime::Unknown => None,
            };
            let missing_scopes = missing(required_scopes, object.whole_field("scope"));
            return Ok(TokenResponse { pair, expires_in, missing_scopes });
        }
        let said = said(object);
        if refuses_credentials(self.status, &said) {
            return Err(RefreshError::Misconfigured(self.refused_credentials()));
        }
        let refuses = matches!(self.status, StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED)
            && said.contains("invalid")
            && (said.contains("token") || said.contains("grant"))
            // What is wrong then is not the grant.
            && !["grant type", "grant_type"].iter().any(|kind| said.contains(kind));
        Err(if refuses { RefreshError::Refused(self.summary()) } else { self.outage().into() })
    }

    pub(super) fn into_application_token(self) -> Result<AccessToken, RefreshError> {
        let object = &self.body.object;
        if self.status.is_success()
            && let Some(token) = object.text("access_token")
        {
            return Ok(AccessToken::new(token.to_owned()));
        }
        let said = said(object);
        // There is nothing else in the request that could be refused.
        if refuses_credentials(self.status, &said) || (refuses_request(self.status) && !said.is_empty()) {
            return Err(RefreshError::Misconfigured(self.refused_credentials()));
        }
        Err(self.outage().into())
    }

    pub(super) fn into_revocation(self) -> Result<(), RefreshError> {
        let said = said(&self.body.object);
        match self.status {
            status if status.is_success() => Ok(()),
            status if refuses_credentials(status, &said) => {
                Err(RefreshError::Misconfigured(self.refused_credentials()))
            }
            StatusCode::BAD_REQUEST if said.contains("token") => Ok(()),
            _ => Err(self.outage().into()),
        }
    }

    pub(super) fn into_validity(self, required_scopes: &[String]) -> Result<Validity, Outage> {
        let object = &self.body.object;
        if self.status.is_success() {
            // Whatever the fields' types: only the status says whether the token lives. But a body that has none of them
            // is not Twitch's.
            let field = |name| object.whole_field(name).filter(|value| !value.is_null());
            if ["client_id", "user_id", "expires_in"].into_iter().all(|name| field(name).is_none()) {
                return Err(self.outage());
            }
            return Ok(Validity::Valid(Validation {
                lifetime: lifetime(field("expires_in")),
                client_id: field("client_id").and_then(id),
                user_id: field("user_id").and_then(id),
                missing_scopes: missing(required_scopes, object.whole_field("scopes")),
            }));
        }
        let said = said(object);
        if self.status == StatusCode::UNAUTHORIZED && said.contains("invalid") && said.contains("token") {
            return Ok(Validity::Invalid);
        }
        Err(self.outage())
    }

    /// Twitch's own words, if they are plain ones: a token or a secret never is.
    fn message(&self) -> Option<String> {
        const LONGEST: usize = 100;
        const MAX_WORD: usize = 20;
        let is_plain = |message: &&str| {
            !message.is_empty()
                && message.len() <= LONGEST
                && message.split(' ').all(|word| {
                    word.len() <= MAX_WORD
                        && word.chars().all(|c| c.is_ascii_alphabetic() || ",.'_".contains(c))
                })
        };
        self.body.object.texts(&REASONS).find(is_plain).map(str::to_owned)
    }

    pub(super) fn summary(&self) -> String {
        match self.message() {
            Some(message) => format!("Twitch answered {}: {message}", self.status.as_u16()),
            None => format!("Twitch answered {} with a body that we can't read", self.status.as_u16()),
        }
    }

    pub(super) fn outage(&self) -> Outage {
        Outage(self.body.cut_short.clone().unwrap_or_else(|| self.summary()))
    }

    pub(super) fn refused_credentials(&self) -> String {
        format!("{}: check TWITCH_CLIENT_ID and TWITCH_CLIENT_SECRET", self.summary())
    }
}

/// A pair that can be read is kept, whatever is wrong with the rest. Without an end there must be both: the refresh token
/// may be what is missing.
fn pair(object: &Object, sent: &RefreshToken) -> Option<TokenPair> {
    let access = AccessToken::new(object.text("access_token")?.to_owned());
    let refresh = match object.text("refresh_token") {
        Some(text) => RefreshToken::new(text.to_owned()),
        None if object.is_whole => sent.clone(),
        None => return None,
    };
    Some(TokenPair { access, refresh })
}

/// All that an answer says of its reason, in lower case, to look for words.
pub(super) fn said(object: &Object) -> String {
    object.texts(&REASONS).collect::<Vec<_>>().join(". ").to_ascii_lowercase()
}

/// Whether it is our application that the endpoint does not take, whatever the status and the spelling. What is said of a
/// token or a grant concerns that alone, whatever else it names: it must not end the cycle for all streamers.
pub(super) fn refuses_credentials(status: StatusCode, said: &str) -> bool {
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if has(&["invalid_client", "unauthorized_client"]) {
        return true;
    }
    if has(&["token", "grant"]) || !has(&["client", "secret", "credential"]) {
        return false;
    }
    refuses_request(status) || has(&["invalid", "missing", "unknown", "exist"])
}

/// Of these we know that it is the request that Twitch does not take.
pub(super) fn refuses_request(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND
    )
}

/// `expires_in`, as a number or as its text. What no token can have says nothing.
pub(super) fn lifetime(expires_in: Option<&Value>) -> Lifetime {
    const MAX: i64 = 10 * 365 * 24 * 3600;
    let seconds = expires_in.and_then(|value| match value {
        Value::String(text) => text.trim().parse().ok(),
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the cast saturates, and a fraction of a second does not count"
        )]
        value => value.as_i64().or_else(|| Some(value.as_f64()? as i64)),
    });
    match seconds {
        Some(0) => Lifetime::Unlimited,
        Some(seconds @ 1..=MAX) => Lifetime::Limited(TimeDelta::seconds(seconds)),
        _ => Lifetime::Unknown,
    }
}

/// An id; what is not text, or empty, counts as missing. It is compared and logged: nothing but what ids are made of is kept.
pub(super) fn id(value: &Value) -> Option<String> {
    const MAX_LENGTH: usize = 64;
    let text = value.as_str()?;
    let of_ids = |c: &char| c.is_ascii_alphanumeric() || "-_".contains(*c);
    Some(text.chars().filter(of_ids).take(MAX_LENGTH).collect()).filter(|id: &String| !id.is_empty())
}

/// The required scopes that the answer lacks: an array, one string, or null where a token has none. An answer without the
/// field says nothing, so nothing is missing.
fn missing(required: &[String], scopes: Option<&Value>) -> Vec<String> {
    let granted: Vec<&str> = match scopes {
        None => return Vec::new(),
        Some(Value::String(text)) => text.split([' ', ',']).collect(),
        Some(Value::Array(scopes)) => scopes.iter().filter_map(Value::as_str).collect(),
        Some(_) => Vec::new(),
    };
    required.iter().filter(|scope| !granted.contains(&scope.as_str())).cloned().collect()
}

#[cfg(test)]
mod tests;
