//! `--stack`: the settings of a deployed stack; and how a person signs in to AWS.

use std::fs::{create_dir_all, write};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokens_local::world::{NewStreamer, World};
use tokens_tests::aws::{Fault, Service, SimulatedAws};
use tokens_tests::{Printed, changed, tokens_in, world};

/// A stack that is deployed for a world with one streamer who is due; and a directory with a `.env` that must not be read.
struct Deployed {
    world: World,
    aws: SimulatedAws,
    directory: TempDir,
}

impl Deployed {
    async fn new() -> Result<Self> {
        let (world, aws) = (world().await?, SimulatedAws::start().await?);
        world.add(NewStreamer::due("bastien")).await?;
        let environment = world.environment();
        let secret = |id: &str, names: &[&str]| {
            let held = environment.iter().filter(|(name, _)| names.contains(&name.as_str()));
            let held = held.map(|(name, value)| (name.clone(), value.as_str().into())).collect();
            aws.put_secret(id, Value::Object(held).to_string());
        };
        secret("polls/database", &["DATABASE_URL"]);
        secret("polls/twitch", &["TWITCH_CLIENT_ID", "TWITCH_CLIENT_SECRET"]);
        secret("polls/token-keys", &["APP_KEY"]);
        aws.put_secret(
            "polls/vapid",
            json!({ "VAPID_PUBLIC_KEY": "p", "VAPID_PRIVATE_KEY": "p" }).to_string(),
        );
        let held =
            ["DATABASE_URL", "TWITCH_CLIENT_ID", "TWITCH_CLIENT_SECRET", "APP_KEY"].map(|name| (name, ""));
        let named = [
            ("DATABASE_SECRET_ID", "polls/database"),
            ("TWITCH_SECRET_ID", "polls/twitch"),
            ("TOKEN_KEYS_SECRET_ID", "polls/token-keys"),
            ("DATABASE_HOST", ""),
            ("DEACTIVATION", "off"),
            ("LOG_LEVEL", "trace"),
            ("LOG_FORMAT", "json"),
        ];
        let signals = aws.environment().into_iter().filter(|(name, _)| !name.starts_with("AWS_"));
        let refresh = environment.iter().cloned().chain(signals).collect();
        aws.put_function("polls-scheduled-refresh", &changed(changed(refresh, &held), &named));
        let notify = [
            ("DATABASE_SECRET_ID", "polls/notify"),
            ("VAPID_SECRET_ID", "polls/vapid"),
            ("VAPID_SUBJECT", "<me>"),
        ];
        aws.put_function("polls-notify", &changed(Vec::new(), &notify));
        aws.put_stack(
            "polls",
            &[
                ("ScheduledRefreshName", "polls-scheduled-refresh"),
                ("NotifyName", "polls-notify"),
                ("Other", "<&>"),
            ],
        );
        let directory = tempfile::tempdir()?;
        write(directory.path().join(".env"), "DATABASE_URL=nonsense\n")?;
        Ok(Self { world, aws, directory })
    }

    /// The caller has access to AWS, these variables and nothing else.
    async fn tokens(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Result<Printed> {
        let access =
            self.aws.environment().into_iter().filter(|(name, _)| name.starts_with("AWS_")).collect();
        tokens_in(self.directory.path(), &changed(access, variables), arguments).await
    }
}

#[tokio::test]
async fn the_settings_of_a_deployed_stack_are_those_of_its_functions() -> Result<()> {
    let deployed = Deployed::new().await?;
    let printed = deployed.tokens(&[], &["--stack", "polls", "doctor", "--json"]).await?;
    let document: Value = serde_json::from_str(&printed.stdout).with_context(|| format!("{printed:?}"))?;
    let check = |name: &str| {
        let checks = document["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == name).unwrap_or(&Value::Null).to_string()
    };
    for (name, says) in [
        ("configuration", r#""state":"ok""#),
        ("database", r#""state":"ok""#),
        ("twitch", r#""state":"ok""#),
        ("schedules", "token-refresh"),
        // What only notify has, as it is there.
        ("vapid", "VAPID_SUBJECT"),
    ] {
        assert!(check(name).contains(says), "{name}: {document}");
    }
    let printed = deployed.tokens(&[], &["refresh", "--stack", "polls"]).await?;
    assert_eq!((printed.code, printed.stderr.as_str()), (0, ""), "the functions' log is not the command's");
    assert!(printed.stdout.contains("Success: 1"), "{printed:?}");
    assert_eq!(deployed.world.twitch.totals().token_requests, 2, "the doctor's, and one refresh");

    // The environment goes before.
    let printed = deployed.tokens(&[("DEACTIVATION", "maybe")], &["refresh", "--stack", "polls"]).await?;
    assert_eq!(printed.code, 1);
    assert!(printed.stderr.contains("DEACTIVATION is neither `on` nor `off`"), "{printed:?}");
    Ok(())
}

#[tokio::test]
async fn a_stack_that_can_t_be_read_is_named_with_the_reason() -> Result<()> {
    let deployed = Deployed::new().await?;
    let aws = &deployed.aws;
    aws.put_stack("another", &[("ApiUrl", "https://api.example.com")]);
    aws.put_stack("half", &[("ScheduledRefreshName", "gone")]);
    let status = |stack: &'static str| ["status", "--stack", stack];
    for (stack, says) in [
        ("missing", "Stack with id missing does not exist"),
        ("another", "it has no output ScheduledRefreshName"),
        ("half", "Function not found: arn:aws:lambda:eu-west-3:123456789012:function:gone"),
    ] {
        let printed = deployed.tokens(&[], &status(stack)).await?;
        assert_eq!(printed.code, 1, "{printed:?}");
        let whole = format!("--stack {stack} can't be read: ");
        assert!(printed.stderr.contains(&whole) && printed.stderr.contains(says), "{}", printed.stderr);
    }
    for (service, action) in [
        (Service::CloudFormation, "cloudformation:DescribeStacks"),
        (Service::Lambda, "lambda:GetFunctionConfiguration"),
    ] {
        aws.fault(service, Fault::AccessDenied, 1);
        let printed = deployed.tokens(&[], &status("polls")).await?;
        let says = format!("User is not authorized to perform: {action}; check the stack's name");
        assert!(printed.stderr.contains(&says), "{}", printed.stderr);
        aws.fault(service, Fault::Throttle, 1);
        let printed = deployed.tokens(&[], &status("polls")).await?;
        assert_eq!(printed.code, 0, "tried again: {printed:?}");
    }
    let printed = deployed.tokens(&[], &["status", "--stack", "polls", "--env-file", ".env"]).await?;
    assert_eq!(printed.code, 2, "{printed:?}");
    Ok(())
}

/// What `aws login` keeps, under the SHA-256 of the ARN; its key is the example of the SDK's documentation.
fn login(of: impl Fn(&str) -> String) -> String {
    let key = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIFDZHUzOG1Pzq+6F0mjMlOSp1syN9LRPBuHMoCFXTcXhoAoGCCqGSM49\n\
               AwEHoUQDQgAE9qhj+KtcdHj1kVgwxWWWw++tqoh7H7UHs7oXh8jBbgF47rrYGC+t\ndjiIaHK3dBvvdE7MGj5HsepzLm3Kj91bqA==\n\
               -----END EC PRIVATE KEY-----\n";
    let credentials = json!({
        "accessKeyId": of("AWS_ACCESS_KEY_ID"),
        "secretAccessKey": of("AWS_SECRET_ACCESS_KEY"),
        "sessionToken": "of-a-session",
        "accountId": "123456789012",
        "expiresAt": "2126-01-01T00:00:00Z",
    });
    json!({
        "accessToken": credentials,
        "tokenType": "aws_sigv4",
        "refreshToken": "of-a-session",
        "clientId": "arn:aws:signin:::devtools/same-device",
        "dpopKey": key,
    })
    .to_string()
}

/// A file of the AWS CLI's, in this home.
fn keep(home: &Path, path: &str, text: &str) -> Result<()> {
    let path = home.join(".aws").join(path);
    create_dir_all(path.parent().context("a directory")?)?;
    Ok(write(path, text)?)
}

#[tokio::test]
async fn credentials_of_the_aws_command_are_used() -> Result<()> {
    const OF_POLLS: &str = "sso/cache/2bcb05503397c356cf6518a17459346ea922d99f.json";
    const OF_OPERATOR: &str =
        "login/cache/05d4293b920f9332873333ef86001c397e826748e69c2ddcd0f661ed93f13355.json";
    let deployed = Deployed::new().await?;
    let aws = &deployed.aws;
    let environment = aws.environment();
    let of = |name: &str| {
        let found = environment.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let home = deployed.directory.path();
    let credentials = json!({
        "Version": 1, "AccessKeyId": of("AWS_ACCESS_KEY_ID"), "SecretAccessKey": of("AWS_SECRET_ACCESS_KEY"),
    });
    keep(home, "process.json", &credentials.to_string())?;
    keep(home, OF_OPERATOR, &login(of))?;
    let (portal, token) = aws.portal();
    keep(home, OF_POLLS, &token)?;
    let region = "[default]\nregion = eu-west-3\n";
    // A process takes longer than a call of a service may.
    let slow =
        format!("{region}credential_process = sh -c 'sleep 1.5; cat {}/.aws/process.json'\n", home.display());
    let login = format!("{region}login_session = arn:aws:iam::123456789012:user/operator\n");
    let home = home.to_string_lossy();
    let person = [
        ("HOME", &*home),
        ("AWS_ACCESS_KEY_ID", ""),
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ];
    for profile in [&slow, &portal, &login] {
        keep(deployed.directory.path(), "config", profile)?;
        let printed = deployed.tokens(&person, &["status", "--stack", "polls"]).await?;
        assert_eq!((printed.code, printed.stderr.as_str()), (0, ""), "{profile}");
    }
    assert_eq!(aws.requests(Service::Portal), 1);

    // What has expired is said, with what to do.
    keep(deployed.directory.path(), "config", &portal)?;
    keep(deployed.directory.path(), OF_POLLS, &token.replace("\"expiresAt\": \"20", "\"expiresAt\": \"19"))?;
    let printed = deployed.tokens(&person, &["status", "--stack", "polls"]).await?;
    assert_eq!(printed.code, 1);
    assert!(
        printed.stderr.contains("no AWS credentials: ") && printed.stderr.contains("expired"),
        "{}",
        printed.stderr
    );
    assert!(!printed.stderr.contains("local-token"), "{}", printed.stderr);
    Ok(())
}
