//! `application/x-www-form-urlencoded`, read strictly. A lenient reader would hide that a client forgot to escape the
//! `%` of a refresh token.

use std::collections::HashMap;

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    http::header,
};

use super::answer::Answer;

/// Far above any form that a client of these endpoints can mean.
const BODY_LIMIT: usize = 64 * 1024;

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

/// The form in a request's body. The real service also reads the query string; here that is an error, since whatever
/// stands in an address ends up in logs.
pub(super) async fn read_form(request: Request<Body>) -> Result<Form, Answer> {
    if request.uri().query().is_some() {
        return Err(Answer::bad_request("parameters belong in the body, never in the query string"));
    }
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return Err(Answer::bad_request("the body must be application/x-www-form-urlencoded"));
    }
    let body = to_bytes(request.into_body(), BODY_LIMIT)
        .await
        .map_err(|_| Answer::bad_request("the body can't be read or is too long"))?;
    Form::parse(&body)
}
