//! `tokens vapid generate`: a new key pair, in the form in which it is configured. The one place that prints a secret.

use anyhow::{Context as _, Result};
use clap::Subcommand;
use serde::Serialize;
use tokens_push::{Vapid, VapidKey};
use zeroize::Zeroizing;

use crate::output;

#[derive(Subcommand)]
pub enum Command {
    /// Make a new key pair and print it. It is stored nowhere; browsers that subscribed under another key must
    /// subscribe again.
    Generate {
        /// Where push services reach you: mailto:you@your.domain or an https URL.
        #[arg(long, value_name = "URL")]
        subject: Option<String>,
        /// The form of the existing backend's `.vapid-keys.json`.
        #[arg(long, conflicts_with = "subject")]
        json: bool,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Keys<'a> {
    public_key: &'a str,
    private_key: &'a str,
}

pub fn run(command: Command) -> Result<()> {
    let Command::Generate { subject, json } = command;
    let key = VapidKey::generate().context("no key could be made")?;
    let (public, private) = (key.public(), key.expose_private());
    if json {
        output::json(&Keys { public_key: &public, private_key: &private })?;
    } else {
        if let Some(subject) = &subject {
            Vapid::new(&public, &private, subject)?;
        }
        output::line(&variables(&public, &private, subject.as_deref()))?;
    }
    Ok(())
}

/// The lines of a `.env`.
fn variables(public: &str, private: &str, subject: Option<&str>) -> Zeroizing<String> {
    let subject = subject.map_or_else(
        || {
            "# Where push services reach you: mailto:you@your.domain or an https URL.\nVAPID_SUBJECT="
                .to_owned()
        },
        |subject| format!("VAPID_SUBJECT={}", subject.trim()),
    );
    Zeroizing::new(format!("VAPID_PUBLIC_KEY={public}\nVAPID_PRIVATE_KEY={private}\n{subject}"))
}
