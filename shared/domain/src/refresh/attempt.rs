//! One streamer, from the claim to what is to be written.

use std::panic::AssertUnwindSafe;

use chrono::{DateTime, TimeDelta, Utc};
use futures::FutureExt;

use super::write::{not_recorded, not_stored, stored_as};
use super::{Arrived, Cycle, LEASE, LONGEST_ATTEMPT, Progress, RefreshService};
use crate::policy::{Decision, Failure, FailureKind, NotDue, Verdict};
use crate::ports::{
    Attempt, Change, Claim, Lease, Lifetime, Outage, Permit, Priority, RefreshError, Signals, Store, Twitch,
    Unreadable, Validation, Validity, Withheld,
};
use crate::report::{Alarm, Outcome, Skip, Standing, Stop};
use crate::token::AccessToken;

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
            change: Change::Released,
        };
        let before = claim.token.failure;
        let settled =
            AssertUnwindSafe(self.attempt(cycle, progress, &claim, started_at)).catch_unwind().await;
        let (change, outcome) = settled.unwrap_or_else(|_| {
            progress.refresh_failed();
            let reason = "the program failed here; its log has the panic".to_owned();
            (Change::Released, not_recorded(FailureKind::Outage, reason))
        });
        attempt.ended_at = self.clock.now();
        attempt.change = change;
        attempt.grants = cycle.grants.filter(|_| is_fresh(&outcome));
        let arrived = Arrived { attempt, outcome, before };
        match arrived.attempt.change {
            // Boxed: it is rare, and every attempt would carry its size.
            Change::Refreshed { expires_at: None, .. } => {
                Box::pin(self.learn_expiry(cycle, progress, arrived)).await
            }
            _ => arrived,
        }
    }

    /// Twitch did not say how long the new token lives. The pair is stored first, and only then Twitch is asked; if
    /// that fails, the expiry stays unknown, which is due at the next trigger.
    async fn learn_expiry(&self, cycle: &Cycle, progress: &Progress<'_>, refreshed: Arrived) -> Arrived {
        let Arrived { mut attempt, outcome, before } = refreshed;
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
        let Some(Claim { access: Ok(access), lease, .. }) = claims.ok().and_then(|mut claims| claims.pop())
        else {
            return Arrived { attempt, outcome, before };
        };
        attempt.lease = lease;
        attempt.started_at = now;
        let validity = self.validate(progress, &access, Priority::Vital, &self.permit(&attempt.lease)).await;
        attempt.ended_at = self.clock.now();
        let outcome = match validity {
            Ok(Some(expires_in)) => {
                attempt.change = Change::Validated { expires_at: now + expires_in };
                with_expiry(&outcome, now + expires_in)
            }
            Ok(_) | Err(_) => outcome,
        };
        Arrived { attempt, outcome, before }
    }

    /// Decides again on what the lease protects, for another run may have been here meanwhile, and carries it out.
    async fn attempt(
        &self,
        cycle: &Cycle,
        progress: &Progress<'_>,
        claim: &Claim,
        now: DateTime<Utc>,
    ) -> (Change, Outcome) {
        let skip = |reason| (Change::Released, Outcome::Skipped(reason));
        if !claim.is_active {
            return skip(Skip::Leased);
        }
        if self.must_stop(cycle, progress) || claim.lease.left(self.clock.as_ref()) < LONGEST_ATTEMPT {
            return skip(Skip::Stopped);
        }
        match self.policy.decide(&claim.token, cycle.demand, now) {
            Decision::Skip(reason) => skip(Skip::NotDue(reason)),
            Decision::Refresh => self.refresh(progress, claim, claim.token.expires_at, now).await,
            Decision::Validate => {
                let Ok(access) = &claim.access else {
                    return self.refresh(progress, claim, claim.token.expires_at, now).await;
                };
                let priority = cycle.priority_of_validations();
                match self.validate(progress, access, priority, &self.permit(&claim.lease)).await {
                    Err(outage) => skip(Skip::NotValidated(outage.0)),
                    Ok(None) => self.refresh(progress, claim, Some(now), now).await,
                    Ok(Some(expires_in)) => {
                        let mut token = claim.token.clone();
                        token.expires_at = Some(now + expires_in);
                        token.validated_at = Some(now);
                        match self.policy.decide(&token, cycle.demand, now) {
                            Decision::Refresh => self.refresh(progress, claim, token.expires_at, now).await,
                            Decision::Validate | Decision::Skip(_) => (
                                Change::Validated { expires_at: now + expires_in },
                                Outcome::Skipped(Skip::Validated { left: expires_in }),
                            ),
                        }
                    }
                }
            }
        }
    }

    /// Asks Twitch for a new pair. `expires_at` is what is known of the old one.
    async fn refresh(
        &self,
        progress: &Progress<'_>,
        claim: &Claim,
        expires_at: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> (Change, Outcome) {
        let failed = |kind, reason, alarm, expires_at| {
            self.failed(claim.token.failure, kind, reason, alarm, expires_at, now)
        };
        let answer = match (&claim.access, &claim.refresh) {
            (_, Err(Unreadable::Keys(reason))) => {
                return failed(FailureKind::Outage, reason.clone(), Some(Alarm::Unreadable), expires_at);
            }
            (Err(error @ Unreadable::UnknownFormat), _) => {
                Err(RefreshError::Refused(format!("access token: {error}")))
            }
            (_, Err(error)) => Err(RefreshError::Refused(format!("refresh token: {error}"))),
            // An access token that our keys don't open, or none at all, is what a refresh mends.
            (_, Ok(refresh)) => {
                progress.observer.refreshing(&claim.streamer);
                self.twitch.refresh(refresh, &self.permit(&claim.lease)).await
            }
        };
        match answer {
            Ok(grant) => {
                progress.refreshed();
                let expires_at = grant.expires_in.map(|left| now + left);
                (Change::Refreshed { pair: grant.pair, expires_at }, Outcome::Refreshed { expires_at })
            }
            Err(RefreshError::Outage(Outage(reason))) => {
                progress.refresh_failed();
                failed(FailureKind::Outage, reason, None, expires_at)
            }
            Err(RefreshError::Refused(reason)) => {
                // Twitch once refused everybody for hours while the tokens lived: a refusal counts only if Twitch calls
                // the access token dead as well.
                let validity = match &claim.access {
                    // It finishes what is in flight, so that a stop does not hide it.
                    Ok(access) => {
                        let permit = Permit::under(&claim.lease, self.clock.as_ref());
                        self.validate(progress, access, Priority::Vital, &permit).await
                    }
                    Err(Unreadable::Keys(ours)) => {
                        return failed(
                            FailureKind::Outage,
                            format!("{reason}; and {ours}"),
                            Some(Alarm::Unreadable),
                            expires_at,
                        );
                    }
                    Err(Unreadable::Missing | Unreadable::UnknownFormat) => Ok(None),
                };
                match validity {
                    Ok(None) => failed(FailureKind::Refusal, reason, None, Some(now)),
                    Ok(Some(expires_in)) => {
                        let reason = format!("{reason}, but Twitch still calls the access token valid");
                        failed(FailureKind::Outage, reason, None, Some(now + expires_in))
                    }
                    // The refusal was an answer: it does not count toward the outages that end a cycle.
                    Err(Outage(silence)) => {
                        let reason =
                            format!("{reason}, but whether the access token is dead is open: {silence}");
                        failed(FailureKind::Outage, reason, None, expires_at)
                    }
                }
            }
            Err(RefreshError::Withheld(Withheld::LeaseEnded)) => {
                (Change::Released, Outcome::Skipped(Skip::LeaseEnded))
            }
            Err(RefreshError::Withheld(Withheld::Stopping)) => {
                (Change::Released, Outcome::Skipped(Skip::Stopped))
            }
            Err(RefreshError::Misconfigured(reason)) => {
                progress.stop(Stop::Misconfigured(reason));
                (Change::Released, Outcome::Skipped(Skip::Stopped))
            }
        }
    }

    /// Asks Twitch whether the token lives, unless it has left too many such questions open.
    async fn validate(
        &self,
        progress: &Progress<'_>,
        access: &AccessToken,
        priority: Priority,
        permit: &Permit<'_>,
    ) -> Result<Option<TimeDelta>, Outage> {
        progress.may_validate(priority)?;
        let answer = self.twitch.validate(access, priority, permit).await;
        // What was not sent says nothing of Twitch.
        if answer.is_ok() || permit.check().is_ok() {
            progress.validated(priority, answer.is_ok());
        }
        match answer? {
            Validity::Invalid => Ok(None),
            Validity::Valid(Validation { lifetime: Lifetime::Limited(left), .. }) => Ok(Some(left)),
            Validity::Valid(_) => Err(Outage("Twitch does not say how long the token lives".to_owned())),
        }
    }

    /// To send a token under this lease.
    fn permit<'a>(&'a self, lease: &'a Lease) -> Permit<'a> {
        Permit::under(lease, self.clock.as_ref()).until(&self.stop)
    }

    pub(super) fn failed(
        &self,
        before: Option<Failure>,
        kind: FailureKind,
        reason: String,
        alarm: Option<Alarm>,
        expires_at: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> (Change, Outcome) {
        let verdict = self.policy.after_failure(before, kind, now);
        // A grant that is dead beyond doubt and of which nobody is told: somebody has to know.
        let switched_off = kind == FailureKind::Refusal
            && matches!(verdict, Verdict::Recorded(Failure { kind: FailureKind::Outage, .. }));
        let (reason, alarm) = if switched_off {
            (format!("{reason}, but deactivation is switched off"), Some(Alarm::HeldBack))
        } else {
            (reason, alarm)
        };
        let (failure, standing) = match verdict {
            Verdict::Deactivate => {
                // Who is told is known when it is written.
                let standing = Standing::Deactivated { told: Vec::new() };
                let outcome = Outcome::Failed {
                    kind,
                    reason: reason.clone(),
                    token_expires_at: expires_at,
                    standing,
                    alarm,
                };
                return (Change::Deactivated { reason, expires_at }, outcome);
            }
            Verdict::Recorded(failure) => {
                let retry_at = failure.at + self.policy.retry_delay;
                (failure, Standing::Recorded { kind: failure.kind, retry_at })
            }
            Verdict::Repeated(failure) => {
                (failure, Standing::Repeated { retry_at: failure.at + self.policy.retry_delay })
            }
        };
        let outcome =
            Outcome::Failed { kind, reason: reason.clone(), token_expires_at: expires_at, standing, alarm };
        (Change::Failed { failure, reason, expires_at }, outcome)
    }
}

/// Whether the token is fresh from Twitch after this, so that a campaign may be authorized.
fn is_fresh(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Refreshed { .. }
            | Outcome::Granted { .. }
            | Outcome::Skipped(Skip::NotDue(NotDue::Valid { .. }))
    )
}

/// The outcome, with an expiry that was learned afterwards.
fn with_expiry(outcome: &Outcome, expires_at: DateTime<Utc>) -> Outcome {
    match outcome {
        Outcome::Granted { authorization, refreshed, .. } => {
            let (authorization, refreshed) = (*authorization, *refreshed);
            Outcome::Granted { authorization, token_expires_at: Some(expires_at), refreshed }
        }
        _ => Outcome::Refreshed { expires_at: Some(expires_at) },
    }
}
