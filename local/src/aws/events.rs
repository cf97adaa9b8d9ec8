//! EventBridge's `PutEvents`, in JSON 1.1.

use axum::body::Bytes;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::answer::{Refusal, json_1_1};
use super::{ACCOUNT, BUS, Event, Fault, REGION, Service, Simulation};

/// Entries in one request.
const MOST_ENTRIES: usize = 10;

/// In bytes, all entries of a request together.
const LARGEST: usize = 256 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct PutEvents {
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Entry {
    source: Option<String>,
    detail_type: Option<String>,
    detail: Option<String>,
    event_bus_name: Option<String>,
}

/// The operation's name.
pub(super) const TARGET: &str = "AWSEvents.PutEvents";

pub(super) fn put(simulation: &Simulation, body: &Bytes, fault: Option<Fault>) -> Result<Response, Refusal> {
    let PutEvents { entries } = serde_json::from_slice(body).map_err(|error| {
        Refusal::new(Service::Events, StatusCode::BAD_REQUEST, "SerializationException", error.to_string())
    })?;
    if !(1..=MOST_ENTRIES).contains(&entries.len()) {
        return Err(Refusal::invalid(
            Service::Events,
            format!("{} entries; there must be 1 to {MOST_ENTRIES}", entries.len()),
        ));
    }
    if entries.iter().map(Entry::size).sum::<usize>() > LARGEST {
        return Err(Refusal::invalid(
            Service::Events,
            "Total size of the entries in the request is over the limit.",
        ));
    }
    let mut results = Vec::new();
    let mut failed = 0;
    for (place, entry) in entries.into_iter().enumerate() {
        let result = match entry.into_event() {
            Ok(_) if fault == Some(Fault::FailEntries) && place % 2 == 0 => {
                Err(("InternalFailure", "Something went wrong".to_owned()))
            }
            other => other,
        };
        results.push(match result {
            Ok(event) => {
                simulation.held.send_modify(|held| held.events.push(event));
                json!({ "EventId": Uuid::new_v4() })
            }
            Err((code, message)) => {
                failed += 1;
                json!({ "ErrorCode": code, "ErrorMessage": message })
            }
        });
    }
    Ok(json_1_1(StatusCode::OK, &json!({ "FailedEntryCount": failed, "Entries": results })))
}

impl Entry {
    /// As EventBridge reckons it.
    fn size(&self) -> usize {
        [&self.source, &self.detail_type, &self.detail].into_iter().flatten().map(String::len).sum()
    }

    fn into_event(self) -> Result<Event, (&'static str, String)> {
        let needed = |value: Option<String>, name: &str| {
            let invalid = || format!("Parameter {name} is not valid. Reason: {name} is a required argument.");
            value.filter(|value| !value.is_empty()).ok_or_else(|| ("InvalidArgument", invalid()))
        };
        let source = needed(self.source, "Source")?;
        let detail_type = needed(self.detail_type, "DetailType")?;
        let detail = needed(self.detail, "Detail")?;
        if source.starts_with("aws.") {
            return Err(("NotAuthorizedForSourceException", "Not authorized for the source.".to_owned()));
        }
        if detail_type.len() > 128 {
            return Err(("InvalidArgument", "DetailType is longer than 128 characters.".to_owned()));
        }
        let detail = serde_json::from_str(&detail).ok().filter(Value::is_object);
        let detail = detail.ok_or_else(|| ("MalformedDetail", "Detail is malformed.".to_owned()))?;
        let bus = self.event_bus_name.unwrap_or_else(|| "default".to_owned());
        let name = bus.strip_prefix(&format!("arn:aws:events:{REGION}:{ACCOUNT}:event-bus/")).unwrap_or(&bus);
        if ![BUS, "default"].contains(&name) {
            return Err(("InvalidArgument", format!("Event bus {bus} does not exist.")));
        }
        Ok(Event { bus: name.to_owned(), source, detail_type, detail })
    }
}
