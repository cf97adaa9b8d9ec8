//! The log: one readable message with fields a line, on standard error; and the [`metrics`].

pub mod metrics;

use std::io::IsTerminal;

use domain::Streamer;
use domain::notification::{Next, Notification, PushAnswer};
use domain::notify::NotifyReport;
use domain::report::{Observer, Outcome, Report};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{ConfigError, LogConfig, LogFormat, Source, metrics_stack};

/// Starts the log of a function and, where the log is for machines and the stack is known, its metrics.
///
/// # Errors
///
/// If the settings of either are wrong.
pub fn start_function(source: &Source) -> Result<(), ConfigError> {
    let config = LogConfig::read(source)?;
    start(config);
    match metrics_stack(source)? {
        Some(stack) if config.format == LogFormat::Json => metrics::start(stack),
        _ => {}
    }
    Ok(())
}

/// Starts the log. What the crates below us have to say is shown only from `warn` on: it is about their
/// insides, and at lower levels some of them print what they send. But for the span that Lambda's runtime puts around an
/// event: from it each line has the request's id.
pub fn start(config: LogConfig) {
    let ours = [
        "domain",
        "adapters",
        "api",
        "api_gateway",
        "push",
        "tokens",
        "local",
        "grant_refresh",
        "health_check",
        "notify",
        "retry_refresh",
        "scheduled_refresh",
    ];
    let filter = Targets::new()
        .with_default(config.level.min(LevelFilter::WARN))
        .with_targets(ours.map(|name| (name, config.level)))
        .with_target("lambda_runtime::layers::trace", LevelFilter::INFO);
    let log = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(std::io::stderr)
        .with_target(false);
    // A second start (a test, a warm function) keeps the first.
    let _ = match config.format {
        LogFormat::Json => {
            let log = log.json().flatten_event(true).with_current_span(true).with_span_list(false);
            log.finish().with(filter).try_init()
        }
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).finish().with(filter).try_init(),
    };
}

/// Logs a function's cycle: failures as warnings, what somebody has to look at as an error, the report at the end, which it
/// counts as well.
pub struct RefreshLog;

impl Observer for RefreshLog {
    fn done(&self, streamer: &Streamer, outcome: &Outcome) {
        let (id, login) = (streamer.id, &streamer.login);
        match outcome {
            Outcome::Failed { reason, standing, alarm: Some(_), .. } => {
                tracing::error!(streamer = %id, login, reason, %standing, "refresh failed, and somebody has to look");
            }
            Outcome::Failed { reason, standing, alarm: None, .. } => {
                tracing::warn!(streamer = %id, login, reason, %standing, "refresh failed");
            }
            other => tracing::debug!(streamer = %id, login, outcome = %other, "streamer done"),
        }
    }

    fn finished(&self, report: &Report) {
        metrics::count_report(report);
        let Report { total, success, failed, skipped, validated, deactivated, .. } = report;
        let duration_ms = report.duration.num_milliseconds();
        let stopped = report.stopped.as_ref().map(tracing::field::display);
        if let Some(reason) = &report.signal_failure {
            tracing::error!(
                signals_failed = report.signals_failed,
                signal_failure = reason,
                "signals failed"
            );
        }
        tracing::info!(
            total,
            success,
            failed,
            skipped,
            validated,
            deactivated,
            alarms = report.alarms.total(),
            signals_failed = report.signals_failed,
            duration_ms,
            stopped,
            "cycle finished"
        );
    }
}

/// Logs a health check as well: what it mends on the way, in the brief's own words.
pub struct HealthCheckLog;

impl Observer for HealthCheckLog {
    fn refreshing(&self, streamer: &Streamer) {
        let (id, login) = (streamer.id, &streamer.login);
        tracing::info!(streamer = %id, "[HealthCheck] Token invalid for streamer {login}, attempting refresh...");
    }

    fn done(&self, streamer: &Streamer, outcome: &Outcome) {
        let (id, login) = (streamer.id, &streamer.login);
        if let Outcome::Refreshed { .. } = outcome {
            tracing::info!(streamer = %id, "[HealthCheck] Token refreshed successfully for streamer {login}");
        }
        RefreshLog.done(streamer, outcome);
    }

    fn finished(&self, report: &Report) {
        RefreshLog.finished(report);
    }
}

/// Logs what became of one notification in a function. Of the device it names the id, never the endpoint.
pub fn log_delivery(notification: &Notification, answer: &PushAnswer, next: Next) {
    let (id, attempt, subscription) = (notification.id, notification.attempt, notification.subscription.id);
    let (streamer, reason) = (notification.streamer, answer.reason());
    match next {
        Next::Delivered => {
            tracing::debug!(notification = %id, attempt, %subscription, %streamer, "notification delivered");
        }
        Next::Gone => {
            tracing::info!(notification = %id, attempt, %subscription, %streamer, reason, "subscription deleted");
        }
        Next::RetryAt(at) => {
            let retry_at = at.format("%H:%M:%S");
            tracing::warn!(notification = %id, attempt, %subscription, %streamer, reason, %retry_at, "notification postponed");
        }
        Next::GivenUp => {
            tracing::warn!(notification = %id, attempt, %subscription, %streamer, reason, "notification given up");
        }
    }
}

/// Logs and counts the report of a function's delivery. That push services don't take our VAPID is an error: until somebody
/// mends it, nobody is told of anything.
pub fn log_deliveries(report: &NotifyReport) {
    metrics::count_deliveries(report);
    let NotifyReport { delivered, gone, postponed, given_up, obsolete, unauthorized } = report;
    tracing::info!(delivered, gone, postponed, given_up, obsolete, unauthorized, "outbox delivered");
    if *unauthorized > 0 {
        tracing::error!(
            unauthorized,
            "push services refuse our VAPID: check VAPID_PUBLIC_KEY, VAPID_PRIVATE_KEY and VAPID_SUBJECT; the \
             subscriptions are kept and tried again for a day"
        );
    }
}
