//! A grant: the streamer lets a campaign's polls run on the channel, from now on and on a fresh token.
//!
//! It is a cycle over one streamer. The authorization is written in the transaction that stores the new pair; without
//! a fresh pair nothing is granted.

use chrono::TimeDelta;

use crate::authorization::{Grant, Membership, MembershipKey, MembershipStatus, Unknown};
use crate::failure::FailureKind;
use crate::ports::{EventPublisher, MembershipError, Memberships, RetryScheduler, Store, StoreError, Twitch};
use crate::refresh::{Cycle, RefreshService};
use crate::report::{Observer, Outcome, Report, Skip, Stop};
use crate::request::{self, Request};
use crate::streamer::{Streamer, StreamerId, TokenState};

/// Why nothing was granted. The texts hold no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// There is no such membership.
    #[error(transparent)]
    Unknown(#[from] Unknown),
    /// The streamer hasn't accepted the invitation.
    #[error("the streamer has not accepted the campaign's invitation yet")]
    Pending,
    /// The streamer is deactivated.
    #[error("the streamer is deactivated")]
    Inactive,
    /// Twitch calls the streamer's grant dead.
    #[error("{0}")]
    Refused(String),
    /// Twitch could not be asked; not the streamer's doing. Asking again is worth it at once: it counts for nothing.
    #[error("{0}")]
    Outage(String),
    /// No time was left for it.
    #[error("no time was left")]
    NoTime,
    /// Another run holds the streamer's lease, or the row is locked, for longer than a request waits.
    #[error("another run is refreshing this streamer's token")]
    Busy,
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

impl From<MembershipError> for GrantError {
    fn from(error: MembershipError) -> Self {
        match error {
            MembershipError::Unknown(unknown) => unknown.into(),
            MembershipError::Store(error) => error.into(),
        }
    }
}

/// Grants an authorization of this length (`None`: without an end), and answers with the membership as it stands with it.
/// `cycle` says who asks and how long it may take ([`Cycle::new`] with [`Trigger::Grant`](crate::schedule::Trigger::Grant)).
///
/// # Errors
///
/// If nothing was granted. A pair that was refreshed on the way is stored all the same.
pub async fn grant<S: Store + Memberships, T: Twitch, R: RetryScheduler, E: EventPublisher>(
    service: &RefreshService<S, T, R, E>,
    key: MembershipKey,
    length: Option<TimeDelta>,
    cycle: Cycle,
    observer: &dyn Observer,
) -> Result<Membership, GrantError> {
    let cycle = Cycle { grants: Some(Grant { campaign: key.campaign, length }), ..cycle };
    let mut granting = Granting { key, membership: None, answer: Err(GrantError::Busy) };
    request::answer(service, cycle, observer, &mut granting).await?;
    granting.answer
}

/// A grant under way.
struct Granting {
    key: MembershipKey,
    /// As it was read before the cycle.
    membership: Option<Membership>,
    answer: Result<Membership, GrantError>,
}

impl<S: Memberships> Request<S> for Granting {
    type Error = GrantError;

    async fn read(&mut self, store: &S) -> Result<Vec<(Streamer, TokenState)>, GrantError> {
        let membership = store.membership(self.key).await?;
        if !membership.streamer_is_active {
            return Err(GrantError::Inactive);
        }
        if membership.status == MembershipStatus::Pending {
            return Err(GrantError::Pending);
        }
        let listed = vec![(membership.streamer.clone(), membership.token.clone())];
        self.membership = Some(membership);
        Ok(listed)
    }

    fn take(&mut self, _: StreamerId, outcome: Option<Outcome>, report: &Report) -> bool {
        self.answer = match outcome {
            Some(Outcome::Granted { authorization, token_expires_at, .. }) => {
                let granted = self.membership.take().map(|mut membership| {
                    membership.authorization = Some(authorization);
                    membership.token.expires_at = token_expires_at;
                    membership
                });
                granted.ok_or(GrantError::Busy)
            }
            // Another run was there; or it has changed the token or the membership meanwhile.
            Some(outcome)
                if report.stopped.is_none()
                    && (request::was_elsewhere(&outcome)
                        || matches!(
                            outcome,
                            Outcome::Skipped(Skip::NotDue(_)) | Outcome::Refreshed { .. }
                        )) =>
            {
                return false;
            }
            Some(Outcome::Failed { kind: FailureKind::Refusal, reason, .. }) => {
                Err(GrantError::Refused(reason))
            }
            Some(
                Outcome::Failed { reason, alarm: Some(_), .. }
                | Outcome::Skipped(Skip::SetAside { reason, .. }),
            ) => Err(GrantError::Ours(reason)),
            Some(Outcome::Failed { reason, .. }) => Err(GrantError::Outage(reason)),
            _ => Err(match &report.stopped {
                Some(Stop::Store(error)) => error.clone().into(),
                Some(Stop::Misconfigured(reason) | Stop::UnknownKey(reason)) => {
                    GrantError::Secrets(reason.clone())
                }
                Some(stopped @ Stop::Outages) => GrantError::Outage(stopped.to_string()),
                Some(Stop::Deadline | Stop::NoTime | Stop::Interrupted) | None => GrantError::NoTime,
            }),
        };
        true
    }

    fn give_up(&mut self, error: Option<StoreError>) -> Result<(), GrantError> {
        Err(error.map_or(GrantError::Busy, GrantError::Store))
    }
}
