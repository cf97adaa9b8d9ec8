//! The options with which the server is entered, and where others come from when it refuses them.

use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use sqlx::postgres::PgConnectOptions;

/// Finds other options, after the server has refused ours: a password may have been rotated. A new pair of tokens exists nowhere
/// but here until it is written, so the cycle that holds it can't end for that.
pub type OtherLogin = Arc<dyn Fn() -> BoxFuture<'static, Option<PgConnectOptions>> + Send + Sync>;

/// How a database is entered.
pub struct Login {
    options: Mutex<Arc<PgConnectOptions>>,
    other: Option<OtherLogin>,
}

impl From<PgConnectOptions> for Login {
    /// Options that never change.
    fn from(options: PgConnectOptions) -> Self {
        Self { options: Mutex::new(Arc::new(options)), other: None }
    }
}

impl Login {
    /// Options that `other` replaces when the server refuses them.
    #[must_use]
    pub fn replaced_by(options: PgConnectOptions, other: Option<OtherLogin>) -> Self {
        Self { other, ..options.into() }
    }

    pub(super) fn options(&self) -> Arc<PgConnectOptions> {
        self.options.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether there are other options now.
    pub(super) async fn replace(&self) -> bool {
        let Some(other) = &self.other else { return false };
        let Some(options) = other().await else { return false };
        *self.options.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(options);
        true
    }
}
