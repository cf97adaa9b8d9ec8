//! `scheduled-refresh`, behind the EventBridge rules: a planned run or a sweep.

use serde::Deserialize;
use serde_json::Value;
use tokens_domain::refresh::{Cycle, Limits};
use tokens_domain::schedule::Trigger;
use tokens_service::shutdown::Shutdown;

use crate::Error;

/// The rule's input, such as `{"trigger": "sweep"}`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "Value")]
struct Rule(Trigger);

impl TryFrom<Value> for Rule {
    type Error = &'static str;

    fn try_from(input: Value) -> Result<Self, Self::Error> {
        match input.get("trigger").and_then(Value::as_str) {
            Some("planned") => Ok(Self(Trigger::Planned)),
            Some("sweep") => Ok(Self(Trigger::Sweep)),
            _ => Err(
                r#"the event names no trigger: give the rule the input {"trigger":"planned"} or {"trigger":"sweep"}"#,
            ),
        }
    }
}

/// Answers each event with the report of the cycle that it names. An error needs the operator; while Twitch is down there is no
/// error, and the next sweep goes on.
///
/// # Errors
///
/// If the log's or the metrics' settings are wrong, or the Runtime API can't be reached.
pub async fn scheduled_refresh() -> Result<(), Error> {
    let (environment, shutdown) = (crate::start()?, Shutdown::listen());
    let host = &crate::host(environment, &shutdown);
    crate::serve(shutdown, async |Rule(trigger), deadline| {
        let cycle = Cycle { limits: Limits::of_function(deadline), ..Cycle::new(trigger) };
        host.run(&cycle, deadline).await.map_err(crate::stopped)
    })
    .await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_rules_input_names_the_trigger() {
        let read = |input: Value| serde_json::from_value::<Rule>(input).map(|Rule(trigger)| trigger);
        assert_eq!(read(json!({"trigger": "planned"})).unwrap(), Trigger::Planned);
        assert_eq!(read(json!({"trigger": "sweep"})).unwrap(), Trigger::Sweep);
        for other in [
            json!({}),
            json!({"trigger": "grant"}),
            json!("sweep"),
            json!({"detail-type": "Scheduled Event"}),
        ] {
            assert!(
                read(other.clone()).unwrap_err().to_string().contains("give the rule the input"),
                "{other}"
            );
        }
    }
}
