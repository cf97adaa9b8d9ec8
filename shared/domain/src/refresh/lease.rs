//! The first loop: reads the authorized streamers page by page and leases what is due.

use std::collections::HashSet;

use chrono::TimeDelta;
use futures::SinkExt;
use futures::channel::mpsc;
use futures::future;

use super::cycle::MAX_ATTEMPT;
use super::progress::Progress;
use super::{Cycle, RefreshService, Scope};
use crate::policy::{Decision, FailureKind, RefreshMode};
use crate::ports::{Claim, Outage, SetAside, Signals, Store, StoreError, StoreErrorKind, Twitch};
use crate::report::{Alarm, Outcome, Skip, Standing, Stop, TwitchHealth};
use crate::streamer::{Streamer, TokenState};

/// How long a lease holds: the longest attempt, as long again for its turn to come, and a minute to write.
pub(super) const LEASE: TimeDelta = TimeDelta::seconds(2 * MAX_ATTEMPT.num_seconds() + 60);

/// The first batch of leases is this part of the calls in flight, and each is twice the one before: the first calls go
/// out early, and they don't all come back at the same moment.
const FIRST_BATCHES: usize = 8;

/// What the loop knows of itself.
struct Leasing<'a> {
    cycle: &'a Cycle,
    progress: &'a Progress<'a>,
    claims: mpsc::Sender<Claim>,
    /// How many are leased at once.
    batch: usize,
    any_leased: bool,
    /// Why a row can be read and not changed, if there is one.
    shut_out: Option<String>,
}

impl<S: Store, T: Twitch, G: Signals> RefreshService<S, T, G> {
    /// It is at most two batches of calls ahead.
    ///
    /// Refreshes come first, those of the last page too: what only validates has to wait, or it would use up the time,
    /// the calls or the limit that a refresh needs.
    pub(super) async fn lease_what_is_due(
        &self,
        cycle: &Cycle,
        progress: &Progress<'_>,
        claims: mpsc::Sender<Claim>,
    ) -> Result<(), StoreError> {
        let batch = self.in_flight.div_ceil(FIRST_BATCHES);
        let mut leasing = Leasing { cycle, progress, claims, batch, any_leased: false, shut_out: None };
        let mut last = None;
        let mut unproven = Vec::new();
        while !self.must_stop(cycle, progress) {
            let page = match &cycle.scope {
                Scope::Listed(these) => these.clone(),
                Scope::Authorized => {
                    let give_up_at = cycle.last_read(self.clock.monotonic());
                    let page = self.store.authorized(last, self.clock.now(), give_up_at);
                    // Nothing is held yet, so a stop need not wait for it.
                    let Some(page) = self.stop.run_until_cancelled(page).await.transpose()? else { continue };
                    last = page.last;
                    for (id, error) in page.unreadable {
                        progress.done(&Streamer::unnamed(id), &unreadable(error.text));
                    }
                    page.authorized.into_iter().map(|one| (one.streamer, one.token)).collect()
                }
            };
            let due = self.due(cycle, progress, page, &mut unproven);
            self.lease_all(&mut leasing, &due).await?;
            if last.is_none() {
                break;
            }
        }
        for some in unproven.chunks(self.in_flight) {
            if self.must_stop(cycle, progress) {
                break;
            }
            match progress.may_validate(cycle.priority_of_validations()) {
                Ok(()) => self.lease_all(&mut leasing, some).await?,
                // Not even a lease, which others would have to wait for.
                Err(Outage(reason)) => some.iter().for_each(|streamer| {
                    progress.done(streamer, &Outcome::Skipped(Skip::NotValidated(reason.clone())));
                }),
            }
        }
        // A row that may not be changed does not affect the others; where that is all there was to do, the run did nothing.
        if let (Some(reason), false) = (leasing.shut_out, leasing.any_leased) {
            progress.stop(Stop::Store(StoreError::new(StoreErrorKind::Permanent, reason)));
        }
        Ok(())
    }

    /// Leases these in batches, for as long as the cycle goes on.
    async fn lease_all(&self, leasing: &mut Leasing<'_>, mut due: &[Streamer]) -> Result<(), StoreError> {
        while !due.is_empty() && !self.must_stop(leasing.cycle, leasing.progress) {
            let (now, later) = due.split_at(leasing.batch.min(due.len()));
            self.lease(leasing, now).await?;
            leasing.batch = (2 * leasing.batch).min(self.in_flight);
            due = later;
        }
        Ok(())
    }

    /// Those of a page that are to be refreshed; those whose token is only to be validated are put into `unproven`. The
    /// others are done already, and in a dry run all are.
    fn due(
        &self,
        cycle: &Cycle,
        progress: &Progress<'_>,
        page: Vec<(Streamer, TokenState)>,
        unproven: &mut Vec<Streamer>,
    ) -> Vec<Streamer> {
        let mut due = Vec::new();
        for (streamer, token) in page {
            match self.policy.decide(&self.today(token, true), cycle.mode, self.clock.now()) {
                // A grant is more than a refresh: whether there is nothing to refresh is decided under the lease.
                _ if cycle.grants.is_some() => due.push(streamer),
                Decision::Skip(reason) => progress.done(&streamer, &Outcome::Skipped(Skip::NotDue(reason))),
                Decision::Refresh if cycle.dry_run => progress.done(&streamer, &Outcome::WouldRefresh),
                Decision::Validate if cycle.dry_run => progress.done(&streamer, &Outcome::WouldValidate),
                Decision::Refresh => due.push(streamer),
                Decision::Validate => unproven.push(streamer),
            }
        }
        due
    }

    async fn lease(&self, leasing: &mut Leasing<'_>, due: &[Streamer]) -> Result<(), StoreError> {
        let ids: Vec<_> = due.iter().map(|streamer| streamer.id).collect();
        let last_read = leasing.cycle.last_read(self.clock.monotonic());
        if leasing.cycle.mode == RefreshMode::Forced {
            self.store.take_back(&ids, last_read).await?;
        }
        let now = self.clock.now();
        let claim = self.store.claim(&ids, now, now + LEASE, last_read);
        let (claimed, ()) = future::join(claim, self.twitch.connect()).await;
        let claimed = claimed?;
        leasing.any_leased |= !claimed.is_empty();
        let leased: HashSet<_> = claimed.iter().map(|claim| claim.streamer.id).collect();
        let missed: Vec<_> = due.iter().filter(|streamer| !leased.contains(&streamer.id)).collect();
        let ids: Vec<_> = missed.iter().map(|streamer| streamer.id).collect();
        let aside = if ids.is_empty() { vec![] } else { self.store.are_set_aside(&ids, now).await? };
        for streamer in missed {
            let outcome = match aside.iter().find(|one| one.id == streamer.id) {
                None => Outcome::Skipped(Skip::Leased),
                // Found out by this claim.
                Some(SetAside { at, until, reason, .. }) if *at == now => {
                    if *until == now {
                        leasing.shut_out.get_or_insert_with(|| reason.clone());
                    }
                    unreadable(reason.clone())
                }
                Some(SetAside { until, reason, .. }) => {
                    Outcome::Skipped(Skip::SetAside { until: *until, reason: reason.clone() })
                }
            };
            leasing.progress.done(streamer, &outcome);
        }
        for claim in claimed {
            // The loop that asks outlives this one.
            let _ = leasing.claims.send(claim).await;
        }
        Ok(())
    }
}

/// The row can't be read.
pub(crate) fn unreadable(reason: String) -> Outcome {
    Outcome::Failed {
        kind: FailureKind::Outage,
        reason,
        token_expires_at: None,
        standing: Standing::NotRecorded,
        alarm: Some(Alarm::Unreadable),
        twitch: TwitchHealth::NotAsked,
    }
}
