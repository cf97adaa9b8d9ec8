//! What a push service's answer means. Nothing above sees HTTP.

use std::error::Error;

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use tokens_domain::notification::PushAnswer;

use crate::endpoint::{NoSuchName, Refused};

/// The longest that we let a push service ask for: by then the notification is stale.
const MAX_WAIT: TimeDelta = TimeDelta::hours(24);

/// Where Windows' service says that it did not keep a message, behind a status that sounds as if it had.
const WINDOWS_STATUS: [&str; 2] = ["x-wns-status", "x-wns-notificationstatus"];

/// The class of an answer. Deleting a subscription and giving a message up can't be taken back, so what asks to be
/// tried again later is temporary whatever its status, and so is an unknown status.
pub(crate) fn of_response(
    host: &str,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    now: DateTime<Utc>,
) -> PushAnswer {
    let reason = format!("{host} answered {}", status.as_u16());
    let busy = |reason| PushAnswer::Busy { retry_after: retry_after(headers, now), reason };
    if status.is_success() {
        return match dropped(headers) {
            Some(how) => busy(format!("{reason}, and {how} the message")),
            None => PushAnswer::Accepted,
        };
    }
    if headers.contains_key(RETRY_AFTER) {
        return busy(reason);
    }
    match status.as_u16() {
        404 | 410 => PushAnswer::Gone,
        401 | 403 => PushAnswer::Unauthorized(reason),
        400 if is_about_the_key(body) => PushAnswer::Unauthorized(reason),
        300..=399 => PushAnswer::Rejected(format!("{reason}: redirects are not followed")),
        // The request itself will never be taken.
        400 | 405 | 411 | 413..=417 | 422 | 426 | 428 | 431 | 451 => PushAnswer::Rejected(reason),
        _ => busy(reason),
    }
}

/// Whether a 400 is about our VAPID, as Apple's `{"reason":"VapidPkHashMismatch"}` or Google's `UnauthorizedRegistration` is.
fn is_about_the_key(body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body).to_lowercase();
    ["vapid", "jwt", "authorization", "unauthorized", "mismatchsenderid"]
        .iter()
        .any(|word| text.contains(word))
}

/// What Windows' service did instead of keeping the message.
fn dropped(headers: &HeaderMap) -> Option<&'static str> {
    WINDOWS_STATUS.iter().filter_map(|name| headers.get(*name)?.to_str().ok()).find_map(|text| {
        match text.trim().to_ascii_lowercase().as_str() {
            "dropped" => Some("dropped"),
            "channelthrottled" => Some("throttled"),
            _ => None,
        }
    })
}

/// The class of a call without an answer.
pub(crate) fn of_error(host: &str, error: &reqwest::Error) -> PushAnswer {
    if let Some(refused) = sources(error).find_map(|source| source.downcast_ref::<Refused>()) {
        return of_refused(*refused);
    }
    if sources(error).any(|source| source.downcast_ref::<NoSuchName>().is_some()) {
        return PushAnswer::NoSuchName(format!("there is no {host}"));
    }
    if error.is_builder() {
        return PushAnswer::Rejected("no request can be made of the endpoint".to_owned());
    }
    PushAnswer::NoAnswer(if error.is_connect() {
        format!("no connection to {host}: {}", cause(error))
    } else if error.is_timeout() {
        format!("{host} did not answer within {} s", crate::CALL_TIMEOUT.as_secs())
    } else {
        format!("the answer of {host} broke off: {}", cause(error))
    })
}

/// The class of an endpoint that is not called.
pub(crate) fn of_refused(refused: Refused) -> PushAnswer {
    if refused.is_permanent() {
        PushAnswer::Unreachable(refused.to_string())
    } else {
        PushAnswer::Rejected(refused.to_string())
    }
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
    Some(tokens_domain::retry_after(text, now)?.min(MAX_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, retry_after: Option<&str>) -> PushAnswer {
        with_headers(status, retry_after.map(|text| ("retry-after", text)).as_slice())
    }

    fn with_headers(status: u16, headers: &[(&'static str, &str)]) -> PushAnswer {
        let headers =
            headers.iter().map(|&(name, text)| (name.parse().unwrap(), text.parse().unwrap())).collect();
        let now = "2026-11-23T04:00:00Z".parse().unwrap();
        of_response("push.example.com", StatusCode::from_u16(status).unwrap(), &headers, b"", now)
    }

    #[test]
    fn every_status_has_its_class() {
        let busy = |status: u16| PushAnswer::Busy {
            retry_after: None,
            reason: format!("push.example.com answered {status}"),
        };
        for status in [200, 201, 202, 203, 204, 299] {
            assert_eq!(answer(status, None), PushAnswer::Accepted);
        }
        for status in [404, 410] {
            assert_eq!(answer(status, None), PushAnswer::Gone);
        }
        for status in [401, 403] {
            assert!(matches!(answer(status, None), PushAnswer::Unauthorized(reason)
                if reason == format!("push.example.com answered {status}")));
        }
        for status in
            [402, 406, 408, 409, 418, 421, 423, 425, 429, 460, 500, 501, 502, 503, 504, 599, 600, 999]
        {
            assert_eq!(answer(status, None), busy(status));
        }
        for status in [300, 301, 302, 307, 308, 400, 405, 411, 413, 414, 415, 422, 431, 451] {
            assert!(matches!(answer(status, None), PushAnswer::Rejected(reason)
                if reason.contains(&status.to_string())));
        }
    }

    #[test]
    fn whatever_asks_to_be_tried_again_is_temporary() {
        let asked = |status, text| match answer(status, Some(text)) {
            PushAnswer::Busy { retry_after, .. } => retry_after,
            other => panic!("{status}: {other:?}"),
        };
        for status in (300..1000).filter(|status| StatusCode::from_u16(*status).is_ok()) {
            assert_eq!(asked(status, "120"), Some(TimeDelta::minutes(2)), "{status}");
            assert_eq!(asked(status, "soon"), None, "{status}");
        }
        for status in [200, 201, 202, 204] {
            assert_eq!(answer(status, Some("120")), PushAnswer::Accepted);
        }
    }

    #[test]
    fn a_400_about_the_key_is_no_fault_of_the_message() {
        let answer = |body: &str| {
            let (status, now) = (StatusCode::BAD_REQUEST, "2026-11-23T04:00:00Z".parse().unwrap());
            of_response("push.example.com", status, &HeaderMap::new(), body.as_bytes(), now)
        };
        for body in [
            r#"{"reason":"BadJwtToken"}"#,
            r#"{"reason":"VapidPkHashMismatch"}"#,
            r#"{"reason":"ExpiredJwtToken"}"#,
            r#"{"reason":"BadAuthorizationHeader"}"#,
            "UnauthorizedRegistration",
            "the key in the authorization header does not correspond to the sender ID used to subscribe this user",
        ] {
            let PushAnswer::Unauthorized(reason) = answer(body) else { panic!("{body}") };
            assert_eq!(reason, "push.example.com answered 400", "nothing of the body is shown");
        }
        for body in
            ["", r#"{"reason":"BadWebPushTopic"}"#, r#"{"reason":"BadDeviceToken"}"#, "InvalidTokenFormat"]
        {
            assert!(matches!(answer(body), PushAnswer::Rejected(_)), "{body}");
        }
    }

    #[test]
    fn what_windows_service_drops_is_not_accepted() {
        for name in ["X-WNS-Status", "X-WNS-NotificationStatus"] {
            let name = name.to_ascii_lowercase().leak();
            for (text, how) in [("dropped", "dropped"), ("channelThrottled", "throttled")] {
                let PushAnswer::Busy { retry_after, reason } =
                    with_headers(200, &[(name, text), ("retry-after", "60")])
                else {
                    panic!("{name}: {text}")
                };
                assert_eq!(retry_after, Some(TimeDelta::minutes(1)));
                assert_eq!(reason, format!("push.example.com answered 200, and {how} the message"));
            }
            assert_eq!(with_headers(201, &[(name, "received")]), PushAnswer::Accepted);
            assert_eq!(with_headers(410, &[(name, "dropped")]), PushAnswer::Gone);
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
