//! What a browser does with a push (RFC 8291 over RFC 8188), from `RustCrypto`'s parts. It must share nothing with the
//! crates that encrypt for us, so that the two check each other.

use aes_gcm::{Aes128Gcm, KeyInit, aead::Aead};
use hkdf::Hkdf;
use p256::{PublicKey, SecretKey};
use sha2::Sha256;

/// `auth` of a subscription.
pub(super) const SECRET_LENGTH: usize = 16;

const SALT_LENGTH: usize = 16;
const TAG_LENGTH: usize = 16;
const KEY_LENGTH: usize = 65;

/// Behind the last record's text; zeros may follow.
const LAST_RECORD: u8 = 2;

/// Why a body can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("the body is not one record of aes128gcm with the sender's public key")]
    Format,
    #[error("the body is longer than the record size that it names: it is more than one record")]
    Records,
    #[error("the device can't decrypt the body")]
    Ciphertext,
    #[error("the padding is not that of a last record")]
    Padding,
}

/// The text of a body that was encrypted for this device.
pub(super) fn decrypt(
    private_key: &SecretKey,
    secret: &[u8; SECRET_LENGTH],
    body: &[u8],
) -> Result<Vec<u8>, Unreadable> {
    let (salt, rest) = body.split_at_checked(SALT_LENGTH).ok_or(Unreadable::Format)?;
    let (record_size, rest) = rest.split_first_chunk::<4>().ok_or(Unreadable::Format)?;
    let (&key_length, rest) = rest.split_first().ok_or(Unreadable::Format)?;
    if usize::from(key_length) != KEY_LENGTH {
        return Err(Unreadable::Format);
    }
    let (sender, ciphertext) = rest.split_at_checked(KEY_LENGTH).ok_or(Unreadable::Format)?;
    let sender_key = PublicKey::from_sec1_bytes(sender).map_err(|_| Unreadable::Format)?;
    if ciphertext.len() <= TAG_LENGTH {
        return Err(Unreadable::Format);
    }
    if ciphertext.len() > u32::from_be_bytes(*record_size) as usize {
        return Err(Unreadable::Records);
    }

    let shared = private_key.diffie_hellman(&sender_key);
    let own = private_key.public_key().to_sec1_bytes();
    let info = [b"WebPush: info\0", &*own, sender].concat();
    let material: [u8; 32] = derive(secret, shared.raw_secret_bytes(), &info);
    let key: [u8; 16] = derive(salt, &material, b"Content-Encoding: aes128gcm\0");
    let nonce: [u8; 12] = derive(salt, &material, b"Content-Encoding: nonce\0");

    let cipher = Aes128Gcm::new(&key.into());
    let mut text = cipher.decrypt(&nonce.into(), ciphertext).map_err(|_| Unreadable::Ciphertext)?;
    while text.last() == Some(&0) {
        text.pop();
    }
    match text.pop() {
        Some(LAST_RECORD) => Ok(text),
        _ => Err(Unreadable::Padding),
    }
}

fn derive<const N: usize>(salt: &[u8], material: &[u8], info: &[u8]) -> [u8; N] {
    let mut derived = [0; N];
    let hkdf = Hkdf::<Sha256>::new(Some(salt), material);
    hkdf.expand(info, &mut derived).expect("HKDF gives much more than that");
    derived
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};

    use super::*;

    /// RFC 8291, appendix A.
    const PRIVATE_KEY: &str = "q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94";
    const PUBLIC_KEY: &str =
        "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
    const SECRET: &str = "BTBZMqHH6r4Tts7J_aSIgg";
    const BODY: &str = "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK\
                        6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN";

    fn decode(text: &str) -> Vec<u8> {
        BASE64_URL_SAFE_NO_PAD.decode(text).unwrap()
    }

    fn read(body: &[u8]) -> Result<Vec<u8>, Unreadable> {
        let key = SecretKey::from_slice(&decode(PRIVATE_KEY)).unwrap();
        assert_eq!(&*key.public_key().to_sec1_bytes(), decode(PUBLIC_KEY));
        decrypt(&key, &decode(SECRET).try_into().unwrap(), body)
    }

    #[test]
    fn it_reads_the_rfcs_example() {
        assert_eq!(read(&decode(BODY)).unwrap(), b"When I grow up, I want to be a watermelon");
    }

    #[test]
    fn more_than_one_record_is_refused() {
        let mut body = decode(BODY);
        body[16..20].copy_from_slice(&18_u32.to_be_bytes());
        assert_eq!(read(&body), Err(Unreadable::Records));
    }
}
