//! Results: written in batches as they arrive, each only by the holder of its lease, and only over the refresh
//! token that it started from.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{Error, PgExecutor};
use tokens_domain::attempt::{Attempt, Resolution, Stored};
use tokens_domain::policy::{FailedUnder, Failure};
use tokens_domain::ports::{Expiry, PairMemory};
use tokens_domain::{Monotonic, NoExpiry, StreamerId};
use tokio::time::sleep;
use uuid::Uuid;

use super::aside::Row;
use super::memberships::grant;
use super::statements::OfRow;
use super::{Class, FIRST_PAUSE, PgStore, failed};
use tokens_cipher::Column;

/// A row that can be written again is noticed within this long.
const MAX_ROW_PAUSE: Duration = Duration::from_secs(5);

const WRITING: &str = "writing a result";

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
    /// Whether the history is written as well.
    history: bool,
    refused_since: Vec<Option<DateTime<Utc>>>,
    client_ids: Vec<String>,
    refused: Vec<bool>,
    failed_client_ids: Vec<Option<String>>,
    pairs: Pairs,
}

/// What is remembered of the pairs.
#[derive(Default)]
struct Pairs {
    digests: Vec<Option<Vec<u8>>>,
    expiries: Vec<Option<&'static str>>,
    expire_at: Vec<Option<DateTime<Utc>>>,
    rejected_at: Vec<Option<DateTime<Utc>>>,
    client_ids: Vec<Option<String>>,
    user_ids: Vec<Option<String>>,
}

impl Pairs {
    fn push(&mut self, digest: Option<Vec<u8>>, memory: &PairMemory) {
        self.digests.push(digest);
        self.expiries.push(memory.expiry.map(|expiry| match expiry {
            Expiry::At(_) => "at",
            Expiry::None(NoExpiry::Never) => "never",
            Expiry::None(NoExpiry::Unknown) => "unknown",
        }));
        self.expire_at.push(memory.expiry.and_then(Expiry::at));
        self.rejected_at.push(memory.rejected_at);
        self.client_ids.push(memory.client_id.clone());
        self.user_ids.push(memory.user_id.clone());
    }
}

impl PgStore {
    /// Tries again while the database is away, until `give_up_at`: a rotated pair exists nowhere else. A row that can't be
    /// written is refused and the others are written. Once one is, no other error is returned: the rest is refused with it.
    pub(super) async fn record_all(
        &self,
        attempts: &[Attempt],
        give_up_at: Monotonic,
    ) -> Result<Vec<Stored>, Error> {
        let has_answered = &AtomicBool::new(false);
        let write = |part: Vec<_>| async move {
            let written = match self.write_all(&part, give_up_at).await {
                Err(error) if !Class::from(&error).is_of_a_row() && has_answered.load(Ordering::Relaxed) => {
                    let refused = Stored::Refused(failed(WRITING)(error));
                    vec![refused; part.len()]
                }
                written => {
                    has_answered.store(true, Ordering::Relaxed);
                    written?
                }
            };
            Ok(part.iter().map(Row::id).zip(written).collect::<Vec<_>>())
        };
        let waits = || self.clock.monotonic() < give_up_at;
        let parts = self.database.in_parts(attempts.iter().collect(), waits, write).await?;
        let mut recorded: HashMap<_, _> = parts.done.into_iter().flatten().collect();
        for (attempt, error) in parts.failed {
            // Boxed: it is rare, and every write would carry its size.
            recorded.insert(attempt.id(), Box::pin(self.write_without_history(attempt, error)).await);
        }
        let locked = || {
            let text = "another transaction has locked its row";
            Stored::Refused(failed(WRITING)(Error::Io(io::Error::other(text))))
        };
        Ok(attempts.iter().map(|one| recorded.remove(&one.lease.id.0).unwrap_or_else(locked)).collect())
    }

    /// The history of a result is worth less than the result.
    async fn write_without_history(&self, attempt: &Attempt, error: Error) -> Stored {
        let attempts = &[attempt];
        let bare = async {
            let columns = Columns { history: false, ..self.columns(attempts)? };
            self.write_columns(attempts, &columns).await
        };
        match bare.await {
            Ok(written) if !written.is_empty() => {
                let streamer = attempt.lease.id;
                tracing::error!(%streamer, %error, "a result is written, but not its line of the history");
                written.into_iter().next().unwrap_or(Stored::Superseded)
            }
            _ => Stored::Refused(failed(WRITING)(error)),
        }
    }

    /// See [`tokens_domain::ports::Store::insist`].
    pub(super) async fn write_stubbornly(
        &self,
        attempt: &Attempt,
        give_up_at: Monotonic,
    ) -> Result<Stored, Error> {
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.write_all(&[attempt], give_up_at).await {
                Ok(mut written) => return written.pop().ok_or(Error::RowNotFound),
                Err(error) if Class::from(&error).is_of_a_row() => error,
                Err(error) => return Err(error),
            };
            let left = give_up_at - self.clock.monotonic();
            if left <= TimeDelta::from_std(pause).unwrap_or_default() {
                return Err(error);
            }
            sleep(pause).await;
            pause = (pause * 2).min(MAX_ROW_PAUSE);
        }
    }

    /// Writes all of these or none.
    async fn write_all(&self, attempts: &[&Attempt], give_up_at: Monotonic) -> Result<Vec<Stored>, Error> {
        // Encrypted once: a repeated write carries the same text, and so knows its own if the first one got through.
        let columns = self.columns(attempts)?;
        self.unless_locked(give_up_at, async || self.write_columns(attempts, &columns).await).await
    }

    async fn write_columns(&self, attempts: &[&Attempt], columns: &Columns) -> Result<Vec<Stored>, Error> {
        let Written { recorded, recovered } = if attempts.iter().all(|attempt| attempt.grants.is_none()) {
            write(&self.writing, columns).await?
        } else {
            // Boxed: it is rare, and every write would carry its size.
            Box::pin(self.write_and_grant(attempts, columns)).await?
        };
        if !recovered.is_empty()
            && let Err(error) = Box::pin(self.settle_notices(&recovered)).await
        {
            tracing::warn!(%error, "notices about streamers that have recovered were not settled");
        }
        Ok(recorded)
    }

    /// Notices that wait about streamers that have recovered are obsolete.
    async fn settle_notices(&self, recovered: &[Uuid]) -> Result<(), Error> {
        sqlx::query!(
            "UPDATE token_refresh.outbox SET
                 state = 'obsolete', settled_at = $2, last_error = 'Twitch takes the tokens again'
             WHERE streamer_id = ANY($1) AND state = 'pending' AND NOT deactivated",
            recovered,
            self.clock.now()
        )
        .execute(&self.database)
        .await?;
        Ok(())
    }

    async fn write_and_grant(&self, attempts: &[&Attempt], columns: &Columns) -> Result<Written, Error> {
        let mut transaction = self.database.transaction().await?;
        let mut written = write(&mut transaction, columns).await?;
        for (attempt, recorded) in attempts.iter().zip(&mut written.recorded) {
            if *recorded == Stored::Written {
                // The pair is kept whatever becomes of the membership.
                transaction.begin_row().await?;
                let granted = grant(&mut transaction, attempt).await;
                *recorded = match transaction.end_row(granted).await? {
                    OfRow::Done(granted) => granted.map_or(Stored::Written, Stored::Granted),
                    OfRow::Failed(error) => Stored::NotGranted(failed("writing the authorization")(error)),
                };
            }
        }
        transaction.commit().await?;
        Ok(written)
    }

    pub(super) fn columns(&self, attempts: &[&Attempt]) -> Result<Columns, Error> {
        let (mut columns, cipher) = (Columns { history: true, ..Columns::default() }, &self.cipher);
        for attempt in attempts {
            let id = attempt.lease.id.0;
            let encrypt = |column, plain: &str| {
                cipher.encrypt(id, column, plain).map_err(|error| Error::Encode(error.into()))
            };
            let (mut pair, mut failure, mut reason) = (None, None::<Failure>, None);
            let mut failed_client_id = None;
            let nothing = PairMemory::default();
            let change = match &attempt.resolution {
                Resolution::Refreshed { pair: new, .. } => {
                    pair = Some((
                        encrypt(Column::AccessToken, new.access.expose())?,
                        encrypt(Column::RefreshToken, new.refresh.expose())?,
                    ));
                    "refreshed"
                }
                Resolution::Completed { .. } | Resolution::Validated { .. } => "validated",
                Resolution::Failed { cause, verdict, under, .. } => {
                    failure = Some(verdict.failure());
                    failed_client_id = Some(match under {
                        FailedUnder::WrongKeys => String::new(),
                        FailedUnder::Client(id) => id.clone(),
                    });
                    reason = Some(cause.reason.clone());
                    "failed"
                }
                // A deactivation has a transaction of its own; here its lease would only be given back.
                Resolution::Deactivate { .. } | Resolution::Skipped(_) | Resolution::Panicked => "released",
            };
            let memory = attempt.resolution.memory().unwrap_or(&nothing);
            let was_refused = attempt.resolution.cause().is_some_and(|cause| cause.was_refused);
            columns.pairs.push(attempt.lease.pair.clone(), memory);
            columns.refused_since.push(failure.and_then(|failure| failure.refused_since));
            columns.client_ids.push(attempt.client_id.clone());
            columns.refused.push(was_refused);
            columns.failed_client_ids.push(failed_client_id);
            let (access, refresh) = pair.unzip();
            columns.ids.push(id);
            columns.fences.push(attempt.lease.fence);
            columns.started_from.push(attempt.lease.started_from.clone());
            columns.changes.push(change);
            columns.access_tokens.push(access);
            columns.refresh_tokens.push(refresh);
            columns.expires_at.push(attempt.resolution.expires_at());
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

/// What became of a batch.
pub(super) struct Written {
    pub(super) recorded: Vec<Stored>,
    /// Streamers that there was a notice about, and whose tokens Twitch takes again.
    recovered: Vec<Uuid>,
}

/// One statement: either all of it is there afterwards, or nothing.
#[expect(clippy::too_many_lines, reason = "it is one statement")]
pub(super) async fn write(database: impl PgExecutor<'_>, columns: &Columns) -> Result<Written, Error> {
    let rows = sqlx::query!(
            r#"
            WITH result AS (
                SELECT * FROM unnest(
                    $1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::timestamptz[],
                    $8::timestamptz[], $9::text[], $10::integer[], $11::text[], $12::timestamptz[],
                    $13::timestamptz[], $14::timestamptz[], $15::text[], $16::text[], $18::timestamptz[],
                    $19::text[], $20::boolean[], $21::bytea[], $22::text[], $23::timestamptz[],
                    $24::timestamptz[], $25::text[], $26::text[], $27::text[])
                AS r (id, fence, started_from, change, access_token, refresh_token, expires_at,
                      failed_at, failure_kind, refusals, trigger, started_at,
                      ended_at, expires_before, reason, caller, refused_since,
                      client_id, refused, pair, pair_expiry, pair_expires_at,
                      pair_rejected_at, pair_client_id, pair_user_id, failed_client_id)
            ),
            -- Locked, so that no run takes a lease over while its result is being written.
            held AS (
                SELECT ours.streamer_id, ours.noticed_at FROM token_refresh.streamers ours
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
                    token_refresh_failed_at = r.failed_at, -- none after a success and after a validation
                    updated_at = r.ended_at
                FROM result r JOIN held ON held.streamer_id = r.id
                WHERE s.id = r.id AND r.change <> 'released'
                  -- The second: a write that is repeated because its first answer was lost.
                  AND (s.refresh_token_encrypted IS NOT DISTINCT FROM r.started_from
                       OR s.refresh_token_encrypted = r.refresh_token)
                -- As the column has it, which may be less exact than what it was given.
                RETURNING s.id, s.token_refresh_failed_at AS failed_at
            ),
            given_back AS (
                UPDATE token_refresh.streamers ours SET leased_until = NULL
                FROM result r JOIN held ON held.streamer_id = r.id LEFT JOIN written ON written.id = r.id
                WHERE ours.streamer_id = r.id AND written.id IS NULL
            ),
            remembered AS (
                UPDATE token_refresh.streamers ours SET
                    leased_until = NULL,
                    validated_at = CASE r.change WHEN 'validated' THEN r.started_at ELSE ours.validated_at END,
                    failed_at = written.failed_at,
                    failure_kind = r.failure_kind,
                    failed_client_id = r.failed_client_id,
                    refusals = r.refusals,
                    set_aside_until = NULL,
                    set_aside_times = 0,
                    refused_since = r.refused_since,
                    noticed_at = CASE WHEN r.refused_since = ours.refused_since THEN ours.noticed_at END,
                    pair = CASE r.change WHEN 'refreshed' THEN sha256(convert_to(r.access_token, 'UTF8')) ELSE r.pair END,
                    pair_expiry = r.pair_expiry,
                    pair_expires_at = r.pair_expires_at,
                    pair_rejected_at = r.pair_rejected_at,
                    pair_client_id = r.pair_client_id,
                    pair_user_id = r.pair_user_id
                FROM result r JOIN held ON held.streamer_id = r.id JOIN written ON written.id = r.id
                WHERE ours.streamer_id = r.id
            ),
            history AS (
                INSERT INTO token_refresh.refreshes (streamer_id, fence, trigger, started_at, ended_at,
                    outcome, reason, expires_before, expires_after, caller, client_id, refused)
                SELECT r.id, r.fence, r.trigger, r.started_at, r.ended_at,
                       CASE WHEN written.id IS NULL THEN 'superseded' ELSE r.change END, r.reason,
                       r.expires_before, r.expires_at, r.caller, r.client_id, r.refused
                FROM result r LEFT JOIN written ON written.id = r.id
                WHERE r.change IN ('refreshed', 'failed') AND $17
                ON CONFLICT DO NOTHING
            )
            SELECT r.id AS "id!", (written.id IS NOT NULL OR r.change = 'released') AS "written!",
                   (written.id IS NOT NULL AND r.change <> 'failed' AND held.noticed_at IS NOT NULL) AS "recovered!"
            FROM result r LEFT JOIN written ON written.id = r.id LEFT JOIN held ON held.streamer_id = r.id
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
            columns.history,
            &columns.refused_since as &[Option<DateTime<Utc>>],
            &columns.client_ids,
            &columns.refused,
            &columns.pairs.digests as &[Option<Vec<u8>>],
            &columns.pairs.expiries as &[Option<&str>],
            &columns.pairs.expire_at as &[Option<DateTime<Utc>>],
            &columns.pairs.rejected_at as &[Option<DateTime<Utc>>],
            &columns.pairs.client_ids as &[Option<String>],
            &columns.pairs.user_ids as &[Option<String>],
            &columns.failed_client_ids as &[Option<String>],
        )
        .fetch_all(database)
        .await?;
    let recovered = rows.iter().filter(|row| row.recovered).map(|row| row.id).collect();
    let written: std::collections::HashSet<_> =
        rows.into_iter().filter(|row| row.written).map(|row| StreamerId(row.id)).collect();
    let recorded = |id: &Uuid| {
        if written.contains(&StreamerId(*id)) { Stored::Written } else { Stored::Superseded }
    };
    Ok(Written { recorded: columns.ids.iter().map(recorded).collect(), recovered })
}
