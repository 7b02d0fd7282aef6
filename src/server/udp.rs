//! UDP: QUIC, which is WebTransport or our own frames by ALPN.

use std::{io, net::UdpSocket, sync::Arc};

use rustls::crypto::CryptoProvider;

use super::{
    Shared, StartError,
    admission::Permit,
    home::{Homes, Place},
    socket::Runtime,
};
use crate::{
    core::{frame::ALPN, lane, limits::Limits},
    transport::{
        Connection,
        quic::{self, AcceptError, Accepted},
        tls::{self, Identity},
        webtransport,
    },
};

/// Clients that may say something in their first packets when they come back. Each session is some hundred bytes, and is used once.
const SESSIONS: usize = 8192;

pub(super) fn server_config(
    provider: Arc<CryptoProvider>,
    identity: Identity,
    limits: &Limits,
) -> Result<quinn::ServerConfig, StartError> {
    let mut tls = tls::server_config(provider, identity, &[webtransport::ALPN, lane::ALPN, ALPN])?;
    tls.session_storage = rustls::server::ServerSessionMemoryCache::new(SESSIONS);
    tls.send_tls13_tickets = 1;
    // QUIC's value for "yes" (RFC 9001 §4.6.1).
    tls.max_early_data_size = u32::MAX;
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(quic::server_transport(limits)));
    Ok(config)
}

/// An endpoint for each socket, each driven on the runtime of a home.
pub(super) fn endpoints(
    sockets: Vec<UdpSocket>,
    config: &quinn::ServerConfig,
    homes: &Homes,
) -> io::Result<Vec<(quinn::Endpoint, Place)>> {
    let endpoint = |(index, socket)| {
        let place = homes.place_at(index);
        let runtime = Arc::new(Runtime);
        let make = || quinn::Endpoint::new(quinn::EndpointConfig::default(), Some(config.clone()), socket, runtime);
        Ok((homes.enter(&place, make)?, place))
    };
    sockets.into_iter().enumerate().map(endpoint).collect()
}

/// Accepts until the server stops.
pub(super) async fn accept(endpoint: quinn::Endpoint, shared: Arc<Shared>) {
    loop {
        let incoming = tokio::select! {
            () = shared.stopping.cancelled() => return,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        let remote = quic::canonical(incoming.remote_address());
        if !incoming.remote_address_validated() && incoming.may_retry() && shared.admission.wants_proof(remote.ip()) {
            // It must answer before it costs anything. A failed retry is a packet that was not sent.
            let _ = incoming.retry();
            continue;
        }
        let permit = match shared.admission.admit(remote.ip()) {
            Ok(permit) => permit,
            Err(full) => {
                shared.metrics.handshake_failed(full.name());
                incoming.refuse();
                continue;
            }
        };
        shared.spawn_here(Box::pin(serve(incoming, permit, Arc::clone(&shared))));
    }
}

async fn serve(incoming: quinn::Incoming, permit: Permit, shared: Arc<Shared>) {
    let remote = quic::canonical(incoming.remote_address());
    let opened = tokio::time::timeout(shared.handshake_timeout(), Box::pin(open(incoming, &shared))).await;
    let failure = match opened {
        Ok(Ok(connection)) => return shared.serve(connection, permit),
        Ok(Err(reason)) => reason,
        Err(_) => "quic_timeout",
    };
    shared.metrics.handshake_failed(failure);
    tracing::debug!(%remote, failure, "QUIC handshake failed");
}

async fn open(incoming: quinn::Incoming, shared: &Shared) -> Result<Connection, &'static str> {
    let frame_max = shared.config.limits.unauthenticated_bytes_max;
    let reason = |error: AcceptError| match error {
        AcceptError::Alpn => "alpn",
        AcceptError::WebTransport(_) => "webtransport",
        _ => "quic",
    };
    match quic::accept(incoming).await.map_err(reason)? {
        Accepted::Quic(raw) => raw.open(frame_max).await.map_err(reason),
        Accepted::WebTransport(request) if request.path() != webtransport::PATH => {
            request.not_found().await;
            Err("path")
        }
        Accepted::WebTransport(request) if !shared.origins.allows(request.origin()) => {
            request.forbid().await;
            Err("origin")
        }
        Accepted::WebTransport(request) => request.open(frame_max).await.map_err(reason),
    }
}
