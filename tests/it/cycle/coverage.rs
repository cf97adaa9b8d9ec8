//! Dead minutes by query: over invented histories, against a model, and against what the simulated Twitch knows.

use anyhow::{Result, bail};
use chrono::{DateTime, TimeDelta, TimeZone as _, Utc};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokens_domain::StreamerId;
use tokens_domain::refresh::Cycle;
use tokens_domain::schedule::next_rule;
use tokens_local::twitch::{Fault, Settings};
use tokens_local::world::NewStreamer;
use tokens_store::{BrokenSession, Coverage};
use tokens_tests::histories::{Histories, Refresh};
use tokens_tests::{Sql as _, Still, run};

/// The present of the invented histories, in minutes after their beginning.
const NOW: i64 = 1_000;

/// The gaps of one streamer's sessions, one a line: `dead 235-245: no refresh was tried`.
fn gaps(coverage: &Coverage, histories: &Histories<'_>, streamer: StreamerId) -> Vec<String> {
    let minute = |at: DateTime<Utc>| (at - histories.beginning).num_minutes();
    let of = |session: &&BrokenSession| session.streamer_id == streamer;
    let lines = |session: &BrokenSession| {
        let line = |gap: &tokens_store::Gap| {
            let kind = if gap.dead { "dead" } else { "unknown" };
            format!("{kind} {}-{}: {}", minute(gap.from), minute(gap.until), gap.reasons.join(", then "))
        };
        session.gaps.iter().map(line).collect::<Vec<_>>()
    };
    coverage.broken.iter().filter(of).flat_map(lines).collect()
}

/// Name, session, refreshes, stored expiry, gaps.
type Row = (&'static str, (i64, i64, i64), &'static str, Option<i64>, &'static [&'static str]);

/// Histories of one session each, in minutes: its name; the session and how long it counts; the refreshes, each as
/// `outcome @ minute: expiry before > expiry after`; the expiry that is stored now; the gaps.
const HISTORIES: &[Row] = &[
    (
        "a perfect session",
        (0, 720, 720),
        "refreshed @ 0: 10 > 235, refreshed @ 180: 235 > 415, refreshed @ 360: 415 > 595, refreshed @ 540: 595 > 775",
        Some(775),
        &[],
    ),
    (
        "ten minutes late",
        (0, 720, 720),
        "refreshed @ 0: 10 > 235, refreshed @ 245: 235 > 800",
        Some(800),
        &["dead 235-245: no refresh was tried"],
    ),
    ("just in time", (0, 720, 720), "refreshed @ 0: 10 > 235, refreshed @ 235: 235 > 800", Some(800), &[]),
    (
        "dead at the start",
        (0, 720, 720),
        "refreshed @ -900: -910 > -665, refreshed @ 12: -665 > 800",
        Some(800),
        &["dead 0-12: no refresh was tried"],
    ),
    (
        "an outage beyond the expiry",
        (0, 720, 720),
        "refreshed @ 0: 10 > 235, failed @ 180: 235 > 235, failed @ 225: 235 > 235, failed @ 240: 235 > 235,
         refreshed @ 255: 235 > 800",
        Some(800),
        &["dead 235-255: failed: Twitch said no"],
    ),
    (
        "triggers lost, then an outage",
        (0, 720, 720),
        "refreshed @ 0: 10 > 235, failed @ 250: 235 > 235, refreshed @ 265: 235 > 800",
        Some(800),
        &["dead 235-265: no refresh was tried, then failed: Twitch said no"],
    ),
    (
        "refused, found dead, deactivated",
        (0, 720, 195),
        "refreshed @ 0: 10 > 235, failed @ 180: 235 > 180, deactivated @ 195: 180 > 180",
        Some(180),
        &["dead 180-195: failed: Twitch said no"],
    ),
    (
        "refused and deactivated while the token lived",
        (0, 720, 195),
        "refreshed @ 0: 10 > 235, failed @ 180: 235 > 235, deactivated @ 195: 235 > 235",
        Some(235),
        &[],
    ),
    (
        "deactivated, then reconnected",
        (0, 720, 520),
        "refreshed @ 0: 10 > 235, deactivated @ 100: 235 > 235, refreshed @ 300: 340 > 800",
        Some(800),
        &[],
    ),
    (
        "known to be dead before it was refused",
        (0, 720, 720),
        "refreshed @ 0: 10 > 235, failed @ 300: 235 > 300, refreshed @ 315: 300 > 800",
        Some(800),
        &["dead 235-315: no refresh was tried, then failed: Twitch said no"],
    ),
    (
        "refused, but Twitch calls the token valid for longer than was known",
        (0, 720, 720),
        "refreshed @ 0: 10 > ?, failed @ 180: 170 > 300, refreshed @ 290: 300 > 800",
        Some(800),
        &[],
    ),
    (
        "Twitch took three minutes to refuse",
        (0, 720, 720),
        "refreshed @ 0: 10 > 235, failed @ 100-103: 235 > 100, refreshed @ 118: 100 > 800",
        Some(800),
        &["dead 100-118: failed: Twitch said no"],
    ),
    ("revoked before the token died", (0, 100, 100), "refreshed @ 0: 10 > 150", Some(150), &[]),
    (
        "the token died while its refresh was under way",
        (0, 720, 720),
        "refreshed @ 0: 10 > 240, refreshed @ 239-241: 240 > 800",
        Some(800),
        &["dead 240-241: the refresh was under way"],
    ),
    ("no history", (0, 720, 720), "", Some(300), &["dead 300-720: no refresh was tried"]),
    ("no history, no expiry", (0, 720, 720), "", None, &["unknown 0-720: the expiry is not known"]),
    (
        "still running",
        (500, 1_220, 500),
        "refreshed @ 500: 510 > 735",
        Some(735),
        &["dead 735-1000: no refresh was tried"],
    ),
    (
        "overtaken by another writer",
        (0, 720, 720),
        "refreshed @ 0: 10 > 235, superseded @ 180: 235 > 415, refreshed @ 400: 415 > 800",
        Some(800),
        &[],
    ),
    (
        "overtaken, and the other's token dies",
        (0, 720, 720),
        "refreshed @ 0: 10 > 235, superseded @ 180: 235 > 415, refreshed @ 400: 380 > 800",
        Some(800),
        &["dead 380-400: no refresh was tried"],
    ),
    (
        "overtaken by a token of which nothing is known",
        (0, 720, 720),
        "refreshed @ 0: 10 > 235, superseded @ 180: 235 > 415, refreshed @ 400: ? > 800",
        Some(800),
        &["unknown 180-400: the expiry is not known"],
    ),
    (
        "another writer stored a token some time",
        (0, 720, 720),
        "refreshed @ 0: 10 > 235, refreshed @ 400: 460 > 800",
        Some(800),
        &["unknown 235-400: another writer stored a token at an unknown time"],
    ),
    (
        "another writer stored a token before the session",
        (0, 720, 720),
        "refreshed @ -900: -910 > -665, refreshed @ 180: 240 > 800",
        Some(800),
        &[],
    ),
    (
        "the database's clock and ours differ: a refresh in the future",
        (0, 720, 720),
        "refreshed @ 0: 10 > 735, refreshed @ 2000: 700 > 2235",
        Some(735),
        &[],
    ),
];

/// The refreshes of a history as it is written in [`HISTORIES`].
fn refreshes(history: &'static str) -> Result<Vec<Refresh>> {
    let expiry = |text: &str| if text == "?" { Ok(None) } else { text.parse().map(Some) };
    let refresh = |text: &'static str| {
        let [outcome, "@", times, before, ">", after] = text.split_whitespace().collect::<Vec<_>>()[..]
        else {
            bail!("{text}");
        };
        let times = times.trim_end_matches(':');
        let (started, ended) = match times.split_once('-').filter(|(started, _)| !started.is_empty()) {
            Some((started, ended)) => (started.parse()?, ended.parse()?),
            None => (times.parse()?, times.parse()?),
        };
        Ok(Refresh { started, ..Refresh::new(outcome, ended, expiry(before)?, expiry(after)?) })
    };
    history.split(',').filter(|text| !text.trim().is_empty()).map(refresh).collect()
}

#[tokio::test]
async fn each_history_has_its_dead_minutes() -> Result<()> {
    let still = Still::new().await?;
    let histories = Histories { pool: &still.world.pool, beginning: still.now() - TimeDelta::minutes(NOW) };
    let mut streamers = Vec::new();
    for (_, (granted, ends, _), history, stored, _) in HISTORIES {
        let streamer = histories.streamer(&refreshes(history)?, *stored).await?;
        histories.session(streamer, *granted, *ends).await?;
        streamers.push(streamer);
    }
    // Not a session at all.
    let reversed = histories.streamer(&[], None).await?;
    histories.session(reversed, 100, 50).await?;
    // Deactivated all the time; of two events at once the last one counts.
    let away = refreshes("deactivated @ 0: 10 > 0, refreshed @ 600: 0 > 835, deactivated @ 600: 835 > 600")?;
    let away = histories.streamer(&away, None).await?;
    histories.session(away, 100, 700).await?;

    let coverage = still.world.database().await?.coverage(histories.at(-1_000), still.now()).await?;

    for ((name, .., expected), streamer) in HISTORIES.iter().zip(streamers) {
        assert_eq!(gaps(&coverage, &histories, streamer), *expected, "{name}");
    }
    assert_eq!(coverage.sessions, HISTORIES.len() as u64);
    let length = HISTORIES.iter().map(|(_, (_, _, length), ..)| length).sum();
    assert_eq!(coverage.length, TimeDelta::minutes(length));
    let dead: Vec<_> = coverage.broken.iter().map(BrokenSession::dead).collect();
    assert!(dead.is_sorted_by(|a, b| a >= b), "the worst first: {dead:?}");
    let deactivated = coverage.broken.iter().filter_map(|session| session.deactivated_at).collect::<Vec<_>>();
    assert_eq!(deactivated, [histories.at(195)]);
    Ok(())
}

#[tokio::test]
async fn only_the_period_counts_and_two_campaigns_are_two_sessions() -> Result<()> {
    let still = Still::new().await?;
    let histories = Histories { pool: &still.world.pool, beginning: still.now() - TimeDelta::minutes(NOW) };
    let late = refreshes("refreshed @ 0: 10 > 235, refreshed @ 255: 235 > 800")?;
    let streamer = histories.streamer(&late, Some(800)).await?;
    histories.session(streamer, 0, 720).await?;
    histories.session(streamer, 240, 300).await?;
    let database = still.world.database().await?;
    let dead = |coverage: &Coverage| {
        let sessions = coverage.broken.iter().map(|session| session.dead().num_minutes());
        (coverage.sessions, coverage.length.num_minutes(), sessions.collect::<Vec<_>>())
    };

    assert_eq!(dead(&database.coverage(histories.at(-60), still.now()).await?), (2, 780, vec![20, 15]));
    // What is left of both from minute 250 on.
    assert_eq!(dead(&database.coverage(histories.at(250), still.now()).await?), (2, 520, vec![5, 5]));
    assert_eq!(dead(&database.coverage(histories.at(255), still.now()).await?), (2, 510, vec![]));
    assert_eq!(dead(&database.coverage(histories.at(720), still.now()).await?), (0, 0, vec![]));
    Ok(())
}

/// What a minute of a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Minute {
    Alive,
    Dead,
    Unknown,
    /// Deactivated.
    Away,
}

/// One streamer with one session.
#[derive(Clone, Debug)]
struct Case {
    refreshes: Vec<Refresh>,
    stored: Option<i64>,
    granted: i64,
    ends: i64,
    from: i64,
}

impl Case {
    /// The rules of docs/operate.md, for one minute.
    fn minute(&self, minute: i64) -> Minute {
        let mut known: Vec<_> = self.refreshes.iter().filter(|refresh| refresh.ended <= NOW).collect();
        known.sort_by_key(|refresh| refresh.ended);
        let last = known.iter().rfind(|refresh| refresh.ended <= minute);
        let next = known.iter().find(|refresh| refresh.ended > minute);
        if last.is_some_and(|last| last.outcome == "deactivated") {
            return Minute::Away;
        }
        let promised = last.filter(|last| last.outcome != "superseded").and_then(|last| last.after);
        let mut stated = next.map_or(self.stored, |next| next.before);
        if let Some(next) = next.filter(|next| ["failed", "deactivated"].contains(&next.outcome))
            && let Some(after) = next.after
        {
            if after > next.started {
                stated = Some(after);
            } else if after <= minute {
                return Minute::Dead;
            }
        }
        match (promised, stated) {
            (_, Some(stated)) if stated <= minute => Minute::Dead,
            (None, Some(_)) => Minute::Alive,
            (Some(promised), Some(stated)) if stated <= promised + 1 || promised <= self.granted => {
                Minute::Alive
            }
            (Some(promised), _) if promised > minute => Minute::Alive,
            (_, _) => Minute::Unknown,
        }
    }

    fn period(&self) -> std::ops::Range<i64> {
        self.granted.max(self.from)..self.ends.min(NOW)
    }

    fn minutes(&self) -> Vec<Minute> {
        self.period().map(|minute| self.minute(minute)).collect()
    }
}

fn refresh() -> impl Strategy<Value = Refresh> {
    let outcome = prop_oneof![4 => Just("refreshed"), 3 => Just("failed"), 1 => Just("deactivated"), 1 => Just("superseded")];
    // Mostly as it happens, sometimes anything.
    let expiry = |span: std::ops::Range<i64>| prop_oneof![4 => span.prop_map(Some), 1 => Just(None), 2 => Just(Some(0))];
    (outcome, 0..NOW + 50, 0..4_i64, expiry(-120..120), expiry(-60..300)).prop_map(
        |(outcome, ended, took, before, after)| {
            let started = ended - took;
            let (before, after) = (before.map(|left| started + left), after.map(|left| started + left));
            Refresh { started, ..Refresh::new(outcome, ended, before, after) }
        },
    )
}

fn case() -> impl Strategy<Value = Case> {
    let refreshes = prop::collection::vec(refresh(), 0..12);
    (refreshes, prop::option::of(0..NOW + 200), 100..800_i64, -20..720_i64, 0..600_i64, any::<bool>())
        .prop_map(|(mut refreshes, stored, granted, length, from, is_consistent)| {
            if is_consistent {
                // Each starts from what the one before it left.
                refreshes.sort_by_key(|refresh| refresh.ended);
                for n in 1..refreshes.len() {
                    refreshes[n].before = refreshes[n - 1].after;
                }
            }
            Case { refreshes, stored, granted, ends: granted + length, from }
        })
}

#[test]
fn the_query_agrees_with_a_model_that_looks_at_each_minute() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let (still, database) = runtime.block_on(async {
        let still = Still::new().await?;
        let database = still.world.database().await?;
        anyhow::Ok((still, database))
    })?;
    let histories = Histories { pool: &still.world.pool, beginning: still.now() - TimeDelta::minutes(NOW) };
    let measured = async |case: &Case| -> Result<(u64, TimeDelta, Vec<Minute>)> {
        sqlx::query("DELETE FROM token_refresh.sessions").execute(histories.pool).await?;
        let streamer = histories.streamer(&case.refreshes, case.stored).await?;
        histories.session(streamer, case.granted, case.ends).await?;
        let coverage = database.coverage(histories.at(case.from), still.now()).await?;
        let gap_at = |minute| {
            let mut gaps = coverage.broken.iter().flat_map(|session| &session.gaps);
            gaps.find(|gap| gap.from <= histories.at(minute) && histories.at(minute) < gap.until)
        };
        let minutes = case.period().map(|minute| match gap_at(minute) {
            Some(gap) if gap.dead => Minute::Dead,
            Some(_) => Minute::Unknown,
            None => Minute::Alive,
        });
        Ok((coverage.sessions, coverage.length, minutes.collect()))
    };

    let config = Config { cases: 400, failure_persistence: None, ..Config::default() };
    TestRunner::new(config).run(&case(), |case| {
        let (sessions, length, minutes) =
            runtime.block_on(measured(&case)).map_err(|error| TestCaseError::fail(format!("{error:#}")))?;
        let expected = case.minutes();
        let counted = expected.iter().filter(|minute| **minute != Minute::Away).count();
        prop_assert_eq!(sessions, u64::from(counted > 0));
        prop_assert_eq!(length, TimeDelta::minutes(i64::try_from(counted).unwrap()));
        let or_away = |expected: &Minute| if *expected == Minute::Away { Minute::Alive } else { *expected };
        prop_assert_eq!(minutes, expected.iter().map(or_away).collect::<Vec<_>>());
        Ok(())
    })?;
    Ok(())
}

/// A whole session, minute by minute: planned runs and sweeps at their times, and Twitch down for six hours of it.
#[tokio::test]
async fn the_history_says_what_twitch_knows() -> Result<()> {
    let lifetime = std::time::Duration::from_mins(235);
    let still = Still::with(Settings { token_lifetime: lifetime, ..Settings::default() }).await?;
    let world = &still.world;
    still.clock.set(Utc.with_ymd_and_hms(2026, 11, 23, 18, 3, 0).unwrap());
    let streamer = world.add(NewStreamer::fresh("aria")).await?;
    // No host learns of this before the next validation.
    let disconnected = world.add(NewStreamer::fresh("bastien")).await?;
    let service = world.service(&[]).await?;
    let database = world.database().await?;
    let begin = still.now();
    let (mut dead, mut dead_disconnected) = (0, 0);

    for minute in 0..720 {
        match minute {
            60 => world.twitch.disconnect("bastien")?,
            150 => world.twitch.fault_for_everybody(Fault::ServerError),
            510 => world.twitch.clear_faults_for_everybody(),
            _ => {}
        }
        let (trigger, at) = next_rule(still.now());
        if at == still.now() {
            run(&service, &Cycle::new(trigger)).await;
            database.remember_sessions(still.now()).await?;
        }
        dead += i64::from(!world.has_live_token(streamer).await?);
        let is_active = world.row(disconnected).await?.is_active;
        dead_disconnected += i64::from(is_active && !world.has_live_token(disconnected).await?);
        still.turn(1);
    }

    // The sessions are over and their memberships overwritten: they are remembered.
    world.sql("UPDATE campaign_memberships SET poll_authorization_granted_at = NULL, poll_authorization_expires_at = NULL").await?;
    let coverage = database.coverage(begin, still.now()).await?;
    let of = |id| coverage.broken.iter().find(|session| session.streamer_id == id);
    assert!(dead > 120, "an outage of six hours leaves more than {dead} dead minutes");
    assert_eq!(of(streamer).map(BrokenSession::dead), Some(TimeDelta::minutes(dead)));
    assert_eq!(coverage.unknown(), TimeDelta::zero());
    assert_eq!(coverage.sessions, 2);
    let bastien = of(disconnected).expect("the grant died in the session");
    assert!(bastien.deactivated_at.is_some());
    let unseen = dead_disconnected - bastien.dead().num_minutes();
    assert!((0..=56).contains(&unseen), "{unseen} of {dead_disconnected} dead minutes are unseen");
    Ok(())
}
