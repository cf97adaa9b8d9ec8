//! What `tokens refresh` does where no function delivers notifications: it delivers the outbox by itself.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use serde::Serialize;
use tokens_domain::Monotonic;
use tokens_domain::notification::{Next, Notification, PushAnswer, Role};
use tokens_domain::notify::NotifyReport;
use tokens_service::Notifier;

/// What became of the notifications that were due.
#[derive(Debug, Default, Serialize)]
pub struct Delivery {
    /// The counts.
    #[serde(flatten)]
    pub report: NotifyReport,
    /// A line for each.
    #[serde(skip)]
    lines: Vec<String>,
}

/// Delivers what is due, this cycle's and what was left, until near the deadline.
pub async fn deliver(notifier: &Notifier, deadline: Monotonic) -> Result<Delivery> {
    let lines = Mutex::new(Vec::new());
    let observe = |notification: &Notification, answer: &PushAnswer, next: Next| {
        lines.lock().unwrap_or_else(PoisonError::into_inner).push(line(notification, answer, next));
    };
    let report = notifier.run(Some(deadline), &observe).await?;
    Ok(Delivery { report, lines: lines.into_inner().unwrap_or_else(PoisonError::into_inner) })
}

fn line(notification: &Notification, answer: &PushAnswer, next: Next) -> String {
    let to = match &notification.role {
        Role::Streamer => "the streamer".to_owned(),
        Role::GameMaster(campaigns) => format!("the game master of {}", campaigns.listed()),
    };
    let about = &notification.streamer_name;
    let reason = answer.reason().unwrap_or_default();
    let (mark, what) = match next {
        Next::Delivered => ("✓", "delivered".to_owned()),
        Next::Gone => ("-", format!("{reason}; it is deleted")),
        Next::RetryAt(at) => ("✗", format!("{reason} (retry at {})", at.format("%H:%M:%S"))),
        Next::GivenUp => ("✗", format!("{reason} (given up)")),
    };
    format!("  {mark} to {to}, about {about}: {what}")
}

/// For people; nothing if nothing was due.
pub fn text(delivery: &Delivery) -> Option<String> {
    let NotifyReport { delivered, gone, postponed, given_up, obsolete, .. } = &delivery.report;
    if delivery.report.total() == 0 {
        return None;
    }
    let mut text = format!(
        "Notifications: {delivered} delivered, {postponed} postponed, {gone} gone, {given_up} given up, {obsolete} \
         obsolete"
    );
    for line in &delivery.lines {
        let _ = write!(text, "\n{line}");
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use chrono::{TimeZone, Utc};
    use tokens_domain::CampaignId;
    use tokens_domain::StreamerId;
    use tokens_domain::notification::{AlsoLost, Campaigns, Subscription};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn each_notification_has_its_line() {
        let now = Utc.with_ymd_and_hms(2026, 11, 23, 20, 0, 0).unwrap();
        let notification = |role| Notification {
            id: Uuid::nil(),
            attempt: 1,
            created_at: now,
            subscription: Subscription {
                id: Uuid::nil(),
                endpoint: "https://push.example.com/secret".to_owned(),
                p256dh: String::new(),
                auth: String::new(),
            },
            streamer: StreamerId(Uuid::nil()),
            streamer_name: "Aria".to_owned(),
            role,
            also_lost: AlsoLost::default(),
            no_name_since: None,
            other_key: false,
        };
        let master = || Role::GameMaster(Campaigns::one(CampaignId(Uuid::nil()), "Les Brumes"));
        let busy = PushAnswer::Busy { retry_after: None, reason: "push.example.com answered 503".to_owned() };
        let rejected = PushAnswer::Rejected("push.example.com answered 413".to_owned());
        let delivery = Delivery {
            report: NotifyReport {
                delivered: 1,
                gone: 1,
                postponed: 1,
                given_up: 1,
                obsolete: 2,
                unauthorized: 0,
                other_key: 0,
            },
            lines: vec![
                line(&notification(Role::Streamer), &PushAnswer::Accepted, Next::Delivered),
                line(&notification(master()), &PushAnswer::Gone, Next::Gone),
                line(&notification(master()), &busy, Next::RetryAt(now)),
                line(&notification(master()), &rejected, Next::GivenUp),
            ],
        };
        insta::assert_snapshot!(text(&delivery).unwrap(), @r"
        Notifications: 1 delivered, 1 postponed, 1 gone, 1 given up, 2 obsolete
          ✓ to the streamer, about Aria: delivered
          - to the game master of Les Brumes, about Aria: the push service does not know the subscription any more; it is deleted
          ✗ to the game master of Les Brumes, about Aria: push.example.com answered 503 (retry at 20:00:00)
          ✗ to the game master of Les Brumes, about Aria: push.example.com answered 413 (given up)
        ");
        assert_eq!(text(&Delivery::default()), None);
    }
}
