//! What a cycle remembers and forgets when it is done with the streamers.

use std::time::{Duration, Instant};

use adapters::store::{Database, HISTORY_KEPT};
use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::PgPool;
use uuid::Uuid;

use super::refreshing::page_after;
use super::section;
use super::statements::{explain, explained};

/// So many rows are forgotten at once.
const PART: i64 = 10_000;

/// In what order the history is forgotten, and from which table.
const FORGOTTEN: [(&str, &str); 4] = [
    (
        "refreshes",
        "10,000 at most, and again until there are no more: the oldest end of an index, as in the three that follow.",
    ),
    ("deactivations", "Those that no budget and no command asks for any more."),
    ("sessions", "Those that ended before all of the history that is left."),
    ("outbox", "What was settled long ago, and what nobody ever tried."),
];

pub(super) async fn remembering(
    document: &mut String,
    pool: &PgPool,
    database: &Database,
    now: DateTime<Utc>,
) -> Result<()> {
    let plan = explained(pool, explain("WITH running AS")?.bind(now)).await?;
    let (written, took) = remember(database, now).await?;
    section(
        document,
        "Remembering the sessions",
        &format!(
            "After each planned run and each sweep. What runs is read through one index, with a look-up of each \
             streamer, and what is remembered through another; the two are compared in memory, and only what differs \
             is looked up and written. That was {written} rows, of grants and revocations in 15 minutes, and took \
             {took:.0?}."
        ),
        &plan,
    )
}

async fn remember(database: &Database, now: DateTime<Utc>) -> Result<(u64, Duration)> {
    let started = Instant::now();
    Ok((database.remember_sessions(now).await?, started.elapsed()))
}

pub(super) async fn forgetting(document: &mut String, pool: &PgPool, now: DateTime<Utc>) -> Result<()> {
    for (table, sentence) in FORGOTTEN {
        let delete =
            explain(&format!("DELETE FROM token_refresh.{table} "))?.bind(now - HISTORY_KEPT).bind(PART);
        section(
            document,
            &format!("Forgetting old {}", if table == "outbox" { "notifications" } else { table }),
            sentence,
            &explained(pool, delete).await?,
        )?;
    }
    Ok(())
}

/// Who is authorized now is always later than what the statistics have seen, and PostgreSQL gathers new ones only when
/// a tenth of the table has changed, which takes days.
pub(super) async fn next_day(
    document: &mut String,
    pool: &PgPool,
    database: &Database,
    now: DateTime<Utc>,
) -> Result<()> {
    for statement in [
        "UPDATE campaign_memberships SET
             poll_authorization_granted_at = poll_authorization_granted_at + interval '1 day',
             poll_authorization_expires_at = poll_authorization_expires_at + interval '1 day'
         WHERE poll_authorization_expires_at > $1 - interval '1 hour'",
        "UPDATE token_refresh.sessions SET
             granted_at = granted_at + interval '1 day', ends_at = ends_at + interval '1 day'
         WHERE ends_at > $1 - interval '1 hour'",
    ] {
        sqlx::query(statement).bind(now).execute(pool).await?;
    }
    sqlx::raw_sql("VACUUM campaign_memberships, token_refresh.sessions").execute(pool).await?;
    let now = now + TimeDelta::days(1);
    section(
        document,
        "The first page, a day after `ANALYZE`",
        "The statistics know of nobody who is authorized now, which is how it is on most days: PostgreSQL expects next \
         to no rows. The pages are only as good as the plan they get here.",
        &explained(pool, page_after(now, Uuid::max())?).await?,
    )?;
    let plan = explained(pool, explain("WITH running AS")?.bind(now)).await?;
    let (_, took) = remember(database, now).await?;
    section(
        document,
        "Remembering the sessions, a day after `ANALYZE`",
        &format!(
            "However few PostgreSQL expects, nothing is read more than once for each session that runs. It took \
             {took:.0?}."
        ),
        &plan,
    )
}
