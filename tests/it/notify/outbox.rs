//! The outbox on a real PostgreSQL, on a clock that is turned: who is told, and what becomes of each notification.

use std::collections::BTreeSet;

use adapters::store::{Database, PgOutbox};
use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use domain::CampaignId;
use domain::Clock as _;
use domain::notification::{Campaigns, Next, PushAnswer, Recipient, TIME_TO_LIVE, Told};
use domain::notify::NotifyReport;
use domain::ports::{Deactivation, Outbox, Store};
use domain::report::{Outcome, Standing};
use end_to_end::people::{
    RecordingPush, campaign, deactivation, deliver, device, endpoint, notify, only_row, outbox, prefer,
    refused_streamer, two_runs, user,
};
use end_to_end::{Ran, Still};
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;

fn told<'a>(ran: &'a Ran, login: &str) -> &'a [Told] {
    match ran.outcome(login) {
        Outcome::Failed { standing: Standing::Deactivated { told }, .. } => told,
        other => panic!("{login} was not deactivated: {other:?}"),
    }
}

/// A deactivated streamer with this one device, whose notification is due.
async fn one_device() -> Result<Still> {
    let still = Still::new().await?;
    let (_, owner) = refused_streamer(&still.world, "aria").await?;
    device(&still.world, owner, "phone").await?;
    two_runs(&still).await?;
    Ok(still)
}

fn busy(retry_after: Option<TimeDelta>) -> PushAnswer {
    PushAnswer::Busy { retry_after, reason: "the push service answered 503".to_owned() }
}

#[tokio::test]
async fn preferences_are_respected_and_silence_is_consent() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let (streamer, _) = refused_streamer(world, "aria").await?;
    let values = [None, Some(true), Some(false)];
    let combinations =
        values.iter().flat_map(|push| values.iter().map(move |refresh| Some((*push, *refresh))));
    let mut willing = BTreeSet::new();
    for preference in combinations.chain([None]) {
        let name = format!("{preference:?}");
        let owner = user(world, &name).await?;
        campaign(world, streamer, &name, owner, "ACTIVE").await?;
        device(world, owner, &name).await?;
        if let Some((push, refresh)) = preference {
            prefer(world, owner, push, refresh).await?;
        }
        if preference.is_none_or(|(push, refresh)| push != Some(false) && refresh != Some(false)) {
            willing.insert(name);
        }
    }

    let ran = two_runs(&still).await?;

    let told = told(&ran, "aria");
    assert_eq!(told.len(), 11, "the streamer and ten game masters: {told:?}");
    for one in told {
        let devices = u32::from(willing.contains(&one.name));
        assert_eq!(one.devices, devices, "{one:?}");
    }
    let rows: BTreeSet<_> = outbox(world).await?.into_iter().map(|row| row.user_name).collect();
    assert_eq!(rows, willing);
    assert_eq!(willing.len(), 5);
    Ok(())
}

#[tokio::test]
async fn each_person_is_told_once_whatever_the_number_of_campaigns() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    // Its first campaign, and one more, are its own.
    let (streamer, aria) = refused_streamer(world, "aria").await?;
    let corvin = user(world, "Corvin").await?;
    let maud = user(world, "Maud").await?;
    campaign(world, streamer, "Own", aria, "ACTIVE").await?;
    let brumes = campaign(world, streamer, "Brumes", corvin, "ACTIVE").await?;
    let couronne = campaign(world, streamer, "Couronne", corvin, "ACTIVE").await?;
    campaign(world, streamer, "Not yet", maud, "PENDING").await?;
    for (owner, name) in [(aria, "aria 1"), (aria, "aria 2"), (corvin, "corvin"), (maud, "maud")] {
        device(world, owner, name).await?;
    }

    let ran = two_runs(&still).await?;

    let campaigns = vec![CampaignId(brumes), CampaignId(couronne)];
    let names = vec!["Brumes".to_owned(), "Couronne".to_owned()];
    let master = Recipient::GameMaster(Campaigns { first: campaigns[0], names, count: 2 });
    let one = |name: &str, recipient, devices, campaigns| Told {
        name: name.to_owned(),
        recipient,
        devices,
        campaigns,
    };
    assert_eq!(
        told(&ran, "aria"),
        [one("aria", Recipient::Streamer, 2, vec![]), one("Corvin", master, 1, campaigns),]
    );

    let push = RecordingPush::default();
    let deactivated_at = still.now();
    still.turn(60);
    let report = deliver(&notify(world, &push).await?).await?;
    assert_eq!(report, NotifyReport { delivered: 3, ..NotifyReport::default() });
    assert_eq!(["aria 1", "aria 2", "corvin", "maud"].map(|name| push.count(name)), [1, 1, 1, 0]);
    for (to, message) in push.sent() {
        assert_eq!(message.time_to_live, TimeDelta::hours(23), "of the 24 hours one is over");
        let payload: Value = serde_json::from_slice(&message.payload)?;
        assert_eq!(payload["type"], "token:refresh_failed");
        assert_eq!(payload["data"]["streamerId"], streamer.to_string());
        assert_eq!(
            payload["timestamp"].as_str().unwrap().parse::<DateTime<Utc>>()?.timestamp_millis(),
            deactivated_at.timestamp_millis()
        );
        if to == endpoint("corvin") {
            assert_eq!(payload["data"]["campaignId"], brumes.to_string());
            assert_eq!(payload["data"]["url"], format!("/mj/campaigns/{brumes}"));
            let body = payload["body"].as_str().unwrap();
            assert!(body.contains("Brumes") && body.contains("Couronne"), "{body}");
        } else {
            assert_eq!(payload["data"]["url"], "/auth/twitch/redirect");
            assert_eq!(payload["data"].get("campaignId"), None);
        }
    }
    let used: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM push_subscriptions WHERE last_used_at = $1 AND updated_at = $1",
    )
    .bind(still.now())
    .fetch_one(&world.pool)
    .await?;
    assert_eq!(used, 3, "everybody's but Maud's");
    assert_eq!(deliver(&notify(world, &push).await?).await?, NotifyReport::default(), "nothing is left");
    Ok(())
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
    let now = still.now();
    let rows: Vec<_> = outbox(world)
        .await?
        .into_iter()
        .map(|row| {
            (
                row.device.unwrap_or_else(|| "(none)".to_owned()),
                row.state,
                row.next_attempt_at - now,
                row.last_error,
            )
        })
        .collect();
    let row = |device: &str, state: &str, minutes, error: Option<&str>| {
        (device.to_owned(), state.to_owned(), TimeDelta::minutes(minutes), error.map(str::to_owned))
    };
    let rows: Vec<_> = rows
        .into_iter()
        // When a settled one would have been tried next says nothing.
        .map(|(device, state, wait, error)| {
            let wait = if state == "pending" { wait } else { TimeDelta::zero() };
            (device, state, wait, error)
        })
        .collect();
    assert_eq!(
        rows,
        [
            row("accepted", "delivered", 0, None),
            row("busy", "pending", 1, Some("the push service answered 503")),
            row("busy for an hour", "pending", 60, Some("the push service answered 503")),
            row("rejected", "given_up", 0, Some("too large")),
            row("unauthorized", "pending", 1, Some(OTHER_KEY)),
            row("(none)", "gone", 0, Some("the push service does not know the subscription any more")),
        ],
        "the subscription that is gone is deleted, all others are kept"
    );

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

#[tokio::test]
async fn what_is_a_day_old_is_given_up_unsaid() -> Result<()> {
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
    let outbox = PgOutbox::new(
        Database::open(world.database_url().parse::<PgConnectOptions>()?).await?,
        world.clock.clone(),
    );
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
    sqlx::query("UPDATE push_subscriptions SET endpoint = 'https://push.example.com/renewed'")
        .execute(&world.pool)
        .await?;
    outbox.settle(&second, Next::Gone, None, still.now(), still.clock.monotonic()).await?;
    let row = only_row(world).await?;
    assert_eq!((row.state.as_str(), row.device.as_deref()), ("gone", Some("phone")));
    Ok(())
}

#[tokio::test]
async fn what_nobody_is_to_be_told_any_more_is_obsolete() -> Result<()> {
    for (change, reason) in [
        ("UPDATE streamers SET is_active = true", "the streamer is active again"),
        ("DELETE FROM push_subscriptions", "the device is signed out"),
        (
            "WITH other AS (INSERT INTO users (display_name) VALUES ('Somebody else') RETURNING id)
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

/// What is obsolete does not hide what is behind it, however much it is.
#[tokio::test]
async fn behind_many_obsolete_ones_the_others_are_found() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let (streamer, owner) = refused_streamer(world, "aria").await?;
    let master = user(world, "Corvin").await?;
    campaign(world, streamer, "Brumes", master, "ACTIVE").await?;
    device(world, master, "tablet").await?;
    device(world, owner, "phone").await?;
    two_runs(&still).await?;
    sqlx::query(
        "INSERT INTO token_refresh.outbox (subscription_id, user_id, user_name, streamer_id, streamer_name, campaign_id,
             campaign_name, created_at, next_attempt_at, deactivated)
         SELECT subscription_id, user_id, user_name, streamer_id, streamer_name, campaign_id, campaign_name, created_at,
                next_attempt_at, deactivated
         FROM token_refresh.outbox, generate_series(2, 100) WHERE campaign_id IS NOT NULL",
    )
    .execute(&world.pool)
    .await?;
    sqlx::query(
        "UPDATE token_refresh.outbox SET next_attempt_at = next_attempt_at - interval '1 minute'
                 WHERE campaign_id IS NOT NULL",
    )
    .execute(&world.pool)
    .await?;
    prefer(world, master, Some(false), None).await?;
    let push = RecordingPush::default();
    let report = deliver(&notify(world, &push).await?).await?;
    assert_eq!(report, NotifyReport { delivered: 1, obsolete: 100, ..NotifyReport::default() });
    assert_eq!(push.count("phone"), 1);
    Ok(())
}

/// An answer of the database was lost, and the deactivation is repeated.
#[tokio::test]
async fn a_repeated_deactivation_doubles_nothing_and_answers_the_same() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let (streamer, owner) = refused_streamer(world, "aria").await?;
    device(world, owner, "phone").await?;
    let config = world.config(&[])?;
    let database = Database::open(config.database).await?;
    let store = adapters::store::PgStore::new(database, config.cipher, world.clock.clone());
    let now = still.now();
    let attempts = [deactivation(&store, streamer, now).await?];
    let first = store.deactivate(&attempts, still.clock.monotonic()).await?;
    let [Deactivation::Done(told)] = first.as_slice() else { panic!("{first:?}") };
    assert_eq!((told.len(), told[0].devices), (1, 1));
    // Meanwhile others have used up the budget: it is done all the same.
    sqlx::query(
        "INSERT INTO token_refresh.deactivations SELECT gen_random_uuid(), $1 FROM generate_series(1, 9)",
    )
    .bind(now)
    .execute(&world.pool)
    .await?;
    assert_eq!(store.deactivate(&attempts, still.clock.monotonic()).await?, first);
    assert_eq!(only_row(world).await?.state, "pending");
    Ok(())
}

/// The streamer reconnects, and is refused again, before anything was delivered.
#[tokio::test]
async fn a_new_deactivation_replaces_what_still_waits_of_the_old() -> Result<()> {
    let still = one_device().await?;
    let world = &still.world;
    sqlx::query("UPDATE streamers SET is_active = true, token_expires_at = NULL")
        .execute(&world.pool)
        .await?;
    two_runs(&still).await?;
    let states: Vec<_> = outbox(world).await?.into_iter().map(|row| (row.state, row.last_error)).collect();
    let replaced = ("obsolete".to_owned(), Some("deactivated anew".to_owned()));
    assert!(states.contains(&replaced) && states.contains(&("pending".to_owned(), None)), "{states:?}");
    let push = RecordingPush::default();
    assert_eq!(deliver(&notify(world, &push).await?).await?.delivered, 1);
    assert_eq!(push.count("phone"), 1);
    Ok(())
}

#[tokio::test]
async fn what_is_over_thirty_days_old_is_forgotten() -> Result<()> {
    let still = one_device().await?;
    let database = Database::open(still.world.database_url().parse::<PgConnectOptions>()?).await?;
    still.turn(30 * 24 * 60);
    database.forget_old_history(still.now()).await?;
    assert_eq!(outbox(&still.world).await?.len(), 1);
    still.turn(1);
    database.forget_old_history(still.now()).await?;
    assert_eq!(outbox(&still.world).await?, []);
    Ok(())
}

/// A device's keys are what its browser said; the application's table may have none.
#[tokio::test]
async fn a_missing_key_is_for_the_sender_to_refuse() -> Result<()> {
    let still = one_device().await?;
    let world = &still.world;
    sqlx::raw_sql("ALTER TABLE push_subscriptions ALTER p256dh DROP NOT NULL; UPDATE push_subscriptions SET p256dh = NULL")
        .execute(&world.pool)
        .await?;
    let outbox = PgOutbox::new(
        Database::open(world.database_url().parse::<PgConnectOptions>()?).await?,
        world.clock.clone(),
    );
    let claimed = outbox.claim(still.now(), still.now() + TimeDelta::minutes(1), 10).await?;
    assert_eq!(claimed.notifications[0].subscription.p256dh, "");
    assert_eq!(json!(claimed.obsolete), 0);
    Ok(())
}

/// Devices times campaigns would be 160,000 rows, and the count of each for each; and of the devices the newest are enough.
#[tokio::test]
async fn a_deactivation_costs_as_many_rows_as_one_person_is_told_on_devices() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let (streamer, _) = refused_streamer(world, "aria").await?;
    let owner = user(world, "Corvin").await?;
    for statement in [
        "INSERT INTO campaigns (id, name, owner_id, created_at, updated_at)
         SELECT md5('campaign ' || n)::uuid, 'Campaign ' || n, $1, now(), now() FROM generate_series(1, 400) n
         WHERE $2::uuid IS NOT NULL",
        "INSERT INTO campaign_memberships (campaign_id, streamer_id, status, invited_at, created_at, updated_at)
         SELECT md5('campaign ' || n)::uuid, $2, 'ACTIVE', now(), now(), now() FROM generate_series(1, 400) n
         WHERE $1::uuid IS NOT NULL",
        "INSERT INTO push_subscriptions (user_id, endpoint, p256dh, auth, created_at, updated_at)
         SELECT $1, 'https://push.example.com/' || n, 'key', 'secret', now(), now() FROM generate_series(1, 400) n
         WHERE $2::uuid IS NOT NULL",
    ] {
        sqlx::query(statement).bind(owner).bind(streamer.0).execute(&world.pool).await?;
    }

    let ran = two_runs(&still).await?;

    let [_, master] = told(&ran, "aria") else { panic!("the streamer and one game master") };
    let Recipient::GameMaster(campaigns) = &master.recipient else { panic!("{master:?}") };
    assert_eq!((master.devices, campaigns.count, campaigns.names.len()), (20, 400, 3));
    assert_eq!(master.campaigns.len(), 400);
    assert_eq!(outbox(world).await?.len(), 20);
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
    sqlx::query("UPDATE token_refresh.outbox SET campaign_names = NULL, campaign_count = NULL")
        .execute(&world.pool)
        .await?;
    let push = RecordingPush::default();
    assert_eq!(deliver(&notify(world, &push).await?).await?.delivered, 1);
    let (_, message) = push.sent().pop().expect("one");
    let payload: Value = serde_json::from_slice(&message.payload)?;
    assert_eq!(payload["data"]["campaignId"], brumes.to_string());
    assert!(payload["body"].as_str().unwrap().contains("Brumes"));
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
    assert_eq!(deliver(&service).await?, other, "nobody else is there any more");

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
async fn our_key_is_the_suspect_where_nobody_is_accepted() -> Result<()> {
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
async fn who_can_never_be_reached_is_deleted_and_a_missing_name_after_a_day() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let (_, owner) = refused_streamer(world, "aria").await?;
    let push = RecordingPush::default();
    for (name, answer) in [
        ("never", PushAnswer::Unreachable("a name that nobody can have".to_owned())),
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
async fn a_person_is_told_on_the_twenty_newest_devices() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let (streamer, owner) = refused_streamer(world, "aria").await?;
    let master = user(world, "Corvin").await?;
    campaign(world, streamer, "Brumes", master, "ACTIVE").await?;
    device(world, master, "corvin's phone").await?;
    for n in 0..25 {
        device(world, owner, &format!("{n:02}")).await?;
        sqlx::query("UPDATE push_subscriptions SET created_at = $1 WHERE device_name = $2")
            .bind(still.now() - TimeDelta::minutes(n))
            .bind(format!("{n:02}"))
            .execute(&world.pool)
            .await?;
    }
    let ran = two_runs(&still).await?;
    assert_eq!(told(&ran, "aria").iter().map(|told| told.devices).collect::<Vec<_>>(), [20, 1]);
    let push = RecordingPush::default();
    assert_eq!(deliver(&notify(world, &push).await?).await?.delivered, 21);
    for n in 0..25 {
        assert_eq!(push.count(&format!("{n:02}")), usize::from(n < 20), "{n}");
    }
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
    sqlx::query(
        "UPDATE token_refresh.outbox SET attempt = 1, next_attempt_at = next_attempt_at - interval '1 hour'
         WHERE subscription_id IN (SELECT id FROM push_subscriptions WHERE device_name IN ('b', 'd'))",
    )
    .execute(&world.pool)
    .await?;
    let outbox = PgOutbox::new(
        Database::open(world.database_url().parse::<PgConnectOptions>()?).await?,
        world.clock.clone(),
    );
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

#[tokio::test]
async fn a_host_that_never_answers_is_called_three_times_a_run() -> Result<()> {
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
    assert_eq!(called(), 6, "each run tries anew");

    // A host that answers, however badly, is not a silent one.
    for name in &names {
        push.answer(name, busy(None));
    }
    still.turn(2);
    deliver(&service).await?;
    assert_eq!(called(), 16);
    Ok(())
}
