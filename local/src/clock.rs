//! A clock that can be turned: what makes hours of tokens and sessions pass in a test or a demo without waiting.
//!
//! It is the one place of this crate that reads the machine's time.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use tokens_domain::SystemClock;
use tokens_domain::{Clock, Monotonic};

/// A [`Clock`] that stands still or runs, and can be turned either way. Every part of a simulated system must share
/// one, or its parts disagree about which tokens have expired.
///
/// It stands for the database's clock, which all hosts share, so nothing corrects it.
#[derive(Debug)]
pub struct TurnableClock {
    hands: Mutex<Hands>,
}

/// The wall clock and the monotonic one. A clock that is set moves the first alone.
#[derive(Clone, Copy, Debug)]
enum Hands {
    /// Stand still at these times.
    Frozen(DateTime<Utc>, Monotonic),
    /// Run as fast as the machine's clocks, this much ahead of them.
    Running { ahead: TimeDelta, monotonic_ahead: TimeDelta },
}

impl TurnableClock {
    /// A clock that stands still at `time`, until it is turned.
    pub fn frozen_at(time: DateTime<Utc>) -> Self {
        Self { hands: Mutex::new(Hands::Frozen(time, SystemClock.monotonic())) }
    }

    /// A clock that stands still at the machine's time of this moment.
    pub fn frozen() -> Self {
        Self::frozen_at(SystemClock.now())
    }

    /// A clock that runs on from `time`.
    pub fn running_from(time: DateTime<Utc>) -> Self {
        Self { hands: Mutex::new(Hands::running_from(time, SystemClock.monotonic())) }
    }

    /// A clock that shows the machine's time, until it is turned.
    pub fn running() -> Self {
        let (ahead, monotonic_ahead) = (TimeDelta::zero(), TimeDelta::zero());
        Self { hands: Mutex::new(Hands::Running { ahead, monotonic_ahead }) }
    }

    /// Lets time pass. Past the last time that can be represented the clock stays there.
    pub fn advance(&self, by: Duration) {
        let mut hands = self.hands();
        let passed = TimeDelta::from_std(by).unwrap_or(TimeDelta::MAX);
        *hands = hands.moved_to(later(hands.time(), by), hands.monotonic() + passed);
    }

    /// Sets the clock to `time`, forward or back, as if no time had passed; it then runs on if it ran before.
    pub fn set(&self, time: DateTime<Utc>) {
        let mut hands = self.hands();
        *hands = hands.moved_to(time, hands.monotonic());
    }

    fn hands(&self) -> MutexGuard<'_, Hands> {
        // Each change is one assignment, so that a panic elsewhere can't have left the hands half turned.
        self.hands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for TurnableClock {
    fn now(&self) -> DateTime<Utc> {
        self.hands().time().trunc_subsecs(6)
    }

    fn monotonic(&self) -> Monotonic {
        self.hands().monotonic()
    }
}

impl Hands {
    fn running_from(time: DateTime<Utc>, monotonic: Monotonic) -> Self {
        Self::Running {
            ahead: time - SystemClock.now(),
            monotonic_ahead: monotonic - SystemClock.monotonic(),
        }
    }

    fn time(self) -> DateTime<Utc> {
        match self {
            Self::Frozen(time, _) => time,
            Self::Running { ahead, .. } => {
                SystemClock.now().checked_add_signed(ahead).unwrap_or(DateTime::<Utc>::MAX_UTC)
            }
        }
    }

    fn monotonic(self) -> Monotonic {
        match self {
            Self::Frozen(_, monotonic) => monotonic,
            Self::Running { monotonic_ahead, .. } => SystemClock.monotonic() + monotonic_ahead,
        }
    }

    fn moved_to(self, time: DateTime<Utc>, monotonic: Monotonic) -> Self {
        match self {
            Self::Frozen(..) => Self::Frozen(time, monotonic),
            Self::Running { .. } => Self::running_from(time, monotonic),
        }
    }
}

/// `time` plus `by`, or the last time that can be represented.
pub(crate) fn later(time: DateTime<Utc>, by: Duration) -> DateTime<Utc> {
    TimeDelta::from_std(by)
        .ok()
        .and_then(|by| time.checked_add_signed(by))
        .unwrap_or(DateTime::<Utc>::MAX_UTC)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn passing_time_moves_the_monotonic_clock_and_setting_the_clock_does_not() {
        let clock = TurnableClock::frozen();
        let start = clock.monotonic();
        clock.set(at("2026-11-22T00:00:00Z"));
        assert_eq!(clock.monotonic(), start);
        clock.advance(Duration::from_mins(3));
        assert_eq!(clock.monotonic() - start, TimeDelta::minutes(3));
        assert_eq!(clock.now(), at("2026-11-22T00:03:00Z"));
    }

    #[test]
    fn it_shows_whole_microseconds() {
        let clock = TurnableClock::frozen_at(at("2026-11-23T04:00:00.123456789Z"));
        assert_eq!(clock.now(), at("2026-11-23T04:00:00.123456Z"));
        let running = TurnableClock::running().now();
        assert_eq!(running, running.trunc_subsecs(6));
    }

    #[test]
    fn a_running_clock_runs_on_from_where_it_is_turned_to() {
        let clock = TurnableClock::running_from(at("2026-11-23T04:00:00Z"));
        let first = clock.now();
        // The bounds are loose because a loaded machine can stop this test for a while.
        assert!(first >= at("2026-11-23T03:59:59Z") && first < at("2026-11-23T04:30:00Z"), "{first}");

        clock.advance(Duration::from_hours(4));
        assert!(clock.now() - first >= TimeDelta::hours(4) - TimeDelta::seconds(1));

        while clock.now() <= first {
            std::thread::yield_now();
        }
    }
}
