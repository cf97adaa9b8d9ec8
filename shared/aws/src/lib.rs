//! AWS: retries by EventBridge Scheduler, domain events on an EventBridge bus, secrets in Secrets Manager, and the settings of a
//! deployed stack.
//!
//! The SDK is loaded when it is first needed, and lean. Its errors become texts that hold no secret.
#![warn(missing_docs)]

mod events;
mod failure;
mod guard;
mod retries;
mod sdk;
mod secrets;
#[cfg(feature = "command")]
mod sign_in;
mod signals;
#[cfg(feature = "command")]
pub mod stack;

pub use self::events::{SOURCE, STREAMER_DEACTIVATED};
use self::failure::Failure;
pub use self::retries::{RetryConfig, RetryGroup};
pub use self::sdk::{Access, Sdk};
pub use self::secrets::SecretsManager;
pub use self::signals::{AwsSignals, NoSignals, SignalsConfig};
