//! Where streamers are kept, and the records that travel to and from there.

use std::future::Future;

use chrono::{DateTime, TimeDelta, Utc};

use super::claim::Claim;
use super::error::{MembershipError, StoreError};
use crate::attempt::{Attempt, Stored};
use crate::authorization::{Authorized, CampaignId, Membership, MembershipKey, Participant};
use crate::clock::Monotonic;
use crate::evidence::History;
use crate::recipient::Recipient;
use crate::streamer::StreamerId;

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
    /// again until `give_up_at`. Answers in the order of `attempts` with [`Stored::Written`], or [`Stored::Granted`] and
    /// [`Stored::NotGranted`] if the attempt grants something, [`Stored::Superseded`] or [`Stored::Refused`]. A row that can't
    /// be written does not affect the others.
    fn record(
        &self,
        attempts: &[Attempt],
        give_up_at: Monotonic,
    ) -> impl Future<Output = Result<Vec<Stored>, StoreError>> + Send;

    /// Writes a result whose row could not be written, again and again until `give_up_at`.
    fn insist(
        &self,
        attempt: &Attempt,
        give_up_at: Monotonic,
    ) -> impl Future<Output = Result<Stored, StoreError>> + Send;

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

    /// Deactivates the streamers of these attempts, which resolve to [`Resolution::Deactivate`], as many as the budget allows,
    /// puts the notifications of it into the outbox and gives their leases back, in one transaction. While the database is
    /// away it tries again until `give_up_at`. Answers in the order of `attempts` with [`Stored::Deactivated`],
    /// [`Stored::OverBudget`], [`Stored::Superseded`] or [`Stored::Refused`].
    ///
    /// [`Resolution::Deactivate`]: crate::attempt::Resolution::Deactivate
    fn deactivate(
        &self,
        attempts: &[Attempt],
        give_up_at: Monotonic,
    ) -> impl Future<Output = Result<Vec<Stored>, StoreError>> + Send;

    /// Puts the notifications of these recorded refusals into the outbox, deactivates no streamer, and counts them as
    /// deactivations against the budget. While the database is away it tries again until `give_up_at`. Answers in the
    /// order of `attempts` who is notified; `None`: the budget is used up, or they were notified before.
    fn notice(
        &self,
        attempts: &[Attempt],
        give_up_at: Monotonic,
    ) -> impl Future<Output = Result<Vec<Option<Vec<Recipient>>>, StoreError>> + Send;

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
