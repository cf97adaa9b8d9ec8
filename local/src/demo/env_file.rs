//! The environment of the demo as a file, for `cargo lambda watch`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::binaries::workspace;

/// From the workspace's root.
pub(super) const PATH: &str = "target/local/env";

/// The file, which is the last demo's that was started. It is gone when this is dropped, unless it is another's by then.
pub(super) struct EnvFile {
    path: PathBuf,
    text: String,
}

impl EnvFile {
    pub(super) fn write(environment: &[(String, String)]) -> Result<Self> {
        Self::write_to(workspace().join(PATH), environment)
    }

    fn write_to(path: PathBuf, environment: &[(String, String)]) -> Result<Self> {
        let lines: Vec<_> = environment.iter().map(|(name, value)| format!("{name}='{value}'\n")).collect();
        let text = lines.concat();
        fs::create_dir_all(path.with_file_name(""))?;
        fs::write(&path, &text).with_context(|| format!("{} can't be written", path.display()))?;
        Ok(Self { path, text })
    }
}

impl Drop for EnvFile {
    fn drop(&mut self) {
        // Whoever finds it meets servers that are gone.
        if fs::read_to_string(&self.path).is_ok_and(|text| text == self.text) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demo_takes_away_its_own_file_and_no_others() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("local/env");
        let write = |value: &str| EnvFile::write_to(path.clone(), &[("NAME".to_owned(), value.to_owned())]);
        let (first, second) = (write("first")?, write("second")?);
        drop(first);
        assert_eq!(fs::read_to_string(&path)?, "NAME='second'\n");
        drop(second);
        assert!(!path.exists());
        Ok(())
    }
}
