//! A row that can't be read, claimed, written or deactivated fails alone.

use anyhow::{Context as _, Result};
use chrono::TimeDelta;
use serde_json::{Value, json};
use tokens_domain::Clock as _;
use tokens_domain::grant::GrantError;
use tokens_domain::health::Finding;
use tokens_domain::refresh::{Cycle, Limits};
use tokens_domain::report::{Alarm, Outcome, Skip};
use tokens_local::world::{NewStreamer, World};
use tokens_tests::cycles::{forced, planned};
use tokens_tests::doomed::{has_newest_pair, until};
use tokens_tests::people::{device, reconnect, refused_before, refused_streamer};
use tokens_tests::requests::{authorization, host, membership, request};
use tokens_tests::{Ran, Sql as _, Still, on_write, run, tokens};

const OTHERS: usize = 40;

async fn still() -> Result<Still> {
    Still::one_time().await
}

async fn now_it_can(world: &World) -> Result<()> {
    world.sql("DROP FUNCTION public.theirs() CASCADE").await?;
    Ok(())
}

/// A cycle in which Aria's pair finds no place: once Twitch has given it, and the others are done, the time is over.
async fn in_vain(still: &Still) -> Result<Ran> {
    let world = &still.world;
    let service = world.service(&[]).await?;
    let limits = Limits::of_function(Some(still.clock.monotonic() + TimeDelta::minutes(5)));
    let cycle = Cycle { limits, ..planned() };
    let given = world.twitch.activity("aria")?.refreshes + 1;
    let over = async {
        while world.twitch.activity("aria")?.refreshes < given {
            tokio::task::yield_now().await;
        }
        until(world, "SELECT count(last_token_refresh_at) = 40 FROM streamers").await?;
        still.turn(5);
        anyhow::Ok(())
    };
    let (ran, over) = tokio::join!(run(&service, &cycle), over);
    over?;
    Ok(ran)
}

/// Aria, whose row has a fault, and others.
async fn many(world: &World) -> Result<tokens_domain::StreamerId> {
    let aria = world.add(NewStreamer::due("aria")).await?;
    world.add_all((0..OTHERS).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    Ok(aria)
}

fn fails_alone(ran: &Ran, alarm: Alarm) {
    assert_eq!((ran.report.success, ran.report.failed), (OTHERS as u64, 1), "{:?}", ran.report);
    assert_eq!(ran.report.stopped, None);
    let outcome = ran.outcome("aria");
    assert!(matches!(outcome, Outcome::Failed { alarm: Some(found), .. } if *found == alarm), "{outcome:?}");
}

#[tokio::test]
async fn a_row_that_cannot_be_written_fails_alone() -> Result<()> {
    for (what, happens) in [
        ("a trigger that raises", "RAISE EXCEPTION 'not this one'"),
        ("a division by zero", "PERFORM 1 / 0"),
        ("a right that a trigger lacks", "RAISE insufficient_privilege USING MESSAGE = 'permission denied'"),
    ] {
        let still = still().await?;
        let world = &still.world;
        many(world).await?;
        on_write(world, "public.streamers", "NEW.twitch_login = 'aria'", happens).await?;
        fails_alone(&in_vain(&still).await?, Alarm::NotStored);
        let leases = world.count("SELECT count(leased_until) FROM token_refresh.streamers").await?;
        assert_eq!(leases, 0, "{what}: given back");
    }
    Ok(())
}

#[tokio::test]
async fn it_is_not_refreshed_again_before_its_backoff() -> Result<()> {
    let still = still().await?;
    let world = &still.world;
    let aria = many(world).await?;
    on_write(world, "public.streamers", "NEW.twitch_login = 'aria'", "RAISE EXCEPTION 'not this one'")
        .await?;
    let service = world.service(&[]).await?;
    fails_alone(&in_vain(&still).await?, Alarm::NotStored);
    let asked = || world.twitch.activity("aria").map(|activity| activity.refresh_requests);
    assert_eq!(asked()?, 1);
    for minutes in [15, 30, 60] {
        still.turn(minutes - 1);
        let ran = run(&service, &planned()).await;
        assert!(matches!(ran.outcome("aria"), Outcome::Skipped(Skip::SetAside { .. })), "{:?}", ran.report);
        // Twitch has rotated the pair, which is what each try costs; here it is put right.
        reconnect(world, aria, "aria").await?;
        still.turn(1);
        let before = asked()?;
        let ran = in_vain(&still).await?;
        assert!(
            matches!(ran.outcome("aria"), Outcome::Failed { .. }),
            "{minutes}: {:?}",
            ran.outcome("aria")
        );
        assert_eq!(asked()?, before + 1, "after {minutes} minutes");
    }
    now_it_can(world).await?;
    reconnect(world, aria, "aria").await?;
    still.turn(1);
    let ran = run(&service, &planned()).await;
    assert_eq!((ran.report.success, ran.report.waiting), (0, 1), "whether it is fixed would cost a pair");
    let ran = run(&service, &forced()).await;
    assert!(matches!(ran.outcome("aria"), Outcome::Refreshed { .. }), "{:?}", ran.outcome("aria"));
    let clear: bool = sqlx::query_scalar(
        "SELECT set_aside_until IS NULL AND set_aside_times = 0 FROM token_refresh.streamers WHERE streamer_id = $1",
    )
    .bind(aria.0)
    .fetch_one(&world.pool)
    .await?;
    assert!(clear);
    Ok(())
}

#[tokio::test]
async fn a_pair_is_tried_until_its_row_can_be_written() -> Result<()> {
    let still = still().await?;
    let world = &still.world;
    let aria = many(world).await?;
    on_write(world, "public.streamers", "NEW.twitch_login = 'aria'", "RAISE EXCEPTION 'not yet'").await?;
    let service = world.service(&[]).await?;
    let planned = planned();
    let fixed = async {
        until(world, "SELECT count(last_token_refresh_at) = 40 FROM streamers").await?;
        now_it_can(world).await
    };
    let (ran, fixed) = tokio::join!(run(&service, &planned), fixed);
    fixed?;
    assert_eq!((ran.report.success, ran.report.failed), (OTHERS as u64 + 1, 0), "{:?}", ran.report);
    assert!(has_newest_pair(world, aria, "aria").await?);
    Ok(())
}

#[tokio::test]
async fn a_row_that_stays_locked_fails_alone() -> Result<()> {
    let still = still().await?;
    let world = &still.world;
    many(world).await?;
    let gate = world.twitch.pause("aria")?;
    let service = world.service(&[]).await?;
    let limits = Limits::of_function(Some(still.clock.monotonic() + TimeDelta::minutes(5)));
    let limited = Cycle { limits, ..planned() };
    let mut held = world.pool.begin().await?;
    let script = async {
        gate.arrived().await;
        sqlx::query("SELECT FROM streamers WHERE twitch_login = 'aria' FOR UPDATE")
            .execute(&mut *held)
            .await?;
        gate.release();
        until(world, "SELECT count(last_token_refresh_at) = 40 FROM streamers").await?;
        still.turn(5);
        anyhow::Ok(())
    };
    let (ran, done) = tokio::join!(run(&service, &limited), script);
    done?;
    fails_alone(&ran, Alarm::NotStored);
    Ok(())
}

#[tokio::test]
async fn a_row_that_cannot_be_read_fails_alone() -> Result<()> {
    let still = still().await?;
    let world = &still.world;
    many(world).await?;
    world
        .sql(
            "ALTER TABLE streamers ALTER twitch_display_name DROP NOT NULL;
         UPDATE streamers SET twitch_display_name = NULL WHERE twitch_login = 'aria'",
        )
        .await?;
    let ran = run(&world.service(&[]).await?, &planned()).await;
    assert_eq!((ran.report.success, ran.report.failed), (OTHERS as u64, 1), "{:?}", ran.report);
    assert_eq!((ran.report.stopped.clone(), ran.report.alarms.unreadable), (None, 1), "{:?}", ran.report);
    assert_eq!(world.twitch.activity("aria")?.refresh_requests, 0);
    Ok(())
}

#[tokio::test]
async fn a_row_that_becomes_unreadable_under_its_lease_is_set_aside() -> Result<()> {
    let still = still().await?;
    let world = &still.world;
    let aria = many(world).await?;
    world.sql("ALTER TABLE streamers ALTER twitch_display_name DROP NOT NULL").await?;
    let service = world.service(&[]).await?;
    // As it was found, before its name was gone.
    let database = tokens_store::Database::open(world.config(&[])?.database).await?;
    let page = database.authorized(None, still.now()).await?;
    let found = page.into_iter().map(|one| (one.streamer, one.token)).collect();
    sqlx::query("UPDATE streamers SET twitch_display_name = NULL WHERE id = $1")
        .bind(aria.0)
        .execute(&world.pool)
        .await?;
    let cycle = Cycle { scope: tokens_domain::refresh::Scope::Listed(found), ..planned() };
    fails_alone(&run(&service, &cycle).await, Alarm::Unreadable);
    still.turn(1);
    let again = run(&service, &cycle).await;
    assert!(matches!(again.outcome("aria"), Outcome::Skipped(Skip::SetAside { .. })), "{:?}", again.report);
    Ok(())
}

#[tokio::test]
async fn a_participant_that_cannot_be_read_fails_alone() -> Result<()> {
    for unreadable in [
        "ALTER TABLE streamers ALTER twitch_display_name DROP NOT NULL;
         UPDATE streamers SET twitch_display_name = NULL WHERE twitch_login = 'aria'",
        "ALTER TABLE streamers ALTER is_active DROP NOT NULL;
         UPDATE streamers SET is_active = NULL WHERE twitch_login = 'aria'",
    ] {
        let still = still().await?;
        let world = &still.world;
        let of_valombre =
            |login: &str| NewStreamer { campaign: "Valombre".to_owned(), ..NewStreamer::fresh(login) };
        let aria = world.add(of_valombre("aria")).await?;
        world.add_all(["bastien", "celeste"].map(of_valombre).into()).await?;
        let campaign = membership(world, aria).await?.campaign;
        sqlx::raw_sql(unreadable).execute(&world.pool).await?;

        let checkup = host(world).check(campaign, &request()).await?;

        assert_eq!(checkup.streamers.len(), 3, "{checkup:?}");
        for one in &checkup.streamers {
            let expected = if one.participant.streamer.id == aria { Finding::Unknown } else { Finding::Ok };
            assert_eq!(one.finding, expected, "{unreadable}: {one:?}");
        }
        assert!(!checkup.is_healthy());
    }
    Ok(())
}

#[tokio::test]
async fn a_streamer_that_cannot_be_reactivated_fails_alone() -> Result<()> {
    let still = still().await?;
    let world = &still.world;
    let inactive = ["aria", "bastien", "celeste"]
        .map(|login| NewStreamer { is_active: false, ..NewStreamer::due(login) });
    let streamers = world.add_all(inactive.into()).await?;
    on_write(world, "public.streamers", "NEW.twitch_login = 'aria'", "RAISE EXCEPTION 'not this one'")
        .await?;

    let printed = tokens(&world.environment(), &["reactivate", "--all"]).await?;

    assert_eq!(printed.code, 1, "{printed:?}");
    assert!(printed.stdout.contains("Active again: 2 streamer(s)"), "{printed:?}");
    let says =
        format!("Aria (aria), {}: the database failed at reactivating streamers: not this one", streamers[0]);
    assert!(printed.stderr.contains(&says), "{printed:?}");
    let printed = tokens(&world.environment(), &["reactivate", "--all", "--json"]).await?;
    assert_eq!(printed.code, 1, "{printed:?}");
    let document: Value = serde_json::from_str(&printed.stdout)?;
    assert_eq!(document["streamers"], json!([]));
    assert_eq!(document["not_written"][0]["login"], "aria");
    for (streamer, active) in streamers.into_iter().zip([false, true, true]) {
        assert_eq!(world.row(streamer).await?.is_active, active);
    }
    Ok(())
}

#[tokio::test]
async fn a_deactivation_that_cannot_be_written_fails_alone() -> Result<()> {
    let still = still().await?;
    let world = &still.world;
    let mut streamers = Vec::new();
    for login in ["aria", "bastien", "corvin"] {
        let (streamer, user) = refused_streamer(world, login).await?;
        device(world, user, login).await?;
        streamers.push(streamer);
    }
    for streamer in &streamers {
        refused_before(world, *streamer).await?;
    }
    // Nothing to ask Twitch about, which confirms a refusal.
    world.sql("UPDATE streamers SET access_token_encrypted = 'invalid'").await?;
    on_write(world, "token_refresh.outbox", "NEW.streamer_name = 'Aria'", "RAISE EXCEPTION 'not this one'")
        .await?;
    let ran = run(&world.service(&[]).await?, &planned()).await;
    assert_eq!((ran.report.deactivated, ran.report.alarms.not_stored), (2, 1), "{:?}", ran.report);
    assert_eq!(ran.report.stopped, None);
    assert!(world.row(streamers[0]).await?.is_active);
    Ok(())
}

#[tokio::test]
async fn a_line_of_the_history_that_can_t_be_written_costs_no_pair() -> Result<()> {
    let still = still().await?;
    let world = &still.world;
    let aria = many(world).await?;
    let hers = format!("NEW.streamer_id = '{}'", aria.0);
    on_write(world, "token_refresh.refreshes", &hers, "RAISE EXCEPTION 'not this one'").await?;
    let ran = run(&world.service(&[]).await?, &planned()).await;
    assert_eq!((ran.report.success, ran.report.failed), (OTHERS as u64 + 1, 0), "{:?}", ran.report);
    assert!(has_newest_pair(world, aria, "aria").await?);
    Ok(())
}

#[tokio::test]
async fn a_membership_that_can_t_be_written_costs_the_authorization_and_not_the_pair() -> Result<()> {
    let still = still().await?;
    let world = &still.world;
    let aria = world.add(NewStreamer { authorized_for: None, ..NewStreamer::due("aria") }).await?;
    let key = membership(world, aria).await?;
    on_write(world, "public.campaign_memberships", "true", "RAISE EXCEPTION 'not this one'").await?;
    let refused = host(world).grant(key, &request()).await.err().context("it was granted")?;
    assert!(matches!(refused, GrantError::Ours(_)), "{refused:?}");
    assert!(has_newest_pair(world, aria, "aria").await?);
    assert_eq!(authorization(world, key).await?.1, None);
    Ok(())
}

/// A trigger that refuses every row is not the fault of one streamer, and each try costs a pair.
#[tokio::test]
async fn rows_that_all_can_t_be_written_stop_the_cycle() -> Result<()> {
    let still = still().await?;
    let world = &still.world;
    world.add_all((0..1_000).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    on_write(world, "public.streamers", "true", "RAISE EXCEPTION 'none of them'").await?;
    let service = world.service(&[("TWITCH_MAX_IN_FLIGHT", "8")]).await?;
    // No time to try any of them again.
    let limits = Limits::of_request(still.clock.monotonic() + TimeDelta::seconds(3), None);
    let ran = run(&service, &Cycle { limits, ..planned() }).await;
    assert!(
        ran.report.stopped.as_ref().is_some_and(tokens_domain::report::Stop::is_ours),
        "{:?}",
        ran.report
    );
    // What had been asked by then waits to be written.
    assert!(world.twitch.totals().token_requests < 700, "{:?}", world.twitch.totals());
    Ok(())
}
