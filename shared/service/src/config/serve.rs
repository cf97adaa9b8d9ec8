//! What `tokens serve` reads besides the settings of cycles and deliveries: its callers' keys, its name, and its reverse proxies.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use url::Url;
use zeroize::Zeroizing;

use super::{ConfigError, Reader, Source};
use crate::keys::ApiKeys;

/// What a server needs besides what it opens.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// `API_KEYS`, `API_KEYS_FILE`. Without a key no request is answered.
    pub keys: ApiKeys,
    /// `PUBLIC_URL`: the host, and the port if it is not the scheme's.
    pub public: Option<PublicName>,
    /// `TRUSTED_PROXIES`.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether notifications are delivered: a VAPID key is configured.
    pub delivers: bool,
}

/// The name under which clients reach a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicName {
    /// The host, in lower case.
    pub host: String,
    /// The port, the scheme's by default.
    pub port: u16,
    /// Whether the port is the scheme's, which clients leave out.
    pub is_default_port: bool,
}

impl ServeConfig {
    /// Reads all that a server needs, and what it will open as well, so that a fault is found at start.
    ///
    /// # Errors
    ///
    /// With every fault found.
    pub fn read(source: &Source) -> Result<Self, ConfigError> {
        let mut reader = Reader::new(source);
        let refresh = reader.refresh();
        let delivers = reader.is_given_vapid();
        if delivers {
            let _ = reader.notify(refresh.map(|refresh| refresh.database));
        }
        let keys = reader.api_keys();
        let public = reader.public_url();
        let trusted_proxies = reader.trusted_proxies();
        reader.finish(Some(Self { keys, public, trusted_proxies, delivers }))
    }
}

impl Reader<'_> {
    pub(super) fn api_keys(&mut self) -> ApiKeys {
        let (name, text) = match (self.source.get("API_KEYS"), self.source.get("API_KEYS_FILE")) {
            (None, None) => return ApiKeys::default(),
            (Some(_), Some(_)) => {
                self.fault("API_KEYS is set beside API_KEYS_FILE: keep one");
                return ApiKeys::default();
            }
            (Some(keys), None) => ("API_KEYS", Zeroizing::new(keys.to_owned())),
            (None, Some(path)) => {
                let Ok(text) = std::fs::read_to_string(Path::new(path)) else {
                    self.fault(format!("API_KEYS_FILE {path} can't be read"));
                    return ApiKeys::default();
                };
                ("API_KEYS_FILE", Zeroizing::new(text))
            }
        };
        ApiKeys::read(&text).unwrap_or_else(|faults| {
            for fault in faults {
                self.fault(format!("{name} {fault}"));
            }
            ApiKeys::default()
        })
    }

    pub(super) fn public_url(&mut self) -> Option<PublicName> {
        let url = Url::parse(self.source.get("PUBLIC_URL")?.trim()).ok();
        let name = url.as_ref().filter(|url| {
            ["http", "https"].contains(&url.scheme())
                && url.path() == "/"
                && url.query().is_none()
                && url.fragment().is_none()
                && url.username().is_empty()
                && url.password().is_none()
        });
        let name = name.and_then(|url| {
            Some(PublicName {
                host: url.host_str()?.to_owned(),
                port: url.port_or_known_default()?,
                is_default_port: url.port().is_none(),
            })
        });
        if name.is_none() {
            self.fault("PUBLIC_URL is not of the form https://HOST or https://HOST:PORT, without a path");
        }
        name
    }

    pub(super) fn trusted_proxies(&mut self) -> Vec<IpNet> {
        let list = self.source.get("TRUSTED_PROXIES").unwrap_or_default();
        let mut proxies = Vec::new();
        for item in list.split([',', ' ', '\n']).map(str::trim).filter(|item| !item.is_empty()) {
            let Ok(proxy) = item.parse().or_else(|_| item.parse::<IpAddr>().map(IpNet::from)) else {
                self.fault("TRUSTED_PROXIES is not a list of addresses and networks such as 10.0.0.0/8, ::1");
                return Vec::new();
            };
            proxies.push(proxy);
        }
        proxies
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::COMPLETE;
    use super::*;

    const KEY: &str = "backend:2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683";

    fn read(changes: &[(&str, &str)]) -> Result<ServeConfig, Vec<String>> {
        ServeConfig::read(&COMPLETE.iter().chain(changes).copied().collect()).map_err(|error| error.0)
    }

    #[test]
    fn everything_is_optional() {
        let config = read(&[]).unwrap();
        assert!(config.keys.is_empty() && config.public.is_none() && config.trusted_proxies.is_empty());
        assert!(!config.delivers);
    }

    #[test]
    fn keys_stand_in_the_environment_or_in_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        std::fs::write(&path, format!("{KEY}\n\n{}\n", KEY.replace("backend", "board"))).unwrap();
        let file = ("API_KEYS_FILE", path.to_str().unwrap());
        assert!(read(&[file]).unwrap().keys.find("key").is_some());
        assert!(read(&[("API_KEYS", KEY)]).unwrap().keys.find("key").is_some());
        let both = read(&[file, ("API_KEYS", KEY)]).unwrap_err();
        assert!(matches!(&both[..], [fault] if fault.contains("beside")), "{both:?}");
        std::fs::write(&path, "\n").unwrap();
        assert_eq!(read(&[file]).unwrap_err(), ["API_KEYS_FILE has no key"]);
    }

    #[test]
    fn a_public_url_names_a_host() {
        let name = |url: &str| {
            read(&[("PUBLIC_URL", url)])
                .unwrap()
                .public
                .map(|name| (name.host, name.port, name.is_default_port))
        };
        assert_eq!(name("https://Tokens.example.com/"), Some(("tokens.example.com".to_owned(), 443, true)));
        assert_eq!(name("http://tokens:8080"), Some(("tokens".to_owned(), 8080, false)));
    }

    #[test]
    fn networks_and_addresses_are_trusted() {
        let proxies = read(&[("TRUSTED_PROXIES", "10.0.0.0/8, 192.168.1.1 ::1")]).unwrap().trusted_proxies;
        let trusts = |ip: &str| proxies.iter().any(|net| net.contains(&ip.parse::<IpAddr>().unwrap()));
        assert!(trusts("10.9.8.7") && trusts("192.168.1.1") && trusts("::1"));
        assert!(!trusts("192.168.1.2") && !trusts("127.0.0.1"));
    }

    #[test]
    fn each_malformed_value_is_named() {
        for (name, value) in [
            ("API_KEYS", "backend:hunter2"),
            ("API_KEYS", ","),
            ("API_KEYS_FILE", "/nonexistent/keys"),
            ("PUBLIC_URL", "tokens.example.com"),
            ("PUBLIC_URL", "https://tokens.example.com/path"),
            ("PUBLIC_URL", "https://user@tokens.example.com"),
            ("PUBLIC_URL", "ftp://tokens.example.com"),
            ("TRUSTED_PROXIES", "10.0.0.0/33"),
            ("TRUSTED_PROXIES", "proxy"),
            ("TWITCH_MAX_IN_FLIGHT", "0"),
            ("VAPID_PUBLIC_KEY", "a key without its private one and without a subject"),
        ] {
            let faults = read(&[(name, value)]).unwrap_err();
            let count = if name == "VAPID_PUBLIC_KEY" { 2 } else { 1 };
            assert_eq!(faults.len(), count, "{name}={value}: {faults:?}");
            assert!(count > 1 || faults[0].starts_with(name), "{faults:?}");
            assert!(!faults[0].contains("hunter2"), "{faults:?}");
        }
        assert_eq!(
            read(&[("API_KEYS", "a:"), ("PUBLIC_URL", "x"), ("RETRY_DELAY", "x")]).unwrap_err().len(),
            3
        );
    }
}
