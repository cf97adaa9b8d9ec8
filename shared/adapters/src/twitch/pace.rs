//! When the next call to Twitch may begin: a rate limit of ours, `Retry-After` and `Ratelimit-Reset` are one mechanism, the
//! moment before which nobody calls.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::with_jitter;

/// Whoever waits for the end of a silence calls within this long after it, not all at once.
const AFTER_SILENCE: Duration = Duration::from_millis(200);

/// When the next call may begin: as `TWITCH_MAX_PER_SECOND` spaces them, and not before Twitch wants any.
pub(super) struct Pace {
    interval: Option<Duration>,
    times: Mutex<Times>,
}

struct Times {
    /// The next moment that nobody has taken.
    free: Instant,
    /// Twitch has asked for silence until then.
    silent_until: Instant,
}

impl Pace {
    pub(super) fn new(max_per_second: Option<u32>) -> Self {
        let now = Instant::now();
        let times = Mutex::new(Times { free: now, silent_until: now });
        Self { interval: max_per_second.map(|n| Duration::from_secs(1) / n), times }
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the next free moment, unless Twitch's silence ends only after `latest`: then, when it ends.
    pub(super) fn take(&self, latest: Instant) -> Result<Instant, Instant> {
        let mut times = self.times();
        if times.silent_until > latest {
            return Err(times.silent_until);
        }
        let mut moment = times.free.max(Instant::now());
        if times.silent_until > moment {
            moment = (times.silent_until + with_jitter(AFTER_SILENCE)).min(latest);
        }
        if let Some(interval) = self.interval {
            times.free = moment + interval;
        }
        Ok(moment)
    }

    /// Nobody calls for this long.
    pub(super) fn hold(&self, wait: Duration) {
        let mut times = self.times();
        times.silent_until = times.silent_until.max(Instant::now() + wait);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// As long as a cycle would wait.
    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn calls_are_spaced_however_many_wait() {
        let pace = Pace::new(Some(4));
        let latest = Instant::now() + PATIENCE;
        let moments: Vec<_> = (0..100).map(|_| pace.take(latest).unwrap()).collect();
        assert!(moments.windows(2).all(|pair| pair[1] - pair[0] >= Duration::from_millis(250)));
    }

    #[test]
    fn twitch_is_left_alone_for_as_long_as_it_asks() {
        let pace = Pace::new(None);
        let now = Instant::now();
        pace.hold(Duration::from_secs(5));
        assert!(pace.take(now + PATIENCE).unwrap() >= now + Duration::from_secs(5));
        pace.hold(Duration::from_mins(1));
        pace.hold(Duration::from_secs(1));
        assert!(pace.take(now + PATIENCE).unwrap_err() >= now + Duration::from_mins(1));
    }

    #[test]
    fn a_silence_ends_for_one_after_the_other_and_for_nobody_too_late() {
        let pace = Pace::new(None);
        pace.hold(Duration::from_mins(10));
        let end = pace.times().silent_until;
        let moments: BTreeSet<_> = (0..64).map(|_| pace.take(end + PATIENCE).unwrap()).collect();
        assert!(moments.len() > 32, "{} moments for 64 calls", moments.len());
        assert_eq!(pace.take(end), Ok(end));
    }
}
