//! What calls to the database can end with.

use crate::authorization::Unknown;

/// The database failed; the text says at what, and what the reader can do. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct StoreError {
    /// What can help.
    pub kind: StoreErrorKind,
    /// For people.
    pub text: String,
}

impl StoreError {
    /// With this text.
    #[must_use]
    pub fn new(kind: StoreErrorKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

/// What can help against a [`StoreError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// Waiting: the database, or the connection to it, is away.
    Away,
    /// Another password or login: the database refuses ours. The secret may have been rotated.
    LoginRefused,
    /// Leaving one row out, which can't be read or written.
    Row,
    /// The operator: the schema, a right, or the configuration is wrong.
    Permanent,
}

/// Why a membership or a campaign could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// There is no such streamer, campaign or membership.
    #[error(transparent)]
    Unknown(#[from] Unknown),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
