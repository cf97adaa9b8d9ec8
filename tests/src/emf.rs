//! CloudWatch's Embedded Metric Format, held against its specification.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokens_telemetry::metrics::{DIMENSION, Metric, NAMESPACE};

/// The values of one line, by the names of their metrics.
pub type Values = BTreeMap<&'static str, Vec<f64>>;

/// The values that a function's output gives to CloudWatch, line by line.
///
/// # Panics
///
/// If a line is not of the format, is not of this stack, or says anything that the list of metrics doesn't have.
pub fn lines(output: &str, stack: &str) -> Result<Vec<Values>> {
    let schema = serde_json::from_str(include_str!("../fixtures/emf.schema.json"))?;
    let schema = jsonschema::validator_for(&schema)?;
    let values = |line: &str| {
        let line: Value = serde_json::from_str(line).context("not JSON")?;
        if let Err(error) = schema.validate(&line) {
            panic!("{error}: {line}");
        }
        let [directive] = line["_aws"]["CloudWatchMetrics"].as_array().context("an array")?.as_slice() else {
            panic!("more than one directive: {line}");
        };
        assert_eq!(directive["Namespace"], NAMESPACE);
        assert_eq!(directive["Dimensions"], json!([[DIMENSION]]));
        assert_eq!(line[DIMENSION], stack);
        let metrics = directive["Metrics"].as_array().context("an array")?;
        let found = metrics.iter().map(|metric| {
            let known = Metric::ALL.iter().find(|known| known.name() == metric["Name"]);
            let name = known.with_context(|| format!("{metric} is not in the list"))?.name();
            let unit = known.map(|known| format!("{:?}", known.unit()));
            assert_eq!(metric["Unit"].as_str(), unit.as_deref(), "{name}");
            Ok((name, numbers(&line[name])?))
        });
        let found: Values = found.collect::<Result<_>>()?;
        // Each target is there once, beside the metadata and the dimension; and nothing else is.
        assert_eq!(line.as_object().map(serde_json::Map::len), Some(found.len() + 2), "{line}");
        assert_eq!(metrics.len(), found.len(), "{line}");
        Ok(found)
    };
    output.lines().map(values).collect()
}

fn numbers(value: &Value) -> Result<Vec<f64>> {
    let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    values.iter().map(|value| value.as_f64().context("a number")).collect()
}
