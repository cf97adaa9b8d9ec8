//! A misconfiguration of ours that has been fixed makes its rows due at once; until then they are counted as waiting.

use anyhow::Result;
use tokens_domain::policy::NotDue;
use tokens_domain::refresh::Cycle;
use tokens_domain::report::{Alarm, Outcome, Skip};
use tokens_domain::schedule::Trigger;
use tokens_local::twitch::{Endpoint, Fault, Settings, SimulatedTwitch};
use tokens_local::world::NewStreamer;
use tokens_tests::cycles::{forced, planned, sweep};
use tokens_tests::people::refused_for_good;
use tokens_tests::{Ran, Still, run};

const KEYS: (&str, &str) = ("TOKEN_KEYS", "2026:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=");
const WRONG_KEYS: (&str, &str) = ("TOKEN_KEYS", "2026:OTg3NjU0MzIxMGFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=");
const AES_GCM: (&str, &str) = ("TOKEN_CIPHER", "aes-gcm");

/// Success, failed, skipped, and of these waiting.
fn counts(ran: &Ran) -> [u64; 4] {
    let report = &ran.report;
    assert_eq!(report.stopped, None);
    [report.success, report.failed, report.skipped, report.waiting]
}

#[tokio::test]
async fn a_fixed_configuration_makes_its_rows_due_at_once() -> Result<()> {
    let settings = Settings::default();
    let other = SimulatedTwitch::start(settings.clone()).await?;
    let other_application = [
        ("TWITCH_ID_URL", other.base_url()),
        ("TWITCH_CLIENT_ID", settings.client_id.as_str()),
        ("TWITCH_CLIENT_SECRET", settings.client_secret.as_str()),
    ];
    for (wrong, right, trigger) in [
        (&[("APP_KEY", "another-app-key-than-the-rows-have")][..], &[][..], Trigger::Command),
        (&[], &[KEYS, AES_GCM], Trigger::Retry),
        (&[WRONG_KEYS, AES_GCM], &[KEYS, AES_GCM], Trigger::Sweep),
        (&other_application, &[], Trigger::Planned),
    ] {
        let still = Still::new().await?;
        let world = &still.world;
        world.add_all(vec![NewStreamer::due("aria"), NewStreamer::due("bastien")]).await?;
        let (wrong, right) = (world.service(wrong).await?, world.service(right).await?);
        assert_eq!(counts(&run(&right, &forced()).await), [2, 0, 0, 0]);
        still.turn(180);
        assert_eq!(counts(&run(&wrong, &planned()).await), [0, 2, 0, 0]);
        still.turn(5);
        assert_eq!(counts(&run(&wrong, &planned()).await), [0, 0, 2, 2], "not tried before its time");
        assert_eq!(counts(&run(&right, &Cycle::new(trigger)).await), [2, 0, 0, 0], "{trigger:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_row_that_stays_unreadable_keeps_its_time_and_so_does_an_outage() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let aria = world.add(NewStreamer::due("aria")).await?;
    world.add_all(vec![NewStreamer::due("bastien"), NewStreamer::due("chloe")]).await?;
    world.twitch.fault("chloe", Fault::ServerError.on(Endpoint::Token))?;
    let set = "UPDATE streamers SET access_token_encrypted = $1, refresh_token_encrypted = $1 WHERE id = $2";
    let other_key = "v1.other.AAAAAAAAAAAAAAAA.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    sqlx::query(set).bind(other_key).bind(aria.0).execute(&world.pool).await?;
    let wrong = world.service(&[("APP_KEY", "another-app-key-than-the-rows-have")]).await?;
    let right = world.service(&[]).await?;
    assert_eq!(counts(&run(&wrong, &planned()).await), [0, 3, 0, 0]);
    let failed_at = world.row(aria).await?.token_refresh_failed_at;

    still.turn(5);
    let ran = run(&right, &planned()).await;
    assert_eq!(counts(&ran), [1, 1, 1, 1], "Twitch was not asked about Chloe before");
    assert!(matches!(ran.outcome("aria"), Outcome::Skipped(Skip::NotDue(NotDue::RetryAt(_)))));
    assert_eq!(world.row(aria).await?.token_refresh_failed_at, failed_at);
    let asked = world.twitch.totals().token_requests;
    still.turn(5);
    for cycle in [planned(), Cycle::new(Trigger::Retry)] {
        assert_eq!(counts(&run(&right, &cycle).await), [0, 0, 3, 2]);
    }
    run(&right, &sweep()).await;
    assert_eq!(world.twitch.totals().token_requests, asked, "an outage waits for its retry");

    still.turn(5);
    let ran = run(&right, &planned()).await;
    assert!(
        matches!(ran.outcome("aria"), Outcome::Failed { alarm: Some(Alarm::Unreadable), .. }),
        "{:?}",
        ran.report
    );
    Ok(())
}

/// What Twitch refused another application says nothing of this one's grant.
#[tokio::test]
async fn refusals_of_another_application_do_not_count_toward_a_deactivation() -> Result<()> {
    let settings = Settings::default();
    for (application, deactivated) in [("another application", 0), (settings.client_id.as_str(), 1)] {
        let still = Still::with(settings.clone()).await?;
        let world = &still.world;
        let aria = world.add(NewStreamer::due("aria")).await?;
        refused_for_good(world, aria).await?;
        sqlx::query(
            "INSERT INTO token_refresh.streamers (streamer_id, fence, failed_at, failure_kind, refusals, failed_client_id)
             SELECT id, 1, token_refresh_failed_at, 'refusal', 1, $1 FROM streamers",
        )
        .bind(application)
        .execute(&world.pool)
        .await?;
        let ran = run(&world.service(&[]).await?, &planned()).await;
        assert_eq!((ran.report.failed, ran.report.deactivated), (1, deactivated), "{application}");
    }
    Ok(())
}
