//! The simulation as a client meets it: real HTTP, through the client that the system uses.

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
async fn a_refresh_gives_a_new_access_token_and_keeps_the_rest() {
    let scene = Scene::new().await;
    let answer = scene.refresh_alice().await;

    assert_eq!(answer.status, 200);
    let fields: HashSet<&str> = answer.body.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(fields, HashSet::from(["access_token", "refresh_token", "scope", "token_type", "expires_in"]));
    assert_eq!(answer.body["expires_in"], json!(14_124));
    assert_eq!(answer.body["token_type"], json!("bearer"));
    assert_eq!(answer.body["scope"], json!(["channel:manage:polls", "channel:read:polls"]));
    assert_eq!(answer.text("refresh_token"), scene.alice.refresh.expose());

    let fresh = answer.access_token();
    assert_ne!(fresh, scene.alice.access);
    assert!(scene.twitch.access_token_is_live(&fresh));
    assert!(scene.twitch.access_token_is_live(&scene.alice.access), "the old one lives until it expires");
    let current = scene.twitch.current_tokens("alice").unwrap();
    assert_eq!(current, TokenPair { access: fresh, refresh: scene.alice.refresh.clone() });
}

#[tokio::test]
async fn tokens_look_real_and_are_all_different() {
    let scene = Scene::new().await;
    let pairs: Vec<TokenPair> =
        (0..100).map(|n| scene.twitch.add_streamer(&n.to_string(), &format!("s{n}"))).collect();

    for pair in &pairs {
        let (access, refresh) = (pair.access.expose(), pair.refresh.expose());
        assert_eq!((access.len(), refresh.len()), (30, 50));
        assert!(access.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()));
    }
    let holds = |character: char| pairs.iter().any(|pair| pair.refresh.expose().contains(character));
    assert!(holds('%') && holds('/'));
    let different: HashSet<&str> =
        pairs.iter().flat_map(|pair| [pair.access.expose(), pair.refresh.expose()]).collect();
    assert_eq!(different.len(), 200);

    for pair in &pairs {
        assert_eq!(
            scene.refresh(pair.refresh.expose()).await.status,
            200,
            "escaped in a form, each one arrives"
        );
    }
}

#[tokio::test]
async fn a_turned_clock_kills_access_tokens() {
    let scene = Scene::new().await;
    scene.clock.advance(Duration::from_secs(14_123));
    assert!(scene.twitch.access_token_is_live(&scene.alice.access));
    assert_eq!(scene.validate_alice().await.body["expires_in"], json!(1));

    scene.clock.advance(Duration::from_secs(1));
    assert!(!scene.twitch.access_token_is_live(&scene.alice.access));
    scene.validate_alice().await.assert_error(401, "invalid access token");
    assert_eq!(scene.refresh_alice().await.status, 200, "a refresh token doesn't expire");
}

#[tokio::test]
async fn the_first_access_token_can_have_another_lifetime() {
    let scene = Scene::new().await;
    let expired = scene.twitch.add_streamer_with("1002", "bob", Duration::ZERO);
    assert!(!scene.twitch.access_token_is_live(&expired.access));
    assert_eq!(scene.refresh(expired.refresh.expose()).await.body["expires_in"], json!(14_124));

    let short = scene.twitch.add_streamer_with("1003", "carol", Duration::from_mins(1));
    assert_eq!(scene.validate(short.access.expose()).await.body["expires_in"], json!(60));
}

#[tokio::test]
async fn one_access_token_too_many_pushes_the_oldest_out() {
    let scene = Scene::new().await;
    for _ in 1..ACCESS_TOKENS_PER_GRANT {
        scene.refresh_alice().await;
    }
    assert!(scene.twitch.access_token_is_live(&scene.alice.access));
    scene.refresh_alice().await;
    assert!(!scene.twitch.access_token_is_live(&scene.alice.access));
}

#[tokio::test]
async fn a_faulty_refresh_request_is_refused_in_twitchs_words() {
    let scene = Scene::new().await;
    let right = [
        ("client_id", scene.settings.client_id.as_str()),
        ("client_secret", &scene.settings.client_secret),
        ("grant_type", "refresh_token"),
        ("refresh_token", scene.alice.refresh.expose()),
    ];
    let cases = [
        ("client_id", None, 400, "missing client id"),
        ("client_id", Some("somebody-else"), 400, "invalid client"),
        ("client_secret", None, 400, "missing client secret"),
        ("client_secret", Some(""), 400, "missing client secret"),
        ("client_secret", Some("guessed"), 403, "invalid client secret"),
        ("grant_type", None, 400, "missing grant type"),
        ("grant_type", Some("authorization_code"), 400, "invalid grant type"),
        ("refresh_token", None, 400, "missing refresh token"),
        ("refresh_token", Some("never-issued"), 400, "Invalid refresh token"),
        ("refresh_token", Some(scene.alice.access.expose()), 400, "Invalid refresh token"),
    ];
    for (field, value, status, message) in cases {
        let form: Vec<(&str, &str)> = right
            .into_iter()
            .filter_map(|(name, good)| if name == field { Some((name, value?)) } else { Some((name, good)) })
            .collect();
        see(scene.request(Method::POST, "/oauth2/token").form(&form)).await.assert_error(status, message);
    }
    assert_eq!(scene.refresh("never-issued").await.body["error"], json!("Bad Request"));
    assert_eq!(scene.twitch.totals().refreshes, 0);
}

#[tokio::test]
async fn parameters_must_come_in_a_proper_form() {
    let scene = Scene::new().await;
    let Settings { client_id, client_secret, .. } = &scene.settings;
    let form = format!("client_id={client_id}&client_secret={client_secret}&grant_type=refresh_token");
    let form_type = "application/x-www-form-urlencoded";
    let post = |path: &str, content_type: &str, body: String| {
        see(scene.request(Method::POST, path).header("Content-Type", content_type).body(body))
    };

    let in_query = format!("/oauth2/token?{form}&refresh_token=r");
    let refused = post(&in_query, form_type, String::new()).await;
    refused.assert_error(400, "parameters belong in the body, never in the query string");

    let typed = "the body must be application/x-www-form-urlencoded";
    post("/oauth2/token", "application/json", form.clone()).await.assert_error(400, typed);
    see(scene.request(Method::POST, "/oauth2/token")).await.assert_error(400, typed);

    let unescaped = post("/oauth2/token", form_type, format!("{form}&refresh_token=a%/b")).await;
    unescaped.assert_error(400, "a ‘%’ must be followed by two hexadecimal digits");
    let twice = post("/oauth2/token", form_type, format!("{form}&grant_type=refresh_token")).await;
    twice.assert_error(400, "a parameter is given twice");
    let long =
        post("/oauth2/token", form_type, format!("{form}&refresh_token={}", "r".repeat(100_000))).await;
    long.assert_error(400, "the body can't be read or is too long");

    let with_charset = format!("{form_type};charset=UTF-8");
    post("/oauth2/token", &with_charset, form).await.assert_error(400, "missing refresh token");
}

#[tokio::test]
async fn rotated_refresh_tokens_change_and_the_former_ones_work_on() {
    let scene = Scene::with(|settings| settings.refresh_tokens = RefreshTokens::Rotated).await;
    let first = scene.refresh_alice().await;
    assert_ne!(first.text("refresh_token"), scene.alice.refresh.expose());
    let again = scene.refresh_alice().await;
    assert_eq!(again.status, 200);
    assert_eq!(scene.refresh(first.text("refresh_token")).await.status, 200);
    assert_eq!(scene.twitch.totals().reuses, 0);
}

#[tokio::test]
async fn the_reuse_of_a_one_time_refresh_token_kills_the_newest_pair() {
    let scene = Scene::with(|settings| settings.refresh_tokens = RefreshTokens::OneTime).await;
    let first = scene.refresh_alice().await;
    let second = scene.refresh(first.text("refresh_token")).await;
    assert_eq!(second.status, 200);
    assert!(scene.twitch.access_token_is_live(&second.access_token()));

    scene.refresh(first.text("refresh_token")).await.assert_error(400, "Invalid refresh token");
    assert_eq!(scene.twitch.totals().reuses, 1);
    assert!(!scene.twitch.access_token_is_live(&second.access_token()));
    scene.refresh(second.text("refresh_token")).await.assert_error(400, "Invalid refresh token");
    assert_eq!(scene.twitch.totals().reuses, 1, "a dead token isn't a reuse");
    assert_eq!(scene.twitch.current_tokens("alice"), None);
}

#[tokio::test]
async fn of_eight_refreshes_at_once_a_one_time_token_serves_one() {
    let scene = Scene::with(|settings| settings.refresh_tokens = RefreshTokens::OneTime).await;
    let gate = scene.twitch.pause("alice").unwrap();
    let (answers, ()) =
        tokio::join!(futures::future::join_all((0..8).map(|_| scene.refresh_alice())), async {
            gate.arrivals(8).await;
            gate.release();
        });
    let granted = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!((granted, scene.twitch.totals().reuses), (1, 1));
    assert_eq!(scene.twitch.totals().peak_in_flight, 8);
}

#[tokio::test]
async fn validation_tells_who_and_how_long() {
    let scene = Scene::new().await;
    let answer = scene.validate_alice().await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.body,
        json!({
            "client_id": scene.settings.client_id,
            "login": "alice",
            "scopes": ["channel:manage:polls", "channel:read:polls"],
            "user_id": "1001",
            "expires_in": 14_124,
        })
    );
    let path = "/oauth2/validate";
    let bearer = scene.request(Method::GET, path).bearer_auth(scene.alice.access.expose());
    assert_eq!(see(bearer).await.status, 200);

    scene.validate(scene.alice.refresh.expose()).await.assert_error(401, "invalid access token");
    see(scene.request(Method::GET, path)).await.assert_error(401, "missing authorization token");
    let basic = scene.request(Method::GET, path).header("Authorization", "Basic YTpi");
    see(basic).await.assert_error(401, "missing authorization token");
}

#[tokio::test]
async fn a_revoked_access_token_is_dead_and_its_refresh_token_is_not() {
    let scene = Scene::new().await;
    let (client_id, token) = (scene.settings.client_id.as_str(), scene.alice.access.expose());
    scene.revoke("somebody-else", token).await.assert_error(404, "client does not exist");
    scene.revoke("", token).await.assert_error(400, "missing client id");
    scene.revoke(client_id, "never-issued").await.assert_error(400, "Invalid token");

    let revoked = scene.revoke(client_id, token).await;
    assert_eq!((revoked.status, revoked.body), (200, json!("")));
    scene.validate(token).await.assert_error(401, "invalid access token");
    scene.revoke(client_id, token).await.assert_error(400, "Invalid token");
    assert_eq!(scene.refresh_alice().await.status, 200);
    assert_eq!(scene.twitch.totals().revoke_requests, 5);
}

#[tokio::test]
async fn the_application_gets_a_token_of_its_own_for_its_secret() {
    let scene = Scene::new().await;
    let Settings { client_id, client_secret, .. } = &scene.settings;
    let ask = async |id: &str, secret: &str| {
        let form = [("client_id", id), ("client_secret", secret), ("grant_type", "client_credentials")];
        see(scene.request(Method::POST, "/oauth2/token").form(&form)).await
    };
    ask("somebody-else", client_secret).await.assert_error(400, "invalid client");
    ask(client_id, "not-the-secret").await.assert_error(403, "invalid client secret");
    ask(client_id, "").await.assert_error(400, "missing client secret");
    assert_eq!(scene.twitch.live_application_tokens(), 0);

    let given = ask(client_id, client_secret).await;
    assert_eq!((given.status, given.body.get("refresh_token")), (200, None));
    let token = given.body["access_token"].as_str().unwrap();
    let valid = scene.validate(token).await;
    assert_eq!((valid.status, valid.body.get("login")), (200, None), "it is nobody's");
    assert_eq!(scene.twitch.live_application_tokens(), 1);
    assert!(scene.twitch.issued_tokens().iter().any(|issued| issued == token));

    assert_eq!(scene.revoke(client_id, token).await.status, 200);
    assert_eq!(scene.twitch.live_application_tokens(), 0);
    scene.validate(token).await.assert_error(401, "invalid access token");
    scene.revoke(client_id, token).await.assert_error(400, "Invalid token");
    assert_eq!(scene.twitch.totals().refreshes, 0);
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
async fn disconnecting_kills_all_tokens_until_the_streamer_connects_again() {
    let scene = Scene::new().await;
    scene.refresh_alice().await;
    scene.twitch.disconnect("alice").unwrap();
    scene.refresh_alice().await.assert_error(400, "Invalid refresh token");
    scene.validate_alice().await.assert_error(401, "invalid access token");
    assert!(!scene.twitch.access_token_is_live(&scene.alice.access));
    assert_eq!(scene.twitch.current_tokens("alice"), None);

    let again = scene.twitch.add_streamer("1001", "alice");
    assert_eq!(scene.refresh(again.refresh.expose()).await.status, 200);
    scene.refresh_alice().await.assert_error(400, "Invalid refresh token");

    let unknown = UnknownStreamer { login: "nobody".to_owned() };
    assert_eq!(scene.twitch.disconnect("nobody"), Err(unknown));
}

#[tokio::test]
async fn who_connects_again_holds_two_working_pairs() {
    let scene = Scene::new().await;
    let second = scene.twitch.add_streamer("1001", "alice");
    assert_eq!(scene.twitch.current_tokens("alice"), Some(second.clone()));
    assert_eq!(scene.refresh_alice().await.status, 200);
    assert_eq!(scene.refresh(second.refresh.expose()).await.status, 200);
    scene.twitch.disconnect("alice").unwrap();
    assert!(!scene.twitch.access_token_is_live(&second.access));
    assert!(!scene.twitch.access_token_is_live(&scene.alice.access));
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
async fn faults_that_answer_in_twitchs_place() {
    let scene = Scene::new().await;
    let cases = [
        (Fault::InvalidRefreshToken, 400, "Invalid refresh token"),
        (Fault::InvalidGrant, 400, "Invalid grant"),
        (Fault::Unauthorized, 401, "Invalid refresh token"),
        (Fault::InvalidClient, 400, "invalid client"),
        (Fault::MissingClientSecret, 400, "missing client secret"),
        (Fault::InvalidClientSecret, 403, "invalid client secret"),
        (Fault::ServerError, 500, "internal server error"),
        (Fault::ServiceUnavailable { retry_after: None }, 503, "service unavailable"),
        (Fault::TooManyRequests { retry_after: None, ratelimit_reset: None }, 429, "too many requests"),
    ];
    for (fault, status, message) in cases {
        scene.twitch.fault("alice", fault).unwrap();
        let answer = scene.refresh_alice().await;
        answer.assert_error(status, message);
        assert!(
            !answer.headers.contains_key("retry-after") && !answer.headers.contains_key("ratelimit-reset")
        );
    }
    scene.twitch.fault("alice", Fault::Unauthorized).unwrap();
    scene.validate_alice().await.assert_error(401, "invalid access token");
    assert_eq!(scene.twitch.totals().refreshes, 0, "none of them processes the request");
}

#[tokio::test]
async fn a_slowed_down_client_is_told_for_how_long() {
    let scene = Scene::new().await;
    scene.twitch.fault("alice", Fault::ServiceUnavailable { retry_after: Some(7) }).unwrap();
    assert_eq!(scene.refresh_alice().await.headers["retry-after"], "7");

    let fault = Fault::TooManyRequests { retry_after: Some(30), ratelimit_reset: Some(1_795_408_200) };
    scene.twitch.fault("alice", fault).unwrap();
    let answer = scene.refresh_alice().await;
    assert_eq!(answer.status, 429);
    assert_eq!(answer.headers["retry-after"], "30");
    assert_eq!(answer.headers["ratelimit-reset"], "1795408200");
}

#[tokio::test]
async fn faults_whose_answer_is_no_json_object() {
    let scene = Scene::new().await;
    for (fault, status, content_type, text) in [
        (Fault::HtmlError, 502, "text/html", "<html><head><title>Bad Gateway"),
        (Fault::HtmlSuccess, 200, "text/html", "<html><head><title>OK"),
        (Fault::Empty, 200, "application/json", ""),
        (Fault::NotJson, 200, "application/json", "upstream connect error"),
    ] {
        scene.twitch.fault("alice", fault).unwrap();
        let answer = scene.refresh_alice().await;
        assert_eq!((answer.status, answer.headers["content-type"].to_str().unwrap()), (status, content_type));
        let body = answer.body.as_str().unwrap();
        assert!(body.starts_with(text) && body.is_empty() == text.is_empty(), "{fault}: {body}");
    }
    scene.twitch.fault("alice", Fault::HugeBody).unwrap();
    let mut response = scene.refresh_request(scene.alice.refresh.expose()).send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.content_length()), (200, None));
    let mut length = 0;
    while let Some(chunk) = response.chunk().await.unwrap() {
        length += chunk.len();
    }
    assert!(length > 32 * 1024 * 1024, "{length}");
    assert_eq!(scene.twitch.totals().refreshes, 0);
}

#[tokio::test]
async fn faults_that_break_the_connection() {
    for tls in [false, true] {
        let scene = Scene::with(|settings| {
            settings.tls = tls;
            settings.refresh_tokens = RefreshTokens::Rotated;
        })
        .await;
        let send = || scene.refresh_request(scene.alice.refresh.expose()).send();

        scene.twitch.fault("alice", Fault::Disconnect).unwrap();
        send().await.unwrap_err();
        assert_eq!(scene.twitch.current_tokens("alice").unwrap(), scene.alice, "not processed");

        scene.twitch.fault("alice", Fault::ProcessedButLost).unwrap();
        send().await.unwrap_err();
        let rotated = scene.twitch.current_tokens("alice").unwrap();
        assert_ne!(rotated.refresh, scene.alice.refresh, "processed");

        scene.twitch.fault("alice", Fault::Truncated).unwrap();
        let response = send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(response.content_length().unwrap() > 100);
        response.bytes().await.unwrap_err();
        assert_ne!(scene.twitch.current_tokens("alice").unwrap(), rotated, "processed");

        assert_eq!(scene.twitch.totals().token_requests, 3, "the client didn't try again by itself");
        scene.twitch.clear_faults("alice").unwrap();
        assert_eq!(send().await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn a_truncated_answer_arrives_in_part() {
    let scene = Scene::new().await;
    scene.twitch.fault("alice", Fault::Truncated).unwrap();
    let mut response = scene.refresh_request(scene.alice.refresh.expose()).send().await.unwrap();
    let part = response.chunk().await.unwrap().unwrap();
    assert!(part.starts_with(br#"{"access_token":""#));
    response.chunk().await.unwrap_err();
}

#[tokio::test]
async fn a_hanging_request_ends_when_the_client_gives_up() {
    for tls in [false, true] {
        let scene = Scene::with(|settings| settings.tls = tls).await;
        scene.twitch.fault("alice", Fault::Hang).unwrap();
        {
            let hanging = scene.refresh_alice();
            tokio::select! {
                _ = hanging => panic!("a hanging request was answered"),
                () = scene.until_in_flight(1) => {}
            }
        }
        scene.until_in_flight(0).await;
        assert_eq!(scene.twitch.totals().refreshes, 0);
    }
}

#[tokio::test]
async fn a_slow_request_is_processed_in_the_end() {
    let scene = Scene::new().await;
    let latency = Duration::from_millis(30);
    scene.twitch.fault("alice", Fault::Slow { latency }).unwrap();
    let started = Instant::now();
    assert_eq!(scene.refresh_alice().await.status, 200);
    assert!(started.elapsed() >= latency);
}

#[tokio::test]
async fn latency_lies_on_every_request() {
    let latency = Duration::from_millis(30);
    let scene = Scene::with(|settings| settings.latency = latency).await;
    let started = Instant::now();
    assert_eq!(scene.refresh_alice().await.status, 200);
    assert!(started.elapsed() >= latency);
    assert_eq!(scene.validate_alice().await.status, 200);
    assert!(started.elapsed() >= 2 * latency);
    scene.revoke(&scene.settings.client_id, "x").await;
    assert!(started.elapsed() >= 3 * latency);
}

#[tokio::test]
async fn faults_that_spoil_a_success() {
    let scene = Scene::new().await;
    let both = async |fault: Fault| {
        scene.twitch.fault("alice", fault).unwrap();
        let (refresh, validation) = (scene.refresh_alice().await, scene.validate_alice().await);
        assert_eq!((refresh.status, validation.status), (200, 200));
        (refresh.body, validation.body)
    };

    let (refresh, validation) = both(Fault::OddTypes).await;
    assert_eq!((&refresh["access_token"], &refresh["expires_in"]), (&json!(12_345), &json!("14124")));
    assert_eq!((&validation["user_id"], &validation["expires_in"]), (&json!(12_345), &json!("14124")));

    let (refresh, validation) = both(Fault::NoExpiresIn).await;
    assert!(refresh.get("expires_in").is_none() && refresh["access_token"].is_string());
    assert!(validation.get("expires_in").is_none() && validation["login"].is_string());

    let (refresh, validation) = both(Fault::ScopeString).await;
    let scopes = json!("channel:manage:polls channel:read:polls");
    assert_eq!((&refresh["scope"], &validation["scopes"]), (&scopes, &scopes));

    let (refresh, validation) = both(Fault::ScopeNull).await;
    assert_eq!((refresh.get("scope"), validation.get("scopes")), (Some(&Value::Null), Some(&Value::Null)));

    assert_eq!(scene.twitch.totals().refreshes, 4);
    scene.twitch.disconnect("alice").unwrap();
    scene.refresh_alice().await.assert_error(400, "Invalid refresh token");
}

#[tokio::test]
async fn a_fault_hits_whom_where_and_as_often_as_it_is_meant_to() {
    let scene = Scene::new().await;
    let bob = scene.twitch.add_streamer("1002", "bob");
    let refresh_bob = || scene.refresh(bob.refresh.expose());

    scene.twitch.fault("alice", Fault::ServerError.on(Endpoint::Token).times(2)).unwrap();
    assert_eq!(refresh_bob().await.status, 200);
    assert_eq!(scene.validate_alice().await.status, 200);
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(scene.refresh_alice().await.status);
    }
    assert_eq!(seen, [500, 500, 200]);

    // Twitch refused everybody once, while it still called their tokens valid.
    scene.twitch.fault_for_everybody(Fault::InvalidRefreshToken);
    assert_eq!((scene.refresh_alice().await.status, refresh_bob().await.status), (400, 400));
    assert_eq!(scene.validate_alice().await.status, 200);

    scene.twitch.fault("alice", Fault::HtmlError).unwrap();
    assert_eq!((scene.refresh_alice().await.status, refresh_bob().await.status), (502, 400));
    scene.twitch.clear_faults("alice").unwrap();
    assert_eq!(scene.refresh_alice().await.status, 400);
    scene.twitch.clear_faults_for_everybody();
    assert_eq!((scene.refresh_alice().await.status, refresh_bob().await.status), (200, 200));

    scene.twitch.fault("alice", Fault::Empty.times(0)).unwrap();
    assert_eq!(scene.refresh_alice().await.status, 200);
    scene.twitch.fault("alice", Fault::InvalidGrant.on(Endpoint::Validate)).unwrap();
    assert_eq!((scene.refresh_alice().await.status, scene.validate_alice().await.status), (200, 400));
    scene.twitch.fault("nobody", Fault::Hang).unwrap_err();
    scene.twitch.clear_faults("nobody").unwrap_err();
}

#[tokio::test]
async fn a_gate_holds_a_refresh_while_something_else_happens() {
    let scene = Scene::new().await;
    let gate = scene.twitch.pause("alice").unwrap();
    let (answer, ()) = tokio::join!(scene.refresh_alice(), async {
        gate.arrived().await;
        assert_eq!(scene.twitch.totals().refreshes, 0, "it hasn't been processed yet");
        assert_eq!(scene.validate_alice().await.status, 200);
        scene.twitch.disconnect("alice").unwrap();
        gate.release();
    });
    answer.assert_error(400, "Invalid refresh token");

    let bob = scene.twitch.add_streamer("1002", "bob");
    drop(scene.twitch.pause("bob").unwrap());
    assert_eq!(scene.refresh(bob.refresh.expose()).await.status, 200, "a dropped gate is open");
    assert!(scene.twitch.pause("nobody").is_err());
}

#[tokio::test]
async fn the_control_routes_show_everything_but_secrets() {
    let scene = Scene::new().await;
    scene.refresh_alice().await;
    scene.twitch.fault_for_everybody(Fault::Slow { latency: Duration::from_millis(1) }.times(3));
    let shown = see(scene.request(Method::GET, "/simulation")).await;
    assert_eq!(shown.status, 200);
    assert_eq!(
        shown.body,
        json!({
            "now": START,
            "settings": {
                "client_id": scene.settings.client_id,
                "token_lifetime_seconds": 14_124,
                "latency_ms": 0,
                "refresh_tokens": "kept",
                "tls": false,
            },
            "totals": {
                "token_requests": 1,
                "refreshes": 1,
                "reuses": 0,
                "validate_requests": 0,
                "revoke_requests": 0,
                "in_flight": 0,
                "peak_in_flight": 1,
            },
            "faults": [
                { "endpoint": "token", "fault": "slow latency_ms=1", "remaining": 3 },
                { "endpoint": "validate", "fault": "slow latency_ms=1", "remaining": 3 },
            ],
            "streamers": [{
                "login": "alice",
                "user_id": "1001",
                "connected": true,
                "activity": { "refresh_requests": 1, "refreshes": 1, "validations": 0 },
                "faults": [],
            }],
        })
    );
}

#[tokio::test]
async fn the_control_routes_switch_faults() {
    let scene = Scene::new().await;
    let put = |path: &str, fault: &'static str| see(scene.request(Method::PUT, path).body(fault));

    let set =
        put("/simulation/faults/alice?endpoint=token&times=1", "too-many-requests retry_after=9\n").await;
    assert_eq!(
        set.body,
        json!({
            "target": "alice",
            "faults": [{ "endpoint": "token", "fault": "too-many-requests retry_after=9", "remaining": 1 }],
        })
    );
    assert_eq!(scene.refresh_alice().await.headers["retry-after"], "9");
    assert_eq!(scene.refresh_alice().await.status, 200);

    assert_eq!(put("/simulation/faults/*", "server-error").await.status, 200);
    assert_eq!((scene.refresh_alice().await.status, scene.validate_alice().await.status), (500, 500));
    let cleared = see(scene.request(Method::DELETE, "/simulation/faults/*")).await;
    assert_eq!(cleared.body, json!({ "target": "*", "faults": [] }));
    assert_eq!(scene.refresh_alice().await.status, 200);
}

#[tokio::test]
async fn the_control_routes_say_what_is_wrong() {
    let scene = Scene::new().await;
    let put = |path: &str, fault: &'static str| see(scene.request(Method::PUT, path).body(fault));
    let unknown = "the simulated Twitch knows no streamer with the login ‘nobody’";

    put("/simulation/faults/nobody", "hang").await.assert_error(404, unknown);
    let delete = scene.request(Method::DELETE, "/simulation/faults/nobody");
    see(delete).await.assert_error(404, unknown);
    let disconnect = scene.request(Method::POST, "/simulation/streamers/nobody/disconnect");
    see(disconnect).await.assert_error(404, unknown);

    let typo = put("/simulation/faults/alice", "hnag").await;
    assert_eq!(typo.status, 400);
    assert!(typo.text("message").starts_with("no fault is called ‘hnag’; there are: invalid-refresh-token,"));
    let wrong = [
        ("endpoint=revoke", "no endpoint is called ‘revoke’; there are: token, validate"),
        ("times=0", "times must be a whole number above 0, not ‘0’"),
        ("times=often", "times must be a whole number above 0, not ‘often’"),
        ("time=1", "‘time’ is no parameter; there are: endpoint, times"),
    ];
    for (query, message) in wrong {
        put(&format!("/simulation/faults/alice?{query}"), "hang").await.assert_error(400, message);
    }
    assert_eq!(scene.refresh_alice().await.status, 200, "a refused request changes nothing");
}

#[tokio::test]
async fn the_control_routes_disconnect_a_streamer() {
    let scene = Scene::new().await;
    let path = "/simulation/streamers/alice/disconnect";
    let answer = see(scene.request(Method::POST, path)).await;
    assert_eq!((answer.status, answer.body), (200, json!({ "login": "alice", "connected": false })));
    scene.refresh_alice().await.assert_error(400, "Invalid refresh token");
}

#[tokio::test]
async fn the_control_routes_change_the_applications_secret() {
    let scene = Scene::new().await;
    let change =
        |secret: &'static str| see(scene.request(Method::PUT, "/simulation/client-secret").body(secret));
    change(" \n").await.assert_error(400, "the body must be the new secret; it is empty");
    assert_eq!(scene.refresh_alice().await.status, 200, "a refused request changes nothing");

    let answer = change("the-second-secret\n").await;
    assert_eq!((answer.status, answer.body), (200, json!({ "changed": true })));
    scene.refresh_alice().await.assert_error(403, "invalid client secret");
    let form = [
        ("client_id", scene.settings.client_id.as_str()),
        ("client_secret", "the-second-secret"),
        ("grant_type", "refresh_token"),
        ("refresh_token", scene.alice.refresh.expose()),
    ];
    assert_eq!(see(scene.request(Method::POST, "/oauth2/token").form(&form)).await.status, 200);
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

#[tokio::test]
async fn a_reflected_request_repeats_its_secrets() {
    let scene = Scene::new().await;
    scene.twitch.fault("alice", Fault::Reflect).unwrap();
    let refreshed = scene.refresh_alice().await;
    assert_eq!(refreshed.status, 400);
    assert!(refreshed.text("message").contains(scene.alice.refresh.expose()));
    let validated = scene.validate_alice().await;
    assert!(validated.text("message").contains(scene.alice.access.expose()));
}

#[tokio::test]
async fn a_paused_answer_belongs_to_a_request_that_was_processed() {
    let scene = Scene::new().await;
    let gate = scene.twitch.pause_answers("alice").unwrap();
    let held = async {
        gate.arrived().await;
        assert_eq!(scene.twitch.activity("alice").unwrap().refreshes, 1);
        gate.release();
    };
    let (answer, ()) = tokio::join!(scene.refresh_alice(), held);
    assert_eq!(answer.status, 200);
    scene.twitch.wait_until(|totals| totals.in_flight == 0 && totals.refreshes == 1).await;
}
