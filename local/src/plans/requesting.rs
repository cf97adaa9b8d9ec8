//! What a request runs: a grant, a revocation, a check of a campaign.

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::PgPool;
use uuid::Uuid;

use super::refreshing::Held;
use super::section;
use super::statements::{explain, explained};

pub(super) async fn requesting(
    document: &mut String,
    pool: &PgPool,
    held: &[Held],
    now: DateTime<Utc>,
) -> Result<()> {
    let (streamer, campaign, fence): (Uuid, Uuid, i64) = sqlx::query_as(
        "SELECT m.streamer_id, m.campaign_id, ours.fence
         FROM campaign_memberships m JOIN token_refresh.streamers ours ON ours.streamer_id = m.streamer_id
         WHERE m.streamer_id = ANY($1) AND m.status = 'ACTIVE' AND m.poll_authorization_expires_at > $2 LIMIT 1",
    )
    .bind(held.iter().map(|(id, ..)| *id).collect::<Vec<_>>())
    .bind(now)
    .fetch_one(pool)
    .await?;
    let memberships = || explain(r#"m.id AS "membership_id?""#);
    section(
        document,
        "One membership",
        "For every grant and every look at an authorization: unique keys only.",
        &explained(pool, memberships()?.bind(streamer).bind(campaign)).await?,
    )?;
    section(
        document,
        "The memberships of a streamer",
        "For `GET /streamers/{streamer_id}/authorizations`.",
        &explained(pool, memberships()?.bind(streamer).bind(None::<Uuid>)).await?,
    )?;
    section(
        document,
        "Granting",
        "In the transaction that stores the new pair: the membership by its unique key, and its sessions by theirs.",
        &explained(
            pool,
            explain("WITH granted AS")?
                .bind(campaign)
                .bind(streamer)
                .bind(fence)
                .bind(now)
                .bind(now + TimeDelta::hours(12)),
        )
        .await?,
    )?;
    section(
        document,
        "Revoking",
        "The same, for the session that ends.",
        &explained(pool, explain("revoked AS")?.bind(campaign).bind(streamer).bind(now)).await?,
    )?;
    section(
        document,
        "Waiting for another run",
        "A few times a second, for as long as a request meets a lease of another's.",
        &explained(pool, explain(r#"AS "taken!""#)?.bind(vec![streamer]).bind(now)).await?,
    )?;
    section(
        document,
        "Whom a campaign needs",
        "For a health check: the campaign's members through its unique key, and the game master's own channel through \
         an index that the migrations make.",
        &explained(pool, explain(r#"AS "is_game_master!""#)?.bind(campaign)).await?,
    )
}
