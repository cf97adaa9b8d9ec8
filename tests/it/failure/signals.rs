//! Signals over real HTTP: what a cycle sends to EventBridge Scheduler and to the bus, and what it makes of their failures.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use serde_json::json;
use tokens_aws::AwsSignals;
use tokens_aws::SignalsConfig;
use tokens_domain::CampaignId;
use tokens_domain::Clock as _;
use tokens_domain::Monotonic;
use tokens_domain::StreamerId;
use tokens_domain::policy::RefreshMode;
use tokens_domain::ports::{EventPublisher, RetryScheduler, SignalError, StreamerDeactivated};
use tokens_domain::refresh::{Cycle, Limits, SIGNAL_TIMEOUT};
use tokens_domain::schedule::{Trigger, retry_minute};
use tokens_local::clock::TurnableClock;
use tokens_local::world::NewStreamer;
use tokens_tests::aws::{Fault, Service, SimulatedAws};
use tokens_tests::{Still, run};
use uuid::Uuid;

/// A still world and an AWS on the same clock.
struct Stage {
    still: Still,
    aws: SimulatedAws,
}

impl Stage {
    async fn new() -> Result<Self> {
        let still = Still::new().await?;
        let aws = SimulatedAws::start_on(still.clock.clone()).await?;
        Ok(Self { still, aws })
    }

    /// What one process signals through.
    fn signals(&self) -> Result<AwsSignals> {
        let config = tokens_service::config::signals(&self.aws.environment().into_iter().collect())?;
        Ok(AwsSignals::new(config, self.aws.access(), self.still.clock.clone()))
    }

    /// A minute ahead.
    fn ahead(&self, minutes: i64) -> DateTime<Utc> {
        retry_minute(self.still.now() + TimeDelta::minutes(minutes))
    }

    /// Streamers whose next refusal is their second, 16 minutes after the first.
    async fn refused_before(&self, logins: &[&str]) -> Result<Vec<StreamerId>> {
        let ids =
            self.still.world.add_all(logins.iter().map(|login| NewStreamer::due(*login)).collect()).await?;
        for login in logins {
            self.still.world.twitch.disconnect(login)?;
        }
        // There is nothing to ask Twitch about, which confirms the second, whatever becomes of others.
        sqlx::query("UPDATE streamers SET token_refresh_failed_at = $1, access_token_encrypted = 'invalid'")
            .bind(self.still.now() - TimeDelta::minutes(16))
            .execute(&self.still.world.pool)
            .await?;
        Ok(ids)
    }
}

fn event() -> StreamerDeactivated {
    StreamerDeactivated {
        version: 1,
        streamer_id: StreamerId(Uuid::new_v4()),
        deactivated_at: DateTime::UNIX_EPOCH + TimeDelta::milliseconds(1_795_407_302_481),
        trigger: Trigger::Retry,
        campaign_ids: vec![CampaignId(Uuid::new_v4()), CampaignId(Uuid::new_v4())],
    }
}

#[tokio::test]
async fn a_failure_arms_one_schedule_and_every_field_of_it_is_right() -> Result<()> {
    let stage = Stage::new().await?;
    stage.still.clock.set("2035-11-23T03:59:30.5Z".parse()?);
    stage.still.world.add(NewStreamer::due("refused")).await?;
    stage.still.world.twitch.disconnect("refused")?;
    let service = stage.still.world.service_with(stage.signals()?, &[]).await?;

    let ran = run(&service, &Cycle::new(Trigger::Planned)).await;

    assert_eq!((ran.report.failed, ran.report.signals_failed), (1, 0), "{:?}", ran.report);
    let schedules = stage.aws.schedules();
    let [schedule] = schedules.as_slice() else { panic!("{schedules:?}") };
    assert_eq!(schedule.name, "retry-2035-11-23T0415Z");
    assert_eq!(schedule.input(), json!({"trigger": "retry", "minute": "2035-11-23T04:15:00Z"}));
    let expected = json!({
        "ActionAfterCompletion": "DELETE",
        "FlexibleTimeWindow": { "Mode": "OFF" },
        "GroupName": "token-refresh",
        "ScheduleExpression": "at(2035-11-23T04:15:00)",
        "ScheduleExpressionTimezone": "UTC",
        "Target": {
            "Arn": "arn:aws:lambda:eu-west-3:123456789012:function:retry-refresh",
            "DeadLetterConfig": { "Arn": "arn:aws:sqs:eu-west-3:123456789012:retry-refresh-dlq" },
            "Input": schedule.body["Target"]["Input"],
            "RetryPolicy": { "MaximumEventAgeInSeconds": 900, "MaximumRetryAttempts": 10 },
            "RoleArn": "arn:aws:iam::123456789012:role/retry-refresh-schedules",
        },
    });
    assert_eq!(schedule.body, expected);
    Ok(())
}

#[tokio::test]
async fn without_a_dead_letter_queue_none_is_named() -> Result<()> {
    let stage = Stage::new().await?;
    let environment = stage.aws.environment().into_iter().filter(|(name, _)| name != "RETRY_DLQ_ARN");
    let config = tokens_service::config::signals(&environment.collect())?;
    let signals = AwsSignals::new(config, stage.aws.access(), stage.still.clock.clone());
    signals.arm_retry(stage.ahead(15)).await?;
    assert_eq!(stage.aws.schedules()[0].body["Target"].get("DeadLetterConfig"), None);
    Ok(())
}

#[tokio::test]
async fn a_minute_that_another_process_has_armed_is_fine() -> Result<()> {
    let stage = Stage::new().await?;
    let minute = stage.ahead(15);
    stage.signals()?.arm_retry(minute).await?;
    stage.signals()?.arm_retry(minute).await?;
    assert_eq!((stage.aws.schedules().len(), stage.aws.requests(Service::Scheduler)), (1, 2));
    Ok(())
}

#[tokio::test]
async fn a_minute_that_is_too_near_becomes_the_next() -> Result<()> {
    let stage = Stage::new().await?;
    let minute = stage.ahead(1);
    stage.still.clock.set(minute - TimeDelta::milliseconds(500));
    stage.signals()?.arm_retry(minute).await?;
    assert_eq!(stage.aws.schedules()[0].at, minute + TimeDelta::minutes(1));
    Ok(())
}

#[tokio::test]
async fn throttling_and_a_lost_answer_are_tried_again() -> Result<()> {
    let stage = Stage::new().await?;
    let signals = stage.signals()?;
    for (fault, minutes) in [(Fault::Throttle, 15), (Fault::ServerError, 16), (Fault::HangUp, 17)] {
        let before = stage.aws.requests(Service::Scheduler);
        stage.aws.fault(Service::Scheduler, fault, 2);
        signals.arm_retry(stage.ahead(minutes)).await?;
        assert_eq!(stage.aws.requests(Service::Scheduler) - before, 3, "{fault:?}");
    }
    assert_eq!(stage.aws.schedules().len(), 3);
    Ok(())
}

#[tokio::test]
async fn what_is_not_allowed_is_reported_and_fails_no_cycle() -> Result<()> {
    let stage = Stage::new().await?;
    stage.still.world.add(NewStreamer::due("refused")).await?;
    stage.still.world.twitch.disconnect("refused")?;
    stage.aws.fault(Service::Scheduler, Fault::AccessDenied, 1);
    let signals = stage.signals()?;
    let service = stage.still.world.service_with(signals.clone(), &[]).await?;

    let ran = run(&service, &Cycle::new(Trigger::Sweep)).await;

    assert_eq!((ran.report.failed, ran.report.signals_failed, &ran.report.stopped), (1, 1, &None));
    let reason = ran.report.signal_failure.unwrap();
    for part in ["AccessDeniedException", "RETRY_ROLE_ARN", "iam:PassRole", "`token-refresh`", "next sweep"] {
        assert!(reason.contains(part), "{part} in {reason}");
    }
    assert_eq!(stage.aws.requests(Service::Scheduler), 1, "trying again would not help");

    // Only what was armed is remembered as armed.
    signals.arm_retry(stage.ahead(15)).await?;
    assert_eq!(stage.aws.schedules().len(), 1);
    Ok(())
}

#[tokio::test]
async fn errors_hold_neither_secrets_nor_addresses() -> Result<()> {
    let stage = Stage::new().await?;
    let config = || tokens_service::config::signals(&stage.aws.environment().into_iter().collect());
    let endpoint = stage.aws.endpoint().trim_start_matches("http://").to_owned();
    for fault in [Fault::Throttle, Fault::ServerError, Fault::AccessDenied, Fault::HangUp] {
        stage.aws.fault(Service::Scheduler, fault, 100);
        stage.aws.fault(Service::Events, fault, 100);
        let signals = AwsSignals::new(config()?, stage.aws.access(), stage.still.clock.clone());
        let errors = [
            signals.arm_retry(stage.ahead(15)).await.unwrap_err(),
            signals.publish(&event()).await.unwrap_err(),
        ];
        for error in errors.map(|error| error.0) {
            for secret in [&endpoint, "AKIA", "local-secret", "127.0.0.1"] {
                assert!(!error.contains(secret), "{secret} in {error}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn many_failures_make_one_schedule_a_minute_once_in_a_process() -> Result<()> {
    const FAILURES: usize = 300;
    let stage = Stage::new().await?;
    let Stage { still, aws } = &stage;
    still.world.add_all((0..FAILURES).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    for n in 0..FAILURES {
        still.world.twitch.disconnect(&format!("s{n}"))?;
    }
    // Failures of one, two and three minutes ago: refused again by force, each is to be retried at its own minute.
    let minute = still.now().trunc_subsecs(0);
    sqlx::query(
        "UPDATE streamers SET token_refresh_failed_at =
             $1::timestamptz - (1 + substr(twitch_login, 2)::int % 3) * interval '1 minute'",
    )
    .bind(minute)
    .execute(&still.world.pool)
    .await?;
    let service = still.world.service_with(stage.signals()?, &[]).await?;
    let cycle = Cycle { mode: RefreshMode::Forced, ..Cycle::new(Trigger::Command) };

    for round in 1..=2 {
        let ran = run(&service, &cycle).await;
        assert_eq!(
            (ran.report.failed, ran.report.deactivated, ran.report.signals_failed),
            (FAILURES as u64, 0, 0),
            "{:?}",
            ran.report
        );
        assert_eq!(aws.requests(Service::Scheduler), 3, "round {round}");
    }
    let at: Vec<_> = aws.schedules().iter().map(|schedule| schedule.at).collect();
    let expected = [3, 2, 1].map(|ago| retry_minute(minute + TimeDelta::minutes(15 - ago)));
    assert_eq!(at, expected);
    Ok(())
}

#[tokio::test]
async fn a_deactivation_is_published_as_the_schema_has_it() -> Result<()> {
    let stage = Stage::new().await?;
    let ids = stage.refused_before(&["gone"]).await?;
    let service = stage.still.world.service_with(stage.signals()?, &[]).await?;
    let ran = run(&service, &Cycle::new(Trigger::Retry)).await;
    assert_eq!((ran.report.deactivated, ran.report.signals_failed), (1, 0), "{:?}", ran.report);

    let events = stage.aws.events();
    let [event] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((event.bus.as_str(), event.source.as_str()), ("token-refresh", "twitch-token-refresh"));
    assert_eq!(event.detail_type, "streamer deactivated");
    assert_eq!(event.detail["streamer_id"], json!(ids[0]));
    assert_eq!(event.detail["trigger"], "retry");

    // And one with campaigns in it.
    stage.signals()?.publish(&self::event()).await?;
    let detail = stage.aws.events().swap_remove(1).detail;
    assert_eq!(detail["campaign_ids"].as_array().unwrap().len(), 2);

    let schema = include_str!("../../../docs/events/streamer-deactivated.schema.json");
    let schema = jsonschema::validator_for(&serde_json::from_str(schema)?)?;
    for valid in [&event.detail, &detail] {
        assert!(schema.is_valid(valid), "{valid}");
    }
    for (name, change) in [
        ("twitch_login", json!("gone")),
        ("version", json!(2)),
        ("streamer_id", json!("gone")),
        ("trigger", json!("a whim")),
        ("campaign_ids", json!(["gone"])),
        ("deactivated_at", json!("yesterday")),
    ] {
        let mut other = event.detail.clone();
        other[name] = change;
        assert!(!schema.is_valid(&other), "{other}");
    }
    for name in ["version", "streamer_id", "deactivated_at", "trigger", "campaign_ids"] {
        let mut other = event.detail.clone();
        other.as_object_mut().unwrap().remove(name);
        assert!(!schema.is_valid(&other), "{other}");
    }
    Ok(())
}

#[tokio::test]
async fn an_entry_that_is_not_taken_is_sent_again() -> Result<()> {
    let stage = Stage::new().await?;
    let signals = stage.signals()?;
    stage.aws.fault(Service::Events, Fault::FailEntries, 2);
    signals.publish(&event()).await?;
    assert_eq!((stage.aws.requests(Service::Events), stage.aws.events().len()), (3, 1));

    stage.aws.fault(Service::Events, Fault::FailEntries, usize::MAX);
    let error = signals.publish(&event()).await.unwrap_err().0;
    assert!(error.contains("the entry was not taken: InternalFailure"), "{error}");
    assert_eq!((stage.aws.requests(Service::Events), stage.aws.events().len()), (3 + 4, 1), "it gives up");
    Ok(())
}

#[tokio::test]
async fn a_bus_that_is_not_there_is_named() -> Result<()> {
    let stage = Stage::new().await?;
    let config = SignalsConfig { retries: None, event_bus: Some("elsewhere".to_owned()) };
    let signals = AwsSignals::new(config, stage.aws.access(), stage.still.clock.clone());
    let error = signals.publish(&event()).await.unwrap_err().0;
    assert!(error.contains("`elsewhere`") && error.contains("EVENT_BUS_NAME"), "{error}");
    assert_eq!(stage.aws.requests(Service::Events), 1, "that will not pass");
    signals.arm_retry(stage.ahead(15)).await?;
    assert_eq!(stage.aws.requests(Service::Scheduler), 0, "no retries are configured");
    Ok(())
}

/// Signals that are given, but slowly. The first takes what is left up to four seconds before the deadline.
#[derive(Clone)]
struct Slow {
    clock: Arc<TurnableClock>,
    deadline: Monotonic,
    given: Arc<AtomicUsize>,
}

impl Slow {
    fn give(&self) {
        match self.given.fetch_add(1, Ordering::Relaxed) {
            0 => {
                let left = self.deadline - self.clock.monotonic() - TimeDelta::seconds(4);
                self.clock.advance(left.to_std().unwrap_or_default());
            }
            _ => self.clock.advance(SIGNAL_TIMEOUT.to_std().unwrap_or_default()),
        }
    }
}

impl RetryScheduler for Slow {
    async fn arm_retry(&self, _minute: DateTime<Utc>) -> Result<(), SignalError> {
        self.give();
        Ok(())
    }
}

impl EventPublisher for Slow {
    async fn publish(&self, _event: &StreamerDeactivated) -> Result<(), SignalError> {
        self.give();
        Ok(())
    }
}

#[tokio::test]
async fn slow_signals_never_reach_the_deadline() -> Result<()> {
    let stage = Stage::new().await?;
    stage.refused_before(&["one", "two", "three"]).await?;
    let deadline = stage.still.clock.monotonic() + TimeDelta::minutes(2);
    let signals = Slow { clock: stage.still.clock.clone(), deadline, given: Arc::default() };
    let service = stage.still.world.service_with(signals.clone(), &[]).await?;

    let ran =
        run(&service, &Cycle { limits: Limits::of_function(Some(deadline)), ..Cycle::new(Trigger::Sweep) })
            .await;

    assert_eq!((ran.report.deactivated, signals.given.load(Ordering::Relaxed)), (3, 2), "{:?}", ran.report);
    assert!(ran.report.signals_failed >= 1, "{:?}", ran.report);
    assert!(ran.report.signal_failure.unwrap().contains("no time was left for it before the deadline"));
    assert!(stage.still.clock.monotonic() < deadline);
    Ok(())
}

#[tokio::test]
async fn a_bus_that_is_down_fails_no_cycle_and_is_left_alone_for_a_while() -> Result<()> {
    let stage = Stage::new().await?;
    let ids = stage.refused_before(&["one", "two", "three"]).await?;
    stage.aws.fault(Service::Events, Fault::HangUp, usize::MAX);
    let signals = stage.signals()?;
    let service = stage.still.world.service_with(signals.clone(), &[]).await?;

    let ran = run(&service, &Cycle::new(Trigger::Retry)).await;

    let report = ran.report;
    assert_eq!((report.deactivated, report.signals_failed, &report.stopped), (3, 3, &None), "{report:?}");
    assert!(report.signal_failure.unwrap().contains("notification timer"));
    for id in ids {
        assert!(!stage.still.world.row(id).await?.is_active);
    }
    assert_eq!(
        stage.aws.requests(Service::Events),
        4,
        "the first is tried four times, the others not at all"
    );

    stage.aws.clear_faults();
    assert!(signals.publish(&event()).await.is_err(), "still left alone");
    // The other service is not affected.
    signals.arm_retry(stage.ahead(15)).await?;
    stage.still.turn(1);
    signals.publish(&event()).await?;
    assert_eq!(stage.aws.events().len(), 1);
    Ok(())
}

#[tokio::test]
async fn nothing_is_asked_where_nothing_is_configured() -> Result<()> {
    let stage = Stage::new().await?;
    let signals =
        AwsSignals::new(SignalsConfig::default(), stage.aws.access(), Arc::clone(&stage.still.world.clock));
    signals.arm_retry(stage.ahead(15)).await?;
    signals.publish(&event()).await?;
    assert_eq!((stage.aws.requests(Service::Scheduler), stage.aws.requests(Service::Events)), (0, 0));
    Ok(())
}
