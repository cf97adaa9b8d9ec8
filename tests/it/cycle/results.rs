//! How results get into the database: only the lease's holder writes, and no pair is lost.

use anyhow::Result;
use chrono::TimeDelta;
use tokens_domain::Clock as _;
use tokens_domain::refresh::{Cycle, Limits};
use tokens_domain::report::{Alarm, Outcome, Skip, Standing, Stop};
use tokens_local::twitch::{Endpoint, Fault, Gate};
use tokens_local::world::NewStreamer;
use tokens_tests::cycles::{forced, planned, sweep};
use tokens_tests::{Ran, Sql as _, Still, run, wait_for_locks, with_change_at};

/// The run counts as failed, and an alarm rings.
fn pair_is_thrown_away(ran: &Ran, login: &str) {
    let outcome = ran.outcome(login);
    assert!(
        matches!(
            outcome,
            Outcome::Failed { standing: Standing::Superseded, alarm: Some(Alarm::NotStored), .. }
        ),
        "{outcome:?}"
    );
    assert_eq!((ran.report.failed, ran.report.alarms.not_stored), (1, 1), "{:?}", ran.report);
}

#[tokio::test]
async fn a_pair_that_another_writer_stored_meanwhile_stands() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let service = world.service(&[]).await?;
    for login in ["reconnected", "refused", "refused_again"] {
        let id = world.add(NewStreamer::due(login)).await?;
        if login == "refused_again" {
            sqlx::query("UPDATE streamers SET token_refresh_failed_at = $1 WHERE id = $2")
                .bind(still.now() - TimeDelta::minutes(20))
                .bind(id.0)
                .execute(&world.pool)
                .await?;
        }
        let gate = world.twitch.pause(login)?;
        let theirs = async {
            sqlx::query(
                "UPDATE streamers SET access_token_encrypted = 'theirs', refresh_token_encrypted = 'theirs',
                     token_refresh_failed_at = NULL
                 WHERE id = $1",
            )
            .bind(id.0)
            .execute(&world.pool)
            .await?;
            if login != "reconnected" {
                world.twitch.disconnect(login)?;
            }
            Ok(())
        };
        let ran = with_change_at(gate, run(&service, &planned()), theirs).await?;
        if login == "reconnected" {
            pair_is_thrown_away(&ran, login);
        } else {
            assert_eq!(ran.outcome(login), &Outcome::Skipped(Skip::Superseded));
        }
        let row = world.row(id).await?;
        assert_eq!(row.refresh_token_encrypted.as_deref(), Some("theirs"));
        assert_eq!((row.token_refresh_failed_at, row.is_active), (None, true));
        // Out of the way of the next.
        sqlx::query("UPDATE streamers SET is_active = false WHERE id = $1")
            .bind(id.0)
            .execute(&world.pool)
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_result_under_a_lost_lease_is_not_written() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let id = world.add(NewStreamer::due("slow")).await?;
    let before = world.row(id).await?;
    let service = world.service(&[]).await?;
    let gate = world.twitch.pause("slow")?;
    let takeover = async {
        assert_eq!(run(&service, &sweep()).await.outcome("slow"), &Outcome::Skipped(Skip::Leased));
        // As if the lease had run out and another run had taken it.
        world.sql("UPDATE token_refresh.streamers SET fence = fence + 1").await?;
        Ok(())
    };
    let ran = with_change_at(gate, run(&service, &planned()), takeover).await?;
    pair_is_thrown_away(&ran, "slow");
    assert_eq!(world.row(id).await?, before);
    Ok(())
}

#[tokio::test]
async fn a_lease_that_was_left_behind_runs_out() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.add(NewStreamer::due("left")).await?;
    let service = world.service(&[]).await?;
    let gate = world.twitch.pause("left")?;
    {
        let cycle = planned();
        tokio::select! {
            biased;
            () = gate.arrived() => {}
            _ = run(&service, &cycle) => panic!("the gate is closed"),
        }
        // Here the run is dropped in the middle of its call, as when a function is killed.
    }
    gate.release();
    assert_eq!(run(&service, &planned()).await.outcome("left"), &Outcome::Skipped(Skip::Leased));
    still.turn(4);
    assert_eq!(run(&service, &planned()).await.report.success, 1);
    Ok(())
}

#[tokio::test]
async fn both_formats_are_read_and_the_configured_one_is_written() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let id = world.add(NewStreamer::due("moving")).await?;
    let key = "2026:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    let to_own = [("TOKEN_KEYS", key), ("TOKEN_CIPHER", "aes-gcm")];
    assert_eq!(run(&world.service(&to_own).await?, &planned()).await.report.success, 1);
    assert!(world.row(id).await?.refresh_token_encrypted.unwrap().starts_with("v1.2026."));
    let back = [("TOKEN_KEYS", key), ("TOKEN_CIPHER", "adonis")];
    assert_eq!(run(&world.service(&back).await?, &forced()).await.report.success, 1);
    assert!(world.has_live_token(id).await?, "the existing backend can read it");
    Ok(())
}

#[tokio::test]
async fn a_pair_without_a_lifetime_is_stored_and_then_asked_about() -> Result<()> {
    let still = Still::one_time().await?;
    let world = &still.world;
    let asked = world.add(NewStreamer::due("asked")).await?;
    let unknown = world.add(NewStreamer::due("unknown")).await?;
    world.twitch.fault("asked", Fault::NoExpiresIn.on(Endpoint::Token))?;
    world.twitch.fault("unknown", Fault::NoExpiresIn.on(Endpoint::Token))?;
    world.twitch.fault("unknown", Fault::ServerError.on(Endpoint::Validate))?;
    let service = world.service(&[]).await?;

    let ran = run(&service, &planned()).await;

    assert_eq!(ran.report.success, 2);
    assert_eq!(world.row(asked).await?.token_expires_at, Some(still.now() + TimeDelta::seconds(14_124)));
    assert_eq!(world.row(unknown).await?.token_expires_at, None);
    assert!(world.has_live_token(asked).await? && world.has_live_token(unknown).await?);
    world.twitch.clear_faults("unknown")?;
    let ran = run(&service, &sweep()).await;
    assert!(
        matches!(ran.outcome("unknown"), Outcome::Refreshed { expires_at: Some(_) }),
        "an unknown expiry is due"
    );
    Ok(())
}

/// Another transaction locks the table for longer than a call to Twitch may take.
#[tokio::test]
async fn a_slow_database_loses_no_pair() -> Result<()> {
    let still = Still::one_time().await?;
    let world = &still.world;
    world.add_all((0..1_000).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    let service = world.service(&[]).await?;
    let mut lock = world.pool.begin().await?;
    sqlx::query("LOCK TABLE streamers IN SHARE MODE").execute(&mut *lock).await?;
    let until_later = async {
        sqlx::query("SELECT pg_sleep(12)").execute(&mut *lock).await?;
        lock.commit().await
    };
    let cycle = planned();
    let (ran, held) = tokio::join!(run(&service, &cycle), until_later);
    held?;
    assert_eq!((ran.report.success, ran.report.failed, ran.report.stopped), (1_000, 0, None));
    assert_eq!(world.twitch.totals().reuses, 0);
    Ok(())
}

#[tokio::test]
async fn a_database_that_hangs_up_loses_no_pair() -> Result<()> {
    let still = Still::one_time().await?;
    let world = &still.world;
    let id = world.add(NewStreamer::due("someone")).await?;
    let gate = world.twitch.pause("someone")?;
    let hang_up = async {
        world
            .sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )
            .await?;
        Ok(())
    };
    let service = world.service(&[]).await?;
    let ran = with_change_at(gate, run(&service, &planned()), hang_up).await?;
    assert_eq!(ran.report.success, 1);
    assert!(world.has_live_token(id).await?);
    Ok(())
}

#[tokio::test]
async fn a_streamer_deleted_meanwhile_fails_alone() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let id = world.add(NewStreamer::due("leaving")).await?;
    world.add(NewStreamer::due("staying")).await?;
    let service = world.service(&[]).await?;
    let gate = world.twitch.pause("leaving")?;
    let leave = async {
        sqlx::query("DELETE FROM streamers WHERE id = $1").bind(id.0).execute(&world.pool).await?;
        Ok(())
    };
    let ran = with_change_at(gate, run(&service, &planned()), leave).await?;
    pair_is_thrown_away(&ran, "leaving");
    assert!(matches!(ran.outcome("staying"), Outcome::Refreshed { .. }));
    Ok(())
}

/// A cycle with five minutes left.
fn last_minutes(still: &Still) -> Cycle {
    let limits = Limits::of_function(Some(still.clock.monotonic() + TimeDelta::minutes(5)));
    Cycle { limits, ..planned() }
}

/// Hangs up on a statement that waits for a lock, on a connection other than this one. Answers which.
async fn hang_up_on_another(still: &Still, than: i32) -> Result<i32> {
    let waiting = "WITH one AS MATERIALIZED (
                       SELECT pid FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event_type = 'Lock' AND pid <> $1 LIMIT 1)
                   SELECT pid FROM one WHERE pg_terminate_backend(pid)";
    loop {
        let hung_up: Option<i32> =
            sqlx::query_scalar(waiting).bind(than).fetch_optional(&still.world.pool).await?;
        if let Some(pid) = hung_up {
            return Ok(pid);
        }
        tokio::task::yield_now().await;
    }
}

/// The database is away from before Twitch answers for this one until there is no time left.
async fn away_until_the_end(still: &Still, gate: Gate) -> Result<()> {
    gate.arrived().await;
    let mut away = still.world.pool.begin().await?;
    sqlx::query("LOCK TABLE streamers IN SHARE MODE").execute(&mut *away).await?;
    still.turn(5);
    gate.release();
    // The statement is tried once on another connection.
    let first = hang_up_on_another(still, 0).await?;
    hang_up_on_another(still, first).await?;
    Ok(away.rollback().await?)
}

/// The database goes away with the last minutes: what the first result was tried with fails. What comes then is reported without
/// another try, which would cost the report; and the run counts as failed.
#[tokio::test]
async fn results_after_the_last_try_are_reported_and_not_tried() -> Result<()> {
    for stopped_before in [false, true] {
        let still = Still::new().await?;
        let world = &still.world;
        if stopped_before {
            // A cycle goes by the end of the authorization: it is the last, and begins when another has ended.
            let late = Some(TimeDelta::hours(13));
            world.add(NewStreamer { authorized_for: late, ..NewStreamer::due("late") }).await?;
        }
        world.add_all(["first", "second", "third"].map(NewStreamer::due).into()).await?;
        wait_for_locks(world).await?;
        let service = world.service(&[("TWITCH_MAX_IN_FLIGHT", "3")]).await?;
        let gate = |login| world.twitch.pause(login);
        let (first, second, third) = (gate("first")?, gate("second")?, gate("third")?);
        let cycle = last_minutes(&still);
        let script = async {
            second.arrived().await;
            third.arrived().await;
            away_until_the_end(&still, first).await?;
            second.release();
            third.release();
            anyhow::Ok(())
        };
        let (ran, done) = tokio::join!(run(&service, &cycle), script);
        done?;
        assert!(matches!(ran.report.stopped, Some(Stop::Store(_))), "{:?}", ran.report);
        for login in ["first", "second", "third"] {
            let outcome = ran.outcome(login);
            assert!(matches!(outcome, Outcome::Failed { alarm: Some(Alarm::NotStored), .. }), "{outcome:?}");
        }
        let stored = "SELECT count(*) FROM streamers WHERE last_token_refresh_at IS NOT NULL";
        assert_eq!(world.count(stored).await?, 0);
        if stopped_before {
            assert_eq!(world.twitch.activity("late")?.refresh_requests, 0);
        } else {
            assert_eq!(ran.report.total, 3);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_pair_without_a_lifetime_that_is_lost_fails_the_cycle() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.add(NewStreamer::due("unknown")).await?;
    world.twitch.fault("unknown", Fault::NoExpiresIn.on(Endpoint::Token))?;
    wait_for_locks(world).await?;
    let service = world.service(&[]).await?;
    let gate = world.twitch.pause("unknown")?;
    let cycle = last_minutes(&still);
    let (ran, done) = tokio::join!(run(&service, &cycle), away_until_the_end(&still, gate));
    done?;
    assert!(matches!(ran.report.stopped, Some(Stop::Store(_))), "{:?}", ran.report);
    let Outcome::Failed { alarm: Some(Alarm::NotStored), reason, .. } = ran.outcome("unknown") else {
        panic!("{:?}", ran.outcome("unknown"))
    };
    assert_eq!(reason.matches("could not be stored").count(), 1, "{reason}");
    Ok(())
}
