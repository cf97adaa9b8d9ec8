//! How a program logs, and whose metrics a function puts out.

use std::io::IsTerminal;

use tokens_telemetry::{LevelFilter, LogConfig, LogFormat};

use super::{ConfigError, Reader, Source};

/// Other programs read this variable as well, and have other levels: none of them stops us.
fn level(text: &str) -> LevelFilter {
    let text = text.trim().to_ascii_lowercase();
    text.parse().unwrap_or(match text.as_str() {
        "silent" | "none" => LevelFilter::OFF,
        "emerg" | "emergency" | "alert" | "crit" | "critical" | "fatal" => LevelFilter::ERROR,
        "warning" => LevelFilter::WARN,
        "verbose" => LevelFilter::DEBUG,
        "silly" | "all" => LevelFilter::TRACE,
        _ => LevelFilter::INFO,
    })
}

impl Reader<'_> {
    pub(super) fn log(&mut self) -> LogConfig {
        let level = self.source.get("LOG_LEVEL").map_or(LevelFilter::INFO, level);
        let format = match self.source.get("LOG_FORMAT").map(str::trim) {
            Some("text") => LogFormat::Text,
            Some("json") => LogFormat::Json,
            _ if std::io::stderr().is_terminal() => LogFormat::Text,
            _ => LogFormat::Json,
        };
        LogConfig { level, format }
    }

    pub(super) fn metrics_stack(&mut self) -> Option<String> {
        let stack = self.source.get("METRICS_STACK")?;
        // CloudFormation's own rule.
        if stack.len() > 128 || !stack.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            self.fault("METRICS_STACK is not the name of a stack: letters, digits and hyphens, 128 at most");
        }
        Some(stack.to_owned())
    }
}

/// Reads how to log: by default from `info` on, as text on a terminal and as JSON elsewhere.
#[must_use]
pub fn log(source: &Source) -> LogConfig {
    Reader::new(source).log()
}

/// Reads `METRICS_STACK`: of which deployment the metrics are. `None`: there are to be none.
///
/// # Errors
///
/// With every fault found.
pub fn metrics_stack(source: &Source) -> Result<Option<String>, ConfigError> {
    let mut reader = Reader::new(source);
    let stack = reader.metrics_stack();
    reader.finish(Some(stack))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_of_another_program_stops_nothing() {
        let read =
            |level: &str| log(&[("LOG_LEVEL", level), ("LOG_FORMAT", "pretty")].into_iter().collect()).level;
        for (text, level) in [
            ("warn", LevelFilter::WARN),
            ("DEBUG", LevelFilter::DEBUG),
            ("fatal", LevelFilter::ERROR),
            ("silent", LevelFilter::OFF),
            ("warning", LevelFilter::WARN),
            ("notice", LevelFilter::INFO),
            ("loud", LevelFilter::INFO),
            ("debug,sqlx=off", LevelFilter::INFO),
        ] {
            assert_eq!(read(text), level, "{text}");
        }
    }

    #[test]
    fn metrics_are_of_a_stack_or_there_are_none() {
        let of = |name: &str| metrics_stack(&[("METRICS_STACK", name)].into_iter().collect());
        assert_eq!(of("token-refresh-2"), Ok(Some("token-refresh-2".to_owned())));
        assert_eq!(of(""), Ok(None));
        for name in ["token refresh", "é", "a/b", &"x".repeat(129)] {
            assert!(
                of(name).unwrap_err().0[0].starts_with("METRICS_STACK is not the name of a stack"),
                "{name}"
            );
        }
    }
}
