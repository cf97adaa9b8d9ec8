//! Tokens at rest: from plain text to what a column of `streamers` holds, and back.
//!
//! Two formats are read, each if its key is configured, and one of them is written: our own (`aes_gcm`), which
//! is bound to its row and column, and that of an `AdonisJS` 6 backend on the same database (`adonis`).
//!
//! This module must never let a key or a plain text into `Debug`, an error or a log, and must never call a text
//! that some key of ours might open the streamer's fault: [`DecryptError`] decides who loses their access.

mod adonis;
mod aes_gcm;

use std::{fmt, iter};

use adonis::AdonisKey;
use aes_gcm::KeyRing;
use chrono::{DateTime, Utc};
use uuid::Uuid;
use zeroize::Zeroizing;

/// What the configuration says about encryption, as it was read. [`TokenCipher::new`] checks it.
#[derive(Clone, Default)]
pub struct CipherSettings {
    /// `APP_KEY`: the key of the `AdonisJS` application.
    pub app_key: Option<Zeroizing<String>>,
    /// `TOKEN_KEYS`: the key ring of our own format, `id:base64,id:base64…`; the first key writes.
    pub token_keys: Option<Zeroizing<String>>,
    /// `TOKEN_CIPHER`: what is written, `adonis` or `aes-gcm`. Without it, the format whose key is set.
    pub token_cipher: Option<String>,
}

impl fmt::Debug for CipherSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CipherSettings")
            .field("app_key", &self.app_key.as_ref().map(|_| "redacted"))
            .field("token_keys", &self.token_keys.as_ref().map(|_| "redacted"))
            .field("token_cipher", &self.token_cipher.as_ref().map(|_| "redacted"))
            .finish()
    }
}

impl CipherSettings {
    /// The format to write: the one that is named, else the only one that has a key.
    fn written(&self) -> Result<Format, String> {
        let fault = match (self.token_cipher.as_deref(), self.app_key.is_some(), self.token_keys.is_some()) {
            (Some("adonis"), true, _) | (None, true, false) => return Ok(Format::Adonis),
            (Some("aes-gcm"), _, true) | (None, false, true) => return Ok(Format::AesGcm),
            (Some("adonis"), false, _) => {
                "TOKEN_CIPHER is `adonis`, but APP_KEY is missing: set APP_KEY to the AdonisJS application's key"
            }
            (Some("aes-gcm"), _, false) => {
                "TOKEN_CIPHER is `aes-gcm`, but TOKEN_KEYS is missing: set TOKEN_KEYS to `id:base64`, a key of 32 \
                 bytes (`openssl rand -base64 32`)"
            }
            (Some(_), false, false) => {
                "TOKEN_CIPHER is neither `adonis` nor `aes-gcm`, and APP_KEY and TOKEN_KEYS are missing: set one of \
                 the keys, and leave TOKEN_CIPHER out"
            }
            (Some(_), ..) => {
                "TOKEN_CIPHER is neither `adonis` nor `aes-gcm`: set it to the one that is to be written"
            }
            (None, true, true) => {
                "TOKEN_CIPHER is missing, and APP_KEY and TOKEN_KEYS are both set: set TOKEN_CIPHER to `adonis` or \
                 `aes-gcm`, the one that is to be written"
            }
            (None, false, false) => {
                "APP_KEY and TOKEN_KEYS are missing: set APP_KEY if an AdonisJS backend uses the database, else \
                 TOKEN_KEYS to `id:base64`, a key of 32 bytes (`openssl rand -base64 32`)"
            }
        };
        Err(fault.to_owned())
    }
}

/// The two formats, before their keys are known to be good.
enum Format {
    Adonis,
    AesGcm,
}

/// A column of `streamers` that holds an encrypted token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// `access_token_encrypted`.
    AccessToken,
    /// `refresh_token_encrypted`.
    RefreshToken,
}

impl Column {
    /// The column's name in the database. It is part of what is authenticated, so it can't change.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AccessToken => "access_token_encrypted",
            Self::RefreshToken => "refresh_token_encrypted",
        }
    }
}

/// Why a stored text gave no token. [`UnknownFormat`](Self::UnknownFormat) is the streamer's to mend; the others
/// are ours, so the grant must not be taken for dead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecryptError {
    /// A text in no known format (such as `invalid`), or an empty token: nothing is stored that any key would open.
    #[error("the stored text is not a token: the streamer has to connect again")]
    UnknownFormat,
    /// Authentic, but no token that this program understands: another use's payload, one with fields that a newer
    /// backend added, or one that has expired.
    #[error("the stored text is authentic, but holds no token that this program understands")]
    NoToken,
    /// In a format of `AdonisJS` 7, which this program does not read.
    #[error("the stored text is in a format of AdonisJS 7: let the backend write with its `legacy` driver")]
    Unsupported,
    /// In a known format, with a key that is not configured.
    #[error(
        "the stored token needs the key `{key_id}`, which is not configured: set APP_KEY, or put the key back \
         into TOKEN_KEYS"
    )]
    UnknownKey {
        /// The id of the missing key in `TOKEN_KEYS`, or `APP_KEY`.
        key_id: String,
    },
    /// In a known format, but the key is another one under the same name, or the text was changed or moved to
    /// another row or column.
    #[error(
        "the stored token fails authentication: the key is not the one that wrote it, or the text was changed or \
         moved to another row or column"
    )]
    AuthenticationFailed,
}

impl DecryptError {
    /// Whether a key that we don't have might open the text.
    #[must_use]
    pub fn needs_another_key(&self) -> bool {
        matches!(self, Self::UnknownKey { .. } | Self::AuthenticationFailed)
    }
}

/// The operating system gave no random bytes, without which nothing can be encrypted safely.
#[derive(Debug, thiserror::Error)]
#[error("the operating system gave no random bytes to encrypt a token with")]
pub struct NoRandomness(#[source] getrandom::Error);

/// `<key id>.v1:<ciphertext>.<IV>.<tag>`, as the drivers of `AdonisJS` 7 write.
fn is_of_adonis_7(stored: &str) -> bool {
    let Some((id, rest)) = stored.split_once(".v1:") else { return false };
    !id.is_empty() && rest.split('.').count() == 3
}

/// `N` bytes that nobody can guess.
fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(NoRandomness)?;
    Ok(bytes)
}

/// Encrypts tokens for the database and decrypts what is found there.
///
/// Keys are derived and expanded once, on construction, and wiped on drop.
#[derive(Debug)]
pub struct TokenCipher {
    writer: Keys,
    /// The other format's keys, if it is configured. It is only read.
    reader: Option<Keys>,
}

/// The keys of one format.
#[derive(Debug)]
enum Keys {
    Adonis(AdonisKey),
    AesGcm(KeyRing),
}

impl TokenCipher {
    /// Checks the settings and prepares the keys.
    ///
    /// # Errors
    ///
    /// All faults that were found: each names its variable, what is wrong and what to do, and none shows a value.
    pub fn new(settings: &CipherSettings) -> Result<Self, Vec<String>> {
        let mut faults = Vec::new();
        let adonis = settings
            .app_key
            .as_ref()
            .and_then(|app_key| AdonisKey::new(app_key).map_err(|fault| faults.push(fault)).ok());
        let ring = settings
            .token_keys
            .as_ref()
            .and_then(|token_keys| KeyRing::parse(token_keys).map_err(|found| faults.extend(found)).ok());
        let written = settings.written().map_err(|fault| faults.push(fault));

        let adonis = adonis.map(Keys::Adonis);
        let ring = ring.map(Keys::AesGcm);
        match (written, adonis, ring) {
            (Ok(Format::Adonis), Some(writer), reader) | (Ok(Format::AesGcm), reader, Some(writer))
                if faults.is_empty() =>
            {
                Ok(Self { writer, reader })
            }
            _ => Err(faults),
        }
    }

    /// Encrypts a token for one streamer's column.
    ///
    /// An empty text is not a token: it can be written, but reads as [`DecryptError::UnknownFormat`].
    ///
    /// # Errors
    ///
    /// [`NoRandomness`], and nothing else.
    pub fn encrypt(&self, streamer: Uuid, column: Column, plain: &str) -> Result<String, NoRandomness> {
        match &self.writer {
            Keys::Adonis(key) => key.encrypt(plain),
            Keys::AesGcm(ring) => ring.encrypt(streamer, column, plain),
        }
    }

    /// Decrypts what is stored in one streamer's column, in either format.
    ///
    /// # Errors
    ///
    /// [`DecryptError`] says whether the streamer or our keys are the reason.
    pub fn decrypt(
        &self,
        streamer: Uuid,
        column: Column,
        stored: &str,
        now: DateTime<Utc>,
    ) -> Result<Zeroizing<String>, DecryptError> {
        let plain = if let Some(sealed) = aes_gcm::Sealed::parse(stored) {
            let unknown = || DecryptError::UnknownKey { key_id: sealed.key_id.to_owned() };
            self.key_ring().and_then(|ring| ring.key(sealed.key_id)).ok_or_else(unknown)?.decrypt(
                streamer,
                column,
                sealed.body,
            )?
        } else if let Some(sealed) = adonis::Sealed::parse(stored) {
            let unknown = || DecryptError::UnknownKey { key_id: "APP_KEY".to_owned() };
            self.adonis_key().ok_or_else(unknown)?.decrypt(sealed, now)?
        } else if is_of_adonis_7(stored) {
            return Err(DecryptError::Unsupported);
        } else {
            return Err(DecryptError::UnknownFormat);
        };
        if plain.is_empty() { Err(DecryptError::UnknownFormat) } else { Ok(plain) }
    }

    /// Whether what is written now looks like this: our format under the key that writes, or the other one, which has one
    /// key. Says nothing about whether the text is authentic.
    #[must_use]
    pub fn is_as_written_now(&self, stored: &str) -> bool {
        match &self.writer {
            Keys::AesGcm(ring) => {
                aes_gcm::Sealed::parse(stored).is_some_and(|sealed| ring.writes_as(sealed.key_id))
            }
            Keys::Adonis(_) => {
                aes_gcm::Sealed::parse(stored).is_none() && adonis::Sealed::parse(stored).is_some()
            }
        }
    }

    fn key_ring(&self) -> Option<&KeyRing> {
        self.keys().find_map(|keys| match keys {
            Keys::AesGcm(ring) => Some(ring),
            Keys::Adonis(_) => None,
        })
    }

    fn adonis_key(&self) -> Option<&AdonisKey> {
        self.keys().find_map(|keys| match keys {
            Keys::Adonis(key) => Some(key),
            Keys::AesGcm(_) => None,
        })
    }

    fn keys(&self) -> impl Iterator<Item = &Keys> {
        iter::once(&self.writer).chain(&self.reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const APP_KEY: &str = "0123456789abcdefghijklmnopqrstuv";
    const HELLO_IN_ADONIS: &str = "IyOo05nnlAXWJ1r54mr8y9IHd1_JQesFENMtwqOSpIE.dmpaSXJtQkRCb0l6MzZzeQ.6Fg9yg-RjIWXYibsaH13BKZWHcoYlxc7_1kFcHsOwoQ";
    const STREAMER: Uuid = Uuid::from_u128(0x0190_a7c2_0000_7000_8000_0000_0000_0001);
    /// 32 bytes of `k`, of `o`, and 31 bytes.
    const KEY: &str = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=";
    const OLD_KEY: &str = "b29vb29vb29vb29vb29vb29vb29vb29vb29vb29vb28=";
    const SHORT_KEY: &str = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2traw==";

    fn settings(
        app_key: Option<&str>,
        token_keys: Option<&str>,
        token_cipher: Option<&str>,
    ) -> CipherSettings {
        CipherSettings {
            app_key: app_key.map(|key| key.to_owned().into()),
            token_keys: token_keys.map(|keys| keys.to_owned().into()),
            token_cipher: token_cipher.map(ToOwned::to_owned),
        }
    }

    fn adonis() -> TokenCipher {
        TokenCipher::new(&settings(Some(APP_KEY), None, None)).unwrap()
    }

    fn aes_gcm(token_keys: &str) -> TokenCipher {
        TokenCipher::new(&settings(None, Some(token_keys), None)).unwrap()
    }

    fn decrypt(cipher: &TokenCipher, stored: &str) -> Result<String, DecryptError> {
        cipher
            .decrypt(STREAMER, Column::AccessToken, stored, DateTime::UNIX_EPOCH)
            .map(|plain| plain.as_str().to_owned())
    }

    fn encrypt(cipher: &TokenCipher, plain: &str) -> String {
        cipher.encrypt(STREAMER, Column::AccessToken, plain).unwrap()
    }

    fn unknown_key(key_id: &str) -> Result<String, DecryptError> {
        Err(DecryptError::UnknownKey { key_id: key_id.to_owned() })
    }

    fn text() -> impl Strategy<Value = String> {
        prop::collection::vec(any::<char>(), 1..80).prop_map(String::from_iter)
    }

    proptest! {
        #[test]
        fn every_text_comes_back_in_either_format(plain in text()) {
            for cipher in [adonis(), aes_gcm(&format!("k:{KEY}"))] {
                prop_assert_eq!(decrypt(&cipher, &encrypt(&cipher, &plain)), Ok(plain.clone()));
            }
        }

        #[test]
        fn no_text_makes_it_panic(stored in text()) {
            let cipher = aes_gcm(&format!("k:{KEY}"));
            for stored in [format!("v1.k.{stored}"), format!("v1.{stored}"), stored] {
                prop_assert!(decrypt(&adonis(), &stored).is_err());
                prop_assert!(decrypt(&cipher, &stored).is_err());
            }
        }

        /// Whatever single character of a text changes, the token does not come out.
        #[test]
        fn no_changed_text_is_read(place in any::<prop::sample::Index>(), to in "[A-Za-z0-9_.-]") {
            for cipher in [adonis(), aes_gcm(&format!("k:{KEY}"))] {
                let stored = encrypt(&cipher, "hello");
                let at = place.index(stored.len());
                let mut changed = stored.clone();
                changed.replace_range(at..=at, &to);
                prop_assume!(changed != stored);
                prop_assert!(decrypt(&cipher, &changed).is_err());
            }
        }
    }

    #[test]
    fn the_same_token_is_never_written_the_same_way_twice() {
        for cipher in [adonis(), aes_gcm(&format!("k:{KEY}"))] {
            assert_ne!(encrypt(&cipher, "hello"), encrypt(&cipher, "hello"));
        }
    }

    #[test]
    fn one_format_is_written_and_both_are_read() {
        let keys = format!("k:{KEY}");
        let [to_adonis, to_aes_gcm] = ["adonis", "aes-gcm"]
            .map(|name| TokenCipher::new(&settings(Some(APP_KEY), Some(&keys), Some(name))).unwrap());

        let (in_adonis, in_aes_gcm) = (encrypt(&to_adonis, "hello"), encrypt(&to_aes_gcm, "hello"));
        assert!(!in_adonis.starts_with("v1."));
        assert!(in_aes_gcm.starts_with("v1.k."));
        for cipher in [&to_adonis, &to_aes_gcm] {
            assert_eq!(decrypt(cipher, &in_adonis).as_deref(), Ok("hello"));
            assert_eq!(decrypt(cipher, &in_aes_gcm).as_deref(), Ok("hello"));
        }
    }

    #[test]
    fn an_old_key_reads_and_the_first_writes() {
        let written_before = encrypt(&aes_gcm(&format!("old:{OLD_KEY}")), "hello");
        let rotated = aes_gcm(&format!("new:{KEY}, old:{OLD_KEY}"));

        assert_eq!(decrypt(&rotated, &written_before).as_deref(), Ok("hello"));
        assert!(encrypt(&rotated, "hello").starts_with("v1.new."));
        let without_old = aes_gcm(&format!("new:{KEY}"));
        assert_eq!(decrypt(&without_old, &written_before), unknown_key("old"));
        let another_under_its_name = aes_gcm(&format!("old:{KEY}"));
        assert_eq!(
            decrypt(&another_under_its_name, &written_before),
            Err(DecryptError::AuthenticationFailed)
        );
    }

    #[test]
    fn a_text_in_the_format_whose_key_is_missing_is_our_fault() {
        let in_aes_gcm = encrypt(&aes_gcm(&format!("k:{KEY}")), "hello");
        assert_eq!(decrypt(&adonis(), &in_aes_gcm), unknown_key("k"));
        assert_eq!(decrypt(&aes_gcm(&format!("k:{KEY}")), HELLO_IN_ADONIS), unknown_key("APP_KEY"));
    }

    #[test]
    fn a_text_in_no_format_is_the_streamers_to_mend() {
        let keys = format!("k:{KEY}");
        let both = TokenCipher::new(&settings(Some(APP_KEY), Some(&keys), Some("adonis"))).unwrap();
        let [ciphertext, iv, mac] = HELLO_IN_ADONIS.split('.').collect::<Vec<_>>().try_into().unwrap();
        for stored in [
            "",
            ".",
            "..",
            "...",
            "invalid",
            "null",
            "v1",
            "v1.",
            "v1.k",
            "v1.k!.nonce.ciphertext",
            "v1..nonce.ciphertext",
            "v2.k.AAAAAAAAAAAAAAAA.AAAAAAAAAAAAAAAAAAAAAA",
            "a_plain_access_token_of_30_char",
            "three.dotted.words",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
            &format!("{ciphertext}.{iv}"),
            &format!("{ciphertext}.{iv}=="),
            &format!("{ciphertext}=.{iv}.{mac}"),
            &format!("{ciphertext}.{iv}==.{mac}"),
            &format!("{ciphertext}.{iv}.{mac}="),
            &format!("{ciphertext}.{}.{mac}", &iv[..iv.len() - 2]),
            &format!("{ciphertext}.{iv}.{}", &mac[..mac.len() - 3]),
            &format!(" {HELLO_IN_ADONIS}"),
        ] {
            assert_eq!(decrypt(&both, stored), Err(DecryptError::UnknownFormat), "{stored}");
        }
    }

    #[test]
    fn an_empty_text_is_not_a_token() {
        for cipher in [adonis(), aes_gcm(&format!("k:{KEY}"))] {
            assert_eq!(decrypt(&cipher, &encrypt(&cipher, "")), Err(DecryptError::UnknownFormat));
        }
    }

    fn faults(app_key: Option<&str>, token_keys: Option<&str>, token_cipher: Option<&str>) -> Vec<String> {
        TokenCipher::new(&settings(app_key, token_keys, token_cipher)).unwrap_err()
    }

    /// That there is one fault, and that it begins like this.
    #[track_caller]
    fn assert_fault(faults: &[String], beginning: &str) {
        let [fault] = faults else { panic!("one fault, not {faults:?}") };
        assert!(fault.starts_with(beginning), "{fault}");
    }

    #[test]
    fn the_choice_of_what_is_written_is_checked() {
        let keys = &*format!("k:{KEY}");
        for (app_key, token_keys, token_cipher, beginning) in [
            (None, None, None, "APP_KEY and TOKEN_KEYS are missing"),
            (None, None, Some("rot13"), "TOKEN_CIPHER is neither `adonis` nor `aes-gcm`, and APP_KEY"),
            (None, None, Some("adonis"), "TOKEN_CIPHER is `adonis`, but APP_KEY is missing"),
            (None, None, Some("aes-gcm"), "TOKEN_CIPHER is `aes-gcm`, but TOKEN_KEYS is missing"),
            (None, Some(keys), Some("adonis"), "TOKEN_CIPHER is `adonis`, but APP_KEY is missing"),
            (Some(APP_KEY), None, Some("aes-gcm"), "TOKEN_CIPHER is `aes-gcm`, but TOKEN_KEYS is missing"),
            (
                Some(APP_KEY),
                Some(keys),
                None,
                "TOKEN_CIPHER is missing, and APP_KEY and TOKEN_KEYS are both set",
            ),
            (Some(APP_KEY), Some(keys), Some(""), "TOKEN_CIPHER is neither `adonis` nor `aes-gcm`: set it"),
            (
                Some(APP_KEY),
                Some(keys),
                Some("AES-GCM"),
                "TOKEN_CIPHER is neither `adonis` nor `aes-gcm`: set it",
            ),
        ] {
            assert_fault(&faults(app_key, token_keys, token_cipher), beginning);
        }
    }

    #[test]
    fn the_app_key_is_as_long_as_adonis_demands() {
        assert_fault(&faults(Some("fifteen-letters"), None, None), "APP_KEY is shorter than 16 characters");
        assert_fault(&faults(Some(""), None, None), "APP_KEY is shorter than 16 characters");
        assert!(TokenCipher::new(&settings(Some("sixteen-letters!"), None, None)).is_ok());
        // JavaScript counts UTF-16 code units, of which each of these is two.
        assert!(TokenCipher::new(&settings(Some(&"😀".repeat(8)), None, None)).is_ok());
    }

    #[test]
    fn every_entry_of_the_key_ring_is_checked() {
        let long_id = "i".repeat(33);
        for (token_keys, beginning) in [
            (String::new(), "TOKEN_KEYS, entry 1 is not `id:base64`"),
            (KEY.to_owned(), "TOKEN_KEYS, entry 1 is not `id:base64`"),
            (format!("k:{KEY},"), "TOKEN_KEYS, entry 2 is not `id:base64`"),
            (format!(":{KEY}"), "TOKEN_KEYS, entry 1 has an id that is not 1 to 32"),
            (format!("{long_id}:{KEY}"), "TOKEN_KEYS, entry 1 has an id that is not 1 to 32"),
            (format!("a.b:{KEY}"), "TOKEN_KEYS, entry 1 has an id that is not 1 to 32"),
            (format!("é:{KEY}"), "TOKEN_KEYS, entry 1 has an id that is not 1 to 32"),
            ("k:".to_owned(), "TOKEN_KEYS, entry 1 has a key that is not 32 bytes in base64"),
            ("k:not base64".to_owned(), "TOKEN_KEYS, entry 1 has a key that is not 32 bytes in base64"),
            (format!("k:{SHORT_KEY}"), "TOKEN_KEYS, entry 1 has a key that is not 32 bytes in base64"),
            (format!("k:{KEY}{KEY}"), "TOKEN_KEYS, entry 1 has a key that is not 32 bytes in base64"),
            (format!("k:{KEY},k:{OLD_KEY}"), "TOKEN_KEYS, entry 2 repeats the id of entry 1"),
        ] {
            assert_fault(&faults(None, Some(&token_keys), None), beginning);
        }
    }

    #[test]
    fn a_key_that_is_only_read_is_checked_too() {
        let keys = format!("k:{KEY}");
        assert_fault(
            &faults(Some(APP_KEY), Some("k:short"), Some("adonis")),
            "TOKEN_KEYS, entry 1 has a key",
        );
        assert_fault(&faults(Some("short"), Some(&keys), Some("aes-gcm")), "APP_KEY is shorter");
    }

    #[test]
    fn all_faults_come_at_once() {
        let found = faults(Some("short"), Some(&format!("k:short,k:{KEY},other")), Some("rot13"));
        assert_eq!(found.len(), 5, "{found:#?}");
    }

    #[test]
    fn no_secret_is_shown() {
        let bad_keys = format!("k:{KEY}a,{OLD_KEY},{APP_KEY}:{KEY}");
        let bad = settings(Some("secret app key"), Some(&bad_keys), Some("secret by mistake"));
        let keys = format!("k:{KEY}");
        let good = settings(Some(APP_KEY), Some(&keys), Some("adonis"));
        let cipher = TokenCipher::new(&good).unwrap();
        let shown = format!("{bad:?} {good:?} {cipher:?} {:?}", TokenCipher::new(&bad).unwrap_err());

        for secret in [APP_KEY, KEY, OLD_KEY, "secret", "kkkk", "107, 107"] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
        assert!(shown.contains("redacted"));
    }

    #[test]
    fn adonis_7_is_not_mistaken_for_nothing() {
        let settings = CipherSettings {
            app_key: Some(Zeroizing::new("0123456789abcdef".to_owned())),
            ..CipherSettings::default()
        };
        let cipher = TokenCipher::new(&settings).unwrap();
        let read = |text: &str| {
            cipher
                .decrypt(Uuid::nil(), Column::RefreshToken, text, DateTime::UNIX_EPOCH)
                .map(|plain| plain.to_string())
        };
        assert_eq!(read("main.v1:AAAA.BBBB.CCCC"), Err(DecryptError::Unsupported));
        assert_eq!(read("invalid"), Err(DecryptError::UnknownFormat));
    }
}
