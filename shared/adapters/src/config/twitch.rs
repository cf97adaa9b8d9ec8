//! How Twitch is reached, and as whom.

use std::fmt;
use std::path::PathBuf;

use url::Url;
use zeroize::Zeroizing;

use super::source::TWITCH_ID_URL_ALLOW;
use super::{Reader, Secret, has_loopback_host};
use crate::secrets::Live;

/// Where the real OAuth 2.0 endpoints are.
const TWITCH_ID_URL: &str = "https://id.twitch.tv";

/// Its host.
const TWITCH_HOST: &str = "id.twitch.tv";

/// Calls to Twitch under way at once, unless configured.
const MAX_IN_FLIGHT: usize = 64;

/// More would only queue on our side.
const MOST_IN_FLIGHT: usize = 1_024;

/// Our application's secret at Twitch.
#[derive(Clone)]
pub struct ClientSecret(Zeroizing<String>);

impl ClientSecret {
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

/// As whom we call Twitch.
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
    pub credentials: Live<Credentials>,
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

impl Reader<'_> {
    pub(super) fn twitch(&mut self) -> Option<TwitchConfig> {
        let credentials = self.live(Secret::Twitch, credentials);
        let id_url = self.twitch_url();
        let max_in_flight = self.number("TWITCH_MAX_IN_FLIGHT", 1, MOST_IN_FLIGHT).unwrap_or(MAX_IN_FLIGHT);
        let max_per_second = self.number("TWITCH_MAX_PER_SECOND", 1, 100_000);
        let ca_file = self.source.get("TWITCH_CA_FILE").map(PathBuf::from);
        if ca_file.is_some() && !id_url.as_ref().is_some_and(has_loopback_host) {
            self.fault("TWITCH_CA_FILE is for a simulated Twitch: it is taken only where TWITCH_ID_URL is on loopback");
        }
        Some(TwitchConfig {
            id_url: id_url?,
            credentials: credentials?,
            max_in_flight,
            max_per_second,
            required_scopes: self.required_scopes(),
            ca_file,
        })
    }

    /// Separated by spaces or commas, as OAuth and people do.
    fn required_scopes(&self) -> Vec<String> {
        let scopes = self.source.get("REQUIRED_SCOPES").unwrap_or_default();
        scopes.split([' ', ',']).filter(|scope| !scope.is_empty()).map(str::to_owned).collect()
    }

    /// Our secret and all tokens go there.
    fn twitch_url(&mut self) -> Option<Url> {
        let is_any_allowed = self.switch(TWITCH_ID_URL_ALLOW).unwrap_or(false);
        let text = self.source.get("TWITCH_ID_URL").unwrap_or(TWITCH_ID_URL);
        let url = Url::parse(text.trim_end_matches('/')).ok().filter(|url| {
            let safe = url.scheme() == "https" || (url.scheme() == "http" && has_loopback_host(url));
            let is_bare = url.username().is_empty() && url.password().is_none();
            safe && is_bare && url.query().is_none() && url.fragment().is_none()
        });
        let Some(url) = url else {
            self.fault("TWITCH_ID_URL is neither an https URL nor an http URL on loopback (without credentials and query)");
            return None;
        };
        if !(is_any_allowed || has_loopback_host(&url) || url.host_str() == Some(TWITCH_HOST)) {
            self.fault(format!(
                "TWITCH_ID_URL leads neither to {TWITCH_HOST} nor to this machine: leave it out; if the client secret and all \
                 tokens are meant to go there, set {TWITCH_ID_URL_ALLOW}=on in the environment itself, where no file can"
            ));
            return None;
        }
        Some(url)
    }
}

fn credentials(reader: &mut Reader<'_>) -> Option<Credentials> {
    let client_id = reader.required("TWITCH_CLIENT_ID", "the application's client id");
    let client_secret = reader.required("TWITCH_CLIENT_SECRET", "the application's client secret");
    Some(Credentials {
        client_id: client_id?.to_owned(),
        client_secret: ClientSecret(Zeroizing::new(client_secret?.to_owned())),
    })
}
