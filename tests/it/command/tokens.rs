//! The command, as its own binary: the brief's scenarios 2 and 3, and its answers to bad input.

use anyhow::{Result, ensure};
use chrono::TimeDelta;
use serde_json::Value;
use tokens_local::postgres::Postgres;
use tokens_local::world::{NewStreamer, World};
use tokens_push::Vapid;
use tokens_service::config::{NotifyConfig, VapidConfig};
use tokens_tests::{Printed, Sql as _, changed, tokens, world};

async fn run(world: &World, arguments: &[&str]) -> Result<Printed> {
    tokens(&world.environment(), arguments).await
}

fn lines(printed: &Printed, lines: &[&str]) {
    for line in lines {
        assert!(
            printed.stdout.lines().any(|printed| printed == *line),
            "no line `{line}` in\n{}",
            printed.stdout
        );
    }
}

/// A world with one streamer who is due and one who is not.
async fn two() -> Result<(World, tokens_domain::StreamerId, tokens_domain::StreamerId)> {
    let world = world().await?;
    let due = world.add(NewStreamer::due("bastien")).await?;
    let fresh = world.add(NewStreamer::fresh("aria")).await?;
    Ok((world, due, fresh))
}

/// As from cron, where no function runs.
#[tokio::test]
async fn a_cycle_of_the_command_remembers_the_sessions() -> Result<()> {
    let world = world().await?;
    let aria = world.add(NewStreamer::due("aria")).await?.to_string();
    world.add(NewStreamer::due("gone")).await?;
    let remembered = async || -> Result<(i64, i64)> {
        Ok(sqlx::query_as(
            "SELECT (SELECT count(*) FROM token_refresh.sessions), (SELECT count(*) FROM token_refresh.streamers)",
        )
        .fetch_one(&world.pool)
        .await?)
    };
    for alone in [&["refresh", "--dry-run"][..], &["refresh", &aria]] {
        ensure!(tokens(&world.environment(), alone).await?.code == 0);
        assert_eq!(remembered().await?.0, 0, "{alone:?}");
    }
    ensure!(tokens(&world.environment(), &["refresh"]).await?.code == 0);
    assert_eq!(remembered().await?, (2, 2));
    world.sql("DELETE FROM streamers WHERE twitch_login = 'gone'").await?;
    ensure!(tokens(&world.environment(), &["refresh"]).await?.code == 0);
    assert_eq!(remembered().await?, (2, 1));
    Ok(())
}

#[tokio::test]
async fn scenario_2_due_tokens_are_refreshed_and_valid_ones_skipped() -> Result<()> {
    let (world, due, _) = two().await?;
    let printed = run(&world, &["refresh"]).await?;
    assert_eq!(printed.code, 0, "{printed:?}");
    lines(
        &printed,
        &[
            "Found 2 streamer(s) with active authorization:",
            "  - Aria (aria) ✓",
            "              REPORT",
            "Total streamers: 2",
            "Success: 1",
            "Failed: 0",
            "Skipped: 1",
        ],
    );
    assert!(printed.stdout.contains("  - Bastien (bastien) ⚠ expires in 29 min"), "{}", printed.stdout);
    assert!(printed.stdout.contains("  - Aria (aria): valid for 2 h 59"), "{}", printed.stdout);
    assert!(printed.stdout.contains("\n\nTimes are UTC, now 2"), "{}", printed.stdout);
    assert!(world.has_live_token(due).await?);
    let row = world.row(due).await?;
    assert!(row.token_expires_at > Some(world.clock.now() + TimeDelta::hours(3)));
    assert_eq!(printed.stderr, "", "a pipe gets no progress bar");
    Ok(())
}

#[tokio::test]
async fn scenario_3_every_combination_of_options() -> Result<()> {
    let (world, due, fresh) = two().await?;
    let (due_id, fresh_id) = (due.to_string(), fresh.to_string());
    let asked = || world.twitch.totals().token_requests;

    for (arguments, would) in [
        (vec!["refresh", "--dry-run"], 1),
        (vec!["refresh", "--dry-run", "--force"], 2),
        (vec!["refresh", &fresh_id, "--dry-run"], 0),
        (vec!["refresh", &fresh_id, "--force", "--dry-run"], 1),
    ] {
        let printed = run(&world, &arguments).await?;
        assert_eq!(printed.code, 0, "{printed:?}");
        lines(&printed, &[&format!("Would refresh: {would}"), "Success: 0"]);
        assert_eq!(asked(), 0, "a dry run does not call Twitch");
    }

    let printed = run(&world, &["refresh", &fresh_id]).await?;
    lines(&printed, &["Total streamers: 1", "Success: 0", "Skipped: 1"]);
    let printed = run(&world, &["refresh", &due_id]).await?;
    lines(&printed, &["Total streamers: 1", "Success: 1", "Skipped: 0"]);
    let printed = run(&world, &["refresh", &fresh_id, "--force"]).await?;
    lines(&printed, &["Total streamers: 1", "Success: 1"]);
    let printed = run(&world, &["refresh", "--force"]).await?;
    lines(&printed, &["Total streamers: 2", "Success: 2", "Skipped: 0"]);
    assert_eq!(asked(), 4);
    Ok(())
}

#[tokio::test]
async fn a_failure_has_its_reason_and_the_exit_code_1() -> Result<()> {
    let (world, due, _) = two().await?;
    world.twitch.disconnect("bastien")?;
    let printed = run(&world, &["refresh"]).await?;
    assert_eq!(printed.code, 1);
    lines(&printed, &["Success: 0", "Failed: 1"]);
    let reason =
        "  ✗ Bastien (bastien): Twitch answered 400: Invalid refresh token (refusal recorded, retry at ";
    assert!(printed.stdout.contains(reason), "{}", printed.stdout);
    assert!(world.row(due).await?.is_active);
    Ok(())
}

#[tokio::test]
async fn json_is_one_document() -> Result<()> {
    let (world, due, _) = two().await?;
    let printed = run(&world, &["refresh", "--json"]).await?;
    let document: Value = serde_json::from_str(&printed.stdout)?;
    assert_eq!(document["report"]["success"], 1);
    assert_eq!(document["report"]["stopped"], Value::Null);
    let streamers = document["streamers"].as_array().unwrap();
    let bastien = streamers.iter().find(|streamer| streamer["login"] == "bastien").unwrap();
    assert_eq!((&bastien["id"], &bastien["outcome"]), (&due.to_string().into(), &"refreshed".into()));

    let status: Value = serde_json::from_str(&run(&world, &["status", "--json"]).await?.stdout)?;
    assert_eq!(status.as_array().unwrap().len(), 2);
    let history: Value =
        serde_json::from_str(&run(&world, &["history", &due.to_string(), "--json"]).await?.stdout)?;
    assert_eq!((&history[0]["trigger"], &history[0]["outcome"]), (&"command".into(), &"refreshed".into()));
    Ok(())
}

#[tokio::test]
async fn status_and_history_need_no_key_and_no_credentials() -> Result<()> {
    let (world, due, fresh) = two().await?;
    run(&world, &["refresh"]).await?;
    let bare: Vec<_> = world.environment().into_iter().filter(|(name, _)| name == "DATABASE_URL").collect();
    let printed = tokens(&bare, &["status"]).await?;
    assert_eq!(printed.code, 0, "{printed:?}");
    assert!(printed.stdout.contains("2 authorized"), "{}", printed.stdout);
    let ids_last = [due, fresh].iter().all(|id| printed.stdout.contains(&format!("  {id}\n")));
    assert!(ids_last, "{}", printed.stdout);
    let printed = tokens(&bare, &["history", &due.to_string()]).await?;
    assert!(printed.stdout.contains("refreshed"), "{}", printed.stdout);
    assert!(printed.stdout.contains("\n\nTimes are UTC, now 2"), "{}", printed.stdout);
    let printed = tokens(&bare, &["history", &fresh.to_string()]).await?;
    assert_eq!(printed.code, 0);
    assert!(printed.stdout.starts_with("No refresh of this streamer is on record"), "{}", printed.stdout);
    Ok(())
}

/// The arguments or the environment are wrong: this exit code, and this text on standard error.
async fn refused(environment: &[(String, String)], arguments: &[&str], code: i32, says: &str) -> Result<()> {
    let printed = tokens(environment, arguments).await?;
    assert_eq!(printed.code, code, "{arguments:?}: {printed:?}");
    assert!(printed.stderr.contains(says), "`{says}` is not in {}", printed.stderr);
    Ok(())
}

#[tokio::test]
async fn wrong_usage_ends_with_2() -> Result<()> {
    let environment = Vec::new();
    for command in ["refresh", "history", "reactivate"] {
        refused(
            &environment,
            &[command, "bastien"],
            2,
            "give the streamer's id, a UUID: `tokens status` lists",
        )
        .await?;
    }
    refused(&environment, &["refresh", "--frce"], 2, "--force").await?;
    refused(&environment, &["history"], 2, "<STREAMER_ID>").await?;
    refused(&environment, &["refesh"], 2, "refresh").await
}

#[tokio::test]
async fn a_streamer_that_cannot_be_refreshed_is_named() -> Result<()> {
    let world = world().await?;
    let inactive = world.add(NewStreamer { is_active: false, ..NewStreamer::due("jules") }).await?;
    let over = world.add(NewStreamer { authorized_for: None, ..NewStreamer::due("ines") }).await?;
    let environment = world.environment();
    for force in [&[][..], &["--force"]] {
        let arguments = |id: &str| {
            [&["refresh", id][..], force].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        for (id, says) in [
            (uuid::Uuid::new_v4().to_string(), "no streamer has the id"),
            (inactive.to_string(), "Jules (jules) is deactivated"),
            (over.to_string(), "Ines (ines) has no active authorization"),
        ] {
            let arguments = arguments(&id);
            let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
            refused(&environment, &arguments, 1, says).await?;
        }
    }
    refused(&environment, &["history", &uuid::Uuid::new_v4().to_string()], 1, "no streamer has the id")
        .await?;
    assert_eq!(world.twitch.totals().token_requests, 0);
    Ok(())
}

#[tokio::test]
async fn all_faults_of_a_configuration_are_listed_at_once_and_without_values() -> Result<()> {
    let (world, _, _) = two().await?;
    refused(&[], &["refresh"], 1, "DATABASE_URL is missing").await?;
    for (changes, says) in [
        (&[("TWITCH_CLIENT_SECRET", "")][..], "TWITCH_CLIENT_SECRET is missing"),
        (&[("APP_KEY", "short-key")], "APP_KEY"),
        (&[("TOKEN_KEYS", "a:bm90LTMyLWJ5dGVz")], "TOKEN_KEYS"),
        (&[("DATABASE_URL", "postgres://app:pa55word@db.example.com/polls")], "sslmode=verify-full"),
        (
            &[("RETRY_DELAY", "abc"), ("DEACTIVATION", "maybe")],
            "\n  - RETRY_DELAY is not a whole number from 1 to 1799\n  - DEACTIVATION is neither `on` nor `off`",
        ),
    ] {
        let environment = changed(world.environment(), changes);
        refused(&environment, &["refresh"], 1, says).await?;
        let printed = tokens(&environment, &["refresh"]).await?;
        for value in ["short-key", "bm90LTMyLWJ5dGVz", "pa55word"] {
            assert!(!printed.stderr.contains(value), "{}", printed.stderr);
        }
    }
    assert_eq!(world.twitch.totals().token_requests, 0);
    Ok(())
}

#[tokio::test]
async fn a_wrong_key_marks_a_row_as_an_outage_and_raises_an_alarm() -> Result<()> {
    let (world, due, _) = two().await?;
    let environment = changed(world.environment(), &[("APP_KEY", "another-app-key-than-the-rows-have")]);
    let printed = tokens(&environment, &["refresh"]).await?;
    assert_eq!(printed.code, 1);
    assert!(
        printed.stdout.contains("fails authentication") && printed.stdout.contains("outage recorded"),
        "{printed:?}"
    );
    assert!(world.row(due).await?.is_active);

    let printed = tokens(&environment, &["refresh"]).await?;
    assert_eq!(printed.code, 1, "a streamer that waits for a retry is a failure");
    lines(&printed, &["Failed: 0", "Skipped: 2", "  waiting for a retry: 1"]);
    assert!(printed.stderr.contains("1 streamer(s) have failed and wait for a retry"), "{}", printed.stderr);
    let printed = tokens(&environment, &["refresh", "--json"]).await?;
    let document: Value = serde_json::from_str(&printed.stdout)?;
    assert_eq!((&document["report"]["skipped"], &document["report"]["waiting"]), (&2.into(), &1.into()));
    assert_eq!(tokens(&environment, &["refresh", "--dry-run"]).await?.code, 0);

    let printed = run(&world, &["refresh"]).await?;
    assert_eq!(printed.code, 0, "{printed:?}");
    lines(&printed, &["Success: 1", "Skipped: 1"]);
    Ok(())
}

#[tokio::test]
async fn credentials_that_twitch_refuses_are_named() -> Result<()> {
    let (world, due, _) = two().await?;
    let environment = changed(world.environment(), &[("TWITCH_CLIENT_SECRET", "not-the-secret")]);
    refused(
        &environment,
        &["refresh"],
        1,
        "Twitch answered 403: invalid client secret: check TWITCH_CLIENT_ID",
    )
    .await?;
    assert_eq!(world.row(due).await?.token_refresh_failed_at, None);
    let printed = tokens(&environment, &["refresh", "--force"]).await?;
    let left =
        printed.stdout.matches(": the cycle stopped early, or had no time for it: left to the next run");
    assert_eq!(left.count(), 2, "{printed:?}");
    Ok(())
}

#[tokio::test]
async fn a_database_that_cannot_be_reached_is_named() -> Result<()> {
    let (world, _, _) = two().await?;
    for (url, says) in [
        ("postgres://postgres@localhost/x?host=/nowhere", "/nowhere"),
        // Port 9 is discard: nothing listens there.
        ("postgres://postgres@127.0.0.1:9/x", "127.0.0.1:9 can't be reached: Connection refused"),
    ] {
        let environment = changed(world.environment(), &[("DATABASE_URL", url)]);
        refused(&environment, &["refresh", "--timeout", "20s"], 1, says).await?;
        refused(&environment, &["migrate"], 1, "check DATABASE_URL").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_schema_that_is_missing_or_old_says_to_migrate() -> Result<()> {
    let (world, _, _) = two().await?;
    let mut versions = Vec::new();
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations"))? {
        let name = file?.file_name().into_string().unwrap_or_default();
        versions.extend(name.split('_').next().and_then(|number| number.parse::<i64>().ok()));
    }
    versions.sort_unstable();
    let [.., before, newest] = versions[..] else { panic!("{versions:?}") };
    let empty = Postgres::shared().await?.create_empty().await?;
    let environment = changed(world.environment(), &[("DATABASE_URL", empty.url())]);
    for command in [&["refresh"][..], &["status"]] {
        refused(&environment, command, 1, "run `tokens migrate`").await?;
    }
    let unrelated = "has none of the application's tables (public.users, ";
    refused(&environment, &["migrate"], 1, unrelated).await?;
    let pool = sqlx::PgPool::connect(empty.url()).await?;
    let nothing = "SELECT NOT EXISTS (SELECT FROM pg_tables WHERE schemaname IN ('public', 'token_refresh'))";
    assert!(sqlx::query_scalar::<_, bool>(nothing).fetch_one(&pool).await?);
    let printed = tokens(&environment, &["migrate", "--create-tables"]).await?;
    assert_eq!(
        (printed.code, printed.stdout.as_str()),
        (0, format!("The database is at version {newest}.\n").as_str()),
        "{printed:?}"
    );
    assert_eq!(tokens(&environment, &["migrate"]).await?.code, 0, "twice is fine");
    assert_eq!(tokens(&environment, &["refresh"]).await?.code, 0);

    let forget = sqlx::query("DELETE FROM token_refresh._sqlx_migrations WHERE version = $1");
    forget.bind(newest).execute(&pool).await?;
    let says = format!("at version {before} and this program needs {newest}: run `tokens migrate`");
    refused(&environment, &["refresh"], 1, &says).await?;
    assert_eq!(tokens(&environment, &["migrate"]).await?.code, 0);
    let future = sqlx::query("UPDATE token_refresh._sqlx_migrations SET version = 1000 WHERE version = $1");
    future.bind(newest).execute(&pool).await?;
    let printed = tokens(&environment, &["migrate"]).await?;
    let works = format!(
        "The database is at version 1000, newer than this program's {newest}, which works on it as well.\n"
    );
    assert_eq!((printed.code, printed.stdout.as_str()), (0, works.as_str()), "{printed:?}");
    Ok(())
}

#[tokio::test]
async fn a_generated_key_pair_is_in_the_forms_that_are_configured() -> Result<()> {
    let printed =
        tokens(&[], &["vapid", "generate", "--subject", "mailto:operator@twitch-polls.net"]).await?;
    assert_eq!(printed.code, 0, "{printed:?}");
    let mut environment: Vec<(String, String)> = printed
        .stdout
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let names: Vec<_> = environment.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["VAPID_PUBLIC_KEY", "VAPID_PRIVATE_KEY", "VAPID_SUBJECT"]);
    environment.push(("DATABASE_URL".to_owned(), "postgres://app@localhost/twitch_polls".to_owned()));
    let VapidConfig { public_key, private_key, subject, .. } =
        NotifyConfig::read(&environment.into_iter().collect())?.vapid;
    Vapid::new(&public_key, private_key.expose(), &subject)?;

    let printed = tokens(&[], &["vapid", "generate", "--json"]).await?;
    let keys: Value = serde_json::from_str(&printed.stdout)?;
    let key = |name: &str| keys[name].as_str().unwrap_or_default().to_owned();
    assert_ne!(key("publicKey"), public_key, "each pair is a new one");
    Vapid::new(&key("publicKey"), &key("privateKey"), &subject)?;
    Ok(())
}

#[tokio::test]
async fn without_a_subject_it_says_what_is_missing_and_a_bad_one_is_refused() -> Result<()> {
    let printed = tokens(&[], &["vapid", "generate"]).await?;
    assert_eq!(printed.code, 0, "{printed:?}");
    assert!(printed.stdout.ends_with("\nVAPID_SUBJECT=\n"), "{printed:?}");

    let printed = tokens(&[], &["vapid", "generate", "--subject", "mailto:me@localhost"]).await?;
    assert_eq!((printed.code, printed.stdout.as_str()), (1, ""));
    assert!(printed.stderr.contains("VAPID_SUBJECT is not an address"), "{printed:?}");
    Ok(())
}
