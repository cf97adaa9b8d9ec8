//! Deactivations, one run at a time under their budget, with the notifications that follow from them.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use sqlx::Error;
use tokens_domain::StreamerId;
use tokens_domain::attempt::{Attempt, Resolution, Stored};
use tokens_domain::notification::{Campaigns, DEVICES_OF_A_PERSON, NAMED_CAMPAIGNS, Recipient, Role};
use tokens_domain::policy::{BUDGET_PERIOD, deactivation_budget};
use tokens_domain::{CampaignId, plain};
use uuid::Uuid;

use super::statements::{OfRow, Transaction};
use super::{PgStore, failed};

impl PgStore {
    /// As many streamers as the budget allows in one transaction, which counts once.
    ///
    /// Repeated after its answer was lost, it knows its own deactivations by the history, changes nothing more and
    /// answers the same.
    pub(super) async fn deactivate_within_budget(&self, attempts: &[Attempt]) -> Result<Vec<Stored>, Error> {
        let (mut transaction, mut left) = self.turn().await?;
        let repeated = repeated(&mut transaction, attempts).await?;
        let mut done = vec![Stored::Superseded; attempts.len()];
        for (attempt, done) in in_order(attempts, &mut done) {
            let id = attempt.lease.id;
            *done = if repeated.contains(&id) {
                Stored::Deactivated(notify(&mut transaction, id, attempt.ended_at, Queue::Nothing).await?)
            } else if left == 0 {
                Stored::OverBudget
            } else {
                // If its row can't be written, the others are.
                transaction.begin_row().await?;
                let done = deactivate_and_notify(&mut transaction, attempt).await;
                match transaction.end_row(done).await? {
                    OfRow::Done(done) => {
                        left -= u64::from(matches!(done, Stored::Deactivated(_)));
                        done
                    }
                    OfRow::Failed(error) => Stored::Refused(failed("deactivating a streamer")(error)),
                }
            };
        }
        transaction.commit().await?;
        self.look_at_unnotified(&done).await;
        Ok(done)
    }

    /// Counted as a deactivation is, so that a fault of Twitch's notifies no more people than it could deactivate.
    ///
    /// Repeated after its answer was lost, it knows its own notices by their time.
    pub(super) async fn notice_within_budget(
        &self,
        attempts: &[Attempt],
    ) -> Result<Vec<Option<Vec<Recipient>>>, Error> {
        let (mut transaction, mut left) = self.turn().await?;
        let mut done = vec![None; attempts.len()];
        for (attempt, done) in in_order(attempts, &mut done) {
            let (id, at) = (attempt.lease.id, attempt.ended_at);
            let queue = match noticed(&mut transaction, attempt, left > 0).await? {
                Noticed::Now => {
                    left -= 1;
                    Queue::Notice
                }
                Noticed::Repeated => Queue::Nothing,
                Noticed::Not => continue,
            };
            *done = Some(notify(&mut transaction, id, at, queue).await?);
        }
        transaction.commit().await?;
        Ok(done)
    }

    /// The table's lock makes runs that deactivate at once count one after the other. Answers how many more may be
    /// deactivated.
    async fn turn(&self) -> Result<(Transaction<'_>, u64), Error> {
        let mut transaction = self.database.transaction().await?;
        sqlx::query!("LOCK TABLE token_refresh.deactivations IN SHARE ROW EXCLUSIVE MODE")
            .execute(&mut transaction)
            .await?;
        let left = budget_left(&mut transaction, self.clock.now()).await?;
        Ok((transaction, left))
    }

    /// A deactivation without a notification is right where there is no device. Where devices or users may be hidden from us,
    /// it is an error for the operator; the deactivation stands.
    async fn look_at_unnotified(&self, done: &[Stored]) {
        let silent = |one: &Stored| matches!(one, Stored::Deactivated(recipients) if recipients.iter().all(|one| one.devices == 0));
        if !done.iter().any(silent) {
            return;
        }
        let hidden = self.database.hidden().await.unwrap_or_default();
        let unseen: Vec<_> = hidden
            .into_iter()
            .filter(|one| !one.sees_some && !one.only_writes)
            .map(|one| one.relation)
            .collect();
        if !unseen.is_empty() {
            tracing::error!(
                tables = unseen.join(", "),
                "a streamer was deactivated and there is no device to notify: row-level security may hide rows; see `tokens doctor`"
            );
        }
    }
}

/// In the order of the ids, as a claim locks them: no run waits for another in a ring.
fn in_order<'a, T>(attempts: &'a [Attempt], done: &'a mut [T]) -> Vec<(&'a Attempt, &'a mut T)> {
    let mut ordered: Vec<_> = attempts.iter().zip(done).collect();
    ordered.sort_unstable_by_key(|(attempt, _)| attempt.lease.id.0);
    ordered
}

/// Whether people are notified of refusals that nothing confirms.
enum Noticed {
    /// They are.
    Now,
    /// They were, and the answer was lost.
    Repeated,
    /// They were before, another run is here, or the budget is used up.
    Not,
}

/// Remembers and counts a notice, if the budget allows.
async fn noticed(
    transaction: &mut Transaction<'_>,
    attempt: &Attempt,
    is_allowed: bool,
) -> Result<Noticed, Error> {
    let found = sqlx::query!(
        r#"
        WITH before AS (
            SELECT streamer_id, noticed_at FROM token_refresh.streamers
            WHERE streamer_id = $1 AND fence = $2 AND refused_since IS NOT NULL FOR UPDATE
        ),
        noticed AS (
            UPDATE token_refresh.streamers ours SET noticed_at = $3
            FROM before WHERE ours.streamer_id = before.streamer_id AND before.noticed_at IS NULL AND $4
            RETURNING ours.streamer_id
        ),
        counted AS (
            INSERT INTO token_refresh.deactivations (streamer_id, deactivated_at, is_notice)
            SELECT streamer_id, $3, true FROM noticed
        )
        SELECT EXISTS (SELECT FROM noticed) AS "now!",
               EXISTS (SELECT FROM before WHERE noticed_at = $3) AS "repeated!"
        "#,
        attempt.lease.id.0,
        attempt.lease.fence,
        attempt.ended_at,
        is_allowed
    )
    .fetch_one(transaction)
    .await?;
    Ok(match (found.now, found.repeated) {
        (true, _) => Noticed::Now,
        (false, true) => Noticed::Repeated,
        (false, false) => Noticed::Not,
    })
}

async fn deactivate_and_notify(
    transaction: &mut Transaction<'_>,
    attempt: &Attempt,
) -> Result<Stored, Error> {
    if !deactivate(transaction, attempt).await? {
        return Ok(Stored::Superseded);
    }
    Ok(Stored::Deactivated(
        notify(transaction, attempt.lease.id, attempt.ended_at, Queue::Deactivation).await?,
    ))
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
               -- With those that were deactivated within the hour: each deactivation would make the budget smaller.
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
    let Resolution::Deactivate { cause, .. } = &attempt.resolution else { return Ok(false) };
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
                    refusals = CASE WHEN written.id IS NULL THEN ours.refusals ELSE 0 END,
                    refused_since = CASE WHEN written.id IS NULL THEN ours.refused_since END,
                    noticed_at = CASE WHEN written.id IS NULL THEN ours.noticed_at END
                FROM held LEFT JOIN written ON written.id = held.streamer_id
                WHERE ours.streamer_id = held.streamer_id
            ),
            counted AS (
                INSERT INTO token_refresh.deactivations (streamer_id, deactivated_at)
                SELECT id, $4 FROM written
            ),
            history AS (
                INSERT INTO token_refresh.refreshes (streamer_id, fence, trigger, started_at, ended_at,
                    outcome, reason, expires_before, expires_after, caller, client_id, refused)
                SELECT $1, $2, $5, $6, $4,
                       CASE WHEN EXISTS (SELECT FROM written) THEN 'deactivated' ELSE 'superseded' END, $7, $8, $9, $10,
                       $11, $12
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
            cause.reason,
            attempt.expires_before,
            cause.expires_at,
            attempt.caller.as_ref().map(|caller| caller.0.as_str()),
            attempt.client_id,
            cause.was_refused
        )
        .fetch_one(transaction)
        .await
}

/// What is put into the outbox.
#[derive(Clone, Copy)]
enum Queue {
    Nothing,
    /// It is obsolete once the streamer is active again.
    Deactivation,
    /// It is obsolete once Twitch takes the tokens again.
    Notice,
}

/// The people that a deactivation concerns: the streamer, and each owner of campaigns in which the streamer is active, but for the
/// streamer's own campaigns. It also puts one notification for each device, the newest, of those that want one into the outbox,
/// in place of any that still wait there: as many rows as devices, however many campaigns there are.
async fn notify(
    transaction: &mut Transaction<'_>,
    streamer: StreamerId,
    now: DateTime<Utc>,
    queue: Queue,
) -> Result<Vec<Recipient>, Error> {
    let rows = sqlx::query!(
        r#"
        WITH person AS MATERIALIZED (
            SELECT u.id AS user_id, u.display_name::text AS user_name, NULL::uuid[] AS campaign_ids,
                   NULL::text[] AS campaign_names
            FROM public.streamers s JOIN public.users u ON u.id = s.user_id WHERE s.id = $1
            UNION ALL
            SELECT u.id, u.display_name::text, array_agg(c.id ORDER BY c.name, c.id),
                   array_agg(c.name::text ORDER BY c.name, c.id)
            FROM public.streamers s
            JOIN public.campaign_memberships m ON m.streamer_id = s.id AND m.status = 'ACTIVE'
            JOIN public.campaigns c ON c.id = m.campaign_id AND c.owner_id IS DISTINCT FROM s.user_id
            JOIN public.users u ON u.id = c.owner_id
            WHERE s.id = $1
            GROUP BY u.id
        ),
        willing AS MATERIALIZED (SELECT * FROM person WHERE token_refresh.wants_notice(user_id)),
        device AS MATERIALIZED (
            SELECT willing.*, p.id AS subscription_id
            FROM willing CROSS JOIN LATERAL (
                SELECT id FROM public.push_subscriptions WHERE user_id = willing.user_id
                ORDER BY created_at DESC, id LIMIT $5) p
        ),
        replaced AS (
            UPDATE token_refresh.outbox SET state = 'obsolete', settled_at = $2, last_error = 'deactivated anew'
            WHERE $3 AND streamer_id = $1 AND state = 'pending'
        ),
        queued AS (
            INSERT INTO token_refresh.outbox (subscription_id, user_id, user_name, streamer_id, streamer_name,
                campaign_id, campaign_name, campaign_count, created_at, next_attempt_at, deactivated)
            SELECT d.subscription_id, d.user_id, d.user_name, s.id, s.twitch_display_name,
                   d.campaign_ids[1], d.campaign_names[1], cardinality(d.campaign_ids), $2, $2, $4
            FROM device d JOIN public.streamers s ON s.id = $1
            WHERE $3
        )
        SELECT person.user_name AS "name!", person.campaign_ids, person.campaign_names,
               coalesce(counted.devices, 0) AS "devices!"
        FROM person LEFT JOIN (SELECT user_id, count(*) AS devices FROM device GROUP BY user_id) counted USING (user_id)
        ORDER BY person.campaign_ids IS NOT NULL, person.campaign_names[1], person.campaign_ids[1]
        "#,
        streamer.0,
        now,
        !matches!(queue, Queue::Nothing),
        matches!(queue, Queue::Deactivation),
        i64::try_from(DEVICES_OF_A_PERSON).unwrap_or(i64::MAX)
    )
    .fetch_all(transaction)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let ids = row.campaign_ids.unwrap_or_default();
            Recipient {
                name: plain(row.name),
                role: role(&ids, row.campaign_names.unwrap_or_default()),
                devices: row.devices.try_into().unwrap_or(u32::MAX),
                campaigns: ids.into_iter().map(CampaignId).collect(),
            }
        })
        .collect())
}

/// No campaign means that it is for the streamer.
pub(super) fn role(campaigns: &[Uuid], names: Vec<String>) -> Role {
    let Some(first) = campaigns.first().copied().map(CampaignId) else { return Role::Streamer };
    let names = names.into_iter().take(NAMED_CAMPAIGNS).map(plain).collect();
    Role::GameMaster(Campaigns { first, names, count: campaigns.len() })
}
