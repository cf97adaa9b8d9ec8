//! The device code flow (RFC 8628), by which the command gets a streamer's first pair.
//!
//! A pair belongs to the application that asked for the code, and is refreshed with its secret like any other.

use std::fmt;
use std::time::Duration;

use reqwest::Client;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use serde_json::Value;
use tokens_domain::ports::{Lifetime, Outage, Permit, Priority};
use tokens_domain::{AccessToken, CancellationToken, RefreshToken, TokenPair};
use zeroize::Zeroizing;

use super::answer::{Answer, id, lifetime, refuses_credentials, refuses_request, said};
use super::pace::Endpoint;
use super::{CallError, TwitchClient, latest};

const GRANT_TYPE: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// How long to wait between two questions if Twitch doesn't say (RFC 8628, section 3.2); and how much longer after each
/// `slow_down` (section 3.5).
const INTERVAL: Duration = Duration::from_secs(5);

/// What Twitch gives its codes, if it doesn't say.
const EXPIRES_IN: Duration = Duration::from_mins(30);

/// A code that a streamer confirms in a browser.
pub struct DeviceCode {
    code: Zeroizing<String>,
    scopes: String,
    /// What the streamer types, as Twitch gave it.
    pub user_code: String,
    /// Where.
    pub verification_uri: String,
    /// For how long it is valid.
    pub expires_in: Duration,
    /// How long to wait between two questions.
    pub interval: Duration,
}

impl fmt::Debug for DeviceCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeviceCode(redacted)")
    }
}

/// What Twitch answers as long as nothing is wrong.
#[derive(Debug)]
pub enum Device {
    /// The streamer has confirmed the code.
    Connected(TokenPair),
    /// Not yet.
    Pending,
    /// Not yet, and we ask too often.
    TooFast,
}

impl DeviceCode {
    /// The next question comes later.
    pub fn slow_down(&mut self) {
        self.interval += INTERVAL;
    }
}

/// Why there is no pair. The texts hold no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Twitch doesn't take the code, or the scopes.
    #[error("{0}")]
    Refused(String),
    /// Twitch gave no usable answer. Asking again is worth it.
    #[error(transparent)]
    Outage(#[from] Outage),
    /// Our application's credentials are wrong.
    #[error("{0}")]
    Misconfigured(String),
}

impl From<CallError> for DeviceError {
    fn from(error: CallError) -> Self {
        Outage::from(error).into()
    }
}

/// Whose an access token is, as Twitch says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The Twitch user's id.
    pub user_id: String,
    /// The channel's login.
    pub login: String,
    /// The application that it was issued to.
    pub client_id: String,
    /// What it is good for.
    pub scopes: Vec<String>,
    /// How long it lives.
    pub lifetime: Lifetime,
}

impl TwitchClient {
    /// Asks for a code with these scopes.
    ///
    /// # Errors
    ///
    /// If Twitch gives none.
    pub async fn device_code(
        &self,
        scopes: &[String],
        stop: &CancellationToken,
    ) -> Result<DeviceCode, DeviceError> {
        let scopes = scopes.join(" ");
        let form = [("client_id", self.config.credentials.client_id.as_str()), ("scopes", scopes.as_str())];
        let request = |client: &Client| client.post(self.device_url.clone()).form(&form);
        let permit = &Permit::UNCONDITIONAL.until(stop);
        let answer = self.call(Endpoint::Token, Priority::Vital, latest(), permit, request).await?;
        answer.into_device_code(scopes)
    }

    /// Asks whether the streamer has confirmed the code. Not more often than its interval says.
    ///
    /// # Errors
    ///
    /// If Twitch says that the code leads to nothing any more, or nothing usable.
    pub async fn device_tokens(
        &self,
        code: &DeviceCode,
        stop: &CancellationToken,
    ) -> Result<Device, DeviceError> {
        let form = [
            ("client_id", self.config.credentials.client_id.as_str()),
            ("scopes", code.scopes.as_str()),
            ("device_code", code.code.as_str()),
            ("grant_type", GRANT_TYPE),
        ];
        let request = |client: &Client| client.post(self.token_url.clone()).form(&form);
        let permit = &Permit::UNCONDITIONAL.until(stop);
        let answer = self.call(Endpoint::Token, Priority::Vital, latest(), permit, request).await?;
        answer.into_device()
    }

    /// Asks whose this access token is, which no other answer says.
    ///
    /// # Errors
    ///
    /// If Twitch doesn't say.
    pub async fn owner(&self, token: &AccessToken) -> Result<Owner, DeviceError> {
        let header = HeaderValue::from_str(&format!("OAuth {}", token.expose()));
        let mut header = header.map_err(|_| {
            DeviceError::Refused("Twitch's new access token can't be sent in a header".to_owned())
        })?;
        header.set_sensitive(true);
        let request =
            |client: &Client| client.get(self.validate_url.clone()).header(AUTHORIZATION, header.clone());
        let permit = &Permit::UNCONDITIONAL;
        let answer = self.call(Endpoint::Validate, Priority::Vital, latest(), permit, request).await?;
        answer.into_owner()
    }
}

impl Answer {
    fn into_device_code(self, scopes: String) -> Result<DeviceCode, DeviceError> {
        let object = &self.body.object;
        let text = |name| object.text(name).map(str::to_owned);
        if self.status.is_success()
            && let (Some(code), Some(user_code), Some(verification_uri)) =
                (text("device_code"), text("user_code"), text("verification_uri"))
        {
            let seconds = |name, default| match lifetime(object.whole_field(name)) {
                Lifetime::Limited(length) => length.to_std().unwrap_or(default),
                Lifetime::Unlimited | Lifetime::Unknown => default,
            };
            return Ok(DeviceCode {
                code: Zeroizing::new(code),
                scopes,
                user_code,
                verification_uri,
                expires_in: seconds("expires_in", EXPIRES_IN),
                interval: seconds("interval", INTERVAL),
            });
        }
        Err(self.device_error())
    }

    fn into_device(self) -> Result<Device, DeviceError> {
        let object = &self.body.object;
        if self.status.is_success()
            && let (Some(access), Some(refresh)) = (object.text("access_token"), object.text("refresh_token"))
        {
            let (access, refresh) = (AccessToken::new(access), RefreshToken::new(refresh));
            return Ok(Device::Connected(TokenPair { access, refresh }));
        }
        let said = said(object);
        if refuses_request(self.status) && said.contains("authorization_pending") {
            return Ok(Device::Pending);
        }
        if refuses_request(self.status) && said.contains("slow_down") {
            return Ok(Device::TooFast);
        }
        Err(self.device_error())
    }

    fn into_owner(self) -> Result<Owner, DeviceError> {
        let object = &self.body.object;
        let id = |name| object.whole_field(name).and_then(id);
        if self.status.is_success()
            && let (Some(user_id), Some(login), Some(client_id)) =
                (id("user_id"), id("login"), id("client_id"))
        {
            let scopes = match object.whole_field("scopes") {
                Some(Value::Array(scopes)) => {
                    scopes.iter().filter_map(Value::as_str).map(str::to_owned).collect()
                }
                Some(Value::String(text)) => text.split([' ', ',']).map(str::to_owned).collect(),
                _ => Vec::new(),
            };
            let lifetime = lifetime(object.whole_field("expires_in"));
            return Ok(Owner { user_id, login, client_id, scopes, lifetime });
        }
        Err(self.device_error())
    }

    fn device_error(self) -> DeviceError {
        if refuses_credentials(self.status, &said(&self.body.object)) {
            return DeviceError::Misconfigured(self.refused_credentials());
        }
        if refuses_request(self.status) && self.body.cut_short.is_none() {
            return DeviceError::Refused(self.summary());
        }
        self.outage().into()
    }
}
