//! The schedules on one machine: the rules of the template, and the one-shots that a cycle arms, on a clock that can be
//! turned. It says what fires next; whoever runs the stage carries it out.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use domain::ports::{EventPublisher, RetryScheduler, SignalError, StreamerDeactivated};
use domain::schedule::{self, NOTIFY_TIMER, Schedule, Trigger};

static NOTIFY: LazyLock<Schedule> =
    LazyLock::new(|| NOTIFY_TIMER.parse().expect("our own expressions are tested"));

/// What a schedule starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    Cycle(Trigger),
    Notify,
}

/// The rules and the armed retries. Clones are the same scheduler.
#[derive(Clone, Debug, Default)]
pub struct LocalScheduler(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    retries: BTreeSet<DateTime<Utc>>,
    /// A domain event wakes the delivery at once.
    events: Vec<StreamerDeactivated>,
    undelivered: bool,
}

impl LocalScheduler {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn events(&self) -> Vec<StreamerDeactivated> {
        self.state().events.clone()
    }

    /// The minutes for which a retry is armed.
    pub fn retries(&self) -> Vec<DateTime<Utc>> {
        self.state().retries.iter().copied().collect()
    }

    /// What fires first after `now`, at `until` at the latest, which has fired by being answered. An armed retry whose minute
    /// is over fires late rather than never.
    pub fn take_next(&self, now: DateTime<Utc>, until: DateTime<Utc>) -> Option<(DateTime<Utc>, Job)> {
        let mut state = self.state();
        if std::mem::take(&mut state.undelivered) {
            return Some((now, Job::Notify));
        }
        let later = now + TimeDelta::microseconds(1);
        let (trigger, rule) = schedule::next_rule(later);
        let timer = NOTIFY.next_from(later).expect("the rules fire every day");
        let (at, job) = if timer < rule { (timer, Job::Notify) } else { (rule, Job::Cycle(trigger)) };
        match state.retries.first().copied() {
            Some(minute) if minute <= at && minute <= until => {
                state.retries.remove(&minute);
                Some((minute.max(now), Job::Cycle(Trigger::Retry)))
            }
            _ => Some((at, job)).filter(|(at, _)| *at <= until),
        }
    }
}

impl RetryScheduler for LocalScheduler {
    async fn arm_retry(&self, minute: DateTime<Utc>) -> Result<(), SignalError> {
        self.state().retries.insert(minute);
        Ok(())
    }
}

impl EventPublisher for LocalScheduler {
    async fn publish(&self, event: &StreamerDeactivated) -> Result<(), SignalError> {
        let mut state = self.state();
        state.events.push(event.clone());
        state.undelivered = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn end() -> DateTime<Utc> {
        at("2026-11-24T00:00:00Z")
    }

    #[tokio::test]
    async fn what_fires_at_the_end_fires_and_nothing_later() {
        let scheduler = LocalScheduler::default();
        scheduler.arm_retry(at("2026-11-23T23:58:00Z")).await.unwrap();
        let (now, end) = (at("2026-11-23T23:55:00Z"), at("2026-11-23T23:57:00Z"));
        assert_eq!(scheduler.take_next(now, end), None);
        let end = at("2026-11-23T23:58:00Z");
        assert_eq!(scheduler.take_next(now, end), Some((end, Job::Cycle(Trigger::Retry))));
        assert_eq!(scheduler.take_next(end, end), None);
    }

    #[tokio::test]
    async fn rules_and_retries_fire_in_order_and_a_retry_once() {
        let scheduler = LocalScheduler::default();
        scheduler.arm_retry(at("2026-11-23T20:05:00Z")).await.unwrap();
        scheduler.arm_retry(at("2026-11-23T20:05:00Z")).await.unwrap();
        let mut now = at("2026-11-23T20:00:00Z");
        let mut fired = Vec::new();
        while fired.len() < 5 {
            let (then, job) = scheduler.take_next(now, end()).unwrap();
            fired.push((then.format("%H:%M").to_string(), job));
            now = then;
        }
        let sweep = Job::Cycle(Trigger::Sweep);
        let expected = [
            ("20:04", Job::Notify),
            ("20:05", Job::Cycle(Trigger::Retry)),
            ("20:07", sweep),
            ("20:19", Job::Notify),
            ("20:22", sweep),
        ];
        assert_eq!(fired, expected.map(|(time, job)| (time.to_owned(), job)));
    }

    #[tokio::test]
    async fn a_retry_whose_minute_is_over_fires_now() {
        let scheduler = LocalScheduler::default();
        scheduler.arm_retry(at("2026-11-23T19:59:00Z")).await.unwrap();
        let now = at("2026-11-23T20:00:30Z");
        assert_eq!(scheduler.take_next(now, end()), Some((now, Job::Cycle(Trigger::Retry))));
        assert!(scheduler.retries().is_empty());
    }
}
