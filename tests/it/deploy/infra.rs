//! What surrounds the template beside the code: the sample of an environment and the table of docs/reference.md have the settings that
//! the code reads, and the database's stack gives what the template takes and keeps secrets to itself.

use std::collections::BTreeSet;
use std::fs::{read_dir, read_to_string};

use anyhow::{Context as _, Result};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokens_local::binaries::workspace;
use tokens_local::postgres::{Postgres, Settings as ServerSettings};
use tokens_tests::settings::{Setting, settings};
use tokens_tests::template::{Template, section};
use yaml_serde::Value;

#[test]
fn the_sample_has_every_setting_in_the_readmes_words() -> Result<()> {
    let sample = read_to_string(workspace().join("infra/env.sample"))?;
    let settings = settings()?;
    let paragraphs = settings.iter().map(|Setting { names, meaning, default }| {
        let default = if default.is_empty() { String::new() } else { format!("; by default {default}") };
        let lines: String = names.iter().flat_map(|name| [name.as_str(), "=\n"]).collect();
        format!("# {meaning}{default}\n{lines}")
    });
    let expected: Vec<_> = paragraphs.collect();
    let found: Vec<_> =
        sample.split("\n\n").skip(1).map(|paragraph| format!("{}\n", paragraph.trim_end())).collect();
    assert_eq!(found, expected);
    Ok(())
}

#[test]
fn the_settings_that_the_code_reads_are_those_of_the_readme() -> Result<()> {
    let service = workspace().join("shared/service/src");
    let mut files = vec![service.join("config.rs")];
    for file in read_dir(service.join("config"))? {
        files.push(file?.path());
    }
    let mut read = BTreeSet::new();
    for file in files {
        let text = read_to_string(&file)?;
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        // What stands between quotation marks and is written like a variable.
        let is_name = |text: &&str| {
            text.len() > 5 && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
        };
        read.extend(code.split('"').filter(is_name).map(str::to_owned));
    }
    let told: BTreeSet<_> = settings()?.into_iter().flat_map(|setting| setting.names).collect();
    assert_eq!(read, told);
    Ok(())
}

#[test]
fn the_databases_stack_gives_what_the_template_takes() -> Result<()> {
    let names = |file: &str, section: &str| {
        let template: Value = yaml_serde::from_str(&read_to_string(workspace().join(file))?)?;
        let section = template.get(section).and_then(Value::as_mapping).context("a section")?;
        let names = section.keys().filter_map(Value::as_str).map(str::to_owned);
        anyhow::Ok(names.collect::<BTreeSet<_>>())
    };
    let (given, taken) = (names("infra/database.yaml", "Outputs")?, names("template.yaml", "Parameters")?);
    let used: Vec<_> = given.intersection(&taken).map(String::as_str).collect();
    assert_eq!(
        used,
        ["DatabaseHost", "DatabaseSecretArn", "NotifyDatabaseSecretArn", "SecurityGroupIds", "SubnetIds"]
    );
    // What else it gives is for people.
    let rest: Vec<_> = given.difference(&taken).map(String::as_str).collect();
    assert_eq!(rest, ["BastionId", "ClusterEndpoint", "OwnerSecretArn"]);
    Ok(())
}

/// Aurora's own name in `DATABASE_HOST` would keep the functions at the old cluster after a restore, whatever their secrets say.
#[test]
fn only_a_proxy_comes_before_the_host_in_the_secrets() -> Result<()> {
    let host = &section("infra/database.yaml", "Outputs")?["DatabaseHost"];
    assert_eq!(host["Condition"], "HasProxy");
    assert_eq!(host["Value"], json!({ "!GetAtt": "Proxy.Endpoint" }));
    assert_eq!(section("template.yaml", "Parameters")?["DatabaseHost"]["Default"], "");
    // Each secret has the host that the functions go by.
    let stack = Template::of("infra/database.yaml")?;
    for secret in ["DatabaseSecret", "NotifyDatabaseSecret"] {
        let text = &stack.0[secret]["Properties"]["GenerateSecretString"]["SecretStringTemplate"]["!Sub"];
        assert!(
            text.as_str().context("a text")?.contains(r#""host": "${Cluster.Endpoint.Address}""#),
            "{secret}"
        );
    }
    Ok(())
}

/// RDS Proxy sends no global condition keys: under a condition it would never get at the logins.
#[test]
fn rds_proxy_may_take_its_role_without_a_condition() -> Result<()> {
    let stack = Template::of("infra/database.yaml")?;
    let trust = &stack.0["ProxyRole"]["Properties"]["AssumeRolePolicyDocument"]["Statement"];
    let rds = json!({ "Service": "rds.amazonaws.com" });
    assert_eq!(*trust, json!([{ "Effect": "Allow", "Action": "sts:AssumeRole", "Principal": rds }]));
    Ok(())
}

#[tokio::test]
async fn the_databases_log_has_no_password_and_nothing_that_was_bound() -> Result<()> {
    let postgres = Postgres::own(ServerSettings::default()).await?;
    let database = postgres.create_empty().await?;
    let mut connection = PgConnection::connect(database.url()).await?;
    let stack = Template::of("infra/database.yaml")?;
    let parameters = stack.0["ClusterParameters"]["Properties"]["Parameters"].as_object();
    // PostgreSQL doesn't know those that are RDS's own.
    let known = parameters.context("parameters")?.iter().filter(|(name, _)| !name.starts_with("rds."));
    for (name, value) in known {
        let value = value.as_str().context("a text")?;
        connection.execute(AssertSqlSafe(format!("SET {name} = '{value}'"))).await?;
    }

    let create = "CREATE ROLE somebody LOGIN PASSWORD 's3cret'";
    connection.execute(create).await?;
    assert!(connection.execute(create).await.is_err());
    // As if it were slow.
    connection.execute("SET log_min_duration_statement = 0").await?;
    sqlx::query("SELECT $1::text").bind("b0und").execute(&mut connection).await?;

    let log = read_to_string(postgres.server().context("a server")?.log_path())?;
    assert!(log.contains("already exists") && log.contains("SELECT $1::text"), "{log}");
    assert!(!log.contains("s3cret") && !log.contains("b0und"), "{log}");
    Ok(())
}
