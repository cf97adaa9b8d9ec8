//! The metrics: all that is counted and measured, and their way to CloudWatch or to Prometheus.
//!
//! A function that knows its stack writes one line of CloudWatch's Embedded Metric Format to its standard output for each
//! event. A server answers Prometheus with what it has recorded since its start. Everywhere else nothing is recorded. Only numbers go
//! in: no id, no name, no text from outside.

#[cfg(feature = "prometheus")]
mod prometheus;

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Mutex, OnceLock, PoisonError};

use ::metrics::{Unit, counter, describe_counter, histogram};
use metrics_cloudwatch_embedded::{Builder, Collector};
use tokens_domain::notify::NotifyReport;
use tokens_domain::report::Report;

#[cfg(feature = "prometheus")]
pub use self::prometheus::{Exporter, start_prometheus};

/// Where CloudWatch keeps them.
pub const NAMESPACE: &str = "TwitchTokenRefresh";

/// Their only dimension: which deployment they are of.
pub const DIMENSION: &str = "Stack";

/// The format takes no more values of one metric in one line.
const MAX_VALUES: usize = 100;

/// The list, with what each metric means.
macro_rules! metrics {
    ($($(#[doc = $meaning:literal])+ $name:ident: $unit:ident,)+) => {
        /// What is counted or measured.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Metric {
            $($(#[doc = $meaning])+ $name,)+
        }

        impl Metric {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// As CloudWatch has it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }

            /// What a value is a number of.
            #[must_use]
            pub fn unit(self) -> Unit {
                match self {
                    $(Self::$name => Unit::$unit,)+
                }
            }

            /// What it means.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($meaning),+).trim_ascii(),)+
                }
            }
        }
    };
}

metrics! {
    /// Planned runs and sweeps that came to their end without a fault of ours.
    CyclesSucceeded: Count,
    /// How long a planned run, a sweep or a retry took.
    CycleDuration: Milliseconds,
    /// Tokens refreshed.
    Refreshed: Count,
    /// Refreshes that failed because the grant is dead.
    Refused: Count,
    /// Refreshes that failed by Twitch's or the network's doing.
    Outages: Count,
    /// Streamers who were looked at and neither refreshed nor failed: not due, busy elsewhere, or left to the next run.
    Skipped: Count,
    /// Of these, those that wait for a retry after a failure.
    Waiting: Count,
    /// Of the skipped, those whose token Twitch called valid.
    Validated: Count,
    /// Streamers deactivated.
    Deactivated: Count,
    /// Streamers refused for good and not deactivated: the hour's budget is used up, or `DEACTIVATION` is `off`.
    HeldBack: Count,
    /// Answers of Twitch's, new tokens among them, that could not be stored.
    NotStored: Count,
    /// Attempts that failed because our keys don't open a stored token, or the row can't be read.
    Unreadable: Count,
    /// Tokens that belong to another application or another Twitch user, as Twitch says.
    Misplaced: Count,
    /// Retries that could not be armed and domain events that could not be published.
    SignalsFailed: Count,
    /// How long Twitch took to answer a call.
    TwitchLatency: Milliseconds,
    /// For how long the one who waits longest has been due, after a sweep.
    OldestDueAge: Seconds,
    /// For how long Twitch has refused every refresh, after a sweep.
    RefusedOnlyAge: Seconds,
    /// For how long the oldest undelivered notification has waited, after a sweep.
    OutboxAge: Seconds,
    /// Minutes of the last day's sessions in which a token was dead, but for sessions that ended in a deactivation; after a sweep.
    DeadMinutes: Count,
    /// Notifications that a push service accepted.
    Delivered: Count,
    /// Notifications that are never tried again.
    GivenUp: Count,
    /// Pushes refused because of our VAPID key or subject, in runs in which none was accepted.
    VapidRefused: Count,
}

/// What has been recorded since the last line.
struct Recorded {
    collector: &'static Collector,
    /// The crate's own histograms take [`MAX_VALUES`] and log each further value as an error; its gauges say their last value
    /// again at each event, whether it is still true or not.
    values: Mutex<HashMap<Metric, Vec<f64>>>,
}

/// Where a process records to, if it does.
enum Sink {
    CloudWatch(Recorded),
    #[cfg(feature = "prometheus")]
    Prometheus,
}

static SINK: OnceLock<Sink> = OnceLock::new();

/// Has everything from now on recorded, as of this stack.
pub fn start(stack: String) {
    let started = Builder::new().cloudwatch_namespace(NAMESPACE).with_dimension(DIMENSION, stack).init();
    // A second start keeps the first.
    let Ok(collector) = started else { return };
    for metric in Metric::ALL {
        describe_counter!(metric.name(), metric.unit(), metric.meaning());
    }
    let _ = SINK.set(Sink::CloudWatch(Recorded { collector, values: Mutex::default() }));
}

impl Metric {
    /// Counts so many more.
    pub fn add(self, count: u64) {
        // What never happened is not said.
        if count == 0 {
            return;
        }
        match SINK.get() {
            Some(Sink::CloudWatch(_)) => counter!(self.name()).increment(count),
            #[cfg(feature = "prometheus")]
            Some(Sink::Prometheus) => self.export_count(count),
            None => {}
        }
    }

    /// One measurement.
    pub fn record(self, value: f64) {
        match SINK.get() {
            Some(Sink::CloudWatch(recorded)) => {
                let mut values = recorded.values.lock().unwrap_or_else(PoisonError::into_inner);
                values.entry(self).or_default().push(value);
            }
            #[cfg(feature = "prometheus")]
            Some(Sink::Prometheus) => self.export_value(value),
            None => {}
        }
    }
}

/// What a cycle or a request did.
pub(super) fn count_report(report: &Report) {
    for (metric, count) in [
        (Metric::Refreshed, report.success),
        (Metric::Refused, report.refused),
        (Metric::Outages, report.outages),
        (Metric::Skipped, report.skipped),
        (Metric::Waiting, report.waiting),
        (Metric::Validated, report.validated),
        (Metric::Deactivated, report.deactivated),
        (Metric::HeldBack, report.alarms.held_back),
        (Metric::NotStored, report.alarms.not_stored),
        (Metric::Unreadable, report.alarms.unreadable),
        (Metric::Misplaced, report.alarms.misplaced),
        (Metric::SignalsFailed, report.signals_failed),
    ] {
        metric.add(count);
    }
}

/// What a delivery did.
pub(super) fn count_deliveries(report: &NotifyReport) {
    Metric::Delivered.add(report.delivered);
    Metric::GivenUp.add(report.given_up);
    Metric::VapidRefused.add(report.unauthorized);
}

/// Answers an event, and at its end writes what was recorded meanwhile, even if it fails or panics.
pub async fn written_after<T>(answer: impl Future<Output = T>) -> T {
    let _at_the_end = AtTheEnd;
    answer.await
}

struct AtTheEnd;

impl Drop for AtTheEnd {
    fn drop(&mut self) {
        let Some(Sink::CloudWatch(recorded)) = SINK.get() else { return };
        let written = recorded.line().and_then(|line| std::io::stdout().lock().write_all(&line));
        if let Err(error) = written {
            tracing::error!(%error, "the metrics could not be written");
        }
    }
}

impl Recorded {
    /// All of it in the Embedded Metric Format, one line; empty if there is nothing.
    fn line(&self) -> std::io::Result<Vec<u8>> {
        let values = std::mem::take(&mut *self.values.lock().unwrap_or_else(PoisonError::into_inner));
        for (metric, values) in values {
            let histogram = histogram!(metric.name());
            for value in spread(values) {
                histogram.record(value);
            }
        }
        let mut line = Vec::new();
        self.collector.flush(&mut line)?;
        Ok(line)
    }
}

/// All values, or so many as the format takes: from the least to the greatest, in equal steps of rank, so that the
/// percentiles stay what they are.
fn spread(mut values: Vec<f64>) -> Vec<f64> {
    let last = values.len().saturating_sub(1);
    if last < MAX_VALUES {
        return values;
    }
    values.sort_unstable_by(f64::total_cmp);
    (0..MAX_VALUES).map(|step| values[step * last / (MAX_VALUES - 1)]).collect()
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;

    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_hundred_values_keep_the_percentiles_of_many() {
        let few: Vec<f64> = (0..100).rev().map(f64::from).collect();
        assert_eq!(spread(few.clone()), few);
        assert!(spread(vec![]).is_empty());
        for many in [101, 150, 10_000] {
            let spread = spread((0..many).rev().map(f64::from).collect());
            assert_eq!(spread.len(), 100);
            assert_eq!((spread[0], spread[99]), (0.0, f64::from(many - 1)));
            for (rank, value) in (0..).map(f64::from).zip(spread) {
                assert!(
                    (value - rank / 99.0 * f64::from(many - 1)).abs() <= 1.0,
                    "{rank} of {many}: {value}"
                );
            }
        }
    }

    /// What a line says of these metrics.
    fn said(line: &[u8]) -> serde_json::Value {
        serde_json::from_slice(line).unwrap_or_default()
    }

    /// One test, because what is recorded is the whole process's.
    #[tokio::test]
    async fn a_panic_loses_nothing_and_nothing_is_said_twice() {
        start("here".to_owned());
        let Some(Sink::CloudWatch(recorded)) = SINK.get() else { panic!("it was not started") };
        let record = || {
            Metric::Refused.add(2);
            Metric::Refused.add(1);
            Metric::Validated.add(0);
            Metric::OutboxAge.record(0.0);
        };
        record();
        let line = said(&recorded.line().unwrap());
        assert_eq!((&line["Refused"], &line["OutboxAge"]), (&3.into(), &vec![0.0].into()), "{line}");
        assert_eq!((line[DIMENSION].as_str(), line.get("Validated")), (Some("here"), None), "{line}");

        let refused = NotifyReport { unauthorized: 2, other_key: 1, ..NotifyReport::default() };
        count_deliveries(&refused);
        let line = said(&recorded.line().unwrap());
        assert_eq!((&line["VapidRefused"], line.get("Delivered")), (&2.into(), None), "{line}");

        let panics = AssertUnwindSafe(written_after(async {
            record();
            panic!("as it may happen");
        }));
        assert!(panics.catch_unwind().await.is_err());
        assert!(recorded.line().unwrap().is_empty(), "it was written at the end");
    }
}
