//! `notify`: delivers the outbox, woken by the domain event of a deactivation, and by a timer for what was left.
//!
//! It is the only function that calls addresses which users gave us. It needs no Twitch secret and no token key, and its database
//! role can read no token.

use serde::Deserialize;
use serde_json::Value;
use tokens_domain::notify::MIN_RUN;
use tokens_service::shutdown::Shutdown;
use tokens_service::{Notifier, Opened, Process};
use tokens_telemetry::{log_deliveries, log_delivery};

use crate::Error;

/// The domain event that wakes this function, as its rule matches it.
const EVENT: &str = "streamer deactivated";

/// The domain event, or the timer's. What it says doesn't matter: the outbox says what is due.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "Value")]
struct Wake;

impl TryFrom<Value> for Wake {
    type Error = String;

    /// An event of another kind is a rule that was set up wrongly.
    fn try_from(event: Value) -> Result<Self, Self::Error> {
        let text = |name| event.get(name).and_then(Value::as_str);
        if text("detail-type") == Some(EVENT) || text("trigger") == Some("timer") {
            return Ok(Self);
        }
        Err(format!(
            r#"the event is neither `{EVENT}` nor the timer's: give the timer's rule the input {{"trigger":"timer"}}"#
        ))
    }
}

/// Answers each event with the report of a delivery.
///
/// An error is for what a repetition or the operator may fix: the database, a timeout that is too short, a wrong event. A VAPID key
/// that push services refuse is not an error, because Lambda would only repeat the event at once: it is logged as an error and counted for
/// an alarm, and every notification stays due by its own schedule.
///
/// # Errors
///
/// If the log's or the metrics' settings are wrong, or the Runtime API can't be reached.
pub async fn notify() -> Result<(), Error> {
    let (environment, shutdown) = (crate::start()?, Shutdown::listen());
    let opened = &Opened::<Notifier>::new(environment, Process::stopped_by(shutdown.signal()));
    crate::serve(shutdown, async |Wake, deadline| {
        let notifier = opened.current(None).await?;
        if deadline.is_some_and(|at| at - notifier.monotonic() < MIN_RUN) {
            return Err(format!(
                "no time to begin: a delivery may take {} s; give the function a timeout of at least a minute",
                MIN_RUN.num_seconds()
            )
            .into());
        }
        let report = notifier.run(deadline, &log_delivery).await?;
        log_deliveries(&report);
        Ok(report)
    })
    .await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(event: Value) -> Result<Wake, serde_json::Error> {
        serde_json::from_value(event)
    }

    #[test]
    fn the_domain_event_and_the_timer_are_taken_and_nothing_else() {
        check(json!({"trigger": "timer"})).unwrap();
        check(json!({"version": "0", "detail-type": "streamer deactivated", "source": "token-refresh",
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
                check(other.clone()).unwrap_err().to_string().contains("give the timer's rule the input"),
                "{other}"
            );
        }
    }
}
