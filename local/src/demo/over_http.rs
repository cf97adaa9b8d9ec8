//! The HTTP API: a streamer authorizes a campaign (the brief's scenario 1), and a campaign is checked before a session
//! (its scenario 5). And how to call it by hand.

use std::fs::read_to_string;

use anyhow::{Context as _, Result, ensure};
use chrono::{DateTime, Utc};
use tokens_domain::{CampaignId, MembershipKey, StreamerId};
use uuid::Uuid;

use crate::api::{Answer, Api, authorization_path, authorizations_path, check_path};
use crate::world::World;

/// The brief's own SQL.
const LOOK: &str = "SELECT twitch_display_name, token_expires_at, last_token_refresh_at FROM streamers \
                    WHERE twitch_login = 'ines'";
const EXPIRES_SOON: &str = "UPDATE streamers SET token_expires_at = NOW() + INTERVAL '30 minutes' \
                            WHERE twitch_login = 'aria'";

type Row = (String, Option<DateTime<Utc>>, Option<DateTime<Utc>>);

/// What the API is asked about.
pub(super) struct Paths {
    /// The authorization of `ines`.
    authorization: String,
    /// All of those of `kim`.
    authorizations: String,
    /// The check of the campaign that `aria` is in.
    check: String,
}

impl Paths {
    pub(super) async fn of(world: &World) -> Result<Self> {
        let ids = async |login: &str| {
            let ids = sqlx::query_as::<_, (Uuid, Uuid)>(
                "SELECT m.campaign_id, s.id FROM campaign_memberships m JOIN streamers s ON s.id = m.streamer_id
                 WHERE s.twitch_login = $1",
            );
            let (campaign, streamer) = ids.bind(login).fetch_one(&world.pool).await?;
            anyhow::Ok(MembershipKey { campaign: CampaignId(campaign), streamer: StreamerId(streamer) })
        };
        Ok(Self {
            authorization: authorization_path(ids("ines").await?),
            authorizations: authorizations_path(ids("kim").await?.streamer),
            check: check_path(ids("aria").await?.campaign),
        })
    }

    /// What to type, with `$API_URL` set.
    pub(super) fn to_try(&self) -> String {
        let Self { authorization, authorizations, check } = self;
        format!(
            "curl -X POST \"$API_URL{authorization}\"   # ines authorizes for 12 hours
curl \"$API_URL{authorization}\"   # how it stands
curl \"$API_URL{authorizations}\"   # all of kim's
curl -X POST \"$API_URL{check}\"   # before a session
curl -X DELETE \"$API_URL{authorization}\"   # no longer"
        )
    }
}

#[expect(clippy::print_stdout, reason = "a demo talks to the person in front of it")]
pub(super) async fn play(world: &World, api: &Api, paths: &Paths) -> Result<()> {
    println!("\n\nOver HTTP: ines, whose authorization is over, authorizes again\n");
    look(world).await?;
    let answer = post(api, &paths.authorization).await?;
    println!("{:#}\n", answer.body);
    look(world).await?;

    println!("\n\nOver HTTP: a campaign is checked before its session\n");
    sqlx::query(EXPIRES_SOON).execute(&world.pool).await?;
    println!("  {EXPIRES_SOON};");
    let answer = post(api, &paths.check).await?;
    println!("$ grep -o '\\[HealthCheck].*' {}", api.log().display());
    for line in read_to_string(api.log())?.lines() {
        if let Some(at) = line.find("[HealthCheck]") {
            println!("{}", &line[at..]);
        }
    }
    println!("\n  healthy: {}", answer.body["healthy"]);
    for streamer in answer.body["streamers"].as_array().context("nobody was checked")? {
        let text = |name: &str| streamer[name].as_str();
        let found = [text("status"), text("issue"), text("action")].into_iter().flatten().collect::<Vec<_>>();
        println!("    {:<9} {}", text("login").unwrap_or_default(), found.join(": "));
    }
    Ok(())
}

/// Prints the row that the brief looks at.
#[expect(clippy::print_stdout, reason = "a demo talks to the person in front of it")]
async fn look(world: &World) -> Result<()> {
    println!("  {LOOK};");
    let (name, expires_at, refreshed_at) = sqlx::query_as::<_, Row>(LOOK).fetch_one(&world.pool).await?;
    let shown = |at: Option<DateTime<Utc>>| at.map_or("NULL".to_owned(), |at| at.format("%F %T").to_string());
    println!("  {name} | {} | {}", shown(expires_at), shown(refreshed_at));
    Ok(())
}

/// Calls the API as `curl` does; anything but a success ends the demo.
#[expect(clippy::print_stdout, reason = "a demo talks to the person in front of it")]
async fn post(api: &Api, path: &str) -> Result<Answer> {
    println!("\n$ curl -X POST {}{path}", api.url());
    let answer = api.ask("POST", path).await?;
    ensure!(answer.status == 200, "{path} answered {}: {}", answer.status, answer.body);
    Ok(answer)
}
