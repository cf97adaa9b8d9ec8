//! What a program reads that delivers notifications: who we are to push services, the language, and where a notification leads.

use std::fmt;
use std::path::Path;

use crate::presentation::{Locale, Presentation};
use serde::Deserialize;
use sqlx::postgres::PgConnectOptions;
use tokens_store::network::is_near;
use zeroize::Zeroizing;

use super::{ConfigError, Reader, Secret, Source};

/// Its settings that may stand in a secret.
pub(super) const VAPID: [&str; 3] = ["VAPID_PUBLIC_KEY", "VAPID_PRIVATE_KEY", "VAPID_SUBJECT"];

/// The private key of VAPID.
#[derive(Clone)]
pub struct VapidPrivateKey(Zeroizing<String>);

impl VapidPrivateKey {
    /// The key in base64url, for the crate `push`.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for VapidPrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VapidPrivateKey(redacted)")
    }
}

/// Who we are to push services, and which of them we call. What the values say is checked by the crate `push`.
#[derive(Clone, Debug)]
pub struct VapidConfig {
    /// `VAPID_PUBLIC_KEY`.
    pub public_key: String,
    /// `VAPID_PRIVATE_KEY`.
    pub private_key: VapidPrivateKey,
    /// `VAPID_SUBJECT`.
    pub subject: String,
    /// `PUSH_LOOPBACK`: push services on this machine are called.
    pub loopback: bool,
}

/// What `VAPID_KEYS_FILE` holds: the existing backend's `.vapid-keys.json`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VapidKeysFile {
    public_key: String,
    private_key: Zeroizing<String>,
}

/// What a program needs that delivers notifications. Not `Debug`: sqlx's options would show the database's password.
pub struct NotifyConfig {
    /// `DATABASE_URL`.
    pub database: PgConnectOptions,
    /// `VAPID_*`, `PUSH_LOOPBACK`.
    pub vapid: VapidConfig,
    /// `NOTIFICATION_LOCALE`, `NOTIFICATION_STREAMER_URL`, `NOTIFICATION_CAMPAIGN_URL`.
    pub presentation: Presentation,
}

impl Reader<'_> {
    /// Whether a key is there, or should be.
    pub(super) fn is_given_vapid(&self) -> bool {
        ["VAPID_PUBLIC_KEY", "VAPID_PRIVATE_KEY", "VAPID_KEYS_FILE"]
            .iter()
            .any(|name| self.source.may_be_set(name))
    }

    pub(super) fn notify(&mut self, database: Option<PgConnectOptions>) -> Option<NotifyConfig> {
        let vapid = self.vapid(database.as_ref());
        let presentation = self.presentation();
        Some(NotifyConfig { database: database?, vapid: vapid?, presentation })
    }

    pub(super) fn vapid(&mut self, database: Option<&PgConnectOptions>) -> Option<VapidConfig> {
        let keys = match self.source.get("VAPID_KEYS_FILE") {
            Some(path) => self.vapid_file(Path::new(path)),
            None => self.vapid_variables(),
        };
        let subject = self
            .required("VAPID_SUBJECT", "an address at which push services reach you: mailto:you@your.domain");
        self.lends_nothing("VAPID_SUBJECT");
        let loopback = self.switch("PUSH_LOOPBACK").unwrap_or(false);
        // A subscriber could otherwise have a server call itself.
        if loopback && database.is_some_and(|database| !is_near(database)) {
            self.fault(
                "PUSH_LOOPBACK is for a simulated push service: `on` is taken only where DATABASE_URL is on this machine",
            );
        }
        let (public_key, private_key) = keys?;
        let private_key = VapidPrivateKey(private_key);
        Some(VapidConfig { public_key, private_key, subject: subject?.to_owned(), loopback })
    }

    fn vapid_variables(&mut self) -> Option<(String, Zeroizing<String>)> {
        const WHAT: &str =
            "what `tokens vapid generate` prints, or name the backend's .vapid-keys.json in VAPID_KEYS_FILE";
        let public = self.required("VAPID_PUBLIC_KEY", WHAT);
        let private = self.required("VAPID_PRIVATE_KEY", WHAT);
        Some((public?.to_owned(), Zeroizing::new(private?.to_owned())))
    }

    fn vapid_file(&mut self, path: &Path) -> Option<(String, Zeroizing<String>)> {
        if ["VAPID_PUBLIC_KEY", "VAPID_PRIVATE_KEY"].iter().any(|name| self.source.get(name).is_some()) {
            self.fault(
                "VAPID_KEYS_FILE is set beside VAPID_PUBLIC_KEY or VAPID_PRIVATE_KEY: keep the file or the two keys",
            );
            return None;
        }
        let Ok(text) = std::fs::read(path).map(Zeroizing::new) else {
            self.fault(format!("VAPID_KEYS_FILE {} can't be read", path.display()));
            return None;
        };
        // serde's own errors would show what stands there.
        let Ok(VapidKeysFile { public_key, private_key }) = serde_json::from_slice(&text) else {
            self.fault(format!(
                "VAPID_KEYS_FILE {} is not JSON of the form {{\"publicKey\": \"…\", \"privateKey\": \"…\"}}",
                path.display()
            ));
            return None;
        };
        Some((public_key, private_key))
    }

    pub(super) fn locale(&mut self) -> Locale {
        match self.source.get("NOTIFICATION_LOCALE").map(str::parse) {
            None => Locale::default(),
            Some(Ok(locale)) => locale,
            Some(Err(())) => {
                self.fault("NOTIFICATION_LOCALE is neither `fr` nor `en`");
                Locale::default()
            }
        }
    }
}

impl NotifyConfig {
    /// The secrets that it may stand in.
    pub const SECRETS: [Secret; 2] = [Secret::Database, Secret::Vapid];

    /// Reads all that a delivery needs.
    ///
    /// # Errors
    ///
    /// With every fault found.
    pub fn read(source: &Source) -> Result<Self, ConfigError> {
        let mut reader = Reader::new(source);
        let database = reader.database();
        let config = reader.notify(database);
        reader.finish(config)
    }
}

#[cfg(test)]
mod tests {
    use super::super::RefreshConfig;
    use super::*;

    const NOTIFYING: [(&str, &str); 4] = [
        ("DATABASE_URL", "postgres://app:hunter2secret@127.0.0.1/twitch_polls"),
        ("VAPID_PUBLIC_KEY", "public"),
        ("VAPID_PRIVATE_KEY", "pr1vate-key"),
        ("VAPID_SUBJECT", "mailto:operator@twitch-polls.net"),
    ];

    /// What the command needs besides.
    const REFRESHING: [(&str, &str); 3] = [
        ("APP_KEY", "0123456789abcdefghijklmnopqrstuv"),
        ("TWITCH_CLIENT_ID", "client"),
        ("TWITCH_CLIENT_SECRET", "s3cr3t-of-the-application"),
    ];

    fn notifying_with(changes: &[(&str, &str)]) -> Result<NotifyConfig, ConfigError> {
        NotifyConfig::read(&NOTIFYING.iter().chain(changes).copied().collect())
    }

    fn notify_faults(changes: &[(&str, &str)]) -> Vec<String> {
        notifying_with(changes).map(|_| ()).unwrap_err().0
    }

    #[test]
    fn a_delivery_needs_its_keys_and_no_others() {
        let NotifyConfig { vapid, presentation, .. } = notifying_with(&[]).unwrap();
        assert_eq!((vapid.public_key.as_str(), vapid.private_key.expose()), ("public", "pr1vate-key"));
        assert_eq!(
            (vapid.subject.as_str(), vapid.loopback, presentation),
            (NOTIFYING[3].1, false, Presentation::default())
        );
        let changed = notifying_with(&[("PUSH_LOOPBACK", "on"), ("NOTIFICATION_LOCALE", "en")]).unwrap();
        assert_eq!((changed.vapid.loopback, changed.presentation.locale), (true, Locale::En));
        assert!(!format!("{vapid:?}").contains("pr1vate-key"), "{vapid:?}");

        let none: [(&str, &str); 0] = [];
        let faults = NotifyConfig::read(&Source::from_iter(none)).map(|_| ()).unwrap_err().0;
        for name in ["DATABASE_URL", "VAPID_PUBLIC_KEY", "VAPID_PRIVATE_KEY", "VAPID_SUBJECT"] {
            assert_eq!(faults.iter().filter(|fault| fault.starts_with(name)).count(), 1, "{faults:?}");
        }
        assert_eq!(faults.len(), 4, "{faults:?}");
    }

    #[test]
    fn a_file_that_happened_to_be_there_lends_no_secret_to_what_is_sent() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(".env");
        for name in ["NOTIFICATION_STREAMER_URL", "NOTIFICATION_CAMPAIGN_URL", "VAPID_SUBJECT"] {
            let environment: Source =
                NOTIFYING.iter().chain(&REFRESHING).filter(|(set, _)| *set != name).copied().collect();
            std::fs::write(&file, format!("{name}=https://evil.example.com/$APP_KEY")).unwrap();
            let found = NotifyConfig::read(&environment.clone().and_env_in(directory.path()).unwrap());
            let [fault] = &found.map(|_| ()).unwrap_err().0[..] else { panic!("not one fault of {name}") };
            assert!(fault.starts_with(name) && !fault.contains(REFRESHING[0].1), "{fault}");
            assert!(NotifyConfig::read(&environment.and_file(&file).unwrap()).is_ok(), "{name}");
        }
    }

    #[test]
    fn the_command_delivers_where_it_has_keys_and_no_function_does() {
        let read = |changes: &[(&str, &str)]| {
            let source = NOTIFYING.iter().chain(&REFRESHING).chain(changes).copied().collect();
            RefreshConfig::read_for_command(&source).map(|(_, notify)| notify.is_some())
        };
        let no_keys = [("VAPID_PUBLIC_KEY", ""), ("VAPID_PRIVATE_KEY", "")];
        assert_eq!(read(&[]), Ok(true));
        assert_eq!(read(&[("EVENT_BUS_NAME", "events")]), Ok(false));
        assert_eq!(read(&no_keys), Ok(false));
        assert_eq!(read(&no_keys[1..]).unwrap_err().0.len(), 1, "half a pair is a fault");
        let both = read(&[no_keys[1], ("RETRY_DELAY", "abc"), ("DEACTIVATION", "maybe")]).unwrap_err().0;
        assert_eq!(both.len(), 3, "all faults at once: {both:?}");
    }

    #[test]
    fn each_malformed_value_of_a_delivery_is_named() {
        for (name, value) in [
            ("PUSH_LOOPBACK", "yes"),
            ("NOTIFICATION_LOCALE", "de"),
            ("VAPID_KEYS_FILE", "/nonexistent/.vapid-keys.json"),
            ("VAPID_SUBJECT", " "),
        ] {
            let faults = notify_faults(&[(name, value)]);
            assert_eq!(faults.len(), 1, "{name}={value}: {faults:?}");
            assert!(faults[0].starts_with(name), "{faults:?}");
        }
    }

    #[test]
    fn a_server_never_calls_itself() {
        let far = ("DATABASE_URL", "postgres://app@db.example.com/twitch_polls?sslmode=verify-full");
        assert!(notifying_with(&[far]).is_ok());
        let faults = notify_faults(&[far, ("PUSH_LOOPBACK", "on")]);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].starts_with("PUSH_LOOPBACK"), "{faults:?}");
    }

    #[test]
    fn the_backends_key_file_stands_for_the_two_keys() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(".vapid-keys.json");
        let file = ("VAPID_KEYS_FILE", path.to_str().unwrap());
        let no_keys = [("VAPID_PUBLIC_KEY", ""), ("VAPID_PRIVATE_KEY", ""), file];
        std::fs::write(&path, r#"{ "publicKey": "from-file", "privateKey": "s3cret-of-file" }"#).unwrap();

        let vapid = notifying_with(&no_keys).unwrap().vapid;
        assert_eq!((vapid.public_key.as_str(), vapid.private_key.expose()), ("from-file", "s3cret-of-file"));

        let both = notify_faults(&[file]);
        assert!(matches!(both.as_slice(), [fault] if fault.contains("beside VAPID_PUBLIC_KEY")), "{both:?}");

        for text in [r#"{ "privateKey": "s3cret-of-file" }"#, r#"["s3cret-of-file"]"#, "s3cret-of-file"] {
            std::fs::write(&path, text).unwrap();
            let faults = notify_faults(&no_keys);
            assert_eq!(faults.len(), 1, "{faults:?}");
            assert!(faults[0].contains("publicKey") && !faults[0].contains("s3cret"), "{faults:?}");
        }
    }
}
