//! `tokens doctor`, as its own binary over the real PostgreSQL, the simulated Twitch and the simulated AWS: each fault alone
//! has its line and the exit code 1, and no line shows a secret.

mod causes;
mod database;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use tokens_local::postgres::{Postgres, Settings as ServerSettings};
use tokens_local::twitch::{Fault, Settings};
use tokens_local::world::{NewStreamer, World};
use tokens_push::VapidKey;
use tokens_tests::aws::{Fault as AwsFault, Service, SimulatedAws};
use tokens_tests::people::sender;
use tokens_tests::{Printed, binary, changed, tokens, world};

const ALL: [&str; 13] = [
    "configuration",
    "database",
    "clock",
    "schema",
    "rights",
    "rows",
    "notify role",
    "tokens",
    "cycles",
    "outbox",
    "twitch",
    "vapid",
    "schedules",
];

type Environment = Vec<(String, String)>;

/// What the doctor said.
struct Said {
    code: i32,
    checks: Vec<(String, String, String)>,
    not_checked: Vec<String>,
}

impl Said {
    /// The states and texts of this check.
    fn of(&self, name: &str) -> Vec<(&str, &str)> {
        let those = self.checks.iter().filter(|(of, ..)| of == name);
        those.map(|(_, state, text)| (state.as_str(), text.as_str())).collect()
    }

    /// There is one line of this check, in this state, and it says this.
    #[track_caller]
    fn says(&self, name: &str, state: &str, text: &str) {
        let [(found, said)] = self.of(name)[..] else { panic!("{name}: {:?}", self.checks) };
        assert_eq!(found, state, "{name}: {said}");
        assert!(said.contains(text), "`{text}` is not in: {said}");
    }

    /// This is the one fault.
    #[track_caller]
    fn only_fault(&self, name: &str, text: &str) {
        self.says(name, "fault", text);
        let faults = self.checks.iter().filter(|(_, state, _)| state == "fault").count();
        assert_eq!((self.code, faults), (1, 1), "{:?}", self.checks);
    }

    /// This is a warning, and there is no fault.
    #[track_caller]
    fn warns(&self, name: &str, text: &str) {
        self.says(name, "warning", text);
        assert_eq!(self.code, 0, "{:?}", self.checks);
    }
}

/// Asks for both forms, and looks for secrets in them.
async fn doctor(environment: &Environment) -> Result<Said> {
    let for_people = tokens(environment, &["doctor"]).await?;
    let printed = tokens(environment, &["doctor", "--json"]).await?;
    ensure!(for_people.code == printed.code, "{for_people:?} {printed:?}");
    let secrets =
        ["TWITCH_CLIENT_SECRET", "APP_KEY", "TOKEN_KEYS", "VAPID_PRIVATE_KEY", "AWS_SECRET_ACCESS_KEY"];
    for (name, value) in environment.iter().filter(|(name, _)| secrets.contains(&name.as_str())) {
        for shown in [&for_people.stdout, &for_people.stderr, &printed.stdout, &printed.stderr] {
            ensure!(!shown.contains(value), "{name} is shown: {shown}");
        }
    }
    let said = read(&printed)?;
    for (_, state, text) in &said.checks {
        let line =
            for_people.stdout.lines().any(|line| line.starts_with(state) && line.contains(text.as_str()));
        // What it says of times may differ between the two.
        ensure!(line || text.contains("ago"), "`{text}` is not in {}", for_people.stdout);
    }
    Ok(said)
}

/// What was printed with `--json`.
fn read(printed: &Printed) -> Result<Said> {
    let document: Value = serde_json::from_str(&printed.stdout).with_context(|| format!("{printed:?}"))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let lists = |name: &str| document[name].as_array().cloned().unwrap_or_default();
    let checks = lists("checks");
    let checks =
        checks.iter().map(|check| (text(&check["name"]), text(&check["state"]), text(&check["text"])));
    let said = Said {
        code: printed.code,
        checks: checks.collect(),
        not_checked: lists("not_checked").iter().map(text).collect(),
    };
    ensure!(document["well"] == json!(said.code == 0), "{document}");
    Ok(said)
}

/// A world with two streamers who were refreshed just now.
async fn well() -> Result<World> {
    let world = world().await?;
    world.add(NewStreamer::due("bastien")).await?;
    world.add(NewStreamer::fresh("aria")).await?;
    let printed = tokens(&world.environment(), &["refresh", "--force"]).await?;
    ensure!(printed.code == 0, "{printed:?}");
    Ok(world)
}

async fn with(world: &World, changes: &[(&str, &str)]) -> Result<Said> {
    doctor(&changed(world.environment(), changes)).await
}

async fn sql(pool: &PgPool, statement: &str) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(pool).await.context(statement.to_owned())?;
    Ok(())
}

#[tokio::test]
async fn a_healthy_installation_has_only_ok_lines() -> Result<()> {
    binary("tokens").await?;
    // A server of its own, because logins belong to the whole server.
    let postgres = Postgres::own(ServerSettings::default()).await?;
    let world = World::start(&postgres, Settings::default()).await?;
    world.add(NewStreamer::due("bastien")).await?;
    sql(&world.pool, "CREATE ROLE poll_notify LOGIN IN ROLE token_refresh_notify").await?;
    let aws = SimulatedAws::start().await?;
    let key = VapidKey::generate()?;
    let mut environment = world.environment();
    environment.extend(aws.environment());
    environment.extend(sender(&key));
    ensure!(tokens(&environment, &["refresh"]).await?.code == 0);
    let totals = world.twitch.totals();

    let said = doctor(&environment).await?;
    assert_eq!((said.code, said.not_checked.len()), (0, 0), "{:?}", said.checks);
    let names: Vec<_> = said.checks.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ALL);
    for (name, text) in [
        ("database", " as postgres: PostgreSQL "),
        ("notify role", "poll_notify can deliver notifications"),
        ("tokens", "stored texts: 2 under APP_KEY; a sample of each could be opened"),
        ("cycles", "of a planned run: none lately, of a sweep: none lately; no streamer is overdue"),
        ("schedules", "the group `token-refresh` is there"),
    ] {
        said.says(name, "ok", text);
    }
    for (name, state, text) in &said.checks {
        assert_eq!(state, "ok", "{name}: {text}");
    }
    // Nothing was refreshed or validated, and the application's token was revoked.
    assert_eq!(world.twitch.live_application_tokens(), 0);
    let after = world.twitch.totals();
    assert_eq!((after.refreshes, after.validate_requests), (totals.refreshes, totals.validate_requests));
    assert_eq!(after.revoke_requests, totals.revoke_requests + 2, "once for each form");
    assert!(aws.schedules().is_empty() && aws.events().is_empty());
    Ok(())
}

#[tokio::test]
async fn all_faults_of_the_configuration_are_listed_and_the_rest_is_checked() -> Result<()> {
    let world = well().await?;
    let changes = [
        ("LOG_LEVEL", "loud"),
        ("DEACTIVATION", "maybe"),
        ("HEALTH_CHECK_TIMEOUT", "3"),
        ("NOTIFICATION_LOCALE", "de"),
        ("NOTIFICATION_STREAMER_URL", "settings"),
        ("NOTIFICATION_CAMPAIGN_URL", "/campaigns/{id}"),
        ("TWITCH_CLIENT_SECRET", ""),
        ("RETRY_GROUP", "retries"),
        ("VAPID_PUBLIC_KEY", "half-a-pair"),
    ];
    let said = with(&world, &changes).await?;
    let faults: Vec<_> = said
        .of("configuration")
        .iter()
        .map(|(state, text)| {
            assert_eq!(*state, "fault");
            text.split(' ').next().unwrap_or_default()
        })
        .collect();
    for name in [
        "TWITCH_CLIENT_SECRET",
        "DEACTIVATION",
        "RETRY_TARGET_ARN",
        "RETRY_ROLE_ARN",
        "VAPID_PRIVATE_KEY",
        "VAPID_SUBJECT",
        "NOTIFICATION_LOCALE",
        "NOTIFICATION_STREAMER_URL",
        "NOTIFICATION_CAMPAIGN_URL",
        "HEALTH_CHECK_TIMEOUT",
    ] {
        assert_eq!(faults.iter().filter(|fault| **fault == name).count(), 1, "{name}: {faults:?}");
    }
    assert_eq!((said.code, faults.len()), (1, 10), "{faults:?}");
    assert_eq!(said.not_checked, ["twitch", "vapid", "schedules"]);
    said.says("cycles", "ok", "2 authorized");

    let elsewhere = [("DATABASE_URL", "postgres://app:hunter2@db.example.com/polls")];
    let said = with(&world, &elsewhere).await?;
    said.says("configuration", "fault", "add ?sslmode=verify-full");
    assert!(!format!("{:?}", said.checks).contains("hunter2"));
    Ok(())
}

#[tokio::test]
async fn a_secret_that_can_t_be_read_is_a_fault_of_the_configuration() -> Result<()> {
    let world = well().await?;
    let aws = SimulatedAws::start().await?;
    let secret =
        [("TWITCH_CLIENT_ID", ""), ("TWITCH_CLIENT_SECRET", ""), ("TWITCH_SECRET_ID", "polls/twitch")];
    let mut environment = changed(world.environment(), &secret);
    environment.extend(aws.environment());
    let said = doctor(&environment).await?;
    said.only_fault("configuration", "TWITCH_SECRET_ID names the secret `polls/twitch`, which can't be read");
    assert_eq!(said.not_checked, ["twitch"]);
    Ok(())
}

#[tokio::test]
async fn keys_that_do_not_open_what_is_stored_are_a_fault() -> Result<()> {
    let world = well().await?;
    let said = with(&world, &[("APP_KEY", "another-app-key-than-the-rows-have")]).await?;
    said.only_fault(
        "tokens",
        "stored texts: 4 under APP_KEY; tried 4 of those under APP_KEY: the stored token fails",
    );

    let one = "UPDATE streamers SET refresh_token_encrypted";
    sql(&world.pool, &format!("{one} = 'invalid' WHERE twitch_login = 'aria'")).await?;
    let said = with(&world, &[]).await?;
    said.warns(
        "tokens",
        "stored texts: 3 under APP_KEY, 1 in no known format; tried 1 of those in no known format: ",
    );

    sql(&world.pool, &format!("{one} = 'v1.2024.AAAA.AAAA' WHERE twitch_login = 'aria'")).await?;
    let said = with(&world, &[]).await?;
    said.only_fault(
        "tokens",
        "3 under APP_KEY, 1 under the key `2024` of TOKEN_KEYS; tried 1 of those under the key `2024`",
    );
    said.only_fault("tokens", "put the key back into TOKEN_KEYS");
    Ok(())
}

#[tokio::test]
async fn overdue_streamers_are_a_fault_once_sweeps_have_run() -> Result<()> {
    let world = well().await?;
    with(&world, &[]).await?.says("cycles", "ok", "2 authorized");
    let change = async |what: String| sql(&world.pool, &format!("UPDATE {what}")).await;
    let aria = |columns: &str| change(format!("streamers SET {columns} WHERE twitch_login = 'aria'"));
    let authorized_for = |time: &str| {
        change(format!("campaign_memberships SET poll_authorization_expires_at = now() + interval '{time}'"))
    };
    // The refreshes on record are made a week old, and this trigger's.
    let refreshed_by = |trigger: &str| {
        let record = "started_at = now() - interval '7 days', ended_at = now() - interval '7 days'";
        change(format!("token_refresh.refreshes SET trigger = '{trigger}', {record}"))
    };
    for columns in [
        // Due since 30 minutes.
        "token_expires_at = now() + interval '30 minutes'",
        // Not validated for two hours.
        "token_expires_at = now() + interval '2 hours', last_token_refresh_at = now() - interval '2 hours'",
        // To be tried again since 25 minutes.
        "last_token_refresh_at = now(), token_refresh_failed_at = now() - interval '40 minutes'",
    ] {
        aria(columns).await?;
        refreshed_by("sweep").await?;
        authorized_for("12 hours").await?;
        assert_eq!(with(&world, &[]).await?.code, 0, "no sweep was due yet: {columns}");
        authorized_for("2 hours").await?;
        with(&world, &[]).await?.only_fault("cycles", "overdue: Aria (aria). Sweeps don't run");
        refreshed_by("command").await?;
        with(&world, &[])
            .await?
            .warns("cycles", "overdue: Aria (aria). No planned run and no sweep has refreshed a streamer");
    }
    refreshed_by("planned").await?;
    aria("token_refresh_failed_at = now() - interval '20 minutes'").await?;
    with(&world, &[])
        .await?
        .warns("cycles", "with a failure that stands: Aria (aria). 0 of them wait for a retry");
    aria("token_refresh_failed_at = NULL, token_expires_at = NULL").await?;
    with(&world, &[]).await?.only_fault("cycles", "overdue: Aria (aria)");
    authorized_for("12 hours").await?;
    with(&world, &[]).await?.warns("cycles", "not seen by a sweep yet: Aria (aria)");
    authorized_for("0 hours").await?;
    with(&world, &[]).await?.says("cycles", "ok", "no streamer is authorized now");
    Ok(())
}

#[tokio::test]
async fn notifications_that_are_not_delivered_are_a_fault() -> Result<()> {
    let world = well().await?;
    let waiting = "INSERT INTO token_refresh.outbox
        (subscription_id, user_id, user_name, streamer_id, streamer_name, created_at, next_attempt_at)
        SELECT id, id, 'Aria', id, 'Aria', now(), now()";
    sql(&world.pool, &format!("{waiting} - interval '1 hour' FROM streamers")).await?;
    with(&world, &[]).await?.only_fault("outbox", "2 notifications wait, and one has been due since ");
    sql(&world.pool, "UPDATE token_refresh.outbox SET next_attempt_at = now() - interval '10 minutes'")
        .await?;
    with(&world, &[]).await?.says("outbox", "ok", "2 notifications wait");
    sql(&world.pool, "UPDATE token_refresh.outbox SET state = 'given_up', settled_at = now()").await?;
    with(&world, &[]).await?.warns("outbox", "2 notifications were given up within a day");
    Ok(())
}

#[tokio::test]
async fn credentials_that_twitch_refuses_are_a_fault() -> Result<()> {
    let world = well().await?;
    for (name, text) in [
        ("TWITCH_CLIENT_ID", "Twitch answered 400: invalid client: check TWITCH_CLIENT_ID"),
        ("TWITCH_CLIENT_SECRET", "Twitch answered 403: invalid client secret: check TWITCH_CLIENT_ID"),
    ] {
        with(&world, &[(name, "not-ours")]).await?.only_fault("twitch", text);
    }
    let said = with(&world, &[("TWITCH_ID_URL", "http://127.0.0.1:9")]).await?;
    said.only_fault("twitch", "no connection to Twitch");
    for (fault, text) in [
        (Fault::UnauthorizedClient, "Twitch answered 401: invalid client: check TWITCH_CLIENT_ID"),
        (Fault::UnknownClient, "Twitch answered 404: client does not exist: check TWITCH_CLIENT_ID"),
    ] {
        world.twitch.fault_for_everybody(fault);
        with(&world, &[]).await?.only_fault("twitch", text);
    }
    for fault in [Fault::ServerError, Fault::HtmlSuccess, Fault::Reflect] {
        world.twitch.fault_for_everybody(fault);
        with(&world, &[]).await?.only_fault("twitch", "Twitch answered ");
    }
    world.twitch.clear_faults_for_everybody();
    with(&world, &[]).await?.says("twitch", "ok", "takes the client id and the client secret");
    Ok(())
}

#[tokio::test]
async fn invalid_vapid_keys_are_a_fault() -> Result<()> {
    let world = well().await?;
    let (ours, theirs) = (VapidKey::generate()?, VapidKey::generate()?);
    let environment: Environment = world.environment().into_iter().chain(sender(&ours)).collect();
    let theirs = theirs.expose_private();
    let said = doctor(&changed(environment.clone(), &[("VAPID_PRIVATE_KEY", &theirs)])).await?;
    said.only_fault("vapid", "VAPID_PRIVATE_KEY");
    let said = doctor(&changed(environment, &[("VAPID_SUBJECT", "mailto:me@localhost")])).await?;
    said.only_fault("vapid", "VAPID_SUBJECT");
    with(&world, &[]).await?.says("vapid", "ok", "no key is configured here");
    Ok(())
}

#[tokio::test]
async fn a_missing_or_hidden_schedule_group_is_named() -> Result<()> {
    let world = well().await?;
    let aws = SimulatedAws::start().await?;
    let environment: Environment = world.environment().into_iter().chain(aws.environment()).collect();
    let said = doctor(&changed(environment.clone(), &[("RETRY_GROUP", "another")])).await?;
    said.only_fault("schedules", "the schedule group `another` does not exist");
    aws.fault(Service::Scheduler, AwsFault::AccessDenied, 2);
    doctor(&environment).await?.warns("schedules", "needs scheduler:GetScheduleGroup");
    aws.fault(Service::Scheduler, AwsFault::ServerError, usize::MAX);
    doctor(&environment).await?.only_fault("schedules", "can't be asked for the group `token-refresh`");
    with(&world, &[]).await?.says("schedules", "ok", "no one-shots are configured here");
    Ok(())
}
