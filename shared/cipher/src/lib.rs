//! Tokens at rest: from plain text to what a column of `streamers` holds, and back.
//!
//! Two formats are read, each if its key is configured, and one of them is written: our own (`aes_gcm`), which
//! is bound to its row and column, and that of an `AdonisJS` 6 backend on the same database (`adonis`).
//!
//! This module must never let a key or a plain text into `Debug`, an error or a log, and must never call a text
//! that some key of ours might open the streamer's fault: [`DecryptError`] decides who loses their access.

#![warn(missing_docs)]

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

/// Why a stored text gave no token. [`UnknownFormat`](Self::UnknownFormat) is the streamer's to fix; the others
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

/// `N` bytes that can't be guessed.
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
mod tests;
