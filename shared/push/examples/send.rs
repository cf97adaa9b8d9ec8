//! Our side of the cross-check against other implementations (`.ci/push/run`): one JSON request per line on standard
//! input, what became of it per line on standard output.
//!
//! It calls loopback only, and takes the private key in plain: it must never be given a real one.

use std::error::Error;
use std::io::{self, BufRead};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use tokens_domain::notification::Subscription;
use tokens_domain::ports::{Push, PushMessage};
use tokens_domain::{Clock, Monotonic};
use tokens_push::{Loopback, Vapid, WebPush};
use uuid::Uuid;

struct Still(DateTime<Utc>);

impl Clock for Still {
    fn now(&self) -> DateTime<Utc> {
        self.0
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic::after_start(TimeDelta::zero())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    for line in io::stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line?)?;
        let text = |name: &str| request[name].as_str().ok_or(format!("the request has no {name}"));
        let vapid = Vapid::new(text("publicKey")?, text("privateKey")?, text("subject")?)?;
        let subscription = Subscription {
            id: Uuid::nil(),
            endpoint: text("endpoint")?.to_owned(),
            p256dh: text("p256dh")?.to_owned(),
            auth: text("auth")?.to_owned(),
        };
        let message = PushMessage {
            payload: text("payload")?.as_bytes().to_vec(),
            topic: text("topic")?.to_owned(),
            time_to_live: TimeDelta::hours(24),
        };
        let clock = Still(text("now")?.parse()?);
        let answer =
            WebPush::new(vapid, Loopback::Allowed, Arc::new(clock))?.send(&subscription, &message).await;
        answers(&format!("{answer:?}"))?;
    }
    Ok(())
}

fn answers(line: &str) -> io::Result<()> {
    use io::Write as _;
    writeln!(io::stdout().lock(), "{line}")
}
