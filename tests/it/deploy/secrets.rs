//! Everything runs at trace level, well and badly, with secrets that are known: none of them appears in an output, an
//! answer, an event, a schedule, or what the program keeps to itself in the database.

use std::fs::{File, read_to_string};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokens_domain::StreamerId;
use tokens_local::lambda::Function;
use tokens_local::postgres::{Postgres, Server, Settings as ServerSettings};
use tokens_local::push::{Fault as PushFault, Settings as PushSettings, SimulatedPush};
use tokens_local::twitch::{Endpoint, Fault, RefreshTokens, Settings};
use tokens_local::world::{NewStreamer, World};
use tokens_push::VapidKey;
use tokens_tests::aws::{Fault as AwsFault, Service, SimulatedAws};
use tokens_tests::marks::Marks;
use tokens_tests::people::{campaign, refused_before, subscribe, user};
use tokens_tests::requests::{authorization_path, event, membership};
use tokens_tests::roles::{app_with_password, as_app};
use tokens_tests::{binary, changed, tokens};

/// Enough for a function to begin, and for every call to end.
const TIME_LEFT: Duration = Duration::from_mins(5);

const PASSWORD: &str = "marked-password-of-the-database";
const WRONG_PASSWORD: &str = "marked-password-that-is-wrong";
const WRONG_SECRET: &str = "marked-client-secret-that-is-wrong";
const WRONG_APP_KEY: &str = "marked-app-key-that-is-wrong";
const BAD_KEY: &str = "marked-text-that-is-no-key";

/// What the tables of ours hold, as text. Nothing in them is a secret, so all of it is looked at.
const OURS: [&str; 5] = [
    "SELECT row_to_json(t)::text FROM token_refresh.streamers t",
    "SELECT row_to_json(t)::text FROM token_refresh.refreshes t",
    "SELECT row_to_json(t)::text FROM token_refresh.deactivations t",
    "SELECT row_to_json(t)::text FROM token_refresh.outbox t",
    "SELECT row_to_json(t)::text FROM token_refresh.sessions t",
];

/// A world with marked secrets, and everything that it said.
struct Scene {
    world: World,
    aws: SimulatedAws,
    push: SimulatedPush,
    environment: Vec<(String, String)>,
    marks: Marks,
    /// Where it was said, and what.
    said: Vec<(String, String)>,
}

/// What goes wrong at Twitch for one streamer alone. Without an answer there is nothing to be said, so nobody waits for
/// one; and a secret that Twitch refuses is everybody's trouble.
fn faults() -> impl Iterator<Item = Fault> {
    Fault::ALL.into_iter().filter(|fault| {
        !matches!(
            fault,
            Fault::Hang
                | Fault::Slow { .. }
                | Fault::InvalidClient
                | Fault::UnauthorizedClient
                | Fault::UnknownClient
                | Fault::MissingClientSecret
                | Fault::InvalidClientSecret
        )
    })
}

impl Scene {
    async fn new(format: &str) -> Result<Self> {
        binary("tokens").await?;
        let settings = Settings { refresh_tokens: RefreshTokens::Rotated, ..Settings::default() };
        let world = World::start(Postgres::shared().await?, settings).await?;
        let (aws, push) =
            (SimulatedAws::start().await?, SimulatedPush::start(PushSettings::default()).await?);
        let mut marks = Marks::default();

        let vapid = VapidKey::generate()?;
        let private = vapid.expose_private().to_string();
        let token_key: [u8; 32] =
            std::array::from_fn(|n| 0xa0 ^ u8::try_from(n).unwrap_or_default().wrapping_mul(7));
        let token_keys = format!("new:{}", BASE64_STANDARD.encode(token_key));
        marks.add("the key in TOKEN_KEYS", token_key);
        marks.add("VAPID_PRIVATE_KEY", &private);
        marks.add("the VAPID key's bytes", BASE64_URL_SAFE_NO_PAD.decode(&private)?);
        // The server trusts whoever reaches its socket, so that any password will do.
        let url = world.database_url().replace("postgres@", &format!("postgres:{PASSWORD}@"));
        assert!(url.contains(PASSWORD), "the URL has taken the password");
        let public = vapid.public();
        let environment = changed(
            world.environment().into_iter().chain(aws.environment()).collect(),
            &[
                ("DATABASE_URL", &url),
                ("TOKEN_KEYS", &token_keys),
                ("TOKEN_CIPHER", "aes-gcm"),
                ("VAPID_PUBLIC_KEY", &public),
                ("VAPID_PRIVATE_KEY", &private),
                ("VAPID_SUBJECT", "mailto:operator@twitch-polls.net"),
                ("PUSH_LOOPBACK", "on"),
                ("LOG_LEVEL", "trace"),
                ("LOG_FORMAT", format),
                ("RUST_BACKTRACE", "full"),
                ("METRICS_STACK", "of-the-test"),
            ],
        );
        for name in ["APP_KEY", "TWITCH_CLIENT_SECRET", "AWS_SECRET_ACCESS_KEY"] {
            let (name, value) = environment.iter().find(|(found, _)| found == name).context("it is set")?;
            marks.add(name.clone().leak(), value);
        }
        for secret in [PASSWORD, WRONG_PASSWORD, WRONG_SECRET, WRONG_APP_KEY, BAD_KEY] {
            marks.add("a secret of the configuration", secret);
        }
        Ok(Self { world, aws, push, environment, marks, said: Vec::new() })
    }

    /// Due and fresh streamers with every fault, one whose columns hold nonsense, and one who is about to be deactivated,
    /// with four devices and a game master's. Answers the last and a fresh one.
    async fn people(&mut self) -> Result<[StreamerId; 2]> {
        let world = &self.world;
        let due = |fault: Fault| NewStreamer::due(format!("due-{}", fault.name()));
        let fresh = |fault: Fault| NewStreamer::fresh(format!("fresh-{}", fault.name()));
        world.add_all(faults().map(due).chain(faults().map(fresh)).collect()).await?;
        for fault in faults() {
            world.twitch.fault(&format!("due-{}", fault.name()), fault)?;
            world.twitch.fault(&format!("fresh-{}", fault.name()), fault.on(Endpoint::Validate))?;
        }
        let fine = world.add(NewStreamer::due("fine")).await?;
        let invalid = world.add(NewStreamer::due("invalid")).await?;
        let nonsense = "UPDATE streamers SET refresh_token_encrypted = 'invalid' WHERE id = $1";
        sqlx::query(nonsense).bind(invalid.0).execute(&world.pool).await?;
        let gone = world.add(NewStreamer::due("gone")).await?;
        self.remember().await?;
        let world = &self.world;
        world.twitch.disconnect("gone")?;
        refused_before(world, gone).await?;
        let master = user(world, "Corvin").await?;
        campaign(world, gone, "Brumes", master, "ACTIVE").await?;
        for name in ["fails", "refuses", "hangs up", "redirects", "is gone", "takes it"] {
            let subscription = self.push.subscribe(name);
            subscribe(world, master, &subscription).await?;
            let path = subscription.endpoint.rsplit('/').next().unwrap_or_default();
            for secret in [path, &subscription.p256dh, &subscription.auth] {
                self.marks.add("a device's", secret);
                self.marks.add("a device's bytes", BASE64_URL_SAFE_NO_PAD.decode(secret)?);
            }
        }
        self.push.fault("fails", PushFault::status(500))?;
        self.push.fault("refuses", PushFault::status(401))?;
        self.push.fault("hangs up", PushFault::HangUp)?;
        self.push.fault("redirects", PushFault::Redirect)?;
        self.push.expire("is gone")?;
        Ok([gone, fine])
    }

    /// The tokens that there are by now, in plain and as they are stored.
    async fn remember(&mut self) -> Result<()> {
        for token in self.world.twitch.issued_tokens() {
            self.marks.add("a token", token);
        }
        let stored: Vec<String> = sqlx::query_scalar(
            "SELECT access_token_encrypted FROM streamers UNION SELECT refresh_token_encrypted FROM streamers",
        )
        .fetch_all(&self.world.pool)
        .await?;
        for text in stored.into_iter().filter(|text| text != "invalid") {
            self.marks.add("a stored token", text);
        }
        Ok(())
    }

    /// Runs the function once in this environment, and remembers what it said.
    async fn function(&mut self, name: &str, event: Value, changes: &[(&str, &str)]) -> Result<()> {
        let directory = tempfile::tempdir()?;
        let (output, log) = (directory.path().join("output"), directory.path().join("log"));
        let environment = changed(self.environment.clone(), changes);
        let file = |path: &Path| File::create(path).map(Stdio::from);
        let started =
            Function::start_with_output(&binary(name).await?, &environment, file(&output)?, file(&log)?)
                .await?;
        let outcome = started.invoke(event, TIME_LEFT).await;
        started.kill().await?;
        let answer = match outcome {
            Ok(answer) => answer.to_string(),
            Err(error) => error.to_string(),
        };
        self.said.push((format!("{name}'s answer"), answer));
        self.said.push((format!("{name}'s output"), read_to_string(output)?));
        self.said.push((format!("{name}'s log"), read_to_string(log)?));
        self.remember().await
    }

    /// Asks for everything over HTTP, with a secret where none belongs, and remembers what was said.
    async fn requests(&mut self, streamer: StreamerId, changes: &[(&str, &str)]) -> Result<()> {
        let key = membership(&self.world, streamer).await?;
        let mut grant = event("POST", &authorization_path(key));
        grant["headers"]["authorization"] = json!(BAD_KEY);
        grant["rawQueryString"] = json!(format!("token={BAD_KEY}"));
        let mut body = grant.clone();
        body["body"] = json!(BAD_KEY);
        for event in [grant, body, event("GET", &authorization_path(key))] {
            self.function("grant-refresh", event, changes).await?;
        }
        let check = event("POST", &format!("/campaigns/{}/health-check", key.campaign));
        self.function("health-check", check, changes).await
    }

    /// Everybody is in this streamer's campaign, authorized, active and due.
    async fn a_campaign_of_all(&self, streamer: StreamerId) -> Result<()> {
        let key = membership(&self.world, streamer).await?;
        sqlx::query("UPDATE streamers SET token_expires_at = now(), is_active = true")
            .execute(&self.world.pool)
            .await?;
        sqlx::query(
            "INSERT INTO campaign_memberships (campaign_id, streamer_id, status, invited_at, created_at, updated_at,
                                               poll_authorization_expires_at)
             SELECT $1, id, 'ACTIVE', now(), now(), now(), now() + interval '12 hours' FROM streamers
             ON CONFLICT DO NOTHING",
        )
        .bind(key.campaign.0)
        .execute(&self.world.pool)
        .await?;
        Ok(())
    }

    /// Runs the command, and remembers what it said.
    async fn command(&mut self, arguments: &[&str], changes: &[(&str, &str)]) -> Result<()> {
        let printed = tokens(&changed(self.environment.clone(), changes), arguments).await?;
        self.said.push((format!("tokens {}", arguments.join(" ")), printed.stdout + &printed.stderr));
        self.remember().await
    }

    /// Whoever was refused a quarter of an hour ago may be tried again.
    async fn a_quarter_of_an_hour_later(&self) -> Result<()> {
        for change in [
            "UPDATE streamers SET token_refresh_failed_at = token_refresh_failed_at - interval '16 minutes'",
            "UPDATE token_refresh.streamers SET failed_at = failed_at - interval '16 minutes'",
            "UPDATE token_refresh.outbox SET next_attempt_at = now() WHERE state = 'pending'",
        ] {
            sqlx::query(change).execute(&self.world.pool).await?;
        }
        Ok(())
    }

    /// What others were told, and what is kept.
    async fn told_and_kept(&mut self) -> Result<()> {
        assert!(!self.aws.events().is_empty() && !self.aws.schedules().is_empty(), "AWS was told");
        let events = self.aws.events().into_iter().map(|event| format!("{event:?}"));
        let schedules = self.aws.schedules().into_iter().map(|schedule| format!("{schedule:?}"));
        let said = events.chain(schedules).chain(self.aws.recorded().await);
        self.said.extend(said.map(|text| ("AWS".to_owned(), text)));
        let pushed = self.push.messages("takes it")?;
        assert!(!pushed.is_empty(), "the device was told");
        self.said.extend(pushed.iter().map(|message| ("a push".to_owned(), format!("{message:?}"))));
        for query in OURS {
            let rows: Vec<String> = sqlx::query_scalar(query).fetch_all(&self.world.pool).await?;
            self.said.extend(rows.into_iter().map(|row| (query.to_owned(), row)));
        }
        Ok(())
    }

    #[track_caller]
    fn no_mark_was_said(&self) {
        let everything: String = self.said.iter().map(|(_, text)| text.as_str()).collect();
        // Each of these shows that what is searched is what was to be said.
        for sign in [
            "Invalid refresh token",
            "answered 500",
            "answered 502",
            "streamer deactivated",
            "but Twitch still calls the access token valid",
            "check TWITCH_CLIENT_ID",
            "fails authentication",
            "AccessDenied",
            "the device has subscribed under another VAPID key",
            "password authentication failed",
            "VAPID_PRIVATE_KEY",
            "TOKEN_KEYS",
            "sslmode=verify-full",
            "urn:problem:twitch-token-refresh:misconfigured",
            "urn:problem:twitch-token-refresh:unexpected-body",
            "token_invalid",
            "request answered",
            "can't find the specified secret",
            "as well: keep one of the two",
            "is not JSON of the form",
            "that is not a string",
            "has a `host` that is not valid",
            "Encrypted again: ",
        ] {
            assert!(everything.contains(sign), "nobody said `{sign}`");
        }
        let in_json = self.environment.contains(&("LOG_FORMAT".to_owned(), "json".to_owned()));
        assert_eq!(everything.contains("CloudWatchMetrics"), in_json, "metrics are for machines");
        let found: Vec<_> = self
            .said
            .iter()
            .flat_map(|(place, text)| {
                self.marks.found_in(text).into_iter().map(move |found| format!("{place}: {found}"))
            })
            .collect();
        assert!(found.is_empty(), "secrets were said:\n{}", found.join("\n"));
    }
}

/// A server of its own that asks for the role `app`'s password.
async fn server_that_asks() -> Result<(Server, String)> {
    let server = Server::start(ServerSettings::default()).await?;
    app_with_password(&server, "right").await?;
    let wrong = as_app(&server.url("postgres"), WRONG_PASSWORD);
    Ok((server, wrong))
}

/// Which secret holds what.
const HELD: [(&str, &[&str]); 4] = [
    ("DATABASE_SECRET_ID", &["DATABASE_URL"]),
    ("TWITCH_SECRET_ID", &["TWITCH_CLIENT_ID", "TWITCH_CLIENT_SECRET"]),
    ("TOKEN_KEYS_SECRET_ID", &["APP_KEY", "TOKEN_KEYS", "TOKEN_CIPHER"]),
    ("VAPID_SECRET_ID", &["VAPID_PUBLIC_KEY", "VAPID_PRIVATE_KEY", "VAPID_SUBJECT"]),
];

/// The settings are kept by Secrets Manager, well and badly.
async fn kept_by_secrets_manager(scene: &mut Scene, fine: &str) -> Result<()> {
    let mut kept = vec![("EVENT_BUS_NAME", "")];
    for (variable, names) in HELD {
        let members = scene.environment.iter().filter(|(name, _)| names.contains(&name.as_str()));
        let members: serde_json::Map<_, _> =
            members.map(|(name, value)| (name.clone(), json!(value))).collect();
        scene.aws.put_secret(variable, Value::Object(members).to_string());
        kept.push((variable, variable));
        kept.extend(names.iter().map(|name| (*name, "")));
    }
    let both = [kept.as_slice(), &[("TWITCH_CLIENT_SECRET", WRONG_SECRET)]].concat();
    let elsewhere = [kept.as_slice(), &[("DATABASE_SECRET_ID", "elsewhere")]].concat();
    for changes in [&kept, &both, &elsewhere] {
        for arguments in [&["refresh", fine, "--force"][..], &["rekey"], &["rekey", "--json", "--dry-run"]] {
            scene.command(arguments, changes).await?;
        }
        scene.function("scheduled-refresh", json!({"trigger": "planned"}), changes).await?;
        scene.function("notify", json!({"trigger": "timer"}), changes).await?;
    }
    scene.aws.fault(Service::Secrets, AwsFault::AccessDenied, usize::MAX);
    scene.command(&["refresh"], &kept).await?;
    scene.aws.clear_faults();
    for text in [
        BAD_KEY.to_owned(),
        json!([WRONG_SECRET]).to_string(),
        json!({ "TWITCH_CLIENT_ID": "id", "TWITCH_CLIENT_SECRET": WRONG_SECRET }).to_string(),
        json!({ "TWITCH_CLIENT_SECRET": [WRONG_SECRET] }).to_string(),
        json!({ "APP_KEY": WRONG_APP_KEY, "TOKEN_KEYS": BAD_KEY }).to_string(),
        json!({ "username": "app", "password": WRONG_PASSWORD, "host": "/ /", "dbname": "polls" })
            .to_string(),
        json!({ "username": "app", "password": WRONG_PASSWORD, "host": "db.example.com", "port": PASSWORD })
            .to_string(),
    ] {
        for (variable, _) in HELD {
            scene.aws.put_secret(variable, text.clone());
        }
        scene.command(&["refresh", fine, "--force"], &kept).await?;
        scene.function("scheduled-refresh", json!({"trigger": "planned"}), &kept).await?;
    }
    Ok(())
}

async fn everything(format: &str) -> Result<()> {
    let mut scene = Scene::new(format).await?;
    let [gone_id, fine_id] = scene.people().await?;
    let (gone, fine) = (gone_id.to_string(), fine_id.to_string());
    let planned = || json!({"trigger": "planned"});
    let retry = || json!({"trigger": "retry", "minute": "2026-11-23T04:15:00Z"});

    // Misconfigured: Twitch refuses our application, keys don't fit, values are malformed.
    let far = format!("postgres://app:{WRONG_PASSWORD}@db.example.com/polls");
    let misspelt = format!("postgres://app@localhost/polls?pasword={BAD_KEY}");
    // Which is looked into for that one, as it has no password.
    let pgpass = tempfile::NamedTempFile::new()?;
    std::fs::write(&pgpass, BAD_KEY)?;
    scene.environment.push(("PGPASSFILE".to_owned(), pgpass.path().display().to_string()));
    let bad_keys = format!("new:{}", BASE64_STANDARD.encode(BAD_KEY));
    for fault in [Fault::InvalidClient, Fault::MissingClientSecret, Fault::InvalidClientSecret] {
        scene.world.twitch.fault("fine", fault)?;
        scene.command(&["refresh", &fine], &[("EVENT_BUS_NAME", "")]).await?;
        scene.function("retry-refresh", retry(), &[]).await?;
    }
    scene.world.twitch.clear_faults("fine")?;
    for change in [
        ("TWITCH_CLIENT_SECRET", WRONG_SECRET),
        ("APP_KEY", WRONG_APP_KEY),
        ("TOKEN_KEYS", &bad_keys),
        ("TOKEN_KEYS", BAD_KEY),
        ("TOKEN_CIPHER", BAD_KEY),
        ("VAPID_PRIVATE_KEY", BAD_KEY),
        ("DATABASE_URL", far.as_str()),
        ("DATABASE_URL", misspelt.as_str()),
        ("DATABASE_URL", BAD_KEY),
        ("TWITCH_ID_URL", BAD_KEY),
    ] {
        scene.command(&["refresh", &fine, "--force"], &[change, ("EVENT_BUS_NAME", "")]).await?;
        scene.function("scheduled-refresh", planned(), &[change]).await?;
        scene.function("notify", json!({"trigger": "timer"}), &[change]).await?;
        scene.requests(fine_id, &[change]).await?;
        // What an outage of ours has put off is due again.
        scene.a_quarter_of_an_hour_later().await?;
    }

    // Every failure of Twitch's, while AWS denies access, and while it doesn't.
    for service in [Service::Scheduler, Service::Events] {
        scene.aws.fault(service, AwsFault::AccessDenied, 100);
    }
    scene.function("scheduled-refresh", planned(), &[]).await?;
    scene.function("scheduled-refresh", json!({"trigger": "sweep"}), &[]).await?;
    scene.aws.clear_faults();
    scene.a_quarter_of_an_hour_later().await?;
    scene.function("retry-refresh", retry(), &[]).await?;
    scene.function("notify", json!({"trigger": "timer"}), &[]).await?;
    for wrong in ["scheduled-refresh", "retry-refresh", "notify"] {
        scene.function(wrong, json!({"trigger": "nonsense"}), &[]).await?;
    }

    // The command, which delivers by itself.
    scene.a_quarter_of_an_hour_later().await?;
    let by_itself = [("EVENT_BUS_NAME", "")];
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["history", &gone],
        &["history", &gone, "--json"],
        &["coverage"],
        &["coverage", "--json"],
        &["refresh", "--dry-run"],
        &["refresh", "--force"],
        &["refresh", "--force", "--json"],
        &["refresh", &fine, "--force"],
        &["notifications"],
        &["notifications", "--json"],
        &["reactivate", &gone],
        &["reactivate", "--since", "2h"],
        &["migrate"],
    ] {
        scene.command(arguments, &by_itself).await?;
    }

    // Requests, over everybody at once.
    scene.a_campaign_of_all(fine_id).await?;
    scene.requests(fine_id, &[]).await?;
    scene.requests(gone_id, &[]).await?;

    let (_server, wrong) = server_that_asks().await?;
    let wrong = [("DATABASE_URL", wrong.as_str())];
    for arguments in [&["status"][..], &["refresh"], &["migrate"], &["coverage"], &["notifications"]] {
        scene.command(arguments, &wrong).await?;
    }
    for name in ["scheduled-refresh", "retry-refresh", "notify"] {
        scene.function(name, planned(), &wrong).await?;
    }
    scene.requests(fine_id, &wrong).await?;

    kept_by_secrets_manager(&mut scene, &fine).await?;

    scene.told_and_kept().await?;
    assert!(scene.marks.len() > 200, "{} marks", scene.marks.len());
    scene.no_mark_was_said();
    Ok(())
}

#[tokio::test]
async fn in_json_no_secret_is_said() -> Result<()> {
    everything("json").await
}

#[tokio::test]
async fn in_text_no_secret_is_said() -> Result<()> {
    everything("text").await
}

/// The search finds what it is to find.
#[test]
fn a_secret_is_found_in_every_form() {
    let secret = "s%cret/of+th?streamer=0";
    let mut marks = Marks::default();
    marks.add("the secret", secret);
    let in_base64 = |before: &str| BASE64_STANDARD.encode(format!("{before}{secret}\"}}"));
    for said in [
        format!("token={secret}&"),
        "refresh_token=s%25cret%2Fof%2Bth%3Fstreamer%3D0".to_owned(),
        format!("{:?}", secret.as_bytes()),
        "7325637265742f6f662b74683f73747265616d65723d30".to_owned(),
        "7325637265742F6F662B74683F73747265616D65723D30".to_owned(),
        in_base64(""),
        in_base64("{"),
        in_base64("{\""),
        BASE64_URL_SAFE_NO_PAD.encode(secret),
    ] {
        assert!(!marks.found_in(&format!("INFO said {said} aloud")).is_empty(), "{said}");
    }
    assert_eq!(marks.found_in("INFO nothing was said"), [""; 0]);
}
