//! Hosts whose clocks are apart share the database's clock.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use chrono::TimeDelta;
use tokens_aws::NoSignals;
use tokens_domain::Clock;
use tokens_domain::SystemClock;
use tokens_domain::refresh::{Cycle, RefreshService};
use tokens_domain::schedule::Trigger;
use tokens_local::clock::TurnableClock;
use tokens_local::postgres::Postgres;
use tokens_local::twitch::{RefreshTokens, Settings};
use tokens_local::world::{NewStreamer, World};
use tokens_store::{Database, PgStore, Purpose};
use tokens_tests::{Sql as _, run};
use tokens_twitch::TwitchClient;

const STREAMERS: usize = 40;

/// A host whose clock is this much ahead of the database's.
async fn host(
    world: &World,
    ahead: TimeDelta,
) -> Result<RefreshService<PgStore, TwitchClient, NoSignals, NoSignals>> {
    let config = world.config(&[("TWITCH_MAX_IN_FLIGHT", "8")])?;
    let machine = Arc::new(TurnableClock::running_from(SystemClock.now() + ahead));
    let database = Database::open_until(config.database, Purpose::Write, None, machine).await?;
    let clock: Arc<dyn Clock> = Arc::new(database.clock());
    assert!((clock.now() - SystemClock.now()).abs() < TimeDelta::minutes(1), "{ahead} is corrected");
    let in_flight = config.twitch.in_flight();
    let store = PgStore::new(database, config.cipher, clock.clone());
    let twitch = TwitchClient::new(config.twitch, Arc::new(SystemClock))?;
    Ok(RefreshService::new(store, twitch, NoSignals, NoSignals, clock, config.policy, in_flight))
}

#[tokio::test]
async fn hosts_with_clocks_ten_minutes_apart_respect_each_others_leases() -> Result<()> {
    let settings = Settings {
        refresh_tokens: RefreshTokens::OneTime,
        latency: Duration::from_millis(20),
        ..Settings::default()
    };
    let world = World::start(Postgres::shared().await?, settings).await?;
    world.add_all((0..STREAMERS).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    let cycle = Cycle::new(Trigger::Planned);
    let hosts = [
        host(&world, TimeDelta::zero()).await?,
        host(&world, TimeDelta::minutes(10)).await?,
        host(&world, TimeDelta::minutes(-10)).await?,
    ];
    let [first, second, third] = &hosts;
    let (first, second, third) = tokio::join!(run(first, &cycle), run(second, &cycle), run(third, &cycle));
    let refreshed = first.report.success + second.report.success + third.report.success;
    assert_eq!(refreshed, STREAMERS as u64, "{:?}", [first.report, second.report, third.report]);
    assert_eq!(world.twitch.totals().reuses, 0);
    let marked = world.count("SELECT count(*) FROM streamers WHERE token_refresh_failed_at IS NOT NULL OR NOT is_active
             OR last_token_refresh_at NOT BETWEEN now() - interval '1 minute' AND now() + interval '1 minute'").await?;
    assert_eq!(marked, 0);
    Ok(())
}

/// The brief's report once said `Duration: -595 s`.
#[tokio::test]
async fn a_clock_that_is_set_back_during_a_cycle_changes_no_duration() -> Result<()> {
    let still = tokens_tests::Still::new().await?;
    still.world.add(NewStreamer::due("aria")).await?;
    let gate = still.world.twitch.pause("aria")?;
    let service = still.world.service(&[]).await?;
    let set_back = async {
        still.clock.advance(Duration::from_secs(5));
        still.clock.set(still.now() - TimeDelta::minutes(10));
        Ok(())
    };
    let ran =
        tokens_tests::with_change_at(gate, run(&service, &Cycle::new(Trigger::Planned)), set_back).await?;
    assert_eq!(ran.report.duration, TimeDelta::seconds(5));
    Ok(())
}
