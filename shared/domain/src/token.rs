//! The streamer's OAuth 2.0 tokens, as secrets that can't be printed.

use std::fmt;

macro_rules! secret {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq)]
        pub struct $name(String);

        impl $name {
            /// Takes the plain text in.
            pub fn new(plain: impl Into<String>) -> Self {
                Self(plain.into())
            }

            /// The plain text. Every use is a place where the secret leaves our hands: Twitch or the cipher.
            #[must_use]
            pub fn expose(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(redacted)"))
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                zeroize::Zeroize::zeroize(&mut self.0);
            }
        }
    };
}

secret! {
    /// What the polls run with; Twitch lets it live for about 4 hours.
    AccessToken
}

secret! {
    /// What a new access token is asked for with.
    RefreshToken
}

/// The two tokens of one grant, as the database keeps them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPair {
    /// The access token.
    pub access: AccessToken,
    /// The refresh token that belongs to it.
    pub refresh: RefreshToken,
}
