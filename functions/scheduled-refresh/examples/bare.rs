//! The least function that there can be: what the others' starts are compared with (`.ci/lambda/cold`). It panics at each
//! event, so that it shows as well whether a panic of what is built in this way unwinds.

use lambda_runtime::{Error, LambdaEvent, service_fn};
use serde_json::Value;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let panic =
        async |_: LambdaEvent<Value>| -> Result<Value, Error> { panic!("a bare function answers nothing") };
    lambda_runtime::run(service_fn(panic)).await
}
