//! The cycle over fleets for thirty hours, against a Twitch at fault and streamers that disconnect. What the database does is
//! done in memory here, so that fleets of 500 take seconds; the end-to-end tests prove that the database does the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use chrono::{DateTime, TimeDelta, Utc};
use futures::executor::block_on;
use uuid::Uuid;

use super::{Cycle, RefreshService};
use crate::attempt::{Attempt, Resolution, Stored};
use crate::authorization::{AUTHORIZATION, Authorized};
use crate::clock::{Clock, Monotonic};
use crate::evidence::History;
use crate::notification::Recipient;
use crate::policy::{BUDGET_PERIOD, Policy, deactivation_budget};
use crate::ports::{
    Claim, EventPublisher, Expiry, Lease, Lifetime, Outage, Page, PairMemory, Permit, Place, Priority,
    RefreshError, RetryScheduler, SetAside, SignalError, Store, StoreError, StreamerDeactivated,
    TokenResponse, Twitch, Validation, Validity,
};
use crate::report::Outcome;
use crate::schedule::{self, Trigger};
use crate::streamer::{Streamer, StreamerId, TokenState};
use crate::token::{AccessToken, RefreshToken, TokenPair};

const CLIENT: &str = "ours";
const TOKEN_LIFETIME: TimeDelta = TimeDelta::hours(4);

/// What `/oauth2/validate` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Validate {
    Unavailable,
    Truth,
    Dead,
}

struct Row {
    token: TokenState,
    memory: PairMemory,
    is_active: bool,
    fence: i64,
    /// At Twitch.
    dies_at: DateTime<Utc>,
    is_connected: bool,
    noticed: u32,
}

struct Fleet {
    now: DateTime<Utc>,
    rows: BTreeMap<StreamerId, Row>,
    validate: Validate,
    refuses: bool,
    history: Vec<(StreamerId, DateTime<Utc>, bool)>,
    deactivated: Vec<(StreamerId, DateTime<Utc>)>,
    noticed: Vec<DateTime<Utc>>,
    retries: BTreeSet<DateTime<Utc>>,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<Fleet>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Fleet> {
        self.0.lock().unwrap()
    }
}

fn id(n: usize) -> StreamerId {
    StreamerId(Uuid::from_u128(n as u128))
}

fn streamer(id: StreamerId) -> Streamer {
    Streamer { id, login: id.to_string(), display_name: id.to_string() }
}

/// The token says whose it is.
fn owner(token: &str) -> StreamerId {
    StreamerId(token.parse().unwrap())
}

impl Fleet {
    fn budget_left(&self) -> u64 {
        let recent = self.deactivated.iter().map(|(_, at)| at).chain(&self.noticed);
        let recent = recent.filter(|at| self.now - **at < BUDGET_PERIOD).count() as u64;
        let active = self.rows.values().filter(|row| row.is_active).count() as u64;
        deactivation_budget(active).saturating_sub(recent)
    }

    fn lives(&self, id: StreamerId) -> bool {
        let row = &self.rows[&id];
        row.is_connected && row.dies_at > self.now
    }
}

impl Clock for Shared {
    fn now(&self) -> DateTime<Utc> {
        self.lock().now
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic::after_start(self.lock().now - DateTime::UNIX_EPOCH)
    }
}

impl Store for Shared {
    async fn authorized(
        &self,
        after: Option<Place>,
        now: DateTime<Utc>,
        _: Monotonic,
    ) -> Result<Page, StoreError> {
        let fleet = self.lock();
        let after = after.map(|place| place.id);
        let page = fleet.rows.iter().filter(|(id, row)| row.is_active && Some(**id) > after).take(1_000);
        let authorized = |(id, row): (&StreamerId, &Row)| Authorized {
            streamer: streamer(*id),
            until: now + AUTHORIZATION,
            token: row.token.clone(),
        };
        let authorized: Vec<_> = page.map(authorized).collect();
        let last = authorized.last().map(Place::from);
        Ok(Page { authorized, unreadable: Vec::new(), last })
    }

    async fn claim(
        &self,
        ids: &[StreamerId],
        _: DateTime<Utc>,
        until: DateTime<Utc>,
        _: Monotonic,
    ) -> Result<Vec<Claim>, StoreError> {
        let mut fleet = self.lock();
        let claim = |id: &StreamerId| {
            let row = fleet.rows.get_mut(id).unwrap();
            row.fence += 1;
            let held_until = Monotonic::after_start(until - DateTime::UNIX_EPOCH);
            let lease =
                Lease { id: *id, fence: row.fence, until, held_until, started_from: None, pair: None };
            Claim {
                streamer: streamer(*id),
                is_active: row.is_active,
                twitch_user_id: id.to_string(),
                token: row.token.clone(),
                memory: row.memory.clone(),
                access: Ok(AccessToken::new(id.to_string())),
                refresh: Ok(RefreshToken::new(id.to_string())),
                lease,
            }
        };
        Ok(ids.iter().map(claim).collect())
    }

    async fn record(&self, attempts: &[Attempt], _: Monotonic) -> Result<Vec<Stored>, StoreError> {
        let mut fleet = self.lock();
        for attempt in attempts {
            let id = attempt.streamer.id;
            let row = fleet.rows.get_mut(&id).unwrap();
            match &attempt.resolution {
                Resolution::Refreshed { memory, .. } => {
                    row.token = TokenState {
                        expires_at: memory.expiry.and_then(Expiry::at),
                        refreshed_at: Some(attempt.ended_at),
                        ..TokenState::default()
                    };
                    row.memory = memory.clone();
                    fleet.history.push((id, attempt.ended_at, true));
                }
                Resolution::Validated { memory, .. } | Resolution::Completed { memory, .. } => {
                    row.token.expires_at = memory.expiry.and_then(Expiry::at);
                    row.token.validated_at = Some(attempt.started_at);
                    row.token.failure = None;
                    row.memory = memory.clone();
                }
                Resolution::Failed { cause, verdict, under, .. } => {
                    row.token.failed_under = Some(under.clone());
                    let noticed = row.token.failure.is_some_and(|before| before.noticed);
                    row.token.failure = Some(crate::policy::Failure { noticed, ..verdict.failure() });
                    row.token.expires_at = cause.expires_at;
                    row.memory = cause.memory.clone();
                    if cause.was_refused {
                        fleet.history.push((id, attempt.started_at, false));
                    }
                }
                Resolution::Deactivate { .. } | Resolution::Skipped(_) | Resolution::Panicked => {}
            }
        }
        Ok(vec![Stored::Written; attempts.len()])
    }

    async fn insist(&self, attempt: &Attempt, _: Monotonic) -> Result<Stored, StoreError> {
        panic!("{attempt:?} was refused by no row")
    }

    async fn set_aside(&self, attempt: &Attempt, _: &str, _: DateTime<Utc>) -> Result<(), StoreError> {
        panic!("{attempt:?} was refused by no row")
    }

    async fn take_back(&self, _: &[StreamerId], _: Monotonic) -> Result<(), StoreError> {
        Ok(())
    }

    async fn are_set_aside(&self, _: &[StreamerId], _: DateTime<Utc>) -> Result<Vec<SetAside>, StoreError> {
        Ok(Vec::new())
    }

    async fn deactivate(&self, attempts: &[Attempt], _: Monotonic) -> Result<Vec<Stored>, StoreError> {
        let mut fleet = self.lock();
        let mut done = Vec::new();
        for attempt in attempts {
            if fleet.budget_left() == 0 {
                done.push(Stored::OverBudget);
                continue;
            }
            let row = fleet.rows.get_mut(&attempt.streamer.id).unwrap();
            row.is_active = false;
            row.token.failure = None;
            fleet.deactivated.push((attempt.streamer.id, attempt.ended_at));
            done.push(Stored::Deactivated(Vec::new()));
        }
        Ok(done)
    }

    async fn notice(
        &self,
        attempts: &[Attempt],
        _: Monotonic,
    ) -> Result<Vec<Option<Vec<Recipient>>>, StoreError> {
        let mut fleet = self.lock();
        let mut done = Vec::new();
        for attempt in attempts {
            let allowed = fleet.budget_left() > 0;
            let row = fleet.rows.get_mut(&attempt.streamer.id).unwrap();
            let failure = row.token.failure.as_mut().unwrap();
            if !allowed || failure.noticed {
                done.push(None);
                continue;
            }
            failure.noticed = true;
            row.noticed += 1;
            fleet.noticed.push(attempt.ended_at);
            done.push(Some(Vec::new()));
        }
        Ok(done)
    }

    async fn history(&self, client_id: &str) -> Result<History, StoreError> {
        assert_eq!(client_id, CLIENT);
        let fleet = self.lock();
        let mut history = History::default();
        let last = fleet.history.iter().filter(|(.., succeeded)| *succeeded).map(|(_, at, _)| *at).max();
        for (id, at, succeeded) in &fleet.history {
            if *succeeded {
                history.add_success(*id, *at);
            } else if Some(*at) > last {
                history.add_refusal(*id, *at);
            }
        }
        Ok(history)
    }

    async fn healthy(
        &self,
        except: &[StreamerId],
        now: DateTime<Utc>,
    ) -> Result<Vec<StreamerId>, StoreError> {
        let fleet = self.lock();
        let healthy = fleet.rows.iter().filter(|(id, row)| {
            let lives = row.token.failure.is_none() && row.token.expires_at.is_some_and(|at| at > now);
            row.is_active && lives && !except.contains(id)
        });
        Ok(healthy.map(|(id, _)| *id).take(3).collect())
    }
}

impl Twitch for Shared {
    async fn connect(&self) {}

    async fn refresh(&self, token: &RefreshToken, _: &Permit<'_>) -> Result<TokenResponse, RefreshError> {
        let mut fleet = self.lock();
        let (now, refuses) = (fleet.now, fleet.refuses);
        let row = fleet.rows.get_mut(&owner(token.expose())).unwrap();
        if refuses || !row.is_connected {
            return Err(RefreshError::Refused("Invalid refresh token".to_owned()));
        }
        row.dies_at = now + TOKEN_LIFETIME;
        Ok(TokenResponse {
            pair: TokenPair { access: AccessToken::new(token.expose()), refresh: token.clone() },
            expires_in: Some(TOKEN_LIFETIME),
            missing_scopes: Vec::new(),
        })
    }

    fn client_id(&self) -> String {
        CLIENT.to_owned()
    }

    async fn validate(&self, token: &AccessToken, _: Priority, _: &Permit<'_>) -> Result<Validity, Outage> {
        let fleet = self.lock();
        let id = owner(token.expose());
        match fleet.validate {
            Validate::Unavailable => Err(Outage("Twitch answered 503".to_owned())),
            Validate::Truth if fleet.lives(id) => Ok(Validity::Valid(Validation {
                lifetime: Lifetime::Limited(fleet.rows[&id].dies_at - fleet.now),
                client_id: Some(CLIENT.to_owned()),
                user_id: Some(id.to_string()),
                missing_scopes: Vec::new(),
            })),
            Validate::Truth | Validate::Dead => Ok(Validity::Invalid),
        }
    }
}

impl RetryScheduler for Shared {
    async fn arm_retry(&self, minute: DateTime<Utc>) -> Result<(), SignalError> {
        self.lock().retries.insert(minute);
        Ok(())
    }
}

impl EventPublisher for Shared {
    async fn publish(&self, _: &StreamerDeactivated) -> Result<(), SignalError> {
        Ok(())
    }
}

/// Noon of some day.
fn noon() -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::days(20_780) + TimeDelta::hours(12)
}

/// Numbers without a pattern, the same for the same seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: i64) -> i64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        i64::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// A fleet whose tokens have so many minutes left, some more for each; validated at any time of the last 40 minutes.
fn fleet(size: usize, left: i64, spread: i64, numbers: &mut Numbers) -> Shared {
    let rows = (0..size).map(|n| {
        let dies_at = noon() + TimeDelta::minutes(left) + TimeDelta::seconds(numbers.below(60 * spread + 1));
        let token = TokenState {
            expires_at: Some(dies_at),
            refreshed_at: Some(dies_at - TOKEN_LIFETIME),
            validated_at: Some(noon() - TimeDelta::seconds(numbers.below(2_400))),
            ..TokenState::default()
        };
        let memory = PairMemory { expiry: Some(Expiry::At(dies_at)), ..PairMemory::default() };
        let row = Row { token, memory, is_active: true, fence: 0, dies_at, is_connected: true, noticed: 0 };
        (id(n), row)
    });
    Shared(Arc::new(Mutex::new(Fleet {
        now: noon(),
        rows: rows.collect(),
        validate: Validate::Truth,
        refuses: false,
        history: Vec::new(),
        deactivated: Vec::new(),
        noticed: Vec::new(),
        retries: BTreeSet::new(),
    })))
}

/// Every trigger fires, up to a minute late.
fn play(fleet: &Shared, hours: i64, numbers: &mut Numbers) {
    let service = RefreshService::new(
        fleet.clone(),
        fleet.clone(),
        fleet.clone(),
        fleet.clone(),
        Arc::new(fleet.clone()),
        Policy::default(),
        64,
    );
    let until = fleet.now() + TimeDelta::hours(hours);
    let mut after = fleet.now();
    loop {
        let rule = schedule::next_rule(after);
        let retry = fleet.lock().retries.first().copied();
        let (trigger, at) = match retry {
            Some(at) if at < rule.1 => (Trigger::Retry, at),
            _ => rule,
        };
        if at >= until {
            break;
        }
        if trigger == Trigger::Retry {
            fleet.lock().retries.remove(&at);
        } else {
            after = at + TimeDelta::seconds(1);
        }
        let late = at + TimeDelta::milliseconds(numbers.below(60_000));
        let now = fleet.lock().now.max(late);
        fleet.lock().now = now;
        block_on(service.run(&Cycle::new(trigger), &|_: &Streamer, _: &Outcome| {}));
    }
    fleet.lock().now = until;
}

fn most_in_an_hour(times: &[DateTime<Utc>]) -> u64 {
    let within = |n: usize| times[n..].iter().take_while(|at| **at - times[n] < BUDGET_PERIOD).count() as u64;
    (0..times.len()).map(within).max().unwrap_or(0)
}

#[test]
fn thirty_hours_of_nothing_but_refusals_deactivate_no_streamer() {
    for size in [1, 2, 6, 50, 500] {
        for validate in [Validate::Unavailable, Validate::Truth, Validate::Dead] {
            // Expired, living, and both.
            for (left, spread) in [(-30, 20), (30, 210), (-60, 200)] {
                let seeds = if size < 50 { 6 } else { 1 };
                // Five hundred take seconds.
                if size == 500 && spread != 200 {
                    continue;
                }
                for seed in 0..seeds {
                    // A streamer alone whose living token Twitch calls dead has disconnected, as far as can be known.
                    if size == 1 && validate == Validate::Dead && (left, spread) != (-30, 20) {
                        continue;
                    }
                    let mut numbers = Numbers(seed);
                    let fleet = fleet(size, left, spread, &mut numbers);
                    (fleet.lock().refuses, fleet.lock().validate) = (true, validate);
                    play(&fleet, 30, &mut numbers);
                    let why = format!("{size} streamers, {validate:?}, {left} to {spread} more, seed {seed}");
                    let mut fleet = fleet.lock();
                    assert!(fleet.deactivated.is_empty(), "{why}: {:?}", fleet.deactivated);
                    assert!(fleet.rows.values().all(|row| row.noticed <= 1), "{why}");
                    fleet.noticed.sort_unstable();
                    assert!(most_in_an_hour(&fleet.noticed) <= deactivation_budget(size as u64), "{why}");
                    if validate != Validate::Unavailable && size < 50 {
                        assert_eq!(fleet.noticed.len(), size, "{why}: all are notified in the end");
                    }
                }
            }
        }
    }
}

#[test]
fn streamers_that_recover_after_hours_of_refusals_are_refreshed_and_not_deactivated() {
    for size in [1, 2, 6, 50] {
        for validate in [Validate::Unavailable, Validate::Truth, Validate::Dead] {
            let mut numbers = Numbers(7);
            let fleet = fleet(size, -30, 20, &mut numbers);
            (fleet.lock().refuses, fleet.lock().validate) = (true, validate);
            play(&fleet, 6, &mut numbers);
            (fleet.lock().refuses, fleet.lock().validate) = (false, Validate::Truth);
            play(&fleet, 1, &mut numbers);
            let fleet = fleet.lock();
            assert!(fleet.deactivated.is_empty(), "{size}, {validate:?}");
            assert!(fleet.rows.values().all(|row| row.dies_at > fleet.now && row.token.failure.is_none()));
        }
    }
}

#[test]
fn a_streamer_that_disconnects_is_deactivated_and_no_other() {
    for (size, seeds) in [(1, 1), (2, 10), (6, 10), (50, 3), (500, 1)] {
        for (left, spread) in [(-30, 20), (60, 150)] {
            for seed in 0..seeds {
                let mut numbers = Numbers(seed);
                let fleet = fleet(size, left, spread, &mut numbers);
                fleet.lock().rows.get_mut(&id(0)).unwrap().is_connected = false;
                play(&fleet, 12, &mut numbers);
                let why = format!("{size} streamers, {left} to {spread} more, seed {seed}");
                let fleet = fleet.lock();
                if size == 1 && left < 0 {
                    assert_eq!((fleet.deactivated.len(), fleet.noticed.len()), (0, 1), "{why}");
                    continue;
                }
                let [(found, at)] = fleet.deactivated[..] else { panic!("{why}: {:?}", fleet.deactivated) };
                assert_eq!(found, id(0), "{why}");
                // Validated within 55 minutes, refused, and refused again a quarter of an hour and a minute later.
                let minutes = (at - noon()).num_minutes();
                assert!(minutes <= 75, "{why}: after {minutes} minutes");
                assert!(fleet.noticed.is_empty(), "{why}");
            }
        }
    }
}
