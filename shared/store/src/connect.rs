//! A channel that has connected: its first pair, or a new one in place of that which is stored.

use chrono::{DateTime, Utc};
use sqlx::Error;
use tokens_domain::attempt::{Attempt, Resolution, Stored};
use tokens_domain::ports::{Expiry, Lease, PairMemory, StoreError};
use tokens_domain::refresh::MAX_CALL;
use tokens_domain::schedule::Trigger;
use tokens_domain::{Caller, Streamer, StreamerId, TokenPair};

use super::record::write;
use super::{Database, Moment, PgStore, failed};

/// A channel that has connected, as Twitch says.
#[derive(Clone, Debug)]
pub struct Channel {
    /// The Twitch user's id.
    pub user_id: String,
    /// Its login, which is its display name as well until the application knows better.
    pub login: String,
    /// What its pair is good for.
    pub scopes: Vec<String>,
    /// The application that the pair was issued to.
    pub client_id: String,
    /// The pair.
    pub pair: TokenPair,
    /// When its access token expires.
    pub expiry: Option<Expiry>,
    /// When Twitch gave it.
    pub connected_at: DateTime<Utc>,
}

/// A channel whose pair is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connected {
    /// The streamer.
    pub id: StreamerId,
    /// Whether there was no row of it before.
    pub is_new: bool,
}

impl PgStore {
    /// Stores the pair of a channel that has connected: under the lease of the row that this Twitch user has, or in a new
    /// row. The streamer is active afterwards, and its failures are forgotten. `None`: another run holds the lease.
    ///
    /// All of it is one transaction, so that no lease is left behind.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn connect(&self, channel: &Channel, caller: &Caller) -> Result<Option<Connected>, StoreError> {
        self.connect_in_transaction(channel, caller).await.map_err(failed("storing a new pair"))
    }

    async fn connect_in_transaction(
        &self,
        channel: &Channel,
        caller: &Caller,
    ) -> Result<Option<Connected>, Error> {
        let now = self.clock.now();
        let mut transaction = self.database.transaction().await?;
        let inserted = sqlx::query_scalar!(
            "INSERT INTO public.streamers (twitch_user_id, twitch_login, twitch_display_name, created_at, updated_at)
             VALUES ($1, $2, $2, $3, $3) ON CONFLICT (twitch_user_id) DO NOTHING RETURNING id",
            channel.user_id,
            channel.login,
            now
        )
        .fetch_optional(&mut transaction)
        .await?;
        // As where a cycle takes its leases, but active or not.
        let lease = sqlx::query!(
            r#"
            INSERT INTO token_refresh.streamers AS ours (streamer_id, fence, leased_until)
            SELECT s.id,
                   coalesce((SELECT max(past.fence) FROM token_refresh.refreshes past WHERE past.streamer_id = s.id), 0) + 1,
                   $3
            FROM public.streamers s WHERE s.twitch_user_id = $1
            ON CONFLICT (streamer_id) DO UPDATE SET fence = ours.fence + 1, leased_until = $3
                WHERE ours.leased_until IS NULL OR ours.leased_until <= $2
            RETURNING streamer_id, fence
            "#,
            channel.user_id,
            now,
            now + MAX_CALL
        )
        .fetch_optional(&mut transaction)
        .await?;
        let Some(lease) = lease else {
            transaction.rollback().await?;
            return Ok(None);
        };
        let id = StreamerId(lease.streamer_id);
        // After the lease: what its holder before us has committed is seen.
        let stored = sqlx::query!(
            "SELECT twitch_display_name AS display_name, refresh_token_encrypted, token_expires_at
             FROM public.streamers WHERE id = $1 FOR NO KEY UPDATE",
            id.0
        )
        .fetch_one(&mut transaction)
        .await?;
        let attempt = Attempt {
            streamer: Streamer::new(id, &channel.login, &stored.display_name),
            lease: Lease {
                id,
                fence: lease.fence,
                until: now + MAX_CALL,
                held_until: self.clock.monotonic() + MAX_CALL,
                started_from: stored.refresh_token_encrypted,
                pair: None,
            },
            trigger: Trigger::Command,
            started_at: channel.connected_at,
            ended_at: now,
            expires_before: stored.token_expires_at.and_then(Moment::known),
            caller: Some(caller.clone()),
            grants: None,
            client_id: channel.client_id.clone(),
            resolution: Resolution::Refreshed {
                pair: channel.pair.clone(),
                memory: PairMemory {
                    expiry: channel.expiry,
                    rejected_at: None,
                    client_id: Some(channel.client_id.clone()),
                    user_id: Some(channel.user_id.clone()),
                },
                unusable: None,
            },
        };
        let written = write(&mut transaction, &self.columns(&[&attempt])?).await?;
        if written.recorded.first() != Some(&Stored::Written) {
            transaction.rollback().await?;
            return Ok(None);
        }
        sqlx::query!(
            r#"
            WITH connected AS (
                UPDATE public.streamers SET is_active = true, scopes = to_jsonb($2::text[]), twitch_login = $3, updated_at = $4
                WHERE id = $1
            )
            UPDATE token_refresh.outbox SET
                state = 'obsolete', settled_at = $4, last_error = 'the streamer has connected again'
            WHERE streamer_id = $1 AND state = 'pending'
            "#,
            id.0,
            &channel.scopes,
            channel.login,
            now
        )
        .execute(&mut transaction)
        .await?;
        transaction.commit().await?;
        Ok(Some(Connected { id, is_new: inserted.is_some() }))
    }
}

impl Database {
    /// The streamers with this login. It is that of the last time they connected, so that two can have the same.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn with_login(&self, login: &str) -> Result<Vec<StreamerId>, StoreError> {
        let ids = sqlx::query_scalar!(
            "SELECT id FROM public.streamers WHERE lower(twitch_login) = lower($1)",
            login
        )
        .fetch_all(self)
        .await
        .map_err(failed("reading streamers by their login"))?;
        if ids.is_empty() {
            self.look_at_nothing().await?;
        }
        Ok(ids.into_iter().map(StreamerId).collect())
    }
}
