//! `tokens status`: who is authorized, and how their tokens stand.

use anyhow::Result;
use chrono::{DateTime, Utc};
use serde::Serialize;
use tokens_domain::authorization::NO_END;
use tokens_domain::policy::Policy;
use tokens_domain::schedule::{self, Trigger, retry_minute};
use tokens_domain::{Authorized, Clock, NoExpiry, Streamer};
use tokens_store::Database;
use tokens_telemetry::Human;

use crate::output::{self, name, table, time};
use crate::refresh::all_authorized;

/// One authorized streamer.
#[derive(Serialize)]
struct Status {
    #[serde(flatten)]
    streamer: Streamer,
    token_expires_at: Option<DateTime<Utc>>,
    #[serde(skip)]
    never_expires: bool,
    last_refresh_at: Option<DateTime<Utc>>,
    last_failure_at: Option<DateTime<Utc>>,
    last_failure_kind: Option<&'static str>,
    /// The first trigger that finds the token due; none if the authorization ends before.
    next_trigger: Option<Trigger>,
    next_trigger_at: Option<DateTime<Utc>>,
    authorized_until: DateTime<Utc>,
}

impl Status {
    /// `one_shots`: whether failures arm retries of their own, or leave them to the sweep.
    fn new(authorized: Authorized, policy: Policy, one_shots: bool, now: DateTime<Utc>) -> Self {
        let Authorized { streamer, until, token } = authorized;
        let due_at = policy.due_at(&token).since(Some(now)).unwrap_or(now);
        let retry = token.failure.filter(|_| one_shots).map(|_| (Trigger::Retry, retry_minute(due_at)));
        let next = [schedule::next_rule(due_at)].into_iter().chain(retry).min_by_key(|(_, at)| *at);
        let next = next.filter(|(_, at)| *at < until);
        Self {
            streamer,
            token_expires_at: token.expires_at,
            never_expires: token.no_expiry == Some(NoExpiry::Never),
            last_refresh_at: token.refreshed_at,
            last_failure_at: token.failure.map(|failure| failure.at),
            last_failure_kind: token.failure.map(|failure| failure.kind.as_str()),
            next_trigger: next.map(|(trigger, _)| trigger),
            next_trigger_at: next.map(|(_, at)| at),
            authorized_until: until,
        }
    }

    fn row(&self, now: DateTime<Utc>) -> Vec<String> {
        let expiry = match self.token_expires_at {
            None if self.never_expires => "never".to_owned(),
            None => "unknown".to_owned(),
            Some(at) if at <= now => "expired".to_owned(),
            Some(at) => format!("in {}", Human(at - now)),
        };
        let failure = match (self.last_failure_at, self.last_failure_kind) {
            (Some(at), Some(kind)) => format!("{} {kind}", time(Some(at))),
            _ => "-".to_owned(),
        };
        let next = match (self.next_trigger, self.next_trigger_at) {
            (Some(trigger), Some(at)) => format!("{} {}", at.format("%H:%M"), trigger.as_str()),
            _ => "none before the end".to_owned(),
        };
        vec![
            name(&self.streamer),
            expiry,
            time(self.last_refresh_at),
            failure,
            next,
            if self.authorized_until == NO_END {
                "no end".to_owned()
            } else {
                Human(self.authorized_until - now).to_string()
            },
            self.streamer.id.to_string(),
        ]
    }
}

pub async fn run(
    database: &Database,
    policy: Policy,
    one_shots: bool,
    clock: &dyn Clock,
    json: bool,
) -> Result<()> {
    let now = clock.now();
    let all_authorized = all_authorized(database, now).await?.into_iter();
    let statuses: Vec<_> = all_authorized.map(|one| Status::new(one, policy, one_shots, now)).collect();
    if json {
        output::json(&statuses)?;
    } else if statuses.is_empty() {
        output::line("No streamer has an active authorization.")?;
    } else {
        output::line(&text(&statuses, now))?;
    }
    Ok(())
}

fn text(statuses: &[Status], now: DateTime<Utc>) -> String {
    let head =
        ["STREAMER", "TOKEN EXPIRES", "LAST REFRESH", "LAST FAILURE", "NEXT TRIGGER", "AUTHORIZED FOR", "ID"];
    let head = head.map(str::to_owned).to_vec();
    let rows = std::iter::once(head).chain(statuses.iter().map(|status| status.row(now))).collect();
    format!("{}\n\n{} authorized; times are UTC, now {}", table(rows), statuses.len(), time(Some(now)))
}

#[cfg(test)]
mod tests {
    use chrono::{TimeDelta, TimeZone};
    use tokens_domain::policy::{Failure, FailureKind};
    use tokens_domain::{StreamerId, TokenState};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn each_state_has_its_words() {
        let now = Utc.with_ymd_and_hms(2026, 11, 23, 20, 0, 0).unwrap();
        let until = |until, login: &str, token| {
            let streamer = Streamer::new(StreamerId(Uuid::nil()), login, login.to_uppercase());
            Status::new(Authorized { streamer, until, token }, Policy::default(), true, now)
        };
        let status = |login: &str, token| until(now + TimeDelta::hours(2), login, token);
        let living = |left| TokenState { expires_at: Some(now + left), ..TokenState::default() };
        let failure = Failure::first(FailureKind::Refusal, now - TimeDelta::minutes(5));
        let statuses = [
            status("fresh", living(TimeDelta::minutes(235))),
            status(
                "soon",
                TokenState {
                    refreshed_at: Some(now - TimeDelta::hours(2)),
                    ..living(TimeDelta::minutes(75))
                },
            ),
            status("failed", TokenState { failure: Some(failure), ..living(TimeDelta::minutes(-5)) }),
            status("unknown", TokenState::default()),
            until(NO_END, "bot", living(TimeDelta::minutes(235))),
        ];
        insta::assert_snapshot!(text(&statuses, now), @r"
        STREAMER           TOKEN EXPIRES  LAST REFRESH         LAST FAILURE                 NEXT TRIGGER         AUTHORIZED FOR  ID
        FRESH (fresh)      in 3 h 55      -                    -                            none before the end  2 h 00          00000000-0000-0000-0000-000000000000
        SOON (soon)        in 1 h 15      2026-11-23 18:00:00  -                            20:22 sweep          2 h 00          00000000-0000-0000-0000-000000000000
        FAILED (failed)    expired        -                    2026-11-23 19:55:00 refusal  20:10 retry          2 h 00          00000000-0000-0000-0000-000000000000
        UNKNOWN (unknown)  unknown        -                    -                            20:07 sweep          2 h 00          00000000-0000-0000-0000-000000000000
        BOT (bot)          in 3 h 55      -                    -                            23:07 sweep          no end          00000000-0000-0000-0000-000000000000

        5 authorized; times are UTC, now 2026-11-23 20:00:00
        ");
    }
}
