//! `tokens reactivate`: undoes deactivations, and says what is left to do.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Result, bail};
use chrono::{DateTime, TimeDelta, Utc};
use clap::ArgGroup;
use serde::Serialize;
use tokens_domain::{Clock, Streamer, StreamerId};
use tokens_store::{Database, Deactivated, Lookup};

use crate::output::{self, name, time, times_are_utc};
use crate::{duration, id};

#[derive(clap::Args)]
#[command(group(ArgGroup::new("which").required(true).args(["streamer_id", "since", "all"])))]
pub struct Arguments {
    /// This streamer: its id, a UUID.
    #[arg(value_parser = id::parse)]
    streamer_id: Option<StreamerId>,
    /// All that this program deactivated within this time and that are inactive still: 90m, 2h, 1d.
    #[arg(long, value_name = "TIME", value_parser = duration::parse_remembered)]
    since: Option<TimeDelta>,
    /// All that are inactive, also those that another program or a person deactivated; they are listed before anything is
    /// written.
    #[arg(long)]
    all: bool,
    /// Show which streamers would be reactivated; write nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What is left to do for streamers whose tokens Twitch refuses.
const LEFT_TO_DO: &str = "\
a reactivation brings no new tokens. A streamer whose refresh token Twitch refuses has to reconnect with Twitch
(in the application's settings) to get a new, valid one. Until then their polls fail, and two more refusals deactivate them again.
`tokens refresh STREAMER_ID --force` shows whether Twitch takes the old one.";

/// The JSON that is printed.
#[derive(Serialize)]
struct Document<'a> {
    dry_run: bool,
    streamers: Vec<One<'a>>,
    not_written: Vec<NotWritten<'a>>,
    left_to_do: String,
}

#[derive(Serialize)]
struct NotWritten<'a> {
    #[serde(flatten)]
    streamer: &'a Streamer,
    reason: &'a str,
}

#[derive(Serialize)]
struct One<'a> {
    #[serde(flatten)]
    streamer: &'a Streamer,
    deactivated_at: Option<DateTime<Utc>>,
}

/// Fails if a streamer could not be written.
pub async fn run(database: &Database, arguments: Arguments, clock: &dyn Clock) -> Result<ExitCode> {
    let now = clock.now();
    let Arguments { streamer_id, since, dry_run, json, .. } = arguments;
    let mut found = match (streamer_id, since) {
        (Some(id), _) => one(database, id, now).await?,
        (None, Some(since)) => database.deactivated_since(now - since).await?,
        (None, None) => database.inactive().await?,
    };
    let mut not_written = Vec::new();
    if !dry_run {
        if arguments.all && !json && !found.is_empty() {
            output::line(&format!("{}\n", listing("Inactive", &found)))?;
        }
        let ids: Vec<_> = found.iter().map(|one| one.streamer.id).collect();
        let done = database.reactivate(&ids, now).await?;
        for (id, error) in done.unwritable {
            not_written
                .extend(found.iter().find(|one| one.streamer.id == id).cloned().map(|one| (one, error.text)));
        }
        // Another caller may have been quicker.
        found.retain(|one| done.active.contains(&one.streamer.id));
    }
    if json {
        output::json(&Document {
            dry_run,
            streamers: found
                .iter()
                .map(|one| One { streamer: &one.streamer, deactivated_at: one.at })
                .collect(),
            not_written: not_written
                .iter()
                .map(|(one, reason)| NotWritten { streamer: &one.streamer, reason })
                .collect(),
            left_to_do: LEFT_TO_DO.replace('\n', " "),
        })?;
    } else if !found.is_empty() {
        output::line(&text(&found, dry_run, now))?;
    } else if not_written.is_empty() {
        output::line(if arguments.all { NONE_INACTIVE } else { NONE_DEACTIVATED })?;
    }
    for (one, reason) in &not_written {
        output::error(&format!("{}, {}: {reason}", name(&one.streamer), one.streamer.id));
    }
    Ok(if not_written.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The streamer if it is inactive.
async fn one(database: &Database, id: StreamerId, now: DateTime<Utc>) -> Result<Vec<Deactivated>> {
    match database.find(id, now).await? {
        Lookup::Inactive(streamer) => {
            Ok(vec![Deactivated { at: database.deactivated_at(id).await?, streamer }])
        }
        Lookup::Authorized(authorized) => active(&authorized.streamer),
        Lookup::NotAuthorized(streamer) => active(&streamer),
        Lookup::Unknown => bail!("no streamer has the id {id}: {}", id::LISTED),
    }
}

fn active(streamer: &Streamer) -> Result<Vec<Deactivated>> {
    bail!("{} is active already: there is nothing to reactivate", name(streamer))
}

const NONE_INACTIVE: &str = "No streamer is inactive.";
const NONE_DEACTIVATED: &str = "No streamer that was deactivated within this time is inactive still.";

fn text(found: &[Deactivated], dry_run: bool, now: DateTime<Utc>) -> String {
    let done = if dry_run { "Dry run, nothing is written. Would be active again" } else { "Active again" };
    format!("{}\n\nWhat is left to do: {LEFT_TO_DO}\n\n{}", listing(done, found), times_are_utc(now))
}

fn listing(heading: &str, streamers: &[Deactivated]) -> String {
    let mut text = format!("{heading}: {} streamer(s)\n", streamers.len());
    for one in streamers {
        let at = one.at.map_or_else(
            || "not deactivated by us in the last 30 days".to_owned(),
            |at| format!("deactivated at {}", time(Some(at))),
        );
        let _ = write!(text, "\n  - {}, {}: {at}", name(&one.streamer), one.streamer.id);
    }
    text
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn who_is_active_again_and_what_is_left_to_do() {
        let streamer = |login: &str| Streamer::new(StreamerId(Uuid::nil()), login, login.to_uppercase());
        let now = Utc.with_ymd_and_hms(2026, 11, 24, 8, 0, 0).unwrap();
        let found = [
            Deactivated {
                streamer: streamer("aria"),
                at: Some(Utc.with_ymd_and_hms(2026, 11, 23, 20, 0, 0).unwrap()),
            },
            Deactivated { streamer: streamer("jules\u{1b}"), at: None },
        ];
        insta::assert_snapshot!(text(&found, false, now), @r"
        Active again: 2 streamer(s)

          - ARIA (aria), 00000000-0000-0000-0000-000000000000: deactivated at 2026-11-23 20:00:00
          - JULES (jules), 00000000-0000-0000-0000-000000000000: not deactivated by us in the last 30 days

        What is left to do: a reactivation brings no new tokens. A streamer whose refresh token Twitch refuses has to reconnect with Twitch
        (in the application's settings) to get a new, valid one. Until then their polls fail, and two more refusals deactivate them again.
        `tokens refresh STREAMER_ID --force` shows whether Twitch takes the old one.

        Times are UTC, now 2026-11-24 08:00:00
        ");
        insta::assert_snapshot!(text(&found[..1], true, now).lines().next().unwrap(), @"Dry run, nothing is written. Would be active again: 1 streamer(s)");
    }
}
