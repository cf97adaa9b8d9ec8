//! Recipients of notifications: users, their devices, their preferences, and a push service that records.

use std::collections::HashMap;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::PgConnectOptions;
use tokens_cipher::Column;
use tokens_domain::StreamerId;
use tokens_domain::attempt::{Attempt, FailedRefresh, Resolution, TwitchHealth};
use tokens_domain::evidence::Proof;
use tokens_domain::notification::{Next, PushAnswer, Subscription};
use tokens_domain::notify::{NotifyReport, NotifyService};
use tokens_domain::ports::{Push, PushMessage, Store as _};
use tokens_domain::refresh::Cycle;
use tokens_domain::schedule::Trigger;
use tokens_local::world::{NewStreamer, World};
use tokens_push::VapidKey;
use tokens_service::presentation::Presentation;
use tokens_store::{Database, PgOutbox, PgStore};
use uuid::Uuid;

use crate::{Ran, Still, run};

/// The settings of a sender of notifications with this key, to push services on this machine.
pub fn sender(key: &VapidKey) -> Vec<(String, String)> {
    let settings = [
        ("VAPID_PUBLIC_KEY", key.public()),
        ("VAPID_PRIVATE_KEY", key.expose_private().to_string()),
        ("VAPID_SUBJECT", "mailto:operator@twitch-polls.net".to_owned()),
        ("PUSH_LOOPBACK", "on".to_owned()),
    ];
    settings.map(|(name, value)| (name.to_owned(), value)).to_vec()
}

/// Adds a user.
pub async fn user(world: &World, name: &str) -> Result<Uuid> {
    let id = Uuid::new_v4();
    let new = sqlx::query("INSERT INTO users (id, display_name) VALUES ($1, $2)");
    new.bind(id).bind(name).execute(&world.pool).await?;
    Ok(id)
}

/// Leases the streamer, and answers what there is to write if Twitch refuses for good now.
pub async fn deactivation(store: &PgStore, streamer: StreamerId, now: DateTime<Utc>) -> Result<Attempt> {
    // Long ago: it is tried once.
    let once = tokens_domain::Monotonic::after_start(TimeDelta::zero());
    let claim = store.claim(&[streamer], now, now + TimeDelta::minutes(3), once).await?.pop();
    let claim = claim.context("another run holds the lease")?;
    Ok(Attempt {
        streamer: claim.streamer,
        lease: claim.lease,
        trigger: Trigger::Retry,
        started_at: now,
        ended_at: now,
        expires_before: claim.token.expires_at,
        caller: None,
        grants: None,
        client_id: "an application".to_owned(),
        resolution: Resolution::Deactivate {
            cause: FailedRefresh {
                proof: Some(Proof::NothingToAsk),
                was_refused: true,
                reason: "refused".to_owned(),
                alarm: None,
                twitch: TwitchHealth::Available,
                expires_at: Some(now),
                memory: claim.memory,
            },
            before: None,
        },
    })
}

/// Adds a streamer whose grant is dead at Twitch, with a user account of this name, and without devices.
pub async fn refused_streamer(world: &World, login: &str) -> Result<(StreamerId, Uuid)> {
    let id = world.add(NewStreamer::due(login)).await?;
    world.twitch.disconnect(login)?;
    let user = user(world, login).await?;
    let own = sqlx::query("UPDATE streamers SET user_id = $2 WHERE id = $1");
    own.bind(id.0).bind(user).execute(&world.pool).await?;
    // `World::add` gives every streamer a campaign; here each test says which there are.
    sqlx::query(
        "UPDATE campaigns SET name = 'First', owner_id = $2 WHERE id IN
                 (SELECT campaign_id FROM campaign_memberships WHERE streamer_id = $1)",
    )
    .bind(id.0)
    .bind(user)
    .execute(&world.pool)
    .await?;
    Ok((id, user))
}

/// Puts the streamer into a campaign of this owner, with a membership of this status.
pub async fn campaign(
    world: &World,
    streamer: StreamerId,
    name: &str,
    owner: Uuid,
    status: &str,
) -> Result<Uuid> {
    let new = sqlx::query_scalar(
        "WITH campaign AS (
             INSERT INTO campaigns (name, owner_id, created_at, updated_at) VALUES ($2, $3, $5, $5) RETURNING id)
         INSERT INTO campaign_memberships (campaign_id, streamer_id, status, invited_at, created_at, updated_at)
         SELECT id, $1, $4, $5, $5, $5 FROM campaign RETURNING campaign_id",
    );
    let new = new.bind(streamer.0).bind(name).bind(owner).bind(status).bind(world.clock.now());
    Ok(new.fetch_one(&world.pool).await?)
}

/// Signs a device in. Its endpoint is [`endpoint`] of its name.
pub async fn device(world: &World, user: Uuid, name: &str) -> Result<Uuid> {
    let new = sqlx::query_scalar(
        "INSERT INTO push_subscriptions (user_id, endpoint, p256dh, auth, device_name, created_at, updated_at)
         VALUES ($1, $2, 'key', 'secret', $3, $4, $4) RETURNING id",
    );
    let new = new.bind(user).bind(endpoint(name)).bind(name).bind(world.clock.now());
    Ok(new.fetch_one(&world.pool).await?)
}

/// Signs a device in with what its browser made.
pub async fn subscribe(world: &World, user: Uuid, subscription: &Subscription) -> Result<()> {
    let new = sqlx::query(
        "INSERT INTO push_subscriptions (id, user_id, endpoint, p256dh, auth, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $6)",
    );
    let Subscription { id, endpoint, p256dh, auth } = subscription;
    let new = new.bind(id).bind(user).bind(endpoint).bind(p256dh).bind(auth).bind(world.clock.now());
    new.execute(&world.pool).await?;
    Ok(())
}

/// A first refusal of this streamer stands, 16 minutes old: the next deactivates.
pub async fn refused_before(world: &World, streamer: StreamerId) -> Result<()> {
    let failed = sqlx::query("UPDATE streamers SET token_refresh_failed_at = $2 WHERE id = $1");
    let at = world.clock.now() - TimeDelta::minutes(16);
    failed.bind(streamer.0).bind(at).execute(&world.pool).await?;
    Ok(())
}

/// The same; and there is nothing to ask Twitch about, so that the next refusal is confirmed, whatever becomes of others.
pub async fn refused_for_good(world: &World, streamer: StreamerId) -> Result<()> {
    refused_before(world, streamer).await?;
    let unreadable = sqlx::query("UPDATE streamers SET access_token_encrypted = 'invalid' WHERE id = $1");
    unreadable.bind(streamer.0).execute(&world.pool).await?;
    Ok(())
}

/// Where a device is pushed to.
pub fn endpoint(device: &str) -> String {
    format!("https://push.example.com/{device}")
}

/// Sets a person's preferences; `None` is NULL.
pub async fn prefer(world: &World, user: Uuid, push: Option<bool>, refresh: Option<bool>) -> Result<()> {
    let new = sqlx::query(
        "INSERT INTO notification_preferences (user_id, push_enabled, token_refresh_failed, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $4)",
    );
    new.bind(user).bind(push).bind(refresh).bind(world.clock.now()).execute(&world.pool).await?;
    Ok(())
}

/// Two planned runs, 15 minutes apart: streamers that were refused in both are deactivated in the second.
pub async fn two_runs(still: &Still) -> Result<Ran> {
    let service = still.world.service(&[]).await?;
    let planned = Cycle::new(Trigger::Planned);
    run(&service, &planned).await;
    still.turn(15);
    Ok(run(&service, &planned).await)
}

/// A notification as it stands in the outbox.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Row {
    /// Its id.
    pub id: Uuid,
    /// The recipient's name.
    pub user_name: String,
    /// The device's name; none, if it is gone.
    pub device: Option<String>,
    /// The campaign; none, if it is for the streamer.
    pub campaign_name: Option<String>,
    /// Its state.
    pub state: String,
    /// Attempts begun.
    pub attempt: i32,
    /// When it is tried next.
    pub next_attempt_at: DateTime<Utc>,
    /// What went wrong.
    pub last_error: Option<String>,
}

/// The outbox, ordered by device and campaign.
pub async fn outbox(world: &World) -> Result<Vec<Row>> {
    let rows = sqlx::query_as(
        "SELECT o.id, o.user_name, p.device_name AS device, o.campaign_name, o.state, o.attempt, o.next_attempt_at,
                o.last_error
         FROM token_refresh.outbox o LEFT JOIN push_subscriptions p ON p.id = o.subscription_id
         ORDER BY p.device_name, o.campaign_name",
    );
    Ok(rows.fetch_all(&world.pool).await?)
}

/// The one row of the outbox.
///
/// # Panics
///
/// If there are more, or none.
pub async fn only_row(world: &World) -> Result<Row> {
    match &outbox(world).await?[..] {
        [row] => Ok(row.clone()),
        rows => panic!("not one row: {rows:?}"),
    }
}

/// A push service that records what it is sent, and answers as it was set.
#[derive(Clone, Default)]
pub struct RecordingPush(Arc<Mutex<Recorded>>);

#[derive(Default)]
struct Recorded {
    sent: Vec<(String, PushMessage)>,
    answers: HashMap<String, Option<PushAnswer>>,
}

impl RecordingPush {
    fn recorded(&self) -> MutexGuard<'_, Recorded> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This device's pushes are answered so from now on.
    pub fn answer(&self, device: &str, answer: PushAnswer) {
        self.recorded().answers.insert(endpoint(device), Some(answer));
    }

    /// This device's pushes are taken and never answered.
    pub fn hang(&self, device: &str) {
        self.recorded().answers.insert(endpoint(device), None);
    }

    /// How many pushes a device was sent.
    pub fn count(&self, device: &str) -> usize {
        self.recorded().sent.iter().filter(|(to, _)| *to == endpoint(device)).count()
    }

    /// Everything that was sent: endpoint and message.
    pub fn sent(&self) -> Vec<(String, PushMessage)> {
        self.recorded().sent.clone()
    }
}

impl Push for RecordingPush {
    async fn send(&self, subscription: &Subscription, message: &PushMessage) -> PushAnswer {
        let answer = {
            let mut recorded = self.recorded();
            recorded.sent.push((subscription.endpoint.clone(), message.clone()));
            recorded.answers.get(&subscription.endpoint).cloned()
        };
        match answer {
            None => PushAnswer::Accepted,
            Some(Some(answer)) => answer,
            Some(None) => pending().await,
        }
    }
}

/// A notify service in this process, on the world's clock, that reaches the database with these options.
pub async fn notify_as(
    world: &World,
    options: PgConnectOptions,
    push: &RecordingPush,
) -> Result<NotifyService<PgOutbox, RecordingPush>> {
    let database = Database::open(options).await.context("as notify")?;
    let outbox = PgOutbox::new(database, world.clock.clone());
    Ok(NotifyService::new(outbox, push.clone(), world.clock.clone(), Presentation::default()))
}

/// The same, as the database's owner.
pub async fn notify(world: &World, push: &RecordingPush) -> Result<NotifyService<PgOutbox, RecordingPush>> {
    notify_as(world, world.database_url().parse()?, push).await
}

/// Delivers what is due.
pub async fn deliver(service: &NotifyService<PgOutbox, RecordingPush>) -> Result<NotifyReport> {
    Ok(service.run(None, &|_, _, _: Next| {}).await?)
}

/// The streamer connects again: the application stores a new pair, past its own triggers.
pub async fn reconnect(world: &World, id: StreamerId, login: &str) -> Result<()> {
    let pair = world.twitch.add_streamer(&id.to_string(), login);
    let cipher = world.config(&[])?.cipher;
    let mut theirs = world.pool.begin().await?;
    sqlx::query("SET LOCAL session_replication_role = replica").execute(&mut *theirs).await?;
    sqlx::query(
        "UPDATE streamers SET access_token_encrypted = $2, refresh_token_encrypted = $3, is_active = true WHERE id = $1",
    )
    .bind(id.0)
    .bind(cipher.encrypt(id.0, Column::AccessToken, pair.access.expose())?)
    .bind(cipher.encrypt(id.0, Column::RefreshToken, pair.refresh.expose())?)
    .execute(&mut *theirs)
    .await?;
    Ok(theirs.commit().await?)
}
