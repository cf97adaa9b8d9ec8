//! The program's own binaries, as they are deployed and installed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use tokio::process::Command;

use crate::env;

/// How cargo tells a process that it starts which package that is of.
const PACKAGE: [&str; 7] = [
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_LINKS",
    "CARGO_PKG_NAME",
    "CARGO_PKG_VERSION_MAJOR",
    "CARGO_PKG_VERSION_MINOR",
    "CARGO_PKG_VERSION_PATCH",
    "CARGO_PKG_VERSION_PRE",
];

/// Which build of the binaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// For the demo and the tests.
    Dev,
    /// What is deployed; for the benchmark.
    Release,
}

/// Where the binaries are.
#[derive(Clone, Debug)]
pub struct Binaries(HashMap<String, PathBuf>);

#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

impl Binaries {
    /// Has cargo build the workspace's binaries, in [`Profile::Release`] those of the functions, which does nothing if
    /// they are up to date. `cargo run` and `cargo test` build only what they start themselves.
    pub async fn build(profile: Profile) -> Result<Self> {
        let cargo = env::var("CARGO").unwrap_or_else(|| "cargo".to_owned());
        let mut command = Command::new(cargo);
        command
            .args(["build", "--quiet", "--workspace", "--bins", "--message-format=json-render-diagnostics"])
            .args(match profile {
                Profile::Dev => &[][..],
                // The command and this crate are installed and run in the profile `tool`.
                Profile::Release => &["--release", "--exclude", "tokens-cli", "--exclude", "tokens-local"],
            })
            .current_dir(workspace())
            .stderr(std::process::Stdio::inherit());
        // That is not for this cargo: build scripts that look at it (that of `ring`) would run again each time, and most
        // crates be built anew after them.
        for name in PACKAGE {
            command.env_remove(name);
        }
        let built = command.output().await.context("cargo can't be started")?;
        ensure!(built.status.success(), "the program's binaries don't build; cargo has said why");
        let messages = built.stdout.split(|byte| *byte == b'\n').filter_map(|line| {
            let message: Message = serde_json::from_slice(line).ok()?;
            Some((message.target?.name, message.executable?))
        });
        Ok(Self(messages.collect()))
    }

    /// The path of the binary with this name.
    pub fn path(&self, name: &str) -> Result<&Path> {
        match self.0.get(name) {
            Some(path) => Ok(path),
            None => bail!("the workspace has no binary `{name}`"),
        }
    }
}

/// The workspace's root.
pub fn workspace() -> &'static Path {
    let local = Path::new(env!("CARGO_MANIFEST_DIR"));
    local.parent().unwrap_or(local)
}
