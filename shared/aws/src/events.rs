//! Domain events on an EventBridge bus. `docs/events` describes them.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_eventbridge::Client;
use aws_sdk_eventbridge::types::PutEventsRequestEntry;
use tokens_domain::Clock;
use tokens_domain::ports::{SignalError, StreamerDeactivated};
use tokio::sync::OnceCell;
use tokio::time::sleep;

use crate::guard::Guard;
use crate::{Failure, Sdk};

/// The events' source.
pub const SOURCE: &str = "twitch-token-refresh";

/// The events' type: a streamer was deactivated.
pub const STREAMER_DEACTIVATED: &str = "streamer deactivated";

/// What EventBridge says of an entry that may be taken later.
const PASSING: [&str; 2] = ["InternalFailure", "ThrottlingException"];

/// The waits before an entry that was not taken is sent again.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(200), Duration::from_millis(400)];

/// Publishes on one bus.
pub(super) struct Events {
    bus: String,
    sdk: Sdk,
    client: OnceCell<Client>,
    guard: Guard,
}

impl Events {
    pub(super) fn new(bus: String, sdk: Sdk, clock: Arc<dyn Clock>) -> Self {
        Self { bus, sdk, client: OnceCell::new(), guard: Guard::new(clock) }
    }

    pub(super) async fn publish(&self, event: &StreamerDeactivated) -> Result<(), SignalError> {
        self.guard.call(Box::pin(self.put(event))).await.map_err(|failure| {
            SignalError(format!(
                "the deactivation of streamer {} could not be published on the bus `{}`: {}; check that the bus exists \
                 (EVENT_BUS_NAME), that this function may call events:PutEvents on it, and that it can reach the service. \
                 The notification timer delivers it instead",
                event.streamer_id, self.bus, failure.reason
            ))
        })
    }

    /// An answer of 200 says nothing yet: each entry may have failed by itself.
    async fn put(&self, event: &StreamerDeactivated) -> Result<(), Failure> {
        let client = self
            .client
            .get_or_try_init(async || Ok::<_, Failure>(Client::new(self.sdk.config().await?)))
            .await?;
        let detail = serde_json::to_string(event).map_err(|error| Failure::refused(error.to_string()))?;
        let entry = PutEventsRequestEntry::builder()
            .event_bus_name(&self.bus)
            .source(SOURCE)
            .detail_type(STREAMER_DEACTIVATED)
            .detail(detail)
            .build();
        let mut pauses = PAUSES.into_iter();
        loop {
            let answer = client.put_events().entries(entry.clone()).send().await?;
            if answer.failed_entry_count() == 0 {
                return Ok(());
            }
            let code =
                answer.entries().iter().find_map(|entry| entry.error_code()).unwrap_or("no reason given");
            let reason = format!("the entry was not taken: {code}");
            if !PASSING.contains(&code) {
                return Err(Failure::refused(reason));
            }
            let Some(pause) = pauses.next() else { return Err(Failure::lasting(reason)) };
            sleep(pause).await;
        }
    }
}
