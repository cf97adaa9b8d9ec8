//! One event, one cycle.

use std::sync::Arc;

use adapters::config::TwitchConfig;
use adapters::signals::NoSignals;
use adapters::store::PgStore;
use adapters::telemetry::{log_outcome, log_report};
use adapters::twitch::TwitchClient;
use chrono::DateTime;
use domain::Clock;
use domain::policy::Policy;
use domain::refresh::{Cycle, RefreshService};
use domain::report::Report;
use domain::schedule::Trigger;
use lambda_runtime::{Error, LambdaEvent};
use serde_json::Value;

/// What outlives an event.
pub struct Handler {
    pub store: PgStore,
    pub twitch: TwitchConfig,
    pub policy: Policy,
    pub clock: Arc<dyn Clock>,
}

impl Handler {
    /// Runs the cycle that the rule's input names and answers with its report. An error is for what a human has to
    /// mend; Twitch being down is none, the next sweep goes on.
    pub async fn handle(&self, event: LambdaEvent<Value>) -> Result<Report, Error> {
        let trigger = trigger(&event.payload)?;
        let cycle = Cycle { deadline: deadline(event.context.deadline), ..Cycle::new(trigger) };
        let twitch = TwitchClient::new(self.twitch.clone(), self.clock.clone())?;
        let in_flight = self.twitch.in_flight();
        let service = RefreshService::new(
            self.store.clone(),
            twitch,
            NoSignals,
            self.clock.clone(),
            self.policy,
            in_flight,
        );
        let report = service.run(&cycle, &log_outcome).await;
        log_report(&report);
        // Before anything else: a misconfigured function is when the coverage is needed.
        if let Err(error) = self.store.database().remember_sessions(self.clock.now()).await {
            tracing::warn!(%error, "the sessions were not remembered; the next run makes it good");
        }
        if let Some(stop) = report.stopped.as_ref().filter(|stop| stop.is_ours()) {
            return Err(stop.to_string().into());
        }
        if trigger == Trigger::Planned
            && let Err(error) = self.store.database().forget_old_history(self.clock.now()).await
        {
            // The cycle is done and must not be repeated for this; the next planned run makes it good.
            tracing::warn!(%error, "old history was not forgotten");
        }
        Ok(report)
    }
}

/// The rule's input, such as `{"trigger": "sweep"}`.
fn trigger(payload: &Value) -> Result<Trigger, Error> {
    match payload.get("trigger").and_then(Value::as_str) {
        Some("planned") => Ok(Trigger::Planned),
        Some("sweep") => Ok(Trigger::Sweep),
        _ => Err(r#"the event names no trigger: give the rule the input {"trigger":"planned"} or {"trigger":"sweep"}"#
            .into()),
    }
}

/// Lambda gives it in milliseconds since 1970.
fn deadline(milliseconds: u64) -> Option<DateTime<chrono::Utc>> {
    i64::try_from(milliseconds).ok().and_then(DateTime::from_timestamp_millis)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_rules_input_names_the_trigger() {
        assert_eq!(trigger(&json!({"trigger": "planned"})).unwrap(), Trigger::Planned);
        assert_eq!(trigger(&json!({"trigger": "sweep"})).unwrap(), Trigger::Sweep);
        for other in [
            json!({}),
            json!({"trigger": "grant"}),
            json!("sweep"),
            json!({"detail-type": "Scheduled Event"}),
        ] {
            assert!(trigger(&other).unwrap_err().to_string().contains("give the rule the input"), "{other}");
        }
    }
}
