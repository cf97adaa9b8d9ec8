//! What every request passes that is not a check of the server: its host, its key, and the limits.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, HOST};
use axum::middleware::Next;
use axum::response::Response;
use tokens_api::{Context, Problem};
use tokens_domain::CampaignId;
use tokens_service::Host;
use tokens_service::config::ServeConfig;
use tokens_service::keys::{ApiKey, ApiKeys, Right};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use uuid::Uuid;

use super::names::Names;

/// Where Prometheus asks.
pub const METRICS: &str = "/metrics";

/// Requests that are answered at the same time; those beyond are sent away at once. They wait for four connections to the database,
/// which answer some thousands a second.
const MAX_IN_FLIGHT: u32 = 256;

/// A grant or a check is answered within 25 s by itself.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The address that a request has come from.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

pub struct Door {
    names: Names,
    keys: ApiKeys,
    proxies: Vec<ipnet::IpNet>,
    host: Arc<Host>,
    in_flight: Arc<Semaphore>,
}

impl Door {
    pub fn new(config: ServeConfig, names: Names, host: Arc<Host>) -> Self {
        let ServeConfig { keys, public, trusted_proxies: proxies, delivers: _ } = config;
        let in_flight = Arc::new(Semaphore::new(MAX_IN_FLIGHT as usize));
        Self { names: names.and(public), keys, proxies, host, in_flight }
    }

    /// Waits until no request is being answered.
    pub async fn all_answered(&self) {
        // It is never closed.
        let _ = self.in_flight.acquire_many(MAX_IN_FLIGHT).await;
    }

    /// Who asks, by the one key that the request has.
    pub fn caller(&self, request: &Request) -> Result<&ApiKey, Problem> {
        let key = one(request.headers(), AUTHORIZATION.as_str()).and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| self.keys.find(key.trim()))?
        });
        key.ok_or(Problem::KeyMissing)
    }

    fn check(&self, request: &Request) -> Result<(&ApiKey, OwnedSemaphorePermit), Problem> {
        if !self.host_of(request).is_some_and(|host| self.names.include(host)) {
            return Err(Problem::UnknownHost);
        }
        let key = self.caller(request)?;
        let path = request.uri().path();
        let needed = if path == METRICS { &[Right::View, Right::Operate][..] } else { &[Right::Api] };
        if !key.has_one_of(needed) {
            return Err(Problem::RightMissing);
        }
        if !key.reaches(campaign_in(path)) {
            return Err(Problem::CampaignForbidden);
        }
        // While the database was never there, only the loop that opens the service waits for it.
        if path != METRICS && self.host.opened().is_none() {
            return Err(Problem::DatabaseUnavailable);
        }
        let permit = self.in_flight.clone().try_acquire_owned().map_err(|_| Problem::TooManyRequests)?;
        Ok((key, permit))
    }

    /// The host that a request is for, as the client wrote it.
    fn host_of<'a>(&self, request: &'a Request) -> Option<&'a str> {
        let forwarded =
            if self.trusts(peer(request)?) { last(request.headers(), "x-forwarded-host") } else { None };
        let asked = || request.uri().authority().map(axum::http::uri::Authority::as_str);
        forwarded.or_else(asked).or_else(|| one(request.headers(), HOST.as_str()))
    }

    /// The client's address: that of the connection, or behind trusted proxies the last one that they have not written themselves.
    fn client_of(&self, request: &Request) -> Option<IpAddr> {
        let mut client = peer(request)?;
        let written = request.headers().get_all("x-forwarded-for").iter();
        let written: Vec<_> =
            written.filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(',')).collect();
        for address in written.into_iter().rev() {
            if !self.trusts(client) {
                break;
            }
            let Ok(address) = address.trim().parse::<IpAddr>() else { break };
            client = address.to_canonical();
        }
        Some(client)
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.proxies.iter().any(|proxy| proxy.contains(&address))
    }
}

/// Lets a request in, or says why not. What it asks for is finished even if the client goes away: a pair that Twitch has rotated would
/// otherwise be lost.
pub async fn admit(State(door): State<Arc<Door>>, mut request: Request, next: Next) -> Response {
    let request_id = Uuid::new_v4().to_string();
    let client = door.client_of(&request);
    let (caller, permit) = match door.check(&request) {
        Ok((key, permit)) => (key.caller(), permit),
        Err(problem) => {
            let client = client.map(tracing::field::display);
            let caller = door.caller(&request).ok().map(|key| key.name.as_str());
            tracing::warn!(
                request_id,
                client,
                caller,
                path = request.uri().path(),
                ?problem,
                "request refused"
            );
            return problem.answer(&request_id);
        }
    };
    request.extensions_mut().insert(Context {
        caller,
        request_id: request_id.clone(),
        client,
        deadline: None,
    });
    let answering = tokio::spawn(async move {
        let _permit = permit;
        next.run(request).await
    });
    match timeout(REQUEST_TIMEOUT, answering).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => Problem::Internal.answer(&request_id),
        Err(_) => {
            tracing::error!(request_id, "no answer within {} s", REQUEST_TIMEOUT.as_secs());
            Problem::TimedOut.answer(&request_id)
        }
    }
}

fn peer(request: &Request) -> Option<IpAddr> {
    request.extensions().get().map(|Peer(address)| address.ip().to_canonical())
}

/// The value of a header that may be there once.
fn one<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}

/// The last value in a header's list: that of the proxy nearest to us.
fn last<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get_all(name).iter().next_back()?.to_str().ok()?.rsplit(',').next().map(str::trim)
}

/// The campaign that a path names, if it is written plainly.
fn campaign_in(path: &str) -> Option<CampaignId> {
    let id = path.strip_prefix("/campaigns/")?.split('/').next()?;
    Uuid::try_parse(id).ok().map(CampaignId)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use tokens_service::Process;
    use tokens_service::config::{PublicName, Source};

    use super::*;

    fn door() -> Door {
        let none: [(&str, &str); 0] = [];
        let host = Arc::new(Host::new(Source::from_iter(none), Process::default()));
        let public = PublicName { host: "tokens.example.com".to_owned(), port: 443, is_default_port: true };
        let config = ServeConfig {
            keys: ApiKeys::default(),
            public: Some(public),
            trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()],
            delivers: false,
        };
        Door::new(config, Names::listening(8080), host)
    }

    fn request(peer: &str, headers: &[(&str, &str)]) -> Request {
        let mut request = Request::builder().uri("/").header("host", "localhost:8080");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let peer = Peer(format!("{peer}:50000").parse().unwrap());
        request.extension(peer).body(Body::empty()).unwrap()
    }

    #[test]
    fn only_trusted_proxies_name_the_client_and_the_host() {
        let door = door();
        let forwarded = [
            ("x-forwarded-for", "6.6.6.6, 203.0.113.7, 10.0.0.9"),
            ("x-forwarded-host", "tokens.example.com"),
        ];
        let seen = |peer: &str, headers: &[(&str, &str)]| {
            let request = request(peer, headers);
            (door.client_of(&request).unwrap().to_string(), door.host_of(&request).unwrap().to_owned())
        };
        let behind = ("203.0.113.7".to_owned(), "tokens.example.com".to_owned());
        assert_eq!(seen("10.0.0.1", &forwarded), behind);
        assert_eq!(seen("[::ffff:10.0.0.1]", &forwarded), behind);
        assert_eq!(seen("192.0.2.1", &forwarded), ("192.0.2.1".to_owned(), "localhost:8080".to_owned()));
        assert_eq!(seen("10.0.0.1", &[]), ("10.0.0.1".to_owned(), "localhost:8080".to_owned()));
        assert_eq!(seen("10.0.0.1", &[("x-forwarded-for", "nonsense")]).0, "10.0.0.1");
        let twice = [("x-forwarded-host", "evil.example.com, tokens.example.com")];
        assert_eq!(seen("10.0.0.1", &twice).1, "tokens.example.com", "what the proxy added");
    }

    #[test]
    fn a_path_names_its_campaign_plainly_or_not_at_all() {
        let id = "5c0e7a52-3a35-4b7c-9a8b-0f6d2a1c9e11";
        let found = |path: String| campaign_in(&path).map(|campaign| campaign.to_string());
        assert_eq!(found(format!("/campaigns/{id}/health-check")).as_deref(), Some(id));
        for path in [
            format!("/campaigns/%35{}/health-check", &id[1..]),
            format!("//campaigns/{id}/health-check"),
            format!("/streamers/{id}/authorizations"),
            "/campaigns/".to_owned(),
            METRICS.to_owned(),
        ] {
            assert_eq!(found(path.clone()), None, "{path}");
        }
    }
}
