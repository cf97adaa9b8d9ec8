//! The whole configuration, for whoever looks at all of it.

use domain::policy::Policy;
use sqlx::postgres::PgConnectOptions;

use super::{Reader, Secret, SignalsConfig, Source, TwitchConfig, VapidConfig};
use crate::cipher::TokenCipher;
use crate::secrets::{Live, Secrets};

/// Every part that could be read, and every fault of the others. Not `Debug`: sqlx's options would show the database's
/// password.
pub struct Whole {
    /// `DATABASE_URL`.
    pub database: Option<Live<PgConnectOptions>>,
    /// `APP_KEY`, `TOKEN_KEYS`, `TOKEN_CIPHER`.
    pub cipher: Option<Live<TokenCipher>>,
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
    /// What some of these settings stand in.
    pub secrets: Secrets,
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
        let (database, cipher, twitch) = (reader.live_database(), reader.live_cipher(), reader.twitch());
        let policy = reader.policy();
        let faults = reader.faults.len();
        let signals = Some(reader.signals()).filter(|_| reader.faults.len() == faults);
        let delivers = reader.is_given_vapid() || source.get(Secret::Vapid.variable()).is_some();
        let near = database.as_ref().map(Live::current);
        let vapid = delivers.then(|| reader.vapid(near.as_deref())).flatten();
        let _ = (reader.presentation(), reader.health_check_time(), reader.log(), reader.metrics_stack());
        let secrets = source.secrets.clone();
        Self { database, cipher, twitch, policy, signals, vapid, delivers, secrets, faults: reader.faults }
    }
}
