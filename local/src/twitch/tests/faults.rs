//! What can be made to go wrong.

use super::*;

#[tokio::test]
async fn faults_that_answer_in_twitchs_place() {
    let scene = Scene::new().await;
    let cases = [
        (Fault::InvalidRefreshToken, 400, "Invalid refresh token"),
        (Fault::InvalidGrant, 400, "Invalid grant"),
        (Fault::Unauthorized, 401, "Invalid refresh token"),
        (Fault::InvalidClient, 400, "invalid client"),
        (Fault::UnauthorizedClient, 401, "invalid client"),
        (Fault::UnknownClient, 404, "client does not exist"),
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

    let (refresh, validation) = both(Fault::ZeroExpiresIn).await;
    assert_eq!((&refresh["expires_in"], &validation["expires_in"]), (&json!(0), &json!(0)));

    for (fault, field) in [(Fault::OtherClient, "client_id"), (Fault::OtherUser, "user_id")] {
        let before = scene.validate_alice().await.body[field].clone();
        scene.twitch.fault("alice", fault).unwrap();
        let after = scene.validate_alice().await;
        assert_eq!(after.status, 200);
        assert_ne!(after.body[field], before);
        scene.twitch.clear_faults("alice").unwrap();
    }

    assert_eq!(scene.twitch.totals().refreshes, 5);
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
