//! What is well, a warning and a fault.

use chrono::TimeZone;
use tokens_domain::authorization::AUTHORIZATION;
use tokens_domain::ports::Outage;
use tokens_domain::{Streamer, StreamerId, TokenState};
use uuid::Uuid;

use super::*;
use crate::doctor::check::{State, not_among};

fn now() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 23, 20, 0, 0).unwrap()
}

#[test]
fn clocks_may_be_a_little_apart() {
    let apart = |seconds| clock(TimeDelta::seconds(seconds));
    for (seconds, state) in [
        (0, State::Ok),
        (2, State::Ok),
        (-2, State::Ok),
        (3, State::Warning),
        (-3, State::Warning),
        (3600, State::Warning),
    ] {
        assert_eq!(apart(seconds).state, state, "{seconds}");
    }
    assert!(apart(-3600).text.contains("are 3600 s apart"), "{:?}", apart(-3600));
}

#[test]
fn hidden_rows_are_a_fault_where_nothing_is_seen_or_nothing_can_be_changed() {
    let hidden =
        |sees_some, only_writes| Hidden { relation: "public.streamers".to_owned(), sees_some, only_writes };
    let aria = || Streamer {
        id: StreamerId(Uuid::nil()),
        login: "aria".to_owned(),
        display_name: "Aria".to_owned(),
    };
    for (found, rehearsal, state, says) in [
        (vec![], Rehearsal::Done, State::Ok, "nothing is hidden; a streamer's row was leased"),
        (vec![], Rehearsal::Busy, State::Ok, "held by other runs"),
        (vec![], Rehearsal::NoStreamer, State::Warning, "has no active streamer"),
        (
            vec![hidden(false, false)],
            Rehearsal::NoStreamer,
            State::Fault,
            "app sees no row of public.streamers",
        ),
        (
            vec![hidden(true, true)],
            Rehearsal::NotLocked(aria()),
            State::Fault,
            "app can read Aria (aria) and not lock",
        ),
        (
            vec![],
            Rehearsal::NotWritten(aria()),
            State::Fault,
            "app can lock the row of Aria (aria) and not change it",
        ),
        (
            vec![hidden(true, false)],
            Rehearsal::Done,
            State::Warning,
            "may hide rows of public.streamers from app",
        ),
        (vec![hidden(true, true)], Rehearsal::Done, State::Warning, r#"ALTER ROLE "app" BYPASSRLS"#),
    ] {
        let check = rows("app", Ok(found), Trial::Tried(Ok(rehearsal.clone())));
        assert_eq!(check.state, state, "{rehearsal:?}: {check:?}");
        assert!(check.text.contains(says), "{check:?}");
    }
    for (trial, why) in [
        (Trial::MayNotWrite, "was not tried on a row: app may not write"),
        (Trial::NoKeys, "was not tried on a row: no key"),
    ] {
        let check = rows("app", Ok(vec![]), trial);
        assert_eq!(check.state, State::Warning);
        assert!(check.text.contains(why), "{check:?}");
    }
}

#[test]
fn what_has_no_line_is_told() {
    let checks = [configuration(&["a fault".to_owned(), "another".to_owned()]), vec![vapid(None)]].concat();
    let missing = not_among(&checks);
    assert_eq!(missing.len(), Topic::ALL.len() - 2);
    assert!(!missing.contains(&Topic::Vapid) && missing.contains(&Topic::Twitch));
}

#[test]
fn a_token_that_is_not_taken_back_is_a_warning() {
    let check = twitch(Ok(Err(Outage("Twitch answered 500".to_owned()).into())));
    assert_eq!(check.state, State::Warning);
    assert!(check.text.contains("Twitch answered 500"), "{check:?}");
}

#[test]
fn our_fault_comes_before_the_streamers() {
    let kind =
        |key, reason: &[DecryptError]| StoredTexts { key, texts: 30, tried: 20, unreadable: reason.to_vec() };
    let theirs = kind(None, &[DecryptError::UnknownFormat]);
    let ours = kind(Some(StoredUnder::TokenKey("2025".to_owned())), &[DecryptError::AuthenticationFailed]);
    let state = |kinds: &[&StoredTexts]| tokens(Ok(kinds.iter().copied().cloned().collect())).state;
    assert_eq!(state(&[]), State::Ok);
    assert_eq!(state(&[&kind(Some(StoredUnder::AppKey), &[])]), State::Ok);
    assert_eq!(state(&[&theirs]), State::Warning);
    assert_eq!(
        state(&[&kind(None, &[DecryptError::UnknownFormat, DecryptError::Unsupported])]),
        State::Fault
    );
    assert_eq!(state(&[&theirs, &ours]), State::Fault);
    let text = tokens(Ok(vec![theirs, ours])).text;
    assert!(text.contains("tried 20 of those under the key `2025` of TOKEN_KEYS: "), "{text}");
}

/// Authorized since this many minutes; the rules' last runs are these.
fn cycle(logins: &[&str], token: &TokenState, authorized_for: i64, runs: LastRuns) -> Check {
    cycle_beside(Vec::new(), logins, token, authorized_for, runs)
}

fn cycle_beside(
    aside: Vec<SetAside>,
    logins: &[&str],
    token: &TokenState,
    authorized_for: i64,
    runs: LastRuns,
) -> Check {
    let one = |login: &&str| Authorized {
        streamer: Streamer {
            id: StreamerId(Uuid::nil()),
            login: (*login).to_owned(),
            display_name: login.to_uppercase(),
        },
        until: now() + AUTHORIZATION - TimeDelta::minutes(authorized_for),
        token: token.clone(),
    };
    cycles(Ok(logins.iter().map(one).collect()), Ok(aside), Ok(runs), Policy::default(), now())
}

fn swept() -> LastRuns {
    LastRuns { planned: None, sweep: Some(now() - TimeDelta::minutes(90)) }
}

fn expiring(minutes: i64) -> TokenState {
    TokenState {
        expires_at: Some(now() + TimeDelta::minutes(minutes)),
        refreshed_at: Some(now()),
        ..TokenState::default()
    }
}

fn proven(minutes: i64) -> TokenState {
    TokenState {
        validated_at: Some(now() - TimeDelta::minutes(minutes)),
        refreshed_at: Some(now() - TimeDelta::hours(2)),
        ..expiring(120)
    }
}

#[test]
fn a_sweep_that_is_a_little_late_leaves_nobody_overdue() {
    let cycle = |logins: &[&str], token| cycle(logins, &token, 600, swept());
    assert_eq!(cycle(&["aria"], expiring(40)).state, State::Ok);
    assert_eq!(cycle(&["aria"], expiring(39)).state, State::Fault);
    assert_eq!(cycle(&["aria"], proven(60)).state, State::Ok);
    assert_eq!(cycle(&["aria"], proven(61)).state, State::Fault);
    let many = cycle(&["a", "b", "c", "d", "e"], expiring(-60)).text;
    assert!(
        many.contains(
            "of a planned run: none lately, of a sweep: 1 h 30 ago; overdue: A (a), B (b), C (c) and 2 more"
        ),
        "{many}"
    );
}

#[test]
fn whoever_was_authorized_just_now_is_not_overdue() {
    let unknown = TokenState::default;
    let unseen = || TokenState { refreshed_at: None, ..expiring(120) };
    for (token, authorized_for, state) in [
        (expiring(-120), 20, State::Ok),
        (expiring(-120), 21, State::Fault),
        (proven(600), 60, State::Ok),
        (proven(600), 61, State::Fault),
        (unknown(), 20, State::Warning),
        (unknown(), 21, State::Fault),
        (unseen(), 60, State::Warning),
        (unseen(), 61, State::Fault),
        (expiring(-120), -43_200, State::Fault),
        (proven(81), -43_200, State::Fault),
    ] {
        let check = cycle(&["aria"], &token, authorized_for, swept());
        assert_eq!(check.state, state, "authorized since {authorized_for} min: {check:?}");
    }
}

#[test]
fn before_the_rules_are_enabled_whoever_is_overdue_is_a_warning() {
    let overdue = |runs| cycle(&["aria"], &proven(110), 600, runs);
    let none = LastRuns { planned: None, sweep: None };
    assert_eq!(overdue(none).state, State::Warning);
    let text = overdue(none).text;
    assert!(
        text.contains("overdue: ARIA (aria). No planned run and no sweep has refreshed a streamer yet"),
        "{text}"
    );
    assert_eq!(overdue(LastRuns { planned: Some(now()), ..none }).state, State::Fault);
    assert_eq!(overdue(swept()).state, State::Fault);
}

#[test]
fn rows_that_are_set_aside_are_a_fault_of_their_own_and_not_overdue() {
    let until = now() + TimeDelta::minutes(30);
    let row =
        SetAside { id: StreamerId(Uuid::nil()), at: now(), until, reason: "a trigger says no".to_owned() };
    let check = cycle_beside(vec![row], &["aria"], &expiring(-60), 600, swept());
    assert_eq!((check.topic, check.state), (Topic::Cycles, State::Fault));
    let text = "set aside: ARIA (aria), until 2026-11-23 20:30:00 at the earliest: a trigger says no. When";
    assert!(check.text.contains(text), "{}", check.text);
}

#[test]
fn tokens_of_others_are_faults_that_name_whose_and_what_to_look_at() {
    let one = |login: &str, other_client: Option<&str>| Misplaced {
        streamer: Streamer {
            id: StreamerId(Uuid::nil()),
            login: login.to_owned(),
            display_name: login.to_uppercase(),
        },
        other_client: other_client.map(str::to_owned),
    };
    assert!(misplaced(Ok(Vec::new())).is_none());
    let check = misplaced(Ok(vec![one("aria", Some("abc")), one("bastien", None)])).unwrap();
    assert_eq!((check.topic, check.state), (Topic::Tokens, State::Fault));
    for text in
        ["ARIA (aria)", "client id abc", "TWITCH_CLIENT_ID", "BASTIEN (bastien)", "another Twitch user"]
    {
        assert!(check.text.contains(text), "{}", check.text);
    }
}

#[test]
fn two_hours_of_nothing_but_refusals_are_a_fault() {
    assert!(only_refused(Ok(TimeDelta::minutes(119))).is_none());
    let check = only_refused(Ok(TimeDelta::minutes(120))).unwrap();
    assert_eq!((check.topic, check.state), (Topic::Twitch, State::Fault));
    assert!(check.text.starts_with("for 2 h 00 "), "{}", check.text);
}
