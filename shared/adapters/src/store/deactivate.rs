//! Deactivations, one at a time under their budget.

use domain::policy::{BUDGET_PERIOD, deactivation_budget};
use domain::ports::{Attempt, Change, Deactivation};
use sqlx::Error;

use super::PgStore;

impl PgStore {
    /// The table's lock makes runs that deactivate at once count one after the other. Deactivations are rare.
    pub(super) async fn deactivate_within_budget(&self, attempt: &Attempt) -> Result<Deactivation, Error> {
        let Change::Deactivated { reason } = &attempt.change else { return Ok(Deactivation::Superseded) };
        let now = attempt.ended_at;
        let mut transaction = self.pool().begin().await?;
        sqlx::query!("LOCK TABLE token_refresh.deactivations IN SHARE ROW EXCLUSIVE MODE")
            .execute(&mut *transaction)
            .await?;
        let counts = sqlx::query!(
            r#"
            SELECT (SELECT count(*) FROM token_refresh.deactivations WHERE deactivated_at > $1) AS "recent!",
                   (SELECT count(DISTINCT m.streamer_id) FROM campaign_memberships m
                    JOIN streamers s ON s.id = m.streamer_id AND s.is_active
                    WHERE m.status = 'ACTIVE' AND m.poll_authorization_expires_at > $2) AS "authorized!"
            "#,
            now - BUDGET_PERIOD,
            now
        )
        .fetch_one(&mut *transaction)
        .await?;
        // Those deactivated lately were authorized when the hour began.
        let base = u64::try_from(counts.authorized + counts.recent).unwrap_or(0);
        if u64::try_from(counts.recent).unwrap_or(0) >= deactivation_budget(base) {
            return Ok(Deactivation::OverBudget);
        }
        let written = sqlx::query_scalar!(
            r#"
            WITH held AS (
                UPDATE token_refresh.streamers SET
                    leased_until = NULL, failed_at = NULL, failure_kind = NULL, refusals = 0
                WHERE streamer_id = $1 AND fence = $2
                RETURNING streamer_id
            ),
            written AS (
                UPDATE streamers s SET is_active = false, token_refresh_failed_at = NULL, updated_at = $4
                FROM held
                WHERE s.id = held.streamer_id AND s.refresh_token_encrypted IS NOT DISTINCT FROM $3
                RETURNING s.id
            ),
            counted AS (
                INSERT INTO token_refresh.deactivations (streamer_id, deactivated_at)
                SELECT id, $4 FROM written
            ),
            history AS (
                INSERT INTO token_refresh.refreshes (streamer_id, fence, trigger, started_at, ended_at,
                    outcome, reason, expires_before, expires_after)
                SELECT $1, $2, $5, $6, $4,
                       CASE WHEN EXISTS (SELECT FROM written) THEN 'deactivated' ELSE 'superseded' END, $7, $8, $8
                ON CONFLICT DO NOTHING
            )
            SELECT EXISTS (SELECT FROM written) AS "written!"
            "#,
            attempt.lease.id.0,
            attempt.lease.fence,
            attempt.lease.started_from,
            now,
            attempt.trigger.as_str(),
            attempt.started_at,
            reason,
            attempt.expires_before
        )
        .fetch_one(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(if written { Deactivation::Done } else { Deactivation::Superseded })
    }
}
