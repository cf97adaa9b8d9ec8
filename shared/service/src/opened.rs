//! What a process keeps open between events, made of settings of which some may stand in AWS Secrets Manager.
//!
//! It is opened at the first event. After 15 minutes, or when Twitch or a stored token refuses what a secret says, the secrets are read
//! again; if one has changed, it is opened again, and the event, which may be repeated, runs once more. A login that the database
//! refuses is replaced at once, for a new pair of tokens exists nowhere else until it is written. So a rotation needs no deployment and
//! fails no event. A secret that can't be read or used changes nothing: what is open stays in use.

use std::sync::{Arc, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use tokens_domain::Monotonic;
use tokens_domain::ports::StoreError;
use tokens_store::OtherLogin;
use tokens_twitch::SetUpError;
use tokio::sync::Mutex;

use crate::config::{ConfigError, Secret, Source};
use crate::process::Process;
use crate::secrets::{Said, Secrets, is_settled};

/// For how long secrets are used without a look whether they have changed. A new one is in use everywhere by then, even where the
/// old one is still taken.
const RENEW_AFTER: TimeDelta = TimeDelta::minutes(15);

/// After a look in vain (a secret that could not be read, or not be used) the next one comes after this long.
const LOOK_AGAIN_AFTER: TimeDelta = TimeDelta::minutes(1);

/// Nothing could be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The database can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no way to talk to Twitch.
    #[error(transparent)]
    Twitch(#[from] SetUpError),
    /// Our VAPID key or subject is wrong.
    #[error(transparent)]
    Vapid(#[from] tokens_push::VapidFaults),
    /// There is no way to talk to push services.
    #[error(transparent)]
    Push(#[from] tokens_push::SetUpError),
}

/// What can be opened with settings.
pub trait Open: Sized + Send + Sync {
    /// The secrets that its settings may stand in.
    const SECRETS: &'static [Secret];

    /// Opens it with these settings.
    fn open(
        source: &Source,
        process: &Process,
        opening: Opening,
    ) -> impl Future<Output = Result<Self, OpenError>> + Send;
}

/// How the database is opened.
#[derive(Default)]
pub struct Opening {
    /// Until when a database that is away is waited for.
    pub give_up_at: Option<Monotonic>,
    /// Where another login comes from, if the database refuses ours.
    pub other_login: Option<OtherLogin>,
}

/// What is kept open.
pub struct Opened<T> {
    secrets: Arc<Secrets>,
    process: Process,
    current: Mutex<Option<Current<T>>>,
    /// The value of `current`, for those that must not wait while secrets are read.
    value: std::sync::Mutex<Option<Arc<T>>>,
}

struct Current<T> {
    value: Arc<T>,
    /// What the secrets said when it was opened.
    said: Said,
    look_at: DateTime<Utc>,
    looked_at: Option<DateTime<Utc>>,
    /// Whether that look has found, and put to use, all that the secrets say.
    is_newest: bool,
}

impl<T: Open> Opened<T> {
    /// Opens nothing yet.
    #[must_use]
    pub fn new(environment: Source, process: Process) -> Self {
        let secrets = Arc::new(Secrets::new(environment, T::SECRETS, &process));
        Self { secrets, process, current: Mutex::default(), value: std::sync::Mutex::default() }
    }

    /// What belongs to the process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// What is open, if anything is.
    #[must_use]
    pub fn opened(&self) -> Option<Arc<T>> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does this with what is open; once more, if it fails by what a secret may have said, which `may_blame_secret` knows. `work`
    /// hears whether the secrets were read just now, or stand in the environment: then nothing newer can be had.
    ///
    /// # Errors
    ///
    /// As `work`; and if nothing can be opened.
    pub async fn run<R, E, F>(
        &self,
        give_up_at: Option<Monotonic>,
        may_blame_secret: impl Fn(&E) -> bool,
        work: impl Fn(Arc<T>, bool) -> F,
    ) -> Result<R, E>
    where
        E: From<OpenError>,
        F: Future<Output = Result<R, E>>,
    {
        let (value, is_current) = self.look_up(give_up_at).await?;
        match work(value.clone(), is_current).await {
            Err(error) if !is_current && may_blame_secret(&error) => {
                work(self.renewed(&value).await, true).await
            }
            done => done,
        }
    }

    /// What is open, opened again if that was a while ago and a secret has changed. A database that is away is waited for until
    /// `give_up_at`.
    ///
    /// # Errors
    ///
    /// If nothing can be opened.
    pub async fn current(&self, give_up_at: Option<Monotonic>) -> Result<Arc<T>, OpenError> {
        Ok(self.look_up(give_up_at).await?.0)
    }

    /// The same, and whether nothing newer can be had.
    async fn look_up(&self, give_up_at: Option<Monotonic>) -> Result<(Arc<T>, bool), OpenError> {
        let mut current = match (self.opened(), self.current.try_lock()) {
            // Another event looks meanwhile: what is open serves until it has found something.
            (Some(value), Err(_)) => return Ok((value, self.secrets.are_none())),
            (_, Ok(current)) => current,
            (None, Err(_)) => self.current.lock().await,
        };
        let now = self.process.clock.now();
        if let Some(open) = &mut *current {
            if open.is_old(now) && !self.secrets.are_none() {
                self.look(open).await;
            }
            return Ok((open.value.clone(), self.secrets.are_none() || open.is_current(now)));
        }
        let said = self.secrets.read().await;
        let value = self.open(&said, give_up_at).await?;
        let look_at = self.process.clock.now() + RENEW_AFTER;
        *current = Some(Current { value: value.clone(), said, look_at, looked_at: None, is_newest: false });
        Ok((value, self.secrets.are_none()))
    }

    /// For an event that has failed with `seen`: what is open by now, with secrets that were read just now.
    async fn renewed(&self, seen: &Arc<T>) -> Arc<T> {
        let mut current = self.current.lock().await;
        let Some(open) = current.as_mut() else { return seen.clone() };
        if Arc::ptr_eq(&open.value, seen) && !open.is_settled(self.process.clock.now()) {
            self.look(open).await;
        }
        open.value.clone()
    }

    /// Reads the secrets, and opens again if one has changed.
    async fn look(&self, open: &mut Current<T>) {
        let read = self.secrets.read().await;
        let now = self.process.clock.now();
        let is_whole = read.is_whole();
        let said = self.secrets.or_before(read, &open.said);
        let mut pause = if is_whole { RENEW_AFTER } else { LOOK_AGAIN_AFTER };
        open.looked_at = Some(now);
        open.is_newest = is_whole;
        if said != open.said {
            match self.open(&said, None).await {
                Ok(value) => {
                    tracing::info!("a secret was changed: it is in use from now on");
                    (open.value, open.said) = (value, said);
                }
                Err(error) => {
                    tracing::error!("a secret was changed, and what it said before is used on: {error}");
                    pause = LOOK_AGAIN_AFTER;
                    open.is_newest = false;
                }
            }
        }
        open.look_at = now + pause;
    }

    async fn open(&self, said: &Said, give_up_at: Option<Monotonic>) -> Result<Arc<T>, OpenError> {
        let opening = Opening { give_up_at, other_login: self.secrets.other_login() };
        let source = self.secrets.source(said);
        let value = Arc::new(Box::pin(T::open(&source, &self.process, opening)).await?);
        *self.value.lock().unwrap_or_else(PoisonError::into_inner) = Some(value.clone());
        Ok(value)
    }
}

impl<T> Current<T> {
    /// A clock that was set back must not keep a secret for ever.
    fn is_old(&self, now: DateTime<Utc>) -> bool {
        let left = self.look_at - now;
        left <= TimeDelta::zero() || left > RENEW_AFTER
    }

    fn is_settled(&self, now: DateTime<Utc>) -> bool {
        self.looked_at.is_some_and(|at| is_settled(at, now))
    }

    /// Whether it was opened with what the secrets say just now.
    fn is_current(&self, now: DateTime<Utc>) -> bool {
        self.is_newest && self.is_settled(now)
    }
}
