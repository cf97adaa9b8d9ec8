//! The history of refreshes: read by the command, kept for 30 days like all that is ours and happened.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use sqlx::Postgres;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use tokens_domain::ports::StoreError;
use tokens_domain::{StreamerId, plain};

use super::{Database, Moment, failed};

/// How long the history and the sessions are kept.
pub const HISTORY_KEPT: TimeDelta = TimeDelta::days(30);

/// So many rows are deleted in one transaction: a tenth of a second.
const PART: i64 = 10_000;

/// So many of what we remember are looked at after each run, whatever the size of the table.
const GONE_PART: i64 = 50;

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
    /// The caller that asked for it, if any.
    pub caller: Option<String>,
}

/// Deletes a part of a table of ours: what is older by this column.
macro_rules! forget_before {
    ($table:literal, $time:literal, $before:expr) => {
        sqlx::query!(
            "DELETE FROM token_refresh."
                + $table
                + " WHERE ctid = ANY(ARRAY(SELECT ctid FROM token_refresh."
                + $table
                + " WHERE "
                + $time
                + " < $1 ORDER BY "
                + $time
                + " LIMIT $2))",
            $before,
            PART
        )
    };
}

impl Database {
    /// The last `limit` refreshes of a streamer, the newest first.
    pub async fn history(&self, id: StreamerId, limit: i64) -> Result<Vec<HistoryEntry>, StoreError> {
        let rows = sqlx::query!(
            r#"
            SELECT trigger, started_at, ended_at, outcome, reason, expires_before, expires_after, caller
            FROM token_refresh.refreshes WHERE streamer_id = $1 ORDER BY fence DESC LIMIT $2
            "#,
            id.0,
            limit
        )
        .fetch_all(self)
        .await
        .map_err(failed("reading the history"))?;
        let entries = rows.into_iter().map(|row| HistoryEntry {
            trigger: row.trigger,
            started_at: row.started_at.end(),
            ended_at: row.ended_at.end(),
            outcome: row.outcome,
            reason: row.reason.map(plain),
            expires_before: row.expires_before.and_then(Moment::known),
            expires_after: row.expires_after.and_then(Moment::known),
            caller: row.caller.map(plain),
        });
        Ok(entries.collect())
    }

    /// Remembers the sessions, and forgets streamers that are gone and what is old: for a run over all streamers that is done. What
    /// fails ends it, and the next run does the rest.
    pub async fn keep_up(&self, now: DateTime<Utc>) -> Result<(), StoreError> {
        self.remember_sessions(now).await?;
        self.forget_old_history(now).await?;
        self.forget_gone(now).await.map(drop)
    }

    /// Deletes what we remember of streamers that have been deleted: of a few from a place by chance on, and again while all of them
    /// are gone, as when the application has created its tables again. Rows that are hidden from this login are not gone.
    pub async fn forget_gone(&self, now: DateTime<Utc>) -> Result<u64, StoreError> {
        let mut forgotten = 0;
        loop {
            // `LIMIT 1` says that each is looked up by its key.
            let gone = sqlx::query!(
                r#"
                WITH place AS MATERIALIZED (SELECT gen_random_uuid() AS id),
                part AS (
                    (SELECT streamer_id FROM token_refresh.streamers
                     WHERE streamer_id >= (SELECT id FROM place) ORDER BY streamer_id LIMIT $1)
                    UNION ALL
                    (SELECT streamer_id FROM token_refresh.streamers
                     WHERE streamer_id < (SELECT id FROM place) ORDER BY streamer_id LIMIT $1)
                    LIMIT $1
                )
                DELETE FROM token_refresh.streamers WHERE streamer_id = ANY(ARRAY(
                    SELECT part.streamer_id FROM part
                    LEFT JOIN LATERAL (SELECT id FROM public.streamers WHERE id = part.streamer_id LIMIT 1) there ON true
                    WHERE there.id IS NULL AND NOT (SELECT token_refresh.may_hide('public.streamers', 'r'))))
                  -- Looked at again once a run that has just leased it has committed.
                  AND (leased_until IS NULL OR leased_until <= $2)
                "#,
                GONE_PART,
                now
            );
            let gone = gone.execute(self).await.map_err(failed("forgetting streamers that are gone"))?;
            forgotten += gone.rows_affected();
            if gone.rows_affected() < GONE_PART.unsigned_abs() {
                return Ok(forgotten);
            }
        }
    }

    /// Forgets what is older than 30 days, a part at a time: what is forgotten stays so if there is no time for the rest.
    pub async fn forget_old_history(&self, now: DateTime<Utc>) -> Result<(), StoreError> {
        let before = now - HISTORY_KEPT;
        self.forget(|| forget_before!("refreshes", "started_at", before)).await?;
        self.forget(|| forget_before!("deactivations", "deactivated_at", before)).await?;
        self.forget(|| forget_before!("sessions", "ends_at", before)).await?;
        self.forget(|| forget_before!("outbox", "created_at", before)).await
    }

    /// Repeats a deletion until it finds no whole part any more.
    async fn forget(
        &self,
        part: impl Fn() -> Query<'static, Postgres, PgArguments>,
    ) -> Result<(), StoreError> {
        loop {
            let deleted = async { part().execute(self).await };
            let deleted = deleted.await.map_err(failed("forgetting old history"))?;
            if deleted.rows_affected() < PART.unsigned_abs() {
                return Ok(());
            }
        }
    }
}
