//! A function's own binary, with all that it puts out.

use std::fs::read_to_string;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tempfile::NamedTempFile;
use tokens_local::lambda::{Function, Outcome};

use crate::emf::{Values, lines};
use crate::{binary, changed};

/// Enough for a cycle to begin.
const TIME_LEFT: Duration = Duration::from_mins(5);

/// The stack whose metrics they are.
pub const STACK: &str = "of-the-test";

/// A function whose output and log are kept.
pub struct Watched {
    function: Function,
    output: NamedTempFile,
    log: NamedTempFile,
}

impl Watched {
    /// Starts the function as the template has it: with metrics of [`STACK`] and a log in JSON, but for these changes.
    pub async fn start(
        name: &str,
        environment: Vec<(String, String)>,
        changes: &[(&str, &str)],
    ) -> Result<Self> {
        let (output, log) = (NamedTempFile::new()?, NamedTempFile::new()?);
        let file = |file: &NamedTempFile| file.reopen().map(Stdio::from);
        let environment = changed(environment, &[("METRICS_STACK", STACK), ("LOG_FORMAT", "json")]);
        let environment = changed(environment, changes);
        let function =
            Function::start_with_output(&binary(name).await?, &environment, file(&output)?, file(&log)?)
                .await?;
        Ok(Self { function, output, log })
    }

    /// Hands an event in.
    pub async fn invoke(&self, event: Value) -> Outcome {
        self.function.invoke(event, TIME_LEFT).await
    }

    /// All that it has put out but for its log.
    pub fn output(&self) -> Result<String> {
        Ok(read_to_string(self.output.path())?)
    }

    /// What it has said to CloudWatch, a line for each event.
    pub fn metrics(&self) -> Result<Vec<Values>> {
        lines(&self.output()?, STACK)
    }

    /// The lines of its log.
    pub fn log(&self) -> Result<Vec<Value>> {
        let log = read_to_string(self.log.path())?;
        log.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }
}
