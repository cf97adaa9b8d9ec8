//! The rule of time and the rule of failure, as pure functions: state and `now` in, a decision out.
//!
//! Nothing here reads a clock, calls anybody or changes anything.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::streamer::{Authorized, NoExpiry, TokenState};

/// A streamer whose row can't be read or written is left alone for this long, and each time for twice as long.
pub const SET_ASIDE: TimeDelta = TimeDelta::minutes(15);

/// The longest that such a row is left alone.
pub const MAX_SET_ASIDE: TimeDelta = TimeDelta::hours(6);

/// A token with less than this left is refreshed. One hour, as the brief has it: longer than the two retries that
/// a failed refresh may need.
pub const EXPIRY_MARGIN: TimeDelta = TimeDelta::hours(1);

/// After a failed refresh nothing is tried for this long (the brief's 15 minutes).
pub const RETRY_DELAY: TimeDelta = TimeDelta::minutes(15);

/// A second refusal counts as the confirmation of the first only up to this age (the brief's 30 minutes).
pub const RETRY_WINDOW: TimeDelta = TimeDelta::minutes(30);

/// Twitch demands hourly validation. Less than three sweeps, so that the third after a validation finds it old enough
/// although the one was late and the other is early.
pub const VALIDATION_AGE: TimeDelta = TimeDelta::minutes(40);

/// So many refusals without a success in between deactivate, however old the last one is.
pub const REFUSAL_LIMIT: u32 = 3;

/// After so long of refusals that nothing confirms, the streamer and the game masters are notified, once.
pub const NOTICE_AFTER: TimeDelta = TimeDelta::minutes(30);

/// After so long of nothing but refusals an alarm tells the operator.
pub const ONLY_REFUSALS: TimeDelta = TimeDelta::hours(2);

/// So many refreshes in a row that were outages, with no success between, end a cycle: Twitch is down and not to be
/// hammered. So many validations end the validations.
pub const OUTAGE_LIMIT: u32 = 20;

/// Deactivations are counted over this long against their budget.
pub const BUDGET_PERIOD: TimeDelta = TimeDelta::hours(1);

/// How many streamers may be deactivated within [`BUDGET_PERIOD`]: the larger of 3 and 20 % of the authorized.
#[must_use]
pub fn deactivation_budget(authorized: u64) -> u64 {
    (authorized / 5).max(3)
}

/// Whose fault a failed refresh is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The grant is dead: only the streamer can mend it.
    Refusal,
    /// Anything that is not the streamer's doing.
    Outage,
}

impl FailureKind {
    /// The kind as logs and the database spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refusal => "refusal",
            Self::Outage => "outage",
        }
    }
}

/// Why a refresh failed, as far as it matters for what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Twitch refused the grant, and something else says that the grant is dead (see [`crate::evidence`]).
    ConfirmedRefusal,
    /// Twitch refused the grant, and nothing else says so.
    UnconfirmedRefusal,
    /// Anything that is not the streamer's doing.
    Outage,
}

impl Cause {
    /// Whose fault.
    #[must_use]
    pub fn kind(self) -> FailureKind {
        match self {
            Self::ConfirmedRefusal | Self::UnconfirmedRefusal => FailureKind::Refusal,
            Self::Outage => FailureKind::Outage,
        }
    }
}

/// A failure that stands: the last refresh failed and none has succeeded since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When (`token_refresh_failed_at`).
    pub at: DateTime<Utc>,
    /// Whose fault.
    pub kind: FailureKind,
    /// Refusals recorded since the last success, this one included.
    pub refusals: u32,
    /// Our own first refusal since the last success.
    pub refused_since: Option<DateTime<Utc>>,
    /// Whether people were notified of refusals that nothing confirms, since the last success.
    pub noticed: bool,
}

impl Failure {
    /// The first failure after a success.
    #[must_use]
    pub fn first(kind: FailureKind, at: DateTime<Utc>) -> Self {
        let refused = kind == FailureKind::Refusal;
        Self { at, kind, refusals: refused.into(), refused_since: refused.then_some(at), noticed: false }
    }

    /// A failure of which only the time is known, because another program recorded it: a first refusal, but none of our
    /// own.
    #[must_use]
    pub fn recorded_elsewhere(at: DateTime<Utc>) -> Self {
        Self { refused_since: None, ..Self::first(FailureKind::Refusal, at) }
    }
}

/// To a grant a refresh this young counts as one made now: a double click costs one call.
pub const JUST_NOW: TimeDelta = TimeDelta::minutes(1);

/// Two checks that share a streamer share its refresh; and a token that Twitch gave for less than [`EXPIRY_MARGIN`] is not
/// asked for again by those who waited for it.
pub const AT_ONCE: TimeDelta = TimeDelta::seconds(10);

/// What a trigger asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Demand {
    /// Whatever is due. A planned run, and the command.
    #[default]
    Due,
    /// Whatever is due by its time. A retry: tokens without an expiry have none, and are refreshed by planned runs.
    DueByTime,
    /// Whatever is due; tokens that Twitch has not validated lately are validated. The sweep.
    DueOrUnproven,
    /// Everybody, whatever the expiry or a failure says. `--force`.
    Everybody,
    /// Everybody who was not refreshed [`JUST_NOW`]. A grant.
    NotJustNow,
    /// Whatever expires soon, whatever a failure says; the rest is validated. The health check: somebody is waiting to
    /// use the tokens now.
    Usable,
}

/// What to do with one authorized streamer now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The token is due.
    Refresh,
    /// The token is not due, but Twitch is to be asked whether it still lives.
    Validate,
    /// Nothing to do.
    Skip(NotDue),
}

/// Why a streamer is not due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotDue {
    /// The token lives longer than [`EXPIRY_MARGIN`].
    Valid {
        /// How long it has left.
        left: TimeDelta,
    },
    /// The token has no expiry, as Twitch says, or none that Twitch tells.
    NoExpiry,
    /// A failure stands and is younger than the retry delay.
    RetryAt(DateTime<Utc>),
}

/// From when on a token is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// It always was: its expiry is unknown, and Twitch was not asked.
    Always,
    /// From then on.
    From(DateTime<Utc>),
    /// At no time: Twitch gives no expiry.
    AtNoTime,
}

impl Due {
    /// From when on, for those who have waited since `since`.
    #[must_use]
    pub fn since(self, since: Option<DateTime<Utc>>) -> Option<DateTime<Utc>> {
        match self {
            Self::Always => since,
            Self::From(at) => Some(at).max(since),
            Self::AtNoTime => None,
        }
    }
}

/// What a failed refresh changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A forced attempt, a double click or a duplicate event: it counts for nothing, the standing failure keeps
    /// its time.
    Repeated(Failure),
    /// The failure is recorded and the streamer tried again; nobody is told.
    Recorded(Failure),
    /// The grant is dead beyond doubt.
    Deactivate,
}

/// The rules with the two settings that they take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// See [`RETRY_DELAY`]; shorter for trying things by hand.
    pub retry_delay: TimeDelta,
    /// `false`: nobody is deactivated, every refusal that would do so counts as an outage.
    pub deactivation: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self { retry_delay: RETRY_DELAY, deactivation: true }
    }
}

impl Policy {
    /// The rule of time, for an authorized streamer.
    ///
    /// A standing failure makes the streamer due when the retry delay is over, even while the token has time
    /// left: a dead grant is better known before the token dies than after. Until then a sweep validates the token: one
    /// that lives needs no mark.
    #[must_use]
    pub fn decide(&self, token: &TokenState, demand: Demand, now: DateTime<Utc>) -> Decision {
        let valid = token.expires_at.map_or(NotDue::NoExpiry, |at| NotDue::Valid { left: at - now });
        match demand {
            Demand::NotJustNow if refreshed_within(JUST_NOW, token, now) => return Decision::Skip(valid),
            Demand::NotJustNow | Demand::Everybody => return Decision::Refresh,
            // A token fresh from Twitch is fine, however short it lives.
            Demand::Usable if expires_soon(token, now) && !refreshed_within(AT_ONCE, token, now) => {
                return Decision::Refresh;
            }
            Demand::Usable => return Decision::Validate,
            Demand::Due | Demand::DueByTime | Demand::DueOrUnproven => {}
        }
        let due = match self.due_at(token) {
            Due::Always => true,
            Due::From(at) => at <= now,
            Due::AtNoTime => {
                demand == Demand::Due
                    && token.no_expiry == Some(NoExpiry::Unknown)
                    && !refreshed_within(VALIDATION_AGE, token, now)
            }
        };
        if due {
            return Decision::Refresh;
        }
        let proven = token.refreshed_at.max(token.validated_at);
        let unproven = token.failure.is_some() || proven.is_none_or(|at| now - at >= VALIDATION_AGE);
        if demand == Demand::DueOrUnproven && unproven {
            return Decision::Validate;
        }
        Decision::Skip(self.waits_for_retry(token, now).unwrap_or(valid))
    }

    /// From when on the token is due.
    #[must_use]
    pub fn due_at(&self, token: &TokenState) -> Due {
        match (token.failure, token.expires_at, token.no_expiry) {
            (Some(failure), ..) => Due::From(failure.at + self.retry_delay),
            (None, Some(at), _) => Due::From(at - EXPIRY_MARGIN),
            (None, None, None) => Due::Always,
            (None, None, Some(_)) => Due::AtNoTime,
        }
    }

    /// Whether a failure stands whose retry is not due yet.
    #[must_use]
    pub fn waits_for_retry(&self, token: &TokenState, now: DateTime<Utc>) -> Option<NotDue> {
        let retry_at = token.failure?.at + self.retry_delay;
        (retry_at > now).then_some(NotDue::RetryAt(retry_at))
    }

    /// For how long this streamer has been due; `None`: not due. Before the authorization nobody was waiting.
    #[must_use]
    pub fn due_for(&self, streamer: &Authorized, now: DateTime<Utc>) -> Option<TimeDelta> {
        let since = self.due_at(&streamer.token).since(streamer.since(now))?;
        (since <= now).then(|| now - since)
    }

    /// The rule of failure: what a failed refresh does to a streamer with the standing failure `before`.
    #[must_use]
    pub fn after_failure(&self, before: Option<Failure>, cause: Cause, now: DateTime<Utc>) -> Verdict {
        let kind = cause.kind();
        let Some(before) = before else { return Verdict::Recorded(Failure::first(kind, now)) };
        if now - before.at < self.retry_delay {
            return Verdict::Repeated(before);
        }
        let outage = Failure { at: now, kind: FailureKind::Outage, ..before };
        if kind == FailureKind::Outage {
            return Verdict::Recorded(outage);
        }
        if cause == Cause::ConfirmedRefusal && self.is_decisive(Some(before), now) {
            return if self.deactivation { Verdict::Deactivate } else { Verdict::Recorded(outage) };
        }
        Verdict::Recorded(Failure {
            at: now,
            kind,
            refusals: before.refusals.saturating_add(1),
            refused_since: before.refused_since.or(Some(now)),
            noticed: before.noticed,
        })
    }

    /// Whether a refusal now deactivates if it is confirmed: it is the second within [`RETRY_WINDOW`], or the third
    /// without a success.
    #[must_use]
    pub fn is_decisive(&self, before: Option<Failure>, now: DateTime<Utc>) -> bool {
        before.is_some_and(|before| {
            let age = now - before.at;
            let second = before.kind == FailureKind::Refusal && age <= RETRY_WINDOW;
            age >= self.retry_delay && (second || before.refusals.saturating_add(1) >= REFUSAL_LIMIT)
        })
    }

    /// Whether people are to be notified of this failure, which has just been recorded and deactivates nobody.
    #[must_use]
    pub fn is_to_be_noticed(&self, failure: &Failure) -> bool {
        let refused_for = failure.refused_since.map(|since| failure.at - since);
        self.deactivation
            && failure.kind == FailureKind::Refusal
            && !failure.noticed
            && refused_for.is_some_and(|refused| refused >= NOTICE_AFTER)
    }
}

/// An expiry that is unknown is soon, unless Twitch was asked and gives none.
fn expires_soon(token: &TokenState, now: DateTime<Utc>) -> bool {
    token.expires_at.map_or(token.no_expiry.is_none(), |at| at - EXPIRY_MARGIN <= now)
}

/// Refreshed not longer ago, and nothing has gone wrong since.
fn refreshed_within(age: TimeDelta, token: &TokenState, now: DateTime<Utc>) -> bool {
    token.failure.is_none()
        && token.expires_at.is_none_or(|at| at > now)
        && token.refreshed_at.is_some_and(|at| now - at < age)
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;
    use proptest::prelude::*;

    use super::*;

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

    fn decide(token: &TokenState, demand: Demand) -> Decision {
        Policy::default().decide(token, demand, now())
    }

    const SWEEP: Demand = Demand::DueOrUnproven;
    const FORCE: Demand = Demand::Everybody;
    const PLAIN: Demand = Demand::Due;

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
        assert_eq!(decide(&token, Demand::NotJustNow), Decision::Refresh, "whatever is left of it");
        token.refreshed_at = Some(now() - TimeDelta::seconds(59));
        assert_eq!(decide(&token, Demand::NotJustNow), Decision::Skip(NotDue::Valid { left: minutes(230) }));
        token.failure = Some(failed(1, FailureKind::Refusal, 1));
        assert_eq!(decide(&token, Demand::NotJustNow), Decision::Refresh, "something went wrong since");
    }

    #[test]
    fn a_token_fresh_from_twitch_is_usable_however_short_it_lives() {
        let mut token = living(minutes(45));
        assert_eq!(decide(&token, Demand::Usable), Decision::Refresh);
        token.failure = Some(failed(1, FailureKind::Outage, 0));
        assert_eq!(decide(&token, Demand::Usable), Decision::Refresh, "somebody waits: no retry delay");
        token = TokenState { refreshed_at: Some(now() - TimeDelta::seconds(2)), ..living(minutes(45)) };
        assert_eq!(decide(&token, Demand::Usable), Decision::Validate);
        token.refreshed_at = Some(now() - AT_ONCE);
        assert_eq!(decide(&token, Demand::Usable), Decision::Refresh);
        assert_eq!(decide(&living(minutes(61)), Demand::Usable), Decision::Validate);
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

    const CAUSES: [Cause; 3] = [Cause::ConfirmedRefusal, Cause::UnconfirmedRefusal, Cause::Outage];

    /// The table of the rule of failure, row by row: after a confirmed refusal, an unconfirmed one, and an outage.
    #[test]
    fn the_failure_table() {
        use FailureKind::{Outage, Refusal};
        let since = |before: Failure| before.refused_since.or(Some(now()));
        let refusal = |before: Failure, refusals| {
            let refused_since = since(before);
            Verdict::Recorded(Failure { at: now(), kind: Refusal, refusals, refused_since, noticed: false })
        };
        let outage = |before: Failure| Verdict::Recorded(Failure { at: now(), kind: Outage, ..before });
        let marked = |minutes_ago| Failure::recorded_elsewhere(now() - minutes(minutes_ago));
        // Of failures that stand: what a refusal makes of them if it is confirmed, and how many refusals are counted then.
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
            let after = |cause| Policy::default().after_failure(Some(before), cause, now());
            let confirmed = if deactivates { Verdict::Deactivate } else { refusal(before, refusals) };
            assert_eq!(after(Cause::ConfirmedRefusal), confirmed, "{before:?}");
            assert_eq!(after(Cause::UnconfirmedRefusal), refusal(before, refusals), "{before:?}");
            assert_eq!(after(Cause::Outage), outage(before), "{before:?}");
            assert_eq!(Policy::default().is_decisive(Some(before), now()), deactivates, "{before:?}");
        }
        // under 15 minutes old: counts for nothing
        for before in [failed(14, Refusal, 1), failed(14, Refusal, 2), failed(14, Outage, 2), marked(0)] {
            for cause in CAUSES {
                let verdict = Policy::default().after_failure(Some(before), cause, now());
                assert_eq!(verdict, Verdict::Repeated(before), "{before:?} then {cause:?}");
            }
            assert!(!Policy::default().is_decisive(Some(before), now()));
        }
        // no failure recorded
        for cause in CAUSES {
            let verdict = Policy::default().after_failure(None, cause, now());
            assert_eq!(verdict, Verdict::Recorded(Failure::first(cause.kind(), now())), "{cause:?}");
        }
        assert!(!Policy::default().is_decisive(None, now()));
    }

    #[test]
    fn people_are_notified_once_after_30_minutes_of_refusals_that_nothing_confirms() {
        let mut standing = None;
        let mut noticed = Vec::new();
        for minute in [0, 15, 30, 45, 60] {
            let at = now() + minutes(minute);
            let verdict = Policy::default().after_failure(standing, Cause::UnconfirmedRefusal, at);
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
                assert_eq!(decide(&token, Demand::DueByTime), skip, "a retry is for others");
                let due = old && no_expiry == NoExpiry::Unknown;
                assert_eq!(decide(&token, PLAIN), if due { Decision::Refresh } else { skip });
                assert_eq!(decide(&token, Demand::Usable), Decision::Validate);
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
        prop_oneof![Just(FailureKind::Refusal), Just(FailureKind::Outage)]
    }

    fn any_time() -> impl Strategy<Value = DateTime<Utc>> {
        (-200_000_i64..200_000).prop_map(|seconds| now() + TimeDelta::seconds(seconds))
    }

    fn any_cause() -> impl Strategy<Value = Cause> {
        proptest::sample::select(CAUSES.to_vec())
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
            },
        )
    }

    proptest! {
        #[test]
        fn force_always_refreshes(token in any_token()) {
            prop_assert_eq!(decide(&token, FORCE), Decision::Refresh);
        }

        #[test]
        fn a_grant_refreshes_whatever_was_not_refreshed_just_now(token in any_token()) {
            let just_now = token.failure.is_none()
                && token.refreshed_at.is_some_and(|at| now() - at < JUST_NOW)
                && token.expires_at.is_none_or(|at| at > now());
            prop_assert_eq!(decide(&token, Demand::NotJustNow) == Decision::Refresh, !just_now);
        }

        #[test]
        fn before_a_session_a_token_is_refreshed_or_asked_about(token in any_token()) {
            prop_assert!(matches!(decide(&token, Demand::Usable), Decision::Refresh | Decision::Validate));
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
        fn only_a_confirmed_refusal_deactivates(before in any_failure(), cause in any_cause()) {
            let verdict = Policy::default().after_failure(before, cause, now());
            let decisive = Policy::default().is_decisive(before, now());
            prop_assert_eq!(verdict == Verdict::Deactivate, cause == Cause::ConfirmedRefusal && decisive);
        }

        #[test]
        fn nobody_is_deactivated_at_a_first_refusal(causes in proptest::collection::vec(any_cause(), 0..20)) {
            // However many outages came before, spaced as retries are.
            let mut standing = None;
            let mut refusals = 0;
            for (n, cause) in (0_i64..).zip(causes) {
                let at = now() + RETRY_DELAY * i32::try_from(n).unwrap();
                refusals += u32::from(cause.kind() == FailureKind::Refusal);
                match Policy::default().after_failure(standing, cause, at) {
                    Verdict::Deactivate => {
                        prop_assert!(refusals >= 2);
                        break;
                    }
                    Verdict::Recorded(failure) | Verdict::Repeated(failure) => standing = Some(failure),
                }
            }
        }

        #[test]
        fn the_third_confirmed_refusal_deactivates_at_the_latest(waits in proptest::collection::vec(15_i64..5_000, 3)) {
            let (mut at, mut standing, mut verdicts) = (now(), None, Vec::new());
            for wait in waits {
                at += minutes(wait);
                let verdict = Policy::default().after_failure(standing, Cause::ConfirmedRefusal, at);
                if let Verdict::Recorded(failure) = verdict {
                    standing = Some(failure);
                }
                verdicts.push(verdict);
            }
            prop_assert!(verdicts.contains(&Verdict::Deactivate));
        }

        #[test]
        fn switched_off_nobody_is_deactivated(before in any_failure(), cause in any_cause()) {
            let policy = Policy { deactivation: false, ..Policy::default() };
            prop_assert_ne!(policy.after_failure(before, cause, now()), Verdict::Deactivate);
        }
    }
}
