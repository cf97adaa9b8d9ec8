//! The command `tokens`: what the functions do, by hand, and a look at how things stand.

// The futures of sqlx, the AWS SDK and Lambda's runtime are nested deeper than the compiler goes by itself.
#![recursion_limit = "256"]

mod connect;
mod coverage;
mod deliver;
mod doctor;
mod duration;
mod grant;
mod history;
mod id;
mod keys;
mod notifications;
mod output;
mod reactivate;
mod refresh;
mod rekey;
mod serve;
mod status;
mod vapid;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use tokens_aws::{Access, Sdk};
use tokens_domain::{CancellationToken, StreamerId};
use tokens_service::config::{self, Secret, Source, Whole};
use tokens_service::shutdown::on_signals;
use tokens_service::{Process, with_secrets};
use tokens_store::{Database, MissingTables, Purpose, migrate};
use tokio::runtime::Builder;

/// Keeps the Twitch tokens of authorized streamers fresh.
///
/// The configuration is read from the environment and from `.env` in this directory; docs/reference.md lists it.
#[derive(Parser)]
#[command(name = "tokens", version)]
struct Arguments {
    /// Read this file instead of `.env` in this directory.
    #[arg(long, global = true, value_name = "PATH")]
    env_file: Option<PathBuf>,
    /// Take the settings of this deployed stack instead, for what the environment doesn't say.
    ///
    /// They are those of its functions, as the stack's outputs name them.
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "env_file")]
    stack: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Refresh what is due now: tokens of authorized streamers that expire within the hour.
    Refresh(refresh::Arguments),
    /// Show who is authorized, how their tokens stand, and which trigger touches them next.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show the last refreshes of a streamer.
    History {
        /// The streamer's id, a UUID.
        #[arg(value_parser = id::parse)]
        streamer_id: StreamerId,
        /// How many at most.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..))]
        limit: u16,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show in which sessions a token was dead, for how long and why, the worst first.
    Coverage(coverage::Arguments),
    /// Show the notifications about deactivations: pending, delivered, given up.
    Notifications {
        /// How many at most.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..))]
        limit: u16,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Connect a channel with Twitch: get its tokens by a code that the streamer confirms in a browser, and store them.
    ///
    /// Makes a new streamer, or replaces the tokens of the one that this Twitch user is and makes it active. Needs a login that may
    /// insert into the table `streamers`.
    Connect(connect::Arguments),
    /// Authorize a campaign for a streamer, on a token that is refreshed first, as the HTTP API does.
    ///
    /// The streamer must be an active member of the campaign. Without a fresh token nothing is granted.
    Grant(grant::Grant),
    /// End the authorization that a streamer has granted to a campaign, now.
    Revoke(grant::Revoke),
    /// Make streamers active again that were deactivated.
    Reactivate(reactivate::Arguments),
    /// Check everything that has to be right: configuration, database, Twitch's credentials, keys, schedules, cycles.
    ///
    /// Ends with 1 if something is wrong. Refreshes no token and writes nothing.
    Doctor {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Encrypt again what an old key or the other format wrote, while everything runs. Safe to run twice.
    Rekey(rekey::Arguments),
    /// Bring the database to this program's schema. Safe to run twice.
    ///
    /// Changes nothing if the database does not have the application's tables in the schema `public`, or if they are not as
    /// expected.
    Migrate {
        /// Create the application's tables where they are missing, as in an empty database.
        #[arg(long)]
        create_tables: bool,
    },
    /// Run the service in this process: cycles, notifications and the HTTP API, until SIGTERM or Ctrl-C.
    ///
    /// It begins with a sweep, and then follows the same rules as the functions on AWS: planned runs, a sweep every 15 minutes, and a
    /// retry after each failure. Several of them, and the functions, can share a database. `/healthz` says that it is alive, `/readyz`
    /// that it can work. The HTTP API and `/metrics` need a key (`Authorization: Bearer KEY`) that `API_KEYS` or
    /// `API_KEYS_FILE` names.
    Serve(serve::Arguments),
    /// The keys of callers of `tokens serve`.
    #[command(subcommand)]
    Keys(keys::Command),
    /// The key by which push services know us.
    #[command(subcommand)]
    Vapid(vapid::Command),
}

impl Command {
    /// The secrets that its settings may stand in.
    fn secrets(&self) -> &'static [Secret] {
        match self {
            Self::Refresh(_) => &[Secret::Database, Secret::Twitch, Secret::TokenKeys, Secret::Vapid],
            Self::Connect(_) => &[Secret::Database, Secret::Twitch, Secret::TokenKeys],
            Self::Rekey(_) => &[Secret::Database, Secret::TokenKeys],
            Self::Doctor { .. } => &Whole::SECRETS,
            // The last three read their secrets by themselves.
            Self::Vapid(_) | Self::Keys(_) | Self::Serve(_) | Self::Grant(_) | Self::Revoke(_) => &[],
            _ => &[Secret::Database],
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // A server answers requests while a cycle computes.
    let mut runtime = match arguments.command {
        Command::Serve(_) => Builder::new_multi_thread(),
        _ => Builder::new_current_thread(),
    };
    match runtime.enable_all().build() {
        Ok(runtime) => runtime.block_on(start(arguments)),
        Err(error) => {
            output::error(&format!("error: nothing can be started: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn start(arguments: Arguments) -> ExitCode {
    let serves = matches!(arguments.command, Command::Serve(_));
    let stop = on_signals(move || {
        if serves {
            tracing::info!("asked to end: finishing what is in flight");
        } else {
            output::error("\nInterrupted: what is in flight is finished. Once more ends it at once.");
        }
    });
    match run_until(arguments, stop).await {
        Ok(code) => code,
        Err(error) => {
            output::error(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs the command until it is done or asked to stop. Commands that hold leases end by themselves; what another has not
/// finished, its transaction undoes.
async fn run_until(arguments: Arguments, stop: CancellationToken) -> Result<ExitCode> {
    let ends_by_itself = matches!(
        arguments.command,
        Command::Refresh(_) | Command::Rekey(_) | Command::Serve(_) | Command::Connect(_) | Command::Grant(_)
    );
    if ends_by_itself {
        return run(arguments, stop).await;
    }
    tokio::select! {
        done = run(arguments, stop.clone()) => done,
        () = stop.cancelled() => bail!("interrupted; nothing is left half done"),
    }
}

/// Succeeds if nothing failed; wrong usage has ended the program before.
async fn run(arguments: Arguments, stop: CancellationToken) -> Result<ExitCode> {
    let Arguments { env_file, stack, command } = arguments;
    let sdk = Sdk::from(Access::SignedIn);
    let source = match (stack, env_file) {
        (Some(stack), _) => Source::environment().and_stack(&stack, &sdk).await?,
        (None, Some(path)) => Source::environment().and_file(&path)?,
        (None, None) => Source::environment().and_env_in(Path::new("."))?,
    };
    // The doctor reports by itself what other commands would stop at, or log.
    if !matches!(command, Command::Doctor { .. }) {
        tokens_telemetry::start(config::log(&source));
    }
    let process = Process::stopped_by(stop.clone()).with_sdk(sdk);
    match &command {
        Command::Serve(arguments) => return Box::pin(serve::run(source, arguments, process)).await,
        Command::Grant(arguments) => {
            Box::pin(grant::grant(source, arguments, process)).await?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Revoke(arguments) => {
            Box::pin(grant::revoke(source, arguments, process)).await?;
            return Ok(ExitCode::SUCCESS);
        }
        _ => {}
    }
    let (source, other_login) = with_secrets(source, command.secrets(), &process).await;
    match command {
        Command::Refresh(arguments) => return refresh::run(&source, arguments, &process, other_login).await,
        Command::Status { json } => {
            let (database, policy, signals) = config::database_and_rules(&source)?;
            let database = Database::open_for(database, Purpose::Read).await?;
            status::run(&database, policy, signals.retries.is_some(), &database.clock(), json).await?;
        }
        Command::History { streamer_id, limit, json } => {
            let database = Database::open_for(config::database(&source)?, Purpose::Read).await?;
            history::run(&database, streamer_id, limit, &database.clock(), json).await?;
        }
        Command::Coverage(arguments) => {
            let database = Database::open_for(config::database(&source)?, Purpose::Read).await?;
            coverage::run(&database, &arguments, &database.clock()).await?;
        }
        Command::Notifications { limit, json } => {
            let database = Database::open_for(config::database(&source)?, Purpose::Read).await?;
            notifications::run(&database, limit, &database.clock(), json).await?;
        }
        Command::Reactivate(arguments) => {
            let purpose = Purpose::of(arguments.dry_run);
            let database = Database::open_for(config::database(&source)?, purpose).await?;
            return reactivate::run(&database, arguments, &database.clock()).await;
        }
        Command::Connect(arguments) => {
            Box::pin(connect::run(&source, arguments, &process, other_login)).await?;
        }
        Command::Rekey(arguments) => return rekey::run(&source, arguments, stop).await,
        Command::Migrate { create_tables } => {
            let missing = if create_tables { MissingTables::Create } else { MissingTables::Refuse };
            let version = migrate(&config::database(&source)?, missing).await?;
            output::line(&format!("The database is at version {version}."))?;
        }
        Command::Vapid(command) => vapid::run(command)?,
        Command::Keys(command) => keys::run(command)?,
        Command::Serve(_) | Command::Grant(_) | Command::Revoke(_) => {}
        Command::Doctor { json } => return doctor::run(&source, &process.sdk, json).await,
    }
    Ok(ExitCode::SUCCESS)
}
