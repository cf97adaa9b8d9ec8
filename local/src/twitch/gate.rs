//! A gate in the middle of a refresh: the request has arrived, and Twitch doesn't process it until the gate opens; or it
//! has processed it, and doesn't answer. Tests do there what somebody else would do during the call.

use tokio::sync::watch;

/// Holds every refresh of one streamer at one point of its way, until it is released or dropped.
#[derive(Debug)]
#[must_use = "a dropped gate is open"]
pub struct Gate {
    passage: Passage,
}

/// The side of the requests.
#[derive(Clone, Debug)]
pub(super) struct Passage {
    state: watch::Sender<State>,
}

#[derive(Debug, Default)]
struct State {
    arrived: usize,
    open: bool,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self { passage: Passage { state: watch::Sender::default() } }
    }

    pub(super) fn passage(&self) -> Passage {
        self.passage.clone()
    }

    /// Waits until a refresh stands before the gate; returns at once if one does already.
    pub async fn arrived(&self) {
        self.arrivals(1).await;
    }

    /// Waits until `count` refreshes in all have come to the gate.
    pub async fn arrivals(&self, count: usize) {
        self.passage.until(|state| state.arrived >= count).await;
    }

    /// Opens the gate for the requests that stand before it and for all that follow.
    pub fn release(self) {
        drop(self);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.passage.state.send_modify(|state| state.open = true);
    }
}

/// The newest gates of one streamer; an open one holds nobody up.
#[derive(Clone, Debug, Default)]
pub(super) struct Passages {
    /// Between a request's arrival and its processing.
    pub(super) before: Option<Passage>,
    /// Between its processing and the answer.
    pub(super) after: Option<Passage>,
}

impl Passage {
    pub(super) async fn pass(self) {
        self.state.send_modify(|state| state.arrived += 1);
        self.until(|state| state.open).await;
    }

    async fn until(&self, condition: impl FnMut(&State) -> bool) {
        // It can't fail: `self` holds a sender, so the channel stays open.
        let _ = self.state.subscribe().wait_for(condition).await;
    }
}
