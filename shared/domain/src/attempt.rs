//! What became of one streamer's lease: decided once, written as it was decided, and reported from both
//! ([`Outcome::of`](crate::report::Outcome::of)).

use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};

use crate::authorization::{Authorization, Grant};
use crate::evidence::Proof;
use crate::failure::{FailedUnder, Failure, FailureKind};
use crate::policy::{NotDue, Policy, Verdict};
use crate::ports::{Expiry, Lease, PairMemory, StoreError};
use crate::recipient::Recipient;
use crate::schedule::Trigger;
use crate::streamer::{Caller, Streamer};
use crate::token::TokenPair;

/// One streamer's lease and what it came to, to be written.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The streamer.
    pub streamer: Streamer,
    /// The lease under which it is written.
    pub lease: Lease,
    /// Why it was made.
    pub trigger: Trigger,
    /// When Twitch was first asked.
    pub started_at: DateTime<Utc>,
    /// When the answer was there.
    pub ended_at: DateTime<Utc>,
    /// The expiry before the attempt.
    pub expires_before: Option<DateTime<Utc>>,
    /// The caller that asked for it, if any.
    pub caller: Option<Caller>,
    /// What is granted with it, from `ended_at` on.
    pub grants: Option<Grant>,
    /// The client id under which Twitch was asked.
    pub client_id: String,
    /// What it came to.
    pub resolution: Resolution,
}

/// What an [`Attempt`] came to.
#[derive(Clone, Debug)]
pub enum Resolution {
    /// Twitch gave a new pair, which clears a standing failure.
    Refreshed {
        /// The new pair.
        pair: TokenPair,
        /// What is known of it; no expiry if Twitch did not say any.
        memory: PairMemory,
        /// Why a caller that asked for a usable token can't use it.
        unusable: Option<Unusable>,
    },
    /// The new pair is stored already, and Twitch has now said what was not known of it.
    Completed {
        /// What Twitch says of it.
        memory: PairMemory,
        /// Why a caller that asked for a usable token can't use it.
        unusable: Option<Unusable>,
        /// What was authorized when it was stored.
        granted: Option<Authorization>,
    },
    /// Twitch calls the stored token valid, which clears a standing failure.
    Validated {
        /// What Twitch says of it.
        memory: PairMemory,
        /// Why it is not the token that is needed.
        unusable: Option<Unusable>,
    },
    /// The refresh failed.
    Failed {
        /// Why.
        cause: FailedRefresh,
        /// What that changes: the failure that stands from now on.
        verdict: Verdict,
        /// When the next attempt is due.
        retry_at: DateTime<Utc>,
        /// What of our configuration the failure is recorded under.
        under: FailedUnder,
    },
    /// The refresh was refused, which deactivates the streamer if the refusal is confirmed. For
    /// [`Store::deactivate`](crate::ports::Store::deactivate).
    Deactivate {
        /// The refusal.
        cause: FailedRefresh,
        /// The failure that stood before.
        before: Option<Failure>,
    },
    /// Nothing changes: only the lease is given back.
    Skipped(Skip),
    /// The program panicked. Nothing changes.
    Panicked,
}

impl Resolution {
    /// The rule of failure applied: a refusal that is decisive deactivates if it is confirmed, everything else is recorded.
    #[must_use]
    pub fn after(
        cause: FailedRefresh,
        before: Option<Failure>,
        policy: &Policy,
        client_id: &str,
        now: DateTime<Utc>,
    ) -> Self {
        if cause.proof.is_some() && policy.is_decisive(before, now) {
            return Self::Deactivate { cause, before };
        }
        Self::failed(cause.kind(), cause, before, policy, client_id, now)
    }

    fn failed(
        kind: FailureKind,
        cause: FailedRefresh,
        before: Option<Failure>,
        policy: &Policy,
        client_id: &str,
        now: DateTime<Utc>,
    ) -> Self {
        let verdict = policy.after_failure(before, kind, now);
        let under = match cause.alarm {
            Some(Alarm::Unreadable) => FailedUnder::WrongKeys,
            _ => FailedUnder::Client(client_id.to_owned()),
        };
        Self::Failed { cause, verdict, retry_at: verdict.failure().at + policy.retry_delay, under }
    }

    /// What is known of the access token's expiry by now.
    #[must_use]
    pub fn expires_at(&self) -> Option<DateTime<Utc>> {
        match self {
            Self::Refreshed { memory, .. }
            | Self::Completed { memory, .. }
            | Self::Validated { memory, .. } => memory.expiry.and_then(Expiry::at),
            Self::Failed { cause, .. } | Self::Deactivate { cause, .. } => cause.expires_at,
            Self::Skipped(_) | Self::Panicked => None,
        }
    }

    /// What is to be remembered of the stored pair, if anything changes.
    #[must_use]
    pub fn memory(&self) -> Option<&PairMemory> {
        match self {
            Self::Refreshed { memory, .. }
            | Self::Completed { memory, .. }
            | Self::Validated { memory, .. } => Some(memory),
            Self::Failed { cause, .. } | Self::Deactivate { cause, .. } => Some(&cause.memory),
            Self::Skipped(_) | Self::Panicked => None,
        }
    }

    /// Why the refresh failed, if it did.
    #[must_use]
    pub fn cause(&self) -> Option<&FailedRefresh> {
        match self {
            Self::Failed { cause, .. } | Self::Deactivate { cause, .. } => Some(cause),
            _ => None,
        }
    }

    /// Whether the token is fresh from Twitch, so that a campaign may be authorized.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        matches!(
            self,
            Self::Refreshed { unusable: None, .. }
                | Self::Skipped(Skip::NotDue(NotDue::Valid { .. } | NotDue::NoExpiry))
        )
    }
}

impl Attempt {
    /// The attempt without the deactivation: a refusal that nothing confirms.
    #[must_use]
    pub fn unconfirmed(self, policy: &Policy) -> Self {
        self.counted_as(FailureKind::Refusal, policy, |cause| cause)
    }

    /// The attempt without the deactivation, which is not allowed, however confirmed the refusal is: it counts as an outage, and
    /// an alarm says so.
    #[must_use]
    pub fn held_back(self, why: &str, policy: &Policy) -> Self {
        self.counted_as(FailureKind::Outage, policy, |cause| FailedRefresh {
            reason: format!("{}, but {why}", cause.reason),
            alarm: Some(Alarm::HeldBack),
            ..cause
        })
    }

    fn counted_as(
        self,
        kind: FailureKind,
        policy: &Policy,
        as_cause: impl FnOnce(FailedRefresh) -> FailedRefresh,
    ) -> Self {
        let resolution = match self.resolution {
            Resolution::Deactivate { cause, before } => {
                Resolution::failed(kind, as_cause(cause), before, policy, &self.client_id, self.started_at)
            }
            decided => decided,
        };
        Self { resolution, ..self }
    }
}

/// A refresh that gave no new pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedRefresh {
    /// What the pair shows by itself, of a refusal; `None`: an outage.
    pub proof: Option<Proof>,
    /// Whether Twitch refused to give a pair, whatever that counts as.
    pub was_refused: bool,
    /// What happened, without secrets.
    pub reason: String,
    /// What needs the operator, if anything.
    pub alarm: Option<Alarm>,
    /// Whether Twitch answered.
    pub twitch: TwitchHealth,
    /// What is known of the access token's expiry by now.
    pub expires_at: Option<DateTime<Utc>>,
    /// What is known of the pair by now.
    pub memory: PairMemory,
}

impl FailedRefresh {
    /// Whose fault it is.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        if self.proof.is_some() { FailureKind::Refusal } else { FailureKind::Outage }
    }
}

/// What the store has made of an [`Attempt`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Written.
    Written,
    /// Written, and the campaign is authorized.
    Granted(Authorization),
    /// Written, but the authorization could not be.
    NotGranted(StoreError),
    /// Written, and these people are notified of refusals that nothing confirms.
    Noticed(Vec<Recipient>),
    /// The streamer is deactivated, and these people are notified.
    Deactivated(Vec<Recipient>),
    /// The budget of this hour is used up; nothing was changed, the lease is still held.
    OverBudget,
    /// The lease was taken over or another writer changed the tokens meanwhile: theirs stand.
    Superseded,
    /// The row can't be written, though others can. Nothing is written, and the lease is still held.
    Refused(StoreError),
}

/// Whether Twitch answered. One answer outweighs any silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TwitchHealth {
    /// It was not asked.
    NotAsked,
    /// It was asked and gave no answer that could be used.
    Unavailable,
    /// It answered.
    Available,
}

/// Why a token that lives is not usable, as Twitch describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// It was issued to another application, with this client id.
    OtherClient(String),
    /// It belongs to another Twitch user, with this id.
    OtherUser(String),
    /// It lacks these scopes, which are required.
    MissingScopes(Vec<String>),
}

impl Unusable {
    /// Whether it needs the operator, and not the streamer.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        match self {
            Self::OtherClient(_) | Self::OtherUser(_) => true,
            Self::MissingScopes(_) => false,
        }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherClient(id) => {
                write!(f, "the access token belongs to another application (client id {id})")
            }
            Self::OtherUser(id) => {
                write!(f, "the access token belongs to another Twitch user (id {id}) than the streamer")
            }
            Self::MissingScopes(scopes) => {
                write!(f, "the token lacks required scopes: {}", scopes.join(", "))
            }
        }
    }
}

/// What needs the operator after a failed refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// A stored token is under a key that we don't have, or fails authentication; or the row can't be read.
    Unreadable,
    /// What Twitch answered is lost: it could not be stored, another writer's tokens stand in its place, or the program
    /// panicked.
    NotStored,
    /// Twitch says that the stored token belongs to another application or another user.
    Misplaced,
    /// The streamer was refused for good and not deactivated: the hour's budget is used up, or deactivation is switched
    /// off.
    HeldBack,
}

/// Why a streamer was not refreshed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Skip {
    /// The policy says so.
    NotDue(NotDue),
    /// Twitch was asked and calls the token valid.
    Validated {
        /// How long the token has left; `None` if Twitch gives no expiry.
        left: Option<TimeDelta>,
    },
    /// Twitch was asked and calls the token valid, but it is not the one that is needed.
    Unusable {
        /// Why.
        why: Unusable,
        /// When the token expires, if Twitch says so.
        expires_at: Option<DateTime<Utc>>,
    },
    /// Twitch was asked whether the token lives and gave no answer.
    NotValidated(String),
    /// Another run holds the lease, the row is locked, or the streamer is no longer active.
    Leased,
    /// Another writer changed the tokens meanwhile; theirs stand, and nothing of ours is lost.
    Superseded,
    /// The cycle stopped first, or the lease was too short by the time its turn came.
    Stopped,
    /// The lease ended before the token was sent.
    LeaseEnded,
    /// The row could not be read or written lately.
    SetAside {
        /// Until when it is left alone.
        until: DateTime<Utc>,
        /// What is wrong with it.
        reason: String,
    },
}

impl Skip {
    /// Whether it waits for a retry: something has failed, and is not tried again yet.
    #[must_use]
    pub fn waits(&self) -> bool {
        matches!(self, Self::NotDue(NotDue::RetryAt(_)) | Self::SetAside { .. })
    }
}
