//! Answers in Twitch's words, and the ways in which an answer can fail to arrive.

use std::io;

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::{StreamExt, stream};
use serde_json::{Value, json};

/// A JSON answer that a fault may still spoil.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Value,
}

impl Answer {
    pub(super) fn ok(body: Value) -> Self {
        Self { status: StatusCode::OK, body }
    }

    pub(super) fn error(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, body: json!({ "status": status.as_u16(), "message": message.into() }) }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::error(StatusCode::BAD_REQUEST, message)
    }

    /// Some of Twitch's errors repeat the status as a text.
    pub(super) fn with_reason(mut self) -> Self {
        self.body["error"] = json!(self.status.canonical_reason());
        self
    }

    pub(super) fn invalid_refresh_token(status: StatusCode) -> Self {
        Self::error(status, "Invalid refresh token").with_reason()
    }

    pub(super) fn invalid_client() -> Self {
        Self::bad_request("invalid client")
    }

    pub(super) fn unknown_client() -> Self {
        Self::error(StatusCode::NOT_FOUND, "client does not exist")
    }

    pub(super) fn missing_client_secret() -> Self {
        Self::bad_request("missing client secret")
    }

    pub(super) fn invalid_client_secret() -> Self {
        Self::error(StatusCode::FORBIDDEN, "invalid client secret")
    }

    pub(super) fn invalid_access_token() -> Self {
        Self::error(StatusCode::UNAUTHORIZED, "invalid access token")
    }

    /// The first half of this answer, under a `Content-Length` that promises all of it.
    pub(super) fn truncated(self) -> Response {
        let whole = self.body.to_string().into_bytes();
        let half = Bytes::copy_from_slice(&whole[..whole.len() / 2]);
        let body = stream::once(async { Ok(half) }).chain(stream::once(async {
            // The server sends what it has when a body makes it wait. Without that, even the head would be lost.
            tokio::task::yield_now().await;
            Err(io::Error::from(io::ErrorKind::ConnectionAborted))
        }));
        let head = [
            (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (header::CONTENT_LENGTH, whole.len().into()),
        ];
        (self.status, head, Body::from_stream(body)).into_response()
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        json_text(self.status, self.body.to_string())
    }
}

/// An answer that calls itself JSON; whether it is depends on `text`.
pub(super) fn json_text(status: StatusCode, text: impl Into<Body>) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], text.into()).into_response()
}

/// A page, such as a load balancer shows when nothing stands behind it.
pub(super) fn html(status: StatusCode) -> Response {
    let reason = status.canonical_reason().unwrap_or_default();
    let page = format!("<html><head><title>{reason}</title></head><body><h1>{reason}</h1></body></html>\n");
    (status, [(header::CONTENT_TYPE, "text/html")], page).into_response()
}

/// The start of an answer, then padding without end in sight: its length isn't announced.
pub(super) fn huge() -> Response {
    const CHUNK: &[u8] = &[b'a'; 64 * 1024];
    const CHUNKS: usize = 512;
    let body = stream::once(async { Bytes::from_static(br#"{"access_token":""#) })
        .chain(stream::repeat(Bytes::from_static(CHUNK)).take(CHUNKS))
        .map(Ok::<_, io::Error>);
    json_text(StatusCode::OK, Body::from_stream(body))
}
