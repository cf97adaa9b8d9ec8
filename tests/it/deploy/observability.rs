//! Metrics by name: the list in the code, the documentation, the template's alarms and its dashboard say the same.

use std::collections::BTreeSet;
use std::fs::read_to_string;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokens_local::binaries::workspace;
use tokens_telemetry::metrics::{DIMENSION, Metric, NAMESPACE};
use tokens_tests::template::{Template, elements, variables};

fn documented() -> Result<String> {
    Ok(read_to_string(workspace().join("docs/operate.md"))?)
}

fn names() -> BTreeSet<&'static str> {
    Metric::ALL.iter().map(|metric| metric.name()).collect()
}

/// The rows of the table under this heading, without its head.
fn table<'a>(document: &'a str, heading: &str) -> Result<Vec<&'a str>> {
    let rest = document.split_once(&format!("\n## {heading}\n")).with_context(|| heading.to_owned())?.1;
    let section = rest.split_once("\n## ").map_or(rest, |(section, _)| section);
    Ok(section.lines().filter(|line| line.starts_with("| `")).collect())
}

#[test]
fn the_documentation_has_each_metric_with_its_unit_and_meaning() -> Result<()> {
    let rows: Vec<_> = Metric::ALL
        .iter()
        .map(|metric| format!("| `{}` | {:?} | {} |", metric.name(), metric.unit(), metric.meaning()))
        .collect();
    assert_eq!(table(&documented()?, "Metrics")?, rows, "docs/operate.md is to have:\n{}", rows.join("\n"));
    Ok(())
}

/// Whom the metrics are of in the template: `Stack` is the stack's name.
fn of_this_stack() -> Value {
    json!([{ "Name": DIMENSION, "Value": { "!Ref": "AWS::StackName" } }])
}

#[test]
fn each_function_says_whose_metrics_they_are() -> Result<()> {
    for (binary, function) in Template::read()?.functions() {
        let stack =
            variables(function).find(|(name, _)| *name == "METRICS_STACK").context("METRICS_STACK")?;
        assert_eq!(*stack.1, json!({ "!Ref": "AWS::StackName" }), "{binary}");
    }
    Ok(())
}

#[test]
fn alarms_ring_on_metrics_that_there_are_and_say_what_to_do() -> Result<()> {
    let template = Template::read()?;
    let (mut ours, mut alarms) = (BTreeSet::new(), BTreeSet::new());
    for (name, alarm) in template.of_type("AWS::CloudWatch::Alarm") {
        alarms.insert(name);
        let text = &alarm["AlarmDescription"];
        let text = text.as_str().or_else(|| text["!Sub"].as_str()).context("a description")?;
        assert!(text.contains(" First: ") && text.len() < 1024, "{name}: {text}");
        assert_eq!(alarm["AlarmActions"], json!([{ "!Ref": "AlarmTopic" }]), "{name}");
        // One metric, or those of an expression.
        let parts = elements(&alarm["Metrics"]).map(|part| &part["MetricStat"]["Metric"]);
        for metric in std::iter::once(alarm).chain(parts).filter(|metric| metric["Namespace"] == NAMESPACE) {
            assert_eq!(metric["Dimensions"], of_this_stack(), "{name}");
            ours.insert(metric["MetricName"].as_str().context("a name")?);
        }
    }
    assert!(ours.contains("CyclesSucceeded") && ours.is_subset(&names()), "{ours:?}");
    let document = documented()?;
    let rows = table(&document, "Alarms")?;
    let documented: BTreeSet<_> = rows.iter().filter_map(|row| row.split('`').nth(1)).collect();
    assert_eq!(documented, alarms);
    Ok(())
}

/// Only the way into an alarm sends a mail. So none is in one unheard, when nothing is to run or with its actions off.
#[test]
fn no_alarm_is_on_before_it_may_ring() -> Result<()> {
    for (name, alarm) in Template::read()?.of_type("AWS::CloudWatch::Alarm") {
        let without_data = match name {
            "NoCycleAlarm" => json!({ "!If": ["RulesEnabled", "breaching", "notBreaching"] }),
            _ => json!("notBreaching"),
        };
        assert_eq!(alarm["TreatMissingData"], without_data, "{name}");
        assert_eq!(alarm.get("ActionsEnabled"), None, "{name}");
    }
    Ok(())
}

#[test]
fn the_dashboard_shows_each_alarm_and_each_metric() -> Result<()> {
    let template = Template::read()?;
    let dashboards: Vec<_> = template.of_type("AWS::CloudWatch::Dashboard").collect();
    let [(_, dashboard)] = dashboards.as_slice() else { panic!("{dashboards:?}") };
    let body: Value = serde_json::from_str(dashboard["DashboardBody"]["!Sub"].as_str().context("a text")?)?;
    let (mut metrics, mut alarms) = (BTreeSet::new(), BTreeSet::new());
    for widget in elements(&body["widgets"]) {
        let properties = &widget["properties"];
        let texts = elements(&properties["alarms"]).filter_map(Value::as_str);
        alarms.extend(texts.filter_map(|arn| arn.strip_prefix("${")?.strip_suffix(".Arn}")));
        let mut last: [Option<&str>; 4] = [None; 4];
        for metric in elements(&properties["metrics"]) {
            // A dot is what stood there in the line before.
            for (place, part) in elements(metric).take(4).enumerate() {
                last[place] = part.as_str().filter(|part| *part != ".").or(last[place]);
            }
            let [namespace, name, dimension, stack] = last;
            assert_eq!(
                (namespace, dimension, stack),
                (Some(NAMESPACE), Some(DIMENSION), Some("${AWS::StackName}"))
            );
            metrics.extend(name);
        }
    }
    assert_eq!(metrics, names());
    assert_eq!(alarms, template.of_type("AWS::CloudWatch::Alarm").map(|(name, _)| name).collect());
    Ok(())
}
