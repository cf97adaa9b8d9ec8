//! A request over a few streamers, whose caller waits for the answer: where another run holds a lease, it waits for that run
//! to end and runs the cycle again.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Mutex, PoisonError};

use crate::ports::{EventPublisher, Memberships, RetryScheduler, Store, StoreError, Twitch};
use crate::refresh::{Cycle, RefreshService, Scope};
use crate::report::{Observer, Outcome, Report, Skip, Standing};
use crate::streamer::{Streamer, StreamerId, TokenState};

/// What is asked of a few streamers.
pub(crate) trait Request<S>: Send {
    /// Why there is no answer.
    type Error;

    /// Reads the streamers that are still to be refreshed or validated; none: there is an answer. Read before each cycle,
    /// for another run may have changed everything.
    fn read(
        &mut self,
        store: &S,
    ) -> impl Future<Output = Result<Vec<(Streamer, TokenState)>, Self::Error>> + Send;

    /// Takes what became of one of them. `false`: it is worth waiting for the run that was there first.
    fn take(&mut self, id: StreamerId, outcome: Option<Outcome>, report: &Report) -> bool;

    /// The other runs take longer than the caller can wait, or that can't be found out.
    fn give_up(&mut self, error: Option<StoreError>) -> Result<(), Self::Error>;
}

/// Runs this cycle for a request until it is answered.
pub(crate) async fn answer<S, T, R, E, Q>(
    service: &RefreshService<S, T, R, E>,
    cycle: Cycle,
    observer: &dyn Observer,
    request: &mut Q,
) -> Result<(), Q::Error>
where
    S: Store + Memberships,
    T: Twitch,
    R: RetryScheduler,
    E: EventPublisher,
    Q: Request<S>,
{
    let began = service.monotonic();
    loop {
        let listed = request.read(service.store()).await?;
        if listed.is_empty() {
            return Ok(());
        }
        let ids: Vec<_> = listed.iter().map(|(streamer, _)| streamer.id).collect();
        let cycle = Cycle { scope: Scope::Listed(listed), ..cycle.clone() };
        let collector = Collector { observer, outcomes: Mutex::default() };
        let report = service.run(&cycle, &collector).await;
        let mut outcomes = collector.outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
        let busy: Vec<_> =
            ids.into_iter().filter(|id| !request.take(*id, outcomes.remove(id), &report)).collect();
        if busy.is_empty() {
            return Ok(());
        }
        let patience = cycle.limits.lease_patience(began, service.monotonic());
        match service.store().released(&busy, patience).await {
            Ok(true) => {}
            Ok(false) => return request.give_up(None),
            Err(error) => return request.give_up(Some(error)),
        }
    }
}

/// Whether another run was there: it holds the lease, or has changed the tokens meanwhile.
pub(crate) fn was_elsewhere(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Skipped(Skip::Leased | Skip::Superseded)
            | Outcome::Failed { standing: Standing::Superseded, .. }
    )
}

/// Keeps what it hears of.
struct Collector<'a> {
    observer: &'a dyn Observer,
    outcomes: Mutex<HashMap<StreamerId, Outcome>>,
}

impl Observer for Collector<'_> {
    fn refreshing(&self, streamer: &Streamer) {
        self.observer.refreshing(streamer);
    }

    fn done(&self, streamer: &Streamer, outcome: &Outcome) {
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        outcomes.insert(streamer.id, outcome.clone());
        drop(outcomes);
        self.observer.done(streamer, outcome);
    }

    fn finished(&self, report: &Report) {
        self.observer.finished(report);
    }
}
