//! One event, one delivery of what is due in the outbox.

use std::sync::Arc;

use adapters::runner::deadline;
use adapters::telemetry::{log_deliveries, log_delivery};
use domain::Clock;
use domain::notify::{NotifyReport, NotifyService, SHORTEST_RUN};
use domain::ports::{Outbox, Push};
use lambda_runtime::{Error, LambdaEvent};
use serde_json::Value;

/// The domain event that wakes this function, as its rule matches it.
const EVENT: &str = "streamer deactivated";

/// What outlives an event.
pub struct Handler<O, P> {
    pub service: NotifyService<O, P>,
    pub clock: Arc<dyn Clock>,
}

impl<O: Outbox, P: Push> Handler<O, P> {
    /// Delivers what is due, whatever woke it: the event says that something is, and the outbox says what. The answer
    /// is the report.
    ///
    /// An error is for what a repetition or a human may mend: the database, a timeout that is too short, a wrong event. A VAPID
    /// that push services refuse is none, because Lambda would only repeat the event at once: it is logged as an
    /// error and counted for an alarm, and every notification stays due by its own schedule.
    pub async fn handle(&self, event: LambdaEvent<Value>) -> Result<NotifyReport, Error> {
        check(&event.payload)?;
        let deadline = deadline(event.context.deadline);
        if deadline.is_some_and(|at| at - self.clock.now() < SHORTEST_RUN) {
            return Err(format!(
                "no time to begin: a delivery may take {} s; give the function a timeout of at least a minute",
                SHORTEST_RUN.num_seconds()
            )
            .into());
        }
        let report = self.service.run(deadline, &log_delivery).await?;
        log_deliveries(&report);
        Ok(report)
    }
}

/// An event of another kind is a rule that was set up wrongly.
fn check(payload: &Value) -> Result<(), Error> {
    let text = |name| payload.get(name).and_then(Value::as_str);
    if text("detail-type") == Some(EVENT) || text("trigger") == Some("timer") {
        return Ok(());
    }
    Err(format!(
        r#"the event is neither `{EVENT}` nor the timer's: give the timer's rule the input {{"trigger":"timer"}}"#
    )
    .into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_domain_event_and_the_timer_are_taken_and_nothing_else() {
        check(&json!({"trigger": "timer"})).unwrap();
        check(&json!({"version": "0", "detail-type": "streamer deactivated", "source": "token-refresh",
                      "detail": {"version": 1, "streamer_id": "5b0bc1a5-6d2a-4f0e-9d0a-0a1b2c3d4e5f"}}))
        .unwrap();
        for other in [
            json!({}),
            json!(null),
            json!("timer"),
            json!({"trigger": "sweep"}),
            json!({"detail-type": "Scheduled Event"}),
        ] {
            assert!(
                check(&other).unwrap_err().to_string().contains("give the timer's rule the input"),
                "{other}"
            );
        }
    }
}
