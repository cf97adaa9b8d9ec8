//! One streamer, from the claim to what is to be written.

use std::panic::AssertUnwindSafe;

use chrono::{DateTime, Utc};
use futures::FutureExt;

use super::cycle::MAX_ATTEMPT;
use super::failure::{Failed, Known};
use super::lease::LEASE;
use super::write::{not_recorded, not_stored, stored_as};
use super::{Arrived, Attempted, Cycle, Progress, RefreshService, Refused};
use crate::policy::{Decision, FailureKind, NotDue, RefreshMode};
use crate::ports::{
    Attempt, Change, Claim, Expiry, Lease, Lifetime, Outage, PairMemory, Permit, Priority, RefreshError,
    Signals, Store, Twitch, Unreadable, Validation, Validity, Withheld,
};
use crate::report::{Alarm, Outcome, Skip, Stop, TwitchHealth, Unusable};
use crate::streamer::NoExpiry;
use crate::token::AccessToken;

/// What became of an attempt.
enum Settled {
    /// This is to be written.
    Done(Change, Outcome),
    /// No new pair is to be had.
    Failed(Failed),
}

fn skip(reason: Skip) -> Settled {
    Settled::Done(Change::Released, Outcome::Skipped(reason))
}

impl<S: Store, T: Twitch, G: Signals> RefreshService<S, T, G> {
    /// A panic fails one streamer, not the cycle.
    pub(super) async fn attempt_guarded(
        &self,
        cycle: &Cycle,
        progress: &Progress<'_>,
        mut claim: Claim,
    ) -> Attempted {
        let opens = ![claim.access.as_ref().err(), claim.refresh.as_ref().err()]
            .iter()
            .any(|error| matches!(error, Some(Unreadable::Keys(_))));
        claim.token = self.today(claim.token, opens);
        let mut attempt = self.begin(cycle, &claim);
        let attempting = self.attempt(cycle, progress, &claim, &mut attempt);
        let settled = AssertUnwindSafe(attempting).catch_unwind().await.unwrap_or_else(|_| {
            progress.refresh_failed();
            let reason = "the program failed here; its log has the panic".to_owned();
            Settled::Done(Change::Released, not_recorded(FailureKind::Outage, reason, TwitchHealth::NotAsked))
        });
        attempt.ended_at = self.clock.now();
        // A failure by a fault of ours that is fixed says nothing of the streamer.
        let before = claim.token.failure.filter(|_| !claim.token.repaired);
        let (change, outcome) = match settled {
            Settled::Done(change, outcome) => (change, outcome),
            // One that is decisive is judged when it is known what became of others.
            Settled::Failed(failed)
                if failed.proof.is_some() && self.policy.is_decisive(before, attempt.started_at) =>
            {
                return Attempted::Refused(Refused { attempt, failed, before });
            }
            Settled::Failed(failed) => {
                let kind = failed.kind();
                self.recorded_as(kind, before, failed, attempt.started_at)
            }
        };
        attempt.change = change;
        attempt.grants = cycle.grants.filter(|_| is_fresh(&outcome));
        let arrived = Arrived { attempt, outcome };
        Attempted::Arrived(match &arrived.attempt.change {
            // Boxed: it is rare, and every attempt would carry its size.
            Change::Refreshed { memory, .. } if is_open(cycle, memory) => {
                Box::pin(self.learn(cycle, progress, arrived, &claim.twitch_user_id)).await
            }
            _ => arrived,
        })
    }

    /// An attempt that begins now and has changed nothing so far.
    fn begin(&self, cycle: &Cycle, claim: &Claim) -> Attempt {
        let now = self.clock.now();
        Attempt {
            streamer: claim.streamer.clone(),
            lease: claim.lease.clone(),
            trigger: cycle.trigger,
            started_at: now,
            ended_at: now,
            expires_before: claim.token.expires_at,
            caller: cycle.caller.clone(),
            grants: None,
            client_id: self.twitch.client_id(),
            refused: false,
            change: Change::Released,
        }
    }

    /// Twitch did not say how long the new token lives; or the caller needs to know whose it is, and nothing has said so
    /// yet. The pair is stored first, and only then Twitch is asked; if that fails, the expiry stays unknown, which is due
    /// at the next trigger.
    async fn learn(
        &self,
        cycle: &Cycle,
        progress: &Progress<'_>,
        refreshed: Arrived,
        twitch_user_id: &str,
    ) -> Arrived {
        let Arrived { mut attempt, outcome } = refreshed;
        let now = self.clock.now();
        let stored = self.store_results(cycle, progress, std::slice::from_ref(&attempt)).await;
        let outcome = match stored.as_deref() {
            Ok([recorded]) => stored_as(outcome, recorded.clone(), &attempt),
            Ok(_) => Outcome::Skipped(Skip::Superseded),
            Err(error) => not_stored(outcome, error),
        };
        attempt.change = Change::Released;
        attempt.grants = None;
        let asked = is_fresh(&outcome) && !self.must_stop(cycle, progress);
        let claims = if asked {
            self.store.claim(&[attempt.lease.id], now, now + LEASE, self.clock.monotonic()).await
        } else {
            Ok(vec![])
        };
        let claimed = claims.ok().and_then(|mut claims| claims.pop());
        let Some(Claim { access: Ok(access), lease, memory, .. }) = claimed else {
            return Arrived { attempt, outcome };
        };
        attempt.lease = lease;
        attempt.started_at = now;
        let validity = self.validate(progress, &access, Priority::Vital, &self.permit(&attempt.lease)).await;
        attempt.ended_at = self.clock.now();
        let outcome = match validity {
            Ok(Validity::Valid(validation)) => {
                let memory = remembered(&validation, &memory, now);
                let expires_at = memory.expiry.and_then(Expiry::at);
                let outcome = match self.unusable(&memory, twitch_user_id, &validation.missing_scopes) {
                    Some(why) if cycle.mode == RefreshMode::Usable => {
                        Outcome::Skipped(Skip::Unusable { why, expires_at })
                    }
                    _ => with_expiry(&outcome, expires_at),
                };
                attempt.change = Change::Validated { memory };
                outcome
            }
            Ok(Validity::Invalid) | Err(_) => outcome,
        };
        Arrived { attempt, outcome }
    }

    /// Asks about a token that should live, unless that is not needed any more; whether it does.
    pub(super) async fn control(
        &self,
        cycle: &Cycle,
        progress: &Progress<'_>,
        claim: Claim,
        is_needless: bool,
    ) -> (Attempt, bool) {
        let mut attempt = self.begin(cycle, &claim);
        let asks = claim.is_active && !is_needless && !self.must_stop(cycle, progress);
        let validity = match &claim.access {
            Ok(access) if asks => {
                self.validate(progress, access, Priority::Vital, &self.permit(&claim.lease)).await.ok()
            }
            _ => None,
        };
        if let Some(Validity::Valid(validation)) = validity {
            let memory = remembered(&validation, &claim.memory, attempt.started_at);
            attempt.change = Change::Validated { memory };
        }
        attempt.ended_at = self.clock.now();
        let lives = matches!(attempt.change, Change::Validated { .. });
        (attempt, lives)
    }

    /// Decides again on what the lease protects, for another run may have been here meanwhile, and carries it out.
    async fn attempt(
        &self,
        cycle: &Cycle,
        progress: &Progress<'_>,
        claim: &Claim,
        attempt: &mut Attempt,
    ) -> Settled {
        let now = attempt.started_at;
        if !claim.is_active {
            return skip(Skip::Leased);
        }
        if self.must_stop(cycle, progress) || claim.lease.left(self.clock.as_ref()) < MAX_ATTEMPT {
            return skip(Skip::Stopped);
        }
        let mut known =
            Known { expires_at: claim.token.expires_at, memory: claim.memory.clone(), dead: false };
        // A pair that another program has stored: what it says of the expiry is Twitch's word.
        known.memory.expiry = known.memory.expiry.or(claim.token.expires_at.map(Expiry::At));
        match self.policy.decide(&claim.token, cycle.mode, now) {
            Decision::Skip(reason) => skip(Skip::NotDue(reason)),
            Decision::Refresh => self.refresh(cycle, progress, claim, known, attempt).await,
            Decision::Validate => {
                let Ok(access) = &claim.access else {
                    // What can't be asked about waits for its retry all the same.
                    return match self.policy.waits_for_retry(&claim.token, now) {
                        Some(waits) if cycle.mode == RefreshMode::DueOrUnproven => skip(Skip::NotDue(waits)),
                        _ => self.refresh(cycle, progress, claim, known, attempt).await,
                    };
                };
                let priority = cycle.priority_of_validations();
                match self.validate(progress, access, priority, &self.permit(&claim.lease)).await {
                    Err(outage) => skip(Skip::NotValidated(outage.0)),
                    Ok(Validity::Invalid) => match self.policy.waits_for_retry(&claim.token, now) {
                        Some(waits) if cycle.mode == RefreshMode::DueOrUnproven => skip(Skip::NotDue(waits)),
                        _ => {
                            known.expires_at = Some(now);
                            known.dead = true;
                            self.refresh(cycle, progress, claim, known, attempt).await
                        }
                    },
                    Ok(Validity::Valid(validation)) => {
                        self.validated(cycle, progress, claim, known, &validation, attempt).await
                    }
                }
            }
        }
    }

    /// The access token lives, as Twitch says. It is refreshed if what Twitch says makes it due.
    async fn validated(
        &self,
        cycle: &Cycle,
        progress: &Progress<'_>,
        claim: &Claim,
        mut known: Known,
        validation: &Validation,
        attempt: &mut Attempt,
    ) -> Settled {
        let now = attempt.started_at;
        known.memory = remembered(validation, &known.memory, now);
        let unusable = self.unusable(&known.memory, &claim.twitch_user_id, &validation.missing_scopes);
        let expiry = known.memory.expiry;
        let mut token = claim.token.clone();
        token.expires_at = expiry.and_then(Expiry::at);
        token.no_expiry = match expiry {
            Some(Expiry::None(no_expiry)) => Some(no_expiry),
            Some(Expiry::At(_)) | None => None,
        };
        token.validated_at = Some(now);
        known.expires_at = token.expires_at;
        let is_due = self.policy.decide(&token, cycle.mode, now) == Decision::Refresh;
        // Twitch gives no new pair for another application's token.
        if is_due && !matches!(unusable, Some(Unusable::OtherClient(_))) {
            return self.refresh(cycle, progress, claim, known, attempt).await;
        }
        let expires_at = known.expires_at;
        let skip = match unusable {
            Some(why) if why.is_ours() || cycle.mode == RefreshMode::Usable => {
                Skip::Unusable { why, expires_at }
            }
            _ => Skip::Validated { left: expires_at.map(|at| at - now) },
        };
        Settled::Done(Change::Validated { memory: known.memory }, Outcome::Skipped(skip))
    }

    /// Why a token of which this is known is not the one that is needed.
    pub(super) fn unusable(
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

    /// Asks Twitch for a new pair.
    async fn refresh(
        &self,
        cycle: &Cycle,
        progress: &Progress<'_>,
        claim: &Claim,
        known: Known,
        attempt: &mut Attempt,
    ) -> Settled {
        let now = attempt.started_at;
        let refresh = match (&claim.access, &claim.refresh) {
            (_, Err(Unreadable::Keys(reason))) => {
                let alarm = Some(Alarm::Unreadable);
                return Settled::Failed(known.outage(reason.clone(), alarm, TwitchHealth::NotAsked));
            }
            (Err(error @ Unreadable::UnknownFormat), _) => {
                let reason = format!("access token: {error}");
                return Settled::Failed(self.refused(progress, claim, known, reason, attempt).await);
            }
            (_, Err(error)) => {
                let reason = format!("refresh token: {error}");
                return Settled::Failed(self.refused(progress, claim, known, reason, attempt).await);
            }
            // An access token that our keys don't open, or a missing one, is replaced by a refresh.
            (_, Ok(refresh)) => refresh,
        };
        progress.observer.refreshing(&claim.streamer);
        match self.twitch.refresh(refresh, &self.permit(&claim.lease)).await {
            Ok(grant) => {
                progress.refreshed(claim.streamer.id, self.clock.now());
                let expires_at = grant.expires_in.map(|left| now + left);
                let memory = PairMemory {
                    expiry: expires_at.map(Expiry::At),
                    rejected_at: None,
                    client_id: Some(self.twitch.client_id()),
                    // A refresh gives a token of the same user.
                    user_id: known.memory.user_id,
                };
                let unusable = self.unusable(&memory, &claim.twitch_user_id, &grant.missing_scopes);
                let outcome = match unusable {
                    Some(why) if cycle.mode == RefreshMode::Usable => {
                        Outcome::Skipped(Skip::Unusable { why, expires_at })
                    }
                    _ => Outcome::Refreshed { expires_at },
                };
                Settled::Done(Change::Refreshed { pair: grant.pair, memory }, outcome)
            }
            Err(RefreshError::Outage(Outage(reason))) => {
                progress.refresh_failed();
                Settled::Failed(known.outage(reason, None, TwitchHealth::Unavailable))
            }
            Err(RefreshError::Refused(reason)) => {
                let since = claim.token.failure.and_then(|failure| failure.refused_since);
                progress.refused(claim.streamer.id, since.unwrap_or(now));
                attempt.refused = true;
                Settled::Failed(self.refused(progress, claim, known, reason, attempt).await)
            }
            Err(RefreshError::Withheld(Withheld::LeaseEnded)) => skip(Skip::LeaseEnded),
            Err(RefreshError::Withheld(Withheld::Stopping)) => skip(Skip::Stopped),
            Err(RefreshError::Misconfigured(reason)) => {
                progress.stop(Stop::Misconfigured(reason));
                skip(Skip::Stopped)
            }
        }
    }

    /// Asks Twitch whether the token lives, unless it has left too many such questions open.
    pub(super) async fn validate(
        &self,
        progress: &Progress<'_>,
        access: &AccessToken,
        priority: Priority,
        permit: &Permit<'_>,
    ) -> Result<Validity, Outage> {
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
        Permit::under(lease, self.clock.as_ref()).until(&self.stop)
    }
}

/// What is remembered of a pair after this validation. Where the answer says nothing, what was known stands; but not an
/// expiry that the token has outlived.
pub(super) fn remembered(validation: &Validation, before: &PairMemory, now: DateTime<Utc>) -> PairMemory {
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

/// Whether Twitch is to be asked about a new pair.
fn is_open(cycle: &Cycle, memory: &PairMemory) -> bool {
    memory.expiry.is_none() || cycle.mode == RefreshMode::Usable && memory.user_id.is_none()
}

/// Whether the token is fresh from Twitch after this, so that a campaign may be authorized.
fn is_fresh(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Refreshed { .. }
            | Outcome::Granted { .. }
            | Outcome::Skipped(Skip::NotDue(NotDue::Valid { .. } | NotDue::NoExpiry))
    )
}

/// The outcome, with an expiry that was learned afterwards.
fn with_expiry(outcome: &Outcome, expires_at: Option<DateTime<Utc>>) -> Outcome {
    match outcome {
        Outcome::Granted { authorization, refreshed, .. } => {
            let (authorization, refreshed) = (*authorization, *refreshed);
            Outcome::Granted { authorization, token_expires_at: expires_at, refreshed }
        }
        _ => Outcome::Refreshed { expires_at },
    }
}
