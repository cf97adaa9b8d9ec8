//! The documents name no command and no option that `tokens` does not have.

use std::collections::BTreeMap;
use std::fs::{read_dir, read_to_string};

use anyhow::{Context as _, Result};
use tokens_local::binaries::workspace;
use tokens_tests::{binary, tokens};

/// The commands in spans of code and in the lines of blocks.
fn commands(document: &str) -> Vec<Vec<&str>> {
    let blocks = document.split("```").skip(1).step_by(2).flat_map(str::lines);
    let spans = document.split("```").step_by(2).flat_map(|text| text.split('`').skip(1).step_by(2));
    blocks.chain(spans).filter_map(command).collect()
}

/// The words after `tokens`, before which only variables may stand.
fn command(code: &str) -> Option<Vec<&str>> {
    let code = code.split(['#', '|', ';', '&', ')']).next()?;
    let mut words = code.split_whitespace().skip_while(|word| word.contains('=') || *word == "$");
    (words.next() == Some("tokens")).then(|| words.collect()).filter(|words: &Vec<_>| !words.is_empty())
}

#[tokio::test]
async fn every_command_in_the_documents_is_one() -> Result<()> {
    binary("tokens").await?;
    let help = async |words: &[&str]| -> Result<String> {
        Ok(tokens(&[], &[words, &["--help"]].concat()).await?.stdout)
    };
    let general = help(&[]).await?;
    let listed = general
        .split_once("Commands:\n")
        .and_then(|(_, rest)| rest.split_once("\n\n"))
        .context("commands")?
        .0;
    let mut known = BTreeMap::new();
    for name in
        listed.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help")
    {
        let text = help(&[name]).await?;
        let below = if name == "vapid" { help(&[name, "generate"]).await? } else { String::new() };
        known.insert(name, text + &below + &general);
    }

    let docs =
        read_dir(workspace().join("docs"))?.map(|file| Ok(file?.path())).collect::<Result<Vec<_>>>()?;
    let pages = docs.into_iter().filter(|path| path.extension().is_some_and(|end| end == "md"));
    let (mut found, mut faults) = (0, Vec::new());
    for page in pages.chain([workspace().join("README.md"), workspace().join("CHANGELOG.md")]) {
        let document = read_to_string(&page)?;
        for words in commands(&document) {
            let Some(help) = words.iter().find_map(|word| known.get(word)) else {
                faults.push(format!("{}: no command in `tokens {}`", page.display(), words.join(" ")));
                continue;
            };
            found += 1;
            let options = words.iter().filter(|word| word.starts_with("--"));
            let missing = options
                .map(|option| option.split('=').next().unwrap_or(option))
                .filter(|option| !help.split([' ', '\n', ',', '=']).any(|word| word == *option));
            faults.extend(
                missing.map(|option| format!("{}: {option} in `tokens {}`", page.display(), words.join(" "))),
            );
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
    assert!(found > 60, "{found}");
    Ok(())
}
