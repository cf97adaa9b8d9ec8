//! Rows that can't be read or written: each costs itself alone, and is set aside until its backoff is over.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use domain::StreamerId;
use domain::attempt::Attempt;
use domain::policy::{MAX_SET_ASIDE, SET_ASIDE};
use domain::ports::{SetAside, StoreError};
use sqlx::Error;
use uuid::Uuid;

use super::errors::unreadable_row;
use super::{Database, PgStore, failed};

impl PgStore {
    /// Those of these whose row, or ours of them, another transaction has locked.
    pub(super) async fn locked(&self, ids: &[Uuid]) -> Result<HashSet<Uuid>, Error> {
        let locked = sqlx::query_scalar!(
            r#"
            WITH free AS (
                SELECT id FROM public.streamers WHERE id = ANY($1) FOR NO KEY UPDATE SKIP LOCKED
            ),
            ours AS (
                SELECT streamer_id FROM token_refresh.streamers WHERE streamer_id = ANY($1) FOR UPDATE SKIP LOCKED
            )
            SELECT id AS "id!" FROM public.streamers WHERE id = ANY($1) AND id NOT IN (SELECT id FROM free)
            UNION
            SELECT streamer_id FROM token_refresh.streamers
            WHERE streamer_id = ANY($1) AND streamer_id NOT IN (SELECT streamer_id FROM ours)
            "#,
            ids
        )
        .fetch_all(&self.database)
        .await?;
        Ok(locked.into_iter().collect())
    }

    /// Gives the lease back, if it is still ours, and leaves the streamer alone for twice as long as the last time.
    pub(super) async fn put_aside(
        &self,
        id: Uuid,
        fence: i64,
        reason: &str,
        now: DateTime<Utc>,
    ) -> Result<(), Error> {
        sqlx::query!(
            r#"
            UPDATE token_refresh.streamers ours SET
                leased_until = CASE WHEN ours.fence = $2 THEN NULL ELSE ours.leased_until END,
                set_aside_at = $4,
                set_aside_until = $4::timestamptz + make_interval(
                    secs => least($6::float8, $5::float8 * power(2::float8, least(ours.set_aside_times, 30)))),
                set_aside_times = ours.set_aside_times + 1,
                set_aside_reason = $3
            WHERE ours.streamer_id = $1
            "#,
            id,
            fence,
            reason,
            now,
            SET_ASIDE.as_seconds_f64(),
            MAX_SET_ASIDE.as_seconds_f64()
        )
        .execute(&self.database)
        .await?;
        Ok(())
    }

    pub(super) async fn set_aside_attempt(
        &self,
        attempt: &Attempt,
        reason: &str,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        self.put_aside(attempt.lease.id.0, attempt.lease.fence, reason, now)
            .await
            .map_err(failed("setting a row aside"))
    }
}

impl Database {
    /// Those of these that are set aside now.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn set_aside(
        &self,
        ids: &[StreamerId],
        now: DateTime<Utc>,
    ) -> Result<Vec<SetAside>, StoreError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        let rows = sqlx::query!(
            r#"
            SELECT streamer_id, set_aside_at AS "at!", set_aside_until AS "until!", set_aside_reason AS "reason!"
            FROM token_refresh.streamers
            WHERE streamer_id = ANY($1) AND set_aside_until > $2 AND set_aside_at IS NOT NULL
              AND set_aside_reason IS NOT NULL
            "#,
            &ids,
            now
        )
        .fetch_all(self)
        .await
        .map_err(failed("reading which rows are set aside"))?;
        let aside = rows.into_iter().map(|row| SetAside {
            id: StreamerId(row.streamer_id),
            at: row.at.end(),
            until: row.until.end(),
            reason: row.reason,
        });
        Ok(aside.collect())
    }

    /// The next failure of one of these doubles its backoff all the same.
    pub(super) async fn end_backoff(&self, ids: &[StreamerId]) -> Result<(), Error> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        sqlx::query!(
            "UPDATE token_refresh.streamers SET set_aside_until = NULL
             WHERE streamer_id = ANY($1) AND set_aside_until IS NOT NULL",
            &ids
        )
        .execute(self)
        .await?;
        Ok(())
    }
}

impl PgStore {
    /// Sets a row aside that can't be read; its lease runs out if not even that can be written.
    pub(super) async fn unreadable(&self, id: Uuid, fence: i64, error: &Error, now: DateTime<Utc>) {
        let reason = unreadable_row(error).text;
        tracing::error!(streamer = %id, reason, "a row is set aside");
        if let Err(error) = self.put_aside(id, fence, &reason, now).await {
            tracing::warn!(streamer = %id, %error, "the row could not be set aside");
        }
    }
}
