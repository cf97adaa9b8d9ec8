//! Where the server's files may lie.

use std::fs;
use std::path::PathBuf;

use super::user::ServerUser;
use crate::binaries::workspace;
use crate::env;

/// The directories that the server's user can work in, best first: `target/local`, so that nothing lies outside the
/// workspace, otherwise (in a home that is closed, or in one whose path is too long) one for temporary files.
pub(super) fn usable(user: ServerUser) -> Vec<PathBuf> {
    let ours = target_directory(env::var("CARGO_TARGET_DIR").as_deref()).join("local");
    // Where this fails the directory is not usable, and the next one is taken.
    let prepared = fs::create_dir_all(&ours).and_then(|()| user.share(&ours));
    let ours = prepared.is_ok().then_some(ours);
    // Beside the configured directory for temporary files `/tmp`: the configured one may be root's alone.
    ours.into_iter()
        .chain([std::env::temp_dir(), PathBuf::from("/tmp")])
        .filter(|place| user.can_enter(place))
        .collect()
}

fn target_directory(configured: Option<&str>) -> PathBuf {
    workspace().join(configured.unwrap_or("target"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_target_directory_is_the_workspaces_unless_configured() {
        assert!(target_directory(None).ends_with("target"));
        assert_eq!(target_directory(Some("/elsewhere")), Path::new("/elsewhere"));
        assert_eq!(target_directory(Some("out")).parent(), target_directory(None).parent());
    }
}
