//! `tokens notifications`: what waits to be delivered, what arrived, and what was given up.

use anyhow::Result;
use chrono::{DateTime, Utc};
use serde::Serialize;
use tokens_domain::Clock;
use tokens_store::{Database, OutboxCounts, OutboxEntry};

use crate::output::{self, table, time};

/// What `--json` prints.
#[derive(Serialize)]
struct Document {
    counts: OutboxCounts,
    notifications: Vec<OutboxEntry>,
}

pub async fn run(database: &Database, limit: u16, clock: &dyn Clock, json: bool) -> Result<()> {
    let counts = database.notification_counts().await?;
    let notifications = database.notifications(limit.into()).await?;
    if json {
        output::json(&Document { counts, notifications })?;
    } else if notifications.is_empty() {
        output::line("No notification is on record; they are kept for 30 days.")?;
    } else {
        output::line(&text(counts, &notifications, clock.now()))?;
    }
    Ok(())
}

fn text(counts: OutboxCounts, notifications: &[OutboxEntry], now: DateTime<Utc>) -> String {
    let head = ["CREATED", "FOR", "ABOUT", "STATE", "ATTEMPTS", "NEXT ATTEMPT", "LAST ERROR"];
    let head = head.map(str::to_owned).to_vec();
    let rows = notifications.iter().map(|one| {
        let role = match &one.campaign_name {
            Some(campaign) if one.campaigns > 1 => {
                format!("game master of {} and {} more", campaign, one.campaigns - 1)
            }
            Some(campaign) => format!("game master of {campaign}"),
            None => "streamer".to_owned(),
        };
        vec![
            time(Some(one.created_at)),
            format!("{} ({role})", one.user_name),
            one.streamer_name.clone(),
            one.state.replace('_', " "),
            one.attempts.to_string(),
            time(one.next_attempt_at),
            one.last_error.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    });
    let OutboxCounts { pending, delivered, gone, given_up, obsolete } = counts;
    format!(
        "{}\n\nIn 30 days: {pending} pending, {delivered} delivered, {gone} gone, {given_up} given up, {obsolete} \
         obsolete; a row is a device, times are UTC, now {}",
        table(std::iter::once(head).chain(rows).collect()),
        time(Some(now))
    )
}

#[cfg(test)]
mod tests {
    use chrono::{TimeDelta, TimeZone};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn each_state_has_its_row() {
        let now = Utc.with_ymd_and_hms(2026, 11, 23, 20, 0, 0).unwrap();
        let entry = |state: &str, attempts, last_error: Option<&str>| OutboxEntry {
            created_at: now - TimeDelta::minutes(5),
            user_name: "Corvin".to_owned(),
            streamer_id: Uuid::nil(),
            streamer_name: "Aria".to_owned(),
            campaign_name: Some("Les Brumes".to_owned()),
            campaigns: 1,
            subscription_id: Uuid::nil(),
            state: state.to_owned(),
            attempts,
            next_attempt_at: None,
            settled_at: Some(now),
            last_error: last_error.map(str::to_owned),
        };
        let entries = [
            OutboxEntry { user_name: "Aria".to_owned(), campaign_name: None, ..entry("delivered", 1, None) },
            OutboxEntry {
                next_attempt_at: Some(now + TimeDelta::minutes(2)),
                settled_at: None,
                ..entry("pending", 2, Some("the push service answered 503"))
            },
            entry("given_up", 9, Some("the push service answered 413")),
            OutboxEntry {
                campaigns: 3,
                ..entry("gone", 1, Some("the push service does not know the subscription any more"))
            },
            entry("obsolete", 0, Some("the streamer is active again")),
        ];
        let counts = OutboxCounts { pending: 1, delivered: 1, gone: 1, given_up: 1, obsolete: 1 };
        insta::assert_snapshot!(text(counts, &entries, now), @r"
        CREATED              FOR                                            ABOUT  STATE      ATTEMPTS  NEXT ATTEMPT         LAST ERROR
        2026-11-23 19:55:00  Aria (streamer)                                Aria   delivered  1         -                    -
        2026-11-23 19:55:00  Corvin (game master of Les Brumes)             Aria   pending    2         2026-11-23 20:02:00  the push service answered 503
        2026-11-23 19:55:00  Corvin (game master of Les Brumes)             Aria   given up   9         -                    the push service answered 413
        2026-11-23 19:55:00  Corvin (game master of Les Brumes and 2 more)  Aria   gone       1         -                    the push service does not know the subscription any more
        2026-11-23 19:55:00  Corvin (game master of Les Brumes)             Aria   obsolete   0         -                    the streamer is active again

        In 30 days: 1 pending, 1 delivered, 1 gone, 1 given up, 1 obsolete; a row is a device, times are UTC, now 2026-11-23 20:00:00
        ");
    }
}
