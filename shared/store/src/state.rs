//! A streamer's state: the columns that hold it, and what they mean together.
//!
//! The column list is a macro and not a view in the database. PostgreSQL records what a view depends on: it would keep the
//! application from dropping its table or changing a column's type, and would be dropped with the table.

use chrono::{DateTime, TimeDelta, Utc};
use tokens_domain::policy::{FailedUnder, Failure, FailureKind};
use tokens_domain::{NoExpiry, Streamer, StreamerId, TokenState};
use uuid::Uuid;

use super::Moment;

/// The clocks of the programs that write here differ by less.
pub(super) const MAX_SKEW: TimeDelta = TimeDelta::minutes(1);

/// A query for streamers' states: `$before`, the columns of the state, `$after`. What differs from query to query is which
/// streamers it finds, and what else it reads of them. `s` is `public.streamers`, and `ours` is `token_refresh.streamers`.
macro_rules! query_states {
    ($before:literal, $after:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query!(
            $before
                + r#"s.id, s.twitch_login AS login, s.twitch_display_name AS display_name, s.is_active,
                     s.token_expires_at, s.last_token_refresh_at, s.token_refresh_failed_at,
                     ours.validated_at AS "validated_at?", ours.failed_at AS "failed_at?",
                     ours.failure_kind AS "failure_kind?", ours.failed_client_id AS "failed_client_id?",
                     ours.refusals AS "refusals?", ours.pair_expiry AS "pair_expiry?",
                     ours.refused_since AS "refused_since?", ours.noticed_at AS "noticed_at?",
                     (ours.pair = sha256(convert_to(s.access_token_encrypted, 'UTF8'))) IS TRUE AS "pair_is_stored!"
                     "#
                + $after
            $(, $argument)*
        )
    };
}

/// The state in a row that [`query_states`] has read: each query has a type of its own for its rows.
macro_rules! state_of {
    ($row:ident) => {
        $crate::state::StateRow {
            id: $row.id,
            login: $row.login,
            display_name: $row.display_name,
            is_active: $row.is_active,
            token_expires_at: $row.token_expires_at,
            last_token_refresh_at: $row.last_token_refresh_at,
            token_refresh_failed_at: $row.token_refresh_failed_at,
            validated_at: $row.validated_at,
            failed_at: $row.failed_at,
            failure_kind: $row.failure_kind,
            failed_client_id: $row.failed_client_id,
            refusals: $row.refusals,
            pair_expiry: $row.pair_expiry,
            refused_since: $row.refused_since,
            noticed_at: $row.noticed_at,
            pair_is_stored: $row.pair_is_stored,
        }
    };
}

pub(super) use {query_states, state_of};

/// The columns of a streamer's state. Most may be `NULL`; [`StateRow::at`] is what they mean together.
pub(super) struct StateRow {
    pub(super) id: Uuid,
    pub(super) login: String,
    pub(super) display_name: String,
    pub(super) is_active: bool,
    pub(super) token_expires_at: Option<Moment>,
    pub(super) last_token_refresh_at: Option<Moment>,
    /// Other programs write it as well.
    pub(super) token_refresh_failed_at: Option<Moment>,
    pub(super) validated_at: Option<Moment>,
    /// When the failure happened that the next three are about. They count only while `token_refresh_failed_at` is the same.
    pub(super) failed_at: Option<Moment>,
    pub(super) failure_kind: Option<String>,
    /// The client id that it was recorded under; empty: our keys did not open the tokens.
    pub(super) failed_client_id: Option<String>,
    pub(super) refusals: Option<i32>,
    /// What Twitch said of the expiry of the pair. This and the next two count only while that pair is stored.
    pub(super) pair_expiry: Option<String>,
    /// Our own first refusal of it.
    pub(super) refused_since: Option<Moment>,
    /// When people were notified of it.
    pub(super) noticed_at: Option<Moment>,
    pub(super) pair_is_stored: bool,
}

/// What a [`StateRow`] means.
pub(super) struct State {
    pub(super) streamer: Streamer,
    pub(super) is_active: bool,
    pub(super) token: TokenState,
}

impl StateRow {
    /// As of `now`: a time in the past that is ahead of it is ignored. Another program may have written it in a wrong zone.
    pub(super) fn at(self, now: DateTime<Utc>) -> State {
        let past = |at: Option<Moment>| at.and_then(Moment::known).filter(|at| *at <= now + MAX_SKEW);
        let failed_at = past(self.token_refresh_failed_at);
        let is_ours = failed_at.is_some() && self.failed_at.and_then(Moment::known) == failed_at;
        let failed_under = self.failed_client_id.filter(|_| is_ours).map(|id| match id.as_str() {
            "" => FailedUnder::WrongKeys,
            _ => FailedUnder::Client(id),
        });
        let kind = self.failure_kind.as_deref().and_then(failure_kind).filter(|_| is_ours);
        let failure = failed_at.map(|at| {
            let failure = match kind {
                Some(kind) => {
                    let refusals = self.refusals.and_then(|n| n.try_into().ok()).unwrap_or(0);
                    Failure { refusals, ..Failure::first(kind, at) }
                }
                None => Failure::recorded_elsewhere(at),
            };
            let refused_since = past(self.refused_since).filter(|_| self.pair_is_stored);
            let noticed = self.noticed_at.is_some() && self.pair_is_stored;
            Failure { refused_since, noticed, ..failure }
        });
        let token = TokenState {
            expires_at: self.token_expires_at.and_then(Moment::known),
            no_expiry: self.pair_expiry.filter(|_| self.pair_is_stored).as_deref().and_then(no_expiry),
            refreshed_at: past(self.last_token_refresh_at),
            validated_at: past(self.validated_at),
            failure,
            failed_under,
            repaired: false,
        };
        let streamer = Streamer::new(StreamerId(self.id), &self.login, &self.display_name);
        State { streamer, is_active: self.is_active, token }
    }
}

fn failure_kind(text: &str) -> Option<FailureKind> {
    [FailureKind::Refusal, FailureKind::Outage].into_iter().find(|kind| kind.as_str() == text)
}

pub(super) fn no_expiry(text: &str) -> Option<NoExpiry> {
    match text {
        "never" => Some(NoExpiry::Never),
        "unknown" => Some(NoExpiry::Unknown),
        _ => None,
    }
}
