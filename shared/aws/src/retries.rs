//! Retries: a one-shot schedule for each minute in which a retry is due.
//!
//! The schedule's name is its minute, so that making it twice is harmless, and it names no streamer: the database
//! knows who is due by then.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_scheduler::Client;
use aws_sdk_scheduler::error::ProvideErrorMetadata as _;
use aws_sdk_scheduler::operation::create_schedule::CreateScheduleError;
use aws_sdk_scheduler::operation::get_schedule_group::GetScheduleGroupError;
use aws_sdk_scheduler::types::{
    ActionAfterCompletion, DeadLetterConfig, FlexibleTimeWindow, FlexibleTimeWindowMode, RetryPolicy, Target,
};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::json;
use tokens_domain::Clock;
use tokens_domain::ports::SignalError;
use tokens_domain::schedule::{Trigger, retry_minute};
use tokio::sync::OnceCell;

use crate::guard::Guard;
use crate::{Failure, Sdk};

/// How EventBridge Scheduler runs a cycle again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryConfig {
    /// `RETRY_GROUP`: the schedule group.
    pub group: String,
    /// `RETRY_TARGET_ARN`: the function that is invoked.
    pub target_arn: String,
    /// `RETRY_ROLE_ARN`: the role under which it is invoked.
    pub role_arn: String,
    /// `RETRY_DLQ_ARN`: the SQS queue for what could not be delivered.
    pub dlq_arn: Option<String>,
}

/// A schedule has to be there before its minute begins: as long as making it may take.
const AHEAD: TimeDelta = tokens_domain::refresh::SIGNAL_TIMEOUT;

/// In seconds. An invocation that EventBridge Scheduler couldn't deliver for this long has been overtaken by a sweep,
/// which comes every 15 minutes; it goes to the dead-letter queue.
const OVERTAKEN_AFTER: i32 = 15 * 60;

/// Deliveries that EventBridge Scheduler tries again. Its pauses grow, so that ten fill [`OVERTAKEN_AFTER`].
const DELIVERIES: i32 = 10;

/// Minutes that are remembered as armed. A retry lies less than half an hour ahead.
const REMEMBERED: usize = 120;

/// Whether the schedule group is there that retries are made in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetryGroup {
    /// It is.
    There,
    /// It is not.
    Missing,
    /// The caller may not look, for this reason.
    Hidden(String),
    /// EventBridge Scheduler can't be asked, for this reason.
    OutOfReach(String),
}

impl RetryGroup {
    /// Looks it up. Needs the right `scheduler:GetScheduleGroup`, which no function has.
    pub async fn look_up(config: &RetryConfig, sdk: &Sdk) -> Self {
        let sdk = match sdk.config().await {
            Ok(config) => config,
            Err(failure) => return Self::OutOfReach(failure.reason),
        };
        match Client::new(sdk).get_schedule_group().name(&config.group).send().await {
            Ok(_) => Self::There,
            Err(error)
                if error
                    .as_service_error()
                    .is_some_and(GetScheduleGroupError::is_resource_not_found_exception) =>
            {
                Self::Missing
            }
            Err(error) => {
                let hidden = error.code() == Some("AccessDeniedException");
                let Failure { reason, .. } = error.into();
                if hidden { Self::Hidden(reason) } else { Self::OutOfReach(reason) }
            }
        }
    }
}

/// Makes the schedules, each once.
pub(super) struct Retries {
    config: RetryConfig,
    sdk: Sdk,
    client: OnceCell<Client>,
    clock: Arc<dyn Clock>,
    guard: Guard,
    armed: Mutex<BTreeSet<DateTime<Utc>>>,
}

impl Retries {
    pub(super) fn new(config: RetryConfig, sdk: Sdk, clock: Arc<dyn Clock>) -> Self {
        let guard = Guard::new(clock.clone());
        Self { config, sdk, client: OnceCell::new(), clock, guard, armed: Mutex::default() }
    }

    /// Has the function run in this minute, or in the next one that there is time to arrange.
    pub(super) async fn arm(&self, minute: DateTime<Utc>) -> Result<(), SignalError> {
        let now = self.clock.now();
        let minute = retry_minute(minute).max(retry_minute(now + AHEAD));
        if self.is_armed(minute, now) {
            return Ok(());
        }
        self.guard.call(Box::pin(self.create(minute))).await.map_err(|failure| {
            let RetryConfig { group, .. } = &self.config;
            SignalError(format!(
                "the retry of {} could not be armed at EventBridge Scheduler: {}; check that the schedule group `{group}` \
                 exists (RETRY_GROUP), that this function may call scheduler:CreateSchedule there and iam:PassRole \
                 on RETRY_ROLE_ARN, and that it can reach the service. The next sweep retries instead",
                minute.format("%H:%M"),
                failure.reason
            ))
        })?;
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        armed.insert(minute);
        if armed.len() > REMEMBERED {
            armed.pop_first();
        }
        Ok(())
    }

    /// Forgets what is past on the way.
    fn is_armed(&self, minute: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        armed.retain(|armed| *armed > now);
        armed.contains(&minute)
    }

    async fn create(&self, minute: DateTime<Utc>) -> Result<(), Failure> {
        let client = self
            .client
            .get_or_try_init(async || Ok::<_, Failure>(Client::new(self.sdk.config().await?)))
            .await?;
        let RetryConfig { group, target_arn, role_arn, dlq_arn } = &self.config;
        let unfit = |error: aws_sdk_scheduler::error::BuildError| Failure::refused(error.to_string());
        let retry_policy = RetryPolicy::builder()
            .maximum_event_age_in_seconds(OVERTAKEN_AFTER)
            .maximum_retry_attempts(DELIVERIES)
            .build();
        let input = json!({
            "trigger": Trigger::Retry,
            "minute": minute.to_rfc3339_opts(SecondsFormat::Secs, true),
        });
        let target = Target::builder()
            .arn(target_arn)
            .role_arn(role_arn)
            .set_dead_letter_config(dlq_arn.as_ref().map(|arn| DeadLetterConfig::builder().arn(arn).build()))
            .retry_policy(retry_policy)
            .input(input.to_string())
            .build()
            .map_err(unfit)?;
        let window =
            FlexibleTimeWindow::builder().mode(FlexibleTimeWindowMode::Off).build().map_err(unfit)?;
        let created = client
            .create_schedule()
            .group_name(group)
            .name(minute.format("retry-%Y-%m-%dT%H%MZ").to_string())
            .schedule_expression(minute.format("at(%Y-%m-%dT%H:%M:%S)").to_string())
            .schedule_expression_timezone("UTC")
            .flexible_time_window(window)
            .action_after_completion(ActionAfterCompletion::Delete)
            .target(target)
            .send()
            .await;
        match created {
            Ok(_) => Ok(()),
            // Another run has made it.
            Err(error)
                if error.as_service_error().is_some_and(CreateScheduleError::is_conflict_exception) =>
            {
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}
