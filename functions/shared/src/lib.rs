//! What the Lambda functions share: from an event to the service and back. Their mains say which of these they are.
//!
//! Everything is opened at the first event, so that a function is ready at once and begins with nothing that it may not need.

// The futures of sqlx, the AWS SDK and Lambda's runtime are nested deeper than the compiler goes by itself.
#![recursion_limit = "256"]

mod api_gateway;
mod notify;
mod retry;
mod scheduled;

use chrono::{DateTime, Datelike, TimeDelta};
use lambda_runtime::{LambdaEvent, service_fn};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokens_domain::report::Stop;
use tokens_domain::{Clock, Monotonic, SystemClock};
use tokens_service::config::{self, Source};
use tokens_service::shutdown::Shutdown;
use tokens_service::{Host, Process, RunError};
use tokens_telemetry::LogFormat;
use tokens_telemetry::metrics::{self, written_after};

pub use lambda_runtime::Error;

pub use self::notify::notify;
pub use self::retry::retry_refresh;
pub use self::scheduled::scheduled_refresh;

/// The function `grant-refresh`: what streamers grant to campaigns, and no longer grant.
///
/// # Errors
///
/// If the log's or the metrics' settings are wrong, or the Runtime API can't be reached.
pub async fn grant_refresh() -> Result<(), Error> {
    api_gateway::serve(tokens_api::grants).await
}

/// The function `health-check`: the check of a campaign before a session.
///
/// # Errors
///
/// As [`grant_refresh`].
pub async fn health_check() -> Result<(), Error> {
    api_gateway::serve(tokens_api::health).await
}

/// Starts the log and, where it is JSON and the stack is known, the metrics; answers the settings.
fn start() -> Result<Source, Error> {
    let environment = Source::environment();
    let log = config::log(&environment);
    tokens_telemetry::start(log);
    tokens_telemetry::log_panics();
    match config::metrics_stack(&environment)? {
        Some(stack) if log.format == LogFormat::Json => metrics::start(stack),
        _ => {}
    }
    Ok(environment)
}

/// A host in a process that ends between two events.
fn host(environment: Source, shutdown: &Shutdown) -> Host {
    Host::new(environment, Process::stopped_by(shutdown.signal()))
}

/// Answers events until the process is asked to end.
async fn serve<E, R, F>(shutdown: Shutdown, handle: impl Fn(E, Option<Monotonic>) -> F) -> Result<(), Error>
where
    E: DeserializeOwned,
    R: Serialize,
    F: Future<Output = Result<R, Error>>,
{
    let answer = async |event: LambdaEvent<E>| {
        written_after(handle(event.payload, deadline(event.context.deadline))).await
    };
    let answer = async |event| Box::pin(shutdown.event(answer(event))).await;
    Box::pin(shutdown.serve(lambda_runtime::run(service_fn(answer)))).await
}

/// A cycle that counts as failed, and what the function's settings have to do with it.
fn stopped(error: RunError) -> Error {
    match error {
        RunError::Stopped(Stop::NoTime) => {
            format!("{error}: give the function a timeout of at least three minutes").into()
        }
        error => error.into(),
    }
}

/// When the function is killed at its timeout, from the milliseconds since 1970 in which Lambda gives it. One in 1970 is not a deadline:
/// `cargo lambda watch`, which kills nothing, gives the ten minutes that it would be in.
fn deadline(milliseconds: u64) -> Option<Monotonic> {
    let at = i64::try_from(milliseconds).ok().and_then(DateTime::from_timestamp_millis)?;
    let left: TimeDelta = at - SystemClock.now();
    (at.year() > 1970).then(|| SystemClock.monotonic() + left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_in_1970_is_none() {
        assert_eq!(deadline(600_000), None);
        assert_eq!(deadline(u64::MAX), None);
        let in_a_minute = u64::try_from((SystemClock.now() + TimeDelta::minutes(1)).timestamp_millis());
        let left = deadline(in_a_minute.unwrap()).unwrap() - SystemClock.monotonic();
        assert!(left > TimeDelta::zero() && left <= TimeDelta::minutes(1), "{left}");
    }
}
