//! The Lambda function behind the HTTP API: the check of a campaign before a session.

// A function has a share of one core: a second thread would only wait for the first.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), tokens_functions::Error> {
    tokens_functions::health_check().await
}
