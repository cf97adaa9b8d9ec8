//! The AWS template beside the code: its schedules, variables, routes, patterns and rights are those that the code has;
//! and the event samples are what the functions take.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{read_dir, read_to_string};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};
use tokens_domain::MembershipKey;
use tokens_domain::schedule::{NOTIFY_TIMER, PLANNED_RUNS, SWEEP};
use tokens_local::binaries::workspace;
use tokens_local::lambda::Function;
use tokens_local::world::{NewStreamer, World};
use tokens_push::VapidKey;
use tokens_tests::aws::SimulatedAws;
use tokens_tests::people::{refused_for_good, sender};
use tokens_tests::requests::membership;
use tokens_tests::settings::settings;
use tokens_tests::template::{Template, elements, section, variables};
use tokens_tests::{binary, world};

const TIME_LEFT: Duration = Duration::from_mins(5);

/// The ids in the event samples.
const STREAMER: &str = "6f9619ff-8b86-4011-b42d-00c04fc964ff";
const CAMPAIGN: &str = "fa2c96f3-970e-5ba3-da54-d529db08b1b0";

/// What Lambda, X-Ray and Secrets Manager do in a function's name. The code asks for none of it.
const NOT_OURS: [&str; 11] = [
    "ec2:AssignPrivateIpAddresses",
    "ec2:CreateNetworkInterface",
    "ec2:DeleteNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSubnets",
    "ec2:UnassignPrivateIpAddresses",
    "kms:Decrypt",
    "logs:CreateLogStream",
    "logs:PutLogEvents",
    "xray:PutTelemetryRecords",
    "xray:PutTraceSegments",
];

/// The variables that name secrets, and the settings that stand in those.
const SECRETS: [(&str, &[&str]); 4] = [
    ("DATABASE_SECRET_ID", &["DATABASE_URL"]),
    ("TWITCH_SECRET_ID", &["TWITCH_CLIENT_ID", "TWITCH_CLIENT_SECRET"]),
    ("TOKEN_KEYS_SECRET_ID", &["APP_KEY"]),
    ("VAPID_SECRET_ID", &["VAPID_PUBLIC_KEY", "VAPID_PRIVATE_KEY"]),
];

#[test]
fn the_schedules_are_the_domains() -> Result<()> {
    let template = Template::read()?;
    let found: BTreeSet<_> = template
        .events("Schedule")
        .into_iter()
        .map(|(binary, event)| {
            let input: Value = serde_json::from_str(event["Input"].as_str().context("an input")?)?;
            Ok((
                binary,
                event["Schedule"].as_str().context("a schedule")?,
                input["trigger"].clone().to_string(),
            ))
        })
        .collect::<Result<_>>()?;
    let expected = [
        ("scheduled-refresh", PLANNED_RUNS[0], r#""planned""#),
        ("scheduled-refresh", PLANNED_RUNS[1], r#""planned""#),
        ("scheduled-refresh", SWEEP, r#""sweep""#),
        ("notify", NOTIFY_TIMER, r#""timer""#),
    ];
    assert_eq!(found, expected.map(|(binary, at, trigger)| (binary, at, trigger.to_owned())).into());
    Ok(())
}

#[test]
fn every_variable_stands_in_the_reference() -> Result<()> {
    let names: BTreeSet<_> = settings()?.into_iter().flat_map(|setting| setting.names).collect();
    for (binary, function) in Template::read()?.functions() {
        for (name, _) in variables(function) {
            assert!(names.contains(name), "{binary} is given {name}");
        }
    }
    Ok(())
}

#[test]
fn the_routes_are_the_apis_and_none_is_open() -> Result<()> {
    let template = Template::read()?;
    let found = template.of_type("AWS::ApiGatewayV2::Route").map(|(id, route)| {
        assert_eq!(route["AuthorizationType"], "AWS_IAM", "{id}");
        let target =
            route["Target"]["!Sub"].as_str().and_then(|target| target.strip_prefix("integrations/${"));
        let integration = target.and_then(|target| target.strip_suffix('}')).expect("an integration");
        let uri = &template.0[integration]["Properties"]["IntegrationUri"]["!GetAtt"];
        let function = uri.as_str().and_then(|arn| arn.strip_suffix(".Arn")).expect("a function");
        (route["RouteKey"].as_str().expect("a key").to_owned(), template.binary(function))
    });
    let document: Value = serde_json::from_str(&read_to_string(workspace().join("docs/openapi.json"))?)?;
    let operations = document["paths"].as_object().context("paths")?.iter().flat_map(|(path, operations)| {
        let function = if path.ends_with("/health-check") { "health-check" } else { "grant-refresh" };
        let methods = operations.as_object().into_iter().flat_map(|operations| operations.keys());
        methods.map(move |method| (format!("{} {path}", method.to_uppercase()), function))
    });
    assert_eq!(found.collect::<BTreeSet<_>>(), operations.collect());
    Ok(())
}

/// Before a restore: `Rules=DISABLED` and `Api=DISABLED`.
#[test]
fn standing_still_stops_all_that_starts_by_itself_and_all_requests() -> Result<()> {
    let template = Template::read()?;
    let events: Vec<_> =
        ["Schedule", "EventBridgeRule"].iter().flat_map(|kind| template.events(kind)).collect();
    let all: usize = template
        .functions()
        .values()
        .filter_map(|function| function["Events"].as_object())
        .map(Map::len)
        .sum();
    assert_eq!(events.len(), all, "no other kind of event wakes a function");
    for (function, event) in events {
        assert_eq!(event["State"], json!({ "!Ref": "Rules" }), "{function}");
    }
    assert_eq!(
        section("template.yaml", "Conditions")?["ApiEnabled"],
        json!({ "!Equals": [{ "!Ref": "Api" }, "ENABLED"] })
    );
    for (_, stage) in template.of_type("AWS::ApiGatewayV2::Stage") {
        for limit in ["ThrottlingRateLimit", "ThrottlingBurstLimit"] {
            let limit = elements(&stage["DefaultRouteSettings"][limit]["!If"]).collect::<Vec<_>>();
            assert!(
                matches!(limit[..], [condition, _, stopped] if *condition == "ApiEnabled" && *stopped == 0),
                "{limit:?}"
            );
        }
    }
    Ok(())
}

/// API Gateway writes `-` for what there is not, and does not escape what there is.
#[test]
fn the_access_log_is_json_that_says_who_from_where_and_what_went_wrong() -> Result<()> {
    let template = Template::read()?;
    let format = &template.0["HttpStage"]["Properties"]["AccessLogSettings"]["Format"];
    let members: BTreeMap<String, String> = serde_json::from_str(format.as_str().context("a format")?)?;
    let logged: BTreeSet<_> = members.values().map(|value| value.trim_start_matches("$context.")).collect();
    for needed in [
        "identity.userArn",
        "identity.sourceIp",
        "error.message",
        "error.responseType",
        "integrationErrorMessage",
    ] {
        assert!(logged.contains(needed), "{needed}");
    }
    Ok(())
}

/// A world with two streamers of one campaign, whose grants are dead: for one that is news, the other failed a quarter of
/// an hour ago.
async fn refused() -> Result<(World, [MembershipKey; 2])> {
    let world = world().await?;
    let new = |login: &str| NewStreamer { campaign: "Brumes".to_owned(), ..NewStreamer::due(login) };
    let (first, second) = (world.add(new("first")).await?, world.add(new("second")).await?);
    world.twitch.disconnect("first")?;
    world.twitch.disconnect("second")?;
    refused_for_good(&world, second).await?;
    let keys = [membership(&world, first).await?, membership(&world, second).await?];
    Ok((world, keys))
}

/// All that any function needs.
fn environment(world: &World, more: Vec<(String, String)>) -> Result<Vec<(String, String)>> {
    let vapid = sender(&VapidKey::generate()?);
    Ok(world.environment().into_iter().chain(vapid).chain(more).collect())
}

/// The event samples of a function, by their names, for this streamer and campaign.
fn samples(function: &str, key: MembershipKey) -> Result<BTreeMap<String, Value>> {
    let files = read_dir(workspace().join("infra/events").join(function))?;
    let samples = files.map(|file| {
        let path = file?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).context("a name")?.to_owned();
        let text = read_to_string(path)?;
        let text =
            text.replace(STREAMER, &key.streamer.to_string()).replace(CAMPAIGN, &key.campaign.to_string());
        Ok((name, serde_json::from_str(&text)?))
    });
    samples.collect()
}

#[tokio::test]
async fn the_samples_are_what_the_functions_take() -> Result<()> {
    let template = Template::read()?;
    for (function, properties) in template.functions() {
        let world = world().await?;
        let streamer = world.add(NewStreamer::fresh("aria")).await?;
        let samples = samples(function, membership(&world, streamer).await?)?;
        // What the rules send is among them.
        for event in properties["Events"].as_object().into_iter().flat_map(|events| events.values()) {
            if let Some(input) = event["Properties"]["Input"].as_str() {
                let input: Value = serde_json::from_str(input)?;
                assert!(samples.values().any(|sample| *sample == input), "{function}: {input}");
            }
        }
        let running =
            Function::start(&binary(function).await?, &environment(&world, vec![])?, Stdio::null()).await?;
        for (name, sample) in samples {
            let answer =
                running.invoke(sample, TIME_LEFT).await.with_context(|| format!("{function}: {name}"))?;
            let status = answer.get("statusCode").map_or(Some(200), Value::as_u64);
            assert!(matches!(status, Some(200 | 204)), "{function}: {name}: {answer}");
        }
    }
    Ok(())
}

/// This environment, with what the template has the function read from Secrets Manager there and not here.
fn in_secrets(
    mut environment: Vec<(String, String)>,
    function: &Value,
    aws: &SimulatedAws,
) -> Vec<(String, String)> {
    for (variable, _) in variables(function) {
        let Some((_, names)) = SECRETS.iter().find(|(secret, _)| *secret == variable) else { continue };
        let members = environment.extract_if(.., |(name, _)| names.contains(&name.as_str()));
        let members: BTreeMap<_, _> = members.collect();
        aws.put_secret(variable, json!(members).to_string());
        environment.push((variable.to_owned(), variable.to_owned()));
    }
    environment
}

/// What stands in a recorded request between this text and the next quotation mark.
fn member<'a>(request: &'a str, after: &str) -> Option<&'a str> {
    request.split_once(after)?.1.split('"').next()
}

/// The call that a request to AWS is, as policies name it.
fn action(request: &str) -> String {
    match member(request, r#""x-amz-target": ""#) {
        Some(target) => target.replace("AWSEvents.", "events:").replace("secretsmanager.", "secretsmanager:"),
        None if request.starts_with("POST /schedules/") => "scheduler:CreateSchedule".to_owned(),
        None => panic!("not known: {request}"),
    }
}

#[tokio::test]
async fn each_role_allows_what_its_function_calls_and_no_more() -> Result<()> {
    let template = Template::read()?;
    for (name, function) in template.functions() {
        let (world, keys) = refused().await?;
        let aws = SimulatedAws::start().await?;
        let environment = in_secrets(environment(&world, aws.environment())?, function, &aws);
        let running = Function::start(&binary(name).await?, &environment, Stdio::null()).await?;
        for key in keys {
            for sample in samples(name, key)?.into_values() {
                running.invoke(sample, TIME_LEFT).await?;
            }
        }
        let requests = aws.recorded().await;
        let mut called: BTreeSet<_> = requests.iter().map(|request| action(request)).collect();
        // The schedule is given a role to be fired under.
        if called.contains("scheduler:CreateSchedule") {
            called.insert("iam:PassRole".to_owned());
        }
        // Each secret was named like the variable that names it in the template.
        let asked: BTreeSet<_> = requests
            .iter()
            .filter_map(|request| member(request, r#""SecretId":""#))
            .map(str::to_owned)
            .collect();
        let read: BTreeSet<_> = variables(function)
            .filter(|(name, _)| asked.contains(*name))
            .map(|(_, secret)| secret.to_string())
            .collect();

        let mut allowed = BTreeSet::new();
        let mut readable = BTreeSet::new();
        for statement in template.statements(function) {
            for action in elements(&statement["Action"]).filter_map(Value::as_str) {
                if !NOT_OURS.contains(&action) {
                    allowed.insert(action.to_owned());
                }
                if action.starts_with("secretsmanager:") {
                    readable.extend(elements(&statement["Resource"]).map(Value::to_string));
                }
            }
        }
        assert_eq!(allowed, called, "{name}");
        assert_eq!(readable, read, "{name}");
        // The scene has them call all that they ever call.
        assert_eq!(called.len(), if name == "notify" { 1 } else { 4 }, "{name}: {called:?}");

        // What it published is what wakes notify.
        let rules = template.events("EventBridgeRule");
        let [("notify", rule)] = rules.as_slice() else { panic!("{rules:?}") };
        for event in aws.events() {
            let pattern = json!({ "source": [event.source], "detail-type": [event.detail_type] });
            assert_eq!(rule["Pattern"], pattern);
        }
    }
    Ok(())
}
