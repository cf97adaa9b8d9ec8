//! The metrics as Prometheus reads them: in snake case with their unit, times in seconds.

use ::metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};

use super::{Metric, SINK, Sink};

/// From a call that a pooled connection answers at once to a cycle that its deadline ends, in seconds.
const BUCKETS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0, 900.0];

/// What was recorded since the start.
#[derive(Clone)]
pub struct Exporter(PrometheusHandle);

impl Exporter {
    /// All of it in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Has to be called now and then: times that are never asked for would fill the memory.
    pub fn tidy(&self) {
        self.0.run_upkeep();
    }
}

/// Has everything from now on recorded for Prometheus. Counters begin at zero, so that their first rise is seen.
///
/// # Errors
///
/// If metrics are recorded already.
pub fn start_prometheus() -> Result<Exporter, BuildError> {
    let exporter = Exporter(PrometheusBuilder::new().set_buckets(&BUCKETS)?.install_recorder()?);
    // The first recorder stays, and this is the first.
    let _ = SINK.set(Sink::Prometheus);
    for metric in Metric::ALL {
        let (name, meaning) = (metric.exported(), metric.meaning());
        match metric.kind() {
            Kind::Counter => {
                describe_counter!(name.clone(), meaning);
                counter!(name).absolute(0);
            }
            Kind::Gauge => describe_gauge!(name, meaning),
            Kind::Times => describe_histogram!(name, meaning),
        }
    }
    Ok(exporter)
}

enum Kind {
    /// Rises.
    Counter,
    /// Holds until it is measured again.
    Gauge,
    /// How long each of many took.
    Times,
}

impl Metric {
    fn kind(self) -> Kind {
        match (self, self.unit()) {
            (Self::DeadMinutes, _) | (_, Unit::Seconds) => Kind::Gauge,
            (_, Unit::Milliseconds) => Kind::Times,
            _ => Kind::Counter,
        }
    }

    /// `OldestDueAge` as `token_refresh_oldest_due_age_seconds`.
    fn exported(self) -> String {
        let mut name = "token_refresh".to_owned();
        for letter in self.name().chars() {
            if letter.is_ascii_uppercase() {
                name.push('_');
            }
            name.push(letter.to_ascii_lowercase());
        }
        match self.kind() {
            Kind::Counter => name + "_total",
            Kind::Gauge if self == Self::DeadMinutes => name,
            Kind::Gauge | Kind::Times => name + "_seconds",
        }
    }

    pub(super) fn export_count(self, count: u64) {
        counter!(self.exported()).increment(count);
    }

    pub(super) fn export_value(self, value: f64) {
        match self.kind() {
            Kind::Times => histogram!(self.exported()).record(value / 1_000.0),
            Kind::Gauge | Kind::Counter => gauge!(self.exported()).set(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Where the program is run once more: the recorder is the whole process's.
    const IS_SERVER: &str = "TEST_IS_SERVER";

    #[test]
    fn a_server_answers_with_all_that_was_recorded() {
        if std::env::var_os(IS_SERVER).is_none() {
            let server = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "metrics::prometheus::tests::a_server_answers_with_all_that_was_recorded"])
                .env(IS_SERVER, "1")
                .output()
                .unwrap();
            assert!(server.status.success(), "{}", String::from_utf8_lossy(&server.stdout));
            return;
        }
        let exporter = start_prometheus().unwrap();
        Metric::Refreshed.add(3);
        Metric::TwitchLatency.record(80.0);
        Metric::OldestDueAge.record(12.0);
        Metric::DeadMinutes.record(1.5);
        exporter.tidy();
        let said = exporter.render();
        for line in [
            "token_refresh_refreshed_total 3",
            "token_refresh_refused_total 0",
            r#"token_refresh_twitch_latency_seconds_bucket{le="0.1"} 1"#,
            "token_refresh_twitch_latency_seconds_sum 0.08",
            "token_refresh_oldest_due_age_seconds 12",
            "token_refresh_dead_minutes 1.5",
            "# TYPE token_refresh_cycles_succeeded_total counter",
            "# HELP token_refresh_refreshed_total Tokens refreshed.",
        ] {
            assert!(said.lines().any(|said| said == line), "{line} is not in\n{said}");
        }
        assert!(start_prometheus().is_err(), "one recorder a process");
    }
}
