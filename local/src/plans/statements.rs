//! The statements, as sqlx keeps them, and the plans that PostgreSQL makes for them.

use std::fs;

use anyhow::{Context as _, Result, bail};
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgArguments, PgConnection, PgPool};
use sqlx::query::QueryScalar;

use crate::binaries::workspace;

/// Long enough for a time and for the first id of an array.
const LONGEST_VALUE: usize = 40;

/// An `EXPLAIN` that waits for its statement's parameters; each row is a line of the plan.
pub(super) type Explain<'q> = QueryScalar<'q, sqlx::Postgres, String, PgArguments>;

/// The statement with this in its text.
pub(super) fn statement(part: &str) -> Result<String> {
    #[derive(serde::Deserialize)]
    struct Checked {
        query: String,
    }

    let directory = workspace().join("shared/adapters/.sqlx");
    let mut found = Vec::new();
    for file in fs::read_dir(&directory).with_context(|| format!("no {}", directory.display()))? {
        let path = file?.path();
        let checked: Checked = serde_json::from_slice(&fs::read(&path)?)
            .with_context(|| format!("{} is no checked query", path.display()))?;
        if checked.query.contains(part) {
            found.push(checked.query);
        }
    }
    match found.pop() {
        Some(query) if found.is_empty() => Ok(query),
        Some(_) => bail!("more than one checked query has `{part}` in it: `cargo sqlx prepare` cleans up"),
        None => bail!("no checked query has `{part}` in it"),
    }
}

/// The `EXPLAIN` of the statement with this in its text.
pub(super) fn explain<'q>(part: &str) -> Result<Explain<'q>> {
    Ok(explain_text(&statement(part)?))
}

/// The `EXPLAIN` of this statement.
pub(super) fn explain_text<'q>(statement: &str) -> Explain<'q> {
    // No times and no costs: what the plan is, not how busy the machine was.
    let options = "ANALYZE, BUFFERS, COSTS OFF, TIMING OFF, SUMMARY OFF";
    sqlx::query_scalar(AssertSqlSafe(format!("EXPLAIN ({options}) {statement}")))
}

/// The plan of a statement that has no effect: it was really run, and is undone.
pub(super) async fn explained(pool: &PgPool, explain: Explain<'_>) -> Result<String> {
    let mut transaction = pool.begin().await?;
    let plan = plan(&mut transaction, explain).await?;
    transaction.rollback().await?;
    Ok(plan)
}

pub(super) async fn plan(connection: &mut PgConnection, explain: Explain<'_>) -> Result<String> {
    let lines = explain.fetch_all(connection).await?;
    Ok(lines.iter().map(|line| shortened(line)).collect::<Vec<_>>().join("\n"))
}

/// A line of a plan in which long values, such as arrays and tokens, are cut.
fn shortened(line: &str) -> String {
    let cut = |(index, piece): (usize, &str)| {
        // Every second piece is what stands between quotes.
        match piece.char_indices().nth(LONGEST_VALUE) {
            Some((end, _)) if index % 2 == 1 => format!("{}...", &piece[..end]),
            _ => piece.to_owned(),
        }
    };
    line.split('\'').enumerate().map(cut).collect::<Vec<_>>().join("'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_long_values_are_cut() {
        let long = "x".repeat(LONGEST_VALUE);
        assert_eq!(
            shortened(&format!("(id = ANY ('{long}'::uuid[]))")),
            format!("(id = ANY ('{long}'::uuid[]))")
        );
        assert_eq!(shortened(&format!("(a = '{long},y'::text)")), format!("(a = '{long}...'::text)"));
        assert_eq!(shortened(&format!("->  {long} (a = 'b'::text)")), format!("->  {long} (a = 'b'::text)"));
    }

    #[test]
    fn a_statement_is_found_only_if_it_is_one() {
        assert!(statement("ORDER BY fence DESC").unwrap().contains("LIMIT $2"));
        assert!(statement("no such text").unwrap_err().to_string().starts_with("no checked query"));
        assert!(statement("SELECT").unwrap_err().to_string().starts_with("more than one"));
    }
}
