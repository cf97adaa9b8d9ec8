//! The functions of one machine on a clock that is turned: every rule, one-shot and domain event fires in order, and runs
//! the very services that the functions run, against the world's database, Twitch and push services.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use chrono::{DateTime, Utc};
use tokens_domain::Streamer;
use tokens_domain::notify::{NotifyReport, NotifyService};
use tokens_domain::ports::Push;
use tokens_domain::refresh::Cycle;
use tokens_domain::report::{Outcome, Report};
use tokens_domain::schedule::Trigger;
use tokens_service::presentation::Presentation;
use tokens_store::{self, PgOutbox};

use crate::clock::TurnableClock;
use crate::scheduler::{Job, LocalScheduler};
use crate::world::World;

/// A world whose triggers fire as its clock is turned.
pub struct Stage<P> {
    /// The world. Its clock is the stage's.
    pub world: World,
    pub scheduler: LocalScheduler,
    clock: Arc<TurnableClock>,
    push: Arc<P>,
    changes: Vec<(&'static str, &'static str)>,
}

/// What fired.
pub struct Fired {
    pub at: DateTime<Utc>,
    pub did: Did,
}

/// What a trigger did.
pub enum Did {
    Cycle {
        trigger: Trigger,
        report: Report,
        /// Each streamer that was looked at.
        outcomes: Vec<(Streamer, Outcome)>,
    },
    Notify(NotifyReport),
}

impl<P: Push> Stage<P> {
    /// A stage on this world, which was made with this clock.
    pub fn new(world: World, clock: Arc<TurnableClock>, push: P) -> Self {
        let (scheduler, push) = (LocalScheduler::default(), Arc::new(push));
        Self { world, scheduler, clock, push, changes: Vec::new() }
    }

    /// The cycles run from now on with these variables changed in their configuration.
    pub fn with(mut self, changes: &[(&'static str, &'static str)]) -> Self {
        self.changes.extend_from_slice(changes);
        self
    }

    /// Turns the clock to what fires next and carries it out; `None`, with the clock at `until`, if nothing fires until
    /// then.
    pub async fn next(&self, until: DateTime<Utc>) -> Result<Option<Fired>> {
        let Some((at, job)) = self.scheduler.take_next(self.world.clock.now(), until) else {
            self.clock.set(until);
            return Ok(None);
        };
        self.clock.set(at);
        let did = match job {
            Job::Cycle(trigger) => self.run(&Cycle::new(trigger)).await?,
            Job::Notify => Did::Notify(self.deliver().await?),
        };
        Ok(Some(Fired { at, did }))
    }

    /// Carries out everything that fires until then, and turns the clock there.
    pub async fn play(&self, until: DateTime<Utc>, mut watch: impl FnMut(&Fired)) -> Result<()> {
        while let Some(fired) = self.next(until).await? {
            watch(&fired);
        }
        Ok(())
    }

    pub async fn run(&self, cycle: &Cycle) -> Result<Did> {
        let service = self.world.service_with(self.scheduler.clone(), &self.changes).await?;
        let outcomes = Mutex::new(Vec::new());
        let observe = |streamer: &Streamer, outcome: &Outcome| {
            let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
            outcomes.push((streamer.clone(), outcome.clone()));
        };
        let report = Box::pin(service.run(cycle, &observe)).await;
        if matches!(cycle.trigger, Trigger::Planned | Trigger::Sweep) {
            service.store().database().remember_sessions(self.world.clock.now()).await?;
        }
        let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Did::Cycle { trigger: cycle.trigger, report, outcomes })
    }

    /// Delivers what is due in the outbox.
    async fn deliver(&self) -> Result<NotifyReport> {
        let database = tokens_store::Database::open(self.world.config(&[])?.database).await?;
        let outbox = PgOutbox::new(database, self.world.clock.clone());
        let service =
            NotifyService::new(outbox, self.push.clone(), self.world.clock.clone(), Presentation::default());
        Ok(service.run(None, &|_, _, _| {}).await?)
    }
}
