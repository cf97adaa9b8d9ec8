//! Two transactions that want the same streamer at the same moment, brought about on purpose: the one holds the row, and
//! releases it once the other is seen to wait.

use std::pin::pin;

use anyhow::Result;
use chrono::TimeDelta;
use tokens_domain::ports::Store as _;
use tokens_domain::refresh::Cycle;
use tokens_domain::report::{Outcome, Skip, Standing};
use tokens_domain::schedule::Trigger;
use tokens_domain::{Clock as _, StreamerId};
use tokens_local::world::{NewStreamer, World};
use tokens_store::PgStore;
use tokens_tests::doomed::{A_LOCK_IS_WAITED_FOR, TURN, lock, until};
use tokens_tests::people::{deactivation, device, refused_before, refused_streamer};
use tokens_tests::{Sql as _, Still, run, wait_for_locks};

/// The deactivation holds what we remember of the streamer; the claim has seen the streamer active, and waits.
#[tokio::test]
async fn a_streamer_deactivated_while_a_claim_waits_is_not_refreshed() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let id = world.add(NewStreamer::due("aria")).await?;
    sqlx::query("INSERT INTO token_refresh.streamers (streamer_id, fence) VALUES ($1, 1)")
        .bind(id.0)
        .execute(&world.pool)
        .await?;
    let service = world.service(&[]).await?;
    let mut deactivation = world.pool.begin().await?;
    sqlx::query("SELECT FROM token_refresh.streamers FOR UPDATE").execute(&mut *deactivation).await?;
    sqlx::query("UPDATE streamers SET is_active = false").execute(&mut *deactivation).await?;

    let cycle = Cycle::new(Trigger::Sweep);
    let mut cycle = pin!(run(&service, &cycle));
    tokio::select! {
        biased;
        ran = &mut cycle => panic!("the claim did not wait: {:?}", ran.report),
        waits = until(world, A_LOCK_IS_WAITED_FOR) => waits?,
    }
    deactivation.commit().await?;
    let ran = cycle.await;

    assert_eq!(*ran.outcome("aria"), Outcome::Skipped(Skip::Leased));
    assert_eq!(world.twitch.totals().token_requests, 0);
    assert_eq!(world.row(id).await?.token_refresh_failed_at, None);
    let free: bool = sqlx::query_scalar("SELECT leased_until IS NULL FROM token_refresh.streamers")
        .fetch_one(&world.pool)
        .await?;
    assert!(free, "the lease is given back");
    Ok(())
}

async fn is_refreshed(world: &World, id: StreamerId) -> Result<()> {
    while world.row(id).await?.last_token_refresh_at.is_none() {}
    Ok(())
}

/// Deactivations take turns, and this one has to wait for its turn; the pair that arrives after it must not.
#[tokio::test]
async fn no_new_pair_waits_behind_a_deactivation() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    // One call at a time, in the order in which the authorizations end: the refusal arrives first.
    let soonest = Some(TimeDelta::hours(1));
    let dead = world.add(NewStreamer { authorized_for: soonest, ..NewStreamer::due("dead") }).await?;
    let alive = world.add(NewStreamer::due("alive")).await?;
    world.twitch.disconnect("dead")?;
    refused_before(world, dead).await?;
    let service = world.service(&[("TWITCH_MAX_IN_FLIGHT", "1")]).await?;
    let mut other = world.pool.begin().await?;
    lock(&mut other, TURN).await?;

    let cycle = Cycle::new(Trigger::Sweep);
    let mut cycle = pin!(run(&service, &cycle));
    tokio::select! {
        biased;
        ran = &mut cycle => panic!("the deactivation did not wait: {:?}", ran.report),
        stored = is_refreshed(world, alive) => stored?,
    }
    assert!(world.row(dead).await?.is_active);
    other.rollback().await?;
    let ran = cycle.await;

    let deactivated =
        matches!(ran.outcome("dead"), Outcome::Failed { standing: Standing::Deactivated { .. }, .. });
    assert!(deactivated, "{:?}", ran.outcome("dead"));
    assert!(!world.row(dead).await?.is_active);
    Ok(())
}

/// Another run has its turn until all refusals are there: they are deactivated at once, and counted once.
#[tokio::test]
async fn what_waits_for_its_turn_is_deactivated_in_one_transaction() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.add_all((0..200).map(|n| NewStreamer::fresh(format!("alive{n}"))).collect()).await?;
    let dead = world.add_all((0..40).map(|n| NewStreamer::due(format!("dead{n}"))).collect()).await?;
    world.add(NewStreamer::due("witness")).await?;
    for (n, id) in dead.into_iter().enumerate() {
        world.twitch.disconnect(&format!("dead{n}"))?;
        refused_before(world, id).await?;
    }
    let service = world.service(&[]).await?;
    // Each row remembers the transaction that wrote it; `xmin` would name a savepoint.
    let remember =
        "ALTER TABLE token_refresh.deactivations ADD COLUMN written_by xid8 DEFAULT pg_current_xact_id()";
    sqlx::query(remember).execute(&world.pool).await?;
    let mut other = world.pool.begin().await?;
    lock(&mut other, TURN).await?;
    let until_all_are_refused = async {
        // A refusal is doubted, so the last answers are those of validations.
        world.twitch.wait_until(|totals| totals.validate_requests == 40 && totals.in_flight == 0).await;
        other.rollback().await
    };

    let cycle = Cycle::new(Trigger::Planned);
    let (ran, released) = tokio::join!(run(&service, &cycle), until_all_are_refused);
    released?;
    assert_eq!((ran.report.deactivated, ran.report.stopped), (40, None));
    let transactions =
        world.count("SELECT count(DISTINCT written_by::text) FROM token_refresh.deactivations").await?;
    assert!(
        transactions <= 3,
        "{transactions} transactions: those that came before the others, and the rest"
    );
    Ok(())
}

/// Each counts what the other has deactivated: without their lock both would find the budget unused.
#[tokio::test]
async fn runs_that_deactivate_at_once_share_one_budget() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    wait_for_locks(world).await?;
    let open = async || {
        anyhow::Ok(PgStore::new(world.database().await?, world.config(&[])?.cipher, world.clock.clone()))
    };
    let (one, other) = (open().await?, open().await?);
    let mut attempts = Vec::new();
    for n in 0..6 {
        let (streamer, user) = refused_streamer(world, &format!("dead{n}")).await?;
        device(world, user, &format!("phone{n}")).await?;
        attempts.push(deactivation(&one, streamer, still.now()).await?);
    }
    let (first, second) = attempts.split_at(3);
    let mut outbox = world.pool.begin().await?;
    lock(&mut outbox, "LOCK TABLE token_refresh.outbox IN EXCLUSIVE MODE").await?;
    let both_wait = async {
        until(
            world,
            "SELECT count(*) = 2 FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        .await?;
        anyhow::Ok(outbox.rollback().await?)
    };
    let at = still.clock.monotonic();
    let (done, others, released) =
        tokio::join!(one.deactivate(first, at), other.deactivate(second, at), both_wait);
    released?;
    done?;
    others?;
    let deactivated = world.count("SELECT count(*) FROM token_refresh.deactivations").await?;
    assert_eq!(deactivated, 3, "the budget of six streamers");
    Ok(())
}
