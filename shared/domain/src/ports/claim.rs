//! A streamer under our lease, and what the lease protects.

use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};

use crate::clock::{Clock, Monotonic};
use crate::streamer::{NoExpiry, Streamer, StreamerId, TokenState};
use crate::token::{AccessToken, RefreshToken};

/// A streamer under our lease.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The streamer.
    pub streamer: Streamer,
    /// False if the streamer was deactivated while the lease was waited for: then it is only to be given back.
    pub is_active: bool,
    /// The streamer's id at Twitch.
    pub twitch_user_id: String,
    /// The state as of the lease.
    pub token: TokenState,
    /// What is remembered of the stored pair.
    pub memory: PairMemory,
    /// The access token that is stored.
    pub access: Result<AccessToken, Unreadable>,
    /// The refresh token that is stored.
    pub refresh: Result<RefreshToken, Unreadable>,
    /// The lease.
    pub lease: Lease,
}

impl Claim {
    /// Why our keys don't open a stored token, if so.
    #[must_use]
    pub fn unknown_key(&self) -> Option<&str> {
        let errors = [self.refresh.as_ref().err(), self.access.as_ref().err()];
        errors.into_iter().find_map(|error| match error {
            Some(Unreadable::Keys(reason)) => Some(reason.as_str()),
            _ => None,
        })
    }
}

/// The right to write one streamer's result.
#[derive(Clone, PartialEq, Eq)]
pub struct Lease {
    /// The streamer.
    pub id: StreamerId,
    /// The fencing id: a result under any other is not written.
    pub fence: i64,
    /// When the lease ends.
    pub until: DateTime<Utc>,
    /// The same moment on the monotonic clock, in case that the wall clock is set back.
    pub held_until: Monotonic,
    /// The refresh token as stored, encrypted, that the attempt starts from. If another writer has changed it by
    /// the time the result is written, theirs stands.
    pub started_from: Option<String>,
    /// A digest of the access token as stored: what is remembered of a pair belongs to it.
    pub pair: Option<Vec<u8>>,
}

impl Lease {
    /// How much longer it holds: until the earlier of both clocks, for one is set and the other stands still while the machine
    /// sleeps.
    #[must_use]
    pub fn left(&self, clock: &dyn Clock) -> TimeDelta {
        (self.until - clock.now()).min(self.held_until - clock.monotonic())
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, fence, until, held_until: _, started_from: _, pair: _ } = self;
        f.debug_struct("Lease")
            .field("id", id)
            .field("fence", fence)
            .field("until", until)
            .finish_non_exhaustive()
    }
}

/// What we remember of a stored pair, for as long as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PairMemory {
    /// The expiry that Twitch gave its access token.
    pub expiry: Option<Expiry>,
    /// When Twitch called the access token dead before that.
    pub rejected_at: Option<DateTime<Utc>>,
    /// The application that it was issued to.
    pub client_id: Option<String>,
    /// The Twitch user that it belongs to.
    pub user_id: Option<String>,
}

/// When an access token expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// Then.
    At(DateTime<Utc>),
    /// Twitch gives no time.
    None(NoExpiry),
}

impl Expiry {
    /// The time, if there is one.
    #[must_use]
    pub fn at(self) -> Option<DateTime<Utc>> {
        match self {
            Self::At(at) => Some(at),
            Self::None(_) => None,
        }
    }
}

/// Why a stored token can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Nothing is stored.
    #[error("none is stored")]
    Missing,
    /// The text is in no known format.
    #[error("the stored text is in no known format")]
    UnknownFormat,
    /// A known format, but we can't make a token of it: the fault is ours.
    #[error("{0}")]
    Keys(String),
}
