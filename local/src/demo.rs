//! `cargo run`: the whole system, an invented cast in every state, one cycle, and what to try next.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use chrono::TimeDelta;
use tokio::process::Command;

use crate::binaries::{Binaries, Profile};
use crate::env;
use crate::postgres::{self, Postgres};
use crate::twitch::{Fault, Settings};
use crate::world::{NewStreamer, World};

/// A journey to Twitch and back, so that the cycle looks like a real one.
const LATENCY: Duration = Duration::from_millis(80);

/// Plays the demo. With `keep` the servers stay up until Ctrl-C.
///
/// # Errors
///
/// If PostgreSQL can't be had or the program doesn't do its work.
#[expect(clippy::print_stdout, reason = "a demo talks to the person in front of it")]
pub async fn run(keep: bool) -> Result<()> {
    println!("Building the program, starting a PostgreSQL and a simulated Twitch of its own...\n");
    let binaries = Binaries::build(Profile::Dev).await?;
    let postgres = Postgres::start(postgres::Settings::default()).await?;
    let world = World::start(&postgres, Settings { latency: LATENCY, ..Settings::default() }).await?;
    let tokens = Tokens { binary: binaries.path("tokens")?.to_owned(), environment: world.environment() };
    invent(&world).await?;

    println!("What the cast is up to: two campaigns, eleven streamers.\n{CAST}");
    tokens.run(&["status"]).await?;
    tokens.run(&["refresh"]).await?;
    tokens.run(&["status"]).await?;

    let live = live_tokens(&world).await?;
    println!("\nA poll that begins now meets a live token on {live} of the 9 authorized channels.");
    println!("The others failed on purpose; each is tried again from its retry time on.");
    if keep {
        println!("\nThe servers stay up until Ctrl-C. In another terminal, from here:\n");
        for (name, value) in &tokens.environment {
            println!("export {name}='{value}'");
        }
        println!("\n{}", next_steps(&tokens.binary));
        tokio::signal::ctrl_c().await.context("Ctrl-C can't be waited for")?;
        println!("\nStopping; nothing is left running.");
    } else {
        println!("\nNothing is left running. What to try next:\n\n{NEXT}");
    }
    Ok(())
}

const CAST: &str = "
  aria     fresh token                     fauve    'invalid' stored instead of a token
  bastien  token expires in 20 minutes     gaspard  Twitch answers 500
  celeste  token expired a while ago       helene   failed 5 minutes ago
  dorian   nobody knows the expiry         ines     authorization over
  elio     disconnected us on Twitch       jules    deactivated
  kim      in both campaigns, due
";

const NEXT: &str =
    "  cargo run -- --keep              keep the servers up, and get the environment for `tokens` and `psql`
  cargo run -- simulate            dead minutes by lifetime and failure, over a grant at every second of a day
  cargo run --release -- bench     500 to 100,000 streamers beside a sequential loop
  cargo test --workspace           all tests, on the same PostgreSQL and Twitch";

fn next_steps(tokens: &std::path::Path) -> String {
    let tokens = tokens.display();
    format!(
        "{tokens} refresh --force                   # everybody, due or not
{tokens} refresh --dry-run                 # what would be done
{tokens} status --json                     # ids, for `refresh ID` and `history ID`
psql \"$DATABASE_URL\" -c 'SELECT twitch_login, token_expires_at, token_refresh_failed_at, is_active FROM streamers'
curl -X PUT \"$TWITCH_ID_URL/simulation/faults/aria\" -d html   # Twitch misbehaves; GET /simulation shows how it can"
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

async fn invent(world: &World) -> Result<()> {
    let valombre = |streamer: NewStreamer| NewStreamer {
        campaign: "Les Brumes de Valombre".to_owned(),
        game_master: "Corvin".to_owned(),
        ..streamer
    };
    let fer = |streamer: NewStreamer| NewStreamer {
        campaign: "La Couronne de fer".to_owned(),
        game_master: "Maud".to_owned(),
        ..streamer
    };
    let left = |login: &str, minutes| NewStreamer {
        token_left: TimeDelta::minutes(minutes),
        ..NewStreamer::due(login)
    };
    world
        .add_all(vec![
            valombre(NewStreamer::fresh("aria")),
            valombre(left("bastien", 20)),
            valombre(left("celeste", -95)),
            valombre(NewStreamer::fresh("dorian")),
            valombre(left("elio", 20)),
            fer(NewStreamer::fresh("fauve")),
            fer(left("gaspard", 40)),
            fer(left("helene", 10)),
            fer(NewStreamer { authorized_for: Some(TimeDelta::minutes(-40)), ..NewStreamer::due("ines") }),
            fer(NewStreamer { is_active: false, ..NewStreamer::due("jules") }),
            fer(left("kim", 50)),
        ])
        .await?;
    world.twitch.disconnect("elio")?;
    world.twitch.fault("gaspard", Fault::ServerError)?;
    for change in [
        "UPDATE streamers SET token_expires_at = NULL WHERE twitch_login IN ('dorian', 'fauve')",
        "UPDATE streamers SET access_token_encrypted = 'invalid' WHERE twitch_login = 'fauve'",
        "UPDATE streamers SET token_refresh_failed_at = now() - interval '5 minutes' WHERE twitch_login = 'helene'",
        "INSERT INTO campaign_memberships (campaign_id, streamer_id, status, invited_at, accepted_at, created_at,
             updated_at, poll_authorization_granted_at, poll_authorization_expires_at)
         SELECT c.id, s.id, 'ACTIVE', now(), now(), now(), now(), now(), now() + interval '3 hours'
         FROM campaigns c, streamers s WHERE c.name = 'Les Brumes de Valombre' AND s.twitch_login = 'kim'",
    ] {
        sqlx::query(change).execute(&world.pool).await?;
    }
    Ok(())
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
        live += usize::from(world.has_live_token(domain::StreamerId(id)).await?);
    }
    Ok(live)
}
