//! The door, the ids and the table of problems: what needs no database.

use std::fmt::Write as _;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::header::{ALLOW, CONTENT_TYPE};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use axum::routing::get;
use serde_json::{Value, json};
use tokens_domain::authorization::Unknown;
use tokens_domain::grant::GrantError;
use tokens_domain::health::CheckError;
use tokens_domain::health::Issue as Found;
use tokens_domain::ports::{StoreError, StoreErrorKind};
use tokens_domain::{Caller, MembershipKey};
use tower::ServiceExt;

use crate::body::Issue;
use crate::problem::{PROBLEM_JSON, Problem};
use crate::routes::Ids;
use crate::{Context, enter};

const ID: &str = "5c0e7a52-3a35-4b7c-9a8b-0f6d2a1c9e11";

/// One of each.
const ALL: [Problem; 24] = [
    Problem::InvalidId { field: "campaign_id" },
    Problem::UnexpectedBody,
    Problem::BodyTooLarge,
    Problem::CallerUnidentified,
    Problem::CallerForeign,
    Problem::KeyMissing,
    Problem::RightMissing,
    Problem::CampaignForbidden,
    Problem::UnknownHost,
    Problem::TooManyRequests,
    Problem::TimedOut,
    Problem::UnknownRoute,
    Problem::MethodNotAllowed,
    Problem::Unknown(Unknown::Campaign),
    Problem::Unknown(Unknown::Streamer),
    Problem::Unknown(Unknown::Membership),
    Problem::MembershipPending,
    Problem::StreamerInactive,
    Problem::RefusedByTwitch,
    Problem::TwitchUnavailable,
    Problem::RefreshInProgress,
    Problem::DatabaseUnavailable,
    Problem::Misconfigured,
    Problem::Internal,
];

/// A few routes behind the door that all routes are behind.
fn router() -> Router {
    let ids = async |Ids(key): Ids<MembershipKey>| format!("{} {}", key.campaign, key.streamer);
    enter::closed(
        Router::new()
            .route("/fine", get("fine").post("fine"))
            .route("/panics", get(async || -> String { panic!("as it should") }))
            .route("/campaigns/{campaign_id}/streamers/{streamer_id}", get(ids)),
    )
}

fn context() -> Context {
    Context {
        caller: Caller("arn:aws:iam::123456789012:user/backend".to_owned()),
        request_id: "a-request".to_owned(),
        client: None,
        deadline: None,
    }
}

/// An answer, taken apart.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    /// The answer is this problem, in the form that problems have.
    #[track_caller]
    fn is(&self, problem: Problem) -> Value {
        let case = problem.case();
        assert_eq!(self.status, case.status, "{}", self.body);
        assert_eq!(self.headers[CONTENT_TYPE], PROBLEM_JSON);
        let body: Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(body["type"], format!("urn:problem:twitch-token-refresh:{}", case.name));
        assert_eq!(body["status"], case.status.as_u16());
        assert_eq!(self.headers["x-request-id"].to_str().unwrap(), body["request_id"]);
        body
    }
}

async fn ask(request: Request<Body>) -> Answer {
    let response = router().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = String::from_utf8(to_bytes(body, usize::MAX).await.unwrap().to_vec()).unwrap();
    Answer { status: parts.status, headers: parts.headers, body }
}

async fn send(method: Method, path: &str, body: impl Into<Body>) -> Answer {
    let request = Request::builder().method(method).uri(path).extension(context());
    ask(request.body(body.into()).unwrap()).await
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_end_is_not_waited_for() {
    let endless = Body::from_stream(futures::stream::pending::<Result<String, std::io::Error>>());
    send(Method::POST, "/fine", endless).await.is(Problem::UnexpectedBody);
}

#[tokio::test]
async fn nobody_gets_in_without_a_context_whatever_the_headers_say() {
    let forged = |header: Option<&str>| {
        let mut request = Request::builder().uri("/fine");
        if let Some(name) = header {
            request = request.header(name, "arn:aws:iam::123456789012:user/backend");
        }
        request.body(Body::empty()).unwrap()
    };
    for header in [
        None,
        Some("x-caller"),
        Some("x-amzn-request-context"),
        Some("x-amz-user-arn"),
        Some("authorization"),
    ] {
        ask(forged(header)).await.is(Problem::CallerUnidentified);
    }
    // Nor learns who is not let in which paths there are.
    let mut unknown = forged(None);
    *unknown.uri_mut() = "/elsewhere".parse().unwrap();
    ask(unknown).await.is(Problem::CallerUnidentified);
}

#[tokio::test]
async fn every_answer_carries_the_requests_id_and_no_header_sets_it() {
    let request = Request::builder().uri("/fine").header("x-request-id", "forged").extension(context());
    let answer = ask(request.body(Body::empty()).unwrap()).await;
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "fine"));
    assert_eq!(answer.headers["x-request-id"], "a-request");
    assert_eq!(
        send(Method::GET, "/elsewhere", "").await.is(Problem::UnknownRoute)["request_id"],
        "a-request"
    );
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    for path in ["/", "/elsewhere", "/fine/", "//fine", "/%ff", "/fine%00"] {
        send(Method::GET, path, "").await.is(Problem::UnknownRoute);
        send(Method::DELETE, path, "").await.is(Problem::UnknownRoute);
    }
    assert_eq!(send(Method::GET, "/fine?unknown=parameter", "").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones() {
    for method in [Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS, Method::TRACE] {
        let answer = send(method, "/fine", "").await;
        answer.is(Problem::MethodNotAllowed);
        assert_eq!(answer.headers[ALLOW], "GET,HEAD,POST");
    }
    let answer = send(Method::HEAD, "/fine", "").await;
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, ""));
    let answer = send(Method::HEAD, "/elsewhere", "").await;
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::NOT_FOUND, ""));
}

#[tokio::test]
async fn a_body_is_refused_unless_it_says_nothing() {
    for nothing in ["", "{}", " { }\n"] {
        assert_eq!(send(Method::POST, "/fine", nothing).await.status, StatusCode::OK, "{nothing:?}");
    }
    for something in ["x", " ", "null", "[]", "0", r#"{"hours":24}"#, "{}{}", "\0"] {
        let body = send(Method::POST, "/fine", something).await.is(Problem::UnexpectedBody);
        assert_eq!(body["field"], "body");
    }
    send(Method::POST, "/fine", vec![0xff; 100]).await.is(Problem::UnexpectedBody);
    send(Method::POST, "/fine", " ".repeat(1024)).await.is(Problem::UnexpectedBody);
    send(Method::POST, "/fine", " ".repeat(1025)).await.is(Problem::BodyTooLarge);
    send(Method::GET, "/fine", "x").await.is(Problem::UnexpectedBody);
}

#[tokio::test]
async fn an_id_is_a_uuid_in_its_usual_form() {
    let path = |campaign: &str, streamer: &str| format!("/campaigns/{campaign}/streamers/{streamer}");
    let upper = ID.to_uppercase();
    let answer = send(Method::GET, &path(&upper, ID), "").await;
    assert_eq!((answer.status, answer.body), (StatusCode::OK, format!("{ID} {ID}")));
    let simple = ID.replace('-', "");
    let (urn, braced) = (format!("urn:uuid:{ID}"), format!("%7B{ID}%7D"));
    for wrong in [
        "1",
        &simple,
        &urn,
        &braced,
        &ID[1..],
        "%ff",
        "%",
        "..",
        "%2e%2e",
        "' OR 1=1 --".replace(' ', "%20").as_str(),
        &"x".repeat(2000),
    ] {
        let body =
            send(Method::GET, &path(wrong, ID), "").await.is(Problem::InvalidId { field: "campaign_id" });
        assert_eq!(body["field"], "campaign_id", "{wrong}");
        let body =
            send(Method::GET, &path(ID, wrong), "").await.is(Problem::InvalidId { field: "streamer_id" });
        assert_eq!(body["field"], "streamer_id", "{wrong}");
    }
}

#[tokio::test]
async fn a_panic_is_answered() {
    send(Method::GET, "/panics", "").await.is(Problem::Internal);
}

#[test]
fn problems_read_well() {
    let mut table = String::new();
    for problem in ALL {
        let body = serde_json::to_string_pretty(&problem.body("a-request")).unwrap();
        let headers = problem.answer("a-request").headers().clone();
        writeln!(table, "{}", problem.case().status).unwrap();
        for (name, value) in &headers {
            writeln!(table, "{name}: {}", value.to_str().unwrap()).unwrap();
        }
        writeln!(table, "{body}\n").unwrap();
    }
    insta::assert_snapshot!("problems", table);
}

#[test]
fn each_case_has_a_name_of_its_own() {
    let mut names = ALL.map(|problem| problem.case().name);
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
}

#[test]
fn why_nothing_was_checked() {
    let secret = || "key `2025` at db.internal".to_owned();
    for (error, expected) in [
        (CheckError::Unknown(Unknown::Campaign), Problem::Unknown(Unknown::Campaign)),
        (CheckError::Ours(secret()), Problem::Misconfigured),
        (CheckError::Store(StoreError::new(StoreErrorKind::Away, secret())), Problem::DatabaseUnavailable),
    ] {
        assert_eq!(Problem::from(error), expected);
    }
}

#[test]
fn why_nothing_was_granted() {
    let secret = || "key `2025` at db.internal".to_owned();
    for (error, expected) in [
        (GrantError::Unknown(Unknown::Campaign), Problem::Unknown(Unknown::Campaign)),
        (GrantError::Unknown(Unknown::Streamer), Problem::Unknown(Unknown::Streamer)),
        (GrantError::Unknown(Unknown::Membership), Problem::Unknown(Unknown::Membership)),
        (GrantError::Pending, Problem::MembershipPending),
        (GrantError::Inactive, Problem::StreamerInactive),
        (GrantError::Refused(secret()), Problem::RefusedByTwitch),
        (GrantError::Outage(secret()), Problem::TwitchUnavailable),
        (GrantError::NoTime, Problem::TwitchUnavailable),
        (GrantError::Busy, Problem::RefreshInProgress),
        (GrantError::Ours(secret()), Problem::Misconfigured),
        (GrantError::Store(StoreError::new(StoreErrorKind::Away, secret())), Problem::DatabaseUnavailable),
    ] {
        let said = format!("{error:?}");
        let problem = Problem::of_grant(error);
        assert_eq!(problem, expected, "{said}");
        let body = serde_json::to_string(&problem.body("a-request")).unwrap();
        assert!(!body.contains("db.internal"), "{body}");
    }
}

#[test]
fn issues_are_spelt_as_the_domain_spells_them() {
    for found in [
        Found::StreamerInactive,
        Found::AuthorizationMissing,
        Found::AuthorizationExpired,
        Found::TokenMissing,
        Found::TokenInvalid,
    ] {
        assert_eq!(serde_json::to_value(Issue::from(found)).unwrap(), json!(found.as_str()));
    }
}
