//! The schedules in process: the rules, and the retries that cycles arm. For a host without EventBridge, and for a clock that is
//! turned.
//!
//! Nothing here is stored: what is due stands in the database, and a host that starts begins with a sweep.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokens_domain::schedule::{self, NOTIFY_TIMER, Schedule, Trigger};
use tokio::select;
use tokio::sync::Notify;
use tokio::time::sleep;

/// The host looks at the clock again after this long at the latest: it may have been set meanwhile, or the machine may have slept.
const MAX_SLEEP: Duration = Duration::from_mins(1);

/// A clock that was set back by no more than this is waited for, so that no rule fires twice; by more, and the rules of the hour
/// that comes again fire again.
const SET_BACK: TimeDelta = TimeDelta::minutes(1);

/// Rules that were missed longer ago than this are not looked for: all of them are among those since then.
const LOOK_BACK: TimeDelta = TimeDelta::days(1);

/// The next time is looked for after this one.
const INSTANT: TimeDelta = TimeDelta::microseconds(1);

static NOTIFY: LazyLock<Schedule> =
    LazyLock::new(|| NOTIFY_TIMER.parse().expect("our own expressions are tested"));

/// What a schedule starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// A cycle.
    Cycle(Trigger),
    /// A delivery of the outbox.
    Notify,
}

/// The rules, the armed retries, and whether a deactivation waits for its delivery. Clones are the same scheduler.
#[derive(Clone, Debug, Default)]
pub struct Scheduler(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    armed: Notify,
    deactivated: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The minutes.
    retries: BTreeSet<DateTime<Utc>>,
    undelivered: bool,
}

impl Scheduler {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a retry fire in this minute, once however often it is asked for.
    pub fn arm_retry(&self, minute: DateTime<Utc>) {
        self.state().retries.insert(minute);
        self.0.armed.notify_one();
    }

    /// Has the outbox delivered at once: a streamer was deactivated.
    pub fn wake_delivery(&self) {
        self.state().undelivered = true;
        self.0.deactivated.notify_one();
    }

    /// The minutes for which a retry is armed.
    #[must_use]
    pub fn retries(&self) -> Vec<DateTime<Utc>> {
        self.state().retries.iter().copied().collect()
    }

    /// For a clock that is turned: what fires first after `now`, at `until` at the latest, which has fired by being answered. An
    /// armed retry whose minute is over fires late rather than never.
    #[must_use]
    pub fn take_next(&self, now: DateTime<Utc>, until: DateTime<Utc>) -> Option<(DateTime<Utc>, Job)> {
        let mut state = self.state();
        if std::mem::take(&mut state.undelivered) {
            return Some((now, Job::Notify));
        }
        let (trigger, rule) = schedule::next_rule(now + INSTANT);
        let timer = next_delivery(now + INSTANT);
        let (at, job) = if timer < rule { (timer, Job::Notify) } else { (rule, Job::Cycle(trigger)) };
        match state.retries.first().copied() {
            Some(minute) if minute <= at && minute <= until => {
                state.retries.remove(&minute);
                Some((minute.max(now), Job::Cycle(Trigger::Retry)))
            }
            _ => Some((at, job)).filter(|(at, _)| *at <= until),
        }
    }

    /// Of the retries that are due, all become one.
    fn take_retry(&self, now: DateTime<Utc>) -> bool {
        let mut state = self.state();
        let later = state.retries.split_off(&(now + INSTANT));
        !std::mem::replace(&mut state.retries, later).is_empty()
    }
}

/// The first time at or after `from` at which the timer delivers.
fn next_delivery(from: DateTime<Utc>) -> DateTime<Utc> {
    NOTIFY.next_from(from).expect("the rules fire every day")
}

/// Says when a host that runs begins a cycle, by the wall clock, which may jump. Rules that were missed fire once, late.
#[derive(Debug)]
pub struct CycleAlarm {
    scheduler: Scheduler,
    watched: Watched,
}

impl CycleAlarm {
    /// Looks at what fires after `now`.
    #[must_use]
    pub fn new(scheduler: Scheduler, now: DateTime<Utc>) -> Self {
        Self { scheduler, watched: Watched(now) }
    }

    /// The cycle that is due by now, if one is. It counts as begun.
    pub fn due(&mut self, now: DateTime<Utc>) -> Option<Trigger> {
        let rule = self.watched.pass(now).and_then(|(from, to)| missed_rule(from, to));
        rule.or_else(|| self.scheduler.take_retry(now).then_some(Trigger::Retry))
    }

    /// Waits until a cycle may be due, for a minute at most.
    pub async fn wait(&self, now: DateTime<Utc>) {
        select! {
            () = sleep(self.pause(now)) => {}
            () = self.scheduler.0.armed.notified() => {}
        }
    }

    fn pause(&self, now: DateTime<Utc>) -> Duration {
        let (_, rule) = schedule::next_rule(self.watched.0 + INSTANT);
        let retry = self.scheduler.state().retries.first().copied();
        until(retry.map_or(rule, |retry| retry.min(rule)), now)
    }
}

/// Says when a host that runs delivers the outbox: by the timer, and when a streamer was deactivated.
#[derive(Debug)]
pub struct DeliveryAlarm {
    scheduler: Scheduler,
    watched: Watched,
}

impl DeliveryAlarm {
    /// The first delivery is due at once: it delivers what a restart has left.
    #[must_use]
    pub fn new(scheduler: Scheduler, now: DateTime<Utc>) -> Self {
        scheduler.wake_delivery();
        Self { scheduler, watched: Watched(now) }
    }

    /// Whether a delivery is due. It counts as begun.
    pub fn due(&mut self, now: DateTime<Utc>) -> bool {
        let timer = self.watched.pass(now).is_some_and(|(from, to)| next_delivery(from) <= to);
        std::mem::take(&mut self.scheduler.state().undelivered) || timer
    }

    /// Waits until a delivery may be due, for a minute at most.
    pub async fn wait(&self, now: DateTime<Utc>) {
        select! {
            () = sleep(until(next_delivery(self.watched.0 + INSTANT), now)) => {}
            () = self.scheduler.0.deactivated.notified() => {}
        }
    }
}

/// Until when the wall clock has been looked at.
#[derive(Debug)]
struct Watched(DateTime<Utc>);

impl Watched {
    /// What has passed since the last look, first and last moment included: nothing, if the clock was set back.
    fn pass(&mut self, now: DateTime<Utc>) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
        let before = self.0;
        if now > before {
            self.0 = now;
            return Some((before.max(now - LOOK_BACK) + INSTANT, now));
        }
        if before - now > SET_BACK {
            self.0 = now;
        }
        None
    }
}

/// The rule that fired in this time, if one did. Of several the sweep: it does what a planned run does, and validates.
fn missed_rule(mut from: DateTime<Utc>, to: DateTime<Utc>) -> Option<Trigger> {
    let mut missed = None;
    loop {
        let (trigger, at) = schedule::next_rule(from);
        if at > to || missed == Some(Trigger::Sweep) {
            return missed;
        }
        (missed, from) = (Some(trigger), at + INSTANT);
    }
}

fn until(at: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
    (at - now).to_std().unwrap_or_default().min(MAX_SLEEP)
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

    #[test]
    fn a_retry_beyond_the_end_stays_armed() {
        let scheduler = Scheduler::default();
        scheduler.arm_retry(at("2026-11-23T23:58:00Z"));
        let (now, end) = (at("2026-11-23T23:55:00Z"), at("2026-11-23T23:57:00Z"));
        assert_eq!(scheduler.take_next(now, end), None);
        let end = at("2026-11-23T23:58:00Z");
        assert_eq!(scheduler.take_next(now, end), Some((end, Job::Cycle(Trigger::Retry))));
        assert_eq!(scheduler.take_next(end, end), None);
    }

    #[test]
    fn rules_and_retries_fire_in_order_and_a_retry_once() {
        let scheduler = Scheduler::default();
        scheduler.arm_retry(at("2026-11-23T20:05:00Z"));
        scheduler.arm_retry(at("2026-11-23T20:05:00Z"));
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

    #[test]
    fn a_retry_whose_minute_is_over_fires_now() {
        let scheduler = Scheduler::default();
        scheduler.arm_retry(at("2026-11-23T19:59:00Z"));
        let now = at("2026-11-23T20:00:30Z");
        assert_eq!(scheduler.take_next(now, end()), Some((now, Job::Cycle(Trigger::Retry))));
        assert!(scheduler.retries().is_empty());
    }

    #[test]
    fn a_deactivation_wakes_the_delivery_at_once() {
        let scheduler = Scheduler::default();
        scheduler.wake_delivery();
        let now = at("2026-11-23T20:00:01Z");
        assert_eq!(scheduler.take_next(now, end()), Some((now, Job::Notify)));
        assert_eq!(scheduler.take_next(now, end()).unwrap().1, Job::Notify, "the timer, at 20:04");
    }

    /// What an alarm answers that is asked at these times, one after the other.
    fn asked(alarm: &mut CycleAlarm, times: &[&str]) -> Vec<Option<Trigger>> {
        times.iter().map(|time| alarm.due(at(&format!("2026-11-23T{time}Z")))).collect()
    }

    fn alarm(now: &str) -> CycleAlarm {
        CycleAlarm::new(Scheduler::default(), at(&format!("2026-11-23T{now}Z")))
    }

    #[test]
    fn each_rule_is_due_once_at_its_time() {
        let fired = asked(
            &mut alarm("20:52:00"),
            &["20:52:00", "21:00:00", "21:00:00.5", "21:06:59.9", "21:07:00.001", "21:07:00.002"],
        );
        let (planned, sweep) = (Some(Trigger::Planned), Some(Trigger::Sweep));
        assert_eq!(fired, [None, planned, None, None, sweep, None]);
    }

    #[test]
    fn rules_missed_during_a_jump_forward_or_a_long_cycle_fire_once() {
        let sweep = Some(Trigger::Sweep);
        let fired = asked(&mut alarm("20:50:00"), &["21:50:00", "21:50:01", "21:52:00"]);
        assert_eq!(
            fired,
            [sweep, None, sweep],
            "the sweep does what the planned run at 21:00 would have done"
        );
        let mut asleep = alarm("20:50:00");
        assert_eq!(asleep.due(at("2026-12-23T20:50:00Z")), sweep, "after a month");
        assert_eq!(asleep.due(at("2026-12-23T20:51:00Z")), None);
        let planned = asked(&mut alarm("20:59:00"), &["21:06:00"]);
        assert_eq!(planned, [Some(Trigger::Planned)], "late, with no sweep to do it");
    }

    #[test]
    fn a_clock_set_back_a_little_fires_nothing_twice() {
        let fired = asked(&mut alarm("20:50:00"), &["20:52:00", "20:51:30", "20:52:00", "21:00:00"]);
        assert_eq!(fired, [Some(Trigger::Sweep), None, None, Some(Trigger::Planned)]);
    }

    #[test]
    fn a_clock_set_back_by_an_hour_goes_on_with_the_rules_of_that_hour() {
        let fired = asked(&mut alarm("20:50:00"), &["20:52:00", "19:52:30", "20:06:00", "20:07:00"]);
        let sweep = Some(Trigger::Sweep);
        assert_eq!(fired, [sweep, None, None, sweep], "15 minutes later, and not in an hour and 15 minutes");
    }

    #[test]
    fn retries_that_are_due_become_one_cycle() {
        let mut alarm = alarm("20:00:00");
        for minute in ["20:01:00", "20:02:00", "20:05:00"] {
            alarm.scheduler.arm_retry(at(&format!("2026-11-23T{minute}Z")));
        }
        let retry = Some(Trigger::Retry);
        assert_eq!(
            asked(&mut alarm, &["20:00:59", "20:02:00", "20:02:01", "20:05:03"]),
            [None, retry, None, retry]
        );
        assert!(alarm.scheduler.retries().is_empty());
    }

    #[tokio::test]
    async fn a_host_waits_for_the_next_rule_a_minute_at_most_and_wakes_for_a_retry() {
        let alarm = alarm("20:00:00");
        let pause = |now: &str| alarm.pause(at(&format!("2026-11-23T{now}Z"))).as_secs();
        assert_eq!((pause("20:00:00"), pause("20:06:50"), pause("20:07:30")), (60, 10, 0));
        alarm.scheduler.arm_retry(at("2026-11-23T20:00:30Z"));
        assert_eq!(pause("20:00:00"), 30);
        // At once, because a retry was armed.
        alarm.wait(at("2026-11-23T19:00:00Z")).await;
    }

    #[tokio::test]
    async fn deliveries_follow_deactivations_and_the_timer() {
        let now = at("2026-11-23T20:00:00Z");
        let scheduler = Scheduler::default();
        let mut alarm = DeliveryAlarm::new(scheduler.clone(), now);
        assert!(alarm.due(now), "what a restart has left");
        assert!(!alarm.due(now));
        scheduler.wake_delivery();
        alarm.wait(now).await;
        assert!(alarm.due(now));
        assert!(alarm.due(at("2026-11-23T20:04:00Z")));
        assert!(!alarm.due(at("2026-11-23T20:05:00Z")));
    }
}
