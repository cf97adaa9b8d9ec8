//! A session that is played trigger by trigger on a turned clock, and watched from Twitch's side: when each streamer was
//! refreshed, whose token a poll would have found dead, which are fresh.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use tokens_cipher::Column;
use tokens_domain::policy::{BUDGET_PERIOD, EXPIRY_MARGIN, RETRY_DELAY};
use tokens_domain::ports::Push;
use tokens_domain::report::{Outcome, Report};
use tokens_domain::schedule::Trigger;
use tokens_domain::{AccessToken, Streamer};
use tokens_local::clock::TurnableClock;
use tokens_local::postgres::Postgres;
use tokens_local::stage::{Did, Fired, Stage};
use tokens_local::twitch::Settings;
use tokens_local::world::{NewStreamer, World};
use uuid::Uuid;

/// A stage, and what was seen of it.
pub struct Session<P> {
    /// The stage.
    pub stage: Stage<P>,
    /// When the token endpoint was asked for each streamer, by login.
    pub attempts: BTreeMap<String, Vec<DateTime<Utc>>>,
    /// Streamers whose token was found dead at a trigger, or had died since the one before, by login.
    pub found_dead: BTreeSet<String>,
    /// Every streamer as of the last trigger.
    pub streamers: Vec<Seen>,
    known: HashMap<Uuid, (String, AccessToken)>,
}

/// A streamer as seen after a trigger.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The login.
    pub login: String,
    /// `streamers.is_active`.
    pub is_active: bool,
    /// Active, no failure stands, and the token lives beyond the margin at which it is refreshed.
    pub is_fresh: bool,
    /// A failure stands that may not be tried again yet.
    pub has_to_wait: bool,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: Uuid,
    login: String,
    is_active: bool,
    expires_at: Option<DateTime<Utc>>,
    failed_at: Option<DateTime<Utc>>,
    access_token: Option<String>,
}

/// A cycle that ran.
pub struct Cycled {
    /// When.
    pub at: DateTime<Utc>,
    /// Why.
    pub trigger: Trigger,
    /// The counts.
    pub report: Report,
    /// Each streamer that was looked at.
    pub outcomes: Vec<(Streamer, Outcome)>,
}

/// The time of this hour and minute of the day on which sessions are played.
pub fn at(hour: i64, minute: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::days(20_780) + TimeDelta::minutes(60 * hour + minute)
}

/// A world whose clock stands at noon UTC, with these streamers.
pub async fn world_at_noon(streamers: Vec<NewStreamer>) -> Result<(World, Arc<TurnableClock>)> {
    let clock = Arc::new(TurnableClock::frozen_at(at(12, 0)));
    let settings = Settings { clock: clock.clone(), ..Settings::default() };
    let world = World::start(Postgres::shared().await?, settings).await?;
    world.add_all(streamers).await?;
    Ok((world, clock))
}

/// Gives each streamer a user account of the same name, and each user a device that has the user's name
/// ([`crate::people::endpoint`]).
pub async fn all_users_have_a_device(world: &World) -> Result<()> {
    all_streamers_have_an_account(world).await?;
    let devices = sqlx::query(
        "INSERT INTO push_subscriptions (user_id, endpoint, p256dh, auth, device_name, created_at, updated_at)
         SELECT id, 'https://push.example.com/' || display_name, 'key', 'secret', display_name, $1, $1 FROM users",
    );
    devices.bind(world.clock.now()).execute(&world.pool).await?;
    Ok(())
}

/// Gives each streamer a user account of the same name.
pub async fn all_streamers_have_an_account(world: &World) -> Result<()> {
    for change in [
        "INSERT INTO users (id, display_name) SELECT md5('streamer ' || twitch_login)::uuid, twitch_login FROM streamers",
        "UPDATE streamers SET user_id = md5('streamer ' || twitch_login)::uuid",
    ] {
        sqlx::query(change).execute(&world.pool).await?;
    }
    Ok(())
}

impl<P: Push> Session<P> {
    /// Watches this stage from now on.
    pub async fn watch(stage: Stage<P>) -> Result<Self> {
        let (attempts, found_dead) = (BTreeMap::new(), BTreeSet::new());
        let mut session = Self { stage, attempts, found_dead, streamers: Vec::new(), known: HashMap::new() };
        session.look().await?;
        Ok(session)
    }

    /// The next cycle before `until`; what else fires before it is carried out, too.
    pub async fn next(&mut self, until: DateTime<Utc>) -> Result<Option<Cycled>> {
        while let Some(Fired { at, did }) = self.stage.next(until).await? {
            if let Did::Cycle { trigger, report, outcomes } = did {
                self.look().await?;
                return Ok(Some(Cycled { at, trigger, report, outcomes }));
            }
        }
        Ok(None)
    }

    /// Everything that fires before `until`.
    pub async fn play(&mut self, until: DateTime<Utc>) -> Result<Vec<Cycled>> {
        let mut cycles = Vec::new();
        while let Some(cycle) = self.next(until).await? {
            cycles.push(cycle);
        }
        Ok(cycles)
    }

    async fn look(&mut self) -> Result<()> {
        let Stage { world, .. } = &self.stage;
        let (now, cipher) = (world.clock.now(), world.config(&[])?.cipher);
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT id, twitch_login AS login, is_active, token_expires_at AS expires_at,
                    token_refresh_failed_at AS failed_at, access_token_encrypted AS access_token
             FROM streamers ORDER BY twitch_login",
        )
        .fetch_all(&world.pool)
        .await?;
        self.streamers.clear();
        for Row { id, login, is_active, expires_at, failed_at, access_token } in rows {
            let asked = usize::try_from(world.twitch.activity(&login)?.refresh_requests)?;
            let attempts = self.attempts.entry(login.clone()).or_default();
            attempts.resize(asked, now);
            // What stood there before this trigger must have lasted until it.
            let lasted =
                self.known.get(&id).is_none_or(|(_, token)| world.twitch.access_token_is_live(token));
            let stored = access_token.unwrap_or_default();
            if self.known.get(&id).is_none_or(|(text, _)| *text != stored) {
                let plain = cipher.decrypt(id, Column::AccessToken, &stored, now)?;
                self.known.insert(id, (stored, AccessToken::new(plain.as_str())));
            }
            let is_live = world.twitch.access_token_is_live(&self.known[&id].1);
            if !(lasted && is_live) {
                self.found_dead.insert(login.clone());
            }
            self.streamers.push(Seen {
                login,
                is_active,
                is_fresh: is_active
                    && is_live
                    && failed_at.is_none()
                    && expires_at.is_some_and(|at| at - now > EXPIRY_MARGIN),
                has_to_wait: failed_at.is_some_and(|at| at + RETRY_DELAY > now),
            });
        }
        Ok(())
    }

    /// Streamers that are active and not fresh, by login.
    pub fn not_fresh(&self) -> Vec<&str> {
        let stale = self.streamers.iter().filter(|seen| seen.is_active && !seen.is_fresh);
        stale.map(|seen| seen.login.as_str()).collect()
    }

    /// Streamers that are inactive, by login.
    pub fn inactive(&self) -> BTreeSet<String> {
        self.streamers.iter().filter(|seen| !seen.is_active).map(|seen| seen.login.clone()).collect()
    }

    /// The most attempts that any streamer had within [`RETRY_DELAY`].
    pub fn most_attempts_in_a_quarter_hour(&self) -> usize {
        most_within(RETRY_DELAY, self.attempts.values().map(Vec::as_slice))
    }

    /// The most deactivations within [`BUDGET_PERIOD`].
    pub async fn most_deactivations_in_an_hour(&self) -> Result<usize> {
        let times: Vec<DateTime<Utc>> = sqlx::query_scalar(
            "SELECT deactivated_at FROM token_refresh.deactivations ORDER BY deactivated_at",
        )
        .fetch_all(&self.stage.world.pool)
        .await?;
        Ok(most_within(BUDGET_PERIOD, [times.as_slice()]))
    }
}

/// The most of any one of these sorted lists that lie within less than `period`.
fn most_within<'a>(period: TimeDelta, lists: impl IntoIterator<Item = &'a [DateTime<Utc>]>) -> usize {
    let most = |times: &[DateTime<Utc>]| {
        let windows =
            (0..times.len()).map(|first| times[first..].partition_point(|at| *at - times[first] < period));
        windows.max().unwrap_or(0)
    };
    lists.into_iter().map(most).max().unwrap_or(0)
}
