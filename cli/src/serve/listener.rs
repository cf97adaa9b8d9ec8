//! HTTP/1.1 in the clear. The reverse proxy speaks TLS and HTTP/2.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokens_domain::CancellationToken;
use tokio::net::TcpListener;
use tokio::select;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::door::Peer;

/// Connections beyond wait in the system's queue. Each costs some kilobytes.
const MAX_CONNECTIONS: usize = 1024;

/// Within this long a request's headers have to be there, and an idle connection is kept for it: longer than the reverse proxies
/// keep theirs (nginx 60 s, Traefik 90 s, Caddy 120 s), which would otherwise send a request on a connection that is being closed.
const HEADER_TIMEOUT: Duration = Duration::from_secs(130);

/// Of a request's line and headers.
const MAX_HEADER_BYTES: usize = 32 * 1024;

const MAX_HEADERS: usize = 64;

/// After a failed accept (most likely no file descriptor is left), so that the loop doesn't spin.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// How long it may take to send what has been answered.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves until `stop`, and then until each open request is answered, which `all_answered` waits for.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
    all_answered: impl Future<Output = ()>,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_header_size(MAX_HEADER_BYTES)
        .max_headers(MAX_HEADERS);
    let (graceful, places) = (GracefulShutdown::new(), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
    let router = TowerToHyperService::new(router);
    loop {
        let accept = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = select! {
            accepted = accept => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("a connection can't be accepted: {error}");
                sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        // Small answers must not wait for more to send. If this fails the connection is gone, which shows below.
        let _ = stream.set_nodelay(true);
        let router = router.clone();
        let answer = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Peer(address));
            router.call(request)
        });
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), answer));
        tokio::spawn(async move {
            // It ends in an error when the client is gone or speaks no HTTP.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    // A connection on which half a request waits for its rest does not close by itself.
    select! {
        () = graceful.shutdown() => {}
        () = async {
            all_answered.await;
            sleep(SEND_TIMEOUT).await;
        } => {}
    }
}
