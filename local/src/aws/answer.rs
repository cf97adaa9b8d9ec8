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
            Service::Scheduler | Service::Lambda | Service::Portal => StatusCode::TOO_MANY_REQUESTS,
            Service::Events | Service::Secrets | Service::CloudFormation => StatusCode::BAD_REQUEST,
        };
        let code = match service {
            Service::CloudFormation => "Throttling",
            Service::Lambda | Service::Portal => "TooManyRequestsException",
            Service::Scheduler | Service::Events | Service::Secrets => "ThrottlingException",
        };
        Self::new(service, status, code, "Rate exceeded")
    }

    pub(super) fn internal(service: Service) -> Self {
        let code = match service {
            Service::Scheduler => "InternalServerException",
            Service::Events => "InternalException",
            Service::Secrets => "InternalServiceError",
            Service::CloudFormation => "InternalFailure",
            Service::Lambda => "ServiceException",
            Service::Portal => "InternalServerError",
        };
        Self::new(service, StatusCode::INTERNAL_SERVER_ERROR, code, "Unexpected error")
    }

    pub(super) fn denied(service: Service) -> Self {
        let (status, action) = match service {
            Service::Scheduler => (StatusCode::FORBIDDEN, "scheduler:CreateSchedule"),
            Service::Events => (StatusCode::BAD_REQUEST, "events:PutEvents"),
            Service::Secrets => (StatusCode::BAD_REQUEST, "secretsmanager:GetSecretValue"),
            Service::CloudFormation => (StatusCode::FORBIDDEN, "cloudformation:DescribeStacks"),
            Service::Lambda => (StatusCode::FORBIDDEN, "lambda:GetFunctionConfiguration"),
            Service::Portal => (StatusCode::FORBIDDEN, "sso:GetRoleCredentials"),
        };
        let code = if service == Service::CloudFormation { "AccessDenied" } else { "AccessDeniedException" };
        let message = format!("User is not authorized to perform: {action}");
        Self::new(service, status, code, message)
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
            Service::CloudFormation => query(
                status,
                format!(
                    "<ErrorResponse xmlns=\"http://cloudformation.amazonaws.com/doc/2010-05-15/\"><Error><Type>Sender</Type>\
                     <Code>{code}</Code><Message>{}</Message></Error></ErrorResponse>",
                    xml(&message)
                ),
            ),
            Service::Scheduler | Service::Lambda | Service::Portal => {
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

/// An answer in the Query protocol.
pub(super) fn query(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, "text/xml")], body).into_response()
}

/// As text of an element.
pub(super) fn xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
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
