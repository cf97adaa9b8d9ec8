//! The people of the demo: two campaigns, eleven streamers, one in every state that a streamer can be in.

use anyhow::Result;
use chrono::TimeDelta;
use uuid::{Uuid, uuid};

use crate::push::SimulatedPush;
use crate::twitch::Fault;
use crate::world::{NewStreamer, World};

pub(super) const CAST: &str = "
  aria     fresh token                     fauve    'invalid' stored instead of a token
  bastien  token expires in 20 minutes     gaspard  Twitch answers 500
  celeste  token expired a while ago       helene   failed 5 minutes ago
  dorian   nobody knows the expiry         ines     authorization over
  elio     disconnected us on Twitch       jules    deactivated
  kim      in both campaigns, due
";

/// `ines` is the streamer of the event samples (`infra/events`), and her campaign theirs.
const SAMPLE: Uuid = uuid!("6f9619ff-8b86-4011-b42d-00c04fc964ff");

/// Devices that people are signed in on, by the names that the simulated push service knows them by.
pub(super) const DEVICES: [&str; 4] = ["Corvin's laptop", "Maud's phone", "elio's phone", "fauve's phone"];

pub(super) async fn invent(world: &World, push: &SimulatedPush) -> Result<()> {
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
            fer(NewStreamer {
                id: Some(SAMPLE),
                authorized_for: Some(TimeDelta::minutes(-40)),
                ..NewStreamer::due("ines")
            }),
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
    let [corvin, maud, elio, fauve] = DEVICES.map(|device| push.subscribe(device));
    world.sign_in_game_master("Corvin", &corvin).await?;
    world.sign_in_game_master("Maud", &maud).await?;
    world.sign_in_streamer("elio", &elio).await?;
    world.sign_in_streamer("fauve", &fauve).await?;
    Ok(())
}
