//! The Lambda function behind the EventBridge rules: a planned run or a sweep.

mod handler;

use std::sync::Arc;

use adapters::config::{LogConfig, RefreshConfig, Source};
use adapters::store::{Database, PgStore};
use adapters::{SystemClock, telemetry};
use lambda_runtime::{Error, LambdaEvent, service_fn};
use serde_json::Value;

use crate::handler::Handler;

// A function has a share of one core: a second thread would only wait for the first.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let source = Source::environment();
    telemetry::start(LogConfig::read(&source)?);
    let config = RefreshConfig::read(&source)?;
    let clock = Arc::new(SystemClock);
    let database = Database::open(config.database).await?;
    let store = PgStore::new(database, config.cipher, clock.clone());
    let handler = Handler { store, twitch: config.twitch, policy: config.policy, clock };
    lambda_runtime::run(service_fn(async |event: LambdaEvent<Value>| handler.handle(event).await)).await
}
