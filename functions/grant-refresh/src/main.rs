//! The Lambda function behind the HTTP API: what a streamer grants, and no longer grants, to campaigns.

// The futures of sqlx, the AWS SDK and Lambda's runtime are nested deeper than the compiler goes by itself.
#![recursion_limit = "256"]

use std::sync::Arc;

use adapters::config::{RefreshConfig, Source};
use adapters::runner::Runner;
use adapters::telemetry;
use api_gateway::Error;

// A function has a share of one core: a second thread would only wait for the first.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let source = Source::environment();
    telemetry::start_function(&source)?;
    let open = |stop| async {
        let source = source.with_secrets(&RefreshConfig::SECRETS).await;
        let runner = Runner::open(RefreshConfig::read(&source)?).await?.stopped_by(stop);
        Ok(api::grants(Arc::new(runner)))
    };
    api_gateway::serve(open).await
}
