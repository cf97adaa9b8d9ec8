//! Encrypts a Web Push message for one browser: the content encoding `aes128gcm` (RFC 8188) with the keys of RFC 8291.
//!
//! The crate `web-push` takes this from the crate `ece`, which builds on OpenSSL. This one has the same name and the part
//! of its interface that `web-push` calls, on the `RustCrypto` crates that are in the tree anyway. It can go once
//! <https://github.com/mozilla/rust-ece/issues/73> gives `ece` such a backend.

use aes_gcm::aead::Aead as _;
use aes_gcm::{Aes128Gcm, KeyInit as _};
use hkdf::Hkdf;
use p256::elliptic_curve::Generate as _;
use p256::{PublicKey, SecretKey};
use sha2::Sha256;
use zeroize::Zeroizing;

pub mod legacy;

/// The size that the header names. One record holds the whole message, so it only has to be large enough.
const RECORD_SIZE: u32 = 4096;

const SALT_LENGTH: usize = 16;
const TAG_LENGTH: usize = 16;

/// RFC 8291, section 3.2.
const AUTH_SECRET_LENGTH: usize = 16;

/// Follows the text of the last record; zeros may follow (RFC 8188, section 2).
const LAST_RECORD_DELIMITER: u8 = 2;

/// The record is padded to a multiple of this, so that its length says little about the text's.
const PADDING_BLOCK: usize = 128;

/// Why a message can't be encrypted. Holds neither key nor message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not an uncompressed point of P-256.
    #[error("the browser's public key is not an uncompressed point of P-256")]
    PublicKey,
    /// Not 16 bytes.
    #[error("the browser's authentication secret is not 16 bytes long")]
    AuthSecret,
    /// One record is all that a push may have (RFC 8291, section 4).
    #[error("the message does not fit into one record")]
    TooLong,
    /// The system gives no randomness.
    #[error("the system gives no randomness: {0}")]
    Random(#[from] getrandom::Error),
    /// An encoding that is older than RFC 8188.
    #[error("the encoding aesgcm is not supported")]
    Legacy,
}

/// What this crate answers.
pub type Result<T> = std::result::Result<T, Error>;

/// Encrypts `message` for the browser with the public key `p256dh` (65 bytes) and the secret `auth` (16 bytes), with a
/// key pair and a salt that are used once.
///
/// # Errors
///
/// If the keys are malformed, the message does not fit into one record, or the system gives no randomness.
pub fn encrypt(p256dh: &[u8], auth: &[u8], message: &[u8]) -> Result<Vec<u8>> {
    let mut salt = [0; SALT_LENGTH];
    getrandom::fill(&mut salt)?;
    let sender = SecretKey::try_generate()?;
    let padded = (message.len() + 1).next_multiple_of(PADDING_BLOCK);
    encrypt_with(&sender, salt, p256dh, auth, message, padded)
}

/// `record_length` counts the message, the delimiter and the padding.
fn encrypt_with(
    sender: &SecretKey,
    salt: [u8; SALT_LENGTH],
    p256dh: &[u8],
    auth: &[u8],
    message: &[u8],
    record_length: usize,
) -> Result<Vec<u8>> {
    let browser = match p256dh.first() {
        Some(4) => PublicKey::from_sec1_bytes(p256dh).map_err(|_| Error::PublicKey)?,
        _ => return Err(Error::PublicKey),
    };
    if auth.len() != AUTH_SECRET_LENGTH {
        return Err(Error::AuthSecret);
    }
    if record_length + TAG_LENGTH > RECORD_SIZE as usize {
        return Err(Error::TooLong);
    }
    let sender_public = sender.public_key().to_sec1_bytes();
    let shared = sender.diffie_hellman(&browser);
    let info = [b"WebPush: info\0", p256dh, &sender_public].concat();
    let material: Zeroizing<[u8; 32]> = derive(auth, shared.raw_secret_bytes(), &info);
    let key: Zeroizing<[u8; 16]> = derive(&salt, &*material, b"Content-Encoding: aes128gcm\0");
    let nonce: Zeroizing<[u8; 12]> = derive(&salt, &*material, b"Content-Encoding: nonce\0");

    let mut record = Zeroizing::new(Vec::with_capacity(record_length));
    record.extend_from_slice(message);
    record.push(LAST_RECORD_DELIMITER);
    record.resize(record_length, 0);
    let cipher = Aes128Gcm::new(&(*key).into());
    let sealed = cipher.encrypt(&(*nonce).into(), record.as_slice()).map_err(|_| Error::TooLong)?;

    let mut body = salt.to_vec();
    body.extend(RECORD_SIZE.to_be_bytes());
    body.push(u8::try_from(sender_public.len()).map_err(|_| Error::PublicKey)?);
    body.extend_from_slice(&sender_public);
    body.extend(sealed);
    Ok(body)
}

fn derive<const N: usize>(salt: &[u8], material: &[u8], info: &[u8]) -> Zeroizing<[u8; N]> {
    let mut derived = Zeroizing::new([0; N]);
    let hkdf = Hkdf::<Sha256>::new(Some(salt), material);
    hkdf.expand(info, &mut *derived).expect("HKDF-SHA256 gives up to 8,160 bytes");
    derived
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;

    use super::*;

    // RFC 8291, appendix A.
    const MESSAGE: &[u8] = b"When I grow up, I want to be a watermelon";
    const P256DH: &str =
        "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
    const AUTH: &str = "BTBZMqHH6r4Tts7J_aSIgg";
    const SENDER: &str = "yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw";
    const SALT: &str = "DGv6ra1nlYgDCS1FRnbzlw";
    const BODY: &str = "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27ml\
                        mlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPT\
                        pK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN";

    fn bytes(text: &str) -> Vec<u8> {
        BASE64_URL_SAFE_NO_PAD.decode(text).unwrap()
    }

    #[test]
    fn the_example_of_rfc_8291_is_reproduced() {
        let sender = SecretKey::from_slice(&bytes(SENDER)).unwrap();
        let salt = bytes(SALT).try_into().unwrap();
        let body = encrypt_with(&sender, salt, &bytes(P256DH), &bytes(AUTH), MESSAGE, MESSAGE.len() + 1);
        assert_eq!(body.unwrap(), bytes(BODY));
    }

    #[test]
    fn bodies_are_padded_to_blocks_and_never_repeat() {
        let encrypt = |length| encrypt(&bytes(P256DH), &bytes(AUTH), &vec![b'x'; length]).unwrap();
        let header = SALT_LENGTH + 4 + 1 + 65;
        for (length, padded) in [(0, 128), (1, 128), (127, 128), (128, 256), (3052, 3072), (3967, 3968)] {
            assert_eq!(encrypt(length).len(), header + padded + TAG_LENGTH, "{length}");
        }
        let (one, other) = (encrypt(10), encrypt(10));
        assert_ne!(one[..SALT_LENGTH], other[..SALT_LENGTH], "the salt");
        assert_ne!(one[SALT_LENGTH + 5..header], other[SALT_LENGTH + 5..header], "the sender's key");
    }

    #[test]
    fn malformed_keys_and_long_messages_are_refused() {
        let (key, auth) = (bytes(P256DH), bytes(AUTH));
        let mut off_curve = key.clone();
        off_curve[64] ^= 1;
        let compressed = PublicKey::from_sec1_bytes(&key).unwrap();
        let compressed = p256::Sec1Point::from(compressed).compress();
        for wrong in [&[][..], &key[..64], &off_curve, compressed.as_bytes(), &[0]] {
            assert_eq!(encrypt(wrong, &auth, MESSAGE), Err(Error::PublicKey));
        }
        assert_eq!(encrypt(&key, &auth[..15], MESSAGE), Err(Error::AuthSecret));
        assert_eq!(encrypt(&key, &auth, &[0; 4080]), Err(Error::TooLong));
    }
}
