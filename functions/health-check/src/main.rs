//! The Lambda function behind the HTTP API: the check of a campaign before a session.

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
    let open = || async {
        let source = source.with_secrets(&RefreshConfig::SECRETS).await;
        let HealthCheckConfig { refresh, time } = HealthCheckConfig::read(&source)?;
        let runner = Runner::open(refresh).await?;
        Ok(api::health(Arc::new(runner), time))
    };
    api_gateway::serve(open).await
}
