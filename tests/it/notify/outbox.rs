//! The outbox on a real PostgreSQL, on a clock that is turned: who is notified, and what becomes of each notification.

mod answers;
mod lost;
mod recipients;

use std::collections::BTreeSet;

use anyhow::Result;
use chrono::TimeDelta;
use serde_json::Value;
use tokens_domain::Clock as _;
use tokens_domain::notification::{Next, PushAnswer};
use tokens_domain::notify::NotifyReport;
use tokens_domain::ports::Outbox as _;
use tokens_store::PgOutbox;
use tokens_tests::people::{
    RecordingPush, campaign, deliver, device, notify, only_row, outbox, prefer, refused_streamer, two_runs,
    user,
};
use tokens_tests::{Sql as _, Still};

/// A deactivated streamer with this one device, whose notification is due.
async fn one_device() -> Result<Still> {
    let still = Still::new().await?;
    let (_, owner) = refused_streamer(&still.world, "aria").await?;
    device(&still.world, owner, "phone").await?;
    two_runs(&still).await?;
    Ok(still)
}

#[tokio::test]
async fn a_notification_that_is_a_day_old_is_given_up_unsent() -> Result<()> {
    let still = one_device().await?;
    still.turn(24 * 60);
    let push = RecordingPush::default();
    let report = deliver(&notify(&still.world, &push).await?).await?;
    assert_eq!(report, NotifyReport { given_up: 1, ..NotifyReport::default() });
    assert_eq!(push.sent(), []);
    assert_eq!(only_row(&still.world).await?.last_error.as_deref(), Some("older than a day"));
    Ok(())
}

#[tokio::test]
async fn several_runs_at_once_deliver_each_notification_once() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let (streamer, _) = refused_streamer(world, "aria").await?;
    for master in 0..10 {
        let owner = user(world, &format!("master {master}")).await?;
        campaign(world, streamer, &format!("campaign {master}"), owner, "ACTIVE").await?;
        for n in 0..15 {
            device(world, owner, &format!("device {n} of {master}")).await?;
        }
    }
    two_runs(&still).await?;
    let push = RecordingPush::default();
    let services = [notify(world, &push).await?, notify(world, &push).await?, notify(world, &push).await?];

    let (a, b, c) = tokio::join!(deliver(&services[0]), deliver(&services[1]), deliver(&services[2]));

    assert_eq!(a?.delivered + b?.delivered + c?.delivered, 150);
    let devices: BTreeSet<_> = push.sent().into_iter().map(|(to, _)| to).collect();
    assert_eq!((devices.len(), push.sent().len()), (150, 150));
    Ok(())
}

/// The function is killed after the push service has taken the message, and before that is written.
#[tokio::test]
async fn a_crash_between_push_and_result_delivers_again() -> Result<()> {
    let still = one_device().await?;
    let world = &still.world;
    let push = RecordingPush::default();
    push.hang("phone");
    let service = notify(world, &push).await?;
    {
        let mut run = std::pin::pin!(deliver(&service));
        let sent = async {
            while push.count("phone") == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            done = &mut run => panic!("it hangs: {done:?}"),
            () = sent => {}
        }
    }
    push.answer("phone", PushAnswer::Accepted);

    assert_eq!(deliver(&service).await?, NotifyReport::default(), "its claim still stands");
    still.clock.advance(std::time::Duration::from_secs(30));
    assert_eq!(deliver(&service).await?.delivered, 1);
    assert_eq!(push.count("phone"), 2);
    let topics: BTreeSet<_> = push.sent().into_iter().map(|(_, message)| message.topic).collect();
    assert_eq!(topics.len(), 1, "the second replaces the first on the device");
    Ok(())
}

#[tokio::test]
async fn the_result_of_an_older_attempt_is_not_written() -> Result<()> {
    let still = one_device().await?;
    let world = &still.world;
    let outbox = PgOutbox::new(world.database().await?, world.clock.clone());
    let minute = TimeDelta::minutes(1);
    let claim = async || outbox.claim(still.now(), still.now() + minute, 10).await;
    let first = claim().await?.notifications.remove(0);
    assert_eq!((first.attempt, claim().await?.notifications.len()), (1, 0));
    still.turn(1);
    let second = claim().await?.notifications.remove(0);
    assert_eq!(second.attempt, 2);

    outbox.settle(&first, Next::Gone, None, still.now(), still.clock.monotonic()).await?;
    let row = only_row(world).await?;
    assert_eq!((row.state.as_str(), row.device.as_deref()), ("pending", Some("phone")));

    // The device renewed its subscription while it was pushed to: the old one is gone, the new one stays.
    world.sql("UPDATE push_subscriptions SET endpoint = 'https://push.example.com/renewed'").await?;
    outbox.settle(&second, Next::Gone, None, still.now(), still.clock.monotonic()).await?;
    let row = only_row(world).await?;
    assert_eq!((row.state.as_str(), row.device.as_deref()), ("gone", Some("phone")));
    Ok(())
}

#[tokio::test]
async fn a_notification_that_no_longer_applies_is_obsolete() -> Result<()> {
    for (change, reason) in [
        ("UPDATE streamers SET is_active = true", "the streamer is active again"),
        ("DELETE FROM push_subscriptions", "the device is signed out"),
        (
            "WITH other AS (INSERT INTO users (display_name) VALUES ('Another') RETURNING id)
             UPDATE push_subscriptions SET user_id = other.id FROM other",
            "the device is signed out",
        ),
        ("DELETE FROM streamers", "there is no such streamer any more"),
        (
            "INSERT INTO notification_preferences (user_id, token_refresh_failed, created_at, updated_at)
             SELECT user_id, false, now(), now() FROM push_subscriptions",
            "notifications are turned off",
        ),
    ] {
        let still = one_device().await?;
        let world = &still.world;
        sqlx::raw_sql(change).execute(&world.pool).await?;
        let push = RecordingPush::default();
        let report = deliver(&notify(world, &push).await?).await?;
        assert_eq!(report, NotifyReport { obsolete: 1, ..NotifyReport::default() }, "{change}");
        assert_eq!(push.sent(), [], "{change}");
        let row = only_row(world).await?;
        assert_eq!((row.state.as_str(), row.last_error.as_deref()), ("obsolete", Some(reason)));
    }
    Ok(())
}

#[tokio::test]
async fn obsolete_notifications_do_not_hide_the_ones_behind_them() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let (streamer, owner) = refused_streamer(world, "aria").await?;
    let master = user(world, "Corvin").await?;
    campaign(world, streamer, "Brumes", master, "ACTIVE").await?;
    device(world, master, "tablet").await?;
    device(world, owner, "phone").await?;
    two_runs(&still).await?;
    world.sql("INSERT INTO token_refresh.outbox (subscription_id, user_id, user_name, streamer_id, streamer_name, campaign_id,
             campaign_name, created_at, next_attempt_at, deactivated)
         SELECT subscription_id, user_id, user_name, streamer_id, streamer_name, campaign_id, campaign_name, created_at,
                next_attempt_at, deactivated
         FROM token_refresh.outbox, generate_series(2, 100) WHERE campaign_id IS NOT NULL").await?;
    world
        .sql(
            "UPDATE token_refresh.outbox SET next_attempt_at = next_attempt_at - interval '1 minute'
                 WHERE campaign_id IS NOT NULL",
        )
        .await?;
    prefer(world, master, Some(false), None).await?;
    let push = RecordingPush::default();
    let report = deliver(&notify(world, &push).await?).await?;
    assert_eq!(report, NotifyReport { delivered: 1, obsolete: 100, ..NotifyReport::default() });
    assert_eq!(push.count("phone"), 1);
    Ok(())
}

#[tokio::test]
async fn notifications_are_deleted_after_thirty_days() -> Result<()> {
    let still = one_device().await?;
    let database = still.world.database().await?;
    still.turn(30 * 24 * 60);
    database.forget_old_history(still.now()).await?;
    assert_eq!(outbox(&still.world).await?.len(), 1);
    still.turn(1);
    database.forget_old_history(still.now()).await?;
    assert_eq!(outbox(&still.world).await?, []);
    Ok(())
}

/// A row of the version before, which knows of one campaign.
#[tokio::test]
async fn a_notice_of_the_version_before_is_delivered() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let (streamer, _) = refused_streamer(world, "aria").await?;
    let owner = user(world, "Corvin").await?;
    let brumes = campaign(world, streamer, "Brumes", owner, "ACTIVE").await?;
    device(world, owner, "corvin").await?;
    two_runs(&still).await?;
    world.sql("UPDATE token_refresh.outbox SET campaign_count = NULL").await?;
    let push = RecordingPush::default();
    assert_eq!(deliver(&notify(world, &push).await?).await?.delivered, 1);
    let (_, message) = push.sent().pop().expect("one");
    let payload: Value = serde_json::from_slice(&message.payload)?;
    assert_eq!(payload["data"]["campaignId"], brumes.to_string());
    assert!(payload["body"].as_str().unwrap().contains("Brumes"));
    Ok(())
}

#[tokio::test]
async fn first_attempts_come_before_repeats() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let (_, owner) = refused_streamer(world, "aria").await?;
    for name in ["a", "b", "c", "d"] {
        device(world, owner, name).await?;
    }
    two_runs(&still).await?;
    world.sql("UPDATE token_refresh.outbox SET attempt = 1, next_attempt_at = next_attempt_at - interval '1 hour'
         WHERE subscription_id IN (SELECT id FROM push_subscriptions WHERE device_name IN ('b', 'd'))").await?;
    let outbox = PgOutbox::new(world.database().await?, world.clock.clone());
    let claim = async |limit| -> Result<Vec<u32>> {
        let claimed = outbox.claim(still.now(), still.now() + TimeDelta::minutes(1), limit).await?;
        let mut attempts: Vec<_> = claimed.notifications.iter().map(|one| one.attempt).collect();
        attempts.sort_unstable();
        Ok(attempts)
    };
    assert_eq!(claim(1).await?, [1]);
    assert_eq!(claim(2).await?, [1, 2]);
    assert_eq!(claim(2).await?, [2]);
    Ok(())
}

/// The application's column may be NULL.
#[tokio::test]
async fn a_missing_key_is_read_as_empty_and_left_to_the_sender() -> Result<()> {
    let still = one_device().await?;
    let world = &still.world;
    world.sql("ALTER TABLE push_subscriptions ALTER p256dh DROP NOT NULL; UPDATE push_subscriptions SET p256dh = NULL").await?;
    let outbox = PgOutbox::new(world.database().await?, world.clock.clone());
    let claimed = outbox.claim(still.now(), still.now() + TimeDelta::minutes(1), 10).await?;
    assert_eq!((claimed.notifications[0].subscription.p256dh.as_str(), claimed.obsolete), ("", 0));
    Ok(())
}
