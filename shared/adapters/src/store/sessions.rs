//! Sessions, remembered: a membership of the application holds only its latest grant, which its backend overwrites
//! and takes away. Written only on changes; nothing of the application's is touched.

use chrono::{DateTime, Utc};
use domain::ports::StoreError;

use super::{Database, failed};

impl Database {
    /// Remembers the sessions that run now, with their ends, and ends those that no longer do: revoked, granted anew,
    /// the membership removed, or the streamer inactive. What begins and ends between two calls is never seen.
    ///
    /// Answers how many rows it wrote; none if nothing changed.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn remember_sessions(&self, now: DateTime<Utc>) -> Result<u64, StoreError> {
        // What is remembered already is left out rather than met as a conflict, which would lock and so write it. In
        // the order of the key, so that two runs never wait for each other in a ring; of what another run is
        // ending, we keep away.
        let written = sqlx::query_scalar!(
            r#"
            WITH running AS (
                SELECT m.id AS membership_id, m.streamer_id, m.campaign_id, m.poll_authorization_expires_at AS ends_at,
                       -- An authorization holds for 12 hours, should nobody have written when it was granted.
                       coalesce(m.poll_authorization_granted_at,
                                m.poll_authorization_expires_at - interval '12 hours') AS granted_at
                FROM campaign_memberships m
                JOIN streamers s ON s.id = m.streamer_id AND s.is_active
                WHERE m.status = 'ACTIVE' AND m.poll_authorization_expires_at > $1 AND m.campaign_id IS NOT NULL
            ),
            remembered AS (
                INSERT INTO token_refresh.sessions AS known
                    (membership_id, granted_at, streamer_id, campaign_id, ends_at)
                SELECT membership_id, granted_at, streamer_id, campaign_id, ends_at
                FROM running
                WHERE granted_at < ends_at
                  AND NOT EXISTS (
                      SELECT FROM token_refresh.sessions same
                      WHERE same.membership_id = running.membership_id AND same.granted_at = running.granted_at
                        AND same.ends_at = running.ends_at)
                ORDER BY membership_id
                ON CONFLICT (membership_id, granted_at) DO UPDATE SET ends_at = excluded.ends_at
                    WHERE known.ends_at <> excluded.ends_at
                RETURNING 1
            ),
            -- Looked up by key rather than compared with those above, of which the planner may expect next to none.
            over AS (
                SELECT known.membership_id, known.granted_at,
                       -- As exactly as the membership still tells.
                       greatest(known.granted_at, least($1, CASE
                           WHEN m.poll_authorization_granted_at > known.granted_at
                               THEN m.poll_authorization_granted_at
                           ELSE m.poll_authorization_expires_at END)) AS ended_at
                FROM token_refresh.sessions known
                LEFT JOIN campaign_memberships m ON m.id = known.membership_id
                LEFT JOIN streamers s ON s.id = m.streamer_id
                WHERE known.ends_at > $1
                  AND (m.status = 'ACTIVE' AND s.is_active AND m.poll_authorization_expires_at > $1
                       AND known.granted_at = coalesce(m.poll_authorization_granted_at,
                                                       m.poll_authorization_expires_at - interval '12 hours'))
                      IS NOT TRUE
                FOR UPDATE OF known SKIP LOCKED
            ),
            ended AS (
                UPDATE token_refresh.sessions known SET ends_at = over.ended_at
                FROM over
                WHERE known.membership_id = over.membership_id AND known.granted_at = over.granted_at
                RETURNING 1
            )
            SELECT (SELECT count(*) FROM remembered) + (SELECT count(*) FROM ended) AS "written!"
            "#,
            now
        )
        .fetch_one(&self.pool)
        .await
        .map_err(failed("remembering the sessions"))?;
        Ok(u64::try_from(written).unwrap_or(0))
    }
}
