//! `tokens doctor`, as its own binary over the real PostgreSQL, the simulated Twitch and the simulated AWS: each fault alone
//! has its line and the exit code 1, and no line shows a secret.

use std::fs::read_to_string;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use end_to_end::people::{campaign, device, refused_before, refused_streamer, sender, user};
use end_to_end::requests::{authorization_path, authorizations_path, check_path, event, membership};
use end_to_end::roles::{app_with_password, as_app, hostile_search_path};
use end_to_end::{binary, changed, tokens, world};
use local::aws::{Fault as AwsFault, Service, SimulatedAws};
use local::binaries::workspace;
use local::lambda::Function;
use local::postgres::{Postgres, Settings as ServerSettings};
use local::twitch::{Fault, Settings};
use local::world::{NewStreamer, World};
use push::VapidKey;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};

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

/// What depends on a database that lets us in, and is on our schema.
const IN_THE_SCHEMA: [&str; 6] = ["rights", "rows", "notify role", "tokens", "cycles", "outbox"];

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
    for (_, state, text) in &said.checks {
        let line =
            for_people.stdout.lines().any(|line| line.starts_with(state) && line.contains(text.as_str()));
        // What it says of times may differ between the two.
        ensure!(line || text.contains("ago"), "`{text}` is not in {}", for_people.stdout);
    }
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
async fn where_all_is_well_every_line_says_so() -> Result<()> {
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
        ("database", "lets us in as postgres: PostgreSQL "),
        ("notify role", "poll_notify can deliver notifications"),
        ("tokens", "stored texts: 2 under APP_KEY; a sample of each could be opened"),
        ("cycles", "of a planned run: none lately, of a sweep: none lately; nobody is overdue"),
        ("schedules", "the group `token-refresh` is there"),
    ] {
        said.says(name, "ok", text);
    }
    for (name, state, text) in &said.checks {
        assert_eq!(state, "ok", "{name}: {text}");
    }
    // Nobody was refreshed or validated, and what the check was given is given back.
    assert_eq!(world.twitch.live_application_tokens(), 0);
    let after = world.twitch.totals();
    assert_eq!((after.refreshes, after.validate_requests), (totals.refreshes, totals.validate_requests));
    assert_eq!(after.revoke_requests, totals.revoke_requests + 2, "once for each form");
    assert!(aws.schedules().is_empty() && aws.events().is_empty());
    Ok(())
}

#[tokio::test]
async fn all_faults_of_the_configuration_come_at_once_and_the_rest_is_looked_at() -> Result<()> {
    let world = well().await?;
    let changes = [
        ("LOG_LEVEL", "loud"),
        ("DEACTIVATION", "maybe"),
        ("HEALTH_CHECK_TIMEOUT", "3"),
        ("NOTIFICATION_LOCALE", "de"),
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
        "HEALTH_CHECK_TIMEOUT",
    ] {
        assert_eq!(faults.iter().filter(|fault| **fault == name).count(), 1, "{name}: {faults:?}");
    }
    assert_eq!((said.code, faults.len()), (1, 8), "{faults:?}");
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
async fn a_database_that_does_not_let_us_in() -> Result<()> {
    let world = well().await?;
    // Port 9 is discard: nobody listens there.
    let said = with(&world, &[("DATABASE_URL", "postgres://postgres@127.0.0.1:9/x")]).await?;
    said.only_fault("database", "127.0.0.1:9");
    assert_eq!(said.not_checked, [&["clock", "schema"][..], &IN_THE_SCHEMA].concat());
    said.says("twitch", "ok", "takes the client id");

    let postgres = Postgres::own(ServerSettings::default()).await?;
    let server = postgres.server().context("a server of its own")?;
    app_with_password(server, "right").await?;
    let said = with(&world, &[("DATABASE_URL", &as_app(&server.url("postgres"), "wr0ng"))]).await?;
    said.only_fault("database", "password authentication failed for user");
    assert!(!format!("{:?}", said.checks).contains("wr0ng"));
    Ok(())
}

#[tokio::test]
async fn a_schema_that_is_not_the_programs() -> Result<()> {
    let world = well().await?;
    let empty = Postgres::shared().await?.create_empty().await?;
    let said = with(&world, &[("DATABASE_URL", empty.url())]).await?;
    said.only_fault("schema", "run `tokens migrate`");
    assert_eq!(said.not_checked, IN_THE_SCHEMA);

    sql(&world.pool, "UPDATE token_refresh._sqlx_migrations SET version = version + 1000").await?;
    with(&world, &[]).await?.only_fault("schema", "newer than this program's");
    Ok(())
}

/// What the doctor asks for is what infra/logins.sql gives, and enough for everything but the function notify.
#[tokio::test]
async fn a_login_that_lacks_rights_is_told_each_and_needs_no_other() -> Result<()> {
    binary("tokens").await?;
    let postgres = Postgres::own(ServerSettings::default()).await?;
    let world = World::start(&postgres, Settings::default()).await?;
    sql(&world.pool, "CREATE ROLE token_app LOGIN").await?;
    let file = read_to_string(workspace().join("infra/logins.sql"))?;
    let of_app = |line: &&str| line.starts_with("GRANT ") && line.ends_with(" TO token_app;");
    let grants: Vec<_> = file.lines().filter(of_app).collect();
    let as_app = world.database_url().replace("postgres@", "token_app@");
    let environment = changed(world.environment(), &[("DATABASE_URL", &as_app)]);
    doctor(&environment).await?.only_fault("schema", "permission denied for schema token_refresh");
    let (to_look, to_work) = grants.split_at(2);
    for grant in to_look {
        sql(&world.pool, grant).await?;
    }

    let said = doctor(&environment).await?;
    let [(_, text)] = said.of("rights")[..] else { panic!("{:?}", said.checks) };
    let asked = text.split_once("owner, ").context("grants")?.1.replace('"', "");
    assert_eq!(asked.split("; ").map(|grant| format!("{grant};")).collect::<Vec<_>>(), to_work);
    for grant in to_work {
        sql(&world.pool, grant).await?;
    }
    let said = doctor(&environment).await?;
    said.says("rights", "ok", "token_app may do all that a cycle does");
    said.says("rows", "warning", "has no active streamer");
    // And whatever its search path is.
    hostile_search_path(&world.pool, "token_app").await?;
    everything_as(&world, &environment).await?;
    let said = doctor(&environment).await?;
    said.says("rows", "ok", "a streamer's row was leased, locked, written, and put back");

    sql(&world.pool, "REVOKE UPDATE (is_active) ON streamers FROM token_app").await?;
    let said = doctor(&environment).await?;
    said.says(
        "rights",
        "fault",
        r#"as the tables' owner, GRANT UPDATE (is_active) ON public.streamers TO "token_app""#,
    );
    assert!(!said.of("rights")[0].1.contains(';'), "{:?}", said.checks);
    Ok(())
}

/// Refreshes, a deactivation that somebody is told of, grants, checks, rekeying, and every look.
async fn everything_as(world: &World, environment: &Environment) -> Result<()> {
    const TIME_LEFT: Duration = Duration::from_mins(5);
    let bastien = world.add(NewStreamer::due("bastien")).await?;
    let key = membership(world, bastien).await?;
    let (dead, of_dead) = refused_streamer(world, "dead").await?;
    let master = user(world, "Corvin").await?;
    campaign(world, dead, "Brumes", master, "ACTIVE").await?;
    device(world, of_dead, "phone").await?;
    device(world, master, "laptop").await?;
    refused_before(world, dead).await?;
    let invoke = async |function: &str, events: Vec<Value>| {
        let running = Function::start(&binary(function).await?, environment, Stdio::null()).await?;
        for event in events {
            let answer = running.invoke(event, TIME_LEFT).await.with_context(|| function.to_owned())?;
            let status = answer.get("statusCode").map_or(Some(200), Value::as_u64);
            ensure!(status.is_some_and(|status| status < 300), "{function}: {answer}");
        }
        anyhow::Ok(())
    };
    let rules = [json!({ "trigger": "planned" }), json!({ "trigger": "sweep" })];
    invoke("scheduled-refresh", rules.into()).await?;
    assert!(!world.row(dead).await?.is_active);
    let path = authorization_path(key);
    let list = authorizations_path(bastien);
    let grants = [("POST", &path), ("GET", &path), ("GET", &list), ("DELETE", &path), ("POST", &path)];
    invoke("grant-refresh", grants.map(|(method, path)| event(method, path)).into()).await?;
    invoke("health-check", vec![event("POST", &check_path(key.campaign))]).await?;
    let (id, dead) = (bastien.to_string(), dead.to_string());
    for command in [
        &["refresh", "--force"][..],
        &["status"],
        &["history", &id],
        &["coverage"],
        &["notifications"],
        &["rekey"],
        &["reactivate", &dead],
        &["reactivate", "--since", "1h"],
    ] {
        let printed = tokens(environment, command).await?;
        ensure!(printed.code == 0, "{command:?}: {printed:?}");
    }
    Ok(())
}

/// The doctor does what a cycle does.
#[tokio::test]
async fn rows_that_are_hidden_or_not_to_be_changed_are_a_fault() -> Result<()> {
    binary("tokens").await?;
    let postgres = Postgres::own(ServerSettings::default()).await?;
    let world = World::start(&postgres, Settings::default()).await?;
    sql(
        &world.pool,
        "CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA token_refresh TO app;
         GRANT ALL ON ALL TABLES IN SCHEMA public, token_refresh TO app",
    )
    .await?;
    let aria = world.add(NewStreamer::due("aria")).await?;
    let before = world.row(aria).await?;
    let said = async |change: &str| {
        sql(&world.pool, change).await?;
        with(&world, &[("DATABASE_URL", &world.database_url().replace("postgres@", "app@"))]).await
    };
    said("").await?.says("rows", "ok", "leased, locked, written, and put back");
    let hidden = said("ALTER TABLE streamers ENABLE ROW LEVEL SECURITY").await?;
    hidden.says("rows", "fault", "app sees no row of public.streamers, where");
    let read = said("CREATE POLICY read ON streamers FOR SELECT USING (true)").await?;
    read.says("rows", "fault", "app can read Aria (aria) and not lock the row");
    let partly = said("CREATE POLICY own ON streamers FOR UPDATE USING (twitch_login = 'aria')").await?;
    partly.says("rows", "warning", "may hide rows of public.streamers from app");
    let ok = said("CREATE POLICY change ON streamers FOR UPDATE USING (true)").await?;
    ok.says("rows", "ok", "leased, locked, written, and put back");
    let devices = said("ALTER TABLE push_subscriptions ENABLE ROW LEVEL SECURITY").await?;
    devices.says("rows", "fault", "app sees no row of public.push_subscriptions, where");
    assert_eq!(world.row(aria).await?, before);
    let history: i64 =
        sqlx::query_scalar("SELECT count(*) FROM token_refresh.refreshes").fetch_one(&world.pool).await?;
    assert_eq!(history, 0);
    Ok(())
}

#[tokio::test]
async fn without_a_login_for_notify_there_is_a_warning() -> Result<()> {
    binary("tokens").await?;
    let postgres = Postgres::own(ServerSettings::default()).await?;
    let world = World::start(&postgres, Settings::default()).await?;
    let grant = "GRANT token_refresh_notify TO the login in its secret. Where notify is not deployed, nothing has to be done";
    with(&world, &[]).await?.warns("notify role", grant);
    sql(&world.pool, "DROP OWNED BY token_refresh_notify; ALTER ROLE token_refresh_notify RENAME TO other")
        .await?;
    with(&world, &[]).await?.warns("notify role", "CREATE ROLE token_refresh_notify NOLOGIN");
    Ok(())
}

#[tokio::test]
async fn keys_that_do_not_open_what_is_stored() -> Result<()> {
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
async fn streamers_whom_no_sweep_sees() -> Result<()> {
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
        assert_eq!(with(&world, &[]).await?.code, 0, "nobody could have been here yet: {columns}");
        authorized_for("2 hours").await?;
        with(&world, &[]).await?.only_fault("cycles", "overdue: Aria (aria). Sweeps don't run");
        refreshed_by("command").await?;
        with(&world, &[])
            .await?
            .warns("cycles", "overdue: Aria (aria). No planned run and no sweep has refreshed anybody");
    }
    refreshed_by("planned").await?;
    aria("token_refresh_failed_at = now() - interval '20 minutes'").await?;
    with(&world, &[]).await?.warns("cycles", "with a failure that stands: Aria (aria)");
    aria("token_refresh_failed_at = NULL, token_expires_at = NULL").await?;
    with(&world, &[]).await?.only_fault("cycles", "overdue: Aria (aria)");
    authorized_for("12 hours").await?;
    with(&world, &[]).await?.warns("cycles", "not seen by a sweep yet: Aria (aria)");
    authorized_for("0 hours").await?;
    with(&world, &[]).await?.says("cycles", "ok", "nobody is authorized now");
    Ok(())
}

#[tokio::test]
async fn notifications_that_nobody_delivers() -> Result<()> {
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
async fn credentials_that_twitch_does_not_take() -> Result<()> {
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
async fn keys_that_push_services_would_not_take() -> Result<()> {
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
async fn a_schedule_group_that_is_not_there_or_not_shown() -> Result<()> {
    let world = well().await?;
    let aws = SimulatedAws::start().await?;
    let environment: Environment = world.environment().into_iter().chain(aws.environment()).collect();
    let said = doctor(&changed(environment.clone(), &[("RETRY_GROUP", "another")])).await?;
    said.only_fault("schedules", "there is no schedule group `another`");
    aws.fault(Service::Scheduler, AwsFault::AccessDenied, 2);
    doctor(&environment).await?.warns("schedules", "needs scheduler:GetScheduleGroup");
    aws.fault(Service::Scheduler, AwsFault::ServerError, usize::MAX);
    doctor(&environment).await?.only_fault("schedules", "can't be asked for the group `token-refresh`");
    with(&world, &[]).await?.says("schedules", "ok", "no one-shots are configured here");
    Ok(())
}
