//! Undoing deactivations: what a human decides who knows that the grants were not dead.

use chrono::{DateTime, Utc};
use domain::ports::StoreError;
use domain::{Streamer, StreamerId};
use uuid::Uuid;

use super::{Database, Moment, failed};

/// Somebody who was deactivated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deactivated {
    /// Who.
    pub streamer: Streamer,
    /// The last time by us; `None`: not in the last 30 days, or by somebody else.
    pub at: Option<DateTime<Utc>>,
}

impl Database {
    /// Those whom we deactivated from `since` on and who are inactive still, the latest first.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn deactivated_since(&self, since: DateTime<Utc>) -> Result<Vec<Deactivated>, StoreError> {
        let rows = sqlx::query!(
            r#"
            SELECT s.id, s.twitch_login AS login, s.twitch_display_name AS display_name,
                   max(d.deactivated_at) AS "at!: Moment"
            FROM token_refresh.deactivations d JOIN public.streamers s ON s.id = d.streamer_id
            WHERE d.deactivated_at >= $1 AND NOT d.is_notice AND NOT s.is_active
            GROUP BY s.id ORDER BY max(d.deactivated_at) DESC, s.id
            "#,
            since
        )
        .fetch_all(self)
        .await
        .map_err(failed("reading the deactivations"))?;
        if rows.is_empty() {
            self.look_at_nothing().await?;
        }
        Ok(rows
            .into_iter()
            .map(|row| Deactivated {
                streamer: Streamer {
                    id: StreamerId(row.id),
                    login: row.login,
                    display_name: row.display_name,
                },
                at: row.at.known(),
            })
            .collect())
    }

    /// When we last deactivated this streamer; `None`: not in the last 30 days.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn deactivated_at(&self, id: StreamerId) -> Result<Option<DateTime<Utc>>, StoreError> {
        sqlx::query_scalar!(
            r#"
            SELECT max(deactivated_at) AS "at: Moment" FROM token_refresh.deactivations
            WHERE streamer_id = $1 AND NOT is_notice
            "#,
            id.0
        )
        .fetch_one(self)
        .await
        .map(|at| at.and_then(Moment::known))
        .map_err(failed("reading the deactivations"))
    }

    /// Makes these streamers active again, forgets their failures, and settles the notifications about them that
    /// still wait. Answers those who were inactive until now. A lease that somebody holds is left alone; its result
    /// is that of an attempt that began before and is judged by itself.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn reactivate(
        &self,
        ids: &[StreamerId],
        now: DateTime<Utc>,
    ) -> Result<Vec<StreamerId>, StoreError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        let reactivated = sqlx::query_scalar!(
            r#"
            WITH ours AS ( -- locked before the streamer, as whoever writes a result does
                SELECT streamer_id FROM token_refresh.streamers WHERE streamer_id = ANY($1)
                ORDER BY streamer_id FOR UPDATE
            ),
            locked AS (
                SELECT s.id FROM public.streamers s WHERE s.id = ANY($1) AND NOT s.is_active
                  AND (SELECT count(*) FROM ours) >= 0 -- true; reading it first locks it first
                ORDER BY s.id FOR NO KEY UPDATE
            ),
            written AS (
                UPDATE public.streamers s SET is_active = true, token_refresh_failed_at = NULL, updated_at = $2
                FROM locked WHERE s.id = locked.id
                RETURNING s.id
            ),
            forgotten AS (
                UPDATE token_refresh.streamers o SET
                    failed_at = NULL, failure_kind = NULL, refusals = 0, refused_since = NULL, noticed_at = NULL
                FROM written WHERE o.streamer_id = written.id
            ),
            settled AS (
                UPDATE token_refresh.outbox o SET
                    state = 'obsolete', settled_at = $2, last_error = 'the streamer was reactivated'
                FROM written WHERE o.streamer_id = written.id AND o.state = 'pending'
            )
            SELECT id FROM written
            "#,
            &ids,
            now
        )
        .fetch_all(self)
        .await
        .map_err(failed("reactivating streamers"))?;
        if reactivated.is_empty() {
            let ids: Vec<_> = ids.into_iter().map(StreamerId).collect();
            self.look_at_unleased(&ids).await?;
        }
        Ok(reactivated.into_iter().map(StreamerId).collect())
    }
}
