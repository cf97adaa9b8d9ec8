//! `tokens refresh`: one cycle by hand, with the brief's report.

use std::fmt::Write as _;
use std::io::{IsTerminal, stderr};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use chrono::{DateTime, TimeDelta, Utc};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tokens_domain::SystemClock;
use tokens_domain::policy::{EXPIRY_MARGIN, RefreshMode};
use tokens_domain::refresh::{Cycle, Limits, Scope};
use tokens_domain::report::{Outcome, Report, Stop};
use tokens_domain::schedule::Trigger;
use tokens_domain::{Authorized, CancellationToken, Clock, Monotonic, NoExpiry, Streamer, StreamerId};
use tokens_service::config::{RefreshConfig, Source};
use tokens_service::{Notifier, Opening, Process, Service};
use tokens_store::{Database, Lookup, OtherLogin, Purpose};
use tokens_telemetry::{Human, Text};
use tokio::time::timeout;

use crate::deliver::{self, Delivery, deliver};
use crate::output::{self, name, times_are_utc};
use crate::{duration, id};

#[derive(clap::Args)]
pub struct Arguments {
    /// Only this streamer: its id, a UUID.
    #[arg(value_parser = id::parse)]
    streamer_id: Option<StreamerId>,
    /// Refresh tokens that are not due as well: of all authorized streamers, if none is given.
    #[arg(long)]
    force: bool,
    /// Show what would be done; don't call Twitch, don't write.
    #[arg(long)]
    dry_run: bool,
    /// End within this long: `90s`, `10m`, `1h`. What is in flight then is finished, the rest is left to the next run.
    #[arg(long, default_value = "10m", value_parser = duration::parse)]
    timeout: TimeDelta,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// One streamer's part of the report.
#[derive(Serialize)]
struct Detail {
    #[serde(flatten)]
    streamer: Streamer,
    #[serde(skip)]
    mark: &'static str,
    outcome: &'static str,
    text: String,
}

impl Detail {
    fn new(streamer: &Streamer, outcome: &Outcome) -> Self {
        let (mark, name) = match outcome {
            Outcome::Refreshed { .. } | Outcome::Granted { .. } => ("✓", "refreshed"),
            Outcome::Failed { .. } => ("✗", "failed"),
            Outcome::Skipped(_) => ("-", "skipped"),
            Outcome::WouldRefresh => ("→", "would_refresh"),
            Outcome::WouldValidate => ("→", "would_validate"),
        };
        Self { streamer: streamer.clone(), mark, outcome: name, text: Text(outcome).to_string() }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    dry_run: bool,
    report: &'a Report,
    streamers: &'a [Detail],
    /// What became of the notifications; none where the command does not deliver them, or could not.
    notifications: Option<&'a Delivery>,
    /// Why they could not be delivered.
    notifications_error: Option<&'a str>,
}

/// It takes seconds with 100,000 streamers.
const KEEP_UP_TIMEOUT: Duration = Duration::from_secs(30);

const DRY_RUN: &str = "\nDry run: Twitch is not called, nothing is written.\n";
const STARTING: &str = "\nStarting refresh cycle...\n";

pub async fn run(
    source: &Source,
    arguments: Arguments,
    process: &Process,
    other_login: Option<OtherLogin>,
) -> Result<ExitCode> {
    let began = SystemClock.monotonic();
    let (config, notify) = RefreshConfig::read_for_command(source)?;
    let limits = Limits::of_command(began, arguments.timeout);
    let until = began + arguments.timeout;
    let reading = Reading { until, stop: process.stop.clone() };
    let opening = Service::open(
        config,
        process,
        Purpose::of(arguments.dry_run),
        Opening { give_up_at: limits.start, other_login },
    );
    let service = reading.of(Box::pin(opening)).await??;
    let database = service.database();
    let now = service.now();
    let notifier = notify
        .filter(|_| !arguments.dry_run)
        .map(|config| Notifier::new(config, database.clone(), process))
        .transpose()?;

    let only = match arguments.streamer_id {
        Some(id) => Some(reading.of(find(database, id, now)).await??),
        None => None,
    };
    let cycle = Cycle {
        mode: if arguments.force { RefreshMode::Forced } else { RefreshMode::Due },
        dry_run: arguments.dry_run,
        scope: only.as_ref().map_or(Scope::Authorized, Scope::only),
        limits,
        ..Cycle::new(Trigger::Command)
    };

    let expected = if arguments.json {
        None
    } else {
        output::line("🔄 Token Refresh Command\n========================\n")?;
        output::line("Finding streamers with active authorization...\n")?;
        let authorized = match only {
            Some(only) => vec![only],
            None => reading.of(all_authorized(database, now)).await??,
        };
        output::line(&listing(&authorized, now))?;
        output::line(if cycle.dry_run { DRY_RUN } else { STARTING })?;
        Some(authorized.len())
    };

    let bar = progress_bar(expected);
    let details = Mutex::new(Vec::new());
    let observe = |streamer: &Streamer, outcome: &Outcome| {
        bar.inc(1);
        details.lock().unwrap_or_else(PoisonError::into_inner).push(Detail::new(streamer, outcome));
    };
    let report = service.run_observed(&cycle, &observe).await?;
    bar.finish_and_clear();

    if !cycle.dry_run && matches!(cycle.scope, Scope::Authorized) {
        keep_up(database, service.now(), until, &process.stop).await;
    }
    let details = details.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (delivered, undelivered) = match notifier {
        Some(notifier) => match deliver(&notifier, until).await {
            Ok(delivery) => (Some(delivery), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        },
        None => (None, None),
    };
    if arguments.json {
        output::json(&Document {
            dry_run: cycle.dry_run,
            report: &report,
            streamers: &details,
            notifications: delivered.as_ref(),
            notifications_error: undelivered.as_deref(),
        })?;
    } else {
        output::line(&summary(&report, cycle.dry_run))?;
        if !details.is_empty() {
            output::line("\nDetails:")?;
        }
        for Detail { streamer, mark, text, .. } in &details {
            output::line(&format!("  {mark} {}: {text}", name(streamer)))?;
        }
        if let Some(text) = delivered.as_ref().and_then(deliver::text) {
            output::line(&format!("\n{text}"))?;
        }
        output::line(&format!("\n{}", times_are_utc(service.now())))?;
    }
    let mut nothing_failed = report_faults(&report, cycle.dry_run);
    if let Some(error) = undelivered {
        output::error(&format!("\nThe notifications were not delivered: {error}"));
        nothing_failed = false;
    }
    if delivered.is_some_and(|delivery| delivery.report.unauthorized > 0) {
        output::error(
            "\nPush services refuse our VAPID: check VAPID_PUBLIC_KEY, VAPID_PRIVATE_KEY and VAPID_SUBJECT",
        );
        nothing_failed = false;
    }
    Ok(if nothing_failed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says what is wrong, and whether nothing is.
fn report_faults(report: &Report, dry_run: bool) -> bool {
    if let Some(stop) = &report.stopped {
        let advice = if *stop == Stop::NoTime { "; give it a longer --timeout" } else { "" };
        output::error(&format!("\nThe cycle stopped early: {stop}{advice}"));
    }
    if let Some(reason) = &report.signal_failure {
        output::error(&format!("\n{} signal(s) could not be given: {reason}", report.signals_failed));
    }
    let waiting = if dry_run { 0 } else { report.waiting };
    if waiting > 0 {
        output::error(&format!(
            "\n{waiting} streamer(s) have failed and wait for a retry: once the cause is fixed, `--force` tries them at once"
        ));
    }
    report.failed + waiting == 0 && report.stopped.is_none()
}

/// As after each cycle of the functions, should only this command run, from cron.
async fn keep_up(database: &Database, now: DateTime<Utc>, until: Monotonic, stop: &CancellationToken) {
    let left = (until - SystemClock.monotonic()).to_std().unwrap_or_default();
    let kept = tokio::select! {
        kept = timeout(left.min(KEEP_UP_TIMEOUT), database.keep_up(now)) => kept,
        () = stop.cancelled() => return,
    };
    let failure = match kept {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.text,
        Err(_) => "there was not enough time".to_owned(),
    };
    output::error(&format!("\nNot all was remembered or forgotten: {failure}. The next run makes up for it"));
}

/// What is read before the cycle holds nothing, so it ends at once.
struct Reading {
    until: Monotonic,
    stop: CancellationToken,
}

impl Reading {
    async fn of<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        let left = (self.until - SystemClock.monotonic()).to_std().unwrap_or_default();
        tokio::select! {
            done = timeout(left, work) => done.context("the database did not answer within the --timeout"),
            () = self.stop.cancelled() => bail!("interrupted before anything was refreshed"),
        }
    }
}

async fn find(database: &Database, id: StreamerId, now: DateTime<Utc>) -> Result<Authorized> {
    match database.find(id, now).await? {
        Lookup::Authorized(authorized) => Ok(authorized),
        Lookup::NotAuthorized(streamer) => bail!(
            "{} has no active authorization: the streamer has to authorize a campaign first",
            name(&streamer)
        ),
        Lookup::Inactive(streamer) => bail!(
            "{} is deactivated: the streamer has to reconnect, and is active again then",
            name(&streamer)
        ),
        Lookup::Unknown => bail!("no streamer has the id {id}: {}", id::LISTED),
    }
}

/// All pages.
pub async fn all_authorized(database: &Database, now: DateTime<Utc>) -> Result<Vec<Authorized>> {
    let mut all: Vec<Authorized> = Vec::new();
    loop {
        let page = database.authorized(all.last(), now).await?;
        if page.is_empty() {
            return Ok(all);
        }
        all.extend(page);
    }
}

fn listing(authorized: &[Authorized], now: DateTime<Utc>) -> String {
    if authorized.is_empty() {
        return "Found 0 streamer(s) with active authorization.".to_owned();
    }
    let mut text = format!("Found {} streamer(s) with active authorization:\n", authorized.len());
    for one in authorized {
        let mark = match one.token.expires_at {
            None if one.token.no_expiry == Some(NoExpiry::Never) => "✓".to_owned(),
            None => "⚠ expiry unknown".to_owned(),
            Some(at) if at <= now => "⚠ expired".to_owned(),
            Some(at) if at - now <= EXPIRY_MARGIN => format!("⚠ expires in {}", Human(at - now)),
            Some(_) => "✓".to_owned(),
        };
        let _ = write!(text, "\n  - {} {mark}", name(&one.streamer));
    }
    text
}

fn summary(report: &Report, dry_run: bool) -> String {
    const RULE: &str = "═══════════════════════════════════════";
    let mut text = format!("{RULE}\n              REPORT\n{RULE}\nTotal streamers: {}\n", report.total);
    if dry_run {
        let _ = writeln!(text, "Would refresh: {}", report.would_refresh);
    }
    let ms = report.duration.num_milliseconds();
    let Report { success, failed, skipped, waiting, .. } = report;
    let _ = writeln!(text, "Success: {success}\nFailed: {failed}\nSkipped: {skipped}");
    if *waiting > 0 {
        let _ = writeln!(text, "  waiting for a retry: {waiting}");
    }
    let _ = write!(text, "Duration: {}.{:03} s", ms / 1000, ms % 1000);
    text
}

/// On a terminal only; a pipe gets plain lines.
fn progress_bar(expected: Option<usize>) -> ProgressBar {
    let Some(expected) = expected.filter(|_| stderr().is_terminal()) else { return ProgressBar::hidden() };
    let bar = ProgressBar::with_draw_target(Some(expected as u64), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{bar:39} {pos}/{len} {eta}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use chrono::{TimeDelta, TimeZone};
    use tokens_domain::TokenState;
    use uuid::Uuid;

    use super::*;

    fn authorized(login: &str, expires_at: Option<DateTime<Utc>>) -> Authorized {
        Authorized {
            streamer: Streamer::new(StreamerId(Uuid::nil()), login, login.to_uppercase()),
            until: Utc.with_ymd_and_hms(2026, 11, 24, 6, 0, 0).unwrap(),
            token: TokenState { expires_at, ..TokenState::default() },
        }
    }

    #[test]
    fn the_listing_marks_what_expires_soon() {
        let now = Utc.with_ymd_and_hms(2026, 11, 23, 20, 0, 0).unwrap();
        let authorized = [
            authorized("fresh", Some(now + TimeDelta::hours(3))),
            authorized("soon", Some(now + TimeDelta::minutes(35))),
            authorized("late", Some(now - TimeDelta::minutes(1))),
            authorized("unknown\u{1b}[2J", None),
        ];
        insta::assert_snapshot!(listing(&authorized, now), @r"
        Found 4 streamer(s) with active authorization:

          - FRESH (fresh) ✓
          - SOON (soon) ⚠ expires in 35 min
          - LATE (late) ⚠ expired
          - UNKNOWN[2J (unknown[2J) ⚠ expiry unknown
        ");
        insta::assert_snapshot!(listing(&[], now), @"Found 0 streamer(s) with active authorization.");
    }

    #[test]
    fn the_summary_is_the_briefs() {
        let report = Report {
            total: 4,
            success: 2,
            failed: 1,
            skipped: 1,
            duration: TimeDelta::milliseconds(1_042),
            ..Report::default()
        };
        insta::assert_snapshot!(summary(&report, false), @r"
        ═══════════════════════════════════════
                      REPORT
        ═══════════════════════════════════════
        Total streamers: 4
        Success: 2
        Failed: 1
        Skipped: 1
        Duration: 1.042 s
        ");
        let report = Report { skipped: 3, waiting: 2, ..report };
        assert!(summary(&report, false).contains("Skipped: 3\n  waiting for a retry: 2\nDuration: "));
    }
}
