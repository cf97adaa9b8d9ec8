//! The health check before a session: whether each channel that a campaign needs can be used now, and what to do about
//! those that can't. Tokens that expire soon or that Twitch calls invalid are refreshed on the way.
//!
//! It is a cycle over the campaign's participants, all at the same time.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};

use crate::authorization::{CampaignId, Participant, Unknown};
use crate::policy::FailureKind;
use crate::ports::{MembershipError, Memberships, Signals, Store, StoreError, Twitch};
use crate::refresh::{Cycle, RefreshService, Scope, unreadable};
use crate::report::{Observer, Outcome, Report, Skip, Standing, Stop};
use crate::streamer::StreamerId;

pub use crate::report::TwitchHealth;

/// All that a caller learns of a fault of ours.
const OUR_FAULT: &str = "a fault of this service's own; its log says which";

/// Why a streamer was not checked that others work on.
const BUSY: &str = "another run is refreshing the token, or its row is locked";

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

    /// What to do about it.
    #[must_use]
    pub fn action(self) -> &'static str {
        match self {
            Self::StreamerInactive | Self::TokenMissing => "the streamer has to reconnect with Twitch",
            Self::AuthorizationMissing => "the streamer has to authorize this campaign",
            Self::AuthorizationExpired => "the streamer has to authorize this campaign again",
            Self::TokenInvalid => "the streamer has to reconnect with Twitch, unless a retry helps",
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
    /// What happened, if there is more to say. No secret.
    pub detail: Option<String>,
    /// When the access token dies, as far as is known by now.
    pub token_expires_at: Option<DateTime<Utc>>,
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkup {
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

impl Checkup {
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
/// If the database fails at the beginning, or knows no such campaign. What fails later is in the [`Checkup`].
pub async fn check<S: Store + Memberships, T: Twitch, G: Signals>(
    service: &RefreshService<S, T, G>,
    campaign: CampaignId,
    cycle: Cycle,
    observer: &dyn Observer,
) -> Result<Checkup, CheckError> {
    let (started_at, began) = (service.now(), service.monotonic());
    let mut participants = service.store().participants(campaign).await?;
    let read_at = service.monotonic();
    let mut settled: HashMap<StreamerId, Checked> = HashMap::new();
    let mut twitch = TwitchHealth::NotAsked;
    loop {
        let mut open = Vec::new();
        // Each costs itself alone.
        for (participant, error) in participants.unreadable {
            settled.entry(participant.streamer.id).or_insert_with(|| {
                observer.done(&participant.streamer, &unreadable(error.text));
                Checked::unknown(participant, OUR_FAULT)
            });
        }
        for participant in participants.readable {
            if settled.contains_key(&participant.streamer.id) {
                continue;
            }
            match before_twitch(&participant, service.now()) {
                Some(issue) => {
                    settled.insert(participant.streamer.id, Checked::before_twitch(participant, issue));
                }
                None => open.push(participant),
            }
        }
        if open.is_empty() {
            break;
        }
        let these = open.iter().map(|one| (one.streamer.clone(), one.token.clone())).collect();
        let cycle = Cycle { scope: Scope::Listed(these), ..cycle.clone() };
        let (report, mut outcomes) = service.run_for(&cycle, observer).await;
        twitch = twitch.max(heard(&report, outcomes.values()));
        let (now, mut waiting) = (service.now(), Vec::new());
        for participant in open {
            match outcomes.remove(&participant.streamer.id) {
                // Others were here: their outcome is worth waiting for.
                Some(
                    Outcome::Skipped(Skip::Leased | Skip::Superseded)
                    | Outcome::Failed { standing: Standing::Superseded, .. },
                ) if report.stopped.is_none() => {
                    waiting.push(participant);
                }
                outcome => {
                    let checked = Checked::after(participant, outcome, report.stopped.as_ref(), now);
                    settled.insert(checked.participant.streamer.id, checked);
                }
            }
        }
        let ids: Vec<_> = waiting.iter().map(|one| one.streamer.id).collect();
        let patience = cycle.limits.lease_patience(began, service.monotonic());
        let again = !ids.is_empty() && matches!(service.store().released(&ids, patience).await, Ok(true));
        // Read again: a streamer may have been deactivated meanwhile.
        let read = if again { service.store().participants(campaign).await.ok() } else { None };
        let Some(read) = read else {
            let busy = |participant| Checked::unknown(participant, BUSY);
            settled.extend(waiting.into_iter().map(|one| (one.streamer.id, busy(one))));
            break;
        };
        participants = read;
    }
    let mut streamers: Vec<_> = settled.into_values().collect();
    streamers.sort_by(|a, b| {
        let key = |one: &Checked| (!one.participant.is_game_master, one.participant.streamer.login.clone());
        key(a).cmp(&key(b))
    });
    let (database_took, twitch_took) = (read_at - began, service.monotonic() - read_at);
    Ok(Checkup { streamers, twitch, started_at, database_took, twitch_took })
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

    fn unknown(participant: Participant, detail: &str) -> Self {
        let token_expires_at = participant.token.expires_at;
        Self { participant, finding: Finding::Unknown, detail: Some(detail.to_owned()), token_expires_at }
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
                let detail = if why.is_ours() { OUR_FAULT.to_owned() } else { why.to_string() };
                (Finding::Issue(Issue::TokenInvalid), Some(detail), expires_at)
            }
            Some(Outcome::Failed { kind, reason, token_expires_at, alarm, .. }) => {
                let dead = kind == FailureKind::Refusal || token_expires_at.is_some_and(|at| at <= now);
                let finding = if dead { Finding::Issue(Issue::TokenInvalid) } else { Finding::Unknown };
                // What is our own fault is in the log alone: keys and databases are no business of callers.
                let detail = if alarm.is_some() { OUR_FAULT.to_owned() } else { reason };
                (finding, Some(detail), token_expires_at)
            }
            Some(Outcome::Skipped(Skip::SetAside { .. })) => {
                (Finding::Unknown, Some(OUR_FAULT.to_owned()), before)
            }
            Some(Outcome::Skipped(Skip::Stopped)) | None => {
                (Finding::Unknown, Some(not_reached(stopped)), before)
            }
            Some(other) => (Finding::Unknown, Some(other.to_string()), before),
        };
        Self { participant, finding, detail, token_expires_at }
    }
}

/// Why nothing became of a streamer.
fn not_reached(stopped: Option<&Stop>) -> String {
    match stopped {
        Some(Stop::Store(_)) => "the database failed during the check".to_owned(),
        Some(Stop::Misconfigured(_)) => "Twitch does not take our application's credentials".to_owned(),
        Some(Stop::Outages) => "Twitch seems to be down".to_owned(),
        Some(Stop::Deadline | Stop::NoTime | Stop::Interrupted) | None => {
            "no time was left for it".to_owned()
        }
    }
}

/// What a cycle says about Twitch.
fn heard<'a>(report: &Report, outcomes: impl Iterator<Item = &'a Outcome>) -> TwitchHealth {
    let stopped = match report.stopped {
        Some(Stop::Outages | Stop::Misconfigured(_)) => TwitchHealth::Unavailable,
        _ => TwitchHealth::NotAsked,
    };
    let heard = outcomes.map(|outcome| match outcome {
        Outcome::Refreshed { .. } | Outcome::Skipped(Skip::Validated { .. } | Skip::Unusable { .. }) => {
            TwitchHealth::Available
        }
        Outcome::Skipped(Skip::NotValidated(_)) => TwitchHealth::Unavailable,
        Outcome::Failed { twitch, .. } => *twitch,
        _ => TwitchHealth::NotAsked,
    });
    heard.fold(stopped, TwitchHealth::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Alarm;
    use crate::streamer::{Streamer, TokenState};

    #[test]
    fn a_fault_of_ours_is_not_told() {
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
        assert_eq!(detail("Twitch answered 500", None), "Twitch answered 500");
        for ours in ["TOKEN_KEYS has no key `2025`", "could not be stored: db.internal:5432 refused"] {
            assert_eq!(detail(ours, Some(Alarm::NotStored)), OUR_FAULT);
        }
    }
}
