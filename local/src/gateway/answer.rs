//! A function's answer as a response, and what API Gateway says in its own words.

use std::collections::BTreeMap;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::remove_hop_by_hop;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An answer that says it all. Payload format 2.0 knows no `multiValueHeaders`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    status_code: u16,
    headers: Option<BTreeMap<String, String>>,
    cookies: Option<Vec<String>>,
    body: Option<String>,
    is_base64_encoded: Option<bool>,
}

/// The response, or none for an answer that is malformed.
pub(super) fn response(answer: Value) -> Option<Response> {
    if answer.get("statusCode").is_none() {
        let body = match answer {
            Value::String(text) => text,
            other => other.to_string(),
        };
        return Some(([(header::CONTENT_TYPE, JSON)], body).into_response());
    }
    let answer = Answer::deserialize(answer).ok()?;
    // What is below isn't a response yet.
    let status = StatusCode::from_u16(answer.status_code)
        .ok()
        .filter(|status| (200..600).contains(&status.as_u16()))?;
    let headers = headers(answer.headers.unwrap_or_default(), answer.cookies.unwrap_or_default())?;
    let body = answer.body.unwrap_or_default();
    let body = match answer.is_base64_encoded {
        Some(true) => BASE64_STANDARD.decode(body).ok()?,
        _ => body.into_bytes(),
    };
    let mut response = (status, body).into_response();
    *response.headers_mut() = headers;
    Some(response)
}

fn headers(own: BTreeMap<String, String>, cookies: Vec<String>) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in own {
        headers.append(HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?);
    }
    for cookie in cookies {
        headers.append(header::SET_COOKIE, HeaderValue::try_from(cookie).ok()?);
    }
    remove_hop_by_hop(&mut headers);
    // It follows from the body.
    headers.remove(header::CONTENT_LENGTH);
    Some(headers)
}

/// What a client hears from API Gateway itself.
pub(super) fn refusal(status: StatusCode) -> Response {
    let message = match status {
        StatusCode::PAYLOAD_TOO_LARGE => "Request Entity Too Large",
        other => other.canonical_reason().unwrap_or_default(),
    };
    (status, [(header::CONTENT_TYPE, JSON)], json!({ "message": message }).to_string()).into_response()
}
