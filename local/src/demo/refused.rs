//! A refresh that is refused twice (the brief's scenario 4), on a clock that is turned: the retry fires by itself, the
//! streamer is deactivated, and everybody concerned is told.

use anyhow::{Context as _, Result, ensure};
use chrono::TimeDelta;
use tokens_domain::Clock;
use tokens_domain::policy::RefreshMode;
use tokens_domain::ports::Push;
use tokens_domain::refresh::Cycle;
use tokens_domain::schedule::Trigger;
use tokens_telemetry::Text;

use super::notification;
use crate::push::SimulatedPush;
use crate::stage::{Did, Stage};
use crate::world::NewStreamer;

const PHONE: &str = "lyra's phone";
const LAPTOP: &str = "Corvin's laptop";

/// What breaks the token, in the brief's own words.
const BREAK: &str = "UPDATE streamers SET access_token_encrypted = 'invalid' WHERE twitch_login = 'lyra'";

#[expect(clippy::print_stdout, reason = "a demo talks to the person in front of it")]
pub(super) async fn play<P: Push>(stage: &Stage<P>, browsers: &SimulatedPush) -> Result<()> {
    let world = &stage.world;
    let lyra = NewStreamer {
        campaign: "Les Brumes de Valombre".to_owned(),
        game_master: "Corvin".to_owned(),
        authorized_for: Some(TimeDelta::hours(1)),
        ..NewStreamer::fresh("lyra")
    };
    let lyra = world.add(lyra).await?;
    world.sign_in_streamer("lyra", &browsers.subscribe(PHONE)).await?;
    world.sign_in_game_master("Corvin", &browsers.subscribe(LAPTOP)).await?;

    println!("\n\nA refresh that is refused twice, on a clock that is turned\n");
    sqlx::query(BREAK).execute(&world.pool).await?;
    println!("  {BREAK};");
    let force = Cycle { mode: RefreshMode::Forced, ..Cycle::new(Trigger::Command) };
    tell(stage, "refresh --force", &stage.run(&force).await?);
    look(stage, lyra).await?;
    let retry = *stage.scheduler.retries().first().context("no retry was armed")?;
    println!("{}  armed: a retry at {}", time(stage), retry.format("%H:%M"));

    while let Some(fired) = stage.next(retry).await? {
        match &fired.did {
            Did::Cycle { trigger, outcomes, .. } if !outcomes.is_empty() => {
                tell(stage, trigger.as_str(), &fired.did);
            }
            Did::Notify(report) if report.delivered > 0 => {
                println!("{}  notify: {} delivered", time(stage), report.delivered);
            }
            Did::Cycle { .. } | Did::Notify(_) => {}
        }
    }
    look(stage, lyra).await?;
    for device in [PHONE, LAPTOP] {
        let shown = browsers.shown(device)?;
        ensure!(shown.len() == 1, "{device} shows {} notifications", shown.len());
        println!("\n{}", notification(device, &shown[0])?);
    }
    Ok(())
}

fn time<P: Push>(stage: &Stage<P>) -> String {
    stage.world.clock.now().format("%H:%M:%S").to_string()
}

/// What a cycle did with each streamer.
#[expect(clippy::print_stdout, reason = "a demo talks to the person in front of it")]
fn tell<P: Push>(stage: &Stage<P>, what: &str, did: &Did) {
    if let Did::Cycle { outcomes, .. } = did {
        for (streamer, outcome) in outcomes {
            println!("{}  {what}: {}: {}", time(stage), streamer.login, Text(outcome));
        }
    }
}

/// The streamer's row, as the brief looks at it.
#[expect(clippy::print_stdout, reason = "a demo talks to the person in front of it")]
async fn look<P: Push>(stage: &Stage<P>, id: tokens_domain::StreamerId) -> Result<()> {
    let row = stage.world.row(id).await?;
    let failed_at =
        row.token_refresh_failed_at.map_or("NULL".to_owned(), |at| at.format("%H:%M:%S").to_string());
    println!("{}  is_active = {}, token_refresh_failed_at = {failed_at}", time(stage), row.is_active);
    Ok(())
}
