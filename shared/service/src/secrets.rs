//! The secrets that the environment names, and what they say.
//!
//! A value never reaches a log, an error or `Debug`.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use futures::FutureExt;
use futures::future::join_all;
use sqlx::postgres::PgConnectOptions;
use tokens_aws::SecretsManager;
use tokens_domain::Clock;
use tokens_store::OtherLogin;
use tokio::sync::Mutex;

use crate::config::{self, Members, Secret, Source};
use crate::process::Process;

/// Something that is refused is refused for all events at the same time: secrets that have just been read are not read again for
/// this long.
const SETTLED: TimeDelta = TimeDelta::seconds(10);

/// Whether what was found out at `at` still counts.
pub(crate) fn is_settled(at: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    (TimeDelta::zero()..SETTLED).contains(&(now - at))
}

/// The secrets that an environment names.
pub(crate) struct Secrets {
    environment: Source,
    named: Vec<(Secret, String)>,
    manager: SecretsManager,
    clock: Arc<dyn Clock>,
    /// When the database last refused our login, and what was found instead.
    login: Mutex<Option<(DateTime<Utc>, Option<PgConnectOptions>)>>,
}

impl Secrets {
    /// Those of these that are named. Reads nothing yet.
    pub(crate) fn new(environment: Source, needed: &[Secret], process: &Process) -> Self {
        let named = |secret: &Secret| Some((*secret, environment.secret_id(*secret)?));
        let named = needed.iter().filter_map(named).collect();
        let (manager, clock) = (process.sdk.clone().into(), process.clock.clone());
        Self { environment, named, manager, clock, login: Mutex::default() }
    }

    /// Whether the environment names none.
    pub(crate) fn are_none(&self) -> bool {
        self.named.is_empty()
    }

    /// Reads all at the same time. AWS is not asked where none is named.
    pub(crate) async fn read(&self) -> Said {
        let read = self.named.iter().map(async |(secret, id)| {
            let text = self.manager.read(id).await?;
            secret.members(text.as_deref().map(String::as_str))
        });
        Said(join_all(read).await)
    }

    /// What could not be read now says what it said before.
    pub(crate) fn or_before(&self, now: Said, before: &Said) -> Said {
        let said = self.named.iter().zip(now.0.into_iter().zip(&before.0)).map(|((_, id), (now, before))| {
            if let (Err(fault), Ok(_)) = (&now, before) {
                tracing::error!(secret = id, "the secret {fault}; what it said before is used meanwhile");
            }
            now.or_else(|fault| before.clone().map_err(|_| fault))
        });
        Said(said.collect())
    }

    /// The settings of the environment, with what the secrets say.
    pub(crate) fn source(&self, said: &Said) -> Source {
        let mut source = self.environment.clone();
        for ((secret, id), said) in self.named.iter().zip(&said.0) {
            source.add(*secret, id, said);
        }
        source
    }

    /// Where another login comes from, if it stands in a secret.
    pub(crate) fn other_login(self: &Arc<Self>) -> Option<OtherLogin> {
        self.database()?;
        let secrets = self.clone();
        Some(Arc::new(move || {
            let secrets = secrets.clone();
            async move { secrets.login().await }.boxed()
        }))
    }

    async fn login(&self) -> Option<PgConnectOptions> {
        let mut login = self.login.lock().await;
        let now = self.clock.now();
        if let Some((at, found)) = &*login
            && is_settled(*at, now)
        {
            return found.clone();
        }
        let found = self.read_login().await;
        *login = Some((now, found.clone()));
        found
    }

    fn database(&self) -> Option<&str> {
        let (_, id) = self.named.iter().find(|(secret, _)| *secret == Secret::Database)?;
        Some(id)
    }

    /// Reads the database's secret alone: what is wrong with another one does not matter here.
    async fn read_login(&self) -> Option<PgConnectOptions> {
        let id = self.database()?;
        let text = self.manager.read(id).await.ok()?;
        let said = Secret::Database.members(text.as_deref().map(String::as_str));
        let mut source = self.environment.clone();
        source.add(Secret::Database, id, &said);
        config::database(&source).ok()
    }
}

/// What each of them says, or why that can't be known.
#[derive(PartialEq, Eq)]
pub(crate) struct Said(Vec<Result<Members, String>>);

impl Said {
    /// Whether all could be read.
    pub(crate) fn is_whole(&self) -> bool {
        self.0.iter().all(Result::is_ok)
    }
}

/// The settings of the environment, with what these secrets say that it names; and where another login comes from. For a command,
/// which ends soon. What is wrong with a secret is among the faults of the configuration that is read from the source.
pub async fn with_secrets(
    environment: Source,
    needed: &[Secret],
    process: &Process,
) -> (Source, Option<OtherLogin>) {
    let secrets = Arc::new(Secrets::new(environment, needed, process));
    let source = secrets.source(&secrets.read().await);
    (source, secrets.other_login())
}
