//! The routes by which a person has something go wrong.

use super::*;

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
