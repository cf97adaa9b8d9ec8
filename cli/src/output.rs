//! What the command prints: results on standard output, errors on standard error.

use std::io::{self, ErrorKind, Write};

use chrono::{DateTime, Utc};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use tokens_domain::Streamer;

/// A line on standard output. A reader that went away (`tokens … | head`) is not an error.
pub fn line(text: &str) -> io::Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// One JSON document on standard output.
pub fn json(value: &impl Serialize) -> io::Result<()> {
    line(&serde_json::to_string_pretty(value)?)
}

/// A line on standard error. If even that is closed, the text is lost.
pub fn error(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// `DisplayName (login)`.
pub fn name(streamer: &Streamer) -> String {
    format!("{} ({})", streamer.display_name, streamer.login)
}

/// A point in time; `-` if it is missing.
pub fn time(at: Option<DateTime<Utc>>) -> String {
    at.map_or_else(|| "-".to_owned(), |at| at.format("%Y-%m-%d %H:%M:%S").to_string())
}

/// What stands below points in time.
pub fn times_are_utc(now: DateTime<Utc>) -> String {
    format!("Times are UTC, now {}", time(Some(now)))
}

/// Columns as wide as their widest cell; the first row is the head.
pub fn table(rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}
