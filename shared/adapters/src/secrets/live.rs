//! What is made of a secret, and made anew when the secret has changed.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::Secrets;
use crate::config::{ConfigError, Secret, Source};

/// A value that settings give, as of now. If they stand in a secret, it follows the secret; otherwise it never changes.
/// Clones are the same value.
pub struct Live<T>(Arc<Parts<T>>);

struct Parts<T> {
    /// The value, and the secret's version that it was made of.
    current: Mutex<(u64, Arc<T>)>,
    /// Nothing for what never changes.
    origin: Option<Origin<T>>,
}

struct Origin<T> {
    secrets: Secrets,
    secret: Secret,
    read: Reading<T>,
}

/// How the value is read from the settings.
type Reading<T> = Box<dyn Fn(&Source) -> Result<T, ConfigError> + Send + Sync>;

impl<T> From<T> for Live<T> {
    /// A value that never changes.
    fn from(value: T) -> Self {
        Self(Arc::new(Parts { current: Mutex::new((0, Arc::new(value))), origin: None }))
    }
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> fmt::Debug for Live<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Live(redacted)")
    }
}

impl<T> Live<T> {
    /// This value, which `read` makes of the settings when the secret has changed.
    pub(crate) fn new(value: T, secrets: Secrets, secret: Secret, read: Reading<T>) -> Self {
        let Some(version) = secrets.version(secret) else { return value.into() };
        let current = Mutex::new((version, Arc::new(value)));
        Self(Arc::new(Parts { current, origin: Some(Origin { secrets, secret, read }) }))
    }

    /// The value as of now.
    #[must_use]
    pub fn current(&self) -> Arc<T> {
        self.versioned().1
    }

    /// For whoever was refused with the value `seen`: reads the secret again, and answers with another value if there is
    /// one by now.
    pub async fn reload(&self, seen: &Arc<T>) -> Option<Arc<T>> {
        let (version, current) = self.versioned();
        if !Arc::ptr_eq(&current, seen) {
            return Some(current);
        }
        let Origin { secrets, secret, .. } = self.0.origin.as_ref()?;
        secrets.reload(*secret, version).await;
        Some(self.current()).filter(|current| !Arc::ptr_eq(current, seen))
    }

    fn versioned(&self) -> (u64, Arc<T>) {
        let mut current = self.0.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Origin { secrets, secret, read }) = &self.0.origin
            && let Some(version) = secrets.version(*secret).filter(|version| *version != current.0)
        {
            current.0 = version;
            match read(&secrets.source()) {
                Ok(value) => current.1 = Arc::new(value),
                Err(faults) => {
                    tracing::error!("a secret was changed, and what it said before is used on: {faults}");
                }
            }
        }
        current.clone()
    }
}
