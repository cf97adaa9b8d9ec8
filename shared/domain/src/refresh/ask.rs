//! The second part: asks Twitch about one leased streamer, and decides what that comes to.

use std::panic::AssertUnwindSafe;

use chrono::{DateTime, Utc};
use futures::FutureExt;

use super::context::Context;
use super::cycle::{Cycle, MAX_ATTEMPT};
use crate::attempt::{Alarm, Attempt, FailedRefresh, Resolution, Skip, TwitchHealth, Unusable};
use crate::authorization::Authorization;
use crate::evidence::Proof;
use crate::policy::{Decision, RefreshMode};
use crate::ports::{
    Claim, Expiry, Lease, Lifetime, Outage, PairMemory, Permit, Priority, RefreshError, TokenResponse,
    Twitch, Unreadable, Validation, Validity, Withheld,
};
use crate::report::Stop;
use crate::streamer::{NoExpiry, TokenState};
use crate::token::AccessToken;

/// Asks Twitch.
pub(super) struct Asking<'a, T> {
    pub(super) context: &'a Context<'a>,
    pub(super) twitch: &'a T,
}

impl<T: Twitch> Asking<'_, T> {
    /// Decides again on what the lease protects, for another run may have been here meanwhile, and carries it out. A panic
    /// fails one streamer, not the cycle.
    pub(super) async fn attempt(&self, mut claim: Claim) -> Attempt {
        let keys_open_it = claim.unknown_key().is_none();
        claim.token = claim.token.under(&self.twitch.client_id(), keys_open_it);
        let started_at = self.context.now();
        let resolving = AssertUnwindSafe(self.resolve(&claim, started_at)).catch_unwind();
        let resolution = resolving.await.unwrap_or_else(|_| {
            self.context.progress.refresh_failed();
            Resolution::Panicked
        });
        self.ended(claim, started_at, resolution)
    }

    /// Asks about a token that should live, unless that is not needed any more: [`Resolution::Validated`] if it does.
    pub(super) async fn control(&self, claim: Claim, is_needless: bool) -> Attempt {
        let started_at = self.context.now();
        let asks = claim.is_active && !is_needless && !self.context.must_stop();
        let validity = match &claim.access {
            Ok(access) if asks => {
                self.validate(access, Priority::Vital, &self.permit(&claim.lease)).await.ok()
            }
            _ => None,
        };
        let resolution = match validity {
            Some(Validity::Valid(validation)) => {
                let memory = remembered(&validation, &claim.memory, started_at);
                Resolution::Validated { memory, unusable: None }
            }
            _ => Resolution::Skipped(Skip::Stopped),
        };
        self.ended(claim, started_at, resolution)
    }

    /// Asks about the new pair that this attempt has stored, and that is leased once more.
    pub(super) async fn complete(
        &self,
        refreshed: &Attempt,
        claim: Claim,
        granted: Option<Authorization>,
    ) -> Attempt {
        let started_at = self.context.now();
        let validity = match &claim.access {
            Ok(access) => self.validate(access, Priority::Vital, &self.permit(&claim.lease)).await.ok(),
            Err(_) => None,
        };
        let resolution = match validity {
            Some(Validity::Valid(validation)) => {
                let memory = remembered(&validation, &claim.memory, started_at);
                let unusable = self.unusable(&memory, &claim.twitch_user_id, &validation.missing_scopes);
                let unusable = unusable.filter(|_| self.context.cycle.mode == RefreshMode::Usable);
                Resolution::Completed { memory, unusable, granted }
            }
            _ => Resolution::Skipped(Skip::Stopped),
        };
        let expires_before = refreshed.expires_before;
        Attempt { expires_before, ..self.ended(claim, started_at, resolution) }
    }

    fn ended(&self, claim: Claim, started_at: DateTime<Utc>, resolution: Resolution) -> Attempt {
        let cycle = self.context.cycle;
        Attempt {
            streamer: claim.streamer,
            lease: claim.lease,
            trigger: cycle.trigger,
            started_at,
            ended_at: self.context.now(),
            expires_before: claim.token.expires_at,
            caller: cycle.caller.clone(),
            grants: cycle.grants.filter(|_| resolution.is_fresh()),
            client_id: self.twitch.client_id(),
            resolution,
        }
    }

    async fn resolve(&self, claim: &Claim, now: DateTime<Utc>) -> Resolution {
        let Context { cycle, policy, clock, .. } = self.context;
        if !claim.is_active {
            return Resolution::Skipped(Skip::Leased);
        }
        if self.context.must_stop() || claim.lease.left(*clock) < MAX_ATTEMPT {
            return Resolution::Skipped(Skip::Stopped);
        }
        if let Some(reason) = claim.unknown_key().filter(|_| !cycle.keys_are_current) {
            self.context.progress.stop(Stop::UnknownKey(reason.to_owned()));
            return Resolution::Skipped(Skip::Stopped);
        }
        let known = Known::stored(claim);
        match policy.decide(&claim.token, cycle.mode, now) {
            Decision::Skip(reason) => Resolution::Skipped(Skip::NotDue(reason)),
            Decision::Refresh => self.refresh(claim, known, now).await,
            Decision::Validate => {
                let waits = policy.waits_for_retry(&claim.token, now);
                let waits = waits.filter(|_| cycle.mode == RefreshMode::DueOrUnproven);
                let validity = match &claim.access {
                    Ok(access) => {
                        let priority = cycle.priority_of_validations();
                        Some(self.validate(access, priority, &self.permit(&claim.lease)).await)
                    }
                    // What can't be asked about waits for its retry all the same.
                    Err(_) => None,
                };
                match (validity, waits) {
                    (Some(Ok(Validity::Valid(validation))), _) => {
                        self.validated(claim, known, &validation, now).await
                    }
                    (Some(Err(Outage(reason))), _) => Resolution::Skipped(Skip::NotValidated(reason)),
                    (_, Some(waits)) => Resolution::Skipped(Skip::NotDue(waits)),
                    (Some(Ok(Validity::Invalid)), None) => {
                        let dead = Known { expires_at: Some(now), is_dead: true, ..known };
                        self.refresh(claim, dead, now).await
                    }
                    (None, None) => self.refresh(claim, known, now).await,
                }
            }
        }
    }

    /// The access token lives, as Twitch says. It is refreshed if what Twitch says makes it due.
    async fn validated(
        &self,
        claim: &Claim,
        known: Known,
        validation: &Validation,
        now: DateTime<Utc>,
    ) -> Resolution {
        let Context { cycle, policy, .. } = self.context;
        let known = known.validated(validation, now);
        let unusable = self.unusable(&known.memory, &claim.twitch_user_id, &validation.missing_scopes);
        let no_expiry = match known.memory.expiry {
            Some(Expiry::None(no_expiry)) => Some(no_expiry),
            Some(Expiry::At(_)) | None => None,
        };
        let (expires_at, validated_at) = (known.expires_at, Some(now));
        let token = TokenState { expires_at, no_expiry, validated_at, ..claim.token.clone() };
        let is_due = policy.decide(&token, cycle.mode, now) == Decision::Refresh;
        // Twitch gives no new pair for another application's token.
        if is_due && !matches!(unusable, Some(Unusable::OtherClient(_))) {
            return self.refresh(claim, known, now).await;
        }
        let unusable = unusable.filter(|why| why.is_ours() || cycle.mode == RefreshMode::Usable);
        Resolution::Validated { memory: known.memory, unusable }
    }

    /// Asks for a new pair.
    async fn refresh(&self, claim: &Claim, known: Known, now: DateTime<Utc>) -> Resolution {
        let progress = &self.context.progress;
        let refresh = match (&claim.access, &claim.refresh) {
            (_, Err(Unreadable::Keys(reason))) => {
                let alarm = Some(Alarm::Unreadable);
                return self.failed(claim, known.outage(reason.clone(), alarm, TwitchHealth::NotAsked), now);
            }
            (Err(error @ Unreadable::UnknownFormat), _) => {
                return self.refused(claim, known, format!("access token: {error}"), false, now).await;
            }
            (_, Err(error)) => {
                return self.refused(claim, known, format!("refresh token: {error}"), false, now).await;
            }
            // An access token that our keys don't open, or a missing one, is replaced by a refresh.
            (_, Ok(refresh)) => refresh,
        };
        progress.refreshing(&claim.streamer);
        match self.twitch.refresh(refresh, &self.permit(&claim.lease)).await {
            Ok(response) => {
                progress.refreshed(claim.streamer.id, self.context.now());
                self.refreshed(claim, known, response, now)
            }
            Err(RefreshError::Outage(Outage(reason))) => {
                progress.refresh_failed();
                self.failed(claim, known.outage(reason, None, TwitchHealth::Unavailable), now)
            }
            Err(RefreshError::Refused(reason)) => {
                let since = claim.token.failure.and_then(|failure| failure.refused_since);
                progress.refused(claim.streamer.id, since.unwrap_or(now));
                self.refused(claim, known, reason, true, now).await
            }
            Err(RefreshError::Withheld(Withheld::LeaseEnded)) => Resolution::Skipped(Skip::LeaseEnded),
            Err(RefreshError::Withheld(Withheld::Stopping)) => Resolution::Skipped(Skip::Stopped),
            Err(RefreshError::Misconfigured(reason)) => {
                progress.stop(Stop::Misconfigured(reason));
                Resolution::Skipped(Skip::Stopped)
            }
        }
    }

    fn refreshed(
        &self,
        claim: &Claim,
        known: Known,
        response: TokenResponse,
        now: DateTime<Utc>,
    ) -> Resolution {
        let memory = PairMemory {
            expiry: response.expires_in.map(|left| Expiry::At(now + left)),
            rejected_at: None,
            client_id: Some(self.twitch.client_id()),
            // A refresh gives a token of the same user.
            user_id: known.memory.user_id,
        };
        let unusable = self.unusable(&memory, &claim.twitch_user_id, &response.missing_scopes);
        let unusable = unusable.filter(|_| self.context.cycle.mode == RefreshMode::Usable);
        Resolution::Refreshed { pair: response.pair, memory, unusable }
    }

    /// No new pair is to be had. Twitch once refused every refresh for hours while the tokens lived: a refusal counts only
    /// if Twitch calls the access token dead as well, and deactivates only if it is confirmed ([`crate::evidence`]).
    async fn refused(
        &self,
        claim: &Claim,
        known: Known,
        reason: String,
        was_refused: bool,
        now: DateTime<Utc>,
    ) -> Resolution {
        let heard = if was_refused { TwitchHealth::Available } else { TwitchHealth::NotAsked };
        let cause = match &claim.access {
            Err(Unreadable::Keys(ours)) => {
                known.outage(format!("{reason}; and {ours}"), Some(Alarm::Unreadable), heard)
            }
            Err(Unreadable::Missing | Unreadable::UnknownFormat) => {
                known.refusal(reason, Proof::NothingToAsk, heard)
            }
            Ok(access) => {
                let validity = if known.is_dead {
                    Ok(Validity::Invalid)
                } else {
                    // It finishes what is in flight, so that a stop does not hide it.
                    let permit = Permit::under(&claim.lease, self.context.clock);
                    self.validate(access, Priority::Vital, &permit).await
                };
                self.weighed(claim, known, reason, heard, &validity, now)
            }
        };
        self.failed(claim, FailedRefresh { was_refused, ..cause }, now)
    }

    /// What the refusal is worth after what Twitch says of the access token.
    fn weighed(
        &self,
        claim: &Claim,
        known: Known,
        reason: String,
        heard: TwitchHealth,
        validity: &Result<Validity, Outage>,
        now: DateTime<Utc>,
    ) -> FailedRefresh {
        let known = match validity {
            Err(Outage(silence)) => {
                let reason = format!("{reason}, but whether the access token is dead is open: {silence}");
                return known.outage(reason, None, heard.max(TwitchHealth::Unavailable));
            }
            Ok(Validity::Valid(validation)) => known.validated(validation, now),
            Ok(Validity::Invalid) => Known { expires_at: Some(now), ..known },
        };
        if let Some(why) = self.unusable(&known.memory, &claim.twitch_user_id, &[]) {
            let reason = format!("{reason}, and {why}");
            return known.outage(reason, Some(Alarm::Misplaced), TwitchHealth::Available);
        }
        if *validity != Ok(Validity::Invalid) {
            let reason = format!("{reason}, but Twitch still calls the access token valid");
            return known.outage(reason, None, TwitchHealth::Available);
        }
        let known = known.rejected(now);
        let proof = match known.memory.rejected_at {
            // Without a refresh token, an access token that has died of age is the end.
            None if claim.refresh.is_err() => Proof::NothingToAsk,
            None => Proof::Nothing,
            Some(_) => Proof::DeadBeforeExpiry,
        };
        known.refusal(reason, proof, TwitchHealth::Available)
    }

    fn failed(&self, claim: &Claim, cause: FailedRefresh, now: DateTime<Utc>) -> Resolution {
        let before = claim.token.standing_failure();
        Resolution::after(cause, before, self.context.policy, &self.twitch.client_id(), now)
    }

    /// Why a token of which this is known is not the one that is needed.
    fn unusable(
        &self,
        memory: &PairMemory,
        twitch_user_id: &str,
        missing_scopes: &[String],
    ) -> Option<Unusable> {
        let PairMemory { client_id, user_id, .. } = memory;
        if let Some(id) = client_id
            && *id != self.twitch.client_id()
        {
            return Some(Unusable::OtherClient(id.clone()));
        }
        if let Some(id) = user_id
            && id != twitch_user_id
        {
            return Some(Unusable::OtherUser(id.clone()));
        }
        (!missing_scopes.is_empty()).then(|| Unusable::MissingScopes(missing_scopes.to_vec()))
    }

    /// Asks whether the token lives, unless Twitch has left too many such questions open.
    async fn validate(
        &self,
        access: &AccessToken,
        priority: Priority,
        permit: &Permit<'_>,
    ) -> Result<Validity, Outage> {
        let progress = &self.context.progress;
        progress.may_validate(priority)?;
        let answer = self.twitch.validate(access, priority, permit).await;
        // What was not sent says nothing of Twitch.
        if answer.is_ok() || permit.check().is_ok() {
            progress.validated(priority, answer.is_ok());
        }
        answer
    }

    /// To send a token under this lease.
    fn permit<'a>(&'a self, lease: &'a Lease) -> Permit<'a> {
        Permit::under(lease, self.context.clock).until(self.context.stop)
    }
}

/// Whether Twitch is to be asked about a new pair, of which this is known: it did not say how long the token lives, or the
/// caller needs to know whose it is, and nothing has said so yet.
pub(super) fn is_open(cycle: &Cycle, memory: &PairMemory) -> bool {
    memory.expiry.is_none() || cycle.mode == RefreshMode::Usable && memory.user_id.is_none()
}

/// What is known of the stored pair by the time that Twitch is asked for a new one.
struct Known {
    /// The expiry as it is to stand in the database.
    expires_at: Option<DateTime<Utc>>,
    memory: PairMemory,
    /// Twitch has just called the access token dead.
    is_dead: bool,
}

impl Known {
    fn stored(claim: &Claim) -> Self {
        // A pair that another program has stored: what it says of the expiry is Twitch's word.
        let expiry = claim.memory.expiry.or(claim.token.expires_at.map(Expiry::At));
        let memory = PairMemory { expiry, ..claim.memory.clone() };
        Self { expires_at: claim.token.expires_at, memory, is_dead: false }
    }

    fn validated(self, validation: &Validation, now: DateTime<Utc>) -> Self {
        let memory = remembered(validation, &self.memory, now);
        Self { expires_at: memory.expiry.and_then(Expiry::at), memory, ..self }
    }

    /// Twitch calls the token dead: remembered if that is before the expiry that it gave.
    fn rejected(self, now: DateTime<Utc>) -> Self {
        let should_live = self.memory.expiry.is_some_and(|expiry| match expiry {
            Expiry::At(at) => at > now,
            Expiry::None(no_expiry) => no_expiry == NoExpiry::Never,
        });
        let rejected_at = self.memory.rejected_at.or(should_live.then_some(now));
        Self { memory: PairMemory { rejected_at, ..self.memory }, ..self }
    }

    fn outage(self, reason: String, alarm: Option<Alarm>, twitch: TwitchHealth) -> FailedRefresh {
        let Self { expires_at, memory, .. } = self;
        FailedRefresh { proof: None, was_refused: false, reason, alarm, twitch, expires_at, memory }
    }

    fn refusal(self, reason: String, proof: Proof, twitch: TwitchHealth) -> FailedRefresh {
        FailedRefresh { proof: Some(proof), ..self.outage(reason, None, twitch) }
    }
}

/// What is remembered of a pair after this validation. Where the answer says nothing, what was known stands; but not an
/// expiry that the token has outlived.
fn remembered(validation: &Validation, before: &PairMemory, now: DateTime<Utc>) -> PairMemory {
    let expiry = match validation.lifetime {
        Lifetime::Limited(left) => Expiry::At(now + left),
        Lifetime::Unlimited => Expiry::None(NoExpiry::Never),
        Lifetime::Unknown => match before.expiry {
            Some(Expiry::At(at)) if at <= now => Expiry::None(NoExpiry::Unknown),
            known => known.unwrap_or(Expiry::None(NoExpiry::Unknown)),
        },
    };
    PairMemory {
        expiry: Some(expiry),
        rejected_at: None,
        client_id: validation.client_id.clone().or_else(|| before.client_id.clone()),
        user_id: validation.user_id.clone().or_else(|| before.user_id.clone()),
    }
}
