//! Deactivations, and the notifications that follow from them.

use anyhow::{Context as _, Result};
use chrono::{DateTime, TimeDelta, Utc};
use domain::policy::BUDGET_PERIOD;
use sqlx::postgres::PgPool;
use uuid::Uuid;

use super::refreshing::Held;
use super::section;
use super::statements::{explain, explain_text, explained};

/// How many notifications are claimed at once: as many as devices are pushed to at the same time.
const CLAIMS: i64 = 32;

/// Any time would do: no plan depends on when a claim ends.
const CLAIM: TimeDelta = TimeDelta::seconds(30);

/// A notification that waits: itself, its device's endpoint, the streamer and the person it is for.
type Waiting = (Uuid, i32, String, Uuid, Uuid);

pub(super) async fn deactivating(
    document: &mut String,
    pool: &PgPool,
    held: &[Held],
    now: DateTime<Utc>,
) -> Result<()> {
    let (id, fence, token) = held.first().context("nobody is leased")?;
    section(
        document,
        "Which deactivations are repeated",
        "Once for all that are ready at the same time, of which there are few: one look-up each.",
        &explained(pool, explain("AS tried (id, fence)")?.bind(vec![*id]).bind(vec![*fence])).await?,
    )?;
    section(
        document,
        "Counting for the budget of deactivations",
        "For the same: how many were deactivated within the hour, and how many are authorized; a look-up for each of \
         these, whether it is active.",
        &explained(pool, explain(r#"AS "authorized!""#)?.bind(now - BUDGET_PERIOD).bind(now)).await?,
    )?;
    let deactivate = explain("is_active = false, token_refresh_failed_at")?
        .bind(id)
        .bind(fence)
        .bind(token)
        .bind(now)
        .bind("planned")
        .bind(now)
        .bind("Twitch refused")
        .bind(now)
        .bind(now)
        .bind(None::<String>)
        .bind("an application")
        .bind(true);
    section(document, "Deactivating", "Two look-ups and two entries.", &explained(pool, deactivate).await?)
}

pub(super) async fn notifying(document: &mut String, pool: &PgPool, now: DateTime<Utc>) -> Result<()> {
    let (id, attempt, endpoint, streamer, person): Waiting = sqlx::query_as(
        "SELECT o.id, o.attempt, p.endpoint, o.streamer_id, o.user_id
         FROM token_refresh.outbox o JOIN push_subscriptions p ON p.id = o.subscription_id
         WHERE o.state = 'pending' AND o.campaign_id IS NULL
         ORDER BY o.next_attempt_at LIMIT 1",
    )
    .fetch_one(pool)
    .await?;
    section(
        document,
        "Telling of a deactivation",
        "In the transaction of the deactivation: the people to notify, each with all of their campaigns, the devices of \
         each through an index, and an entry for each device. What still waits about the same streamer is replaced.",
        &explained(
            pool,
            explain("WITH person AS")?.bind(streamer).bind(now).bind(true).bind(3).bind(true).bind(20_i64),
        )
        .await?,
    )?;
    let wants: String = sqlx::query_scalar(
        "SELECT replace(prosrc, '= person', '= $1') FROM pg_proc
         WHERE oid = 'token_refresh.wants_notice'::regproc",
    )
    .fetch_one(pool)
    .await?;
    section(
        document,
        "Whether a person wants a notification",
        "The body of the function `wants_notice`, which the statements before and after this call for each person whom \
         they concern: one look-up.",
        &explained(pool, explain_text(&wants).bind(person)).await?,
    )?;
    section(
        document,
        &format!("Claiming {CLAIMS} notifications"),
        "The index of what waits holds it in the order in which it is to be tried, and nothing that is settled. For \
         each of them a look-up of the device, of the streamer and of the preferences, and an update.",
        &explained(pool, explain("first AS (")?.bind(now).bind(now + CLAIM).bind(CLAIMS)).await?,
    )?;
    for (state, heading, sentence) in [
        ("delivered", "Writing that a notification was delivered", "Two look-ups and two updates."),
        (
            "gone",
            "Writing that a device is gone",
            "The same with the deletion of the device, to which nothing refers.",
        ),
    ] {
        let settle = explain("WITH settled AS")?
            .bind(id)
            .bind(attempt)
            .bind(state)
            .bind(None::<DateTime<Utc>>)
            .bind(now)
            .bind(None::<String>)
            .bind(&endpoint)
            .bind(None::<DateTime<Utc>>)
            .bind(false);
        section(document, heading, sentence, &explained(pool, settle).await?)?;
    }
    Ok(())
}
