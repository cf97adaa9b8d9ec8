//! `tokens rekey`: encrypts again what an old key or the other format wrote, so that the old key can go.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use serde::Serialize;
use tokens_domain::{CancellationToken, Clock, Streamer};
use tokens_service::config::{self, Source};
use tokens_store::{Database, Left, PgStore, Purpose};

use crate::output::{self, name};

#[derive(clap::Args)]
pub struct Arguments {
    /// Show what would be encrypted again; write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What was done, over all pages.
#[derive(Default, Serialize)]
struct Done {
    dry_run: bool,
    /// Streamers that were looked at.
    total: u64,
    /// Streamers with a token that was, or would be, encrypted again.
    rekeyed: u64,
    /// Streamers who were being refreshed or changed at that moment.
    busy: u64,
    /// Texts that can't be read and were left.
    unreadable: Vec<Unreadable>,
}

#[derive(Serialize)]
struct Unreadable {
    #[serde(flatten)]
    streamer: Streamer,
    column: &'static str,
    reason: String,
    /// A key that is not configured might open it: that key must not be thrown away.
    needs_another_key: bool,
}

impl From<Left> for Unreadable {
    fn from(Left { streamer, column, reason }: Left) -> Self {
        let needs_another_key = reason.needs_another_key();
        Self { streamer, column: column.name(), reason: reason.to_string(), needs_another_key }
    }
}

/// Fails if something is left that this could not do: keep the old key until it succeeds.
pub async fn run(source: &Source, arguments: Arguments, stop: CancellationToken) -> Result<ExitCode> {
    let (database, cipher) = config::database_and_cipher(source)?;
    let database = Database::open_for(database, Purpose::of(arguments.dry_run)).await?;
    let clock: Arc<dyn Clock> = Arc::new(database.clock());
    let store = PgStore::new(database, cipher, clock.clone());
    let mut done = Done { dry_run: arguments.dry_run, ..Done::default() };
    let mut after = None;
    loop {
        let page = store.rekey(after, arguments.dry_run, clock.now()).await?;
        done.total += page.total;
        done.rekeyed += page.rekeyed;
        done.busy += page.busy;
        done.unreadable.extend(page.left.into_iter().map(Unreadable::from));
        after = page.next;
        if after.is_none() || stop.is_cancelled() {
            break;
        }
    }
    if arguments.json {
        output::json(&done)?;
    } else {
        output::line(&text(&done))?;
    }
    if after.is_some() {
        output::error("\nInterrupted before the end: run it again for the rest");
    }
    let all = after.is_none() && done.busy == 0 && !done.unreadable.iter().any(|one| one.needs_another_key);
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(done: &Done) -> String {
    let Done { dry_run, total, rekeyed, busy, unreadable } = done;
    let what =
        if *dry_run { "Dry run, nothing is written. Would be encrypted again" } else { "Encrypted again" };
    let mut text = format!("{what}: {rekeyed} of {total} streamer(s)");
    if *busy > 0 {
        let _ = write!(text, "\n{busy} were being refreshed at that moment: run it again for them");
    }
    if !unreadable.is_empty() {
        let _ = write!(text, "\n\nCan't be read, and left as they are:");
        for one in unreadable {
            let _ = write!(text, "\n  - {}, {}: {}", name(&one.streamer), one.column, one.reason);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use tokens_cipher::{self, Column};
    use tokens_domain::StreamerId;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn what_is_left_is_named() {
        let streamer = Streamer::new(StreamerId(Uuid::nil()), "aria", "Aria\u{1b}");
        let left = |column, reason| Unreadable::from(Left { streamer: streamer.clone(), column, reason });
        let unknown = tokens_cipher::DecryptError::UnknownKey { key_id: "2025".to_owned() };
        let unreadable = vec![
            left(Column::AccessToken, unknown),
            left(Column::RefreshToken, tokens_cipher::DecryptError::UnknownFormat),
        ];
        let done = Done { dry_run: false, total: 4, rekeyed: 2, busy: 1, unreadable };
        insta::assert_snapshot!(text(&done), @r"
        Encrypted again: 2 of 4 streamer(s)
        1 were being refreshed at that moment: run it again for them

        Can't be read, and left as they are:
          - Aria (aria), access_token_encrypted: the stored token needs the key `2025`, which is not configured: set APP_KEY, or put the key back into TOKEN_KEYS
          - Aria (aria), refresh_token_encrypted: the stored text is not a token: the streamer has to connect again
        ");
        let dry = Done { dry_run: true, total: 4, rekeyed: 4, ..Done::default() };
        insta::assert_snapshot!(text(&dry), @"Dry run, nothing is written. Would be encrypted again: 4 of 4 streamer(s)");
    }
}
