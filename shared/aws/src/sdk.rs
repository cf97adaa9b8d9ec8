//! The AWS SDK, set up lean: rustls on ring, the five roots that AWS's certificates end in, short timeouts. It is
//! loaded at the first call, so that a function that has nothing to ask and nothing to say never pays for it.

use std::sync::Arc;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_scheduler::config::{Credentials, SharedCredentialsProvider, SharedHttpClient};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

use super::failure::Failure;

/// Amazon Root CA 1 to 4 and Starfield Services G2: what every certificate of an AWS endpoint ends in, as
/// <https://www.amazontrust.com/repository/> lists them. Reading the system's store instead costs a cold start 3 ms.
const ROOTS: &[u8] = include_bytes!("amazon-roots.pem");

/// The longest that one operation may take, with its retries.
pub(super) const OPERATION_TIMEOUT: Duration =
    Duration::from_secs(tokens_domain::refresh::SIGNAL_TIMEOUT.num_seconds().cast_unsigned());

/// An answer takes tens of milliseconds, a new connection as much again. What takes longer is better asked again.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);

/// With [`FIRST_PAUSE`] doubling, the pauses of four attempts come to 0.7 s at most.
const MAX_ATTEMPTS: u32 = 4;

/// The most that the SDK waits before the second attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// A connection that was idle for longer may have slept in a frozen sandbox.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where AWS is, and who asks.
#[derive(Default)]
pub enum Access {
    /// What the SDK finds: in the environment (`AWS_*`, endpoints included), in the profile files, at the container's
    /// or machine's metadata service.
    #[default]
    Found,
    /// The same, and what a person may have signed in with.
    #[cfg(feature = "command")]
    SignedIn,
    /// A simulated one.
    At {
        /// Base URL.
        endpoint: String,
        /// Its region.
        region: String,
        /// The id of the access key.
        key_id: String,
        /// The access key.
        secret: Zeroizing<String>,
    },
}

/// Its configuration, loaded once. Clones share it, and with it the connections.
#[derive(Clone, Default)]
pub struct Sdk(Arc<Parts>);

#[derive(Default)]
struct Parts {
    access: Access,
    config: OnceCell<SdkConfig>,
}

impl From<Access> for Sdk {
    fn from(access: Access) -> Self {
        Self(Arc::new(Parts { access, config: OnceCell::new() }))
    }
}

impl Sdk {
    pub(super) async fn config(&self) -> Result<&SdkConfig, Failure> {
        self.0.config.get_or_try_init(|| self.0.load()).await
    }
}

impl Parts {
    async fn load(&self) -> Result<SdkConfig, Failure> {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(ATTEMPT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(OPERATION_TIMEOUT)
            .build();
        let retries =
            RetryConfig::standard().with_max_attempts(MAX_ATTEMPTS).with_initial_backoff(FIRST_PAUSE);
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .http_client(http_client(self.trusted())?)
            .timeout_config(timeouts)
            .retry_config(retries);
        if let Access::At { endpoint, region, key_id, secret } = &self.access {
            let credentials = Credentials::new(key_id, secret.as_str(), None, None, "simulated");
            loader = loader
                .endpoint_url(endpoint)
                .region(Region::new(region.clone()))
                .credentials_provider(SharedCredentialsProvider::new(credentials));
        }
        let config = loader.load().await;
        #[cfg(feature = "command")]
        if matches!(self.access, Access::SignedIn) {
            return super::sign_in::signed_in(config).await;
        }
        Ok(config)
    }

    fn trusted(&self) -> TrustStore {
        let roots = TrustStore::empty().with_pem_certificate(ROOTS);
        match self.access {
            // Where people sign in, and what their company puts between.
            #[cfg(feature = "command")]
            Access::SignedIn => roots.with_native_roots(true),
            _ => roots,
        }
    }
}

fn http_client(trusted: TrustStore) -> Result<SharedHttpClient, Failure> {
    let roots = TlsContext::builder().with_trust_store(trusted).build();
    let roots = roots.map_err(|_| Failure::lasting("TLS can't be set up"))?;
    Ok(aws_smithy_http_client::Builder::new()
        .pool_idle_timeout(IDLE_TIMEOUT)
        .tls_provider(Provider::rustls(CryptoMode::Ring))
        .tls_context(roots)
        .build_https())
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    use sha2::{Digest, Sha256};

    use super::*;

    /// The SHA-256 fingerprints that <https://www.amazontrust.com/repository/> gives.
    const FINGERPRINTS: [&str; 5] = [
        "8ecde6884f3d87b1125ba31ac3fcb13d7016de7f57cc904fe1cb97c6ae98196e",
        "1ba5b2aa8c65401a82960118f80bec4f62304d83cec4713a19c39c011ea46db4",
        "18ce6cfe7bf14e60b2e347b8dfe868cb31d02ebb3ada271569f50343b46db3a4",
        "e35d28419ed02025cfa69038cd623962458da5c695fbdea3c22b0bfb25897092",
        "568d6905a2c88708a4b3025190edcfedb1974a606a13c6e5290fcb2ae63edab5",
    ];

    #[test]
    fn the_roots_are_amazons() {
        let fingerprints: Vec<_> = CertificateDer::pem_slice_iter(ROOTS)
            .map(|root| {
                Sha256::digest(root.unwrap()).iter().fold(String::new(), |mut text, byte| {
                    let _ = write!(text, "{byte:02x}");
                    text
                })
            })
            .collect();
        assert_eq!(fingerprints, FINGERPRINTS);
    }

    #[test]
    fn the_client_takes_the_roots() {
        assert!(http_client(Parts::default().trusted()).is_ok());
    }
}
