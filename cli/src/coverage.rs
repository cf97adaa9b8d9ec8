//! `tokens coverage`: dead minutes of sessions, worst first.

use std::fmt::Write as _;

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use tokens_domain::authorization::NO_END;
use tokens_domain::{Clock, StreamerId};
use tokens_store::{BrokenSession, Coverage, Database, Gap};
use tokens_telemetry::Human;
use uuid::Uuid;

use crate::duration;
use crate::output::{self, table, time, times_are_utc};

#[derive(clap::Args)]
pub struct Arguments {
    /// How far back: `90m`, `2h`, `7d`; 30 days at most. Of a session that began before, the rest counts.
    #[arg(long, default_value = "7d", value_parser = duration::parse_remembered)]
    since: TimeDelta,
    /// How many sessions at most.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    limit: u16,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What `--json` prints. Times are RFC 3339, lengths are minutes.
#[derive(Serialize)]
struct Document<'a> {
    from: DateTime<Utc>,
    until: DateTime<Utc>,
    sessions: u64,
    session_minutes: f64,
    dead_minutes: f64,
    unknown_minutes: f64,
    /// Of all; `null` if there was no session.
    share_without_dead_minutes: Option<f64>,
    /// All that have any; `worst` is cut.
    sessions_with_gaps: usize,
    worst: Vec<Session<'a>>,
}

#[derive(Serialize)]
struct Session<'a> {
    streamer_id: StreamerId,
    login: Option<&'a str>,
    display_name: Option<&'a str>,
    campaign_id: Uuid,
    campaign: Option<&'a str>,
    granted_at: DateTime<Utc>,
    ends_at: DateTime<Utc>,
    deactivated_at: Option<DateTime<Utc>>,
    dead_minutes: f64,
    longest_gap_minutes: f64,
    unknown_minutes: f64,
    gaps: Vec<Piece<'a>>,
}

#[derive(Serialize)]
struct Piece<'a> {
    kind: &'static str,
    from: DateTime<Utc>,
    until: DateTime<Utc>,
    minutes: f64,
    reasons: &'a [String],
}

pub async fn run(database: &Database, arguments: &Arguments, clock: &dyn Clock) -> Result<()> {
    let now = clock.now();
    let coverage = database.coverage(now - arguments.since, now).await?;
    let limit = arguments.limit.into();
    if arguments.json {
        output::json(&document(&coverage, limit))?;
    } else {
        output::line(&text(&coverage, limit))?;
    }
    Ok(())
}

fn document(coverage: &Coverage, limit: usize) -> Document<'_> {
    Document {
        from: coverage.from,
        until: coverage.until,
        sessions: coverage.sessions,
        session_minutes: minutes(coverage.length),
        dead_minutes: minutes(coverage.dead()),
        unknown_minutes: minutes(coverage.unknown()),
        share_without_dead_minutes: share(coverage),
        sessions_with_gaps: coverage.broken.len(),
        worst: coverage.broken.iter().take(limit).map(session).collect(),
    }
}

fn session(session: &BrokenSession) -> Session<'_> {
    let (login, display_name) = session.streamer.as_ref().map(|(login, name)| (&**login, &**name)).unzip();
    Session {
        streamer_id: session.streamer_id,
        login,
        display_name,
        campaign_id: session.campaign_id,
        campaign: session.campaign.as_deref(),
        granted_at: session.granted_at,
        ends_at: session.ends_at,
        deactivated_at: session.deactivated_at,
        dead_minutes: minutes(session.dead()),
        longest_gap_minutes: minutes(session.longest()),
        unknown_minutes: minutes(session.unknown()),
        gaps: session.gaps.iter().map(piece).collect(),
    }
}

fn piece(gap: &Gap) -> Piece<'_> {
    let kind = if gap.dead { "dead" } else { "unknown" };
    Piece { kind, from: gap.from, until: gap.until, minutes: minutes(gap.length()), reasons: &gap.reasons }
}

/// With their fraction, to the thousandth.
#[expect(clippy::cast_precision_loss, reason = "a period has some billion milliseconds at most")]
fn minutes(length: TimeDelta) -> f64 {
    (length.num_milliseconds() as f64 / 60.0).round() / 1_000.0
}

/// Of the sessions without a dead second; `None` if there was no session.
#[expect(clippy::cast_precision_loss, reason = "there are never that many sessions")]
fn share(coverage: &Coverage) -> Option<f64> {
    let without = coverage.sessions.checked_sub(coverage.with_dead_time())?;
    (coverage.sessions > 0).then(|| without as f64 / coverage.sessions as f64)
}

fn text(coverage: &Coverage, limit: usize) -> String {
    let from = time(Some(coverage.from));
    let Some(share) = share(coverage) else {
        return format!("No session since {from} is on record; they are remembered for 30 days.");
    };
    let mut text = format!(
        "Sessions since {from}: {}, {} together\n\
         Dead: {} in {} of them; {} % had none",
        coverage.sessions,
        Human(coverage.length),
        Human(coverage.dead()),
        coverage.with_dead_time(),
        percent(share),
    );
    if coverage.unknown() > TimeDelta::zero() {
        let _ = write!(text, "\nUnknown: {}, which may have been dead or not", Human(coverage.unknown()));
    }
    for session in coverage.broken.iter().take(limit) {
        let _ = write!(text, "\n\n{}", block(session));
    }
    if let Some(more) = coverage.broken.len().checked_sub(limit).filter(|more| *more > 0) {
        let _ = write!(text, "\n\n{more} more with gaps: see --limit");
    }
    let _ = write!(text, "\n\n{}", times_are_utc(coverage.until));
    text
}

/// In whole tenths, rounded down: 100 only if it is all of them.
fn percent(share: f64) -> f64 {
    (share * 1_000.0).floor() / 10.0
}

fn block(session: &BrokenSession) -> String {
    let streamer = match &session.streamer {
        Some((login, name)) => format!("{name} ({login})"),
        None => format!("{} (removed)", session.streamer_id),
    };
    let campaign = match &session.campaign {
        Some(name) => name.clone(),
        None => format!("{} (removed)", session.campaign_id),
    };
    let mut facts = Vec::new();
    if session.dead() > TimeDelta::zero() {
        facts.push(format!("dead {}, longest {}", Human(session.dead()), Human(session.longest())));
    }
    if session.unknown() > TimeDelta::zero() {
        facts.push(format!("unknown {}", Human(session.unknown())));
    }
    if session.deactivated_at.is_some() {
        facts.push(format!("deactivated at {}", time(session.deactivated_at)));
    }
    let granted_at = time(Some(session.granted_at));
    let end = if session.ends_at == NO_END { "no end".to_owned() } else { time(Some(session.ends_at)) };
    let mut text = format!("{streamer}, {campaign}, {granted_at} to {end}: {}", facts.join(", "));
    let rows = session.gaps.iter().map(|gap| {
        vec![
            format!("  {} to {}", time(Some(gap.from)), gap.until.format("%H:%M:%S")),
            if gap.dead { "dead" } else { "unknown" }.to_owned(),
            Human(gap.length()).to_string(),
            gap.reasons.join("; then "),
        ]
    });
    let _ = write!(text, "\n{}", table(rows.collect()));
    text
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;

    use super::*;

    fn at(hour: u32, minute: u32) -> DateTime<Utc> {
        Utc.with_ymd_and_hms(2026, 11, 23, hour, minute, 0).unwrap()
    }

    fn gap(dead: bool, from: DateTime<Utc>, minutes: i64, reasons: &[&str]) -> Gap {
        let reasons = reasons.iter().map(|reason| (*reason).to_owned()).collect();
        Gap { dead, from, until: from + TimeDelta::minutes(minutes), reasons }
    }

    fn coverage() -> Coverage {
        let session = |login: &str, gaps| BrokenSession {
            streamer_id: StreamerId(Uuid::nil()),
            streamer: Some((login.to_owned(), login.to_uppercase())),
            campaign_id: Uuid::nil(),
            campaign: Some("Valombre".to_owned()),
            granted_at: at(8, 0),
            ends_at: at(20, 0),
            deactivated_at: None,
            gaps,
        };
        let refused = "failed: Twitch answered 400: Invalid refresh token";
        let worst = BrokenSession {
            deactivated_at: Some(at(12, 35)),
            ..session(
                "aria",
                vec![
                    gap(true, at(10, 0), 4, &["no refresh was tried"]),
                    gap(true, at(12, 0), 35, &["no refresh was tried", refused]),
                ],
            )
        };
        let unknown = BrokenSession {
            streamer: None,
            campaign: None,
            ..session("gone", vec![gap(false, at(9, 0), 90, &["the expiry is not known"])])
        };
        Coverage {
            from: at(0, 0),
            until: at(22, 0),
            sessions: 3_000,
            length: TimeDelta::hours(36_000),
            broken: vec![worst, unknown],
        }
    }

    #[test]
    fn the_summary_comes_first_then_the_worst() {
        insta::assert_snapshot!(text(&coverage(), 2), @r"
        Sessions since 2026-11-23 00:00:00: 3000, 36000 h 00 together
        Dead: 39 min in 1 of them; 99.9 % had none
        Unknown: 1 h 30, which may have been dead or not

        ARIA (aria), Valombre, 2026-11-23 08:00:00 to 2026-11-23 20:00:00: dead 39 min, longest 35 min, deactivated at 2026-11-23 12:35:00
          2026-11-23 10:00:00 to 10:04:00  dead  4 min   no refresh was tried
          2026-11-23 12:00:00 to 12:35:00  dead  35 min  no refresh was tried; then failed: Twitch answered 400: Invalid refresh token

        00000000-0000-0000-0000-000000000000 (removed), 00000000-0000-0000-0000-000000000000 (removed), 2026-11-23 08:00:00 to 2026-11-23 20:00:00: unknown 1 h 30
          2026-11-23 09:00:00 to 10:30:00  unknown  1 h 30  the expiry is not known

        Times are UTC, now 2026-11-23 22:00:00
        ");
        insta::assert_snapshot!(text(&coverage(), 1), @r"
        Sessions since 2026-11-23 00:00:00: 3000, 36000 h 00 together
        Dead: 39 min in 1 of them; 99.9 % had none
        Unknown: 1 h 30, which may have been dead or not

        ARIA (aria), Valombre, 2026-11-23 08:00:00 to 2026-11-23 20:00:00: dead 39 min, longest 35 min, deactivated at 2026-11-23 12:35:00
          2026-11-23 10:00:00 to 10:04:00  dead  4 min   no refresh was tried
          2026-11-23 12:00:00 to 12:35:00  dead  35 min  no refresh was tried; then failed: Twitch answered 400: Invalid refresh token

        1 more with gaps: see --limit

        Times are UTC, now 2026-11-23 22:00:00
        ");
    }

    #[test]
    fn machines_get_the_same() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&document(&coverage(), 1)).unwrap(), @r#"
        {
          "from": "2026-11-23T00:00:00Z",
          "until": "2026-11-23T22:00:00Z",
          "sessions": 3000,
          "session_minutes": 2160000.0,
          "dead_minutes": 39.0,
          "unknown_minutes": 90.0,
          "share_without_dead_minutes": 0.9996666666666667,
          "sessions_with_gaps": 2,
          "worst": [
            {
              "streamer_id": "00000000-0000-0000-0000-000000000000",
              "login": "aria",
              "display_name": "ARIA",
              "campaign_id": "00000000-0000-0000-0000-000000000000",
              "campaign": "Valombre",
              "granted_at": "2026-11-23T08:00:00Z",
              "ends_at": "2026-11-23T20:00:00Z",
              "deactivated_at": "2026-11-23T12:35:00Z",
              "dead_minutes": 39.0,
              "longest_gap_minutes": 35.0,
              "unknown_minutes": 0.0,
              "gaps": [
                {
                  "kind": "dead",
                  "from": "2026-11-23T10:00:00Z",
                  "until": "2026-11-23T10:04:00Z",
                  "minutes": 4.0,
                  "reasons": [
                    "no refresh was tried"
                  ]
                },
                {
                  "kind": "dead",
                  "from": "2026-11-23T12:00:00Z",
                  "until": "2026-11-23T12:35:00Z",
                  "minutes": 35.0,
                  "reasons": [
                    "no refresh was tried",
                    "failed: Twitch answered 400: Invalid refresh token"
                  ]
                }
              ]
            }
          ]
        }
        "#);
    }

    #[test]
    fn without_sessions_it_says_so() {
        let none = Coverage { sessions: 0, length: TimeDelta::zero(), broken: Vec::new(), ..coverage() };
        insta::assert_snapshot!(text(&none, 1), @"No session since 2026-11-23 00:00:00 is on record; they are remembered for 30 days.");
        assert_eq!(document(&none, 1).share_without_dead_minutes, None);
    }
}
