//! The Lambda function behind the HTTP API: what streamers grant to campaigns, and no longer grant.

// A function has a share of one core: a second thread would only wait for the first.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), tokens_functions::Error> {
    tokens_functions::grant_refresh().await
}
