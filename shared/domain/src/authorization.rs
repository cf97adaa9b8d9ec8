//! What a membership grants: twelve hours, or another time, in which a campaign's polls run on a streamer's channel.

use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::streamer::{Streamer, StreamerId, TokenState};

/// How long an authorization holds: a session of play.
pub const AUTHORIZATION: TimeDelta = TimeDelta::hours(12);

/// The end of an authorization that has none, a standing one: the last nanosecond that RFC 3339 can say. The database has
/// `infinity`.
pub const NO_END: DateTime<Utc> =
    DateTime::from_timestamp(253_402_300_799, 999_999_999).expect("the end of the year 9999");

/// A campaign's primary key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CampaignId(pub Uuid);

impl fmt::Display for CampaignId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which membership: a streamer in a campaign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MembershipKey {
    /// The campaign.
    pub campaign: CampaignId,
    /// The streamer.
    pub streamer: StreamerId,
}

/// What is granted with a fresh token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The campaign that is authorized.
    pub campaign: CampaignId,
    /// For how long; `None`: without an end, for a bot or an overlay.
    pub length: Option<TimeDelta>,
}

/// Whether the streamer has accepted the invitation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MembershipStatus {
    /// Invited.
    Pending,
    /// Accepted.
    Active,
}

/// The time that a membership granted last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authorization {
    /// When it began.
    pub granted_at: DateTime<Utc>,
    /// When it ends or has ended; [`NO_END`] if it never does.
    pub expires_at: DateTime<Utc>,
}

impl Authorization {
    /// One for a session that begins now.
    #[must_use]
    pub fn granted(now: DateTime<Utc>) -> Self {
        Self::granted_for(Some(AUTHORIZATION), now)
    }

    /// One of this length that begins now; `None`: without an end.
    #[must_use]
    pub fn granted_for(length: Option<TimeDelta>, now: DateTime<Utc>) -> Self {
        Self { granted_at: now, expires_at: length.map_or(NO_END, |length| now + length) }
    }

    /// How long it still holds; `None` if it is over.
    #[must_use]
    pub fn remaining(&self, now: DateTime<Utc>) -> Option<TimeDelta> {
        Some(self.expires_at - now).filter(|left| *left > TimeDelta::zero())
    }
}

/// An authorized streamer: active, with a membership `ACTIVE` whose authorization is not over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorized {
    /// Who.
    pub streamer: Streamer,
    /// When the last of the streamer's authorizations ends.
    pub until: DateTime<Utc>,
    /// The state of the streamer's tokens.
    pub token: TokenState,
}

impl Authorized {
    /// When that authorization began; `None`: it is longer than ours are, and does not say.
    #[must_use]
    pub fn since(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        Some(self.until - AUTHORIZATION).filter(|since| *since <= now)
    }
}

/// A streamer in a campaign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The campaign.
    pub campaign: CampaignId,
    /// The campaign's name.
    pub campaign_name: String,
    /// The streamer.
    pub streamer: Streamer,
    /// `streamers.is_active`.
    pub streamer_is_active: bool,
    /// Whether the streamer has accepted.
    pub status: MembershipStatus,
    /// The last authorization, over or not.
    pub authorization: Option<Authorization>,
    /// The state of the streamer's tokens.
    pub token: TokenState,
}

impl Membership {
    /// How long polls may run on the channel from now on; `None` if they may not.
    #[must_use]
    pub fn remaining(&self, now: DateTime<Utc>) -> Option<TimeDelta> {
        let counts = self.streamer_is_active && self.status == MembershipStatus::Active;
        self.authorization.filter(|_| counts)?.remaining(now)
    }
}

/// A streamer whom a campaign needs: an active member, or the game master with a channel of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Participant {
    /// The streamer.
    pub streamer: Streamer,
    /// `streamers.is_active`.
    pub is_active: bool,
    /// The channel is the game master's own, which needs no authorization. Without one no cycle over all that are authorized looks at it:
    /// only a check refreshes it.
    pub is_game_master: bool,
    /// The last authorization for this campaign, over or not.
    pub authorization: Option<Authorization>,
    /// Whether a refresh token is stored. A missing access token is what a refresh replaces.
    pub has_refresh_token: bool,
    /// The state of the streamer's tokens.
    pub token: TokenState,
}

impl Participant {
    /// One of which only this is known.
    #[must_use]
    pub fn unreadable(id: StreamerId, is_game_master: bool) -> Self {
        Self {
            streamer: Streamer::unnamed(id),
            is_active: true,
            is_game_master,
            authorization: None,
            has_refresh_token: false,
            token: TokenState::default(),
        }
    }
}

/// What was asked for is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// No campaign has this id.
    #[error("no campaign has this id")]
    Campaign,
    /// No streamer has this id.
    #[error("no streamer has this id")]
    Streamer,
    /// Both are there, and the streamer is no member of the campaign.
    #[error("the streamer is no member of the campaign")]
    Membership,
}
