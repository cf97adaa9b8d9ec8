//! `cargo run`: the whole system. An invented cast in every state and one cycle over it; a grant and a health check over
//! HTTP; a refresh that is refused twice; a session of twelve hours; and what to try next.

mod cast;
mod end;
mod env_file;
mod over_http;
mod refused;
mod session;

use std::io::{Write as _, stdout};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use chrono::TimeDelta;
use tokens_domain::Clock;
use tokens_push::{Loopback, Vapid, VapidKey, WebPush};
use tokio::process::Command;

use self::cast::{CAST, DEVICES, invent};
use self::env_file::EnvFile;
use self::over_http::Paths;
use crate::api::Api;
use crate::binaries::{Binaries, Profile};
use crate::clock::TurnableClock;
use crate::env;
use crate::postgres::{self, Postgres};
use crate::push::{Received, SimulatedPush};
use crate::stage::Stage;
use crate::twitch::Settings;
use crate::world::World;

/// A journey to Twitch and back, so that the cycle looks like a real one.
const LATENCY: Duration = Duration::from_millis(80);

/// Where push services could reach whoever runs this.
const VAPID_SUBJECT: &str = "mailto:operator@example.com";

/// How long ago the part begins that is played on a turned clock: its twelve hours and what comes before them are over now,
/// so that `tokens`, which goes by the machine's clock, sees them whole.
const AGO: TimeDelta = TimeDelta::hours(14);

/// Plays the demo. With `keep` the servers stay up until Ctrl-C.
#[expect(clippy::print_stdout, reason = "a demo talks to the person in front of it")]
pub async fn run(keep: bool) -> Result<()> {
    println!(
        "Building the program, starting a PostgreSQL, a simulated Twitch and a push service of its own...\n"
    );
    let binaries = Binaries::build(Profile::Dev).await?;
    let postgres = Postgres::start(postgres::Settings::default()).await?;
    let tokens = binaries.path("tokens")?;

    let world = World::start(&postgres, Settings { latency: LATENCY, ..Settings::default() }).await?;
    let push = SimulatedPush::start(crate::push::Settings::default()).await?;
    let key = VapidKey::generate()?;
    let mut environment = world.environment();
    environment.extend(
        [
            ("VAPID_PUBLIC_KEY", key.public()),
            ("VAPID_PRIVATE_KEY", key.expose_private().to_string()),
            ("VAPID_SUBJECT", VAPID_SUBJECT.to_owned()),
            ("PUSH_LOOPBACK", "on".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    let command = Tokens { binary: tokens.to_owned(), environment };
    invent(&world, &push).await?;

    println!("What the cast is up to: two campaigns, eleven streamers.\n{CAST}");
    command.run(&["status"]).await?;
    command.run(&["refresh"]).await?;
    command.run(&["status"]).await?;

    let live = live_tokens(&world).await?;
    println!("\nA poll that begins now meets a live token on {live} of the 9 authorized channels.");
    println!("The others failed on purpose; each is tried again from its retry time on.");

    let (api, paths) = (Api::start(&command.environment).await?, Paths::of(&world).await?);
    over_http::play(&world, &api, &paths).await?;

    let clock = Arc::new(TurnableClock::frozen());
    clock.set(clock.now() - AGO);
    let stage = Stage::new(
        World::start(&postgres, Settings { clock: clock.clone(), ..Settings::default() }).await?,
        clock.clone(),
        WebPush::new(
            Vapid::new(&key.public(), &key.expose_private(), VAPID_SUBJECT)?,
            Loopback::Allowed,
            clock.clone(),
        )?,
    );
    let browsers = SimulatedPush::start(crate::push::Settings { clock, ..Default::default() }).await?;
    refused::play(&stage, &browsers).await?;
    session::play(&stage, &browsers).await?;
    let history = Tokens { binary: tokens.to_owned(), environment: stage.world.environment() };
    println!(
        "\nWhat the history knows of it, as it can be asked in production. It does not see a disconnection before the next \
         validation:"
    );
    history.run(&["coverage", "--since", "1d"]).await?;

    if keep {
        let end = end::asked_for().context("Ctrl-C can't be waited for")?;
        let _file = EnvFile::write(&command.environment)?;
        println!(
            "\nThe servers stay up until Ctrl-C. No rule and no one-shot fires here: `tokens refresh` is the trigger.\n\
             In another terminal, from here:\n"
        );
        for (name, value) in &command.environment {
            println!("export {name}='{value}'");
        }
        println!("export API_URL='{}'", api.url());
        let binaries = command.binary.parent().context("a binary is in a directory")?;
        println!("export PATH='{}':\"$PATH\"", binaries.display());
        println!("\n{}", next_steps(&api, &paths));
        tokio::select! {
            () = end => {}
            never = show_notifications(&push) => never?,
        }
        // Where the terminal was closed there is nobody to tell.
        let _ = writeln!(stdout(), "\nStopping; nothing is left running.");
    } else {
        println!("\nNothing is left running. What to try next:\n\n{NEXT}");
    }
    Ok(())
}

/// Prints what people's devices show, as it comes.
#[expect(clippy::print_stdout, reason = "a demo talks to the person in front of it")]
async fn show_notifications(push: &SimulatedPush) -> Result<()> {
    let mut shown = [0; DEVICES.len()];
    let mut accepted = 0;
    loop {
        push.wait_for(accepted + 1).await;
        accepted = push.totals().accepted;
        for (device, shown) in DEVICES.iter().zip(&mut shown) {
            let messages = push.messages(device)?;
            for message in &messages[*shown..] {
                println!("{}", notification(device, message)?);
            }
            *shown = messages.len();
        }
    }
}

/// A notification as the device shows it, and where it leads.
fn notification(device: &str, message: &Received) -> Result<String> {
    let payload = message.json()?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Ok(format!(
        "  {device}: {}\n    {}\n    → {}",
        text(&payload["title"]),
        text(&payload["body"]),
        text(&payload["data"]["url"])
    ))
}

const NEXT: &str =
    "  cargo run -- --keep              keep the servers up, and call `tokens`, `psql` and the API by hand
  cargo run -- simulate            dead minutes by lifetime and failure, over a grant at every second of a day
  cargo run --profile tool -- bench 500 to 100,000 streamers beside a sequential loop
  cargo test --workspace           all tests, on the same PostgreSQL and Twitch";

fn next_steps(api: &Api, paths: &Paths) -> String {
    let (log, calls, env_file) = (api.log().display(), paths.to_try(), env_file::PATH);
    format!(
        "tokens refresh --dry-run                 # what would be done
tokens refresh --force                   # everybody, due or not
RETRY_DELAY=1 tokens refresh --force     # whoever was refused is refused again: deactivated, and people are told here
tokens status                            # ids, for `refresh ID` and `history ID`
psql \"$DATABASE_URL\" -c 'SELECT twitch_login, token_expires_at, token_refresh_failed_at, is_active FROM streamers'
curl -X PUT \"$TWITCH_ID_URL/simulation/faults/aria\" -d server-error   # Twitch fails for her until DELETE; `-d any` lists how it can
{calls}
cargo lambda watch --invoke-address 127.0.0.1 --env-file {env_file}   # the functions themselves: docs/getting-started.md
tail -f {log}   # the API's log
"
    )
}

/// The command, as a person would call it.
struct Tokens {
    binary: PathBuf,
    environment: Vec<(String, String)>,
}

impl Tokens {
    #[expect(clippy::print_stdout, reason = "a demo talks to the person in front of it")]
    async fn run(&self, arguments: &[&str]) -> Result<()> {
        println!("\n$ tokens {}", arguments.join(" "));
        let mut command = Command::new(&self.binary);
        // Not in the directory of the workspace, whose `.env` would be read.
        command.args(arguments).current_dir(std::env::temp_dir());
        command.env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.env("LOG_LEVEL", "warn").envs(env::var("TERM").map(|terminal| ("TERM", terminal)));
        let status = command.status().await.context("`tokens` can't be started")?;
        // 1 is part of the play: somebody's refresh fails.
        anyhow::ensure!(matches!(status.code(), Some(0 | 1)), "`tokens` ended with {status}");
        Ok(())
    }
}

async fn live_tokens(world: &World) -> Result<usize> {
    let ids: Vec<uuid::Uuid> = sqlx::query_scalar(
        "SELECT DISTINCT s.id FROM streamers s JOIN campaign_memberships m ON m.streamer_id = s.id
         WHERE s.is_active AND m.status = 'ACTIVE' AND m.poll_authorization_expires_at > now()",
    )
    .fetch_all(&world.pool)
    .await?;
    let mut live = 0;
    for id in ids {
        live += usize::from(world.has_live_token(tokens_domain::StreamerId(id)).await?);
    }
    Ok(live)
}
