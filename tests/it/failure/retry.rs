//! The function behind the one-shots, as its own binary, fired by the schedules that the other function made.

use std::fs::File;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Result;
use chrono::{DateTime, Utc};
use domain::StreamerId;
use end_to_end::aws::{Schedule, SimulatedAws};
use end_to_end::{binary, world};
use local::lambda::Function;
use local::twitch::Fault;
use local::world::{NewStreamer, World};
use serde_json::{Value, json};
use uuid::Uuid;

const TIME_LEFT: Duration = Duration::from_mins(5);

/// A world on the machine's time, and an AWS.
struct Stage {
    world: World,
    aws: SimulatedAws,
}

impl Stage {
    async fn new() -> Result<Self> {
        Ok(Self { world: world().await?, aws: SimulatedAws::start().await? })
    }

    async fn function(&self, name: &str, log: Stdio) -> Result<Function> {
        let environment: Vec<_> =
            self.world.environment().into_iter().chain(self.aws.environment()).collect();
        Function::start(&binary(name).await?, &environment, log).await
    }

    async fn retry(&self) -> Result<Function> {
        self.function("retry-refresh", Stdio::null()).await
    }

    /// Everything that was armed, as if its minute had come.
    fn fire(&self) -> Vec<Schedule> {
        self.aws.due(DateTime::<Utc>::MAX_UTC)
    }

    /// The standing failures are a quarter of an hour older than they are.
    async fn a_quarter_of_an_hour_later(&self) -> Result<()> {
        for change in [
            "UPDATE streamers SET token_refresh_failed_at = token_refresh_failed_at - interval '15 minutes'",
            "UPDATE token_refresh.streamers SET failed_at = failed_at - interval '15 minutes'",
        ] {
            sqlx::query(change).execute(&self.world.pool).await?;
        }
        Ok(())
    }
}

fn by_hand(streamer: Option<Uuid>) -> Value {
    let mut input = json!({"trigger": "retry", "minute": "2026-11-23T04:15:00Z"});
    if let Some(id) = streamer {
        input["streamer_id"] = json!(id);
    }
    input
}

#[tokio::test]
async fn a_schedule_that_the_planned_run_made_retries_what_failed() -> Result<()> {
    let stage = Stage::new().await?;
    let back = stage.world.add(NewStreamer::due("back")).await?;
    let gone = stage.world.add(NewStreamer::due("gone")).await?;
    stage.world.twitch.fault("back", Fault::ServerError)?;
    stage.world.twitch.disconnect("gone")?;

    let planned = stage.function("scheduled-refresh", Stdio::null()).await?;
    let report = planned.invoke(json!({"trigger": "planned"}), TIME_LEFT).await?;
    assert_eq!((&report["failed"], &report["signals_failed"]), (&json!(2), &json!(0)), "{report}");
    stage.world.twitch.clear_faults("back")?;

    // Both failed within a minute, or on both sides of its end.
    let fired = stage.fire();
    assert!((1..=2).contains(&fired.len()), "{fired:?}");

    // Before its time it finds nothing due, and arms nothing twice.
    let log = tempfile::NamedTempFile::new()?;
    let retry = stage.function("retry-refresh", Stdio::from(File::create(log.path())?)).await?;
    let early = retry.invoke(fired[0].input(), TIME_LEFT).await?;
    assert!(early["message"].as_str().unwrap().starts_with("nothing was due"), "{early}");
    assert_eq!((&early["total"], &early["skipped"]), (&json!(2), &json!(2)));
    assert!(stage.aws.schedules().is_empty());

    stage.a_quarter_of_an_hour_later().await?;
    let answer = retry.invoke(fired[0].input(), TIME_LEFT).await?;
    assert_eq!((&answer["success"], &answer["deactivated"]), (&json!(1), &json!(1)), "{answer}");
    assert_eq!(answer["message"], "1 refreshed, 1 failed, 1 of them deactivated");
    assert!(stage.world.has_live_token(back).await?);
    assert!(!stage.world.row(gone).await?.is_active);
    let events = stage.aws.events();
    assert_eq!(events.len(), 1);
    assert_eq!(
        (&events[0].detail["streamer_id"], &events[0].detail["trigger"]),
        (&json!(gone), &json!("retry"))
    );

    // The same one-shot again, as Lambda may deliver it.
    let repeated = retry.invoke(fired[0].input(), TIME_LEFT).await?;
    assert!(repeated["message"].as_str().unwrap().starts_with("nothing was due"), "{repeated}");
    assert_eq!((&repeated["success"], &repeated["failed"]), (&json!(0), &json!(0)));
    drop(retry);
    let log = std::fs::read_to_string(log.path())?;
    assert_eq!(log.matches("retry: nothing was due").count(), 2, "{log}");
    assert!(log.contains("\"late_s\":") && log.contains("retry: 1 refreshed, 1 failed"), "{log}");
    Ok(())
}

#[tokio::test]
async fn a_stale_one_finds_nothing_due_and_says_so() -> Result<()> {
    let stage = Stage::new().await?;
    stage.world.add(NewStreamer::fresh("fresh")).await?;
    let answer = stage.retry().await?.invoke(by_hand(None), TIME_LEFT).await?;
    assert!(answer["message"].as_str().unwrap().starts_with("nothing was due"), "{answer}");
    assert_eq!((&answer["skipped"], &answer["validated"]), (&json!(1), &json!(0)));
    Ok(())
}

#[tokio::test]
async fn by_hand_it_is_for_one_streamer() -> Result<()> {
    let stage = Stage::new().await?;
    let one = stage.world.add(NewStreamer::due("one")).await?;
    let other = stage.world.add(NewStreamer::due("other")).await?;
    let inactive = stage.world.add(NewStreamer { is_active: false, ..NewStreamer::due("inactive") }).await?;
    let over = stage.world.add(NewStreamer { authorized_for: None, ..NewStreamer::due("over") }).await?;
    let retry = stage.retry().await?;

    let before = stage.world.row(other).await?;
    let answer = retry.invoke(by_hand(Some(one.0)), TIME_LEFT).await?;
    assert_eq!((&answer["total"], &answer["success"]), (&json!(1), &json!(1)), "{answer}");
    assert_eq!(stage.world.row(other).await?, before);

    for (StreamerId(id), says) in [
        (inactive, "is deactivated and has to reconnect"),
        (over, "has no active authorization"),
        (StreamerId(Uuid::new_v4()), "no streamer has the id"),
    ] {
        let answer = retry.invoke(by_hand(Some(id)), TIME_LEFT).await?;
        assert!(answer["message"].as_str().unwrap().contains(says), "{answer}");
        assert_eq!(answer["total"], 0);
    }
    Ok(())
}

#[tokio::test]
async fn a_wrong_input_is_shown_the_right_one() -> Result<()> {
    let stage = Stage::new().await?;
    let retry = stage.retry().await?;
    for wrong in [json!({"trigger": "sweep"}), json!({"detail-type": "Scheduled Event"})] {
        let error = retry.invoke(wrong, TIME_LEFT).await.unwrap_err();
        assert!(error.error_message.contains(r#"give {"trigger":"retry","minute":"#), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn half_a_configuration_is_a_fault_that_names_the_rest() -> Result<()> {
    let stage = Stage::new().await?;
    let environment: Vec<_> = stage
        .world
        .environment()
        .into_iter()
        .chain(stage.aws.environment())
        .filter(|(name, _)| name != "RETRY_ROLE_ARN")
        .collect();
    let retry = Function::start(&binary("retry-refresh").await?, &environment, Stdio::inherit()).await?;
    let error = retry.invoke(by_hand(None), TIME_LEFT).await.unwrap_err();
    assert!(error.error_message.contains("RETRY_ROLE_ARN is missing"), "{error}");
    Ok(())
}
