//! Our own format: `v1.<key id>.<nonce>.<ciphertext and tag>`, AES-256-GCM, the last two parts base64url without
//! padding.
//!
//! The key id lets keys rotate: the ring's first key writes, all of them read. The associated data holds the key
//! id, the streamer and the column, so that a text is worth nothing in another place.
//!
//! This module must never encrypt twice with the same nonce. It is random, of 96 bits: a key is good for 2^32
//! texts, which is 100,000 streamers with two tokens, refreshed seven times a day, for eight years.

use std::{collections::HashMap, fmt};

use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{Aead, Payload},
};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{Column, DecryptError, NoRandomness, random};

const VERSION: &str = "v1";
const NONCE_LENGTH: usize = 12;
const MAX_KEY_ID_LENGTH: usize = 32;

/// A text that has the beginning of the format.
///
/// The beginning decides: nothing else writes `v1.<key id>.`, so what is wrong behind it is damage, not the
/// streamer's doing.
pub(super) struct Sealed<'a> {
    pub(super) key_id: &'a str,
    pub(super) body: &'a str,
}

impl<'a> Sealed<'a> {
    pub(super) fn parse(stored: &'a str) -> Option<Self> {
        let (version, rest) = stored.split_once('.')?;
        let (key_id, body) = rest.split_once('.')?;
        (version == VERSION && is_key_id(key_id)).then_some(Self { key_id, body })
    }
}

/// Without dots, since it stands between dots; and short and plain, since errors show it.
fn is_key_id(text: &str) -> bool {
    (1..=MAX_KEY_ID_LENGTH).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// The keys, by their ids.
#[derive(Debug)]
pub(super) struct KeyRing {
    writer: Key,
    /// What older texts were written with.
    readers: Vec<Key>,
}

impl KeyRing {
    /// Reads `id:base64,id:base64…`, or says everything that is wrong with `TOKEN_KEYS`.
    pub(super) fn parse(token_keys: &str) -> Result<Self, Vec<String>> {
        let mut faults = Vec::new();
        let mut keys = Vec::new();
        let mut entries_by_id = HashMap::new();
        for (entry, text) in (1..).zip(token_keys.split(',')) {
            let mut fault = |what: &str| faults.push(format!("TOKEN_KEYS, entry {entry} {what}"));
            let Some((id, key)) = text.trim().split_once(':') else {
                fault("is not `id:base64`: separate id and key by a colon, and entries by commas");
                continue;
            };
            if !is_key_id(id) {
                fault("has an id that is not 1 to 32 letters, digits, `-` and `_`: choose another id");
            } else if let Some(first) = entries_by_id.insert(id, entry) {
                fault(&format!("repeats the id of entry {first}: give each key its own id"));
            }
            match Key::new(id, key) {
                Some(key) => keys.push(key),
                None => fault("has a key that is not 32 bytes in base64: use `openssl rand -base64 32`"),
            }
        }

        let mut keys = keys.into_iter();
        match keys.next() {
            Some(writer) if faults.is_empty() => Ok(Self { writer, readers: keys.collect() }),
            _ => Err(faults),
        }
    }

    pub(super) fn key(&self, id: &str) -> Option<&Key> {
        std::iter::once(&self.writer).chain(&self.readers).find(|key| key.id == id)
    }

    /// Whether this is the id of the key that writes.
    pub(super) fn writes_as(&self, id: &str) -> bool {
        self.writer.id == id
    }

    pub(super) fn encrypt(
        &self,
        streamer: Uuid,
        column: Column,
        plain: &str,
    ) -> Result<String, NoRandomness> {
        Ok(self.writer.encrypt_with(random()?, streamer, column, plain))
    }
}

/// One key of the ring.
pub(super) struct Key {
    id: String,
    aes_gcm: Aes256Gcm,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({}, redacted)", self.id)
    }
}

impl Key {
    /// `None` if the key is not 32 bytes in base64.
    fn new(id: &str, base64: &str) -> Option<Self> {
        let key = Zeroizing::new(BASE64_STANDARD.decode(base64).ok()?);
        Some(Self { id: id.to_owned(), aes_gcm: Aes256Gcm::new_from_slice(&key).ok()? })
    }

    fn encrypt_with(&self, nonce: [u8; NONCE_LENGTH], streamer: Uuid, column: Column, plain: &str) -> String {
        let aad = self.associated_data(streamer, column);
        let ciphertext = self
            .aes_gcm
            .encrypt(&nonce.into(), Payload { msg: plain.as_bytes(), aad: aad.as_bytes() })
            .expect("AES-GCM takes any text under 64 GiB");
        let mut text = format!("{VERSION}.{}.", self.id);
        BASE64_URL_SAFE_NO_PAD.encode_string(nonce, &mut text);
        text.push('.');
        BASE64_URL_SAFE_NO_PAD.encode_string(ciphertext, &mut text);
        text
    }

    /// Decrypts `<nonce>.<ciphertext and tag>`.
    pub(super) fn decrypt(
        &self,
        streamer: Uuid,
        column: Column,
        body: &str,
    ) -> Result<Zeroizing<String>, DecryptError> {
        self.open(streamer, column, body).ok_or(DecryptError::AuthenticationFailed)
    }

    fn open(&self, streamer: Uuid, column: Column, body: &str) -> Option<Zeroizing<String>> {
        let (nonce, ciphertext) = body.split_once('.')?;
        let nonce: [u8; NONCE_LENGTH] = BASE64_URL_SAFE_NO_PAD.decode(nonce).ok()?.try_into().ok()?;
        let ciphertext = BASE64_URL_SAFE_NO_PAD.decode(ciphertext).ok()?;
        let aad = self.associated_data(streamer, column);
        let plain =
            self.aes_gcm.decrypt(&nonce.into(), Payload { msg: &ciphertext, aad: aad.as_bytes() }).ok()?;
        // What we encrypt is text; the authenticated bytes can't be anything else.
        String::from_utf8(plain).ok().map(Zeroizing::new)
    }

    /// What a text is bound to: `v1.<key id>.<streamer>.<column>`. No part can hold a dot, so no two places give
    /// the same.
    fn associated_data(&self, streamer: Uuid, column: Column) -> String {
        format!("{VERSION}.{}.{}.{}", self.id, streamer.hyphenated(), column.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAMER: Uuid = Uuid::from_u128(0x0190_a7c2_0000_7000_8000_0000_0000_0001);
    const NONCE: [u8; NONCE_LENGTH] = *b"nonce of 12b";
    /// `hello`, written by Node's own AES-256-GCM with the same key, nonce and associated data.
    const MADE_ELSEWHERE: &str = "v1.k1.bm9uY2Ugb2YgMTJi.HYEOtWWILMCSNmSUkhnw6G0T9Rbq";

    /// Two keys: 32 bytes of `k`, and of `o`.
    fn ring() -> KeyRing {
        KeyRing::parse(
            "k1:a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=,k2:b29vb29vb29vb29vb29vb29vb29vb29vb29vb29vb28=",
        )
        .unwrap()
    }

    fn decrypt(streamer: Uuid, column: Column, stored: &str) -> Result<String, DecryptError> {
        let sealed = Sealed::parse(stored).ok_or(DecryptError::UnknownFormat)?;
        let ring = ring();
        let key =
            ring.key(sealed.key_id).ok_or(DecryptError::UnknownKey { key_id: sealed.key_id.to_owned() })?;
        key.decrypt(streamer, column, sealed.body).map(|plain| plain.as_str().to_owned())
    }

    /// That the text is ours, and yet not read in the place where it was written.
    #[track_caller]
    fn assert_not_authentic(stored: &str) {
        assert_eq!(
            decrypt(STREAMER, Column::RefreshToken, stored),
            Err(DecryptError::AuthenticationFailed),
            "{stored}"
        );
    }

    #[test]
    fn the_vector_is_read_and_written() {
        assert_eq!(decrypt(STREAMER, Column::RefreshToken, MADE_ELSEWHERE).as_deref(), Ok("hello"));
        let written = ring().writer.encrypt_with(NONCE, STREAMER, Column::RefreshToken, "hello");
        assert_eq!(written, MADE_ELSEWHERE);
    }

    #[test]
    fn a_text_is_read_only_in_its_place() {
        let failed = Err(DecryptError::AuthenticationFailed);
        assert_eq!(decrypt(STREAMER, Column::AccessToken, MADE_ELSEWHERE), failed);
        assert_eq!(decrypt(Uuid::nil(), Column::RefreshToken, MADE_ELSEWHERE), failed);
    }

    #[test]
    fn every_part_is_authenticated() {
        let (head, ciphertext) = MADE_ELSEWHERE.rsplit_once('.').unwrap();
        let ciphertext = BASE64_URL_SAFE_NO_PAD.decode(ciphertext).unwrap();
        for at in 0..ciphertext.len() {
            let mut changed = ciphertext.clone();
            changed[at] ^= 1;
            assert_not_authentic(&format!("{head}.{}", BASE64_URL_SAFE_NO_PAD.encode(changed)));
        }
        assert_not_authentic(&MADE_ELSEWHERE.replace("bm9u", "bm9v"));
        assert_not_authentic(&MADE_ELSEWHERE.replace(".k1.", ".k2."));
    }

    #[test]
    fn a_damaged_text_is_still_ours() {
        for damaged in [
            "v1.k1.",
            "v1.k1..",
            "v1.k1.bm9uY2Ugb2YgMTJi",
            "v1.k1.bm9uY2Ugb2YgMTJi.",
            "v1.k1.bm9uY2Ugb2YgMTJi.HYEO",
            "v1.k1.bm9uY2Ug.HYEOtWWILMCSNmSUkhnw6G0T9Rbq",
            "v1.k1.bm9uY2Ugb2YgMTJi.HYEOtWWILMCSNmSUkhnw6G0T9Rbq.",
            "v1.k1.bm9uY2Ugb2YgMTJi.HYEOtWWILMCSNmSUkhnw6G0T9Rb=",
        ] {
            assert_not_authentic(damaged);
        }
    }
}
