//! `application/x-www-form-urlencoded`, read strictly. A lenient reader would hide that a client forgot to escape the
//! `%` of a refresh token.

use std::collections::HashMap;

use super::answer::Answer;

/// Parameters by name. There is no `Debug`, since they include tokens.
pub(super) struct Form {
    parameters: HashMap<String, String>,
}

impl Form {
    /// Reads a body. Refuses broken escapes and parameters that are given twice.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Answer> {
        let broken = text.split(|byte| *byte == b'%').skip(1).any(
            |rest| !matches!(rest, [high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit()),
        );
        if broken {
            return Err(Answer::bad_request("a ‘%’ must be followed by two hexadecimal digits"));
        }
        let mut parameters = HashMap::new();
        for (name, value) in url::form_urlencoded::parse(text) {
            if parameters.insert(name.into_owned(), value.into_owned()).is_some() {
                return Err(Answer::bad_request("a parameter is given twice"));
            }
        }
        Ok(Self { parameters })
    }

    /// The parameter's value; an empty one counts as missing.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The values that must not become known.
    pub(super) fn secrets(&self) -> Vec<&str> {
        ["refresh_token", "client_secret"].into_iter().filter_map(|name| self.get(name)).collect()
    }
}
