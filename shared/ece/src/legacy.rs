//! The encoding `aesgcm`, which browsers used before RFC 8188. `web-push` names it; nothing here encrypts with it.

use std::convert::Infallible;

use crate::{Error, Result};

/// What `aesgcm` would make. There is no value of it.
#[derive(Debug)]
pub struct AesGcmEncryptedBlock(Infallible);

impl AesGcmEncryptedBlock {
    /// The headers that carry salt and key.
    #[must_use]
    pub fn headers(&self, _vapid_public_key: Option<&[u8]>) -> Vec<(&'static str, String)> {
        match self.0 {}
    }

    /// The ciphertext, in base64url.
    #[must_use]
    pub fn body(&self) -> String {
        match self.0 {}
    }
}

/// Refuses.
///
/// # Errors
///
/// Always [`Error::Legacy`].
pub fn encrypt_aesgcm(_p256dh: &[u8], _auth: &[u8], _message: &[u8]) -> Result<AesGcmEncryptedBlock> {
    Err(Error::Legacy)
}
