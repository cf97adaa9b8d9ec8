//! The body of a push: the message, encrypted for one browser (RFC 8291) by the crate `web-push`.
//!
//! Only the keys and the message reach that crate: it never sees an endpoint, and neither sends nor signs.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use tokens_domain::notification::Subscription;
use web_push::{ContentEncoding, SubscriptionInfo, WebPushError, WebPushMessageBuilder};

use crate::any_base64;
use crate::vapid::point;

/// What the browser shares with us.
const SECRET_LENGTH: usize = 16;

/// The crate wants one, and does nothing with it that concerns us.
const NO_ENDPOINT: &str = "https://push.invalid/";

/// Why no body could be made. Holds neither key nor message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    #[error(
        "the subscription's p256dh is not a public key: not 65 bytes of base64url that are a point of P-256"
    )]
    PublicKey,
    #[error("the subscription's auth is not a secret: not 16 bytes of base64url")]
    Secret,
    #[error("the message is empty")]
    Empty,
    #[error("the message is longer than the 3052 bytes that can be encrypted")]
    TooLong,
    #[error("the message can't be encrypted")]
    Other,
}

/// Encrypts `message` so that only this browser can read it: one record of `aes128gcm`.
pub(crate) fn encrypt(subscription: &Subscription, message: &[u8]) -> Result<Vec<u8>, BodyError> {
    // The crate has one error for whatever it can't encrypt, so that nothing that can be wrong is left to it.
    let key =
        any_base64(&subscription.p256dh).filter(|key| point(key).is_some()).ok_or(BodyError::PublicKey)?;
    let secret = any_base64(&subscription.auth)
        .filter(|secret| secret.len() == SECRET_LENGTH)
        .ok_or(BodyError::Secret)?;
    if message.is_empty() {
        return Err(BodyError::Empty);
    }
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let browser = SubscriptionInfo::new(NO_ENDPOINT.to_owned(), encode(&key), encode(&secret));
    let mut builder = WebPushMessageBuilder::new(&browser);
    builder.set_payload(ContentEncoding::Aes128Gcm, message);
    let built = builder.build().map_err(|error| match error {
        WebPushError::PayloadTooLarge => BodyError::TooLong,
        _ => BodyError::Other,
    })?;
    built.payload.map(|payload| payload.content).ok_or(BodyError::Other)
}
