//! What follows from the answers of push services.

use anyhow::Result;
use chrono::TimeDelta;
use tokens_domain::notification::{PushAnswer, TIME_TO_LIVE};
use tokens_domain::notify::NotifyReport;
use tokens_tests::Still;
use tokens_tests::people::{
    RecordingPush, deliver, device, notify, only_row, outbox, refused_streamer, two_runs,
};

use super::one_device;

fn busy(retry_after: Option<TimeDelta>) -> PushAnswer {
    PushAnswer::Busy { retry_after, reason: "the push service answered 503".to_owned() }
}

const OTHER_KEY: &str = "the push service answered 403: the device has subscribed under another VAPID key";

#[tokio::test]
async fn each_answer_has_its_consequence() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let (_, owner) = refused_streamer(world, "aria").await?;
    let push = RecordingPush::default();
    let hour = TimeDelta::hours(1);
    for (name, answer) in [
        ("accepted", PushAnswer::Accepted),
        ("busy", busy(None)),
        ("busy for an hour", busy(Some(hour))),
        ("gone", PushAnswer::Gone),
        ("rejected", PushAnswer::Rejected("too large".to_owned())),
        ("unauthorized", PushAnswer::Unauthorized("the push service answered 403".to_owned())),
    ] {
        device(world, owner, name).await?;
        push.answer(name, answer);
    }
    two_runs(&still).await?;

    let report = deliver(&notify(world, &push).await?).await?;

    let expected = NotifyReport {
        delivered: 1,
        gone: 1,
        postponed: 3,
        given_up: 1,
        other_key: 1,
        ..NotifyReport::default()
    };
    assert_eq!(report, expected);
    let mut rows = Vec::new();
    for row in outbox(world).await? {
        // When a settled one would have been tried next says nothing.
        let wait = (row.state == "pending").then(|| (row.next_attempt_at - still.now()).num_minutes());
        rows.push((row.device.unwrap_or_default(), row.state, wait, row.last_error.unwrap_or_default()));
    }
    let unavailable = "the push service answered 503";
    let expected = [
        ("accepted", "delivered", None, ""),
        ("busy", "pending", Some(1), unavailable),
        ("busy for an hour", "pending", Some(60), unavailable),
        ("rejected", "given_up", None, "too large"),
        ("unauthorized", "pending", Some(1), OTHER_KEY),
        // The subscription that is gone is deleted, all others are kept.
        ("", "gone", None, "the push service does not know the subscription any more"),
    ];
    let expected = expected
        .map(|(device, state, wait, error)| (device.to_owned(), state.to_owned(), wait, error.to_owned()));
    assert_eq!(rows, expected);

    still.turn(59);
    push.answer("unauthorized", PushAnswer::Accepted);
    deliver(&notify(world, &push).await?).await?;
    assert_eq!((push.count("busy for an hour"), push.count("busy"), push.count("unauthorized")), (1, 2, 2));
    still.turn(1);
    deliver(&notify(world, &push).await?).await?;
    assert_eq!(push.count("busy for an hour"), 2);
    assert_eq!((push.count("rejected"), push.count("gone"), push.count("accepted")), (1, 1, 1));
    Ok(())
}

#[tokio::test]
async fn the_wait_doubles_up_to_an_hour_and_ends_after_a_day() -> Result<()> {
    let still = one_device().await?;
    let world = &still.world;
    let deactivated_at = still.now();
    let push = RecordingPush::default();
    push.answer("phone", busy(None));
    let service = notify(world, &push).await?;
    let mut waits = Vec::new();
    let last = loop {
        deliver(&service).await?;
        let row = only_row(world).await?;
        if row.state != "pending" {
            break row;
        }
        let wait = row.next_attempt_at - still.now();
        waits.push(wait.num_minutes());
        // A minute too early, nothing is due.
        still.clock.set(row.next_attempt_at - TimeDelta::microseconds(1));
        assert_eq!(deliver(&service).await?, NotifyReport::default());
        still.clock.set(row.next_attempt_at);
    };
    assert_eq!(waits[..8], [1, 2, 4, 8, 16, 32, 60, 60]);
    assert!(waits[6..].iter().all(|wait| *wait == 60));
    assert_eq!(last.state, "given_up");
    let tried_for = still.now() - deactivated_at;
    assert!(tried_for < TIME_TO_LIVE && tried_for > TIME_TO_LIVE - TimeDelta::hours(1), "{tried_for}");
    assert_eq!(push.count("phone"), waits.len() + 1);
    Ok(())
}

/// What it says when a device's service does not take our VAPID while others do is remembered: in a run of its own, too, the
/// device has another key.
#[tokio::test]
async fn a_device_of_another_key_is_reported_as_that_in_every_run() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let (_, owner) = refused_streamer(world, "aria").await?;
    let push = RecordingPush::default();
    for name in ["phone", "tablet", "laptop"] {
        device(world, owner, name).await?;
    }
    for name in ["tablet", "laptop"] {
        push.answer(name, PushAnswer::Unauthorized("the push service answered 403".to_owned()));
    }
    two_runs(&still).await?;
    let service = notify(world, &push).await?;
    let other = NotifyReport { postponed: 2, other_key: 2, ..NotifyReport::default() };
    assert_eq!(deliver(&service).await?, NotifyReport { delivered: 1, ..other.clone() });
    for name in ["tablet", "laptop"] {
        let row = outbox(world).await?.into_iter().find(|row| row.device.as_deref() == Some(name)).unwrap();
        assert_eq!((row.state.as_str(), row.last_error.as_deref()), ("pending", Some(OTHER_KEY)));
    }
    still.turn(1);
    assert_eq!(deliver(&service).await?, other, "no other device waits any more");

    // It has subscribed under ours meanwhile; then our own key breaks.
    push.answer("tablet", PushAnswer::Accepted);
    push.answer("laptop", PushAnswer::Accepted);
    still.turn(2);
    assert_eq!(deliver(&service).await?.delivered, 2);
    let flagged = sqlx::query_scalar("SELECT count(*) FROM token_refresh.outbox WHERE other_key");
    let flagged: i64 = flagged.fetch_one(&world.pool).await?;
    assert_eq!(flagged, 0);
    Ok(())
}

#[tokio::test]
async fn our_key_is_at_fault_where_no_device_is_accepted() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let (_, owner) = refused_streamer(world, "aria").await?;
    let push = RecordingPush::default();
    for name in ["phone", "tablet", "gone"] {
        device(world, owner, name).await?;
        push.answer(name, PushAnswer::Unauthorized("the push service answered 401".to_owned()));
    }
    push.answer("gone", PushAnswer::Gone);
    two_runs(&still).await?;
    let service = notify(world, &push).await?;
    let report = deliver(&service).await?;
    assert_eq!(report, NotifyReport { gone: 1, postponed: 2, unauthorized: 2, ..NotifyReport::default() });
    still.turn(1);
    assert_eq!(deliver(&service).await?.unauthorized, 2);
    Ok(())
}

#[tokio::test]
async fn unreachable_devices_are_deleted_and_missing_names_after_a_day() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let (_, owner) = refused_streamer(world, "aria").await?;
    let push = RecordingPush::default();
    for (name, answer) in [
        ("never", PushAnswer::Unreachable("a reserved name".to_owned())),
        ("missing", PushAnswer::NoSuchName("there is no push.example.com".to_owned())),
        ("back", PushAnswer::NoSuchName("there is no push.example.com".to_owned())),
    ] {
        device(world, owner, name).await?;
        push.answer(name, answer);
    }
    let devices = async || -> Result<Vec<String>> {
        let names = sqlx::query_scalar("SELECT device_name FROM push_subscriptions ORDER BY device_name");
        Ok(names.fetch_all(&world.pool).await?)
    };
    two_runs(&still).await?;
    let service = notify(world, &push).await?;
    let report = deliver(&service).await?;
    assert_eq!(report, NotifyReport { gone: 1, postponed: 2, ..NotifyReport::default() });
    assert_eq!(devices().await?, ["back", "missing"]);

    // It exists for a moment in between.
    push.answer("back", busy(None));
    still.turn(60);
    deliver(&service).await?;
    push.answer("back", PushAnswer::NoSuchName("there is no push.example.com".to_owned()));
    for _ in 0..22 {
        assert_eq!(devices().await?, ["back", "missing"]);
        still.turn(60);
        deliver(&service).await?;
    }
    assert_eq!(devices().await?, ["back"]);
    still.turn(60);
    deliver(&service).await?;
    assert_eq!(devices().await?, ["back"], "given up, and kept");
    Ok(())
}

#[tokio::test]
async fn a_host_that_never_answers_is_called_at_most_three_times_a_run() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let (_, owner) = refused_streamer(world, "aria").await?;
    let push = RecordingPush::default();
    let names: Vec<_> = (0..10).map(|n| format!("device {n}")).collect();
    for name in &names {
        device(world, owner, name).await?;
        push.answer(name, PushAnswer::NoAnswer("push.example.com did not answer within 8 s".to_owned()));
    }
    let elsewhere = device(world, owner, "elsewhere").await?;
    sqlx::query("UPDATE push_subscriptions SET endpoint = 'https://other.example.com/x' WHERE id = $1")
        .bind(elsewhere)
        .execute(&world.pool)
        .await?;
    two_runs(&still).await?;
    let service = notify(world, &push).await?;
    let called = || names.iter().map(|name| push.count(name)).sum::<usize>();
    let report = deliver(&service).await?;
    assert_eq!(report, NotifyReport { delivered: 1, postponed: 10, ..NotifyReport::default() });
    assert_eq!(called(), 3);
    still.turn(1);
    deliver(&service).await?;
    assert_eq!(called(), 6, "each run tries again");

    // A host that answers, however badly, is not a silent one.
    for name in &names {
        push.answer(name, busy(None));
    }
    still.turn(2);
    deliver(&service).await?;
    assert_eq!(called(), 16);
    Ok(())
}
