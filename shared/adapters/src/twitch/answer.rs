//! What Twitch's answers mean: status and body become a class. No text made here repeats more of an answer than a few
//! plain words.

use std::time::Duration;

use chrono::TimeDelta;
use domain::ports::{Outage, RefreshError, TokenResponse, Validity};
use domain::{AccessToken, RefreshToken, TokenPair};
use reqwest::{Response, StatusCode};
use serde::Deserialize;

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
    expires_in: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct ValidateAnswer {
    expires_in: i64,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    message: String,
}

impl Answer {
    pub(super) fn into_token_response(self, sent: &RefreshToken) -> Result<TokenResponse, RefreshError> {
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
                    expires_in: answer.expires_in.and_then(|value| lifetime(value.as_i64()?)),
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

    pub(super) fn into_validity(self) -> Result<Validity, Outage> {
        match self.status {
            StatusCode::OK => serde_json::from_slice(&self.body)
                .ok()
                .and_then(|answer: ValidateAnswer| lifetime(answer.expires_in))
                .map(|expires_in| Validity::Valid { expires_in })
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

/// A lifetime in seconds that a token can have; anything else is no answer.
fn lifetime(seconds: i64) -> Option<TimeDelta> {
    const LONGEST: i64 = 10 * 365 * 24 * 3600;
    (0..=LONGEST).contains(&seconds).then(|| TimeDelta::seconds(seconds))
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
                .into_token_response(&RefreshToken::new("sent".to_owned()))
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
}
