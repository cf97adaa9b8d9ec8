//! A refresh that gave no new pair: whether that is a refusal, and what it changes.

use chrono::{DateTime, Utc};

use super::attempt::remembered;
use super::{Progress, RefreshService};
use crate::evidence::Proof;
use crate::policy::{FailedUnder, Failure, FailureKind, Verdict};
use crate::ports::{
    Attempt, Change, Claim, Expiry, Outage, PairMemory, Permit, Priority, Signals, Store, Twitch, Unreadable,
    Validity,
};
use crate::report::{Alarm, Outcome, Standing, TwitchHealth};
use crate::streamer::{NoExpiry, TokenState};

/// A failed refresh, before it is decided what it changes.
pub(super) struct Failed {
    /// What the pair shows by itself, of a refusal; `None`: an outage.
    pub(super) proof: Option<Proof>,
    pub(super) reason: String,
    pub(super) alarm: Option<Alarm>,
    pub(super) twitch: TwitchHealth,
    pub(super) expires_at: Option<DateTime<Utc>>,
    pub(super) memory: PairMemory,
}

impl Failed {
    pub(super) fn kind(&self) -> FailureKind {
        if self.proof.is_some() { FailureKind::Refusal } else { FailureKind::Outage }
    }

    pub(super) fn outcome(&self, standing: Standing) -> Outcome {
        Outcome::Failed {
            kind: self.kind(),
            reason: self.reason.clone(),
            token_expires_at: self.expires_at,
            standing,
            alarm: self.alarm,
            twitch: self.twitch,
        }
    }
}

/// What is known of the stored pair by the time that Twitch is asked for a new one.
pub(super) struct Known {
    /// The expiry as it is to stand in the database.
    pub(super) expires_at: Option<DateTime<Utc>>,
    pub(super) memory: PairMemory,
    /// Twitch has just called the access token dead.
    pub(super) dead: bool,
}

impl Known {
    pub(super) fn outage(self, reason: String, alarm: Option<Alarm>, twitch: TwitchHealth) -> Failed {
        let Self { expires_at, memory, .. } = self;
        Failed { proof: None, reason, alarm, twitch, expires_at, memory }
    }

    fn refusal(self, reason: String, proof: Proof, twitch: TwitchHealth) -> Failed {
        Failed { proof: Some(proof), ..self.outage(reason, None, twitch) }
    }
}

impl<S: Store, T: Twitch, G: Signals> RefreshService<S, T, G> {
    /// No new pair is to be had. Twitch once refused every refresh for hours while the tokens lived: a refusal counts only
    /// if Twitch calls the access token dead as well, and deactivates only if it is confirmed ([`crate::evidence`]).
    pub(super) async fn refused(
        &self,
        progress: &Progress<'_>,
        claim: &Claim,
        mut known: Known,
        reason: String,
        attempt: &Attempt,
    ) -> Failed {
        let now = attempt.started_at;
        let heard = if attempt.refused { TwitchHealth::Available } else { TwitchHealth::NotAsked };
        let validity = match &claim.access {
            Ok(_) if known.dead => Ok(Validity::Invalid),
            // It finishes what is in flight, so that a stop does not hide it.
            Ok(access) => {
                let permit = Permit::under(&claim.lease, self.clock.as_ref());
                self.validate(progress, access, Priority::Vital, &permit).await
            }
            Err(Unreadable::Keys(ours)) => {
                return known.outage(format!("{reason}; and {ours}"), Some(Alarm::Unreadable), heard);
            }
            Err(Unreadable::Missing | Unreadable::UnknownFormat) => {
                return known.refusal(reason, Proof::NothingToAsk, heard);
            }
        };
        let validation = match validity {
            Ok(Validity::Invalid) => {
                known.expires_at = Some(now);
                if let Some(why) = self.unusable(&known.memory, &claim.twitch_user_id, &[]) {
                    let reason = format!("{reason}, and {why}");
                    return known.outage(reason, Some(Alarm::Misplaced), TwitchHealth::Available);
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
                return known.refusal(reason, proof, TwitchHealth::Available);
            }
            Err(Outage(silence)) => {
                let reason = format!("{reason}, but whether the access token is dead is open: {silence}");
                return known.outage(reason, None, heard.max(TwitchHealth::Unavailable));
            }
            Ok(Validity::Valid(validation)) => validation,
        };
        known.memory = remembered(&validation, &known.memory, now);
        known.expires_at = known.memory.expiry.and_then(Expiry::at);
        let (reason, alarm) = match self.unusable(&known.memory, &claim.twitch_user_id, &[]) {
            Some(why) => (format!("{reason}, and {why}"), Some(Alarm::Misplaced)),
            None => (format!("{reason}, but Twitch still calls the access token valid"), None),
        };
        known.outage(reason, alarm, TwitchHealth::Available)
    }

    /// What a failure that deactivates nothing changes, if it counts as one of this kind.
    pub(super) fn recorded_as(
        &self,
        kind: FailureKind,
        before: Option<Failure>,
        failed: Failed,
        now: DateTime<Utc>,
    ) -> (Change, Outcome) {
        let verdict = self.policy.after_failure(before, kind, now);
        let (Verdict::Repeated(failure) | Verdict::Recorded(failure)) = verdict;
        let retry_at = failure.at + self.policy.retry_delay;
        let outcome = failed.outcome(match verdict {
            Verdict::Repeated(_) => Standing::Repeated { retry_at },
            Verdict::Recorded(_) => Standing::Recorded { kind, retry_at },
        });
        let Failed { reason, expires_at, memory, alarm, .. } = failed;
        let under = match alarm {
            Some(Alarm::Unreadable) => FailedUnder::WrongKeys,
            _ => FailedUnder::Client(self.twitch.client_id()),
        };
        (Change::Failed { failure, under, reason, expires_at, memory }, outcome)
    }

    /// The state as it counts today: what led to a failure of ours may have been put right. Whether our keys open the tokens
    /// is known under a lease, and `opens` until then.
    pub(super) fn today(&self, token: TokenState, opens: bool) -> TokenState {
        let repaired = match &token.failed_under {
            Some(FailedUnder::WrongKeys) => opens,
            Some(FailedUnder::Client(id)) => *id != self.twitch.client_id(),
            None => false,
        };
        TokenState { repaired, ..token }
    }
}
