//! Settings that AWS Secrets Manager keeps: all of them read at the same time, once per process; read again after a
//! while, and at once when somebody refuses what they say.
//!
//! A value never reaches a log, an error or `Debug`. A secret that can't be read again, or not be used, changes nothing:
//! what it said before stands.

mod live;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_config::timeout::TimeoutConfig;
use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::config::Builder;
use chrono::{DateTime, TimeDelta, Utc};
use domain::Clock;
use futures::future::join_all;
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

pub use self::live::Live;
use crate::aws::{Failure, Sdk};
use crate::config::{Secret, Source};

/// For how long a secret is used without looking whether it has changed. A new one is in use everywhere by then, even
/// where the old one is still taken.
const KEPT: TimeDelta = TimeDelta::minutes(15);

/// Secrets Manager that could not be asked is asked again after this long: what we have is most likely right.
const ASKED_AGAIN_AFTER: TimeDelta = TimeDelta::minutes(1);

/// A secret that was read again in vain is not read once more for this long: what is refused is refused for everybody
/// at the same time.
const SETTLED: TimeDelta = TimeDelta::seconds(10);

/// An answer takes tens of milliseconds, more on a first connection; but without its secrets a function is nothing, so they
/// are worth a longer wait than a signal.
const ONE_ATTEMPT: Duration = Duration::from_secs(2);

/// The longest that reading a secret may take, with its retries: half of what a function has to begin, and of what a
/// health check has by default.
const LONGEST_READ: Duration = Duration::from_secs(5);

/// What one secret says, by the names of the settings.
pub(crate) type Members = BTreeMap<&'static str, Zeroizing<String>>;

/// The secrets that this process uses; there may be none. Clones share what was read.
#[derive(Clone, Default)]
pub struct Secrets(Option<Arc<Parts>>);

struct Parts {
    /// The settings that name them, and all others.
    base: Source,
    named: Vec<Named>,
    sdk: Sdk,
    client: OnceCell<Client>,
    clock: Arc<dyn Clock>,
}

/// A secret that the environment names.
struct Named {
    secret: Secret,
    id: String,
    /// One asks for all who want to know.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

struct State {
    /// What it says; at first, that nobody has asked.
    said: Result<Members, String>,
    /// Counts its changes.
    version: u64,
    renew_at: DateTime<Utc>,
    in_vain_at: Option<DateTime<Utc>>,
}

impl Named {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Secrets {
    /// Asks nobody yet.
    pub(crate) fn new(base: Source, named: Vec<(Secret, String)>, sdk: Sdk, clock: Arc<dyn Clock>) -> Self {
        let named = named.into_iter().map(|(secret, id)| Named {
            secret,
            id,
            turn: tokio::sync::Mutex::default(),
            state: Mutex::new(State {
                said: Err(String::new()),
                version: 0,
                renew_at: DateTime::UNIX_EPOCH,
                in_vain_at: None,
            }),
        });
        let named = named.collect();
        Self(Some(Arc::new(Parts { base, named, sdk, client: OnceCell::new(), clock })))
    }

    /// The SDK that reads them, for what else this process says to AWS.
    #[must_use]
    pub fn sdk(&self) -> Sdk {
        self.0.as_ref().map(|parts| parts.sdk.clone()).unwrap_or_default()
    }

    /// Looks whether those of these have changed that were last looked at a while ago, at the same time. For the beginning
    /// of an event or a request, so that no call has to be refused first.
    pub async fn renew(&self, these: &[Secret]) {
        let Some(parts) = &self.0 else { return };
        // A clock that was set back must not keep an old one for ever.
        let is_old = |state: &State| {
            let left = state.renew_at - parts.clock.now();
            left <= TimeDelta::zero() || left > KEPT
        };
        let named = parts.named.iter().filter(|named| these.contains(&named.secret));
        let old = named.filter(|named| is_old(&named.state()));
        join_all(old.map(async |named| {
            let _turn = named.turn.lock().await;
            if is_old(&named.state()) {
                parts.read(named).await;
            }
        }))
        .await;
    }

    /// Reads this one again, unless it is no longer at this version, or was read again in vain a moment ago.
    async fn reload(&self, secret: Secret, version: u64) {
        let Some((parts, named)) = self.named(secret) else { return };
        let _turn = named.turn.lock().await;
        let now = parts.clock.now();
        let settled = |at: DateTime<Utc>| (TimeDelta::zero()..SETTLED).contains(&(now - at));
        let is_settled = |state: &State| state.version != version || state.in_vain_at.is_some_and(settled);
        if is_settled(&named.state()) {
            return;
        }
        parts.read(named).await;
        let mut state = named.state();
        state.in_vain_at = (state.version == version).then_some(now);
    }

    fn named(&self, secret: Secret) -> Option<(&Parts, &Named)> {
        let parts = self.0.as_ref()?;
        Some((parts, parts.named.iter().find(|named| named.secret == secret)?))
    }

    /// How often this one has changed; `None` if the environment names no such secret.
    fn version(&self, secret: Secret) -> Option<u64> {
        Some(self.named(secret)?.1.state().version)
    }

    /// The settings, with what the secrets say now.
    pub(crate) fn source(&self) -> Source {
        let Some(parts) = &self.0 else { return Source::default() };
        let mut source = parts.base.following(self.clone());
        for named in &parts.named {
            source.add(named.secret, &named.id, &named.state().said);
        }
        source
    }
}

impl Parts {
    /// Reads a secret and keeps what it says; if it can't be read, what it said before.
    async fn read(&self, named: &Named) {
        let read = self.ask(&named.id).await;
        let read = match &read {
            Ok(text) => named.secret.members(text.as_deref().map(String::as_str)),
            Err(Failure { reason, .. }) => Err(format!(
                "can't be read: {reason}; check that it is there, that this program may call \
                 secretsmanager:GetSecretValue on it, and that it can reach the service"
            )),
        };
        let now = self.clock.now();
        let mut state = named.state();
        match read {
            Ok(members) => {
                state.renew_at = now + KEPT;
                if state.said.as_ref() != Ok(&members) {
                    if state.said.is_ok() {
                        tracing::info!(secret = named.id, "the secret was changed: it is in use from now on");
                    }
                    state.version += 1;
                    state.said = Ok(members);
                }
            }
            Err(fault) => {
                state.renew_at = now + ASKED_AGAIN_AFTER;
                if state.said.is_ok() {
                    tracing::error!(
                        secret = named.id,
                        "the secret {fault}; what it said before is used meanwhile"
                    );
                } else {
                    state.said = Err(fault);
                }
            }
        }
    }

    /// `None`: it holds no text.
    async fn ask(&self, id: &str) -> Result<Option<Zeroizing<String>>, Failure> {
        let client = self.client.get_or_try_init(|| self.connect()).await?;
        let answer = client.get_secret_value().secret_id(id).send().await?;
        Ok(answer.secret_string.map(Zeroizing::new))
    }

    async fn connect(&self) -> Result<Client, Failure> {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(ONE_ATTEMPT)
            .operation_attempt_timeout(ONE_ATTEMPT)
            .operation_timeout(LONGEST_READ)
            .build();
        let config = Builder::from(self.sdk.config().await?).timeout_config(timeouts).build();
        Ok(Client::from_conf(config))
    }
}
