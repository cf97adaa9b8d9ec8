//! The Twitch client: OAuth 2.0 refresh and validate at `id.twitch.tv`.
//!
//! Status and body become a class here; nothing above sees HTTP. Tokens travel in bodies and headers, never in a
//! URL, and no text that this module makes repeats what was sent or, beyond a few plain words, what was answered.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use chrono::TimeDelta;
use domain::ports::{Grant, Outage, RefreshError, Twitch, Validity};
use domain::refresh::LONGEST_CALL;
use domain::{AccessToken, Clock, RefreshToken, TokenPair};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use url::Url;

use crate::config::TwitchConfig;

/// A connection that takes longer will hardly come.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// From the first byte sent to the last one read. Twitch answers within a second; past ten it won't.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The waits before the two quick retries, which are for what Twitch can't have processed. Half of each is chance,
/// so that calls that failed together don't come back together.
const QUICK_RETRIES: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(800)];

/// An HTTP/2 connection takes as many calls at once; servers often stop at 128.
const CALLS_PER_CONNECTION: usize = 64;

/// After a handshake that failed, nobody tries another for this long: those who waited for it share its outcome.
const HANDSHAKE_PAUSE: Duration = Duration::from_secs(2);

/// The longest silence that we let Twitch ask for; a cycle is over long before.
const LONGEST_SILENCE: Duration = Duration::from_hours(1);

/// Twitch's answers are under 1 KB. What is longer than this is none.
const LONGEST_ANSWER: usize = 64 * 1024;

/// The client. Its connections live as long as it does: a function makes one per invocation, because a connection
/// that slept in a frozen sandbox may be dead without knowing.
pub struct TwitchClient {
    config: TwitchConfig,
    token_url: Url,
    validate_url: Url,
    revoke_url: Url,
    tls: ClientConfig,
    clients: OnceLock<Vec<Client>>,
    /// When setting them up failed last, and why. Held while it is tried, so that one tries for all who wait.
    failed: tokio::sync::Mutex<Option<(Instant, String)>>,
    next_client: AtomicUsize,
    pace: Pace,
    clock: Arc<dyn Clock>,
}

/// The client could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SetUpError(String);

/// When the next call may begin: as `TWITCH_MAX_PER_SECOND` spaces them, and not before Twitch wants any.
struct Pace {
    interval: Option<Duration>,
    times: Mutex<Times>,
}

struct Times {
    /// The next moment that nobody has taken.
    free: Instant,
    /// Twitch has asked for silence until then.
    silent_until: Instant,
}

impl Pace {
    fn new(max_per_second: Option<u32>) -> Self {
        let now = Instant::now();
        let times = Mutex::new(Times { free: now, silent_until: now });
        Self { interval: max_per_second.map(|n| Duration::from_secs(1) / n), times }
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the next free moment, unless Twitch's silence ends only after `latest`: then, when it ends.
    fn take(&self, latest: Instant) -> Result<Instant, Instant> {
        let mut times = self.times();
        if times.silent_until > latest {
            return Err(times.silent_until);
        }
        let moment = times.free.max(times.silent_until).max(Instant::now());
        if let Some(interval) = self.interval {
            times.free = moment + interval;
        }
        Ok(moment)
    }

    /// Nobody calls for this long.
    fn hold(&self, wait: Duration) {
        let mut times = self.times();
        times.silent_until = times.silent_until.max(Instant::now() + wait);
    }
}

/// An answer that was read to its end.
struct Answer {
    status: StatusCode,
    /// How long Twitch asks us to leave it alone.
    wait: Option<Duration>,
    body: Vec<u8>,
}

/// A call without an answer.
enum NoAnswer {
    /// Twitch can't have seen it.
    NotSent(String),
    /// Twitch may have processed it.
    Lost(String),
}

#[derive(Deserialize)]
struct TokenAnswer {
    access_token: String,
    refresh_token: Option<String>,
    /// Whatever its type: a pair must not be lost over it.
    expires_in: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct ValidateAnswer {
    expires_in: i64,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    message: String,
}

impl TwitchClient {
    /// Prepares the client. Nothing is connected yet.
    ///
    /// # Errors
    ///
    /// If `TWITCH_CA_FILE` can't be read.
    pub fn new(config: TwitchConfig, clock: Arc<dyn Clock>) -> Result<Self, SetUpError> {
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
        let url = |path: &str| {
            let url = format!("{}{path}", config.id_url.as_str().trim_end_matches('/'));
            url.parse().map_err(|_| SetUpError("TWITCH_ID_URL can't be a base".to_owned()))
        };
        let (token_url, validate_url, revoke_url) =
            (url("/oauth2/token")?, url("/oauth2/validate")?, url("/oauth2/revoke")?);
        let pace = Pace::new(config.max_per_second);
        Ok(Self {
            token_url,
            validate_url,
            revoke_url,
            config,
            tls,
            clients: OnceLock::new(),
            failed: tokio::sync::Mutex::default(),
            next_client: AtomicUsize::new(0),
            pace,
            clock,
        })
    }

    /// Takes an access token back, as when a streamer revokes its authorization. One that is dead already is fine.
    ///
    /// # Errors
    ///
    /// [`RefreshError::Outage`] and [`RefreshError::Misconfigured`].
    pub async fn revoke(&self, token: &AccessToken) -> Result<(), RefreshError> {
        let form = [("client_id", self.config.client_id.as_str()), ("token", token.expose())];
        let answer = self.call(|client| client.post(self.revoke_url.clone()).form(&form)).await?;
        let message = answer.message();
        match answer.status {
            StatusCode::OK => Ok(()),
            StatusCode::BAD_REQUEST if names(message.as_deref(), &["token"]) => Ok(()),
            StatusCode::NOT_FOUND if names(message.as_deref(), &["client"]) => {
                Err(RefreshError::Misconfigured(answer.refused_credentials()))
            }
            _ => Err(answer.outage().into()),
        }
    }

    /// One call with its quick retries, within [`LONGEST_CALL`].
    async fn call(&self, request: impl Fn(&Client) -> RequestBuilder) -> Result<Answer, Outage> {
        // From here on a call that began could not end in time.
        let latest = Instant::now() + LONGEST_CALL.to_std().unwrap_or_default() - CALL_TIMEOUT;
        let mut pauses = QUICK_RETRIES.into_iter();
        loop {
            let slot = self.pace.take(latest).map_err(|slot| {
                Outage(format!(
                    "Twitch is not to be called for another {} s",
                    (slot - Instant::now()).as_secs()
                ))
            })?;
            sleep_until(slot).await;
            let (failed, wait) = match self.send(&request).await {
                Ok(answer) if is_busy(answer.status) => {
                    if let Some(wait) = answer.wait {
                        self.pace.hold(wait);
                    }
                    (answer.outage(), answer.wait)
                }
                Ok(answer) => return Ok(answer),
                Err(NoAnswer::NotSent(reason)) => (Outage(reason), None),
                Err(NoAnswer::Lost(reason)) => return Err(Outage(reason)),
            };
            let Some(pause) = pauses.next() else { return Err(failed) };
            let again = Instant::now() + wait.unwrap_or_else(|| with_jitter(pause));
            if again > latest {
                return Err(failed);
            }
            sleep_until(again).await;
        }
    }

    async fn send(&self, request: impl Fn(&Client) -> RequestBuilder) -> Result<Answer, NoAnswer> {
        let clients = self.clients().await.map_err(NoAnswer::NotSent)?;
        let client = &clients[self.next_client.fetch_add(1, Ordering::Relaxed) % clients.len()];
        let mut response = request(client).send().await.map_err(|error| no_answer(&error))?;
        let status = response.status();
        let wait = self.asked_to_wait(response.headers());
        let body = read(&mut response).await?;
        Ok(Answer { status, wait, body })
    }

    /// `Retry-After` in seconds or, without one, `Ratelimit-Reset` as the second in which the limit ends.
    fn asked_to_wait(&self, headers: &HeaderMap) -> Option<Duration> {
        let number = |value: Option<&HeaderValue>| value?.to_str().ok()?.trim().parse::<i64>().ok();
        let seconds = number(headers.get(RETRY_AFTER)).or_else(|| {
            let reset = number(headers.get("ratelimit-reset"))?;
            Some(reset.saturating_sub(self.clock.now().timestamp()))
        })?;
        Some(Duration::from_secs(seconds.try_into().unwrap_or(0)).min(LONGEST_SILENCE))
    }

    /// One client for each HTTP/2 connection that the configured calls in flight need; one client if Twitch only
    /// speaks HTTP/1.1, which pools its connections by itself.
    ///
    /// Which of the two is asked once, with a handshake of its own: a client that is left to negotiate opens a
    /// connection for every call that is waiting while it does.
    async fn clients(&self) -> Result<&[Client], String> {
        if let Some(clients) = self.clients.get() {
            return Ok(clients);
        }
        // Boxed: it happens once, and every call would carry its size.
        Box::pin(self.set_up()).await
    }

    async fn set_up(&self) -> Result<&[Client], String> {
        let mut failed = self.failed.lock().await;
        if let Some(clients) = self.clients.get() {
            return Ok(clients);
        }
        if let Some((at, reason)) = &*failed
            && at.elapsed() < HANDSHAKE_PAUSE
        {
            return Err(reason.clone());
        }
        let clients = self.speaks_http2().await.and_then(|http2| {
            let connections = if http2 { self.config.in_flight().div_ceil(CALLS_PER_CONNECTION) } else { 1 };
            (0..connections).map(|_| self.client(http2)).collect::<Result<_, String>>()
        });
        match clients {
            Ok(clients) => Ok(self.clients.get_or_init(|| clients)),
            Err(reason) => {
                *failed = Some((Instant::now(), reason.clone()));
                Err(reason)
            }
        }
    }

    fn client(&self, http2: bool) -> Result<Client, String> {
        let mut tls = self.tls.clone();
        tls.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        let builder = Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("twitch-token-refresh/", env!("CARGO_PKG_VERSION")));
        let builder = if http2 { builder.http2_prior_knowledge() } else { builder.http1_only() };
        builder.build().map_err(|error| format!("the HTTP client can't be set up: {}", cause(&error)))
    }

    async fn speaks_http2(&self) -> Result<bool, String> {
        let url: &Url = &self.config.id_url;
        if url.scheme() != "https" {
            return Ok(false);
        }
        let host = url.host_str().unwrap_or_default();
        let place = (host.trim_matches(['[', ']']), url.port_or_known_default().unwrap_or(443));
        let mut tls = self.tls.clone();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let handshake = async {
            let name = ServerName::try_from(place.0.to_owned()).map_err(std::io::Error::other)?;
            let tcp = TcpStream::connect(place).await?;
            let stream = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await?;
            Ok::<_, std::io::Error>(stream.get_ref().1.alpn_protocol() == Some(b"h2"))
        };
        match timeout(CONNECT_TIMEOUT, handshake).await {
            Ok(Ok(http2)) => Ok(http2),
            Ok(Err(error)) => Err(format!("no connection to Twitch: {error}")),
            Err(_) => Err(format!("no connection to Twitch within {} s", CONNECT_TIMEOUT.as_secs())),
        }
    }
}

impl Twitch for TwitchClient {
    async fn connect(&self) {
        let _ = self.clients().await;
    }

    async fn refresh(&self, token: &RefreshToken) -> Result<Grant, RefreshError> {
        let form = [
            ("client_id", self.config.client_id.as_str()),
            ("client_secret", self.config.client_secret.expose()),
            ("grant_type", "refresh_token"),
            ("refresh_token", token.expose()),
        ];
        let answer = self.call(|client| client.post(self.token_url.clone()).form(&form)).await?;
        answer.into_grant(token)
    }

    async fn validate(&self, token: &AccessToken) -> Result<Validity, Outage> {
        let Ok(mut header) = HeaderValue::from_str(&format!("OAuth {}", token.expose())) else {
            // No access token of Twitch's has such characters.
            return Ok(Validity::Invalid);
        };
        header.set_sensitive(true);
        let request =
            |client: &Client| client.get(self.validate_url.clone()).header(AUTHORIZATION, header.clone());
        self.call(request).await?.into_validity()
    }
}

impl Answer {
    fn into_grant(self, sent: &RefreshToken) -> Result<Grant, RefreshError> {
        let message = self.message();
        let message = message.as_deref();
        match self.status {
            StatusCode::OK => {
                let answer: TokenAnswer = serde_json::from_slice(&self.body)
                    .ok()
                    .filter(|answer: &TokenAnswer| !answer.access_token.is_empty())
                    .ok_or_else(|| self.outage())?;
                let refresh = answer.refresh_token.filter(|token| !token.is_empty());
                Ok(Grant {
                    pair: TokenPair {
                        access: AccessToken::new(answer.access_token),
                        refresh: refresh.map_or_else(|| sent.clone(), RefreshToken::new),
                    },
                    expires_in: answer.expires_in.and_then(|value| lifetime(value.as_i64()?)),
                })
            }
            StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN if names(message, &["client"]) => {
                Err(RefreshError::Misconfigured(self.refused_credentials()))
            }
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED if names(message, &["invalid", "token"]) => {
                Err(RefreshError::Refused(self.told()))
            }
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED if names(message, &["invalid", "grant"]) => {
                Err(RefreshError::Refused(self.told()))
            }
            _ => Err(self.outage().into()),
        }
    }

    fn into_validity(self) -> Result<Validity, Outage> {
        match self.status {
            StatusCode::OK => serde_json::from_slice(&self.body)
                .ok()
                .and_then(|answer: ValidateAnswer| lifetime(answer.expires_in))
                .map(|expires_in| Validity::Valid { expires_in })
                .ok_or_else(|| self.outage()),
            StatusCode::UNAUTHORIZED if names(self.message().as_deref(), &["invalid", "token"]) => {
                Ok(Validity::Invalid)
            }
            _ => Err(self.outage()),
        }
    }

    /// Twitch's own words, if they are plain ones: a token or a secret never is.
    fn message(&self) -> Option<String> {
        const LONGEST: usize = 100;
        const LONGEST_WORD: usize = 20;
        let ErrorAnswer { message } = serde_json::from_slice(&self.body).ok()?;
        let plain = message.len() <= LONGEST
            && message.split(' ').all(|word| {
                word.len() <= LONGEST_WORD
                    && word.chars().all(|c| c.is_ascii_alphabetic() || ",.'_".contains(c))
            });
        plain.then_some(message)
    }

    fn told(&self) -> String {
        match self.message() {
            Some(message) => format!("Twitch answered {}: {message}", self.status.as_u16()),
            None => format!("Twitch answered {} with a body that we can't read", self.status.as_u16()),
        }
    }

    fn outage(&self) -> Outage {
        Outage(self.told())
    }

    fn refused_credentials(&self) -> String {
        format!("{}: check TWITCH_CLIENT_ID and TWITCH_CLIENT_SECRET", self.told())
    }
}

/// Whether the message has all these words, in any case.
fn names(message: Option<&str>, words: &[&str]) -> bool {
    message.is_some_and(|message| {
        let message = message.to_ascii_lowercase();
        words.iter().all(|word| message.contains(word))
    })
}

/// A lifetime in seconds that a token can have; anything else is no answer.
fn lifetime(seconds: i64) -> Option<TimeDelta> {
    const LONGEST: i64 = 10 * 365 * 24 * 3600;
    (0..=LONGEST).contains(&seconds).then(|| TimeDelta::seconds(seconds))
}

fn is_busy(status: StatusCode) -> bool {
    matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
}

async fn read(response: &mut Response) -> Result<Vec<u8>, NoAnswer> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| no_answer(&error))? {
        body.extend_from_slice(&chunk);
        if body.len() > LONGEST_ANSWER {
            return Err(NoAnswer::Lost(format!(
                "Twitch answered {} with more than {} KB",
                response.status().as_u16(),
                LONGEST_ANSWER / 1024
            )));
        }
    }
    Ok(body)
}

fn no_answer(error: &reqwest::Error) -> NoAnswer {
    if error.is_connect() {
        return NoAnswer::NotSent(format!("no connection to Twitch: {}", cause(error)));
    }
    NoAnswer::Lost(if error.is_timeout() {
        format!("Twitch did not answer within {} s", CALL_TIMEOUT.as_secs())
    } else {
        format!("Twitch's answer broke off: {}", cause(error))
    })
}

/// The innermost error, which says what happened; the outer ones say in which layer. None holds a body or a header.
fn cause(error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Between half of the pause and all of it.
pub(crate) fn with_jitter(pause: Duration) -> Duration {
    let chance = getrandom::u32().map_or(0.5, |n| f64::from(n) / f64::from(u32::MAX));
    pause.mul_f64(0.5 + chance / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_spaced_however_many_wait() {
        let pace = Pace::new(Some(4));
        let latest = Instant::now() + CALL_TIMEOUT;
        let moments: Vec<_> = (0..100).map(|_| pace.take(latest).unwrap()).collect();
        assert!(moments.windows(2).all(|pair| pair[1] - pair[0] >= Duration::from_millis(250)));
    }

    #[test]
    fn twitch_is_left_alone_for_as_long_as_it_asks() {
        let pace = Pace::new(None);
        let now = Instant::now();
        pace.hold(Duration::from_secs(5));
        assert!(pace.take(now + CALL_TIMEOUT).unwrap() >= now + Duration::from_secs(5));
        pace.hold(Duration::from_mins(1));
        pace.hold(Duration::from_secs(1));
        assert!(pace.take(now + CALL_TIMEOUT).unwrap_err() >= now + Duration::from_mins(1));
    }

    #[test]
    fn only_plain_words_of_twitchs_are_repeated() {
        let message = |body: &str| {
            Answer { status: StatusCode::BAD_REQUEST, wait: None, body: body.as_bytes().to_vec() }.message()
        };
        assert_eq!(
            message(r#"{"message":"Invalid refresh token"}"#).as_deref(),
            Some("Invalid refresh token")
        );
        assert_eq!(message(r#"{"message":"token 0123456789abcdefghij is invalid"}"#), None);
        assert_eq!(message("<html>"), None);
    }
}
