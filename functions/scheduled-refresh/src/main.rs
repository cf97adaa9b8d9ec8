//! The Lambda function behind the EventBridge rules: a planned run or a sweep.

// A function has a share of one core: a second thread would only wait for the first.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), tokens_functions::Error> {
    tokens_functions::scheduled_refresh().await
}
