//! Deactivations, one at a time under their budget.

use domain::policy::{BUDGET_PERIOD, deactivation_budget};
use domain::ports::{Attempt, Change, Deactivation};
use sqlx::Error;

use super::PgStore;

impl PgStore {
    /// The table's lock makes runs that deactivate at once count one after the other. Deactivations are rare.
    ///
    /// Repeated after its answer was lost, it finds the streamer inactive and says that it was superseded.
    pub(super) async fn deactivate_within_budget(&self, attempt: &Attempt) -> Result<Deactivation, Error> {
        let Change::Deactivated { reason, expires_at } = &attempt.change else {
            return Ok(Deactivation::Superseded);
        };
        let now = attempt.ended_at;
        let mut transaction = self.pool().begin().await?;
        sqlx::query!("LOCK TABLE token_refresh.deactivations IN SHARE ROW EXCLUSIVE MODE")
            .execute(&mut *transaction)
            .await?;
        let counts = sqlx::query!(
            r#"
            SELECT (SELECT count(*) FROM token_refresh.deactivations WHERE deactivated_at > $1) AS "recent!",
                   -- Those deactivated lately are among them, as they were when the hour began.
                   (SELECT count(DISTINCT streamer_id) FROM campaign_memberships
                    WHERE status = 'ACTIVE' AND poll_authorization_expires_at > $2) AS "authorized!"
            "#,
            now - BUDGET_PERIOD,
            now
        )
        .fetch_one(&mut *transaction)
        .await?;
        let budget = deactivation_budget(u64::try_from(counts.authorized).unwrap_or(0));
        if u64::try_from(counts.recent).unwrap_or(0) >= budget {
            return Ok(Deactivation::OverBudget);
        }
        let written = sqlx::query_scalar!(
            r#"
            WITH held AS (
                SELECT streamer_id FROM token_refresh.streamers WHERE streamer_id = $1 AND fence = $2 FOR UPDATE
            ),
            written AS (
                UPDATE streamers s SET
                    is_active = false, token_refresh_failed_at = NULL, token_expires_at = $9, updated_at = $4
                FROM held
                WHERE s.id = held.streamer_id AND s.is_active
                  AND s.refresh_token_encrypted IS NOT DISTINCT FROM $3
                RETURNING s.id
            ),
            remembered AS (
                UPDATE token_refresh.streamers ours SET
                    leased_until = NULL,
                    failed_at = CASE WHEN written.id IS NULL THEN ours.failed_at END,
                    failure_kind = CASE WHEN written.id IS NULL THEN ours.failure_kind END,
                    refusals = CASE WHEN written.id IS NULL THEN ours.refusals ELSE 0 END
                FROM held LEFT JOIN written ON written.id = held.streamer_id
                WHERE ours.streamer_id = held.streamer_id
            ),
            counted AS (
                INSERT INTO token_refresh.deactivations (streamer_id, deactivated_at)
                SELECT id, $4 FROM written
            ),
            history AS (
                INSERT INTO token_refresh.refreshes (streamer_id, fence, trigger, started_at, ended_at,
                    outcome, reason, expires_before, expires_after)
                SELECT $1, $2, $5, $6, $4,
                       CASE WHEN EXISTS (SELECT FROM written) THEN 'deactivated' ELSE 'superseded' END, $7, $8, $9
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
            attempt.expires_before,
            *expires_at
        )
        .fetch_one(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(if written { Deactivation::Done(Vec::new()) } else { Deactivation::Superseded })
    }
}
