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

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::sync::LazyLock;
use std::{fmt, iter, thread};

use chrono::{DateTime, TimeDelta, Utc};
use domain::TokenState;
use domain::policy::{Decision, Demand, FailureKind, Policy, Verdict};
use domain::schedule::{self, Trigger};

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
        self.policy.due_at(&self.first_token(granted)).map_or(granted_at, |at| at.max(granted_at))
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
            let demand = if firing.trigger == Trigger::Sweep { Demand::DueOrUnproven } else { Demand::Due };
            match self.policy.decide(&token, demand, now) {
                Decision::Skip(_) => {}
                // Twitch calls it valid, for a token that is not due has not died.
                Decision::Validate => token.validated_at = Some(now),
                Decision::Refresh => {
                    course.acted.push(firing);
                    if failed == self.failures {
                        failed = 0;
                        token = self.fresh_token(now);
                        course.lives.push(Span { from: unix(now), to: unix(now) + self.lifetime });
                        continue;
                    }
                    failed += 1;
                    match self.policy.after_failure(token.failure, self.kind, now) {
                        Verdict::Recorded(failure) | Verdict::Repeated(failure) => {
                            token.failure = Some(failure);
                            let minute = schedule::retry_minute(failure.at + self.policy.retry_delay);
                            let retry = Firing::new(Trigger::Retry, minute, lateness);
                            retries.extend(self.loss.spares(Trigger::Retry).then_some(retry));
                        }
                        Verdict::Deactivate => {
                            course.deactivated = Some(unix(now));
                            break;
                        }
                    }
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

/// A session's time without a live token, in seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Dead {
    total: u64,
    /// In one piece.
    longest: u64,
}

impl Dead {
    fn add(mut self, piece: u64) -> Self {
        self.total += piece;
        self.longest = self.longest.max(piece);
        self
    }
}

/// What is counted over many sessions; times in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Figures {
    sessions: u64,
    /// Those that were without a live token for a second or more.
    touched: u64,
    /// Those whose streamer was deactivated.
    deactivated: u64,
    /// The time without a live token, all sessions together.
    dead: u64,
    /// That of the worst session.
    worst: u64,
    /// The longest such time in one piece.
    longest: u64,
}

impl Figures {
    /// Adds sessions that share a course, given when they were granted, in order, and how long their first
    /// tokens lived.
    fn add(&mut self, grants: &[u64], first_life: u64, course: &Course) {
        let (Some(earliest), Some(latest)) = (grants.first(), grants.last()) else { return };
        self.sessions += grants.len() as u64;
        if let Some(at) = course.deactivated {
            self.deactivated += grants.iter().filter(|grant| at < *grant + SESSION).count() as u64;
        }
        // What is over before the first of them ends, all have alike; the rest, each has up to its own end.
        let (shared, own): (Vec<_>, Vec<_>) = course
            .gaps()
            .filter(|gap| gap.from < latest + SESSION)
            .partition(|gap| gap.to <= earliest + SESSION);
        let shared = shared.iter().fold(Dead::default(), |dead, gap| dead.add(gap.to - gap.from));
        let first_refresh = course.lives.first().map_or(u64::MAX, |life| life.from);
        if shared.total == 0 && own.is_empty() && first_refresh <= earliest + first_life {
            return;
        }
        for grant in grants {
            let end = grant + SESSION;
            let mut dead = shared.add(Span { from: grant + first_life, to: first_refresh }.until(end));
            for gap in &own {
                dead = dead.add(gap.until(end));
            }
            self.touched += u64::from(dead.total > 0);
            self.dead += dead.total;
            self.worst = self.worst.max(dead.total);
            self.longest = self.longest.max(dead.longest);
        }
    }

    /// Share of the sessions that were touched, in tenths of a percent.
    fn touched_share(&self) -> Tenths {
        Tenths::of(self.touched * 100, self.sessions)
    }

    /// Dead minutes of a session on average.
    fn mean(&self) -> Tenths {
        Tenths::of(self.dead, self.sessions * 60)
    }

    /// The mean and the worst session's dead minutes, so rounded that a single second shows.
    fn cell(&self) -> String {
        if self.dead == 0 {
            return "0".to_owned();
        }
        let mean = match self.mean() {
            Tenths(0) => "<0.1".to_owned(),
            mean => mean.to_string(),
        };
        format!("{mean}/{}", self.worst.div_ceil(60))
    }
}

/// A quotient, rounded to one decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tenths(u64);

impl Tenths {
    fn of(part: u64, whole: u64) -> Self {
        Self((part * 10 + whole / 2) / whole)
    }
}

impl fmt::Display for Tenths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 10, self.0 % 10)
    }
}

/// One line of the table.
#[derive(Debug)]
struct Row {
    failures: u32,
    loss: Loss,
    /// By lifetime, as in [`LIFETIMES`].
    figures: [Figures; LIFETIMES.len()],
}

/// The dead minutes of a day's sessions under the brief's rule alone and under ours; its `Display` is what a
/// person reads.
#[derive(Debug)]
pub struct Report {
    brief: [Figures; LIFETIMES.len()],
    rows: Vec<Row>,
}

/// Simulates everything. Takes seconds, on all cores.
///
/// # Panics
///
/// If the policy does.
#[must_use]
pub fn run() -> Report {
    let rows: Vec<(u32, Loss)> = FAILURES
        .iter()
        .flat_map(|(failures, _)| LOSSES.iter().map(|(loss, _)| (*failures, *loss)))
        // Where nothing fails there is no retry to lose.
        .filter(|row| *row != (0, ALL_RETRIES))
        .collect();
    let rows = thread::scope(|scope| {
        let start = |(failures, loss)| {
            scope.spawn(move || Row {
                failures,
                loss,
                figures: LIFETIMES.map(|lifetime| Scenario::new(lifetime, failures, loss).simulate()),
            })
        };
        let running: Vec<_> = rows.into_iter().map(start).collect();
        running.into_iter().map(|row| row.join().expect("a simulation panicked")).collect()
    });
    Report { brief: LIFETIMES.map(|lifetime| Scenario::brief(lifetime).simulate()), rows }
}

/// Simulates everything and prints it.
#[expect(clippy::print_stdout, reason = "the table is what it is for")]
pub fn print() {
    print!("{}", run());
}

impl Report {
    fn all(&self) -> impl Iterator<Item = &Figures> {
        self.rows.iter().flat_map(|row| &row.figures).chain(&self.brief)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sessions: u64 = self.all().map(|figures| figures.sessions).sum();
        let deactivated: u64 = self.all().map(|figures| figures.deactivated).sum();
        let millions = sessions / 1_000_000;
        writeln!(f, "Minutes without a live token, of a session's 720, by how long a token lives.")?;
        writeln!(f, "{millions} million sessions simulated, {deactivated} streamers deactivated.\n")?;

        write_line(f, "THE BRIEF'S RULE ALONE", LIFETIMES.map(lifetime_label))?;
        write_line(
            f,
            "  sessions touched, %",
            self.brief.map(|figures| figures.touched_share().to_string()),
        )?;
        write_line(f, "  mean of a session", self.brief.map(|figures| figures.mean().to_string()))?;
        write_line(f, "  worst session", self.brief.map(|figures| figures.worst.div_ceil(60).to_string()))?;
        write_line(f, "  longest piece", self.brief.map(|figures| figures.longest.div_ceil(60).to_string()))?;
        writeln!(f, "  A grant at every minute of a day; nothing fails, nothing is late.\n")?;

        write_line(f, "OUR RULES, mean/worst", LIFETIMES.map(lifetime_label))?;
        for (failures, label) in FAILURES {
            writeln!(f, "{label}")?;
            for row in self.rows.iter().filter(|row| row.failures == failures) {
                let label = LOSSES.iter().find(|(loss, _)| *loss == row.loss).map_or("", |(_, label)| label);
                write_line(f, &format!("  {label}"), row.figures.map(|figures| figures.cell()))?;
            }
        }
        writeln!(
            f,
            "  A grant at every second of a day. Triggers all 0 s late, all 60 s late (1 to 59 come out the"
        )?;
        writeln!(
            f,
            "  same), or each by 0 to 60 s of its own (seeds 1, 2, 3). 0: not a second in any session."
        )
    }
}

fn lifetime_label(seconds: u64) -> String {
    match seconds {
        _ if seconds.is_multiple_of(3600) => format!("{} h", seconds / 3600),
        _ if seconds < 3600 && seconds.is_multiple_of(60) => format!("{} min", seconds / 60),
        _ => format!("{seconds} s"),
    }
}

fn write_line(f: &mut fmt::Formatter<'_>, label: &str, cells: [String; LIFETIMES.len()]) -> fmt::Result {
    write!(f, "{label:26}")?;
    for cell in cells {
        write!(f, "{cell:>10}")?;
    }
    writeln!(f)
}

#[cfg(test)]
mod tests {
    use super::*;

    static REPORT: LazyLock<Report> = LazyLock::new(run);

    const ALL: usize = LIFETIMES.len();
    /// All lifetimes but the 45 minutes, which a margin of one hour can't serve as well.
    const FROM_2_H: usize = ALL - 1;
    const OF_45_MIN: usize = ALL - 1;

    fn figures(failures: u32, loss: Loss) -> &'static [Figures] {
        let row = REPORT.rows.iter().find(|row| row.failures == failures && row.loss == loss);
        &row.unwrap().figures
    }

    fn assert_never_dead(failures: u32, loss: Loss, lifetimes: usize) {
        for (figures, lifetime) in figures(failures, loss)[..lifetimes].iter().zip(LIFETIMES) {
            assert!(figures.sessions >= DAY);
            assert_eq!(figures.dead, 0, "{failures} failures, {loss:?}, tokens of {lifetime} s: {figures:?}");
        }
    }

    #[test]
    fn the_briefs_rule_alone_leaves_a_dead_token_in_70_percent_of_the_sessions() {
        let figures = Scenario::brief(4 * 3600).simulate();
        assert_eq!(figures.sessions, 1440);
        assert_eq!(figures.touched_share().to_string(), "70.3");
        assert_eq!(figures.mean().to_string(), "51.5");
        assert_eq!(figures.longest, 149 * 60);
    }

    #[test]
    fn up_to_two_failures_before_each_refresh_leave_no_dead_second_from_2_h_of_lifetime() {
        // At worst a sweep comes 16 minutes into the last hour and each retry 17 after its failure: 50.
        for failures in 0..=2 {
            assert_never_dead(failures, Loss::Nothing, FROM_2_H);
        }
    }

    #[test]
    fn any_one_lost_trigger_leaves_no_dead_second() {
        assert_never_dead(0, Loss::AnyOne, ALL);
    }

    #[test]
    fn any_one_lost_trigger_and_a_failure_before_each_refresh_leave_no_dead_second_from_2_h_of_lifetime() {
        assert_never_dead(1, Loss::AnyOne, FROM_2_H);
    }

    #[test]
    fn any_one_lost_trigger_and_two_failures_before_each_refresh_leave_up_to_5_dead_minutes() {
        // At worst 31 + 17 + 17 minutes, of the hour.
        for figures in &figures(2, Loss::AnyOne)[..FROM_2_H] {
            assert!((1..=5 * 60).contains(&figures.worst), "{figures:?}");
        }
    }

    #[test]
    fn the_sweeps_make_good_all_planned_runs() {
        for failures in 0..=2 {
            assert_never_dead(failures, ALL_PLANNED, FROM_2_H);
        }
    }

    #[test]
    fn the_sweeps_make_good_all_retries_after_one_failure_but_not_after_two() {
        assert_never_dead(1, ALL_RETRIES, FROM_2_H);
        assert!(figures(2, ALL_RETRIES).iter().all(|figures| figures.dead > 0));
    }

    #[test]
    fn nothing_makes_good_the_sweeps() {
        for failures in 0..=2 {
            assert!(
                figures(failures, ALL_SWEEPS).iter().all(|figures| figures.touched * 2 > figures.sessions)
            );
        }
    }

    #[test]
    fn a_session_without_its_grants_refresh_waits_for_the_next_sweep() {
        for figures in figures(0, THE_GRANT) {
            assert!((1..=16 * 60).contains(&figures.worst), "{figures:?}");
        }
    }

    #[test]
    fn tokens_of_45_minutes_survive_a_failure_before_each_refresh_or_a_lost_trigger_but_not_both() {
        assert_never_dead(0, Loss::AnyOne, ALL);
        assert_never_dead(1, Loss::Nothing, ALL);
        assert_never_dead(1, ALL_PLANNED, ALL);
        for (failures, loss) in [(1, Loss::AnyOne), (1, ALL_RETRIES), (2, Loss::Nothing)] {
            assert!(figures(failures, loss)[OF_45_MIN].dead > 0, "{failures} failures, {loss:?}");
        }
    }

    #[test]
    fn an_outage_deactivates_nobody() {
        assert!(REPORT.all().all(|figures| figures.deactivated == 0));
    }

    #[test]
    fn one_refusal_before_each_refresh_deactivates_nobody_and_leaves_no_dead_second() {
        for lifetime in LIFETIMES {
            let refused =
                Scenario { kind: FailureKind::Refusal, ..Scenario::new(lifetime, 1, Loss::Nothing) };
            let figures = refused.simulate();
            assert_eq!((figures.deactivated, figures.dead), (0, 0), "tokens of {lifetime} s");
        }
    }

    #[test]
    fn two_refusals_in_a_row_deactivate_everybody() {
        let refused = Scenario { kind: FailureKind::Refusal, ..Scenario::new(4 * 3600, 2, Loss::Nothing) };
        let figures = refused.simulate();
        assert_eq!(figures.deactivated, figures.sessions);
        assert_eq!(figures.touched, figures.sessions);
    }

    #[test]
    fn sixty_seconds_stand_for_every_common_delay() {
        for (lifetime, loss) in [(4 * 3600, Loss::AnyOne), (45 * 60, Loss::Nothing), (4 * 3600, ALL_SWEEPS)] {
            let late = |lateness| Scenario { lateness, ..Scenario::new(lifetime, 2, loss) }.simulate();
            let sixty = late(&[Lateness::Same(60)]);
            assert_eq!(sixty, late(&[Lateness::Same(1)]));
            assert_eq!(sixty, late(&[Lateness::Same(30)]));
            assert_eq!(sixty, late(&[Lateness::Same(59)]));
        }
    }

    #[test]
    fn a_cohort_counts_for_as_much_as_its_sessions_alone() {
        let grants: Vec<u64> = (0..DAY).step_by(97).collect();
        for (lifetime, loss) in [(2 * 3600, Loss::AnyOne), (45 * 60, Loss::Nothing), (4 * 3600, ALL_SWEEPS)] {
            let scenario = Scenario::new(lifetime, 2, loss);
            let (mut together, mut alone) = (Figures::default(), Figures::default());
            scenario.simulate_day(&grants, Lateness::Drawn(1), &mut together);
            for grant in &grants {
                scenario.simulate_day(&[*grant], Lateness::Drawn(1), &mut alone);
            }
            assert!(together.dead > 0);
            assert_eq!(together, alone);
        }
    }

    #[test]
    fn delays_are_drawn_from_0_to_60_seconds() {
        let drawn = |(trigger, at): &(Trigger, DateTime<Utc>), seed| {
            (Firing::new(*trigger, *at, Lateness::Drawn(seed)).at - *at).num_seconds()
        };
        let delays: BTreeSet<i64> =
            (1..=20).flat_map(|seed| RULES.iter().map(move |rule| drawn(rule, seed))).collect();
        assert_eq!(delays, (0..=60).collect());
    }

    #[test]
    fn the_report_fits_a_terminal() {
        let report = REPORT.to_string();
        assert!(report.lines().all(|line| line.len() <= 110), "{report}");
        assert!(report.contains("70.3"));
    }
}
