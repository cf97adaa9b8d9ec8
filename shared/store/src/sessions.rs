//! Sessions, remembered: a membership of the application holds only its latest grant, which its backend overwrites
//! and takes away. Written only on changes; nothing of the application's is touched.

use chrono::{DateTime, Utc};
use tokens_domain::ports::StoreError;

use super::{Database, failed};

impl Database {
    /// Remembers the sessions that run now, with their ends, and ends those that no longer do: revoked, granted again,
    /// the membership removed, or the streamer inactive. What begins and ends between two calls is never seen.
    ///
    /// Answers how many rows it wrote; none if nothing changed.
    pub async fn remember_sessions(&self, now: DateTime<Utc>) -> Result<u64, StoreError> {
        // What is remembered already is left out rather than met as a conflict, which would lock and so write it. In
        // the order of the key, so that two runs never wait for each other in a ring; of what another run is
        // ending, we keep away.
        //
        // The planner may take the sessions that run for next to none, and those that changed for all of them. So what
        // changed is found by `EXCEPT`, which costs no more than to read both sides whatever their size, and what is
        // looked up by its key says so with `LIMIT 1`: a join could compare all with all, or read a whole table.
        let written = sqlx::query_scalar!(
            r#"
            WITH running AS (
                SELECT m.id AS membership_id, m.streamer_id, m.campaign_id, m.poll_authorization_expires_at AS ends_at,
                       -- An authorization holds for 12 hours, where the time of the grant was not written.
                       coalesce(m.poll_authorization_granted_at,
                                m.poll_authorization_expires_at - interval '12 hours') AS granted_at
                FROM public.campaign_memberships m
                CROSS JOIN LATERAL (SELECT FROM public.streamers WHERE id = m.streamer_id AND is_active LIMIT 1) s
                WHERE m.status = 'ACTIVE' AND m.poll_authorization_expires_at > $1 AND m.campaign_id IS NOT NULL
            ),
            known AS (
                SELECT membership_id, granted_at, streamer_id, campaign_id, ends_at
                FROM token_refresh.sessions WHERE ends_at > $1
            ),
            remembered AS (
                INSERT INTO token_refresh.sessions AS stored
                    (membership_id, granted_at, streamer_id, campaign_id, ends_at)
                SELECT membership_id, granted_at, streamer_id, campaign_id, ends_at
                FROM running WHERE granted_at < ends_at
                EXCEPT
                SELECT membership_id, granted_at, streamer_id, campaign_id, ends_at FROM known
                ORDER BY membership_id
                ON CONFLICT (membership_id, granted_at) DO UPDATE SET ends_at = excluded.ends_at
                    WHERE stored.ends_at <> excluded.ends_at
                RETURNING 1
            ),
            changed AS (
                SELECT membership_id, granted_at FROM known
                EXCEPT
                SELECT membership_id, granted_at FROM running
            ),
            over AS (
                SELECT stored.*,
                       -- As exactly as the membership still tells.
                       greatest(stored.granted_at, least($1, CASE
                           WHEN m.poll_authorization_granted_at > stored.granted_at
                               THEN m.poll_authorization_granted_at
                           ELSE m.poll_authorization_expires_at END)) AS ended_at
                FROM changed
                CROSS JOIN LATERAL (
                    SELECT membership_id, granted_at, streamer_id, campaign_id FROM token_refresh.sessions
                    WHERE membership_id = changed.membership_id AND granted_at = changed.granted_at AND ends_at > $1
                    LIMIT 1 FOR UPDATE SKIP LOCKED
                ) stored
                LEFT JOIN LATERAL (
                    SELECT poll_authorization_granted_at, poll_authorization_expires_at
                    FROM public.campaign_memberships WHERE id = changed.membership_id LIMIT 1
                ) m ON true
            ),
            -- An update that finds its rows by their key: all of them are there, and none is among those above.
            ended AS (
                INSERT INTO token_refresh.sessions (membership_id, granted_at, streamer_id, campaign_id, ends_at)
                SELECT membership_id, granted_at, streamer_id, campaign_id, ended_at FROM over
                ON CONFLICT (membership_id, granted_at) DO UPDATE SET ends_at = excluded.ends_at
                RETURNING 1
            )
            SELECT (SELECT count(*) FROM remembered) + (SELECT count(*) FROM ended) AS "written!"
            "#,
            now
        )
        .fetch_one(self)
        .await
        .map_err(failed("remembering the sessions"))?;
        Ok(u64::try_from(written).unwrap_or(0))
    }
}
