//! The Lambda function behind the one-shot schedules: what failed a while ago is tried again.

// A function has a share of one core: a second thread would only wait for the first.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), tokens_functions::Error> {
    tokens_functions::retry_refresh().await
}
