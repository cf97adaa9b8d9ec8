//! The HTTP API on one machine: the functions' own binaries behind the local gateway, and somebody who calls them.

use std::path::Path;

use anyhow::{Context as _, Result};
use domain::{CampaignId, MembershipKey, StreamerId};
use reqwest::{Client, Method};
use serde_json::Value;
use tempfile::{Builder, NamedTempFile};

use crate::binaries::Binaries;
use crate::gateway::{AtLimit, FunctionSpec, Gateway, Log, Route, Settings};

/// Requests at once that each function has a sandbox for; those above wait.
const CONCURRENCY: usize = 20;

/// Where a membership's authorization is found.
#[must_use]
pub fn authorization_path(key: MembershipKey) -> String {
    format!("/campaigns/{}/streamers/{}/authorization", key.campaign, key.streamer)
}

/// Where all authorizations of a streamer are found.
#[must_use]
pub fn authorizations_path(streamer: StreamerId) -> String {
    format!("/streamers/{streamer}/authorizations")
}

/// Where a campaign is checked.
#[must_use]
pub fn check_path(campaign: CampaignId) -> String {
    format!("/campaigns/{campaign}/health-check")
}

/// The running API. When it is dropped, its functions end.
pub struct Api {
    gateway: Gateway,
    client: Client,
    log: NamedTempFile,
}

/// What was answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The JSON; null if there is no body.
    pub body: Value,
}

impl Api {
    /// Starts to serve. The functions have this environment, and log as text.
    ///
    /// # Errors
    ///
    /// If there is no port, or no binary.
    pub async fn start(binaries: &Binaries, environment: &[(String, String)]) -> Result<Self> {
        let log = Builder::new().prefix("functions-").suffix(".log").tempfile()?;
        let mut environment = environment.to_owned();
        environment.push(("LOG_FORMAT".to_owned(), "text".to_owned()));
        let function = |name: &str| {
            let spec = FunctionSpec::new(binaries.path(name)?, environment.clone());
            anyhow::Ok(FunctionSpec {
                log: Log::File(log.path().to_owned()),
                concurrency: CONCURRENCY,
                ..spec
            })
        };
        let routes = vec![
            Route { suffix: "/health-check", function: function("health-check")? },
            Route { suffix: "", function: function("grant-refresh")? },
        ];
        let settings = Settings { at_limit: AtLimit::Wait, ..Settings::default() };
        let gateway = Gateway::start(settings, routes).await?;
        // Nothing here is encrypted, but no client is made without a provider; whichever comes first serves all.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Self { gateway, client: Client::builder().no_proxy().build()?, log })
    }

    /// Where it serves, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> &str {
        self.gateway.base_url()
    }

    /// The file in which the functions log.
    #[must_use]
    pub fn log(&self) -> &Path {
        self.log.path()
    }

    /// Calls it.
    ///
    /// # Errors
    ///
    /// If there is no answer, or none in JSON.
    pub async fn ask(&self, method: &str, path: &str) -> Result<Answer> {
        let url = format!("{}{path}", self.url());
        let answer = self.client.request(Method::from_bytes(method.as_bytes())?, url).send().await?;
        let (status, body) = (answer.status().as_u16(), answer.bytes().await?);
        let body = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&body).context(path.to_owned())?
        };
        Ok(Answer { status, body })
    }
}
