//! What the command shows of deactivations, and how it undoes them: its own binary, on the machine's time.

use anyhow::Result;
use serde_json::Value;
use tokens_domain::StreamerId;
use tokens_local::world::{NewStreamer, World};
use tokens_tests::people::{campaign, device, only_row, outbox, refused_before, refused_streamer, user};
use tokens_tests::{Printed, tokens, world};

/// What the command needs that does not refresh.
fn bare(world: &World) -> Vec<(String, String)> {
    world.environment().into_iter().filter(|(name, _)| name == "DATABASE_URL").collect()
}

async fn run(world: &World, arguments: &[&str]) -> Result<Printed> {
    tokens(&bare(world), arguments).await
}

/// A world in which `tokens refresh` has deactivated aria, who has a phone; what it printed.
async fn deactivated() -> Result<(World, StreamerId, Printed)> {
    let world = world().await?;
    let (streamer, owner) = refused_streamer(&world, "aria").await?;
    device(&world, owner, "phone").await?;
    let master = user(&world, "Corvin").await?;
    campaign(&world, streamer, "Brumes", master, "ACTIVE").await?;
    refused_before(&world, streamer).await?;
    let printed = tokens(&world.environment(), &["refresh"]).await?;
    assert_eq!(printed.code, 1, "{printed:?}");
    assert!(!world.row(streamer).await?.is_active);
    Ok((world, streamer, printed))
}

#[tokio::test]
async fn a_deactivation_lists_the_recipients() -> Result<()> {
    let (world, _, printed) = deactivated().await?;
    let says = "(deactivated: the streamer has to reconnect; aria (streamer) is notified on 1 device; Corvin (game master of \
                Brumes) can't be notified: no device, or notifications are off)";
    assert!(printed.stdout.contains(says), "{}", printed.stdout);
    assert_eq!(printed.stderr, "", "the report says it, so the log need not");

    let printed = run(&world, &["notifications"]).await?;
    assert_eq!(printed.code, 0, "{printed:?}");
    assert!(printed.stdout.contains("aria (streamer)"), "{}", printed.stdout);
    assert!(
        printed.stdout.contains("1 pending, 0 delivered, 0 gone, 0 given up, 0 obsolete"),
        "{}",
        printed.stdout
    );
    let document: Value = serde_json::from_str(&run(&world, &["notifications", "--json"]).await?.stdout)?;
    assert_eq!(document["counts"]["pending"], 1);
    assert_eq!(document["notifications"][0]["state"], "pending");
    assert_eq!(document["notifications"][0]["attempts"], 0);
    assert!(!printed.stdout.contains("push.example.com"));
    Ok(())
}

#[tokio::test]
async fn an_empty_outbox_says_so() -> Result<()> {
    let world = world().await?;
    let printed = run(&world, &["notifications", "--limit", "3"]).await?;
    assert!(printed.stdout.starts_with("No notification is on record"), "{printed:?}");
    assert_eq!(run(&world, &["notifications", "--limit", "0"]).await?.code, 2);
    Ok(())
}

#[tokio::test]
async fn one_streamer_is_reactivated_by_its_id() -> Result<()> {
    let (world, streamer, _) = deactivated().await?;
    let id = streamer.to_string();

    let dry = run(&world, &["reactivate", &id, "--dry-run"]).await?;
    assert!(dry.stdout.starts_with("Dry run, nothing is written. Would be active again: 1"), "{dry:?}");
    assert!(!world.row(streamer).await?.is_active);

    let printed = run(&world, &["reactivate", &id]).await?;
    assert_eq!(printed.code, 0, "{printed:?}");
    let line = format!("  - Aria (aria), {id}: deactivated at ");
    assert!(printed.stdout.contains(&line), "{}", printed.stdout);
    assert!(printed.stdout.contains("reconnect with Twitch"), "{}", printed.stdout);
    let row = world.row(streamer).await?;
    assert_eq!((row.is_active, row.token_refresh_failed_at), (true, None));
    let remembered: (bool, bool, i32) = sqlx::query_as(
        "SELECT failed_at IS NULL, failure_kind IS NULL, refusals FROM token_refresh.streamers WHERE streamer_id = $1",
    )
    .bind(streamer.0)
    .fetch_one(&world.pool)
    .await?;
    assert_eq!(remembered, (true, true, 0));
    let notification = only_row(&world).await?;
    assert_eq!(
        (notification.state.as_str(), notification.last_error.as_deref()),
        ("obsolete", Some("the streamer was reactivated"))
    );

    let again = run(&world, &["reactivate", &id]).await?;
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains("Aria (aria) is active already"), "{again:?}");
    // A dead grant is a first refusal again, and no more.
    let printed = tokens(&world.environment(), &["refresh"]).await?;
    assert!(printed.stdout.contains("(refusal recorded, retry at "), "{}", printed.stdout);
    Ok(())
}

#[tokio::test]
async fn all_streamers_of_the_last_hours_are_reactivated() -> Result<()> {
    let (world, aria, _) = deactivated().await?;
    let others = ["before", "back", "elsewhere"]
        .map(|login| NewStreamer { is_active: login == "back", ..NewStreamer::due(login) });
    let others = world.add_all(others.into()).await?;
    // One longer ago, one that has reconnected; the third was deactivated by another program.
    for (id, ago) in [(others[0], 3), (others[1], 1)] {
        sqlx::query("INSERT INTO token_refresh.deactivations VALUES ($1, $2)")
            .bind(id.0)
            .bind(world.clock.now() - chrono::TimeDelta::hours(ago))
            .execute(&world.pool)
            .await?;
    }

    let printed = run(&world, &["reactivate", "--since", "2h", "--json"]).await?;
    let document: Value = serde_json::from_str(&printed.stdout)?;
    let streamers = document["streamers"].as_array().unwrap();
    assert_eq!(streamers.len(), 1, "{document}");
    assert_eq!(streamers[0]["login"], "aria");
    assert!(document["left_to_do"].as_str().unwrap().contains("reconnect"), "{document}");
    assert!(world.row(aria).await?.is_active);
    assert!(!world.row(others[0]).await?.is_active && !world.row(others[2]).await?.is_active);
    assert_eq!(outbox(&world).await?[0].state, "obsolete");

    let printed = run(&world, &["reactivate", "--since", "2h"]).await?;
    assert_eq!(printed.code, 0);
    assert!(printed.stdout.contains("No streamer that was deactivated within this time"), "{printed:?}");
    let printed = run(&world, &["reactivate", "--since", "1d"]).await?;
    assert!(printed.stdout.contains("Before (before), "), "{printed:?}");
    let id = others[2].to_string();
    let printed = run(&world, &["reactivate", &id]).await?;
    assert!(
        printed.stdout.contains(&format!("Elsewhere (elsewhere), {id}: not deactivated by us")),
        "{printed:?}"
    );
    Ok(())
}

#[tokio::test]
async fn all_that_are_inactive_are_listed_and_reactivated() -> Result<()> {
    let (world, aria, _) = deactivated().await?;
    let elsewhere = NewStreamer { is_active: false, ..NewStreamer::due("elsewhere") };
    let elsewhere = world.add(elsewhere).await?;
    world.add(NewStreamer::due("active")).await?;
    let listed = format!(
        "2 streamer(s)\n\n  - Elsewhere (elsewhere), {elsewhere}: not deactivated by us in the last 30 days\n  \
         - Aria (aria), {aria}: deactivated at "
    );

    let dry = run(&world, &["reactivate", "--all", "--dry-run"]).await?;
    assert!(
        dry.stdout.starts_with(&format!("Dry run, nothing is written. Would be active again: {listed}")),
        "{dry:?}"
    );
    assert!(!world.row(elsewhere).await?.is_active);

    let printed = run(&world, &["reactivate", "--all"]).await?;
    assert_eq!(printed.code, 0, "{printed:?}");
    assert!(printed.stdout.starts_with(&format!("Inactive: {listed}")), "{printed:?}");
    assert!(printed.stdout.contains(&format!("\nActive again: {listed}")), "{printed:?}");
    assert!(world.row(aria).await?.is_active && world.row(elsewhere).await?.is_active);

    let printed = run(&world, &["reactivate", "--all"]).await?;
    assert_eq!((printed.code, printed.stdout.trim()), (0, "No streamer is inactive."));
    Ok(())
}

#[tokio::test]
async fn wrong_usage_is_explained() -> Result<()> {
    let world = world().await?;
    for (arguments, code, says) in [
        (&["reactivate"][..], 2, "<STREAMER_ID|--since <TIME>|--all>"),
        (&["reactivate", "aria"], 2, "invalid value 'aria'"),
        (&["reactivate", "--since", "yesterday"], 2, "such as 90m, 2h or 7d"),
        (&["reactivate", "--since", "31d"], 2, "30d"),
        (&["reactivate", "5b0bc1a5-6d2a-4f0e-9d0a-0a1b2c3d4e5f", "--since", "2h"], 2, "cannot be used with"),
        (
            &["reactivate", "5b0bc1a5-6d2a-4f0e-9d0a-0a1b2c3d4e5f"],
            1,
            "`tokens reactivate --since 30d --dry-run`",
        ),
    ] {
        let printed = run(&world, arguments).await?;
        assert_eq!(printed.code, code, "{arguments:?}: {printed:?}");
        assert!(printed.stderr.contains(says), "`{says}` is not in {}", printed.stderr);
    }
    Ok(())
}
