//! What the command asks when a human wants to know, and a sweep for its metrics.

use std::time::Instant;

use adapters::store::Database;
use anyhow::{Context as _, Result};
use chrono::{DateTime, TimeDelta, Utc};
use domain::Authorized;
use sqlx::postgres::PgPool;
use uuid::Uuid;

use super::introduction::readable;
use super::section;
use super::statements::{explain, explained};

/// How many lines of history, or notifications, are shown.
const SHOWN: i64 = 20;

pub(super) async fn asking(document: &mut String, pool: &PgPool, everybody: &[Authorized]) -> Result<()> {
    let one = everybody.first().context("nobody is authorized")?;
    section(
        document,
        "The history of one streamer",
        "For `tokens history ID`: the primary key, read backwards.",
        &explained(pool, explain("ORDER BY fence DESC")?.bind(one.streamer.id.0).bind(SHOWN)).await?,
    )?;
    section(
        document,
        "The last notifications",
        "For `tokens notifications`: an index, read backwards.",
        &explained(pool, explain("FROM token_refresh.outbox ORDER BY")?.bind(SHOWN)).await?,
    )?;
    section(
        document,
        "The oldest notification that waits",
        "For a metric, after each sweep: those that wait, through an index that has nothing else.",
        &explained(pool, explain("WITH waiting AS MATERIALIZED")?).await?,
    )?;
    section(
        document,
        "Counting notifications",
        "For the same: all that are kept, in one pass. No cycle does this.",
        &explained(pool, explain("(WHERE state = 'given_up') AS")?).await?,
    )
}

pub(super) async fn reactivating(document: &mut String, pool: &PgPool, now: DateTime<Utc>) -> Result<()> {
    let since = now - TimeDelta::days(1);
    section(
        document,
        "Who was deactivated",
        "For `tokens reactivate --since`, here of the last day: the end of an index, and a look-up for each.",
        &explained(pool, explain("d.deactivated_at >= $1")?.bind(since)).await?,
    )?;
    let ids: Vec<Uuid> = sqlx::query_scalar(
        "SELECT streamer_id FROM token_refresh.deactivations WHERE deactivated_at >= $1
         ORDER BY deactivated_at DESC",
    )
    .bind(since)
    .fetch_all(pool)
    .await?;
    section(
        document,
        "When one streamer was deactivated",
        "For `tokens reactivate ID`: all of the table, which is small. No cycle does this.",
        &explained(pool, explain("SELECT max(deactivated_at)")?.bind(ids.first())).await?,
    )?;
    section(
        document,
        &format!("Reactivating {} streamers", ids.len()),
        "For each of them a look-up to lock it, one to write it, one to forget its failures, and one to settle what \
         waits for it in the outbox.",
        &explained(pool, explain("WITH ours AS")?.bind(ids).bind(now)).await?,
    )
}

pub(super) async fn measuring(
    document: &mut String,
    pool: &PgPool,
    database: &Database,
    now: DateTime<Utc>,
) -> Result<()> {
    let since = now - TimeDelta::days(1);
    let started = Instant::now();
    let sessions = readable(database.coverage(since, now).await?.sessions);
    let took = started.elapsed();
    section(
        document,
        "Dead minutes of a day",
        &format!(
            "For `tokens coverage` and, after each sweep, for a metric: {sessions} sessions reach into the day, and the history of each is read through the \
             index of its streamer. It took {took:.1?}. (Most of the invented sessions had dead time, which is the most \
             work that there can be.)"
        ),
        &explained(pool, explain("-- Dead and unknown time")?.bind(since).bind(now)).await?,
    )
}
