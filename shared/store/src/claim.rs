//! Leases: the right of one run to refresh a streamer's token.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{Error, PgExecutor};
use tokens_domain::ports::{Claim, Expiry, Lease, PairMemory, Unreadable};
use tokens_domain::{AccessToken, Monotonic, RefreshToken, StreamerId};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::state::{State, StateRow, no_expiry, query_states, state_of};
use super::{Database, LAST_STATEMENT_TIMEOUT, Moment, PgStore};
use tokens_cipher::{self, Column, TokenCipher};

impl PgStore {
    /// Two statements on purpose: the second sees what the holder before us committed, which the snapshot of a
    /// statement that had to wait for it would not. The second is repeated by itself, and for longer than the first: leases
    /// that are taken and not read hold all runs up until they run out.
    pub(super) async fn lease(
        &self,
        ids: &[StreamerId],
        now: DateTime<Utc>,
        until: DateTime<Utc>,
        give_up_at: Monotonic,
    ) -> Result<Vec<Claim>, Error> {
        let held_until = self.clock.monotonic() + (until - now);
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        let database = self.database.keeping();
        let leased = self.take_each(&database, ids, now, until, give_up_at).await?;
        let last = TimeDelta::from_std(LAST_STATEMENT_TIMEOUT).unwrap_or_default();
        let give_up_at = give_up_at.max(self.clock.monotonic() + last);
        let read = |part: Vec<(Uuid, i64)>| {
            let database = &database;
            async move { self.persistently(give_up_at, async || read(database, &part).await).await }
        };
        let parts = database.in_parts(leased, || false, read).await?;
        for ((id, fence), error) in &parts.failed {
            Box::pin(self.unreadable(*id, *fence, error, now)).await;
        }
        drop(database);
        let claims = parts.done.into_iter().flatten().map(|row| {
            let pair = row.open(&self.cipher, now);
            row.into_claim(pair, now, until, held_until)
        });
        Ok(claims.collect())
    }

    /// Leases on those of these that can be leased, with their fencing numbers.
    async fn take_each(
        &self,
        database: &Database,
        ids: Vec<Uuid>,
        now: DateTime<Utc>,
        until: DateTime<Utc>,
        give_up_at: Monotonic,
    ) -> Result<Vec<(Uuid, i64)>, Error> {
        let take = |part: Vec<Uuid>| async move {
            let take = async || take_leases(database, &part, now, until).await;
            self.unless_locked(give_up_at, take).await
        };
        let parts = database.in_parts(ids, || false, take).await?;
        for (id, error) in parts.failed {
            tracing::error!(streamer = %id, %error, "no lease can be taken on the streamer");
        }
        Ok(parts.done.into_iter().flatten().collect())
    }
}

/// A streamer under our lease, as it is stored.
struct LeasedRow {
    state: StateRow,
    fence: i64,
    access_token: Option<String>,
    refresh_token: Option<String>,
    twitch_user_id: String,
    /// The hash of the stored access token's text.
    stored_pair: Option<Vec<u8>>,
    /// What is remembered of that pair.
    memory: PairMemory,
}

/// The rows of these, as of after their leases were taken.
async fn read(database: impl PgExecutor<'_>, leased: &[(Uuid, i64)]) -> Result<Vec<LeasedRow>, Error> {
    let (ids, fences): (Vec<Uuid>, Vec<i64>) = leased.iter().copied().unzip();
    let rows = query_states!(
        "SELECT ours.fence, s.access_token_encrypted AS access_token, s.refresh_token_encrypted AS refresh_token,
                s.twitch_user_id, sha256(convert_to(s.access_token_encrypted, 'UTF8')) AS stored_pair,
                ours.pair_expires_at, ours.pair_rejected_at, ours.pair_client_id, ours.pair_user_id, ",
        "FROM unnest($1::uuid[], $2::bigint[]) AS leased (id, fence)
        JOIN token_refresh.streamers ours ON ours.streamer_id = leased.id AND ours.fence = leased.fence
        JOIN public.streamers s ON s.id = leased.id",
        &ids,
        &fences
    )
    .fetch_all(database)
    .await?;
    let leased = rows.into_iter().map(|row| {
        let memory = if row.pair_is_stored {
            PairMemory {
                expiry: expiry(row.pair_expiry.as_deref(), row.pair_expires_at.and_then(Moment::known)),
                rejected_at: row.pair_rejected_at.and_then(Moment::known),
                client_id: row.pair_client_id,
                user_id: row.pair_user_id,
            }
        } else {
            PairMemory::default()
        };
        LeasedRow {
            fence: row.fence,
            access_token: row.access_token,
            refresh_token: row.refresh_token,
            twitch_user_id: row.twitch_user_id,
            stored_pair: row.stored_pair,
            memory,
            state: state_of!(row),
        }
    });
    Ok(leased.collect())
}

impl LeasedRow {
    /// The access token and the refresh token.
    fn open(&self, cipher: &TokenCipher, now: DateTime<Utc>) -> [Opened; 2] {
        [(Column::AccessToken, &self.access_token), (Column::RefreshToken, &self.refresh_token)]
            .map(|(column, stored)| open(cipher, self.state.id, column, stored.as_deref(), now))
    }

    fn into_claim(
        self,
        pair: [Opened; 2],
        now: DateTime<Utc>,
        until: DateTime<Utc>,
        held_until: Monotonic,
    ) -> Claim {
        let [access, refresh] = pair.map(as_read);
        let State { streamer, is_active, token } = self.state.at(now);
        Claim {
            is_active,
            lease: Lease {
                id: streamer.id,
                fence: self.fence,
                until,
                held_until,
                started_from: self.refresh_token,
                pair: self.stored_pair,
            },
            streamer,
            twitch_user_id: self.twitch_user_id,
            token,
            memory: self.memory,
            access: access.map(AccessToken::new),
            refresh: refresh.map(RefreshToken::new),
        }
    }
}

/// Takes leases on those of these streamers that no other run holds one on; answers with their fencing numbers. A row of the
/// application's that is locked is left out: its result could not be written either, and a new pair would have no place.
///
/// Rows are locked in the order of the ids, and ours before the application's, as where results are written: two runs that want
/// the same streamers never wait for each other in a ring.
pub(super) async fn take_leases(
    database: impl PgExecutor<'_>,
    ids: &[Uuid],
    now: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Result<Vec<(Uuid, i64)>, Error> {
    let leases = sqlx::query!(
        r#"
            WITH ours AS (
                SELECT streamer_id FROM token_refresh.streamers WHERE streamer_id = ANY($1)
                ORDER BY streamer_id FOR UPDATE
            ),
            -- An aggregate, so that all of ours are locked before the first streamer is.
            known AS (SELECT coalesce(array_agg(streamer_id), '{}') AS ids FROM ours)
            INSERT INTO token_refresh.streamers AS ours (streamer_id, fence, leased_until)
            SELECT s.id,
                   -- A streamer that was gone and is there again goes on where its history ends.
                   CASE WHEN s.id = ANY(known.ids) THEN 1
                   ELSE coalesce((SELECT max(past.fence) FROM token_refresh.refreshes past WHERE past.streamer_id = s.id), 0) + 1
                   END, $3
            FROM known CROSS JOIN public.streamers s
            WHERE s.id = ANY($1) AND s.is_active
            ORDER BY s.id FOR NO KEY UPDATE OF s SKIP LOCKED
            ON CONFLICT (streamer_id) DO UPDATE SET fence = ours.fence + 1, leased_until = $3
                WHERE (ours.leased_until IS NULL OR ours.leased_until <= $2)
                  AND (ours.set_aside_until IS NULL OR ours.set_aside_until <= $2)
            RETURNING streamer_id, fence
            "#,
        ids,
        now,
        until
    )
    .fetch_all(database)
    .await?;
    Ok(leases.into_iter().map(|lease| (lease.streamer_id, lease.fence)).collect())
}

/// As [`PairMemory`] has it.
fn expiry(kind: Option<&str>, at: Option<DateTime<Utc>>) -> Option<Expiry> {
    let kind = kind?;
    no_expiry(kind).map(Expiry::None).or_else(|| at.filter(|_| kind == "at").map(Expiry::At))
}

/// A stored token in plain; `None` if none is stored.
type Opened = Option<Result<Zeroizing<String>, tokens_cipher::DecryptError>>;

fn open(cipher: &TokenCipher, id: Uuid, column: Column, stored: Option<&str>, now: DateTime<Utc>) -> Opened {
    Some(cipher.decrypt(id, column, stored.filter(|text| !text.is_empty())?, now))
}

fn as_read(opened: Opened) -> Result<String, Unreadable> {
    opened.ok_or(Unreadable::Missing)?.map(|plain| plain.to_string()).map_err(|error| match error {
        tokens_cipher::DecryptError::UnknownFormat => Unreadable::UnknownFormat,
        ours => Unreadable::Keys(ours.to_string()),
    })
}
