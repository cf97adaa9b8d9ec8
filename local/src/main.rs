//! `cargo run`: the whole system on one machine.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tokens_local::{bench, demo, simulate};

/// The whole system on one machine: a PostgreSQL, a simulated Twitch, an invented cast, one cycle.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Keep the servers up until Ctrl-C, and print the environment for `tokens`, `psql` and `curl`.
    #[arg(long)]
    keep: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Walk a grant at every second of a day through the real policy and print the dead minutes.
    Simulate,
    /// Measure the deployed function beside a sequential loop. Wants `cargo run --profile tool`.
    Bench,
}

#[tokio::main]
#[expect(clippy::print_stderr, reason = "the last word of a program that failed")]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<()> {
    match arguments.command {
        None => demo::run(arguments.keep).await,
        Some(Command::Simulate) => {
            simulate::print();
            Ok(())
        }
        Some(Command::Bench) => bench::run().await,
    }
}
