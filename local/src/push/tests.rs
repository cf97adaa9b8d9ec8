//! The simulated push service is as strict as the real ones: every rule once kept and once broken, over HTTP.

use std::time::Duration;

use aes_gcm::{Aes128Gcm, KeyInit, aead::Aead};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use hkdf::Hkdf;
use p256::{
    PublicKey, SecretKey,
    ecdsa::{Signature, SigningKey, signature::Signer as _},
};
use reqwest::{Client, Response, redirect::Policy};
use serde_json::{Value, json};
use sha2::Sha256;
use url::Url;

use super::{device::random_key, *};

fn client() -> Client {
    let provider = rustls::crypto::ring::default_provider();
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let builder = Client::builder().tls_backend_preconfigured(tls).no_proxy();
    // The timeout turns a test that would hang into one that fails.
    builder.redirect(Policy::none()).timeout(Duration::from_mins(1)).build().unwrap()
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// RFC 8291 from the other side.
fn encrypt(subscription: &Subscription, text: &[u8]) -> Vec<u8> {
    let decode = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).unwrap();
    let (device, secret, salt) = (decode(&subscription.p256dh), decode(&subscription.auth), [9; 16]);
    let own = random_key();
    let public = own.public_key().to_sec1_bytes();
    let shared = own.diffie_hellman(&PublicKey::from_sec1_bytes(&device).unwrap());
    let mut material = [0; 32];
    Hkdf::<Sha256>::new(Some(&secret), shared.raw_secret_bytes())
        .expand(&[b"WebPush: info\0", &*device, &*public].concat(), &mut material)
        .unwrap();
    let keys = Hkdf::<Sha256>::new(Some(&salt), &material);
    let (mut key, mut nonce) = ([0; 16], [0; 12]);
    keys.expand(b"Content-Encoding: aes128gcm\0", &mut key).unwrap();
    keys.expand(b"Content-Encoding: nonce\0", &mut nonce).unwrap();
    let cipher = Aes128Gcm::new(&key.into());
    let sealed = cipher.encrypt(&nonce.into(), &*[text, &[2]].concat()).unwrap();
    [&salt, &4096_u32.to_be_bytes()[..], &[65], &public, &sealed].concat()
}

fn public(key: &SecretKey) -> String {
    encode(key.public_key().to_sec1_bytes())
}

fn authorization(key: &SecretKey, claims: &Value) -> String {
    let signed = format!("{}.{}", encode(r#"{"typ":"JWT","alg":"ES256"}"#), encode(claims.to_string()));
    let signature: Signature = SigningKey::from(key).sign(signed.as_bytes());
    format!("vapid t={signed}.{}, k={}", encode(signature.to_bytes()), public(key))
}

/// A service whose time stands still, one device, and a sender who does everything right.
struct World {
    service: SimulatedPush,
    clock: Arc<TurnableClock>,
    subscription: Subscription,
    key: SecretKey,
}

/// What a request has; a header that is `None` is not sent.
struct Request {
    url: String,
    headers: Vec<(&'static str, Option<String>)>,
    body: Vec<u8>,
}

impl Request {
    fn with(mut self, name: &'static str, value: Option<&str>) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.map(str::to_owned)));
        self
    }

    async fn try_send(self) -> reqwest::Result<Response> {
        let client = client();
        let sent = self.headers.into_iter().fold(client.post(self.url), |request, (name, value)| {
            value.into_iter().fold(request, |request, value| request.header(name, value))
        });
        sent.body(self.body).send().await
    }

    async fn send(self) -> Response {
        self.try_send().await.unwrap()
    }

    async fn status(self) -> u16 {
        self.send().await.status().as_u16()
    }
}

impl World {
    async fn new() -> Self {
        let clock = Arc::new(TurnableClock::frozen());
        let service = SimulatedPush::start(Settings { port: 0, clock: clock.clone() }).await.unwrap();
        let subscription = service.subscribe("phone");
        Self { service, clock, subscription, key: random_key() }
    }

    fn claims(&self) -> Value {
        let exp = (self.clock.now() + TimeDelta::hours(12)).timestamp();
        json!({ "aud": self.service.base_url(), "exp": exp, "sub": "mailto:operator@twitch-polls.net" })
    }

    fn request(&self, text: &str) -> Request {
        let header = |name, value: &str| (name, Some(value.to_owned()));
        Request {
            url: self.subscription.endpoint.clone(),
            headers: vec![
                header("authorization", &authorization(&self.key, &self.claims())),
                header("ttl", "60"),
                header("urgency", "high"),
                header("topic", "topic"),
                header("content-encoding", "aes128gcm"),
            ],
            body: encrypt(&self.subscription, text.as_bytes()),
        }
    }

    fn with_claims(&self, change: impl FnOnce(&mut Value)) -> Request {
        let mut claims = self.claims();
        change(&mut claims);
        self.request("hello").with("authorization", Some(&authorization(&self.key, &claims)))
    }

    fn shown(&self) -> Vec<String> {
        let shown = self.service.shown("phone").unwrap();
        shown.into_iter().map(|message| String::from_utf8(message.payload).unwrap()).collect()
    }
}

#[tokio::test]
async fn what_keeps_the_rules_is_accepted_and_decrypted() {
    let world = World::new().await;
    let answer = world.request(r#"{"title":"hello"}"#).send().await;
    assert_eq!(answer.status(), 201);
    assert!(answer.headers().contains_key("location"));
    let [message] = world.service.messages("phone").unwrap().try_into().unwrap();
    assert_eq!(message.json().unwrap(), json!({ "title": "hello" }));
    assert_eq!(message.time_to_live, TimeDelta::minutes(1));
    assert_eq!((message.urgency.as_str(), message.topic.as_deref()), ("high", Some("topic")));
    assert_eq!(message.at, world.clock.now());

    let plain = world.request("hello").with("urgency", None).with("topic", None);
    assert_eq!(plain.status().await, 201);
    assert_eq!(world.service.messages("phone").unwrap()[1].urgency, "normal");
}

#[tokio::test]
async fn each_header_has_its_rule() {
    let world = World::new().await;
    let long = "t".repeat(33);
    for (name, value) in [
        ("ttl", None),
        ("ttl", Some("")),
        ("ttl", Some("-1")),
        ("ttl", Some("soon")),
        ("content-encoding", None),
        ("content-encoding", Some("aesgcm")),
        ("content-encoding", Some("gzip")),
        ("urgency", Some("urgent")),
        ("topic", Some("")),
        ("topic", Some("not/base64url")),
        ("topic", Some(long.as_str())),
    ] {
        assert_eq!(world.request("hello").with(name, value).status().await, 400, "{name}: {value:?}");
    }
    assert_eq!(world.service.messages("phone").unwrap(), []);
}

#[tokio::test]
async fn the_body_is_one_record_for_this_device() {
    let world = World::new().await;
    let status = async |body| Request { body, ..world.request("") }.status().await;
    let good = world.request("hello").body;
    let mut damaged = good.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let mut two_records = good.clone();
    two_records[16..20].copy_from_slice(&18_u32.to_be_bytes());
    let for_another = encrypt(&world.service.subscribe("tablet"), b"hello");
    for body in [Vec::new(), b"hello".to_vec(), damaged, two_records, for_another] {
        assert_eq!(status(body).await, 400);
    }
    // Head, tag and the padding's mark take 103 bytes of the 4096.
    assert_eq!(status(encrypt(&world.subscription, &[b'x'; 3994])).await, 413);
    assert_eq!(status(encrypt(&world.subscription, &[b'x'; 3993])).await, 201);
}

#[tokio::test]
async fn a_sender_who_proves_nothing_is_refused() {
    let world = World::new().await;
    let with = |authorization: Option<&str>| world.request("hello").with("authorization", authorization);
    let good = authorization(&world.key, &world.claims());
    for missing in [None, Some("Bearer x"), Some("vapid t=x"), Some("WebPush t=x, k=y")] {
        assert_eq!(with(missing).status().await, 401, "{missing:?}");
    }
    let (token, _) = good.split_once(", k=").unwrap();
    let other_key = format!("{token}, k={}", public(&random_key()));
    let unsigned = format!("{}.{}.", encode(r#"{"alg":"none"}"#), encode(world.claims().to_string()));
    let no_key = format!("{token}, k=BAAA");
    for false_one in [other_key, format!("vapid t={unsigned}, k={}", public(&world.key)), no_key] {
        assert_eq!(with(Some(&false_one)).status().await, 403, "{false_one}");
    }
    assert_eq!(with(Some(&good)).status().await, 201);
}

#[tokio::test]
async fn each_claim_has_its_rule() {
    let world = World::new().await;
    let now = world.clock.now();
    let base = Url::parse(world.service.base_url()).unwrap();
    let portless = format!("http://{}", base.host_str().unwrap());
    let slash = format!("{}/", world.service.base_url());
    let at = |hours, seconds| (now + TimeDelta::hours(hours) + TimeDelta::seconds(seconds)).timestamp();
    for (name, value, status) in [
        ("aud", json!(portless), 403),
        ("aud", json!(slash), 403),
        ("aud", json!("https://push.example.com"), 403),
        ("aud", Value::Null, 403),
        ("exp", json!(at(0, 0)), 403),
        ("exp", json!(at(24, 1)), 403),
        ("exp", Value::Null, 403),
        ("sub", json!("mailto:operator@localhost"), 403),
        ("sub", json!("https://localhost/contact"), 403),
        ("sub", json!("operator@twitch-polls.net"), 403),
        ("sub", json!(""), 403),
        ("sub", Value::Null, 403),
        ("exp", json!(at(0, 1)), 201),
        ("exp", json!(at(24, 0)), 201),
        ("sub", json!("https://twitch-polls.net/contact"), 201),
    ] {
        let request = world.with_claims(|claims| claims[name] = value.clone());
        assert_eq!(request.status().await, status, "{name}: {value}");
    }
    // The same token, and a turned clock.
    let request = world.request("hello");
    world.clock.advance(Duration::from_hours(12));
    assert_eq!(request.status().await, 403);
}

#[tokio::test]
async fn a_subscription_can_be_bound_can_end_and_can_be_unknown() {
    let mut world = World::new().await;
    world.subscription = world.service.subscribe_to("phone", &public(&random_key()));
    assert_eq!(world.request("hello").status().await, 403);
    world.subscription = world.service.subscribe_to("phone", &public(&world.key));
    assert_eq!(world.request("hello").status().await, 201);

    world.service.expire("phone").unwrap();
    assert_eq!(world.request("hello").status().await, 410);

    let former = world.service.subscribe("phone");
    world.subscription = world.service.subscribe("phone");
    assert_eq!(Request { url: former.endpoint, ..world.request("hello") }.status().await, 410);
    assert_eq!(world.request("hello").status().await, 201);

    let url = format!("{}/push/unknown", world.service.base_url());
    assert_eq!(Request { url, ..world.request("hello") }.status().await, 404);
    assert!(world.service.messages("toaster").unwrap_err().to_string().contains("‘toaster’"));
}

#[tokio::test]
async fn what_still_waits_is_replaced_by_topic_and_dropped_when_it_is_over() {
    let world = World::new().await;
    let send = async |text: &str, topic: Option<&str>, ttl: &str| {
        let request = world.request(text).with("topic", topic).with("ttl", Some(ttl));
        assert_eq!(request.status().await, 201);
    };
    send("first", Some("a"), "3600").await;
    send("second", Some("b"), "3600").await;
    send("first again", Some("a"), "3600").await;
    send("without", None, "3600").await;
    send("without too", None, "3600").await;
    send("short", Some("c"), "60").await;
    world.clock.advance(Duration::from_mins(1));
    assert_eq!(world.shown(), ["second", "first again", "without", "without too"]);

    // What is on the screen stays there.
    send("first once more", Some("a"), "3600").await;
    assert_eq!(world.shown(), ["second", "first again", "without", "without too", "first once more"]);
    assert_eq!(world.service.messages("phone").unwrap().len(), 7);
}

#[tokio::test]
async fn faults_hit_whom_and_how_often_they_should() {
    let mut world = World::new().await;
    let busy = Fault::Status { status: 429, retry_after: Some("120".to_owned()) };
    world.service.fault("phone", busy.times(1)).unwrap();
    world.service.fault_for_everybody(Fault::status(503));
    let answer = world.request("hello").send().await;
    assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (429, &"120".parse().unwrap()));
    assert_eq!(world.request("hello").status().await, 503);
    world.service.clear_fault_for_everybody();
    assert_eq!(world.request("hello").status().await, 201);

    world.service.fault("phone", Fault::Redirect).unwrap();
    let answer = world.request("hello").send().await;
    assert_eq!((answer.status().as_u16(), world.service.totals().redirected), (307, 0));
    let target = answer.headers()["location"].to_str().unwrap().to_owned();
    assert_eq!(Request { url: target, ..world.request("hello") }.status().await, 201);
    assert_eq!(world.service.totals(), Totals { requests: 4, accepted: 1, redirected: 1 });

    world.service.clear_fault("phone").unwrap();
    world.subscription = world.service.subscribe("tablet");
    world.service.fault("tablet", Fault::HangUp).unwrap();
    assert!(world.request("hello").try_send().await.is_err());
    world.service.fault("tablet", Fault::AcceptedButLost).unwrap();
    assert!(world.request("hello").try_send().await.is_err());
    world.service.wait_for(2).await;

    world.service.fault("tablet", Fault::Hang).unwrap();
    let arrived = world.service.wait_until(|totals| totals.requests == 7);
    tokio::select! {
        answer = world.request("hello").try_send() => panic!("it was answered: {answer:?}"),
        () = arrived => {}
    }
    assert_eq!(world.service.totals(), Totals { requests: 7, accepted: 2, redirected: 1 });
}
