//! The health check before a session: whether each channel that a campaign needs can be used now, and what to do about
//! those that can't. Tokens that expire soon or that Twitch calls invalid are refreshed on the way.
//!
//! It is a cycle over the campaign's participants, all at the same time.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};

use crate::authorization::{CampaignId, Participant, Unknown};
use crate::clock::Clock;
use crate::failure::FailureKind;
use crate::ports::{
    EventPublisher, MembershipError, Memberships, Participants, RetryScheduler, Store, StoreError, Twitch,
};
use crate::refresh::{Cycle, RefreshService};
use crate::report::{Observer, Outcome, Report, Skip, Stop, Unusable};
use crate::request::{self, Request};
use crate::streamer::{Streamer, StreamerId, TokenState};

pub use crate::report::TwitchHealth;

/// What stands between a channel and a session; the first that applies. The names are the existing backend's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issue {
    /// The streamer is deactivated.
    StreamerInactive,
    /// The streamer has never authorized this campaign.
    AuthorizationMissing,
    /// The authorization is over.
    AuthorizationExpired,
    /// No refresh token is stored.
    TokenMissing,
    /// Twitch calls the token invalid, and no new one could be had.
    TokenInvalid,
}

impl Issue {
    /// The issue as the existing backend spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StreamerInactive => "streamer_inactive",
            Self::AuthorizationMissing => "authorization_missing",
            Self::AuthorizationExpired => "authorization_expired",
            Self::TokenMissing => "token_missing",
            Self::TokenInvalid => "token_invalid",
        }
    }
}

/// How a channel was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Usable; Twitch says so.
    Ok,
    /// Usable: refreshed on the way.
    Refreshed,
    /// Not usable.
    Issue(Issue),
    /// It could not be found out in time.
    Unknown,
}

/// One channel, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Who, as of the check.
    pub participant: Participant,
    /// How it was found.
    pub finding: Finding,
    /// What happened, if there is more to say.
    pub detail: Option<Detail>,
    /// When the access token dies, as far as is known by now.
    pub token_expires_at: Option<DateTime<Utc>>,
}

/// What there is to say of a channel, beyond how it was found. What is our own fault is in the log alone: keys and databases
/// are no business of callers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    /// A fault of this service's own.
    OurFault,
    /// Another run is refreshing the token, or its row is locked.
    Busy,
    /// Another program changed the tokens meanwhile.
    Superseded,
    /// The token lives, but it lacks these scopes, which are required.
    MissingScopes(Vec<String>),
    /// The refresh failed for this reason, which holds no secret.
    Failed(String),
    /// Twitch could not be asked whether the token lives, for this reason, which holds no secret.
    NotValidated(String),
    /// The database failed during the check.
    DatabaseFailed,
    /// Twitch does not take our application's credentials.
    CredentialsRefused,
    /// A stored token is under a key that we don't have.
    UnknownKey,
    /// Twitch seems to be down.
    TwitchDown,
    /// No time was left for it.
    NoTime,
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthReport {
    /// Each channel once: the game master's own first, then by login.
    pub streamers: Vec<Checked>,
    /// Whether Twitch answered.
    pub twitch: TwitchHealth,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// How long it took to read who is needed.
    pub database_took: TimeDelta,
    /// How long the cycle took: Twitch, and what it changed in the database.
    pub twitch_took: TimeDelta,
}

impl HealthReport {
    /// Whether credentials or keys of ours that are not taken, and may have changed, have kept a channel from being checked.
    #[must_use]
    pub fn may_blame_secret(&self) -> bool {
        let ours =
            |one: &Checked| matches!(one.detail, Some(Detail::UnknownKey | Detail::CredentialsRefused));
        self.streamers.iter().any(ours)
    }

    /// Whether every channel can be used.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.streamers.iter().all(|one| matches!(one.finding, Finding::Ok | Finding::Refreshed))
    }
}

/// Why nothing could be checked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// There is no such campaign.
    #[error(transparent)]
    Unknown(#[from] Unknown),
    /// Something of ours needs the operator first.
    #[error("{0}")]
    Ours(String),
    /// Our credentials or our keys are not taken; a secret may have changed.
    #[error("{0}")]
    Secrets(String),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<MembershipError> for CheckError {
    fn from(error: MembershipError) -> Self {
        match error {
            MembershipError::Unknown(unknown) => unknown.into(),
            MembershipError::Store(error) => error.into(),
        }
    }
}

/// Checks a campaign. `cycle` says who asks and how long it may take ([`Cycle::new`] with
/// [`Trigger::HealthCheck`](crate::schedule::Trigger::HealthCheck)).
///
/// # Errors
///
/// If the database fails at the beginning, or knows no such campaign. What fails later is in the [`HealthReport`].
pub async fn check<S: Store + Memberships, T: Twitch, R: RetryScheduler, E: EventPublisher>(
    service: &RefreshService<S, T, R, E>,
    campaign: CampaignId,
    cycle: Cycle,
    observer: &dyn Observer,
) -> Result<HealthReport, CheckError> {
    let (started_at, began) = (service.now(), service.monotonic());
    let participants = service.store().participants(campaign).await?;
    let read_at = service.monotonic();
    let mut checking = Checking {
        campaign,
        observer,
        clock: service.clock(),
        first: Some(participants),
        open: HashMap::new(),
        checked: HashMap::new(),
        twitch: TwitchHealth::NotAsked,
    };
    request::answer(service, cycle, observer, &mut checking).await?;
    let Checking { checked, twitch, .. } = checking;
    let mut streamers: Vec<_> = checked.into_values().collect();
    streamers
        .sort_by_cached_key(|one| (!one.participant.is_game_master, one.participant.streamer.login.clone()));
    let (database_took, twitch_took) = (read_at - began, service.monotonic() - read_at);
    Ok(HealthReport { streamers, twitch, started_at, database_took, twitch_took })
}

/// A check under way.
struct Checking<'a> {
    campaign: CampaignId,
    observer: &'a dyn Observer,
    clock: &'a dyn Clock,
    /// As they were read before the first cycle.
    first: Option<Participants>,
    /// Still to be found out.
    open: HashMap<StreamerId, Participant>,
    checked: HashMap<StreamerId, Checked>,
    twitch: TwitchHealth,
}

impl<S: Memberships> Request<S> for Checking<'_> {
    type Error = CheckError;

    async fn read(&mut self, store: &S) -> Result<Vec<(Streamer, TokenState)>, CheckError> {
        let participants = match self.first.take() {
            Some(first) => Some(first),
            // Read again: a streamer may have been deactivated meanwhile.
            None => store.participants(self.campaign).await.ok(),
        };
        let Some(participants) = participants else {
            self.busy();
            return Ok(Vec::new());
        };
        self.open.clear();
        let mut listed = Vec::new();
        // Each costs itself alone.
        for (participant, error) in participants.unreadable {
            self.checked.entry(participant.streamer.id).or_insert_with(|| {
                self.observer.done(&participant.streamer, &Outcome::unreadable(error.text));
                Checked::unknown(participant, Detail::OurFault)
            });
        }
        for participant in participants.readable {
            let id = participant.streamer.id;
            if self.checked.contains_key(&id) {
                continue;
            }
            if let Some(issue) = before_twitch(&participant, self.clock.now()) {
                self.checked.insert(id, Checked::before_twitch(participant, issue));
            } else {
                listed.push((participant.streamer.clone(), participant.token.clone()));
                self.open.insert(id, participant);
            }
        }
        Ok(listed)
    }

    fn take(&mut self, id: StreamerId, outcome: Option<Outcome>, report: &Report) -> bool {
        self.twitch = self.twitch.max(heard(report, outcome.as_ref()));
        if report.stopped.is_none() && outcome.as_ref().is_some_and(request::was_elsewhere) {
            return false;
        }
        if let Some(participant) = self.open.remove(&id) {
            let checked = Checked::after(participant, outcome, report.stopped.as_ref(), self.clock.now());
            self.checked.insert(id, checked);
        }
        true
    }

    fn give_up(&mut self, _: Option<StoreError>) -> Result<(), CheckError> {
        self.busy();
        Ok(())
    }
}

impl Checking<'_> {
    /// Others work on those that are still open.
    fn busy(&mut self) {
        let busy = self.open.drain().map(|(id, one)| (id, Checked::unknown(one, Detail::Busy)));
        self.checked.extend(busy);
    }
}

/// What is known without asking Twitch, in the existing backend's order.
fn before_twitch(participant: &Participant, now: DateTime<Utc>) -> Option<Issue> {
    if !participant.is_active {
        return Some(Issue::StreamerInactive);
    }
    if !participant.is_game_master {
        match participant.authorization {
            None => return Some(Issue::AuthorizationMissing),
            Some(authorization) if authorization.remaining(now).is_none() => {
                return Some(Issue::AuthorizationExpired);
            }
            Some(_) => {}
        }
    }
    (!participant.has_refresh_token).then_some(Issue::TokenMissing)
}

impl Checked {
    fn before_twitch(participant: Participant, issue: Issue) -> Self {
        let token_expires_at = participant.token.expires_at;
        Self { participant, finding: Finding::Issue(issue), detail: None, token_expires_at }
    }

    fn unknown(participant: Participant, detail: Detail) -> Self {
        let token_expires_at = participant.token.expires_at;
        Self { participant, finding: Finding::Unknown, detail: Some(detail), token_expires_at }
    }

    fn after(
        participant: Participant,
        outcome: Option<Outcome>,
        stopped: Option<&Stop>,
        now: DateTime<Utc>,
    ) -> Self {
        let before = participant.token.expires_at;
        let (finding, detail, token_expires_at) = match outcome {
            Some(Outcome::Refreshed { expires_at }) => (Finding::Refreshed, None, expires_at),
            Some(Outcome::Skipped(Skip::Validated { left })) => {
                (Finding::Ok, None, left.map(|left| now + left))
            }
            Some(Outcome::Skipped(Skip::Unusable { why, expires_at })) => {
                let detail = match why {
                    Unusable::MissingScopes(scopes) => Detail::MissingScopes(scopes),
                    Unusable::OtherClient(_) | Unusable::OtherUser(_) => Detail::OurFault,
                };
                (Finding::Issue(Issue::TokenInvalid), Some(detail), expires_at)
            }
            Some(Outcome::Failed { kind, reason, token_expires_at, alarm, .. }) => {
                let dead = kind == FailureKind::Refusal || token_expires_at.is_some_and(|at| at <= now);
                let finding = if dead { Finding::Issue(Issue::TokenInvalid) } else { Finding::Unknown };
                let detail = if alarm.is_some() { Detail::OurFault } else { Detail::Failed(reason) };
                (finding, Some(detail), token_expires_at)
            }
            Some(Outcome::Skipped(skip)) => (Finding::Unknown, Some(not_found_out(skip, stopped)), before),
            Some(Outcome::Granted { .. } | Outcome::WouldRefresh | Outcome::WouldValidate) | None => {
                (Finding::Unknown, Some(not_reached(stopped)), before)
            }
        };
        Self { participant, finding, detail, token_expires_at }
    }
}

/// Why it was not found out whether the token can be used.
fn not_found_out(skip: Skip, stopped: Option<&Stop>) -> Detail {
    match skip {
        Skip::SetAside { .. } | Skip::Unusable { .. } => Detail::OurFault,
        Skip::NotValidated(reason) => Detail::NotValidated(reason),
        Skip::Leased => Detail::Busy,
        Skip::Superseded => Detail::Superseded,
        Skip::Stopped | Skip::LeaseEnded | Skip::NotDue(_) | Skip::Validated { .. } => not_reached(stopped),
    }
}

/// Why nothing became of a streamer.
fn not_reached(stopped: Option<&Stop>) -> Detail {
    match stopped {
        Some(Stop::Store(_)) => Detail::DatabaseFailed,
        Some(Stop::Misconfigured(_)) => Detail::CredentialsRefused,
        Some(Stop::UnknownKey(_)) => Detail::UnknownKey,
        Some(Stop::Outages) => Detail::TwitchDown,
        Some(Stop::Deadline | Stop::NoTime | Stop::Interrupted) | None => Detail::NoTime,
    }
}

/// What a cycle says about Twitch.
fn heard(report: &Report, outcome: Option<&Outcome>) -> TwitchHealth {
    let stopped = match report.stopped {
        Some(Stop::Outages | Stop::Misconfigured(_)) => TwitchHealth::Unavailable,
        _ => TwitchHealth::NotAsked,
    };
    let heard = match outcome {
        Some(
            Outcome::Refreshed { .. } | Outcome::Skipped(Skip::Validated { .. } | Skip::Unusable { .. }),
        ) => TwitchHealth::Available,
        Some(Outcome::Skipped(Skip::NotValidated(_))) => TwitchHealth::Unavailable,
        Some(Outcome::Failed { twitch, .. }) => *twitch,
        _ => TwitchHealth::NotAsked,
    };
    stopped.max(heard)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Alarm, Standing};

    #[test]
    fn a_fault_of_ours_is_not_shown_to_callers() {
        let now = DateTime::from_timestamp(1_795_813_200, 0).unwrap();
        let participant = || Participant {
            streamer: Streamer {
                id: StreamerId(uuid::Uuid::nil()),
                login: "brindille".to_owned(),
                display_name: "Brindille".to_owned(),
            },
            is_active: true,
            is_game_master: false,
            authorization: None,
            has_refresh_token: true,
            token: TokenState::default(),
        };
        let detail = |reason: &str, alarm| {
            let outcome = Outcome::Failed {
                kind: FailureKind::Outage,
                reason: reason.to_owned(),
                token_expires_at: None,
                standing: Standing::NotRecorded,
                alarm,
                twitch: TwitchHealth::Unavailable,
            };
            Checked::after(participant(), Some(outcome), None, now).detail.unwrap()
        };
        assert_eq!(detail("Twitch answered 500", None), Detail::Failed("Twitch answered 500".to_owned()));
        for ours in ["TOKEN_KEYS has no key `2025`", "could not be stored: db.internal:5432 refused"] {
            assert_eq!(detail(ours, Some(Alarm::NotStored)), Detail::OurFault);
        }
    }
}
