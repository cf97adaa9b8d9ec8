//! Web Push (RFC 8030, 8188, 8291, 8292): encrypts a message for one browser and hands it to its push service.
//!
//! A subscription is user input. So nothing is sent to an address that `endpoint` does not allow, no redirect is
//! followed, no proxy is asked, and nothing of an answer's body is shown: it only decides whether a 400 is about our key.
//! No text that this crate makes holds a key or more of an endpoint than its host.
#![warn(missing_docs)]

mod answer;
mod body;
mod endpoint;
mod vapid;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use reqwest::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};
use reqwest::{Client, RequestBuilder, Response};
use rustls::{ClientConfig, RootCertStore};
use tokens_domain::Clock;
use tokens_domain::notification::{PushAnswer, Subscription};
use tokens_domain::ports::{Push, PushMessage};

use crate::endpoint::{Endpoint, PublicResolver};
use crate::vapid::Signer;

pub use crate::endpoint::Loopback;
pub use crate::vapid::{KeyError, Vapid, VapidFaults, VapidKey};

/// A connection that takes longer will hardly come.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// From the look-up of the name to the end of the answer; within [`tokens_domain::notify::PUSH_TIMEOUT`].
const CALL_TIMEOUT: Duration = Duration::from_secs(8);

/// A connection that was idle for longer may have slept in a frozen sandbox, and be dead without knowing.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// So much of a body is read, so that the connection can serve the next message.
const MAX_BODY: usize = 16 * 1024;

/// RFC 8030, section 5.4.
const MAX_TOPIC: usize = 32;

/// The sender. A process makes one and keeps it: signatures are made once per origin and hour, and connections are used
/// again while messages follow each other closely.
pub struct WebPush {
    client: Client,
    signer: Signer,
    loopback: Loopback,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for WebPush {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebPush").field("loopback", &self.loopback).finish_non_exhaustive()
    }
}

/// The sender could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("Web Push can't be set up: {0}")]
pub struct SetUpError(String);

impl WebPush {
    /// Prepares the sender. Nothing is connected yet.
    ///
    /// # Errors
    ///
    /// If TLS or the HTTP client can't be set up.
    pub fn new(vapid: Vapid, loopback: Loopback, clock: Arc<dyn Clock>) -> Result<Self, SetUpError> {
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let mut tls = ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(|error| SetUpError(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        // Nearly all devices are at a handful of services: over HTTP/2 they share a connection.
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .dns_resolver(Arc::new(PublicResolver(loopback)))
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("twitch-token-refresh/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| SetUpError(answer::cause(&error)))?;
        Ok(Self { client, signer: Signer::new(vapid), loopback, clock })
    }

    /// The request, or why it can't be made.
    fn request(
        &self,
        endpoint: &Endpoint,
        subscription: &Subscription,
        message: &PushMessage,
    ) -> Result<RequestBuilder, PushAnswer> {
        let body = body::encrypt(subscription, &message.payload)
            .map_err(|error| PushAnswer::Rejected(error.to_string()))?;
        let topic = topic(&message.topic).ok_or_else(|| {
            PushAnswer::Rejected("the topic is not 1 to 32 characters of base64url".to_owned())
        })?;
        let authorization = self.signer.authorization(&endpoint.origin(), self.clock.now());
        Ok(self
            .client
            .post(endpoint.url().clone())
            .header(AUTHORIZATION, authorization)
            .header("TTL", message.time_to_live.num_seconds().max(0))
            .header("Urgency", "high")
            .header("Topic", topic)
            .header(CONTENT_ENCODING, "aes128gcm")
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(body))
    }
}

impl Push for WebPush {
    async fn send(&self, subscription: &Subscription, message: &PushMessage) -> PushAnswer {
        let endpoint = match Endpoint::parse(&subscription.endpoint, self.loopback) {
            Ok(endpoint) => endpoint,
            Err(refused) => return answer::of_refused(refused),
        };
        let request = match self.request(&endpoint, subscription, message) {
            Ok(request) => request,
            Err(answer) => return answer,
        };
        match request.send().await {
            Ok(response) => {
                let (status, headers) = (response.status(), response.headers().clone());
                let body = drain(response).await;
                answer::of_response(endpoint.host(), status, &headers, &body, self.clock.now())
            }
            Err(error) => answer::of_error(endpoint.host(), &error),
        }
    }
}

fn topic(text: &str) -> Option<HeaderValue> {
    let fits = (1..=MAX_TOPIC).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    HeaderValue::from_str(text).ok().filter(|_| fits)
}

/// The body, as far as it is read. If it breaks off or does not end, only the connection is lost.
async fn drain(mut response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        if body.len() + chunk.len() > MAX_BODY {
            break;
        }
        body.extend_from_slice(&chunk);
    }
    body
}

/// Reads base64 in any of the forms that browsers, libraries and people leave in databases: base64url or standard,
/// with padding or without.
fn any_base64(text: &str) -> Option<Vec<u8>> {
    let text: String = text
        .trim()
        .trim_end_matches('=')
        .chars()
        .map(|c| match c {
            '+' => '-',
            '/' => '_',
            c => c,
        })
        .collect();
    BASE64_URL_SAFE_NO_PAD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta, Utc};
    use tokens_domain::Monotonic;

    use super::*;

    struct Still(DateTime<Utc>);

    impl Clock for Still {
        fn now(&self) -> DateTime<Utc> {
            self.0
        }

        fn monotonic(&self) -> Monotonic {
            Monotonic::after_start(TimeDelta::zero())
        }
    }

    fn push(loopback: Loopback) -> WebPush {
        let key = VapidKey::generate().unwrap();
        let vapid =
            Vapid::new(&key.public(), &key.expose_private(), "mailto:operator@twitch-polls.net").unwrap();
        let clock = Still("2026-11-23T04:00:00Z".parse().unwrap());
        WebPush::new(vapid, loopback, Arc::new(clock)).unwrap()
    }

    fn subscription(endpoint: &str) -> Subscription {
        // A key pair of P-256 is what a browser has too.
        let key = VapidKey::generate().unwrap();
        Subscription {
            id: uuid::Uuid::nil(),
            endpoint: endpoint.to_owned(),
            p256dh: key.public(),
            auth: BASE64_URL_SAFE_NO_PAD.encode([7; 16]),
        }
    }

    fn message(payload: usize, topic: &str) -> PushMessage {
        PushMessage {
            payload: vec![b'x'; payload],
            topic: topic.to_owned(),
            time_to_live: TimeDelta::hours(24),
        }
    }

    async fn rejection(loopback: Loopback, subscription: &Subscription, message: &PushMessage) -> String {
        match push(loopback).send(subscription, message).await {
            PushAnswer::Rejected(reason) | PushAnswer::Unreachable(reason) => reason,
            other => panic!("it was not rejected: {other:?}"),
        }
    }

    #[test]
    fn a_push_ends_within_what_the_outbox_grants_it() {
        assert!(TimeDelta::from_std(CALL_TIMEOUT).unwrap() < tokens_domain::notify::PUSH_TIMEOUT);
    }

    #[tokio::test]
    async fn an_endpoint_that_can_not_exist_is_unreachable() {
        for endpoint in [
            "https://localhost/push/secret-of-the-endpoint",
            "https://push.invalid/secret-of-the-endpoint",
            "https://127.0.0.1/secret-of-the-endpoint",
            "no URL, but the secret-of-the-endpoint",
        ] {
            let answer = push(Loopback::Refused).send(&subscription(endpoint), &message(10, "topic")).await;
            let PushAnswer::Unreachable(reason) = answer else { panic!("{endpoint}: {answer:?}") };
            assert!(!reason.contains("secret-of"), "{reason}");
        }
        // These may exist; we don't call them.
        for endpoint in
            ["http://push.example.com/x", "https://push.example.com:8443/x", "https://u@push.example.com/"]
        {
            let answer = push(Loopback::Refused).send(&subscription(endpoint), &message(10, "topic")).await;
            assert!(matches!(answer, PushAnswer::Rejected(_)), "{endpoint}: {answer:?}");
        }
    }

    #[tokio::test]
    async fn a_name_is_not_called_at_an_address_that_is_not_public() {
        // It stands for a name that `Endpoint` allows.
        let error = push(Loopback::Refused).client.get("https://localhost/").send().await.unwrap_err();
        let refused = PushAnswer::Rejected("the endpoint's host is at a loopback address".to_owned());
        assert_eq!(answer::of_error("push.example.com", &error), refused);
    }

    #[tokio::test]
    async fn what_can_not_be_sent_is_rejected_before_anything_is_connected() {
        let far = "https://push.example.com/secret-of-the-endpoint";
        let changed = |change: fn(&mut Subscription)| {
            let mut subscription = subscription(far);
            change(&mut subscription);
            subscription
        };
        let short = changed(|s| s.p256dh.truncate(40));
        let off_curve = changed(|s| {
            let mut point = [1; 65];
            point[0] = 4;
            s.p256dh = BASE64_URL_SAFE_NO_PAD.encode(point);
        });
        let long_secret = changed(|s| s.auth = BASE64_URL_SAFE_NO_PAD.encode([7; 17]));
        let no_base64 = changed(|s| s.auth = "secret of the device!".to_owned());
        for (subscription, message, named) in [
            (short, message(10, "topic"), "p256dh"),
            (off_curve, message(10, "topic"), "p256dh"),
            (long_secret, message(10, "topic"), "auth"),
            (no_base64, message(10, "topic"), "auth"),
            (subscription(far), message(0, "topic"), "empty"),
            (subscription(far), message(3053, "topic"), "3052 bytes"),
            (subscription(far), message(10, ""), "topic"),
            (subscription(far), message(10, &"t".repeat(33)), "topic"),
            (subscription(far), message(10, "not/base64url"), "topic"),
            (subscription("http://push.example.com/x"), message(10, "topic"), "https"),
            (subscription("https://169.254.169.254/latest"), message(10, "topic"), "link-local"),
        ] {
            let reason = rejection(Loopback::Refused, &subscription, &message).await;
            assert!(reason.contains(named), "{reason}");
            assert!(!reason.contains("secret-of") && !reason.contains("secret of"), "{reason}");
        }
    }

    #[tokio::test]
    async fn nobody_listening_is_no_answer() {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let endpoint = format!("http://127.0.0.1:{port}/secret-of-the-endpoint");
        let answer = push(Loopback::Allowed).send(&subscription(&endpoint), &message(10, "topic")).await;
        let PushAnswer::NoAnswer(reason) = answer else { panic!("{answer:?}") };
        assert!(reason.starts_with("no connection to 127.0.0.1: "), "{reason}");
        assert!(!reason.contains("secret"), "{reason}");
    }

    #[test]
    fn keys_are_read_in_every_form_of_base64() {
        let bytes = [0xfb, 0xff, 0xbf, 0x01];
        for text in ["-_-_AQ", "-_-_AQ==", "+/+/AQ", "+/+/AQ==", " -_-_AQ\n"] {
            assert_eq!(any_base64(text).as_deref(), Some(&bytes[..]), "{text}");
        }
        assert_eq!(any_base64("-_-_A"), None);
        assert_eq!(any_base64("-_ -_"), None);
    }

    #[test]
    fn nothing_shows_the_key() {
        let key = VapidKey::generate().unwrap();
        let private = key.expose_private();
        let vapid = Vapid::new(&key.public(), &private, "mailto:operator@twitch-polls.net").unwrap();
        let shown = format!("{key:?} {vapid:?} {:?}", push(Loopback::Refused));
        assert!(!shown.contains(private.as_str()), "{shown}");
        assert!(shown.contains("redacted"), "{shown}");
    }
}
