//! The outbox: notifications on their way, and what became of them.
//!
//! What is here runs under the role of the function notify, which can read no token: no query may name a table or a
//! column that `token_refresh.grant_notify` doesn't. What only others ask is in the second half.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::Error;
use tokens_domain::notification::{AlsoLost, Next, Notification, Subscription};
use tokens_domain::ports::{Claimed, Outbox, StoreError};
use tokens_domain::{Clock, Monotonic, StreamerId, plain};
use uuid::Uuid;

use super::deactivate::role;
use super::{Class, Database, Moment, failed, persistently};

/// The outbox in PostgreSQL. Needs no key.
#[derive(Clone)]
pub struct PgOutbox {
    database: Database,
    clock: Arc<dyn Clock>,
}

impl PgOutbox {
    /// The clock says for how long a failing write may be repeated.
    #[must_use]
    pub fn new(database: Database, clock: Arc<dyn Clock>) -> Self {
        Self { database, clock }
    }
}

impl Outbox for PgOutbox {
    async fn claim(
        &self,
        now: DateTime<Utc>,
        until: DateTime<Utc>,
        limit: usize,
    ) -> Result<Claimed, StoreError> {
        let claimed = self.take(now, until, limit).await.map_err(failed("claiming notifications"))?;
        if claimed.notifications.is_empty() && claimed.obsolete == 0 {
            self.database.look_at_no_notification().await?;
        }
        Ok(claimed)
    }

    async fn settle(
        &self,
        notification: &Notification,
        next: Next,
        reason: Option<&str>,
        now: DateTime<Utc>,
        give_up_at: Monotonic,
    ) -> Result<(), StoreError> {
        let write = || self.write(notification, next, reason, now);
        persistently(self.clock.as_ref(), give_up_at, Class::can_pass, write)
            .await
            .map_err(failed("writing what became of a notification"))
    }
}

impl PgOutbox {
    /// One statement: what is taken is locked, so that two that claim at once take different ones, and what is read
    /// of it is what the lock found, and what is said is true now. A device that another user has signed in on meanwhile is not theirs any more. Nothing is
    /// taken where devices or streamers are hidden: each would look signed out.
    async fn take(&self, now: DateTime<Utc>, until: DateTime<Utc>, limit: usize) -> Result<Claimed, Error> {
        let rows = sqlx::query!(
            r#"
            WITH seen AS (
                SELECT (EXISTS (SELECT FROM public.push_subscriptions)
                        OR NOT token_refresh.may_hide('public.push_subscriptions', 'r'))
                   AND (EXISTS (SELECT FROM public.streamers)
                        OR NOT token_refresh.may_hide('public.streamers', 'r')) AS enough
            ),
            first AS (
                SELECT id, subscription_id, user_id, streamer_id, deactivated FROM token_refresh.outbox
                WHERE state = 'pending' AND attempt = 0 AND next_attempt_at <= $1 AND (SELECT enough FROM seen)
                ORDER BY next_attempt_at, id LIMIT $3 FOR UPDATE SKIP LOCKED
            ),
            repeats AS (
                SELECT id, subscription_id, user_id, streamer_id, deactivated FROM token_refresh.outbox
                WHERE state = 'pending' AND attempt > 0 AND next_attempt_at <= $1 AND (SELECT enough FROM seen)
                ORDER BY next_attempt_at, id LIMIT $3 - (SELECT count(*) FROM first) FOR UPDATE SKIP LOCKED
            ),
            due AS (SELECT * FROM first UNION ALL SELECT * FROM repeats),
            lost AS MATERIALIZED (
                SELECT person.user_id, l.*
                FROM (SELECT DISTINCT user_id FROM due) person
                CROSS JOIN LATERAL token_refresh.lost_streamers(person.user_id) l
            ),
            checked AS (
                SELECT due.id, p.endpoint, p.p256dh, p.auth, l.campaign_ids, l.campaign_names,
                       also.names AS also_names, also.own AS also_own,
                       EXISTS (SELECT FROM token_refresh.outbox k
                               WHERE k.subscription_id = due.subscription_id AND k.other_key) AS other_key,
                       CASE WHEN p.id IS NULL THEN 'the device is signed out'
                            WHEN s.id IS NULL THEN 'there is no such streamer any more'
                            WHEN s.is_active AND due.deactivated THEN 'the streamer is active again'
                            WHEN NOT token_refresh.wants_notice(due.user_id) THEN 'notifications are turned off'
                            WHEN l.streamer_id IS NULL THEN 'it does not concern this person any more'
                       END AS obsolete
                FROM due
                LEFT JOIN public.push_subscriptions p ON p.id = due.subscription_id AND p.user_id = due.user_id
                LEFT JOIN public.streamers s ON s.id = due.streamer_id
                LEFT JOIN lost l ON l.user_id = due.user_id AND l.streamer_id = due.streamer_id
                CROSS JOIN LATERAL (
                    SELECT array_agg(streamer_name ORDER BY campaign_ids IS NOT NULL, lost_at DESC, streamer_id) AS names,
                           count(*) FILTER (WHERE campaign_ids IS NULL) AS own
                    FROM lost WHERE lost.user_id = due.user_id AND lost.streamer_id <> due.streamer_id
                ) also
            )
            UPDATE token_refresh.outbox o SET
                state = CASE WHEN c.obsolete IS NULL THEN 'pending' ELSE 'obsolete' END,
                settled_at = CASE WHEN c.obsolete IS NOT NULL THEN $1 END,
                last_error = coalesce(c.obsolete, o.last_error),
                attempt = CASE WHEN c.obsolete IS NULL THEN o.attempt + 1 ELSE o.attempt END,
                next_attempt_at = CASE WHEN c.obsolete IS NULL THEN $2 ELSE o.next_attempt_at END
            FROM checked c WHERE o.id = c.id
            RETURNING o.id, o.attempt, o.created_at, o.subscription_id, c.endpoint AS "endpoint?",
                      c.p256dh AS "p256dh?", c.auth AS "auth?", o.streamer_id, o.streamer_name, o.state, o.no_name_since,
                      c.campaign_ids, c.campaign_names, c.also_names, c.also_own AS "also_own!",
                      c.other_key AS "other_key!"
            "#,
            now,
            until,
            i64::try_from(limit).unwrap_or(i64::MAX)
        )
        .fetch_all(&self.database)
        .await?;
        let mut claimed = Claimed::default();
        for row in rows {
            if row.state == "obsolete" {
                claimed.obsolete += 1;
                continue;
            }
            claimed.notifications.push(Notification {
                id: row.id,
                attempt: row.attempt.try_into().unwrap_or(0),
                created_at: row.created_at.end(),
                // Where a key is missing, encrypting fails and says so.
                subscription: Subscription {
                    id: row.subscription_id,
                    endpoint: row.endpoint.unwrap_or_default(),
                    p256dh: row.p256dh.unwrap_or_default(),
                    auth: row.auth.unwrap_or_default(),
                },
                streamer: StreamerId(row.streamer_id),
                streamer_name: plain(row.streamer_name),
                role: role(&row.campaign_ids.unwrap_or_default(), row.campaign_names.unwrap_or_default()),
                also_lost: also_lost(
                    row.also_names.unwrap_or_default().iter().map(plain).collect(),
                    row.also_own,
                ),
                no_name_since: row.no_name_since.and_then(Moment::known),
                other_key: row.other_key,
            });
        }
        Ok(claimed)
    }

    /// One statement, which changes nothing when it is repeated: by then the notification is settled, or waits for
    /// its next attempt as it should. A subscription that was renewed meanwhile is not deleted for what it was.
    async fn write(
        &self,
        notification: &Notification,
        next: Next,
        reason: Option<&str>,
        now: DateTime<Utc>,
    ) -> Result<(), Error> {
        let (state, retry_at) = match next {
            Next::Delivered => ("delivered", None),
            Next::Gone => ("gone", None),
            Next::GivenUp => ("given_up", None),
            Next::RetryAt(at) => ("pending", Some(at)),
        };
        sqlx::query!(
            r#"
            WITH settled AS (
                UPDATE token_refresh.outbox SET
                    state = $3,
                    next_attempt_at = coalesce($4, next_attempt_at),
                    settled_at = CASE WHEN $3 <> 'pending' THEN $5::timestamptz END,
                    last_error = $6,
                    no_name_since = $8,
                    other_key = $9
                WHERE id = $1 AND attempt = $2 AND state = 'pending'
                RETURNING subscription_id
            ),
            cleared AS (
                UPDATE token_refresh.outbox o SET other_key = false
                FROM settled WHERE o.subscription_id = settled.subscription_id AND o.other_key AND o.id <> $1
                    AND $3 = 'delivered'
            ),
            used AS (
                UPDATE public.push_subscriptions p SET last_used_at = $5, updated_at = $5
                FROM settled WHERE p.id = settled.subscription_id AND $3 = 'delivered'
            )
            DELETE FROM public.push_subscriptions p USING settled
            WHERE p.id = settled.subscription_id AND p.endpoint = $7 AND $3 = 'gone'
            "#,
            notification.id,
            i32::try_from(notification.attempt).unwrap_or(i32::MAX),
            state,
            retry_at,
            now,
            reason,
            notification.subscription.endpoint,
            notification.no_name_since,
            notification.other_key
        )
        .execute(&self.database)
        .await?;
        Ok(())
    }
}

/// The first `own` are the person's own.
fn also_lost(mut names: Vec<String>, own: i64) -> AlsoLost {
    let own = usize::try_from(own).unwrap_or(0).min(names.len());
    let others = names.split_off(own);
    AlsoLost { own: names, others }
}

/// How many notifications of the last 30 days are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OutboxCounts {
    /// Wait for an attempt.
    pub pending: i64,
    /// Accepted by a push service.
    pub delivered: i64,
    /// The device's subscription was no more.
    pub gone: i64,
    /// Could not be delivered within a day, or never will be.
    pub given_up: i64,
    /// Settled without an attempt: it no longer applied.
    pub obsolete: i64,
}

/// One notification, as the command shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OutboxEntry {
    /// When the streamer was deactivated.
    pub created_at: DateTime<Utc>,
    /// The name of the person that it is for.
    pub user_name: String,
    /// The streamer that it is about.
    pub streamer_id: Uuid,
    /// The streamer's name.
    pub streamer_name: String,
    /// The first campaign whose owner it is for; none: it is for the streamer.
    pub campaign_name: Option<String>,
    /// How many campaigns of that owner it is about.
    pub campaigns: i32,
    /// The device; the application knows more of it.
    pub subscription_id: Uuid,
    /// `pending`, `delivered`, `gone`, `given_up` or `obsolete`.
    pub state: String,
    /// How often it was tried.
    pub attempts: i32,
    /// When it is tried next, while it is pending.
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// When it reached its state, unless it is pending.
    pub settled_at: Option<DateTime<Utc>>,
    /// Why the last attempt failed, or why it became obsolete.
    pub last_error: Option<String>,
}

impl Database {
    /// The counts of all notifications that are kept.
    pub async fn notification_counts(&self) -> Result<OutboxCounts, StoreError> {
        sqlx::query_as!(
            OutboxCounts,
            r#"
            SELECT count(*) FILTER (WHERE state = 'pending') AS "pending!",
                   count(*) FILTER (WHERE state = 'delivered') AS "delivered!",
                   count(*) FILTER (WHERE state = 'gone') AS "gone!",
                   count(*) FILTER (WHERE state = 'given_up') AS "given_up!",
                   count(*) FILTER (WHERE state = 'obsolete') AS "obsolete!"
            FROM token_refresh.outbox
            "#
        )
        .fetch_one(self)
        .await
        .map_err(failed("counting notifications"))
    }

    /// Since when the oldest notification waits that is neither delivered nor given up, if there is one.
    pub async fn oldest_waiting(&self) -> Result<Option<DateTime<Utc>>, StoreError> {
        // Apart, so that the few that wait are read: PostgreSQL would look for the least in the index of all, which begins
        // with 30 days of what is settled.
        sqlx::query_scalar!(
            r#"
            WITH waiting AS MATERIALIZED (SELECT created_at FROM token_refresh.outbox WHERE state = 'pending')
            SELECT min(created_at) AS "since: Moment" FROM waiting
            "#
        )
        .fetch_one(self)
        .await
        .map(|since| since.map(Moment::end))
        .map_err(failed("looking for what waits in the outbox"))
    }

    /// The last `limit` notifications, the newest first.
    pub async fn notifications(&self, limit: i64) -> Result<Vec<OutboxEntry>, StoreError> {
        let rows = sqlx::query!(
            r#"
            SELECT created_at, user_name, streamer_id, streamer_name, campaign_name,
                   coalesce(campaign_count, CASE WHEN campaign_id IS NULL THEN 0 ELSE 1 END) AS "campaigns!",
                   subscription_id, state,
                   attempt AS attempts, CASE WHEN state = 'pending' THEN next_attempt_at END AS "next_attempt_at: Moment",
                   settled_at, last_error
            FROM token_refresh.outbox ORDER BY created_at DESC, id LIMIT $1
            "#,
            limit
        )
        .fetch_all(self)
        .await
        .map_err(failed("reading notifications"))?;
        let entries = rows.into_iter().map(|row| OutboxEntry {
            created_at: row.created_at.end(),
            user_name: plain(row.user_name),
            streamer_id: row.streamer_id,
            streamer_name: plain(row.streamer_name),
            campaign_name: row.campaign_name.map(plain),
            campaigns: row.campaigns,
            subscription_id: row.subscription_id,
            state: row.state,
            attempts: row.attempts,
            next_attempt_at: row.next_attempt_at.and_then(Moment::known),
            settled_at: row.settled_at.and_then(Moment::known),
            last_error: row.last_error.map(plain),
        });
        Ok(entries.collect())
    }
}
