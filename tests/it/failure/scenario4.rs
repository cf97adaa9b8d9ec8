//! The brief's scenario 4, literally: a token is made unreadable by the brief's own SQL, a first refresh fails, a second
//! deactivates, and the streamer and the game masters are notified. The program's own binaries, on the machine's time; what
//! passes in between is turned in the database.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use tokens_cipher::Column;
use tokens_domain::StreamerId;
use tokens_domain::schedule::retry_minute;
use tokens_local::lambda::Function;
use tokens_local::postgres::{Postgres, Settings as ServerSettings};
use tokens_local::push::{Received, Settings, SimulatedPush};
use tokens_local::twitch::Settings as TwitchSettings;
use tokens_local::world::{NewStreamer, World};
use tokens_push::VapidKey;
use tokens_tests::aws::{Event, SimulatedAws};
use tokens_tests::people::{campaign, outbox, sender, subscribe, user};
use tokens_tests::{Printed, Sql as _, binary, tokens, world};
use uuid::Uuid;

const TIME_LEFT: Duration = Duration::from_mins(5);

const DEVICES: [&str; 4] = ["aria's phone", "aria's laptop", "corvin's phone", "nadia's tablet"];

/// The brief's own SQL.
const INVALIDATE: &str =
    "UPDATE streamers SET access_token_encrypted = 'invalid' WHERE twitch_login = 'aria'";
const REACTIVATE: &str =
    "UPDATE streamers SET is_active = true, token_refresh_failed_at = NULL WHERE twitch_login = 'aria'";

/// The brief's "after having waited": the application's column, and what we remember of it.
const OTHERS_WAIT: &str =
    "UPDATE streamers SET token_refresh_failed_at = token_refresh_failed_at - interval '16 minutes'";
const WE_REMEMBER: &str = "UPDATE token_refresh.streamers SET failed_at = failed_at - interval '16 minutes'";

/// Aria has two devices. She plays in the campaigns of Corvin and of Nadia, who have one each.
struct Scene {
    world: World,
    push: SimulatedPush,
    vapid: Vec<(String, String)>,
    aria: StreamerId,
    campaigns: [Uuid; 2],
}

impl Scene {
    async fn new(world: World, aria: NewStreamer) -> Result<Self> {
        let key = VapidKey::generate()?;
        let push = SimulatedPush::start(Settings::default()).await?;
        let aria =
            NewStreamer { campaign: "Les Brumes".to_owned(), game_master: "Corvin".to_owned(), ..aria };
        let aria = world.add(aria).await?;
        let (brumes, corvin): (Uuid, Uuid) =
            sqlx::query_as("SELECT id, owner_id FROM campaigns").fetch_one(&world.pool).await?;
        let nadia = user(&world, "Nadia").await?;
        let tides = campaign(&world, aria, "Marées", nadia, "ACTIVE").await?;
        let own = user(&world, "Aria").await?;
        sqlx::query("UPDATE streamers SET user_id = $1").bind(own).execute(&world.pool).await?;
        for (owner, device) in [own, own, corvin, nadia].into_iter().zip(DEVICES) {
            subscribe(&world, owner, &push.subscribe_to(device, &key.public())).await?;
        }
        let vapid = sender(&key);
        Ok(Self { world, push, vapid, aria, campaigns: [brumes, tides] })
    }

    async fn sql(&self, sql: &'static str) -> Result<()> {
        let done = sqlx::query(sql).execute(&self.world.pool).await?;
        assert_eq!(done.rows_affected(), 1, "{sql}");
        Ok(())
    }

    /// The command, where it delivers by itself.
    async fn tokens(&self, arguments: &[&str]) -> Result<Printed> {
        let environment: Vec<_> = self.world.environment().into_iter().chain(self.vapid.clone()).collect();
        tokens(&environment, arguments).await
    }

    /// `is_active`, `token_refresh_failed_at`: what the brief looks at.
    async fn state(&self) -> Result<(bool, Option<DateTime<Utc>>)> {
        let row = self.world.row(self.aria).await?;
        Ok((row.is_active, row.token_refresh_failed_at))
    }

    async fn no_one_is_notified(&self) -> Result<()> {
        assert_eq!(self.push.totals().requests, 0);
        assert_eq!(outbox(&self.world).await?, []);
        Ok(())
    }

    /// The first trigger: the refresh fails, and its time is written.
    async fn first_failure(&self) -> Result<()> {
        self.sql(INVALIDATE).await?;
        let before = self.world.clock.now();
        let printed = self.tokens(&["refresh", "--force"]).await?;
        let after = self.world.clock.now();
        assert_eq!(printed.code, 1, "{printed:?}");
        let says = "  ✗ Aria (aria): access token: the stored text is in no known format (refusal recorded, retry at ";
        assert!(printed.stdout.contains(says), "{}", printed.stdout);
        assert!(!printed.stdout.contains("Notifications:"), "{}", printed.stdout);
        let (is_active, failed_at) = self.state().await?;
        assert!(is_active);
        let failed_at = failed_at.context("the failure has no time")?;
        assert!(before <= failed_at && failed_at <= after, "{before} {failed_at} {after}");
        self.no_one_is_notified().await
    }

    /// Each device has it once, in the form that the service worker reads.
    fn all_are_notified(&self, locale: &str) -> Result<()> {
        assert_eq!(self.push.totals().requests, DEVICES.len());
        let master = |campaign: usize| {
            let id = self.campaigns[campaign];
            (format!("/mj/campaigns/{id}"), json!(id))
        };
        let own = || ("/settings".to_owned(), Value::Null);
        let mut topics = Vec::new();
        for (device, (url, campaign)) in DEVICES.into_iter().zip([own(), own(), master(0), master(1)]) {
            let messages = self.push.messages(device)?;
            let [message] = messages.as_slice() else { panic!("{device} got {messages:?}") };
            let payload = message.json()?;
            assert_eq!(payload["type"], "token:refresh_failed");
            let data = &payload["data"];
            assert_eq!((&data["url"], &data["streamerId"]), (&json!(url), &json!(self.aria)), "{device}");
            assert_eq!(data["campaignId"], campaign, "{device}");
            let (title, body) = match (campaign.is_null(), locale) {
                (true, "fr") => ("Connexion Twitch perdue", "à la chaîne Aria"),
                (false, "fr") => ("Aria n’est plus connecté à Twitch", "sur la chaîne Aria"),
                (true, _) => ("Twitch connection lost", "the channel Aria"),
                (false, _) => ("Aria is no longer connected to Twitch", "the channel Aria"),
            };
            assert_eq!(payload["title"], title, "{device}");
            assert!(payload["body"].as_str().unwrap_or_default().contains(body), "{payload}");
            assert_eq!(payload["actions"].as_array().map(Vec::len), Some(1), "{payload}");
            assert_eq!(message.urgency, "high");
            kept_for_a_day(message, payload["timestamp"].as_str().context("no timestamp")?.parse()?);
            topics.push(message.topic.clone().context("no topic")?);
        }
        assert_eq!(topics[0], topics[1], "the same notice on both of her devices");
        topics.dedup();
        assert_eq!(topics.len(), 3, "one topic for each person and campaign");
        Ok(())
    }

    /// The streamer reconnects: the application stores what Twitch gives.
    async fn reconnect(&self) -> Result<()> {
        let pair = self.world.twitch.add_streamer(&self.aria.to_string(), "aria");
        let cipher = self.world.config(&[])?.cipher;
        let encrypt = |column, token| cipher.encrypt(self.aria.0, column, token);
        let now = self.world.clock.now();
        sqlx::query(
            "UPDATE streamers SET access_token_encrypted = $2, refresh_token_encrypted = $3, token_expires_at = $4,
                 is_active = true, token_refresh_failed_at = NULL, updated_at = $5
             WHERE id = $1",
        )
        .bind(self.aria.0)
        .bind(encrypt(Column::AccessToken, pair.access.expose())?)
        .bind(encrypt(Column::RefreshToken, pair.refresh.expose())?)
        .bind(now + TimeDelta::hours(4))
        .bind(now)
        .execute(&self.world.pool)
        .await?;
        Ok(())
    }

    /// The next cycle leaves her alone, and one that is forced refreshes her.
    async fn all_is_well(&self) -> Result<()> {
        let printed = self.tokens(&["refresh"]).await?;
        assert_eq!(printed.code, 0, "{printed:?}");
        assert!(printed.stdout.contains("  - Aria (aria): valid for 3 h 59"), "{}", printed.stdout);
        let printed = self.tokens(&["refresh", "--force"]).await?;
        assert_eq!(printed.code, 0, "{printed:?}");
        assert!(printed.stdout.lines().any(|line| line == "Success: 1"), "{}", printed.stdout);
        assert!(self.world.has_live_token(self.aria).await?);
        assert_eq!(self.state().await?, (true, None));
        Ok(())
    }
}

/// Its lifetime ends a day after the deactivation; whole seconds, rounded down.
fn kept_for_a_day(message: &Received, deactivated_at: DateTime<Utc>) {
    let day = TimeDelta::hours(24);
    let least = deactivated_at + day - message.at - TimeDelta::seconds(1);
    assert!(least <= message.time_to_live && message.time_to_live <= day, "{deactivated_at}: {message:?}");
}

/// The second trigger deactivates, notifies each device, and prints so; the brief's own SQL is the way back.
#[tokio::test]
async fn a_second_failure_deactivates_and_notifies_each_device() -> Result<()> {
    let scene = Scene::new(world().await?, NewStreamer::fresh("aria")).await?;
    scene.first_failure().await?;
    scene.sql(OTHERS_WAIT).await?;
    scene.sql(WE_REMEMBER).await?;
    let printed = scene.tokens(&["refresh", "--force"]).await?;
    assert_eq!(printed.code, 1, "{printed:?}");
    let notified = "(deactivated: the streamer has to reconnect; Aria (streamer) is notified on 2 devices; Corvin (game master \
                of Les Brumes) is notified on 1 device; Nadia (game master of Marées) is notified on 1 device)";
    assert!(printed.stdout.contains(notified), "{}", printed.stdout);
    for line in [
        "Failed: 1",
        "Notifications: 4 delivered, 0 postponed, 0 gone, 0 given up, 0 obsolete",
        "  ✓ to the streamer, about Aria: delivered",
        "  ✓ to the game master of Les Brumes, about Aria: delivered",
        "  ✓ to the game master of Marées, about Aria: delivered",
    ] {
        assert!(printed.stdout.lines().any(|printed| printed == line), "no `{line}` in\n{}", printed.stdout);
    }
    assert_eq!(scene.state().await?, (false, None));
    scene.all_are_notified("fr")?;

    // No one is notified twice.
    let printed = scene.tokens(&["refresh", "--force"]).await?;
    assert!(printed.stdout.contains("Found 0 streamer(s)"), "{}", printed.stdout);
    assert_eq!(scene.push.totals().requests, DEVICES.len());

    scene.sql(REACTIVATE).await?;
    scene.reconnect().await?;
    scene.all_is_well().await
}

/// As EventBridge hands it to the function that its rule names.
fn delivered(event: &Event) -> Value {
    json!({
        "version": "0", "id": Uuid::new_v4(), "account": "123456789012", "region": "eu-west-3", "resources": [],
        "time": "2026-11-23T04:15:03Z",
        "source": event.source, "detail-type": event.detail_type, "detail": event.detail,
    })
}

#[tokio::test]
async fn the_functions_do_the_same_by_themselves() -> Result<()> {
    binary("notify").await?;
    // Roles belong to the whole server: this one is ours alone.
    let postgres = Postgres::own(ServerSettings::default()).await?;
    let world = World::start(&postgres, TwitchSettings::default()).await?;
    let scene = Scene::new(world, NewStreamer::due("aria")).await?;
    scene.sql(INVALIDATE).await?;
    let aws = SimulatedAws::start().await?;
    let start = async |name: &str| {
        let environment: Vec<_> = scene.world.environment().into_iter().chain(aws.environment()).collect();
        Function::start(&binary(name).await?, &environment, Stdio::null()).await
    };

    let report = start("scheduled-refresh").await?.invoke(json!({"trigger": "planned"}), TIME_LEFT).await?;
    assert_eq!(
        (&report["failed"], &report["deactivated"], &report["signals_failed"]),
        (&json!(1), &json!(0), &json!(0))
    );
    let (is_active, failed_at) = scene.state().await?;
    let failed_at = failed_at.context("the failure has no time")?;
    assert!(is_active);
    scene.no_one_is_notified().await?;
    assert_eq!(aws.events(), []);

    // The one-shot that fires after 15 minutes. Before its time it finds nothing due.
    let armed = retry_minute(failed_at + TimeDelta::minutes(15));
    let fired = aws.due(armed);
    let [retry] = fired.as_slice() else { panic!("{fired:?}, {:?}", aws.schedules()) };
    assert_eq!((retry.at, aws.schedules()), (armed, vec![]));
    let function = start("retry-refresh").await?;
    let early = function.invoke(retry.input(), TIME_LEFT).await?;
    assert_eq!((&early["total"], &early["skipped"]), (&json!(1), &json!(1)), "{early}");
    scene.sql(OTHERS_WAIT).await?;
    scene.sql(WE_REMEMBER).await?;
    let answer = function.invoke(retry.input(), TIME_LEFT).await?;
    assert_eq!(answer["message"], "0 refreshed, 1 failed, 1 of them deactivated");
    // Lambda may deliver it again.
    let repeated = function.invoke(retry.input(), TIME_LEFT).await?;
    assert_eq!((&repeated["total"], &repeated["failed"]), (&json!(0), &json!(0)), "{repeated}");
    assert_eq!(scene.state().await?, (false, None));
    assert_eq!(aws.schedules(), [], "nothing is left to be retried");

    // Not it, but the event delivers.
    assert_eq!(scene.push.totals().requests, 0);
    assert_eq!(outbox(&scene.world).await?.len(), DEVICES.len());
    let events = aws.events();
    let [event] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(event.detail["streamer_id"], json!(scene.aria));
    let campaigns = event.detail["campaign_ids"].as_array().context("no campaigns")?;
    assert_eq!(*campaigns, scene.campaigns.map(|id| json!(id)));

    // A login of its own in the group, and neither a key nor a secret of Twitch's.
    scene.world.sql("CREATE ROLE notify LOGIN IN ROLE token_refresh_notify").await?;
    let url = scene.world.database_url().replacen("//postgres@", "//notify@", 1);
    let environment = [("DATABASE_URL", url), ("NOTIFICATION_LOCALE", "en".to_owned())];
    let environment: Vec<_> = environment
        .map(|(name, value)| (name.to_owned(), value))
        .into_iter()
        .chain(scene.vapid.clone())
        .collect();
    let notify = Function::start(&binary("notify").await?, &environment, Stdio::null()).await?;
    let report = notify.invoke(delivered(event), TIME_LEFT).await?;
    assert_eq!(
        (&report["delivered"], &report["postponed"], &report["unauthorized"]),
        (&json!(4), &json!(0), &json!(0))
    );
    scene.all_are_notified("en")?;

    // EventBridge delivers at least once.
    let report = notify.invoke(delivered(event), TIME_LEFT).await?;
    assert_eq!(report["delivered"], 0);
    assert_eq!(scene.push.totals().requests, DEVICES.len());
    Ok(())
}
