//! One event, one cycle.

use adapters::runner::{Runner, deadline};
use domain::refresh::{Cycle, Limits};
use domain::report::Report;
use domain::schedule::Trigger;
use lambda_runtime::{Error, LambdaEvent};
use serde_json::Value;

/// Runs the cycle that the rule's input names and answers with its report. An error needs the operator; while Twitch is down
/// there is no error, and the next sweep goes on.
pub async fn handle(runner: &Runner, event: LambdaEvent<Value>) -> Result<Report, Error> {
    let trigger = trigger(&event.payload)?;
    let deadline = deadline(event.context.deadline);
    let cycle = Cycle { limits: Limits::of_function(deadline), ..Cycle::new(trigger) };
    let ran = runner.run(&cycle).await;
    // Before the error is answered: a misconfigured function is when the coverage and the ages are needed.
    Box::pin(runner.follow_up(trigger, deadline)).await;
    Ok(ran?)
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
