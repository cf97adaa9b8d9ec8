//! `POST /push/{subscription}`: what the push service takes, and what it answers.
//!
//! An answer's body says what was wrong, for whoever looks at a request by hand.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::TimeDelta;
use futures::{StreamExt as _, stream};
use serde_json::json;

use super::{
    Fault, Received, Simulation,
    decrypt::decrypt,
    vapid::{self, Distrust, Sender},
};
use crate::server::HangUp;

/// What every push service must take (RFC 8030, section 7.2), and the real ones' limit.
const LONGEST_BODY: usize = 4096;

/// RFC 8030, section 5.4.
const LONGEST_TOPIC: usize = 32;

const URGENCIES: [&str; 4] = ["very-low", "low", "normal", "high"];

/// A request that is not taken.
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, axum::Json(json!({ "error": self.1 }))).into_response()
    }
}

fn bad_request(why: &(impl ToString + ?Sized)) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, why.to_string())
}

pub(super) async fn push(
    State(simulation): State<Arc<Simulation>>,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    simulation.totals.send_modify(|totals| totals.requests += 1);
    let fault = {
        let mut state = simulation.lock();
        let own = state.devices.get_mut(&path).and_then(|device| device.fault.hit());
        own.or_else(|| state.fault.hit())
    };
    if let Some(fault) = &fault
        && let Some(response) = fault.before(&simulation.origin).await
    {
        return response;
    }
    if let Err(refusal) = simulation.accept(&path, &headers, &body) {
        return refusal.into_response();
    }
    let location = [(header::LOCATION, format!("{}/message", simulation.origin))];
    match fault {
        Some(Fault::AcceptedButLost) => HangUp.into_response(),
        Some(Fault::EndlessBody) => (StatusCode::CREATED, location, endless()).into_response(),
        _ => (StatusCode::CREATED, location).into_response(),
    }
}

pub(super) async fn redirected(State(simulation): State<Arc<Simulation>>) -> StatusCode {
    simulation.totals.send_modify(|totals| totals.redirected += 1);
    StatusCode::CREATED
}

fn endless() -> Body {
    let chunk = Bytes::from_static(&[b'a'; 1024]);
    Body::from_stream(stream::repeat(chunk).map(Ok::<_, std::io::Error>))
}

impl Simulation {
    fn accept(&self, path: &str, headers: &HeaderMap, body: &[u8]) -> Result<(), Refusal> {
        let now = self.clock.now();
        let mut state = self.lock();
        let device = state
            .devices
            .get_mut(path)
            .ok_or_else(|| Refusal(StatusCode::NOT_FOUND, "there is no such subscription".to_owned()))?;
        if device.expired {
            return Err(Refusal(StatusCode::GONE, "the subscription has ended".to_owned()));
        }
        let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Sender { key, token } =
            vapid::check(authorization, &self.origin, now).map_err(|distrust| match distrust {
                Distrust::Missing | Distrust::Scheme => {
                    Refusal(StatusCode::UNAUTHORIZED, distrust.to_string())
                }
                _ => Refusal(StatusCode::FORBIDDEN, distrust.to_string()),
            })?;
        if device.sender.as_ref().is_some_and(|sender| *sender != key) {
            let why = "the subscription was made for another sender".to_owned();
            return Err(Refusal(StatusCode::FORBIDDEN, why));
        }
        let Options { time_to_live, urgency, topic } = Options::read(headers)?;
        if body.len() > LONGEST_BODY {
            let why = format!("the body is longer than {LONGEST_BODY} bytes");
            return Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, why));
        }
        let payload = decrypt(&device.private_key, &device.secret, body).map_err(|why| bad_request(&why))?;
        device.accept(Received { payload, time_to_live, urgency, topic, at: now, token });
        // Under the lock, so that whoever waited finds the message.
        self.totals.send_modify(|totals| totals.accepted += 1);
        Ok(())
    }
}

/// How a message is to be handled.
struct Options {
    time_to_live: TimeDelta,
    urgency: String,
    topic: Option<String>,
}

impl Options {
    fn read(headers: &HeaderMap) -> Result<Self, Refusal> {
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
        if text("content-encoding") != Some("aes128gcm") {
            return Err(bad_request("Content-Encoding is not aes128gcm"));
        }
        let time_to_live = text("ttl")
            .filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|text| text.parse::<u32>().ok())
            .ok_or_else(|| bad_request("TTL is no number of seconds"))?;
        let urgency = text("urgency").unwrap_or("normal");
        if !URGENCIES.contains(&urgency) {
            return Err(bad_request("Urgency is none of very-low, low, normal, high"));
        }
        let topic = text("topic");
        if topic.is_some_and(|topic| !is_topic(topic)) {
            return Err(bad_request("Topic is not 1 to 32 characters of base64url"));
        }
        Ok(Self {
            time_to_live: TimeDelta::seconds(time_to_live.into()),
            urgency: urgency.to_owned(),
            topic: topic.map(str::to_owned),
        })
    }
}

/// RFC 8030 asks for the alphabet, not for a text that decodes.
fn is_topic(text: &str) -> bool {
    (1..=LONGEST_TOPIC).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn each_header_has_its_rule() {
        let read = |name: &'static str, value: Option<&str>| {
            let good =
                [("content-encoding", "aes128gcm"), ("ttl", "60"), ("urgency", "high"), ("topic", "topic")];
            let mut headers: HeaderMap = good
                .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)))
                .into_iter()
                .collect();
            headers.remove(name);
            if let Some(value) = value {
                headers.insert(name, value.parse().unwrap());
            }
            Options::read(&headers).is_ok()
        };
        assert!(read("urgency", None) && read("topic", None) && read("ttl", Some("0")));
        let long = "t".repeat(33);
        for (name, value) in [
            ("ttl", None),
            ("ttl", Some("-1")),
            ("ttl", Some("soon")),
            ("content-encoding", None),
            ("content-encoding", Some("aesgcm")),
            ("urgency", Some("urgent")),
            ("topic", Some("")),
            ("topic", Some("not/base64url")),
            ("topic", Some(&long)),
        ] {
            assert!(!read(name, value), "{name}: {value:?}");
        }
    }
}
