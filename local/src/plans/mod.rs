//! The plan of each statement that a cycle runs, at a size that no developer's database has.
//!
//! The texts are not repeated here: they are those that the adapters' checked queries were built from, read where
//! sqlx keeps them. So a plan is always that of the query as it is now.

mod asking;
mod deactivating;
mod introduction;
mod invented;
mod keeping;
mod refreshing;
mod requesting;
mod statements;

use std::fmt::Write as _;

use adapters::store::{Database, MissingTables, migrate};
use anyhow::Result;
use chrono::{DateTime, Utc};
use domain::Clock as _;
use sqlx::postgres::{PgConnectOptions, PgPool};
use uuid::Uuid;

use self::refreshing::page_after;
use crate::clock::TurnableClock;
use crate::postgres::{Postgres, Settings};

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
    migrate(&options, MissingTables::Create).await?;
    let now = TurnableClock::frozen().now();
    invented::fill(&options, now).await?;
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
    statements::plan(&mut transaction, page_after(now, Uuid::max())?).await
}

async fn document(options: &PgConnectOptions, now: DateTime<Utc>) -> Result<String> {
    let pool = PgPool::connect_with(options.clone()).await?;
    let built = introduction::build_indexes(&pool).await?;
    sqlx::raw_sql("VACUUM ANALYZE").execute(&pool).await?;
    let database = Database::open(options.clone()).await?;
    let (everybody, walk) = introduction::walk(&database, now).await?;
    let mut document = introduction::introduction(&pool, everybody.len(), walk, &built).await?;
    refreshing::reading(&mut document, &pool, &everybody, now).await?;
    let held = refreshing::leasing(&mut document, &pool, &everybody, now).await?;
    refreshing::writing(&mut document, &pool, &held, now).await?;
    deactivating::deactivating(&mut document, &pool, &held, now).await?;
    deactivating::notifying(&mut document, &pool, now).await?;
    keeping::remembering(&mut document, &pool, &database, now).await?;
    keeping::forgetting(&mut document, &pool, now).await?;
    requesting::requesting(&mut document, &pool, &held, now).await?;
    asking::asking(&mut document, &pool, &everybody).await?;
    asking::reactivating(&mut document, &pool, now).await?;
    asking::measuring(&mut document, &pool, &database, now).await?;
    keeping::next_day(&mut document, &pool, &database, now).await?;
    Ok(document)
}

fn section(document: &mut String, heading: &str, sentence: &str, plan: &str) -> Result<()> {
    Ok(write!(document, "\n## {heading}\n\n{sentence}\n\n```text\n{plan}\n```\n")?)
}
