//! The rule of time and the rule of failure, as pure functions: state and `now` in, a decision out.
//!
//! Nothing here reads a clock, makes a call or changes anything.

#[cfg(test)]
mod tests;

use chrono::{DateTime, TimeDelta, Utc};

use crate::authorization::Authorized;
use crate::streamer::{NoExpiry, TokenState};

pub use crate::failure::{FailedUnder, Failure, FailureKind};

/// A streamer whose row can't be read or written is left alone for this long, and each time for twice as long.
pub const SET_ASIDE: TimeDelta = TimeDelta::minutes(15);

/// The longest that such a row is left alone.
pub const MAX_SET_ASIDE: TimeDelta = TimeDelta::hours(6);

/// A token with less than this left is refreshed. One hour: longer than the two retries that a failed refresh
/// may need.
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

/// After so long of nothing but refusals an alarm notifies the operator.
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

/// To a grant a refresh this young counts as one made now: a double click makes one call.
pub const DOUBLE_CLICK_WINDOW: TimeDelta = TimeDelta::minutes(1);

/// Two checks that share a streamer share its refresh; and a token that Twitch gave for less than [`EXPIRY_MARGIN`] is not
/// asked for again by those who waited for it.
pub const REFRESH_REUSE_WINDOW: TimeDelta = TimeDelta::seconds(10);

/// What a trigger asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RefreshMode {
    /// Whatever is due. A planned run, and the command.
    #[default]
    Due,
    /// Whatever is due by its time. A retry: tokens without an expiry have none, and are refreshed by planned runs.
    DueByTime,
    /// Whatever is due; tokens that Twitch has not validated lately are validated. The sweep.
    DueOrUnproven,
    /// All, whatever the expiry or a failure says. By hand.
    Forced,
    /// All that were not refreshed within [`DOUBLE_CLICK_WINDOW`]. A grant.
    NotJustNow,
    /// Whatever expires soon, whatever a failure says; the rest is validated. The health check: a caller is waiting to use
    /// the tokens now.
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
    /// The token has no expiry, as Twitch says, or Twitch does not say.
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
    /// The failure is recorded and the streamer tried again.
    Recorded(Failure),
}

impl Verdict {
    /// The failure that stands from now on.
    #[must_use]
    pub fn failure(&self) -> Failure {
        let (Self::Repeated(failure) | Self::Recorded(failure)) = self;
        *failure
    }
}

/// The rules with the two settings that they take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// See [`RETRY_DELAY`]; shorter for trying things by hand.
    pub retry_delay: TimeDelta,
    /// `false`: no streamer is deactivated, every refusal that would do so counts as an outage.
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
    pub fn decide(&self, token: &TokenState, mode: RefreshMode, now: DateTime<Utc>) -> Decision {
        let valid = token.expires_at.map_or(NotDue::NoExpiry, |at| NotDue::Valid { left: at - now });
        match mode {
            RefreshMode::NotJustNow if refreshed_within(DOUBLE_CLICK_WINDOW, token, now) => {
                return Decision::Skip(valid);
            }
            RefreshMode::NotJustNow | RefreshMode::Forced => return Decision::Refresh,
            // A token fresh from Twitch is fine, however short it lives.
            RefreshMode::Usable
                if expires_soon(token, now) && !refreshed_within(REFRESH_REUSE_WINDOW, token, now) =>
            {
                return Decision::Refresh;
            }
            RefreshMode::Usable => return Decision::Validate,
            RefreshMode::Due | RefreshMode::DueByTime | RefreshMode::DueOrUnproven => {}
        }
        let due = match self.due_at(token) {
            Due::Always => true,
            Due::From(at) => at <= now,
            Due::AtNoTime => {
                mode == RefreshMode::Due
                    && token.no_expiry == Some(NoExpiry::Unknown)
                    && !refreshed_within(VALIDATION_AGE, token, now)
            }
        };
        if due {
            return Decision::Refresh;
        }
        let proven = token.refreshed_at.max(token.validated_at);
        let unproven = token.failure.is_some() || proven.is_none_or(|at| now - at >= VALIDATION_AGE);
        if mode == RefreshMode::DueOrUnproven && unproven {
            return Decision::Validate;
        }
        Decision::Skip(self.waits_for_retry(token, now).unwrap_or(valid))
    }

    /// From when on the token is due.
    #[must_use]
    pub fn due_at(&self, token: &TokenState) -> Due {
        match (token.failure, token.expires_at, token.no_expiry) {
            (Some(failure), ..) if token.repaired => Due::From(failure.at),
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
        (retry_at > now && !token.repaired).then_some(NotDue::RetryAt(retry_at))
    }

    /// For how long this streamer has been due; `None`: not due. Before the authorization no session was waiting.
    #[must_use]
    pub fn due_for(&self, streamer: &Authorized, now: DateTime<Utc>) -> Option<TimeDelta> {
        let since = self.due_at(&streamer.token).since(streamer.since(now))?;
        (since <= now).then(|| now - since)
    }

    /// The rule of failure: what a failed refresh that deactivates nothing does to a streamer with the standing failure
    /// `before`.
    #[must_use]
    pub fn after_failure(&self, before: Option<Failure>, kind: FailureKind, now: DateTime<Utc>) -> Verdict {
        let Some(before) = before else { return Verdict::Recorded(Failure::first(kind, now)) };
        if now - before.at < self.retry_delay {
            return Verdict::Repeated(before);
        }
        let failure = Failure { at: now, kind, ..before };
        Verdict::Recorded(match kind {
            FailureKind::Outage => failure,
            FailureKind::Refusal => Failure {
                refusals: before.refusals.saturating_add(1),
                refused_since: before.refused_since.or(Some(now)),
                ..failure
            },
        })
    }

    /// Whether a refusal now deactivates if it is confirmed ([`crate::evidence`]): it is the second within
    /// [`RETRY_WINDOW`], or the third without a success.
    #[must_use]
    pub fn is_decisive(&self, before: Option<Failure>, now: DateTime<Utc>) -> bool {
        before.is_some_and(|before| {
            let age = now - before.at;
            let second = before.kind == FailureKind::Refusal && age <= RETRY_WINDOW;
            age >= self.retry_delay && (second || before.refusals.saturating_add(1) >= REFUSAL_LIMIT)
        })
    }

    /// Whether people are to be notified of this failure, which has just been recorded and does not deactivate.
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
