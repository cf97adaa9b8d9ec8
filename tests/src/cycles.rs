//! The cycles that tests run in their own process, and what they ask of an outcome.

use tokens_domain::policy::{FailureKind, RefreshMode};
use tokens_domain::refresh::Cycle;
use tokens_domain::report::{Outcome, Standing};
use tokens_domain::schedule::Trigger;

/// As a planned run does.
pub fn planned() -> Cycle {
    Cycle::new(Trigger::Planned)
}

/// As a sweep does.
pub fn sweep() -> Cycle {
    Cycle::new(Trigger::Sweep)
}

/// As `tokens refresh --force` does.
pub fn forced() -> Cycle {
    Cycle { mode: RefreshMode::Forced, ..Cycle::new(Trigger::Command) }
}

/// What a failure that was recorded counts as.
pub fn failed_as(outcome: &Outcome) -> Option<FailureKind> {
    match outcome {
        Outcome::Failed { standing: Standing::Recorded { kind, .. }, .. } => Some(*kind),
        _ => None,
    }
}
