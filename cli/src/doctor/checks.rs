//! What is well and what is not: facts in, a line out. No I/O.

use std::fmt::Write as _;

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use tokens_aws::RetryConfig;
use tokens_aws::RetryGroup;
use tokens_cipher::DecryptError;
use tokens_domain::policy::{ONLY_REFUSALS, Policy, VALIDATION_AGE};
use tokens_domain::ports::{RefreshError, SetAside, StoreError};
use tokens_domain::{Authorized, Streamer};
use tokens_store::CLOCK_TOLERANCE;
use tokens_store::{
    Hidden, LastRuns, Misplaced, NotifyRole, Rehearsal, SchemaVersion, Server, StoredTexts, StoredUnder,
    Tables, Trust, Waiting,
};
use tokens_telemetry::Human;

use super::check::{Check, Topic};
use crate::output::{name, time};

/// A sweep and a delivery begin every 15 minutes and take a few at most: what has been due for longer was left.
const LATE: TimeDelta = TimeDelta::minutes(20);

/// Names that a line has room for.
const NAMED: usize = 3;

/// A line for each fault.
pub fn configuration(faults: &[String]) -> Vec<Check> {
    if faults.is_empty() {
        return vec![Topic::Configuration.ok("complete")];
    }
    faults.iter().map(|text| Topic::Configuration.fault(text)).collect()
}

pub fn out_of_reach(error: &StoreError) -> Check {
    Topic::Database.fault(error.to_string())
}

pub fn database(server: &Server) -> Check {
    let Server { version, place, role, trust, takes_writes } = server;
    let connected = format!("connected to {place} as {role}: PostgreSQL {version}");
    if !takes_writes {
        return Topic::Database.fault(format!(
            "{connected}, which takes no writes, so nothing can be refreshed: it is a standby, or was the writer before a \
             failover, or all transactions of {role} are read only (default_transaction_read_only)"
        ));
    }
    match trust {
        Trust::Verified => Topic::Database.ok(format!("{connected}, its certificate is verified")),
        Trust::Near => Topic::Database.ok(format!("{connected}, on this machine")),
        Trust::PrivateNetwork => Topic::Database.warning(format!(
            "{connected}, without TLS (DATABASE_PLAINTEXT=on): the password and all tokens as they are stored can be read and \
             changed on the way. Enable TLS on the server and set sslmode=verify-full"
        )),
    }
}

/// How far the database's clock is ahead of this machine's. All hosts go by the database's, so nothing is at fault.
pub fn clock(ahead: TimeDelta) -> Check {
    if ahead.abs() <= CLOCK_TOLERANCE {
        return Topic::Clock.ok("this machine and the database agree on the time");
    }
    Topic::Clock.warning(format!(
        "this machine and the database are {} s apart; the database's time is used. Let both follow the same time \
         service (NTP); on this machine, see timedatectl",
        ahead.num_seconds().abs()
    ))
}

/// The version, and the application's tables, which are looked at if the version is right.
pub fn schema(version: Result<SchemaVersion, StoreError>, tables: Result<Tables, StoreError>) -> Check {
    let (version, tables) = match (version, tables) {
        (Ok(version), Ok(tables)) => (version, tables),
        (Err(error), _) | (_, Err(error)) => return Topic::Schema.fault(error.to_string()),
    };
    if !tables.faults.is_empty() {
        return Topic::Schema.fault(tables.faults.join("; "));
    }
    let mut text = format!("at version {version}");
    if !tables.without_time_zone.is_empty() {
        let _ =
            write!(text, "; without a time zone, taken to be UTC: {}", tables.without_time_zone.join(", "));
    }
    if !tables.missing.is_empty() {
        return Topic::Schema.warning(format!(
            "{text}; missing since a table was dropped, and restored by `tokens migrate` as the tables' owner: {}",
            tables.missing.join(", ")
        ));
    }
    if version.is_newer() {
        return Topic::Schema.warning(format!("{text}; deploy the program that migrated it"));
    }
    Topic::Schema.ok(text)
}

/// Whether a cycle's own statements were tried on a streamer's row.
pub enum Trial {
    Tried(Result<Rehearsal, StoreError>),
    /// The login may not write, so the doctor does not try.
    MayNotWrite,
    NoKeys,
}

/// What this login can see, and what became of a cycle's own statements.
pub fn rows(role: &str, hidden: Result<Vec<Hidden>, StoreError>, trial: Trial) -> Check {
    let (hidden, rehearsal) = match (hidden, trial) {
        (Err(error), _) | (_, Trial::Tried(Err(error))) => return Topic::Rows.fault(error.to_string()),
        (Ok(hidden), Trial::Tried(Ok(rehearsal))) => (hidden, Ok(rehearsal)),
        (Ok(hidden), Trial::MayNotWrite) => (hidden, Err(format!("{role} may not write"))),
        (Ok(hidden), Trial::NoKeys) => (hidden, Err("no key for the tokens is configured".to_owned())),
    };
    let way_out = format!(
        "ALTER ROLE \"{role}\" BYPASSRLS, or give it policies FOR ALL with USING (true); a view has to become a table again"
    );
    let those = |fits: &dyn Fn(&Hidden) -> bool| {
        let names: Vec<_> = hidden.iter().filter(|one| fits(one)).map(|one| one.relation.as_str()).collect();
        names.join(", ")
    };
    let unseen = those(&|one| !one.sees_some && !one.only_writes);
    if !unseen.is_empty() {
        return Topic::Rows.fault(format!(
            "{role} sees no row of {unseen}, where row-level security or a view may hide some: {way_out}"
        ));
    }
    match rehearsal {
        Ok(Rehearsal::NotLocked(streamer)) => {
            return Topic::Rows.fault(format!(
                "{role} can read {} and not lock the row, so nothing can be refreshed: {way_out}",
                name(&streamer)
            ));
        }
        Ok(Rehearsal::NotWritten(streamer)) => {
            return Topic::Rows.fault(format!(
                "{role} can lock the row of {} and not change it, so every new token is lost: {way_out}",
                name(&streamer)
            ));
        }
        _ => {}
    }
    let partly = those(&|_| true);
    if !partly.is_empty() {
        return Topic::Rows.warning(format!(
            "row-level security or a view may hide rows of {partly} from {role}: {way_out}"
        ));
    }
    match rehearsal {
        Ok(Rehearsal::NoStreamer) => Topic::Rows.warning(
            "public.streamers has no active streamer: if the application has some, DATABASE_URL names another database",
        ),
        Ok(Rehearsal::Busy) => {
            Topic::Rows.ok("nothing is hidden; the rows that were tried are held by other runs")
        }
        Ok(_) => Topic::Rows.ok("nothing is hidden; a streamer's row was leased, locked, written, and put back"),
        Err(why) => {
            Topic::Rows.warning(format!("nothing is hidden; what a cycle does was not tried on a row: {why}"))
        }
    }
}

pub fn rights(role: &str, missing: Result<Vec<String>, StoreError>) -> Check {
    match missing {
        Err(error) => Topic::Rights.fault(error.to_string()),
        Ok(missing) if missing.is_empty() => Topic::Rights.ok(format!("{role} may do all that a cycle does")),
        Ok(missing) => {
            let grants: Vec<_> = missing.iter().map(|right| format!("GRANT {right} TO \"{role}\"")).collect();
            Topic::Rights.fault(format!("{role} lacks rights: as the tables' owner, {}", grants.join("; ")))
        }
    }
}

pub fn notify_role(found: Result<NotifyRole, StoreError>) -> Check {
    match found {
        Err(error) => Topic::NotifyRole.fault(error.to_string()),
        Ok(NotifyRole { exists: false, .. }) => Topic::NotifyRole.warning(
            "the role token_refresh_notify is missing, so the function notify can't work: CREATE ROLE \
             token_refresh_notify NOLOGIN, then as the tables' owner CALL token_refresh.grant_notify()",
        ),
        Ok(NotifyRole { logins, .. }) if logins.is_empty() => Topic::NotifyRole.warning(
            "no login has the role token_refresh_notify, which the function notify needs: GRANT \
             token_refresh_notify TO the login in its secret. Where notify is not deployed, nothing has to be done",
        ),
        Ok(NotifyRole { logins, .. }) => {
            Topic::NotifyRole.ok(format!("{} can deliver notifications, and read no token", logins.join(", ")))
        }
    }
}

pub fn tokens(found: Result<Vec<StoredTexts>, StoreError>) -> Check {
    let kinds = match found {
        Err(error) => return Topic::Tokens.fault(error.to_string()),
        Ok(kinds) if kinds.is_empty() => return Topic::Tokens.ok("none is stored yet"),
        Ok(kinds) => kinds,
    };
    let counts: Vec<_> = kinds.iter().map(|kind| format!("{} {}", kind.texts, under(kind))).collect();
    let counts = format!("stored texts: {}", counts.join(", "));
    let first = |is_ours: bool| {
        kinds.iter().find_map(|kind| {
            let mut reasons = kind.unreadable.iter();
            let reason = reasons.find(|reason| (**reason != DecryptError::UnknownFormat) == is_ours)?;
            Some(format!("tried {} of those {}: {reason}", kind.tried, under(kind)))
        })
    };
    match (first(true), first(false)) {
        (Some(ours), _) => Topic::Tokens
            .fault(format!("{counts}; {ours}. These streamers are neither refreshed nor deactivated for it")),
        (None, Some(theirs)) => Topic::Tokens.warning(format!("{counts}; {theirs}")),
        (None, None) => Topic::Tokens.ok(format!("{counts}; a sample of each could be opened")),
    }
}

/// Nothing where every token is its streamer's, as far as Twitch was asked.
pub fn misplaced(found: Result<Vec<Misplaced>, StoreError>) -> Option<Check> {
    let found = match found {
        Ok(found) => found,
        Err(error) => return Some(Topic::Tokens.fault(error.to_string())),
    };
    let (client, user): (Vec<_>, Vec<_>) = found.iter().partition(|one| one.other_client.is_some());
    let mut texts = Vec::new();
    if let Some(first) = client.first() {
        texts.push(format!(
            "Twitch says that the tokens of {} were issued to another application (client id {}): check TWITCH_CLIENT_ID; if \
             it is right, these streamers have to reconnect",
            streamers(&client),
            first.other_client.as_deref().unwrap_or_default()
        ));
    }
    if !user.is_empty() {
        texts.push(format!(
            "Twitch says that the tokens of {} belong to another Twitch user than the streamer: they have to reconnect",
            streamers(&user)
        ));
    }
    (!texts.is_empty())
        .then(|| Topic::Tokens.fault(format!("{}. No streamer is deactivated for it", texts.join("; "))))
}

fn streamers(found: &[&Misplaced]) -> String {
    named(&found.iter().map(|one| &one.streamer).collect::<Vec<_>>())
}

/// Nothing where a refresh succeeded, or none was refused.
pub fn only_refused(refused_for: Result<TimeDelta, StoreError>) -> Option<Check> {
    match refused_for {
        Err(error) => Some(Topic::Twitch.fault(error.to_string())),
        Ok(refused_for) if refused_for >= ONLY_REFUSALS => Some(Topic::Twitch.fault(format!(
            "for {} it has refused every refresh: either Twitch is at fault (https://status.twitch.com), or all streamers \
             that were tried have disconnected. No streamer is deactivated as long as it can be either",
            Human(refused_for)
        ))),
        Ok(_) => None,
    }
}

fn under(kind: &StoredTexts) -> String {
    match &kind.key {
        Some(StoredUnder::AppKey) => "under APP_KEY".to_owned(),
        Some(StoredUnder::TokenKey(id)) => format!("under the key `{id}` of TOKEN_KEYS"),
        None => "in no known format".to_owned(),
    }
}

pub fn cycles(
    authorized: Result<Vec<Authorized>>,
    aside: Result<Vec<SetAside>, StoreError>,
    runs: Result<LastRuns, StoreError>,
    policy: Policy,
    now: DateTime<Utc>,
) -> Check {
    let (authorized, aside, runs) = match (authorized, aside, runs) {
        (Ok(authorized), Ok(aside), Ok(runs)) => (authorized, aside, runs),
        (Err(error), ..) => return Topic::Cycles.fault(error.to_string()),
        (_, Err(error), _) | (.., Err(error)) => return Topic::Cycles.fault(error.to_string()),
    };
    if authorized.is_empty() {
        return Topic::Cycles.ok("no streamer is authorized now, so there is nothing to do");
    }
    let ago = |at: Option<DateTime<Utc>>| {
        at.map_or("none lately".to_owned(), |at| format!("{} ago", Human(now - at)))
    };
    let summary = format!(
        "{} authorized; the last refresh of a planned run: {}, of a sweep: {}",
        authorized.len(),
        ago(runs.planned),
        ago(runs.sweep)
    );
    let those =
        |fits: &dyn Fn(&Authorized) -> bool| authorized.iter().filter(|one| fits(one)).collect::<Vec<_>>();
    let is_aside = |one: &Authorized| aside.iter().any(|row| row.id == one.streamer.id);
    let overdue = those(&|one| is_overdue(one, policy, now) && !is_aside(one));
    if !overdue.is_empty() {
        let summary = format!("{summary}; overdue: {}", names(&overdue));
        // As while a backend is taken over, which refreshed them before.
        if runs.planned.or(runs.sweep).is_none() {
            return Topic::Cycles.warning(format!(
                "{summary}. No planned run and no sweep has refreshed a streamer yet: before the rules are enabled, that is to be \
                 expected; if they are, look at the log of scheduled-refresh. `tokens refresh` refreshes them now"
            ));
        }
        return Topic::Cycles.fault(format!(
            "{summary}. Sweeps don't run, or don't come to an end: look whether the rules are enabled, then at the log \
             of scheduled-refresh; `tokens refresh` refreshes them now"
        ));
    }
    if let Some(SetAside { until, reason, .. }) = aside.first() {
        return Topic::Cycles.fault(format!(
            "{summary}; set aside: {}, until {} at the earliest: {reason}. When that is fixed, `tokens refresh --force` with the \
             streamer's id tries it at once",
            names(&those(&is_aside)),
            time(Some(*until))
        ));
    }
    let failed = those(&|one| one.token.failure.is_some());
    if !failed.is_empty() {
        let waiting = those(&|one| policy.waits_for_retry(&one.token, now).is_some()).len();
        return Topic::Cycles.warning(format!(
            "{summary}; with a failure that stands: {}. {waiting} of them wait for a retry: see `tokens status`; once the cause \
             is fixed, `tokens refresh --force` tries them at once",
            names(&failed)
        ));
    }
    let unseen = those(&|one| {
        one.token.expires_at.is_none() && one.token.no_expiry.is_none() || proven_at(one).is_none()
    });
    if !unseen.is_empty() {
        return Topic::Cycles.warning(format!(
            "{summary}; not seen by a sweep yet: {}. The next one is to change that",
            names(&unseen)
        ));
    }
    Topic::Cycles.ok(format!("{summary}; no streamer is overdue"))
}

/// Whether a sweep should have been here. Before the authorization there was nothing for it to do.
fn is_overdue(one: &Authorized, policy: Policy, now: DateTime<Utc>) -> bool {
    let due = policy.due_for(one, now).is_some_and(|waited| waited > LATE);
    let unproven_since = proven_at(one).max(one.since(now));
    due || one.token.failure.is_none() && unproven_since.is_some_and(|at| now - at > VALIDATION_AGE + LATE)
}

/// When Twitch said last that the token lives.
fn proven_at(one: &Authorized) -> Option<DateTime<Utc>> {
    one.token.refreshed_at.max(one.token.validated_at)
}

fn names(those: &[&Authorized]) -> String {
    named(&those.iter().map(|one| &one.streamer).collect::<Vec<_>>())
}

fn named(those: &[&Streamer]) -> String {
    let named: Vec<_> = those.iter().take(NAMED).map(|one| name(one)).collect();
    match those.len().saturating_sub(NAMED) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

pub fn outbox(waiting: Result<Waiting, StoreError>, now: DateTime<Utc>) -> Check {
    let Waiting { pending, due_since, given_up } = match waiting {
        Ok(waiting) => waiting,
        Err(error) => return Topic::Outbox.fault(error.to_string()),
    };
    if let Some(since) = due_since.filter(|since| now - *since > LATE) {
        return Topic::Outbox.fault(format!(
            "{pending} notifications wait, and one has been due since {} UTC: they are not delivered. Look at the rules and the \
             log of the function notify, and at `tokens notifications`; after 24 hours they are given up",
            time(Some(since))
        ));
    }
    if given_up > 0 {
        return Topic::Outbox.warning(format!(
            "{given_up} notifications were given up within a day: `tokens notifications` says why"
        ));
    }
    Topic::Outbox.ok(format!("{pending} notifications wait, none of them for long"))
}

pub fn no_client(reason: &str) -> Check {
    Topic::Twitch.fault(reason)
}

/// Whether our application was given a token, and whether it could give it back.
pub fn twitch(asked: Result<Result<(), RefreshError>, RefreshError>) -> Check {
    match asked {
        Ok(Ok(())) => Topic::Twitch.ok("takes the client id and the client secret"),
        Ok(Err(error)) => Topic::Twitch.warning(format!(
            "takes the client id and the client secret, but not back the token that this check was given: {error}. \
             It is our application's own and expires by itself"
        )),
        Err(RefreshError::Misconfigured(text) | RefreshError::Refused(text)) => {
            Topic::Twitch.fault(format!("{text}. Until then no streamer is refreshed, and none is marked"))
        }
        Err(RefreshError::Outage(outage)) => Topic::Twitch.fault(format!(
            "{outage}: is Twitch down (https://status.twitch.com), or this machine's way out? No streamer is \
             deactivated for it"
        )),
        Err(RefreshError::Withheld(why)) => Topic::Twitch.fault(why.to_string()),
    }
}

/// Nothing where no key is configured.
pub fn vapid(keys: Option<Result<(), Vec<String>>>) -> Check {
    match keys {
        None => Topic::Vapid.ok("no key is configured here, so nothing is delivered from here"),
        Some(Ok(())) => Topic::Vapid.ok("the keys are a pair, and the subject is an address"),
        Some(Err(faults)) => Topic::Vapid.fault(faults.join("; ")),
    }
}

/// Nothing where no one-shots are configured.
pub fn schedules(found: Option<(&RetryConfig, RetryGroup)>) -> Check {
    let Some((RetryConfig { group, target_arn, .. }, found)) = found else {
        return Topic::Schedules.ok("no one-shots are configured here (RETRY_GROUP): the sweep retries");
    };
    match found {
        RetryGroup::There => Topic::Schedules.ok(format!(
            "the group `{group}` is there; whether its target is, says aws lambda get-function \
             --function-name {target_arn}"
        )),
        RetryGroup::Missing => Topic::Schedules.fault(format!(
            "the schedule group `{group}` does not exist in this region and account, so no retry can be armed, and the \
             sweep retries: check RETRY_GROUP and AWS_REGION"
        )),
        RetryGroup::Hidden(reason) => Topic::Schedules.warning(format!(
            "the group `{group}` could not be looked up: {reason}. That needs scheduler:GetScheduleGroup on it, \
             which the functions don't"
        )),
        RetryGroup::OutOfReach(reason) => Topic::Schedules.fault(format!(
            "EventBridge Scheduler can't be asked for the group `{group}`: {reason}; check region, credentials and \
             the way out. The sweep retries meanwhile"
        )),
    }
}

#[cfg(test)]
mod tests;
