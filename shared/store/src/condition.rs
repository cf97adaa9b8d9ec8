//! What `tokens doctor` asks the database. Facts only, and nothing is written; the caller decides what is wrong.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokens_domain::ports::StoreError;

use super::{Database, Moment, PgStore, Purpose, SchemaVersion, failed, network, restore, schema, tables};
use tokens_cipher::{Column, DecryptError};
use tokens_domain::SystemClock;

/// What the login of everything but the function notify needs, of whole tables.
const TABLE_RIGHTS: [(&str, &[&str]); 10] = [
    ("public.streamers", &["SELECT"]),
    ("public.campaign_memberships", &["SELECT"]),
    ("public.campaigns", &["SELECT"]),
    ("public.notification_preferences", &["SELECT"]),
    ("public.push_subscriptions", &["SELECT"]),
    ("token_refresh.streamers", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("token_refresh.refreshes", &["SELECT", "INSERT", "DELETE"]),
    ("token_refresh.deactivations", &["SELECT", "INSERT", "DELETE"]),
    ("token_refresh.sessions", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("token_refresh.outbox", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
];

/// And of columns of the application's tables.
const COLUMN_RIGHTS: [(&str, &str, &[&str]); 3] = [
    ("public.users", "SELECT", &["id", "display_name"]),
    (
        "public.streamers",
        "UPDATE",
        &[
            "access_token_encrypted",
            "refresh_token_encrypted",
            "token_expires_at",
            "last_token_refresh_at",
            "token_refresh_failed_at",
            "is_active",
            "updated_at",
        ],
    ),
    (
        "public.campaign_memberships",
        "UPDATE",
        &["poll_authorization_granted_at", "poll_authorization_expires_at", "updated_at"],
    ),
];

/// The server that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its version.
    pub version: String,
    /// Where it is, and the database's name.
    pub place: String,
    /// The role that we are connected as.
    pub role: String,
    /// What the connection relies on.
    pub trust: Trust,
    /// It takes writes.
    pub takes_writes: bool,
}

/// Why it is taken for the right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Its certificate was verified.
    Verified,
    /// It is on this machine.
    Near,
    /// Nothing but the address, which is of a private network.
    PrivateNetwork,
}

impl Trust {
    fn of(options: &PgConnectOptions) -> Self {
        match options.get_ssl_mode() {
            PgSslMode::VerifyFull => Self::Verified,
            _ if network::is_near(options) => Self::Near,
            _ => Self::PrivateNetwork,
        }
    }
}

/// The application's tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// What has to be another way.
    pub faults: Vec<String>,
    /// What of ours is missing on them: everything works without it, but slower, or without notifications.
    pub missing: Vec<String>,
    /// Columns of times that have no time zone, and are taken to be UTC.
    pub without_time_zone: Vec<String>,
}

/// The texts that are stored under one key, or in no format that has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTexts {
    /// `None`: they have no known form.
    pub key: Option<StoredUnder>,
    /// How many there are.
    pub texts: i64,
    /// How many of them were tried.
    pub tried: usize,
    /// Why some of those gave no token, each reason once.
    pub unreadable: Vec<DecryptError>,
}

/// What a text says that it was encrypted with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredUnder {
    /// `APP_KEY`.
    AppKey,
    /// The key with this id in `TOKEN_KEYS`.
    TokenKey(String),
}

/// What the rules' runs have brought about lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastRuns {
    /// The last refresh that a planned run made.
    pub planned: Option<DateTime<Utc>>,
    /// The last refresh that a sweep made.
    pub sweep: Option<DateTime<Utc>>,
}

/// How deliveries stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Notifications that are not settled.
    pub pending: i64,
    /// When the next attempt at the most overdue of them was due.
    pub due_since: Option<DateTime<Utc>>,
    /// Given up within the last day.
    pub given_up: i64,
}

/// The logins that can run the function notify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotifyRole {
    /// The group exists.
    pub exists: bool,
    /// The logins that have its rights, superusers aside.
    pub logins: Vec<String>,
}

impl Database {
    /// Connects to look, whatever the schema is.
    ///
    /// # Errors
    ///
    /// As [`Database::open`], but for the schema.
    pub async fn reach(options: PgConnectOptions) -> Result<(Self, Server), StoreError> {
        let database = Self::prepare(options.into(), Purpose::Read, Arc::new(SystemClock));
        let options = database.login.options();
        drop(database.acquire().await.map_err(|error| schema::unreachable(&error, &options))?);
        let row = sqlx::query!(
            r#"
            SELECT current_setting('server_version') AS "version!", current_user::text AS "role!",
                   current_database()::text AS "name!",
                   current_setting('transaction_read_only') = 'off' AS "takes_writes!"
            "#
        )
        .fetch_one(&database)
        .await
        .map_err(failed("asking for its version"))?;
        let server = Server {
            version: row.version,
            place: format!("{} at {}", row.name, schema::place(&options)),
            role: row.role,
            trust: Trust::of(&options),
            takes_writes: row.takes_writes,
        };
        Ok((database, server))
    }

    /// The schema's version, if this program works on it.
    pub async fn schema(&self) -> Result<SchemaVersion, StoreError> {
        schema::check(self).await
    }

    /// The application's tables, as far as they matter to us.
    pub async fn tables(&self) -> Result<Tables, StoreError> {
        let looked = async {
            let mut transaction = self.transaction().await?;
            Ok((tables::look(&mut transaction).await?, restore::look(&mut transaction).await?))
        };
        let (found, ours) = looked.await.map_err(failed("looking at the application's tables"))?;
        Ok(Tables {
            faults: found.after(),
            missing: ours.missing(),
            without_time_zone: found.without_time_zone(),
        })
    }

    /// What this login may not do and has to, as it stands in a `GRANT`: `UPDATE (is_active) ON public.streamers`.
    pub async fn missing_rights(&self) -> Result<Vec<String>, StoreError> {
        let (mut tables, mut rights, mut columns) = (Vec::new(), Vec::new(), Vec::new());
        let all =
            TABLE_RIGHTS.iter().flat_map(|(table, rights)| rights.iter().map(|right| (*table, *right, "")));
        let some = COLUMN_RIGHTS
            .iter()
            .flat_map(|(table, right, columns)| columns.iter().map(|column| (*table, *right, *column)));
        for (table, right, column) in all.chain(some) {
            tables.push(table.to_owned());
            rights.push(right.to_owned());
            columns.push(column.to_owned());
        }
        sqlx::query_scalar!(
            r#"
            SELECT CASE WHEN needed.columns = '' THEN needed.kind ELSE format('%s (%s)', needed.kind, needed.columns) END
                   || ' ON ' || needed.relation AS "missing!"
            FROM (
                SELECT relation, kind, string_agg(part, ', ') AS columns, min(place) AS place
                FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS n (relation, kind, part, place)
                WHERE (CASE WHEN part = '' THEN has_table_privilege(to_regclass(relation), kind)
                            ELSE has_column_privilege(to_regclass(relation), part, kind) END) IS NOT TRUE
                GROUP BY relation, kind
            ) AS needed
            ORDER BY needed.place
            "#,
            &tables,
            &rights,
            &columns
        )
        .fetch_all(self)
        .await
        .map_err(failed("looking up the login's rights"))
    }

    /// The logins that have the rights that the function notify needs.
    pub async fn notify_role(&self) -> Result<NotifyRole, StoreError> {
        sqlx::query_as!(
            NotifyRole,
            r#"
            WITH notify AS (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = 'token_refresh_notify')
            SELECT EXISTS (SELECT FROM notify) AS "exists!",
                   ARRAY(SELECT login.rolname::text FROM pg_catalog.pg_roles login, notify
                         WHERE login.rolcanlogin AND NOT login.rolsuper
                           AND pg_has_role(login.oid, notify.oid, 'USAGE')
                         ORDER BY 1) AS "logins!"
            "#
        )
        .fetch_one(self)
        .await
        .map_err(failed("looking up the role of notify"))
    }

    /// The last refreshes of the rules' runs since `since`.
    pub async fn last_runs(&self, since: DateTime<Utc>) -> Result<LastRuns, StoreError> {
        let runs = sqlx::query!(
            r#"
            SELECT max(ended_at) FILTER (WHERE trigger = 'planned') AS "planned: Moment",
                   max(ended_at) FILTER (WHERE trigger = 'sweep') AS "sweep: Moment"
            FROM token_refresh.refreshes WHERE outcome = 'refreshed' AND started_at >= $1
            "#,
            since
        )
        .fetch_one(self)
        .await
        .map_err(failed("reading the last runs"))?;
        Ok(LastRuns {
            planned: runs.planned.and_then(Moment::known),
            sweep: runs.sweep.and_then(Moment::known),
        })
    }

    /// What waits in the outbox.
    pub async fn waiting(&self, now: DateTime<Utc>) -> Result<Waiting, StoreError> {
        let waiting = sqlx::query!(
            r#"
            SELECT count(*) FILTER (WHERE state = 'pending') AS "pending!",
                   min(next_attempt_at) FILTER (WHERE state = 'pending' AND next_attempt_at <= $1)
                       AS "due_since: Moment",
                   count(*) FILTER (WHERE state = 'given_up' AND settled_at >= $2) AS "given_up!"
            FROM token_refresh.outbox
            "#,
            now,
            now - TimeDelta::days(1)
        )
        .fetch_one(self)
        .await
        .map_err(failed("counting notifications"))?;
        Ok(Waiting {
            pending: waiting.pending,
            due_since: waiting.due_since.map(Moment::end),
            given_up: waiting.given_up,
        })
    }
}

impl PgStore {
    /// The stored texts by what they were encrypted with; a sample of each is opened. Reads the whole table, which takes
    /// seconds for a million streamers.
    pub async fn stored_texts(&self, now: DateTime<Utc>) -> Result<Vec<StoredTexts>, StoreError> {
        // 20 of each are enough to see that a key is the wrong one.
        let rows = sqlx::query!(
            r#"
            WITH texts AS NOT MATERIALIZED (
                SELECT s.id, one.is_access, one.stored,
                       CASE WHEN one.stored ~ '^v1\.[A-Za-z0-9_-]+\..' THEN split_part(one.stored, '.', 2)
                            WHEN one.stored ~ '^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$' THEN ''
                       END AS key
                FROM public.streamers s CROSS JOIN LATERAL (VALUES
                    (true, s.access_token_encrypted), (false, s.refresh_token_encrypted)) AS one (is_access, stored)
                WHERE one.stored <> ''
            ),
            kinds AS (SELECT key, count(*) AS texts FROM texts GROUP BY key)
            SELECT kinds.key, kinds.texts AS "texts!", sample.id AS "id!", sample.is_access AS "is_access!",
                   sample.stored AS "stored!"
            FROM kinds CROSS JOIN LATERAL (
                SELECT * FROM texts WHERE texts.key IS NOT DISTINCT FROM kinds.key LIMIT 20) AS sample
            ORDER BY kinds.texts DESC, kinds.key
            "#
        )
        .fetch_all(&self.database)
        .await
        .map_err(failed("reading a sample of the tokens"))?;
        let cipher = &self.cipher;
        let mut kinds: Vec<StoredTexts> = Vec::new();
        for row in rows {
            let key = row.key.map(|key| match key.as_str() {
                "" => StoredUnder::AppKey,
                _ => StoredUnder::TokenKey(key),
            });
            if kinds.last().is_none_or(|last| last.key != key) {
                kinds.push(StoredTexts { key, texts: row.texts, tried: 0, unreadable: Vec::new() });
            }
            let Some(kind) = kinds.last_mut() else { continue };
            let column = if row.is_access { Column::AccessToken } else { Column::RefreshToken };
            kind.tried += 1;
            if let Err(reason) = cipher.decrypt(row.id, column, &row.stored, now)
                && !kind.unreadable.contains(&reason)
            {
                kind.unreadable.push(reason);
            }
        }
        Ok(kinds)
    }
}
