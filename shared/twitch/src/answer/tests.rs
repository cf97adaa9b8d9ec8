//! What each answer means.

use std::io::Read as _;

use super::*;

fn answer(status: u16, body: impl AsRef<[u8]>) -> Answer {
    let body = Body { object: Object::read(body.as_ref()), cut_short: None };
    Answer { status: StatusCode::from_u16(status).unwrap(), wait: None, body }
}

fn refresh(status: u16, body: impl AsRef<[u8]>) -> Result<TokenResponse, RefreshError> {
    answer(status, body).into_token_response(&RefreshToken::new("sent".to_owned()), &["a:b".to_owned()])
}

/// Access token, refresh token and lifetime.
type Kept = (String, String, Option<i64>);

fn kept(status: u16, body: impl AsRef<[u8]>) -> Option<Kept> {
    let TokenResponse { pair, expires_in, .. } = refresh(status, body).ok()?;
    let seconds = expires_in.map(|left| left.num_seconds());
    Some((pair.access.expose().to_owned(), pair.refresh.expose().to_owned(), seconds))
}

const PAIR: &str = r#"{"access_token":"new","expires_in":14124,"refresh_token":"next","scope":["a:b"],"token_type":"bearer"}"#;

fn tokens(access: &str, refresh: &str, seconds: Option<i64>) -> Kept {
    (access.to_owned(), refresh.to_owned(), seconds)
}

fn whole() -> Kept {
    tokens("new", "next", Some(14_124))
}

#[test]
fn a_pair_is_kept_under_every_success_status() {
    for status in [200, 201, 202, 203, 206, 299] {
        assert_eq!(kept(status, PAIR), Some(whole()), "{status}");
    }
    for status in [302, 400, 500] {
        assert_eq!(kept(status, PAIR), None, "{status}");
    }
}

#[test]
fn a_pair_is_kept_whatever_surrounds_it() {
    for (before, after) in [
        ("\u{feff}", ""),
        ("", "\n"),
        ("", "\r\n\r\n"),
        ("", "\0\0\0"),
        (" \u{feff}\t\0", " \0 "),
        ("", "}"),
        ("", "<!-- cache -->"),
        ("", PAIR),
    ] {
        assert_eq!(kept(200, format!("{before}{PAIR}{after}")), Some(whole()), "{before:?} {after:?}");
    }
    assert_eq!(kept(200, format!("{PAIR}{}", " ".repeat(1_000_000))), Some(whole()));
    assert_eq!(kept(200, [PAIR.as_bytes(), &[0xff, 0xfe, 0x80]].concat()), Some(whole()));
}

#[test]
fn a_pair_is_kept_although_its_body_has_no_end_or_is_compressed() {
    let end_of_pair = PAIR.find(r#","scope"#).unwrap();
    for length in 0..=PAIR.len() {
        let expected = match length {
            _ if length < end_of_pair => None,
            // Of the rest nothing is believed.
            _ if length < PAIR.len() => Some(tokens("new", "next", None)),
            _ => Some(whole()),
        };
        assert_eq!(kept(200, &PAIR[..length]), expected, "{length}");
    }
    let cut = refresh(200, &PAIR[..end_of_pair]).unwrap();
    assert!(cut.missing_scopes.is_empty());
    let mut compressed = Vec::new();
    flate2::read::GzEncoder::new(PAIR.as_bytes(), flate2::Compression::fast())
        .read_to_end(&mut compressed)
        .unwrap();
    assert_eq!(kept(200, &compressed), Some(whole()));
    assert_eq!(kept(200, &compressed[..compressed.len() - 4]), Some(whole()));
    assert_eq!(kept(200, [compressed, vec![0; 100]].concat()), Some(whole()));
}

#[test]
fn a_pair_is_kept_whatever_its_other_fields_are() {
    for scope in ["null", "\"a:b c:d\"", "[]", "[1]", "{}", "12", "\"a\\u0000b\""] {
        let body = format!(r#"{{"access_token":"new","refresh_token":"next","scope":{scope}}}"#);
        assert_eq!(kept(200, body), Some(tokens("new", "next", None)), "{scope}");
    }
    for (expires_in, expected) in [
        ("14124", Some(14_124)),
        ("\"14124\"", Some(14_124)),
        ("14124.9", Some(14_124)),
        ("1.4124e4", Some(14_124)),
        ("0", None),
        ("-1", None),
        ("null", None),
        ("[]", None),
        ("\"soon\"", None),
        ("1e300", None),
        ("99999999999999999999999", None),
    ] {
        let body = format!(r#"{{"expires_in":{expires_in},"access_token":"new","refresh_token":"next"}}"#);
        assert_eq!(kept(200, body), Some(tokens("new", "next", expected)), "{expires_in}");
    }
    // A field twice, and one that is not in UTF-8.
    let twice = format!(r#"{{"access_token":"old","scope":1,{}"#, &PAIR[1..]);
    assert_eq!(kept(200, twice), Some(whole()));
    let odd = [br#"{"login":"caf"#.as_slice(), &[0xe9], br#"","#, &PAIR.as_bytes()[1..]].concat();
    assert_eq!(kept(200, odd), Some(whole()));
}

#[test]
fn a_token_is_kept_as_it_is_spelled() {
    for (json, token) in [
        ("a%2Fb/c+d==", "a%2Fb/c+d=="),
        (r#"quote\"and\\slash\/"#, r#"quote"and\slash/"#),
        (r"\u0061\ud83d\ude00", "a\u{1f600}"),
        (" space ", " space "),
    ] {
        let body = format!(r#"{{"access_token":"{json}","refresh_token":"{json}"}}"#);
        assert_eq!(kept(200, body), Some(tokens(token, token, None)), "{json}");
    }
}

#[test]
fn a_refresh_token_that_is_not_named_stays() {
    for rest in ["", r#","refresh_token":null"#, r#","refresh_token":"""#, r#","refresh_token":7"#] {
        let body = format!(r#"{{"access_token":"new"{rest}}}"#);
        assert_eq!(kept(200, body), Some(tokens("new", "sent", None)), "{rest}");
    }
}

#[test]
fn a_success_without_a_readable_access_token_is_an_outage() {
    for body in [
        "",
        "{}",
        "null",
        "[]",
        "<html>",
        "upstream connect error",
        r#"{"access_token":"","refresh_token":"next"}"#,
        r#"{"access_token":12345,"refresh_token":"next"}"#,
        r#"{"refresh_token":"next"}"#,
    ] {
        assert!(matches!(refresh(200, body), Err(RefreshError::Outage(_))), "{body}");
    }
    let broken = [br#"{"access_token":"n"#.as_slice(), &[0xff], br#"w","refresh_token":"next"}"#].concat();
    assert!(matches!(refresh(200, broken), Err(RefreshError::Outage(_))));
}

#[test]
fn only_plain_words_of_twitchs_are_repeated() {
    let message = |body: &str| answer(400, body).message();
    assert_eq!(message(r#"{"message":"Invalid refresh token"}"#).as_deref(), Some("Invalid refresh token"));
    assert_eq!(message(r#"{"error":"invalid_client"}"#).as_deref(), Some("invalid_client"));
    assert_eq!(message(r#"{"message":"token 0123456789abcdefghij is invalid"}"#), None);
    assert_eq!(message("<html>"), None);
}

#[test]
fn refused_credentials_are_a_misconfiguration_whatever_the_status_and_the_spelling() {
    let saying = |message: &str| serde_json::json!({ "message": message }).to_string();
    let is_ours = |error: &RefreshError| {
        matches!(error, RefreshError::Misconfigured(reason)
            if reason.ends_with("check TWITCH_CLIENT_ID and TWITCH_CLIENT_SECRET"))
    };
    for status in [400, 401, 403, 404] {
        for message in [
            "invalid client",
            "Invalid Client",
            "INVALID CLIENT ID",
            "missing client id",
            "missing client secret",
            "invalid client secret",
            "client does not exist",
            "Client ID and secret do not match",
            "client is suspended",
            "invalid client: 0123456789abcdefghijklmnopqrst",
            "bad secret",
            "invalid credentials",
        ] {
            for error in [
                refresh(status, saying(message)).unwrap_err(),
                answer(status, saying(message)).into_application_token().unwrap_err(),
                answer(status, saying(message)).into_revocation().unwrap_err(),
            ] {
                assert!(is_ours(&error), "{status} {message}: {error:?}");
            }
        }
    }
    for (status, body) in [
        (401, r#"{"error":"invalid_client"}"#),
        (400, r#"{"error":"unauthorized_client","error_description":"not for refresh tokens"}"#),
        (401, r#"{"error":"invalid_client","error_description":"unknown at the token endpoint"}"#),
        (401, r#"{"error":"Unauthorized","status":401,"message":"invalid client"}"#),
        (401, r#"{"Error":"Unauthorized","Message":"Invalid Client"}"#),
        (401, "\u{feff}{\"message\":\"invalid client\"}\n"),
        (401, r#"{"message":"invalid client","status":4"#),
        (200, r#"{"error":"invalid_client"}"#),
        (422, r#"{"message":"client does not exist"}"#),
        (500, r#"{"message":"invalid client secret"}"#),
    ] {
        let error = refresh(status, body).unwrap_err();
        assert!(is_ours(&error), "{body}: {error:?}");
    }
}

#[test]
fn what_accuses_no_application_stops_no_cycle() {
    for (status, body) in [
        (400, r#"{"message":"refresh token belongs to another client"}"#),
        (403, r#"{"message":"forbidden"}"#),
        (404, r#"{"message":"not found"}"#),
        (400, r#"{"message":"invalid grant type"}"#),
        (401, r#"{"error":"Unauthorized"}"#),
        (401, "invalid client"),
        (403, "<html>client</html>"),
        (499, r#"{"message":"client closed request"}"#),
        (500, r#"{"message":"upstream client error"}"#),
    ] {
        let error = refresh(status, body).unwrap_err();
        assert!(matches!(error, RefreshError::Outage(_)), "{status} {body}: {error:?}");
    }
    for body in [
        r#"{"message":"Invalid refresh token for this client"}"#,
        r#"{"error":"invalid_grant","error_description":"the client got it revoked"}"#,
    ] {
        let error = refresh(400, body).unwrap_err();
        assert!(matches!(error, RefreshError::Refused(_)), "{body}: {error:?}");
    }
}

#[test]
fn our_own_token_is_refused_for_nothing_but_our_credentials() {
    for (status, message) in [(400, "Bad Request"), (401, "invalid token"), (403, "forbidden")] {
        let body = serde_json::json!({ "message": message }).to_string();
        let error = answer(status, body).into_application_token().unwrap_err();
        assert!(matches!(error, RefreshError::Misconfigured(_)), "{status} {message}: {error:?}");
    }
    for (status, body) in [(403, "<html>"), (500, r#"{"message":"error"}"#), (200, "")] {
        let error = answer(status, body).into_application_token().unwrap_err();
        assert!(matches!(error, RefreshError::Outage(_)), "{status} {body}: {error:?}");
    }
}

fn validity(body: &str) -> Option<Validation> {
    match answer(200, body).into_validity(&["polls:read".to_owned(), "polls:write".to_owned()]) {
        Ok(Validity::Valid(validation)) => Some(validation),
        Ok(Validity::Invalid) => panic!("{body} is not invalid"),
        Err(_) => None,
    }
}

#[test]
fn a_validation_says_for_how_long_for_whom_and_for_what() {
    let said = validity(
        r#"{"client_id":"app","login":"aria","scopes":["polls:read"],"user_id":"7","expires_in":60}"#,
    );
    let expected = Validation {
        lifetime: Lifetime::Limited(TimeDelta::seconds(60)),
        client_id: Some("app".to_owned()),
        user_id: Some("7".to_owned()),
        missing_scopes: vec!["polls:write".to_owned()],
    };
    assert_eq!(said, Some(expected));
    for (expires_in, lifetime) in [
        ("0", Lifetime::Unlimited),
        (r#""0""#, Lifetime::Unlimited),
        (r#""90""#, Lifetime::Limited(TimeDelta::seconds(90))),
        ("null", Lifetime::Unknown),
        ("-1", Lifetime::Unknown),
        ("99999999999", Lifetime::Unknown),
        ("[]", Lifetime::Unknown),
    ] {
        let said = validity(&format!(r#"{{"client_id":"app","expires_in":{expires_in}}}"#));
        assert_eq!(said.map(|said| said.lifetime), Some(lifetime), "{expires_in}");
    }
    for (scopes, missing) in [
        ("", 0),
        (r#","scopes":null"#, 2),
        (r#","scopes":[]"#, 2),
        (r#","scopes":"polls:read polls:write""#, 0),
        (r#","scopes":["polls:write","polls:read","more"]"#, 0),
    ] {
        let said = validity(&format!(r#"{{"client_id":"app","user_id":7{scopes}}}"#)).unwrap();
        assert_eq!(said.missing_scopes.len(), missing, "{scopes}");
        assert_eq!((said.user_id, said.lifetime), (None, Lifetime::Unknown), "an id is a text");
    }
    for nothing in ["", "{}", "[]", "<html>", r#"{"status":"ok"}"#] {
        assert_eq!(validity(nothing), None, "{nothing}");
    }
}
