//! `tokens serve`: the service in one process. Cycles by the same rules as on AWS, deliveries, and the HTTP API.

mod door;
mod listener;
mod names;
mod readiness;

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::get;
use chrono::TimeDelta;
use futures::FutureExt as _;
use tokens_domain::refresh::{Cycle, Limits};
use tokens_domain::schedule::Trigger;
use tokens_domain::{CancellationToken, Clock, SystemClock};
use tokens_service::config::{Secret, ServeConfig, Source};
use tokens_service::scheduler::{CycleAlarm, DeliveryAlarm, Scheduler};
use tokens_service::{Host, Notifier, Opened, Process, with_secrets};
use tokens_telemetry::metrics::{Exporter, start_prometheus};
use tokens_telemetry::{log_deliveries, log_delivery, log_panics};
use tokio::net::TcpListener;
use tokio::select;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use self::door::Door;
use self::names::Names;
use self::readiness::Readiness;

/// As long as a function may run at most. What a cycle has not begun by then is left to the next one.
const CYCLE_TIMEOUT: TimeDelta = TimeDelta::minutes(15);

/// A delivery ends before the timer's next one.
const DELIVERY_TIMEOUT: TimeDelta = TimeDelta::minutes(10);

/// After this long an attempt to open the service has failed, so that `/readyz` can say why.
const OPEN_TIMEOUT: TimeDelta = TimeDelta::seconds(2);

/// A cycle that has failed is repeated after this long, as Lambda repeats an event: so often in a row.
const REPEATED_AFTER: TimeDelta = TimeDelta::minutes(1);
const REPETITIONS: u32 = 2;

/// Between two attempts to open the service while the database is away or on another schema.
const OPEN_PAUSE: Duration = Duration::from_secs(3);

/// After the first signal to end, this long is waited for what is in flight: less than the 30 s after which Kubernetes kills, and more
/// than a call to Twitch takes.
const END_TIMEOUT: Duration = Duration::from_secs(24);

/// How often recorded times are summed up.
const TIDY_EVERY: Duration = Duration::from_secs(5);

/// The secrets that its settings may stand in.
const SECRETS: [Secret; 4] = [Secret::Database, Secret::Twitch, Secret::TokenKeys, Secret::Vapid];

#[derive(clap::Args)]
pub struct Arguments {
    /// Listen on this address and port. TLS is the reverse proxy's.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
}

pub async fn run(environment: Source, arguments: &Arguments, process: Process) -> Result<ExitCode> {
    let (resolved, _) = with_secrets(environment.clone(), &SECRETS, &process).await;
    let config = ServeConfig::read(&resolved)?;
    let listener = TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("can't listen on {}", arguments.listen))?;
    let address = listener.local_addr()?;
    let exporter = start_prometheus()?;
    log_panics();
    warn_of_missing(&config, address);

    let (scheduler, stop) = (Scheduler::default(), process.stop.clone());
    let process = process.with_scheduler(scheduler.clone());
    let host = Arc::new(Host::new(environment.clone(), process.clone()));
    let notifier = config.delivers.then(|| Opened::new(environment, process));
    let readiness = Arc::new(Readiness::new(host.clone()));
    let door = Arc::new(Door::new(config, Names::listening(address.port()), host.clone()));
    let router = router(&host, &door, &readiness, &exporter);

    let mut parts = JoinSet::new();
    let all_answered = {
        let door = door.clone();
        async move { door.all_answered().await }
    };
    parts.spawn(listener::serve(listener, router, stop.clone(), all_answered));
    parts.spawn(work(host, notifier, scheduler, readiness, stop.clone()));
    parts.spawn(tidy(exporter, stop.clone()));
    tracing::info!(%address, "listening");
    let ended = async {
        let mut failure = Ok(());
        while let Some(part) = parts.join_next().await {
            if part.is_err() {
                failure = part.context("a part of the server has failed");
                // The others finish what is in flight.
                stop.cancel();
            }
        }
        door.all_answered().await;
        failure.map(|()| ExitCode::SUCCESS)
    };
    let too_late = async {
        stop.cancelled().await;
        sleep(END_TIMEOUT).await;
    };
    select! {
        ended = ended => ended,
        () = too_late => {
            tracing::error!("not everything in flight was finished within {} s", END_TIMEOUT.as_secs());
            Ok(ExitCode::FAILURE)
        }
    }
}

fn warn_of_missing(config: &ServeConfig, address: SocketAddr) {
    if config.keys.is_empty() {
        tracing::warn!(
            "API_KEYS is not set: requests to the HTTP API are refused; `tokens keys generate` makes a key"
        );
    }
    if config.public.is_none() && !address.ip().is_loopback() {
        tracing::warn!("PUBLIC_URL is not set: requests are answered under loopback names only");
    }
    if !config.delivers {
        tracing::warn!("no VAPID key is configured: notifications wait in the outbox");
    }
}

/// Everything but the two checks needs a key.
fn router(host: &Arc<Host>, door: &Arc<Door>, readiness: &Arc<Readiness>, exporter: &Exporter) -> Router {
    let exporter = exporter.clone();
    let metrics = async move || ([(CONTENT_TYPE, "text/plain; version=0.0.4")], exporter.render());
    let ready = {
        let (door, readiness) = (door.clone(), readiness.clone());
        async move |request: axum::extract::Request| {
            readiness.answer(door.caller(&request).is_ok()).await.into_response()
        }
    };
    tokens_api::whole(host.clone())
        .route(door::METRICS, get(metrics))
        .layer(from_fn_with_state(door.clone(), door::admit))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
}

/// Cycles and deliveries, from when the database is there until the process is asked to end.
async fn work(
    host: Arc<Host>,
    notifier: Option<Opened<Notifier>>,
    scheduler: Scheduler,
    readiness: Arc<Readiness>,
    stop: CancellationToken,
) {
    tracing::info!("[Scheduler] Token refresh scheduler started");
    while let Err(error) = select! {
        opened = host.open(SystemClock.monotonic() + OPEN_TIMEOUT) => opened,
        () = stop.cancelled() => return,
    } {
        readiness.not_opened(error.to_string());
        tracing::error!(
            "the service can't be opened, and is tried again in {} s: {error}",
            OPEN_PAUSE.as_secs()
        );
        select! {
            () = sleep(OPEN_PAUSE) => {}
            () = stop.cancelled() => return,
        }
    }
    tokio::join!(
        cycles(&host, scheduler.clone(), &readiness, &stop),
        deliveries(&host, notifier, scheduler, &stop)
    );
}

/// One cycle at a time. The first recovers what was missed while the process was not there.
async fn cycles(host: &Host, scheduler: Scheduler, readiness: &Readiness, stop: &CancellationToken) {
    let mut alarm = CycleAlarm::new(scheduler.clone(), host.now());
    let mut failed_in_a_row = 0;
    let mut first = Some(Trigger::Sweep);
    while !stop.is_cancelled() {
        let Some(trigger) = first.take().or_else(|| alarm.due(host.now())) else {
            select! {
                () = alarm.wait(host.now()) => {}
                () = stop.cancelled() => {}
            }
            continue;
        };
        let deadline = SystemClock.monotonic() + CYCLE_TIMEOUT;
        let cycle = Cycle { limits: Limits::of_function(Some(deadline)), ..Cycle::new(trigger) };
        // A panic costs this cycle, not the server.
        let ran = AssertUnwindSafe(Box::pin(host.run(&cycle, Some(deadline)))).catch_unwind().await;
        let ran = match ran {
            Ok(ran) => ran.map(drop).map_err(|error| error.to_string()),
            Err(_) => Err("the program failed; its log has the panic".to_owned()),
        };
        failed_in_a_row = if ran.is_err() { failed_in_a_row + 1 } else { 0 };
        if let Err(error) = &ran {
            tracing::error!(trigger = trigger.as_str(), "the {} cycle failed: {error}", trigger.as_str());
            if (1..=REPETITIONS).contains(&failed_in_a_row) {
                scheduler.arm_retry(host.now() + REPEATED_AFTER);
            }
        }
        readiness.ran(ran, host.now());
    }
}

async fn deliveries(
    host: &Host,
    notifier: Option<Opened<Notifier>>,
    scheduler: Scheduler,
    stop: &CancellationToken,
) {
    let Some(notifier) = notifier else { return };
    let deliver = async || {
        let notifier = notifier.current(None).await?;
        let deadline = notifier.monotonic() + DELIVERY_TIMEOUT;
        anyhow::Ok(notifier.run(Some(deadline), &log_delivery).await?)
    };
    let mut alarm = DeliveryAlarm::new(scheduler, host.now());
    while !stop.is_cancelled() {
        if !alarm.due(host.now()) {
            select! {
                () = alarm.wait(host.now()) => {}
                () = stop.cancelled() => {}
            }
            continue;
        }
        match deliver().await {
            Ok(report) => log_deliveries(&report),
            Err(error) => {
                tracing::error!("the delivery of notifications failed, and the timer repeats it: {error}");
            }
        }
    }
}

async fn tidy(exporter: Exporter, stop: CancellationToken) {
    while timeout(TIDY_EVERY, stop.cancelled()).await.is_err() {
        exporter.tidy();
    }
}
