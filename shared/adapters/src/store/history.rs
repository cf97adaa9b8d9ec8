//! The history of refreshes: read by the command, kept for 30 days like all that is ours and happened.

use chrono::{DateTime, TimeDelta, Utc};
use domain::StreamerId;
use domain::ports::StoreError;
use serde::Serialize;

use super::{Database, failed};

/// How long the history and the sessions are kept.
pub const HISTORY_KEPT: TimeDelta = TimeDelta::days(30);

/// One refresh that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HistoryEntry {
    /// Why: the trigger's name.
    pub trigger: String,
    /// When Twitch was asked.
    pub started_at: DateTime<Utc>,
    /// When it had answered.
    pub ended_at: DateTime<Utc>,
    /// `refreshed`, `failed`, `deactivated` or `superseded`.
    pub outcome: String,
    /// What happened, if it failed.
    pub reason: Option<String>,
    /// The token's expiry before.
    pub expires_before: Option<DateTime<Utc>>,
    /// The token's expiry after.
    pub expires_after: Option<DateTime<Utc>>,
    /// Who asked for it, if it was somebody.
    pub caller: Option<String>,
}

impl Database {
    /// The last `limit` refreshes of a streamer, the newest first.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn history(&self, id: StreamerId, limit: i64) -> Result<Vec<HistoryEntry>, StoreError> {
        sqlx::query_as!(
            HistoryEntry,
            r#"
            SELECT trigger, started_at, ended_at, outcome, reason, expires_before, expires_after, caller
            FROM token_refresh.refreshes WHERE streamer_id = $1 ORDER BY fence DESC LIMIT $2
            "#,
            id.0,
            limit
        )
        .fetch_all(&mut *self.connection().await?)
        .await
        .map_err(failed("reading the history"))
    }

    /// Forgets what is older than 30 days.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn forget_old_history(&self, now: DateTime<Utc>) -> Result<(), StoreError> {
        let doing = failed("forgetting old history");
        sqlx::query!("DELETE FROM token_refresh.refreshes WHERE started_at < $1", now - HISTORY_KEPT)
            .execute(&mut *self.connection().await?)
            .await
            .map_err(&doing)?;
        sqlx::query!("DELETE FROM token_refresh.deactivations WHERE deactivated_at < $1", now - HISTORY_KEPT)
            .execute(&mut *self.connection().await?)
            .await
            .map_err(&doing)?;
        sqlx::query!("DELETE FROM token_refresh.sessions WHERE ends_at < $1", now - HISTORY_KEPT)
            .execute(&mut *self.connection().await?)
            .await
            .map_err(&doing)?;
        sqlx::query!("DELETE FROM token_refresh.outbox WHERE created_at < $1", now - HISTORY_KEPT)
            .execute(&mut *self.connection().await?)
            .await
            .map_err(&doing)?;
        Ok(())
    }
}
