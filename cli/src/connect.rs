//! `tokens connect`: a streamer's first pair, by Twitch's device code flow.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use chrono::{DateTime, TimeDelta, Utc};
use tokens_domain::ports::{Expiry, Lifetime, StoreErrorKind};
use tokens_domain::{Caller, CancellationToken, Clock, NoExpiry, TokenPair, plain};
use tokens_service::Process;
use tokens_service::config::{RefreshConfig, Source};
use tokens_store::{Channel, Connected, Database, Login, OtherLogin, PgStore, Purpose};
use tokens_telemetry::Human;
use tokens_twitch::{Device, DeviceCode, DeviceError, Owner, TwitchClient};
use tokio::time::{Instant, sleep};

use crate::output::{self, time, times_are_utc};

#[derive(clap::Args)]
#[command(after_help = "Examples:
  tokens connect
  tokens connect --scopes channel:manage:polls chat:read")]
pub struct Arguments {
    /// The scopes of the tokens; by default those of `REQUIRED_SCOPES`, or else `channel:manage:polls`.
    #[arg(long, num_args = 1.., value_delimiter = ' ', value_name = "SCOPE")]
    scopes: Vec<String>,
}

/// As the history shows it.
const CALLER: &str = "tokens connect";

/// What polls need.
const SCOPE: &str = "channel:manage:polls";

/// A new pair exists nowhere else. A lease that a killed run has left is over before, and a database that fails over is back.
const STORE_PATIENCE: Duration = Duration::from_mins(5);

/// The pause before the next try to store it.
const STORE_PAUSE: Duration = Duration::from_secs(1);

pub async fn run(
    source: &Source,
    arguments: Arguments,
    process: &Process,
    other_login: Option<OtherLogin>,
) -> Result<()> {
    let RefreshConfig { database, cipher, twitch: config, .. } = RefreshConfig::read(source)?;
    let (required, ours) = (config.required_scopes.clone(), config.credentials.client_id.clone());
    let scopes = match (arguments.scopes, required.as_slice()) {
        (given, _) if !given.is_empty() => given,
        (_, []) => vec![SCOPE.to_owned()],
        (_, required) => required.to_vec(),
    };
    let login = Login::replaced_by(database, other_login);
    // Before the streamer is asked for anything.
    let database = Database::open_for(login, Purpose::Write).await?;
    let clock: Arc<dyn Clock> = Arc::new(database.clock());
    let store = PgStore::new(database, cipher, clock.clone());
    let twitch = TwitchClient::new(config, process.clock.clone())?;

    let code = twitch.device_code(&scopes, &process.stop).await.context("Twitch gives no code")?;
    output::line(&instructions(&code))?;
    let pair = confirmed(&twitch, code, &process.stop).await?;
    let connected_at = clock.now();
    let owner = owner(&twitch, &pair).await?;
    if owner.client_id != ours {
        bail!("the new tokens belong to another application: check TWITCH_CLIENT_ID");
    }
    let missing: Vec<_> = required.iter().filter(|scope| !owner.scopes.contains(scope)).cloned().collect();
    let channel = channel(owner, pair, connected_at);
    let connected = stored(&store, &channel).await?;
    output::line(&text(&channel, connected, clock.now()))?;
    if !missing.is_empty() {
        bail!("the new tokens lack required scopes: {}; connect again with them", missing.join(", "));
    }
    Ok(())
}

fn instructions(code: &DeviceCode) -> String {
    format!(
        "Open {} in a browser in which the streamer is signed in to Twitch,\nand confirm the code {}.\n\n\
         Waiting for {}; Ctrl-C ends it, and nothing is stored.",
        plain(&code.verification_uri),
        plain(&code.user_code),
        Human(TimeDelta::from_std(code.expires_in).unwrap_or_default())
    )
}

/// Waits until the streamer has confirmed the code. An outage of Twitch's meanwhile is waited for.
async fn confirmed(
    twitch: &TwitchClient,
    mut code: DeviceCode,
    stop: &CancellationToken,
) -> Result<TokenPair> {
    let until = Instant::now() + code.expires_in;
    let mut outage = None;
    loop {
        tokio::select! {
            () = sleep(code.interval) => {}
            () = stop.cancelled() => bail!("interrupted; nothing is stored"),
        }
        match twitch.device_tokens(&code, stop).await {
            Ok(Device::Connected(pair)) => return Ok(pair),
            Ok(Device::Pending) => outage = None,
            Ok(Device::TooFast) => code.slow_down(),
            Err(DeviceError::Outage(error)) => outage = Some(error),
            Err(error) if Instant::now() < until => {
                return Err(error).context("the code leads to no tokens; nothing is stored");
            }
            Err(_) => {}
        }
        if Instant::now() >= until {
            match outage {
                Some(error) => bail!("the code has expired, and Twitch did not answer: {error}"),
                None => bail!("the code has expired and was not confirmed: run `tokens connect` again"),
            }
        }
    }
}

/// Without this answer the pair would be lost.
async fn owner(twitch: &TwitchClient, pair: &TokenPair) -> Result<Owner> {
    let give_up_at = Instant::now() + STORE_PATIENCE;
    loop {
        match twitch.owner(&pair.access).await {
            Err(DeviceError::Outage(_)) if Instant::now() < give_up_at => sleep(STORE_PAUSE).await,
            done => return done.context("Twitch does not say whose the new tokens are; nothing is stored"),
        }
    }
}

fn channel(owner: Owner, pair: TokenPair, connected_at: DateTime<Utc>) -> Channel {
    let Owner { user_id, login, client_id, scopes, lifetime } = owner;
    let expiry = match lifetime {
        Lifetime::Limited(left) => Expiry::At(connected_at + left),
        Lifetime::Unlimited => Expiry::None(NoExpiry::Never),
        Lifetime::Unknown => Expiry::None(NoExpiry::Unknown),
    };
    Channel { user_id, login, scopes, client_id, pair, expiry: Some(expiry), connected_at }
}

/// Ctrl-C does not end it: the pair would be lost.
async fn stored(store: &PgStore, channel: &Channel) -> Result<Connected> {
    let give_up_at = Instant::now() + STORE_PATIENCE;
    let mut is_said = false;
    loop {
        let reason = match store.connect(channel, &Caller(CALLER.to_owned())).await {
            Ok(Some(connected)) => return Ok(connected),
            Ok(None) => "another run is refreshing this streamer's token".to_owned(),
            Err(error) if error.kind == StoreErrorKind::Away => error.to_string(),
            Err(error) => return Err(error).context(NOT_STORED),
        };
        if Instant::now() >= give_up_at {
            bail!("{NOT_STORED}: {reason}");
        }
        if !is_said {
            output::error(&format!("Waiting to store the new tokens: {reason}"));
            is_said = true;
        }
        sleep(STORE_PAUSE).await;
    }
}

const NOT_STORED: &str =
    "the new tokens are lost, because they can't be stored; fix this, then run `tokens connect` again";

fn text(channel: &Channel, Connected { id, is_new }: Connected, now: DateTime<Utc>) -> String {
    let done = if is_new { "Connected, a new streamer" } else { "Connected again, and active" };
    let expiry = match channel.expiry {
        Some(Expiry::At(at)) => format!("expires at {}", time(Some(at))),
        _ => "has no known expiry".to_owned(),
    };
    format!(
        "\n{done}: {} (Twitch user {}), {id}\nThe token {expiry}. Scopes: {}.\n\n\
         It is kept fresh while a campaign is authorized: `tokens grant CAMPAIGN {id}`.\n\n{}",
        plain(&channel.login),
        channel.user_id,
        plain(channel.scopes.join(" ")),
        times_are_utc(now)
    )
}
