//! `tokens history`: the last refreshes of a streamer.

use anyhow::{Result, bail};
use chrono::{DateTime, Utc};
use tokens_domain::{Clock, StreamerId};
use tokens_store::{Database, HistoryEntry, Lookup};

use crate::id;
use crate::output::{self, table, time, times_are_utc};

pub async fn run(
    database: &Database,
    id: StreamerId,
    limit: u16,
    clock: &dyn Clock,
    json: bool,
) -> Result<()> {
    let now = clock.now();
    let entries = database.history(id, limit.into()).await?;
    if entries.is_empty() && database.find(id, now).await? == Lookup::Unknown {
        bail!("no streamer has the id {id}: {}", id::LISTED);
    }
    if json {
        output::json(&entries)?;
    } else if entries.is_empty() {
        output::line("No refresh of this streamer is on record; the history is kept for 30 days.")?;
    } else {
        output::line(&text(&entries, now))?;
    }
    Ok(())
}

fn text(entries: &[HistoryEntry], now: DateTime<Utc>) -> String {
    let head = ["STARTED", "TRIGGER", "OUTCOME", "TOOK", "EXPIRY BEFORE", "EXPIRY AFTER", "REASON", "CALLER"];
    let head = head.map(str::to_owned).to_vec();
    let rows = entries.iter().map(|entry| {
        vec![
            time(Some(entry.started_at)),
            entry.trigger.clone(),
            entry.outcome.clone(),
            format!("{} ms", (entry.ended_at - entry.started_at).num_milliseconds()),
            time(entry.expires_before),
            time(entry.expires_after),
            entry.reason.clone().unwrap_or_else(|| "-".to_owned()),
            entry.caller.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    });
    format!("{}\n\n{}", table(std::iter::once(head).chain(rows).collect()), times_are_utc(now))
}
