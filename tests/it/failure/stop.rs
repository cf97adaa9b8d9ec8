//! Work that is asked to stop ends in order: it begins nothing, finishes what is in flight, writes it, and gives leases back.

use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tokens_domain::report::Stop;
use tokens_domain::{CancellationToken, StreamerId};
use tokens_local::twitch::RefreshTokens;
use tokens_local::world::{NewStreamer, World};
use tokens_tests::cycles::planned;
use tokens_tests::doomed::{A_LOCK_IS_WAITED_FOR, function, has_newest_pair, lock, settled, until, world};
use tokens_tests::{Sql as _, Still, binary, changed, run, wait_for_locks, with_change_at};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::oneshot;

const STREAMERS: usize = 200;
const IN_FLIGHT: [(&str, &str); 1] = [("TWITCH_MAX_IN_FLIGHT", "32")];

async fn many(world: &World) -> Result<Vec<(StreamerId, String)>> {
    let logins: Vec<_> = (0..STREAMERS).map(|n| format!("s{n}")).collect();
    let ids = world.add_all(logins.iter().map(NewStreamer::due).collect()).await?;
    Ok(ids.into_iter().zip(logins).collect())
}

/// Waits until Twitch has rotated so many pairs.
async fn refreshed(world: &World, count: u64) {
    world.twitch.wait_until(|totals| totals.refreshes >= count).await;
}

/// No lease stands, and every pair that Twitch issued is stored.
async fn nothing_is_left(world: &World, streamers: &[(StreamerId, String)]) -> Result<()> {
    let leases =
        world.count("SELECT count(*) FROM token_refresh.streamers WHERE leased_until IS NOT NULL").await?;
    assert_eq!(leases, 0, "leases left");
    let mut lost = Vec::new();
    for (id, login) in streamers {
        if !has_newest_pair(world, *id, login).await? {
            lost.push(login);
        }
    }
    assert!(lost.is_empty(), "answers of Twitch's lost: {lost:?}");
    let refreshes = world.twitch.totals().refreshes;
    assert!(refreshes > 0 && refreshes < STREAMERS as u64, "{refreshes} refreshes: not in the middle");
    Ok(())
}

async fn signal(pid: u32, name: &str) -> Result<()> {
    let sent = Command::new("sh").arg("-c").arg(format!("kill -{name} {pid}")).status().await?;
    anyhow::ensure!(sent.success(), "no process {pid}");
    Ok(())
}

async fn command(world: &World, changes: &[(&str, &str)], arguments: &[&str]) -> Result<Child> {
    let child = Command::new(binary("tokens").await?)
        .args(arguments)
        .env_clear()
        .envs(changed(world.environment(), changes))
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    Ok(child)
}

/// Interrupts the command, and returns once it has heard of it: with its standard error from then on.
async fn interrupt(command: &mut Child) -> Result<ChildStderr> {
    let mut stderr = command.stderr.take().context("its standard error")?;
    signal(command.id().context("it has ended")?, "INT").await?;
    let mut heard = Vec::new();
    while !String::from_utf8_lossy(&heard).contains("Interrupted") {
        anyhow::ensure!(stderr.read_buf(&mut heard).await? > 0, "it ended");
    }
    Ok(stderr)
}

#[tokio::test]
async fn a_command_that_is_interrupted_leaves_no_lease_and_loses_no_answer() -> Result<()> {
    for name in ["TERM", "INT"] {
        let world = world(RefreshTokens::OneTime, Duration::from_millis(150)).await?;
        let streamers = many(&world).await?;
        let command = command(&world, &IN_FLIGHT, &["refresh"]).await?;
        let pid = command.id().context("it has ended")?;
        refreshed(&world, 40).await;
        signal(pid, name).await?;
        let ended = command.wait_with_output().await?;
        let (stdout, stderr) = (String::from_utf8(ended.stdout)?, String::from_utf8(ended.stderr)?);
        assert_eq!(ended.status.code(), Some(1), "SIG{name}: {stdout}{stderr}");
        let success = format!("Success: {}\n", world.twitch.totals().refreshes);
        assert!(stdout.contains(&success) && stdout.contains("Failed: 0"), "{stdout}");
        assert!(stderr.contains("it was interrupted"), "{stderr}");
        nothing_is_left(&world, &streamers).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_second_signal_ends_a_command_at_once() -> Result<()> {
    let world = world(RefreshTokens::Kept, Duration::ZERO).await?;
    world.add(NewStreamer::due("aria")).await?;
    let gate = world.twitch.pause("aria")?;
    let mut command = command(&world, &[], &["refresh"]).await?;
    let pid = command.id().context("it has ended")?;
    gate.arrived().await;
    interrupt(&mut command).await?;
    signal(pid, "INT").await?;
    assert_eq!(command.wait().await?.code(), Some(130));
    Ok(())
}

/// The page that is being written is finished, and the rest is left.
#[tokio::test]
async fn a_rekeying_that_is_interrupted_ends_after_its_page() -> Result<()> {
    const PAGE: i64 = 200;
    let world = world(RefreshTokens::Kept, Duration::ZERO).await?;
    world.add_all((0..250).map(|n| NewStreamer::fresh(format!("s{n}"))).collect()).await?;
    wait_for_locks(&world).await?;
    let mut held = world.pool.begin().await?;
    // A row of the first page; the lock lets leases pass, and no write.
    lock(&mut held, "SELECT FROM streamers ORDER BY id LIMIT 1 FOR NO KEY UPDATE").await?;
    let key = format!("2026:{}", BASE64_STANDARD.encode([26; 32]));
    let keys = [("TOKEN_KEYS", key.as_str()), ("TOKEN_CIPHER", "aes-gcm")];
    let mut command = command(&world, &keys, &["rekey", "--json"]).await?;
    until(&world, A_LOCK_IS_WAITED_FOR).await?;
    let mut stderr = interrupt(&mut command).await?;
    held.rollback().await?;
    let mut left = String::new();
    stderr.read_to_string(&mut left).await?;
    let ended = command.wait_with_output().await?;
    let said: Value = serde_json::from_slice(&ended.stdout)?;
    assert_eq!((ended.status.code(), &said["rekeyed"]), (Some(1), &json!(PAGE)), "{said} {left}");
    assert!(left.contains("run it again for the rest"), "{left}");
    let (ours, leases): (i64, i64) = sqlx::query_as(
        "SELECT count(*) FILTER (WHERE refresh_token_encrypted LIKE 'v1.2026.%'), count(leased_until)
         FROM streamers LEFT JOIN token_refresh.streamers ON id = streamer_id",
    )
    .fetch_one(&world.pool)
    .await?;
    assert_eq!((ours, leases), (PAGE, 0));
    Ok(())
}

#[tokio::test]
async fn a_function_that_is_asked_to_end_answers_its_event_first() -> Result<()> {
    let world = world(RefreshTokens::OneTime, Duration::from_millis(150)).await?;
    let streamers = many(&world).await?;
    let function = function(&world, "scheduled-refresh", &IN_FLIGHT).await?;
    let end = async {
        refreshed(&world, 40).await;
        signal(function.pid(), "TERM").await
    };
    let event = function.invoke(json!({"trigger": "planned"}), Duration::from_mins(5));
    let (report, ended) = tokio::join!(event, end);
    ended?;
    let report = report?;
    assert_eq!(report["success"], world.twitch.totals().refreshes, "{report}");
    assert!(report["stopped"].as_str().is_some_and(|stopped| stopped.contains("interrupted")), "{report}");
    // Its connections end with it.
    settled(&world).await?;
    nothing_is_left(&world, &streamers).await
}

#[tokio::test]
async fn a_command_ends_within_its_timeout() -> Result<()> {
    // So slow that 200 take longer.
    let world = world(RefreshTokens::OneTime, Duration::from_secs(2)).await?;
    let streamers = many(&world).await?;
    let command = command(&world, &IN_FLIGHT, &["refresh", "--timeout", "10s"]).await?;
    let ended = command.wait_with_output().await?;
    let (stdout, stderr) = (String::from_utf8(ended.stdout)?, String::from_utf8(ended.stderr)?);
    assert_eq!(ended.status.code(), Some(1), "{stdout}{stderr}");
    assert!(stderr.contains("the deadline is near"), "{stdout}{stderr}");
    nothing_is_left(&world, &streamers).await
}

/// Those that wait for their turn at Twitch are not in flight.
#[tokio::test]
async fn calls_that_wait_for_their_turn_are_given_up() -> Result<()> {
    let still = Still::one_time().await?;
    let world = &still.world;
    let streamers = many(world).await?;
    let stop = CancellationToken::new();
    // The second call would be a second after the first, the third two.
    let service = world.service(&[("TWITCH_MAX_PER_SECOND", "1")]).await?.stopped_by(stop.clone());
    let cycle = planned();
    let asked = async {
        refreshed(world, 1).await;
        stop.cancel();
    };
    let (ran, ()) = tokio::join!(run(&service, &cycle), asked);
    assert_eq!(ran.report.stopped, Some(Stop::Interrupted), "{:?}", ran.report);
    assert!(ran.report.success <= 2 && ran.report.failed == 0, "{:?}", ran.report);
    nothing_is_left(world, &streamers).await
}

/// The refusal would otherwise be taken for an outage.
#[tokio::test]
async fn a_refusal_after_the_signal_is_still_validated() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.add(NewStreamer::due("aria")).await?;
    let gate = world.twitch.pause("aria")?;
    world.twitch.disconnect("aria")?;
    let stop = CancellationToken::new();
    let service = world.service(&[]).await?.stopped_by(stop.clone());
    let asked = async {
        stop.cancel();
        Ok(())
    };
    let cycle = planned();
    let ran = with_change_at(gate, run(&service, &cycle), asked).await?;
    assert_eq!((ran.report.refused, ran.report.outages), (1, 0), "{:?}", ran.report);
    Ok(())
}

#[tokio::test]
async fn a_new_pair_whose_row_is_locked_is_still_written_after_the_signal() -> Result<()> {
    let still = Still::one_time().await?;
    let world = &still.world;
    let aria = world.add(NewStreamer::due("aria")).await?;
    let stop = CancellationToken::new();
    let service = world.service(&[]).await?.stopped_by(stop.clone());
    let gate = world.twitch.pause_answers("aria")?;
    let mut theirs = world.pool.begin().await?;
    let (unlock, unlocked) = oneshot::channel();
    let locked = async {
        sqlx::query("SELECT FROM streamers FOR UPDATE").execute(&mut *theirs).await?;
        tokio::spawn(async move {
            let _ = unlocked.await;
            theirs.rollback().await
        });
        stop.cancel();
        Ok(())
    };
    let cycle = planned();
    let mut running = pin!(with_change_at(gate, run(&service, &cycle), locked));
    // The first write has given up, and it is tried again.
    let tried_again = async {
        until(world, A_LOCK_IS_WAITED_FOR).await?;
        until(world, &format!("SELECT NOT ({A_LOCK_IS_WAITED_FOR})")).await?;
        until(world, A_LOCK_IS_WAITED_FOR).await
    };
    tokio::select! {
        ran = &mut running => panic!("its pair is given up: {:?}", ran?.report),
        waited = tried_again => waited?,
    }
    assert!(unlock.send(()).is_ok());
    assert_eq!(running.await?.report.success, 1);
    assert!(has_newest_pair(world, aria, "aria").await?);
    Ok(())
}
