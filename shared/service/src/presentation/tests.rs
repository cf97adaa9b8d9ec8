//! What a person reads, and that it fits.

use chrono::{DateTime, TimeZone, Utc};
use proptest::prelude::*;
use serde_json::Value;
use tokens_domain::notification::Subscription;
use tokens_domain::{CampaignId, StreamerId};
use uuid::Uuid;

use super::*;

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

/// In this language, with the links by default.
fn payload(notification: &Notification, locale: Locale) -> Value {
    serde_json::from_slice(&Presentation { locale, ..Presentation::default() }.payload(notification)).unwrap()
}

fn pretty(notification: &Notification, locale: Locale) -> String {
    serde_json::to_string_pretty(&payload(notification, locale)).unwrap()
}

#[test]
fn the_streamer_reads_what_to_do() {
    insta::assert_snapshot!("streamer_fr", pretty(&to_streamer(), Locale::Fr));
    insta::assert_snapshot!("streamer_en", pretty(&to_streamer(), Locale::En));
}

#[test]
fn a_game_master_reads_which_campaign_it_is_about() {
    insta::assert_snapshot!("game_master_fr", pretty(&to_master(), Locale::Fr));
    insta::assert_snapshot!("game_master_en", pretty(&to_master(), Locale::En));
}

#[test]
fn a_game_master_of_several_campaigns_reads_some_names_and_how_many_more() {
    let body = |count: usize, locale| {
        let names = ["A", "B", "C", "D"].map(str::to_owned)[..count.min(4)].to_vec();
        let campaigns = Campaigns { first: CampaignId(id(4)), names, count };
        let payload = payload(&to(Role::GameMaster(campaigns)), locale);
        assert_eq!(payload["data"]["campaignId"], id(4).to_string());
        payload["body"].as_str().unwrap().to_owned()
    };
    for (count, en, fr) in [
        (2, "Polls of “A” and “B” no", "Les sondages de « A » et « B » ne"),
        (3, "Polls of “A”, “B” and “C” no", "Les sondages de « A », « B » et « C » ne"),
        (4, "“B”, “C” and 1 other campaign no", "« B », « C » et 1 autre campagne ne"),
        (400, "“B”, “C” and 397 other campaigns no", "« B », « C » et 397 autres campagnes ne"),
    ] {
        assert!(body(count, Locale::En).contains(en), "{}", body(count, Locale::En));
        assert!(body(count, Locale::Fr).contains(fr), "{}", body(count, Locale::Fr));
    }
}

/// The service worker shows one notification of a kind: the newest.
#[test]
fn the_newest_notice_says_who_else_is_lost() {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let lost = |own, others| AlsoLost { own: names(own), others: names(others) };
    let text = |recipient: fn() -> Notification, also_lost, locale| {
        let payload = payload(&Notification { also_lost, ..recipient() }, locale);
        format!("{}|{}", payload["title"].as_str().unwrap(), payload["body"].as_str().unwrap())
    };
    let one = |recipient, locale| text(recipient, lost(&[], &["Bastien"]), locale);
    let more = |recipient, locale| text(recipient, lost(&["Dora"], &["Bastien", "Corvin"]), locale);
    insta::assert_snapshot!(
        "also_lost",
        [
            one(to_master, Locale::Fr),
            more(to_master, Locale::Fr),
            one(to_master, Locale::En),
            more(to_master, Locale::En),
            one(to_streamer, Locale::Fr),
            more(to_streamer, Locale::Fr),
            one(to_streamer, Locale::En),
            more(to_streamer, Locale::En),
        ]
        .join("\n")
    );
}

#[test]
fn as_many_names_as_there_is_room_for_and_the_rest_is_counted() {
    // Four bytes each in UTF-8, two in JSON, one.
    for name in ["🎲".repeat(80), "\"".repeat(80), "\\".repeat(80), "x".repeat(80), "Ω".to_owned()] {
        let others = vec![name.clone(); 2_000];
        let notification =
            Notification { also_lost: AlsoLost { own: vec!["Own".to_owned()], others }, ..to_master() };
        let bytes = Presentation::default().payload(&notification);
        let payload: Value = serde_json::from_slice(&bytes).unwrap();
        let body = payload["body"].as_str().unwrap();
        let named = body.matches(&name).count();
        assert!(body.contains("de ton côté : Own."), "{body}");
        assert!(body.ends_with(&format!(" et {} autres.", 2_000 - named)), "{named} in {body}");
        let another = serde_json::to_string(&name).unwrap().len();
        assert!((MAX_PAYLOAD - another..=MAX_PAYLOAD).contains(&bytes.len()), "{} of {name}", bytes.len());
    }
}

#[test]
fn links_are_those_that_are_set() {
    let presentation = Presentation {
        streamer_url: "https://polls.example.com/me".to_owned(),
        campaign_url: "/#/{campaign_id}?id={campaign_id}".to_owned(),
        ..Presentation::default()
    };
    let url = |notification: &Notification| {
        let payload: Value = serde_json::from_slice(&presentation.payload(notification)).unwrap();
        payload["data"]["url"].as_str().unwrap().to_owned()
    };
    assert_eq!(url(&to_streamer()), "https://polls.example.com/me");
    assert_eq!(url(&to_master()), format!("/#/{0}?id={0}", id(4)));
}

#[test]
fn french_is_the_default() {
    assert_eq!(Locale::default(), Locale::Fr);
    assert_eq!(("fr".parse(), "en".parse()), (Ok(Locale::Fr), Ok(Locale::En)));
    assert_eq!("de".parse::<Locale>(), Err(()));
}

#[test]
fn a_name_does_not_fill_the_screen() {
    let mut notification = to_streamer();
    notification.streamer_name = format!("Aria{}", "x".repeat(500));
    let payload = payload(&notification, Locale::En);
    let body = payload["body"].as_str().unwrap();
    assert!(body.contains(&format!("the channel Aria{}…. Reconnect", "x".repeat(76))), "{body}");
}

proptest! {
    /// Whatever people are called, whatever is in a link, and however many are lost. `"` and `\\` are longer in JSON.
    #[test]
    fn every_payload_fits(
        streamer in "[\\PC\"\\\\😀]{0,300}",
        names in prop::collection::vec("[\\PC\"\\\\😀]{0,300}", 1..10),
        more in 0_usize..100_000,
        own in prop::collection::vec("[\\PC\"\\\\😀]{0,90}", 0..4),
        others in prop::collection::vec("[\\PC\"\\\\😀]{0,90}", 0..60),
        link in prop::sample::select(vec!["/".repeat(MAX_LINK), "/é".to_owned(), format!("/{CAMPAIGN_ID}")]),
        is_master: bool,
        english: bool,
    ) {
        let locale = if english { Locale::En } else { Locale::Fr };
        let count = names.len() + more;
        let master = Role::GameMaster(Campaigns { first: CampaignId(id(4)), names, count });
        let recipient = if is_master { master } else { Role::Streamer };
        let lost = own.len() + others.len();
        let also_lost = AlsoLost { own, others };
        let presentation = Presentation { locale, streamer_url: link.clone(), campaign_url: link };
        let notification = Notification { streamer_name: streamer, also_lost, ..to(recipient) };
        let payload = presentation.payload(&notification);
        prop_assert!(payload.len() <= MAX_PAYLOAD, "{}", payload.len());
        prop_assert!(serde_json::from_slice::<Value>(&payload).is_ok());
        // No room is left for another name, of which the longest takes 4 bytes for each of its 81 characters.
        let is_whole = payload == presentation.payload_naming(&notification, lost);
        prop_assert!(is_whole || payload.len() > MAX_PAYLOAD - 81 * 4 - 10, "{}", payload.len());
    }
}
