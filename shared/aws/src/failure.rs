//! What the SDK's errors mean here. Their texts can hold what must not be shown (a refused signature is answered with
//! the headers that were signed, a connection that fails with its address), so only known ones are passed on.

use std::error::Error;
use std::iter;

use aws_sdk_scheduler::error::{ProvideErrorMetadata, SdkError};
use tokens_domain::plain;

/// Errors whose message says what to fix, and holds names and ARNs at most.
const TELLING: [&str; 8] = [
    "AccessDenied",
    "AccessDeniedException",
    "DecryptionFailure",
    "InvalidRequestException",
    "ResourceNotFoundException",
    "ServiceQuotaExceededException",
    "ValidationError",
    "ValidationException",
];

/// As much as is worth reading of a message that AWS wrote.
const MAX_TEXT: usize = 300;

/// A call that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reason: String,
    /// The next call would fail the same way, and take long to do so.
    pub(super) lasts: bool,
}

impl Failure {
    pub(super) fn lasting(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), lasts: true }
    }

    /// Refused, and at once.
    pub(super) fn refused(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), lasts: false }
    }
}

impl<E: ProvideErrorMetadata + Error + 'static> From<SdkError<E>> for Failure {
    fn from(error: SdkError<E>) -> Self {
        match &error {
            SdkError::ServiceError(answer) => {
                let status = answer.raw().status().as_u16();
                let Some(code) = answer.err().code() else {
                    return Self::lasting(format!("what answers is not AWS ({status})"));
                };
                let message = answer.err().message().filter(|_| TELLING.contains(&code));
                let reason = message
                    .map_or_else(|| format!("{code} ({status})"), |text| format!("{code}: {}", short(text)));
                // What the SDK has tried again without success.
                Self { reason, lasts: status >= 500 || code.starts_with("Throttl") }
            }
            SdkError::TimeoutError(_) => Self::lasting("no answer in time"),
            SdkError::DispatchFailure(failure) if failure.is_timeout() => Self::lasting("no answer in time"),
            SdkError::ResponseError(_) => Self::lasting("an answer that can't be read"),
            SdkError::DispatchFailure(_) | SdkError::ConstructionFailure(_) => {
                let root = root(&error);
                // The last of the providers that were tried says its own reason alone.
                let about = causes(&error).any(|cause| cause.to_string().contains("credential"));
                Self::lasting(short(&format!("{}{root}", if about { "no AWS credentials: " } else { "" })))
            }
            _ => Self::lasting("the AWS SDK failed"),
        }
    }
}

/// At the bottom lie the system's or the credentials' own words, without the address that those above add.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |&error| error.source())
}

/// What lies at the bottom.
pub(super) fn root(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map_or_else(String::new, ToString::to_string)
}

pub(super) fn short(text: &str) -> String {
    plain(text).chars().take(MAX_TEXT).collect()
}
