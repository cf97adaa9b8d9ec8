//! The whole configuration, for the doctor.

use std::sync::Arc;

use sqlx::postgres::PgConnectOptions;
use tokens_aws::SignalsConfig;
use tokens_cipher::TokenCipher;
use tokens_domain::policy::Policy;
use tokens_twitch::TwitchConfig;

use super::{Reader, Secret, Source, VapidConfig};

/// Every part that could be read, and every fault of the others. Not `Debug`: sqlx's options would show the database's
/// password.
pub struct Whole {
    /// `DATABASE_URL`.
    pub database: Option<PgConnectOptions>,
    /// `APP_KEY`, `TOKEN_KEYS`, `TOKEN_CIPHER`.
    pub cipher: Option<Arc<TokenCipher>>,
    /// `TWITCH_*`.
    pub twitch: Option<TwitchConfig>,
    /// `RETRY_DELAY`, `DEACTIVATION`.
    pub policy: Policy,
    /// `RETRY_GROUP` and what belongs to it, `EVENT_BUS_NAME`.
    pub signals: Option<SignalsConfig>,
    /// `VAPID_*`.
    pub vapid: Option<VapidConfig>,
    /// Whether a VAPID key is configured, or should be.
    pub delivers: bool,
    /// What is wrong.
    pub faults: Vec<String>,
}

impl Whole {
    /// The secrets that it may stand in: all.
    pub const SECRETS: [Secret; 4] = [Secret::Database, Secret::Twitch, Secret::TokenKeys, Secret::Vapid];

    /// Reads all there is.
    #[must_use]
    pub fn read(source: &Source) -> Self {
        let mut reader = Reader::new(source);
        let (database, cipher, twitch) = (reader.database(), reader.cipher().map(Arc::new), reader.twitch());
        let policy = reader.policy();
        let faults = reader.faults.len();
        let signals = Some(reader.signals()).filter(|_| reader.faults.len() == faults);
        let delivers = reader.is_given_vapid() || source.get(Secret::Vapid.variable()).is_some();
        let vapid = delivers.then(|| reader.vapid(database.as_ref())).flatten();
        let _ = (reader.api_keys(), reader.public_url(), reader.trusted_proxies());
        let _ = (reader.presentation(), reader.health_check_timeout(), reader.log(), reader.metrics_stack());
        Self { database, cipher, twitch, policy, signals, vapid, delivers, faults: reader.faults }
    }
}
