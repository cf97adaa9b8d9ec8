//! The format of `AdonisJS` 6, which an existing backend on the same database reads and writes.
//!
//! `<ciphertext>.<IV>.<MAC>`, each base64url without padding: AES-256-CBC over `{"message":…}`, and HMAC-SHA256
//! over the first two parts as they are written; both keys are the SHA-256 of the application's key.
//!
//! The format doesn't know its place: a text that is copied into another row is read there. Only our own format
//! can prevent that. This module must never decrypt before the MAC is checked: CBC's padding reveals too much.

use std::fmt;

use aes::{
    Aes256,
    cipher::{BlockModeDecrypt, BlockModeEncrypt, InnerIvInit, KeyInit, block_padding::Pkcs7},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{DecryptError, NoRandomness, random};

const IV_LENGTH: usize = 16;
const MAC_LENGTH: usize = 32;
/// In UTF-16 code units, as JavaScript counts; `AdonisJS` refuses to start below it.
const MIN_APP_KEY_LENGTH: usize = 16;

/// What `AdonisJS` encrypts.
///
/// It may also hold a `purpose`. `AdonisJS` reads such a payload only for that purpose, and tokens have none: like
/// any other unknown field it makes the payload not a token.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload<Message> {
    message: Message,
    #[serde(rename = "expiryDate", default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<DateTime<Utc>>,
}

/// A text that has the shape of the format, taken apart.
pub(super) struct Sealed<'a> {
    /// What the MAC covers: the first two parts, as they are written.
    signed: &'a str,
    ciphertext: Vec<u8>,
    iv: [u8; IV_LENGTH],
    mac: [u8; MAC_LENGTH],
}

impl<'a> Sealed<'a> {
    /// `None` if the text does not have the shape: the IV and the MAC have their length, and all three parts are
    /// base64url. Whatever follows the third part is ignored, as `AdonisJS` does.
    ///
    /// The ciphertext's length is not part of the shape: a ciphertext cut short is damage, which the MAC reveals.
    pub(super) fn parse(stored: &'a str) -> Option<Self> {
        let mut parts = stored.split('.');
        let (ciphertext, iv, mac) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self {
            signed: &stored[..ciphertext.len() + ".".len() + iv.len()],
            ciphertext: BASE64_URL_SAFE_NO_PAD.decode(ciphertext).ok()?,
            iv: BASE64_URL_SAFE_NO_PAD.decode(iv).ok()?.try_into().ok()?,
            mac: BASE64_URL_SAFE_NO_PAD.decode(mac).ok()?.try_into().ok()?,
        })
    }
}

/// The application's key, made ready for both uses.
pub(super) struct AdonisKey {
    aes: Aes256,
    hmac: Hmac<Sha256>,
}

impl fmt::Debug for AdonisKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdonisKey(redacted)")
    }
}

impl AdonisKey {
    /// Derives the key, or says what is wrong with `APP_KEY`.
    pub(super) fn new(app_key: &str) -> Result<Self, String> {
        if app_key.encode_utf16().count() < MIN_APP_KEY_LENGTH {
            return Err(format!(
                "APP_KEY is shorter than {MIN_APP_KEY_LENGTH} characters, which AdonisJS refuses: set it to the \
                 AdonisJS application's key"
            ));
        }
        let mut key = Zeroizing::new([0; 32]);
        Sha256::new_with_prefix(app_key).finalize_into((&mut *key).into());
        Ok(Self {
            aes: Aes256::new((&*key).into()),
            hmac: Hmac::new_from_slice(&*key).expect("HMAC takes a key of any length"),
        })
    }

    pub(super) fn encrypt(&self, plain: &str) -> Result<String, NoRandomness> {
        // AdonisJS reads the IV as UTF-8 and gives up on anything else, so its bytes are themselves base64url.
        let iv = BASE64_URL_SAFE_NO_PAD.encode(random::<{ IV_LENGTH / 4 * 3 }>()?);
        let iv = iv.as_bytes().try_into().expect("3 bytes are 4 characters");
        Ok(self.encrypt_with(iv, plain))
    }

    fn encrypt_with(&self, iv: [u8; IV_LENGTH], plain: &str) -> String {
        self.seal(iv, &payload(plain))
    }

    fn seal(&self, iv: [u8; IV_LENGTH], payload: &[u8]) -> String {
        let ciphertext =
            cbc::Encryptor::inner_iv_init(&self.aes, &iv.into()).encrypt_padded_vec::<Pkcs7>(payload);
        let mut text = BASE64_URL_SAFE_NO_PAD.encode(ciphertext);
        text.push('.');
        BASE64_URL_SAFE_NO_PAD.encode_string(iv, &mut text);
        let mac = self.hmac.clone().chain_update(&text).finalize().into_bytes();
        text.push('.');
        BASE64_URL_SAFE_NO_PAD.encode_string(mac, &mut text);
        text
    }

    /// The token inside, if the text is authentic.
    ///
    /// An authentic text that holds no token that we understand is [`DecryptError::NoToken`]: a program with the right
    /// key wrote it, so it is between our programs, and no streamer's fault.
    pub(super) fn decrypt(
        &self,
        sealed: Sealed<'_>,
        now: DateTime<Utc>,
    ) -> Result<Zeroizing<String>, DecryptError> {
        self.hmac
            .clone()
            .chain_update(sealed.signed)
            .verify_slice(&sealed.mac)
            .map_err(|_| DecryptError::AuthenticationFailed)?;

        let mut buffer = Zeroizing::new(sealed.ciphertext);
        let payload = cbc::Decryptor::inner_iv_init(&self.aes, &sealed.iv.into())
            .decrypt_padded::<Pkcs7>(&mut buffer)
            .map_err(|_| DecryptError::NoToken)?;
        let payload: Payload<Zeroizing<String>> =
            serde_json::from_slice(payload).map_err(|_| DecryptError::NoToken)?;
        if payload.expires_at.is_some_and(|expires_at| expires_at < now) {
            return Err(DecryptError::NoToken);
        }
        Ok(payload.message)
    }
}

/// A token's payload as JSON, in a buffer that is large enough from the start: one that grows leaves copies of the
/// token behind.
fn payload(token: &str) -> Zeroizing<Vec<u8>> {
    const MAX_ESCAPE: usize = r"\u0000".len();
    let capacity = r#"{"message":""}"#.len() + token.len() * MAX_ESCAPE;
    let mut json = Zeroizing::new(Vec::with_capacity(capacity));
    serde_json::to_writer(&mut *json, &Payload { message: token, expires_at: None })
        .expect("a string is always JSON, and a Vec always takes it");
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    const MADE_BY_ADONIS: &str = "IyOo05nnlAXWJ1r54mr8y9IHd1_JQesFENMtwqOSpIE.dmpaSXJtQkRCb0l6MzZzeQ.6Fg9yg-RjIWXYibsaH13BKZWHcoYlxc7_1kFcHsOwoQ";
    const IV: [u8; IV_LENGTH] = *b"ABCDEFGHIJKLMNOP";
    const MADE_WITH_IV: &str = "vqNIldEtDHf7KVvNu2gcY3gBe9hdT8gBH7EzInGywb4.QUJDREVGR0hJSktMTU5PUA.92ju9yy9Som8otDaxGvIHf3xWcwdFi2m-Ftr81N_9kQ";

    fn key() -> AdonisKey {
        AdonisKey::new("0123456789abcdefghijklmnopqrstuv").unwrap()
    }

    fn decrypt_at(stored: &str, now: DateTime<Utc>) -> Result<String, DecryptError> {
        let sealed = Sealed::parse(stored).ok_or(DecryptError::UnknownFormat)?;
        key().decrypt(sealed, now).map(|plain| plain.as_str().to_owned())
    }

    fn decrypt(stored: &str) -> Result<String, DecryptError> {
        decrypt_at(stored, DateTime::UNIX_EPOCH)
    }

    #[test]
    fn the_vectors_are_read() {
        assert_eq!(decrypt(MADE_BY_ADONIS).as_deref(), Ok("hello"));
        assert_eq!(decrypt(MADE_WITH_IV).as_deref(), Ok("hello"));
    }

    #[test]
    fn the_vector_is_written() {
        assert_eq!(key().encrypt_with(IV, "hello"), MADE_WITH_IV);
    }

    #[test]
    fn the_iv_is_written_in_url_safe_ascii() {
        let stored = key().encrypt("hello").unwrap();
        let iv = Sealed::parse(&stored).unwrap().iv;
        assert!(iv.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte)), "{iv:?}");
    }

    #[test]
    fn any_iv_is_read() {
        let stored = key().encrypt_with([0xff; IV_LENGTH], "hello");
        assert_eq!(decrypt(&stored).as_deref(), Ok("hello"));
    }

    #[test]
    fn what_follows_the_third_part_is_ignored() {
        assert_eq!(decrypt(&format!("{MADE_BY_ADONIS}.")).as_deref(), Ok("hello"));
        assert_eq!(decrypt(&format!("{MADE_BY_ADONIS}.more=")).as_deref(), Ok("hello"));
    }

    #[test]
    fn every_part_is_authenticated() {
        for part in 0..3 {
            for at in [0, 15] {
                let mut parts: Vec<_> = MADE_BY_ADONIS
                    .split('.')
                    .map(|part| BASE64_URL_SAFE_NO_PAD.decode(part).unwrap())
                    .collect();
                parts[part][at] ^= 1;
                let changed = parts
                    .iter()
                    .map(|part| BASE64_URL_SAFE_NO_PAD.encode(part))
                    .collect::<Vec<_>>()
                    .join(".");
                assert_eq!(decrypt(&changed), Err(DecryptError::AuthenticationFailed), "{changed}");
            }
        }
    }

    #[test]
    fn a_ciphertext_cut_short_fails_authentication() {
        let cut = format!("IyOo05nnlAXW{}", &MADE_BY_ADONIS[MADE_BY_ADONIS.find('.').unwrap()..]);
        assert_eq!(decrypt(&cut), Err(DecryptError::AuthenticationFailed));
        assert_eq!(decrypt(&cut[12..]), Err(DecryptError::AuthenticationFailed));
    }

    #[test]
    fn another_key_fails_authentication() {
        let other = AdonisKey::new("another key of more than 16").unwrap();
        let stored = other.encrypt("hello").unwrap();
        assert_eq!(decrypt(&stored), Err(DecryptError::AuthenticationFailed));
    }

    #[test]
    fn an_authentic_text_without_a_token_is_none() {
        for payload in [
            "",
            "hello",
            "null",
            "\"hello\"",
            "{}",
            r#"{"message":null}"#,
            r#"{"message":42}"#,
            r#"{"message":{"token":"hello"}}"#,
            r#"{"message":"hello","purpose":"login"}"#,
            r#"{"message":"hello","purpose":null}"#,
            r#"{"message":"hello","expiryDate":"soon"}"#,
        ] {
            let stored = key().seal(IV, payload.as_bytes());
            assert_eq!(decrypt(&stored), Err(DecryptError::NoToken), "{payload}");
        }
    }

    #[test]
    fn a_text_is_read_until_it_expires() {
        let expires_at = "2026-11-23T04:15:00.500Z";
        let payload = format!(r#"{{"message":"hello","expiryDate":"{expires_at}"}}"#);
        let stored = key().seal(IV, payload.as_bytes());
        let expires_at: DateTime<Utc> = expires_at.parse().unwrap();

        assert_eq!(decrypt_at(&stored, expires_at).as_deref(), Ok("hello"));
        let after = expires_at + chrono::TimeDelta::milliseconds(1);
        assert_eq!(decrypt_at(&stored, after), Err(DecryptError::NoToken));
    }

    #[test]
    fn an_authentic_text_that_is_no_ciphertext_holds_no_token() {
        let signed = format!("AAAA.{}", BASE64_URL_SAFE_NO_PAD.encode(IV));
        let mac = key().hmac.chain_update(&signed).finalize().into_bytes();
        let stored = format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(mac));
        assert_eq!(decrypt(&stored), Err(DecryptError::NoToken));
    }
}
