//! The environment of the demo as a file, for `cargo lambda watch`.

use std::fs;

use anyhow::{Context as _, Result};

use crate::binaries::workspace;

/// From the workspace's root.
pub(super) const PATH: &str = "target/local/env";

/// The file. It is gone when this is dropped.
pub(super) struct EnvFile;

impl EnvFile {
    pub(super) fn write(environment: &[(String, String)]) -> Result<Self> {
        let path = workspace().join(PATH);
        let lines: Vec<_> = environment.iter().map(|(name, value)| format!("{name}='{value}'\n")).collect();
        fs::create_dir_all(path.with_file_name(""))?;
        fs::write(&path, lines.concat()).with_context(|| format!("{} can't be written", path.display()))?;
        Ok(Self)
    }
}

impl Drop for EnvFile {
    fn drop(&mut self) {
        // Whoever finds it meets servers that are gone.
        let _ = fs::remove_file(workspace().join(PATH));
    }
}
