//! VAPID (RFC 8292): the key by which a push service knows us, and the address for questions about what we send.
//!
//! One signature is made for each push service and hour and is used again. The private key never leaves this module
//! but through [`VapidKey::expose_private`].

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use p256::PublicKey;
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature as EcdsaSignature, SigningKey};
use p256::elliptic_curve::Generate as _;
use reqwest::header::HeaderValue;
use serde_json::json;
use url::{Host, Url};
use zeroize::Zeroizing;

use crate::any_base64;

/// How long a signature is used.
const USED_FOR: TimeDelta = TimeDelta::hours(1);

/// How long a signature says that it holds. A day is the most that push services take; half of it leaves room for
/// clocks that are wrong.
const HOLDS_FOR: TimeDelta = TimeDelta::hours(12);

/// There are a handful of push services. Invented ones get no memory.
const MAX_ORIGINS: usize = 256;

/// A key pair of P-256. The private key is wiped when it is dropped.
pub struct VapidKey {
    pair: SigningKey,
    public: String,
}

impl fmt::Debug for VapidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VapidKey(redacted)")
    }
}

/// The system gives no randomness for a new key.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no randomness: {0}")]
pub struct KeyError(#[from] getrandom::Error);

impl VapidKey {
    /// A new pair.
    ///
    /// # Errors
    ///
    /// If the system gives no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self::from_pair(SigningKey::try_generate()?))
    }

    fn parse(public: &str, private: &str) -> Result<Self, Vec<String>> {
        let mut faults = Vec::new();
        let point = any_base64(public).and_then(|bytes| point(&bytes));
        if point.is_none() {
            faults.push(
                "VAPID_PUBLIC_KEY is not 65 bytes of base64url that are a point of P-256: \
                 `tokens vapid generate` makes a pair"
                    .to_owned(),
            );
        }
        let private = any_base64(private).map(Zeroizing::new).filter(|bytes| bytes.len() == 32);
        if private.is_none() {
            faults.push(
                "VAPID_PRIVATE_KEY is not 32 bytes of base64url: `tokens vapid generate` makes a pair"
                    .to_owned(),
            );
        }
        let (Some(point), Some(private)) = (point, private) else { return Err(faults) };
        SigningKey::from_slice(&private)
            .ok()
            .filter(|pair| PublicKey::from(pair.verifying_key()) == point)
            .map(Self::from_pair)
            .ok_or_else(|| {
                vec![
                    "VAPID_PUBLIC_KEY and VAPID_PRIVATE_KEY don't belong together: set both to one pair, as \
                     `tokens vapid generate` prints it"
                        .to_owned(),
                ]
            })
    }

    fn from_pair(pair: SigningKey) -> Self {
        let public = PublicKey::from(pair.verifying_key()).to_sec1_bytes();
        Self { pair, public: BASE64_URL_SAFE_NO_PAD.encode(public) }
    }

    /// The public key, 65 bytes in base64url: `VAPID_PUBLIC_KEY`, and what a browser subscribes with.
    #[must_use]
    pub fn public(&self) -> String {
        self.public.clone()
    }

    /// The private key, 32 bytes in base64url: `VAPID_PRIVATE_KEY`.
    #[must_use]
    pub fn expose_private(&self) -> Zeroizing<String> {
        let bytes = Zeroizing::new(self.pair.to_bytes());
        Zeroizing::new(BASE64_URL_SAFE_NO_PAD.encode(bytes.as_slice()))
    }

    /// ES256 as in a JWT: r and s, 32 bytes each.
    fn sign(&self, text: &str) -> impl AsRef<[u8]> {
        let signature: EcdsaSignature = self.pair.sign(text.as_bytes());
        signature.to_bytes()
    }
}

/// An uncompressed point, if these bytes are one and it lies on the curve.
pub(crate) fn point(bytes: &[u8]) -> Option<PublicKey> {
    if bytes.len() != 65 || bytes[0] != 4 {
        return None;
    }
    PublicKey::from_sec1_bytes(bytes).ok()
}

/// Who we are to push services.
#[derive(Debug)]
pub struct Vapid {
    key: VapidKey,
    subject: String,
}

/// What is wrong with the VAPID variables, every fault of it. Never shows a value.
#[derive(Debug, PartialEq, Eq)]
pub struct VapidFaults(pub Vec<String>);

impl fmt::Display for VapidFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the VAPID configuration can't be used:")?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  - {fault}"))
    }
}

impl std::error::Error for VapidFaults {}

impl Vapid {
    /// Reads `VAPID_PUBLIC_KEY`, `VAPID_PRIVATE_KEY` and `VAPID_SUBJECT`.
    ///
    /// # Errors
    ///
    /// With every fault: a key that is not valid, two that don't belong together, a subject under which we can't be
    /// reached.
    pub fn new(public_key: &str, private_key: &str, subject: &str) -> Result<Self, VapidFaults> {
        let subject = subject.trim();
        let bad_subject = || {
            "VAPID_SUBJECT is not an address at which push services can reach you: set it to mailto:you@your.domain or to an \
             https URL (not on localhost, which Apple refuses)"
                .to_owned()
        };
        match (VapidKey::parse(public_key, private_key), is_reachable(subject)) {
            (Ok(key), true) => Ok(Self { key, subject: subject.to_owned() }),
            (Ok(_), false) => Err(VapidFaults(vec![bad_subject()])),
            (Err(faults), true) => Err(VapidFaults(faults)),
            (Err(mut faults), false) => {
                faults.push(bad_subject());
                Err(VapidFaults(faults))
            }
        }
    }
}

/// Whether the subject names a mailbox or a page that can be reached from elsewhere, as far as its form shows.
fn is_reachable(subject: &str) -> bool {
    let Ok(url) = Url::parse(subject) else { return false };
    match url.scheme() {
        "mailto" => {
            let address = url.path();
            !address.contains(|c: char| c.is_whitespace() || ",%".contains(c))
                && address.rsplit_once('@').is_some_and(|(mailbox, domain)| {
                    !mailbox.is_empty() && !mailbox.contains('@') && is_public_name(domain)
                })
        }
        "https" => matches!(url.host(), Some(Host::Domain(name)) if is_public_name(name)),
        _ => false,
    }
}

/// `localhost`, and names without a dot, mean something else on each machine.
fn is_public_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let mut labels = name.rsplit('.');
    let top = labels.next().unwrap_or_default();
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let rest: Vec<_> = labels.collect();
    let private = ["localhost", "localdomain", "local", "internal", "invalid", "test"];
    is_label(top)
        && !private.contains(&top)
        && !top.bytes().all(|byte| byte.is_ascii_digit())
        && !rest.is_empty()
        && rest.iter().all(|label| is_label(label))
}

/// Signs, and remembers what it signed.
pub(crate) struct Signer {
    vapid: Vapid,
    signatures: Mutex<HashMap<String, Signature>>,
}

struct Signature {
    made_at: DateTime<Utc>,
    header: HeaderValue,
}

impl Signature {
    /// One from the future was made before the clock was turned back: it might hold for too long.
    fn is_usable(&self, now: DateTime<Utc>) -> bool {
        self.made_at <= now && now - self.made_at < USED_FOR
    }
}

impl Signer {
    pub(crate) fn new(vapid: Vapid) -> Self {
        Self { vapid, signatures: Mutex::default() }
    }

    /// The value of `Authorization` for the push service with this origin.
    pub(crate) fn authorization(&self, origin: &str, now: DateTime<Utc>) -> HeaderValue {
        let mut signatures = self.signatures.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(signature) = signatures.get(origin)
            && signature.is_usable(now)
        {
            return signature.header.clone();
        }
        if signatures.len() >= MAX_ORIGINS {
            signatures.clear();
        }
        let header = self.sign(origin, now);
        signatures.insert(origin.to_owned(), Signature { made_at: now, header: header.clone() });
        header
    }

    fn sign(&self, origin: &str, now: DateTime<Utc>) -> HeaderValue {
        let Vapid { key, subject } = &self.vapid;
        let part = |value: serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let header = part(json!({ "typ": "JWT", "alg": "ES256" }));
        let claims = part(json!({ "aud": origin, "exp": (now + HOLDS_FOR).timestamp(), "sub": subject }));
        let signed = format!("{header}.{claims}");
        let signature = BASE64_URL_SAFE_NO_PAD.encode(key.sign(&signed));
        let value = format!("vapid t={signed}.{signature}, k={}", key.public);
        let mut value = HeaderValue::from_str(&value).expect("base64url is allowed in a header");
        value.set_sensitive(true);
        value
    }
}

#[cfg(test)]
mod tests {
    use p256::ecdsa::VerifyingKey;
    use p256::ecdsa::signature::Verifier as _;

    use super::*;

    const ORIGIN: &str = "https://push.example.com";
    const SUBJECT: &str = "mailto:operator@twitch-polls.net";

    /// The key pair of the sender in RFC 8291's appendix.
    const PUBLIC: &str =
        "BP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A8";
    const PRIVATE: &str = "yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw";

    fn signer() -> Signer {
        Signer::new(Vapid::new(PUBLIC, PRIVATE, SUBJECT).unwrap())
    }

    fn faults(public: &str, private: &str, subject: &str) -> Vec<String> {
        Vapid::new(public, private, subject).map(|_| ()).unwrap_err().0
    }

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    /// What a header says, after its signature was checked with the key that it names.
    fn claims(header: &HeaderValue) -> serde_json::Value {
        let (token, key) =
            header.to_str().unwrap().strip_prefix("vapid t=").unwrap().split_once(", k=").unwrap();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let signature = EcdsaSignature::from_slice(&any_base64(signature).unwrap()).unwrap();
        let key = VerifyingKey::from(point(&any_base64(key).unwrap()).unwrap());
        key.verify(signed.as_bytes(), &signature).unwrap();
        serde_json::from_slice(&any_base64(signed.split_once('.').unwrap().1).unwrap()).unwrap()
    }

    #[test]
    fn a_generated_pair_is_in_the_form_that_the_configuration_takes() {
        let (one, other) = (VapidKey::generate().unwrap(), VapidKey::generate().unwrap());
        assert_ne!(one.public(), other.public());
        assert_eq!((one.public().len(), one.expose_private().len()), (87, 43));
        let read = VapidKey::parse(&one.public(), &one.expose_private()).unwrap();
        assert_eq!((read.public(), read.expose_private()), (one.public(), one.expose_private()));
    }

    #[test]
    fn a_pair_is_read_with_padding_and_in_standard_base64_too() {
        let standard = |text: &str| text.replace('-', "+").replace('_', "/") + "=";
        let read = VapidKey::parse(&standard(PUBLIC), &standard(PRIVATE)).unwrap();
        assert_eq!((read.public().as_str(), read.expose_private().as_str()), (PUBLIC, PRIVATE));
    }

    #[test]
    fn each_fault_names_its_variable_and_shows_no_value() {
        let other = VapidKey::generate().unwrap();
        let zero = BASE64_URL_SAFE_NO_PAD.encode([0; 32]);
        let order = BASE64_URL_SAFE_NO_PAD.encode([0xff; 32]);
        let beside = {
            let mut bytes = any_base64(PUBLIC).unwrap();
            bytes[64] ^= 1;
            BASE64_URL_SAFE_NO_PAD.encode(bytes)
        };
        for (public, private, subject, named) in [
            (PUBLIC, other.expose_private().as_str(), SUBJECT, vec!["don't belong together"]),
            (PUBLIC, &*zero, SUBJECT, vec!["don't belong together"]),
            (PUBLIC, &*order, SUBJECT, vec!["don't belong together"]),
            (PRIVATE, PUBLIC, SUBJECT, vec!["VAPID_PUBLIC_KEY is not", "VAPID_PRIVATE_KEY is not"]),
            (&*beside, PRIVATE, SUBJECT, vec!["VAPID_PUBLIC_KEY is not"]),
            (
                "",
                "-----BEGIN EC PRIVATE KEY-----",
                "",
                vec!["VAPID_PUBLIC_KEY", "VAPID_PRIVATE_KEY", "VAPID_SUBJECT"],
            ),
            (PUBLIC, PRIVATE, "no-address", vec!["VAPID_SUBJECT is not an address"]),
        ] {
            let faults = faults(public, private, subject);
            assert_eq!(faults.len(), named.len(), "{faults:?}");
            for (fault, named) in faults.iter().zip(named) {
                assert!(fault.contains(named) && fault.starts_with("VAPID_"), "{fault}");
                for value in [public, private, subject] {
                    assert!(value.is_empty() || !fault.contains(value), "{fault}");
                }
            }
        }
    }

    #[test]
    fn the_subject_is_one_at_which_somebody_can_be_reached() {
        for good in [
            SUBJECT,
            "MAILTO:operator@twitch-polls.net",
            "mailto:first.last+push@mail.example.co.uk",
            "https://twitch-polls.net",
            "https://twitch-polls.net/contact",
        ] {
            assert!(Vapid::new(PUBLIC, PRIVATE, good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "   ",
            "operator@twitch-polls.net",
            "mailto:",
            "mailto:operator",
            "mailto:@twitch-polls.net",
            "mailto:operator@",
            "mailto:operator@localhost",
            "mailto:operator@LOCALHOST",
            "mailto:operator@mail.localhost",
            "mailto:operator@mailserver",
            "mailto:operator@twitch-polls.net.",
            "mailto:a@twitch-polls.net,b@localhost",
            "mailto:operator@127.0.0.1",
            "mailto:Operator <operator@twitch-polls.net>",
            "http://twitch-polls.net",
            "https://localhost",
            "https://localhost:3000/contact",
            "https://127.0.0.1/contact",
            "https://[::1]/contact",
            "https://intranet/contact",
            "tel:+33123456789",
        ] {
            assert!(Vapid::new(PUBLIC, PRIVATE, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_signature_says_for_whom_until_when_and_by_whom() {
        let now = at("2026-11-23T04:00:00.5Z");
        for origin in [ORIGIN, "http://127.0.0.1:40001"] {
            let header = signer().authorization(origin, now);
            assert!(header.is_sensitive());
            assert!(header.to_str().unwrap().ends_with(&format!(", k={PUBLIC}")));
            let exp = at("2026-11-23T16:00:00Z").timestamp();
            assert_eq!(claims(&header), json!({ "aud": origin, "exp": exp, "sub": SUBJECT }));
        }
    }

    #[test]
    fn one_signature_serves_an_origin_for_an_hour() {
        let signer = signer();
        let header = |origin, time| signer.authorization(origin, at(time));
        let first = header(ORIGIN, "2026-11-23T04:00:00Z");
        // A signature made a second later would expire a second later.
        assert_eq!(header(ORIGIN, "2026-11-23T04:59:59Z"), first);
        assert_ne!(header("https://push.example.net", "2026-11-23T04:59:59Z"), first);
        let second = header(ORIGIN, "2026-11-23T05:00:00Z");
        assert_ne!(second, first);
        assert_eq!(header(ORIGIN, "2026-11-23T05:30:00Z"), second);
        // The clock was turned back: the second would hold for too long.
        let third = header(ORIGIN, "2026-11-23T04:00:00Z");
        assert_ne!(third, second);
        let exp = at("2026-11-23T16:00:00Z").timestamp();
        assert_eq!(claims(&third)["exp"], exp);
    }

    #[test]
    fn invented_origins_take_no_memory() {
        let signer = signer();
        for n in 0..2 * MAX_ORIGINS {
            signer.authorization(&format!("https://{n}.example.com"), at("2026-11-23T04:00:00Z"));
        }
        assert!(signer.signatures.lock().unwrap().len() <= MAX_ORIGINS);
    }
}
