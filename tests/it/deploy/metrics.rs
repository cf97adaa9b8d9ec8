//! What the functions' own binaries tell CloudWatch, and what they log meanwhile.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use chrono::TimeDelta;
use serde_json::{Value, json};
use tokens_domain::{Clock as _, MembershipKey, StreamerId};
use tokens_local::push::{Fault as PushFault, Settings, SimulatedPush};
use tokens_local::twitch::{Endpoint, Fault};
use tokens_local::world::{NewStreamer, World};
use tokens_push::VapidKey;
use tokens_telemetry::metrics::Metric;
use tokens_tests::aws::{Fault as AwsFault, Service, SimulatedAws};
use tokens_tests::emf::Values;
use tokens_tests::people::{campaign, refused_before, refused_for_good, sender, subscribe, user};
use tokens_tests::requests::{REQUEST_ID, authorization_path, check_path, event, membership};
use tokens_tests::watched::Watched;
use tokens_tests::world;

/// In no key that there is.
const UNREADABLE: &str = "v1.other.AAAAAAAAAAAAAAAA.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

fn sweep() -> Value {
    json!({"trigger": "sweep"})
}

async fn execute(world: &World, statement: &'static str, streamer: StreamerId) -> Result<()> {
    sqlx::query(statement).bind(streamer.0).execute(&world.pool).await?;
    Ok(())
}

/// The counts, without what was measured.
fn counts(values: &Values) -> Vec<(&str, f64)> {
    let measured = [
        Metric::CycleDuration,
        Metric::TwitchLatency,
        Metric::OldestDueAge,
        Metric::OutboxAge,
        Metric::RefusedOnlyAge,
    ]
    .map(Metric::name);
    let counts = values.iter().filter(|(name, _)| !measured.contains(name) && **name != "DeadMinutes");
    counts.map(|(name, values)| (*name, values[0])).collect()
}

fn measured(values: &Values) -> BTreeSet<&str> {
    let counted: BTreeSet<_> = counts(values).into_iter().map(|(name, _)| name).collect();
    values.keys().copied().filter(|name| !counted.contains(name)).collect()
}

#[tokio::test]
async fn a_sweep_says_exactly_what_it_did() -> Result<()> {
    let world = world().await?;
    let aws = SimulatedAws::start().await?;
    for login in ["fine", "well", "refused", "outage", "unreadable"] {
        world.add(NewStreamer::due(login)).await?;
    }
    world.add(NewStreamer::fresh("fresh")).await?;
    world.twitch.disconnect("refused")?;
    world.twitch.fault("outage", Fault::ServerError.on(Endpoint::Token))?;
    sqlx::query("UPDATE streamers SET refresh_token_encrypted = $1 WHERE twitch_login = 'unreadable'")
        .bind(UNREADABLE)
        .execute(&world.pool)
        .await?;
    // Three may be deactivated within the hour.
    for login in ["dead-1", "dead-2", "dead-3", "dead-4"] {
        let dead = world.add(NewStreamer::due(login)).await?;
        world.twitch.disconnect(login)?;
        refused_for_good(&world, dead).await?;
    }
    aws.fault(Service::Events, AwsFault::AccessDenied, usize::MAX);
    let environment = world.environment().into_iter().chain(aws.environment()).collect();
    let function = Watched::start("scheduled-refresh", environment, &[]).await?;

    let report = function.invoke(sweep()).await?;

    let lines = function.metrics()?;
    let [values] = lines.as_slice() else { panic!("{lines:?}") };
    let expected = [
        ("CyclesSucceeded", 1.0),
        ("Deactivated", 3.0),
        ("HeldBack", 1.0),
        ("Outages", 1.0),
        ("Refreshed", 2.0),
        ("Refused", 5.0),
        ("SignalsFailed", 3.0),
        ("Skipped", 1.0),
        ("Unreadable", 1.0),
        ("Validated", 1.0),
    ];
    assert_eq!(counts(values), expected, "{report}");
    assert_eq!(
        measured(values),
        BTreeSet::from([
            "CycleDuration",
            "DeadMinutes",
            "OldestDueAge",
            "OutboxAge",
            "RefusedOnlyAge",
            "TwitchLatency"
        ])
    );
    assert_eq!(report["alarms"], json!({"unreadable": 1, "not_stored": 0, "misplaced": 0, "held_back": 1}));
    let totals = world.twitch.totals();
    assert_eq!(values["TwitchLatency"].len() as u64, totals.token_requests + totals.validate_requests);
    assert!(values["TwitchLatency"].iter().all(|latency| *latency > 0.0), "{values:?}");
    assert_eq!(values["CycleDuration"].len(), 1);
    assert_eq!((&values["OldestDueAge"], &values["OutboxAge"]), (&vec![0.0], &vec![0.0]));

    // A warm function says nothing of an earlier event again.
    function.invoke(json!({"trigger": "planned"})).await?;
    let lines = function.metrics()?;
    assert_eq!(counts(&lines[1]), [("CyclesSucceeded", 1.0), ("Skipped", 7.0), ("Waiting", 4.0)]);
    assert_eq!(measured(&lines[1]), BTreeSet::from(["CycleDuration"]));
    Ok(())
}

#[tokio::test]
async fn many_calls_are_told_as_a_hundred() -> Result<()> {
    let world = world().await?;
    world.add_all((0..150).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    let function = Watched::start("scheduled-refresh", world.environment(), &[]).await?;
    function.invoke(json!({"trigger": "planned"})).await?;
    let lines = function.metrics()?;
    assert_eq!((lines[0]["Refreshed"][0], lines[0]["TwitchLatency"].len()), (150.0, 100));
    let errors: Vec<_> = function.log()?.into_iter().filter(|line| line["level"] != "INFO").collect();
    assert!(errors.is_empty(), "{errors:?}");
    Ok(())
}

/// An authorization that began six hours ago, and a token that died half an hour ago.
async fn dead_for_half_an_hour(world: &World, login: &str) -> Result<StreamerId> {
    let id =
        world.add(NewStreamer { token_left: TimeDelta::minutes(-30), ..NewStreamer::due(login) }).await?;
    let begun = "UPDATE campaign_memberships SET poll_authorization_granted_at = now() - interval '6 hours',
                     poll_authorization_expires_at = now() + interval '6 hours' WHERE streamer_id = $1";
    execute(world, begun, id).await?;
    // Seen by earlier sweeps: of whom is inactive after this one, it would remember nothing.
    let seen = "INSERT INTO token_refresh.sessions (membership_id, granted_at, streamer_id, campaign_id, ends_at)
                SELECT id, poll_authorization_granted_at, streamer_id, campaign_id, poll_authorization_expires_at
                FROM campaign_memberships WHERE streamer_id = $1";
    execute(world, seen, id).await?;
    let living = "INSERT INTO token_refresh.refreshes
                      (streamer_id, fence, trigger, started_at, ended_at, outcome, expires_after)
                  SELECT id, 1, 'grant', now() - interval '6 hours', now() - interval '6 hours', 'refreshed',
                         token_expires_at FROM streamers WHERE id = $1";
    execute(world, living, id).await?;
    let known = "INSERT INTO token_refresh.streamers (streamer_id, fence) VALUES ($1, 1)";
    execute(world, known, id).await?;
    Ok(id)
}

#[tokio::test]
async fn ages_are_those_of_the_database_and_a_dead_grant_counts_for_none() -> Result<()> {
    let world = world().await?;
    let before = world.clock.now();
    dead_for_half_an_hour(&world, "late").await?;
    let gone = dead_for_half_an_hour(&world, "gone").await?;
    world.twitch.disconnect("gone")?;
    refused_before(&world, gone).await?;
    // Due for an hour and a half, and for as long as another run holds the lease; the token is no session's.
    let held =
        world.add(NewStreamer { token_left: TimeDelta::minutes(-30), ..NewStreamer::due("held") }).await?;
    let lease = "INSERT INTO token_refresh.streamers (streamer_id, fence, leased_until)
                 VALUES ($1, 1, now() + interval '1 hour')";
    execute(&world, lease, held).await?;
    let long_ago =
        "UPDATE campaign_memberships SET poll_authorization_granted_at = now() - interval '1 second',
                        poll_authorization_expires_at = now() + interval '6 hours' WHERE streamer_id = $1";
    execute(&world, long_ago, held).await?;
    let master = user(&world, "Corvin").await?;
    for (age, state) in [("3 hours", "delivered"), ("2 hours", "pending"), ("1 hour", "pending")] {
        sqlx::query(
            "INSERT INTO token_refresh.outbox (subscription_id, user_id, user_name, streamer_id, streamer_name,
                 created_at, next_attempt_at, state, settled_at)
             VALUES (gen_random_uuid(), $1, 'Corvin', gen_random_uuid(), 'Aria', now() - $2::interval, now(), $3,
                     CASE WHEN $3 <> 'pending' THEN now() END)",
        )
        .bind(master)
        .bind(age)
        .bind(state)
        .execute(&world.pool)
        .await?;
    }
    let function = Watched::start("scheduled-refresh", world.environment(), &[]).await?;

    let report = function.invoke(sweep()).await?;

    let took = (world.clock.now() - before).as_seconds_f64();
    let lines = function.metrics()?;
    assert_eq!((&report["success"], &report["deactivated"]), (&json!(1), &json!(1)), "{report}");
    for (metric, least) in [("OldestDueAge", 90.0 * 60.0), ("OutboxAge", 120.0 * 60.0)] {
        let [age] = lines[0][metric][..] else { panic!("{lines:?}") };
        assert!((least..least + took).contains(&age), "{metric}: {age}");
    }
    // Of the late one, and a second of the one that is held.
    let [dead] = lines[0]["DeadMinutes"][..] else { panic!("{lines:?}") };
    assert!((30.0..30.0 + (1.0 + 2.0 * took) / 60.0).contains(&dead), "{dead}");
    Ok(())
}

#[tokio::test]
async fn a_pair_that_cannot_be_stored_is_counted_and_named() -> Result<()> {
    let world = world().await?;
    let lost = world.add(NewStreamer::due("lost")).await?;
    // A column that only the statement that writes results knows.
    sqlx::query("ALTER TABLE streamers RENAME COLUMN updated_at TO changed_at").execute(&world.pool).await?;
    let function = Watched::start("scheduled-refresh", world.environment(), &[]).await?;

    let error = function.invoke(sweep()).await.unwrap_err();

    assert!(error.error_message.contains("the database failed at writing results"), "{error}");
    let lines = function.metrics()?;
    assert_eq!(counts(&lines[0]), [("NotStored", 1.0)], "and no cycle succeeded");
    assert!(lines[0].contains_key("OldestDueAge"), "measured although it failed");
    let log = function.log()?;
    let named = log.iter().find(|line| line["streamer"] == lost.to_string()).context("it is named")?;
    assert_eq!(named["level"], "ERROR");
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_measured_fails_no_cycle() -> Result<()> {
    let world = world().await?;
    world.add(NewStreamer::due("fine")).await?;
    let function = Watched::start("scheduled-refresh", world.environment(), &[]).await?;
    sqlx::query("ALTER TABLE token_refresh.outbox RENAME TO elsewhere").execute(&world.pool).await?;
    let report = function.invoke(sweep()).await?;
    assert_eq!(report["success"], 1);
    let log = function.log()?;
    let warned: Vec<_> = log.iter().filter(|line| line["level"] == "WARN").collect();
    let has_failed =
        |at: &str| warned.iter().any(|line| line["failure"].as_str().is_some_and(|text| text.contains(at)));
    assert!(has_failed("looking for what waits in the outbox"), "{warned:?}");
    assert!(has_failed("forgetting old history"), "{warned:?}");
    assert_eq!(warned.len(), 2, "{warned:?}");
    let lines = function.metrics()?;
    assert_eq!(measured(&lines[0]), BTreeSet::from(["CycleDuration", "OldestDueAge", "TwitchLatency"]));
    Ok(())
}

#[tokio::test]
async fn a_retry_and_a_request_are_no_cycle_that_the_alarm_waits_for() -> Result<()> {
    let world = world().await?;
    world.add(NewStreamer::due("due")).await?;
    let retry = Watched::start("retry-refresh", world.environment(), &[]).await?;
    retry.invoke(json!({"trigger": "retry", "minute": "2026-11-23T04:15:00Z"})).await?;
    let lines = retry.metrics()?;
    assert_eq!(counts(&lines[0]), [("Refreshed", 1.0)]);
    assert_eq!(measured(&lines[0]), BTreeSet::from(["CycleDuration", "TwitchLatency"]));

    let asking = NewStreamer { authorized_for: None, ..NewStreamer::fresh("asking") };
    let key = membership(&world, world.add(asking).await?).await?;
    let grants = Watched::start("grant-refresh", world.environment(), &[]).await?;
    for method in ["POST", "GET"] {
        grants.invoke(event(method, &authorization_path(key))).await?;
    }
    let health = Watched::start("health-check", world.environment(), &[]).await?;
    health.invoke(event("POST", &check_path(key.campaign))).await?;
    let lines = [grants.metrics()?, health.metrics()?].concat();
    let counted: Vec<_> = lines.iter().map(counts).collect();
    // Who only looks records nothing, and has no line.
    assert_eq!(counted, [vec![("Refreshed", 1.0)], vec![("Skipped", 1.0), ("Validated", 1.0)]]);
    assert!(lines.iter().all(|line| measured(line) == BTreeSet::from(["TwitchLatency"])), "{lines:?}");
    Ok(())
}

/// The environment of notify, with a push service whose devices are signed in as Corvin's.
async fn notifying(world: &World, devices: &[&str]) -> Result<(SimulatedPush, Vec<(String, String)>)> {
    let service = SimulatedPush::start(Settings::default()).await?;
    let dead = world.add(NewStreamer::due("dead")).await?;
    world.twitch.disconnect("dead")?;
    refused_before(world, dead).await?;
    let master = user(world, "Corvin").await?;
    campaign(world, dead, "Brumes", master, "ACTIVE").await?;
    for device in devices {
        subscribe(world, master, &service.subscribe(device)).await?;
    }
    Ok((service, world.environment().into_iter().chain(sender(&VapidKey::generate()?)).collect()))
}

#[tokio::test]
async fn notify_says_what_it_delivered() -> Result<()> {
    let world = world().await?;
    let (service, environment) = notifying(&world, &["takes it", "refuses", "is too small"]).await?;
    service.fault("refuses", PushFault::status(401))?;
    service.fault("is too small", PushFault::status(413))?;
    let cycle = Watched::start("scheduled-refresh", environment.clone(), &[]).await?;
    cycle.invoke(sweep()).await?;
    assert_eq!(cycle.metrics()?[0]["Deactivated"], [1.0]);
    let notify = Watched::start("notify", environment, &[]).await?;
    notify.invoke(json!({"trigger": "timer"})).await?;
    let lines = notify.metrics()?;
    assert_eq!(
        counts(&lines[0]),
        [("Delivered", 1.0), ("GivenUp", 1.0)],
        "the one that refuses has another key"
    );
    Ok(())
}

#[tokio::test]
async fn without_a_stack_or_a_log_for_machines_there_are_no_metrics() -> Result<()> {
    for change in [("METRICS_STACK", ""), ("LOG_FORMAT", "text")] {
        let world = world().await?;
        world.add(NewStreamer::due("fine")).await?;
        let function = Watched::start("scheduled-refresh", world.environment(), &[change]).await?;
        assert_eq!(function.invoke(sweep()).await?["success"], 1);
        assert_eq!(function.output()?, "", "{change:?}");
    }
    Ok(())
}

/// A membership of somebody whose refresh token nobody can read, which is logged as an error.
async fn unreadable(world: &World) -> Result<MembershipKey> {
    let streamer = world.add(NewStreamer::due("unreadable")).await?;
    sqlx::query("UPDATE streamers SET refresh_token_encrypted = $1 WHERE id = $2")
        .bind(UNREADABLE)
        .bind(streamer.0)
        .execute(&world.pool)
        .await?;
    membership(world, streamer).await
}

/// What a function logs, well and badly, at this level.
async fn logged(name: &str, level: &str) -> Result<Vec<Value>> {
    let world = world().await?;
    let (service, environment) = notifying(&world, &["takes it", "is busy"]).await?;
    service.fault("is busy", PushFault::status(500))?;
    let fine = world.add(NewStreamer::due("fine")).await?;
    let key = membership(&world, fine).await?;
    let deactivate = Watched::start("scheduled-refresh", environment.clone(), &[]).await?;
    if name == "notify" {
        deactivate.invoke(sweep()).await?;
    }
    let function = Watched::start(name, environment, &[("LOG_LEVEL", level)]).await?;
    let events = match name {
        "scheduled-refresh" => vec![sweep(), json!({"trigger": "nonsense"})],
        "retry-refresh" => vec![json!({"trigger": "retry", "minute": "2026-11-23T04:15:00Z"}), json!({})],
        "notify" => vec![json!({"trigger": "timer"}), json!({})],
        _ => {
            let path = |of: MembershipKey| match name {
                "grant-refresh" => authorization_path(of),
                _ => check_path(of.campaign),
            };
            let (fine, bad) = (path(key), path(unreadable(&world).await?));
            vec![event("POST", &fine), event("POST", &bad), event("GET", "/nowhere")]
        }
    };
    for event in events {
        // What is wrong is answered as an error or a problem.
        let _ = function.invoke(event).await;
    }
    function.log()
}

#[tokio::test]
async fn each_line_of_each_function_has_its_requests_id() -> Result<()> {
    for (name, http) in [
        ("scheduled-refresh", false),
        ("retry-refresh", false),
        ("notify", false),
        ("grant-refresh", true),
        ("health-check", true),
    ] {
        for level in ["debug", "error"] {
            let log = logged(name, level).await?;
            let mut requests = BTreeSet::new();
            for line in &log {
                assert!(line["timestamp"].is_string() && line["message"].is_string(), "{line}");
                let id = if http { &line["span"]["request_id"] } else { &line["span"]["requestId"] };
                assert!(line["notification"].is_null() || line["streamer"].is_string(), "{line}");
                requests.insert(id.as_str().with_context(|| format!("{name}: no id in {line}"))?);
            }
            if http {
                assert_eq!(requests, BTreeSet::from([REQUEST_ID]), "{name}: {log:?}");
            } else {
                // Both events have said something; of the good one, nothing is an error.
                assert_eq!(requests.len(), if level == "debug" { 2 } else { 1 }, "{name}: {log:?}");
            }
            let about = log.iter().filter(|line| line["streamer"].is_string()).count();
            assert_eq!(about > 0, http || level == "debug", "{name}: {log:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_keeps_a_function_from_opening_is_logged_with_the_requests_id() -> Result<()> {
    let world = world().await?;
    let id = "5b0bc1a5-6d2a-4f0e-9d0a-0a1b2c3d4e5f";
    for (name, method, path) in [
        ("grant-refresh", "GET", format!("/streamers/{id}/authorizations")),
        ("health-check", "POST", format!("/campaigns/{id}/health-check")),
    ] {
        let changes = [("DEACTIVATION", "perhaps"), ("LOG_LEVEL", "error")];
        let function = Watched::start(name, world.environment(), &changes).await?;
        let _ = function.invoke(event(method, &path)).await;
        let log = function.log()?;
        let [line] = log.as_slice() else { panic!("{name}: {log:?}") };
        assert_eq!(line["span"]["request_id"], REQUEST_ID, "{line}");
    }
    Ok(())
}
