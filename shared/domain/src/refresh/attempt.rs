//! One streamer, from the claim to what is to be written.

use std::panic::AssertUnwindSafe;

use chrono::{DateTime, Utc};
use futures::FutureExt;

use super::write::{not_recorded, not_stored, stored_as};
use super::{Arrived, Cycle, LEASE, LONGEST_ATTEMPT, Progress, RefreshService};
use crate::evidence::Proof;
use crate::policy::{Cause, Decision, Demand, Failure, FailureKind, NotDue, Verdict};
use crate::ports::{
    Attempt, Change, Claim, Expiry, Lease, Lifetime, Outage, PairMemory, Permit, Priority, RefreshError,
    Signals, Store, Twitch, Unreadable, Validation, Validity, Withheld,
};
use crate::report::{Alarm, Heard, Outcome, Skip, Standing, Stop, Unusable};
use crate::streamer::NoExpiry;
use crate::token::AccessToken;

/// What became of an attempt.
struct Settled {
    change: Change,
    outcome: Outcome,
    /// Twitch refused to give a new pair.
    refused: bool,
    /// See [`Arrived::proof`].
    proof: Option<Proof>,
}

impl From<(Change, Outcome)> for Settled {
    fn from((change, outcome): (Change, Outcome)) -> Self {
        Self { change, outcome, refused: false, proof: None }
    }
}

fn skip(reason: Skip) -> Settled {
    (Change::Released, Outcome::Skipped(reason)).into()
}

/// A failure, before it is known what it changes.
pub(super) struct Failed {
    pub(super) cause: Cause,
    pub(super) reason: String,
    pub(super) alarm: Option<Alarm>,
    pub(super) heard: Heard,
    pub(super) expires_at: Option<DateTime<Utc>>,
    pub(super) memory: PairMemory,
}

/// What is known of the stored pair by the time that Twitch is asked for a new one.
struct Known {
    /// The expiry as it is to stand in the database.
    expires_at: Option<DateTime<Utc>>,
    memory: PairMemory,
    /// Twitch has just called the access token dead.
    dead: bool,
}

impl<S: Store, T: Twitch, G: Signals> RefreshService<S, T, G> {
    /// A panic fails one streamer, not the cycle.
    pub(super) async fn attempt_guarded(
        &self,
        cycle: &Cycle,
        progress: &Progress<'_>,
        claim: Claim,
    ) -> Arrived {
        let started_at = self.clock.now();
        let mut attempt = Attempt {
            streamer: claim.streamer.clone(),
            lease: claim.lease.clone(),
            trigger: cycle.trigger,
            started_at,
            ended_at: started_at,
            expires_before: claim.token.expires_at,
            caller: cycle.caller.clone(),
            grants: None,
            client_id: self.twitch.client_id(),
            refused: false,
            change: Change::Released,
        };
        let before = claim.token.failure;
        let settled =
            AssertUnwindSafe(self.attempt(cycle, progress, &claim, started_at)).catch_unwind().await;
        let Settled { change, outcome, refused, proof } = settled.unwrap_or_else(|_| {
            progress.refresh_failed();
            let reason = "the program failed here; its log has the panic".to_owned();
            (Change::Released, not_recorded(FailureKind::Outage, reason, Heard::NotAsked)).into()
        });
        attempt.ended_at = self.clock.now();
        attempt.refused = refused;
        attempt.change = change;
        attempt.grants = cycle.grants.filter(|_| is_fresh(&outcome));
        let arrived = Arrived { attempt, outcome, before, proof };
        match &arrived.attempt.change {
            // Boxed: it is rare, and every attempt would carry its size.
            Change::Refreshed { memory, .. } if is_open(cycle, memory) => {
                Box::pin(self.learn(cycle, progress, arrived, &claim.twitch_user_id)).await
            }
            _ => arrived,
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
        let Arrived { mut attempt, outcome, before, proof } = refreshed;
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
            return Arrived { attempt, outcome, before, proof };
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
                    Some(why) if cycle.demand == Demand::Usable => {
                        Outcome::Skipped(Skip::Unusable { why, expires_at })
                    }
                    _ => with_expiry(&outcome, expires_at),
                };
                attempt.change = Change::Validated { memory };
                outcome
            }
            Ok(Validity::Invalid) | Err(_) => outcome,
        };
        Arrived { attempt, outcome, before, proof }
    }

    /// Asks about a token that should live, unless that is not needed any more; whether it does.
    pub(super) async fn control(
        &self,
        cycle: &Cycle,
        progress: &Progress<'_>,
        claim: Claim,
        is_needless: bool,
    ) -> (Attempt, bool) {
        let now = self.clock.now();
        let asks = claim.is_active && !is_needless && !self.must_stop(cycle, progress);
        let validity = match &claim.access {
            Ok(access) if asks => {
                self.validate(progress, access, Priority::Vital, &self.permit(&claim.lease)).await.ok()
            }
            _ => None,
        };
        let change = match validity {
            Some(Validity::Valid(validation)) => {
                Change::Validated { memory: remembered(&validation, &claim.memory, now) }
            }
            Some(Validity::Invalid) | None => Change::Released,
        };
        let lives = matches!(change, Change::Validated { .. });
        let attempt = Attempt {
            streamer: claim.streamer,
            lease: claim.lease,
            trigger: cycle.trigger,
            started_at: now,
            ended_at: self.clock.now(),
            expires_before: claim.token.expires_at,
            caller: cycle.caller.clone(),
            grants: None,
            client_id: self.twitch.client_id(),
            refused: false,
            change,
        };
        (attempt, lives)
    }

    /// Decides again on what the lease protects, for another run may have been here meanwhile, and carries it out.
    async fn attempt(
        &self,
        cycle: &Cycle,
        progress: &Progress<'_>,
        claim: &Claim,
        now: DateTime<Utc>,
    ) -> Settled {
        if !claim.is_active {
            return skip(Skip::Leased);
        }
        if self.must_stop(cycle, progress) || claim.lease.left(self.clock.as_ref()) < LONGEST_ATTEMPT {
            return skip(Skip::Stopped);
        }
        let mut known =
            Known { expires_at: claim.token.expires_at, memory: claim.memory.clone(), dead: false };
        // A pair that another program has stored: what it says of the expiry is Twitch's word.
        known.memory.expiry = known.memory.expiry.or(claim.token.expires_at.map(Expiry::At));
        match self.policy.decide(&claim.token, cycle.demand, now) {
            Decision::Skip(reason) => skip(Skip::NotDue(reason)),
            Decision::Refresh => self.refresh(cycle, progress, claim, known, now).await,
            Decision::Validate => {
                let Ok(access) = &claim.access else {
                    // What can't be asked about waits for its retry all the same.
                    return match self.policy.waits_for_retry(&claim.token, now) {
                        Some(waits) if cycle.demand == Demand::DueOrUnproven => skip(Skip::NotDue(waits)),
                        _ => self.refresh(cycle, progress, claim, known, now).await,
                    };
                };
                let priority = cycle.priority_of_validations();
                match self.validate(progress, access, priority, &self.permit(&claim.lease)).await {
                    Err(outage) => skip(Skip::NotValidated(outage.0)),
                    Ok(Validity::Invalid) => match self.policy.waits_for_retry(&claim.token, now) {
                        Some(waits) if cycle.demand == Demand::DueOrUnproven => skip(Skip::NotDue(waits)),
                        _ => {
                            known.expires_at = Some(now);
                            known.dead = true;
                            self.refresh(cycle, progress, claim, known, now).await
                        }
                    },
                    Ok(Validity::Valid(validation)) => {
                        self.validated(cycle, progress, claim, known, &validation, now).await
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
        now: DateTime<Utc>,
    ) -> Settled {
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
        let is_due = self.policy.decide(&token, cycle.demand, now) == Decision::Refresh;
        // Twitch gives no new pair for another application's token.
        if is_due && !matches!(unusable, Some(Unusable::OtherClient(_))) {
            return self.refresh(cycle, progress, claim, known, now).await;
        }
        let expires_at = known.expires_at;
        let skip = match unusable {
            Some(why) if why.is_ours() || cycle.demand == Demand::Usable => {
                Skip::Unusable { why, expires_at }
            }
            _ => Skip::Validated { left: expires_at.map(|at| at - now) },
        };
        (Change::Validated { memory: known.memory }, Outcome::Skipped(skip)).into()
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

    /// Asks Twitch for a new pair.
    async fn refresh(
        &self,
        cycle: &Cycle,
        progress: &Progress<'_>,
        claim: &Claim,
        known: Known,
        now: DateTime<Utc>,
    ) -> Settled {
        let refresh = match (&claim.access, &claim.refresh) {
            (_, Err(Unreadable::Keys(reason))) => {
                return self.outage(
                    claim,
                    known,
                    reason.clone(),
                    Some(Alarm::Unreadable),
                    Heard::NotAsked,
                    now,
                );
            }
            (Err(error @ Unreadable::UnknownFormat), _) => {
                return self.refused(progress, claim, known, format!("access token: {error}"), now).await;
            }
            (_, Err(error)) => {
                return self.refused(progress, claim, known, format!("refresh token: {error}"), now).await;
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
                    Some(why) if cycle.demand == Demand::Usable => {
                        Outcome::Skipped(Skip::Unusable { why, expires_at })
                    }
                    _ => Outcome::Refreshed { expires_at },
                };
                (Change::Refreshed { pair: grant.pair, memory }, outcome).into()
            }
            Err(RefreshError::Outage(Outage(reason))) => {
                progress.refresh_failed();
                self.outage(claim, known, reason, None, Heard::Nothing, now)
            }
            Err(RefreshError::Refused(reason)) => {
                let since = claim.token.failure.and_then(|failure| failure.refused_since);
                progress.refused(claim.streamer.id, since.unwrap_or(now));
                let settled = self.refused(progress, claim, known, reason, now).await;
                Settled { refused: true, ..settled }
            }
            Err(RefreshError::Withheld(Withheld::LeaseEnded)) => skip(Skip::LeaseEnded),
            Err(RefreshError::Withheld(Withheld::Stopping)) => skip(Skip::Stopped),
            Err(RefreshError::Misconfigured(reason)) => {
                progress.stop(Stop::Misconfigured(reason));
                skip(Skip::Stopped)
            }
        }
    }

    /// No new pair is to be had. Twitch once refused everybody for hours while the tokens lived: a refusal counts only if
    /// Twitch calls the access token dead as well, and deactivates only if it is confirmed ([`crate::evidence`]).
    async fn refused(
        &self,
        progress: &Progress<'_>,
        claim: &Claim,
        mut known: Known,
        reason: String,
        now: DateTime<Utc>,
    ) -> Settled {
        // Nobody is asked about a stored text in no known format.
        let answered = if claim.refresh.is_ok() && claim.access != Err(Unreadable::UnknownFormat) {
            Heard::Answer
        } else {
            Heard::NotAsked
        };
        let validity = match &claim.access {
            Ok(_) if known.dead => Ok(Validity::Invalid),
            // It finishes what is in flight, so that a stop does not hide it.
            Ok(access) => {
                let permit = Permit::under(&claim.lease, self.clock.as_ref());
                self.validate(progress, access, Priority::Vital, &permit).await
            }
            Err(Unreadable::Keys(ours)) => {
                let reason = format!("{reason}; and {ours}");
                return self.outage(claim, known, reason, Some(Alarm::Unreadable), answered, now);
            }
            Err(Unreadable::Missing | Unreadable::UnknownFormat) => {
                return self.refusal(claim, known, reason, answered, Proof::NothingToAsk, now);
            }
        };
        let validation = match validity {
            Ok(Validity::Invalid) => {
                known.expires_at = Some(now);
                if let Some(why) = self.unusable(&known.memory, &claim.twitch_user_id, &[]) {
                    let reason = format!("{reason}, and {why}");
                    return self.outage(claim, known, reason, Some(Alarm::Misplaced), Heard::Answer, now);
                }
                let lives_on = known.memory.expiry.is_some_and(|expiry| match expiry {
                    Expiry::At(at) => at > now,
                    Expiry::None(no_expiry) => no_expiry == NoExpiry::Never,
                });
                if lives_on {
                    known.memory.rejected_at.get_or_insert(now);
                }
                let proof = match known.memory.rejected_at {
                    // Without a refresh token, an access token that has died of age is the end.
                    None if claim.refresh.is_err() => Proof::NothingToAsk,
                    None => Proof::Nothing,
                    Some(_) => Proof::DeadBeforeExpiry,
                };
                return self.refusal(claim, known, reason, Heard::Answer, proof, now);
            }
            Err(Outage(silence)) => {
                let reason = format!("{reason}, but whether the access token is dead is open: {silence}");
                let heard = if answered == Heard::Answer { answered } else { Heard::Nothing };
                return self.outage(claim, known, reason, None, heard, now);
            }
            Ok(Validity::Valid(validation)) => validation,
        };
        known.memory = remembered(&validation, &known.memory, now);
        known.expires_at = known.memory.expiry.and_then(Expiry::at);
        let (reason, alarm) = match self.unusable(&known.memory, &claim.twitch_user_id, &[]) {
            Some(why) => (format!("{reason}, and {why}"), Some(Alarm::Misplaced)),
            None => (format!("{reason}, but Twitch still calls the access token valid"), None),
        };
        self.outage(claim, known, reason, alarm, Heard::Answer, now)
    }

    /// A refusal for callers. One that is decisive is judged when it is known what became of others.
    fn refusal(
        &self,
        claim: &Claim,
        known: Known,
        reason: String,
        heard: Heard,
        proof: Proof,
        now: DateTime<Utc>,
    ) -> Settled {
        let Known { expires_at, memory, .. } = known;
        if self.policy.is_decisive(claim.token.failure, now) {
            let outcome = Outcome::Failed {
                kind: FailureKind::Refusal,
                reason: reason.clone(),
                token_expires_at: expires_at,
                // Who is told is known when it is written.
                standing: Standing::Deactivated { told: Vec::new() },
                alarm: None,
                heard,
            };
            let change = Change::Deactivated { reason, expires_at, memory };
            return Settled { change, outcome, refused: false, proof: Some(proof) };
        }
        let cause = Cause::UnconfirmedRefusal;
        let failed = Failed { cause, reason, alarm: None, heard, expires_at, memory };
        self.failed(claim.token.failure, failed, now).into()
    }

    fn outage(
        &self,
        claim: &Claim,
        known: Known,
        reason: String,
        alarm: Option<Alarm>,
        heard: Heard,
        now: DateTime<Utc>,
    ) -> Settled {
        let Known { expires_at, memory, .. } = known;
        let failed = Failed { cause: Cause::Outage, reason, alarm, heard, expires_at, memory };
        self.failed(claim.token.failure, failed, now).into()
    }

    /// Asks Twitch whether the token lives, unless it has left too many such questions open.
    async fn validate(
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

    /// What a failure that deactivates nobody changes.
    pub(super) fn failed(
        &self,
        before: Option<Failure>,
        failed: Failed,
        now: DateTime<Utc>,
    ) -> (Change, Outcome) {
        let Failed { cause, reason, alarm, heard, expires_at, memory } = failed;
        let (failure, standing) = match self.policy.after_failure(before, cause, now) {
            Verdict::Repeated(failure) => {
                (failure, Standing::Repeated { retry_at: failure.at + self.policy.retry_delay })
            }
            Verdict::Recorded(failure) => {
                let retry_at = failure.at + self.policy.retry_delay;
                (failure, Standing::Recorded { kind: failure.kind, retry_at })
            }
            Verdict::Deactivate => {
                let standing = Standing::Deactivated { told: Vec::new() };
                let kind = cause.kind();
                let reason_too = reason.clone();
                let outcome =
                    Outcome::Failed { kind, reason, token_expires_at: expires_at, standing, alarm, heard };
                return (Change::Deactivated { reason: reason_too, expires_at, memory }, outcome);
            }
        };
        let outcome = Outcome::Failed {
            kind: cause.kind(),
            reason: reason.clone(),
            token_expires_at: expires_at,
            standing,
            alarm,
            heard,
        };
        (Change::Failed { failure, reason, expires_at, memory }, outcome)
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

/// Whether Twitch is to be asked about a new pair.
fn is_open(cycle: &Cycle, memory: &PairMemory) -> bool {
    memory.expiry.is_none() || cycle.demand == Demand::Usable && memory.user_id.is_none()
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
