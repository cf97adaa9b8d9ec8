//! `tokens grant` and `tokens revoke`.

use anyhow::{Context as _, Result, ensure};
use chrono::TimeDelta;
use serde_json::Value;
use tokens_local::world::NewStreamer;
use tokens_tests::requests::{authorization, membership};
use tokens_tests::{tokens, world};
use uuid::Uuid;

#[tokio::test]
async fn an_authorization_is_granted_for_the_given_time_and_revoked() -> Result<()> {
    let world = world().await?;
    let aria = world.add(NewStreamer { authorized_for: None, ..NewStreamer::fresh("aria") }).await?;
    let key = membership(&world, aria).await?;
    let environment = world.environment();
    let (campaign, streamer) = (key.campaign.to_string(), aria.to_string());
    let grant =
        async |more: &[&str]| tokens(&environment, &[&["grant", &campaign, &streamer], more].concat()).await;

    for (more, hours) in [(&[][..], 12), (&["--hours", "3"], 3), (&["--hours", "720"], 720)] {
        let printed = grant(more).await?;
        ensure!(printed.code == 0, "{printed:?}");
        assert!(printed.stdout.starts_with("Aria (aria) authorizes Campaign of aria until 2"), "{printed:?}");
        let (granted_at, ends_at) = authorization(&world, key).await?;
        assert_eq!(ends_at.zip(granted_at).map(|(end, begin)| end - begin), Some(TimeDelta::hours(hours)));
    }
    // A second click within moments is answered from the first refresh.
    assert!(world.twitch.totals().refreshes >= 1);
    assert!(world.row(aria).await?.last_token_refresh_at.is_some());
    let caller: Option<String> = sqlx::query_scalar(
        "SELECT caller FROM token_refresh.refreshes WHERE trigger = 'grant' ORDER BY fence LIMIT 1",
    )
    .fetch_one(&world.pool)
    .await?;
    assert_eq!(caller.as_deref(), Some("tokens grant"));

    let printed = grant(&["--forever"]).await?;
    assert!(
        printed.stdout.starts_with("Aria (aria) authorizes Campaign of aria without an end.\n"),
        "{printed:?}"
    );
    let printed = tokens(&environment, &["status"]).await?;
    assert!(printed.stdout.contains("  no end  "), "{printed:?}");
    let printed = tokens(&environment, &["status", "--json"]).await?;
    let document: Value = serde_json::from_str(&printed.stdout)?;
    assert!(document[0]["authorized_until"].as_str().context("a time")?.starts_with("9999-12-31T23:59:59"));

    for _ in 0..2 {
        let printed = tokens(&environment, &["revoke", &campaign, &streamer]).await?;
        ensure!(printed.code == 0, "{printed:?}");
        assert_eq!(printed.stdout, "Revoked: the campaign has no authorization of this streamer now.\n");
    }
    let printed = tokens(&environment, &["status"]).await?;
    assert_eq!(printed.stdout, "No streamer has an active authorization.\n");
    Ok(())
}

#[tokio::test]
async fn what_is_not_granted_has_a_reason_and_what_to_do() -> Result<()> {
    let world = world().await?;
    let unauthorized = |login| NewStreamer { authorized_for: None, ..NewStreamer::fresh(login) };
    let gone = world.add(unauthorized("gone")).await?;
    let inactive = world.add(NewStreamer { is_active: false, ..unauthorized("inactive") }).await?;
    let pending = world.add(unauthorized("pending")).await?;
    world.twitch.disconnect("gone")?;
    sqlx::query("UPDATE campaign_memberships SET status = 'PENDING' WHERE streamer_id = $1")
        .bind(pending.0)
        .execute(&world.pool)
        .await?;
    let environment = world.environment();
    let campaign = membership(&world, gone).await?.campaign.to_string();
    let others = [membership(&world, inactive).await?, membership(&world, pending).await?];
    let [of_inactive, of_pending] = others.map(|key| key.campaign.to_string());
    let unknown = Uuid::new_v4().to_string();
    for (arguments, says) in [
        (["grant", &campaign, &gone.to_string()], "Invalid refresh token: have the streamer reconnect"),
        (["grant", &of_inactive, &inactive.to_string()], "is deactivated: have the streamer reconnect"),
        (
            ["grant", &of_pending, &pending.to_string()],
            "has not accepted the campaign's invitation yet: have",
        ),
        (["grant", &unknown, &gone.to_string()], "no campaign has this id: the table `campaigns`"),
        (["grant", &campaign, &unknown], "no streamer has this id: the table `streamers`"),
        (["grant", &campaign, &pending.to_string()], "no member of the campaign: invite"),
        (["revoke", &unknown, &gone.to_string()], "nothing was revoked: no campaign has this id"),
    ] {
        let printed = tokens(&environment, &arguments).await?;
        assert_eq!((printed.code, printed.stdout.as_str()), (1, ""), "{arguments:?}: {printed:?}");
        assert!(printed.stderr.contains(says), "{arguments:?}: {printed:?}");
    }
    for (more, says) in [
        (&["--hours", "0"][..], "1..=720"),
        (&["--hours", "721"], "1..=720"),
        (&["--hours", "3", "--forever"], "cannot be used with"),
    ] {
        let printed = tokens(&[], &[&["grant", &campaign, &gone.to_string()], more].concat()).await?;
        assert_eq!(printed.code, 2, "{printed:?}");
        assert!(printed.stderr.contains(says), "{printed:?}");
    }
    Ok(())
}
