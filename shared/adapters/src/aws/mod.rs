//! The AWS SDK, as everything here uses it: loaded when it is first needed, and lean. Its errors become texts that hold
//! no secret.

mod failure;
mod sdk;
#[cfg(feature = "command")]
mod sign_in;
#[cfg(feature = "command")]
pub(crate) mod stack;

pub(crate) use self::failure::Failure;
pub(crate) use self::sdk::LONGEST_OPERATION;
pub use self::sdk::{Access, Sdk};
