//! How a program logs.

use std::io::IsTerminal;

use super::{ConfigError, Reader, Source};

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line, for machines.
    Json,
    /// For people.
    Text,
}

/// `LOG_LEVEL` and `LOG_FORMAT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The least level that is written.
    pub level: tracing::level_filters::LevelFilter,
    /// How.
    pub format: LogFormat,
}

impl Reader<'_> {
    pub(super) fn log(&mut self) -> LogConfig {
        let level = self.source.get("LOG_LEVEL").unwrap_or("info").parse().unwrap_or_else(|_| {
            self.fault("LOG_LEVEL is none of off, error, warn, info, debug, trace");
            tracing::level_filters::LevelFilter::INFO
        });
        let format = match self.source.get("LOG_FORMAT") {
            Some("text") => LogFormat::Text,
            None if std::io::stderr().is_terminal() => LogFormat::Text,
            Some("json") | None => LogFormat::Json,
            Some(_) => {
                self.fault("LOG_FORMAT is neither `json` nor `text`");
                LogFormat::Json
            }
        };
        LogConfig { level, format }
    }
}

impl LogConfig {
    /// Reads how to log: by default from `info` on, as text on a terminal and as JSON elsewhere.
    ///
    /// # Errors
    ///
    /// With every fault found.
    pub fn read(source: &Source) -> Result<Self, ConfigError> {
        let mut reader = Reader::new(source);
        let log = reader.log();
        reader.finish(Some(log))
    }
}
