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
        assert!(figures(failures, ALL_SWEEPS).iter().all(|figures| figures.touched * 2 > figures.sessions));
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
        let refused = Scenario { kind: FailureKind::Refusal, ..Scenario::new(lifetime, 1, Loss::Nothing) };
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
