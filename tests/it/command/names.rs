//! Names that users choose, in everything that is printed or logged.

use std::fs::{File, read_to_string};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Result;
use chrono::TimeDelta;
use serde_json::{Value, json};
use tokens_domain::plain;
use tokens_local::lambda::Function;
use tokens_local::world::NewStreamer;
use tokens_tests::people::{
    RecordingPush, campaign, deliver, device, notify, refused_before, refused_streamer, user,
};
use tokens_tests::{binary, changed, tokens, world};

/// Turns the text around, steers a terminal, hides, and begins a line that looks like one of ours.
const NAME: &str = "Evil\u{202e}\u{2066}\u{1b}[2J\u{9b}31m\u{200b}\u{feff}\u{ad}\u{e0041}\u{85}\u{2028}\u{7}\n  - Forged (forged) ✓";

/// No line and no string of it has anything that is not plain.
fn assert_plain(what: &str, printed: &str) {
    fn strings(value: &Value, of: &mut Vec<String>) {
        match value {
            Value::String(text) => of.push(text.clone()),
            Value::Array(values) => values.iter().for_each(|value| strings(value, of)),
            Value::Object(members) => members.values().for_each(|value| strings(value, of)),
            _ => {}
        }
    }
    let mut texts = Vec::new();
    if let Ok(document) = serde_json::from_str(printed) {
        strings(&document, &mut texts);
    }
    for line in printed.lines() {
        texts.push(line.to_owned());
        if let Ok(event) = serde_json::from_str(line) {
            strings(&event, &mut texts);
        }
    }
    for text in texts {
        assert_eq!(text, plain(&text), "{what}");
        assert!(!text.starts_with("  - Forged"), "{what}: {printed}");
    }
}

#[tokio::test]
async fn no_name_steers_a_terminal_or_turns_a_line_around() -> Result<()> {
    let world = world().await?;
    let (aria, owner) = refused_streamer(&world, "aria").await?;
    device(&world, owner, "phone").await?;
    let master = user(&world, NAME).await?;
    device(&world, master, "laptop").await?;
    campaign(&world, aria, NAME, master, "ACTIVE").await?;
    refused_before(&world, aria).await?;
    let expired = NewStreamer {
        token_left: TimeDelta::minutes(-30),
        authorized_for: Some(TimeDelta::hours(6)),
        ..NewStreamer::due("broken")
    };
    let broken = world.add(expired).await?;
    for change in [
        "UPDATE streamers SET twitch_display_name = $1, twitch_login = left($1, 20) || twitch_login",
        "UPDATE campaigns SET name = $1 || id",
        "UPDATE users SET display_name = $1",
    ] {
        sqlx::query(change).bind(NAME).execute(&world.pool).await?;
    }
    let text = "UPDATE streamers SET refresh_token_encrypted = 'v1.2020.AAAA' WHERE id = $1";
    sqlx::query(text).bind(broken.0).execute(&world.pool).await?;

    // A function's log, in both forms.
    let environment = world.environment();
    let mut seen = 0;
    for format in ["json", "text"] {
        let log = tempfile::NamedTempFile::new()?;
        let environment = changed(environment.clone(), &[("LOG_FORMAT", format), ("LOG_LEVEL", "debug")]);
        let stderr = Stdio::from(File::create(log.path())?);
        let function = Function::start(&binary("scheduled-refresh").await?, &environment, stderr).await?;
        function.invoke(json!({ "trigger": "sweep" }), Duration::from_mins(5)).await?;
        let printed = read_to_string(log.path())?;
        seen += printed.matches("Evil").count();
        assert_plain(format, &printed);
    }
    assert!(seen > 2, "the log names streamers");

    let push = RecordingPush::default();
    deliver(&notify(&world, &push).await?).await?;
    let sent = push.sent();
    assert_eq!(sent.len(), 2, "to the streamer and to the game master");
    for (device, message) in sent {
        let payload = std::str::from_utf8(&message.payload)?;
        assert!(payload.contains("Evil"), "{payload}");
        assert_plain(&device, payload);
    }

    let id = aria.to_string();
    for arguments in [
        &["refresh", "--force"][..],
        &["refresh", "--force", "--json"],
        &["status"],
        &["status", "--json"],
        &["history", &id],
        &["history", &id, "--json"],
        &["coverage"],
        &["coverage", "--json"],
        &["notifications"],
        &["notifications", "--json"],
        &["reactivate", "--since", "1h", "--dry-run"],
        &["reactivate", "--since", "1h", "--dry-run", "--json"],
        &["rekey", "--dry-run"],
        &["rekey", "--dry-run", "--json"],
        &["doctor"],
        &["doctor", "--json"],
        &["refresh", &id],
    ] {
        let printed = tokens(&environment, arguments).await?;
        let what = arguments.join(" ");
        assert_plain(&what, &printed.stdout);
        assert_plain(&what, &printed.stderr);
        let names = !["history", "doctor"].contains(&arguments[0]);
        let said = printed.stdout + &printed.stderr;
        assert!(!names || said.contains("Evil"), "{what}: {said}");
    }
    Ok(())
}
