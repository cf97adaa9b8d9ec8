//! When the next call to Twitch may begin: as `TWITCH_MAX_PER_SECOND` spaces them, and on each endpoint not before the moment
//! that its `Retry-After` or `Ratelimit-Reset` named. A limit on one endpoint holds back no call to another, and an
//! optional call none that is vital.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokens_domain::ports::Priority;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::with_jitter;

/// Callers that wait for the end of a silence call within this long after it, not all at once.
const AFTER_SILENCE: Duration = Duration::from_millis(200);

/// Where a call goes. Twitch limits each on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Token,
    Validate,
    Revoke,
}

/// When the next call may begin.
pub(super) struct Pace {
    interval: Option<Duration>,
    times: Mutex<Times>,
    /// Held by the optional call that comes next.
    optional: tokio::sync::Mutex<()>,
}

struct Times {
    /// The next moment that no call has taken.
    free: Instant,
    /// Twitch has asked for silence until then, by endpoint.
    silent_until: [Instant; 3],
}

/// What a call is given.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// This moment is the call's own.
    At(Instant),
    /// None yet; it asks again then.
    NotBefore(Instant),
}

impl Pace {
    pub(super) fn new(max_per_second: Option<u32>) -> Self {
        let now = Instant::now();
        let times = Mutex::new(Times { free: now, silent_until: [now; 3] });
        let interval = max_per_second.map(|n| Duration::from_secs(1) / n);
        Self { interval, times, optional: tokio::sync::Mutex::default() }
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the call may begin. Fails at once, with the moment when that would be, if it is after `latest`.
    pub(super) async fn turn(
        &self,
        endpoint: Endpoint,
        priority: Priority,
        latest: Instant,
    ) -> Result<(), Instant> {
        // Only where calls are spaced: optional ones then wait for one another here, and take no moment in advance.
        let _next = match (self.interval, priority) {
            (Some(_), Priority::Optional) => {
                Some(timeout_at(latest, self.optional.lock()).await.map_err(|_| self.times().free)?)
            }
            _ => None,
        };
        loop {
            let now = Instant::now();
            match self.take(endpoint, priority, now, latest)? {
                // Timers count in milliseconds: a sleep until now would be one of up to that, and a wake-up, for each call.
                Turn::At(moment) if moment <= now => return Ok(()),
                Turn::At(moment) => {
                    sleep_until(moment).await;
                    return Ok(());
                }
                Turn::NotBefore(moment) => sleep_until(moment).await,
            }
        }
    }

    /// A vital call takes the next free moment, however far ahead; an optional one only a moment that is free now. While
    /// an endpoint is silent its calls take none: those of the others would have to wait behind them.
    fn take(
        &self,
        endpoint: Endpoint,
        priority: Priority,
        now: Instant,
        latest: Instant,
    ) -> Result<Turn, Instant> {
        let mut times = self.times();
        let silent_until = times.silent_until[endpoint as usize];
        if silent_until > latest {
            return Err(silent_until);
        }
        if silent_until > now {
            return Ok(Turn::NotBefore((silent_until + with_jitter(AFTER_SILENCE)).min(latest)));
        }
        let Some(interval) = self.interval else { return Ok(Turn::At(now)) };
        let moment = times.free.max(now);
        if priority == Priority::Optional && moment > now {
            return if moment > latest { Err(moment) } else { Ok(Turn::NotBefore(moment)) };
        }
        times.free = moment + interval;
        Ok(Turn::At(moment))
    }

    /// No call goes to this endpoint for so long.
    pub(super) fn hold(&self, endpoint: Endpoint, wait: Duration) {
        let silent_until = &mut self.times().silent_until[endpoint as usize];
        *silent_until = (*silent_until).max(Instant::now() + wait);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Endpoint::{Revoke, Token, Validate};
    use super::Priority::{Optional, Vital};
    use super::*;

    /// As long as a cycle would wait.
    const PATIENCE: Duration = Duration::from_secs(10);

    /// What a call gets that comes now.
    fn take(pace: &Pace, endpoint: Endpoint, priority: Priority, now: Instant) -> Result<Turn, Instant> {
        pace.take(endpoint, priority, now, now + PATIENCE)
    }

    #[test]
    fn calls_are_spaced_however_many_wait() {
        let (pace, now) = (Pace::new(Some(4)), Instant::now());
        let moments: Vec<_> = (0..100)
            .map(|_| match take(&pace, Token, Vital, now) {
                Ok(Turn::At(moment)) => moment,
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(moments.windows(2).all(|pair| pair[1] - pair[0] == Duration::from_millis(250)));
    }

    #[test]
    fn twitch_is_left_alone_for_as_long_as_it_asks() {
        let pace = Pace::new(None);
        pace.hold(Token, Duration::from_mins(1));
        pace.hold(Token, Duration::from_secs(5));
        let now = Instant::now();
        let end = take(&pace, Token, Vital, now).unwrap_err();
        assert!(end > now + Duration::from_secs(59));
        assert!(
            matches!(take(&pace, Token, Vital, end - PATIENCE), Ok(Turn::NotBefore(moment)) if moment >= end)
        );
        assert_eq!(take(&pace, Token, Vital, end), Ok(Turn::At(end)));
    }

    #[test]
    fn a_limit_on_one_endpoint_holds_back_no_other() {
        for max_per_second in [None, Some(1_000)] {
            for limited in [Token, Validate, Revoke] {
                for wait in [Duration::from_secs(30), Duration::from_secs(5)] {
                    let pace = Pace::new(max_per_second);
                    pace.hold(limited, wait);
                    let now = Instant::now();
                    // However many calls wait for its end, they take none of the moments behind it.
                    for _ in 0..64 {
                        assert!(!matches!(take(&pace, limited, Vital, now), Ok(Turn::At(_))));
                    }
                    for other in [Token, Validate, Revoke].into_iter().filter(|other| *other != limited) {
                        let turn = take(&pace, other, Vital, now);
                        let soon = now + Duration::from_millis(10);
                        assert!(matches!(turn, Ok(Turn::At(moment)) if moment <= soon), "{turn:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn optional_calls_give_way_to_vital_ones() {
        let (pace, now) = (Pace::new(Some(1)), Instant::now());
        let second = |n| now + Duration::from_secs(n);
        assert_eq!(take(&pace, Validate, Optional, now), Ok(Turn::At(now)));
        // It asks again then, and those that came meanwhile are before it.
        assert_eq!(take(&pace, Validate, Optional, now), Ok(Turn::NotBefore(second(1))));
        assert_eq!(take(&pace, Token, Vital, now), Ok(Turn::At(second(1))));
        assert_eq!(take(&pace, Validate, Vital, now), Ok(Turn::At(second(2))));
        assert_eq!(take(&pace, Validate, Optional, second(1)), Ok(Turn::NotBefore(second(3))));
        assert_eq!(take(&pace, Validate, Optional, second(3)), Ok(Turn::At(second(3))));
    }

    #[tokio::test]
    async fn an_optional_call_that_finds_no_free_moment_in_time_gives_up() {
        let (pace, now) = (Pace::new(Some(1)), Instant::now());
        for _ in 0..20 {
            take(&pace, Token, Vital, now).unwrap();
        }
        let turn = pace.turn(Validate, Optional, now + PATIENCE).await;
        assert_eq!(turn, Err(now + Duration::from_secs(20)));
    }

    #[test]
    fn a_silence_ends_for_one_after_the_other_and_for_none_too_late() {
        let pace = Pace::new(None);
        pace.hold(Token, Duration::from_mins(10));
        let end = pace.times().silent_until[Token as usize];
        let moments: BTreeSet<_> = (0..64)
            .map(|_| match take(&pace, Token, Vital, end - Duration::from_secs(1)) {
                Ok(Turn::NotBefore(moment)) => moment,
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(moments.len() > 32, "{} moments for 64 calls", moments.len());
        assert!(moments.first() >= Some(&end));
        assert_eq!(pace.take(Token, Vital, end - PATIENCE, end), Ok(Turn::NotBefore(end)));
    }
}
