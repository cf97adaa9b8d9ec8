//! The Lambda function behind the EventBridge rules: a planned run or a sweep.

mod handler;

use adapters::config::{LogConfig, RefreshConfig, Source};
use adapters::runner::Runner;
use adapters::telemetry;
use lambda_runtime::{Error, LambdaEvent, service_fn};
use serde_json::Value;

// A function has a share of one core: a second thread would only wait for the first.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let source = Source::environment();
    telemetry::start(LogConfig::read(&source)?);
    let source = source.with_secrets(&RefreshConfig::SECRETS).await;
    let runner = Runner::open(RefreshConfig::read(&source)?).await?;
    lambda_runtime::run(service_fn(async |event: LambdaEvent<Value>| handler::handle(&runner, event).await))
        .await
}
