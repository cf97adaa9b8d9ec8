//! What the rules are worth: every session that a day can hold is walked over the real policy and the real
//! schedules, and the time is counted in which it had no live token.
//!
//! A **session** is the 12 hours from a grant, and one is granted at every second of a day. It starts on a
//! fresh token: a grant refreshes at once and tells the streamer if that failed, so failures and losses
//! befall what comes after. Every **trigger** that fires asks [`Policy::decide`]. Every refresh fails as
//! often as the scenario says, each failure goes through [`Policy::after_failure`] and arms its one-shot,
//! then an attempt succeeds and gives a whole lifetime. Attempts take no time; no health check and no command
//! helps.
//!
//! Nothing is sampled but the delays that are drawn, and those from fixed seeds: the result is always the
//! same. Where fewer sessions are walked than counted, a comment says why the others are the same.

mod figures;
mod report;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::iter::{self, Peekable};
use std::sync::LazyLock;

use chrono::{DateTime, TimeDelta, Utc};
use tokens_domain::TokenState;
use tokens_domain::policy::{Decision, FailureKind, Policy, Verdict};
use tokens_domain::refresh::Cycle;
use tokens_domain::schedule::{self, Trigger};

use self::figures::Figures;
pub use self::report::{Report, print, run};

/// What a membership grants, in seconds.
const SESSION: u64 = 12 * 60 * 60;

/// The day of the grants, in seconds from the epoch. The rules fire alike every day, so the first one will
/// do.
const DAY: u64 = 24 * 60 * 60;

/// How long tokens live, in seconds: what Twitch was seen to answer as `expires_in`, its usual 4 hours, and
/// shorter lives in case it changes its mind.
const LIFETIMES: [u64; 8] = [14_542, 14_400, 14_346, 14_124, 13_293, 3 * 3600, 2 * 3600, 45 * 60];

/// How often each refresh fails before it succeeds.
const FAILURES: [(u32, &str); 3] =
    [(0, "no failure"), (1, "one failure before each refresh"), (2, "two failures before each refresh")];

/// The triggers that never come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Nothing,
    /// One trigger, whichever it is: a session counts once for each trigger that it can miss.
    AnyOne,
    /// All of these kinds. Without [`Trigger::Grant`] a session starts on a dead token of unknown expiry.
    Every(&'static [Trigger]),
}

const ALL_PLANNED: Loss = Loss::Every(&[Trigger::Planned]);
const ALL_SWEEPS: Loss = Loss::Every(&[Trigger::Sweep]);
const ALL_RETRIES: Loss = Loss::Every(&[Trigger::Retry]);
const THE_GRANT: Loss = Loss::Every(&[Trigger::Grant]);

/// The brief's rule knows no sweep, and nothing triggers its retries.
const ALL_BUT_THE_BRIEFS: Loss = Loss::Every(&[Trigger::Sweep, Trigger::Retry]);

const LOSSES: [(Loss, &str); 6] = [
    (Loss::Nothing, "nothing lost"),
    (Loss::AnyOne, "any one trigger lost"),
    (ALL_PLANNED, "all planned runs lost"),
    (ALL_SWEEPS, "all sweeps lost"),
    (ALL_RETRIES, "all retries lost"),
    (THE_GRANT, "the grant's refresh lost"),
];

impl Loss {
    fn spares(self, trigger: Trigger) -> bool {
        !matches!(self, Self::Every(kinds) if kinds.contains(&trigger))
    }
}

/// How late triggers fire.
#[derive(Clone, Copy, Debug)]
enum Lateness {
    /// Each by so many seconds.
    Same(u64),
    /// Each by 0 to 60 seconds of its own, drawn from a seed.
    Drawn(u64),
}

/// 60 seconds stand for every common delay of 1 to 60: a retry then comes 16 minutes after its failure,
/// whatever the delay, which so only shifts the day; and the grants fill all of it.
const LATENESS: [Lateness; 5] =
    [Lateness::Same(0), Lateness::Same(60), Lateness::Drawn(1), Lateness::Drawn(2), Lateness::Drawn(3)];

/// A trigger that fires. They are ordered as they fire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Firing {
    at: DateTime<Utc>,
    trigger: Trigger,
}

impl Firing {
    fn new(trigger: Trigger, planned_at: DateTime<Utc>, lateness: Lateness) -> Self {
        let late = match lateness {
            Lateness::Same(seconds) => seconds,
            Lateness::Drawn(seed) => {
                [seed, trigger as u64, unix(planned_at)].into_iter().fold(0, scramble) % 61
            }
        };
        Self { at: planned_at + seconds(late), trigger }
    }
}

/// `SplitMix64`'s mixing: from neighbouring numbers to ones that have nothing in common.
fn scramble(state: u64, number: u64) -> u64 {
    let mut mixed = (state ^ number).wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

// The policy speaks of instants; sessions are counted by the million, in whole seconds from the epoch.

fn seconds(count: u64) -> TimeDelta {
    TimeDelta::seconds(count.cast_signed())
}

fn instant(unix: u64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + seconds(unix)
}

fn unix(at: DateTime<Utc>) -> u64 {
    at.timestamp().cast_unsigned()
}

/// The planned runs and sweeps of all sessions.
static RULES: LazyLock<Vec<(Trigger, DateTime<Utc>)>> = LazyLock::new(|| {
    iter::successors(Some(schedule::next_rule(instant(0))), |(_, at)| {
        Some(schedule::next_rule(*at + seconds(1)))
    })
    .take_while(|(_, at)| *at < instant(DAY + SESSION))
    .collect()
});

/// What befalls the sessions of a day.
#[derive(Clone, Copy, Debug)]
struct Scenario {
    policy: Policy,
    /// How many seconds a fresh token lives.
    lifetime: u64,
    /// How often in a row each refresh fails before it succeeds.
    failures: u32,
    kind: FailureKind,
    loss: Loss,
    lateness: &'static [Lateness],
    /// Seconds from one grant to the next.
    grants_every: usize,
}

impl Scenario {
    fn new(lifetime: u64, failures: u32, loss: Loss) -> Self {
        Self {
            policy: Policy::default(),
            lifetime,
            failures,
            kind: FailureKind::Outage,
            loss,
            lateness: &LATENESS,
            grants_every: 1,
        }
    }

    /// The brief's rule alone, as the existing backend was measured: nothing fails, nothing is late, grants
    /// on the minute.
    fn brief(lifetime: u64) -> Self {
        Self {
            lateness: &[Lateness::Same(0)],
            grants_every: 60,
            ..Self::new(lifetime, 0, ALL_BUT_THE_BRIEFS)
        }
    }

    fn simulate(&self) -> Figures {
        let grants: Vec<u64> = (0..DAY).step_by(self.grants_every).collect();
        let mut figures = Figures::default();
        for lateness in self.lateness {
            self.simulate_day(&grants, *lateness, &mut figures);
        }
        figures
    }

    /// Sessions whose first refresh falls to the same trigger form a cohort: they differ in when they start
    /// and end, and share all that happens between. One walk serves them all.
    fn simulate_day(&self, mut grants: &[u64], lateness: Lateness, figures: &mut Figures) {
        let rules: Vec<Firing> = RULES
            .iter()
            .filter(|(trigger, _)| self.loss.spares(*trigger))
            .map(|(trigger, at)| Firing::new(*trigger, *at, lateness))
            .collect();
        for (first, firing) in rules.iter().enumerate() {
            let (cohort, later) =
                grants.split_at(grants.partition_point(|at| self.first_due(*at) <= firing.at));
            grants = later;
            let (Some(earliest), Some(latest)) = (cohort.first(), cohort.last()) else { continue };
            let walk = |lost| {
                let rules = rules[first..].iter().take_while(|rule| rule.at < instant(latest + SESSION));
                self.walk(self.first_token(*earliest), rules.copied(), lateness, lost)
            };
            let undisturbed = walk(None);
            if self.loss != Loss::AnyOne {
                figures.add(cohort, self.first_life(), &undisturbed);
                continue;
            }
            // To lose a trigger that would have skipped changes nothing: those that acted are all there is to
            // lose.
            for lost in &undisturbed.acted {
                let over = cohort.partition_point(|grant| instant(grant + SESSION) <= lost.at);
                figures.add(&cohort[over..], self.first_life(), &walk(Some(*lost)));
            }
        }
    }

    /// What is known of the token when a session starts.
    fn first_token(&self, granted: u64) -> TokenState {
        if self.loss.spares(Trigger::Grant) {
            self.fresh_token(instant(granted))
        } else {
            TokenState::default()
        }
    }

    /// How many seconds that token lives.
    fn first_life(&self) -> u64 {
        if self.loss.spares(Trigger::Grant) { self.lifetime } else { 0 }
    }

    /// From when on a trigger refreshes it.
    fn first_due(&self, granted: u64) -> DateTime<Utc> {
        let granted_at = instant(granted);
        self.policy.due_at(&self.first_token(granted)).since(Some(granted_at)).unwrap_or(granted_at)
    }

    fn fresh_token(&self, at: DateTime<Utc>) -> TokenState {
        let expires_at = at + seconds(self.lifetime);
        TokenState { expires_at: Some(expires_at), refreshed_at: Some(at), ..TokenState::default() }
    }

    /// Follows one token through the rules and the one-shots that its failures arm.
    fn walk(
        &self,
        mut token: TokenState,
        rules: impl Iterator<Item = Firing>,
        lateness: Lateness,
        lost: Option<Firing>,
    ) -> Course {
        let mut course = Course::default();
        let mut failed = 0;
        let mut rules = rules.peekable();
        // A set, because failures whose retries fall into one minute share a one-shot.
        let mut retries = BTreeSet::new();
        while let Some(firing) = next_firing(&mut rules, &mut retries) {
            if lost == Some(firing) {
                continue;
            }
            let now = firing.at;
            let mode = Cycle::new(firing.trigger).mode;
            match self.policy.decide(&token, mode, now) {
                Decision::Skip(_) => {}
                // Twitch calls it valid, for a token that is not due has not died.
                Decision::Validate if token.failure.is_none() => token.validated_at = Some(now),
                // One that failed by an outage and lives needs no mark; one that was refused is dead.
                Decision::Validate => {
                    if self.kind == FailureKind::Outage && token.expires_at.is_some_and(|at| at > now) {
                        token.validated_at = Some(now);
                        token.failure = None;
                    }
                }
                Decision::Refresh => {
                    course.acted.push(firing);
                    if failed == self.failures {
                        failed = 0;
                        token = self.fresh_token(now);
                        course.lives.push(Span { from: unix(now), to: unix(now) + self.lifetime });
                        continue;
                    }
                    failed += 1;
                    // Every refusal of these is confirmed.
                    if self.kind == FailureKind::Refusal && self.policy.is_decisive(token.failure, now) {
                        course.deactivated = Some(unix(now));
                        break;
                    }
                    let (Verdict::Recorded(failure) | Verdict::Repeated(failure)) =
                        self.policy.after_failure(token.failure, self.kind, now);
                    token.failure = Some(failure);
                    let minute = schedule::retry_minute(failure.at + self.policy.retry_delay);
                    let retry = Firing::new(Trigger::Retry, minute, lateness);
                    retries.extend(self.loss.spares(Trigger::Retry).then_some(retry));
                }
            }
        }
        course
    }
}

/// Takes the earlier one.
fn next_firing(
    rules: &mut Peekable<impl Iterator<Item = Firing>>,
    retries: &mut BTreeSet<Firing>,
) -> Option<Firing> {
    match rules.peek() {
        Some(rule) if retries.first().is_none_or(|retry| rule < retry) => rules.next(),
        _ => retries.pop_first(),
    }
}

/// From a second on, up to and without another.
#[derive(Clone, Copy, Debug)]
struct Span {
    from: u64,
    to: u64,
}

impl Span {
    /// Its seconds before `end`.
    fn until(self, end: u64) -> u64 {
        self.to.min(end).saturating_sub(self.from)
    }
}

/// How the sessions of a cohort go after their grants.
#[derive(Debug, Default)]
struct Course {
    /// The triggers that tried to refresh.
    acted: Vec<Firing>,
    /// From each refresh that succeeded to the death of its token.
    lives: Vec<Span>,
    deactivated: Option<u64>,
}

impl Course {
    /// Each time without a live token after the first refresh. Before it, that is each session's own affair.
    fn gaps(&self) -> impl Iterator<Item = Span> {
        let next_lives = self.lives.iter().skip(1).map(|life| life.from).chain([u64::MAX]);
        let deaths = self.lives.iter().map(|life| life.to);
        deaths.zip(next_lives).map(|(from, to)| Span { from, to }).filter(|gap| gap.from < gap.to)
    }
}
