//! Commands that show, and dry runs, under logins that may only read: none of them writes.

use anyhow::{Result, ensure};
use serde_json::Value;
use sqlx::AssertSqlSafe;
use tokens_local::postgres::{Postgres, Settings as ServerSettings};
use tokens_local::twitch::Settings;
use tokens_local::world::{NewStreamer, World};
use tokens_tests::people::{device, refused_streamer};
use tokens_tests::{binary, changed, tokens};

/// The second is what a standby is like.
const LOGINS: &str = "
    CREATE ROLE viewer LOGIN; CREATE ROLE standby LOGIN;
    ALTER ROLE standby SET default_transaction_read_only = on;
    GRANT USAGE ON SCHEMA token_refresh TO viewer, standby;
    GRANT SELECT ON ALL TABLES IN SCHEMA public, token_refresh TO viewer;
    GRANT ALL ON ALL TABLES IN SCHEMA public, token_refresh TO standby";

/// All that is stored, of every table.
async fn everything(world: &World) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for table in [
        "public.streamers",
        "public.campaign_memberships",
        "token_refresh.streamers",
        "token_refresh.refreshes",
        "token_refresh.deactivations",
        "token_refresh.sessions",
        "token_refresh.outbox",
    ] {
        let rows = format!("SELECT row::text FROM {table} AS row ORDER BY 1");
        all.extend(sqlx::query_scalar::<_, String>(AssertSqlSafe(rows)).fetch_all(&world.pool).await?);
    }
    Ok(all)
}

#[tokio::test]
async fn commands_that_show_write_nothing() -> Result<()> {
    binary("tokens").await?;
    let postgres = Postgres::own(ServerSettings::default()).await?;
    let world = World::start(&postgres, Settings::default()).await?;
    sqlx::raw_sql(LOGINS).execute(&world.pool).await?;
    let aria = world.add(NewStreamer::due("aria")).await?.to_string();
    let inactive = NewStreamer { is_active: false, ..NewStreamer::due("inactive") };
    let inactive = world.add(inactive).await?.to_string();
    let (_, user) = refused_streamer(&world, "refused").await?;
    device(&world, user, "phone").await?;
    ensure!(tokens(&world.environment(), &["refresh"]).await?.code == 1, "one is refused");
    let before = everything(&world).await?;

    for login in ["viewer", "standby"] {
        let url = world.database_url().replace("postgres@", &format!("{login}@"));
        let environment = changed(world.environment(), &[("DATABASE_URL", &url)]);
        for (command, shows) in [
            (&["status"][..], "Aria (aria)"),
            (&["history", &aria], "refreshed"),
            // No run has remembered the session.
            (&["coverage"], ": 2, "),
            (&["coverage", "--json"], "\"sessions\": 2"),
            (&["notifications"], "No notification is on record"),
            (&["refresh", "--dry-run"], "nothing is written"),
            (&["refresh", "--dry-run", "--force"], "Would refresh: 2"),
            (&["refresh", "--dry-run", "--force", &aria], "Would refresh: 1"),
            (&["reactivate", "--dry-run", "--all"], "Inactive (inactive)"),
            (&["reactivate", "--dry-run", "--since", "1d"], "No streamer"),
            (&["reactivate", "--dry-run", &inactive], "Inactive (inactive)"),
            (&["rekey", "--dry-run"], "nothing is written"),
        ] {
            let printed = tokens(&environment, command).await?;
            assert_eq!(printed.code, 0, "{login}: {command:?}: {printed:?}");
            assert!(printed.stdout.contains(shows), "{login}: {command:?}: {printed:?}");
            assert!(!printed.stderr.contains("denied"), "{login}: {command:?}: {printed:?}");
        }
        let printed = tokens(&environment, &["doctor", "--json"]).await?;
        let document: Value = serde_json::from_str(&printed.stdout)?;
        let line = |name: &str| {
            let checks = document["checks"].as_array().into_iter().flatten();
            let line = checks.into_iter().find(|check| check["name"] == name);
            line.map(|line| format!("{} {}", line["state"], line["text"])).unwrap_or_default()
        };
        assert_eq!(printed.code, 1, "nothing can be refreshed with it: {document}");
        let not_tried = format!("what a cycle does was not tried on a row: {login} may not write");
        assert!(line("rows").starts_with("\"warning\"") && line("rows").contains(&not_tried), "{document}");
        let (fault, says) = if login == "viewer" {
            ("rights", "viewer lacks rights: as the tables' owner, GRANT INSERT ON")
        } else {
            ("database", "takes no writes, so nothing can be refreshed")
        };
        assert!(line(fault).starts_with("\"fault\"") && line(fault).contains(says), "{document}");
        for shown in ["tokens", "cycles", "outbox"] {
            assert!(!line(shown).contains("denied") && !line(shown).is_empty(), "{document}");
        }
    }
    assert_eq!(everything(&world).await?, before);
    Ok(())
}

#[tokio::test]
async fn a_command_that_writes_names_the_missing_right() -> Result<()> {
    binary("tokens").await?;
    let postgres = Postgres::own(ServerSettings::default()).await?;
    let world = World::start(&postgres, Settings::default()).await?;
    sqlx::raw_sql(LOGINS).execute(&world.pool).await?;
    let aria = NewStreamer { is_active: false, ..NewStreamer::due("aria") };
    world.add(aria).await?;
    let url = world.database_url().replace("postgres@", "viewer@");
    let environment = changed(world.environment(), &[("DATABASE_URL", &url)]);
    let printed = tokens(&environment, &["reactivate", "--all"]).await?;
    assert_eq!(printed.code, 1, "{printed:?}");
    assert!(printed.stderr.contains("permission denied for table streamers"), "{printed:?}");
    Ok(())
}
