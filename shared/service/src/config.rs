//! The configuration: the only place that reads environment variables.
//!
//! All faults are found before anything starts and are listed at once. A fault names its variable, what is wrong
//! and what to do; it never shows a value.

mod database;
mod env_file;
mod links;
mod log;
mod notify;
mod secrets;
mod serve;
mod signals;
mod source;
#[cfg(feature = "command")]
mod stack;
mod twitch;
mod way;
mod whole;

use std::fmt;
use std::str::FromStr;

use chrono::TimeDelta;
use sqlx::postgres::PgConnectOptions;
use tokens_aws::SignalsConfig;
use tokens_cipher::{CipherSettings, TokenCipher};
use tokens_domain::plain;
use tokens_domain::policy::{Policy, RETRY_DELAY, RETRY_WINDOW};
use tokens_twitch::TwitchConfig;
use url::{Host, Url};
use zeroize::Zeroizing;

pub use self::log::{log, metrics_stack};
pub use self::notify::{NotifyConfig, VapidConfig, VapidPrivateKey};
pub(crate) use self::secrets::Members;
pub use self::secrets::Secret;
pub use self::serve::{PublicName, ServeConfig};
pub use self::signals::signals;
pub use self::source::Source;
pub use self::whole::Whole;

/// How long a health check may take, unless configured.
const HEALTH_CHECK_TIMEOUT: TimeDelta = TimeDelta::seconds(10);

/// What is wrong with the configuration, every fault of it.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError(pub Vec<String>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration is not complete:")?;
        // One may name a file, as a `.env` has it.
        self.0.iter().try_for_each(|fault| write!(f, "\n  - {}", plain(fault)))
    }
}

impl std::error::Error for ConfigError {}

/// What a program needs that refreshes tokens. Not `Debug`: sqlx's options would show the database's password.
pub struct RefreshConfig {
    /// `DATABASE_URL`.
    pub database: PgConnectOptions,
    /// `APP_KEY`, `TOKEN_KEYS`, `TOKEN_CIPHER`.
    pub cipher: TokenCipher,
    /// `TWITCH_*`.
    pub twitch: TwitchConfig,
    /// `RETRY_DELAY`, `DEACTIVATION`.
    pub policy: Policy,
    /// `HEALTH_CHECK_TIMEOUT`: within this long a health check is answered.
    pub health_check_timeout: TimeDelta,
    /// `RETRY_GROUP` and what belongs to it, `EVENT_BUS_NAME`.
    pub signals: SignalsConfig,
}

/// Reads values and remembers what is wrong with them.
struct Reader<'a> {
    source: &'a Source,
    faults: Vec<String>,
}

impl<'a> Reader<'a> {
    fn new(source: &'a Source) -> Self {
        Self { source, faults: source.faults.clone() }
    }

    /// It begins with the name of the setting.
    fn fault(&mut self, text: impl Into<String>) {
        self.faults.push(self.placed(text.into()));
    }

    fn required(&mut self, name: &str, what: &str) -> Option<&'a str> {
        let value = self.source.get(name);
        if !self.source.may_be_set(name) {
            self.fault(format!("{name} is missing: set it to {what}"));
        }
        value
    }

    fn number<N: Copy + FromStr + PartialOrd + fmt::Display>(
        &mut self,
        name: &str,
        least: N,
        most: N,
    ) -> Option<N> {
        let text = self.source.get(name)?;
        match text.trim().parse::<N>() {
            Ok(number) if number >= least && number <= most => Some(number),
            _ => {
                self.fault(format!("{name} is not a whole number from {least} to {most}"));
                None
            }
        }
    }

    fn switch(&mut self, name: &str) -> Option<bool> {
        match self.source.get(name)?.trim() {
            "on" => Some(true),
            "off" => Some(false),
            _ => {
                self.fault(format!("{name} is neither `on` nor `off`"));
                None
            }
        }
    }

    /// How to log belongs to everything that is read.
    fn finish<T>(mut self, value: Option<T>) -> Result<T, ConfigError> {
        self.log();
        self.done(value)
    }

    fn done<T>(self, value: Option<T>) -> Result<T, ConfigError> {
        value.filter(|_| self.faults.is_empty()).ok_or(ConfigError(self.faults))
    }

    fn refresh(&mut self) -> Option<RefreshConfig> {
        let (database, cipher) = (self.database(), self.cipher());
        let (twitch, policy, signals) = (self.twitch(), self.policy(), self.signals());
        let health_check_timeout = self.health_check_timeout();
        Some(RefreshConfig {
            database: database?,
            cipher: cipher?,
            twitch: twitch?,
            policy,
            health_check_timeout,
            signals,
        })
    }

    fn cipher(&mut self) -> Option<TokenCipher> {
        // They stand in one secret: it can be read, or nothing is known of any.
        if self.source.unknown.contains("TOKEN_KEYS") {
            return None;
        }
        let secret = |name| self.source.get(name).map(|value| Zeroizing::new(value.to_owned()));
        let settings = CipherSettings {
            app_key: secret("APP_KEY"),
            token_keys: secret("TOKEN_KEYS"),
            token_cipher: self.source.get("TOKEN_CIPHER").map(str::to_owned),
        };
        TokenCipher::new(&settings)
            .map_err(|faults| faults.into_iter().for_each(|fault| self.fault(fault)))
            .ok()
    }

    fn policy(&mut self) -> Policy {
        // A retry that comes after the window could never confirm a refusal.
        let longest = RETRY_WINDOW.num_seconds() - 1;
        let retry_delay = self.number("RETRY_DELAY", 1, longest).map_or(RETRY_DELAY, TimeDelta::seconds);
        let deactivation = self.switch("DEACTIVATION").unwrap_or(true);
        Policy { retry_delay, deactivation }
    }

    fn health_check_timeout(&mut self) -> TimeDelta {
        // Under five seconds there is no time to ask Twitch; API Gateway waits for 30 at most.
        self.number("HEALTH_CHECK_TIMEOUT", 5, 25).map_or(HEALTH_CHECK_TIMEOUT, TimeDelta::seconds)
    }
}

impl RefreshConfig {
    /// The secrets that it may stand in.
    pub const SECRETS: [Secret; 3] = [Secret::Database, Secret::Twitch, Secret::TokenKeys];

    /// Reads all that a refresh needs.
    ///
    /// # Errors
    ///
    /// With every fault found.
    pub fn read(source: &Source) -> Result<Self, ConfigError> {
        let mut reader = Reader::new(source);
        let config = reader.refresh();
        reader.finish(config)
    }

    /// Reads what the command needs to refresh, and to deliver notifications by itself. It is not to deliver where no key
    /// is configured, or where `EVENT_BUS_NAME` has a function do so.
    ///
    /// # Errors
    ///
    /// With every fault found.
    pub fn read_for_command(source: &Source) -> Result<(Self, Option<NotifyConfig>), ConfigError> {
        let mut reader = Reader::new(source);
        let refresh = reader.refresh();
        let elsewhere = source.get("EVENT_BUS_NAME").is_some();
        let delivers = !elsewhere && reader.is_given_vapid();
        let database = refresh.as_ref().map(|refresh| refresh.database.clone());
        let notify = delivers.then(|| reader.notify(database)).flatten();
        reader.finish(refresh.map(|refresh| (refresh, notify)))
    }
}

/// Reads where the database is, for a program that needs nothing else.
///
/// # Errors
///
/// With every fault found.
pub fn database(source: &Source) -> Result<PgConnectOptions, ConfigError> {
    let mut reader = Reader::new(source);
    let options = reader.database();
    reader.finish(options)
}

/// Reads where the database is and what its tokens are encrypted with, for a program that needs nothing else.
///
/// # Errors
///
/// With every fault found.
pub fn database_and_cipher(source: &Source) -> Result<(PgConnectOptions, TokenCipher), ConfigError> {
    let mut reader = Reader::new(source);
    let (options, cipher) = (reader.database(), reader.cipher());
    reader.finish(options.zip(cipher))
}

/// Reads where the database is, the rules' settings, and whether failures arm retries, for a program that only looks.
///
/// # Errors
///
/// With every fault found.
pub fn database_and_rules(source: &Source) -> Result<(PgConnectOptions, Policy, SignalsConfig), ConfigError> {
    let mut reader = Reader::new(source);
    let (options, policy, signals) = (reader.database(), reader.policy(), reader.signals());
    reader.finish(options.map(|options| (options, policy, signals)))
}

fn has_loopback_host(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const COMPLETE: [(&str, &str); 4] = [
        ("DATABASE_URL", "postgres://app:hunter2secret@127.0.0.1/twitch_polls"),
        ("APP_KEY", "0123456789abcdefghijklmnopqrstuv"),
        ("TWITCH_CLIENT_ID", "client"),
        ("TWITCH_CLIENT_SECRET", "s3cr3t-of-the-application"),
    ];

    pub(super) fn with(changes: &[(&str, &str)]) -> Result<RefreshConfig, ConfigError> {
        RefreshConfig::read(&COMPLETE.iter().chain(changes).copied().collect())
    }

    pub(super) fn faults(changes: &[(&str, &str)]) -> Vec<String> {
        with(changes).map(|_| ()).unwrap_err().0
    }

    #[test]
    fn the_defaults_are_the_designs() {
        let config = with(&[]).unwrap();
        assert_eq!(config.twitch.id_url.as_str(), "https://id.twitch.tv/");
        assert_eq!(config.twitch.max_in_flight, 64);
        assert_eq!(config.twitch.max_per_second, None);
        assert_eq!(config.policy, Policy::default());
    }

    #[test]
    fn all_faults_are_listed_at_once() {
        let none: [(&str, &str); 0] = [];
        let faults = RefreshConfig::read(&Source::from_iter(none)).map(|_| ()).unwrap_err().0;
        for name in ["DATABASE_URL", "APP_KEY", "TWITCH_CLIENT_ID", "TWITCH_CLIENT_SECRET"] {
            assert_eq!(faults.iter().filter(|fault| fault.starts_with(name)).count(), 1, "{faults:?}");
        }
    }

    #[test]
    fn the_newline_with_which_a_value_ends_is_not_part_of_it() {
        let config = with(&[("TWITCH_CLIENT_SECRET", "s3cret\n"), ("DEACTIVATION", "off\r\n")]).unwrap();
        assert_eq!(config.twitch.credentials.client_secret.expose(), "s3cret");
        assert!(!config.policy.deactivation);
    }

    #[test]
    fn an_empty_value_is_a_missing_one() {
        assert_eq!(faults(&[("TWITCH_CLIENT_ID", "  ")]).len(), 1);
    }

    #[test]
    fn each_malformed_value_is_named() {
        for (name, value) in [
            ("DATABASE_URL", "nonsense"),
            ("DATABASE_URL", "postgres://app@db.example.com/twitch_polls"),
            ("DATABASE_URL", "postgres://app@db.example.com/twitch_polls?sslmode=require"),
            ("DATABASE_HOST", "proxy.example.com:65536"),
            ("DATABASE_HOST", "https://proxy.example.com"),
            ("TWITCH_ID_URL", "http://id.twitch.tv"),
            ("TWITCH_ID_URL", "https://user:pass@id.twitch.tv"),
            ("TWITCH_ID_URL", "twitch"),
            ("TWITCH_ID_URL", "https://id.twitch.tv/#twitch"),
            ("TWITCH_ID_URL_ALLOW", "yes"),
            ("TWITCH_MAX_IN_FLIGHT", "0"),
            ("TWITCH_MAX_IN_FLIGHT", "1025"),
            ("TWITCH_MAX_PER_SECOND", "-1"),
            ("TWITCH_CA_FILE", "/tmp/ca.pem"),
            ("RETRY_DELAY", "0"),
            ("RETRY_DELAY", "1800"),
            ("RETRY_DELAY", "15 min"),
            ("DEACTIVATION", "yes"),
            ("EVENT_BUS_NAME", "a bus"),
            ("TOKEN_CIPHER", "rot13"),
        ] {
            let faults = faults(&[(name, value)]);
            assert_eq!(faults.len(), 1, "{name}={value}: {faults:?}");
            assert!(faults[0].starts_with(name), "{faults:?}");
        }
    }

    #[test]
    fn a_health_check_has_a_time_of_its_own() {
        let read = |changes: &[(&str, &str)]| {
            with(changes)
                .map(|config| config.health_check_timeout.num_seconds())
                .map_err(|faults| faults.0.len())
        };
        assert_eq!(read(&[]), Ok(10));
        assert_eq!(read(&[("HEALTH_CHECK_TIMEOUT", "25")]), Ok(25));
        assert_eq!(read(&[("HEALTH_CHECK_TIMEOUT", "4")]), Err(1));
        assert_eq!(read(&[("HEALTH_CHECK_TIMEOUT", "26"), ("TWITCH_CLIENT_ID", "")]), Err(2));
    }

    #[test]
    fn no_secret_is_shown() {
        let config = with(&[]).unwrap();
        let shown = format!(
            "{:?} {:?} {:?}",
            config.twitch,
            config.cipher,
            faults(&[("DEACTIVATION", "hunter2secret")])
        );
        for (_, secret) in [COMPLETE[1], COMPLETE[3], ("", "hunter2secret")] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}
