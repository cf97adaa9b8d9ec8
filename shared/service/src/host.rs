//! What the hosts of the service share: a cycle, a grant, a revocation, a status, a check, each within the time that it has,
//! whatever secret is rotated meanwhile.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use tokens_domain::authorization::{AUTHORIZATION, Membership};
use tokens_domain::grant::{GrantError, grant};
use tokens_domain::health::{CheckError, HealthReport, check};
use tokens_domain::refresh::{Cycle, DEADLINE_MARGIN, Limits};
use tokens_domain::report::{Report, Stop};
use tokens_domain::schedule::Trigger;
use tokens_domain::{Caller, CampaignId, MembershipKey, Monotonic, StreamerId};
use tokens_store::{Lookup, Purpose};
use tokens_telemetry::{HealthCheckLog, RefreshLog};
use tokio::time::Instant;

use crate::config::{RefreshConfig, Secret, Source};
use crate::opened::{Open, OpenError, Opened, Opening};
use crate::process::Process;
use crate::service::{RunError, Service};

/// A grant is answered within this long: a wait for another run, a refresh with its quick retries. Less than the 30 s after which
/// API Gateway gives up.
const GRANT_TIMEOUT: TimeDelta = TimeDelta::seconds(25);

/// Of the time that a request has, this much is kept free to write what Twitch has answered.
const WRITE_MARGIN: TimeDelta = TimeDelta::seconds(1);

/// Who asks, and until when the host can answer.
#[derive(Clone, Debug)]
pub struct Request {
    /// The caller.
    pub caller: Caller,
    /// When the host is killed, if it has a deadline.
    pub deadline: Option<Monotonic>,
}

impl Request {
    /// By when a request is answered that has this long: earlier, if the host is killed before.
    fn answer_by(&self, now: Monotonic, time: TimeDelta) -> Monotonic {
        self.deadline.map_or(now + time, |deadline| (now + time).min(deadline - DEADLINE_MARGIN))
    }

    fn cycle(&self, trigger: Trigger, answer_by: Monotonic) -> Cycle {
        let limits = Limits::of_request(answer_by, self.deadline);
        Cycle { caller: Some(self.caller.clone()), limits, ..Cycle::new(trigger) }
    }
}

/// A service that is kept open between events.
pub struct Host(Opened<Service>);

impl Host {
    /// Opens nothing before the first event.
    #[must_use]
    pub fn new(environment: Source, process: Process) -> Self {
        Self(Opened::new(environment, process))
    }

    /// The time, as all hosts of the database agree on it once it is open.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        self.0.opened().map_or_else(|| self.0.process().clock.now(), |service| service.now())
    }

    /// The service that is open now, if one is.
    #[must_use]
    pub fn opened(&self) -> Option<Arc<Service>> {
        self.0.opened()
    }

    /// The service that is open now; opened if none is.
    ///
    /// # Errors
    ///
    /// If it can't be opened.
    pub async fn service(&self) -> Result<Arc<Service>, OpenError> {
        self.0.current(None).await
    }

    /// Opens the service, unless it is open, and waits until `give_up_at` for a database that is away.
    ///
    /// # Errors
    ///
    /// If it can't be opened.
    pub async fn open(&self, give_up_at: Monotonic) -> Result<(), OpenError> {
        self.0.current(Some(give_up_at)).await.map(drop)
    }

    fn monotonic(&self) -> Monotonic {
        self.0.process().clock.monotonic()
    }

    /// Runs this cycle, logs its report and counts it; after a planned run or a sweep, also does what follows it. Twitch being down is
    /// no error: the next trigger goes on.
    ///
    /// # Errors
    ///
    /// If nothing could be opened, or the cycle stopped for what needs the operator.
    pub async fn run(&self, cycle: &Cycle, deadline: Option<Monotonic>) -> Result<Report, RunError> {
        let blames = |error: &RunError| {
            matches!(error, RunError::Stopped(Stop::Misconfigured(_) | Stop::UnknownKey(_)))
        };
        let ran = self
            .0
            .run(cycle.limits.start, blames, async |service: Arc<Service>, keys_are_current| {
                service.run(&Cycle { keys_are_current, ..cycle.clone() }).await
            })
            .await;
        if let (Trigger::Planned | Trigger::Sweep, Some(service)) = (cycle.trigger, self.0.opened()) {
            // Before an error is answered: a misconfigured function is when the coverage and the ages are needed.
            Box::pin(service.follow_up(cycle.trigger, deadline)).await;
        }
        ran
    }

    /// How the database knows this streamer.
    ///
    /// # Errors
    ///
    /// If the database fails, or nothing could be opened.
    pub async fn find(&self, id: StreamerId) -> Result<Lookup, OpenError> {
        self.with(async |service: Arc<Service>| service.database().find(id, service.now()).await).await
    }

    /// Refreshes the streamer's token and authorizes the campaign for a session.
    ///
    /// # Errors
    ///
    /// If nothing was granted.
    pub async fn grant(&self, key: MembershipKey, request: &Request) -> Result<Membership, GrantError> {
        self.grant_for(key, Some(AUTHORIZATION), request).await
    }

    /// The same for this long; `None`: without an end.
    ///
    /// # Errors
    ///
    /// If nothing was granted.
    pub async fn grant_for(
        &self,
        key: MembershipKey,
        length: Option<TimeDelta>,
        request: &Request,
    ) -> Result<Membership, GrantError> {
        let answer_by = request.answer_by(self.monotonic(), GRANT_TIMEOUT);
        let blames = |error: &GrantError| matches!(error, GrantError::Secrets(_));
        self.0
            .run(Some(answer_by), blames, async |service: Arc<Service>, keys_are_current| {
                let cycles =
                    service.cycles(Some(twitch_until(answer_by, &service))).map_err(OpenError::from)?;
                let cycle = Cycle { keys_are_current, ..request.cycle(Trigger::Grant, answer_by) };
                Box::pin(grant(&cycles, key, length, cycle, &RefreshLog)).await
            })
            .await
    }

    /// Ends the authorization now, if there is one.
    ///
    /// # Errors
    ///
    /// If there is no such membership, the database fails, or nothing could be opened.
    pub async fn revoke(&self, key: MembershipKey) -> Result<(), CheckError> {
        self.with(async |service: Arc<Service>| service.database().revoke(key, service.now()).await).await
    }

    /// One membership.
    ///
    /// # Errors
    ///
    /// If the database fails, or nothing could be opened.
    pub async fn membership(&self, key: MembershipKey) -> Result<Membership, CheckError> {
        self.with(async |service: Arc<Service>| service.database().membership(key, service.now()).await).await
    }

    /// All memberships of a streamer.
    ///
    /// # Errors
    ///
    /// If the database fails, or nothing could be opened.
    pub async fn memberships(&self, streamer: StreamerId) -> Result<Vec<Membership>, CheckError> {
        self.with(async |service: Arc<Service>| {
            service.database().memberships(streamer, None, service.now()).await
        })
        .await
    }

    /// Checks a campaign before a session, and answers within `HEALTH_CHECK_TIMEOUT` with what is known by then.
    ///
    /// # Errors
    ///
    /// If the campaign is unknown, the database fails before anything was checked, or there is no way to talk to Twitch. A
    /// campaign without streamers is no error.
    pub async fn check(&self, campaign: CampaignId, request: &Request) -> Result<HealthReport, CheckError> {
        let began = self.monotonic();
        let blames = |error: &CheckError| matches!(error, CheckError::Secrets(_));
        self.0
            .run(None, blames, async |service: Arc<Service>, keys_are_current| {
                let time = service.health_check_timeout();
                let answer_by = request.answer_by(began, time);
                let cycles =
                    service.cycles(Some(twitch_until(answer_by, &service))).map_err(OpenError::from)?;
                let cycle = Cycle { keys_are_current, ..request.cycle(Trigger::HealthCheck, answer_by) };
                match Box::pin(check(&cycles, campaign, cycle, &HealthCheckLog)).await {
                    Ok(report) if report.may_blame_secret() && !keys_are_current => {
                        Err(CheckError::Secrets("a secret may have changed".to_owned()))
                    }
                    done => done,
                }
            })
            .await
    }

    /// Reads or writes with what is open, without Twitch.
    async fn with<R, E, F, D>(&self, work: impl FnOnce(Arc<Service>) -> F) -> Result<R, D>
    where
        F: Future<Output = Result<R, E>>,
        D: From<E> + From<OpenError>,
    {
        Ok(work(self.0.current(None).await?).await?)
    }
}

/// Until when Twitch may be asked for a request that is to be answered by then.
fn twitch_until(answer_by: Monotonic, service: &Service) -> Instant {
    Instant::now() + (answer_by - WRITE_MARGIN - service.monotonic()).to_std().unwrap_or_default()
}

impl Open for Service {
    const SECRETS: &'static [Secret] = &RefreshConfig::SECRETS;

    async fn open(source: &Source, process: &Process, opening: Opening) -> Result<Self, OpenError> {
        Ok(Self::open(RefreshConfig::read(source)?, process, Purpose::Write, opening).await?)
    }
}

impl From<OpenError> for RunError {
    fn from(error: OpenError) -> Self {
        Self::Open(error)
    }
}

impl From<OpenError> for GrantError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Store(error) => Self::Store(error),
            other => Self::Ours(other.to_string()),
        }
    }
}

impl From<OpenError> for CheckError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Store(error) => Self::Store(error),
            other => Self::Ours(other.to_string()),
        }
    }
}
