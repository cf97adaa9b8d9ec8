//! What keeps us from a database, from Twitch and from AWS: the doctor says what it really is, in each kind of way.

use anyhow::Result;
use futures::future::try_join_all;
use tokens_tests::aws::SimulatedAws;
use tokens_tests::{changed, tokens, world};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::{Environment, read};

/// A name that no resolver is asked about: a label has 63 characters at most.
const NO_NAME: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.invalid";

const STARTING: &[u8] = b"E\0\0\0\x37SFATAL\0VFATAL\0C57P03\0Mthe database is starting up\0\0";
const BAD_REQUEST: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno";
const UNKNOWN_KEY: &[u8] =
    b"HTTP/1.1 403 Forbidden\r\nx-amzn-errortype: UnrecognizedClientException\r\nContent-Length: 2\r\n\r\n{}";

/// A server that hears something, says this, and hangs up.
async fn says(text: &'static [u8]) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = client.read(&mut [0; 1024]).await;
                let _ = client.write_all(text).await;
            });
        }
    });
    Ok(port)
}

#[tokio::test]
async fn each_dependency_has_its_real_cause() -> Result<()> {
    let (world, aws) = (world().await?, SimulatedAws::start().await?);
    let environment: Environment = world.environment().into_iter().chain(aws.environment()).collect();
    let (closes, http, starting) = (says(b"").await?, says(BAD_REQUEST).await?, says(STARTING).await?);
    let (without_tls, unknown_key) = (says(b"N").await?, says(UNKNOWN_KEY).await?);
    let database = |place: String| ("DATABASE_URL", format!("postgres://app@{place}"));
    let twitch = |url: String| ("TWITCH_ID_URL", url);
    let aws = |url: String| ("AWS_ENDPOINT_URL", url);
    // Port 9 is discard: nothing listens there.
    let cases = [
        (database("127.0.0.1:9/x".to_owned()), "Connection refused"),
        (database(format!("{NO_NAME}/x?sslmode=verify-full")), "failed to lookup address information"),
        (database(format!("127.0.0.1:{closes}/x?sslmode=disable")), "the server closed the connection"),
        (database(format!("127.0.0.1:{http}/x")), "what answers is not PostgreSQL"),
        (database(format!("127.0.0.1:{starting}/x?sslmode=disable")), "the database is starting up"),
        (database(format!("127.0.0.1:{without_tls}/x?sslmode=verify-full")), "server does not support TLS"),
        (twitch("http://127.0.0.1:9".to_owned()), "no connection to Twitch: Connection refused"),
        (twitch("https://nowhere.invalid".to_owned()), "no connection to Twitch"),
        (twitch(format!("http://127.0.0.1:{closes}")), "connection closed before message completed"),
        (twitch(format!("http://127.0.0.1:{http}")), "Twitch answered 400 with a body"),
        (twitch(format!("https://127.0.0.1:{http}")), "received corrupt message"),
        (aws("http://127.0.0.1:9".to_owned()), "Connection refused"),
        (aws(format!("http://{NO_NAME}")), "failed to lookup address information"),
        (aws(format!("http://127.0.0.1:{closes}")), "connection closed before message completed"),
        (aws(format!("http://127.0.0.1:{http}")), "what answers is not AWS (400)"),
        (aws(format!("https://127.0.0.1:{http}")), "received corrupt message"),
        (aws(format!("http://127.0.0.1:{unknown_key}")), "UnrecognizedClientException (403)"),
        (("AWS_ACCESS_KEY_ID", String::new()), "no AWS credentials: "),
    ];
    let looks = cases.map(async |((name, value), says)| {
        let changes =
            [(name, value.as_str()), ("AWS_EC2_METADATA_DISABLED", "true"), ("TWITCH_ID_URL_ALLOW", "on")];
        let said = read(&tokens(&changed(environment.clone(), &changes), &["doctor", "--json"]).await?)?;
        let topic = match name {
            "DATABASE_URL" => "database",
            "TWITCH_ID_URL" => "twitch",
            _ => "schedules",
        };
        said.only_fault(topic, says);
        anyhow::Ok(())
    });
    try_join_all(looks).await?;
    Ok(())
}
