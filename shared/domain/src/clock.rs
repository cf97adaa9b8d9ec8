//! The clock port. Nothing else in the domain knows what time it is: decisions take `now`.

use chrono::{DateTime, Utc};

/// Where the time comes from: the system's clock in production, one that can be turned on one machine.
pub trait Clock: Send + Sync {
    /// The time now, in UTC, in whole microseconds (what PostgreSQL's `timestamptz` can hold, so that a time
    /// read back equals the time written).
    fn now(&self) -> DateTime<Utc>;
}

impl<C: Clock + ?Sized> Clock for std::sync::Arc<C> {
    fn now(&self) -> DateTime<Utc> {
        (**self).now()
    }
}
