//! Tokens: how they are given, refreshed, validated and revoked.

use super::*;

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
