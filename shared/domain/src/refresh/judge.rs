//! What takes Twitch and the database together: whether a refusal is confirmed, and what is missing of a new pair.

use std::slice;

use futures::StreamExt;
use futures::channel::mpsc::Receiver;

use super::ask::{Asking, is_open};
use super::context::Context;
use super::cycle::LEASE;
use super::write::{WRITE_BATCH, Writing};
use crate::attempt::{Attempt, Resolution, Stored};
use crate::evidence::Proof;
use crate::ports::{Store, Twitch};
use crate::report::Outcome;

/// Asks again where an answer of Twitch's is not enough.
pub(super) struct Judging<'a, S, T> {
    pub(super) context: &'a Context<'a>,
    pub(super) store: &'a S,
    pub(super) asking: &'a Asking<'a, T>,
    pub(super) writing: &'a Writing<'a, S>,
}

impl<S: Store, T: Twitch> Judging<'_, S, T> {
    /// Deactivates at once where nothing else can confirm the refusal. What another streamer's refresh may still confirm is
    /// judged when all have been asked about.
    pub(super) async fn run(&self, refused: Receiver<Attempt>) {
        let mut batches = refused.ready_chunks(WRITE_BATCH);
        let mut open = Vec::new();
        while let Some(batch) = batches.next().await {
            let is_clear = |one: &Attempt| proof(one) == Some(Proof::NothingToAsk);
            let (confirmed, more): (_, Vec<_>) = batch.into_iter().partition(is_clear);
            self.writing.deactivate(confirmed).await;
            open.extend(more);
            if open.len() > WRITE_BATCH {
                self.judge(std::mem::take(&mut open)).await;
            }
        }
        self.judge(open).await;
    }

    /// Deactivates those of these whose refusal is confirmed, and records the others.
    async fn judge(&self, refused: Vec<Attempt>) {
        let Some(first) = refused.first() else { return };
        // What can't be read confirms nothing.
        let history = self.store.history(&first.client_id).await.ok().map(|mut history| {
            history.extend(&self.context.progress.state().history);
            history
        });
        let is_confirmed = |one: &Attempt, proof| {
            let since = refused_since(one);
            history.as_ref().is_some_and(|history| history.confirms(proof, one.streamer.id, since))
        };
        let hangs_on_validation = |one: &Attempt| {
            proof(one) == Some(Proof::DeadBeforeExpiry)
                && is_confirmed(one, Proof::DeadBeforeExpiry)
                && !is_confirmed(one, Proof::Nothing)
        };
        let is_wrong = refused.iter().any(hangs_on_validation) && self.validation_is_wrong(&refused).await;
        let (confirmed, rest): (Vec<_>, Vec<_>) = refused.into_iter().partition(|one| {
            let proof = proof(one).filter(|_| !is_wrong).unwrap_or(Proof::Nothing);
            is_confirmed(one, proof)
        });
        let rest = rest.into_iter().map(|one| one.unconfirmed(self.context.policy)).collect();
        self.writing.deactivate(confirmed).await;
        self.writing.record_unconfirmed(rest).await;
    }

    /// Whether Twitch calls dead whatever it is asked about, or can't say: asked about another streamer, whose token should
    /// live. One that is called valid is enough; where there is no other streamer, there is nothing to ask.
    async fn validation_is_wrong(&self, refused: &[Attempt]) -> bool {
        let now = self.context.now();
        let ids: Vec<_> = refused.iter().map(|one| one.streamer.id).collect();
        let Ok(others) = self.store.healthy(&ids, now).await else { return true };
        if others.is_empty() {
            return false;
        }
        let claims = self.store.claim(&others, now, now + LEASE, self.context.clock.monotonic()).await;
        let mut is_wrong = true;
        let mut controls = Vec::new();
        for claim in claims.unwrap_or_default() {
            let control = self.asking.control(claim, !is_wrong).await;
            is_wrong &= !matches!(control.resolution, Resolution::Validated { .. });
            controls.push(control);
        }
        // What can't be written is a lease that ends by itself, or a proof that the next sweep gets again.
        let _ = self.writing.store_all(&controls).await;
        is_wrong
    }

    /// Where something is missing of a new pair, the pair is stored first, and only then Twitch is asked; if that fails, the
    /// expiry stays unknown, which is due at the next trigger. Gives back what is to be written; `None`: it is, and reported.
    pub(super) async fn complete(&self, attempt: Attempt) -> Option<Attempt> {
        let stored = match self.writing.store_all(slice::from_ref(&attempt)).await {
            Ok(stored) => stored.into_iter().next().unwrap_or(Stored::Superseded),
            Err(error) => {
                self.writing.not_stored(slice::from_ref(&attempt), &error);
                return None;
            }
        };
        let granted = match Outcome::of(&attempt, stored.clone()) {
            Outcome::Refreshed { .. } => None,
            Outcome::Granted { authorization, .. } => Some(authorization),
            _ => {
                self.writing.settle(vec![attempt], vec![stored]);
                return None;
            }
        };
        let claim = if self.context.must_stop() {
            None
        } else {
            let now = self.context.now();
            let give_up_at = self.context.clock.monotonic();
            let claims = self.store.claim(&[attempt.streamer.id], now, now + LEASE, give_up_at).await;
            claims.ok().and_then(|mut claims| claims.pop())
        };
        if let Some(claim) = claim {
            let completed = self.asking.complete(&attempt, claim, granted).await;
            if let Resolution::Completed { .. } = completed.resolution {
                return Some(completed);
            }
            // A lease that can't be given back ends by itself.
            let _ = self.writing.store_all(slice::from_ref(&completed)).await;
        }
        self.writing.report(&attempt, stored);
        None
    }

    /// Whether something is missing of what this attempt is about to store.
    pub(super) fn is_incomplete(&self, attempt: &Attempt) -> bool {
        matches!(&attempt.resolution, Resolution::Refreshed { memory, .. } if is_open(self.context.cycle, memory))
    }
}

fn proof(refused: &Attempt) -> Option<Proof> {
    refused.resolution.cause()?.proof
}

/// Since when Twitch has refused to refresh this streamer.
fn refused_since(refused: &Attempt) -> chrono::DateTime<chrono::Utc> {
    let before = match &refused.resolution {
        Resolution::Deactivate { before, .. } => *before,
        _ => None,
    };
    before.and_then(|before| before.refused_since).unwrap_or(refused.started_at)
}
