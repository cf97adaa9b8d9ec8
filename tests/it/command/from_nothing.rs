//! From an empty database, without the existing application: migrate, connect, grant, refresh, status, revoke.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use chrono::TimeDelta;
use sqlx::{AssertSqlSafe, PgPool};
use tokens_domain::Caller;
use tokens_domain::ports::Expiry;
use tokens_local::postgres::Postgres;
use tokens_local::twitch::{Settings, SimulatedTwitch};
use tokens_local::world::{NewStreamer, World};
use tokens_store::{Channel, Connected, Database, PgStore};
use tokens_tests::{Still, binary, changed, tokens};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use uuid::Uuid;

type Environment = Vec<(String, String)>;

/// A world whose Twitch may be asked for a confirmed code every second.
async fn quick_world() -> Result<World> {
    binary("tokens").await?;
    let settings = Settings { device_interval: Duration::from_secs(1), ..Settings::default() };
    World::start(Postgres::shared().await?, settings).await
}

/// `tokens connect`, as far as its code.
struct Connecting {
    child: Child,
    user_code: String,
}

impl Connecting {
    async fn start(environment: &Environment, more: &[&str]) -> Result<Self> {
        let mut command = Command::new(binary("tokens").await?);
        command.arg("connect").args(more).env_clear().envs(environment.iter().cloned());
        command
            .current_dir(std::env::temp_dir())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("its output")?).lines();
        let mut user_code = None;
        while user_code.is_none() {
            let line = lines.next_line().await?;
            let Some(line) = line else {
                bail!("it ended before it gave a code: {:?}", child.wait_with_output().await?);
            };
            user_code =
                line.strip_prefix("and confirm the code ").map(|code| code.trim_end_matches('.').to_owned());
        }
        child.stdout = Some(lines.into_inner().into_inner());
        Ok(Self { child, user_code: user_code.unwrap_or_default() })
    }

    /// The exit code and what it printed from then on.
    async fn end(mut self) -> Result<(Option<i32>, String)> {
        let mut stdout = self.child.stdout.take().context("its output")?;
        let mut printed = String::new();
        stdout.read_to_string(&mut printed).await?;
        let output = self.child.wait_with_output().await?;
        printed.push_str(&String::from_utf8(output.stderr)?);
        Ok((output.status.code(), printed))
    }
}

async fn connect(
    twitch: &SimulatedTwitch,
    environment: &Environment,
    more: &[&str],
    user_id: &str,
    login: &str,
) -> Result<(Option<i32>, String)> {
    let connecting = Connecting::start(environment, more).await?;
    twitch.confirm_device(&connecting.user_code, user_id, login)?;
    connecting.end().await
}

#[tokio::test]
async fn an_empty_database_is_migrated_and_a_channel_connected_granted_refreshed_and_revoked() -> Result<()> {
    let world = quick_world().await?;
    let database = Postgres::shared().await?.create_empty().await?;
    let environment = changed(world.environment(), &[("DATABASE_URL", database.url())]);
    let run = async |arguments: &[&str]| -> Result<String> {
        let printed = tokens(&environment, arguments).await?;
        ensure!(printed.code == 0, "{arguments:?}: {printed:?}");
        Ok(printed.stdout)
    };
    run(&["migrate", "--create-tables"]).await?;

    let (code, printed) = connect(&world.twitch, &environment, &[], "4711", "aria").await?;
    assert_eq!(code, Some(0), "{printed}");
    assert!(printed.contains("Connected, a new streamer: aria (Twitch user 4711)"), "{printed}");
    let pool = PgPool::connect(database.url()).await?;
    let (id, is_active, scopes): (Uuid, bool, String) =
        sqlx::query_as("SELECT id, is_active, scopes::text FROM streamers WHERE twitch_user_id = '4711'")
            .fetch_one(&pool)
            .await?;
    assert_eq!((is_active, scopes.as_str()), (true, r#"["channel:manage:polls"]"#));
    let id = id.to_string();
    assert!(printed.contains(&id), "{printed}");

    // As docs/reference.md has it.
    let documented = std::fs::read_to_string(tokens_local::binaries::workspace().join("docs/reference.md"))?;
    let campaign = documented.split_once("```sql\n").and_then(|(_, rest)| rest.split_once("```"));
    let campaign = campaign.context("the statement for a campaign")?.0.replace("LOGIN", "aria");
    let campaign: Uuid = sqlx::query_scalar(AssertSqlSafe(campaign)).fetch_one(&pool).await?;
    let campaign = campaign.to_string();

    let granted = run(&["grant", &campaign, "aria"]).await?;
    assert!(granted.starts_with("aria (aria) authorizes My channel until 2"), "{granted}");
    let refreshed = run(&["refresh", &id, "--force"]).await?;
    assert!(refreshed.contains("\nSuccess: 1\n"), "{refreshed}");
    let status = run(&["status"]).await?;
    assert!(status.contains(&id) && status.contains("\n1 authorized;"), "{status}");
    let history = run(&["history", &id]).await?;
    // The grant found a token that was fresh from Twitch.
    assert!(history.contains("tokens connect") && history.contains("command"), "{history}");
    run(&["revoke", &campaign, "aria"]).await?;
    assert_eq!(run(&["status"]).await?, "No streamer has an active authorization.\n");
    Ok(())
}

/// A pair that Twitch has just given to this streamer, as `tokens connect` stores it.
fn channel(still: &Still, user_id: &str, login: &str) -> Channel {
    Channel {
        user_id: user_id.to_owned(),
        login: login.to_owned(),
        scopes: vec!["chat:read".to_owned()],
        client_id: "an application".to_owned(),
        pair: still.world.twitch.add_streamer(user_id, login),
        expiry: Some(Expiry::At(still.now() + TimeDelta::hours(4))),
        connected_at: still.now(),
    }
}

#[tokio::test]
async fn a_streamer_that_connects_again_keeps_its_row_under_its_lease_and_is_active() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let aria = world.add(NewStreamer { is_active: false, ..NewStreamer::fresh("aria") }).await?;
    let config = world.config(&[])?;
    let store = PgStore::new(Database::open(config.database).await?, config.cipher, world.clock.clone());
    let caller = Caller("tokens connect".to_owned());
    for statement in [
        "UPDATE streamers SET token_refresh_failed_at = $2 WHERE id = $1",
        "INSERT INTO token_refresh.streamers (streamer_id, fence, leased_until, failed_at, refusals, set_aside_until)
         VALUES ($1, 7, $2 + interval '3 minutes', $2, 1, $2 + interval '1 hour')",
    ] {
        sqlx::query(statement).bind(aria.0).bind(still.now()).execute(&world.pool).await?;
    }
    // The simulated Twitch knows each invented streamer under its id of the database.
    let again = channel(&still, &aria.to_string(), "aria_renamed");
    let before = world.row(aria).await?;
    assert_eq!(store.connect(&again, &caller).await?, None, "another run holds the lease");
    assert_eq!(world.row(aria).await?, before);

    still.turn(3);
    assert_eq!(store.connect(&again, &caller).await?, Some(Connected { id: aria, is_new: false }));
    let row = world.row(aria).await?;
    assert!(row.is_active);
    assert_eq!(row.token_refresh_failed_at, None);
    assert_eq!(row.token_expires_at, Some(again.connected_at + TimeDelta::hours(4)));
    assert_eq!(row.last_token_refresh_at, Some(still.now()));
    assert!(world.has_live_token(aria).await?);
    let names: (String, String, String) =
        sqlx::query_as("SELECT twitch_login, twitch_display_name, scopes::text FROM streamers WHERE id = $1")
            .bind(aria.0)
            .fetch_one(&world.pool)
            .await?;
    assert_eq!((&*names.0, &*names.1, &*names.2), ("aria_renamed", "Aria", r#"["chat:read"]"#));
    let ours: (i64, bool, i32, bool, Option<String>) = sqlx::query_as(
        "SELECT fence, leased_until IS NULL AND set_aside_until IS NULL, refusals, failed_at IS NULL, pair_user_id
         FROM token_refresh.streamers WHERE streamer_id = $1",
    )
    .bind(aria.0)
    .fetch_one(&world.pool)
    .await?;
    assert_eq!(ours, (8, true, 0, true, Some(aria.to_string())));
    let history: (String, String, Option<String>) =
        sqlx::query_as("SELECT outcome, trigger, caller FROM token_refresh.refreshes WHERE streamer_id = $1")
            .bind(aria.0)
            .fetch_one(&world.pool)
            .await?;
    assert_eq!(
        (&*history.0, &*history.1, history.2.as_deref()),
        ("refreshed", "command", Some("tokens connect"))
    );
    Ok(())
}

/// One of two that connect the same new channel at the same moment makes the row.
#[tokio::test]
async fn two_that_connect_a_channel_at_once_make_one_row() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let config = world.config(&[])?;
    let store = PgStore::new(Database::open(config.database).await?, config.cipher, world.clock.clone());
    let caller = Caller("tokens connect".to_owned());
    let channels = [channel(&still, "4711", "aria"), channel(&still, "4711", "aria")];
    let (a, b) = tokio::join!(store.connect(&channels[0], &caller), store.connect(&channels[1], &caller));
    let (a, b) = (a?.context("one")?, b?.context("the other")?);
    assert_eq!(a.id, b.id);
    assert!(a.is_new != b.is_new, "{a:?} {b:?}");
    assert!(world.has_live_token(a.id).await?);
    Ok(())
}

#[tokio::test]
async fn a_code_that_is_denied_or_not_waited_for_stores_nothing() -> Result<()> {
    let world = quick_world().await?;
    let environment = world.environment();
    let connecting = Connecting::start(&environment, &[]).await?;
    world.twitch.deny_device(&connecting.user_code)?;
    let (code, printed) = connecting.end().await?;
    assert_eq!(code, Some(1), "{printed}");
    assert!(printed.contains("nothing is stored: Twitch answered 400: invalid device code"), "{printed}");

    let connecting = Connecting::start(&environment, &[]).await?;
    let id = connecting.child.id().context("it runs")?;
    ensure!(Command::new("kill").args(["-INT", &id.to_string()]).status().await?.success());
    let (code, printed) = connecting.end().await?;
    assert_eq!(code, Some(1), "{printed}");
    assert!(printed.contains("error: interrupted; nothing is stored"), "{printed}");

    for (changes, says) in [
        (&[("TWITCH_CLIENT_ID", "another")][..], "invalid client: check TWITCH_CLIENT_ID"),
        (&[("REQUIRED_SCOPES", "polls")], "invalid scope requested"),
    ] {
        let printed = tokens(&changed(environment.clone(), changes), &["connect"]).await?;
        assert_eq!((printed.code, printed.stdout.as_str()), (1, ""), "{printed:?}");
        assert!(printed.stderr.contains(says), "{printed:?}");
    }
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM streamers").fetch_one(&world.pool).await?;
    assert_eq!(rows, 0);
    Ok(())
}
