//! The Lambda function, as its own binary, fed by a Runtime API.

use std::fs::read_to_string;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tokens_local::binaries::workspace;
use tokens_local::lambda::Function;
use tokens_local::twitch::Fault;
use tokens_local::world::{NewStreamer, World};
use tokens_tests::{binary, world};

const TIME_LEFT: Duration = Duration::from_mins(5);

async fn function(world: &World) -> Result<Function> {
    Function::start(&binary("scheduled-refresh").await?, &world.environment(), Stdio::null()).await
}

#[tokio::test]
async fn a_planned_run_refreshes_and_answers_with_its_report() -> Result<()> {
    let world = world().await?;
    let due = world.add(NewStreamer::due("due")).await?;
    world.add(NewStreamer::fresh("fresh")).await?;
    world.add(NewStreamer::due("refused")).await?;
    world.twitch.disconnect("refused")?;
    let old = "INSERT INTO token_refresh.refreshes (streamer_id, fence, trigger, started_at, ended_at, outcome)
               VALUES (gen_random_uuid(), 1, 'sweep', now() - interval '31 days', now() - interval '31 days', 'refreshed')";
    sqlx::query(old).execute(&world.pool).await?;
    let function = function(&world).await?;

    let report = function.invoke(json!({"trigger": "planned"}), TIME_LEFT).await?;

    assert!(report["duration_ms"].is_u64(), "{report}");
    for (count, expected) in [("total", 3), ("success", 1), ("failed", 1), ("skipped", 1), ("validated", 0)] {
        assert_eq!(report[count], expected, "{count} in {report}");
    }
    assert!(world.has_live_token(due).await?);
    let kept: i64 =
        sqlx::query_scalar("SELECT count(*) FROM token_refresh.refreshes").fetch_one(&world.pool).await?;
    assert_eq!(kept, 2, "what is older than 30 days is forgotten");

    // A warm function: the same event again finds nothing due.
    let report = function.invoke(json!({"trigger": "planned"}), TIME_LEFT).await?;
    assert_eq!((&report["success"], &report["skipped"]), (&json!(0), &json!(3)));
    Ok(())
}

#[tokio::test]
async fn an_outage_of_twitch_is_not_an_error_but_an_unknown_event_and_a_short_timeout_are() -> Result<()> {
    let world = world().await?;
    world.add_all((0..30).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    let function = function(&world).await?;
    let error = function.invoke(json!({"detail-type": "Scheduled Event"}), TIME_LEFT).await.unwrap_err();
    assert!(error.error_message.contains("give the rule the input"), "{error}");
    let error = function.invoke(json!({"trigger": "planned"}), Duration::from_secs(20)).await.unwrap_err();
    assert!(error.error_message.contains("a timeout of at least three minutes"), "{error}");
    assert_eq!(world.twitch.totals().token_requests, 0);

    world.twitch.fault_for_everybody(Fault::ServerError);
    let report = function.invoke(json!({"trigger": "planned"}), TIME_LEFT).await?;
    assert!(report["stopped"].as_str().unwrap().contains("Twitch seems to be down"), "{report}");
    Ok(())
}

/// What a person signs in with is the command's alone: the functions' zips have no part of it.
#[test]
fn the_functions_are_built_without_what_the_command_needs_of_aws() -> Result<()> {
    let only_the_commands =
        ["aws-sdk-cloudformation", "aws-sdk-lambda", "aws-sdk-signin", "aws-sdk-sso", "aws-sdk-ssooidc"];
    let build = read_to_string(workspace().join(".ci/lambda/build"))?;
    let words: Vec<_> = build.split_whitespace().collect();
    let functions: Vec<_> =
        words.windows(2).filter(|pair| pair[0] == "--package").map(|pair| pair[1]).collect();
    assert_eq!(functions.len(), 5, "{functions:?}");
    for (packages, has_them) in [(functions.as_slice(), false), (&["tokens-cli"], true)] {
        let tree = Command::new(env!("CARGO"))
            .args(["tree", "--locked", "--offline", "--edges", "normal", "--prefix", "none"])
            .args(packages.iter().flat_map(|package| ["--package", package]))
            .current_dir(workspace())
            .output()?;
        let tree = String::from_utf8(tree.stdout)?;
        let has = |name: &str| tree.lines().any(|line| line.starts_with(&format!("{name} ")));
        assert!(has("aws-config"), "{packages:?}: {tree}");
        for name in only_the_commands {
            assert_eq!(has(name), has_them, "{name} in {packages:?}");
        }
    }
    Ok(())
}
