//! Results: written in batches as they arrive, each only by the holder of its lease, and only over the refresh
//! token that it started from.

use chrono::{DateTime, Utc};
use domain::ports::{Attempt, Change, Recorded};
use domain::{Monotonic, StreamerId};
use sqlx::{Error, PgExecutor};
use uuid::Uuid;

use super::PgStore;
use super::memberships::grant;
use crate::cipher::Column;

/// A batch as the statement takes it: one vector a column.
#[derive(Default)]
pub(super) struct Columns {
    ids: Vec<Uuid>,
    fences: Vec<i64>,
    started_from: Vec<Option<String>>,
    changes: Vec<&'static str>,
    access_tokens: Vec<Option<String>>,
    refresh_tokens: Vec<Option<String>>,
    expires_at: Vec<Option<DateTime<Utc>>>,
    failed_at: Vec<Option<DateTime<Utc>>>,
    failure_kinds: Vec<Option<&'static str>>,
    refusals: Vec<i32>,
    triggers: Vec<&'static str>,
    started_at: Vec<DateTime<Utc>>,
    ended_at: Vec<DateTime<Utc>>,
    expires_before: Vec<Option<DateTime<Utc>>>,
    reasons: Vec<Option<String>>,
    callers: Vec<Option<String>>,
}

impl PgStore {
    /// Tries again while the database is away, until `give_up_at`: a rotated pair exists nowhere else.
    pub(super) async fn record_all(
        &self,
        attempts: &[Attempt],
        give_up_at: Monotonic,
    ) -> Result<Vec<Recorded>, Error> {
        // Encrypted once: a repeated write carries the same text, and so knows its own if the first one got through.
        let columns = self.columns(attempts)?;
        self.persistently(give_up_at, async || {
            if attempts.iter().all(|attempt| attempt.grants.is_none()) {
                return write(self.writing.of(&self.database), &columns).await;
            }
            // Boxed: it is rare, and every write would carry its size.
            Box::pin(self.write_and_grant(attempts, &columns)).await
        })
        .await
    }

    async fn write_and_grant(&self, attempts: &[Attempt], columns: &Columns) -> Result<Vec<Recorded>, Error> {
        let mut transaction = self.database.transaction().await?;
        let mut recorded = write(&mut transaction, columns).await?;
        for (attempt, recorded) in attempts.iter().zip(&mut recorded) {
            if let Recorded::Written { granted } = recorded {
                *granted = grant(&mut transaction, attempt).await?;
            }
        }
        transaction.commit().await?;
        Ok(recorded)
    }

    pub(super) fn columns(&self, attempts: &[Attempt]) -> Result<Columns, Error> {
        let (mut columns, cipher) = (Columns::default(), self.cipher.current());
        for attempt in attempts {
            let id = attempt.lease.id.0;
            let encrypt = |column, plain: &str| {
                cipher.encrypt(id, column, plain).map_err(|error| Error::Encode(error.into()))
            };
            let (mut pair, mut failure, mut reason) = (None, None, None);
            let (change, expires_at) = match &attempt.change {
                Change::Refreshed { pair: new, expires_at } => {
                    pair = Some((
                        encrypt(Column::AccessToken, new.access.expose())?,
                        encrypt(Column::RefreshToken, new.refresh.expose())?,
                    ));
                    ("refreshed", *expires_at)
                }
                Change::Validated { expires_at } => ("validated", Some(*expires_at)),
                Change::Failed { failure: standing, reason: why, expires_at } => {
                    failure = Some(*standing);
                    reason = Some(why.clone());
                    ("failed", *expires_at)
                }
                // A deactivation has a transaction of its own; here its lease would only be given back.
                Change::Released | Change::Deactivated { .. } => ("released", None),
            };
            let (access, refresh) = pair.unzip();
            columns.ids.push(id);
            columns.fences.push(attempt.lease.fence);
            columns.started_from.push(attempt.lease.started_from.clone());
            columns.changes.push(change);
            columns.access_tokens.push(access);
            columns.refresh_tokens.push(refresh);
            columns.expires_at.push(expires_at);
            columns.failed_at.push(failure.map(|failure| failure.at));
            columns.failure_kinds.push(failure.map(|failure| failure.kind.as_str()));
            columns
                .refusals
                .push(failure.map_or(0, |failure| failure.refusals.try_into().unwrap_or(i32::MAX)));
            columns.triggers.push(attempt.trigger.as_str());
            columns.started_at.push(attempt.started_at);
            columns.ended_at.push(attempt.ended_at);
            columns.expires_before.push(attempt.expires_before);
            columns.reasons.push(reason);
            columns.callers.push(attempt.caller.as_ref().map(|caller| caller.0.clone()));
        }
        Ok(columns)
    }
}

/// One statement: either all of it is there afterwards, or nothing.
pub(super) async fn write(database: impl PgExecutor<'_>, columns: &Columns) -> Result<Vec<Recorded>, Error> {
    let rows = sqlx::query!(
            r#"
            WITH result AS (
                SELECT * FROM unnest(
                    $1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::timestamptz[],
                    $8::timestamptz[], $9::text[], $10::integer[], $11::text[], $12::timestamptz[],
                    $13::timestamptz[], $14::timestamptz[], $15::text[], $16::text[])
                AS r (id, fence, started_from, change, access_token, refresh_token, expires_at,
                      failed_at, failure_kind, refusals, trigger, started_at,
                      ended_at, expires_before, reason, caller)
            ),
            -- Locked, so that nobody takes a lease over while its result is being written.
            held AS (
                SELECT ours.streamer_id FROM token_refresh.streamers ours
                JOIN result r ON r.id = ours.streamer_id AND r.fence = ours.fence
                ORDER BY ours.streamer_id FOR UPDATE OF ours
            ),
            written AS (
                UPDATE public.streamers s SET
                    access_token_encrypted = coalesce(r.access_token, s.access_token_encrypted),
                    refresh_token_encrypted = coalesce(r.refresh_token, s.refresh_token_encrypted),
                    token_expires_at = r.expires_at,
                    last_token_refresh_at =
                        CASE r.change WHEN 'refreshed' THEN r.ended_at ELSE s.last_token_refresh_at END,
                    token_refresh_failed_at =
                        CASE r.change WHEN 'validated' THEN s.token_refresh_failed_at ELSE r.failed_at END,
                    updated_at = r.ended_at
                FROM result r JOIN held ON held.streamer_id = r.id
                WHERE s.id = r.id AND r.change <> 'released'
                  -- The second: a write that is repeated because its first answer was lost.
                  AND (s.refresh_token_encrypted IS NOT DISTINCT FROM r.started_from
                       OR s.refresh_token_encrypted = r.refresh_token)
                -- As the column has it, which may be less exact than what it was given.
                RETURNING s.id, s.token_refresh_failed_at AS failed_at
            ),
            remembered AS (
                UPDATE token_refresh.streamers ours SET
                    leased_until = NULL,
                    validated_at = CASE WHEN written.id IS NOT NULL AND r.change = 'validated'
                        THEN r.started_at ELSE ours.validated_at END,
                    failed_at = CASE WHEN written.id IS NOT NULL AND r.change <> 'validated'
                        THEN written.failed_at ELSE ours.failed_at END,
                    failure_kind = CASE WHEN written.id IS NOT NULL AND r.change <> 'validated'
                        THEN r.failure_kind ELSE ours.failure_kind END,
                    refusals = CASE WHEN written.id IS NOT NULL AND r.change <> 'validated'
                        THEN r.refusals ELSE ours.refusals END
                FROM result r JOIN held ON held.streamer_id = r.id LEFT JOIN written ON written.id = r.id
                WHERE ours.streamer_id = r.id
            ),
            history AS (
                INSERT INTO token_refresh.refreshes (streamer_id, fence, trigger, started_at, ended_at,
                    outcome, reason, expires_before, expires_after, caller)
                SELECT r.id, r.fence, r.trigger, r.started_at, r.ended_at,
                       CASE WHEN written.id IS NULL THEN 'superseded' ELSE r.change END, r.reason,
                       r.expires_before, r.expires_at, r.caller
                FROM result r LEFT JOIN written ON written.id = r.id
                WHERE r.change IN ('refreshed', 'failed')
                ON CONFLICT DO NOTHING
            )
            SELECT r.id AS "id!", (written.id IS NOT NULL OR r.change = 'released') AS "written!"
            FROM result r LEFT JOIN written ON written.id = r.id
            "#,
            &columns.ids,
            &columns.fences,
            &columns.started_from as &[Option<String>],
            &columns.changes as &[&str],
            &columns.access_tokens as &[Option<String>],
            &columns.refresh_tokens as &[Option<String>],
            &columns.expires_at as &[Option<DateTime<Utc>>],
            &columns.failed_at as &[Option<DateTime<Utc>>],
            &columns.failure_kinds as &[Option<&str>],
            &columns.refusals,
            &columns.triggers as &[&str],
            &columns.started_at,
            &columns.ended_at,
            &columns.expires_before as &[Option<DateTime<Utc>>],
            &columns.reasons as &[Option<String>],
            &columns.callers as &[Option<String>],
        )
        .fetch_all(database)
        .await?;
    let written: std::collections::HashSet<_> =
        rows.into_iter().filter(|row| row.written).map(|row| StreamerId(row.id)).collect();
    let recorded = |id: &Uuid| {
        if written.contains(&StreamerId(*id)) {
            Recorded::Written { granted: None }
        } else {
            Recorded::Superseded
        }
    };
    Ok(columns.ids.iter().map(recorded).collect())
}
