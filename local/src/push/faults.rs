//! What can be made to go wrong: for one device or for everybody, for a number of requests or until cleared.

use std::future;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::server::HangUp;

/// One way in which a push service can fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An answer with this status. One that HTTP doesn't have becomes 500.
    Status {
        status: u16,
        /// `Retry-After`: seconds or a date.
        retry_after: Option<String>,
    },
    /// An answer with this status and, as Apple's service has it, `{"reason": …}`.
    Reason { status: u16, reason: String },
    /// No answer, and the connection stays.
    Hang,
    /// No answer: the connection is closed.
    HangUp,
    /// The message is accepted, and then the connection is closed: the sender can't know.
    AcceptedButLost,
    /// 307, to another place of this service.
    Redirect,
    /// 201, behind which the body never ends.
    EndlessBody,
}

impl Fault {
    /// An answer with this status and no `Retry-After`.
    pub fn status(status: u16) -> Self {
        Self::Status { status, retry_after: None }
    }

    /// This fault for the next `times` requests.
    pub fn times(self, times: u32) -> FaultRule {
        FaultRule { fault: self, times: Some(times) }
    }

    /// What happens before the message is looked at: an answer ends it here, nothing lets it go on.
    pub(super) async fn before(&self, origin: &str) -> Option<Response> {
        match self {
            Self::Status { status, retry_after } => {
                let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                let mut response = status.into_response();
                if let Some(value) = retry_after.as_ref().and_then(|text| HeaderValue::from_str(text).ok()) {
                    response.headers_mut().insert(header::RETRY_AFTER, value);
                }
                Some(response)
            }
            Self::Reason { status, reason } => {
                let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                Some((status, Json(json!({ "reason": reason }))).into_response())
            }
            Self::Hang => future::pending().await,
            Self::HangUp => Some(HangUp.into_response()),
            Self::Redirect => {
                let to = format!("{origin}/redirected");
                Some((StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response())
            }
            Self::AcceptedButLost | Self::EndlessBody => None,
        }
    }
}

/// A fault and how often it happens. Made from a [`Fault`], it happens until it is cleared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultRule {
    fault: Fault,
    times: Option<u32>,
}

impl From<Fault> for FaultRule {
    fn from(fault: Fault) -> Self {
        Self { fault, times: None }
    }
}

/// Holds the fault that is switched on, if one is.
#[derive(Default)]
pub(super) struct Slot(Option<FaultRule>);

impl Slot {
    pub(super) fn set(&mut self, rule: FaultRule) {
        self.0 = Some(rule).filter(|rule| rule.times != Some(0));
    }

    pub(super) fn clear(&mut self) {
        self.0 = None;
    }

    /// The fault that hits a request, which counts as one of its times.
    pub(super) fn hit(&mut self) -> Option<Fault> {
        let rule = self.0.as_mut()?;
        let fault = rule.fault.clone();
        if let Some(times) = &mut rule.times {
            *times -= 1;
            if *times == 0 {
                self.0 = None;
            }
        }
        Some(fault)
    }
}
