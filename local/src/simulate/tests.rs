use super::*;

static REPORT: LazyLock<Report> = LazyLock::new(run);

const ALL: usize = LIFETIMES.len();
/// All lifetimes but 45 minutes, for which a margin of one hour is too long.
const FROM_2_H: usize = ALL - 1;
const OF_45_MIN: usize = ALL - 1;

fn figures(failures: u32, loss: Loss) -> &'static [Figures] {
    let row = REPORT.rows.iter().find(|row| row.failures == failures && row.loss == loss);
    &row.unwrap().figures
}

#[test]
fn planned_runs_alone_leave_a_dead_token_in_70_percent_of_the_sessions() {
    let figures = Scenario::brief(4 * 3600).simulate();
    assert_eq!(figures.sessions, 1440);
    assert_eq!(figures.touched_share().to_string(), "70.3");
    assert_eq!(figures.mean().to_string(), "51.5");
    assert_eq!(figures.longest, 149 * 60);
}

#[test]
fn no_session_has_a_dead_second_where_sweeps_and_retries_recover_what_fails_or_is_lost() {
    for (failures, loss, lifetimes) in [
        // At worst a sweep comes 16 minutes into the last hour and each retry 17 after its failure: 50.
        (0, Loss::Nothing, FROM_2_H),
        (1, Loss::Nothing, ALL),
        (2, Loss::Nothing, FROM_2_H),
        (0, Loss::AnyOne, ALL),
        (1, Loss::AnyOne, FROM_2_H),
        (0, ALL_PLANNED, FROM_2_H),
        (1, ALL_PLANNED, ALL),
        (2, ALL_PLANNED, FROM_2_H),
        (1, ALL_RETRIES, FROM_2_H),
    ] {
        for (figures, lifetime) in figures(failures, loss)[..lifetimes].iter().zip(LIFETIMES) {
            assert!(figures.sessions >= DAY);
            assert_eq!(figures.dead, 0, "{failures} failures, {loss:?}, tokens of {lifetime} s: {figures:?}");
        }
    }
}

#[test]
fn what_nothing_recovers_shows() {
    // At worst 31 + 17 + 17 minutes, of the hour.
    for figures in &figures(2, Loss::AnyOne)[..FROM_2_H] {
        assert!((1..=5 * 60).contains(&figures.worst), "{figures:?}");
    }
    assert!(figures(2, ALL_RETRIES).iter().all(|figures| figures.dead > 0));
    for failures in 0..=2 {
        assert!(figures(failures, ALL_SWEEPS).iter().all(|figures| figures.touched * 2 > figures.sessions));
    }
    // A session without its grant's refresh waits for the next sweep.
    for figures in figures(0, THE_GRANT) {
        assert!((1..=16 * 60).contains(&figures.worst), "{figures:?}");
    }
    for (failures, loss) in [(1, Loss::AnyOne), (1, ALL_RETRIES), (2, Loss::Nothing)] {
        assert!(figures(failures, loss)[OF_45_MIN].dead > 0, "{failures} failures, {loss:?}");
    }
}

#[test]
fn outages_and_single_refusals_deactivate_no_streamers_and_two_refusals_in_a_row_all() {
    assert!(REPORT.all().all(|figures| figures.deactivated == 0));
    let refused = |lifetime, failures| {
        Scenario { kind: FailureKind::Refusal, ..Scenario::new(lifetime, failures, Loss::Nothing) }.simulate()
    };
    for lifetime in LIFETIMES {
        let figures = refused(lifetime, 1);
        assert_eq!((figures.deactivated, figures.dead), (0, 0), "tokens of {lifetime} s");
    }
    let figures = refused(4 * 3600, 2);
    assert_eq!((figures.deactivated, figures.touched), (figures.sessions, figures.sessions));
}

#[test]
fn sixty_seconds_stand_for_every_common_delay() {
    for (lifetime, loss) in [(4 * 3600, Loss::AnyOne), (45 * 60, Loss::Nothing), (4 * 3600, ALL_SWEEPS)] {
        let late = |lateness| Scenario { lateness, ..Scenario::new(lifetime, 2, loss) }.simulate();
        let sixty = late(&[Lateness::Same(60)]);
        for seconds in [&[Lateness::Same(1)], &[Lateness::Same(30)], &[Lateness::Same(59)]] {
            assert_eq!(sixty, late(seconds));
        }
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
