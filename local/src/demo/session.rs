//! A session of twelve hours in seconds: every trigger fires in order on a clock that is turned, and each minute is looked
//! at as a poll would.

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use tokens_domain::ports::Push;
use tokens_domain::report::Outcome;
use tokens_domain::{Clock, StreamerId};
use tokens_telemetry::Text;

use super::notification;
use crate::push::SimulatedPush;
use crate::stage::{Did, Fired, Stage};
use crate::twitch::Fault;
use crate::world::NewStreamer;

const HOURS: i64 = 12;
const LAPTOP: &str = "Maud's laptop";

/// Minutes into the session: Twitch fails for `nils`, and is well again; `odile` disconnects us.
const OUTAGE: (i64, i64) = (300, 340);
const DISCONNECTED: i64 = 400;

/// A streamer of the session, and the minutes in which a poll would have met a dead token.
struct Watched {
    login: &'static str,
    id: StreamerId,
    dead: u32,
}

#[expect(clippy::print_stdout, reason = "a demo talks to the person in front of it")]
pub(super) async fn play<P: Push>(stage: &Stage<P>, browsers: &SimulatedPush) -> Result<()> {
    let world = &stage.world;
    let start = world.clock.now();
    let fer = |login| NewStreamer {
        campaign: "La Couronne de fer".to_owned(),
        game_master: "Maud".to_owned(),
        authorized_for: Some(TimeDelta::hours(HOURS)),
        ..NewStreamer::fresh(login)
    };
    let mut watched = Vec::new();
    for login in ["mira", "nils", "odile"] {
        watched.push(Watched { login, id: world.add(fer(login)).await?, dead: 0 });
    }
    world.sign_in_game_master("Maud", &browsers.subscribe(LAPTOP)).await?;

    println!(
        "\n\nA session of {HOURS} hours, {} to {}, on the same clock\n",
        hour(start),
        hour(start + TimeDelta::hours(HOURS))
    );
    let (mut fired, mut quiet) = (0, 0);
    for minute in 0..HOURS * 60 {
        let now = start + TimeDelta::minutes(minute);
        match minute {
            _ if minute == OUTAGE.0 => {
                println!("{}    Twitch begins to fail for nils", hour(now));
                world.twitch.fault("nils", Fault::ServerError)?;
            }
            _ if minute == OUTAGE.1 => {
                println!("{}    Twitch is well again", hour(now));
                world.twitch.clear_faults("nils")?;
            }
            _ if minute == DISCONNECTED => {
                println!("{}    odile disconnects us on Twitch", hour(now));
                world.twitch.disconnect("odile")?;
            }
            _ => {}
        }
        for watched in &mut watched {
            // A poll needs an active streamer; whoever is deactivated has been told.
            let dead = world.row(watched.id).await?.is_active && !world.has_live_token(watched.id).await?;
            watched.dead += u32::from(dead);
        }
        stage
            .play(now + TimeDelta::minutes(1), |one| {
                fired += 1;
                let lines = lines(one);
                quiet += u32::from(lines.is_empty());
                for line in lines {
                    println!("{}    {line}", hour(one.at));
                }
            })
            .await?;
    }
    for message in browsers.shown(LAPTOP)? {
        println!("\n{}", notification(LAPTOP, &message)?);
    }
    println!("\n{fired} triggers fired, {quiet} of them had nothing to do. Dead minutes of {}:", HOURS * 60);
    for Watched { login, id, dead } in &watched {
        let until = if world.row(*id).await?.is_active { "" } else { " (until deactivated)" };
        println!("  {login:<6} {dead}{until}");
    }
    Ok(())
}

fn hour(at: DateTime<Utc>) -> String {
    at.format("%H:%M").to_string()
}

/// What is worth a line.
fn lines(fired: &Fired) -> Vec<String> {
    match &fired.did {
        Did::Cycle { trigger, outcomes, .. } => outcomes
            .iter()
            .filter(|(_, outcome)| !matches!(outcome, Outcome::Skipped(_)))
            .map(|(streamer, outcome)| format!("{}: {}: {}", trigger.as_str(), streamer.login, Text(outcome)))
            .collect(),
        Did::Notify(report) if report.total() > 0 => vec![format!("notify: {} delivered", report.delivered)],
        Did::Notify(_) => Vec::new(),
    }
}
