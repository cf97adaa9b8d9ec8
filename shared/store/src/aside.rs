//! Rows that can't be read or written: the others of their batch are, and they are set aside until their backoff is over.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use sqlx::Error;
use tokens_domain::StreamerId;
use tokens_domain::attempt::Attempt;
use tokens_domain::policy::{MAX_SET_ASIDE, SET_ASIDE};
use tokens_domain::ports::{SetAside, StoreError};
use tokio::time::sleep;
use uuid::Uuid;

use super::errors::unreadable_row;
use super::{Class, Database, FIRST_PAUSE, PgStore, failed};

/// What a statement made of a batch, part by part.
pub(super) struct Parts<T, R> {
    /// Its answers.
    pub(super) done: Vec<R>,
    /// Rows that another transaction has locked.
    pub(super) locked: Vec<T>,
    /// Rows that it failed for.
    pub(super) failed: Vec<(T, Error)>,
}

/// One row of a batch.
pub(super) trait Row: Clone {
    /// The streamer.
    fn id(&self) -> Uuid;
}

impl Row for Uuid {
    fn id(&self) -> Uuid {
        *self
    }
}

impl Row for &Attempt {
    fn id(&self) -> Uuid {
        self.lease.id.0
    }
}

/// With its fencing number.
impl Row for (Uuid, i64) {
    fn id(&self) -> Uuid {
        self.0
    }
}

impl Database {
    /// Runs a statement on all of these rows. Rows that are locked are left out; and where another row is at fault, its part
    /// of the batch is halved until it is alone. Any other error ends it, and so does a lock of the whole table, unless it
    /// `waits`.
    pub(super) async fn in_parts<T: Row, R, F: Future<Output = Result<R, Error>>>(
        &self,
        rows: Vec<T>,
        waits: impl Fn() -> bool,
        statement: impl Fn(Vec<T>) -> F,
    ) -> Result<Parts<T, R>, Error> {
        let mut parts = Parts { done: Vec::new(), locked: Vec::new(), failed: Vec::new() };
        let mut open = vec![rows];
        while let Some(mut part) = open.pop() {
            if part.is_empty() {
                continue;
            }
            match statement(part.clone()).await {
                Ok(done) => parts.done.push(done),
                Err(error) if Class::from(&error) == Class::Locked => {
                    let ids: Vec<_> = part.iter().map(Row::id).collect();
                    let locked = self.locked(&ids).await.unwrap_or_default();
                    if locked.is_empty() {
                        if !waits() {
                            return Err(error);
                        }
                        sleep(FIRST_PAUSE).await;
                    }
                    let (locked, free) = part.into_iter().partition(|row| locked.contains(&row.id()));
                    parts.locked.extend::<Vec<_>>(locked);
                    open.push(free);
                }
                Err(error) if Class::from(&error) == Class::Row => {
                    if let [row] = &part[..] {
                        parts.failed.push((row.clone(), error));
                    } else {
                        let second = part.split_off(part.len() / 2);
                        open.extend([second, part]);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(parts)
    }

    /// Those of these whose row, or ours of them, another transaction has locked.
    async fn locked(&self, ids: &[Uuid]) -> Result<HashSet<Uuid>, Error> {
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
        .fetch_all(self)
        .await?;
        Ok(locked.into_iter().collect())
    }
}

impl PgStore {
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
