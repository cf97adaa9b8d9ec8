//! Undoing deactivations: an operator knows that the grants were not dead.

use chrono::{DateTime, Utc};
use sqlx::Error;
use tokens_domain::ports::{StoreError, StoreErrorKind};
use tokens_domain::{Streamer, StreamerId};
use uuid::Uuid;

use super::{Database, Moment, failed};

/// A streamer that is inactive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deactivated {
    /// The streamer.
    pub streamer: Streamer,
    /// When we last deactivated it; `None`: not in the last 30 days, or another program did.
    pub at: Option<DateTime<Utc>>,
}

/// The row of one. A name that is missing costs no listing.
struct Row {
    id: Uuid,
    login: Option<String>,
    display_name: Option<String>,
    at: Option<Moment>,
}

impl From<Row> for Deactivated {
    fn from(row: Row) -> Self {
        let unnamed = Streamer::unnamed(StreamerId(row.id));
        let login = row.login.unwrap_or(unnamed.login);
        let display_name = row.display_name.unwrap_or(unnamed.display_name);
        let streamer = Streamer::new(unnamed.id, login, display_name);
        Self { streamer, at: row.at.and_then(Moment::known) }
    }
}

/// What became of those that were to be active again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reactivated {
    /// They were inactive until now.
    pub active: Vec<StreamerId>,
    /// Their rows can't be written, and why.
    pub unwritable: Vec<(StreamerId, StoreError)>,
}

impl Database {
    /// Those that we deactivated from `since` on and that are inactive still, the latest first.
    pub async fn deactivated_since(&self, since: DateTime<Utc>) -> Result<Vec<Deactivated>, StoreError> {
        let rows = sqlx::query_as!(
            Row,
            r#"
            SELECT s.id, s.twitch_login AS "login?", s.twitch_display_name AS "display_name?",
                   max(d.deactivated_at) AS "at: Moment"
            FROM token_refresh.deactivations d JOIN public.streamers s ON s.id = d.streamer_id
            WHERE d.deactivated_at >= $1 AND NOT d.is_notice AND NOT s.is_active
            GROUP BY s.id ORDER BY max(d.deactivated_at) DESC, s.id
            "#,
            since
        );
        self.deactivated(async { rows.fetch_all(self).await }).await
    }

    /// All that are inactive: first those that we did not deactivate, then ours, the latest first.
    pub async fn inactive(&self) -> Result<Vec<Deactivated>, StoreError> {
        let rows = sqlx::query_as!(
            Row,
            r#"
            SELECT s.id, s.twitch_login AS "login?", s.twitch_display_name AS "display_name?",
                   max(d.deactivated_at) AS "at: Moment"
            FROM public.streamers s
            LEFT JOIN token_refresh.deactivations d ON d.streamer_id = s.id AND NOT d.is_notice
            WHERE NOT s.is_active
            GROUP BY s.id ORDER BY max(d.deactivated_at) DESC NULLS FIRST, s.id
            "#
        );
        self.deactivated(async { rows.fetch_all(self).await }).await
    }

    async fn deactivated(
        &self,
        rows: impl Future<Output = Result<Vec<Row>, Error>>,
    ) -> Result<Vec<Deactivated>, StoreError> {
        let rows = rows.await.map_err(failed("reading the deactivations"))?;
        if rows.is_empty() {
            self.look_at_nothing().await?;
        }
        Ok(rows.into_iter().map(Deactivated::from).collect())
    }

    /// When we last deactivated this streamer; `None`: not in the last 30 days.
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

    /// Makes these streamers active again.
    pub async fn reactivate(
        &self,
        ids: &[StreamerId],
        now: DateTime<Utc>,
    ) -> Result<Reactivated, StoreError> {
        let doing = failed("reactivating streamers");
        let rows = ids.iter().map(|id| id.0).collect();
        let reactivate = |part: Vec<Uuid>| async move { self.reactivate_all(&part, now).await };
        let parts = self.in_parts(rows, || false, reactivate).await.map_err(&doing)?;
        let active: Vec<_> = parts.done.into_iter().flatten().map(StreamerId).collect();
        if active.is_empty() {
            self.look_at_unleased(ids).await?;
        }
        let failed = parts.failed.into_iter().map(|(id, error)| (StreamerId(id), doing(error)));
        let locked = parts.locked.into_iter().map(|id| {
            let text = "another transaction has locked its row".to_owned();
            (StreamerId(id), StoreError::new(StoreErrorKind::Row, text))
        });
        Ok(Reactivated { active, unwritable: failed.chain(locked).collect() })
    }

    /// Forgets their failures as well, and settles the notifications about them that still wait. Answers with those that were
    /// inactive until now. A lease is left alone; its result is that of an attempt that began before and is judged by itself.
    async fn reactivate_all(&self, ids: &[Uuid], now: DateTime<Utc>) -> Result<Vec<Uuid>, Error> {
        sqlx::query_scalar!(
            r#"
            WITH ours AS (
                SELECT streamer_id FROM token_refresh.streamers WHERE streamer_id = ANY($1)
                ORDER BY streamer_id FOR UPDATE
            ),
            -- An aggregate, so that all of ours are locked before the first streamer is, as where results are written.
            known AS (SELECT count(*) FROM ours),
            locked AS (
                SELECT s.id FROM known CROSS JOIN public.streamers s WHERE s.id = ANY($1) AND NOT s.is_active
                ORDER BY s.id FOR NO KEY UPDATE OF s
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
            ids,
            now
        )
        .fetch_all(self)
        .await
    }
}
