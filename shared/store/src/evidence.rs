//! What became of refreshes under one client id: what confirms refusals, and for how long there was nothing but them.

use chrono::{DateTime, TimeDelta, Utc};
use tokens_domain::evidence::History;
use tokens_domain::ports::StoreError;
use tokens_domain::{Streamer, StreamerId};
use uuid::Uuid;

use super::{Database, Moment, failed};

/// Refusals have stopped if the last is older than this: no streamer is due that is refused.
const LASTING: TimeDelta = TimeDelta::hours(1);

/// A streamer whose stored access token is another's, as Twitch says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misplaced {
    /// Who.
    pub streamer: Streamer,
    /// The other application's client id; `None`: it is another user's.
    pub other_client: Option<String>,
}

impl Database {
    /// The active streamers whose stored access token Twitch has called another application's than this one's, or another
    /// user's.
    pub async fn misplaced(&self, client_id: &str) -> Result<Vec<Misplaced>, StoreError> {
        let rows = sqlx::query!(
            r#"
            SELECT s.id, s.twitch_login AS login, s.twitch_display_name AS display_name,
                   CASE WHEN ours.pair_client_id <> $1 THEN ours.pair_client_id END AS other_client
            FROM token_refresh.streamers ours JOIN public.streamers s ON s.id = ours.streamer_id
            WHERE s.is_active AND ours.pair = sha256(convert_to(s.access_token_encrypted, 'UTF8'))
              AND (ours.pair_client_id <> $1 OR ours.pair_user_id <> s.twitch_user_id)
            ORDER BY s.twitch_login
            "#,
            client_id
        )
        .fetch_all(self)
        .await
        .map_err(failed("looking for tokens of others"))?;
        Ok(rows
            .into_iter()
            .map(|row| Misplaced {
                streamer: Streamer::new(StreamerId(row.id), &row.login, &row.display_name),
                other_client: row.other_client,
            })
            .collect())
    }

    /// The last success, the last one of another streamer, and two streamers that were refused since, if there are so many:
    /// more would confirm nothing else.
    pub(super) async fn history_under(&self, client_id: &str) -> Result<History, StoreError> {
        let rows = sqlx::query!(
            r#"
            WITH last AS (
                SELECT streamer_id, ended_at FROM token_refresh.refreshes
                WHERE outcome = 'refreshed' AND client_id = $1
                ORDER BY ended_at DESC LIMIT 1
            ),
            another AS (
                SELECT streamer_id, ended_at FROM token_refresh.refreshes
                WHERE outcome = 'refreshed' AND client_id = $1 AND streamer_id <> (SELECT streamer_id FROM last)
                ORDER BY ended_at DESC LIMIT 1
            ),
            first_refused AS (
                SELECT streamer_id, started_at FROM token_refresh.refreshes
                WHERE refused AND outcome = 'failed' AND client_id = $1
                  AND started_at > coalesce((SELECT ended_at FROM last), '-infinity')
                ORDER BY started_at LIMIT 1
            ),
            another_refused AS (
                SELECT streamer_id, started_at FROM token_refresh.refreshes
                WHERE refused AND outcome = 'failed' AND client_id = $1
                  AND started_at >= (SELECT started_at FROM first_refused)
                  AND streamer_id <> (SELECT streamer_id FROM first_refused)
                ORDER BY started_at LIMIT 1
            )
            SELECT streamer_id AS "streamer_id!", ended_at AS "at!: Moment", true AS "succeeded!" FROM last
            UNION ALL SELECT streamer_id, ended_at, true FROM another
            UNION ALL SELECT streamer_id, started_at, false FROM first_refused
            UNION ALL SELECT streamer_id, started_at, false FROM another_refused
            "#,
            client_id
        )
        .fetch_all(self)
        .await
        .map_err(failed("reading what became of the last refreshes"))?;
        let mut history = History::default();
        for row in rows {
            let Some(at) = row.at.known() else { continue };
            if row.succeeded {
                history.add_success(StreamerId(row.streamer_id), at);
            } else {
                history.add_refusal(StreamerId(row.streamer_id), at);
            }
        }
        Ok(history)
    }

    /// Three authorized streamers at most, without a failure and with a token that should live.
    pub(super) async fn healthy_except(
        &self,
        except: &[StreamerId],
        now: DateTime<Utc>,
    ) -> Result<Vec<StreamerId>, StoreError> {
        let except: Vec<Uuid> = except.iter().map(|id| id.0).collect();
        let ids = sqlx::query_scalar!(
            r#"
            SELECT held.streamer_id FROM public.campaign_memberships held
            JOIN public.streamers s ON s.id = held.streamer_id
            WHERE held.status = 'ACTIVE' AND held.poll_authorization_expires_at > $1
              AND s.is_active AND s.token_refresh_failed_at IS NULL AND s.token_expires_at > $1
              AND s.id <> ALL($2)
            ORDER BY held.poll_authorization_expires_at DESC LIMIT 3
            "#,
            now,
            &except
        )
        .fetch_all(self)
        .await
        .map_err(failed("looking for another streamer"))?;
        Ok(ids.into_iter().map(StreamerId).collect())
    }

    /// For how long Twitch has refused every refresh under this client id; zero if it does not now.
    pub async fn only_refused_for(
        &self,
        client_id: &str,
        now: DateTime<Utc>,
    ) -> Result<TimeDelta, StoreError> {
        let refused = sqlx::query!(
            r#"
            WITH last AS (
                SELECT max(ended_at) AS at FROM token_refresh.refreshes
                WHERE outcome = 'refreshed' AND client_id = $1
            )
            SELECT (SELECT started_at FROM token_refresh.refreshes
                    WHERE refused AND outcome = 'failed' AND client_id = $1
                      AND started_at > coalesce(last.at, '-infinity')
                    ORDER BY started_at LIMIT 1) AS "since: Moment",
                   (SELECT started_at FROM token_refresh.refreshes
                    WHERE refused AND outcome = 'failed' AND client_id = $1
                    ORDER BY started_at DESC LIMIT 1) AS "until: Moment"
            FROM last
            "#,
            client_id
        )
        .fetch_one(self)
        .await
        .map_err(failed("looking for how long Twitch has refused every refresh"))?;
        let lasts = refused.until.and_then(Moment::known).is_some_and(|until| now - until <= LASTING);
        Ok(refused
            .since
            .and_then(Moment::known)
            .filter(|_| lasts)
            .map_or(TimeDelta::zero(), |since| now - since))
    }
}
