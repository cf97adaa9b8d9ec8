//! One event, one delivery of what is due in the outbox.

use std::sync::Arc;

use adapters::config::NotifyConfig;
use adapters::runner::deadline;
use adapters::secrets::Secrets;
use adapters::telemetry::{log_deliveries, log_delivery};
use domain::Clock;
use domain::notify::{MIN_RUN, NotifyReport, NotifyService};
use domain::ports::{Outbox, Push};
use lambda_runtime::{Error, LambdaEvent};
use serde_json::Value;

/// The domain event that wakes this function, as its rule matches it.
const EVENT: &str = "streamer deactivated";

/// What outlives an event.
pub struct Handler<O, P> {
    pub service: NotifyService<O, P>,
    pub secrets: Secrets,
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
        self.secrets.renew(&NotifyConfig::FOLLOWED).await;
        let deadline = deadline(event.context.deadline);
        if deadline.is_some_and(|at| at - self.clock.monotonic() < MIN_RUN) {
            return Err(format!(
                "no time to begin: a delivery may take {} s; give the function a timeout of at least a minute",
                MIN_RUN.num_seconds()
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
    use std::time::Duration;

    use adapters::config::Source;
    use chrono::{DateTime, Utc};
    use domain::Monotonic;
    use domain::notification::{Next, Notification, PushAnswer, Subscription};
    use domain::ports::{Claimed, PushMessage, StoreError};
    use lambda_runtime::Context;
    use local::aws::{Service, SimulatedAws};
    use local::clock::TurnableClock;
    use serde_json::json;

    use super::*;

    /// There is nothing to deliver, and nobody to deliver it to.
    struct Nothing;

    impl Outbox for Nothing {
        async fn claim(&self, _: DateTime<Utc>, _: DateTime<Utc>, _: usize) -> Result<Claimed, StoreError> {
            Ok(Claimed::default())
        }

        async fn settle(
            &self,
            _: &Notification,
            _: Next,
            _: Option<&str>,
            _: DateTime<Utc>,
            _: Monotonic,
        ) -> Result<(), StoreError> {
            Ok(())
        }
    }

    impl Push for Nothing {
        async fn send(&self, _: &Subscription, _: &PushMessage) -> PushAnswer {
            PushAnswer::Accepted
        }
    }

    /// After a restore the outbox is in another cluster.
    #[tokio::test]
    async fn a_database_that_has_moved_is_followed_within_a_quarter_of_an_hour() {
        let clock = Arc::new(TurnableClock::frozen());
        let aws = SimulatedAws::start_on(clock.clone()).await.unwrap();
        let is_in = |name: &str| {
            let text = json!({ "DATABASE_URL": format!("postgres://notify@127.0.0.1/{name}") });
            aws.put_secret("polls/database", text.to_string());
        };
        aws.put_secret(
            "polls/vapid",
            r#"{"VAPID_PUBLIC_KEY": "p", "VAPID_PRIVATE_KEY": "k", "VAPID_SUBJECT": "mailto:us@example.com"}"#,
        );
        is_in("old");
        let named = [("DATABASE_SECRET_ID", "polls/database"), ("VAPID_SECRET_ID", "polls/vapid")];
        let source: Source = named.into_iter().collect();
        let source = source.with_secrets_at(&NotifyConfig::SECRETS, aws.access(), clock.clone()).await;
        let NotifyConfig { database, presentation, secrets, .. } = NotifyConfig::read(&source).unwrap();
        let service = NotifyService::new(Nothing, Nothing, clock.clone(), presentation);
        let handler = Handler { service, secrets, clock: clock.clone() };
        is_in("new");
        for (minutes, name, asked) in [(14, "old", 2), (1, "new", 3), (1, "new", 3)] {
            clock.advance(Duration::from_mins(minutes));
            let event = LambdaEvent::new(json!({"trigger": "timer"}), Context::default());
            handler.handle(event).await.unwrap();
            assert_eq!(database.current().get_database(), Some(name));
            assert_eq!(aws.requests(Service::Secrets), asked, "VAPID's is read once");
        }
    }

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
