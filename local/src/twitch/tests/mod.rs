//! The simulation as a client meets it: real HTTP, through the client that the system uses.

mod control;
mod faults;
mod oauth;

use std::{collections::HashSet, time::Instant};

use chrono::{DateTime, Utc};
use reqwest::{Method, RequestBuilder, Version, header};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde_json::{Value, json};

use super::{accounts::ACCESS_TOKENS_PER_GRANT, *};

const START: &str = "2026-11-23T04:00:00Z";

/// A simulation with one streamer, whose clock stands still.
struct Scene {
    twitch: SimulatedTwitch,
    clock: Arc<TurnableClock>,
    settings: Settings,
    http: reqwest::Client,
    /// What the streamer `alice` got first.
    alice: TokenPair,
}

struct Seen {
    status: u16,
    headers: header::HeaderMap,
    body: Value,
}

impl Scene {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let clock = Arc::new(TurnableClock::frozen_at(START.parse::<DateTime<Utc>>().unwrap()));
        let mut settings = Settings { clock: clock.clone(), ..Settings::default() };
        change(&mut settings);
        let twitch = SimulatedTwitch::start(settings.clone()).await.unwrap();
        let alice = twitch.add_streamer("1001", "alice");
        let http = client(twitch.ca_pem(), &[b"h2", b"http/1.1"]).build().unwrap();
        Self { twitch, clock, settings, http, alice }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.twitch.base_url()))
    }

    /// A refresh as a correct client asks for it.
    fn refresh_request(&self, refresh_token: &str) -> RequestBuilder {
        self.request(Method::POST, "/oauth2/token").form(&[
            ("client_id", self.settings.client_id.as_str()),
            ("client_secret", &self.settings.client_secret),
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh_token),
        ])
    }

    async fn refresh(&self, refresh_token: &str) -> Seen {
        see(self.refresh_request(refresh_token)).await
    }

    async fn refresh_alice(&self) -> Seen {
        self.refresh(self.alice.refresh.expose()).await
    }

    fn validate_request(&self, access_token: &str) -> RequestBuilder {
        self.request(Method::GET, "/oauth2/validate").header("Authorization", format!("OAuth {access_token}"))
    }

    async fn validate(&self, access_token: &str) -> Seen {
        see(self.validate_request(access_token)).await
    }

    async fn validate_alice(&self) -> Seen {
        self.validate(self.alice.access.expose()).await
    }

    async fn revoke(&self, client_id: &str, token: &str) -> Seen {
        let request = self.request(Method::POST, "/oauth2/revoke");
        see(request.form(&[("client_id", client_id), ("token", token)])).await
    }

    /// Waits until this many requests are being processed.
    async fn until_in_flight(&self, count: usize) {
        while self.twitch.totals().in_flight != count {
            tokio::task::yield_now().await;
        }
    }
}

fn client(ca_pem: Option<&str>, alpn: &[&[u8]]) -> reqwest::ClientBuilder {
    let mut roots = RootCertStore::empty();
    if let Some(pem) = ca_pem {
        roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    }
    let mut tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    // The timeout turns a test that would hang into one that fails.
    reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().timeout(Duration::from_mins(1))
}

async fn see(request: RequestBuilder) -> Seen {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let headers = response.headers().clone();
    let text = response.text().await.unwrap();
    Seen { status, headers, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
}

impl Seen {
    #[track_caller]
    fn assert_error(&self, status: u16, message: &str) {
        assert_eq!((self.status, &self.body["message"]), (status, &json!(message)));
        assert_eq!(self.body["status"], json!(status));
    }

    fn text(&self, field: &str) -> &str {
        self.body[field].as_str().unwrap()
    }

    fn access_token(&self) -> AccessToken {
        AccessToken::new(self.text("access_token"))
    }
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_are_refused() {
    let scene = Scene::new().await;
    see(scene.request(Method::GET, "/oauth2/authorise")).await.assert_error(404, "not found");
    for (method, path) in
        [(Method::GET, "/oauth2/token"), (Method::POST, "/oauth2/validate"), (Method::PUT, "/oauth2/revoke")]
    {
        see(scene.request(method, path)).await.assert_error(405, "method not allowed");
    }
}

#[tokio::test]
async fn it_counts_what_is_asked() {
    let scene = Scene::new().await;
    scene.refresh_alice().await;
    scene.refresh("never-issued").await;
    scene.validate_alice().await;
    scene.twitch.fault("alice", Fault::ServerError).unwrap();
    scene.refresh_alice().await;

    let activity = Activity { refresh_requests: 2, refreshes: 1, validations: 1 };
    assert_eq!(scene.twitch.activity("alice"), Ok(activity));
    let totals = Totals {
        token_requests: 3,
        refreshes: 1,
        validate_requests: 1,
        peak_in_flight: 1,
        ..Totals::default()
    };
    scene.until_in_flight(0).await;
    assert_eq!(scene.twitch.totals(), totals);
}

#[tokio::test]
async fn it_speaks_both_versions_of_http_over_tls_and_in_the_clear() {
    async fn version(scene: &Scene, http: reqwest::ClientBuilder) -> Version {
        let url = format!("{}/simulation", scene.twitch.base_url());
        http.build().unwrap().get(url).send().await.unwrap().version()
    }
    let secure = Scene::with(|settings| settings.tls = true).await;
    let clear = Scene::new().await;
    assert!(secure.twitch.base_url().starts_with("https://127.0.0.1:"));
    assert!(clear.twitch.base_url().starts_with("http://127.0.0.1:"));
    let ca_pem = secure.twitch.ca_pem();
    assert!(ca_pem.is_some() && clear.twitch.ca_pem().is_none());

    assert_eq!(version(&secure, client(ca_pem, &[b"h2", b"http/1.1"])).await, Version::HTTP_2);
    assert_eq!(version(&secure, client(ca_pem, &[b"http/1.1"])).await, Version::HTTP_11);
    assert_eq!(version(&clear, client(None, &[]).http2_prior_knowledge()).await, Version::HTTP_2);
    assert_eq!(version(&clear, client(None, &[])).await, Version::HTTP_11);

    let by_name = secure.twitch.base_url().replace("127.0.0.1", "localhost");
    assert!(secure.http.get(format!("{by_name}/simulation")).send().await.is_ok());
    let stranger = client(None, &[b"h2"]).build().unwrap();
    assert!(stranger.get(secure.twitch.base_url()).send().await.is_err(), "an unknown authority is refused");
}

#[tokio::test]
async fn one_http2_connection_carries_128_requests_at_once() {
    let scene = Scene::with(|settings| settings.tls = true).await;
    // The connection exists before the crowd comes; otherwise each request would open one of its own.
    assert_eq!(scene.refresh_alice().await.status, 200);
    let gate = scene.twitch.pause("alice").unwrap();
    let crowd = futures::future::join_all((0..200).map(|_| scene.refresh_alice()));
    let (answers, ()) = tokio::join!(crowd, async {
        gate.arrivals(128).await;
        gate.release();
    });
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(scene.twitch.totals().peak_in_flight, 128);
}

#[tokio::test]
async fn nothing_that_can_be_printed_shows_a_secret() {
    let scene = Scene::with(|settings| settings.tls = true).await;
    let printed = format!("{:?} {:?}", scene.twitch, scene.settings);
    assert!(printed.contains(&scene.settings.client_id));
    for secret in
        [scene.settings.client_secret.as_str(), scene.alice.access.expose(), scene.alice.refresh.expose()]
    {
        assert!(!printed.contains(secret));
    }
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let scene = Scene::new().await;
    let port: u16 = scene.twitch.base_url().rsplit_once(':').unwrap().1.parse().unwrap();
    let error = SimulatedTwitch::start(Settings { port, ..scene.settings.clone() }).await.unwrap_err();
    assert_eq!(error.to_string(), format!("the simulated Twitch can't listen on port {port} of 127.0.0.1"));
}

#[tokio::test]
async fn shutting_down_ends_what_hangs_and_closes_the_port() {
    let scene = Scene::new().await;
    scene.twitch.fault_for_everybody(Fault::Hang);
    let hanging = tokio::spawn(scene.refresh_request(scene.alice.refresh.expose()).send());
    scene.until_in_flight(1).await;
    let show = scene.request(Method::GET, "/simulation");

    scene.twitch.shutdown().await;
    hanging.await.unwrap().unwrap_err();
    assert!(show.send().await.unwrap_err().is_connect());
}

#[tokio::test]
async fn dropping_it_closes_the_port_soon_after() {
    let scene = Scene::new().await;
    let show = scene.request(Method::GET, "/simulation");
    drop(scene.twitch);
    while show.try_clone().unwrap().send().await.is_ok() {
        tokio::task::yield_now().await;
    }
}
