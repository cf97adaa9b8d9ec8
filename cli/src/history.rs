//! `tokens history`: the last refreshes of a streamer.

use adapters::store::{Database, HistoryEntry, Lookup};
use anyhow::{Result, bail};
use domain::{Clock, StreamerId};
use uuid::Uuid;

use crate::output::{self, table, time};

pub async fn run(database: &Database, id: Uuid, limit: u16, clock: &dyn Clock, json: bool) -> Result<()> {
    let id = StreamerId(id);
    let entries = database.history(id, limit.into()).await?;
    if entries.is_empty() && database.find(id, clock.now()).await? == Lookup::Unknown {
        bail!("no streamer has the id {id}: `tokens status --json` lists the ids");
    }
    if json {
        output::json(&entries)?;
    } else if entries.is_empty() {
        output::line("No refresh of this streamer is on record; the history is kept for 30 days.")?;
    } else {
        output::line(&text(&entries))?;
    }
    Ok(())
}

fn text(entries: &[HistoryEntry]) -> String {
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
    table(std::iter::once(head).chain(rows).collect())
}
