//! The end of a process that is asked to end (SIGINT, SIGTERM): in order at the first signal, at once at the second.

use std::process::exit;
use std::sync::Arc;
use std::time::Duration;

use tokens_domain::CancellationToken;
use tokio::select;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::RwLock;
use tokio::time::sleep;

/// What Lambda's runtime needs to hand over the answer to the last event. No event waits for it: Lambda ends no function that is
/// at work.
const HANDING_OVER: Duration = Duration::from_millis(500);

/// Gives the stop signal when this process is asked to end for the first time, and calls `notice`. At the second time the process
/// ends at once, with the exit code that shells have for that. Needs tokio's runtime.
pub fn on_signals(notice: impl FnOnce() + Send + 'static) -> CancellationToken {
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    // Without a handler the process ends at the first, as any does.
    let (Ok(mut interrupt), Ok(mut terminate)) = signals else { return CancellationToken::default() };
    let stop = CancellationToken::new();
    let stopper = stop.clone();
    tokio::spawn(async move {
        let mut next = async || {
            select! {
                _ = interrupt.recv() => 128 + 2,
                _ = terminate.recv() => 128 + 15,
            }
        };
        next().await;
        notice();
        stopper.cancel();
        exit(next().await);
    });
    stop
}

/// Ends a function between two events.
#[derive(Clone)]
pub struct Shutdown {
    stop: CancellationToken,
    events: Arc<RwLock<()>>,
}

impl Shutdown {
    /// Listens for signals from now on.
    #[must_use]
    pub fn listen() -> Self {
        let notice = || tracing::info!("asked to end: finishing what is in flight");
        Self { stop: on_signals(notice), events: Arc::default() }
    }

    /// For cycles.
    #[must_use]
    pub fn signal(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Answers an event, which is finished before the function ends.
    pub async fn event<T>(&self, answer: impl Future<Output = T>) -> T {
        let _in_flight = self.events.read().await;
        answer.await
    }

    /// Serves until the process is asked to end and has no event in flight.
    ///
    /// # Errors
    ///
    /// As `serving`.
    pub async fn serve<E>(&self, serving: impl Future<Output = Result<(), E>>) -> Result<(), E> {
        let over = async {
            self.stop.cancelled().await;
            let _idle = self.events.write().await;
            sleep(HANDING_OVER).await;
        };
        select! {
            served = serving => served,
            () = over => Ok(()),
        }
    }
}
