//! The function notify and the command, as their own binaries, with a push service that decrypts.

use std::fs::{File, read_to_string};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;
use tokens_local::lambda::Function;
use tokens_local::push::{Fault, Settings, SimulatedPush};
use tokens_local::world::World;
use tokens_push::VapidKey;
use tokens_tests::people::{campaign, refused_before, refused_streamer, sender, subscribe, user};
use tokens_tests::{Sql as _, binary, changed, tokens, world};

const TIME_LEFT: Duration = Duration::from_mins(2);

/// A world, the push service of its people, and what delivers in it.
struct Scene {
    world: World,
    push: SimulatedPush,
    vapid: Vec<(String, String)>,
}

impl Scene {
    /// Aria, whose grant is dead, has a phone; so does Corvin, in whose campaign she plays.
    async fn new() -> Result<Self> {
        let world = world().await?;
        let push = SimulatedPush::start(Settings::default()).await?;
        let (streamer, aria) = refused_streamer(&world, "aria").await?;
        refused_before(&world, streamer).await?;
        subscribe(&world, aria, &push.subscribe("aria's phone")).await?;
        let corvin = user(&world, "Corvin").await?;
        campaign(&world, streamer, "Brumes", corvin, "ACTIVE").await?;
        subscribe(&world, corvin, &push.subscribe("corvin's phone")).await?;
        let vapid = sender(&VapidKey::generate()?);
        Ok(Self { world, push, vapid })
    }

    /// The command deactivates her, and delivers nothing.
    async fn deactivate(&self) -> Result<()> {
        let printed = tokens(&self.world.environment(), &["refresh"]).await?;
        assert!(printed.stdout.contains("deactivated"), "{printed:?}");
        assert_eq!(self.push.totals().requests, 0);
        Ok(())
    }

    /// The function has what it needs and nothing more, and its role can read no token.
    async fn function(&self, changes: &[(&str, &str)], log: Stdio) -> Result<Function> {
        let url = self.world.database_url();
        let separator = if url.contains('?') { '&' } else { '?' };
        let url = format!("{url}{separator}options[role]=token_refresh_notify");
        let environment = [("DATABASE_URL".to_owned(), url)].into_iter().chain(self.vapid.clone()).collect();
        Function::start(&binary("notify").await?, &changed(environment, changes), log).await
    }
}

#[tokio::test]
async fn the_domain_event_delivers_what_is_due() -> Result<()> {
    let scene = Scene::new().await?;
    scene.deactivate().await?;
    let function = scene.function(&[], Stdio::null()).await?;

    let event = json!({ "version": "0", "source": "twitch-token-refresh", "detail-type": "streamer deactivated",
                        "detail": { "version": 1 } });
    let report = function.invoke(event, TIME_LEFT).await?;

    let nothing = json!({ "delivered": 0, "gone": 0, "postponed": 0, "given_up": 0, "obsolete": 0, "unauthorized": 0,
                "other_key": 0 });
    let mut delivered = nothing.clone();
    delivered["delivered"] = json!(2);
    assert_eq!(report, delivered);
    let message = scene.push.messages("aria's phone")?.remove(0);
    assert_eq!(message.urgency, "high");
    assert_eq!(message.json()?["title"], "Connexion Twitch perdue");
    assert_eq!(message.json()?["data"]["url"], "/settings");
    let message = scene.push.messages("corvin's phone")?.remove(0);
    assert_eq!(message.json()?["title"], "Aria n’est plus connecté à Twitch");
    assert_eq!(function.invoke(json!({ "trigger": "timer" }), TIME_LEFT).await?, nothing);
    Ok(())
}

/// The names are as long as names may be, and as wide in bytes: all that is left out is counted.
#[tokio::test]
async fn as_many_lost_streamers_as_a_message_takes_arrive_with_the_links_that_are_set() -> Result<()> {
    let scene = Scene::new().await?;
    scene.deactivate().await?;
    scene.world.sql("WITH lost AS (
             INSERT INTO streamers (twitch_user_id, twitch_login, twitch_display_name, is_active, created_at, updated_at)
             SELECT n, n, repeat('🎲\"\\', 20) || n, false, now(), now() FROM generate_series(101, 150) n RETURNING id
         ), plays AS (
             INSERT INTO campaign_memberships (campaign_id, streamer_id, status, invited_at, created_at, updated_at)
             SELECT c.id, lost.id, 'ACTIVE', now(), now(), now() FROM lost, campaigns c WHERE c.name = 'Brumes'
         )
         INSERT INTO token_refresh.outbox (subscription_id, user_id, user_name, streamer_id, streamer_name, campaign_id,
             campaign_name, created_at, state, next_attempt_at, settled_at)
         SELECT gen_random_uuid(), c.owner_id, '', lost.id, '', c.id, c.name, now(), 'delivered', now(), now()
         FROM lost, campaigns c WHERE c.name = 'Brumes'").await?;
    let links = [
        ("NOTIFICATION_STREAMER_URL", "https://polls.example.com/me"),
        ("NOTIFICATION_CAMPAIGN_URL", "/#/campaigns/{campaign_id}"),
    ];
    let function = scene.function(&links, Stdio::null()).await?;
    assert_eq!(function.invoke(json!({ "trigger": "timer" }), TIME_LEFT).await?["delivered"], 2);

    let own = scene.push.messages("aria's phone")?.remove(0).json()?;
    assert_eq!(own["data"]["url"], "https://polls.example.com/me");
    let message = scene.push.messages("corvin's phone")?.remove(0);
    let payload = message.json()?;
    let campaign = payload["data"]["campaignId"].as_str().context("a campaign")?;
    assert_eq!(payload["data"]["url"], format!("/#/campaigns/{campaign}"));
    assert_eq!(payload["title"], "Aria et 50 autres ne sont plus connectés à Twitch");
    let body = payload["body"].as_str().context("a body")?;
    let named = (101..=150).filter(|n| body.contains(&format!("🎲\"\\{n}"))).count();
    assert!(body.ends_with(&format!(" et {} autres.", 50 - named)), "{named} in {body}");
    assert!((2_880..=3_052).contains(&message.payload.len()), "{}", message.payload.len());

    let function = scene.function(&[("NOTIFICATION_CAMPAIGN_URL", "campaigns/{id}")], Stdio::null()).await?;
    let error = function.invoke(json!({ "trigger": "timer" }), TIME_LEFT).await.unwrap_err();
    assert!(error.error_message.contains("NOTIFICATION_CAMPAIGN_URL holds a brace"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_wrong_input_timeout_or_setting_is_an_error_that_says_so() -> Result<()> {
    let scene = Scene::new().await?;
    let function = scene.function(&[], Stdio::null()).await?;
    let error = function.invoke(json!({ "trigger": "sweep" }), TIME_LEFT).await.unwrap_err();
    assert!(error.error_message.contains("give the timer's rule the input"), "{error}");
    let error = function.invoke(json!({ "trigger": "timer" }), Duration::from_secs(20)).await.unwrap_err();
    assert!(error.error_message.contains("a timeout of at least a minute"), "{error}");
    let error = scene.function(&[("VAPID_PRIVATE_KEY", "")], Stdio::null()).await?;
    let error = error.invoke(json!({ "trigger": "timer" }), TIME_LEFT).await.unwrap_err();
    assert!(error.error_message.contains("VAPID_PRIVATE_KEY is missing"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_refused_vapid_key_is_an_alarm_and_keeps_all_subscriptions() -> Result<()> {
    let scene = Scene::new().await?;
    scene.deactivate().await?;
    scene.push.fault_for_everybody(Fault::status(403));
    let log = tempfile::NamedTempFile::new()?;
    let function = scene.function(&[], Stdio::from(File::create(log.path())?)).await?;
    let report = function.invoke(json!({ "trigger": "timer" }), TIME_LEFT).await?;
    assert_eq!((&report["unauthorized"], &report["postponed"]), (&json!(2), &json!(2)));
    let log = read_to_string(log.path())?;
    assert!(log.contains("ERROR") && log.contains("push services refuse our VAPID"), "{log}");
    assert!(!log.contains("/push/"), "an endpoint is in {log}");
    let kept = scene.world.count("SELECT count(*) FROM push_subscriptions").await?;
    assert_eq!(kept, 2);
    Ok(())
}

#[tokio::test]
async fn one_device_under_another_key_is_no_alarm() -> Result<()> {
    let scene = Scene::new().await?;
    scene.deactivate().await?;
    scene.push.fault("aria's phone", Fault::status(403))?;
    let log = tempfile::NamedTempFile::new()?;
    let function = scene.function(&[], Stdio::from(File::create(log.path())?)).await?;
    let report = function.invoke(json!({ "trigger": "timer" }), TIME_LEFT).await?;
    assert_eq!(
        (&report["delivered"], &report["unauthorized"], &report["other_key"]),
        (&json!(1), &json!(0), &json!(1))
    );
    let log = read_to_string(log.path())?;
    assert!(!log.contains("ERROR") && log.contains("subscribed under another VAPID key"), "{log}");
    Ok(())
}

#[tokio::test]
async fn the_command_delivers_where_it_has_the_keys() -> Result<()> {
    let scene = Scene::new().await?;
    let environment: Vec<_> = scene.world.environment().into_iter().chain(scene.vapid.clone()).collect();

    let dry = tokens(&environment, &["refresh", "--dry-run"]).await?;
    assert_eq!((dry.code, scene.push.totals().requests), (0, 0), "{dry:?}");

    let printed = tokens(&environment, &["refresh"]).await?;
    let says = [
        "Notifications: 2 delivered, 0 postponed, 0 gone, 0 given up, 0 obsolete",
        "  ✓ to the streamer, about Aria: delivered",
        "  ✓ to the game master of Brumes, about Aria: delivered",
    ];
    for line in says {
        assert!(printed.stdout.lines().any(|printed| printed == line), "no `{line}` in\n{}", printed.stdout);
    }
    assert_eq!(scene.push.messages("aria's phone")?.len(), 1);
    let printed = tokens(&environment, &["refresh", "--json"]).await?;
    let document: serde_json::Value = serde_json::from_str(&printed.stdout)?;
    assert_eq!(document["notifications"]["delivered"], 0, "nothing is left: {document}");
    assert!(document["notifications_error"].is_null(), "{document}");
    let printed = tokens(&environment, &["notifications"]).await?;
    assert!(printed.stdout.contains("0 pending, 2 delivered"), "{}", printed.stdout);

    let printed = tokens(&changed(environment, &[("VAPID_SUBJECT", "")]), &["refresh"]).await?;
    assert_eq!(printed.code, 1);
    assert!(printed.stderr.contains("VAPID_SUBJECT is missing"), "{printed:?}");
    Ok(())
}

#[tokio::test]
async fn what_the_command_could_not_deliver_is_printed_and_in_json() -> Result<()> {
    let scene = Scene::new().await?;
    scene.deactivate().await?;
    let break_it = "ALTER TABLE token_refresh.outbox RENAME COLUMN attempt TO tried";
    sqlx::query(break_it).execute(&scene.world.pool).await?;
    let keys: Vec<_> = scene.world.environment().into_iter().chain(scene.vapid.clone()).collect();
    let printed = tokens(&keys, &["refresh", "--json"]).await?;
    let document: serde_json::Value = serde_json::from_str(&printed.stdout)?;
    assert_eq!((printed.code, &document["notifications"]), (1, &json!(null)), "{document}");
    let reason = document["notifications_error"].as_str().context("a reason")?;
    assert!(
        printed.stderr.contains(&format!("The notifications were not delivered: {reason}")),
        "{printed:?}"
    );

    // Where it is not the command's to deliver, nothing is wrong.
    let printed = tokens(&scene.world.environment(), &["refresh", "--json"]).await?;
    let document: serde_json::Value = serde_json::from_str(&printed.stdout)?;
    assert_eq!(printed.code, 0, "{printed:?}");
    assert!(document["notifications"].is_null() && document["notifications_error"].is_null(), "{document}");
    Ok(())
}
