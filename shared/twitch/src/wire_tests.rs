//! Answers that are odd on the wire, from a server that says exactly this.

use std::io::Read as _;
use std::sync::Arc;

use tokens_domain::ports::{RefreshError, Twitch as _};
use tokens_domain::{RefreshToken, SystemClock};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// What the server does after its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    HangsUp,
    KeepsSilent,
}

/// What a refresh comes to whose answer is this.
async fn refresh(answer: Vec<u8>, then: Then) -> Result<TokenResponse, RefreshError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let config = TwitchConfig {
        id_url: url.parse().unwrap(),
        credentials: Credentials {
            client_id: "client".to_owned(),
            client_secret: ClientSecret::new("secret"),
        },
        max_in_flight: 1,
        max_per_second: None,
        required_scopes: Vec::new(),
        ca_file: None,
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let client = TwitchClient::new(config, clock).unwrap();
    let server = async {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"refresh_token=sent") {
            connection.read_buf(&mut request).await.unwrap();
        }
        let head = String::from_utf8_lossy(&request).to_ascii_lowercase();
        assert!(head.contains("accept-encoding: identity\r\n"), "{head}");
        connection.write_all(&answer).await.unwrap();
        (then == Then::KeepsSilent).then_some(connection)
    };
    let sent = RefreshToken::new("sent".to_owned());
    let (refreshed, _connection) = tokio::join!(client.refresh(&sent, &Permit::UNCONDITIONAL), server);
    refreshed
}

const PAIR: &[u8] = br#"{"access_token":"new","expires_in":14124,"refresh_token":"next","scope":[]}"#;

fn with_head(head: &str, body: &[u8]) -> Vec<u8> {
    [b"HTTP/1.1 ", head.as_bytes(), b"\r\n\r\n", body].concat()
}

#[tokio::test]
async fn a_pair_that_arrived_is_kept() {
    let length = PAIR.len();
    let chunk = [format!("{length:x}\r\n").as_bytes(), PAIR, b"\r\n"].concat();
    let padding = " ".repeat(100_000);
    let padded = [format!("{:x}\r\n", length + padding.len()).as_bytes(), PAIR, padding.as_bytes()].concat();
    let mut compressed = Vec::new();
    flate2::read::GzEncoder::new(PAIR, flate2::Compression::fast()).read_to_end(&mut compressed).unwrap();
    let answers = [
        with_head("201 Created\r\nContent-Length: 75", PAIR),
        with_head("200 OK\r\nContent-Length: 76", PAIR),
        with_head("200 OK\r\nContent-Length: 999999", PAIR),
        with_head("200 OK\r\nConnection: close", PAIR),
        with_head("200 OK\r\nTransfer-Encoding: chunked", &chunk),
        with_head("200 OK\r\nTransfer-Encoding: chunked", &[&chunk[..], b"zz\r\n"].concat()),
        with_head("200 OK\r\nTransfer-Encoding: chunked", &padded),
        with_head("200 OK\r\nX Odd: header\r\nContent-Length: 75", PAIR),
        with_head("200 OK\r\nContent-Type: text/html\r\nContent-Length: 75", PAIR),
    ];
    assert_eq!(length, 75);
    for answer in &answers {
        for then in [Then::HangsUp, Then::KeepsSilent] {
            let text = String::from_utf8_lossy(&answer[..answer.len().min(150)]).into_owned();
            let kept = refresh(answer.clone(), then)
                .await
                .unwrap_or_else(|error| panic!("{text} {then:?}: {error}"));
            assert_eq!(
                (kept.pair.access.expose(), kept.pair.refresh.expose()),
                ("new", "next"),
                "{text} {then:?}"
            );
            assert_eq!(kept.expires_in, Some(TimeDelta::seconds(14_124)), "{text} {then:?}");
        }
    }
    let head = "200 OK\r\nContent-Encoding: gzip\r\nConnection: close";
    assert!(refresh(with_head(head, &compressed), Then::HangsUp).await.is_ok());
    // Its end is missing, but not that of the pair.
    let cut = with_head("200 OK\r\nContent-Length: 75", &PAIR[..length - 5]);
    assert_eq!(refresh(cut, Then::HangsUp).await.unwrap().expires_in, None);
}

#[tokio::test]
async fn an_answer_that_broke_off_says_so() {
    let cut = with_head("200 OK\r\nContent-Length: 75", &PAIR[..40]);
    let error = refresh(cut, Then::HangsUp).await.unwrap_err();
    assert!(
        matches!(&error, RefreshError::Outage(Outage(reason)) if reason.contains("broke off")),
        "{error:?}"
    );
    // What it refuses may be there all the same.
    let cut =
        with_head("400 Bad Request\r\nContent-Length: 75", br#"{"message":"Invalid refresh token","st"#);
    let error = refresh(cut, Then::HangsUp).await.unwrap_err();
    assert!(matches!(error, RefreshError::Refused(_)), "{error:?}");
}
