//! The clock port, and the machine's clock. Nothing else in the domain knows what time it is: decisions take `now`.

use std::ops::{Add, Sub};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};

/// Where the time comes from: the database's clock in production, one that can be turned on one machine.
pub trait Clock: Send + Sync {
    /// The time now, in UTC, in whole microseconds (what PostgreSQL's `timestamptz` can hold, so that a time
    /// read back equals the time written). It may be set, forward and back, at any moment.
    fn now(&self) -> DateTime<Utc>;

    /// The monotonic clock, for lengths of time and deadlines.
    fn monotonic(&self) -> Monotonic;
}

impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> DateTime<Utc> {
        (**self).now()
    }

    fn monotonic(&self) -> Monotonic {
        (**self).monotonic()
    }
}

/// What the monotonic clock counts from.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The time of the machine. For what is agreed with others than the database.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn now(&self) -> DateTime<Utc> {
        Utc::now().trunc_subsecs(6)
    }

    fn monotonic(&self) -> Monotonic {
        let elapsed = START.elapsed();
        Monotonic::after_start(TimeDelta::from_std(elapsed).unwrap_or(TimeDelta::MAX))
    }
}

/// A moment on the monotonic clock of one process: it never goes back and is never set, but may stand still while the
/// machine sleeps. Only differences mean anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Monotonic(TimeDelta);

impl Monotonic {
    /// The moment that is this long after the clock's arbitrary beginning.
    #[must_use]
    pub const fn after_start(elapsed: TimeDelta) -> Self {
        Self(elapsed)
    }
}

impl Add<TimeDelta> for Monotonic {
    type Output = Self;

    fn add(self, by: TimeDelta) -> Self {
        let limit = if by < TimeDelta::zero() { TimeDelta::MIN } else { TimeDelta::MAX };
        Self(self.0.checked_add(&by).unwrap_or(limit))
    }
}

impl Sub<TimeDelta> for Monotonic {
    type Output = Self;

    fn sub(self, by: TimeDelta) -> Self {
        self + -by
    }
}

impl Sub for Monotonic {
    type Output = TimeDelta;

    fn sub(self, earlier: Self) -> TimeDelta {
        (self + -earlier.0).0
    }
}
