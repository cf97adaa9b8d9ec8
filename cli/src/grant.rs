//! `tokens grant` and `tokens revoke`: what the HTTP API does, by hand.

use anyhow::{Result, bail};
use chrono::{DateTime, TimeDelta, Utc};
use tokens_domain::authorization::{Membership, NO_END, Unknown};
use tokens_domain::grant::GrantError;
use tokens_domain::health::CheckError;
use tokens_domain::{Caller, CampaignId, MembershipKey, StreamerId, plain};
use tokens_service::config::Source;
use tokens_service::{Host, Process, Request};

use crate::id;
use crate::output::{self, name, time, times_are_utc};

#[derive(clap::Args)]
#[command(after_help = "Examples:
  tokens grant 5c0e7a52-3a35-4b7c-9a8b-0f6d2a1c9e11 0b9d6f3e-6f0c-4d56-8f9a-3f1c7e5a2b44
  tokens grant 5c0e7a52-3a35-4b7c-9a8b-0f6d2a1c9e11 my_bot --forever")]
pub struct Grant {
    #[command(flatten)]
    membership: Key,
    /// How long the authorization lasts.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=MAX_HOURS))]
    hours: u16,
    /// Authorize without an end, as for a bot or an overlay; `tokens revoke` ends it.
    #[arg(long, conflicts_with = "hours")]
    forever: bool,
}

#[derive(clap::Args)]
#[command(after_help = "Example:
  tokens revoke 5c0e7a52-3a35-4b7c-9a8b-0f6d2a1c9e11 0b9d6f3e-6f0c-4d56-8f9a-3f1c7e5a2b44")]
pub struct Revoke {
    #[command(flatten)]
    membership: Key,
}

#[derive(clap::Args)]
struct Key {
    /// The campaign's id, a UUID.
    #[arg(value_parser = campaign)]
    campaign: CampaignId,
    /// The streamer: its id, a UUID, or its login.
    streamer: String,
}

/// 30 days. What is longer is meant to have no end.
const MAX_HOURS: i64 = 720;

/// As log and history show it.
const CALLER: &str = "tokens grant";

fn campaign(text: &str) -> Result<CampaignId, String> {
    text.parse()
        .map(CampaignId)
        .map_err(|_| "give the campaign's id, a UUID: the table `campaigns` has it".to_owned())
}

impl Key {
    /// A login must be that of one streamer.
    async fn find(&self, host: &Host) -> Result<MembershipKey> {
        let Self { campaign, streamer } = self;
        let streamer = match streamer.parse() {
            Ok(id) => StreamerId(id),
            Err(_) => match host.service().await?.database().with_login(streamer).await?[..] {
                [id] => id,
                [] => bail!("no streamer has the login {}: {}", plain(streamer), id::LISTED),
                _ => bail!("several streamers have the login {}: give the id", plain(streamer)),
            },
        };
        Ok(MembershipKey { campaign: *campaign, streamer })
    }
}

pub async fn grant(source: Source, arguments: &Grant, process: Process) -> Result<()> {
    let stop = process.stop.clone();
    let host = Host::new(source, process);
    let request = Request { caller: Caller(CALLER.to_owned()), deadline: None };
    let length = (!arguments.forever).then(|| TimeDelta::hours(arguments.hours.into()));
    match host.grant_for(arguments.membership.find(&host).await?, length, &request).await {
        Ok(membership) => output::line(&granted(&membership, host.now()))?,
        Err(GrantError::NoTime) if stop.is_cancelled() => bail!("interrupted; nothing was granted"),
        Err(error) => bail!("nothing was granted: {error}{}", advice(&error)),
    }
    Ok(())
}

pub async fn revoke(source: Source, arguments: &Revoke, process: Process) -> Result<()> {
    let host = Host::new(source, process);
    let key = arguments.membership.find(&host).await?;
    match host.revoke(key).await {
        Ok(()) => output::line("Revoked: the campaign has no authorization of this streamer now.")?,
        Err(CheckError::Unknown(unknown)) => {
            bail!("nothing was revoked: {unknown}{}", of_unknown(unknown))
        }
        Err(error) => bail!("nothing was revoked: {error}"),
    }
    Ok(())
}

fn granted(membership: &Membership, now: DateTime<Utc>) -> String {
    let ends_at = membership.authorization.map(|granted| granted.expires_at);
    let until = if ends_at == Some(NO_END) {
        "without an end".to_owned()
    } else {
        format!("until {}", time(ends_at))
    };
    format!(
        "{} authorizes {} {until}.\nThe token is fresh; it expires at {}.\n\n{}",
        name(&membership.streamer),
        membership.campaign_name,
        time(membership.token.expires_at),
        times_are_utc(now)
    )
}

/// What to do about it.
fn advice(error: &GrantError) -> &'static str {
    match error {
        GrantError::Unknown(unknown) => of_unknown(*unknown),
        GrantError::Pending => ": have the streamer accept it, then grant again",
        GrantError::Inactive | GrantError::Refused(_) => {
            ": have the streamer reconnect with Twitch (`tokens connect`), then grant again"
        }
        GrantError::Outage(_) | GrantError::NoTime | GrantError::Busy => ": grant again",
        GrantError::Ours(_) | GrantError::Secrets(_) => ": `tokens doctor` says what to fix",
        // Their texts say what to do.
        GrantError::Store(_) => "",
    }
}

fn of_unknown(unknown: Unknown) -> &'static str {
    match unknown {
        Unknown::Campaign => ": the table `campaigns` has the ids",
        Unknown::Streamer => ": the table `streamers` has the ids",
        Unknown::Membership => ": invite the streamer to the campaign first",
    }
}
