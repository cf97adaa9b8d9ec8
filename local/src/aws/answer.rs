//! Answers in the words of the services, each in its protocol.

use std::io;

use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde_json::{Value, json};

use super::Service;

/// A request that is refused.
#[derive(Debug)]
pub(super) enum Refusal {
    /// In this service's protocol.
    Answer { service: Service, status: StatusCode, code: &'static str, message: String },
    /// Without an answer.
    HangUp,
    /// With an answer that does not come to its end.
    Stall,
}

impl Refusal {
    pub(super) fn new(
        service: Service,
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self::Answer { service, status, code, message: message.into() }
    }

    pub(super) fn invalid(service: Service, message: impl Into<String>) -> Self {
        Self::new(service, StatusCode::BAD_REQUEST, "ValidationException", message)
    }

    pub(super) fn throttled(service: Service) -> Self {
        // JSON 1.1 has 400 for whatever is the client's doing.
        let status = match service {
            Service::Scheduler => StatusCode::TOO_MANY_REQUESTS,
            Service::Events | Service::Secrets => StatusCode::BAD_REQUEST,
        };
        Self::new(service, status, "ThrottlingException", "Rate exceeded")
    }

    pub(super) fn internal(service: Service) -> Self {
        let code = match service {
            Service::Scheduler => "InternalServerException",
            Service::Events => "InternalException",
            Service::Secrets => "InternalServiceError",
        };
        Self::new(service, StatusCode::INTERNAL_SERVER_ERROR, code, "Unexpected error")
    }

    pub(super) fn denied(service: Service) -> Self {
        let (status, action) = match service {
            Service::Scheduler => (StatusCode::FORBIDDEN, "scheduler:CreateSchedule"),
            Service::Events => (StatusCode::BAD_REQUEST, "events:PutEvents"),
            Service::Secrets => (StatusCode::BAD_REQUEST, "secretsmanager:GetSecretValue"),
        };
        let message = format!("User is not authorized to perform: {action}");
        Self::new(service, status, "AccessDeniedException", message)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (service, status, code, message) = match self {
            Self::Answer { service, status, code, message } => (service, status, code, message),
            Self::HangUp => return hang_up(),
            Self::Stall => return Body::from_stream(stream::pending::<io::Result<Bytes>>()).into_response(),
        };
        match service {
            Service::Scheduler => {
                let mut response = rest(status, &json!({ "Message": message }));
                response.headers_mut().insert("x-amzn-errortype", header::HeaderValue::from_static(code));
                response
            }
            Service::Events | Service::Secrets => {
                json_1_1(status, &json!({ "__type": code, "message": message }))
            }
        }
    }
}

/// An answer in REST's JSON.
pub(super) fn rest(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// An answer in JSON 1.1.
pub(super) fn json_1_1(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/x-amz-json-1.1")], body.to_string()).into_response()
}

/// No answer: a body that fails before anything of it is sent makes the server close the connection.
fn hang_up() -> Response {
    let nothing = stream::once(async { Err::<Bytes, _>(io::Error::from(io::ErrorKind::ConnectionAborted)) });
    ([(header::CONTENT_LENGTH, "1")], Body::from_stream(nothing)).into_response()
}
