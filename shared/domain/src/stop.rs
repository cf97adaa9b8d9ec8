//! Asking work to stop in order: it begins nothing new, finishes what is in flight, and gives back what it holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::{Shared, pending};

/// Asks those that hold the signal to stop.
#[derive(Debug)]
pub struct Stopper {
    asked: Arc<AtomicBool>,
    /// Nothing is ever sent: that it is dropped wakes those that wait.
    wake: oneshot::Sender<()>,
}

impl Stopper {
    /// Work with this stopper's signal is asked to stop from now on.
    pub fn stop(self) {
        self.asked.store(true, Ordering::SeqCst);
        drop(self.wake);
    }
}

/// Whether work is asked to stop. The default never is.
#[derive(Clone, Debug, Default)]
pub struct StopSignal(Option<Asked>);

#[derive(Clone, Debug)]
struct Asked {
    asked: Arc<AtomicBool>,
    woken: Shared<oneshot::Receiver<()>>,
}

impl StopSignal {
    /// A signal, and who gives it. If the stopper is dropped instead, it is never given.
    #[must_use]
    pub fn new() -> (Stopper, Self) {
        let (wake, woken) = oneshot::channel();
        let asked = Arc::new(AtomicBool::new(false));
        let signal = Asked { asked: asked.clone(), woken: woken.shared() };
        (Stopper { asked, wake }, Self(Some(signal)))
    }

    /// Whether to stop.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.as_ref().is_some_and(|signal| signal.asked.load(Ordering::SeqCst))
    }

    /// Waits until the signal is given.
    pub async fn given(&self) {
        if let Some(signal) = &self.0 {
            let _ = signal.woken.clone().await;
        }
        if !self.is_set() {
            pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_seen_and_wakes_whether_it_came_before_or_after() {
        let (stopper, signal) = StopSignal::new();
        assert!(!signal.is_set() && signal.given().now_or_never().is_none());
        let mut waiting = Box::pin(signal.given());
        assert!((&mut waiting).now_or_never().is_none());
        stopper.stop();
        assert!(signal.is_set() && waiting.now_or_never().is_some());
        assert!(signal.clone().given().now_or_never().is_some());
    }

    #[test]
    fn without_a_stopper_it_is_never_given() {
        let (stopper, signal) = StopSignal::new();
        drop(stopper);
        for signal in [signal, StopSignal::default()] {
            assert!(!signal.is_set() && signal.given().now_or_never().is_none());
        }
    }
}
