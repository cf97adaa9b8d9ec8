//! The database's clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::{DateTime, TimeDelta, Utc};
use tokens_domain::{Clock, Monotonic};

/// Further apart, the machine's clock is worth a warning, though the database's is used instead.
pub const CLOCK_TOLERANCE: TimeDelta = TimeDelta::seconds(2);

/// The time of the database: the machine's, corrected by how far the database's clock was ahead when it was last asked. All
/// hosts that share a database agree on it, so that none takes another's lease for ended.
#[derive(Clone)]
pub struct DatabaseClock {
    machine: Arc<dyn Clock>,
    /// In microseconds.
    ahead: Arc<AtomicI64>,
}

impl DatabaseClock {
    /// A clock that shows this machine's time until it is corrected.
    pub(crate) fn new(machine: Arc<dyn Clock>) -> Self {
        Self { machine, ahead: Arc::default() }
    }

    /// The clock that is corrected.
    pub(crate) fn machine(&self) -> &dyn Clock {
        self.machine.as_ref()
    }

    /// By how much the database's clock is ahead of the machine's.
    #[must_use]
    pub fn ahead(&self) -> TimeDelta {
        TimeDelta::microseconds(self.ahead.load(Ordering::Relaxed))
    }

    /// Corrects the clock: the database said `theirs` at some moment of the `round_trip` that ended at `answered_at`, by the
    /// machine's clock.
    pub(crate) fn correct(&self, theirs: DateTime<Utc>, answered_at: DateTime<Utc>, round_trip: TimeDelta) {
        let before = self.ahead();
        let ahead = agreed(before, theirs, answered_at, round_trip);
        if ahead == before {
            return;
        }
        self.ahead.store(ahead.num_microseconds().unwrap_or(0), Ordering::Relaxed);
        if ahead.abs() > CLOCK_TOLERANCE && (ahead - before).abs() > CLOCK_TOLERANCE {
            let seconds = ahead.as_seconds_f64().abs();
            let direction = if ahead > TimeDelta::zero() { "behind" } else { "ahead of" };
            tracing::warn!(
                "this machine's clock is {seconds:.1} s {direction} the database's, which is used instead: let both \
                 follow the same time service (NTP)"
            );
        }
    }
}

impl Clock for DatabaseClock {
    fn now(&self) -> DateTime<Utc> {
        self.machine.now() + self.ahead()
    }

    fn monotonic(&self) -> Monotonic {
        self.machine.monotonic()
    }
}

/// How far their clock is ahead: what was thought `before`, if the answer allows it, otherwise the nearest that it does. They
/// answered at any moment of the round trip, so the answer is half a round trip wide.
fn agreed(
    before: TimeDelta,
    theirs: DateTime<Utc>,
    answered_at: DateTime<Utc>,
    round_trip: TimeDelta,
) -> TimeDelta {
    let half = round_trip / 2;
    let measured = theirs - (answered_at - half);
    before.clamp(measured - half, measured + half)
}

#[cfg(test)]
mod tests {
    use tokens_domain::SystemClock;

    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn clocks_that_agree_are_left_alone_and_others_are_corrected_within_the_round_trip() {
        let (answered_at, round_trip) = (at("2026-11-23T04:00:10Z"), TimeDelta::milliseconds(100));
        for (before, theirs, ahead) in [
            // Anywhere within the round trip: no evidence against the same clock.
            (0, "2026-11-23T04:00:09.900Z", 0),
            (0, "2026-11-23T04:00:10Z", 0),
            // Ten minutes ahead, and behind.
            (0, "2026-11-23T04:10:10Z", 600_000),
            (0, "2026-11-23T03:50:09.900Z", -600_000),
            // Known already, but for less than the round trip.
            (599_950, "2026-11-23T04:10:09.900Z", 599_950),
            // The machine's clock was set right meanwhile.
            (600_000, "2026-11-23T04:00:09.950Z", 50),
        ] {
            let before = TimeDelta::milliseconds(before);
            let found = agreed(before, at(theirs), answered_at, round_trip);
            assert_eq!(found, TimeDelta::milliseconds(ahead), "{theirs} after {before}");
        }
    }

    #[test]
    fn all_copies_of_the_clock_are_corrected_together() {
        let clock = DatabaseClock::new(Arc::new(SystemClock));
        let copy = clock.clone();
        let now = SystemClock.now();
        clock.correct(now + TimeDelta::minutes(10), now, TimeDelta::zero());
        assert_eq!(copy.ahead(), TimeDelta::minutes(10));
        assert!(copy.now() >= now + TimeDelta::minutes(10));
    }
}
