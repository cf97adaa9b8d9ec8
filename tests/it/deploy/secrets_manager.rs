//! Settings in Secrets Manager: when they are read, and what is said of wrong ones. How they are rotated while everything runs is in
//! `rotation`.

mod rotation;

use std::fs::{File, read_to_string};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use chrono::TimeDelta;
use serde_json::{Map, Value, json};
use tokens_cipher::Column;
use tokens_domain::authorization::Unknown;
use tokens_domain::health::CheckError;
use tokens_domain::refresh::Cycle;
use tokens_domain::schedule::Trigger;
use tokens_domain::{AccessToken, StreamerId};
use tokens_local::lambda::Function;
use tokens_local::postgres::{Postgres, Settings as PostgresSettings};
use tokens_local::twitch::Settings;
use tokens_local::world::{NewStreamer, World};
use tokens_service::config::{Secret, Source};
use tokens_service::{Host, Process};
use tokens_tests::aws::{Fault, Service, SimulatedAws};
use tokens_tests::requests::{membership, request};
use tokens_tests::roles::{app_with_password, as_app, change_password, superuser};
use tokens_tests::{Printed, Still, binary, changed, tokens, world};

const TIME_LEFT: Duration = Duration::from_mins(5);

/// Which secret holds what, and what it is called there.
const PLACES: [(Secret, &str, &[&str]); 3] = [
    (Secret::Database, "polls/database", &["DATABASE_URL"]),
    (Secret::Twitch, "polls/twitch", &["TWITCH_CLIENT_ID", "TWITCH_CLIENT_SECRET"]),
    (Secret::TokenKeys, "polls/token-keys", &["APP_KEY", "TOKEN_KEYS", "TOKEN_CIPHER"]),
];

/// A world whose secrets are kept by an AWS.
struct Kept {
    world: World,
    aws: SimulatedAws,
    /// What the secrets hold.
    settings: Vec<(String, String)>,
    /// What is left in the environment.
    environment: Vec<(String, String)>,
}

/// A key ring; the first key writes.
fn ring(ids: &[&str]) -> String {
    let key = |id: &&str| {
        let bytes: [u8; 32] =
            std::array::from_fn(|n| id.as_bytes()[n % id.len()] ^ u8::try_from(n).unwrap_or(0));
        format!("{id}:{}", BASE64_STANDARD.encode(bytes))
    };
    ids.iter().map(key).collect::<Vec<_>>().join(",")
}

impl Kept {
    /// The tokens stand there in the format of AdonisJS, and are written under the key `2025` from now on.
    fn new(world: World, aws: SimulatedAws) -> Self {
        let settings =
            changed(world.environment(), &[("TOKEN_KEYS", &ring(&["2025"])), ("TOKEN_CIPHER", "aes-gcm")]);
        let held = |name: &str| PLACES.iter().any(|(.., names)| names.contains(&name));
        let (settings, others): (Vec<_>, Vec<_>) = settings.into_iter().partition(|(name, _)| held(name));
        let named = PLACES.iter().map(|(secret, id, _)| (secret.variable().to_owned(), (*id).to_owned()));
        let environment = others.into_iter().chain(aws.environment()).chain(named).collect();
        let mut kept = Self { world, aws, settings, environment };
        kept.change(&[]);
        kept
    }

    async fn in_a_world() -> Result<Self> {
        Ok(Self::new(world().await?, SimulatedAws::start().await?))
    }

    /// The secrets hold something else from now on.
    fn change(&mut self, changes: &[(&str, &str)]) {
        self.settings = changed(std::mem::take(&mut self.settings), changes);
        for (_, id, names) in PLACES {
            let members = self.settings.iter().filter(|(name, _)| names.contains(&name.as_str()));
            let members: Map<_, _> = members.map(|(name, value)| (name.clone(), json!(value))).collect();
            self.aws.put_secret(id, Value::Object(members).to_string());
        }
    }

    fn asked(&self) -> usize {
        self.aws.requests(Service::Secrets)
    }

    async fn function(&self, changes: &[(&str, &str)]) -> Result<Function> {
        let environment = changed(self.environment.clone(), changes);
        Function::start(&binary("scheduled-refresh").await?, &environment, Stdio::null()).await
    }

    async fn tokens(&self, arguments: &[&str]) -> Result<Printed> {
        tokens(&self.environment, arguments).await
    }

    /// All tokens are about to expire.
    async fn all_are_due(&self) -> Result<()> {
        sqlx::query("UPDATE streamers SET token_expires_at = now() + interval '10 minutes'")
            .execute(&self.world.pool)
            .await?;
        Ok(())
    }

    /// Under which key the streamer's tokens stand: `v1.<key id>`, or nothing for the other format.
    async fn key(&self, id: StreamerId) -> Result<String> {
        let row = self.world.row(id).await?;
        let of = |text: Option<String>| {
            let text = text.unwrap_or_default();
            text.strip_prefix("v1.")
                .and_then(|rest| Some(rest.split_once('.')?.0.to_owned()))
                .unwrap_or_default()
        };
        let (access, refresh) = (of(row.access_token_encrypted), of(row.refresh_token_encrypted));
        assert_eq!(access, refresh, "the two are written together");
        Ok(access)
    }

    /// Whether a poll would meet a live token, whatever it is encrypted with.
    async fn is_live(&self, id: StreamerId) -> Result<bool> {
        let keys = [("TOKEN_KEYS", ring(&["2026", "2025"])), ("TOKEN_CIPHER", "aes-gcm".to_owned())];
        let keys = keys.each_ref().map(|(name, value)| (*name, value.as_str()));
        let stored = self.world.row(id).await?.access_token_encrypted.context("there is a token")?;
        let cipher = self.world.config(&keys)?.cipher;
        let plain = cipher.decrypt(id.0, Column::AccessToken, &stored, self.world.clock.now())?;
        Ok(self.world.twitch.access_token_is_live(&AccessToken::new(plain.as_str())))
    }
}

fn planned() -> Value {
    json!({ "trigger": "planned" })
}

#[track_caller]
fn assert_refreshed(report: &Value, count: u64) {
    assert_eq!((&report["success"], &report["failed"]), (&json!(count), &json!(0)), "{report}");
    assert_eq!(report["stopped"], Value::Null, "{report}");
}

#[tokio::test]
async fn secrets_are_read_once_in_a_process_and_only_where_they_are_named() -> Result<()> {
    let kept = Kept::in_a_world().await?;
    let id = kept.world.add(NewStreamer::due("aria")).await?;
    let function = kept.function(&[]).await?;
    assert_refreshed(&function.invoke(planned(), TIME_LEFT).await?, 1);
    assert_refreshed(&function.invoke(planned(), TIME_LEFT).await?, 0);
    assert_eq!((kept.asked(), kept.key(id).await?), (3, "2025".to_owned()));

    // An ARN names a secret as well, and a command reads only what it needs.
    let arn =
        kept.aws.put_secret("elsewhere", json!({ "DATABASE_URL": kept.world.database_url() }).to_string());
    let environment = changed(kept.environment.clone(), &[("DATABASE_SECRET_ID", &arn)]);
    assert_eq!(tokens(&environment, &["status"]).await?.code, 0);
    assert_eq!(kept.asked(), 4);

    kept.all_are_due().await?;
    let plain = changed(
        kept.settings.iter().chain(&kept.environment).cloned().collect(),
        &PLACES.map(|(secret, ..)| (secret.variable(), "")),
    );
    let function = Function::start(&binary("scheduled-refresh").await?, &plain, Stdio::null()).await?;
    assert_refreshed(&function.invoke(planned(), TIME_LEFT).await?, 1);
    assert_eq!(kept.asked(), 4, "nobody is asked where no secret is named");
    Ok(())
}

/// In this process, on a clock that is turned.
struct InProcess {
    kept: Kept,
    clock: Arc<tokens_local::clock::TurnableClock>,
    host: Host,
}

impl InProcess {
    async fn new() -> Result<Self> {
        let Still { world, clock } = Still::new().await?;
        let aws = SimulatedAws::start_on(clock.clone()).await?;
        let kept = Kept::new(world, aws);
        let source: Source = kept.environment.iter().cloned().collect();
        let host = Host::new(source, Process::on(clock.clone()).with_sdk(kept.aws.access()));
        Ok(Self { kept, clock, host })
    }

    async fn all_are_refreshed(&self, count: u64) -> Result<()> {
        sqlx::query("UPDATE streamers SET token_expires_at = $1")
            .bind(self.clock_now())
            .execute(&self.kept.world.pool)
            .await?;
        let report = Box::pin(self.host.run(&Cycle::new(Trigger::Planned), None)).await?;
        assert_eq!((report.success, report.failed), (count, 0), "{report:?}");
        Ok(())
    }

    fn clock_now(&self) -> chrono::DateTime<chrono::Utc> {
        tokens_domain::Clock::now(self.clock.as_ref())
    }
}

#[tokio::test]
async fn a_new_key_writes_after_15_min_even_if_no_token_needs_it() -> Result<()> {
    let mut here = InProcess::new().await?;
    let id = here.kept.world.add(NewStreamer::due("aria")).await?;
    here.all_are_refreshed(1).await?;
    here.kept.change(&[("TOKEN_KEYS", &ring(&["2026", "2025"]))]);
    here.clock.advance(Duration::from_mins(14));
    here.all_are_refreshed(1).await?;
    assert_eq!((here.kept.asked(), here.kept.key(id).await?), (3, "2025".to_owned()));
    here.clock.advance(Duration::from_mins(1));
    here.all_are_refreshed(1).await?;
    assert_eq!((here.kept.asked(), here.kept.key(id).await?), (6, "2026".to_owned()));
    Ok(())
}

/// After a restore the authorizations are in another cluster, whose old login still works.
#[tokio::test]
async fn a_database_that_has_moved_is_used_after_a_quarter_of_an_hour() -> Result<()> {
    let here = InProcess::new().await?;
    let elsewhere = Still::new().await?.world;
    let id = elsewhere.add(NewStreamer::fresh("aria")).await?;
    let unknown = || Err(CheckError::Unknown(Unknown::Streamer));
    assert_eq!(here.host.memberships(id).await, unknown());
    here.kept
        .aws
        .put_secret("polls/database", json!({ "DATABASE_URL": elsewhere.database_url() }).to_string());
    here.clock.advance(Duration::from_mins(14));
    assert_eq!(here.host.memberships(id).await, unknown());
    here.clock.advance(Duration::from_mins(1));
    assert_eq!(here.host.memberships(id).await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn each_request_looks_whether_the_secrets_have_changed() -> Result<()> {
    let here = InProcess::new().await?;
    let key = membership(&here.kept.world, here.kept.world.add(NewStreamer::fresh("aria")).await?).await?;
    here.host.service().await?;
    let mut asked = here.kept.asked();
    let mut have_looked = |what: &str| {
        asked += 3;
        assert_eq!(here.kept.asked(), asked, "{what}");
        here.clock.advance(Duration::from_mins(15));
    };
    here.clock.advance(Duration::from_mins(15));
    here.host.membership(key).await?;
    have_looked("one membership");
    here.host.memberships(key.streamer).await?;
    have_looked("all of a streamer");
    here.host.revoke(key).await?;
    have_looked("a revocation");
    here.host.grant(key, &request()).await?;
    have_looked("a grant");
    here.host.check(key.campaign, &request()).await?;
    have_looked("a check");
    Ok(())
}

#[tokio::test]
async fn while_secrets_manager_is_away_or_holds_nonsense_what_it_said_is_used() -> Result<()> {
    let here = InProcess::new().await?;
    here.kept.world.add(NewStreamer::due("aria")).await?;
    here.all_are_refreshed(1).await?;
    here.kept.aws.fault(Service::Secrets, Fault::AccessDenied, usize::MAX);
    here.clock.advance(Duration::from_mins(16));
    here.all_are_refreshed(1).await?;
    here.all_are_refreshed(1).await?;
    assert_eq!(here.kept.asked(), 6, "it is left alone for a minute");
    here.kept.aws.clear_faults();
    for nonsense in ["nonsense", r#"{"TOKEN_KEYS":1}"#, r#"{"TOKEN_KEYS":"nonsense"}"#, "{}"] {
        here.kept.aws.put_secret("polls/token-keys", nonsense);
        here.clock.advance(Duration::from_mins(16));
        here.all_are_refreshed(1).await?;
    }
    Ok(())
}

#[tokio::test]
async fn credentials_refused_for_all_are_read_once_and_then_again() -> Result<()> {
    let mut here = InProcess::new().await?;
    here.kept.world.add_all((0..20).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    here.kept.world.twitch.change_client_secret("the-second-secret");
    for _ in 0..2 {
        assert!(Box::pin(here.host.run(&Cycle::new(Trigger::Planned), None)).await.is_err());
    }
    assert_eq!(here.kept.asked(), 6, "a moment ago they were the same");
    here.kept.change(&[("TWITCH_CLIENT_SECRET", "the-second-secret")]);
    here.clock.advance(Duration::from_secs(10));
    here.all_are_refreshed(20).await
}

#[tokio::test]
async fn a_missing_key_is_read_for_once_and_is_an_outage() -> Result<()> {
    let here = InProcess::new().await?;
    let ids = here.kept.world.add_all((0..200).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    sqlx::query("UPDATE streamers SET refresh_token_encrypted = 'v1.2027.AAAA.AAAA'")
        .execute(&here.kept.world.pool)
        .await?;
    let report = Box::pin(here.host.run(&Cycle::new(Trigger::Planned), None)).await?;
    assert_eq!((report.failed, report.alarms.total(), here.kept.asked()), (200, 200, 6), "{report:?}");
    assert!(here.kept.world.row(ids[0]).await?.is_active);
    Ok(())
}

#[tokio::test]
async fn a_busy_secrets_manager_is_asked_again() -> Result<()> {
    let kept = Kept::in_a_world().await?;
    for fault in [Fault::Throttle, Fault::ServerError, Fault::HangUp] {
        kept.aws.fault(Service::Secrets, fault, 2);
        assert_eq!(kept.tokens(&["status"]).await?.code, 0, "{fault:?}");
    }
    assert_eq!(kept.asked(), 9);
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_with_secrets_is_listed_at_once_by_name_and_without_a_value() -> Result<()> {
    let kept = Kept::in_a_world().await?;
    kept.aws.put_secret("polls/twitch", r#"{"TWITCH_CLIENT_ID": "the-id", "TWITCH_CLIENT_SECRET": ""}"#);
    kept.aws.put_secret("polls/token-keys", r#"{"APP_KEY": "too-short", "TOKEN_KEYS": "2025:c2hvcnQ="}"#);
    let changes =
        [("DATABASE_SECRET_ID", "nowhere"), ("TWITCH_CLIENT_ID", "another-id"), ("RETRY_DELAY", "0")];
    let environment = changed(kept.environment.clone(), &changes);

    let log = tempfile::NamedTempFile::new()?;
    let file = Stdio::from(File::create(log.path())?);
    let function = Function::start(&binary("scheduled-refresh").await?, &environment, file).await?;
    let error = function.invoke(planned(), TIME_LEFT).await.unwrap_err();
    for said in
        [error.error_message, read_to_string(log.path())?, tokens(&environment, &["refresh"]).await?.stderr]
    {
        for fault in [
            "DATABASE_SECRET_ID names the secret `nowhere`, which can't be read: ResourceNotFoundException",
            "TWITCH_CLIENT_ID is set, and stands in the secret `polls/twitch` that TWITCH_SECRET_ID names as well",
            "TWITCH_CLIENT_SECRET is missing",
            "APP_KEY is shorter than 16 characters",
            "TOKEN_KEYS, entry 1 has a key that is not 32 bytes",
            "(in the secret `polls/token-keys` that TOKEN_KEYS_SECRET_ID names)",
            "TOKEN_CIPHER is missing",
            "RETRY_DELAY is not a whole number",
        ] {
            assert!(said.contains(fault), "{fault}\nin {said}");
        }
        assert!(!said.contains("DATABASE_URL is missing"), "that is not known: {said}");
        for value in ["the-id", "another-id", "too-short", "c2hvcnQ"] {
            assert!(!said.contains(value), "{value} in {said}");
        }
    }

    kept.aws.fault(Service::Secrets, Fault::AccessDenied, usize::MAX);
    let printed = kept.tokens(&["status"]).await?;
    assert!(printed.stderr.contains("secretsmanager:GetSecretValue"), "{printed:?}");
    Ok(())
}
