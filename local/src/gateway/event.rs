//! A request as the event that a function gets: payload format 2.0, of the route and stage `$default`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Uri, header};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use chrono::{DateTime, Utc};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use url::form_urlencoded;
use uuid::Uuid;

use super::{ACCOUNT, Caller, remove_hop_by_hop};

const DEFAULT: &str = "$default";
const API: &str = "local";
const DOMAIN: &str = "local.execute-api.local.amazonaws.com";

/// They stand for the caller; they open nothing.
const ACCESS_KEY: &str = "AKIALOCALCALLER00000";
const USER_ID: &str = "AIDALOCALCALLER00000";

/// Connections come from nowhere else.
const SOURCE: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Beside `text/*` the only types whose bodies aren't in base64. Not documented; others report it, also for forms and for
/// bodies without a type.
const TEXT: [&str; 3] = ["application/javascript", "application/json", "application/xml"];

/// The path as functions see it. Not documented; others report that it is decoded, and cut off where it then has a `?`.
pub(super) fn path(uri: &Uri) -> String {
    let path = percent_decode_str(uri.path()).decode_utf8_lossy();
    path.split('?').next().unwrap_or_default().to_owned()
}

/// The event, for a request to this host.
pub(super) fn event(
    parts: &Parts,
    host: &str,
    body: &[u8],
    caller: Option<&Caller>,
    id: Uuid,
    now: DateTime<Utc>,
) -> Value {
    let path = path(&parts.uri);
    let query = parts.uri.query().unwrap_or_default();
    let mut event = json!({
        "version": "2.0",
        "routeKey": DEFAULT,
        "rawPath": path,
        "rawQueryString": query,
        "headers": headers(parts, host, body.len(), id, now),
        "requestContext": {
            "accountId": ACCOUNT,
            "apiId": API,
            "domainName": DOMAIN,
            "domainPrefix": API,
            "http": {
                "method": parts.method.as_str(),
                "path": path,
                "protocol": format!("{:?}", parts.version),
                "sourceIp": SOURCE,
                "userAgent": joined(&parts.headers, &header::USER_AGENT),
            },
            "requestId": id,
            "routeKey": DEFAULT,
            "stage": DEFAULT,
            "time": now.format("%d/%b/%Y:%H:%M:%S %z").to_string(),
            "timeEpoch": now.timestamp_millis(),
        },
        "isBase64Encoded": false,
    });
    let cookies = cookies(&parts.headers);
    if !cookies.is_empty() {
        event["cookies"] = json!(cookies);
    }
    let parameters = parameters(query);
    if !parameters.is_empty() {
        event["queryStringParameters"] = json!(parameters);
    }
    if let Some(caller) = caller {
        event["requestContext"]["authorizer"] = authorizer(caller);
    }
    if !body.is_empty() {
        let text = str::from_utf8(body).ok().filter(|_| is_text(&parts.headers));
        event["isBase64Encoded"] = json!(text.is_none());
        event["body"] = text.map_or_else(|| BASE64_STANDARD.encode(body), str::to_owned).into();
    }
    event
}

/// Those of the request, and those that API Gateway makes.
fn headers(
    parts: &Parts,
    host: &str,
    length: usize,
    id: Uuid,
    now: DateTime<Utc>,
) -> BTreeMap<String, String> {
    let mut own = parts.headers.clone();
    remove_hop_by_hop(&mut own);
    own.remove(header::COOKIE);
    let mut headers: BTreeMap<_, _> =
        own.keys().filter_map(|name| Some((name.to_string(), joined(&own, name)?))).collect();
    let before = headers.get("x-forwarded-for").map(|before| format!("{before}, ")).unwrap_or_default();
    let port = host.rsplit(':').next().unwrap_or_default();
    let trace = format!("Root=1-{:08x}-{:.24}", now.timestamp(), id.simple().to_string());
    let made = [
        ("content-length", length.to_string()),
        ("host", host.to_owned()),
        ("x-amzn-trace-id", trace),
        ("x-forwarded-for", format!("{before}{SOURCE}")),
        ("x-forwarded-port", port.to_owned()),
        ("x-forwarded-proto", "http".to_owned()),
    ];
    headers.extend(made.map(|(name, value)| (name.to_owned(), value)));
    headers
}

fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    values.map(String::from).reduce(|all, value| all + "," + &value)
}

fn cookies(headers: &HeaderMap) -> Vec<String> {
    let lines = headers.get_all(header::COOKIE).iter().map(|line| String::from_utf8_lossy(line.as_bytes()));
    let cookies = lines.flat_map(|line| line.split(';').map(|one| one.trim().to_owned()).collect::<Vec<_>>());
    cookies.filter(|cookie| !cookie.is_empty()).collect()
}

fn parameters(query: &str) -> BTreeMap<String, String> {
    let mut parameters = BTreeMap::<_, String>::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        parameters
            .entry(name.into_owned())
            .and_modify(|all| *all = format!("{all},{value}"))
            .or_insert_with(|| value.into_owned());
    }
    parameters
}

fn authorizer(caller: &Caller) -> Value {
    json!({
        "iam": {
            "accessKey": ACCESS_KEY,
            "accountId": caller.account,
            "callerId": USER_ID,
            "cognitoIdentity": null,
            "principalOrgId": null,
            "userArn": caller.user_arn,
            "userId": USER_ID,
        }
    })
}

fn is_text(headers: &HeaderMap) -> bool {
    let media_type = joined(headers, &header::CONTENT_TYPE).unwrap_or_default().to_ascii_lowercase();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    media_type.starts_with("text/") || TEXT.contains(&media_type)
}
