//! TCP: accepting, TLS, HTTP.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::Router;
use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::{Shared, admission::Admission};
use crate::transport::{quic::canonical, tls, websocket::Socket};

/// HTTP/1.1: what a request's head may take, and how long a connection may wait for its next request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// HTTP/2: how often a silent connection is asked whether it is there, and how long it may take to answer.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const HEAD_BYTES: usize = 16 << 10;
const STREAMS: u32 = 32;
/// After a failure to accept, which is a lack of file descriptors or memory: waiting is the only cure.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The TCP connection of a request.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) remote: SocketAddr,
    pub(super) exporter: Option<[u8; 32]>,
}

/// Accepts until the server stops.
pub(super) async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    admission: Arc<Admission>,
    shared: Arc<Shared>,
) {
    loop {
        let accepted = tokio::select! {
            () = shared.stopping.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, remote) = match accepted {
            Ok((stream, remote)) => (stream, canonical(remote)),
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                shared.metrics.handshake_failed("accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let permit = match admission.admit(remote.ip()) {
            Ok(permit) => permit,
            Err(full) => {
                shared.metrics.handshake_failed(full.name());
                continue;
            }
        };
        let (tls, router, task) = (tls.clone(), router.clone(), Arc::clone(&shared));
        let stream = match stream.into_std() {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%remote, %error, "connection failed");
                continue;
            }
        };
        shared.spawn_at(shared.homes.place(), move || async move {
            let served = async { Box::pin(serve(TcpStream::from_std(stream)?, remote, tls, router, &task)).await };
            if let Err(error) = served.await {
                tracing::debug!(%remote, %error, "connection failed");
            }
            drop(permit);
        });
    }
}

async fn serve(
    stream: TcpStream,
    remote: SocketAddr,
    tls: Option<TlsAcceptor>,
    router: Router,
    shared: &Arc<Shared>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut peer = Peer { remote, exporter: None };
    let socket = match tls {
        None => Socket::Tcp(stream.into()),
        Some(acceptor) => {
            let Ok(accepted) = tokio::time::timeout(shared.handshake_timeout(), acceptor.accept(stream.into())).await else {
                shared.metrics.handshake_failed("tls_timeout");
                return Err(io::ErrorKind::TimedOut.into());
            };
            let stream = accepted.inspect_err(|_| shared.metrics.handshake_failed("tls"))?;
            peer.exporter = stream.get_ref().1.export_keying_material([0; 32], tls::EXPORTER_LABEL, None).ok();
            Socket::Tls(Box::new(stream.into()))
        }
    };
    let service = TowerToHyperService::new(router);
    let asked = Arc::new(AtomicBool::new(false));
    let asking = Arc::clone(&asked);
    let service = service_fn(move |mut request: Request<Incoming>| {
        asking.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(peer.clone());
        hyper::service::Service::call(&service, request)
    });
    let builder = builder();
    let mut connection = std::pin::pin!(builder.serve_connection_with_upgrades(TokioIo::new(socket), service));
    // hyper waits for ever for the bytes that tell HTTP/1.1 from HTTP/2, and for a first request on HTTP/2.
    let silence = async {
        tokio::time::sleep(shared.handshake_timeout()).await;
        if asked.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = silence => {
            shared.metrics.handshake_failed("http_timeout");
            return Err(io::ErrorKind::TimedOut.into());
        }
        () = shared.stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    served.map_err(io::Error::other)
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(16 << 10)
        .max_send_buf_size(64 << 10)
        .initial_stream_window_size(64 << 10)
        .initial_connection_window_size(256 << 10)
        .enable_connect_protocol();
    builder
}
