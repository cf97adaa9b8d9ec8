//! Checks VAPID (RFC 8292) as the strictest of the real services do, with `RustCrypto`'s ECDSA.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use p256::ecdsa::{Signature, VerifyingKey, signature::Verifier as _};
use serde::Deserialize;
use url::{Host, Url};

/// The longest that a token may hold.
const LONGEST: TimeDelta = TimeDelta::hours(24);

/// Who sends.
#[derive(Debug)]
pub(super) struct Sender {
    /// The application server's key, as it stands in the header.
    pub(super) key: String,
    pub(super) token: String,
}

/// Why a sender is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Distrust {
    #[error("there is no Authorization")]
    Missing,
    #[error("Authorization is not `vapid t=<token>, k=<key>`")]
    Scheme,
    #[error("k is no public key of P-256")]
    Key,
    #[error("t is no JWT that was signed with ES256")]
    Token,
    #[error("the signature is not made with k")]
    Signature,
    #[error("aud is not this service's origin")]
    Audience,
    #[error("exp is over")]
    Expired,
    #[error("exp is more than 24 hours ahead")]
    TooLong,
    #[error("sub is neither a mailto: nor an https: URL at which somebody can be reached")]
    Subject,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    typ: Option<String>,
}

#[derive(Deserialize)]
struct Claims {
    aud: String,
    exp: i64,
    sub: String,
}

/// Who sends, by a request's `Authorization`.
pub(super) fn check(
    authorization: Option<&str>,
    origin: &str,
    now: DateTime<Utc>,
) -> Result<Sender, Distrust> {
    let (token, key) = parameters(authorization.ok_or(Distrust::Missing)?).ok_or(Distrust::Scheme)?;
    let point = decode(key).filter(|point| point.len() == 65 && point[0] == 4).ok_or(Distrust::Key)?;
    let verifying = VerifyingKey::from_sec1_bytes(&point).map_err(|_| Distrust::Key)?;

    let (signed, signature) = token.rsplit_once('.').ok_or(Distrust::Token)?;
    let (header, claims) = signed.split_once('.').ok_or(Distrust::Token)?;
    let header: Header = json(header).ok_or(Distrust::Token)?;
    if header.alg != "ES256" || header.typ.is_some_and(|typ| typ != "JWT") {
        return Err(Distrust::Token);
    }
    let signature = decode(signature).and_then(|bytes| Signature::from_slice(&bytes).ok());
    verifying
        .verify(signed.as_bytes(), &signature.ok_or(Distrust::Token)?)
        .map_err(|_| Distrust::Signature)?;

    let claims: Claims = json(claims).ok_or(Distrust::Token)?;
    if claims.aud != origin {
        return Err(Distrust::Audience);
    }
    if claims.exp <= now.timestamp() {
        return Err(Distrust::Expired);
    }
    if claims.exp > (now + LONGEST).timestamp() {
        return Err(Distrust::TooLong);
    }
    if !can_be_reached(&claims.sub) {
        return Err(Distrust::Subject);
    }
    Ok(Sender { key: key.to_owned(), token: token.to_owned() })
}

fn parameters(authorization: &str) -> Option<(&str, &str)> {
    let (scheme, parameters) = authorization.split_once(' ')?;
    let (mut token, mut key) = (None, None);
    for parameter in parameters.split(',') {
        match parameter.trim().split_once('=')? {
            ("t", value) => token = Some(value),
            ("k", value) => key = Some(value),
            _ => {}
        }
    }
    scheme.eq_ignore_ascii_case("vapid").then_some((token?, key?))
}

fn decode(text: &str) -> Option<Vec<u8>> {
    BASE64_URL_SAFE_NO_PAD.decode(text).ok()
}

fn json<T: for<'a> Deserialize<'a>>(text: &str) -> Option<T> {
    serde_json::from_slice(&decode(text)?).ok()
}

fn can_be_reached(subject: &str) -> bool {
    let is_near = |name: &str| name == "localhost" || name.ends_with(".localhost");
    Url::parse(subject).is_ok_and(|url| match url.scheme() {
        "mailto" => url.path().rsplit_once('@').is_some_and(|(mailbox, name)| {
            !mailbox.is_empty() && name.contains('.') && !is_near(&name.to_ascii_lowercase())
        }),
        "https" => matches!(url.host(), Some(Host::Domain(name)) if !is_near(name)),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use p256::ecdsa::{SigningKey, signature::Signer as _};
    use serde_json::{Value, json};

    use super::*;
    use crate::push::device::random_key;

    const ORIGIN: &str = "http://127.0.0.1:8080";
    const NOW: DateTime<Utc> = DateTime::UNIX_EPOCH;

    fn encode(bytes: impl AsRef<[u8]>) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    fn claims() -> Value {
        json!({ "aud": ORIGIN, "exp": 12 * 3600, "sub": "mailto:operator@twitch-polls.net" })
    }

    /// `vapid t=<token>, k=<key>`, signed.
    fn authorization(claims: &Value) -> String {
        let key = random_key();
        let signed = format!("{}.{}", encode(r#"{"typ":"JWT","alg":"ES256"}"#), encode(claims.to_string()));
        let signature: Signature = SigningKey::from(&key).sign(signed.as_bytes());
        let public = encode(key.public_key().to_sec1_bytes());
        format!("vapid t={signed}.{}, k={public}", encode(signature.to_bytes()))
    }

    fn why(authorization: Option<&str>) -> Option<Distrust> {
        check(authorization, ORIGIN, NOW).err()
    }

    #[test]
    fn each_claim_has_its_rule() {
        assert_eq!(why(Some(&authorization(&claims()))), None);
        for (name, value, expected) in [
            ("aud", json!("http://127.0.0.1"), Some(Distrust::Audience)),
            ("aud", json!("http://127.0.0.1:8080/"), Some(Distrust::Audience)),
            ("aud", Value::Null, Some(Distrust::Token)),
            ("exp", json!(0), Some(Distrust::Expired)),
            ("exp", json!(24 * 3600 + 1), Some(Distrust::TooLong)),
            ("exp", json!(24 * 3600), None),
            ("sub", json!("mailto:operator@localhost"), Some(Distrust::Subject)),
            ("sub", json!("https://localhost/contact"), Some(Distrust::Subject)),
            ("sub", json!("operator@twitch-polls.net"), Some(Distrust::Subject)),
            ("sub", json!("https://twitch-polls.net/contact"), None),
        ] {
            let mut claims = claims();
            claims[name] = value;
            assert_eq!(why(Some(&authorization(&claims))), expected, "{claims}");
        }
    }

    #[test]
    fn a_sender_without_a_signature_of_its_key_is_refused() {
        let (one, other) = (authorization(&claims()), authorization(&claims()));
        let (token, _) = one.split_once(", k=").unwrap();
        let (_, key) = other.split_once(", k=").unwrap();
        let unsigned =
            format!("vapid t={}.{}., k={key}", encode(r#"{"alg":"none"}"#), encode(claims().to_string()));
        for (authorization, expected) in [
            (None, Distrust::Missing),
            (Some("Bearer x".to_owned()), Distrust::Scheme),
            (Some(format!("{token}, k=BAAA")), Distrust::Key),
            (Some(unsigned), Distrust::Token),
            (Some(format!("{token}, k={key}")), Distrust::Signature),
        ] {
            assert_eq!(why(authorization.as_deref()), Some(expected), "{authorization:?}");
        }
    }
}
