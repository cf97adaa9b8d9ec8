//! What the services need from outside: where streamers and notifications are kept, Twitch, push services, and what
//! wakes others.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};

use serde::Serialize;

use crate::authorization::{Authorization, CampaignId, Membership, MembershipKey, Participant, Unknown};
use crate::clock::{Clock, Monotonic};
use crate::evidence::History;
use crate::notification::{Next, Notification, PushAnswer, Subscription, Told};
use crate::policy::Failure;
use crate::schedule::Trigger;
use crate::streamer::{Authorized, Caller, NoExpiry, Streamer, StreamerId, TokenState};
use crate::token::{AccessToken, RefreshToken, TokenPair};
use tokio_util::sync::CancellationToken;

/// The database failed; the text says at what, and what the reader can do. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StoreError(pub String);

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

    /// Takes a lease until `until` on each of these streamers that is active, that nobody else holds one on, and whose
    /// row nobody has locked, and reads what it protects, as of after the lease was taken. While the database is away it
    /// tries again until `give_up_at`; what is leased by then, it tries to read for seconds more. A streamer whose row can't be
    /// read is set aside; one that is set aside gets no lease.
    fn claim(
        &self,
        ids: &[StreamerId],
        now: DateTime<Utc>,
        until: DateTime<Utc>,
        give_up_at: Monotonic,
    ) -> impl Future<Output = Result<Vec<Claim>, StoreError>> + Send;

    /// Writes these results and gives their leases back, in one transaction. While the database is away it tries
    /// again until `give_up_at`. Answers in the order of `attempts`. A row that can't be written costs itself alone.
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

    /// Puts the notifications of these recorded refusals into the outbox, deactivates nobody, and counts them as
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

/// Where memberships are kept, for those who ask for a streamer or a campaign.
pub trait Memberships: Send + Sync {
    /// This membership.
    fn membership(
        &self,
        key: MembershipKey,
    ) -> impl Future<Output = Result<Result<Membership, Unknown>, StoreError>> + Send;

    /// Whom this campaign needs, each once: its active members, and the game master's own channels.
    fn participants(
        &self,
        campaign: CampaignId,
    ) -> impl Future<Output = Result<Result<Vec<Participant>, Unknown>, StoreError>> + Send;

    /// Waits until nobody holds a lease on any of these or has locked its row, and says so; `false` if `patience` is over
    /// before.
    fn released(
        &self,
        ids: &[StreamerId],
        patience: TimeDelta,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;
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
    /// Until when it is left alone; that very time, if it can be read and not changed, which is seen anew each time.
    pub until: DateTime<Utc>,
    /// What is wrong with the row.
    pub reason: String,
}

/// A streamer under our lease.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Who.
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

/// An answer of Twitch's, and the write of it, need this much of a lease.
const ANSWERING: TimeDelta = TimeDelta::seconds(20);

impl Lease {
    /// How much longer it holds: until the earlier of both clocks, for one is set and the other stands still while the machine
    /// sleeps.
    #[must_use]
    pub fn left(&self, clock: &dyn Clock) -> TimeDelta {
        (self.until - clock.now()).min(self.held_until - clock.monotonic())
    }
}

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
    /// For a token that no lease protects: the application's own, or one that nobody else knows.
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

/// Why a stored token can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// There is none.
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
    /// Who.
    pub streamer: Streamer,
    /// Under which lease.
    pub lease: Lease,
    /// Why.
    pub trigger: Trigger,
    /// When Twitch was first asked.
    pub started_at: DateTime<Utc>,
    /// When the answer was there.
    pub ended_at: DateTime<Utc>,
    /// The expiry before the attempt.
    pub expires_before: Option<DateTime<Utc>>,
    /// Who asked for it, if it was somebody.
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
    /// The streamer is deactivated, and these people are to be told.
    Done(Vec<Told>),
    /// The budget of this hour is used up; nothing was changed, the lease is still held.
    OverBudget,
    /// As [`Recorded::Superseded`].
    Superseded,
    /// As [`Recorded::Refused`].
    Refused(StoreError),
}

/// Twitch's OAuth 2.0 endpoints.
pub trait Twitch: Send + Sync {
    /// Gets ready for calls that are about to come, while the caller waits for something else. What fails here fails
    /// again, and is told, at the first call.
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
    /// The scopes that `REQUIRED_SCOPES` names and the answer lacks; empty if it names none.
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
    /// The scopes that `REQUIRED_SCOPES` names and the answer lacks; empty if it names none.
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
    /// Our application's credentials are wrong: nobody can be refreshed.
    #[error("{0}")]
    Misconfigured(String),
    /// The token was not sent.
    #[error(transparent)]
    Withheld(#[from] Withheld),
}

/// What wakes others: the one-shot that runs a cycle again, and the domain event of a deactivation. Neither carries
/// anything that the database doesn't hold: a lost one costs time, never truth.
pub trait Signals: Send + Sync {
    /// Has a cycle run in this minute. A minute that was asked for already is fine.
    fn arm_retry(&self, minute: DateTime<Utc>) -> impl Future<Output = Result<(), SignalError>> + Send;

    /// Makes a deactivation known to whoever listens.
    fn publish(&self, event: &StreamerDeactivated) -> impl Future<Output = Result<(), SignalError>> + Send;
}

/// A signal could not be given. The text holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SignalError(pub String);

/// The domain event `streamer deactivated`. Ids only: no names, no tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StreamerDeactivated {
    /// Of this structure.
    pub version: u32,
    /// Who.
    pub streamer_id: StreamerId,
    /// When.
    pub deactivated_at: DateTime<Utc>,
    /// What the cycle ran for.
    pub trigger: Trigger,
    /// The campaigns whose game masters are told, at most 1,000.
    pub campaign_ids: Vec<CampaignId>,
}

/// Where notifications wait until they are delivered.
pub trait Outbox: Send + Sync {
    /// Takes up to `limit` notifications that are to be tried now, first attempts before repeats and of either
    /// those that have waited longest first, so that nobody else takes them before `until`. Of these, the ones that nobody is to be told any more are settled and
    /// not handed out: the person does not want it, the device is gone, or the streamer is active again.
    fn claim(
        &self,
        now: DateTime<Utc>,
        until: DateTime<Utc>,
        limit: usize,
    ) -> impl Future<Output = Result<Claimed, StoreError>> + Send;

    /// Writes what became of an attempt, unless a later attempt has begun. While the database is away it tries again
    /// until `give_up_at`.
    fn settle(
        &self,
        notification: &Notification,
        next: Next,
        reason: Option<&str>,
        now: DateTime<Utc>,
        give_up_at: Monotonic,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// What [`Outbox::claim`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claimed {
    /// To be delivered now.
    pub notifications: Vec<Notification>,
    /// How many were settled because nobody is to be told any more.
    pub obsolete: u64,
}

/// The push services of the browsers' vendors (RFC 8030).
pub trait Push: Send + Sync {
    /// Encrypts the payload for this subscription and hands it to its push service.
    fn send(
        &self,
        subscription: &Subscription,
        message: &PushMessage,
    ) -> impl Future<Output = PushAnswer> + Send;
}

impl<P: Push> Push for Arc<P> {
    async fn send(&self, subscription: &Subscription, message: &PushMessage) -> PushAnswer {
        self.as_ref().send(subscription, message).await
    }
}

/// What is pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushMessage {
    /// In plain; 3052 bytes at most, as the crate `web-push` has it.
    pub payload: Vec<u8>,
    /// A later message with the same topic replaces this one.
    pub topic: String,
    /// How long the push service may keep it.
    pub time_to_live: TimeDelta,
}
