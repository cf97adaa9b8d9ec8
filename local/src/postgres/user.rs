//! The user that runs the server. PostgreSQL refuses to run as root, so root runs it as a user without rights.

use std::io;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;

/// In order of preference. `_postgres` is what macOS calls it.
const UNPRIVILEGED: [&str; 3] = ["postgres", "_postgres", "nobody"];

/// Another user, by its ids; `None`: ourselves.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServerUser(Option<(u32, u32)>);

impl ServerUser {
    pub(super) fn choose() -> anyhow::Result<Self> {
        if our_id()? != 0 {
            return Ok(Self(None));
        }
        let user = UNPRIVILEGED.iter().find_map(|name| Some((id(&["-u", name])?, id(&["-g", name])?)));
        let user = user.context(
            "PostgreSQL refuses to run as root, and there is neither a user `postgres` nor `nobody`: run this as another \
             user, or let LOCAL_POSTGRES_URL name a server",
        )?;
        Ok(Self(Some(user)))
    }

    /// Makes the command run as this user.
    pub(super) fn run(self, command: &mut Command) -> &mut Command {
        match self.0 {
            None => command,
            Some((uid, gid)) => command.uid(uid).gid(gid),
        }
    }

    pub(super) fn can_run(self, program: &Path) -> bool {
        self.succeeds(Command::new(program).arg("--version"))
    }

    pub(super) fn can_enter(self, directory: &Path) -> bool {
        self.succeeds(Command::new("/bin/sh").args(["-c", r#"cd "$0""#]).arg(directory))
    }

    fn succeeds(self, command: &mut Command) -> bool {
        // Our own working directory may be closed to this user.
        let command = self.run(command).current_dir("/").stdin(Stdio::null());
        command.output().is_ok_and(|output| output.status.success())
    }

    pub(super) fn give(self, directory: &Path) -> io::Result<()> {
        match self.0 {
            None => Ok(()),
            Some((uid, gid)) => chown(directory, Some(uid), Some(gid)),
        }
    }
}

pub(super) fn our_id() -> anyhow::Result<u32> {
    id(&["-u"]).context("`id -u` does not say who we are")
}

fn id(arguments: &[&str]) -> Option<u32> {
    let output = Command::new("id").args(arguments).output().ok()?;
    str::from_utf8(&output.stdout).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions, write};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_program_that_the_user_cannot_execute_does_not_count() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        write(&program, "#!/bin/sh\n").unwrap();
        let user = ServerUser(None);
        assert!(!user.can_run(&program));
        set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        assert!(user.can_run(&program));
        assert!(user.can_enter(directory.path()) && !user.can_enter(&program));
        assert!(!user.can_enter(&directory.path().join("absent")));
    }
}
