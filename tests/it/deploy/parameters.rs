//! The parameters of the AWS templates: what can't work is refused before anything is deployed, with a reason.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use tokens_push::{Vapid, VapidKey};
use tokens_service::config::{NotifyConfig, RefreshConfig, Source};
use tokens_tests::parameters::{broken_rules, is_allowed};
use tokens_tests::template::{Template, section, variables};

const TEMPLATE: &str = "template.yaml";
const DATABASE: &str = "infra/database.yaml";

const SECRET: &str = "arn:aws:secretsmanager:eu-west-3:123456789012:secret:token-refresh/database-AbC12d";

/// Of each parameter what it takes, and what it refuses.
const VALUES: [(&str, &str, &[&str], &[&str]); 21] = [
    (TEMPLATE, "TwitchMaxPerSecond", &["", "1", "20", "100000"], &["0", "00", "-1", "1.5", "100001", "x"]),
    (TEMPLATE, "TwitchMaxInFlight", &["1", "64", "999", "1024"], &["", "0", "1025", "64.5", "1e2"]),
    (TEMPLATE, "HealthCheckTimeout", &["5", "10", "25"], &["", "4", "26", "10.5"]),
    (
        TEMPLATE,
        "RequiredScopes",
        &["", "channel:read:polls", "channel:read:polls, user:read:email"],
        &[" ", "channel:read:polls;bits:read", "https://id.twitch.tv"],
    ),
    (
        TEMPLATE,
        "VapidSubject",
        &[
            "mailto:you@your.domain",
            "https://your.domain",
            "https://www.your.domain/contact?about=push",
            "https://your.domain:8443/contact",
            "https://your.domain?x=1",
        ],
        &[
            "",
            "you@your.domain",
            "mailto:you",
            "mailto:you@localhost",
            "mailto:you@your.LOCAL",
            "https://localhost/x",
            "https://your.local:8443/x",
            "https://your.internal?x=1",
            "https://your.domain:65536",
            "http://your.domain",
        ],
    ),
    (
        TEMPLATE,
        "NotificationStreamerUrl",
        &["/", "/settings?tab=twitch", "https://your.domain", "https://your.domain:8443/#/settings"],
        &[
            "",
            "settings",
            "//your.domain/x",
            "http://your.domain",
            "https://",
            "https://your.domain:65536/settings",
            "https://a:b@your.domain/",
            "/a b",
            "/{id}",
            "/\"",
            "/\\x",
        ],
    ),
    (
        TEMPLATE,
        "NotificationCampaignUrl",
        &["/mj", "/mj/{campaign_id}", "https://your.domain/{campaign_id}"],
        &[
            "",
            "mj/{campaign_id}",
            "/mj/{id}",
            "/mj/{{campaign_id}}",
            "//your.domain",
            "https://your.domain:65536/{campaign_id}",
        ],
    ),
    (
        TEMPLATE,
        "SubnetIds",
        &["", "subnet-0a1b", "subnet-1,subnet-2"],
        &["sg-1", "vpc-1", "subnet-1;subnet-2", "eu-west-3a"],
    ),
    (TEMPLATE, "SecurityGroupIds", &["", "sg-1", "sg-1,sg-2"], &["subnet-1", "default"]),
    (
        TEMPLATE,
        "DatabaseHost",
        &[
            "",
            "token-refresh.proxy-abc.eu-west-3.rds.amazonaws.com",
            "db.example.com:5432",
            "10.0.0.5",
            "10.0.0.5:65535",
        ],
        &[
            "postgres://db.example.com",
            "db.example.com:",
            "db.example.com:0",
            "db.example.com:65536",
            ":5432",
            "db.example.com/twitch_polls",
            "app@db.example.com",
            " ",
        ],
    ),
    (
        TEMPLATE,
        "DatabaseSecretArn",
        &[
            "",
            SECRET,
            "arn:aws-us-gov:secretsmanager:us-gov-west-1:123456789012:secret:a-b_c/d+e=f.g@h-000000",
        ],
        &[
            "token-refresh/database",
            "arn:aws:secretsmanager:eu-west-3:123456789012:secret:token-refresh/database",
            "arn:aws:secretsmanager:eu-west-3:123456789012:secret:token-refresh/database-??????",
            "arn:aws:secretsmanager:eu-west-3:123456789012:secret:vapid-secret",
            "arn:aws:secretsmanager:eu-west-3:123456789012:secret:polls-twitch",
            "arn:aws:ssm:eu-west-3:123456789012:parameter/database-AbC12d",
        ],
    ),
    (
        TEMPLATE,
        "SecretsKeyArn",
        &[
            "",
            "arn:aws:kms:eu-west-3:123456789012:key/mrk-12ab",
            "arn:aws:kms:eu-west-3:123456789012:key/1-2-3",
        ],
        &["alias/aws/secretsmanager", "arn:aws:kms:eu-west-3:123456789012:alias/mine", "1-2-3", SECRET],
    ),
    (TEMPLATE, "NotifyConcurrency", &["1", "2", "none"], &["", "0", "None", "-1", "1.5"]),
    (TEMPLATE, "AlarmEmail", &["", "you@your.domain"], &["you", "a@b.c,d@e.f", "+33123456789"]),
    (TEMPLATE, "CycleTimeout", &["180", "300", "900"], &["", "179", "901"]),
    (DATABASE, "DatabaseName", &["twitch_polls"], &["", "postgres", "template1", "rdsadmin", "Polls", "1st"]),
    (
        DATABASE,
        "AvailabilityZones",
        &["", "us-east-1a,us-east-1b", "us-gov-west-1a,us-gov-west-1c"],
        &[
            "us-east-1a",
            "us-east-1a,us-east-1a",
            "us-east-1a,us-east-1b,us-east-1c",
            "use1-az1,use1-az2",
            "us-east-1",
            "a,b",
        ],
    ),
    (DATABASE, "EngineVersion", &["14", "16", "18"], &["", "13", "16.8", "latest"]),
    (DATABASE, "MinCapacity", &["0.5", "8"], &["0", "0.25", "257"]),
    (DATABASE, "BackupDays", &["1", "35"], &["0", "36"]),
    (DATABASE, "RotationDays", &["0", "30"], &["-1", "1001"]),
];

#[test]
fn what_cannot_work_is_refused() -> Result<()> {
    for (template, name, good, bad) in VALUES {
        let parameters = section(template, "Parameters")?;
        let parameter = &parameters[name];
        for (values, expected) in [(good, true), (bad, false)] {
            for value in values {
                assert_eq!(is_allowed(parameter, value)?, expected, "{name}={value}");
            }
        }
    }
    // All secrets are told in the same way.
    let parameters = section(TEMPLATE, "Parameters")?;
    for (name, parameter) in &parameters {
        if name.ends_with("SecretArn") {
            assert_eq!(
                parameter["AllowedPattern"], parameters["DatabaseSecretArn"]["AllowedPattern"],
                "{name}"
            );
        }
    }
    Ok(())
}

/// CloudFormation writes the reason after the parameter's name. (That defaults fit, cfn-lint checks.)
#[test]
fn a_pattern_comes_with_its_reason() -> Result<()> {
    for template in [TEMPLATE, DATABASE] {
        for (name, parameter) in section(template, "Parameters")? {
            let reason = parameter["ConstraintDescription"].as_str().unwrap_or_default();
            assert!(
                parameter["AllowedPattern"].is_null() || reason.starts_with("must be "),
                "{name} {reason}"
            );
        }
    }
    Ok(())
}

/// Whether the programs take this value of a variable.
fn is_read(variable: &str, value: &str) -> Result<bool> {
    const KEY: &str = "k1:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    let key = VapidKey::generate()?;
    let (public_key, private_key) = (key.public(), key.expose_private());
    let settings = [
        ("DATABASE_URL", "postgres://app@db.example.com/twitch_polls?sslmode=verify-full"),
        ("TWITCH_CLIENT_ID", "client"),
        ("TWITCH_CLIENT_SECRET", "secret"),
        ("APP_KEY", "0123456789abcdefghijklmnopqrstuv"),
        // With both keys, the cipher has to be said.
        ("TOKEN_KEYS", if (variable, value) == ("TOKEN_CIPHER", "aes-gcm") { KEY } else { "" }),
        ("VAPID_PUBLIC_KEY", public_key.as_str()),
        ("VAPID_PRIVATE_KEY", private_key.as_str()),
        ("VAPID_SUBJECT", "mailto:you@your.domain"),
        (variable, value),
    ];
    let source: Source = settings.into_iter().collect();
    let vapid = match NotifyConfig::read(&source) {
        Ok(config) => Vapid::new(&public_key, &private_key, &config.vapid.subject).is_ok(),
        Err(_) => false,
    };
    Ok(vapid && RefreshConfig::read(&source).is_ok())
}

/// A value that the functions refuse would be deployed, and every run would fail.
#[test]
fn the_functions_take_what_the_template_lets_through() -> Result<()> {
    let parameters = section(TEMPLATE, "Parameters")?;
    let odd = [
        "", " ", "0", "1", "-1", "1.5", "1e2", "007", "1025", "100001", "on", "off", "aes-gcm", "en", "info",
        "a b", "a,b", "\u{e9}",
    ];
    let values: BTreeSet<_> =
        VALUES.iter().flat_map(|(.., good, bad)| good.iter().chain(*bad)).copied().chain(odd).collect();
    let mut looked_at = BTreeSet::new();
    for function in Template::read()?.functions().values() {
        for (variable, value) in variables(function) {
            let Some(parameter) = value["!Ref"].as_str().and_then(|name| parameters.get(name)) else {
                continue;
            };
            if !looked_at.insert(variable.to_owned()) {
                continue;
            }
            for value in &values {
                if is_allowed(parameter, value)? {
                    assert!(is_read(variable, value)?, "{variable}={value}");
                }
            }
        }
    }
    assert!(looked_at.len() >= 10, "{looked_at:?}");
    Ok(())
}

#[test]
fn a_link_is_as_long_as_the_functions_take_at_most() -> Result<()> {
    let parameters = section(TEMPLATE, "Parameters")?;
    for (name, variable, end, most) in [
        ("NotificationStreamerUrl", "NOTIFICATION_STREAMER_URL", "", 500),
        ("NotificationCampaignUrl", "NOTIFICATION_CAMPAIGN_URL", "{campaign_id}", 477),
    ] {
        let link = |length: usize| format!("/{}{end}", "x".repeat(length - 1 - end.len()));
        assert!(is_allowed(&parameters[name], &link(most))?, "{name}");
        assert!(is_read(variable, &link(most))?, "{name}");
        assert!(!is_allowed(&parameters[name], &link(most + 1))?, "{name}");
        assert!(!is_read(variable, &link(most + 1))?, "{name}");
    }
    Ok(())
}

#[test]
fn parameters_that_do_not_fit_together_are_refused() -> Result<()> {
    let template = |subnets, groups, secret, notify| {
        BTreeMap::from([
            ("SubnetIds", subnets),
            ("SecurityGroupIds", groups),
            ("DatabaseSecretArn", secret),
            ("NotifyDatabaseSecretArn", notify),
        ])
    };
    let database = |region, proxy, zones| {
        BTreeMap::from([("AWS::Region", region), ("RdsProxy", proxy), ("AvailabilityZones", zones)])
    };
    let cases = [
        (TEMPLATE, template("", "", "", ""), None),
        (TEMPLATE, template("subnet-1,subnet-2", "sg-1", "arn:1", "arn:2"), None),
        (TEMPLATE, template("subnet-1", "", "", ""), Some("SubnetIds and SecurityGroupIds belong together")),
        (TEMPLATE, template("", "sg-1", "", ""), Some("SubnetIds and SecurityGroupIds belong together")),
        (TEMPLATE, template("", "", "arn:1", "arn:1"), Some("NotifyDatabaseSecretArn is DatabaseSecretArn")),
        (DATABASE, database("eu-west-3", "on", ""), None),
        (DATABASE, database("us-east-1", "off", ""), None),
        (DATABASE, database("us-east-1", "on", "us-east-1a,us-east-1b"), None),
        (DATABASE, database("us-east-1", "on", ""), Some("RdsProxy=on needs AvailabilityZones")),
        (DATABASE, database("us-west-1", "on", ""), Some("RdsProxy=on needs AvailabilityZones")),
    ];
    for (file, values, says) in cases {
        let broken = broken_rules(&section(file, "Rules")?, &values)?;
        match says {
            None => assert_eq!(broken, [""; 0], "{values:?}"),
            Some(says) => {
                let [broken] = broken.as_slice() else { panic!("{values:?}: {broken:?}") };
                assert!(broken.starts_with(says), "{broken}");
            }
        }
    }
    Ok(())
}

/// RDS upgrades the minor version by itself, and refuses to go back to one that a template names.
#[test]
fn the_engines_version_is_not_pinned_beside_automatic_upgrades() -> Result<()> {
    let stack = Template::of(DATABASE)?;
    assert_eq!(stack.0["Instance"]["Properties"]["AutoMinorVersionUpgrade"], true);
    let parameter =
        stack.0["Cluster"]["Properties"]["EngineVersion"]["!Ref"].as_str().context("a parameter")?;
    let versions = &section(DATABASE, "Parameters")?[parameter];
    assert!(is_allowed(versions, "16")? && !is_allowed(versions, "16.8")?);
    Ok(())
}
