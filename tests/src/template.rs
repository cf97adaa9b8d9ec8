//! The AWS template, as far as tests look into it.

use std::collections::BTreeMap;
use std::fs::read_to_string;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokens_local::binaries::workspace;

/// The template's resources.
pub struct Template(pub BTreeMap<String, Value>);

impl Template {
    /// As it is in the workspace.
    pub fn read() -> Result<Self> {
        Self::of("template.yaml")
    }

    /// That of another stack, by its file.
    pub fn of(file: &str) -> Result<Self> {
        Ok(Self(section(file, "Resources")?))
    }

    /// The properties of the resources of this type, by their names.
    pub fn of_type(&self, name: &str) -> impl Iterator<Item = (&str, &Value)> {
        let fits = move |(_, resource): &(&String, &Value)| resource["Type"] == name;
        self.0.iter().filter(fits).map(|(id, resource)| (id.as_str(), &resource["Properties"]))
    }

    /// By the name of their binaries.
    pub fn functions(&self) -> BTreeMap<&str, &Value> {
        let functions = self.of_type("AWS::Serverless::Function");
        functions.map(|(id, function)| (self.binary(id), function)).collect()
    }

    /// The binary of the function of this name.
    ///
    /// # Panics
    ///
    /// If it has none.
    pub fn binary(&self, id: &str) -> &str {
        self.0[id]["Metadata"]["BuildProperties"]["Binary"].as_str().expect("a binary")
    }

    /// The events of this type that wake a function.
    pub fn events(&self, kind: &str) -> Vec<(&str, &Value)> {
        let all = self.functions().into_iter().flat_map(|(binary, function)| {
            let events = function["Events"].as_object().into_iter().flat_map(|events| events.values());
            events.map(move |event| (binary, event))
        });
        all.filter(|(_, event)| event["Type"] == kind)
            .map(|(binary, event)| (binary, &event["Properties"]))
            .collect()
    }

    /// What the function's role allows.
    ///
    /// # Panics
    ///
    /// If it has none of its own.
    pub fn statements(&self, function: &Value) -> Vec<&Value> {
        let role = function["Role"]["!GetAtt"].as_str().and_then(|role| role.strip_suffix(".Arn"));
        let role = &self.0[role.expect("a role of its own")]["Properties"];
        let inline = elements(&role["Policies"]).map(|policy| &policy["PolicyDocument"]);
        let managed = elements(&role["ManagedPolicyArns"]).map(|policy| {
            // One that is there under a condition counts.
            let policy = policy.pointer("/!If/1").unwrap_or(policy);
            let policy = policy["!Ref"].as_str().expect("a policy of the template");
            &self.0[policy]["Properties"]["PolicyDocument"]
        });
        let statements = inline.chain(managed).flat_map(|policy| elements(&policy["Statement"]));
        statements.filter(|statement| statement["Effect"] == "Allow").collect()
    }
}

/// A section of a template, by the template's file.
pub fn section(file: &str, name: &str) -> Result<BTreeMap<String, Value>> {
    let text = read_to_string(workspace().join(file))?;
    let Value::Object(mut template) = plain(yaml_serde::from_str(&text)?) else {
        anyhow::bail!("the template is no mapping");
    };
    Ok(serde_json::from_value(template.remove(name).with_context(|| format!("no {name}"))?)?)
}

/// YAML as JSON; `!Ref Name` becomes `{"!Ref": "Name"}`.
fn plain(value: yaml_serde::Value) -> Value {
    use yaml_serde::Value as Yaml;
    match value {
        Yaml::Tagged(tagged) => json!({ tagged.tag.to_string(): plain(tagged.value) }),
        Yaml::Sequence(values) => values.into_iter().map(plain).collect(),
        Yaml::Mapping(members) => members
            .into_iter()
            .map(|(name, value)| (name.as_str().expect("a name").to_owned(), plain(value)))
            .collect(),
        scalar => serde_json::to_value(scalar).expect("a scalar"),
    }
}

/// The elements of a list; a value that is none is its own only one.
pub fn elements(value: &Value) -> impl Iterator<Item = &Value> {
    match value {
        Value::Array(values) => values.iter(),
        Value::Null => [].iter(),
        one => std::slice::from_ref(one).iter(),
    }
}

/// The environment of a function.
///
/// # Panics
///
/// If it has none.
pub fn variables(function: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let variables = function["Environment"]["Variables"].as_object().expect("variables");
    variables.iter().map(|(name, value)| (name.as_str(), value))
}
