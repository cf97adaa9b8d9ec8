//! The commands in the documents: what is typed there keeps secrets to itself and does what is said, once.

use std::fs::{read_dir, read_to_string};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use fancy_regex::Regex;
use sqlx::PgPool;
use tokens_local::binaries::workspace;
use tokens_local::postgres::{Postgres, Settings};
use tokens_store::{MissingTables, migrate};

/// The documents, and what they have people run.
fn documents() -> Result<Vec<(PathBuf, String)>> {
    let mut found = vec![];
    for (folder, ending) in [
        ("", "md"),
        ("docs", "md"),
        ("docs/decisions", "md"),
        ("docs/events", "md"),
        ("infra", "sql"),
        ("infra/events", "md"),
    ] {
        for file in read_dir(workspace().join(folder))? {
            let path = file?.path();
            if path.extension().is_some_and(|found| found == ending) {
                found.push((path.clone(), read_to_string(path)?));
            }
        }
    }
    Ok(found)
}

/// What would end up in a shell's history, in the list of processes or in the log of a server.
#[test]
fn no_secret_is_typed_into_a_command_line_or_into_sql() -> Result<()> {
    let secrets = "(PASSWORD|SECRET|APP_KEY|TOKEN_KEYS|PRIVATE_KEY|TOKEN)";
    let typed = [
        // SQL with a password in its text.
        r"(?i)\bpassword\s+'".to_owned(),
        // A URL with a password, except in what is pasted into a secret.
        r"^(?!\| `put ).*://[^/\s:@]+:[^@/\s]+@".to_owned(),
        // A variable with a value that does not come from elsewhere.
        format!(r#"^(?!\w+=\S*$).*\b[A-Z_]*{secrets}=(?!["']?\$|…?`|\s|$)"#),
        // Arguments of other programs.
        r#"--(user|password|secret-string) ["']?(?!file:)\S|\bcurl\b.* -u "#.to_owned(),
        r"(-H|--header) \S*(?i)(authorization|security-token)".to_owned(),
    ];
    for pattern in typed {
        let pattern = Regex::new(&pattern)?;
        for (path, text) in documents()? {
            for line in text.lines() {
                assert!(!pattern.is_match(line)?, "{}: {line}", path.display());
            }
        }
    }
    Ok(())
}

/// By default the AWS CLI gives up a function after 60 seconds, and starts it again.
#[test]
fn a_function_is_invoked_once_and_waited_for() -> Result<()> {
    let mut commands = 0;
    for (path, text) in documents()? {
        for line in text.lines().filter(|line| line.contains("aws lambda invoke ")) {
            commands += 1;
            for needed in ["AWS_MAX_ATTEMPTS=1 ", " --cli-read-timeout 0 "] {
                assert!(line.contains(needed), "{}: {line}", path.display());
            }
        }
    }
    assert!(commands > 0);
    Ok(())
}

/// `\password` sends a hash; the environment's passwords are those of a stack whose log has no statements.
#[tokio::test]
async fn the_logins_are_given_passwords_that_are_typed_and_sent_as_a_hash() -> Result<()> {
    let postgres = Postgres::own(Settings::default()).await?;
    let database = postgres.create_empty().await?;
    migrate(&database.url().parse()?, MissingTables::Create).await?;
    let pool = PgPool::connect(database.url()).await?;
    sqlx::raw_sql("ALTER ROLE postgres SET log_statement = 'all'").execute(&pool).await?;
    // Without a terminal of its own, psql reads what is typed from its input.
    let mut psql = Command::new("setsid")
        .args(["-w", "psql", "-X", database.url(), "-f"])
        .arg(workspace().join("infra/logins.sql"))
        .env("APP_PASSWORD", "")
        .env("NOTIFY_PASSWORD", "fr0m-the-environment")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    psql.stdin.take().context("an input")?.write_all(b"typ3d-password\ntyp3d-password\n")?;
    let ended = psql.wait_with_output()?;
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));

    let logins: Vec<(String, bool)> = sqlx::query_as(
        "SELECT rolname::text, rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolname LIKE 'token\\_%' AND rolcanlogin
         ORDER BY 1",
    )
    .fetch_all(&pool)
    .await?;
    assert_eq!(logins, [("token_app".to_owned(), true), ("token_notify".to_owned(), true)]);
    let log = read_to_string(postgres.server().context("a server")?.log_path())?;
    assert!(log.contains("GRANT token_refresh_notify TO token_notify"), "the log has the statements");
    assert!(!log.contains("typ3d-password"), "{log}");
    Ok(())
}
