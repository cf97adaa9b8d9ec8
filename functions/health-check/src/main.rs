//! The Lambda function behind the HTTP API: the check of a campaign before a session.

// The futures of sqlx, the AWS SDK and Lambda's runtime are nested deeper than the compiler goes by itself.
#![recursion_limit = "256"]

use std::sync::Arc;

use adapters::config::{HealthCheckConfig, RefreshConfig, Source};
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
        let HealthCheckConfig { refresh, time } = HealthCheckConfig::read(&source)?;
        let runner = Runner::open(refresh).await?.stopped_by(stop);
        Ok(api::health(Arc::new(runner), time))
    };
    api_gateway::serve(open).await
}
