//! What is measured at, and what was measured as a whole.

use std::time::{Duration, Instant};

use adapters::store::Database;
use anyhow::Result;
use chrono::{DateTime, Utc};
use domain::Authorized;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPool;

/// What the migrations add to tables that may be large already.
const INDEXES: [&str; 5] = [
    "token_refresh_authorized_idx",
    "token_refresh_authorization_idx",
    "token_refresh_push_subscriptions_idx",
    "token_refresh.refreshes_ended_at_idx",
    "token_refresh_streamers_user_idx",
];

/// Builds the migrations' indexes as it would be on tables that are full already.
pub(super) async fn build_indexes(pool: &PgPool) -> Result<[Duration; INDEXES.len()]> {
    let mut took = [Duration::ZERO; INDEXES.len()];
    for (index, took) in INDEXES.into_iter().zip(&mut took) {
        let started = Instant::now();
        sqlx::raw_sql(AssertSqlSafe(format!("REINDEX INDEX {index}"))).execute(pool).await?;
        *took = started.elapsed();
    }
    Ok(took)
}

/// All pages, one after the other, as a cycle reads them.
pub(super) async fn walk(database: &Database, now: DateTime<Utc>) -> Result<(Vec<Authorized>, Duration)> {
    let started = Instant::now();
    let mut everybody = Vec::new();
    loop {
        let page = database.authorized(everybody.last(), now).await?;
        if page.is_empty() {
            return Ok((everybody, started.elapsed()));
        }
        everybody.extend(page);
    }
}

pub(super) async fn introduction(
    pool: &PgPool,
    authorized: usize,
    walk: Duration,
    [authorized_idx, authorization_idx, subscriptions_idx, ended_at_idx, user_idx]: &[Duration;
         INDEXES.len()],
) -> Result<String> {
    let version: String =
        sqlx::query_scalar("SELECT current_setting('server_version')").fetch_one(pool).await?;
    // What follows the number is how it was packaged.
    let version = version.split(' ').next().unwrap_or_default();
    let authorized = readable(u64::try_from(authorized)?);
    let streamers = count(pool, "streamers").await?;
    let memberships = count(pool, "campaign_memberships").await?;
    let devices = count(pool, "push_subscriptions").await?;
    let remembered = count(pool, "token_refresh.streamers").await?;
    let refreshes = count(pool, "token_refresh.refreshes").await?;
    let sessions = count(pool, "token_refresh.sessions").await?;
    let deactivations = count(pool, "token_refresh.deactivations").await?;
    let notifications = count(pool, "token_refresh.outbox").await?;
    let pending = count(pool, "token_refresh.outbox WHERE state = 'pending'").await?;
    Ok(format!(
        "# Query plans

What PostgreSQL does for each statement that a cycle, a request or the command runs, but for those of `tokens doctor`, \
         which walk over whole tables on purpose. The statements are those of the adapters' \
         checked queries, word for word. This whole page is the output of

```sh
cargo run -- plans > docs/query-plans.md
```

The database is PostgreSQL {version} with default settings for planning and memory. In it are

- {streamers} streamers, of which {authorized} are authorized now, half of those with a token that is due;
- {memberships} memberships, most of them with authorizations that ended in the last 90 days;
- {devices} devices of streamers and game masters;
- {remembered} streamers that were refreshed before;
- in 30 days of history {refreshes} refreshes, {sessions} sessions, {deactivations} deactivations and {notifications} \
         notifications, of which {pending} still wait.

How to read a plan: `rows` is what a step returned, on average over its `loops`. A buffer is 8 kB, `hit` in \
         PostgreSQL's memory or `read` from outside it. A statement has the index it needs if its steps read about \
         as many rows as it returns or changes, however large the table.

A walk over all pages took {walk:.0?}. The migrations build the index for the pages in {authorized_idx:.1?} on \
         these memberships, and that for a streamer's later authorizations in {authorization_idx:.1?}; for both \
         together nobody can write to `campaign_memberships`. The index of a person's devices takes \
         {subscriptions_idx:.1?}, in which nobody can write to `push_subscriptions`, and that of a streamer's \
         refreshes in a session {ended_at_idx:.1?}, in which no cycle can write its history; that of a user's channel \
         takes {user_idx:.1?}, in which nobody can write to `streamers`.
",
    ))
}

async fn count(pool: &PgPool, rows: &str) -> Result<String> {
    let count: i64 =
        sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM {rows}"))).fetch_one(pool).await?;
    Ok(readable(count.try_into()?))
}

/// With a comma between thousands.
pub(super) fn readable(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(readable(7), "7");
        assert_eq!(readable(123_456), "123,456");
        assert_eq!(readable(1_000_000), "1,000,000");
    }
}
