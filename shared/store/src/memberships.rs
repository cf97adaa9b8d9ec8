//! Memberships and what they grant: read, granted with a fresh pair, revoked.

use std::time::Duration;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use sqlx::Error;
use tokens_domain::attempt::Attempt;
use tokens_domain::authorization::{
    Authorization, Grant, Membership, MembershipStatus, Participant, Unknown,
};
use tokens_domain::ports::{MembershipError, Memberships, Participants, StoreError, StoreErrorKind};
use tokens_domain::{CampaignId, MembershipKey, StreamerId, plain};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::state::{MAX_SKEW, State, query_states, state_of};
use super::statements::Transaction;
use super::{Database, Moment, PgStore, failed};

/// A caller waits; a database that takes longer is away.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// The first look at a lease that is waited for; the pause doubles up to [`MAX_LOOK_PAUSE`].
const FIRST_LOOK_PAUSE: Duration = Duration::from_millis(20);

/// A lease that was given back is noticed within this long.
const MAX_LOOK_PAUSE: Duration = Duration::from_millis(160);

/// Where the time of the grant was not written, it is taken to hold for twelve hours.
fn authorization(granted_at: Option<Moment>, expires_at: Option<Moment>) -> Option<Authorization> {
    let expires_at = expires_at?.end();
    let granted_at = granted_at
        .and_then(Moment::known)
        .unwrap_or(expires_at - tokens_domain::authorization::AUTHORIZATION);
    Some(Authorization { granted_at, expires_at })
}

/// A statement of a request.
async fn in_time<T>(
    doing: &'static str,
    query: impl Future<Output = Result<T, Error>>,
) -> Result<T, StoreError> {
    let late = |_| {
        let text = format!("the database failed at {doing}: no answer within 3 s");
        Err(StoreError::new(StoreErrorKind::Away, text))
    };
    timeout(REQUEST_TIMEOUT, query).await.map_or_else(late, |read| read.map_err(failed(doing)))
}

/// What became of an authorization that was to end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Revoked {
    /// There was none.
    Nothing,
    EndsNow,
    /// It began later than now, or the column has rounded.
    EndsLater,
}

impl Database {
    /// The memberships of a streamer by the campaigns' names, or the one in this campaign.
    pub async fn memberships(
        &self,
        streamer: StreamerId,
        campaign: Option<CampaignId>,
        now: DateTime<Utc>,
    ) -> Result<Vec<Membership>, MembershipError> {
        let query = query_states!(
            r#"SELECT c.id AS "campaign_id?", c.name AS "campaign_name?", m.id AS "membership_id?", m.status AS "status?",
                      m.poll_authorization_granted_at AS "granted_at?", m.poll_authorization_expires_at AS "expires_at?", "#,
            "FROM public.streamers s
            LEFT JOIN token_refresh.streamers ours ON ours.streamer_id = s.id
            LEFT JOIN public.campaign_memberships m
                ON m.streamer_id = s.id AND ($2::uuid IS NULL OR m.campaign_id = $2)
            LEFT JOIN public.campaigns c ON c.id = coalesce(m.campaign_id, $2)
            WHERE s.id = $1
            ORDER BY c.name, c.id",
            streamer.0,
            campaign.map(|campaign| campaign.0) as Option<Uuid>
        );
        let rows = in_time("reading memberships", async { query.fetch_all(self).await }).await?;
        if rows.is_empty() {
            self.look_at_nothing().await?;
            return Err(Unknown::Streamer.into());
        }
        let mut memberships = Vec::new();
        for row in rows {
            let (Some(campaign_id), Some(campaign_name)) = (row.campaign_id, row.campaign_name.clone())
            else {
                if campaign.is_some() {
                    self.look_at_nothing().await?;
                    return Err(Unknown::Campaign.into());
                }
                continue;
            };
            if row.membership_id.is_none() {
                self.look_at_nothing().await?;
                return Err(Unknown::Membership.into());
            }
            let status = match row.status.as_deref() {
                Some("ACTIVE") => MembershipStatus::Active,
                _ => MembershipStatus::Pending,
            };
            let authorization = authorization(row.granted_at, row.expires_at);
            let State { streamer, is_active, token } = state_of!(row).at(now);
            memberships.push(Membership {
                campaign: CampaignId(campaign_id),
                campaign_name: plain(campaign_name),
                streamer,
                streamer_is_active: is_active,
                status,
                authorization,
                token,
            });
        }
        if memberships.is_empty() {
            self.look_at_nothing().await?;
        }
        Ok(memberships)
    }

    /// One membership.
    ///
    /// # Errors
    ///
    /// If there is no such membership, or the database fails.
    pub async fn membership(
        &self,
        key: MembershipKey,
        now: DateTime<Utc>,
    ) -> Result<Membership, MembershipError> {
        let found = self.memberships(key.streamer, Some(key.campaign), now).await?;
        found.into_iter().next().ok_or(Unknown::Membership.into())
    }

    /// Ends the membership's authorization now, if it has one; and the session that it was, exactly.
    pub async fn revoke(&self, key: MembershipKey, now: DateTime<Utc>) -> Result<(), MembershipError> {
        let mut revoked = self.end_authorization(key, now).await?;
        if revoked == Revoked::EndsLater {
            // The column rounds to whole seconds, and has rounded up.
            revoked = self.end_authorization(key, now.trunc_subsecs(0)).await?;
        }
        match revoked {
            Revoked::Nothing => self.membership(key, now).await.map(drop),
            Revoked::EndsNow | Revoked::EndsLater => Ok(()),
        }
    }

    async fn end_authorization(&self, key: MembershipKey, now: DateTime<Utc>) -> Result<Revoked, StoreError> {
        let query = sqlx::query_scalar!(
            r#"
            WITH before AS (
                SELECT id, coalesce(poll_authorization_granted_at,
                                    poll_authorization_expires_at - interval '12 hours') AS granted_at
                FROM public.campaign_memberships
                WHERE campaign_id = $1 AND streamer_id = $2 AND poll_authorization_expires_at > $3
                FOR UPDATE
            ),
            revoked AS (
                -- A grant that was written just now by a clock a little ahead of ours never ends before it began.
                UPDATE public.campaign_memberships m SET
                    poll_authorization_expires_at = greatest(
                        $3, CASE WHEN before.granted_at <= $4 THEN before.granted_at END),
                    updated_at = $3
                FROM before WHERE m.id = before.id
                RETURNING m.id, before.granted_at, m.poll_authorization_expires_at AS ends_at
            ),
            session AS (
                INSERT INTO token_refresh.sessions (membership_id, granted_at, streamer_id, campaign_id, ends_at)
                SELECT id, granted_at, $2, $1, ends_at FROM revoked
                ON CONFLICT (membership_id, granted_at) DO UPDATE SET ends_at = excluded.ends_at
            )
            SELECT bool_or(ends_at > $3) AS later FROM revoked
            "#,
            key.campaign.0,
            key.streamer.0,
            now,
            now + MAX_SKEW
        );
        let ends_later = in_time("revoking an authorization", async { query.fetch_one(self).await }).await?;
        Ok(match ends_later {
            None => Revoked::Nothing,
            Some(false) => Revoked::EndsNow,
            Some(true) => Revoked::EndsLater,
        })
    }

    /// If a row can't be read, each is read by itself, so that the others are known.
    async fn participants(
        &self,
        campaign: CampaignId,
        now: DateTime<Utc>,
    ) -> Result<Participants, MembershipError> {
        const DOING: &str = "reading a campaign's streamers";
        let read = async |doing, only| in_time(doing, self.read_participants(campaign, only, now)).await;
        let mut participants = Participants::default();
        match read(DOING, None).await {
            Ok(readable) => participants.readable = readable,
            Err(error) if error.kind == StoreErrorKind::Row => {
                for (id, is_game_master) in in_time(DOING, self.needed(campaign)).await? {
                    match read("reading the streamer's row", Some(id)).await {
                        Ok(readable) => participants.readable.extend(readable),
                        Err(error) if error.kind == StoreErrorKind::Row => {
                            let participant = Participant::unreadable(StreamerId(id), is_game_master);
                            participants.unreadable.push((participant, error));
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            Err(error) => return Err(error.into()),
        }
        let Participants { readable, unreadable } = &participants;
        // A campaign without members would be called healthy.
        if unreadable.is_empty() && readable.iter().all(|one| one.is_game_master) {
            self.look_at_nothing().await?;
        }
        if unreadable.is_empty() && readable.is_empty() {
            let query = sqlx::query_scalar!(
                r#"SELECT EXISTS (SELECT FROM public.campaigns WHERE id = $1) AS "known!""#,
                campaign.0
            );
            let known = in_time("reading a campaign", async { query.fetch_one(self).await }).await?;
            return if known { Ok(participants) } else { Err(Unknown::Campaign.into()) };
        }
        Ok(participants)
    }

    /// All that the campaign needs, or this one of them.
    async fn read_participants(
        &self,
        campaign: CampaignId,
        only: Option<Uuid>,
        now: DateTime<Utc>,
    ) -> Result<Vec<Participant>, Error> {
        let rows = query_states!(
            r#"
            WITH needed AS (
                SELECT streamer_id FROM public.campaign_memberships WHERE campaign_id = $1 AND status = 'ACTIVE'
                UNION
                SELECT s.id FROM public.campaigns c JOIN public.streamers s ON s.user_id = c.owner_id WHERE c.id = $1
            )
            SELECT m.poll_authorization_granted_at AS "granted_at?", m.poll_authorization_expires_at AS "expires_at?",
                   coalesce(s.user_id = c.owner_id, false) AS "is_game_master!",
                   coalesce(s.refresh_token_encrypted, '') <> '' AS "has_refresh_token!", "#,
            "FROM public.campaigns c
            CROSS JOIN needed
            JOIN public.streamers s ON s.id = needed.streamer_id
            LEFT JOIN token_refresh.streamers ours ON ours.streamer_id = s.id
            LEFT JOIN public.campaign_memberships m
                ON m.campaign_id = c.id AND m.streamer_id = s.id AND m.status = 'ACTIVE'
            WHERE c.id = $1 AND ($2::uuid IS NULL OR needed.streamer_id = $2)",
            campaign.0,
            only as Option<Uuid>
        )
        .fetch_all(self)
        .await?;
        let participants = rows.into_iter().map(|row| {
            let authorization = authorization(row.granted_at, row.expires_at);
            let (is_game_master, has_refresh_token) = (row.is_game_master, row.has_refresh_token);
            let State { streamer, is_active, token } = state_of!(row).at(now);
            Participant { streamer, is_active, is_game_master, authorization, has_refresh_token, token }
        });
        Ok(participants.collect())
    }

    /// The ids of all that the campaign needs, and which of them is the game master's own channel.
    async fn needed(&self, campaign: CampaignId) -> Result<Vec<(Uuid, bool)>, Error> {
        let rows = sqlx::query!(
            r#"
            SELECT id AS "id!", bool_or(is_game_master) AS "is_game_master!"
            FROM (
                SELECT streamer_id, false FROM public.campaign_memberships
                WHERE campaign_id = $1 AND status = 'ACTIVE'
                UNION ALL
                SELECT s.id, true FROM public.campaigns c JOIN public.streamers s ON s.user_id = c.owner_id
                WHERE c.id = $1
            ) AS needed (id, is_game_master)
            WHERE id IS NOT NULL
            GROUP BY id
            "#,
            campaign.0
        )
        .fetch_all(self)
        .await?;
        Ok(rows.into_iter().map(|row| (row.id, row.is_game_master)).collect())
    }
}

impl Memberships for PgStore {
    async fn membership(&self, key: MembershipKey) -> Result<Membership, MembershipError> {
        self.database.membership(key, self.clock.now()).await
    }

    async fn participants(&self, campaign: CampaignId) -> Result<Participants, MembershipError> {
        self.database.participants(campaign, self.clock.now()).await
    }

    async fn released(&self, ids: &[StreamerId], patience: TimeDelta) -> Result<bool, StoreError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        let give_up_at = Instant::now() + patience.to_std().unwrap_or_default();
        let mut pause = FIRST_LOOK_PAUSE;
        loop {
            let query = sqlx::query_scalar!(
                r#"
                SELECT EXISTS (SELECT FROM token_refresh.streamers
                               WHERE streamer_id = ANY($1) AND leased_until > $2)
                    -- As a claim finds out.
                    OR (SELECT count(*) FROM public.streamers WHERE id = ANY($1))
                        > (SELECT count(*) FROM (SELECT FROM public.streamers WHERE id = ANY($1)
                                                 FOR NO KEY UPDATE SKIP LOCKED) AS free) AS "taken!"
                "#,
                &ids,
                self.clock.now()
            );
            let taken =
                in_time("waiting for another run", async { query.fetch_one(&self.database).await }).await?;
            if !taken {
                return Ok(true);
            }
            if Instant::now() + pause >= give_up_at {
                return Ok(false);
            }
            sleep(pause).await;
            pause = (pause * 2).min(MAX_LOOK_PAUSE);
        }
    }
}

/// Writes the authorization that this attempt grants, if the membership allows it and the lease is still ours; and
/// remembers the session. In the transaction that writes the attempt; repeated, it writes the same.
pub(super) async fn grant(
    transaction: &mut Transaction<'_>,
    attempt: &Attempt,
) -> Result<Option<Authorization>, Error> {
    let Some(Grant { campaign, length }) = attempt.grants else { return Ok(None) };
    let authorization = Authorization::granted_for(length, attempt.ended_at);
    let granted = sqlx::query_scalar!(
        r#"
        WITH granted AS (
            UPDATE public.campaign_memberships m SET
                poll_authorization_granted_at = $4, poll_authorization_expires_at = $5, updated_at = $4
            FROM token_refresh.streamers ours
            WHERE m.campaign_id = $1 AND m.streamer_id = $2 AND m.status = 'ACTIVE'
              AND ours.streamer_id = m.streamer_id AND ours.fence = $3
            -- As the columns have it, which may be less exact than what they were given: it is by this that the session
            -- will be known again.
            RETURNING m.id, coalesce(m.poll_authorization_granted_at, $4) AS granted_at,
                      coalesce(m.poll_authorization_expires_at, $5) AS ends_at
        ),
        -- A session that this one replaces ends where it begins.
        replaced AS (
            UPDATE token_refresh.sessions s SET ends_at = granted.granted_at FROM granted
            WHERE s.membership_id = granted.id AND s.granted_at < granted.granted_at
              AND s.ends_at > granted.granted_at
        ),
        session AS (
            INSERT INTO token_refresh.sessions (membership_id, granted_at, streamer_id, campaign_id, ends_at)
            SELECT id, granted_at, $2, $1, ends_at FROM granted
            ON CONFLICT (membership_id, granted_at) DO UPDATE SET ends_at = excluded.ends_at
        )
        SELECT count(*) AS "granted!" FROM granted
        "#,
        campaign.0,
        attempt.lease.id.0,
        attempt.lease.fence,
        authorization.granted_at,
        Moment::from(authorization.expires_at) as Moment
    )
    .fetch_one(transaction)
    .await?;
    Ok((granted > 0).then_some(authorization))
}
