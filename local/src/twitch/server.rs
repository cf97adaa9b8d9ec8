//! The listener: HTTP/1.1 and HTTP/2, in the clear or over TLS, on loopback only.

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::Router;
use hyper::{
    body::Incoming,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::{ServerConfig, crypto::ring, pki_types::PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

use super::{StartError, answer::deliver};

/// As many real servers have it. It caps what a client gets out of one HTTP/2 connection.
const MAX_CONCURRENT_STREAMS: u32 = 128;

/// After a failed accept (most likely no file descriptor is left), so that the loop doesn't spin.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Serves until it is dropped or shut down.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) address: SocketAddr,
    /// Nothing is ever sent: that it is dropped stops the server.
    stop: oneshot::Sender<Infallible>,
    serving: JoinHandle<()>,
}

impl Server {
    pub(super) async fn start(router: Router, port: u16, tls: Option<Tls>) -> Result<Self, StartError> {
        let bind = |source: io::Error| StartError::Bind { port, source };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(serve(listener, router, tls.map(|tls| tls.acceptor), stopped));
        Ok(Self { address, stop, serving })
    }

    /// Closes the listener and all connections; requests that are still held are dropped.
    pub(super) async fn shutdown(self) {
        drop(self.stop);
        if let Err(error) = self.serving.await {
            tracing::error!(%error, "the simulated Twitch ended in a panic");
        }
    }
}

async fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<TlsAcceptor>,
    mut stopped: oneshot::Receiver<Infallible>,
) {
    let router = TowerToHyperService::new(router);
    let mut protocols = auto::Builder::new(TokioExecutor::new());
    protocols.http2().max_concurrent_streams(MAX_CONCURRENT_STREAMS);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve_connection(stream, router.clone(), tls.clone(), protocols.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "the simulated Twitch can't accept a connection");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn serve_connection(
    stream: TcpStream,
    router: TowerToHyperService<Router>,
    tls: Option<TlsAcceptor>,
    protocols: auto::Builder<TokioExecutor>,
) {
    // Small answers must not wait for more to send. If this fails the connection is gone, which shows below.
    let _ = stream.set_nodelay(true);
    match tls {
        None => speak_http(stream, router, protocols).await,
        // A client that doesn't trust our authority gives up here, and says so itself.
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                speak_http(stream, router, protocols).await;
            }
        }
    }
}

async fn speak_http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: TowerToHyperService<Router>,
    protocols: auto::Builder<TokioExecutor>,
) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let response = router.call(request);
        async move {
            let Ok(response) = response.await;
            deliver(response)
        }
    });
    // It ends in an error when the client is gone or a fault hung up: both are everyday matters here.
    let _ = protocols.serve_connection(TokioIo::new(stream), service).await;
}

/// A certificate for loopback, from an authority of its own that lives as long as the server.
pub(super) struct Tls {
    pub(super) ca_pem: String,
    acceptor: TlsAcceptor,
}

impl Tls {
    pub(super) fn generate() -> Result<Self, StartError> {
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, "Simulated Twitch authority");
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;

        let mut leaf = CertificateParams::new(["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string()])?;
        leaf.distinguished_name.push(DnType::CommonName, "Simulated Twitch");
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let leaf = leaf.signed_by(&key, &ca)?;

        // The provider is named, since a process-wide one may not be there or may be another.
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.into()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { ca_pem: ca.pem(), acceptor: TlsAcceptor::from(Arc::new(config)) })
    }
}
