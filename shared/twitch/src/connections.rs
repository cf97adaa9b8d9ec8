//! The connections to Twitch: as many HTTP/2 connections as the calls in flight need, decided by one handshake.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use chrono::{DateTime, Utc};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::dns::GaiResolver;
use hyper_util::client::legacy::connect::{Connection as _, HttpConnector};
use reqwest::Client;
use reqwest::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokens_domain::Clock;
use tokio::time::{Instant, timeout};
use tower::ServiceExt as _;
use url::Url;

use super::{CALL_TIMEOUT, SetUpError, cause};
use crate::config::TwitchConfig;

/// A connection that takes longer will hardly come.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// An HTTP/2 connection on which nothing has arrived for so long is pinged, in use or idle: a host that vanished says
/// nothing, nor does a gateway that forgot the connection.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Without an answer to that it is replaced. Both together are less than [`CALL_TIMEOUT`], so that the calls on a dead
/// connection are not the last to know.
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// An HTTP/2 connection takes as many calls at once; servers often stop at 128.
const CALLS_PER_CONNECTION: usize = 64;

/// One client for each HTTP/2 connection; one client if Twitch only speaks HTTP/1.1, which pools its connections by
/// itself.
///
/// Which of the two is asked once, with a handshake of its own: a client that is left to negotiate opens a
/// connection for every call that is waiting while it does. The connector that makes it is the one that reqwest uses.
pub(super) struct Connections {
    id_url: Url,
    in_flight: usize,
    tls: ClientConfig,
    all: OnceLock<Vec<Connection>>,
    /// When setting them up failed last, and why. Held while it is tried, so that one tries for all who wait.
    failed: tokio::sync::Mutex<Option<(Instant, String)>>,
    next: AtomicUsize,
    clock: Arc<dyn Clock>,
}

/// An HTTP/2 connection, or the pool of those with HTTP/1.1.
pub(super) struct Connection {
    pub(super) client: Client,
    /// When something was answered over it last; at first, when it was prepared. In milliseconds since 1970.
    answered_at: AtomicI64,
}

impl Connection {
    /// Something has been answered over it.
    pub(super) fn answered(&self, now: DateTime<Utc>) {
        self.answered_at.store(now.timestamp_millis(), Ordering::Relaxed);
    }
}

impl Connections {
    /// Connects to nothing yet.
    pub(super) fn new(config: &TwitchConfig, clock: Arc<dyn Clock>) -> Result<Self, SetUpError> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        if let Some(path) = &config.ca_file {
            let fault = |what: &str| SetUpError(format!("TWITCH_CA_FILE {} {what}", path.display()));
            let authorities = CertificateDer::pem_file_iter(path).map_err(|_| fault("can't be read"))?;
            for authority in authorities {
                let authority = authority.map_err(|_| fault("is not PEM"))?;
                roots.add(authority).map_err(|_| fault("holds no certificate"))?;
            }
        }
        let tls = ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(|error| SetUpError(format!("TLS can't be set up: {error}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            id_url: config.id_url.clone(),
            in_flight: config.in_flight(),
            tls,
            all: OnceLock::new(),
            failed: tokio::sync::Mutex::default(),
            next: AtomicUsize::new(0),
            clock,
        })
    }

    /// All, once it is decided how many.
    pub(super) async fn ready(&self) -> Result<&[Connection], String> {
        match self.all.get() {
            Some(connections) => Ok(connections),
            // Boxed: it happens once, and every call would carry its size.
            None => Box::pin(self.set_up()).await,
        }
    }

    /// The connection whose turn it is.
    pub(super) async fn next(&self) -> Result<&Connection, String> {
        let connections = self.ready().await?;
        Ok(&connections[self.next.fetch_add(1, Ordering::Relaxed) % connections.len()])
    }

    /// Since when the one that has had no answer for longest has had none; `None`: nothing is connected.
    pub(super) fn idle_since(&self) -> Option<DateTime<Utc>> {
        let answers = self.all.get()?.iter().map(|one| one.answered_at.load(Ordering::Relaxed));
        answers.min().and_then(DateTime::from_timestamp_millis)
    }

    async fn set_up(&self) -> Result<&[Connection], String> {
        let asked = Instant::now();
        let mut failed = self.failed.lock().await;
        if let Some(connections) = self.all.get() {
            return Ok(connections);
        }
        // Only for those who waited for it: a quick retry is a handshake of its own.
        if let Some((at, reason)) = &*failed
            && *at >= asked
        {
            return Err(reason.clone());
        }
        let connections = self.speaks_http2().await.and_then(|http2| {
            let count = if http2 { self.in_flight.div_ceil(CALLS_PER_CONNECTION) } else { 1 };
            (0..count).map(|_| self.connection(http2)).collect::<Result<_, String>>()
        });
        match connections {
            Ok(connections) => Ok(self.all.get_or_init(|| connections)),
            Err(reason) => {
                *failed = Some((Instant::now(), reason.clone()));
                Err(reason)
            }
        }
    }

    fn connection(&self, http2: bool) -> Result<Connection, String> {
        let mut tls = self.tls.clone();
        tls.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        let builder = Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .http2_keep_alive_while_idle(true)
            .http1_ignore_invalid_headers_in_responses(true)
            // An uncompressed answer can be read even if its end is missing.
            .default_headers(HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]))
            .user_agent(concat!("twitch-token-refresh/", env!("CARGO_PKG_VERSION")));
        let builder = if http2 { builder.http2_prior_knowledge() } else { builder.http1_only() };
        let client =
            builder.build().map_err(|error| format!("the HTTP client can't be set up: {}", cause(&error)))?;
        Ok(Connection { client, answered_at: AtomicI64::new(self.clock.now().timestamp_millis()) })
    }

    async fn speaks_http2(&self) -> Result<bool, String> {
        let url = &self.id_url;
        if url.scheme() != "https" {
            return Ok(false);
        }
        let address = url.as_str().parse().map_err(|_| "TWITCH_ID_URL has no host".to_owned())?;
        let mut tls = self.tls.clone();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let handshake = HttpsConnector::from((tcp(GaiResolver::new()), tls)).oneshot(address);
        match timeout(CONNECT_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => Ok(stream.connected().is_negotiated_h2()),
            Ok(Err(error)) => Err(format!("no connection to Twitch: {}", cause(&*error))),
            Err(_) => Err(format!("no connection to Twitch within {} s", CONNECT_TIMEOUT.as_secs())),
        }
    }
}

/// Tries every address of a name, IPv6 and IPv4 side by side (RFC 8305), and each in its share of the time. reqwest sets
/// its own up in the same way.
fn tcp<R>(resolver: R) -> HttpConnector<R> {
    let mut tcp = HttpConnector::new_with_resolver(resolver);
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

    use hyper::http::Extensions;
    use hyper_util::client::legacy::connect::HttpInfo;
    use hyper_util::client::legacy::connect::dns::Name;
    use tokio::net::{TcpListener, TcpSocket, TcpStream};
    use tower::service_fn;

    use super::*;

    /// An address that never answers an attempt to connect, because its queue is full, for as long as the rest is held.
    async fn silent() -> (SocketAddr, TcpListener, TcpStream) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let queued = TcpStream::connect(address).await.unwrap();
        (address, listener, queued)
    }

    #[tokio::test]
    async fn every_address_of_a_name_is_tried() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (alive, silent) = (listener.local_addr().unwrap(), silent().await);
        let refused = SocketAddr::from((Ipv6Addr::LOCALHOST, 9));
        for addresses in [vec![silent.0, alive], vec![refused, silent.0, alive], vec![refused, alive]] {
            let found = addresses.clone();
            let resolver = service_fn(move |_: Name| {
                let found = found.clone().into_iter();
                async { Ok::<_, Infallible>(found) }
            });
            let connecting = tcp(resolver).oneshot("https://id.twitch.tv".parse().unwrap());
            let stream = timeout(CONNECT_TIMEOUT, connecting).await.unwrap().unwrap();
            let mut extensions = Extensions::new();
            stream.connected().get_extras(&mut extensions);
            assert_eq!(extensions.get::<HttpInfo>().map(HttpInfo::remote_addr), Some(alive), "{addresses:?}");
        }
    }
}
