//! The keys with which callers of a server identify themselves. The server knows their hashes only.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokens_domain::{Caller, CampaignId};
use uuid::Uuid;
use zeroize::Zeroizing;

/// Before each key that is made, so that scanners for leaked secrets know it.
const PREFIX: &str = "ttr_";

/// Random bytes of a key.
const LENGTH: usize = 32;

/// The longest name of a key: shorter than a key or a hash, which stand in its place by mistake and must not be shown.
const MAX_NAME: usize = 40;

/// What a key lets its caller do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// `api`: grant, see, revoke and check. The right of a key that names none.
    Api,
    /// `access-token`: get a streamer's access token.
    AccessToken,
    /// `view`: read the metrics and pages.
    View,
    /// `operate`: do what the command does.
    Operate,
}

impl Right {
    const ALL: [(&str, Self); 4] = [
        ("api", Self::Api),
        ("access-token", Self::AccessToken),
        ("view", Self::View),
        ("operate", Self::Operate),
    ];
}

/// A caller's key, as the server knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// The caller, as log and history name it.
    pub name: String,
    hash: [u8; 32],
    rights: Vec<Right>,
    /// Empty: it is not limited.
    campaigns: Vec<CampaignId>,
}

impl ApiKey {
    /// The caller.
    #[must_use]
    pub fn caller(&self) -> Caller {
        Caller(self.name.clone())
    }

    /// Whether it has one of these rights.
    #[must_use]
    pub fn has_one_of(&self, rights: &[Right]) -> bool {
        rights.iter().any(|right| self.rights.contains(right))
    }

    /// Whether it reaches a route with this campaign in its path, or with none. A key that is limited to campaigns reaches no other
    /// route.
    #[must_use]
    pub fn reaches(&self, campaign: Option<CampaignId>) -> bool {
        self.campaigns.is_empty() || campaign.is_some_and(|campaign| self.campaigns.contains(&campaign))
    }
}

/// `name:<sha256 of the key, hex>[:right+right[:campaign+campaign]]`. The error says what is wrong after the name of the setting, and
/// shows no more than a name.
impl FromStr for ApiKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':').map(str::trim);
        let name = parts.next().unwrap_or_default();
        if !is_name(name) {
            return Err(format!(
                "has a key without a valid name: 1 to {MAX_NAME} of the characters a-z A-Z 0-9 . _ -, then a colon"
            ));
        }
        let fault = |what: &str| Err(format!("has a key `{name}` {what}"));
        let (hash, rights, campaigns) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        if parts.next().is_some() {
            return fault("of more than four parts: name:hash:rights:campaigns");
        }
        if hash.is_empty() {
            return fault("with an empty hash: `tokens keys generate` prints the whole line");
        }
        let Some(hash) = hash_of(hash) else {
            return fault("whose hash is not SHA-256 in hex: 64 of the characters 0-9 a-f");
        };
        if hash == sha256("") {
            return fault("whose hash is that of an empty key");
        }
        let list = |part: Option<&str>| -> Vec<String> {
            part.filter(|part| !part.is_empty())
                .map(|part| part.split('+').map(|item| item.trim().to_owned()).collect())
                .unwrap_or_default()
        };
        let mut key = Self { name: name.to_owned(), hash, rights: vec![], campaigns: vec![] };
        for right in list(rights) {
            match Right::ALL.iter().find(|(name, _)| *name == right) {
                Some((_, right)) => key.rights.push(*right),
                None => return fault("with an unknown right: there are api, access-token, view and operate"),
            }
        }
        if key.rights.is_empty() {
            key.rights.push(Right::Api);
        }
        for campaign in list(campaigns) {
            match Uuid::try_parse(&campaign) {
                Ok(id) => key.campaigns.push(CampaignId(id)),
                Err(_) => return fault("limited to a campaign whose id is not a UUID"),
            }
        }
        Ok(key)
    }
}

fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(allowed)
}

fn sha256(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// 32 bytes in hex.
fn hash_of(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = [0; 32];
    for (place, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * place..2 * place + 2], 16).ok()?;
    }
    Some(hash)
}

/// All keys of a server.
#[derive(Clone, Debug, Default)]
pub struct ApiKeys(Vec<ApiKey>);

impl ApiKeys {
    /// Reads a list, separated by commas or lines.
    ///
    /// # Errors
    ///
    /// With each fault; a fault shows no more than a name.
    pub fn read(text: &str) -> Result<Self, Vec<String>> {
        let (mut keys, mut faults) = (Vec::<ApiKey>::new(), Vec::new());
        for entry in text.split([',', '\n']).map(str::trim).filter(|entry| !entry.is_empty()) {
            match entry.parse::<ApiKey>() {
                Ok(key) if keys.iter().any(|known| known.name == key.name) => {
                    faults.push(format!("has two keys of the name `{}`", key.name));
                }
                Ok(key) => keys.push(key),
                Err(fault) => faults.push(fault),
            }
        }
        if keys.is_empty() && faults.is_empty() {
            faults.push("has no key".to_owned());
        }
        if faults.is_empty() { Ok(Self(keys)) } else { Err(faults) }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The key that a caller presents. How long this takes says nothing about the keys.
    #[must_use]
    pub fn find(&self, presented: &str) -> Option<&ApiKey> {
        let hash = sha256(presented);
        self.0.iter().fold(None, |found, key| if key.hash.ct_eq(&hash).into() { Some(key) } else { found })
    }
}

/// A new key.
pub struct NewKey {
    /// What the caller sends.
    pub key: Zeroizing<String>,
    /// The line for the server.
    pub line: String,
}

/// The name can't stand in a list of keys, or the system has no random bytes.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The name.
    #[error("a key's name is 1 to {MAX_NAME} of the characters a-z A-Z 0-9 . _ -")]
    Name,
    /// No random bytes.
    #[error("the system gives no random bytes")]
    Random(#[from] getrandom::Error),
}

impl NewKey {
    /// Makes a key for the caller of this name.
    ///
    /// # Errors
    ///
    /// If the name is not valid, or the system has no random bytes.
    pub fn generate(name: &str) -> Result<Self, KeyError> {
        if !is_name(name) {
            return Err(KeyError::Name);
        }
        let mut bytes = Zeroizing::new([0; LENGTH]);
        getrandom::fill(bytes.as_mut())?;
        let key = Zeroizing::new(format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(bytes.as_ref())));
        let line = format!("{name}:{}", Hex(&sha256(&key)));
        Ok(Self { key, line })
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAMPAIGN: &str = "5c0e7a52-3a35-4b7c-9a8b-0f6d2a1c9e11";

    fn hash(key: &str) -> String {
        Hex(&sha256(key)).to_string()
    }

    fn faults(text: &str) -> Vec<String> {
        ApiKeys::read(text).map(|_| ()).unwrap_err()
    }

    #[test]
    fn each_caller_is_known_by_its_key_alone() {
        let (backend, board) = (NewKey::generate("backend").unwrap(), NewKey::generate("board").unwrap());
        let keys = ApiKeys::read(&format!("{}, {}:view+operate\n", backend.line, board.line)).unwrap();
        let name = |key: &str| keys.find(key).map(|key| key.name.as_str());
        assert_eq!((name(&backend.key), name(&board.key)), (Some("backend"), Some("board")));
        let hash = backend.line.split(':').nth(1).unwrap();
        for other in ["", " ", "backend", hash, &backend.key[..40], &format!("{} ", *backend.key)] {
            assert_eq!(name(other), None, "{other}");
        }
        assert!(backend.key.starts_with("ttr_") && backend.key.len() == 47, "{}", *backend.key);
        assert!(NewKey::generate("a:b").is_err());
    }

    #[test]
    fn rights_are_api_unless_named_and_campaigns_limit_a_key() {
        let keys = format!("a:{}\nb:{}:view+access-token\nc:{}::{CAMPAIGN}", hash("a"), hash("b"), hash("c"));
        let keys = ApiKeys::read(&keys).unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|key| keys.find(key).unwrap());
        assert!(a.has_one_of(&[Right::Api]) && !a.has_one_of(&[Right::View, Right::Operate]));
        assert!(b.has_one_of(&[Right::View, Right::Operate]) && !b.has_one_of(&[Right::Api]));
        let campaign = CampaignId(CAMPAIGN.parse().unwrap());
        let other = CampaignId(Uuid::nil());
        assert!(a.reaches(None) && a.reaches(Some(other)));
        assert!(c.has_one_of(&[Right::Api]) && c.reaches(Some(campaign)));
        assert!(!c.reaches(Some(other)) && !c.reaches(None));
    }

    #[test]
    fn each_fault_is_named_and_shows_no_hash() {
        let good = hash("key");
        for (entry, fault) in [
            (String::new(), "has no key"),
            (",\n ,".to_owned(), "has no key"),
            (format!(":{good}"), "without a valid name"),
            (format!("{good} "), "without a valid name"),
            ("a b:ff".to_owned(), "without a valid name"),
            ("backend".to_owned(), "an empty hash"),
            ("backend: ".to_owned(), "an empty hash"),
            (format!("backend:{}", &good[1..]), "not SHA-256"),
            (format!("backend:{}z", &good[1..]), "not SHA-256"),
            (format!("backend:{}é", &good[2..]), "not SHA-256"),
            (format!("backend:{}", hash("")), "of an empty key"),
            (format!("backend:{good}:admin"), "an unknown right"),
            (format!("backend:{good}:api+"), "an unknown right"),
            (format!("backend:{good}:api:5c0e7a52"), "not a UUID"),
            (format!("backend:{good}:api:{CAMPAIGN}:more"), "more than four parts"),
            (format!("backend:{good}, backend:{}", hash("other")), "two keys of the name `backend`"),
        ] {
            let faults = faults(&entry);
            let [found] = &faults[..] else { panic!("{entry}: {faults:?}") };
            assert!(found.contains(fault) && !found.contains(&good[2..60]), "{entry}: {found}");
        }
        assert_eq!(faults(&format!("a:{good}:x, b:, c:{good}")).len(), 2, "all at once");
    }
}
