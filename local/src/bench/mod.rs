//! The benchmark: the deployed function's release binary and the HTTP API, against a simulated Twitch over TLS and a
//! durable PostgreSQL, all on this machine.

mod cycles;
mod requests;

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::binaries::{Binaries, Profile};
use crate::postgres::{self, Postgres};
use crate::twitch::Settings;
use crate::world::{NewStreamer, World};

/// What the existing backend was measured with.
const LATENCY: Duration = Duration::from_millis(80);

/// Runs the benchmark and prints its tables.
#[expect(clippy::print_stdout, reason = "the tables are what it is for")]
pub async fn run() -> Result<()> {
    ensure!(
        !cfg!(debug_assertions),
        "a debug build measures itself: use `cargo run --profile tool -- bench`"
    );
    println!("Building the release binaries...");
    let binaries = Binaries::build(Profile::Release).await?;
    let postgres = Postgres::own(postgres::Settings { durable: true, log_statements: true }).await?;

    println!("Twitch answers after {} ms, over TLS.\n", LATENCY.as_millis());
    requests::run(&postgres).await?;
    cycles::run(&binaries, &postgres).await
}

/// A world with this many streamers, all of them due.
async fn world(postgres: &Postgres, streamers: usize) -> Result<World> {
    let settings = Settings { latency: LATENCY, tls: true, ..Settings::default() };
    let world = World::start(postgres, settings).await?;
    let everybody: Vec<_> = (0..streamers).map(|n| NewStreamer::due(format!("streamer_{n}"))).collect();
    for some in everybody.chunks(10_000) {
        world.add_all(some.to_vec()).await?;
    }
    // As autovacuum would have done on a database that has been there for a while.
    sqlx::query("ANALYZE").execute(&world.pool).await?;
    Ok(world)
}
