//! Re-encryption of tokens that an old key or the other format has written, while everything else runs.
//!
//! Under a lease, as a refresh is: a cycle writes its new pair only over the text that it started from, and a text that
//! changed under it would cost that pair. And only over the texts that were read, because other writers know no leases.

use chrono::{DateTime, Utc};
use sqlx::Error;
use tokens_domain::ports::StoreError;
use tokens_domain::refresh::MAX_CALL;
use tokens_domain::{Streamer, StreamerId};
use uuid::Uuid;

use super::{PgStore, failed, said};
use tokens_cipher::{Column, DecryptError, TokenCipher};

/// Streamers that are looked at with one statement, and leased for as long as it takes to write them.
const PAGE: i64 = 200;

/// What became of a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rekeyed {
    /// Streamers that were looked at.
    pub total: u64,
    /// Streamers with a token that was encrypted again, or would be.
    pub rekeyed: u64,
    /// Streamers that another run holds, or another writer has changed meanwhile: to be looked at again.
    pub busy: u64,
    /// Texts that can't be read, and were left as they are.
    pub left: Vec<Left>,
    /// Where the next page begins; `None` behind the last one.
    pub next: Option<StreamerId>,
}

/// A text that can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Whose.
    pub streamer: Streamer,
    /// Which.
    pub column: Column,
    /// Why.
    pub reason: DecryptError,
}

/// A streamer with the two stored texts.
#[derive(Clone)]
struct Row {
    id: Uuid,
    login: String,
    display_name: String,
    access_token: Option<String>,
    refresh_token: Option<String>,
}

/// A row's texts as they are to be from now on.
struct Anew {
    row: Row,
    texts: [Option<String>; 2],
}

impl PgStore {
    /// Encrypts again what the page behind `after` holds under an old key or in the other format; in a dry run it only
    /// answers what it would.
    pub async fn rekey(
        &self,
        after: Option<StreamerId>,
        dry_run: bool,
        now: DateTime<Utc>,
    ) -> Result<Rekeyed, StoreError> {
        let (done, left_out) =
            self.rekey_page(after, dry_run, now).await.map_err(failed("re-encrypting tokens"))?;
        if done.total == 0 && after.is_none() {
            self.database.look_at_nothing().await?;
        }
        self.database.look_at_unleased(&left_out).await?;
        Ok(done)
    }

    /// Also answers the streamers that were to be written, if none of them could be.
    async fn rekey_page(
        &self,
        after: Option<StreamerId>,
        dry_run: bool,
        now: DateTime<Utc>,
    ) -> Result<(Rekeyed, Vec<StreamerId>), Error> {
        let rows = sqlx::query_as!(
            Row,
            r#"
            SELECT id, twitch_login AS login, twitch_display_name AS display_name,
                   access_token_encrypted AS access_token, refresh_token_encrypted AS refresh_token
            FROM public.streamers WHERE id > $1 ORDER BY id LIMIT $2
            "#,
            after.map_or(Uuid::nil(), |id| id.0),
            PAGE
        )
        .fetch_all(&self.database)
        .await?;
        let mut done = Rekeyed { total: rows.len() as u64, ..Rekeyed::default() };
        if i64::try_from(rows.len()).is_ok_and(|found| found == PAGE) {
            done.next = rows.last().map(|row| StreamerId(row.id));
        }
        let cipher = &self.cipher;
        let mut old = Vec::new();
        for row in rows {
            let (anew, left) = anew(cipher, row, now)?;
            done.left.extend(left);
            old.extend(anew.map(|anew| anew.row.id));
        }
        if dry_run || old.is_empty() {
            done.rekeyed = old.len() as u64;
            return Ok((done, Vec::new()));
        }
        done.rekeyed = self.write_each_anew(cipher, old.clone(), now).await?;
        done.busy = old.len() as u64 - done.rekeyed;
        let left_out = if done.rekeyed == 0 { old } else { Vec::new() };
        Ok((done, left_out.into_iter().map(StreamerId).collect()))
    }

    /// Writes these rows; answers how many were written. A row that can't be is left as it is, and counts as busy.
    async fn write_each_anew(
        &self,
        cipher: &TokenCipher,
        ids: Vec<Uuid>,
        now: DateTime<Utc>,
    ) -> Result<u64, Error> {
        let write = |part: Vec<Uuid>| async move { self.write_anew(cipher, &part, now).await };
        let parts = self.database.in_parts(ids, || false, write).await?;
        for (id, error) in parts.failed {
            tracing::error!(streamer = %id, error = said(&error), "the streamer's row can't be written");
        }
        Ok(parts.done.into_iter().sum())
    }

    /// Takes leases on these, reads them again, writes them and gives the leases back. Two statements, as where a cycle takes
    /// its leases. Answers how many were written.
    async fn write_anew(&self, cipher: &TokenCipher, ids: &[Uuid], now: DateTime<Utc>) -> Result<u64, Error> {
        // Active or not, and a row that another transaction has locked is waited for: nothing is lost with a write that fails.
        let leases = sqlx::query!(
            r#"
            INSERT INTO token_refresh.streamers AS lease (streamer_id, fence, leased_until)
            SELECT s.id,
                   coalesce((SELECT max(past.fence) FROM token_refresh.refreshes past WHERE past.streamer_id = s.id), 0) + 1, $3
            FROM public.streamers s WHERE s.id = ANY($1) ORDER BY s.id FOR KEY SHARE SKIP LOCKED
            ON CONFLICT (streamer_id) DO UPDATE SET fence = lease.fence + 1, leased_until = $3
                WHERE lease.leased_until IS NULL OR lease.leased_until <= $2
            RETURNING streamer_id, fence
            "#,
            ids,
            now,
            now + MAX_CALL
        )
        .fetch_all(&self.database)
        .await?;
        let (ids, fences): (Vec<_>, Vec<_>) =
            leases.into_iter().map(|lease| (lease.streamer_id, lease.fence)).unzip();
        let rows = sqlx::query_as!(
            Row,
            r#"
            SELECT id, twitch_login AS login, twitch_display_name AS display_name,
                   access_token_encrypted AS access_token, refresh_token_encrypted AS refresh_token
            FROM public.streamers WHERE id = ANY($1)
            "#,
            &ids
        )
        .fetch_all(&self.database)
        .await?;
        let mut columns = Columns::default();
        for row in rows {
            if let (Some(Anew { row, texts: [access, refresh] }), _) = anew(cipher, row, now)? {
                columns.ids.push(row.id);
                columns.old_access.push(row.access_token);
                columns.old_refresh.push(row.refresh_token);
                columns.access.push(access);
                columns.refresh.push(refresh);
            }
        }
        let written = sqlx::query_scalar!(
            r#"
            WITH held AS (
                SELECT ours.streamer_id FROM token_refresh.streamers ours
                JOIN unnest($1::uuid[], $2::bigint[]) AS taken (id, fence)
                    ON taken.id = ours.streamer_id AND taken.fence = ours.fence
                ORDER BY ours.streamer_id FOR UPDATE OF ours
            ),
            written AS (
                UPDATE public.streamers s SET
                    access_token_encrypted = anew.access, refresh_token_encrypted = anew.refresh, updated_at = $8
                FROM unnest($3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[])
                     AS anew (id, old_access, old_refresh, access, refresh)
                JOIN held ON held.streamer_id = anew.id
                WHERE s.id = anew.id
                  AND s.access_token_encrypted IS NOT DISTINCT FROM anew.old_access
                  AND s.refresh_token_encrypted IS NOT DISTINCT FROM anew.old_refresh
                RETURNING s.id
            ),
            given_back AS (
                -- What is remembered of the pair goes with it.
                UPDATE token_refresh.streamers ours SET
                    leased_until = NULL,
                    pair = CASE WHEN written.id IS NOT NULL
                                 AND ours.pair = sha256(convert_to(anew.old_access, 'UTF8'))
                        THEN sha256(convert_to(anew.access, 'UTF8')) ELSE ours.pair END
                FROM held
                LEFT JOIN unnest($3::uuid[], $4::text[], $6::text[]) AS anew (id, old_access, access)
                    ON anew.id = held.streamer_id
                LEFT JOIN written ON written.id = held.streamer_id
                WHERE ours.streamer_id = held.streamer_id
            )
            SELECT count(*) AS "written!" FROM written
            "#,
            &ids,
            &fences,
            &columns.ids,
            &columns.old_access as &[Option<String>],
            &columns.old_refresh as &[Option<String>],
            &columns.access as &[Option<String>],
            &columns.refresh as &[Option<String>],
            now
        )
        .fetch_one(&self.database)
        .await;
        if written.is_err() {
            let give_back = sqlx::query!(
                r#"
                UPDATE token_refresh.streamers ours SET leased_until = NULL
                FROM unnest($1::uuid[], $2::bigint[]) AS taken (id, fence)
                WHERE ours.streamer_id = taken.id AND ours.fence = taken.fence
                "#,
                &ids,
                &fences
            );
            // If not, they run out.
            let _ = give_back.execute(&self.database).await;
        }
        Ok(u64::try_from(written?).unwrap_or(0))
    }
}

/// A page as the statement takes it.
#[derive(Default)]
struct Columns {
    ids: Vec<Uuid>,
    old_access: Vec<Option<String>>,
    old_refresh: Vec<Option<String>>,
    access: Vec<Option<String>>,
    refresh: Vec<Option<String>>,
}

impl Row {
    fn texts(&self) -> [(Column, Option<&str>); 2] {
        [
            (Column::AccessToken, self.access_token.as_deref().filter(|text| !text.is_empty())),
            (Column::RefreshToken, self.refresh_token.as_deref().filter(|text| !text.is_empty())),
        ]
    }
}

/// The row as it is to be, if some of it has to be encrypted again, and what can't be read of it.
fn anew(cipher: &TokenCipher, row: Row, now: DateTime<Utc>) -> Result<(Option<Anew>, Vec<Left>), Error> {
    let mut left = Vec::new();
    let mut changes = false;
    let mut texts = [row.access_token.clone(), row.refresh_token.clone()];
    for ((column, stored), text) in row.texts().into_iter().zip(&mut texts) {
        let Some(stored) = stored else { continue };
        match cipher.decrypt(row.id, column, stored, now) {
            Ok(_) if cipher.is_as_written_now(stored) => {}
            Ok(plain) => {
                let written = cipher.encrypt(row.id, column, &plain);
                *text = Some(written.map_err(|error| Error::Encode(error.into()))?);
                changes = true;
            }
            Err(reason) => {
                let streamer = Streamer::new(StreamerId(row.id), &row.login, &row.display_name);
                left.push(Left { streamer, column, reason });
            }
        }
    }
    Ok((changes.then_some(Anew { row, texts }), left))
}
