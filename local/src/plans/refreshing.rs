//! What a cycle asks and writes for the streamers it refreshes.

use anyhow::{Context as _, Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use domain::Authorized;
use domain::policy::EXPIRY_MARGIN;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPool;
use uuid::Uuid;

use super::section;
use super::statements::{Explain, explain, explained, statement};

/// How many streamers a page has, as the adapters ask for it.
const PAGE: i64 = 1_000;

/// How many leases are taken at once: as many as calls to Twitch may be in flight.
const LEASES: usize = 64;

/// Any time would do: no plan depends on when a lease ends.
const LEASE: TimeDelta = TimeDelta::minutes(5);

/// A streamer whose lease was taken: its id, its fence and its refresh token as it is stored.
pub(super) type Held = (Uuid, i64, Option<String>);

pub(super) async fn reading(
    document: &mut String,
    pool: &PgPool,
    everybody: &[Authorized],
    now: DateTime<Utc>,
) -> Result<()> {
    let last = everybody.get(everybody.len() / 2).context("nobody is authorized")?;
    section(
        document,
        "The first page",
        "The index holds the authorizations in the order of the pages, so there is nothing to sort, and nothing of what \
         is over is read. The only rows too many are those of streamers who are deactivated, or whose authorization \
         in another campaign ends later.",
        &explained(pool, page_after(now, Uuid::max())?).await?,
    )?;
    section(
        document,
        "A page in the middle",
        "The cursor is where the index is entered: no page costs more than the first.",
        &explained(pool, page_after(last.until, last.streamer.id.0)?).await?,
    )?;
    section(
        document,
        "One streamer",
        "For `tokens refresh ID`: three look-ups; the end of the last authorization is the last entry of the \
         streamer in an index.",
        &explained(pool, explain("SELECT max(m.poll_authorization_expires_at)")?.bind(last.streamer.id.0))
            .await?,
    )
}

pub(super) async fn leasing(
    document: &mut String,
    pool: &PgPool,
    everybody: &[Authorized],
    now: DateTime<Utc>,
) -> Result<Vec<Held>> {
    let due: Vec<Uuid> = everybody
        .iter()
        .filter(|one| one.token.expires_at.is_some_and(|at| at - now <= EXPIRY_MARGIN))
        .map(|one| one.streamer.id.0)
        .take(LEASES)
        .collect();
    let lease = "INSERT INTO token_refresh.streamers AS ours";
    section(
        document,
        "Taking leases",
        "For as many streamers as calls to Twitch can be under way: two look-ups, to lock what we remember and then the \
         streamer, and an update for each, in the order of their ids.",
        &explained(pool, explain(lease)?.bind(&due).bind(now).bind(now + LEASE)).await?,
    )?;

    // Now for good: what follows is done by who holds leases.
    sqlx::query(AssertSqlSafe(statement(lease)?))
        .bind(&due)
        .bind(now)
        .bind(now + LEASE)
        .execute(pool)
        .await?;
    let held: Vec<Held> = sqlx::query_as(
        "SELECT s.id, ours.fence, s.refresh_token_encrypted
         FROM token_refresh.streamers ours JOIN streamers s ON s.id = ours.streamer_id
         WHERE ours.leased_until IS NOT NULL",
    )
    .fetch_all(pool)
    .await?;
    ensure!(held.len() == LEASES, "{} leases were taken, not {LEASES}", held.len());
    let (ids, fences): (Vec<Uuid>, Vec<i64>) = held.iter().map(|(id, fence, _)| (*id, *fence)).unzip();
    section(
        document,
        "Reading what was leased",
        "Two look-ups for each lease.",
        &explained(pool, explain("AS leased (id, fence)")?.bind(ids).bind(fences)).await?,
    )?;
    Ok(held)
}

pub(super) async fn writing(
    document: &mut String,
    pool: &PgPool,
    held: &[Held],
    now: DateTime<Utc>,
) -> Result<()> {
    section(
        document,
        &format!("Writing {LEASES} results"),
        "One statement, one commit. For each result a look-up to lock its lease, one to write its tokens, one to \
         give its lease back, and an entry in the history.",
        &explained(pool, write(held, now)?).await?,
    )
}

pub(super) fn page_after(until: DateTime<Utc>, id: Uuid) -> Result<Explain<'static>> {
    Ok(explain("m.poll_authorization_expires_at, m.streamer_id) s.id")?.bind(until).bind(id).bind(PAGE))
}

/// The write of a batch in which everybody was refreshed.
fn write(held: &[Held], now: DateTime<Utc>) -> Result<Explain<'static>> {
    let count = held.len();
    let ids: Vec<Uuid> = held.iter().map(|(id, ..)| *id).collect();
    let fences: Vec<i64> = held.iter().map(|(_, fence, _)| *fence).collect();
    let started_from: Vec<Option<String>> = held.iter().map(|(.., token)| token.clone()).collect();
    let tokens: Vec<String> = ids.iter().map(|id| id.to_string().repeat(4)).collect();
    let times = vec![now; count];
    let no_texts = vec![None::<String>; count];
    Ok(explain("WITH result AS")?
        .bind(ids)
        .bind(fences)
        .bind(started_from)
        .bind(vec!["refreshed"; count])
        .bind(tokens.clone())
        .bind(tokens)
        .bind(vec![now + TimeDelta::hours(4); count])
        .bind(vec![None::<DateTime<Utc>>; count])
        .bind(no_texts.clone())
        .bind(vec![0_i32; count])
        .bind(vec!["planned"; count])
        .bind(times.clone())
        .bind(times.clone())
        .bind(times)
        .bind(no_texts.clone())
        .bind(no_texts.clone())
        .bind(true)
        .bind(vec![None::<DateTime<Utc>>; count])
        .bind(vec!["an application"; count])
        .bind(vec![false; count])
        .bind(vec![None::<Vec<u8>>; count])
        .bind(vec!["at"; count])
        .bind(vec![now + TimeDelta::hours(4); count])
        .bind(vec![None::<DateTime<Utc>>; count])
        .bind(no_texts.clone())
        .bind(no_texts))
}
