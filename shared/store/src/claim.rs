//! Leases: who may refresh a streamer's token.

use chrono::{DateTime, TimeDelta, Utc};
use domain::ports::{Claim, Expiry, Lease, PairMemory, Unreadable};
use domain::{AccessToken, Monotonic, RefreshToken, StreamerId};
use sqlx::{Error, PgExecutor};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{Class, Kept, LAST_STATEMENT, Moment, PgStore, StreamerRow, parse_no_expiry, unless_of_a_row};
use cipher::{self, Column, TokenCipher};

impl PgStore {
    /// Two statements on purpose: the second sees what the holder before us committed, which the snapshot of a
    /// statement that had to wait for it would not. The second is repeated by itself, even for those who don't wait for
    /// the first: leases that nobody has read hold everybody up until they run out.
    pub(super) async fn lease(
        &self,
        ids: &[StreamerId],
        now: DateTime<Utc>,
        until: DateTime<Utc>,
        give_up_at: Monotonic,
    ) -> Result<Vec<Claim>, Error> {
        let held_until = self.clock.monotonic() + (until - now);
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        let kept = Kept::default();
        let leased = self.take_each(&kept, ids, now, until, give_up_at).await?;
        let last = TimeDelta::from_std(LAST_STATEMENT).unwrap_or_default();
        let give_up_at = give_up_at.max(self.clock.monotonic() + last);
        // A row that can't be read costs itself alone.
        let (mut rows, mut parts) = (Vec::new(), vec![leased]);
        while let Some(part) = parts.pop() {
            match self
                .persistently(give_up_at, async || {
                    unless_of_a_row(read(kept.of(&self.database), &part).await)
                })
                .await?
            {
                Ok(part) => rows.extend(part),
                Err(error) => {
                    if let [(id, fence)] = part[..] {
                        Box::pin(self.unreadable(id, fence, &error, now)).await;
                    } else {
                        let (first, second) = part.split_at(part.len() / 2);
                        parts.extend([first.to_vec(), second.to_vec()]);
                    }
                }
            }
        }
        drop(kept);
        let claims = rows.into_iter().map(|row| {
            let pair = row.open(&self.cipher, now);
            row.into_claim(pair, now, until, held_until)
        });
        Ok(claims.collect())
    }

    /// Leases on all of these that there can be one on, with their fencing ids. What another transaction has locked for longer
    /// than a statement waits is left out, and so is what no lease can be written of.
    async fn take_each(
        &self,
        kept: &Kept,
        ids: Vec<Uuid>,
        now: DateTime<Utc>,
        until: DateTime<Utc>,
        give_up_at: Monotonic,
    ) -> Result<Vec<(Uuid, i64)>, Error> {
        let (mut leased, mut parts) = (Vec::new(), vec![ids]);
        while let Some(mut part) = parts.pop() {
            let take =
                async || unless_of_a_row(take_leases(kept.of(&self.database), &part, now, until).await);
            match self.persistently(give_up_at, take).await? {
                Ok((ids, fences)) => leased.extend(ids.into_iter().zip(fences)),
                Err(error) if Class::from(&error) == Class::Locked => {
                    let locked = self.locked(&part).await?;
                    if locked.is_empty() {
                        return Err(error);
                    }
                    part.retain(|id| !locked.contains(id));
                    parts.push(part);
                }
                Err(error) => match part.as_slice() {
                    [] => {}
                    [id] => tracing::error!(streamer = %id, %error, "no lease can be taken on it"),
                    _ => {
                        let rest = part.split_off(part.len() / 2);
                        parts.extend([part, rest]);
                    }
                },
            }
        }
        Ok(leased)
    }
}

/// A streamer under our lease, as it is stored.
struct LeasedRow {
    id: Uuid,
    login: String,
    display_name: String,
    is_active: bool,
    token_expires_at: Option<Moment>,
    last_token_refresh_at: Option<Moment>,
    validated_at: Option<Moment>,
    token_refresh_failed_at: Option<Moment>,
    failed_at: Option<Moment>,
    failure_kind: Option<String>,
    failed_client_id: Option<String>,
    refusals: i32,
    fence: i64,
    access_token_encrypted: Option<String>,
    refresh_token_encrypted: Option<String>,
    twitch_user_id: String,
    /// The hash of the pair that is stored now.
    stored_pair: Option<Vec<u8>>,
    /// The hash of the pair that the columns `pair_…` are about.
    pair: Option<Vec<u8>>,
    pair_expiry: Option<String>,
    pair_expires_at: Option<Moment>,
    pair_rejected_at: Option<Moment>,
    pair_client_id: Option<String>,
    pair_user_id: Option<String>,
    refused_since: Option<Moment>,
    noticed_at: Option<Moment>,
}

/// These, as of after their leases were taken.
async fn read(database: impl PgExecutor<'_>, leased: &[(Uuid, i64)]) -> Result<Vec<LeasedRow>, Error> {
    let (ids, fences): (Vec<Uuid>, Vec<i64>) = leased.iter().copied().unzip();
    sqlx::query_as!(
        LeasedRow,
        r#"
        SELECT s.id, s.twitch_login AS login, s.twitch_display_name AS display_name, s.is_active,
               s.token_expires_at, s.last_token_refresh_at, ours.validated_at, s.token_refresh_failed_at,
               ours.failed_at, ours.failure_kind, ours.failed_client_id, ours.refusals, ours.fence,
               s.access_token_encrypted, s.refresh_token_encrypted, s.twitch_user_id,
               sha256(convert_to(s.access_token_encrypted, 'UTF8')) AS stored_pair,
               ours.pair, ours.pair_expiry, ours.pair_expires_at, ours.pair_rejected_at,
               ours.pair_client_id, ours.pair_user_id, ours.refused_since, ours.noticed_at
        FROM unnest($1::uuid[], $2::bigint[]) AS leased (id, fence)
        JOIN token_refresh.streamers ours ON ours.streamer_id = leased.id AND ours.fence = leased.fence
        JOIN public.streamers s ON s.id = leased.id
        "#,
        &ids,
        &fences
    )
    .fetch_all(database)
    .await
}

impl LeasedRow {
    /// The access token and the refresh token.
    fn open(&self, cipher: &TokenCipher, now: DateTime<Utc>) -> [Opened; 2] {
        [
            (Column::AccessToken, &self.access_token_encrypted),
            (Column::RefreshToken, &self.refresh_token_encrypted),
        ]
        .map(|(column, stored)| open(cipher, self.id, column, stored.as_deref(), now))
    }

    fn into_claim(
        self,
        pair: [Opened; 2],
        now: DateTime<Utc>,
        until: DateTime<Utc>,
        held_until: Monotonic,
    ) -> Claim {
        let [access, refresh] = pair.map(as_read);
        let is_stored = self.pair.is_some() && self.pair == self.stored_pair;
        let memory = PairMemory {
            expiry: expiry(self.pair_expiry.as_deref(), self.pair_expires_at.and_then(Moment::known)),
            rejected_at: self.pair_rejected_at.and_then(Moment::known),
            client_id: self.pair_client_id,
            user_id: self.pair_user_id,
        };
        let (streamer, token) = StreamerRow {
            id: self.id,
            login: self.login,
            display_name: self.display_name,
            is_active: self.is_active,
            until: None,
            expires_at: self.token_expires_at,
            refreshed_at: self.last_token_refresh_at,
            validated_at: self.validated_at,
            failed_at: self.token_refresh_failed_at,
            known_failure_at: self.failed_at,
            failure_kind: self.failure_kind,
            failed_client_id: self.failed_client_id,
            refusals: Some(self.refusals),
            pair_expiry: self.pair_expiry.filter(|_| is_stored),
            refused_since: self.refused_since.filter(|_| is_stored),
            noticed_at: self.noticed_at.filter(|_| is_stored),
        }
        .into_parts(now);
        Claim {
            is_active: self.is_active,
            lease: Lease {
                id: streamer.id,
                fence: self.fence,
                until,
                held_until,
                started_from: self.refresh_token_encrypted,
                pair: self.stored_pair,
            },
            streamer,
            twitch_user_id: self.twitch_user_id,
            token,
            memory: if is_stored { memory } else { PairMemory::default() },
            access: access.map(AccessToken::new),
            refresh: refresh.map(RefreshToken::new),
        }
    }
}

/// Answers with the streamers that were leased, and their fencing ids.
pub(super) async fn take_leases(
    database: impl PgExecutor<'_>,
    ids: &[Uuid],
    now: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Result<(Vec<Uuid>, Vec<i64>), Error> {
    // In the order of the ids, and ours before the application's, so that two runs that want the same streamers never
    // wait for each other in a ring. A row that another transaction has locked could not be written either: a new
    // pair would have no place.
    let leases = sqlx::query!(
        r#"
            WITH known AS ( -- locked before the streamer, as whoever writes a result does
                SELECT streamer_id FROM token_refresh.streamers WHERE streamer_id = ANY($1)
                ORDER BY streamer_id FOR UPDATE
            )
            INSERT INTO token_refresh.streamers AS ours (streamer_id, fence, leased_until)
            SELECT s.id,
                   -- A streamer that was gone and is there again goes on where its history ends.
                   CASE WHEN s.id IN (SELECT streamer_id FROM known) THEN 1
                   ELSE coalesce((SELECT max(past.fence) FROM token_refresh.refreshes past WHERE past.streamer_id = s.id), 0) + 1
                   END, $3
            FROM public.streamers s
            WHERE s.id = ANY($1) AND s.is_active
              AND (SELECT count(*) FROM known) >= 0 -- true; reading it first locks it first
            ORDER BY s.id FOR NO KEY UPDATE SKIP LOCKED
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
    Ok(leases.into_iter().map(|lease| (lease.streamer_id, lease.fence)).unzip())
}

/// As [`PairMemory`] has it.
fn expiry(kind: Option<&str>, at: Option<DateTime<Utc>>) -> Option<Expiry> {
    let kind = kind?;
    parse_no_expiry(kind).map(Expiry::None).or_else(|| at.filter(|_| kind == "at").map(Expiry::At))
}

/// A stored token in plain; `None` if none is stored.
type Opened = Option<Result<Zeroizing<String>, cipher::DecryptError>>;

fn open(cipher: &TokenCipher, id: Uuid, column: Column, stored: Option<&str>, now: DateTime<Utc>) -> Opened {
    Some(cipher.decrypt(id, column, stored.filter(|text| !text.is_empty())?, now))
}

fn as_read(opened: Opened) -> Result<String, Unreadable> {
    opened.ok_or(Unreadable::Missing)?.map(|plain| plain.to_string()).map_err(|error| match error {
        cipher::DecryptError::UnknownFormat => Unreadable::UnknownFormat,
        ours => Unreadable::Keys(ours.to_string()),
    })
}
