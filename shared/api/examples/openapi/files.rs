//! The API's description as files: as it is, and as a page for people.

use std::collections::BTreeMap;
use std::fmt::{Result, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// The files and what is to be in them.
pub fn files() -> [(PathBuf, String); 2] {
    let document = serde_json::to_value(tokens_api::document()).expect("a document of texts and maps");
    let mut page = String::new();
    write_page(&mut page, &document).expect("a text takes whatever is written");
    let json = serde_json::to_string_pretty(&document).expect("it was a value before") + "\n";
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    [(docs.join("openapi.json"), json), (docs.join("http-api-reference.md"), page)]
}

fn write_page(page: &mut String, document: &Value) -> Result {
    writeln!(page, "# HTTP API: reference\n")?;
    writeln!(
        page,
        "Made from [openapi.json](openapi.json) by `cargo run -p tokens-api --example openapi`; [http-api.md](http-api.md)"
    )?;
    writeln!(page, "says how it is used. Each answer of a function carries the header `x-request-id`.")?;
    let mut problems = BTreeMap::new();
    for tag in list(&document["tags"]) {
        writeln!(page, "\n## {}\n\n{}", capital(text(&tag["name"])), text(&tag["description"]))?;
        for (path, operations) in map(&document["paths"]) {
            for (method, operation) in map(operations) {
                if operation["tags"][0] == tag["name"] {
                    write_operation(page, &method.to_uppercase(), path, operation, &mut problems)?;
                }
            }
        }
    }
    write_problems(page, &problems)?;
    writeln!(page, "\n## Bodies")?;
    for (name, schema) in map(&document["components"]["schemas"]) {
        write_schema(page, name, schema)?;
    }
    Ok(())
}

fn write_operation<'a>(
    page: &mut String,
    method: &str,
    path: &str,
    operation: &'a Value,
    problems: &mut BTreeMap<(u64, &'a str), &'a Value>,
) -> Result {
    writeln!(page, "\n### {}\n\n`{method} {path}`\n", text(&operation["summary"]))?;
    writeln!(page, "{}\n", text(&operation["description"]))?;
    writeln!(page, "| status | answer |\n|---|---|")?;
    for (status, response) in map(&operation["responses"]) {
        writeln!(page, "| {status} | {} |", text(&response["description"]))?;
        let content = &response["content"];
        for (name, problem) in map(&content["application/problem+json"]["examples"]) {
            problems.insert((problem["value"]["status"].as_u64().unwrap_or(0), name), &problem["value"]);
        }
    }
    let success = &operation["responses"]["200"]["content"]["application/json"];
    if let Some(schema) = success["schema"]["$ref"].as_str() {
        writeln!(page, "\n{}, such as\n", link(schema))?;
        writeln!(page, "```json\n{:#}\n```", success["example"])?;
    }
    Ok(())
}

fn write_problems(page: &mut String, problems: &BTreeMap<(u64, &str), &Value>) -> Result {
    writeln!(
        page,
        "\n## Problems\n\nThe `type` of each is `urn:problem:twitch-token-refresh:` and its name.\n"
    )?;
    writeln!(page, "| name | status | what it means | what to do |\n|---|---|---|---|")?;
    for ((status, name), problem) in problems {
        let [title, detail, action] = ["title", "detail", "action"].map(|member| text(&problem[member]));
        writeln!(page, "| `{name}` | {status} | **{title}.** {detail} | {action} |")?;
    }
    Ok(())
}

fn write_schema(page: &mut String, name: &str, schema: &Value) -> Result {
    writeln!(page, "\n### {name}\n\n{}\n", text(&schema["description"]))?;
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<_> = values.iter().map(|value| format!("`{}`", text(value))).collect();
        return writeln!(page, "One of {}.", values.join(", "));
    }
    writeln!(page, "| member | is | meaning |\n|---|---|---|")?;
    for (member, property) in map(&schema["properties"]) {
        let meaning =
            property["description"].as_str().unwrap_or_else(|| text(&property["oneOf"][0]["description"]));
        writeln!(page, "| `{member}` | {} | {} |", kind(property), meaning.replace('\n', " "))?;
    }
    Ok(())
}

/// What a value is: its format, its type, or where it is described.
fn kind(schema: &Value) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        return link(reference);
    }
    if let Some(kinds) = schema["oneOf"].as_array() {
        return kinds.iter().map(kind).collect::<Vec<_>>().join(" or ");
    }
    if schema["type"] == "array" {
        return format!("list of {}", kind(&schema["items"]));
    }
    let types = match &schema["type"] {
        Value::Array(types) => types.iter().map(text).collect(),
        one => vec![text(one)],
    };
    // A number's format is its width, which is nobody's concern in JSON.
    let format = schema["format"].as_str().filter(|_| types[0] == "string");
    types
        .iter()
        .map(|name| if *name == "string" { format.unwrap_or(name) } else { name })
        .collect::<Vec<_>>()
        .join(" or ")
}

fn link(reference: &str) -> String {
    let name = reference.rsplit('/').next().unwrap_or(reference);
    format!("[{name}](#{})", name.to_lowercase())
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn map(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}
