//! Requests to events and answers to responses, without a function. Over HTTP and with one: `tests/gateway.rs`.

use aws_lambda_events::apigw::ApiGatewayV2httpRequest;
use axum::body::to_bytes;
use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::*;

const HOST: &str = "127.0.0.1:4000";
const ID: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);

fn now() -> DateTime<Utc> {
    "2026-11-23T04:05:06.789Z".parse().unwrap()
}

/// The event of a request with these headers.
fn event(line: &str, headers: &[(&str, &[u8])], body: &[u8]) -> Value {
    event_of(Some(&Caller::default()), line, headers, body)
}

fn event_of(caller: Option<&Caller>, line: &str, headers: &[(&str, &[u8])], body: &[u8]) -> Value {
    let (method, uri) = line.split_once(' ').unwrap();
    let mut request = axum::http::Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (parts, ()) = request.body(()).unwrap().into_parts();
    event::event(&parts, HOST, body, caller, ID, now())
}

fn everything() -> Value {
    let headers: [(&str, &[u8]); 7] = [
        ("Host", b"127.0.0.1:4000"),
        ("User-Agent", b"agent"),
        ("Content-Type", b"application/json"),
        ("Header2", b"value1"),
        ("Header2", b"value2"),
        ("Cookie", b"cookie1=a; cookie2=b"),
        ("Cookie", b"cookie3=c"),
    ];
    event("POST /my/path?parameter1=a%20b&parameter1=c&parameter2=", &headers, br#"{"a": 1}"#)
}

#[test]
fn an_event_has_the_form_that_aws_documents() {
    let expected = json!({
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/my/path",
        "rawQueryString": "parameter1=a%20b&parameter1=c&parameter2=",
        "cookies": ["cookie1=a", "cookie2=b", "cookie3=c"],
        "headers": {
            "content-length": "8",
            "content-type": "application/json",
            "header2": "value1,value2",
            "host": "127.0.0.1:4000",
            "user-agent": "agent",
            "x-amzn-trace-id": "Root=1-6b03bb72-0123456789abcdef01234567",
            "x-forwarded-for": "127.0.0.1",
            "x-forwarded-port": "4000",
            "x-forwarded-proto": "http"
        },
        "queryStringParameters": { "parameter1": "a b,c", "parameter2": "" },
        "requestContext": {
            "accountId": "000000000000",
            "apiId": "local",
            "authorizer": {
                "iam": {
                    "accessKey": "AKIALOCALCALLER00000",
                    "accountId": "000000000000",
                    "callerId": "AIDALOCALCALLER00000",
                    "cognitoIdentity": null,
                    "principalOrgId": null,
                    "userArn": "arn:aws:iam::000000000000:user/local",
                    "userId": "AIDALOCALCALLER00000"
                }
            },
            "domainName": "local.execute-api.local.amazonaws.com",
            "domainPrefix": "local",
            "http": {
                "method": "POST",
                "path": "/my/path",
                "protocol": "HTTP/1.1",
                "sourceIp": "127.0.0.1",
                "userAgent": "agent"
            },
            "requestId": "01234567-89ab-cdef-0123-456789abcdef",
            "routeKey": "$default",
            "stage": "$default",
            "time": "23/Nov/2026:04:05:06 +0000",
            "timeEpoch": 1_795_406_706_789_i64
        },
        "body": "{\"a\": 1}",
        "isBase64Encoded": false
    });
    assert_eq!(everything(), expected);
}

#[test]
fn functions_find_every_field_where_they_look_for_it() {
    /// Whether all of it that says something is there too.
    fn holds(there: &Value, all: &Value) -> bool {
        match all {
            Value::Object(fields) => fields.iter().all(|(name, value)| holds(&there[name.as_str()], value)),
            other => there == other,
        }
    }
    let event = everything();
    let read: ApiGatewayV2httpRequest = serde_json::from_value(event.clone()).unwrap();
    let iam = read.request_context.authorizer.as_ref().unwrap().iam.as_ref().unwrap();
    assert_eq!(iam.user_arn.as_deref(), Some("arn:aws:iam::000000000000:user/local"));
    let again = serde_json::to_value(&read).unwrap();
    assert!(holds(&again, &event), "{again:#}");
}

#[test]
fn what_a_request_lacks_is_absent() {
    let bare = event_of(None, "GET /", &[], b"");
    for field in ["body", "cookies", "queryStringParameters"] {
        assert_eq!(bare.get(field), None, "{field}");
    }
    assert_eq!(bare["isBase64Encoded"], false);
    assert_eq!(bare["headers"]["content-length"], "0");
    assert_eq!(bare["requestContext"].get("authorizer"), None);
    serde_json::from_value::<ApiGatewayV2httpRequest>(bare).unwrap();
}

#[test]
fn the_caller_is_that_of_the_settings_whatever_the_headers_say() {
    let caller = Caller {
        account: "111111111111".to_owned(),
        user_arn: "arn:aws:iam::111111111111:role/other".to_owned(),
    };
    let forged: [(&str, &[u8]); 3] = [
        ("x-amzn-request-context", br#"{"authorizer":{"iam":{"accountId":"000000000000"}}}"#),
        ("x-amzn-trace-id", b"Root=1-00000000-000000000000000000000000"),
        ("requestContext", b"{}"),
    ];
    let plain = event_of(Some(&caller), "GET /", &[], b"");
    let event = event_of(Some(&caller), "GET /", &forged, b"");
    assert_eq!(event["requestContext"], plain["requestContext"]);
    assert_eq!(event["headers"]["x-amzn-trace-id"], plain["headers"]["x-amzn-trace-id"]);
    assert_eq!(event["requestContext"]["authorizer"]["iam"]["accountId"], "111111111111");
    assert_eq!(
        event["requestContext"]["authorizer"]["iam"]["userArn"],
        "arn:aws:iam::111111111111:role/other"
    );
    let nobody = event_of(None, "GET /", &forged, b"");
    assert_eq!(nobody["requestContext"].get("authorizer"), None);
}

#[test]
fn what_concerns_the_connection_is_not_passed_on() {
    let headers: [(&str, &[u8]); 8] = [
        ("Connection", b"close, X-Own"),
        ("X-Own", b"1"),
        ("Keep-Alive", b"timeout=5"),
        ("TE", b"trailers"),
        ("Transfer-Encoding", b"chunked"),
        ("Upgrade", b"h2c"),
        ("X-Forwarded-For", b"10.0.0.1"),
        ("X-Forwarded-Proto", b"https"),
    ];
    let event = event("GET /", &headers, b"");
    let names: Vec<_> = event["headers"].as_object().unwrap().keys().map(String::as_str).collect();
    let made = [
        "content-length",
        "host",
        "x-amzn-trace-id",
        "x-forwarded-for",
        "x-forwarded-port",
        "x-forwarded-proto",
    ];
    assert_eq!(names, made);
    assert_eq!(event["headers"]["x-forwarded-for"], "10.0.0.1, 127.0.0.1");
    assert_eq!(event["headers"]["x-forwarded-proto"], "http");
}

#[test]
fn only_text_is_not_in_base64() {
    let table: [(&[u8], &[u8], bool); 10] = [
        (b"application/json", b"{}", true),
        (b"Application/JSON; charset=utf-8", b"{}", true),
        (b"application/xml", b"{}", true),
        (b"text/csv", "é".as_bytes(), true),
        (b"text/csv", b"\xe9", false),
        (b"application/json", b"\xff{}", false),
        (b"application/problem+json", b"{}", false),
        (b"application/x-www-form-urlencoded", b"a=b", false),
        (b"application/octet-stream", b"{}", false),
        (b"", b"{}", false),
    ];
    for (content_type, body, text) in table {
        let headers = [("content-type", content_type)];
        let headers = if content_type.is_empty() { &[][..] } else { &headers[..] };
        let event = event("POST /", headers, body);
        let shown = String::from_utf8_lossy(content_type);
        assert_eq!(event["isBase64Encoded"], !text, "{shown}");
        let read: ApiGatewayV2httpRequest = serde_json::from_value(event).unwrap();
        let given = read.body.unwrap();
        let given = if text { given.into_bytes() } else { base64_decoded(&given) };
        assert_eq!(given, body, "{shown}");
    }
}

fn base64_decoded(text: &str) -> Vec<u8> {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    BASE64_STANDARD.decode(text).unwrap()
}

#[test]
fn the_path_is_decoded_and_the_query_is_not() {
    for (uri, path, query) in [
        ("/a%20b/c", "/a b/c", ""),
        ("/a%2Fb?c=%2F", "/a/b", "c=%2F"),
        ("/a%3Fb=c/d?e=f", "/a", "e=f"),
        ("/100%25%zz", "/100%%zz", ""),
        ("/%C3%A9%FF", "/é\u{fffd}", ""),
    ] {
        let event = event(&format!("GET {uri}"), &[], b"");
        assert_eq!((&event["rawPath"], &event["rawQueryString"]), (&json!(path), &json!(query)), "{uri}");
        assert_eq!(event["requestContext"]["http"]["path"], path, "{uri}");
    }
}

/// The status, the headers by name and the body.
async fn heard(answer: Value) -> Option<(u16, Vec<(String, String)>, String)> {
    let response = answer::response(answer)?;
    let headers = response.headers().iter();
    let mut headers: Vec<_> =
        headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    headers.sort();
    let status = response.status().as_u16();
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    Some((status, headers, String::from_utf8(body.into()).unwrap()))
}

fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(String, String)> {
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

#[tokio::test]
async fn an_answer_becomes_the_response() {
    let answer = json!({
        "statusCode": 201,
        "headers": {
            "Content-Type": "text/plain",
            "Connection": "X-Own",
            "Content-Length": "1000",
            "Transfer-Encoding": "chunked",
            "X-Own": "1",
        },
        "multiValueHeaders": { "x-many": ["1", "2"] },
        "cookies": ["a=b; Secure", "c=d"],
        "body": "w6k=",
        "isBase64Encoded": true,
    });
    let headers =
        pairs([("content-type", "text/plain"), ("set-cookie", "a=b; Secure"), ("set-cookie", "c=d")]);
    assert_eq!(heard(answer).await.unwrap(), (201, headers, "é".to_owned()));
    // As `lambda_http` writes an answer without a body.
    let answer = json!({ "statusCode": 204, "headers": {}, "multiValueHeaders": {}, "body": null, "isBase64Encoded": false, "cookies": [] });
    assert_eq!(heard(answer).await.unwrap(), (204, Vec::new(), String::new()));
    assert_eq!(heard(json!({ "statusCode": 404 })).await.unwrap(), (404, Vec::new(), String::new()));
}

#[tokio::test]
async fn an_answer_without_a_status_is_the_body() {
    for (answer, body) in [
        (json!("Hello from Lambda!"), "Hello from Lambda!"),
        (json!({ "message": "Hello from Lambda!" }), r#"{"message":"Hello from Lambda!"}"#),
        (json!({ "body": "b", "headers": { "a": "b" } }), r#"{"body":"b","headers":{"a":"b"}}"#),
        (json!([1]), "[1]"),
    ] {
        let headers = pairs([("content-type", "application/json")]);
        assert_eq!(heard(answer).await.unwrap(), (200, headers, body.to_owned()));
    }
}

#[tokio::test]
async fn a_malformed_answer_is_none() {
    for answer in [
        json!({ "statusCode": "200" }),
        json!({ "statusCode": null }),
        json!({ "statusCode": 200.5 }),
        json!({ "statusCode": 100 }),
        json!({ "statusCode": 600 }),
        json!({ "statusCode": 200, "body": { "a": 1 } }),
        json!({ "statusCode": 200, "body": "no base64!", "isBase64Encoded": true }),
        json!({ "statusCode": 200, "headers": { "a": 1 } }),
        json!({ "statusCode": 200, "headers": { "a b": "c" } }),
        json!({ "statusCode": 200, "headers": { "a": "b\r\nc: d" } }),
        json!({ "statusCode": 200, "cookies": "a=b" }),
    ] {
        assert_eq!(heard(answer.clone()).await, None, "{answer}");
    }
}
