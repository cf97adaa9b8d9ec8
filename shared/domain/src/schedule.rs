//! When the triggers fire.
//!
//! Knows neither clock nor ports.

use std::str::FromStr;
use std::sync::LazyLock;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use serde::{Deserialize, Serialize};

/// The planned runs: 00:00, 03:30, 07:00, 10:30, 14:00, 17:30 and 21:00 UTC.
pub const PLANNED_RUNS: [&str; 2] = ["cron(0 0,7,14,21 * * ? *)", "cron(30 3,10,17 * * ? *)"];

/// The sweep, every 15 minutes, off the hour so as not to meet the planned runs.
pub const SWEEP: &str = "cron(7/15 * * * ? *)";

/// The timer that delivers the notifications that the event of a deactivation left, between two sweeps.
pub const NOTIFY_TIMER: &str = "cron(4/15 * * * ? *)";

/// Why a cycle runs. All triggers run the same cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// A streamer authorized a campaign.
    Grant,
    /// One of the [`PLANNED_RUNS`].
    Planned,
    /// The one-shot after a failure.
    Retry,
    /// The [`SWEEP`].
    Sweep,
    /// The check before a session of polls.
    HealthCheck,
    /// By hand.
    Command,
}

impl Trigger {
    /// The trigger as logs, events and the database spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Grant => "grant",
            Self::Planned => "planned",
            Self::Retry => "retry",
            Self::Sweep => "sweep",
            Self::HealthCheck => "health_check",
            Self::Command => "command",
        }
    }
}

/// A schedule expression of the form `cron(minutes hours day-of-month month day-of-week year)`, in UTC.
#[derive(Clone, Debug)]
pub struct Schedule(Cron);

/// The text is not a schedule expression.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is not a schedule expression: expected cron(minutes hours day-of-month month day-of-week year)"
)]
pub struct InvalidSchedule(String);

impl FromStr for Schedule {
    type Err = InvalidSchedule;

    fn from_str(expression: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidSchedule(expression.to_owned());
        let fields =
            expression.strip_prefix("cron(").and_then(|rest| rest.strip_suffix(')')).ok_or_else(invalid)?;
        if fields.split_whitespace().count() != 6 {
            return Err(invalid());
        }
        // The crate's long form has the seconds in front, and `7/15` (from 7 on, every 15) is what it calls a sloppy range.
        let parser =
            CronParser::builder().seconds(Seconds::Required).year(Year::Required).sloppy_ranges(true).build();
        parser.parse(&format!("0 {fields}")).map(Self).map_err(|_| invalid())
    }
}

impl Schedule {
    /// The first time at or after `from`; `None` if the expression never fires again.
    #[must_use]
    pub fn next_from(&self, from: DateTime<Utc>) -> Option<DateTime<Utc>> {
        // The crate drops what is below a second, and would answer with a time before `from`.
        let from = from.duration_round_up(TimeDelta::seconds(1)).ok()?;
        self.0.find_next_occurrence(&from, true).ok()
    }
}

static RULES: LazyLock<Vec<(Trigger, Schedule)>> = LazyLock::new(|| {
    let planned = PLANNED_RUNS.map(|expression| (Trigger::Planned, expression));
    planned
        .into_iter()
        .chain([(Trigger::Sweep, SWEEP)])
        .map(|(trigger, expression)| (trigger, expression.parse().expect("our own expressions are tested")))
        .collect()
});

/// The first planned run or sweep at or after `from`.
///
/// # Panics
///
/// Never: the rules fire every day.
#[must_use]
pub fn next_rule(from: DateTime<Utc>) -> (Trigger, DateTime<Utc>) {
    RULES
        .iter()
        .filter_map(|(trigger, schedule)| Some((*trigger, schedule.next_from(from)?)))
        .min_by_key(|(_, at)| *at)
        .expect("the rules fire every day")
}

/// The minute whose one-shot retries what may be retried from `at` on: `at`, rounded up to the minute that a
/// schedule can name.
#[must_use]
pub fn retry_minute(at: DateTime<Utc>) -> DateTime<Utc> {
    at.duration_round_up(TimeDelta::minutes(1)).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use chrono::{TimeZone, Timelike};

    use super::*;

    fn midnight() -> DateTime<Utc> {
        Utc.with_ymd_and_hms(2026, 11, 23, 0, 0, 0).unwrap()
    }

    fn times_of_a_day(expressions: &[&str]) -> Vec<String> {
        let mut times: Vec<_> = expressions
            .iter()
            .flat_map(|expression| {
                let schedule: Schedule = expression.parse().unwrap();
                std::iter::successors(schedule.next_from(midnight()), move |at| {
                    schedule.next_from(*at + TimeDelta::seconds(1))
                })
                .take_while(|at| *at < midnight() + TimeDelta::days(1))
                .map(|at| at.format("%H:%M:%S").to_string())
            })
            .collect();
        times.sort();
        times
    }

    #[test]
    fn planned_runs_are_every_three_and_a_half_hours() {
        let expected = ["00:00", "03:30", "07:00", "10:30", "14:00", "17:30", "21:00"];
        assert_eq!(times_of_a_day(&PLANNED_RUNS), expected.map(|time| format!("{time}:00")));
    }

    #[test]
    fn the_sweep_runs_every_quarter_hour_off_the_hour() {
        let times = times_of_a_day(&[SWEEP]);
        assert_eq!(times.len(), 96);
        assert_eq!(times[..5], ["00:07:00", "00:22:00", "00:37:00", "00:52:00", "01:07:00"]);
    }

    #[test]
    fn the_timer_of_the_notifications_fires_between_the_sweeps() {
        assert_eq!(times_of_a_day(&[NOTIFY_TIMER])[..3], ["00:04:00", "00:19:00", "00:34:00"]);
    }

    #[test]
    fn the_next_rule_is_the_nearest() {
        assert_eq!(next_rule(midnight()), (Trigger::Planned, midnight()));
        let (trigger, at) = next_rule(midnight() + TimeDelta::seconds(1));
        assert_eq!((trigger, at.minute()), (Trigger::Sweep, 7));
    }

    #[test]
    fn a_schedule_never_fires_before_what_is_asked_for() {
        let seven = midnight() + TimeDelta::minutes(7);
        assert_eq!(next_rule(seven).1, seven);
        assert_eq!(next_rule(seven + TimeDelta::microseconds(1)).1, seven + TimeDelta::minutes(15));
    }

    #[test]
    fn a_retry_is_rounded_up_to_its_minute() {
        assert_eq!(retry_minute(midnight()), midnight());
        assert_eq!(retry_minute(midnight() + TimeDelta::microseconds(1)), midnight() + TimeDelta::minutes(1));
    }

    #[test]
    fn other_forms_are_refused() {
        for expression in
            ["cron(0 0 * * *)", "0 0 * * ? *", "cron(0 0 * * ? * *)", "cron(61 0 * * ? *)", "rate(1)"]
        {
            assert!(expression.parse::<Schedule>().is_err(), "{expression}");
        }
    }
}
