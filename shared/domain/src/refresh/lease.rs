//! The first part: reads the authorized streamers page by page and leases what is due.

use std::collections::HashSet;

use futures::SinkExt;
use futures::channel::mpsc;
use futures::future;

use super::context::Context;
use super::cycle::{LEASE, Scope};
use crate::policy::{Decision, RefreshMode};
use crate::ports::{Claim, Outage, SetAside, Store, StoreError, StoreErrorKind, Twitch};
use crate::report::{Outcome, Skip, Stop};
use crate::streamer::{Streamer, TokenState};

/// The first batch of leases is this part of the calls in flight, and each is twice the one before: the first calls go
/// out early, and they don't all come back at the same moment.
const FIRST_BATCHES: usize = 8;

/// Leases what is due.
pub(super) struct Leasing<'a, S, T> {
    context: &'a Context<'a>,
    store: &'a S,
    /// Gets ready for the calls that are about to come.
    twitch: &'a T,
    claims: mpsc::Sender<Claim>,
    in_flight: usize,
    /// How many are leased at once.
    batch: usize,
    any_leased: bool,
    /// Why a row can be read and not changed, if there is one.
    shut_out: Option<String>,
}

impl<'a, S: Store, T: Twitch> Leasing<'a, S, T> {
    pub(super) fn new(
        context: &'a Context<'a>,
        store: &'a S,
        twitch: &'a T,
        in_flight: usize,
        claims: mpsc::Sender<Claim>,
    ) -> Self {
        let batch = in_flight.div_ceil(FIRST_BATCHES);
        Self { context, store, twitch, claims, in_flight, batch, any_leased: false, shut_out: None }
    }

    pub(super) async fn run(mut self) {
        if let Err(error) = self.lease_what_is_due().await {
            self.context.progress.stop(Stop::Store(error));
        }
    }

    /// It is at most two batches of calls ahead.
    ///
    /// Refreshes come first, those of the last page too: what only validates has to wait, or it would use up the time,
    /// the calls or the limit that a refresh needs.
    async fn lease_what_is_due(&mut self) -> Result<(), StoreError> {
        let Context { cycle, progress, .. } = self.context;
        let mut last = None;
        let mut unproven = Vec::new();
        while !self.context.must_stop() {
            let page = match &cycle.scope {
                Scope::Listed(listed) => listed.clone(),
                Scope::Authorized => {
                    let page = self.store.authorized(last, self.context.now(), self.context.last_read());
                    // Nothing is held yet, so a stop need not wait for it.
                    let Some(page) = self.context.stop.run_until_cancelled(page).await.transpose()? else {
                        continue;
                    };
                    last = page.last;
                    for (id, error) in page.unreadable {
                        progress.done(&Streamer::unnamed(id), &Outcome::unreadable(error.text));
                    }
                    page.authorized.into_iter().map(|one| (one.streamer, one.token)).collect()
                }
            };
            let due = self.due(page, &mut unproven);
            self.lease_all(&due).await?;
            if last.is_none() {
                break;
            }
        }
        for some in unproven.chunks(self.in_flight) {
            if self.context.must_stop() {
                break;
            }
            match progress.may_validate(cycle.priority_of_validations()) {
                Ok(()) => self.lease_all(some).await?,
                // Not even a lease, which others would have to wait for.
                Err(Outage(reason)) => some.iter().for_each(|streamer| {
                    progress.done(streamer, &Outcome::Skipped(Skip::NotValidated(reason.clone())));
                }),
            }
        }
        // A row that may not be changed does not affect the others; where that is all there was to do, the run did nothing.
        if let (Some(reason), false) = (self.shut_out.take(), self.any_leased) {
            progress.stop(Stop::Store(StoreError::new(StoreErrorKind::Permanent, reason)));
        }
        Ok(())
    }

    /// Those of a page that are to be refreshed; those whose token is only to be validated are put into `unproven`. The
    /// others are done already, and in a dry run all are.
    fn due(&self, page: Vec<(Streamer, TokenState)>, unproven: &mut Vec<Streamer>) -> Vec<Streamer> {
        let Context { cycle, progress, policy, .. } = self.context;
        let client_id = self.twitch.client_id();
        let mut due = Vec::new();
        for (streamer, token) in page {
            // Whether our keys open the tokens is known under a lease.
            match policy.decide(&token.under(&client_id, true), cycle.mode, self.context.now()) {
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

    /// Leases these in batches, for as long as the cycle goes on.
    async fn lease_all(&mut self, mut due: &[Streamer]) -> Result<(), StoreError> {
        while !due.is_empty() && !self.context.must_stop() {
            let (now, later) = due.split_at(self.batch.min(due.len()));
            self.lease(now).await?;
            self.batch = (2 * self.batch).min(self.in_flight);
            due = later;
        }
        Ok(())
    }

    async fn lease(&mut self, due: &[Streamer]) -> Result<(), StoreError> {
        let ids: Vec<_> = due.iter().map(|streamer| streamer.id).collect();
        let last_read = self.context.last_read();
        if self.context.cycle.mode == RefreshMode::Forced {
            self.store.take_back(&ids, last_read).await?;
        }
        let now = self.context.now();
        let claim = self.store.claim(&ids, now, now + LEASE, last_read);
        let (claimed, ()) = future::join(claim, self.twitch.connect()).await;
        let claimed = claimed?;
        self.any_leased |= !claimed.is_empty();
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
                        self.shut_out.get_or_insert_with(|| reason.clone());
                    }
                    Outcome::unreadable(reason.clone())
                }
                Some(SetAside { until, reason, .. }) => {
                    Outcome::Skipped(Skip::SetAside { until: *until, reason: reason.clone() })
                }
            };
            self.context.progress.done(streamer, &outcome);
        }
        for claim in claimed {
            // The part that asks outlives this one.
            let _ = self.claims.send(claim).await;
        }
        Ok(())
    }
}
