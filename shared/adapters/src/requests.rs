//! What the functions behind the HTTP API share: a grant, a revocation, a status, a check; each within the time that its
//! caller has.
//!
//! Knows nothing of Lambda or HTTP, and decides nothing about a streamer.

use chrono::TimeDelta;
use domain::authorization::Membership;
use domain::grant::{GrantError, grant};
use domain::health::{CheckError, Checkup, check};
use domain::ports::MembershipError;
use domain::refresh::{Cycle, DEADLINE_MARGIN, Limits, RefreshService};
use domain::schedule::Trigger;
use domain::{Caller, CampaignId, MembershipKey, Monotonic, StreamerId};
use tokio::time::Instant;

use crate::runner::Runner;
use crate::signals::AwsSignals;
use crate::store::PgStore;
use crate::telemetry::{HealthCheckLog, RefreshLog};
use crate::twitch::{Bounded, SetUpError};

/// A grant is answered within this long: a wait for another run, a refresh with its quick retries, and what is less than
/// API Gateway's 30 s.
const GRANT_TIME: TimeDelta = TimeDelta::seconds(25);

/// Of the time that a request has, this much is kept free to write what Twitch has answered.
const WRITING: TimeDelta = TimeDelta::seconds(1);

/// Who asks, and until when the function lives.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who asks.
    pub caller: Caller,
    /// When the function is ended by force, if it is.
    pub deadline: Option<Monotonic>,
}

impl Request {
    /// By when a request is answered that has this long: earlier, if the function ends before.
    fn answer_by(&self, now: Monotonic, time: TimeDelta) -> Monotonic {
        self.deadline.map_or(now + time, |deadline| (now + time).min(deadline - DEADLINE_MARGIN))
    }

    fn cycle(&self, trigger: Trigger, answer_by: Monotonic) -> Cycle {
        let limits = Limits::of_request(answer_by, self.deadline);
        Cycle { caller: Some(self.caller.clone()), limits, ..Cycle::new(trigger) }
    }
}

impl Runner {
    /// Refreshes the streamer's token and authorizes the campaign.
    ///
    /// # Errors
    ///
    /// If nothing was granted.
    pub async fn grant(&self, key: MembershipKey, request: &Request) -> Result<Membership, GrantError> {
        let answer_by = request.answer_by(self.monotonic(), GRANT_TIME);
        let service =
            self.service_until(answer_by).await.map_err(|error| GrantError::Ours(error.to_string()))?;
        let cycle = request.cycle(Trigger::Grant, answer_by);
        Box::pin(grant(&service, key, cycle, &RefreshLog)).await
    }

    /// Ends the authorization now, if there is one.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn revoke(&self, key: MembershipKey) -> Result<(), MembershipError> {
        self.renew_secrets().await;
        self.database().revoke(key, self.now()).await
    }

    /// One membership.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn membership(&self, key: MembershipKey) -> Result<Membership, MembershipError> {
        self.renew_secrets().await;
        self.database().membership(key, self.now()).await
    }

    /// All memberships of a streamer.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn memberships(&self, streamer: StreamerId) -> Result<Vec<Membership>, MembershipError> {
        self.renew_secrets().await;
        self.database().memberships(streamer, None, self.now()).await
    }

    /// Checks a campaign before a session, and answers within `time` with what is known by then.
    ///
    /// # Errors
    ///
    /// If the campaign is unknown, the database fails before anything was checked, or there is no way to talk to Twitch. A
    /// campaign without anybody is no error.
    pub async fn check(
        &self,
        campaign: CampaignId,
        request: &Request,
        time: TimeDelta,
    ) -> Result<Checkup, CheckError> {
        let answer_by = request.answer_by(self.monotonic(), time);
        let service =
            self.service_until(answer_by).await.map_err(|error| CheckError::Ours(error.to_string()))?;
        let cycle = request.cycle(Trigger::HealthCheck, answer_by);
        Box::pin(check(&service, campaign, cycle, &HealthCheckLog)).await
    }

    /// A refresh service whose calls to Twitch end in time.
    async fn service_until(
        &self,
        answer_by: Monotonic,
    ) -> Result<RefreshService<PgStore, Bounded, AwsSignals>, SetUpError> {
        self.renew_secrets().await;
        let left = (answer_by - WRITING - self.monotonic()).to_std().unwrap_or_default();
        self.service(Some(Instant::now() + left))
    }
}
