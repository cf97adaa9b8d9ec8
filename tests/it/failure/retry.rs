//! The function behind the one-shots, invoked by hand. `scenario4` has it fired by the schedule that a planned run made.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tokens_domain::StreamerId;
use tokens_local::lambda::Function;
use tokens_local::twitch::Fault;
use tokens_local::world::NewStreamer;
use tokens_tests::{binary, world};
use uuid::Uuid;

#[tokio::test]
async fn a_retry_may_name_one_streamer() -> Result<()> {
    let world = world().await?;
    let one = world.add(NewStreamer::due("one")).await?;
    let other = world.add(NewStreamer::due("other")).await?;
    let inactive = world.add(NewStreamer { is_active: false, ..NewStreamer::due("inactive") }).await?;
    let over = world.add(NewStreamer { authorized_for: None, ..NewStreamer::due("over") }).await?;
    let retry = Function::start(&binary("retry-refresh").await?, &world.environment(), Stdio::null()).await?;
    let invoke = async |StreamerId(id)| {
        let input = json!({"trigger": "retry", "minute": "2026-11-23T04:15:00Z", "streamer_id": id});
        retry.invoke(input, Duration::from_mins(5)).await
    };

    let before = world.row(other).await?;
    let answer = invoke(one).await?;
    assert_eq!((&answer["total"], &answer["success"]), (&json!(1), &json!(1)), "{answer}");
    assert_eq!(world.row(other).await?, before);

    for (id, says) in [
        (inactive, "is deactivated and has to reconnect"),
        (over, "has no active authorization"),
        (StreamerId(Uuid::new_v4()), "no streamer has the id"),
    ] {
        let answer = invoke(id).await?;
        assert!(answer["message"].as_str().unwrap_or_default().contains(says), "{answer}");
        assert_eq!(answer["total"], 0);
    }
    Ok(())
}

#[tokio::test]
async fn a_retry_refreshes_what_failed_and_logs_how_late_it_was() -> Result<()> {
    let world = world().await?;
    let back = world.add(NewStreamer::due("back")).await?;
    world.twitch.fault("back", Fault::ServerError.times(1))?;
    let log = tempfile::NamedTempFile::new()?;
    let environment = world.environment();
    let planned = Function::start(&binary("scheduled-refresh").await?, &environment, Stdio::null()).await?;
    let report = planned.invoke(json!({"trigger": "planned"}), Duration::from_mins(5)).await?;
    assert_eq!(report["failed"], 1, "{report}");
    for change in [
        "UPDATE streamers SET token_refresh_failed_at = token_refresh_failed_at - interval '15 minutes'",
        "UPDATE token_refresh.streamers SET failed_at = failed_at - interval '15 minutes'",
    ] {
        sqlx::query(change).execute(&world.pool).await?;
    }
    let retry =
        Function::start(&binary("retry-refresh").await?, &environment, Stdio::from(log.reopen()?)).await?;
    let input = json!({"trigger": "retry", "minute": "2026-11-23T04:15:00Z"});
    let report = retry.invoke(input, Duration::from_mins(5)).await?;
    assert_eq!((&report["success"], &report["failed"]), (&json!(1), &json!(0)), "{report}");
    assert!(world.has_live_token(back).await?);
    let log = std::fs::read_to_string(log.path())?;
    assert!(log.contains("\"late_s\":") && log.contains("retry: 1 refreshed, 0 failed"), "{log}");
    Ok(())
}
