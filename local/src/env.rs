//! The one place where this crate reads environment variables.
//!
//! Everything below takes the values as parameters, so that tests need not change the process's environment.

/// The variable's value; `None` when it is unset, empty or not Unicode.
#[expect(
    clippy::disallowed_methods,
    reason = "what runs on one machine is not configured like the functions"
)]
pub fn var(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
