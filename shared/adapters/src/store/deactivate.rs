//! Deactivations, one run at a time under their budget, with the notifications that follow from them.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use domain::CampaignId;
use domain::StreamerId;
use domain::notification::{Recipient, Told};
use domain::policy::{BUDGET_PERIOD, deactivation_budget};
use domain::ports::{Attempt, Change, Deactivation};
use sqlx::Error;
use uuid::Uuid;

use super::PgStore;
use super::statements::Transaction;

impl PgStore {
    /// The table's lock makes runs that deactivate at once count one after the other: as many streamers as the budget
    /// allows in one transaction, which counts once.
    ///
    /// Repeated after its answer was lost, it knows its own deactivations by the history, changes nothing more and
    /// answers the same.
    pub(super) async fn deactivate_within_budget(
        &self,
        attempts: &[Attempt],
    ) -> Result<Vec<Deactivation>, Error> {
        let mut transaction = self.database.transaction().await?;
        sqlx::query!("LOCK TABLE token_refresh.deactivations IN SHARE ROW EXCLUSIVE MODE")
            .execute(&mut transaction)
            .await?;
        let repeated = repeated(&mut transaction, attempts).await?;
        let mut left = budget_left(&mut transaction, self.clock.now()).await?;
        let mut done = vec![Deactivation::Superseded; attempts.len()];
        // In the order of the ids, as a claim locks them: nobody waits for another in a ring.
        let mut ordered: Vec<_> = attempts.iter().zip(&mut done).collect();
        ordered.sort_unstable_by_key(|(attempt, _)| attempt.lease.id.0);
        for (attempt, done) in ordered {
            let id = attempt.lease.id;
            *done = if repeated.contains(&id) {
                Deactivation::Done(tell(&mut transaction, id, attempt.ended_at, false).await?)
            } else if left == 0 {
                Deactivation::OverBudget
            } else if deactivate(&mut transaction, attempt).await? {
                left -= 1;
                Deactivation::Done(tell(&mut transaction, id, attempt.ended_at, true).await?)
            } else {
                Deactivation::Superseded
            };
        }
        transaction.commit().await?;
        Ok(done)
    }
}

/// Those of these whose deactivation is there already.
async fn repeated(
    transaction: &mut Transaction<'_>,
    attempts: &[Attempt],
) -> Result<HashSet<StreamerId>, Error> {
    let (ids, fences): (Vec<Uuid>, Vec<i64>) =
        attempts.iter().map(|attempt| (attempt.lease.id.0, attempt.lease.fence)).unzip();
    let repeated = sqlx::query_scalar!(
        r#"
        SELECT streamer_id FROM unnest($1::uuid[], $2::bigint[]) AS tried (id, fence)
        JOIN token_refresh.refreshes r ON r.streamer_id = tried.id AND r.fence = tried.fence
        WHERE r.outcome = 'deactivated'
        "#,
        &ids,
        &fences
    )
    .fetch_all(transaction)
    .await?;
    Ok(repeated.into_iter().map(StreamerId).collect())
}

/// How many more may be deactivated now.
async fn budget_left(transaction: &mut Transaction<'_>, now: DateTime<Utc>) -> Result<u64, Error> {
    let counts = sqlx::query!(
        r#"
        WITH recent AS (SELECT streamer_id FROM token_refresh.deactivations WHERE deactivated_at > $1)
        SELECT (SELECT count(*) FROM recent) AS "recent!",
               -- With those who were deactivated within the hour: each deactivation would make the budget smaller.
               (SELECT count(*) FROM (
                    SELECT m.streamer_id
                    FROM public.campaign_memberships m JOIN public.streamers s ON s.id = m.streamer_id AND s.is_active
                    WHERE m.status = 'ACTIVE' AND m.poll_authorization_expires_at > $2
                    UNION SELECT streamer_id FROM recent) AS one) AS "authorized!"
        "#,
        now - BUDGET_PERIOD,
        now
    )
    .fetch_one(transaction)
    .await?;
    let budget = deactivation_budget(u64::try_from(counts.authorized).unwrap_or(0));
    Ok(budget.saturating_sub(u64::try_from(counts.recent).unwrap_or(0)))
}

/// Deactivates the streamer, if the lease and the tokens are those of the attempt; whether that is so.
async fn deactivate(transaction: &mut Transaction<'_>, attempt: &Attempt) -> Result<bool, Error> {
    let Change::Deactivated { reason, expires_at } = &attempt.change else { return Ok(false) };
    sqlx::query_scalar!(
            r#"
            WITH held AS (
                SELECT streamer_id FROM token_refresh.streamers WHERE streamer_id = $1 AND fence = $2 FOR UPDATE
            ),
            written AS (
                UPDATE public.streamers s SET
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
                    outcome, reason, expires_before, expires_after, caller)
                SELECT $1, $2, $5, $6, $4,
                       CASE WHEN EXISTS (SELECT FROM written) THEN 'deactivated' ELSE 'superseded' END, $7, $8, $9, $10
                ON CONFLICT DO NOTHING
            )
            SELECT EXISTS (SELECT FROM written) AS "written!"
            "#,
            attempt.lease.id.0,
            attempt.lease.fence,
            attempt.lease.started_from,
            attempt.ended_at,
            attempt.trigger.as_str(),
            attempt.started_at,
            reason,
            attempt.expires_before,
            *expires_at,
            attempt.caller.as_ref().map(|caller| caller.0.as_str())
        )
        .fetch_one(transaction)
        .await
}

/// Whom a deactivation concerns: the streamer, and the owner of each campaign in which the streamer is active, but
/// for the streamer's own campaigns: what has to be done is said once. If `queue`, it also puts a notification for
/// each device of those who want one into the outbox, in place of any that still wait there.
async fn tell(
    transaction: &mut Transaction<'_>,
    streamer: StreamerId,
    now: DateTime<Utc>,
    queue: bool,
) -> Result<Vec<Told>, Error> {
    let rows = sqlx::query!(
        r#"
        WITH person AS (
            SELECT u.id AS user_id, u.display_name AS user_name, NULL::uuid AS campaign_id, NULL::text AS campaign_name
            FROM public.streamers s JOIN public.users u ON u.id = s.user_id WHERE s.id = $1
            UNION ALL
            SELECT u.id, u.display_name, c.id, c.name
            FROM public.streamers s
            JOIN public.campaign_memberships m ON m.streamer_id = s.id AND m.status = 'ACTIVE'
            JOIN public.campaigns c ON c.id = m.campaign_id AND c.owner_id IS DISTINCT FROM s.user_id
            JOIN public.users u ON u.id = c.owner_id
            WHERE s.id = $1
        ),
        device AS (
            SELECT person.*, p.id AS subscription_id
            FROM person JOIN public.push_subscriptions p ON p.user_id = person.user_id
            WHERE token_refresh.wants_notice(person.user_id)
        ),
        replaced AS (
            UPDATE token_refresh.outbox SET state = 'obsolete', settled_at = $2, last_error = 'deactivated anew'
            WHERE $3 AND streamer_id = $1 AND state = 'pending'
        ),
        queued AS (
            INSERT INTO token_refresh.outbox (subscription_id, user_id, user_name, streamer_id, streamer_name,
                campaign_id, campaign_name, created_at, next_attempt_at)
            SELECT d.subscription_id, d.user_id, d.user_name, s.id, s.twitch_display_name,
                   d.campaign_id, d.campaign_name, $2, $2
            FROM device d JOIN public.streamers s ON s.id = $1
            WHERE $3
        )
        SELECT person.user_name AS "name!", person.campaign_id, person.campaign_name,
               (SELECT count(*) FROM device d WHERE d.user_id = person.user_id
                    AND d.campaign_id IS NOT DISTINCT FROM person.campaign_id) AS "devices!"
        FROM person
        ORDER BY person.campaign_id IS NOT NULL, person.campaign_name, person.campaign_id
        "#,
        streamer.0,
        now,
        queue
    )
    .fetch_all(transaction)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Told {
            name: row.name,
            recipient: recipient(row.campaign_id.map(CampaignId), row.campaign_name),
            devices: row.devices.try_into().unwrap_or(u32::MAX),
        })
        .collect())
}

/// As the outbox has it: no campaign means that it is for the streamer.
pub(super) fn recipient(campaign: Option<CampaignId>, name: Option<String>) -> Recipient {
    match campaign {
        Some(campaign) => Recipient::GameMaster { campaign, name: name.unwrap_or_default() },
        None => Recipient::Streamer,
    }
}
