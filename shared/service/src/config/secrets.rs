//! Settings that stand in AWS Secrets Manager: which secret holds which, and what its text means.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tokens_store::network::address;
use url::Host;
use zeroize::Zeroizing;

use super::notify::VAPID;
use super::{Reader, Source};

/// What one secret says, by the names of the settings.
pub(crate) type Members = BTreeMap<&'static str, Zeroizing<String>>;

/// A secret that settings may stand in, under their own names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secret {
    /// `DATABASE_SECRET_ID`.
    Database,
    /// `TWITCH_SECRET_ID`.
    Twitch,
    /// `TOKEN_KEYS_SECRET_ID`.
    TokenKeys,
    /// `VAPID_SECRET_ID`.
    Vapid,
}

/// What RDS rotates has these members; all but the first two may be left out (it names no host for what it manages itself),
/// and others say nothing to us.
const RDS: [&str; 5] = ["username", "password", "host", "port", "dbname"];

/// As what these members are read. No variable of an environment has such a name.
pub(super) const RDS_PARTS: [&str; 5] = [
    "the secret's username",
    "the secret's password",
    "the secret's host",
    "the secret's port",
    "the secret's dbname",
];

impl Secret {
    /// The variable that names it.
    #[must_use]
    pub fn variable(self) -> &'static str {
        match self {
            Self::Database => "DATABASE_SECRET_ID",
            Self::Twitch => "TWITCH_SECRET_ID",
            Self::TokenKeys => "TOKEN_KEYS_SECRET_ID",
            Self::Vapid => "VAPID_SECRET_ID",
        }
    }

    /// The settings that it holds.
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Database => &["DATABASE_URL"],
            Self::Twitch => &["TWITCH_CLIENT_ID", "TWITCH_CLIENT_SECRET"],
            Self::TokenKeys => &["APP_KEY", "TOKEN_KEYS", "TOKEN_CIPHER"],
            Self::Vapid => &VAPID,
        }
    }

    /// What its text says, or what is wrong with it. Never a value: a reader of the fault may not be allowed to read the secret.
    pub(crate) fn members(self, text: Option<&str>) -> Result<Members, String> {
        let object = text.and_then(|text| serde_json::from_str::<Map<String, Value>>(text).ok());
        let Some(object) = object else {
            let form: Vec<_> = self.names().iter().map(|name| format!(r#""{name}": "…""#)).collect();
            return Err(format!("is not JSON of the form {{{}}}", form.join(", ")));
        };
        let mut members = Members::new();
        for name in self.names() {
            if let Some(value) = text_of(&object, name)? {
                members.insert(name, value);
            }
        }
        if self == Self::Database && object.contains_key("password") {
            if !members.is_empty() {
                return Err(
                    "has both DATABASE_URL and `password`, of which only one is rotated: keep one".to_owned()
                );
            }
            members = parts_of_rds(&object)?;
        }
        Ok(members)
    }
}

fn text_of(object: &Map<String, Value>, name: &str) -> Result<Option<Zeroizing<String>>, String> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        // As in the environment, an empty value counts as missing.
        Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(Zeroizing::new(text.clone()))),
        Some(_) => Err(format!("has a member `{name}` that is not a string")),
    }
}

/// As RDS keeps it: `engine`, `host`, `port`, `username`, `password`, `dbname`.
fn parts_of_rds(object: &Map<String, Value>) -> Result<Members, String> {
    if text_of(object, "engine")?.is_some_and(|engine| !engine.contains("postgres")) {
        return Err("is of another `engine` than PostgreSQL".to_owned());
    }
    let mut members = Members::new();
    for (name, part) in RDS.into_iter().zip(RDS_PARTS) {
        let text = match object.get(name) {
            Some(Value::Number(port)) if name == "port" => Some(Zeroizing::new(port.to_string())),
            _ => text_of(object, name)?,
        };
        match text {
            Some(port) if name == "port" && port.parse::<u16>().is_err() => {
                return Err("has a `port` that is not valid".to_owned());
            }
            Some(host) if name == "host" && Host::parse(host.trim()).is_err() && address(&host).is_none() => {
                return Err("has a `host` that is not valid".to_owned());
            }
            Some(text) => {
                members.insert(part, text);
            }
            None if ["username", "password"].contains(&name) => return Err(format!("has no `{name}`")),
            None => {}
        }
    }
    Ok(members)
}

impl Source {
    /// The name or ARN of this secret, if the environment names one.
    pub(crate) fn secret_id(&self, secret: Secret) -> Option<String> {
        Some(self.get(secret.variable())?.trim().to_owned())
    }

    /// Takes in what a secret says.
    pub(crate) fn add(&mut self, secret: Secret, id: &str, said: &Result<Members, String>) {
        let place = format!("the secret `{id}` that {} names", secret.variable());
        match said {
            Err(fault) => {
                self.faults.push(format!("{} names the secret `{id}`, which {fault}", secret.variable()));
                self.unknown.extend(secret.names().iter().copied());
            }
            Ok(members) => {
                let is_url = |name: &str| name == RDS_PARTS[1] && self.get("DATABASE_URL").is_some();
                if members.keys().any(|name| is_url(name)) {
                    self.faults.push(format!(
                        "DATABASE_URL is set, and stands in {place} as well: keep one of the two"
                    ));
                }
                for (name, value) in members {
                    if self.get(name).is_some() {
                        self.faults.push(format!(
                            "{name} is set, and stands in {place} as well: keep one of the two"
                        ));
                    }
                    self.variables.insert((*name).to_owned(), value.to_string());
                }
                for name in secret.names() {
                    if members.contains_key(name) || self.get(name).is_none() {
                        self.places.insert(name, place.clone());
                    }
                }
            }
        }
    }

    /// Whether this setting is there, or may stand in a secret that can't be read.
    pub(super) fn may_be_set(&self, name: &str) -> bool {
        self.get(name).is_some() || self.unknown.contains(name)
    }
}

impl Reader<'_> {
    /// The fault, with the secret that its setting stands in. A fault begins with the name of its setting.
    pub(super) fn placed(&self, fault: String) -> String {
        let name = fault.split([' ', ',']).next().unwrap_or_default();
        match self.source.places.get(name) {
            Some(place) => format!("{fault} (in {place})"),
            None => fault,
        }
    }
}

#[cfg(test)]
mod tests {
    use sqlx::postgres::PgSslMode;

    use super::super::{NotifyConfig, RefreshConfig};
    use super::*;

    const NOWHERE: (&str, &str) = ("", "");
    const NEAR: (&str, &str) = ("DATABASE_URL", "postgres://app@127.0.0.1/polls");
    const APP_KEY: (&str, &str) = ("APP_KEY", "0123456789abcdefghijklmnopqrstuv");
    const TWITCH: &str =
        r#"{"TWITCH_CLIENT_ID": "the-id", "TWITCH_CLIENT_SECRET": "s3cret", "note": ["n0te"]}"#;

    /// These variables, and secrets that say this.
    fn source(variables: &[(&str, &str)], secrets: &[(Secret, &str)]) -> Source {
        let mut source: Source = variables.iter().copied().collect();
        for (secret, text) in secrets {
            source.add(*secret, "the/secret", &secret.members(Some(text)));
        }
        source
    }

    fn faults(variables: &[(&str, &str)], secrets: &[(Secret, &str)]) -> Vec<String> {
        RefreshConfig::read(&source(variables, secrets)).map(|_| ()).unwrap_err().0
    }

    #[test]
    fn a_secret_says_what_the_environment_would() {
        let keys = format!(r#"{{"APP_KEY": "{}", "TOKEN_KEYS": null}}"#, APP_KEY.1);
        let secrets = [
            (Secret::Database, r#"{"DATABASE_URL": "postgres://app@127.0.0.1/of-secret"}"#),
            (Secret::Twitch, TWITCH),
            (Secret::TokenKeys, keys.as_str()),
        ];
        let config = RefreshConfig::read(&source(&[], &secrets)).unwrap();
        assert_eq!(config.database.get_database(), Some("of-secret"));
        let credentials = config.twitch.credentials;
        assert_eq!(
            (credentials.client_id.as_str(), credentials.client_secret.expose()),
            ("the-id", "s3cret")
        );
        // Part of it may stand in the environment.
        let vapid = (Secret::Vapid, r#"{"VAPID_PUBLIC_KEY": "public", "VAPID_PRIVATE_KEY": "private"}"#);
        let subject = ("VAPID_SUBJECT", "mailto:operator@twitch-polls.net");
        let vapid = NotifyConfig::read(&source(&[NEAR, subject], &[vapid])).unwrap().vapid;
        assert_eq!((vapid.private_key.expose(), vapid.subject.as_str()), ("private", subject.1));
    }

    #[test]
    fn a_fault_names_the_secret_and_its_member() {
        let missing = faults(&[NEAR, APP_KEY], &[(Secret::Twitch, r#"{"TWITCH_CLIENT_ID": "the-id"}"#)]);
        let place = "(in the secret `the/secret` that TWITCH_SECRET_ID names)";
        assert!(
            matches!(missing.as_slice(), [fault] if fault.starts_with("TWITCH_CLIENT_SECRET is missing: ")
            && fault.ends_with(place)),
            "{missing:?}"
        );
        let twice = faults(&[NEAR, APP_KEY, ("TWITCH_CLIENT_ID", "another-id")], &[(Secret::Twitch, TWITCH)]);
        assert_eq!(
            twice,
            [
                "TWITCH_CLIENT_ID is set, and stands in the secret `the/secret` that TWITCH_SECRET_ID names as well: keep \
              one of the two"
            ]
        );
        let keys = r#"{"APP_KEY": "sh0rt", "TOKEN_KEYS": "a:b64,c"}"#;
        let keys = faults(&[NEAR, ("TWITCH_CLIENT_SECRET", "x")], &[(Secret::TokenKeys, keys)]);
        assert_eq!(keys.len(), 5, "{keys:?}");
        assert_eq!(keys.iter().filter(|fault| fault.contains("TOKEN_KEYS_SECRET_ID")).count(), 4, "{keys:?}");
        assert!(keys.iter().all(|fault| !fault.contains("sh0rt") && !fault.contains("b64")), "{keys:?}");
    }

    #[test]
    fn a_secret_that_can_t_be_read_is_one_fault() {
        for text in [
            "n0nsense",
            "[]",
            r#""n0nsense""#,
            r#"{"TWITCH_CLIENT_ID": "the-id", "TWITCH_CLIENT_SECRET": 17}"#,
        ] {
            let faults = faults(&[NEAR, APP_KEY], &[(Secret::Twitch, text)]);
            assert_eq!(faults.len(), 1, "{faults:?}");
            assert!(
                faults[0].starts_with("TWITCH_SECRET_ID names the secret `the/secret`, which "),
                "{faults:?}"
            );
            assert!(!faults[0].contains("n0nsense") && !faults[0].contains("17"), "{faults:?}");
        }
        let keys = faults(&[NEAR], &[(Secret::TokenKeys, ""), (Secret::Twitch, TWITCH)]);
        assert_eq!(keys.len(), 1, "{keys:?}");
    }

    /// RDS names no host in the secret of a password that it manages by itself.
    #[test]
    fn a_secret_of_a_user_and_a_password_needs_a_host() {
        let text = r#"{"username": "postgres", "password": "p#/ss\n"}"#;
        let read = |variables: &[(&str, &str)]| {
            let options = super::super::database(&source(variables, &[(Secret::Database, text)]));
            options.map_err(|faults| faults.0)
        };
        let host = ("DATABASE_HOST", "polls.cluster-abc.eu-west-3.rds.amazonaws.com");
        let found = read(&[host]).unwrap();
        assert_eq!((found.get_host(), found.get_port(), found.get_username()), (host.1, 5432, "postgres"));
        assert_eq!(found.get_database(), None, "PostgreSQL's default");
        assert!(matches!(found.get_ssl_mode(), PgSslMode::VerifyFull));
        assert!(format!("{found:?}").contains(r#"password: Some("p#/ss")"#));
        let found = read(&[host, ("DB_DATABASE", "polls"), ("DB_PORT", "5433")]).unwrap();
        assert_eq!((found.get_database(), found.get_port()), (Some("polls"), 5433));
        assert_eq!(read(&[("DB_HOST", "db.example.com")]).unwrap().get_host(), "db.example.com");
        assert!(read(&[]).unwrap_err()[0].starts_with("DATABASE_HOST is missing"));
        let twice = read(&[host, NEAR]).unwrap_err();
        assert!(twice[0].starts_with("DATABASE_URL is set, and stands in the secret"), "{twice:?}");
    }

    #[test]
    fn what_rds_rotates_is_verified() {
        let options = |text: &str| {
            let members = Secret::Database.members(Some(text));
            members.clone()?;
            let mut source: Source = [NOWHERE; 0].into_iter().collect();
            source.add(Secret::Database, "the/secret", &members);
            super::super::database(&source).map_err(|faults| faults.0.join("; "))
        };
        let text = r#"{"engine": "postgres", "host": "polls.cluster-abc.eu-west-3.rds.amazonaws.com", "port": 5433,
                       "username": "app:/@%41", "password": "p@ss/w?rd#%41 é", "dbname": "twitch polls",
                       "dbInstanceIdentifier": "polls"}"#;
        let found = options(text).unwrap();
        assert_eq!(found.get_host(), "polls.cluster-abc.eu-west-3.rds.amazonaws.com");
        assert_eq!((found.get_port(), found.get_username()), (5433, "app:/@%41"));
        assert_eq!(found.get_database(), Some("twitch polls"));
        assert!(matches!(found.get_ssl_mode(), PgSslMode::VerifyFull));
        // The only way to see the password that a connection would give.
        assert!(format!("{found:?}").contains(r#"password: Some("p@ss/w?rd#%41 é")"#));
        assert_eq!(options(&text.replace("5433", "\"5434\"")).unwrap().get_port(), 5434);
        assert_eq!(options(&text.replace("\"port\": 5433,", "")).unwrap().get_port(), 5432);
        for (from, to, fault) in [
            ("\"host\"", "\"h0st\"", "DATABASE_HOST is missing"),
            ("\"password\"", "\"passw0rd\"", "DATABASE_URL is missing"),
            ("\"username\": \"app:/@%41\"", "\"username\": \"\"", "has no `username`"),
            ("5433", "70000", "has a `port` that is not valid"),
            ("polls.cluster", "po lls/cluster", "has a `host` that is not valid"),
            ("\"postgres\"", "\"mysql\"", "is of another `engine` than PostgreSQL"),
            (
                "\"engine\"",
                "\"DATABASE_URL\": \"postgres://x\", \"engine\"",
                "has both DATABASE_URL and `password`",
            ),
        ] {
            let error = options(&text.replace(from, to)).map(|_| ()).unwrap_err();
            assert!(error.starts_with(fault), "{error}");
        }
    }
}
