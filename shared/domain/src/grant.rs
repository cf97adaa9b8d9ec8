//! A grant: the streamer lets a campaign's polls run on the channel for twelve hours, which begin on a fresh token.
//!
//! It is a cycle over one streamer. The authorization is written in the transaction that stores the new pair; without
//! a fresh pair nothing is granted.

use crate::authorization::{Membership, MembershipKey, MembershipStatus, Unknown};
use crate::policy::FailureKind;
use crate::ports::{MembershipError, Memberships, Signals, Store, StoreError, Twitch};
use crate::refresh::{Cycle, RefreshService, Scope};
use crate::report::{Observer, Outcome, Skip, Standing, Stop};

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
    /// Another run holds the streamer's lease, or the row is locked, for longer than a request waits.
    #[error("another run is refreshing this streamer's token")]
    Busy,
    /// Something of ours needs the operator first.
    #[error("{0}")]
    Ours(String),
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

/// Grants an authorization, and answers with the membership as it stands with it. `cycle` says who asks and how long it may take ([`Cycle::new`] with
/// [`Trigger::Grant`](crate::schedule::Trigger::Grant)).
///
/// # Errors
///
/// If nothing was granted. A pair that was refreshed on the way is stored all the same.
pub async fn grant<S: Store + Memberships, T: Twitch, G: Signals>(
    service: &RefreshService<S, T, G>,
    key: MembershipKey,
    cycle: Cycle,
    observer: &dyn Observer,
) -> Result<Membership, GrantError> {
    let began = service.monotonic();
    loop {
        let mut membership = service.store().membership(key).await?;
        if !membership.streamer_is_active {
            return Err(GrantError::Inactive);
        }
        if membership.status == MembershipStatus::Pending {
            return Err(GrantError::Pending);
        }
        let cycle = Cycle {
            scope: Scope::Listed(vec![(membership.streamer.clone(), membership.token.clone())]),
            grants: Some(key.campaign),
            ..cycle.clone()
        };
        let (report, mut outcomes) = service.run_for(&cycle, observer).await;
        let stopped = report.stopped;
        match outcomes.remove(&key.streamer) {
            Some(Outcome::Granted { authorization, token_expires_at, .. }) => {
                membership.authorization = Some(authorization);
                membership.token.expires_at = token_expires_at;
                return Ok(membership);
            }
            // Others were here: they hold the lease, have changed the tokens, or the membership meanwhile.
            Some(
                Outcome::Skipped(Skip::Leased | Skip::Superseded | Skip::NotDue(_))
                | Outcome::Failed { standing: Standing::Superseded, .. }
                | Outcome::Refreshed { .. },
            ) if stopped.is_none() => {
                let patience = cycle.limits.lease_patience(began, service.monotonic());
                if !service.store().released(&[key.streamer], patience).await? {
                    return Err(GrantError::Busy);
                }
            }
            Some(Outcome::Failed { kind: FailureKind::Refusal, reason, .. }) => {
                return Err(GrantError::Refused(reason));
            }
            Some(Outcome::Failed { reason, alarm: Some(_), .. }) => return Err(GrantError::Ours(reason)),
            Some(Outcome::Skipped(aside @ Skip::SetAside { .. })) => {
                return Err(GrantError::Ours(aside.to_string()));
            }
            Some(Outcome::Failed { reason, .. }) => return Err(GrantError::Outage(reason)),
            _ => {
                return Err(match stopped {
                    Some(Stop::Store(error)) => error.into(),
                    Some(Stop::Misconfigured(reason)) => GrantError::Ours(reason),
                    stopped => GrantError::Outage(
                        stopped.map_or("no time was left".to_owned(), |stop| stop.to_string()),
                    ),
                });
            }
        }
    }
}
