//! The promise, measured: dead minutes of sessions, from the history of refreshes. `docs/operate.md` says what counts
//! and what can't be seen. Reads only.

use chrono::{DateTime, TimeDelta, Utc};
use tokens_domain::ports::StoreError;
use tokens_domain::{StreamerId, plain};
use uuid::Uuid;

use super::{Database, Moment, failed};

/// What the history says of the sessions that reach into a period. Only what lies in the period counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage {
    pub from: DateTime<Utc>,
    pub until: DateTime<Utc>,
    /// How many sessions there were. A streamer in two campaigns has two.
    pub sessions: u64,
    /// How long they were together, without what lies outside the period.
    pub length: TimeDelta,
    /// Those with gaps, the worst first.
    pub broken: Vec<BrokenSession>,
}

/// A session in which the token was dead for a while, or may have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokenSession {
    pub streamer_id: StreamerId,
    /// The login and the display name, if there still is such a streamer.
    pub streamer: Option<(String, String)>,
    pub campaign_id: Uuid,
    /// Its name, if there still is such a campaign.
    pub campaign: Option<String>,
    pub granted_at: DateTime<Utc>,
    pub ends_at: DateTime<Utc>,
    /// When the streamer was deactivated, if that was in it. From then on nothing counts, until a refresh is tried
    /// again.
    pub deactivated_at: Option<DateTime<Utc>>,
    pub gaps: Vec<Gap>,
}

/// A part of a session without a token that is known to have lived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Whether the token was dead; `false`: that is unknown.
    pub dead: bool,
    pub from: DateTime<Utc>,
    pub until: DateTime<Utc>,
    /// Why, in the order of time. The texts hold no secret.
    pub reasons: Vec<String>,
}

impl Gap {
    #[must_use]
    pub fn length(&self) -> TimeDelta {
        self.until - self.from
    }
}

impl BrokenSession {
    #[must_use]
    pub fn dead(&self) -> TimeDelta {
        self.sum(true)
    }

    /// For how long that is unknown.
    #[must_use]
    pub fn unknown(&self) -> TimeDelta {
        self.sum(false)
    }

    /// The longest time in one piece for which the token was dead.
    #[must_use]
    pub fn longest(&self) -> TimeDelta {
        self.gaps.iter().filter(|gap| gap.dead).map(Gap::length).max().unwrap_or_default()
    }

    fn sum(&self, dead: bool) -> TimeDelta {
        self.gaps.iter().filter(|gap| gap.dead == dead).map(Gap::length).sum()
    }
}

impl Coverage {
    /// How long tokens were dead, over all sessions.
    #[must_use]
    pub fn dead(&self) -> TimeDelta {
        self.broken.iter().map(BrokenSession::dead).sum()
    }

    /// Of this, what no dead grant explains: sessions in which the streamer was deactivated are left out.
    #[must_use]
    pub fn dead_while_active(&self) -> TimeDelta {
        let active = self.broken.iter().filter(|session| session.deactivated_at.is_none());
        active.map(BrokenSession::dead).sum()
    }

    /// For how long that is unknown, over all sessions.
    #[must_use]
    pub fn unknown(&self) -> TimeDelta {
        self.broken.iter().map(BrokenSession::unknown).sum()
    }

    #[must_use]
    pub fn with_dead_time(&self) -> u64 {
        self.broken.iter().filter(|session| session.dead() > TimeDelta::zero()).map(|_| 1).sum()
    }
}

impl Database {
    /// The dead and the unknown time of the sessions that are remembered, from `from` until `now`, which is the
    /// present: the stored expiry counts as of now.
    pub async fn coverage(&self, from: DateTime<Utc>, now: DateTime<Utc>) -> Result<Coverage, StoreError> {
        let rows = sqlx::query_file!("src/coverage.sql", from, now)
            .fetch_all(self)
            .await
            .map_err(failed("reading the coverage"))?;
        let mut coverage = Coverage {
            from,
            until: now,
            sessions: rows.first().and_then(|row| row.sessions.try_into().ok()).unwrap_or(0),
            length: rows.first().map_or(TimeDelta::zero(), |row| TimeDelta::seconds(row.seconds)),
            broken: Vec::new(),
        };
        let mut last = None;
        for row in rows {
            // The row of the totals, if there is no gap.
            let (Some(membership_id), Some(streamer_id), Some(campaign_id)) =
                (row.membership_id, row.streamer_id, row.campaign_id)
            else {
                continue;
            };
            let (Some(granted_at), Some(ends_at), Some(dead), Some(begins_at), Some(stops_at)) =
                (row.granted_at, row.ends_at, row.dead, row.begins_at, row.stops_at)
            else {
                continue;
            };
            let mut reasons: Vec<_> = row.reasons.unwrap_or_default().iter().map(plain).collect();
            reasons.dedup();
            let gap = Gap { dead, from: begins_at.end(), until: stops_at.end(), reasons };
            let key = Some((membership_id, granted_at));
            match coverage.broken.last_mut() {
                Some(session) if last == key => session.gaps.push(gap),
                _ => coverage.broken.push(BrokenSession {
                    streamer_id: StreamerId(streamer_id),
                    streamer: row.login.map(plain).zip(row.display_name.map(plain)),
                    campaign_id,
                    campaign: row.campaign.map(plain),
                    granted_at: granted_at.end(),
                    ends_at: ends_at.end(),
                    deactivated_at: row.deactivated_at.and_then(Moment::known),
                    gaps: vec![gap],
                }),
            }
            last = key;
        }
        coverage.broken.sort_by_key(|session| {
            std::cmp::Reverse((session.dead(), session.unknown(), session.granted_at, session.streamer_id))
        });
        Ok(coverage)
    }
}
