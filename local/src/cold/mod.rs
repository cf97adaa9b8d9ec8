//! What the start of each function costs, from the beginning of its process until it asks for its first event: time,
//! beside a bare function that is built in the same way; instructions; size. And what none of them may do.
//!
//! Measures what `.ci/lambda/cold` has built as it is deployed, and fails if something is over its limit. Times are only
//! printed: no two runs of a machine are alike.

mod event;
mod start;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::binaries::workspace;

/// How often each function is started, in turn with the others.
const STARTS: usize = 20;

/// What the others are compared with; an example of the crate scheduled-refresh.
const BARE: &str = "bare";

const FUNCTIONS: [&str; 5] =
    ["scheduled-refresh", "retry-refresh", "grant-refresh", "health-check", "notify"];

/// The most that a start may cost, in instructions of the process itself under callgrind.
const INSTRUCTIONS: u64 = 3_500_000;

/// The largest file that may be deployed.
const ZIP: u64 = 4_200_000;

/// A function as it is deployed.
struct Built {
    name: &'static str,
    binary: PathBuf,
    zip: PathBuf,
}

/// What was found of one function.
struct Cost {
    name: &'static str,
    /// The median.
    time: Duration,
    instructions: u64,
    binary: u64,
    zip: u64,
}

impl Built {
    /// Where `cargo lambda build` has put it.
    fn find(name: &'static str) -> Result<Self> {
        let target = workspace().join("target");
        let release = target.join(format!("{}-unknown-linux-gnu/release", std::env::consts::ARCH));
        let binary = if name == BARE { release.join("examples").join(name) } else { release.join(name) };
        let zip = target.join("lambda").join(name).join("bootstrap.zip");
        for file in [&binary, &zip] {
            ensure!(file.exists(), "{} is not there: run `.ci/lambda/cold`", file.display());
        }
        Ok(Self { name, binary, zip })
    }
}

/// Prints the table, and checks the limits.
///
/// # Errors
///
/// If something isn't built, doesn't start, or is over its limit.
#[expect(clippy::print_stdout, reason = "the table is what it is for")]
pub async fn run() -> Result<()> {
    let built: Vec<_> = [BARE].into_iter().chain(FUNCTIONS).map(Built::find).collect::<Result<_>>()?;
    println!("From a function's start until it asks for its first event, median of {STARTS}:\n");
    let costs = costs(&built).await?;
    println!("{}", table(&costs));
    let over: Vec<_> = costs.iter().flat_map(over).collect();
    ensure!(over.is_empty(), "over the limit:\n  {}", over.join("\n  "));

    event::panics_unwind(&built[0]).await?;
    println!("A panic fails one event, and the next is answered.");
    event::open_no_trust_store(&built[1..]).await?;
    println!("No function opens the machine's certificates, whatever it connects to.");
    Ok(())
}

async fn costs(built: &[Built]) -> Result<Vec<Cost>> {
    let mut times = vec![Vec::new(); built.len()];
    for _ in 0..STARTS {
        for (function, times) in built.iter().zip(&mut times) {
            times.push(start::time(function).await?);
        }
    }
    let mut costs = Vec::new();
    for (function, mut times) in built.iter().zip(times) {
        times.sort_unstable();
        costs.push(Cost {
            name: function.name,
            time: times[STARTS / 2],
            instructions: start::instructions(function).await?,
            binary: function.binary.metadata()?.len(),
            zip: function.zip.metadata()?.len(),
        });
    }
    Ok(costs)
}

#[expect(clippy::cast_precision_loss, reason = "millions, to two digits")]
fn table(costs: &[Cost]) -> String {
    let mut table =
        String::from("function               ms   × bare   M instructions   binary MB   zip MB\n");
    let bare = costs.first().map_or(Duration::ZERO, |bare| bare.time).as_secs_f64();
    for Cost { name, time, instructions, binary, zip } in costs {
        let (time, millions) = (time.as_secs_f64(), |count: &u64| *count as f64 / 1e6);
        // Into a text, which takes everything.
        let _ = writeln!(
            table,
            "{name:<18} {:>6.2}   {:>6.2}   {:>14.2}   {:>9.2}   {:>6.2}",
            time * 1e3,
            time / bare,
            millions(instructions),
            millions(binary),
            millions(zip)
        );
    }
    table
}

/// Which limits this one is over.
fn over(Cost { name, instructions, zip, .. }: &Cost) -> Vec<String> {
    let limits = [("instructions", *instructions, INSTRUCTIONS), ("bytes of its zip", *zip, ZIP)];
    let over = limits.into_iter().filter(|(_, is, most)| is > most);
    over.map(|(what, is, most)| format!("{name}: {is} {what}, and at most {most} are allowed")).collect()
}

/// The sample event that this function is tried with.
fn sample(name: &str) -> Result<serde_json::Value> {
    let file = match name {
        "scheduled-refresh" => "sweep",
        "retry-refresh" => "retry",
        "grant-refresh" => "grant",
        "health-check" => "check",
        _ => "timer",
    };
    let path = workspace().join("infra/events").join(name).join(file).with_extension("json");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_str(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_a_limit_is_named() {
        let cost =
            |instructions, zip| Cost { name: "notify", time: Duration::ZERO, instructions, binary: 0, zip };
        assert!(over(&cost(INSTRUCTIONS, ZIP)).is_empty());
        assert_eq!(over(&cost(INSTRUCTIONS + 1, ZIP + 1)).len(), 2);
    }
}
