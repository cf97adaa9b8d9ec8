//! What can be read of an answer's body. A refresh token that Twitch has rotated exists nowhere else, so whatever of it
//! arrived counts: with a byte-order mark, with padding, without an end, compressed without having been asked.

use std::fmt;
use std::io::Read as _;
use std::time::Duration;

use flate2::read::GzDecoder;
use reqwest::Response;
use serde::Deserializer as _;
use serde::de::{MapAccess, Visitor};
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout_at};

use super::no_end;

/// Twitch's answers are under 1 KB. What comes after this is not read.
const MAX_BODY: usize = 64 * 1024;

/// For how long a body that has all its JSON may go on before it is taken as it is.
const END_TIMEOUT: Duration = Duration::from_millis(500);

/// A body, as far as it came.
pub(super) struct Body {
    pub(super) object: Object,
    /// Why the rest did not come.
    pub(super) cut_short: Option<String>,
}

/// The JSON object that a body begins with.
#[derive(Default)]
pub(super) struct Object {
    fields: Map<String, Value>,
    /// Whether all of it was there. If not, these are the fields before the break.
    pub(super) is_whole: bool,
}

impl Body {
    pub(super) async fn read(response: &mut Response) -> Self {
        let (mut bytes, mut object, mut patient_until) = (Vec::new(), Object::default(), None);
        let cut_short = loop {
            let chunk = match patient_until {
                None => response.chunk().await,
                Some(until) => match timeout_at(until, response.chunk()).await {
                    Ok(chunk) => chunk,
                    Err(_) => break None,
                },
            };
            match chunk {
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Ok(None) => break None,
                Err(error) => break Some(no_end(&error)),
            }
            if !object.is_whole {
                object = Object::read(&bytes);
                patient_until = object.is_whole.then(|| Instant::now() + END_TIMEOUT);
            }
            if bytes.len() > MAX_BODY {
                let status = response.status().as_u16();
                break Some(format!("Twitch answered {status} with more than {} KB", MAX_BODY / 1024));
            }
        };
        Self { object, cut_short }
    }
}

impl Object {
    pub(super) fn read(bytes: &[u8]) -> Self {
        let mut inflated = Vec::new();
        let bytes = if bytes.starts_with(&[0x1f, 0x8b]) {
            // What came before an error stays in `inflated`.
            let _ = GzDecoder::new(bytes).take(MAX_BODY as u64).read_to_end(&mut inflated);
            &inflated
        } else {
            bytes
        };
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, '\u{feff}' | '\0'));
        let mut fields = Map::new();
        // It does not look for the end of the text: what comes after the object is padding.
        let read = serde_json::Deserializer::from_str(text).deserialize_map(Fields(&mut fields));
        Self { is_whole: read.is_ok(), fields }
    }

    /// The field's text, if it has one that arrived as it was sent.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.fields
            .get(name)?
            .as_str()
            .filter(|text| !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER))
    }

    /// The field's value, if all of the object was there: of a number the last digits may be missing.
    pub(super) fn whole_field(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|_| self.is_whole)
    }

    /// The texts of the fields with one of these names, in any case, in the order of the names.
    pub(super) fn texts<'a>(&'a self, names: &'a [&str]) -> impl Iterator<Item = &'a str> {
        names.iter().flat_map(|name| {
            self.fields
                .iter()
                .filter(|(field, _)| field.eq_ignore_ascii_case(name))
                .filter_map(|(_, value)| value.as_str())
        })
    }
}

/// Keeps each field as soon as it is read. Of two with one name the last counts.
struct Fields<'a>(&'a mut Map<String, Value>);

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((name, value)) = map.next_entry()? {
            self.0.insert(name, value);
        }
        Ok(())
    }
}
