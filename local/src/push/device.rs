//! A browser that has subscribed: its keys, what was sent to it, and what it shows.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use p256::SecretKey;
use tokens_domain::notification::Subscription;
use uuid::Uuid;

use super::{Received, decrypt::SECRET_LENGTH, faults::Slot};

pub(super) struct Device {
    /// The last part of its endpoint, which nobody can guess.
    pub(super) path: String,
    pub(super) private_key: SecretKey,
    pub(super) secret: [u8; SECRET_LENGTH],
    /// The only sender that may push, as it stands in the header; anybody if none.
    pub(super) sender: Option<String>,
    pub(super) expired: bool,
    pub(super) fault: Slot,
    messages: Vec<Received>,
    /// What the push service still holds, as places in `messages`.
    waiting: Vec<usize>,
    shown: Vec<usize>,
}

impl Device {
    /// A new device, and what its application learns of it.
    pub(super) fn subscribe(origin: &str, sender: Option<String>) -> (Self, Subscription) {
        let private_key = random_key();
        let secret = random();
        let path = BASE64_URL_SAFE_NO_PAD.encode(random::<18>());
        let subscription = Subscription {
            id: Uuid::new_v4(),
            endpoint: format!("{origin}/push/{path}"),
            p256dh: BASE64_URL_SAFE_NO_PAD.encode(private_key.public_key().to_sec1_bytes()),
            auth: BASE64_URL_SAFE_NO_PAD.encode(secret),
        };
        let device = Self {
            path,
            private_key,
            secret,
            sender,
            expired: false,
            fault: Slot::default(),
            messages: Vec::new(),
            waiting: Vec::new(),
            shown: Vec::new(),
        };
        (device, subscription)
    }

    /// The push service takes a message for this device (RFC 8030, sections 5.2 and 5.4).
    pub(super) fn accept(&mut self, message: Received) {
        if message.topic.is_some() {
            let messages = &self.messages;
            self.waiting.retain(|&place| messages[place].topic != message.topic);
        }
        self.waiting.push(self.messages.len());
        self.messages.push(message);
    }

    pub(super) fn messages(&self) -> Vec<Received> {
        self.messages.clone()
    }

    /// The device wakes at `now`. What is over by then has been dropped.
    pub(super) fn shown(&mut self, now: DateTime<Utc>) -> Vec<Received> {
        let messages = &self.messages;
        let lives = |place: &usize| messages[*place].at + messages[*place].time_to_live > now;
        self.shown.extend(self.waiting.drain(..).filter(lives));
        self.shown.iter().map(|&place| messages[place].clone()).collect()
    }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    bytes
}

pub(super) fn random_key() -> SecretKey {
    loop {
        // Nearly every number of this size is a key.
        if let Ok(key) = SecretKey::from_slice(&random::<32>()) {
            return key;
        }
    }
}
