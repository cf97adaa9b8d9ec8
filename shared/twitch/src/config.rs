//! Where Twitch is, and the credentials of our application.

use std::fmt;
use std::path::PathBuf;

use url::Url;
use zeroize::Zeroizing;

/// Our application's secret at Twitch.
#[derive(Clone)]
pub struct ClientSecret(Zeroizing<String>);

impl ClientSecret {
    /// A secret, from plain text.
    #[must_use]
    pub fn new(plain: impl Into<String>) -> Self {
        Self(Zeroizing::new(plain.into()))
    }

    /// The plain text, for the body of a request to Twitch.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ClientSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientSecret(redacted)")
    }
}

/// The credentials of our application.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// `TWITCH_CLIENT_ID`.
    pub client_id: String,
    /// `TWITCH_CLIENT_SECRET`.
    pub client_secret: ClientSecret,
}

/// How Twitch is reached.
#[derive(Clone, Debug)]
pub struct TwitchConfig {
    /// `TWITCH_ID_URL`, without a slash at its end.
    pub id_url: Url,
    /// `TWITCH_CLIENT_ID` and `TWITCH_CLIENT_SECRET`.
    pub credentials: Credentials,
    /// `TWITCH_MAX_IN_FLIGHT`: calls under way at once.
    pub max_in_flight: usize,
    /// `TWITCH_MAX_PER_SECOND`: calls begun a second; `None`: no limit.
    pub max_per_second: Option<u32>,
    /// `REQUIRED_SCOPES`: what a token must be granted to be usable; empty: anything.
    pub required_scopes: Vec<String>,
    /// `TWITCH_CA_FILE`: the authority (PEM) that signed a simulated Twitch's certificate. Loopback only.
    pub ca_file: Option<PathBuf>,
}

impl TwitchConfig {
    /// Calls that a cycle should have under way at once: more than a few seconds' worth of `TWITCH_MAX_PER_SECOND`
    /// would only hold leases while they wait for their turn.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        const SECONDS_IN_FLIGHT: u32 = 3;
        let paced = self.max_per_second.map(|rate| (rate * SECONDS_IN_FLIGHT) as usize);
        paced.map_or(self.max_in_flight, |paced| paced.min(self.max_in_flight))
    }
}
