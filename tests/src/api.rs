//! The HTTP API as its callers reach it, in two ways: over a socket, served from this process; and by the
//! event that API Gateway would send, handed to the function's binary.

use std::fs::{OpenOptions, read_to_string};
use std::time::Duration;

use anyhow::{Context as _, Result};
use local::api::Answer;
use local::lambda::Function;
use local::world::World;
use serde_json::Value;
use tempfile::NamedTempFile;

use crate::requests::event;
use crate::{binary, changed};

/// As long as API Gateway waits.
const TIME_LEFT: Duration = Duration::from_secs(30);

/// The API of a world.
pub enum Api {
    /// Over a socket.
    Socket(local::api::Api),
    /// By events.
    Events {
        /// The functions' environment.
        environment: Vec<(String, String)>,
        /// What they log.
        log: NamedTempFile,
    },
}

impl Api {
    /// Over a socket.
    pub async fn over_a_socket(world: &World) -> Result<Self> {
        Ok(Self::Socket(local::api::Api::start(&world.environment()).await?))
    }

    /// By events.
    pub fn by_events(world: &World) -> Result<Self> {
        let environment = changed(world.environment(), &[("LOG_FORMAT", "text")]);
        Ok(Self::Events { environment, log: NamedTempFile::new()? })
    }

    /// Asks; each event is handed to a new process.
    pub async fn ask(&self, method: &str, path: &str) -> Result<Answer> {
        let (environment, log) = match self {
            Self::Socket(api) => return api.ask(method, path).await,
            Self::Events { environment, log } => (environment, log),
        };
        let name = if path.ends_with("/health-check") { "health-check" } else { "grant-refresh" };
        let log = OpenOptions::new().append(true).open(log.path())?;
        let function = Function::start(&binary(name).await?, environment, log.into()).await?;
        let answer = function.invoke(event(method, path), TIME_LEFT).await?;
        let status = answer["statusCode"].as_u64().context("no status")?.try_into()?;
        let body = answer["body"].as_str().filter(|body| !body.is_empty()).unwrap_or("null");
        Ok(Answer { status, body: serde_json::from_str::<Value>(body)? })
    }

    /// The log so far.
    pub fn log(&self) -> Result<String> {
        Ok(read_to_string(match self {
            Self::Socket(api) => api.log(),
            Self::Events { log, .. } => log.path(),
        })?)
    }
}
