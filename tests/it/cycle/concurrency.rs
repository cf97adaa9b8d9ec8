//! Every trigger at the same moment, against a Twitch that takes a refresh token once and ends the grant when it is used
//! again.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Result;
use chrono::TimeDelta;
use futures::future::try_join_all;
use serde_json::{Value, json};
use tokens_domain::StreamerId;
use tokens_domain::policy::RefreshMode;
use tokens_domain::refresh::Cycle;
use tokens_domain::schedule::Trigger;
use tokens_local::api::Api;
use tokens_local::lambda::Function;
use tokens_local::postgres::Postgres;
use tokens_local::twitch::{RefreshTokens, Settings};
use tokens_local::world::{NewStreamer, World};
use tokens_tests::requests::{authorization, authorization_path, check_path, membership};
use tokens_tests::{Ran, Sql as _, Still, binary, changed, run, tokens};
use tokio::sync::Notify;
use tokio::task::{JoinSet, LocalSet};

const STREAMERS: u64 = 300;

const TIME_LEFT: Duration = Duration::from_mins(5);

/// Long enough for all to be under way before the first is done.
fn one_time() -> Settings {
    Settings {
        refresh_tokens: RefreshTokens::OneTime,
        latency: Duration::from_millis(40),
        ..Settings::default()
    }
}

/// Some are due by their token, some by a failure, some by both.
async fn due(world: &World) -> Result<Vec<StreamerId>> {
    let streamer = |n| match n % 3 {
        0 => NewStreamer::fresh(format!("s{n}")),
        _ => NewStreamer::due(format!("s{n}")),
    };
    let ids = world.add_all((0..STREAMERS).map(streamer).collect()).await?;
    let failed = sqlx::query(
        "UPDATE streamers SET token_refresh_failed_at = $1
         WHERE ltrim(twitch_login, 's')::integer % 3 <> 1",
    );
    failed.bind(world.clock.now() - TimeDelta::minutes(16)).execute(&world.pool).await?;
    Ok(ids)
}

/// Each was refreshed this many times, and what is stored works on.
async fn no_token_is_lost(world: &World, ids: Vec<StreamerId>, refreshes: u64) -> Result<()> {
    for n in 0..STREAMERS {
        let activity = world.twitch.activity(&format!("s{n}"))?;
        assert_eq!((activity.refresh_requests, activity.refreshes), (refreshes, refreshes), "s{n}");
    }
    for id in &ids {
        assert_eq!(world.row(*id).await?.token_refresh_failed_at, None);
    }
    no_pair_is_lost(world, ids).await
}

/// What is stored works, and works on.
async fn no_pair_is_lost(world: &World, ids: Vec<StreamerId>) -> Result<()> {
    for id in ids {
        assert!(world.has_live_token(id).await?);
    }
    let forced = Cycle { mode: RefreshMode::Forced, ..Cycle::new(Trigger::Command) };
    let ran = run(&world.service(&[]).await?, &forced).await;
    assert_eq!((ran.report.success, world.twitch.totals().reuses), (STREAMERS, 0));
    Ok(())
}

/// Few calls in flight, so that none has leased all before the others have begun.
async fn all_at_once(world: &World, cycles: &[Cycle]) -> Result<Vec<Ran>> {
    let mut tasks = JoinSet::new();
    let here = LocalSet::new();
    for cycle in cycles {
        let (service, cycle) = (world.service(&[("TWITCH_MAX_IN_FLIGHT", "8")]).await?, cycle.clone());
        tasks.spawn_local_on(async move { run(&service, &cycle).await }, &here);
    }
    Ok(here.run_until(tasks.join_all()).await)
}

#[tokio::test]
async fn cycles_that_are_forced_at_once_use_no_token_twice() -> Result<()> {
    let still = Still::with(one_time()).await?;
    let world = &still.world;
    let ids = due(world).await?;
    let forced = Cycle { mode: RefreshMode::Forced, ..Cycle::new(Trigger::Command) };
    let ran = all_at_once(world, &vec![forced; 8]).await?;

    let success: u64 = ran.iter().map(|ran| ran.report.success).sum();
    let failed: u64 = ran.iter().map(|ran| ran.report.failed).sum();
    let totals = world.twitch.totals();
    assert_eq!((failed, totals.reuses), (0, 0));
    assert_eq!((totals.token_requests, totals.refreshes), (success, success));
    for id in ids {
        assert!(world.has_live_token(id).await?);
    }
    Ok(())
}

#[tokio::test]
async fn all_triggers_at_once_refresh_each_streamer_once() -> Result<()> {
    let [scheduled, retry] = [binary("scheduled-refresh").await?, binary("retry-refresh").await?];
    let world = World::start(Postgres::shared().await?, one_time()).await?;
    let ids = due(&world).await?;
    let environment = world.environment();
    let function = async |path| Function::start(path, &environment, Stdio::null()).await;
    let (planned, sweep, retry) =
        (function(&scheduled).await?, function(&scheduled).await?, function(&retry).await?);

    // One streamer's new pair can't be written until another trigger is done, which has met its lease.
    let gate = world.twitch.pause("s1")?;
    let another_is_done = Notify::new();
    let hold = async {
        gate.arrived().await;
        let mut row = world.pool.begin().await?;
        sqlx::query("SELECT FROM streamers WHERE twitch_login = 's1' FOR NO KEY UPDATE")
            .execute(&mut *row)
            .await?;
        gate.release();
        another_is_done.notified().await;
        Ok(row.rollback().await?)
    };
    let done = |report| {
        another_is_done.notify_one();
        report
    };
    let invoke =
        async |function: &Function, input| anyhow::Ok(done(function.invoke(input, TIME_LEFT).await?));
    let command = async || {
        let printed = tokens(&environment, &["refresh", "--json"]).await?;
        assert_eq!(printed.code, 0, "{printed:?}");
        let document: Value = serde_json::from_str(&printed.stdout)?;
        anyhow::Ok(done(document["report"].clone()))
    };
    let minute = json!({"trigger": "retry", "minute": "2026-11-23T04:15:00Z"});
    let (a, b, c, d, ()) = tokio::try_join!(
        invoke(&planned, json!({"trigger": "planned"})),
        invoke(&sweep, json!({"trigger": "sweep"})),
        invoke(&retry, minute),
        command(),
        hold
    )?;

    let sum = |name: &str| [&a, &b, &c, &d].iter().filter_map(|report| report[name].as_u64()).sum::<u64>();
    assert_eq!(
        (sum("success"), sum("failed"), sum("total")),
        (STREAMERS, 0, 4 * STREAMERS),
        "{a}\n{b}\n{c}\n{d}"
    );
    no_token_is_lost(&world, ids, 1).await
}

/// Two streamers in three that are granted are due as well; the check's campaign has some of either kind.
#[tokio::test]
async fn grants_and_checks_over_http_lose_no_pair_to_the_cycles() -> Result<()> {
    const GRANTED: usize = 30;
    let scheduled = binary("scheduled-refresh").await?;
    let world = World::start(Postgres::shared().await?, one_time()).await?;
    let ids = due(&world).await?;
    let mut keys = Vec::new();
    for id in &ids[..GRANTED] {
        keys.push(membership(&world, *id).await?);
    }
    let all = sqlx::query(
        "INSERT INTO campaign_memberships (campaign_id, streamer_id, status, invited_at, created_at, updated_at,
             poll_authorization_granted_at, poll_authorization_expires_at)
         SELECT $1, id, 'ACTIVE', $2, $2, $2, $2, $2 + interval '12 hours' FROM streamers
         ON CONFLICT DO NOTHING",
    );
    all.bind(keys[0].campaign.0).bind(world.clock.now()).execute(&world.pool).await?;
    let patient = changed(world.environment(), &[("HEALTH_CHECK_TIMEOUT", "25")]);
    let api = Api::start(&patient).await?;
    // As callers do that get a Retry-After.
    let ask = async |path: String| loop {
        let answer = api.ask("POST", &path).await?;
        if answer.status != 503 {
            return anyhow::Ok(answer);
        }
    };
    let grants = keys.iter().map(|key| ask(authorization_path(*key)));
    let checks = (0..3).map(|_| ask(check_path(keys[0].campaign)));
    let environment = world.environment();
    let cycle = async |input: Value| {
        let function = Function::start(&scheduled, &environment, Stdio::null()).await?;
        Ok(function.invoke(input, TIME_LEFT).await?)
    };

    let (granted, checked, planned, sweep) = tokio::try_join!(
        try_join_all(grants),
        try_join_all(checks),
        cycle(json!({"trigger": "planned"})),
        cycle(json!({"trigger": "sweep"}))
    )?;

    assert!(granted.iter().all(|answer| answer.status == 200), "{granted:?}");
    assert!(checked.iter().all(|answer| answer.status == 200), "{checked:?}");
    assert_eq!((&planned["failed"], &sweep["failed"]), (&json!(0), &json!(0)), "{planned} {sweep}");
    let failed = world
        .count("SELECT count(*) FROM token_refresh.refreshes WHERE outcome IN ('failed', 'deactivated')")
        .await?;
    let totals = world.twitch.totals();
    assert_eq!((failed, totals.reuses, totals.token_requests), (0, 0, totals.refreshes));
    for key in keys {
        assert!(authorization(&world, key).await?.1 > Some(world.clock.now()));
    }
    no_pair_is_lost(&world, ids).await
}
