//! What a function that is built as it is deployed does with an event.

use std::fs::{Permissions, read_to_string, set_permissions, write};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use push::VapidKey;
use serde_json::json;
use tempfile::tempdir;

use super::{Built, sample};
use crate::aws::SimulatedAws;
use crate::lambda::Function;
use crate::postgres::{self, Postgres};
use crate::twitch::Settings;
use crate::world::{NewStreamer, World};

const TIME_LEFT: Duration = Duration::from_mins(15);

/// Of the paths of what systems trust, a part of each: Debian's and Amazon Linux's.
const TRUST_STORES: [&str; 5] = ["/etc/ssl", "/etc/pki", "ca-certificates", "ca-bundle", "cert.pem"];

/// The bare function panics at each event: that has to be answered, and the process has to live on.
pub(super) async fn panics_unwind(bare: &Built) -> Result<()> {
    let function = Function::start(&bare.binary, &[], Stdio::null()).await?;
    for _ in 0..2 {
        let error = function.invoke(json!({}), TIME_LEFT).await.err().context("a panic is no answer")?;
        ensure!(
            error.error_message.contains("a bare function answers nothing"),
            "a panic ends the process: {error}"
        );
    }
    Ok(())
}

/// Each function gets an event at which it makes all its clients: of Secrets Manager, of the database, and of Twitch or push
/// services.
pub(super) async fn open_no_trust_store(functions: &[Built]) -> Result<()> {
    let postgres = Postgres::own(postgres::Settings::default()).await?;
    let world = World::start(&postgres, Settings::default()).await?;
    world.add(NewStreamer::due("due")).await?;
    let aws = SimulatedAws::start().await?;
    aws.put_secret("database", json!({ "DATABASE_URL": world.database_url() }).to_string());
    let key = VapidKey::generate()?;
    let mut environment = world.environment();
    environment.retain(|(name, _)| !["DATABASE_URL", "TWITCH_ID_URL"].contains(&name.as_str()));
    environment.extend(aws.environment());
    environment.extend(
        [
            ("DATABASE_SECRET_ID", "database"),
            // Nobody is there, but over TLS.
            ("TWITCH_ID_URL", "https://127.0.0.1:9"),
            ("VAPID_PUBLIC_KEY", &key.public()),
            ("VAPID_PRIVATE_KEY", &key.expose_private()),
            ("VAPID_SUBJECT", "mailto:operator@example.com"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    for function in functions {
        let opened = opened(function, &environment).await.with_context(|| function.name)?;
        // A trace without its own binary's libraries would be none.
        ensure!(opened.contains("libc.so"), "strace saw nothing of {}", function.name);
        let store = opened.lines().find(|line| TRUST_STORES.iter().any(|store| line.contains(store)));
        ensure!(
            store.is_none(),
            "{} opens what the system trusts: {}",
            function.name,
            store.unwrap_or_default()
        );
    }
    Ok(())
}

/// The files that a function opens until it has answered its sample event, as strace has them.
async fn opened(function: &Built, environment: &[(String, String)]) -> Result<String> {
    let directory = tempdir()?;
    let (script, trace) = (directory.path().join("traced"), directory.path().join("trace"));
    let binary = function.binary.display();
    write(
        &script,
        format!("#!/bin/sh\nexec strace -f -e trace=%file -o '{}' '{binary}'\n", trace.display()),
    )?;
    set_permissions(&script, Permissions::from_mode(0o755))?;
    let traced = Function::start(&script, environment, Stdio::null()).await?;
    traced.invoke(sample(function.name)?, TIME_LEFT).await?;
    drop(traced);
    Ok(read_to_string(&trace)?)
}
