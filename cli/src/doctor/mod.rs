//! `tokens doctor`: looks at everything that has to be right, and says of each what to do if it is not. It refreshes
//! nothing and leaves nothing written; what it finds out is judged in `checks`.

mod check;
mod checks;

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use tokens_aws::{RetryGroup, Sdk};
use tokens_domain::Clock;
use tokens_domain::SystemClock;
use tokens_domain::ports::StoreError;
use tokens_push::Vapid;
use tokens_service::config::{Source, Whole};
use tokens_store::{Database, HISTORY_KEPT, LastRuns, PgStore, Tables};
use tokens_twitch::{TwitchClient, TwitchConfig};

use self::check::{Check, State, Topic, not_among};
use self::checks::Trial;
use crate::output::{self, table};
use crate::refresh::all_authorized;

/// For how long back the rules' runs are looked for at first: to read the whole history takes seconds.
const LATELY: TimeDelta = TimeDelta::days(1);

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    /// Whether nothing is at fault. There may be warnings.
    well: bool,
    checks: &'a [Check],
    /// What could not be looked at because of a fault above.
    not_checked: &'a [Topic],
}

/// Fails if something is at fault.
pub async fn run(source: &Source, sdk: &Sdk, json: bool) -> Result<ExitCode> {
    let checks = look(Whole::read(source), sdk).await;
    let not_checked = not_among(&checks);
    let well = checks.iter().all(|check| check.state != State::Fault);
    if json {
        output::json(&Document { well, checks: &checks, not_checked: &not_checked })?;
    } else {
        output::line(&text(&checks, &not_checked))?;
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What can't be looked at because of a fault is left out.
async fn look(config: Whole, sdk: &Sdk) -> Vec<Check> {
    let mut found = checks::configuration(&config.faults);
    let twitch = match &config.twitch {
        Some(twitch) => Some(credentials(twitch.clone()).await),
        None => None,
    };
    // Under a wrong client id every token seems to be another application's.
    let is_ours = twitch.as_ref().is_some_and(|check| check.state != State::Fault);
    let client_id = config.twitch.as_ref().filter(|_| is_ours);
    let client_id = client_id.map(|twitch| twitch.credentials.client_id.clone());
    found.extend(database(&config, client_id.as_deref()).await);
    found.extend(twitch);
    match config.vapid {
        Some(vapid) => {
            let keys = Vapid::new(&vapid.public_key, vapid.private_key.expose(), &vapid.subject);
            found.push(checks::vapid(Some(keys.map(drop).map_err(|faults| faults.0))));
        }
        None if !config.delivers => found.push(checks::vapid(None)),
        None => {}
    }
    match config.signals.map(|signals| signals.retries) {
        Some(Some(retries)) => {
            let group = RetryGroup::look_up(&retries, sdk).await;
            found.push(checks::schedules(Some((&retries, group))));
        }
        Some(None) => found.push(checks::schedules(None)),
        None => {}
    }
    found
}

/// All that the database shows.
async fn database(config: &Whole, client_id: Option<&str>) -> Vec<Check> {
    let Some(options) = &config.database else { return Vec::new() };
    let (database, server) = match Database::reach(options.clone()).await {
        Ok(reached) => reached,
        Err(error) => return vec![checks::out_of_reach(&error)],
    };
    let clock = database.clock();
    let mut found = vec![checks::database(&server), checks::clock(clock.ahead())];
    let version = database.schema().await;
    let tables = if version.is_ok() { database.tables().await } else { Ok(Tables::default()) };
    let schema = checks::schema(version, tables);
    let is_usable = schema.state != State::Fault;
    found.push(schema);
    if !is_usable {
        return found;
    }
    let now = clock.now();
    let store = config
        .cipher
        .as_ref()
        .map(|cipher| PgStore::new(database.clone(), cipher.clone(), Arc::new(clock.clone())));
    let missing = database.missing_rights().await;
    let (may_look, may_write) = missing.as_ref().map_or((false, false), |missing| {
        let may_look = missing.iter().all(|right| !right.starts_with("SELECT"));
        (may_look, missing.is_empty() && server.takes_writes)
    });
    found.push(checks::rights(&server.role, missing));
    if may_look {
        let trial = match &store {
            _ if !may_write => Trial::MayNotWrite,
            None => Trial::NoKeys,
            Some(store) => Trial::Tried(store.rehearse(now).await),
        };
        found.push(checks::rows(&server.role, database.hidden().await, trial));
    }
    found.push(checks::notify_role(database.notify_role().await));
    if let Some(store) = &store {
        found.push(checks::tokens(store.stored_texts(now).await));
    }
    if let Some(client_id) = client_id {
        found.extend(checks::misplaced(database.misplaced(client_id).await));
        found.extend(checks::only_refused(database.only_refused_for(client_id, now).await));
    }
    let runs = last_runs(&database, now).await;
    let authorized = all_authorized(&database, now).await;
    let aside = match &authorized {
        Ok(authorized) => {
            let ids: Vec<_> = authorized.iter().map(|one| one.streamer.id).collect();
            database.set_aside(&ids, now).await
        }
        Err(_) => Ok(Vec::new()),
    };
    found.push(checks::cycles(authorized, aside, runs, config.policy, now));
    found.push(checks::outbox(database.waiting(now).await, now));
    found
}

/// The rules' runs of the last day; if there was none, the last of all that are remembered.
async fn last_runs(database: &Database, now: DateTime<Utc>) -> Result<LastRuns, StoreError> {
    let lately = database.last_runs(now - LATELY).await?;
    if lately.planned.or(lately.sweep).is_some() {
        return Ok(lately);
    }
    database.last_runs(now - HISTORY_KEPT).await
}

/// By a token of our application's own, which is taken back at once.
async fn credentials(config: TwitchConfig) -> Check {
    let client = match TwitchClient::new(config, Arc::new(SystemClock)) {
        Ok(client) => client,
        Err(error) => return checks::no_client(&error.to_string()),
    };
    match client.application_token().await {
        Ok(token) => checks::twitch(Ok(client.revoke(&token).await)),
        Err(error) => checks::twitch(Err(error)),
    }
}

fn text(checks: &[Check], not_checked: &[Topic]) -> String {
    let row = |check: &Check| {
        vec![check.state.as_str().to_owned(), check.topic.as_str().to_owned(), check.text.clone()]
    };
    let count = |state| checks.iter().filter(|check| check.state == state).count();
    let mut summary = match (count(State::Fault), count(State::Warning)) {
        (0, 0) => "All is well.".to_owned(),
        (faults, warnings) => format!("Faults: {faults}. Warnings: {warnings}."),
    };
    if !not_checked.is_empty() {
        let names: Vec<_> = not_checked.iter().map(|topic| topic.as_str()).collect();
        let _ = write!(summary, " Not looked at because of a fault: {}.", names.join(", "));
    }
    format!("{}\n\n{summary}", table(checks.iter().map(row).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_has_a_line_and_the_end_sums_up() {
        let checks = [
            Topic::Configuration.ok("complete"),
            Topic::Database.fault("no\u{1b}[2J answer"),
            Topic::Twitch.warning("slow"),
        ];
        insta::assert_snapshot!(text(&checks, &[Topic::Schema, Topic::Rights]), @r"
        ok       configuration  complete
        fault    database       no[2J answer
        warning  twitch         slow

        Faults: 1. Warnings: 1. Not looked at because of a fault: schema, rights.
        ");
        insta::assert_snapshot!(text(&checks[..1], &[]), @r"
        ok  configuration  complete

        All is well.
        ");
    }
}
