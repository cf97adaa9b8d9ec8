//! What a push service's answer means. Nothing above sees HTTP.

use std::error::Error;

use chrono::{DateTime, TimeDelta, Utc};
use domain::notification::PushAnswer;
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use crate::endpoint::Refused;

/// The longest that we let a push service ask for: by then the notification is stale.
const LONGEST_WAIT: TimeDelta = TimeDelta::hours(24);

/// The class of an answer by its status.
pub(crate) fn of_response(
    host: &str,
    status: StatusCode,
    headers: &HeaderMap,
    now: DateTime<Utc>,
) -> PushAnswer {
    let reason = format!("{host} answered {}", status.as_u16());
    match status.as_u16() {
        200 | 201 | 202 | 204 => PushAnswer::Accepted,
        404 | 410 => PushAnswer::Gone,
        401 | 403 => PushAnswer::Unauthorized(format!(
            "{reason}: check VAPID_PUBLIC_KEY, VAPID_PRIVATE_KEY and VAPID_SUBJECT"
        )),
        // 408 and 425 say of themselves that the same request may be sent again.
        408 | 425 | 429 | 500..=599 => PushAnswer::Busy { retry_after: retry_after(headers, now), reason },
        300..=399 => PushAnswer::Rejected(format!("{reason}: redirects are not followed")),
        _ => PushAnswer::Rejected(reason),
    }
}

/// The class of a call without an answer.
pub(crate) fn of_error(host: &str, error: &reqwest::Error) -> PushAnswer {
    if let Some(refused) = sources(error).find_map(|source| source.downcast_ref::<Refused>()) {
        return PushAnswer::Rejected(refused.to_string());
    }
    if error.is_builder() {
        return PushAnswer::Rejected("no request can be made of the endpoint".to_owned());
    }
    let reason = if error.is_connect() {
        format!("no connection to {host}: {}", cause(error))
    } else if error.is_timeout() {
        format!("{host} did not answer within {} s", crate::CALL_TIMEOUT.as_secs())
    } else {
        format!("the answer of {host} broke off: {}", cause(error))
    };
    PushAnswer::Busy { retry_after: None, reason }
}

/// The innermost error, which says what happened. reqwest's own, the outermost, would show the URL.
pub(crate) fn cause(error: &reqwest::Error) -> String {
    sources(error).last().map_or_else(|| "no reason is known".to_owned(), ToString::to_string)
}

fn sources(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |&error| error.source())
}

fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<TimeDelta> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    Some(domain::retry_after(text, now)?.min(LONGEST_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, retry_after: Option<&str>) -> PushAnswer {
        let mut headers = HeaderMap::new();
        if let Some(text) = retry_after {
            headers.insert(RETRY_AFTER, text.parse().unwrap());
        }
        let now = "2026-11-23T04:00:00Z".parse().unwrap();
        of_response("push.example.com", StatusCode::from_u16(status).unwrap(), &headers, now)
    }

    #[test]
    fn every_status_has_its_class() {
        let busy = |status: u16| PushAnswer::Busy {
            retry_after: None,
            reason: format!("push.example.com answered {status}"),
        };
        for status in [200, 201, 202, 204] {
            assert_eq!(answer(status, None), PushAnswer::Accepted);
        }
        for status in [404, 410] {
            assert_eq!(answer(status, None), PushAnswer::Gone);
        }
        for status in [401, 403] {
            assert!(matches!(answer(status, None), PushAnswer::Unauthorized(reason)
                if reason.contains(&status.to_string()) && reason.contains("VAPID_SUBJECT")));
        }
        for status in [408, 425, 429, 500, 502, 503, 504, 599] {
            assert_eq!(answer(status, None), busy(status));
        }
        for status in [203, 301, 302, 307, 308, 400, 402, 405, 411, 413, 415, 418, 422, 451, 600] {
            assert!(matches!(answer(status, None), PushAnswer::Rejected(reason)
                if reason.contains(&status.to_string())));
        }
    }

    #[test]
    fn retry_after_never_goes_beyond_a_day() {
        for (text, expected) in [
            ("120", Some(TimeDelta::minutes(2))),
            ("86401", Some(TimeDelta::hours(24))),
            ("99999999999999999999999", Some(TimeDelta::hours(24))),
            ("Mon, 23 Nov 2026 04:10:00 GMT", Some(TimeDelta::minutes(10))),
            ("Mon, 30 Nov 2026 04:00:00 GMT", Some(TimeDelta::hours(24))),
            ("soon", None),
        ] {
            for status in [429, 503] {
                let PushAnswer::Busy { retry_after, .. } = answer(status, Some(text)) else { panic!() };
                assert_eq!(retry_after, expected, "{text}");
            }
        }
    }
}
