//! The tables of both rules, and what holds for any state.

use chrono::TimeZone;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::authorization::AUTHORIZATION;
use crate::streamer::{Streamer, StreamerId};

fn now() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 23, 20, 0, 0).unwrap()
}

fn minutes(n: i64) -> TimeDelta {
    TimeDelta::minutes(n)
}

fn failed(minutes_ago: i64, kind: FailureKind, refusals: u32) -> Failure {
    Failure { refusals, ..Failure::first(kind, now() - minutes(minutes_ago)) }
}

fn living(left: TimeDelta) -> TokenState {
    TokenState {
        expires_at: Some(now() + left),
        refreshed_at: Some(now() - minutes(10)),
        ..TokenState::default()
    }
}

fn decide(token: &TokenState, mode: RefreshMode) -> Decision {
    Policy::default().decide(token, mode, now())
}

const SWEEP: RefreshMode = RefreshMode::DueOrUnproven;
const FORCE: RefreshMode = RefreshMode::Forced;
const PLAIN: RefreshMode = RefreshMode::Due;

#[test]
fn a_token_is_due_within_its_last_hour() {
    assert_eq!(decide(&living(minutes(60)), PLAIN), Decision::Refresh);
    assert_eq!(decide(&living(minutes(-300)), PLAIN), Decision::Refresh);
    let left = minutes(60) + TimeDelta::microseconds(1);
    assert_eq!(decide(&living(left), PLAIN), Decision::Skip(NotDue::Valid { left }));
}

#[test]
fn an_unknown_expiry_is_due() {
    assert_eq!(decide(&TokenState::default(), PLAIN), Decision::Refresh);
}

#[test]
fn a_standing_failure_waits_for_its_retry_whatever_the_token_has_left() {
    for left in [minutes(-1), minutes(200)] {
        let mut token = living(left);
        token.failure = Some(failed(14, FailureKind::Outage, 0));
        let retry_at = now() + minutes(1);
        assert_eq!(decide(&token, PLAIN), Decision::Skip(NotDue::RetryAt(retry_at)));
        assert_eq!(decide(&token, SWEEP), Decision::Validate, "one that lives needs no mark");
        assert_eq!(decide(&token, FORCE), Decision::Refresh);
        token.failure = Some(failed(15, FailureKind::Outage, 0));
        assert_eq!(decide(&token, PLAIN), Decision::Refresh);
    }
}

#[test]
fn a_double_click_on_a_grant_costs_one_call() {
    let mut token = living(minutes(230));
    assert_eq!(decide(&token, RefreshMode::NotJustNow), Decision::Refresh, "whatever is left of it");
    token.refreshed_at = Some(now() - TimeDelta::seconds(59));
    assert_eq!(decide(&token, RefreshMode::NotJustNow), Decision::Skip(NotDue::Valid { left: minutes(230) }));
    token.failure = Some(failed(1, FailureKind::Refusal, 1));
    assert_eq!(decide(&token, RefreshMode::NotJustNow), Decision::Refresh, "something went wrong since");
}

#[test]
fn a_token_fresh_from_twitch_is_usable_however_short_it_lives() {
    let mut token = living(minutes(45));
    assert_eq!(decide(&token, RefreshMode::Usable), Decision::Refresh);
    token.failure = Some(failed(1, FailureKind::Outage, 0));
    assert_eq!(decide(&token, RefreshMode::Usable), Decision::Refresh, "a caller waits: no retry delay");
    token = TokenState { refreshed_at: Some(now() - TimeDelta::seconds(2)), ..living(minutes(45)) };
    assert_eq!(decide(&token, RefreshMode::Usable), Decision::Validate);
    token.refreshed_at = Some(now() - REFRESH_REUSE_WINDOW);
    assert_eq!(decide(&token, RefreshMode::Usable), Decision::Refresh);
    assert_eq!(decide(&living(minutes(61)), RefreshMode::Usable), Decision::Validate);
}

#[test]
fn only_a_sweep_validates_and_only_what_was_not_proven_for_40_minutes() {
    let mut token = living(minutes(120));
    token.refreshed_at = Some(now() - minutes(100));
    assert_eq!(decide(&token, SWEEP), Decision::Validate);
    assert_eq!(decide(&token, PLAIN), Decision::Skip(NotDue::Valid { left: minutes(120) }));
    token.validated_at = Some(now() - minutes(40));
    assert_eq!(decide(&token, SWEEP), Decision::Validate);
    token.validated_at = Some(now() - minutes(39));
    assert_eq!(decide(&token, SWEEP), Decision::Skip(NotDue::Valid { left: minutes(120) }));
    assert_eq!(decide(&token, FORCE), Decision::Refresh);
}

const KINDS: [FailureKind; 2] = [FailureKind::Refusal, FailureKind::Outage];

/// The table of the rule of failure, row by row: whether a confirmed refusal deactivates, and what is recorded after any
/// other refusal and after an outage.
#[test]
fn the_failure_table() {
    use FailureKind::{Outage, Refusal};
    let refusal = |before: Failure, refusals| {
        let refused_since = before.refused_since.or(Some(now()));
        Verdict::Recorded(Failure { at: now(), kind: Refusal, refusals, refused_since, noticed: false })
    };
    let outage = |before: Failure| Verdict::Recorded(Failure { at: now(), kind: Outage, ..before });
    let marked = |minutes_ago| Failure::recorded_elsewhere(now() - minutes(minutes_ago));
    // Of failures that stand: whether a confirmed refusal deactivates, and how many refusals are counted otherwise.
    for (before, deactivates, refusals) in [
        // 15 to 30 minutes old and a refusal, confirmed or not, or another program's mark
        (failed(15, Refusal, 1), true, 2),
        (failed(30, Refusal, 1), true, 2),
        (marked(15), true, 2),
        (marked(30), true, 2),
        // older, or an outage
        (failed(31, Refusal, 1), false, 2),
        (marked(31), false, 2),
        (failed(20, Outage, 0), false, 1),
        (failed(20, Outage, 1), false, 2),
        // the third refusal without a success, at any age
        (failed(600, Refusal, 2), true, 3),
        (failed(20, Outage, 2), true, 3),
    ] {
        let after = |kind| Policy::default().after_failure(Some(before), kind, now());
        assert_eq!(Policy::default().is_decisive(Some(before), now()), deactivates, "{before:?}");
        assert_eq!(after(Refusal), refusal(before, refusals), "{before:?}");
        assert_eq!(after(Outage), outage(before), "{before:?}");
    }
    // under 15 minutes old: counts for nothing
    for before in [failed(14, Refusal, 1), failed(14, Refusal, 2), failed(14, Outage, 2), marked(0)] {
        for kind in KINDS {
            let verdict = Policy::default().after_failure(Some(before), kind, now());
            assert_eq!(verdict, Verdict::Repeated(before), "{before:?} then {kind:?}");
        }
        assert!(!Policy::default().is_decisive(Some(before), now()));
    }
    // no failure recorded
    for kind in KINDS {
        let verdict = Policy::default().after_failure(None, kind, now());
        assert_eq!(verdict, Verdict::Recorded(Failure::first(kind, now())), "{kind:?}");
    }
    assert!(!Policy::default().is_decisive(None, now()));
}

#[test]
fn people_are_notified_once_after_30_minutes_of_refusals_that_nothing_confirms() {
    let mut standing = None;
    let mut noticed = Vec::new();
    for minute in [0, 15, 30, 45, 60] {
        let at = now() + minutes(minute);
        let verdict = Policy::default().after_failure(standing, FailureKind::Refusal, at);
        let Verdict::Recorded(mut failure) = verdict else { panic!("{verdict:?}") };
        if Policy::default().is_to_be_noticed(&failure) {
            noticed.push(minute);
            failure.noticed = true;
        }
        standing = Some(failure);
    }
    assert_eq!(noticed, [30]);
    let outage = Failure { kind: FailureKind::Outage, noticed: false, ..standing.unwrap() };
    assert!(!Policy::default().is_to_be_noticed(&outage));
    let off = Policy { deactivation: false, ..Policy::default() };
    assert!(!off.is_to_be_noticed(&Failure { noticed: false, ..standing.unwrap() }));
}

#[test]
fn a_token_without_an_expiry_is_validated_hourly_and_refreshed_by_planned_runs_if_it_may_expire() {
    let proven = |no_expiry, minutes_ago| TokenState {
        no_expiry: Some(no_expiry),
        refreshed_at: Some(now() - minutes(minutes_ago)),
        ..TokenState::default()
    };
    for no_expiry in [NoExpiry::Never, NoExpiry::Unknown] {
        for minutes_ago in [39, 40, 10_000] {
            let token = proven(no_expiry, minutes_ago);
            let (skip, old) = (Decision::Skip(NotDue::NoExpiry), minutes_ago >= 40);
            assert_eq!(decide(&token, SWEEP), if old { Decision::Validate } else { skip });
            assert_eq!(decide(&token, RefreshMode::DueByTime), skip, "a retry is for others");
            let due = old && no_expiry == NoExpiry::Unknown;
            assert_eq!(decide(&token, PLAIN), if due { Decision::Refresh } else { skip });
            assert_eq!(decide(&token, RefreshMode::Usable), Decision::Validate);
            assert_eq!(decide(&token, FORCE), Decision::Refresh);
            assert_eq!(Policy::default().due_at(&token), Due::AtNoTime);
        }
    }
}

#[test]
fn the_budget_is_the_larger_of_3_and_a_fifth() {
    for (authorized, budget) in [(0, 3), (1, 3), (19, 3), (20, 4), (2_000, 400)] {
        assert_eq!(deactivation_budget(authorized), budget);
    }
}

fn any_kind() -> impl Strategy<Value = FailureKind> {
    proptest::sample::select(KINDS.to_vec())
}

fn any_time() -> impl Strategy<Value = DateTime<Utc>> {
    (-200_000_i64..200_000).prop_map(|seconds| now() + TimeDelta::seconds(seconds))
}

fn any_failure() -> impl Strategy<Value = Option<Failure>> {
    let failure = (any_time(), any_kind(), 0_u32..5, proptest::option::of(any_time()), any::<bool>());
    proptest::option::of(failure.prop_map(|(at, kind, refusals, refused_since, noticed)| Failure {
        at,
        kind,
        refusals,
        refused_since,
        noticed,
    }))
}

fn any_token() -> impl Strategy<Value = TokenState> {
    let time = || proptest::option::of(any_time());
    let no_expiry = proptest::option::of(prop_oneof![Just(NoExpiry::Never), Just(NoExpiry::Unknown)]);
    (time(), no_expiry, time(), time(), any_failure()).prop_map(
        |(expires_at, no_expiry, refreshed_at, validated_at, failure)| TokenState {
            expires_at,
            no_expiry,
            refreshed_at,
            validated_at,
            failure,
            ..TokenState::default()
        },
    )
}

#[test]
fn a_fault_of_ours_that_is_fixed_is_not_waited_for() {
    for mode in [RefreshMode::Due, RefreshMode::DueByTime, RefreshMode::DueOrUnproven] {
        let failure = Some(Failure::first(FailureKind::Outage, now()));
        let failed = TokenState { failure, ..living(minutes(90)) };
        assert_ne!(decide(&failed, mode), Decision::Refresh, "{mode:?}");
        let repaired = TokenState { repaired: true, ..failed };
        assert_eq!(decide(&repaired, mode), Decision::Refresh, "{mode:?}");
    }
}

#[test]
fn a_session_waits_from_when_the_token_is_due_or_the_authorization_begins() {
    let due_for = |left: Option<i64>, failed_ago: Option<i64>, authorized_for| {
        let failure = failed_ago.map(|ago| Failure::first(FailureKind::Outage, now() - minutes(ago)));
        let expires_at = left.map(|left| now() + minutes(left));
        let authorized = Authorized {
            streamer: Streamer {
                id: StreamerId(Uuid::nil()),
                login: "aria".to_owned(),
                display_name: "Aria".to_owned(),
            },
            until: now() + AUTHORIZATION - minutes(authorized_for),
            token: TokenState { expires_at, failure, ..TokenState::default() },
        };
        Policy::default().due_for(&authorized, now()).map(|waited| waited.num_minutes())
    };
    assert_eq!(due_for(Some(61), None, 300), None);
    assert_eq!(due_for(Some(60), None, 300), Some(0));
    assert_eq!(due_for(Some(-10), None, 300), Some(70));
    assert_eq!(due_for(Some(-10), None, 5), Some(5), "it was due before");
    assert_eq!(due_for(None, None, 20), Some(20), "an unknown expiry");
    assert_eq!(due_for(Some(-10), Some(14), 300), None, "its retry comes");
    assert_eq!(due_for(Some(-10), Some(40), 300), Some(25));
    assert_eq!(due_for(Some(-10), None, -43_200), Some(70), "an authorization of a month");
}

proptest! {
    #[test]
    fn force_always_refreshes(token in any_token()) {
        prop_assert_eq!(decide(&token, FORCE), Decision::Refresh);
    }

    #[test]
    fn a_grant_refreshes_whatever_was_not_refreshed_just_now(token in any_token()) {
        let just_now = token.failure.is_none()
            && token.refreshed_at.is_some_and(|at| now() - at < DOUBLE_CLICK_WINDOW)
            && token.expires_at.is_none_or(|at| at > now());
        prop_assert_eq!(decide(&token, RefreshMode::NotJustNow) == Decision::Refresh, !just_now);
    }

    #[test]
    fn before_a_session_a_token_is_refreshed_or_asked_about(token in any_token()) {
        prop_assert!(matches!(decide(&token, RefreshMode::Usable), Decision::Refresh | Decision::Validate));
    }

    #[test]
    fn once_due_a_token_stays_due(token in any_token(), later in 0_i64..100_000) {
        if decide(&token, PLAIN) == Decision::Refresh {
            let at = now() + TimeDelta::seconds(later);
            prop_assert_eq!(Policy::default().decide(&token, PLAIN, at), Decision::Refresh);
        }
    }

    #[test]
    fn a_token_in_its_last_hour_is_never_left_alone_but_for_a_retry(token in any_token()) {
        if let Decision::Skip(NotDue::Valid { left }) = decide(&token, PLAIN) {
            prop_assert!(left > EXPIRY_MARGIN);
        }
    }

    #[test]
    fn a_skip_says_when_it_ends(token in any_token()) {
        if let Decision::Skip(NotDue::RetryAt(at)) = decide(&token, PLAIN) {
            prop_assert!(at > now());
            prop_assert_eq!(Policy::default().decide(&token, PLAIN, at), Decision::Refresh);
        }
    }

    #[test]
    fn no_first_refusal_is_decisive(kinds in proptest::collection::vec(any_kind(), 0..20)) {
        // However many outages came before, spaced as retries are.
        let mut standing = None;
        let mut refusals = 0;
        for (n, kind) in (0_i64..).zip(kinds) {
            let at = now() + RETRY_DELAY * i32::try_from(n).unwrap();
            refusals += u32::from(kind == FailureKind::Refusal);
            if kind == FailureKind::Refusal && Policy::default().is_decisive(standing, at) {
                prop_assert!(refusals >= 2);
                break;
            }
            let (Verdict::Recorded(failure) | Verdict::Repeated(failure)) =
                Policy::default().after_failure(standing, kind, at);
            standing = Some(failure);
        }
    }

    #[test]
    fn the_third_refusal_is_decisive_at_the_latest(waits in proptest::collection::vec(15_i64..5_000, 3)) {
        let (mut at, mut standing, mut decisive) = (now(), None, false);
        for wait in waits {
            at += minutes(wait);
            decisive |= Policy::default().is_decisive(standing, at);
            let verdict = Policy::default().after_failure(standing, FailureKind::Refusal, at);
            let Verdict::Recorded(failure) = verdict else { panic!("{verdict:?}") };
            standing = Some(failure);
        }
        prop_assert!(decisive);
    }
}
