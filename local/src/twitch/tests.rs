//! How strict the simulation is, over HTTP. What faults and gates do, the end-to-end tests show.

use chrono::{DateTime, Utc};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use super::{accounts::ACCESS_TOKENS_PER_GRANT, *};

/// A simulation with one streamer, whose clock stands still.
struct Scene {
    twitch: SimulatedTwitch,
    clock: Arc<TurnableClock>,
    settings: Settings,
    http: reqwest::Client,
    /// The first tokens of the streamer `alice`.
    alice: TokenPair,
}

struct Seen {
    status: u16,
    body: Value,
}

impl Scene {
    async fn new() -> Self {
        Self::with(RefreshTokens::Kept).await
    }

    async fn with(refresh_tokens: RefreshTokens) -> Self {
        // A test's binary installs no provider; the first one serves all.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let start: DateTime<Utc> = "2026-11-23T04:00:00Z".parse().unwrap();
        let clock = Arc::new(TurnableClock::frozen_at(start));
        let settings = Settings { clock: clock.clone(), refresh_tokens, ..Settings::default() };
        let twitch = SimulatedTwitch::start(settings.clone()).await.unwrap();
        let alice = twitch.add_streamer("1001", "alice");
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_mins(1)).build().unwrap();
        Self { twitch, clock, settings, http, alice }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.twitch.base_url()))
    }

    /// The parameters of a correct refresh.
    fn refresh_form<'a>(&'a self, refresh_token: &'a str) -> [(&'a str, &'a str); 4] {
        [
            ("client_id", &self.settings.client_id),
            ("client_secret", &self.settings.client_secret),
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh_token),
        ]
    }

    async fn post(&self, path: &str, form: &[(&str, &str)]) -> Seen {
        see(self.request(Method::POST, path).form(form)).await
    }

    async fn refresh(&self, refresh_token: &str) -> Seen {
        self.post("/oauth2/token", &self.refresh_form(refresh_token)).await
    }

    async fn refresh_alice(&self) -> Seen {
        self.refresh(self.alice.refresh.expose()).await
    }

    async fn validate(&self, access_token: &str) -> Seen {
        let request = self.request(Method::GET, "/oauth2/validate");
        see(request.header("Authorization", format!("OAuth {access_token}"))).await
    }

    fn is_live(&self, access_token: &str) -> bool {
        self.twitch.access_token_is_live(&AccessToken::new(access_token))
    }
}

async fn see(request: RequestBuilder) -> Seen {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    Seen { status, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
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
}

#[tokio::test]
async fn a_refresh_and_a_validation_answer_as_twitch_does() {
    let scene = Scene::new().await;
    let answer = scene.refresh_alice().await;
    let access = answer.text("access_token");
    let expected = json!({
        "access_token": access,
        "refresh_token": scene.alice.refresh.expose(),
        "scope": ["channel:manage:polls", "channel:read:polls"],
        "token_type": "bearer",
        "expires_in": 14_124,
    });
    assert_eq!((answer.status, &answer.body), (200, &expected));
    let first = scene.alice.access.expose();
    assert!(access != first && scene.is_live(access) && scene.is_live(first), "both are alive");

    let expected = json!({
        "client_id": scene.settings.client_id,
        "login": "alice",
        "scopes": ["channel:manage:polls", "channel:read:polls"],
        "user_id": "1001",
        "expires_in": 14_124,
    });
    assert_eq!(scene.validate(access).await.body, expected);
    scene.validate(scene.alice.refresh.expose()).await.assert_error(401, "invalid access token");
    let without = see(scene.request(Method::GET, "/oauth2/validate")).await;
    without.assert_error(401, "missing authorization token");
    see(scene.request(Method::GET, "/oauth2/token")).await.assert_error(405, "method not allowed");
}

#[tokio::test]
async fn a_wrong_refresh_is_refused_in_twitchs_words() {
    let scene = Scene::new().await;
    let right = scene.refresh_form(scene.alice.refresh.expose());
    let cases = [
        ("client_id", None, 400, "missing client id"),
        ("client_id", Some("another"), 400, "invalid client"),
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
        let form: Vec<_> = right
            .into_iter()
            .filter_map(|(name, good)| Some((name, if name == field { value? } else { good })))
            .collect();
        scene.post("/oauth2/token", &form).await.assert_error(status, message);
    }
    assert_eq!(scene.twitch.totals().refreshes, 0);
}

/// The real one is more lenient; here a client that leaks a token into a URL or forgets to escape one is noticed.
#[tokio::test]
async fn parameters_must_come_in_a_proper_form() {
    const FORM: &str = "application/x-www-form-urlencoded";
    let scene = Scene::new().await;
    let form = "client_id=a&client_secret=b&grant_type=refresh_token";
    let post = |path: &str, content_type: &str, body: String| {
        see(scene.request(Method::POST, path).header("Content-Type", content_type).body(body))
    };
    for (path, content_type, body, message) in [
        (
            "/oauth2/token?refresh_token=r",
            FORM,
            form.to_owned(),
            "parameters belong in the body, never in the query string",
        ),
        (
            "/oauth2/token",
            "application/json",
            form.to_owned(),
            "the body must be application/x-www-form-urlencoded",
        ),
        (
            "/oauth2/token",
            FORM,
            format!("{form}&refresh_token=a%/b"),
            "a ‘%’ must be followed by two hexadecimal digits",
        ),
        ("/oauth2/token", FORM, format!("{form}&grant_type=refresh_token"), "a parameter is given twice"),
        ("/oauth2/token", FORM, "r".repeat(100_000), "the body can't be read or is too long"),
    ] {
        post(path, content_type, body).await.assert_error(400, message);
    }
    // A refresh token may hold both of the characters that must be escaped, and then arrives.
    let mut escaped = scene.twitch.add_streamer("1002", "bob");
    while !["%", "/"].iter().all(|one| escaped.refresh.expose().contains(one)) {
        escaped = scene.twitch.add_streamer("1002", "bob");
    }
    assert_eq!(scene.refresh(escaped.refresh.expose()).await.status, 200);
}

#[tokio::test]
async fn access_tokens_die_by_the_clock_and_by_number() {
    let scene = Scene::new().await;
    let first = scene.alice.access.expose();
    scene.clock.advance(Duration::from_secs(14_123));
    assert_eq!(scene.validate(first).await.body["expires_in"], json!(1));
    scene.clock.advance(Duration::from_secs(1));
    assert!(!scene.is_live(first));
    scene.validate(first).await.assert_error(401, "invalid access token");

    let second = scene.refresh_alice().await;
    for _ in 1..ACCESS_TOKENS_PER_GRANT {
        scene.refresh_alice().await;
    }
    assert!(scene.is_live(second.text("access_token")));
    scene.refresh_alice().await;
    assert!(!scene.is_live(second.text("access_token")), "one more pushes the oldest out");
}

#[tokio::test]
async fn rotated_refresh_tokens_change_and_the_former_ones_work_on() {
    let scene = Scene::with(RefreshTokens::Rotated).await;
    let first = scene.refresh_alice().await;
    assert_ne!(first.text("refresh_token"), scene.alice.refresh.expose());
    assert_eq!(scene.refresh_alice().await.status, 200);
    assert_eq!(scene.refresh(first.text("refresh_token")).await.status, 200);
    assert_eq!(scene.twitch.totals().reuses, 0);
}

#[tokio::test]
async fn the_reuse_of_a_one_time_refresh_token_kills_the_newest_pair() {
    let scene = Scene::with(RefreshTokens::OneTime).await;
    let first = scene.refresh_alice().await;
    let second = scene.refresh(first.text("refresh_token")).await;
    assert!(second.status == 200 && scene.is_live(second.text("access_token")));

    scene.refresh(first.text("refresh_token")).await.assert_error(400, "Invalid refresh token");
    assert!(!scene.is_live(second.text("access_token")));
    scene.refresh(second.text("refresh_token")).await.assert_error(400, "Invalid refresh token");
    assert_eq!(scene.twitch.totals().reuses, 1, "a dead token is not a reuse");
    assert_eq!(scene.twitch.current_tokens("alice"), None);
}

#[tokio::test]
async fn of_eight_refreshes_at_once_a_one_time_token_serves_one() {
    let scene = Scene::with(RefreshTokens::OneTime).await;
    let gate = scene.twitch.pause("alice").unwrap();
    let release = async {
        gate.arrivals(8).await;
        gate.release();
    };
    let (answers, ()) =
        tokio::join!(futures::future::join_all((0..8).map(|_| scene.refresh_alice())), release);
    let granted = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!((granted, scene.twitch.totals().reuses), (1, 1));
    assert_eq!(scene.twitch.totals().peak_in_flight, 8);
}

#[tokio::test]
async fn tokens_can_be_revoked_one_by_one_and_disconnecting_kills_all() {
    let scene = Scene::new().await;
    let (client, access) = (scene.settings.client_id.as_str(), scene.alice.access.expose());
    let revoke = async |client: &str, token: &str| {
        scene.post("/oauth2/revoke", &[("client_id", client), ("token", token)]).await
    };
    revoke("another", access).await.assert_error(404, "client does not exist");
    revoke("", access).await.assert_error(400, "missing client id");
    revoke(client, "never-issued").await.assert_error(400, "Invalid token");
    assert_eq!(revoke(client, access).await.status, 200);
    revoke(client, access).await.assert_error(400, "Invalid token");
    assert!(!scene.is_live(access));
    assert_eq!(scene.refresh_alice().await.status, 200);

    scene.twitch.disconnect("alice").unwrap();
    scene.refresh_alice().await.assert_error(400, "Invalid refresh token");
    let again = scene.twitch.add_streamer("1001", "alice");
    assert_eq!(scene.refresh(again.refresh.expose()).await.status, 200);
    scene.refresh_alice().await.assert_error(400, "Invalid refresh token");
}

#[tokio::test]
async fn the_application_gets_a_token_of_its_own_for_its_secret() {
    let scene = Scene::new().await;
    let Settings { client_id, client_secret, .. } = &scene.settings;
    let ask = async |secret: &str| {
        let form =
            [("client_id", &**client_id), ("client_secret", secret), ("grant_type", "client_credentials")];
        scene.post("/oauth2/token", &form).await
    };
    ask("guessed").await.assert_error(403, "invalid client secret");
    let given = ask(client_secret).await;
    assert_eq!((given.status, given.body.get("refresh_token")), (200, None));
    let valid = scene.validate(given.text("access_token")).await;
    assert_eq!((valid.status, valid.body.get("login")), (200, None), "it is not a streamer's");
    assert_eq!(scene.twitch.live_application_tokens(), 1);

    let form = [("client_id", client_id.as_str()), ("token", given.text("access_token"))];
    assert_eq!(scene.post("/oauth2/revoke", &form).await.status, 200);
    assert_eq!(scene.twitch.live_application_tokens(), 0);
}
