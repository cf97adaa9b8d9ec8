//! Invented histories of refreshes: what `token_refresh` would hold, minute by minute, without anybody having
//! refreshed anything.

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgPool;
use tokens_domain::StreamerId;
use uuid::Uuid;

/// A refresh of an invented history. All times are minutes after the history's beginning.
#[derive(Clone, Debug)]
pub struct Refresh {
    /// As in the history.
    pub outcome: &'static str,
    /// When it began.
    pub started: i64,
    /// When it had ended.
    pub ended: i64,
    /// The expiry before.
    pub before: Option<i64>,
    /// The expiry after.
    pub after: Option<i64>,
    /// Why it failed.
    pub reason: Option<&'static str>,
}

impl Refresh {
    /// One that took no time.
    pub fn new(outcome: &'static str, at: i64, before: Option<i64>, after: Option<i64>) -> Self {
        let reason = matches!(outcome, "failed" | "deactivated").then_some("Twitch said no");
        Self { outcome, started: at, ended: at, before, after, reason }
    }
}

/// Where invented histories are written to.
pub struct Histories<'a> {
    /// The database.
    pub pool: &'a PgPool,
    /// Minute 0.
    pub beginning: DateTime<Utc>,
}

impl Histories<'_> {
    /// The time of a minute.
    pub fn at(&self, minute: i64) -> DateTime<Utc> {
        self.beginning + TimeDelta::minutes(minute)
    }

    /// A streamer with these refreshes, in the order of their leases, whose stored token expires at `stored`.
    pub async fn streamer(&self, refreshes: &[Refresh], stored: Option<i64>) -> Result<StreamerId> {
        let id = Uuid::new_v4();
        sqlx::query(
            "INSERT INTO streamers (id, twitch_user_id, twitch_login, twitch_display_name, token_expires_at,
                 created_at, updated_at) VALUES ($1, $1::text, $1::text, 'Invented', $2, $3, $3)",
        )
        .bind(id)
        .bind(stored.map(|minute| self.at(minute)))
        .bind(self.beginning)
        .execute(self.pool)
        .await?;
        for (fence, refresh) in (1_i64..).zip(refreshes) {
            sqlx::query(
                "INSERT INTO token_refresh.refreshes (streamer_id, fence, trigger, started_at, ended_at, outcome,
                     reason, expires_before, expires_after) VALUES ($1, $2, 'sweep', $3, $4, $5, $6, $7, $8)",
            )
            .bind(id)
            .bind(fence)
            .bind(self.at(refresh.started))
            .bind(self.at(refresh.ended))
            .bind(refresh.outcome)
            .bind(refresh.reason)
            .bind(refresh.before.map(|minute| self.at(minute)))
            .bind(refresh.after.map(|minute| self.at(minute)))
            .execute(self.pool)
            .await?;
        }
        Ok(StreamerId(id))
    }

    /// A session of this streamer, as it is remembered.
    pub async fn session(&self, streamer: StreamerId, granted: i64, ends: i64) -> Result<()> {
        sqlx::query(
            "INSERT INTO token_refresh.sessions (membership_id, granted_at, streamer_id, campaign_id, ends_at)
             VALUES (gen_random_uuid(), $1, $2, gen_random_uuid(), $3)",
        )
        .bind(self.at(granted))
        .bind(streamer.0)
        .bind(self.at(ends))
        .execute(self.pool)
        .await?;
        Ok(())
    }
}
