//! Who runs the server. PostgreSQL refuses to run as root, so root hands it to an account without rights.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

const ROOT: u32 = 0;

/// Accounts that root may lend to the server, best first. `_postgres` is what macOS calls it.
const UNPRIVILEGED: [&str; 3] = ["postgres", "_postgres", "nobody"];

const READ: u32 = 0o4;
const EXECUTE: u32 = 0o1;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum ServerUser {
    Ourselves,
    Other { uid: u32, gid: u32 },
}

impl ServerUser {
    pub(super) fn choose() -> anyhow::Result<Self> {
        // Who owns a file that we make is who we are, without a system call that std does not offer.
        let ourselves =
            tempfile::tempfile().and_then(|file| file.metadata()).context("no temporary file can be made")?;
        if ourselves.uid() != ROOT {
            return Ok(Self::Ourselves);
        }
        let accounts = fs::read_to_string("/etc/passwd").context("/etc/passwd cannot be read")?;
        UNPRIVILEGED.iter().find_map(|name| account(&accounts, name)).context(
            "PostgreSQL refuses to run as root, and /etc/passwd has neither `postgres` nor `nobody`: run this as \
             another user, or let LOCAL_POSTGRES_URL name a server",
        )
    }

    /// Whether the server can work in the directory's files, given their own modes.
    pub(super) fn can_enter(self, directory: &Path) -> bool {
        // Links are resolved first: it is the real directories that must let the user through.
        directory.canonicalize().is_ok_and(|real| {
            real.ancestors()
                .all(|ancestor| ancestor.metadata().is_ok_and(|metadata| self.may(&metadata, EXECUTE)))
        })
    }

    pub(super) fn can_run(self, program: &Path) -> bool {
        program.canonicalize().is_ok_and(|real| {
            real.metadata().is_ok_and(|metadata| metadata.is_file() && self.may(&metadata, READ | EXECUTE))
                && real.parent().is_some_and(|directory| self.can_enter(directory))
        })
    }

    fn may(self, metadata: &Metadata, wanted: u32) -> bool {
        match self {
            // Our groups are not looked up: is anybody allowed at all? About the rest the kernel will tell.
            Self::Ourselves => metadata.mode() & 0o111 != 0,
            Self::Other { uid, gid } => {
                permits(metadata.mode(), metadata.uid() == uid, metadata.gid() == gid, wanted)
            }
        }
    }

    /// Lets the server make and remove directories of its own here, as in `/tmp`.
    pub(super) fn share(self, directory: &Path) -> io::Result<()> {
        match self {
            Self::Ourselves => Ok(()),
            Self::Other { .. } => fs::set_permissions(directory, Permissions::from_mode(0o1777)),
        }
    }

    pub(super) fn give(self, directory: &Path) -> io::Result<()> {
        match self {
            Self::Ourselves => Ok(()),
            Self::Other { uid, gid } => chown(directory, Some(uid), Some(gid)),
        }
    }

    /// Makes the command run as this user.
    pub(super) fn run(self, command: &mut Command) -> &mut Command {
        match self {
            Self::Ourselves => command,
            Self::Other { uid, gid } => command.uid(uid).gid(gid),
        }
    }
}

/// Whether files of this owner are as good as our own: nobody else can have put something into them.
pub(super) fn is_trusted_owner(metadata: &Metadata) -> io::Result<bool> {
    let ourselves = tempfile::tempfile()?.metadata()?.uid();
    Ok(metadata.uid() == ROOT || metadata.uid() == ourselves)
}

/// As the kernel does it: the first class that the user is in decides, even if a later one would allow more.
fn permits(mode: u32, is_owner: bool, is_group: bool, wanted: u32) -> bool {
    let class = match (is_owner, is_group) {
        (true, _) => 6,
        (false, true) => 3,
        (false, false) => 0,
    };
    (mode >> class) & wanted == wanted
}

/// Finds `name:password:uid:gid:…`.
fn account(passwd: &str, name: &str) -> Option<ServerUser> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        (uid != ROOT).then_some(ServerUser::Other { uid, gid })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_whole_name() {
        let passwd =
            "root:x:0:0::/root:/bin/sh\npostgres2:x:7:7::/:/bin/sh\npostgres:x:101:104:a:/b:/bin/sh\n";
        assert_eq!(account(passwd, "postgres"), Some(ServerUser::Other { uid: 101, gid: 104 }));
        assert_eq!(account(passwd, "nobody"), None);
        assert_eq!(account(passwd, "root"), None);
        assert_eq!(account("nobody:*:-2:-2::/:/usr/bin/false", "nobody"), None);
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        assert!(permits(0o700, true, false, EXECUTE));
        assert!(!permits(0o700, false, true, EXECUTE));
        assert!(permits(0o710, false, true, EXECUTE));
        assert!(!permits(0o710, false, false, EXECUTE));
        assert!(permits(0o755, false, false, READ | EXECUTE));
        assert!(!permits(0o711, false, false, READ | EXECUTE));
        assert!(!permits(0o077, true, true, EXECUTE), "the owner is not helped by what others may do");
        assert!(!permits(0o707, false, true, EXECUTE), "nor is the group");
    }

    #[test]
    fn a_closed_directory_closes_everything_below() {
        let closed = tempfile::tempdir().unwrap();
        let below = closed.path().join("below");
        fs::create_dir(&below).unwrap();
        let program = below.join("program");
        fs::write(&program, "").unwrap();
        fs::set_permissions(&below, Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(closed.path(), Permissions::from_mode(0o700)).unwrap();
        let owner = closed.path().metadata().unwrap();
        let stranger = ServerUser::Other { uid: owner.uid() + 1, gid: owner.gid() + 1 };

        assert!(!stranger.can_enter(&below));
        assert!(!stranger.can_run(&program));

        fs::set_permissions(closed.path(), Permissions::from_mode(0o711)).unwrap();
        assert!(stranger.can_enter(&below));
        assert!(stranger.can_run(&program));
        assert!(!stranger.can_run(&below), "a directory is no program");
    }
}
