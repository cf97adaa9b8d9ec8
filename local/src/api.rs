//! The HTTP API on one machine: the router of the crate `api`, served from this process on loopback. Every request is taken
//! for one of the account's own user `local`, as if IAM had authenticated it.

use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result};
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use reqwest::{Client, Method};
use serde_json::Value;
use tempfile::{Builder, NamedTempFile};
use tokens_api::Context;
use tokens_domain::{Caller, CampaignId, MembershipKey, StreamerId};
use tokens_service::config::Source;
use tokens_service::{Host, Process};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tracing::Dispatch;
use tracing::instrument::WithSubscriber as _;
use uuid::Uuid;

use crate::lambda::ACCOUNT;

/// The path of a membership's authorization.
pub fn authorization_path(key: MembershipKey) -> String {
    format!("/campaigns/{}/streamers/{}/authorization", key.campaign, key.streamer)
}

/// The path of all authorizations of a streamer.
pub fn authorizations_path(streamer: StreamerId) -> String {
    format!("/streamers/{streamer}/authorizations")
}

/// The path of a campaign's health check.
pub fn check_path(campaign: CampaignId) -> String {
    format!("/campaigns/{campaign}/health-check")
}

/// The running API. Dropping it stops it.
pub struct Api {
    url: String,
    client: Client,
    log: NamedTempFile,
    serving: JoinHandle<()>,
}

/// An answer of the API.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    /// Null if there is no body.
    pub body: Value,
}

impl Api {
    /// Serves on a free port, with a service of this environment, and logs to a file of its own.
    pub async fn start(environment: &[(String, String)]) -> Result<Self> {
        let source: Source = environment.iter().cloned().collect();
        let router = tokens_api::whole(Arc::new(Host::new(source, Process::default())));

        let log = Builder::new().prefix("api-").suffix(".log").tempfile()?;
        // Not the process's only log: tests run many APIs in one process, and each reads its own.
        let subscriber = tracing_subscriber::fmt()
            .with_target(false)
            .with_ansi(false)
            .with_writer(Mutex::new(log.reopen()?))
            .finish();
        let dispatch = Dispatch::new(subscriber);
        let enter = move |mut request: Request, next: Next| {
            let caller = Caller(format!("arn:aws:iam::{ACCOUNT}:user/local"));
            let request_id = Uuid::new_v4().to_string();
            request.extensions_mut().insert(Context { caller, request_id, client: None, deadline: None });
            next.run(request).with_subscriber(dispatch.clone())
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no port for the HTTP API")?;
        let url = format!("http://{}", listener.local_addr()?);
        let serving = tokio::spawn(async move {
            // It serves until the task is aborted, and fails in no other way.
            let _ = axum::serve(listener, router.layer(from_fn(enter))).await;
        });
        // reqwest needs a TLS provider even for plain HTTP; the first that is installed serves the whole process.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Self { url, client: Client::builder().no_proxy().build()?, log, serving })
    }

    /// The base URL, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn log(&self) -> &Path {
        self.log.path()
    }

    pub async fn ask(&self, method: &str, path: &str) -> Result<Answer> {
        let url = format!("{}{path}", self.url);
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

impl Drop for Api {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
