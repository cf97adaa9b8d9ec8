//! The plan of each statement that a cycle runs, at a size that no developer's database has.
//!
//! The texts are not repeated here: they are those that the adapters' checked queries were built from, read where
//! sqlx keeps them. So a plan is always that of the query as it is now.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use adapters::store::{self, migrate};
use anyhow::{Context as _, Result, bail, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use domain::policy::{BUDGET_PERIOD, EXPIRY_MARGIN};
use domain::{Authorized, Clock as _};
use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgPool};
use sqlx::query::QueryScalar;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};
use uuid::Uuid;

use crate::binaries::workspace;
use crate::clock::TurnableClock;
use crate::postgres::{Postgres, Settings};

/// How many streamers a page has, as the adapters ask for it.
const PAGE: i64 = 1_000;

/// How many leases are taken at once: as many as calls to Twitch may be in flight.
const LEASES: usize = 64;

/// Any time would do: no plan depends on when a lease ends.
const LEASE: TimeDelta = TimeDelta::minutes(5);

/// As the adapters keep the history.
const KEPT: TimeDelta = TimeDelta::days(30);

/// Long enough for a time and for the first id of an array.
const LONGEST_VALUE: usize = 40;

/// What the migration adds to the application's own tables.
const INDEXES: [&str; 2] = ["token_refresh_authorized_idx", "token_refresh_authorization_idx"];

/// A million streamers and what they leave behind in 90 days; $1 is the time. One in a hundred is authorized now, one
/// in two hundred is due as well, and one in a thousand is authorized twice, by two campaigns.
const FILL: [&str; 7] = [
    "INSERT INTO users (id, display_name, created_at)
     SELECT md5('master ' || n)::uuid, 'Master ' || n, $1 FROM generate_series(1, 1000) n",
    "INSERT INTO campaigns (id, name, owner_id, created_at, updated_at)
     SELECT md5('campaign ' || n)::uuid, 'Campaign ' || n, md5('master ' || n % 1000 + 1)::uuid, $1, $1
     FROM generate_series(1, 25000) n",
    // The texts are as long as encrypted tokens.
    r#"INSERT INTO streamers (id, twitch_user_id, twitch_login, twitch_display_name, access_token_encrypted,
           refresh_token_encrypted, scopes, is_active, token_expires_at, last_token_refresh_at, created_at, updated_at)
       SELECT md5('streamer ' || n)::uuid, n::text, 'streamer_' || n, 'Streamer ' || n,
              repeat(md5('access ' || n), 4), repeat(md5('refresh ' || n), 5), '["channel:manage:polls"]',
              n % 50 <> 1,
              CASE WHEN n % 200 = 0 THEN $1 + interval '30 minutes' WHEN n % 100 = 0 THEN $1 + interval '3 hours'
                   ELSE $1 - random() * interval '90 days' END,
              $1 - random() * interval '90 days', $1, $1
       FROM generate_series(1, 1000000) n"#,
    // Every second streamer is in two campaigns. Some have not accepted, and some never gave an authorization.
    "INSERT INTO campaign_memberships (campaign_id, streamer_id, status, invited_at, created_at, updated_at,
         poll_authorization_granted_at, poll_authorization_expires_at)
     SELECT md5('campaign ' || (n * 7 + k * 11) % 25000 + 1)::uuid, md5('streamer ' || n)::uuid,
            CASE WHEN n % 10 = 3 THEN 'PENDING' ELSE 'ACTIVE' END, $1, $1, $1, until - interval '12 hours', until
     FROM generate_series(1, 1000000) n
     CROSS JOIN generate_series(1, 2) k
     CROSS JOIN LATERAL (SELECT CASE
         WHEN n % 10 = 3 OR n % 20 = 4 THEN NULL
         WHEN n % 1000 = 0 OR n % 100 = 0 AND k = 1 THEN $1 + interval '1 minute' + random() * interval '12 hours'
         ELSE $1 - random() * interval '90 days' END AS until) authorization_of
     WHERE k = 1 OR n % 2 = 0",
    "INSERT INTO token_refresh.streamers (streamer_id, fence, validated_at)
     SELECT md5('streamer ' || n)::uuid, 9, $1 FROM generate_series(5, 1000000, 5) n",
    // As much as is there when a planned run comes, 3.5 hours after the last one forgot what was old.
    "INSERT INTO token_refresh.refreshes (streamer_id, fence, trigger, started_at, ended_at, outcome,
         expires_before, expires_after)
     SELECT md5('streamer ' || n)::uuid, fence, 'planned', at, at, 'refreshed', at, at + interval '4 hours'
     FROM generate_series(1, 9) fence
     CROSS JOIN generate_series(5, 1000000, 5) n
     CROSS JOIN LATERAL (
         SELECT $1 - interval '30 days 3 hours 30 minutes' * (10 - fence - n / 1000000.0) / 9 AS at) refresh",
    "INSERT INTO token_refresh.deactivations (streamer_id, deactivated_at)
     SELECT md5('streamer ' || n)::uuid, $1 - random() * interval '90 days' FROM generate_series(1, 1000000, 50) n",
];

/// A streamer whose lease was taken: its id, its fence and its refresh token as it is stored.
type Held = (Uuid, i64, Option<String>);

/// An `EXPLAIN` that waits for its statement's parameters; each row is a line of the plan.
type Explain<'q> = QueryScalar<'q, sqlx::Postgres, String, PgArguments>;

/// Fills a database of its own and prints all plans, as Markdown.
///
/// # Errors
///
/// If there is no PostgreSQL, or if a statement is not found or fails.
#[expect(clippy::print_stdout, reason = "the document is what it is for")]
#[expect(clippy::print_stderr, reason = "what should not be in the document")]
pub async fn run() -> Result<()> {
    eprintln!("Inventing a million streamers, which takes some minutes...");
    let postgres = Postgres::own(Settings { durable: true, ..Settings::default() }).await?;
    let database = postgres.create_empty().await?;
    let options: PgConnectOptions = database.url().parse()?;
    migrate(&options).await?;
    let now = TurnableClock::frozen().now();
    fill(&options, now).await?;
    print!("{}", document(&options, now).await?);
    Ok(())
}

/// The plan of a cycle's first page on a small database, as if it were a large one: small tables are read as a whole
/// and sorted, because that is cheaper, and so would not show whether the indexes serve.
///
/// # Errors
///
/// If the statement is not found or fails.
pub async fn page(pool: &PgPool, now: DateTime<Utc>) -> Result<String> {
    let mut transaction = pool.begin().await?;
    for setting in ["SET LOCAL enable_seqscan = off", "SET LOCAL enable_sort = off"] {
        sqlx::query(setting).execute(&mut *transaction).await?;
    }
    plan(&mut transaction, page_after(now, Uuid::max())?).await
}

async fn fill(options: &PgConnectOptions, now: DateTime<Utc>) -> Result<()> {
    // Without triggers: to check six million references, all of them good, would take longer than all the rest.
    let options = options.clone().options([("session_replication_role", "replica")]);
    let mut connection = options.connect().await?;
    for statement in FILL {
        sqlx::query(statement).bind(now).execute(&mut connection).await?;
    }
    connection.close().await?;
    Ok(())
}

async fn document(options: &PgConnectOptions, now: DateTime<Utc>) -> Result<String> {
    let pool = PgPool::connect_with(options.clone()).await?;
    let built = build_indexes(&pool).await?;
    sqlx::raw_sql("VACUUM ANALYZE").execute(&pool).await?;
    let (everybody, walk) = walk(options, now).await?;
    let mut document = introduction(&pool, &everybody, walk, &built).await?;
    reading(&mut document, &pool, &everybody, now).await?;
    let held = leasing(&mut document, &pool, &everybody, now).await?;
    writing(&mut document, &pool, &held, now).await?;
    history(&mut document, &pool, &everybody, now).await?;
    next_day(&mut document, &pool, now).await?;
    Ok(document)
}

/// Builds the migration's indexes as it would on tables that are full already.
async fn build_indexes(pool: &PgPool) -> Result<[Duration; 2]> {
    let mut took = [Duration::ZERO; 2];
    for (index, took) in INDEXES.into_iter().zip(&mut took) {
        let started = Instant::now();
        sqlx::raw_sql(AssertSqlSafe(format!("REINDEX INDEX {index}"))).execute(pool).await?;
        *took = started.elapsed();
    }
    Ok(took)
}

/// All pages, one after the other, as a cycle reads them.
async fn walk(options: &PgConnectOptions, now: DateTime<Utc>) -> Result<(Vec<Authorized>, Duration)> {
    let database = store::Database::open(options.clone()).await?;
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

async fn introduction(
    pool: &PgPool,
    everybody: &[Authorized],
    walk: Duration,
    [authorized_idx, authorization_idx]: &[Duration; 2],
) -> Result<String> {
    let [version, authorized, streamers, memberships, remembered, refreshes] =
        sqlx::query_scalar::<_, [String; 6]>(
            "SELECT ARRAY[
                    current_setting('server_version'),
                    to_char($1::bigint, 'FM9,999,999'),
                    to_char((SELECT count(*) FROM streamers), 'FM9,999,999'),
                    to_char((SELECT count(*) FROM campaign_memberships), 'FM9,999,999'),
                    to_char((SELECT count(*) FROM token_refresh.streamers), 'FM9,999,999'),
                    to_char((SELECT count(*) FROM token_refresh.refreshes), 'FM9,999,999')]",
        )
        .bind(i64::try_from(everybody.len())?)
        .fetch_one(pool)
        .await?;
    // What follows the number is how it was packaged.
    let version = version.split(' ').next().unwrap_or_default();
    Ok(format!(
        "# Query plans

What PostgreSQL does for each statement that a cycle or the command runs. The statements are those of the adapters' \
         checked queries, word for word. This whole page is the output of

```sh
cargo run -- plans > docs/query-plans.md
```

The database is PostgreSQL {version} with default settings for planning and memory. In it are

- {streamers} streamers, of which {authorized} are authorized now, half of those with a token that is due;
- {memberships} memberships, most of them with authorizations that ended in the last 90 days;
- {remembered} streamers that were refreshed before, and {refreshes} refreshes in 30 days of history.

How to read a plan: `rows` is what a step returned, on average over its `loops`. A buffer is 8 kB, `hit` in \
         PostgreSQL's memory or `read` from outside it. A statement has the index it needs if its steps read about \
         as many rows as it returns or changes, however large the table.

A walk over all pages took {walk:.0?}. The migration builds its index for the pages in {authorized_idx:.1?} on \
         these memberships, and that for a streamer's later authorizations in {authorization_idx:.1?}; for both \
         together nobody can write to `campaign_memberships`.
",
    ))
}

async fn reading(
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

async fn leasing(
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
        "For as many streamers as calls to Twitch can be under way: a look-up and an update for each, in the order \
         of their ids.",
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

async fn writing(document: &mut String, pool: &PgPool, held: &[Held], now: DateTime<Utc>) -> Result<()> {
    section(
        document,
        &format!("Writing {LEASES} results"),
        "One statement, one commit. For each result a look-up to lock its lease, one to write its tokens, one to \
         give its lease back, and an entry in the history.",
        &explained(pool, write(held, now)?).await?,
    )?;
    section(
        document,
        "Counting for the budget of deactivations",
        "Before each deactivation, of which there are few: how many were deactivated within the hour, and how many \
         are authorized.",
        &explained(pool, explain(r#"AS "authorized!""#)?.bind(now - BUDGET_PERIOD).bind(now)).await?,
    )?;
    let (id, fence, token) = held.first().context("nobody is leased")?;
    let deactivate = explain("is_active = false, token_refresh_failed_at")?
        .bind(id)
        .bind(fence)
        .bind(token)
        .bind(now)
        .bind("planned")
        .bind(now)
        .bind("Twitch refused")
        .bind(now)
        .bind(now);
    section(document, "Deactivating", "Two look-ups and two entries.", &explained(pool, deactivate).await?)
}

async fn history(
    document: &mut String,
    pool: &PgPool,
    everybody: &[Authorized],
    now: DateTime<Utc>,
) -> Result<()> {
    section(
        document,
        "Forgetting old history",
        "After each planned run: the oldest end of an index.",
        &explained(pool, explain("DELETE FROM token_refresh.refreshes")?.bind(now - KEPT)).await?,
    )?;
    let one = everybody.first().context("nobody is authorized")?;
    section(
        document,
        "The history of one streamer",
        "For `tokens history ID`: the primary key, read backwards.",
        &explained(pool, explain("ORDER BY fence DESC")?.bind(one.streamer.id.0).bind(20_i64)).await?,
    )
}

/// Who is authorized now is always later than what the statistics have seen, and PostgreSQL gathers new ones only when
/// a tenth of the table has changed, which takes days.
async fn next_day(document: &mut String, pool: &PgPool, now: DateTime<Utc>) -> Result<()> {
    sqlx::query(
        "UPDATE campaign_memberships SET poll_authorization_expires_at = poll_authorization_expires_at + interval '1 day'
         WHERE poll_authorization_expires_at > $1",
    )
    .bind(now)
    .execute(pool)
    .await?;
    sqlx::raw_sql("VACUUM campaign_memberships").execute(pool).await?;
    section(
        document,
        "The first page, a day after `ANALYZE`",
        "The statistics know of nobody who is authorized now, which is how it is on most days: PostgreSQL expects next \
         to no rows. The pages are only as good as the plan they get here.",
        &explained(pool, page_after(now + TimeDelta::days(1), Uuid::max())?).await?,
    )
}

fn page_after(until: DateTime<Utc>, id: Uuid) -> Result<Explain<'static>> {
    Ok(explain("ORDER BY m.poll_authorization_expires_at")?.bind(until).bind(id).bind(PAGE))
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
        .bind(no_texts))
}

fn section(document: &mut String, heading: &str, sentence: &str, plan: &str) -> Result<()> {
    Ok(write!(document, "\n## {heading}\n\n{sentence}\n\n```text\n{plan}\n```\n")?)
}

/// The statement with this in its text.
fn statement(part: &str) -> Result<String> {
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

fn explain<'q>(part: &str) -> Result<Explain<'q>> {
    // No times and no costs: what the plan is, not how busy the machine was.
    let options = "ANALYZE, BUFFERS, COSTS OFF, TIMING OFF, SUMMARY OFF";
    Ok(sqlx::query_scalar(AssertSqlSafe(format!("EXPLAIN ({options}) {}", statement(part)?))))
}

/// The plan of a statement that has no effect: it was really run, and is undone.
async fn explained(pool: &PgPool, explain: Explain<'_>) -> Result<String> {
    let mut transaction = pool.begin().await?;
    let plan = plan(&mut transaction, explain).await?;
    transaction.rollback().await?;
    Ok(plan)
}

async fn plan(connection: &mut PgConnection, explain: Explain<'_>) -> Result<String> {
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
