//! The gateway over HTTP, in front of a function that does what it is asked to.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use local::gateway::{AtLimit, FunctionSpec, Gateway, Route, Settings};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// It turns a test that would hang into one that fails.
const DEADLINE: Duration = Duration::from_mins(1);

/// Short, for what never ends by itself.
const SOON: Duration = Duration::from_millis(50);

fn function() -> FunctionSpec {
    FunctionSpec::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/function.sh"), Vec::new())
}

async fn gateway(settings: Settings, function: FunctionSpec) -> Result<Gateway> {
    Ok(Gateway::start(settings, vec![Route { suffix: "", function }]).await?)
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// Which process answered.
    fn process(&self) -> Result<u32> {
        Ok(self.body.split(' ').next().with_context(|| format!("{self:?}"))?.parse()?)
    }

    #[track_caller]
    fn is_refusal(&self, status: u16, message: &str) {
        assert_eq!(
            (self.status, self.body.as_str()),
            (status, json!({ "message": message }).to_string().as_str())
        );
        assert_eq!(self.header("content-type"), Some("application/json"));
        assert!(self.header("apigw-requestid").is_some());
    }
}

/// Says this to the gateway, as it is, and listens to the end.
async fn say(address: &str, text: &[u8]) -> Result<Reply> {
    let exchange = async {
        let mut connection = TcpStream::connect(address).await?;
        connection.write_all(text).await?;
        let mut reply = String::new();
        connection.read_to_string(&mut reply).await?;
        anyhow::Ok(reply)
    };
    let reply = tokio::time::timeout(DEADLINE, exchange).await.context("no answer")??;
    let (head, body) = reply.split_once("\r\n\r\n").context("no response")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok(Reply { status, head: head.to_owned(), body: body.to_owned() })
}

fn address(gateway: &Gateway) -> String {
    gateway.base_url().trim_start_matches("http://").to_owned()
}

/// Sends a request with this line, these headers and this body.
async fn send(address: &str, line: &str, headers: &str, body: &[u8]) -> Result<Reply> {
    let head = format!(
        "{line} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    say(address, &[head.as_bytes(), body].concat()).await
}

async fn get(gateway: &Gateway, path: &str) -> Result<Reply> {
    send(&address(gateway), &format!("GET {path}"), "", b"").await
}

/// A request that the function holds until it is released.
struct Held {
    reply: JoinHandle<Result<Reply>>,
    process: TcpStream,
}

impl Held {
    async fn new(gateway: &Gateway) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, port) = (address(gateway), listener.local_addr()?.port());
        let reply = tokio::spawn(async move { send(&address, &format!("GET /held?{port}"), "", b"").await });
        let (process, _) =
            tokio::time::timeout(DEADLINE, listener.accept()).await.context("it isn't called")??;
        Ok(Self { reply, process })
    }

    async fn release(&mut self) -> Result<()> {
        Ok(self.process.write_all(b"\n").await?)
    }

    async fn reply(&mut self) -> Result<Reply> {
        self.release().await?;
        (&mut self.reply).await?
    }

    /// Waits for the end of the process that was called.
    async fn ended(&mut self) -> Result<()> {
        // Killed, it may not close the connection properly.
        let _ = tokio::time::timeout(DEADLINE, self.process.read(&mut [0])).await.context("it still runs")?;
        Ok(())
    }
}

#[tokio::test]
async fn a_function_gets_the_request_and_its_answer_is_the_response() -> Result<()> {
    let gateway = gateway(Settings::default(), function()).await?;
    let headers = "Content-Type: application/json\r\n";
    let reply = send(&address(&gateway), "POST /event?a=b", headers, br#"{"c": "d"}"#).await?;
    let event: Value = serde_json::from_str(&reply.body)?;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    assert_eq!((&event["rawPath"], &event["rawQueryString"]), (&json!("/event"), &json!("a=b")));
    assert_eq!(
        (&event["body"], &event["headers"]["content-length"]),
        (&json!(r#"{"c": "d"}"#), &json!("10"))
    );
    assert_eq!(event["requestContext"]["http"]["method"], "POST");
    assert_eq!(event["requestContext"]["authorizer"]["iam"]["accountId"], local::gateway::ACCOUNT);
    assert_eq!(reply.header("apigw-requestid"), event["requestContext"]["requestId"].as_str());

    let reply = send(&address(&gateway), "HEAD /", "", b"").await?;
    assert_eq!((reply.status, reply.body.as_str()), (200, ""));
    assert_eq!(send(&address(&gateway), "OPTIONS /", "", b"").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn the_first_route_that_fits_answers() -> Result<()> {
    let named =
        |name: &str| FunctionSpec { environment: vec![("NAME".to_owned(), name.to_owned())], ..function() };
    let checks = Route { suffix: "/health-check", function: named("checks") };
    let gateway = Gateway::start(
        Settings::default(),
        vec![checks.clone(), Route { suffix: "", function: named("rest") }],
    )
    .await?;
    for (path, name) in [
        ("/campaigns/1/health-check", "checks"),
        ("/campaigns/1%2Fhealth%2Dcheck?a=b", "checks"),
        ("/campaigns/1/health-check/", "rest"),
        ("/campaigns?/health-check", "rest"),
    ] {
        let reply = get(&gateway, path).await?;
        assert_eq!(reply.body.split(' ').nth(1), Some(name), "{path}: {reply:?}");
    }
    let gateway = Gateway::start(Settings::default(), vec![checks]).await?;
    get(&gateway, "/").await?.is_refusal(404, "Not Found");
    Ok(())
}

#[tokio::test]
async fn requests_at_once_have_a_sandbox_each_and_the_last_one_used_is_used_again() -> Result<()> {
    let gateway = gateway(Settings::default(), function()).await?;
    let (mut first, mut second) = (Held::new(&gateway).await?, Held::new(&gateway).await?);
    let (first, second) = (first.reply().await?.process()?, second.reply().await?.process()?);
    assert_ne!(first, second);
    assert_eq!(get(&gateway, "/").await?.process()?, second);
    assert_eq!(get(&gateway, "/").await?.process()?, second);
    Ok(())
}

#[tokio::test]
async fn above_the_limit_requests_are_throttled() -> Result<()> {
    let gateway = gateway(Settings::default(), FunctionSpec { concurrency: 1, ..function() }).await?;
    let mut held = Held::new(&gateway).await?;
    get(&gateway, "/").await?.is_refusal(503, "Service Unavailable");
    let process = held.reply().await?.process()?;
    assert_eq!(get(&gateway, "/").await?.process()?, process);
    Ok(())
}

#[tokio::test]
async fn above_the_limit_requests_wait_if_they_shall() -> Result<()> {
    let settings = Settings { at_limit: AtLimit::Wait, ..Settings::default() };
    let gateway = gateway(settings, FunctionSpec { concurrency: 2, ..function() }).await?;
    let replies = try_join_all((0..20).map(|_| get(&gateway, "/"))).await?;
    let processes = replies.iter().map(Reply::process).collect::<Result<BTreeSet<_>>>()?;
    assert!(processes.len() <= 2, "{processes:?}");
    Ok(())
}

#[tokio::test]
async fn what_goes_wrong_in_a_function_is_an_internal_server_error() -> Result<()> {
    let gateway = gateway(Settings::default(), function()).await?;
    let process = get(&gateway, "/").await?.process()?;
    for path in ["/error", "/malformed"] {
        get(&gateway, path).await?.is_refusal(500, "Internal Server Error");
        assert_eq!(get(&gateway, "/").await?.process()?, process, "after {path}");
    }
    get(&gateway, "/ended").await?.is_refusal(500, "Internal Server Error");
    assert_ne!(get(&gateway, "/").await?.process()?, process);

    let missing = FunctionSpec::new("/nowhere/function", Vec::new());
    let gateway = self::gateway(Settings::default(), missing).await?;
    get(&gateway, "/").await?.is_refusal(500, "Internal Server Error");
    Ok(())
}

#[tokio::test]
async fn what_takes_too_long_is_not_waited_for() -> Result<()> {
    // Nothing accepts, so that the function is held for good.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let held = format!("/held?{}", listener.local_addr()?.port());
    let impatient = gateway(Settings { timeout: SOON, ..Settings::default() }, function()).await?;
    get(&impatient, &held).await?.is_refusal(503, "Service Unavailable");
    let limited = gateway(Settings::default(), FunctionSpec { timeout: SOON, ..function() }).await?;
    get(&limited, &held).await?.is_refusal(500, "Internal Server Error");
    Ok(())
}

#[tokio::test]
async fn a_function_goes_on_when_its_client_is_gone() -> Result<()> {
    let settings = Settings { at_limit: AtLimit::Wait, ..Settings::default() };
    let gateway = gateway(settings, FunctionSpec { concurrency: 1, ..function() }).await?;
    let process = get(&gateway, "/").await?.process()?;
    let mut held = Held::new(&gateway).await?;
    held.reply.abort();
    let (reply, released) = tokio::join!(get(&gateway, "/next"), held.release());
    released?;
    assert_eq!(reply?.body, format!("{process}  /next"), "the same process, and not the other's answer");
    Ok(())
}

#[tokio::test]
async fn a_dropped_gateway_leaves_nothing_running() -> Result<()> {
    // Only the gateway ends it before the test gives up.
    let function = FunctionSpec { timeout: 2 * DEADLINE, ..function() };
    let gateway = gateway(Settings::default(), function).await?;
    let (mut idle, mut busy) = (Held::new(&gateway).await?, Held::new(&gateway).await?);
    idle.reply().await?;
    drop(gateway);
    idle.ended().await?;
    busy.ended().await?;
    assert!(busy.reply.await?.is_err(), "the connection is closed without an answer");
    Ok(())
}

#[tokio::test]
async fn what_no_function_may_see_is_refused() -> Result<()> {
    // No function could answer.
    let gateway = gateway(Settings::default(), FunctionSpec { concurrency: 0, ..function() }).await?;
    let address = address(&gateway);
    let port = address.rsplit(':').next().context("no port")?;
    let asked = async |line: &str, host: &str| {
        say(&address, format!("{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())
            .await
    };
    asked("GET /", &format!("localhost:{port}")).await?.is_refusal(503, "Service Unavailable");
    for host in ["example.com", "127.0.0.1", "127.0.0.1:1", ""] {
        asked("GET /", host).await?.is_refusal(403, "Forbidden");
    }
    asked("GET http://example.com/", &address).await?.is_refusal(403, "Forbidden");
    asked("OPTIONS *", &address).await?.is_refusal(400, "Bad Request");

    let long = format!("X-Long: {}\r\n", "a".repeat(10_240));
    send(&address, "GET /", &long, b"").await?.is_refusal(431, "Request Header Fields Too Large");
    let long = vec![b'a'; 10 * 1024 * 1024 + 1];
    let text = "Content-Type: text/plain\r\n";
    send(&address, "POST /", text, &long).await?.is_refusal(413, "Request Entity Too Large");
    // In base64 it is more than Lambda takes.
    send(&address, "POST /", "", &long[..5 * 1024 * 1024]).await?.is_refusal(413, "Request Entity Too Large");
    send(&address, "POST /", "", &long[..4 * 1024 * 1024]).await?.is_refusal(503, "Service Unavailable");
    Ok(())
}
