//! Where Twitch is, and the credentials of our application.

use std::path::PathBuf;

use tokens_twitch::{ClientSecret, Credentials, TwitchConfig};
use url::Url;

use super::source::TWITCH_ID_URL_ALLOW;
use super::{Reader, has_loopback_host};

/// Where the real OAuth 2.0 endpoints are.
const TWITCH_ID_URL: &str = "https://id.twitch.tv";

/// Its host.
const TWITCH_HOST: &str = "id.twitch.tv";

/// Calls to Twitch under way at once, unless configured.
const MAX_IN_FLIGHT: usize = 64;

/// More would only queue on our side.
const MOST_IN_FLIGHT: usize = 1_024;

impl Reader<'_> {
    pub(super) fn twitch(&mut self) -> Option<TwitchConfig> {
        let credentials = self.credentials();
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

    fn credentials(&mut self) -> Option<Credentials> {
        let client_id = self.required("TWITCH_CLIENT_ID", "the application's client id");
        let client_secret = self.required("TWITCH_CLIENT_SECRET", "the application's client secret");
        Some(Credentials {
            client_id: client_id?.to_owned(),
            client_secret: ClientSecret::new(client_secret?),
        })
    }
}
