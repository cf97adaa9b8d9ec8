//! The table of settings in docs/reference.md.

use std::fs::read_to_string;

use anyhow::{Context as _, Result};
use tokens_local::binaries::workspace;

/// A row of the table.
pub struct Setting {
    /// The variables.
    pub names: Vec<String>,
    /// What they mean, without links.
    pub meaning: String,
    /// What they are by default; empty if there is none.
    pub default: String,
}

/// All rows.
pub fn settings() -> Result<Vec<Setting>> {
    let readme = read_to_string(workspace().join("docs/reference.md"))?;
    let table = readme.split_once("## Configuration").context("no table")?.1;
    let rows = table.lines().filter_map(|row| row.strip_prefix("| `")?.strip_suffix(" |"));
    let setting = |row: &str| {
        let [names, meaning, default] = row.splitn(3, " |").collect::<Vec<_>>()[..] else { return None };
        let names = names.split(['`', ',', ' ']).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        Some(Setting { names, meaning: without_links(meaning.trim()), default: default.trim().to_owned() })
    };
    let rows: Vec<_> = rows.map(|row| setting(row).with_context(|| row.to_owned())).collect::<Result<_>>()?;
    Ok(rows)
}

/// `[text](where)` as `text`.
fn without_links(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, link)) = rest.split_once('[') {
        let (shown, after) = link
            .split_once("](")
            .and_then(|(shown, to)| Some((shown, to.split_once(')')?.1)))
            .expect("a link");
        plain.extend([before, shown]);
        rest = after;
    }
    plain + rest
}
