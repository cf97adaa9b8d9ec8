//! The log: one readable message with fields a line, on standard error; and the [`metrics`].

#![warn(missing_docs)]

pub mod metrics;
mod text;

pub use self::text::{Human, Text};

use std::io::IsTerminal;
use std::panic::PanicHookInfo;

use tokens_domain::notification::{Next, Notification, PushAnswer};
use tokens_domain::notify::NotifyReport;
use tokens_domain::report::{Observer, Outcome, Report, Skip};
use tokens_domain::{Streamer, plain};
pub use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// `LOG_LEVEL` and `LOG_FORMAT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The least level that is written.
    pub level: LevelFilter,
    /// How.
    pub format: LogFormat,
}

/// Starts the log. What the crates below us have to say is shown only from `warn` on: it is about their
/// insides, and at lower levels some of them print what they send. But for the span that Lambda's runtime puts around an
/// event: from it each line has the request's id. And but for what sqlx says of a URL or of `.pgpass`, for it repeats what
/// it can't read, a password among the rest.
pub fn start(config: LogConfig) {
    // All our libraries begin with the first, and the command is the second.
    let ours = ["tokens"];
    let filter = Targets::new()
        .with_default(config.level.min(LevelFilter::WARN))
        .with_targets(ours.map(|name| (name, config.level)))
        .with_target("lambda_runtime::layers::trace", LevelFilter::INFO)
        .with_target("sqlx_postgres::options", LevelFilter::OFF);
    let log = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(std::io::stderr)
        // It would panic where standard error is a full disk.
        .log_internal_errors(false)
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

/// From now on a panic is a line of the log like any other, with the request's id.
pub fn log_panics() {
    std::panic::set_hook(Box::new(log_panic));
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(tracing::field::display);
    let message = plain(panic.payload_as_str().unwrap_or("without a message"));
    tracing::error!(location, "panicked: {message}");
}

/// Logs a function's cycle: failures as warnings, what needs the operator as an error, the report at the end, which it
/// counts as well.
pub struct RefreshLog;

impl Observer for RefreshLog {
    fn done(&self, streamer: &Streamer, outcome: &Outcome) {
        let (id, login) = (streamer.id, &streamer.login);
        match outcome {
            Outcome::Failed { reason, standing, alarm: Some(_), .. } => {
                let standing = Text(standing);
                tracing::error!(streamer = %id, login, reason, %standing, "refresh of {login} failed and needs the operator: {reason} ({standing})");
            }
            Outcome::Failed { reason, standing, alarm: None, .. } => {
                let standing = Text(standing);
                tracing::warn!(streamer = %id, login, reason, %standing, "refresh of {login} failed: {reason} ({standing})");
            }
            Outcome::Skipped(Skip::Unusable { why, .. }) if why.is_ours() => {
                let why = Text(why);
                tracing::error!(streamer = %id, login, %why, "token of {login} needs the operator: {why}");
            }
            other => tracing::debug!(streamer = %id, login, outcome = %Text(other), "{login} done"),
        }
    }

    fn finished(&self, report: &Report) {
        metrics::count_report(report);
        let Report { total, success, failed, skipped, waiting, validated, deactivated, .. } = report;
        let duration_ms = report.duration.num_milliseconds();
        let stopped = report.stopped.as_ref().map(tracing::field::display);
        if let Some(reason) = &report.signal_failure {
            tracing::error!(
                signals_failed = report.signals_failed,
                signal_failure = reason,
                "retries or events of the cycle failed: {reason}"
            );
        }
        tracing::info!(
            total,
            success,
            failed,
            skipped,
            waiting,
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

/// Logs a health check as well: what it refreshes on the way, in the existing backend's words.
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

/// Logs and counts the report of a function's delivery. That push services refuse our VAPID key is an error: until it is
/// fixed, no notification arrives.
pub fn log_deliveries(report: &NotifyReport) {
    metrics::count_deliveries(report);
    let NotifyReport { delivered, gone, postponed, given_up, obsolete, unauthorized, other_key } = report;
    tracing::info!(
        delivered,
        gone,
        postponed,
        given_up,
        obsolete,
        unauthorized,
        other_key,
        "outbox delivered"
    );
    if *other_key > 0 {
        tracing::warn!(
            other_key,
            "devices have subscribed under another VAPID key than ours: they have to turn notifications off and on"
        );
    }
    if *unauthorized > 0 {
        tracing::error!(
            unauthorized,
            "push services refuse our VAPID: check VAPID_PUBLIC_KEY, VAPID_PRIVATE_KEY and VAPID_SUBJECT; the \
             subscriptions are kept and tried again for a day"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Where the program is run once more, as a function that panics: hook and log are the whole process's.
    const IS_FUNCTION: &str = "TEST_IS_FUNCTION";

    #[test]
    fn a_panic_is_a_line_of_the_log() {
        if std::env::var_os(IS_FUNCTION).is_some() {
            start(LogConfig { level: LevelFilter::INFO, format: LogFormat::Json });
            log_panics();
            let _request = tracing::error_span!("request", request_id = "of this one").entered();
            panic!("as it may {}", "happen");
        }
        let function = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::a_panic_is_a_line_of_the_log", "--nocapture"])
            .env(IS_FUNCTION, "1")
            .output()
            .unwrap();
        let printed = String::from_utf8(function.stderr).unwrap();
        let [line] = printed.lines().collect::<Vec<_>>()[..] else { panic!("{printed}") };
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(
            (&line["level"], &line["message"]),
            (&"ERROR".into(), &"panicked: as it may happen".into())
        );
        assert_eq!(line["span"]["request_id"], "of this one", "{line}");
        assert!(line["location"].as_str().unwrap().starts_with(file!()), "{line}");
    }
}
