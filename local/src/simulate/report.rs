//! The table that a person reads.

use std::{fmt, thread};

use super::figures::Figures;
use super::{ALL_RETRIES, FAILURES, LIFETIMES, LOSSES, Loss, Scenario};

/// One line of the table.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) failures: u32,
    pub(super) loss: Loss,
    /// By lifetime, as in [`LIFETIMES`].
    pub(super) figures: [Figures; LIFETIMES.len()],
}

/// The dead minutes of a day's sessions under the brief's rule alone and under ours; its `Display` is what a
/// person reads.
#[derive(Debug)]
pub struct Report {
    brief: [Figures; LIFETIMES.len()],
    pub(super) rows: Vec<Row>,
}

/// Simulates everything. Takes seconds, on all cores.
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
    pub(super) fn all(&self) -> impl Iterator<Item = &Figures> {
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
