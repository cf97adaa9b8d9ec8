//! What AWS does with the values of a template's parameters before it deploys anything.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use fancy_regex::Regex;
use serde_json::Value;

use crate::template::elements;

/// Whether the parameter's own constraints let this value through.
///
/// # Errors
///
/// If its pattern or its greatest length is not valid.
pub fn is_allowed(parameter: &Value, value: &str) -> Result<bool> {
    if !parameter["AllowedValues"].is_null() {
        return Ok(elements(&parameter["AllowedValues"]).any(|allowed| text(allowed) == value));
    }
    if parameter["Type"] == "Number" {
        let limit = |name: &str, otherwise| parameter[name].as_f64().unwrap_or(otherwise);
        let limits = limit("MinValue", f64::MIN)..=limit("MaxValue", f64::MAX);
        return Ok(value.parse().is_ok_and(|number| limits.contains(&number)));
    }
    let most = parameter["MaxLength"].as_u64().map_or(Ok(usize::MAX), usize::try_from)?;
    if value.chars().count() > most {
        return Ok(false);
    }
    let Some(pattern) = parameter["AllowedPattern"].as_str() else { return Ok(true) };
    let pattern = Regex::new(&format!("^(?:{pattern})$"))?;
    // Of a list, each value has to match.
    let is_list = parameter["Type"] == "CommaDelimitedList";
    for value in value.split(|c| is_list && c == ',') {
        if !pattern.is_match(value)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What the rules of a template say against these values, which are all that they name.
///
/// # Errors
///
/// If a rule has a function that is not known here.
pub fn broken_rules(rules: &BTreeMap<String, Value>, values: &BTreeMap<&str, &str>) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for rule in rules.values() {
        if !rule["RuleCondition"].is_null() && !holds(&rule["RuleCondition"], values)? {
            continue;
        }
        for assertion in elements(&rule["Assertions"]) {
            if !holds(&assertion["Assert"], values)? {
                broken.push(text(&assertion["AssertDescription"]));
            }
        }
    }
    Ok(broken)
}

fn holds(function: &Value, values: &BTreeMap<&str, &str>) -> Result<bool> {
    let (name, of) =
        function.as_object().and_then(|function| function.iter().next()).context("a function")?;
    let of: Vec<_> = elements(of).collect();
    let value = |argument: &Value| match argument["!Ref"].as_str() {
        Some(name) => values.get(name).map(ToString::to_string).with_context(|| format!("no {name}")),
        None => Ok(text(argument)),
    };
    match (name.trim_start_matches("Fn::").trim_start_matches('!'), of.as_slice()) {
        ("Not", [one]) => Ok(!holds(one, values)?),
        ("And", all) => all.iter().try_fold(true, |held, one| Ok(held & holds(one, values)?)),
        ("Or", some) => some.iter().try_fold(false, |held, one| Ok(held | holds(one, values)?)),
        ("Equals", [one, other]) => Ok(value(one)? == value(other)?),
        ("EachMemberEquals", [list, one]) => {
            let one = value(one)?;
            Ok(value(list)?.split(',').all(|member| member == one))
        }
        (name, _) => anyhow::bail!("{name} is not known"),
    }
}

/// A scalar of a template, as it is compared.
fn text(scalar: &Value) -> String {
    scalar.as_str().map_or_else(|| scalar.to_string(), str::to_owned)
}
