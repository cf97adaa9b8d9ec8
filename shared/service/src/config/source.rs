//! What the configuration is read from: the environment, a `.env` file, and the secrets that they name.
//!
//! A `.env` that happens to lie in the working directory may be another person's. It says what it likes, but not where a
//! secret goes that stands elsewhere: see [`Source::is_found`].

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::path::Path;

use super::ConfigError;
use super::env_file::{self, Fault, Parsed};

/// Allows any `TWITCH_ID_URL`.
pub(super) const TWITCH_ID_URL_ALLOW: &str = "TWITCH_ID_URL_ALLOW";

/// What counts in the environment alone: no file allows what it says, and libpq's password is read there by sqlx.
const NEVER_IN_A_FILE: [&str; 2] = [TWITCH_ID_URL_ALLOW, "PGPASSWORD"];

/// Variables, and the secrets that they name.
#[derive(Clone, Default)]
pub struct Source {
    /// Those of the secrets are among them.
    pub(super) variables: HashMap<String, String>,
    /// Those of them that stand in a file which happened to be there.
    found: HashSet<String>,
    /// Those of the found ones whose values use the environment.
    borrowers: HashSet<String>,
    /// In which secret a setting stands or would stand, in words.
    pub(super) places: HashMap<&'static str, String>,
    /// What is wrong with the secrets.
    pub(super) faults: Vec<String>,
    /// Settings that stand in a secret which can't be read.
    pub(super) unknown: HashSet<&'static str>,
}

impl Source {
    /// The environment, as it is on AWS.
    #[must_use]
    pub fn environment() -> Self {
        std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .collect()
    }

    /// With a `.env` in this directory, if there is one, for what the environment doesn't say.
    ///
    /// # Errors
    ///
    /// If the file is there and can't be read.
    pub fn and_env_in(mut self, directory: &Path) -> Result<Self, ConfigError> {
        let path = directory.join(".env");
        if path.exists() {
            let Parsed { entries, borrowers } = self.read(&path)?;
            self.found = self.add_missing(entries);
            self.borrowers = borrowers;
        }
        Ok(self)
    }

    /// With this file, for what the environment doesn't say.
    ///
    /// # Errors
    ///
    /// If the file is not there or can't be read.
    pub fn and_file(mut self, path: &Path) -> Result<Self, ConfigError> {
        let entries = self.read(path)?.entries;
        self.add_missing(entries);
        Ok(self)
    }

    fn read(&self, path: &Path) -> Result<Parsed, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let why = match error.kind() {
                ErrorKind::NotFound => "does not exist",
                _ => "can't be read: check its permissions, and that it is UTF-8",
            };
            ConfigError(vec![format!("{} {why}", path.display())])
        })?;
        env_file::parse(&text, |name| self.get(name).map(str::to_owned)).map_err(|faults| {
            let texts = faults.into_iter().map(|fault| match fault {
                Fault::Form(line) => format!("{}, line {line}: not of the form NAME=value", path.display()),
                Fault::Unset(line) => format!(
                    "{}, line {line}: uses a variable with `$` that is not set; a `$` is taken as it is in single quotes",
                    path.display()
                ),
            });
            ConfigError(texts.collect())
        })
    }

    /// Takes in what is not set yet, and answers its names.
    pub(super) fn add_missing(
        &mut self,
        entries: impl IntoIterator<Item = (String, String)>,
    ) -> HashSet<String> {
        let mut added = HashSet::new();
        for (name, value) in entries {
            if !NEVER_IN_A_FILE.contains(&name.as_str()) && self.get(&name).is_none() {
                added.insert(name.clone());
                self.variables.insert(name, value);
            }
        }
        added
    }

    /// An empty value counts as none, as in a `.env` file that was copied from a sample. The newline with which a file or a
    /// secret ends is not part of it.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let value = self.variables.get(name)?.trim_end_matches(['\r', '\n']);
        Some(value).filter(|value| !value.trim().is_empty())
    }

    /// Whether this setting stands in a file that happened to be there.
    pub(super) fn is_found(&self, name: &str) -> bool {
        self.found.contains(name)
    }

    /// Whether it stands there and uses variables of the environment, which may be secrets.
    pub(super) fn borrows(&self, name: &str) -> bool {
        self.is_found(name) && self.borrowers.contains(name)
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Source {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        let variables = variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { variables, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::config::RefreshConfig;

    const KEYS: [(&str, &str); 3] = [
        ("APP_KEY", "0123456789abcdefghijklmnopqrstuv"),
        ("TWITCH_CLIENT_ID", "client"),
        ("TWITCH_CLIENT_SECRET", "s3cr3t"),
    ];
    const NEAR: (&str, &str) = ("DATABASE_URL", "postgres://app:pw@localhost/polls");
    const FAR: &str = "postgres://app:pw@db.example.com/polls?sslmode=verify-full";
    const WITHOUT_PASSWORD: &str = "postgres://app@evil.example/polls?sslmode=verify-full";

    const NO_FAULTS: [Vec<String>; 2] = [Vec::new(), Vec::new()];

    fn directory(file: &str) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(".env"), file).unwrap();
        directory
    }

    /// The faults of these variables with this file, where it happens to be there and where it is named.
    fn faults(variables: &[(&str, &str)], file: &str) -> [Vec<String>; 2] {
        let directory = directory(file);
        let environment: Source = variables.iter().chain(&KEYS).copied().collect();
        let found = environment.clone().and_env_in(directory.path());
        let named = environment.and_file(&directory.path().join(".env"));
        [found, named].map(|source| {
            RefreshConfig::read(&source.unwrap()).err().map(|faults| faults.0).unwrap_or_default()
        })
    }

    #[test]
    fn a_bad_line_of_the_file_is_named_by_its_place() {
        let fault = |file: &str| {
            let read = Source::default().and_env_in(directory(file).path());
            let faults = read.map(|_| ()).unwrap_err().0;
            let [fault] = &faults[..] else { panic!("{faults:?}") };
            fault.clone()
        };
        let form = fault("# ours\nA=1\n\nB=2\nhunter2secret\n");
        assert!(form.ends_with(".env, line 5: not of the form NAME=value"), "{form}");
        let unset = fault("# ours\nA=1\nB=pa$hunter2secret\n");
        assert!(unset.contains(".env, line 3: uses a variable with `$` that is not set"), "{unset}");
        assert!(!unset.contains("hunter2secret"), "{unset}");
    }

    #[test]
    fn a_file_says_what_the_environment_does_not() {
        let directory = directory("SET=file\nEMPTY=file\nBLANK=file\nMISSING=file\n");
        let environment = Source::from_iter([("SET", "environment"), ("EMPTY", ""), ("BLANK", " ")]);
        let found = environment.clone().and_env_in(directory.path()).unwrap();
        let named = environment.and_file(&directory.path().join(".env")).unwrap();
        for source in [found, named] {
            let said = ["SET", "EMPTY", "BLANK", "MISSING"].map(|name| source.get(name).unwrap_or_default());
            assert_eq!(said, ["environment", "file", "file", "file"]);
        }
    }

    #[test]
    fn a_file_that_is_named_has_to_be_there() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Source::default().and_env_in(directory.path()).is_ok());
        let missing = directory.path().join("production.env");
        let error = Source::default().and_file(&missing).map(|_| ()).unwrap_err().0;
        assert_eq!(error, [format!("{} does not exist", missing.display())]);
        let error = Source::default().and_file(directory.path()).map(|_| ()).unwrap_err().0;
        assert!(error[0].contains("can't be read"), "{error:?}");
    }

    #[test]
    fn no_file_sends_secrets_to_another_than_twitch() {
        for url in [
            "https://evil.example",
            "https://id.twitch.tv.evil.example",
            "https://id.twitch.tv.",
            "https://evilid.twitch.tv",
            "https://twitch.tv",
            "https://192.0.2.1",
            "https://localhost.evil.example",
        ] {
            for file in
                [format!("TWITCH_ID_URL={url}"), format!("TWITCH_ID_URL={url}\nTWITCH_ID_URL_ALLOW=on")]
            {
                for faults in faults(&[NEAR], &file) {
                    assert_eq!(faults.len(), 1, "{url}: {faults:?}");
                    assert!(
                        faults[0].starts_with("TWITCH_ID_URL leads neither to id.twitch.tv"),
                        "{faults:?}"
                    );
                }
            }
            let off = faults(&[NEAR, ("TWITCH_ID_URL_ALLOW", "off")], &format!("TWITCH_ID_URL={url}"));
            assert!(off.iter().all(|faults| faults.len() == 1), "{url}: {off:?}");
            let on = faults(&[NEAR, ("TWITCH_ID_URL_ALLOW", "on")], &format!("TWITCH_ID_URL={url}"));
            assert_eq!(on, NO_FAULTS, "{url}");
        }
        for url in ["https://id.twitch.tv@evil.example", "http://id.twitch.tv", "http://evil.example"] {
            for allow in ["off", "on"] {
                let faults = faults(&[NEAR, ("TWITCH_ID_URL_ALLOW", allow)], &format!("TWITCH_ID_URL={url}"));
                assert!(
                    faults[0][0].starts_with("TWITCH_ID_URL is neither an https URL"),
                    "{url}: {faults:?}"
                );
            }
        }
        for url in
            ["https://ID.twitch.tv/", "https://id.twitch.tv:443", "http://127.0.0.2:8080", "https://[::1]"]
        {
            assert_eq!(faults(&[NEAR], &format!("TWITCH_ID_URL={url}")), NO_FAULTS, "{url}");
        }
    }

    #[test]
    fn a_file_that_happened_to_be_there_sends_no_password_elsewhere() {
        let secret = "p4ss";
        let backend = [("DB_USER", "app"), ("DB_DATABASE", "polls"), ("DB_PASSWORD", secret)];
        let far = ("DATABASE_URL", FAR);
        let way = |name: &str, environment: &[(&str, &str)], file: &str| {
            let [found, named] = faults(environment, file);
            assert_eq!(named, [""; 0], "{file}");
            let [fault] = &found[..] else { panic!("{file}: {found:?}") };
            let says = format!("{name} in the `.env` of this directory");
            assert!(fault.starts_with(&says) && !fault.contains(secret), "{file}: {fault}");
        };
        way("DATABASE_HOST", &[far], "DATABASE_HOST=evil.example");
        way("PGSSLROOTCERT", &[far], "PGSSLROOTCERT=./evil.pem");
        way("DB_HOST", &backend, "DB_HOST=evil.example");
        way(
            "DATABASE_PLAINTEXT",
            &[&backend[..], &[("DB_HOST", "10.0.0.5")]].concat(),
            "DATABASE_PLAINTEXT=on",
        );
        way("DATABASE_URL", &[("PGPASSWORD", secret)], &format!("DATABASE_URL='{WITHOUT_PASSWORD}'"));
        for borrowed in
            ["app:$APP_KEY@evil.example", "$APP_KEY@evil.example", "app@${TWITCH_CLIENT_SECRET}.evil.example"]
        {
            way("DATABASE_URL", &[], &format!("DATABASE_URL=postgres://{borrowed}/x?sslmode=verify-full"));
        }
        way(
            "DATABASE_URL",
            &[],
            "OURS=$APP_KEY\nDATABASE_URL=postgres://app:$OURS@evil.example/x?sslmode=verify-full",
        );
        way("DB_HOST", &[], "DB_HOST=evil.example\nDB_USER=$APP_KEY\nDB_PASSWORD=theirs\nDB_DATABASE=x");
        // Its password may stand in a ~/.pgpass.
        way("DATABASE_URL", &[], &format!("DATABASE_URL={WITHOUT_PASSWORD}"));
        way("DATABASE_HOST", &[("DATABASE_URL", WITHOUT_PASSWORD)], "DATABASE_HOST=evil.example");
        for (environment, file) in [
            (
                &[][..],
                format!("DATABASE_URL={FAR}\nDATABASE_HOST=proxy.example.com\nPGSSLROOTCERT=./ours.pem"),
            ),
            (&[("PGPASSWORD", secret)], format!("DATABASE_URL={FAR}")),
            (&[far], "DATABASE_HOST=localhost".to_owned()),
            (&[far], "DB_HOST=another.example.com\nDATABASE_PLAINTEXT=off".to_owned()),
            (&[], format!("OURS={FAR}\nDATABASE_URL=$OURS")),
            (&[("HOME", "/home/us")], format!("DATABASE_URL={FAR}\nLOG_DIR=$HOME/logs")),
        ] {
            assert_eq!(faults(environment, &file), NO_FAULTS, "{file}");
        }
    }
}
