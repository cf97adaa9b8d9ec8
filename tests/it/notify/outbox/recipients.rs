//! The recipients of a deactivation, their devices, and that each is notified once.

use std::collections::BTreeSet;

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use tokens_domain::attempt::Stored;
use tokens_domain::notification::{Campaigns, Recipient, Role};
use tokens_domain::notify::NotifyReport;
use tokens_domain::ports::Store as _;
use tokens_domain::report::{Outcome, Standing};
use tokens_domain::{CampaignId, Clock as _};
use tokens_store::{Database, PgStore};
use tokens_tests::people::{
    RecordingPush, campaign, deactivation, deliver, device, endpoint, notify, only_row, outbox, prefer,
    refused_streamer, two_runs, user,
};
use tokens_tests::{Ran, Still};

use super::one_device;

fn recipients<'a>(ran: &'a Ran, login: &str) -> &'a [Recipient] {
    match ran.outcome(login) {
        Outcome::Failed { standing: Standing::Deactivated { recipients }, .. } => recipients,
        other => panic!("{login} was not deactivated: {other:?}"),
    }
}

#[tokio::test]
async fn preferences_are_respected_and_default_to_on() -> Result<()> {
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

    let found = recipients(&ran, "aria");
    assert_eq!(found.len(), 11, "the streamer and ten game masters: {found:?}");
    for one in found {
        let devices = u32::from(willing.contains(&one.name));
        assert_eq!(one.devices, devices, "{one:?}");
    }
    let rows: BTreeSet<_> = outbox(world).await?.into_iter().map(|row| row.user_name).collect();
    assert_eq!(rows, willing);
    assert_eq!(willing.len(), 5);
    Ok(())
}

#[tokio::test]
async fn each_person_is_notified_once_whatever_the_number_of_campaigns() -> Result<()> {
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
    let master = Role::GameMaster(Campaigns { first: campaigns[0], names, count: 2 });
    let one =
        |name: &str, role, devices, campaigns| Recipient { name: name.to_owned(), role, devices, campaigns };
    assert_eq!(
        recipients(&ran, "aria"),
        [one("aria", Role::Streamer, 2, vec![]), one("Corvin", master, 1, campaigns),]
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
            assert_eq!(payload["data"]["url"], "/settings");
            assert_eq!(payload["data"].get("campaignId"), None);
        }
    }
    let used: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM push_subscriptions WHERE last_used_at = $1 AND updated_at = $1",
    )
    .bind(still.now())
    .fetch_one(&world.pool)
    .await?;
    assert_eq!(used, 3, "all but Maud's");
    assert_eq!(deliver(&notify(world, &push).await?).await?, NotifyReport::default(), "nothing is left");
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
    let store = PgStore::new(database, config.cipher, world.clock.clone());
    let now = still.now();
    let attempts = [deactivation(&store, streamer, now).await?];
    let first = store.deactivate(&attempts, still.clock.monotonic()).await?;
    let [Stored::Deactivated(found)] = first.as_slice() else { panic!("{first:?}") };
    assert_eq!((found.len(), found[0].devices), (1, 1));
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

/// One row a device would be 400 × 400 rows.
#[tokio::test]
async fn a_person_is_notified_once_on_each_of_the_twenty_newest_devices() -> Result<()> {
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
         SELECT $1, 'https://push.example.com/' || n, 'key', 'secret', now() - n * interval '1 minute', now()
         FROM generate_series(1, 400) n WHERE $2::uuid IS NOT NULL",
    ] {
        sqlx::query(statement).bind(owner).bind(streamer.0).execute(&world.pool).await?;
    }

    let ran = two_runs(&still).await?;

    let [_, master] = recipients(&ran, "aria") else { panic!("the streamer and one game master") };
    let Role::GameMaster(campaigns) = &master.role else { panic!("{master:?}") };
    assert_eq!((master.devices, campaigns.count, campaigns.names.len()), (20, 400, 3));
    assert_eq!(master.campaigns.len(), 400);
    assert_eq!(outbox(world).await?.len(), 20);
    let push = RecordingPush::default();
    assert_eq!(deliver(&notify(world, &push).await?).await?.delivered, 20);
    for n in 1..=400 {
        assert_eq!(push.count(&n.to_string()), usize::from(n <= 20), "{n}");
    }
    Ok(())
}
