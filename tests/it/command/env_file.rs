//! A `.env` in the directory where the command is called, and one that is named.

use std::fs::write;

use anyhow::Result;
use tokens_local::world::NewStreamer;
use tokens_tests::aws::{Service, SimulatedAws};
use tokens_tests::{changed, tokens_in, world};

#[tokio::test]
async fn a_file_in_the_directory_sends_no_secret_elsewhere() -> Result<()> {
    let world = world().await?;
    world.add(NewStreamer::due("bastien")).await?;
    let directory = tempfile::tempdir()?;
    let evil = "https://id.twitch.tv.example.com";
    write(directory.path().join(".env"), format!("TWITCH_ID_URL={evil}\nTWITCH_ID_URL_ALLOW=on\n"))?;
    let environment = changed(world.environment(), &[("TWITCH_ID_URL", "")]);
    for arguments in [&["refresh"][..], &["refresh", "--env-file", ".env"], &["doctor"]] {
        let printed = tokens_in(directory.path(), &environment, arguments).await?;
        assert_eq!(printed.code, 1, "{printed:?}");
        let said = printed.stdout + &printed.stderr;
        assert!(said.contains("TWITCH_ID_URL leads neither to id.twitch.tv nor to this machine"), "{said}");
    }
    // The SDK's endpoints, credentials and proxies are the environment's alone.
    let aws = SimulatedAws::start().await?;
    let nowhere = "http://127.0.0.1:9";
    let names =
        ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SECRETS_MANAGER", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
    let mut lines: Vec<_> = names.iter().map(|name| format!("{name}={nowhere}")).collect();
    lines.push("AWS_PROFILE=another\n".to_owned());
    write(directory.path().join(".env"), lines.join("\n"))?;
    aws.put_secret("polls/database", serde_json::json!({ "DATABASE_URL": world.database_url() }).to_string());
    let kept = [("DATABASE_URL", ""), ("DATABASE_SECRET_ID", "polls/database")];
    let environment = [changed(world.environment(), &kept), aws.environment()].concat();
    let printed = tokens_in(directory.path(), &environment, &["status"]).await?;
    assert_eq!(printed.code, 0, "{printed:?}");
    assert_eq!(aws.requests(Service::Secrets), 1);
    Ok(())
}

#[tokio::test]
async fn a_file_that_is_named_is_read_in_place_of_the_directorys() -> Result<()> {
    let world = world().await?;
    world.add(NewStreamer::due("bastien")).await?;
    let directory = tempfile::tempdir()?;
    write(directory.path().join(".env"), "DATABASE_URL=nonsense\n")?;
    write(directory.path().join("ours.env"), format!("DATABASE_URL='{}'\n", world.database_url()))?;
    for arguments in [["--env-file", "ours.env", "status"], ["status", "--env-file", "ours.env"]] {
        let printed = tokens_in(directory.path(), &[], &arguments).await?;
        assert!(printed.code == 0 && printed.stdout.contains("Bastien (bastien)"), "{printed:?}");
    }
    let printed =
        tokens_in(directory.path(), &world.environment(), &["status", "--env-file", "gone.env"]).await?;
    assert_eq!(printed.code, 1);
    assert!(printed.stderr.contains("gone.env does not exist"), "{printed:?}");
    Ok(())
}
