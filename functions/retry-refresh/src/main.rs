//! The Lambda function behind the one-shot schedules: what failed a while ago is tried again.

mod handler;

use adapters::config::{RefreshConfig, Source};
use adapters::runner::Runner;
use adapters::telemetry::{self, metrics::written_after};
use lambda_runtime::{Error, LambdaEvent, service_fn};
use serde_json::Value;

// A function has a share of one core: a second thread would only wait for the first.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let source = Source::environment();
    telemetry::start_function(&source)?;
    let source = source.with_secrets(&RefreshConfig::SECRETS).await;
    let runner = Runner::open(RefreshConfig::read(&source)?).await?;
    let answer = async |event: LambdaEvent<Value>| written_after(handler::handle(&runner, event)).await;
    lambda_runtime::run(service_fn(answer)).await
}
