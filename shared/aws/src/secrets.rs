//! AWS Secrets Manager: what one secret says.

use std::time::Duration;

use aws_config::timeout::TimeoutConfig;
use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::config::Builder;
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

use crate::{Failure, Sdk};

/// An answer takes tens of milliseconds, more on a first connection; but a function can do nothing without its secrets, so
/// they are worth a longer wait than a signal.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest that reading a secret may take, with its retries: half of what a function has to begin, and of what a
/// health check has by default.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads secrets. Nothing is connected before the first.
pub struct SecretsManager {
    sdk: Sdk,
    client: OnceCell<Client>,
}

impl From<Sdk> for SecretsManager {
    fn from(sdk: Sdk) -> Self {
        Self { sdk, client: OnceCell::new() }
    }
}

impl SecretsManager {
    /// The text of this secret, by its name or ARN; `None`: it holds no text.
    ///
    /// # Errors
    ///
    /// If it can't be read. The text says why, and what to check; it holds no secret.
    pub async fn read(&self, id: &str) -> Result<Option<Zeroizing<String>>, String> {
        self.ask(id).await.map_err(|Failure { reason, .. }| {
            format!(
                "can't be read: {reason}; check that it is there, that this program may call \
                 secretsmanager:GetSecretValue on it, and that it can reach the service"
            )
        })
    }

    async fn ask(&self, id: &str) -> Result<Option<Zeroizing<String>>, Failure> {
        let client = self.client.get_or_try_init(|| self.connect()).await?;
        let answer = client.get_secret_value().secret_id(id).send().await?;
        Ok(answer.secret_string.map(Zeroizing::new))
    }

    async fn connect(&self) -> Result<Client, Failure> {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(ATTEMPT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(READ_TIMEOUT)
            .build();
        let config = Builder::from(self.sdk.config().await?).timeout_config(timeouts).build();
        Ok(Client::from_conf(config))
    }
}
