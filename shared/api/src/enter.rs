//! What every request passes: who asks, the log, no body, and an answer whatever happens.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{DefaultBodyLimit, FromRequest, Request};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use serde_json::{Map, Value};
use tokio::time::timeout;
use tracing::Instrument;
use uuid::Uuid;

use crate::Context;
use crate::problem::{Problem, named};

/// No request takes a body, so that none has to be longer than a few spaces.
const MAX_BODY: usize = 1024;

/// A client that does not send the rest of its body must not hold the request open.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// These routes behind the door.
pub(crate) fn closed(routes: Router) -> Router {
    routes
        .route_layer(from_fn(without_body))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .fallback(async || Problem::UnknownRoute)
        .method_not_allowed_fallback(async || Problem::MethodNotAllowed)
        // The last one is the first that a request meets, whether its route is known or not.
        .layer(from_fn(enter))
}

async fn enter(request: Request, next: Next) -> Response {
    let Some(Context { caller, request_id, client, .. }) = request.extensions().get::<Context>().cloned()
    else {
        let request_id = Uuid::new_v4().to_string();
        tracing::warn!(request_id, path = request.uri().path(), "refused: the caller is not identified");
        return Problem::CallerUnidentified.answer(&request_id);
    };
    // At the level of errors, so that no line loses it whatever LOG_LEVEL says.
    let span = tracing::error_span!(
        "request",
        request_id,
        %caller,
        client = client.map(tracing::field::display),
        method = %request.method(),
        path = request.uri().path()
    );
    let answered = async {
        let began = Instant::now();
        let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
        let response = answered.unwrap_or_else(|_| {
            tracing::error!("the program failed at this request; its panic is in the log");
            Problem::Internal.into_response()
        });
        let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let status = response.status().as_u16();
        tracing::info!(status, duration_ms, "request answered");
        response
    };
    named(answered.instrument(span).await, &request_id)
}

/// All that a request says is in its path.
async fn without_body(request: Request, next: Next) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let reading = Bytes::from_request(Request::from_parts(parts.clone(), body), &());
    let read = timeout(BODY_TIMEOUT, reading).await.map_err(|_| Problem::UnexpectedBody)?;
    let body = read.map_err(|rejection| match rejection {
        BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => Problem::BodyTooLarge,
        // It broke off.
        _ => Problem::UnexpectedBody,
    })?;
    let is_empty =
        || serde_json::from_slice::<Map<String, Value>>(&body).is_ok_and(|object| object.is_empty());
    if !body.is_empty() && !is_empty() {
        return Err(Problem::UnexpectedBody);
    }
    Ok(next.run(Request::from_parts(parts, body.into())).await)
}
