//! Where streamers are kept, and the records that travel to and from there.

use std::fmt;
use std::future::Future;

use chrono::{DateTime, TimeDelta, Utc};

use crate::authorization::{Authorization, CampaignId, Membership, MembershipKey, Participant, Unknown};
use crate::clock::{Clock, Monotonic};
use crate::evidence::History;
use crate::notification::Told;
use crate::policy::{FailedUnder, Failure};
use crate::schedule::Trigger;
use crate::streamer::{Authorized, Caller, NoExpiry, Streamer, StreamerId, TokenState};
use crate::token::{AccessToken, RefreshToken, TokenPair};

/// The database failed; the text says at what, and what the reader can do. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct StoreError {
    /// What can help.
    pub kind: StoreErrorKind,
    /// For people.
    pub text: String,
}

impl StoreError {
    /// With this text.
    #[must_use]
    pub fn new(kind: StoreErrorKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

/// What can help against a [`StoreError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// Waiting: the database, or the connection to it, is away.
    Away,
    /// Another password or login: the database refuses ours. The secret may have been rotated.
    LoginRefused,
    /// Leaving one row out, which can't be read or written.
    Row,
    /// The operator: the schema, a right, or the configuration is wrong.
    Permanent,
}

/// Why a membership or a campaign could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// There is no such streamer, campaign or membership.
    #[error(transparent)]
    Unknown(#[from] Unknown),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where streamers, tokens, leases and the history are kept.
pub trait Store: Send + Sync {
    /// The next page of authorized streamers behind `after`, in a stable order; empty at the end. While the database is
    /// away it tries again until `give_up_at`.
    fn authorized(
        &self,
        after: Option<Place>,
        now: DateTime<Utc>,
        give_up_at: Monotonic,
    ) -> impl Future<Output = Result<Page, StoreError>> + Send;

    /// Takes a lease until `until` on each of these streamers that is active and whose row is neither leased nor locked,
    /// and reads what it protects, as of after the lease was taken. While the database is away it tries again until
    /// `give_up_at`; what is leased by then, it tries to read for seconds more. A streamer whose row can't be read is set
    /// aside; one that is set aside gets no lease.
    fn claim(
        &self,
        ids: &[StreamerId],
        now: DateTime<Utc>,
        until: DateTime<Utc>,
        give_up_at: Monotonic,
    ) -> impl Future<Output = Result<Vec<Claim>, StoreError>> + Send;

    /// Writes these results and gives their leases back, in one transaction. While the database is away it tries
    /// again until `give_up_at`. Answers in the order of `attempts`. A row that can't be written does not affect the others.
    fn record(
        &self,
        attempts: &[Attempt],
        give_up_at: Monotonic,
    ) -> impl Future<Output = Result<Vec<Recorded>, StoreError>> + Send;

    /// Writes a result whose row could not be written, again and again until `give_up_at`.
    fn insist(
        &self,
        attempt: &Attempt,
        give_up_at: Monotonic,
    ) -> impl Future<Output = Result<Recorded, StoreError>> + Send;

    /// Gives the lease of this attempt back, and the streamer no other before its backoff is over.
    fn set_aside(
        &self,
        attempt: &Attempt,
        reason: &str,
        now: DateTime<Utc>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Ends the backoff of those of these streamers that are set aside. While the database is away it tries again until
    /// `give_up_at`.
    fn take_back(
        &self,
        ids: &[StreamerId],
        give_up_at: Monotonic,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Those of these streamers that are set aside.
    fn are_set_aside(
        &self,
        ids: &[StreamerId],
        now: DateTime<Utc>,
    ) -> impl Future<Output = Result<Vec<SetAside>, StoreError>> + Send;

    /// Deactivates the streamers of these refused attempts, as many as the budget allows, puts the notifications of it
    /// into the outbox and gives their leases back, in one transaction. While the database is away it tries again until
    /// `give_up_at`. Answers in the order of `attempts`.
    fn deactivate(
        &self,
        attempts: &[Attempt],
        give_up_at: Monotonic,
    ) -> impl Future<Output = Result<Vec<Deactivation>, StoreError>> + Send;

    /// Puts the notifications of these recorded refusals into the outbox, deactivates no streamer, and counts them as
    /// deactivations against the budget. While the database is away it tries again until `give_up_at`. Answers in the
    /// order of `attempts` who is notified; `None`: the budget is used up, or they were notified before.
    fn notice(
        &self,
        attempts: &[Attempt],
        give_up_at: Monotonic,
    ) -> impl Future<Output = Result<Vec<Option<Vec<Told>>>, StoreError>> + Send;

    /// What became of the last refreshes under this client id.
    fn history(&self, client_id: &str) -> impl Future<Output = Result<History, StoreError>> + Send;

    /// A few authorized streamers without a failure, other than these, whose access token should live.
    fn healthy(
        &self,
        except: &[StreamerId],
        now: DateTime<Utc>,
    ) -> impl Future<Output = Result<Vec<StreamerId>, StoreError>> + Send;
}

/// Where memberships are kept, for callers that ask for a streamer or a campaign.
pub trait Memberships: Send + Sync {
    /// This membership.
    fn membership(
        &self,
        key: MembershipKey,
    ) -> impl Future<Output = Result<Membership, MembershipError>> + Send;

    /// The streamers that this campaign needs, each once: its active members, and the game master's own channels.
    fn participants(
        &self,
        campaign: CampaignId,
    ) -> impl Future<Output = Result<Participants, MembershipError>> + Send;

    /// Waits until none of these is leased and no row of theirs is locked; `false` if `patience` is over before.
    fn released(
        &self,
        ids: &[StreamerId],
        patience: TimeDelta,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;
}

/// The streamers that a campaign needs.
#[derive(Debug, Default)]
pub struct Participants {
    /// Those that could be read.
    pub readable: Vec<Participant>,
    /// Those that could not, of which only the id and the role are known, and why.
    pub unreadable: Vec<(Participant, StoreError)>,
}

/// A page of authorized streamers.
#[derive(Debug, Default)]
pub struct Page {
    /// Those that could be read.
    pub authorized: Vec<Authorized>,
    /// Those that could not, and why.
    pub unreadable: Vec<(StreamerId, StoreError)>,
    /// Where the next page begins; `None` at the end.
    pub last: Option<Place>,
}

/// A place in the order of pages: that of one streamer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// When the streamer's last authorization ends.
    pub until: DateTime<Utc>,
    /// The streamer.
    pub id: StreamerId,
}

impl From<&Authorized> for Place {
    fn from(authorized: &Authorized) -> Self {
        Self { until: authorized.until, id: authorized.streamer.id }
    }
}

/// A streamer whose row can't be read or written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// The streamer.
    pub id: StreamerId,
    /// When that was found out.
    pub at: DateTime<Utc>,
    /// Until when it is left alone; that very time, if it can be read and not changed, which is found out again each time.
    pub until: DateTime<Utc>,
    /// What is wrong with the row.
    pub reason: String,
}

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

/// What became of one streamer's lease, to be written.
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
    /// The campaign that is authorized with it, from `ended_at` on.
    pub grants: Option<CampaignId>,
    /// The client id under which Twitch was asked for a new pair.
    pub client_id: String,
    /// Whether Twitch refused to give one, whatever that counts as.
    pub refused: bool,
    /// What it changes.
    pub change: Change,
}

/// What an [`Attempt`] changes.
#[derive(Clone, Debug)]
pub enum Change {
    /// A new pair, which clears a standing failure.
    Refreshed {
        /// The new pair.
        pair: TokenPair,
        /// What is known of it; no expiry if Twitch did not say any.
        memory: PairMemory,
    },
    /// Twitch calls the token valid, which clears a standing failure.
    Validated {
        /// What Twitch says of it.
        memory: PairMemory,
    },
    /// The refresh failed; this failure stands now.
    Failed {
        /// The failure that stands.
        failure: Failure,
        /// What of our configuration it is recorded under.
        under: FailedUnder,
        /// What happened, without secrets.
        reason: String,
        /// What is known of the access token's expiry by now.
        expires_at: Option<DateTime<Utc>>,
        /// What is known of the pair by now.
        memory: PairMemory,
    },
    /// The refresh was refused for good. For [`Store::deactivate`].
    Deactivated {
        /// What happened, without secrets.
        reason: String,
        /// What is known of the access token's expiry by now.
        expires_at: Option<DateTime<Utc>>,
        /// What is known of the pair by now.
        memory: PairMemory,
    },
    /// Nothing: only the lease is given back.
    Released,
}

/// What became of one written [`Attempt`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// Written.
    Written {
        /// What was granted, if the attempt grants something and the membership allows it.
        granted: Option<Authorization>,
    },
    /// Written, but what it grants could not be.
    NotGranted(StoreError),
    /// The lease was taken over or another writer changed the tokens meanwhile: theirs stand.
    Superseded,
    /// The row can't be written, though others can. Nothing is written, and the lease is still held.
    Refused(StoreError),
}

/// What became of a deactivation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deactivation {
    /// The streamer is deactivated, and these people are to be notified.
    Done(Vec<Told>),
    /// The budget of this hour is used up; nothing was changed, the lease is still held.
    OverBudget,
    /// As [`Recorded::Superseded`].
    Superseded,
    /// As [`Recorded::Refused`].
    Refused(StoreError),
}
