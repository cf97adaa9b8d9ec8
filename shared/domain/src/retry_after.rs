//! `Retry-After`, as any HTTP service may send it (RFC 9110, section 10.2.3).

use std::time::SystemTime;

use chrono::{DateTime, TimeDelta, Utc};

/// How long the sender of this `Retry-After` wants to be left alone: seconds, or what is left until an HTTP date. `None`
/// if it is neither. The caller limits what it accepts.
#[must_use]
pub fn retry_after(text: &str, now: DateTime<Utc>) -> Option<TimeDelta> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that does not fit into the type is longer than any limit.
        return Some(text.parse().ok().and_then(TimeDelta::try_seconds).unwrap_or(TimeDelta::MAX));
    }
    let until: SystemTime = httpdate::parse_http_date(text).ok()?;
    Some((DateTime::<Utc>::from(until) - now).max(TimeDelta::zero()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_each_form_of_an_http_date_are_read() {
        let now = "2026-11-23T04:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("0", Some(TimeDelta::zero())),
            ("120", Some(TimeDelta::minutes(2))),
            (" 120 ", Some(TimeDelta::minutes(2))),
            ("9223372036854775807", Some(TimeDelta::MAX)),
            ("99999999999999999999999", Some(TimeDelta::MAX)),
            ("Mon, 23 Nov 2026 04:10:00 GMT", Some(TimeDelta::minutes(10))),
            ("Monday, 23-Nov-26 04:10:00 GMT", Some(TimeDelta::minutes(10))),
            ("Mon Nov 23 04:10:00 2026", Some(TimeDelta::minutes(10))),
            ("Mon, 23 Nov 2026 03:50:00 GMT", Some(TimeDelta::zero())),
            (
                "Fri, 31 Dec 9999 23:59:59 GMT",
                Some("9999-12-31T23:59:59Z".parse::<DateTime<Utc>>().unwrap() - now),
            ),
            ("soon", None),
            ("-5", None),
            ("1.5", None),
            ("", None),
        ] {
            assert_eq!(retry_after(text, now), expected, "{text}");
        }
    }
}
