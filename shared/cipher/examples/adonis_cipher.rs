//! Our side of the cross-check against `AdonisJS` (`.ci/adonis/run`): one JSON request per line on standard input,
//! one JSON answer per line on standard output.
//!
//! It shows plain text by design, so it must never be given a real key or token.

use std::{
    error::Error,
    io::{self, BufRead, Write},
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokens_cipher::{CipherSettings, Column, TokenCipher};
use uuid::Uuid;

#[derive(Deserialize)]
struct Request {
    app_key: String,
    op: Op,
    text: String,
    /// When a text that expires is read.
    now: DateTime<Utc>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Op {
    Encrypt,
    Decrypt,
}

/// `text` is null where `AdonisJS` would answer null, and `why` says why.
#[derive(Serialize)]
struct Answer {
    text: Option<String>,
    why: Option<String>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut answers = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        serde_json::to_writer(&mut answers, &answer(serde_json::from_str(&line?)?)?)?;
        answers.write_all(b"\n")?;
    }
    Ok(())
}

fn answer(request: Request) -> Result<Answer, Box<dyn Error>> {
    let settings = CipherSettings { app_key: Some(request.app_key.into()), ..CipherSettings::default() };
    let cipher = TokenCipher::new(&settings).map_err(|faults| faults.join("; "))?;
    // The AdonisJS format is the same in every place.
    let (streamer, column) = (Uuid::nil(), Column::AccessToken);
    Ok(match request.op {
        Op::Encrypt => Answer { text: Some(cipher.encrypt(streamer, column, &request.text)?), why: None },
        Op::Decrypt => match cipher.decrypt(streamer, column, &request.text, request.now) {
            Ok(plain) => Answer { text: Some(plain.as_str().to_owned()), why: None },
            Err(unreadable) => Answer { text: None, why: Some(unreadable.to_string()) },
        },
    })
}
