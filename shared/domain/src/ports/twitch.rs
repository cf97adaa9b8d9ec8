//! Twitch: what is asked, under which permit, and what it answers.

use std::future::Future;

use chrono::TimeDelta;
use tokio_util::sync::CancellationToken;

use super::claim::Lease;
use crate::clock::Clock;
use crate::token::{AccessToken, RefreshToken, TokenPair};

/// Twitch's OAuth 2.0 endpoints.
pub trait Twitch: Send + Sync {
    /// Gets ready for calls that are about to come, while the caller waits for something else. What fails here fails
    /// again, and is reported, at the first call.
    fn connect(&self) -> impl Future<Output = ()> + Send;

    /// Asks for a new pair, if the permit allows it.
    fn refresh(
        &self,
        token: &RefreshToken,
        permit: &Permit<'_>,
    ) -> impl Future<Output = Result<TokenResponse, RefreshError>> + Send;

    /// The client id that calls are made under.
    fn client_id(&self) -> String;

    /// Asks whether the access token lives, if the permit allows it.
    fn validate(
        &self,
        token: &AccessToken,
        priority: Priority,
        permit: &Permit<'_>,
    ) -> impl Future<Output = Result<Validity, Outage>> + Send;
}

/// Which calls to Twitch go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// A token dies or a caller waits without it.
    Vital,
    /// It can wait for the next sweep: it comes after every vital call, and takes nothing away from one.
    Optional,
}

/// What the token endpoint answers to a refresh that succeeds (RFC 6749, section 5.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenResponse {
    /// The pair to keep from now on.
    pub pair: TokenPair,
    /// How long the access token lives; Twitch does not always say.
    pub expires_in: Option<TimeDelta>,
    /// The required scopes that the answer lacks.
    pub missing_scopes: Vec<String>,
}

/// What `/oauth2/validate` says of an access token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Validity {
    /// It lives.
    Valid(Validation),
    /// It is dead.
    Invalid,
}

/// What Twitch says of an access token that lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validation {
    /// How long it lives from now on.
    pub lifetime: Lifetime,
    /// The application that it was issued to, if the answer says so.
    pub client_id: Option<String>,
    /// The Twitch user that it belongs to, if the answer says so.
    pub user_id: Option<String>,
    /// The required scopes that the answer lacks.
    pub missing_scopes: Vec<String>,
}

/// How long an access token lives, as Twitch says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// For so long.
    Limited(TimeDelta),
    /// It never expires (`expires_in` is 0).
    Unlimited,
    /// The answer does not say.
    Unknown,
}

/// Anything that is not the streamer's doing. The text holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Outage(pub String);

/// A refresh that failed, by class. The texts hold no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefreshError {
    /// This grant is dead.
    #[error("{0}")]
    Refused(String),
    /// Not the streamer's doing.
    #[error(transparent)]
    Outage(#[from] Outage),
    /// Our application's credentials are wrong: no streamer can be refreshed.
    #[error("{0}")]
    Misconfigured(String),
    /// The token was not sent.
    #[error(transparent)]
    Withheld(#[from] Withheld),
}

/// An answer of Twitch's, and the write of it, need this much of a lease.
const ANSWERING: TimeDelta = TimeDelta::seconds(20);

/// What has to hold whenever a token is sent: the lease under which it was read, and that the work goes on.
#[derive(Clone, Copy)]
pub struct Permit<'a> {
    lease: Option<(&'a Lease, &'a dyn Clock)>,
    stop: Option<&'a CancellationToken>,
}

/// Why a token was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Withheld {
    /// The process was slow, or stood still.
    #[error("its lease ended before the request was sent")]
    LeaseEnded,
    /// The work is asked to stop.
    #[error("the work was asked to stop before the request was sent")]
    Stopping,
}

impl<'a> Permit<'a> {
    /// For a token that no lease protects: the application's own, or one that is stored nowhere else.
    pub const UNCONDITIONAL: Permit<'static> = Permit { lease: None, stop: None };

    /// A permit for as long as this lease holds.
    #[must_use]
    pub fn under(lease: &'a Lease, clock: &'a dyn Clock) -> Self {
        Self { lease: Some((lease, clock)), stop: None }
    }

    /// The same, until the work is asked to stop.
    #[must_use]
    pub fn until(self, stop: &'a CancellationToken) -> Self {
        Self { stop: Some(stop), ..self }
    }

    /// Whether a token may be sent now. To be asked after every pause and right before the token is sent.
    ///
    /// # Errors
    ///
    /// If it may not.
    pub fn check(&self) -> Result<(), Withheld> {
        if self.stop.is_some_and(CancellationToken::is_cancelled) {
            return Err(Withheld::Stopping);
        }
        match self.lease {
            Some((lease, clock)) if lease.left(clock) < ANSWERING => Err(Withheld::LeaseEnded),
            _ => Ok(()),
        }
    }

    /// Waits until the work is asked to stop: no pause needs to last longer.
    pub async fn withdrawn(&self) {
        match self.stop {
            Some(stop) => stop.cancelled().await,
            None => std::future::pending().await,
        }
    }
}
