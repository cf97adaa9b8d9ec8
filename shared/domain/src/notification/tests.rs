//! What follows from each answer.

use chrono::TimeZone;
use proptest::prelude::*;

use super::*;
use crate::authorization::CampaignId;

fn now() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 23, 20, 0, 0).unwrap()
}

fn id(n: u128) -> Uuid {
    Uuid::from_u128(0x5b0b_c1a5_6d2a_4f0e_9d0a_0000_0000_0000 + n)
}

fn to(role: Role) -> Notification {
    Notification {
        id: id(1),
        attempt: 1,
        created_at: now(),
        subscription: Subscription {
            id: id(2),
            endpoint: "https://push.example.com/secret-path".to_owned(),
            p256dh: "key".to_owned(),
            auth: "secret-auth".to_owned(),
        },
        streamer: StreamerId(id(3)),
        streamer_name: "Aria".to_owned(),
        role,
        also_lost: AlsoLost::default(),
        no_name_since: None,
        other_key: false,
    }
}

fn to_streamer() -> Notification {
    to(Role::Streamer)
}

fn to_master() -> Notification {
    to(Role::GameMaster(Campaigns::one(CampaignId(id(4)), "Les Brumes de Valombre")))
}

#[test]
fn a_repeated_notice_replaces_the_former_and_no_other() {
    let again = Notification { id: id(9), created_at: now() + TimeDelta::hours(5), ..to_master() };
    assert_eq!(again.topic(), to_master().topic());
    let other_campaign = to(Role::GameMaster(Campaigns::one(CampaignId(id(5)), "Other")));
    let other_streamer = Notification { streamer: StreamerId(id(6)), ..to_master() };
    let topics = [to_streamer(), to_master(), other_campaign, other_streamer].map(|one| one.topic());
    for (n, topic) in topics.iter().enumerate() {
        assert!(!topics[..n].contains(topic), "{topics:?}");
    }
}

#[test]
fn ids_that_share_any_half_have_topics_of_their_own() {
    let low = 0x9d0a_0000_0000_0003_u128;
    let high = 0x5b0b_c1a5_6d2a_4f0e_u128 << 64;
    let ids = [low, high, high | low, (1_u128 << 64) | low, high | 1].map(Uuid::from_u128);
    let mut topics = Vec::new();
    for streamer in ids {
        let about = |recipient| Notification { streamer: StreamerId(streamer), ..to(recipient) }.topic();
        topics.push(about(Role::Streamer));
        topics.extend(ids.map(|id| about(Role::GameMaster(Campaigns::one(CampaignId(id), "")))));
    }
    let number = topics.len();
    topics.sort_unstable();
    topics.dedup();
    assert_eq!(topics.len(), number);
}

#[test]
fn each_answer_has_its_consequence() {
    let notification = to_streamer();
    let after = |answer: &PushAnswer| notification.after_attempt(answer, now());
    let minutes = |n| Next::RetryAt(now() + TimeDelta::minutes(n));
    let busy = |retry_after| PushAnswer::Busy { retry_after, reason: String::new() };
    assert_eq!(after(&PushAnswer::Accepted), Next::Delivered);
    assert_eq!(after(&PushAnswer::Gone), Next::Gone);
    assert_eq!(after(&PushAnswer::Unreachable(String::new())), Next::Gone);
    for reason in [PushAnswer::OtherKey, PushAnswer::NoAnswer, PushAnswer::NotAsked, PushAnswer::NoSuchName] {
        assert_eq!(after(&reason(String::new())), minutes(1));
    }
    assert_eq!(after(&PushAnswer::Rejected(String::new())), Next::GivenUp);
    assert_eq!(after(&PushAnswer::Unauthorized(String::new())), minutes(1));
    assert_eq!(after(&busy(None)), minutes(1));
    assert_eq!(after(&busy(Some(TimeDelta::seconds(5)))), minutes(1), "no sooner than by ourselves");
    assert_eq!(after(&busy(Some(TimeDelta::seconds(-5)))), minutes(1));
    assert_eq!(
        after(&busy(Some(TimeDelta::hours(3)))),
        minutes(180),
        "it may ask for more than we would wait"
    );
    assert_eq!(after(&busy(Some(TimeDelta::days(3)))), Next::GivenUp, "past the end there is nothing to say");
    assert_eq!(after(&busy(Some(TimeDelta::MAX))), Next::GivenUp);
}

#[test]
fn a_name_that_does_not_exist_is_gone_after_a_day_of_that_alone() {
    let missing = || PushAnswer::NoSuchName(String::new());
    let mut notification = Notification { attempt: 9, ..to_streamer() };
    let mut at = now();
    let last = loop {
        notification.note(&missing(), at);
        match notification.after_attempt(&missing(), at) {
            Next::RetryAt(next) => at = next,
            last => break last,
        }
    };
    assert_eq!((last, at), (Next::Gone, now() + NO_NAME_FOR));
    // It existed once in between.
    for other in
        [PushAnswer::Busy { retry_after: None, reason: String::new() }, PushAnswer::NoAnswer(String::new())]
    {
        let mut notification = Notification { no_name_since: Some(now()), ..to_streamer() };
        notification.note(&other, now() + TimeDelta::hours(22));
        notification.note(&missing(), now() + NO_NAME_FOR);
        assert_ne!(notification.after_attempt(&missing(), now() + NO_NAME_FOR), Next::Gone);
    }
    // Once, however late, is no day of it.
    let mut once = to_streamer();
    once.note(&missing(), now() + NO_NAME_FOR);
    assert_ne!(once.after_attempt(&missing(), now() + NO_NAME_FOR), Next::Gone);
}

#[test]
fn push_services_are_told_apart_by_host() {
    let host =
        |endpoint: &str| Subscription { endpoint: endpoint.to_owned(), ..to_streamer().subscription }.host();
    for same in [
        "https://push.example.com/a",
        "https://PUSH.example.com./b?c",
        "https://user:secret@push.example.com#d",
        "https:\\\\push.example.com\\e",
        "https:///push.example.com:443/f",
    ] {
        assert_eq!(host(same), "push.example.com", "{same}");
    }
    assert_eq!(host(""), "");
    assert_ne!(host("https://a.example.com/push.example.com"), host("https://push.example.com/"));
}

#[test]
fn nothing_is_tried_after_a_day() {
    let notification = Notification { attempt: 9, ..to_streamer() };
    let busy = PushAnswer::Busy { retry_after: None, reason: String::new() };
    let last = now() + TIME_TO_LIVE - MAX_PAUSE;
    assert_eq!(notification.after_attempt(&busy, last), Next::GivenUp);
    let before = last - TimeDelta::microseconds(1);
    assert_eq!(notification.after_attempt(&busy, before), Next::RetryAt(before + MAX_PAUSE));
    assert!(!notification.is_stale(now() + TIME_TO_LIVE - TimeDelta::microseconds(1)));
    assert!(notification.is_stale(now() + TIME_TO_LIVE));
}

#[test]
fn an_endpoint_is_never_shown() {
    let shown = format!("{:?}", to_streamer());
    assert!(!shown.contains("secret"), "{shown}");
}

proptest! {
    /// RFC 8030, section 5.4.
    #[test]
    fn a_topic_has_its_form(streamer: u128, campaign: Option<u128>) {
        let recipient = campaign.map_or(Role::Streamer, |campaign| {
            Role::GameMaster(Campaigns::one(CampaignId(Uuid::from_u128(campaign)), ""))
        });
        let topic = Notification { streamer: StreamerId(Uuid::from_u128(streamer)), ..to(recipient) }.topic();
        prop_assert!((1..=32).contains(&topic.len()));
        prop_assert!(topic.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_'));
    }

    /// Whatever a push service asks for: the next attempt is later than now and earlier than the end, and the wait
    /// does not shrink from one attempt to the next.
    #[test]
    fn a_wait_is_never_shorter_than_the_one_before(attempt in 1_u32..100, late in 0_i64..86_400, asked: Option<u32>) {
        let answer = PushAnswer::Busy {
            retry_after: asked.map(|seconds| TimeDelta::seconds(seconds.into())),
            reason: String::new(),
        };
        let now = now() + TimeDelta::seconds(late);
        let next = |attempt| Notification { attempt, ..to_streamer() }.after_attempt(&answer, now);
        match (next(attempt), next(attempt + 1)) {
            (Next::RetryAt(first), Next::RetryAt(second)) => {
                prop_assert!(first >= now + FIRST_PAUSE && first <= second);
                prop_assert!(second < to_streamer().created_at + TIME_TO_LIVE);
            }
            (Next::RetryAt(_) | Next::GivenUp, Next::GivenUp) => {}
            other => prop_assert!(false, "{other:?}"),
        }
    }
}
