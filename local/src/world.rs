//! A whole system on one machine: a database, a simulated Twitch, and the people in both.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tempfile::NamedTempFile;
use tokens_aws::NoSignals;
use tokens_cipher::Column;
use tokens_domain::notification::Subscription;
use tokens_domain::ports::{EventPublisher, RetryScheduler};
use tokens_domain::refresh::RefreshService;
use tokens_domain::{AccessToken, Clock, StreamerId, TokenPair};
use tokens_service::config::{RefreshConfig, Source};
use tokens_service::{Host, Process};
use tokens_store::{self, MissingTables, PgStore};
use tokens_twitch::TwitchClient;
use uuid::Uuid;

use crate::postgres::{Database, Postgres};
use crate::twitch::{Settings, SimulatedTwitch};

/// The AdonisJS application key of every world. It protects invented tokens only.
const APP_KEY: &str = "local-app-key-for-invented-tokens";

/// A database of its own and a Twitch of its own. Both are gone when it is dropped.
pub struct World {
    pub twitch: SimulatedTwitch,
    /// A pool to look at the database and to change it as others do.
    pub pool: PgPool,
    /// The time by which tokens live and die.
    pub clock: Arc<dyn Clock>,
    database: Database,
    credentials: [(&'static str, String); 2],
    ca_file: Option<NamedTempFile>,
}

/// A streamer to invent.
#[derive(Clone, Debug)]
pub struct NewStreamer {
    /// `None`: any.
    pub id: Option<Uuid>,
    /// The login, the same at Twitch and in the database.
    pub login: String,
    /// How long the access token has left, at Twitch and in the database; not above zero: it has expired.
    pub token_left: TimeDelta,
    /// How long the authorization goes on; `None`: there is none.
    pub authorized_for: Option<TimeDelta>,
    /// `streamers.is_active`.
    pub is_active: bool,
    /// The campaign that has the authorization.
    pub campaign: String,
    /// The campaign's owner.
    pub game_master: String,
}

impl NewStreamer {
    /// Authorized for 12 hours, with a token that expires within the hour.
    pub fn due(login: impl Into<String>) -> Self {
        let login = login.into();
        Self {
            id: None,
            campaign: format!("Campaign of {login}"),
            game_master: format!("Master of {login}"),
            login,
            token_left: TimeDelta::minutes(30),
            authorized_for: Some(TimeDelta::hours(12)),
            is_active: true,
        }
    }

    /// Authorized for 12 hours, with a token that lives for another 3.
    pub fn fresh(login: impl Into<String>) -> Self {
        Self { token_left: TimeDelta::hours(3), ..Self::due(login) }
    }
}

/// A row of `streamers`, as far as refreshes change it.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct StreamerRow {
    pub access_token_encrypted: Option<String>,
    pub refresh_token_encrypted: Option<String>,
    pub is_active: bool,
    pub token_expires_at: Option<DateTime<Utc>>,
    pub last_token_refresh_at: Option<DateTime<Utc>>,
    pub token_refresh_failed_at: Option<DateTime<Utc>>,
    pub updated_at: DateTime<Utc>,
}

impl World {
    /// Makes a migrated database and starts a Twitch with these settings.
    pub async fn start(postgres: &Postgres, settings: Settings) -> Result<Self> {
        let migrate = async |url: &str| {
            tokens_store::migrate(&url.parse().context("the database's URL")?, MissingTables::Create)
                .await
                .map(drop)
                .map_err(anyhow::Error::from)
        };
        let database = postgres.database("migrated", migrate).await?;
        let pool = PgPoolOptions::new().max_connections(4).connect(database.url()).await?;
        let clock = settings.clock.clone();
        let credentials = [
            ("TWITCH_CLIENT_ID", settings.client_id.clone()),
            ("TWITCH_CLIENT_SECRET", settings.client_secret.clone()),
        ];
        let twitch = SimulatedTwitch::start(settings).await?;
        let ca_file = twitch.ca_pem().map(|pem| {
            let file = NamedTempFile::new()?;
            std::fs::write(file.path(), pem)?;
            std::io::Result::Ok(file)
        });
        Ok(Self { twitch, pool, clock, database, credentials, ca_file: ca_file.transpose()? })
    }

    pub fn database_url(&self) -> &str {
        self.database.url()
    }

    /// What the program's binaries need in their environment to work in this world.
    pub fn environment(&self) -> Vec<(String, String)> {
        let mut environment = vec![
            ("DATABASE_URL".to_owned(), self.database.url().to_owned()),
            ("APP_KEY".to_owned(), APP_KEY.to_owned()),
            ("TWITCH_ID_URL".to_owned(), self.twitch.base_url().to_owned()),
        ];
        environment.extend(self.credentials.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        if let Some(file) = &self.ca_file {
            environment.push(("TWITCH_CA_FILE".to_owned(), file.path().display().to_string()));
        }
        environment
    }

    /// The configuration of this world, as the binaries read it.
    pub fn config(&self, changes: &[(&str, &str)]) -> Result<RefreshConfig> {
        Ok(RefreshConfig::read(&self.source(changes))?)
    }

    /// The environment of this world with these changes.
    pub fn source(&self, changes: &[(&str, &str)]) -> Source {
        let changes = changes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        self.environment().into_iter().chain(changes).collect()
    }

    /// The host in this process, on this world's clock.
    pub fn host(&self, changes: &[(&str, &str)]) -> Host {
        Host::new(self.source(changes), Process::on(self.clock.clone()))
    }

    /// The refresh service in this process, on this world's clock.
    pub async fn service(
        &self,
        changes: &[(&str, &str)],
    ) -> Result<RefreshService<PgStore, TwitchClient, NoSignals, NoSignals>> {
        self.service_with(NoSignals, changes).await
    }

    /// The refresh service in this process, on this world's clock, which signals through `signals`.
    pub async fn service_with<G: RetryScheduler + EventPublisher + Clone>(
        &self,
        signals: G,
        changes: &[(&str, &str)],
    ) -> Result<RefreshService<PgStore, TwitchClient, G, G>> {
        let config = self.config(changes)?;
        let database = tokens_store::Database::open(config.database).await?;
        let store = PgStore::new(database, config.cipher, self.clock.clone());
        let in_flight = config.twitch.in_flight();
        let twitch = TwitchClient::new(config.twitch, self.clock.clone())?;
        let (retries, clock) = (signals.clone(), self.clock.clone());
        Ok(RefreshService::new(store, twitch, retries, signals, clock, config.policy, in_flight))
    }

    pub async fn add(&self, streamer: NewStreamer) -> Result<StreamerId> {
        let ids = self.add_all(vec![streamer]).await?;
        ids.first().copied().context("nobody was added")
    }

    /// Invents streamers, each connected at Twitch, with their campaigns and game masters.
    pub async fn add_all(&self, streamers: Vec<NewStreamer>) -> Result<Vec<StreamerId>> {
        let now = self.clock.now();
        let cipher = self.config(&[])?.cipher;
        let ids: Vec<Uuid> =
            streamers.iter().map(|streamer| streamer.id.unwrap_or_else(Uuid::new_v4)).collect();
        let (mut access, mut refresh) = (Vec::new(), Vec::new());
        for (streamer, id) in streamers.iter().zip(&ids) {
            let left = streamer.token_left.to_std().unwrap_or(Duration::ZERO);
            let TokenPair { access: a, refresh: r } =
                self.twitch.add_streamer_with(&id.to_string(), &streamer.login, left);
            access.push(cipher.encrypt(*id, Column::AccessToken, a.expose())?);
            refresh.push(cipher.encrypt(*id, Column::RefreshToken, r.expose())?);
        }
        let column = |value: fn(&NewStreamer, DateTime<Utc>) -> Option<DateTime<Utc>>| {
            streamers.iter().map(|streamer| value(streamer, now)).collect::<Vec<_>>()
        };
        let expires_at = column(|streamer, now| Some(now + streamer.token_left));
        let until = column(|streamer, now| streamer.authorized_for.map(|left| now + left));
        let texts = |value: fn(&NewStreamer) -> &String| {
            streamers.iter().map(|streamer| value(streamer).clone()).collect::<Vec<_>>()
        };
        let is_active: Vec<_> = streamers.iter().map(|streamer| streamer.is_active).collect();
        sqlx::query(
            "WITH new AS (
                 SELECT n.*, md5('user ' || game_master)::uuid AS owner_id, md5('campaign ' || campaign)::uuid AS campaign_id
                 FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bool[], $6::timestamptz[],
                             $7::timestamptz[], $8::text[], $9::text[])
                 AS n (id, login, access_token, refresh_token, is_active, token_expires_at, until, campaign, game_master)),
             master AS (
                 INSERT INTO users (id, display_name) SELECT DISTINCT owner_id, game_master FROM new
                 ON CONFLICT DO NOTHING),
             campaign AS (
                 INSERT INTO campaigns (id, name, owner_id, created_at, updated_at)
                 SELECT DISTINCT campaign_id, campaign, owner_id, $10, $10 FROM new
                 ON CONFLICT DO NOTHING),
             streamer AS (
                 INSERT INTO streamers (id, twitch_user_id, twitch_login, twitch_display_name,
                     access_token_encrypted, refresh_token_encrypted, is_active, token_expires_at,
                     created_at, updated_at)
                 SELECT id, id::text, login, initcap(login), access_token, refresh_token, is_active,
                     token_expires_at, $10, $10 FROM new)
             INSERT INTO campaign_memberships (campaign_id, streamer_id, status, invited_at, accepted_at,
                 created_at, updated_at, poll_authorization_granted_at, poll_authorization_expires_at)
             SELECT campaign_id, id, 'ACTIVE', $10, $10, $10, $10, until - interval '12 hours', until FROM new",
        )
        .bind(&ids)
        .bind(texts(|streamer| &streamer.login))
        .bind(&access)
        .bind(&refresh)
        .bind(&is_active)
        .bind(&expires_at)
        .bind(&until)
        .bind(texts(|streamer| &streamer.campaign))
        .bind(texts(|streamer| &streamer.game_master))
        .bind(now)
        .execute(&self.pool)
        .await?;
        Ok(ids.into_iter().map(StreamerId).collect())
    }

    /// Signs in a device of this streamer, who has a user account from then on.
    pub async fn sign_in_streamer(&self, login: &str, device: &Subscription) -> Result<()> {
        sqlx::query(
            "WITH person AS (
                 INSERT INTO users (id, display_name)
                 SELECT md5('user ' || twitch_login)::uuid, twitch_display_name FROM streamers WHERE twitch_login = $1
                 ON CONFLICT DO NOTHING)
             UPDATE streamers SET user_id = md5('user ' || twitch_login)::uuid WHERE twitch_login = $1",
        )
        .bind(login)
        .execute(&self.pool)
        .await?;
        self.sign_in(login, device).await
    }

    /// Signs in a device of this game master.
    pub async fn sign_in_game_master(&self, name: &str, device: &Subscription) -> Result<()> {
        self.sign_in(name, device).await
    }

    async fn sign_in(&self, user: &str, device: &Subscription) -> Result<()> {
        let Subscription { id, endpoint, p256dh, auth } = device;
        sqlx::query(
            "INSERT INTO push_subscriptions (id, user_id, endpoint, p256dh, auth, created_at, updated_at)
             VALUES ($1, md5('user ' || $2)::uuid, $3, $4, $5, $6, $6)",
        )
        .bind(id)
        .bind(user)
        .bind(endpoint)
        .bind(p256dh)
        .bind(auth)
        .bind(self.clock.now())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// A streamer's row as it is now.
    pub async fn row(&self, id: StreamerId) -> Result<StreamerRow> {
        let row = sqlx::query_as(
            "SELECT access_token_encrypted, refresh_token_encrypted, is_active, token_expires_at,
                    last_token_refresh_at, token_refresh_failed_at, updated_at
             FROM streamers WHERE id = $1",
        );
        Ok(row.bind(id.0).fetch_one(&self.pool).await?)
    }

    /// Whether a poll that began now would meet a live token.
    pub async fn has_live_token(&self, id: StreamerId) -> Result<bool> {
        let Some(stored) = self.row(id).await?.access_token_encrypted else { return Ok(false) };
        let plain = self.config(&[])?.cipher.decrypt(id.0, Column::AccessToken, &stored, self.clock.now());
        Ok(plain.is_ok_and(|plain| self.twitch.access_token_is_live(&AccessToken::new(plain.as_str()))))
    }
}
