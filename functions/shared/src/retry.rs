//! `retry-refresh`, behind the one-shot schedules: one cycle over the streamers that may be tried again by now.
//!
//! The schedule is only an alarm clock: who is due stands in the database. So one that comes late, twice or for a streamer that
//! another run has refreshed meanwhile finds nothing to do, and says so.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokens_domain::refresh::{Cycle, Limits, Scope};
use tokens_domain::report::Report;
use tokens_domain::schedule::Trigger;
use tokens_domain::{Monotonic, StreamerId};
use tokens_service::Host;
use tokens_service::shutdown::Shutdown;
use tokens_store::Lookup;
use uuid::Uuid;

use crate::Error;

/// What a schedule gives, and a person who calls the function by hand.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "Value")]
struct Retry {
    minute: DateTime<Utc>,
    streamer_id: Option<StreamerId>,
}

impl TryFrom<Value> for Retry {
    type Error = &'static str;

    fn try_from(input: Value) -> Result<Self, Self::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Input {
            trigger: Trigger,
            minute: DateTime<Utc>,
            streamer_id: Option<Uuid>,
        }
        match serde_json::from_value(input) {
            Ok(Input { trigger: Trigger::Retry, minute, streamer_id }) => {
                Ok(Self { minute, streamer_id: streamer_id.map(StreamerId) })
            }
            _ => Err(
                r#"the event is not a retry: give {"trigger":"retry","minute":"2026-11-23T04:15:00Z"}, for one streamer with "streamer_id":"UUID" as well"#,
            ),
        }
    }
}

/// What the function answers with.
#[derive(Debug, Serialize)]
struct Answer {
    /// For people.
    message: String,
    #[serde(flatten)]
    report: Report,
}

/// Answers each event with the report of its cycle. An error needs the operator.
///
/// # Errors
///
/// If the log's or the metrics' settings are wrong, or the Runtime API can't be reached.
pub async fn retry_refresh() -> Result<(), Error> {
    let (environment, shutdown) = (crate::start()?, Shutdown::listen());
    let host = &crate::host(environment, &shutdown);
    crate::serve(shutdown, async |retry, deadline| answer(host, retry, deadline).await).await
}

async fn answer(host: &Host, retry: Retry, deadline: Option<Monotonic>) -> Result<Answer, Error> {
    let cycle = Cycle { limits: Limits::of_function(deadline), ..Cycle::new(Trigger::Retry) };
    let minute = retry.minute.to_rfc3339_opts(SecondsFormat::Secs, true);
    let late_s = (host.now() - retry.minute).num_seconds();
    let (message, report) = match wanted(host, retry.streamer_id).await? {
        Wanted::Cycle(scope) => {
            let report = host.run(&Cycle { scope, ..cycle }, deadline).await.map_err(crate::stopped)?;
            (summary(&report), report)
        }
        Wanted::Nothing(why) => (why, Report::default()),
    };
    tracing::info!(minute, late_s, "retry: {message}");
    Ok(Answer { message, report })
}

enum Wanted {
    Cycle(Scope),
    /// Why not.
    Nothing(String),
}

async fn wanted(host: &Host, streamer: Option<StreamerId>) -> Result<Wanted, Error> {
    let Some(id) = streamer else { return Ok(Wanted::Cycle(Scope::Authorized)) };
    Ok(match host.find(id).await? {
        Lookup::Authorized(authorized) => Wanted::Cycle(Scope::only(&authorized)),
        Lookup::NotAuthorized(_) => Wanted::Nothing(format!(
            "streamer {id} has no active authorization and has to authorize a campaign first"
        )),
        Lookup::Inactive(_) => {
            Wanted::Nothing(format!("streamer {id} is deactivated and has to reconnect first"))
        }
        Lookup::Unknown => Wanted::Nothing(format!("no streamer has the id {id}")),
    })
}

fn summary(report: &Report) -> String {
    let Report { success, failed, deactivated, waiting, .. } = report;
    match (&report.stopped, success + failed) {
        (Some(stop), _) => format!("{success} refreshed, {failed} failed; stopped: {stop}"),
        (None, 0) if *waiting > 0 => format!("nothing was due yet: {waiting} wait for their retry"),
        (None, 0) => "nothing was due: others have been here before, or nothing had failed".to_owned(),
        (None, _) => format!("{success} refreshed, {failed} failed, {deactivated} of them deactivated"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn input(event: Value) -> Result<Retry, serde_json::Error> {
        serde_json::from_value(event)
    }

    const ID: &str = "6f9619ff-8b86-d011-b42d-00c04fc964ff";

    #[test]
    fn the_input_is_a_minute_and_perhaps_a_streamer() {
        let all = input(json!({"trigger": "retry", "minute": "2026-11-23T04:15:00Z"})).unwrap();
        assert_eq!((all.minute.timestamp(), all.streamer_id), (1_795_407_300, None));
        let one = json!({"trigger": "retry", "minute": "2026-11-23T04:15:00Z", "streamer_id": ID});
        assert_eq!(input(one).unwrap().streamer_id.unwrap().to_string(), ID);
    }

    #[test]
    fn any_other_input_is_shown_the_right_form() {
        for other in [
            json!({}),
            json!("retry"),
            json!({"trigger": "retry"}),
            json!({"trigger": "retry", "minute": "04:15"}),
            json!({"trigger": "sweep", "minute": "2026-11-23T04:15:00Z"}),
            json!({"trigger": "retry", "minute": "2026-11-23T04:15:00Z", "streamer_id": "aria"}),
            json!({"trigger": "retry", "minute": "2026-11-23T04:15:00Z", "streamer": ID}),
        ] {
            let error = input(other.clone()).unwrap_err().to_string();
            assert!(error.contains(r#"give {"trigger":"retry","minute":"#), "{other}: {error}");
        }
    }

    #[test]
    fn a_cycle_that_finds_nothing_says_so() {
        assert!(
            summary(&Report { skipped: 3, total: 3, ..Report::default() }).starts_with("nothing was due")
        );
        let waiting = Report { skipped: 3, waiting: 2, total: 3, ..Report::default() };
        assert_eq!(summary(&waiting), "nothing was due yet: 2 wait for their retry");
        let report = Report { success: 1, failed: 2, deactivated: 1, total: 3, ..Report::default() };
        assert_eq!(summary(&report), "1 refreshed, 2 failed, 1 of them deactivated");
    }
}
