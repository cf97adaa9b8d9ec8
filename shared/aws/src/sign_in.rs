//! How a person signs in to AWS: IAM Identity Center, `aws login`, a process that the profile names, and all that the
//! functions know as well.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_config::SdkConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use tokio::time::timeout;

use super::failure::{Failure, root, short};

/// A session may have to be renewed, and a process may ask for a code. Longer than the first call of a service takes, which
/// would be given up over it.
const SIGN_IN_TIMEOUT: Duration = Duration::from_mins(1);

/// With credentials that are there already when the first call is made.
pub(super) async fn signed_in(config: SdkConfig) -> Result<SdkConfig, Failure> {
    let Some(provider) = config.credentials_provider() else { return Ok(config) };
    let found = timeout(SIGN_IN_TIMEOUT, provider.provide_credentials()).await;
    let found = found
        .map_err(|_| Failure::lasting(format!("no AWS credentials within {} s", SIGN_IN_TIMEOUT.as_secs())))?
        .map_err(|error| Failure::lasting(format!("no AWS credentials: {}", short(&root(&error)))))?;
    let provider = SignedIn { first: Mutex::new(Some(found)), then: provider };
    Ok(config.into_builder().credentials_provider(SharedCredentialsProvider::new(provider)).build())
}

/// Gives what was found first, and asks again when that has expired.
#[derive(Debug)]
struct SignedIn {
    first: Mutex<Option<Credentials>>,
    then: SharedCredentialsProvider,
}

impl ProvideCredentials for SignedIn {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        match self.first.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(first) => future::ProvideCredentials::ready(Ok(first)),
            None => self.then.provide_credentials(),
        }
    }
}
