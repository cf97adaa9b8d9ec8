//! `tokens reactivate`: undoes deactivations, and says what is left to do.

use std::fmt::Write as _;

use adapters::store::{Database, Deactivated, Lookup};
use anyhow::{Result, bail};
use chrono::{DateTime, TimeDelta, Utc};
use clap::ArgGroup;
use domain::{Clock, Streamer, StreamerId};
use serde::Serialize;

use crate::output::{self, name, time, times_are_utc};
use crate::{duration, id};

#[derive(clap::Args)]
#[command(group(ArgGroup::new("whom").required(true).args(["streamer_id", "since"])))]
pub struct Arguments {
    /// This streamer: its id, a UUID.
    #[arg(value_parser = id::parse)]
    streamer_id: Option<StreamerId>,
    /// Everybody who was deactivated within this time and is inactive still: 90m, 2h, 1d.
    #[arg(long, value_name = "TIME", value_parser = duration::parse_remembered)]
    since: Option<TimeDelta>,
    /// Show who would be reactivated; write nothing.
    #[arg(long)]
    dry_run: bool,
    /// For machines: one JSON document.
    #[arg(long)]
    json: bool,
}

/// What the streamer must still do, as the brief has it.
const LEFT_TO_DO: &str = "\
a reactivation brings no new tokens. Whoever's refresh token Twitch refuses has to reconnect with Twitch
(/auth/twitch/redirect) to get a new, valid one. Until then their polls fail, and two more refusals deactivate them again.
`tokens refresh STREAMER_ID --force` shows whether Twitch takes the old one.";

/// For machines.
#[derive(Serialize)]
struct Document<'a> {
    dry_run: bool,
    streamers: Vec<One<'a>>,
    left_to_do: String,
}

#[derive(Serialize)]
struct One<'a> {
    #[serde(flatten)]
    streamer: &'a Streamer,
    deactivated_at: Option<DateTime<Utc>>,
}

pub async fn run(database: &Database, arguments: Arguments, clock: &dyn Clock) -> Result<()> {
    let now = clock.now();
    let mut found = match (arguments.streamer_id, arguments.since) {
        (Some(id), _) => one(database, id, now).await?,
        (None, since) => database.deactivated_since(now - since.unwrap_or_default()).await?,
    };
    if !arguments.dry_run {
        let ids: Vec<_> = found.iter().map(|one| one.streamer.id).collect();
        let done = database.reactivate(&ids, now).await?;
        // Somebody may have been quicker.
        found.retain(|one| done.contains(&one.streamer.id));
    }
    if arguments.json {
        let streamers =
            found.iter().map(|one| One { streamer: &one.streamer, deactivated_at: one.at }).collect();
        output::json(&Document {
            dry_run: arguments.dry_run,
            streamers,
            left_to_do: LEFT_TO_DO.replace('\n', " "),
        })?;
    } else {
        output::line(&text(&found, arguments.dry_run, now))?;
    }
    Ok(())
}

/// The streamer if it is inactive; nobody if it is active already.
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

fn text(found: &[Deactivated], dry_run: bool, now: DateTime<Utc>) -> String {
    if found.is_empty() {
        return "Nobody who was deactivated within this time is inactive still.".to_owned();
    }
    let done = if dry_run { "Dry run, nothing is written. Would be active again" } else { "Active again" };
    let mut text = format!("{done}: {} streamer(s)\n", found.len());
    for one in found {
        let at = one.at.map_or_else(
            || "not deactivated by us in the last 30 days".to_owned(),
            |at| format!("deactivated at {}", time(Some(at))),
        );
        let _ = write!(text, "\n  - {}, {}: {at}", name(&one.streamer), one.streamer.id);
    }
    let _ = write!(text, "\n\nWhat is left to do: {LEFT_TO_DO}\n\n{}", times_are_utc(now));
    text
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn who_is_active_again_and_what_is_left_to_do() {
        let streamer = |login: &str| Streamer {
            id: StreamerId(Uuid::nil()),
            login: login.to_owned(),
            display_name: login.to_uppercase(),
        };
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

        What is left to do: a reactivation brings no new tokens. Whoever's refresh token Twitch refuses has to reconnect with Twitch
        (/auth/twitch/redirect) to get a new, valid one. Until then their polls fail, and two more refusals deactivate them again.
        `tokens refresh STREAMER_ID --force` shows whether Twitch takes the old one.

        Times are UTC, now 2026-11-24 08:00:00
        ");
        insta::assert_snapshot!(text(&found[..1], true, now).lines().next().unwrap(), @"Dry run, nothing is written. Would be active again: 1 streamer(s)");
        insta::assert_snapshot!(text(&[], false, now), @"Nobody who was deactivated within this time is inactive still.");
    }
}
