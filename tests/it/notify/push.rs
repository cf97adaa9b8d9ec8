//! Web Push over real HTTP, to a push service that is strict and decrypts. Statuses, keys, lengths and signatures are tested in
//! the crates `push` and `ece`.

use std::sync::Arc;

use anyhow::Result;
use chrono::TimeDelta;
use serde_json::json;
use tokens_domain::notification::{PushAnswer, Subscription};
use tokens_domain::ports::{Push, PushMessage};
use tokens_local::clock::TurnableClock;
use tokens_local::push::{Fault, Received, Settings, SimulatedPush};
use tokens_push::{Loopback, Vapid, VapidKey, WebPush};

/// A push service and a sender on one clock that stands still.
struct Scene {
    service: SimulatedPush,
    sender: WebPush,
    public_key: String,
}

impl Scene {
    async fn new(loopback: Loopback) -> Result<Self> {
        let clock = Arc::new(TurnableClock::frozen());
        let service = SimulatedPush::start(Settings { port: 0, clock: clock.clone() }).await?;
        let key = VapidKey::generate()?;
        let vapid = Vapid::new(&key.public(), &key.expose_private(), "mailto:operator@twitch-polls.net")?;
        Ok(Self { service, sender: WebPush::new(vapid, loopback, clock)?, public_key: key.public() })
    }

    async fn send(&self, subscription: &Subscription) -> PushAnswer {
        self.sender.send(subscription, &message("hello", "topic")).await
    }

    async fn answer_to(&self, fault: Fault) -> Result<PushAnswer> {
        let subscription = self.service.subscribe("faulty");
        self.service.fault("faulty", fault)?;
        Ok(self.send(&subscription).await)
    }

    fn last(&self, name: &str) -> Result<Received> {
        Ok(self.service.messages(name)?.pop().expect("a message has come"))
    }
}

fn message(text: &str, topic: &str) -> PushMessage {
    PushMessage {
        payload: json!({ "title": text }).to_string().into_bytes(),
        topic: topic.to_owned(),
        time_to_live: TimeDelta::hours(24) - TimeDelta::milliseconds(500),
    }
}

#[tokio::test]
async fn the_device_shows_what_was_sent() -> Result<()> {
    let scene = Scene::new(Loopback::Allowed).await?;
    let subscription = scene.service.subscribe_to("phone", &scene.public_key);
    assert_eq!(scene.send(&subscription).await, PushAnswer::Accepted);
    let received = scene.last("phone")?;
    assert_eq!(received.json()?, json!({ "title": "hello" }));
    assert_eq!(received.time_to_live, TimeDelta::seconds(24 * 3600 - 1), "whole seconds, rounded down");
    assert_eq!((received.urgency.as_str(), received.topic.as_deref()), ("high", Some("topic")));
    Ok(())
}

#[tokio::test]
async fn a_repeated_notice_replaces_the_former() -> Result<()> {
    let scene = Scene::new(Loopback::Allowed).await?;
    let subscription = scene.service.subscribe("phone");
    for (text, topic) in [("old", "a"), ("other", "b"), ("new", "a")] {
        scene.sender.send(&subscription, &message(text, topic)).await;
    }
    let titles = scene.service.shown("phone")?.iter().map(Received::json).collect::<Result<Vec<_>, _>>()?;
    assert_eq!(titles, [json!({ "title": "other" }), json!({ "title": "new" })]);
    Ok(())
}

#[tokio::test]
async fn this_machine_is_called_only_where_that_is_allowed() -> Result<()> {
    let scene = Scene::new(Loopback::Refused).await?;
    let subscription = scene.service.subscribe("phone");
    let PushAnswer::Unreachable(reason) = scene.send(&subscription).await else { panic!() };
    assert_eq!(reason, "the endpoint's host is a loopback address");
    assert_eq!(scene.service.totals().requests, 0);
    Ok(())
}

#[tokio::test]
async fn no_answer_names_the_endpoint_or_a_key() -> Result<()> {
    let scene = Scene::new(Loopback::Allowed).await?;
    let faults = [400, 401, 429, 302, 503].map(Fault::status);
    for fault in faults.into_iter().chain([Fault::HangUp, Fault::Redirect]) {
        let subscription = scene.service.subscribe("phone");
        scene.service.fault("phone", fault)?;
        let shown = format!("{:?} {subscription:?} {:?}", scene.send(&subscription).await, scene.sender);
        let path = subscription.endpoint.rsplit('/').next().unwrap_or_default();
        for secret in [path, &subscription.p256dh, &subscription.auth, &scene.public_key] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn each_answer_on_the_wire_has_its_class() -> Result<()> {
    let scene = Scene::new(Loopback::Allowed).await?;
    let expired = scene.service.subscribe("phone");
    scene.service.expire("phone")?;
    assert_eq!(scene.send(&expired).await, PushAnswer::Gone);
    let other = scene.service.subscribe_to("phone", &VapidKey::generate()?.public());
    assert!(matches!(scene.send(&other).await, PushAnswer::Unauthorized(reason) if reason.contains("403")));
    let no_answer = |reason: &str| PushAnswer::NoAnswer(format!("127.0.0.1 {reason}"));
    for (fault, expected) in [
        (
            Fault::Reason { status: 400, reason: "BadJwtToken".to_owned() },
            PushAnswer::Unauthorized("127.0.0.1 answered 400".to_owned()),
        ),
        (
            Fault::Status { status: 503, retry_after: Some("120".to_owned()) },
            PushAnswer::Busy {
                retry_after: Some(TimeDelta::minutes(2)),
                reason: "127.0.0.1 answered 503".to_owned(),
            },
        ),
        (
            Fault::Redirect,
            PushAnswer::Rejected("127.0.0.1 answered 307: redirects are not followed".to_owned()),
        ),
        (Fault::EndlessBody, PushAnswer::Accepted),
        // As long as the sender waits.
        (Fault::Hang, no_answer("did not answer within 8 s")),
    ] {
        assert_eq!(scene.answer_to(fault.clone()).await?, expected, "{fault:?}");
    }
    for fault in [Fault::HangUp, Fault::AcceptedButLost] {
        let PushAnswer::NoAnswer(reason) = scene.answer_to(fault).await? else { panic!() };
        assert!(reason.starts_with("the answer of 127.0.0.1 broke off: "), "{reason}");
    }
    assert_eq!(scene.service.totals().redirected, 0);
    Ok(())
}
