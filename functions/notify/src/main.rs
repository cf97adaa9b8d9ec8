//! The Lambda function that delivers the outbox: woken by the domain event of a deactivation, and by a timer for what
//! was left.
//!
//! It is the only function that calls addresses which users gave us. It needs no Twitch secret and no token key, and
//! its database role can read no token.

// The futures of sqlx, the AWS SDK and Lambda's runtime are nested deeper than the compiler goes by itself.
#![recursion_limit = "256"]

mod handler;

use std::sync::Arc;

use adapters::SystemClock;
use adapters::config::{NotifyConfig, Source};
use adapters::shutdown::Shutdown;
use adapters::store::{Database, PgOutbox};
use adapters::telemetry::{self, metrics::written_after};
use domain::notify::NotifyService;
use domain::{CancellationToken, Clock};
use lambda_runtime::{Error, LambdaEvent, service_fn};
use push::{Loopback, Vapid, WebPush};
use serde_json::Value;
use tokio::sync::OnceCell;

use crate::handler::Handler;

// A function has a share of one core: a second thread would only wait for the first.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let source = Source::environment();
    telemetry::start_function(&source)?;
    let (handler, shutdown) = (OnceCell::new(), Shutdown::listen());
    let answer = async |event: LambdaEvent<Value>| {
        let handler = handler.get_or_try_init(|| open(&source, shutdown.signal())).await?;
        written_after(handler.handle(event)).await
    };
    let handle = async |event| Box::pin(shutdown.event(answer(event))).await;
    Box::pin(shutdown.serve(lambda_runtime::run(service_fn(handle)))).await
}

/// For the first event, so that a function is ready at once and begins with nothing that it may not need.
async fn open(source: &Source, stop: CancellationToken) -> Result<Handler<PgOutbox, WebPush>, Error> {
    let source = source.with_secrets(&NotifyConfig::SECRETS).await;
    let NotifyConfig { database, vapid, presentation, secrets } = NotifyConfig::read(&source)?;
    let loopback = if vapid.loopback { Loopback::Allowed } else { Loopback::Refused };
    let vapid = Vapid::new(&vapid.public_key, vapid.private_key.expose(), &vapid.subject)?;
    let push = WebPush::new(vapid, loopback, Arc::new(SystemClock))?;
    let database = Database::open(database).await?;
    let clock: Arc<dyn Clock> = Arc::new(database.clock());
    let outbox = PgOutbox::new(database, clock.clone());
    Ok(Handler {
        service: NotifyService::new(outbox, push, clock.clone(), presentation).stopped_by(stop),
        secrets,
        clock,
    })
}
