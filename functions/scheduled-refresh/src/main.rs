//! The Lambda function behind the EventBridge rules: a planned run or a sweep.

// The futures of sqlx, the AWS SDK and Lambda's runtime are nested deeper than the compiler goes by itself.
#![recursion_limit = "256"]

mod handler;

use adapters::config::{RefreshConfig, Source};
use adapters::runner::{Runner, deadline};
use adapters::shutdown::Shutdown;
use adapters::telemetry::{self, metrics::written_after};
use domain::CancellationToken;
use domain::refresh::Limits;
use lambda_runtime::{Error, LambdaEvent, service_fn};
use serde_json::Value;
use tokio::sync::OnceCell;

// A function has a share of one core: a second thread would only wait for the first.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let source = Source::environment();
    telemetry::start_function(&source)?;
    let (runner, shutdown) = (OnceCell::new(), Shutdown::listen());
    let answer = async |event: LambdaEvent<Value>| {
        let limits = Limits::of_function(deadline(event.context.deadline));
        let runner = runner.get_or_try_init(|| open(&source, &limits, shutdown.signal())).await?;
        written_after(handler::handle(runner, event)).await
    };
    let handle = async |event| Box::pin(shutdown.event(answer(event))).await;
    Box::pin(shutdown.serve(lambda_runtime::run(service_fn(handle)))).await
}

/// For the first event, so that a function is ready at once and begins with nothing that it may not need. A database that is
/// away is waited for while a cycle could still start.
async fn open(source: &Source, limits: &Limits, stop: CancellationToken) -> Result<Runner, Error> {
    let source = source.with_secrets(&RefreshConfig::SECRETS).await;
    Ok(Runner::open_until(RefreshConfig::read(&source)?, limits.start).await?.stopped_by(stop))
}
