//! What Twitch's answers mean: status and body become a class. No text made here repeats more of an answer than a few
//! plain words.

use std::time::Duration;

use chrono::TimeDelta;
use domain::ports::{Lifetime, Outage, RefreshError, TokenResponse, Validation, Validity};
use domain::{AccessToken, RefreshToken, TokenPair};
use reqwest::{Response, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use super::{NoAnswer, no_answer};

/// Twitch's answers are under 1 KB. What is longer than this is none.
const LONGEST_ANSWER: usize = 64 * 1024;

/// An answer that was read to its end.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// How long Twitch asks us to leave it alone.
    pub(super) wait: Option<Duration>,
    pub(super) body: Vec<u8>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    access_token: String,
    refresh_token: Option<String>,
    /// Whatever its type: a pair must not be lost over it.
    expires_in: Option<Value>,
    /// An array, a string or null.
    #[serde(default, deserialize_with = "present")]
    scope: Option<Value>,
}

/// Whatever its fields' types: only the status says whether the token lives.
#[derive(Deserialize)]
struct ValidateAnswer {
    client_id: Option<Value>,
    user_id: Option<Value>,
    expires_in: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    scopes: Option<Value>,
}

impl ValidateAnswer {
    /// A body that says none of this is not Twitch's.
    fn says_something(&self) -> bool {
        self.client_id.is_some() || self.user_id.is_some() || self.expires_in.is_some()
    }
}

/// Keeps `null`, which is an answer, apart from a missing field, which is none.
fn present<'de, D: serde::Deserializer<'de>>(field: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(field).map(Some)
}

#[derive(Deserialize)]
struct ErrorAnswer {
    message: String,
}

impl Answer {
    pub(super) fn into_token_response(
        self,
        sent: &RefreshToken,
        required_scopes: &[String],
    ) -> Result<TokenResponse, RefreshError> {
        let message = self.message();
        let message = message.as_deref();
        match self.status {
            StatusCode::OK => {
                let answer = self.tokens()?;
                let refresh = answer.refresh_token.filter(|token| !token.is_empty());
                Ok(TokenResponse {
                    pair: TokenPair {
                        access: AccessToken::new(answer.access_token),
                        refresh: refresh.map_or_else(|| sent.clone(), RefreshToken::new),
                    },
                    expires_in: match lifetime(answer.expires_in.as_ref()) {
                        Lifetime::Limited(left) => Some(left),
                        // Validation says whether it never expires.
                        Lifetime::Unlimited | Lifetime::Unknown => None,
                    },
                    missing_scopes: missing(required_scopes, answer.scope.as_ref()),
                })
            }
            _ if self.refuses_credentials() => Err(RefreshError::Misconfigured(self.refused_credentials())),
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED if names(message, &["invalid", "token"]) => {
                Err(RefreshError::Refused(self.told()))
            }
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED if names(message, &["invalid", "grant"]) => {
                Err(RefreshError::Refused(self.told()))
            }
            _ => Err(self.outage().into()),
        }
    }

    pub(super) fn into_application_token(self) -> Result<AccessToken, RefreshError> {
        match self.status {
            StatusCode::OK => Ok(AccessToken::new(self.tokens()?.access_token)),
            _ if self.refuses_credentials() => Err(RefreshError::Misconfigured(self.refused_credentials())),
            _ => Err(self.outage().into()),
        }
    }

    fn tokens(&self) -> Result<TokenAnswer, Outage> {
        let answer = serde_json::from_slice(&self.body).ok();
        answer.filter(|answer: &TokenAnswer| !answer.access_token.is_empty()).ok_or_else(|| self.outage())
    }

    /// Whether it is our application that the token endpoint doesn't take. What is said of a token is that token's affair,
    /// whatever else it names: it must not end the cycle for everybody.
    fn refuses_credentials(&self) -> bool {
        let message = self.message();
        let message = message.as_deref();
        matches!(self.status, StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN)
            && names(message, &["client"])
            && !names(message, &["token"])
    }

    pub(super) fn into_validity(self, required_scopes: &[String]) -> Result<Validity, Outage> {
        match self.status {
            StatusCode::OK => serde_json::from_slice(&self.body)
                .ok()
                .filter(ValidateAnswer::says_something)
                .map(|answer| {
                    Validity::Valid(Validation {
                        lifetime: lifetime(answer.expires_in.as_ref()),
                        client_id: id(answer.client_id),
                        user_id: id(answer.user_id),
                        missing_scopes: missing(required_scopes, answer.scopes.as_ref()),
                    })
                })
                .ok_or_else(|| self.outage()),
            StatusCode::UNAUTHORIZED if names(self.message().as_deref(), &["invalid", "token"]) => {
                Ok(Validity::Invalid)
            }
            _ => Err(self.outage()),
        }
    }

    /// Twitch's own words, if they are plain ones: a token or a secret never is.
    pub(super) fn message(&self) -> Option<String> {
        const LONGEST: usize = 100;
        const LONGEST_WORD: usize = 20;
        let ErrorAnswer { message } = serde_json::from_slice(&self.body).ok()?;
        let plain = message.len() <= LONGEST
            && message.split(' ').all(|word| {
                word.len() <= LONGEST_WORD
                    && word.chars().all(|c| c.is_ascii_alphabetic() || ",.'_".contains(c))
            });
        plain.then_some(message)
    }

    fn told(&self) -> String {
        match self.message() {
            Some(message) => format!("Twitch answered {}: {message}", self.status.as_u16()),
            None => format!("Twitch answered {} with a body that we can't read", self.status.as_u16()),
        }
    }

    pub(super) fn outage(&self) -> Outage {
        Outage(self.told())
    }

    pub(super) fn refused_credentials(&self) -> String {
        format!("{}: check TWITCH_CLIENT_ID and TWITCH_CLIENT_SECRET", self.told())
    }
}

/// Whether the message has all these words, in any case.
pub(super) fn names(message: Option<&str>, words: &[&str]) -> bool {
    message.is_some_and(|message| {
        let message = message.to_ascii_lowercase();
        words.iter().all(|word| message.contains(word))
    })
}

/// `expires_in`, as a number or as its text. What no token can have says nothing.
fn lifetime(expires_in: Option<&Value>) -> Lifetime {
    const MAX: i64 = 10 * 365 * 24 * 3600;
    let seconds = expires_in.and_then(|value| match value {
        Value::String(text) => text.trim().parse().ok(),
        value => value.as_i64(),
    });
    match seconds {
        Some(0) => Lifetime::Unlimited,
        Some(seconds @ 1..=MAX) => Lifetime::Limited(TimeDelta::seconds(seconds)),
        _ => Lifetime::Unknown,
    }
}

/// An id, as text or as a number; an empty one is missing.
fn id(value: Option<Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text).filter(|text| !text.is_empty()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
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

pub(super) async fn read(response: &mut Response) -> Result<Vec<u8>, NoAnswer> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| no_answer(&error))? {
        body.extend_from_slice(&chunk);
        if body.len() > LONGEST_ANSWER {
            return Err(NoAnswer::Lost(format!(
                "Twitch answered {} with more than {} KB",
                response.status().as_u16(),
                LONGEST_ANSWER / 1024
            )));
        }
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_words_of_twitchs_are_repeated() {
        let message = |body: &str| {
            Answer { status: StatusCode::BAD_REQUEST, wait: None, body: body.as_bytes().to_vec() }.message()
        };
        assert_eq!(
            message(r#"{"message":"Invalid refresh token"}"#).as_deref(),
            Some("Invalid refresh token")
        );
        assert_eq!(message(r#"{"message":"token 0123456789abcdefghij is invalid"}"#), None);
        assert_eq!(message("<html>"), None);
    }

    #[test]
    fn what_is_said_of_a_token_accuses_no_application() {
        let refresh = |status, message: &str| {
            let body = serde_json::json!({ "message": message }).to_string().into_bytes();
            Answer { status, wait: None, body }
                .into_token_response(&RefreshToken::new("sent".to_owned()), &[])
                .unwrap_err()
        };
        for (status, message) in [
            (StatusCode::BAD_REQUEST, "invalid client"),
            (StatusCode::BAD_REQUEST, "missing client secret"),
            (StatusCode::FORBIDDEN, "invalid client secret"),
        ] {
            assert!(matches!(refresh(status, message), RefreshError::Misconfigured(_)), "{message}");
        }
        let foreign = refresh(StatusCode::BAD_REQUEST, "refresh token belongs to another client");
        assert!(matches!(foreign, RefreshError::Outage(_)), "{foreign:?}");
        let foreign = refresh(StatusCode::BAD_REQUEST, "Invalid refresh token for this client");
        assert!(matches!(foreign, RefreshError::Refused(_)), "{foreign:?}");
    }

    fn validity(body: &str) -> Option<Validation> {
        let answer = Answer { status: StatusCode::OK, wait: None, body: body.as_bytes().to_vec() };
        match answer.into_validity(&["polls:read".to_owned(), "polls:write".to_owned()]) {
            Ok(Validity::Valid(validation)) => Some(validation),
            Ok(Validity::Invalid) => panic!("{body} is not invalid"),
            Err(_) => None,
        }
    }

    #[test]
    fn a_validation_says_for_how_long_for_whom_and_for_what() {
        let said = validity(
            r#"{"client_id":"app","login":"aria","scopes":["polls:read"],"user_id":"7","expires_in":60}"#,
        );
        let expected = Validation {
            lifetime: Lifetime::Limited(TimeDelta::seconds(60)),
            client_id: Some("app".to_owned()),
            user_id: Some("7".to_owned()),
            missing_scopes: vec!["polls:write".to_owned()],
        };
        assert_eq!(said, Some(expected));
        for (expires_in, lifetime) in [
            ("0", Lifetime::Unlimited),
            (r#""0""#, Lifetime::Unlimited),
            (r#""90""#, Lifetime::Limited(TimeDelta::seconds(90))),
            ("null", Lifetime::Unknown),
            ("-1", Lifetime::Unknown),
            ("99999999999", Lifetime::Unknown),
            ("[]", Lifetime::Unknown),
        ] {
            let said = validity(&format!(r#"{{"client_id":"app","expires_in":{expires_in}}}"#));
            assert_eq!(said.map(|said| said.lifetime), Some(lifetime), "{expires_in}");
        }
        for (scopes, missing) in [
            ("", 0),
            (r#","scopes":null"#, 2),
            (r#","scopes":[]"#, 2),
            (r#","scopes":"polls:read polls:write""#, 0),
            (r#","scopes":["polls:write","polls:read","more"]"#, 0),
        ] {
            let said = validity(&format!(r#"{{"client_id":"app","user_id":7{scopes}}}"#)).unwrap();
            assert_eq!(said.missing_scopes.len(), missing, "{scopes}");
            assert_eq!((said.user_id.as_deref(), said.lifetime), (Some("7"), Lifetime::Unknown));
        }
        for nothing in ["", "{}", "[]", "<html>", r#"{"status":"ok"}"#] {
            assert_eq!(validity(nothing), None, "{nothing}");
        }
    }
}
