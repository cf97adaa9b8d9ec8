//! Web Push end to end: what we send, over real HTTP, to a push service that is strict and decrypts.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use chrono::TimeDelta;
use domain::notification::{PushAnswer, Subscription};
use domain::ports::{Push, PushMessage};
use local::clock::TurnableClock;
use local::push::{Fault, Received, Settings, SimulatedPush};
use push::{Loopback, Vapid, VapidKey, WebPush};
use serde_json::json;

/// A push service and a sender on one clock that stands still.
struct Scene {
    service: SimulatedPush,
    sender: WebPush,
    public_key: String,
    clock: Arc<TurnableClock>,
}

impl Scene {
    async fn new() -> Result<Self> {
        Self::with(Loopback::Allowed).await
    }

    async fn with(loopback: Loopback) -> Result<Self> {
        let clock = Arc::new(TurnableClock::frozen());
        let service = SimulatedPush::start(Settings { port: 0, clock: clock.clone() }).await?;
        let key = VapidKey::generate()?;
        let vapid = Vapid::new(&key.public(), &key.expose_private(), "mailto:operator@twitch-polls.net")?;
        let sender = WebPush::new(vapid, loopback, clock.clone())?;
        Ok(Self { service, sender, public_key: key.public(), clock })
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

fn busy(answer: PushAnswer) -> (Option<TimeDelta>, String) {
    match answer {
        PushAnswer::Busy { retry_after, reason } => (retry_after, reason),
        other => panic!("it is not busy: {other:?}"),
    }
}

#[tokio::test]
async fn the_device_shows_what_was_sent() -> Result<()> {
    let scene = Scene::new().await?;
    let subscription = scene.service.subscribe_to("phone", &scene.public_key);
    assert_eq!(scene.send(&subscription).await, PushAnswer::Accepted);
    let received = scene.last("phone")?;
    assert_eq!(received.json()?, json!({ "title": "hello" }));
    assert_eq!(received.time_to_live, TimeDelta::seconds(24 * 3600 - 1), "whole seconds, rounded down");
    assert_eq!((received.urgency.as_str(), received.topic.as_deref()), ("high", Some("topic")));
    Ok(())
}

#[tokio::test]
async fn payloads_arrive_whole_at_every_length() -> Result<()> {
    let scene = Scene::new().await?;
    let subscription = scene.service.subscribe("phone");
    for length in [1, 15, 16, 17, 1000, 3052] {
        let sent = PushMessage { payload: vec![b'x'; length], ..message("", "topic") };
        assert_eq!(scene.sender.send(&subscription, &sent).await, PushAnswer::Accepted, "{length}");
        assert_eq!(scene.last("phone")?.payload, sent.payload);
    }
    Ok(())
}

#[tokio::test]
async fn a_repeated_notice_replaces_the_former() -> Result<()> {
    let scene = Scene::new().await?;
    let subscription = scene.service.subscribe("phone");
    for (text, topic) in [("old", "a"), ("other", "b"), ("new", "a")] {
        scene.sender.send(&subscription, &message(text, topic)).await;
    }
    let titles = scene.service.shown("phone")?.iter().map(Received::json).collect::<Result<Vec<_>, _>>()?;
    assert_eq!(titles, [json!({ "title": "other" }), json!({ "title": "new" })]);
    Ok(())
}

#[tokio::test]
async fn one_signature_serves_a_service_for_an_hour() -> Result<()> {
    let scene = Scene::new().await?;
    let (phone, tablet) = (scene.service.subscribe("phone"), scene.service.subscribe("tablet"));
    let token = async |subscription: &Subscription, name: &str| {
        assert_eq!(scene.send(subscription).await, PushAnswer::Accepted);
        scene.last(name).map(|received| received.token)
    };
    let first = token(&phone, "phone").await?;
    scene.clock.advance(Duration::from_mins(59));
    assert_eq!(token(&tablet, "tablet").await?, first);
    scene.clock.advance(Duration::from_mins(1));
    assert_ne!(token(&tablet, "tablet").await?, first);
    Ok(())
}

#[tokio::test]
async fn keys_are_taken_in_every_form_that_browsers_store_them_in() -> Result<()> {
    let scene = Scene::new().await?;
    let mut subscription = scene.service.subscribe("phone");
    let padded = |text: &str| format!("{text}{}", "=".repeat((4 - text.len() % 4) % 4));
    let standard = |text: &str| padded(&text.replace('-', "+").replace('_', "/"));
    for change in [&padded as &dyn Fn(&str) -> String, &standard] {
        subscription.p256dh = change(&subscription.p256dh);
        subscription.auth = change(&subscription.auth);
        assert_eq!(scene.send(&subscription).await, PushAnswer::Accepted);
    }
    Ok(())
}

#[tokio::test]
async fn every_answer_has_its_class() -> Result<()> {
    let scene = Scene::new().await?;
    let gone = scene.service.subscribe("phone");
    scene.service.expire("phone")?;
    assert_eq!(scene.send(&gone).await, PushAnswer::Gone);
    assert_eq!(scene.answer_to(Fault::status(404)).await?, PushAnswer::Gone);

    // Made for another sender.
    let other = scene.service.subscribe_to("phone", &VapidKey::generate()?.public());
    assert!(matches!(scene.send(&other).await, PushAnswer::Unauthorized(reason) if reason.contains("403")));
    assert!(matches!(scene.answer_to(Fault::status(401)).await?, PushAnswer::Unauthorized(_)));

    // Apple's.
    for reason in ["BadJwtToken", "VapidPkHashMismatch"] {
        let answer = scene.answer_to(Fault::Reason { status: 400, reason: reason.to_owned() }).await?;
        assert_eq!(answer, PushAnswer::Unauthorized("127.0.0.1 answered 400".to_owned()));
    }
    let topic = Fault::Reason { status: 400, reason: "BadWebPushTopic".to_owned() };
    assert!(matches!(scene.answer_to(topic).await?, PushAnswer::Rejected(_)));

    for status in [400, 404, 406, 410, 413, 429, 503] {
        let fault = Fault::Status { status, retry_after: Some("120".to_owned()) };
        let (wait, reason) = busy(scene.answer_to(fault).await?);
        assert_eq!((wait, reason), (Some(TimeDelta::minutes(2)), format!("127.0.0.1 answered {status}")));
    }
    let date = domain::Clock::now(&*scene.clock) + TimeDelta::hours(30);
    let date = date.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let fault = Fault::Status { status: 503, retry_after: Some(date) };
    assert_eq!(busy(scene.answer_to(fault).await?).0, Some(TimeDelta::hours(24)));

    for status in [400, 413] {
        assert!(matches!(scene.answer_to(Fault::status(status)).await?, PushAnswer::Rejected(_)));
    }
    let lost = [Fault::HangUp, Fault::AcceptedButLost];
    for fault in lost {
        let PushAnswer::NoAnswer(reason) = scene.answer_to(fault).await? else { panic!() };
        assert!(reason.starts_with("the answer of 127.0.0.1 broke off: "), "{reason}");
    }
    assert_eq!(scene.answer_to(Fault::EndlessBody).await?, PushAnswer::Accepted);
    Ok(())
}

#[tokio::test]
async fn a_service_that_never_answers_is_left_to_a_later_attempt() -> Result<()> {
    let scene = Scene::new().await?;
    // It takes as long as the sender's patience, 8 s.
    let answer = scene.answer_to(Fault::Hang).await?;
    assert_eq!(answer, PushAnswer::NoAnswer("127.0.0.1 did not answer within 8 s".to_owned()));
    Ok(())
}

#[tokio::test]
async fn a_redirect_is_not_followed() -> Result<()> {
    let scene = Scene::new().await?;
    let PushAnswer::Rejected(reason) = scene.answer_to(Fault::Redirect).await? else { panic!() };
    assert_eq!(reason, "127.0.0.1 answered 307: redirects are not followed");
    assert_eq!(scene.service.totals().redirected, 0);
    Ok(())
}

#[tokio::test]
async fn this_machine_is_called_only_where_that_is_allowed() -> Result<()> {
    let scene = Scene::with(Loopback::Refused).await?;
    let subscription = scene.service.subscribe("phone");
    let PushAnswer::Unreachable(reason) = scene.send(&subscription).await else { panic!() };
    assert_eq!(reason, "the endpoint's host is a loopback address");
    assert_eq!(scene.service.totals().requests, 0);
    Ok(())
}

#[tokio::test]
async fn no_answer_names_the_endpoint_or_a_key() -> Result<()> {
    let scene = Scene::new().await?;
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
