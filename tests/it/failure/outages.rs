//! Outages over a session of twelve hours, trigger by trigger on the turned clock: Twitch is down, refuses all while the tokens
//! live, refuses all while they expire.

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use tokens_domain::policy::{RETRY_DELAY, deactivation_budget};
use tokens_domain::schedule::Trigger;
use tokens_local::stage::Stage;
use tokens_local::twitch::{Endpoint, Fault};
use tokens_local::world::NewStreamer;
use tokens_tests::Sql as _;
use tokens_tests::people::RecordingPush;
use tokens_tests::session::{Session, all_users_have_a_device, at, world_at_noon};

/// More than the outages that stop a cycle, fewer than a page.
const COUNT: i32 = 50;

/// Where the `n`th of `count` lies between two times, evenly spread.
fn spread(n: i32, count: i32, first: DateTime<Utc>, last: DateTime<Utc>) -> DateTime<Utc> {
    first + (last - first) * n / count
}

/// Streamers that begin their sessions at noon, with tokens that expire when `end` says; all users have a device.
async fn session(end: impl Fn(i32) -> DateTime<Utc>) -> Result<(Session<RecordingPush>, RecordingPush)> {
    let streamer =
        |n| NewStreamer { token_left: end(n) - at(12, 0), ..NewStreamer::fresh(format!("s{n:03}")) };
    let (world, clock) = world_at_noon((0..COUNT).map(streamer).collect()).await?;
    all_users_have_a_device(&world).await?;
    let push = RecordingPush::default();
    Ok((Session::watch(Stage::new(world, clock, push.clone())).await?, push))
}

fn none_is_notified(session: &Session<RecordingPush>, push: &RecordingPush) {
    assert_eq!(session.inactive().len(), 0);
    assert_eq!(session.stage.scheduler.events(), []);
    assert_eq!(push.sent(), []);
}

/// Twitch has just come back: the first trigger refreshes all that need it but for those whose retry is not due yet, and these
/// follow when it is. Answers what the first was, and for how many it was too early.
async fn all_fresh_again(session: &mut Session<RecordingPush>) -> Result<(Trigger, usize)> {
    let back = session.stage.world.clock.now();
    let first = session.next(back + RETRY_DELAY).await?.expect("a trigger within a quarter of an hour");
    assert_eq!((first.report.failed, &first.report.stopped), (0, &None), "{:?}", first.report);
    let waiting = session.streamers.iter().filter(|seen| seen.has_to_wait).count();
    assert_eq!(session.not_fresh().len(), waiting, "{:?}", session.streamers);
    session.play(back + RETRY_DELAY + TimeDelta::seconds(1)).await?;
    assert_eq!(session.not_fresh(), [""; 0], "a quarter of an hour after the return");
    Ok((first.trigger, waiting))
}

#[tokio::test]
async fn six_hours_without_twitch_deactivate_no_streamer_and_end_within_15_min() -> Result<()> {
    let down = at(14, 59);
    let (mut session, push) = session(|n| spread(n, COUNT, at(14, 10), at(15, 50))).await?;
    let before = session.play(down).await?;
    assert!(before.iter().all(|cycle| cycle.report.failed == 0));
    assert_eq!(session.found_dead.len(), 0);

    session.stage.world.twitch.fault_for_everybody(Fault::ServerError);
    let during = session.play(down + TimeDelta::hours(6)).await?;
    none_is_notified(&session, &push);
    assert!(during.iter().all(|cycle| cycle.report.success == 0));
    // After 20 outages in a row nothing new is begun; what was under way by then ends.
    let most = during.iter().map(|cycle| cycle.report.failed).max();
    assert!(most <= Some(20 + 64), "a cycle made {most:?} attempts");
    assert_eq!(session.found_dead.len(), usize::try_from(COUNT)?, "no token lasts so long");

    session.stage.world.twitch.clear_faults_for_everybody();
    // Some were tried less than a quarter of an hour ago: no more than one cycle tries.
    let (_, too_early) = all_fresh_again(&mut session).await?;
    assert!(u64::try_from(too_early).ok() <= most, "too early for {too_early}");

    session.found_dead.clear();
    let after = session.play(at(24, 0)).await?;
    assert!(after.iter().all(|cycle| cycle.report.failed == 0));
    assert_eq!(session.found_dead.len(), 0);
    assert_eq!(session.most_attempts_in_a_quarter_hour(), 1);
    none_is_notified(&session, &push);
    Ok(())
}

#[tokio::test]
async fn three_hours_of_refusals_while_tokens_live_notify_no_streamer() -> Result<()> {
    let (mut session, push) = session(|n| spread(n, COUNT, at(15, 12), at(15, 50))).await?;
    // The expiry of every other is unknown: these are due at once, the others in the token's last hour.
    session
        .stage
        .world
        .sql("UPDATE streamers SET token_expires_at = NULL WHERE right(twitch_login, 1)::integer % 2 = 0")
        .await?;

    session.stage.world.twitch.fault_for_everybody(Fault::InvalidRefreshToken.on(Endpoint::Token));
    let during = session.play(at(15, 0)).await?;
    assert!(during.iter().all(|cycle| (cycle.report.success, &cycle.report.stopped) == (0, &None)));
    none_is_notified(&session, &push);
    assert_eq!(session.not_fresh().len(), usize::try_from(COUNT)?);

    session.stage.world.twitch.clear_faults_for_everybody();
    let (trigger, too_early) = all_fresh_again(&mut session).await?;
    assert_eq!((trigger, too_early), (Trigger::Retry, 0));
    assert_eq!(session.found_dead.len(), 0, "no poll met a dead token");
    assert_eq!(session.most_attempts_in_a_quarter_hour(), 1);
    // From 12:07 on, every quarter of an hour until 14:52, and at 15:07.
    assert_eq!(session.attempts["s000"].len(), 13);
    none_is_notified(&session, &push);
    Ok(())
}

/// The tokens expire one by one: most of them in the first two hours, faster than the budget of notices allows, the last
/// after the end.
#[tokio::test]
async fn six_hours_of_refusals_while_tokens_expire_deactivate_no_streamer() -> Result<()> {
    let fast = COUNT * 3 / 5;
    let end = |n| match n - fast {
        ..0 => spread(n, fast, at(15, 10), at(17, 0)),
        slow => spread(slow + 1, COUNT - fast, at(17, 0), at(21, 40)),
    };
    let (mut session, push) = session(end).await?;
    session.play(at(14, 0)).await?;
    assert_eq!(session.not_fresh().len(), 0);

    session.stage.world.twitch.fault_for_everybody(Fault::InvalidRefreshToken.on(Endpoint::Token));
    let during = session.play(at(20, 0)).await?;
    assert!(during.iter().all(|cycle| cycle.report.deactivated == 0 && cycle.report.alarms.total() == 0));
    assert_eq!(session.inactive().len(), 0);
    // Notices COUNT as deactivations.
    let budget = usize::try_from(deactivation_budget(u64::try_from(COUNT)?))?;
    let most = session.most_deactivations_in_an_hour().await?;
    assert!((1..=budget).contains(&most), "{most} notices in an hour");

    session.stage.world.twitch.clear_faults_for_everybody();
    all_fresh_again(&mut session).await?;
    assert_eq!((session.inactive().len(), session.stage.scheduler.events().len()), (0, 0));
    assert_eq!(session.most_attempts_in_a_quarter_hour(), 1);
    for seen in &session.streamers {
        let notified = [push.count(&seen.login), push.count(&format!("Master of {}", seen.login))];
        assert!(notified == [0, 0] || notified == [1, 1], "{}: {notified:?}", seen.login);
        assert!(notified == [0, 0] || session.found_dead.contains(&seen.login), "not while its token lived");
    }
    Ok(())
}
