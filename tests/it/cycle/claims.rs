//! A claim that something comes in between: the leases are its own, and it goes on under them.

use anyhow::{Result, bail};
use domain::grant::GrantError;
use end_to_end::aws::{Fault, Service, SimulatedAws};
use end_to_end::cycles::planned;
use end_to_end::relay::Relay;
use end_to_end::requests::{membership, request};
use end_to_end::{Still, changed};
use local::world::{NewStreamer, World};
use serde_json::json;
use service::config::Source;
use service::{Host, Process};

/// A claim says this when it has its leases and reads what they protect.
const READS: &str = "AS leased (id, fence)";

fn host(world: &World, relay: &Relay) -> Host {
    world.host(&[("DATABASE_URL", &relay.url())])
}

#[tokio::test]
async fn a_cycle_reads_under_its_leases_what_it_could_not_read_at_first() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.add_all((0..20).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    let relay = Relay::start(world)?;
    let host = host(world, &relay);
    relay.hang_up_at(READS);

    let report = Box::pin(host.run(&planned(), None)).await?;

    assert!(relay.hung_up());
    assert_eq!((report.success, report.total, report.stopped), (20, 20, None));
    Ok(())
}

#[tokio::test]
async fn so_does_a_request() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let key = membership(world, world.add(NewStreamer::due("someone")).await?).await?;
    let relay = Relay::start(world)?;
    let host = host(world, &relay);
    relay.hang_up_at(READS);

    let granted = host.grant(key, &request()).await?;

    assert!(relay.hung_up());
    assert!(granted.remaining(still.now()).is_some());
    Ok(())
}

/// A token is under a key that we don't have, and Secrets Manager, which might, doesn't answer.
#[tokio::test]
async fn a_secrets_manager_that_stalls_is_no_fault_of_the_database() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let aws = SimulatedAws::start_on(still.clock.clone()).await?;
    let (keys, others): (Vec<_>, Vec<_>) =
        world.environment().into_iter().partition(|(name, _)| name == "APP_KEY");
    aws.put_secret("keys", json!({ "APP_KEY": keys[0].1 }).to_string());
    let source: Source = changed(others, &[("TOKEN_KEYS_SECRET_ID", "keys")]).into_iter().collect();
    let host = Host::new(source, Process::on(still.clock.clone()).with_sdk(aws.access()));
    let key = membership(world, world.add(NewStreamer::due("someone")).await?).await?;
    sqlx::query("UPDATE streamers SET refresh_token_encrypted = 'v1.2027.AAAA.AAAA'")
        .execute(&world.pool)
        .await?;
    // The secrets are read when the service is opened.
    host.service().await?;
    aws.fault(Service::Secrets, Fault::Stall, usize::MAX);

    // The second finds neither a lease that was left behind nor a need to ask again.
    for _ in 0..2 {
        let Err(GrantError::Ours(reason)) = host.grant(key, &request()).await else { bail!("which key?") };
        assert!(reason.contains("2027"), "{reason}");
    }
    Ok(())
}
