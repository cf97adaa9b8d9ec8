//! The Twitch client: OAuth 2.0 refresh and validate at `id.twitch.tv`.
//!
//! Status and body become a class here (`answer`); nothing above sees HTTP. Tokens travel in bodies and headers, never in
//! a URL, and no text that this module makes repeats what was sent or, beyond a few plain words, what was answered.

#![warn(missing_docs)]

mod answer;
mod body;
mod config;
mod connections;
mod device;
mod pace;
#[cfg(test)]
mod wire_tests;

use std::error::Error;
use std::iter;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, StatusCode};
use tokens_domain::ports::{
    Outage, Permit, Priority, RefreshError, TokenResponse, Twitch, Validity, Withheld,
};
use tokens_domain::refresh::MAX_CALL;
use tokens_domain::{AccessToken, Clock, RefreshToken};
use tokio::time::{Instant, sleep_until, timeout_at};
use url::Url;

use self::answer::Answer;
use self::body::Body;
pub use self::config::{ClientSecret, Credentials, TwitchConfig};
use self::connections::Connections;
pub use self::device::{Device, DeviceCode, DeviceError, Owner};
use self::pace::{Endpoint, Pace};
use tokens_telemetry::metrics::Metric;

/// From the first byte sent to the last one read. Twitch answers within a second; past ten it won't.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The waits before the two quick retries, which are for what Twitch can't have processed. They come after what Twitch
/// asks for, if it does, and half of each is chance, so that calls that failed together don't come back together.
const QUICK_RETRIES: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(800)];

/// The longest silence that we let Twitch ask for; a cycle is over long before.
const MAX_SILENCE: Duration = Duration::from_hours(1);

/// The client. Its connections live as long as it does: a function keeps one only while it is warm, because a
/// connection that slept in a frozen sandbox may be dead without knowing.
pub struct TwitchClient {
    config: TwitchConfig,
    device_url: Url,
    token_url: Url,
    validate_url: Url,
    revoke_url: Url,
    connections: Connections,
    pace: Arc<Pace>,
    clock: Arc<dyn Clock>,
}

/// The client could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SetUpError(String);

/// A call without an answer that counts.
enum CallError {
    /// It was not allowed any more.
    Withheld(Withheld),
    /// Twitch can't have processed it.
    NotProcessed(String),
    /// Twitch may have processed it.
    Lost(String),
}

impl From<CallError> for RefreshError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Withheld(withheld) => withheld.into(),
            CallError::NotProcessed(reason) | CallError::Lost(reason) => Outage(reason).into(),
        }
    }
}

impl From<CallError> for Outage {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Withheld(withheld) => Self(withheld.to_string()),
            CallError::NotProcessed(reason) | CallError::Lost(reason) => Self(reason),
        }
    }
}

impl TwitchClient {
    /// Prepares the client. Nothing is connected yet.
    ///
    /// # Errors
    ///
    /// If `TWITCH_CA_FILE` can't be read.
    pub fn new(config: TwitchConfig, clock: Arc<dyn Clock>) -> Result<Self, SetUpError> {
        let url = |path: &str| {
            let url = format!("{}{path}", config.id_url.as_str().trim_end_matches('/'));
            url.parse().map_err(|_| SetUpError("TWITCH_ID_URL can't be a base".to_owned()))
        };
        let (token_url, validate_url, revoke_url) =
            (url("/oauth2/token")?, url("/oauth2/validate")?, url("/oauth2/revoke")?);
        let device_url = url("/oauth2/device")?;
        let connections = Connections::new(&config, clock.clone())?;
        let pace = Arc::new(Pace::new(config.max_per_second));
        Ok(Self { config, device_url, token_url, validate_url, revoke_url, connections, pace, clock })
    }

    /// The same client with new connections, at the same pace.
    ///
    /// # Errors
    ///
    /// As [`TwitchClient::new`].
    pub fn reconnected(&self) -> Result<Self, SetUpError> {
        let client = Self::new(self.config.clone(), self.clock.clone())?;
        Ok(Self { pace: self.pace.clone(), ..client })
    }

    /// Since when the connection that has had no answer for longest has had none; `None`: nothing is connected.
    #[must_use]
    pub fn idle_since(&self) -> Option<DateTime<Utc>> {
        self.connections.idle_since()
    }

    /// Asks for an access token of our application's own, which proves its id and its secret and touches no streamer's.
    /// The caller takes it back ([`revoke`](Self::revoke)).
    ///
    /// # Errors
    ///
    /// [`RefreshError::Outage`] and [`RefreshError::Misconfigured`].
    pub async fn application_token(&self) -> Result<AccessToken, RefreshError> {
        let credentials = &self.config.credentials;
        let form = [
            ("client_id", credentials.client_id.as_str()),
            ("client_secret", credentials.client_secret.expose()),
            ("grant_type", "client_credentials"),
        ];
        let request = |client: &Client| client.post(self.token_url.clone()).form(&form);
        let permit = &Permit::UNCONDITIONAL;
        let answer = self.call(Endpoint::Token, Priority::Vital, latest(), permit, request).await?;
        answer.into_application_token()
    }

    /// Takes an access token back, as when a streamer revokes its authorization. One that is dead already is fine.
    ///
    /// # Errors
    ///
    /// [`RefreshError::Outage`] and [`RefreshError::Misconfigured`].
    pub async fn revoke(&self, token: &AccessToken) -> Result<(), RefreshError> {
        let credentials = &self.config.credentials;
        let form = [("client_id", credentials.client_id.as_str()), ("token", token.expose())];
        let request = |client: &Client| client.post(self.revoke_url.clone()).form(&form);
        let permit = &Permit::UNCONDITIONAL;
        self.call(Endpoint::Revoke, Priority::Vital, latest(), permit, request).await?.into_revocation()
    }

    /// One call with its quick retries, none of which begins after `latest` or without the permit.
    async fn call(
        &self,
        endpoint: Endpoint,
        priority: Priority,
        latest: Instant,
        permit: &Permit<'_>,
        request: impl Fn(&Client) -> RequestBuilder,
    ) -> Result<Answer, CallError> {
        let mut pauses = QUICK_RETRIES.into_iter();
        loop {
            let turn = tokio::select! {
                turn = self.pace.turn(endpoint, priority, latest) => turn,
                // The permit is refused below.
                () = permit.withdrawn() => Ok(()),
            };
            turn.map_err(|moment| {
                let seconds = moment.saturating_duration_since(Instant::now()).as_secs();
                CallError::NotProcessed(format!("Twitch is not to be called for another {seconds} s"))
            })?;
            let (reason, wait) = match self.send(permit, &request).await {
                Ok(answer) if is_busy(answer.status) => {
                    if let Some(wait) = answer.wait {
                        self.pace.hold(endpoint, wait);
                    }
                    (answer.outage().0, answer.wait)
                }
                Ok(answer) => return Ok(answer),
                Err(CallError::NotProcessed(reason)) => (reason, None),
                Err(error) => return Err(error),
            };
            let again = pauses.next().map(|pause| Instant::now() + wait_before_retry(wait, pause));
            let Some(again) = again.filter(|again| *again <= latest) else {
                return Err(CallError::NotProcessed(reason));
            };
            pause_until(again, permit).await;
        }
    }

    async fn send(
        &self,
        permit: &Permit<'_>,
        request: impl Fn(&Client) -> RequestBuilder,
    ) -> Result<Answer, CallError> {
        let connection = self.connections.next().await.map_err(CallError::NotProcessed)?;
        // Here, after the last pause.
        permit.check().map_err(CallError::Withheld)?;
        let sent = Instant::now();
        let mut response = request(&connection.client).send().await.map_err(|error| no_answer(&error))?;
        let status = response.status();
        let wait = asked_to_wait(response.headers(), self.clock.now());
        let body = Body::read(&mut response).await;
        if body.cut_short.is_none() {
            connection.answered(self.clock.now());
        }
        Metric::TwitchLatency.record(sent.elapsed().as_secs_f64() * 1_000.0);
        Ok(Answer { status, wait, body })
    }
}

impl Twitch for TwitchClient {
    async fn connect(&self) {
        let _ = self.connections.ready().await;
    }

    async fn refresh(
        &self,
        token: &RefreshToken,
        permit: &Permit<'_>,
    ) -> Result<TokenResponse, RefreshError> {
        let credentials = &self.config.credentials;
        let form = [
            ("client_id", credentials.client_id.as_str()),
            ("client_secret", credentials.client_secret.expose()),
            ("grant_type", "refresh_token"),
            ("refresh_token", token.expose()),
        ];
        let request = |client: &Client| client.post(self.token_url.clone()).form(&form);
        let answer = self.call(Endpoint::Token, Priority::Vital, latest(), permit, request).await?;
        answer.into_token_response(token, &self.config.required_scopes)
    }

    fn client_id(&self) -> String {
        self.config.credentials.client_id.clone()
    }

    async fn validate(
        &self,
        token: &AccessToken,
        priority: Priority,
        permit: &Permit<'_>,
    ) -> Result<Validity, Outage> {
        let Ok(mut header) = HeaderValue::from_str(&format!("OAuth {}", token.expose())) else {
            // No access token of Twitch's has such characters.
            return Ok(Validity::Invalid);
        };
        header.set_sensitive(true);
        let request =
            |client: &Client| client.get(self.validate_url.clone()).header(AUTHORIZATION, header.clone());
        let answer = self.call(Endpoint::Validate, priority, latest(), permit, request).await?;
        answer.into_validity(&self.config.required_scopes)
    }
}

/// A client that events share while it is warm, as one of them calls it: within its time, if it has one.
pub struct Bounded {
    client: Arc<TwitchClient>,
    until: Option<Instant>,
}

impl Bounded {
    /// Every call ends by `until`.
    #[must_use]
    pub fn new(client: Arc<TwitchClient>, until: Option<Instant>) -> Self {
        Self { client, until }
    }

    async fn in_time<A, E: From<Outage>>(&self, call: impl Future<Output = Result<A, E>>) -> Result<A, E> {
        let Some(until) = self.until else { return call.await };
        let late =
            |_| Err(Outage("Twitch did not answer in the time that the request had".to_owned()).into());
        timeout_at(until, call).await.unwrap_or_else(late)
    }
}

impl Twitch for Bounded {
    async fn connect(&self) {
        self.client.connect().await;
    }

    async fn refresh(
        &self,
        token: &RefreshToken,
        permit: &Permit<'_>,
    ) -> Result<TokenResponse, RefreshError> {
        self.in_time(self.client.refresh(token, permit)).await
    }

    fn client_id(&self) -> String {
        self.client.client_id()
    }

    async fn validate(
        &self,
        token: &AccessToken,
        priority: Priority,
        permit: &Permit<'_>,
    ) -> Result<Validity, Outage> {
        self.in_time(self.client.validate(token, priority, permit)).await
    }
}

/// A pause that ends early if the work is asked to stop.
async fn pause_until(moment: Instant, permit: &Permit<'_>) {
    tokio::select! {
        () = sleep_until(moment) => {}
        () = permit.withdrawn() => {}
    }
}

/// From here on a call that began could not end within [`MAX_CALL`].
fn latest() -> Instant {
    Instant::now() + MAX_CALL.to_std().unwrap_or_default() - CALL_TIMEOUT
}

fn is_busy(status: StatusCode) -> bool {
    matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
}

/// `Retry-After` or, without one that can be read, `Ratelimit-Reset` as the second in which the limit ends.
fn asked_to_wait(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok();
    let wait =
        text(RETRY_AFTER.as_str()).and_then(|text| tokens_domain::retry_after(text, now)).or_else(|| {
            let reset: i64 = text("ratelimit-reset")?.trim().parse().ok()?;
            let left = reset.saturating_sub(now.timestamp()).max(0);
            Some(TimeDelta::try_seconds(left).unwrap_or(TimeDelta::MAX))
        })?;
    Some(wait.to_std().unwrap_or(Duration::ZERO).min(MAX_SILENCE))
}

fn no_answer(error: &reqwest::Error) -> CallError {
    if error.is_connect() {
        return CallError::NotProcessed(format!("no connection to Twitch: {}", cause(error)));
    }
    CallError::Lost(no_end(error))
}

/// Why an answer did not come, or not to its end.
fn no_end(error: &reqwest::Error) -> String {
    // A connection that has no answer to a ping is timed out as well.
    let is_dead = causes(error).any(<dyn Error>::is::<hyper::Error>);
    if error.is_timeout() && !is_dead {
        format!("Twitch did not answer within {} s", CALL_TIMEOUT.as_secs())
    } else {
        format!("Twitch's answer broke off: {}", cause(error))
    }
}

/// The innermost error, which says what happened; the outer ones say in which layer. None holds a body or a header.
fn cause(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map_or_else(String::new, ToString::to_string)
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |&error| error.source())
}

/// What a quick retry waits: what Twitch asks for, which is the same for all and may be nothing, and then this pause.
fn wait_before_retry(asked: Option<Duration>, pause: Duration) -> Duration {
    asked.unwrap_or_default() + with_jitter(pause)
}

/// Between half of the pause and all of it.
pub(crate) fn with_jitter(pause: Duration) -> Duration {
    let chance = getrandom::u32().map_or(0.5, |n| f64::from(n) / f64::from(u32::MAX));
    pause.mul_f64(0.5 + chance / 2.0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn twitch_may_ask_for_silence_in_seconds_as_a_date_or_by_its_own_header() {
        let now = "2026-11-23T04:00:00Z".parse().unwrap();
        let asked = |pairs: &[(&'static str, &str)]| {
            let headers =
                pairs.iter().map(|(name, value)| ((*name).parse().unwrap(), value.parse().unwrap()));
            asked_to_wait(&headers.collect(), now)
        };
        let (date, past) = ("Mon, 23 Nov 2026 04:00:30 GMT", "Mon, 23 Nov 2026 03:00:00 GMT");
        let reset = (now.timestamp() + 20).to_string();
        for (headers, seconds) in [
            (vec![("retry-after", "30")], Some(30)),
            (vec![("retry-after", date)], Some(30)),
            (vec![("retry-after", past)], Some(0)),
            (vec![("retry-after", "99999999999999999999999")], Some(3_600)),
            (vec![("ratelimit-reset", reset.as_str())], Some(20)),
            (vec![("ratelimit-reset", "9223372036854775807")], Some(3_600)),
            (vec![("ratelimit-reset", "0")], Some(0)),
            (vec![("retry-after", date), ("ratelimit-reset", reset.as_str())], Some(30)),
            (vec![("retry-after", "soon"), ("ratelimit-reset", reset.as_str())], Some(20)),
            (vec![("retry-after", "soon")], None),
            (vec![], None),
        ] {
            assert_eq!(asked(&headers), seconds.map(Duration::from_secs), "{headers:?}");
        }
    }

    #[test]
    fn what_failed_together_comes_back_one_by_one_and_not_before_twitch_wants_it() {
        for asked in [None, Some(Duration::ZERO), Some(Duration::from_secs(1))] {
            for pause in QUICK_RETRIES {
                let least = asked.unwrap_or_default() + pause / 2;
                let waits: BTreeSet<_> = (0..64).map(|_| wait_before_retry(asked, pause)).collect();
                assert!(waits.len() > 32, "{} moments for 64 calls after {asked:?}", waits.len());
                assert!(waits.iter().all(|wait| (least..=least + pause / 2).contains(wait)), "{waits:?}");
            }
        }
    }
}
