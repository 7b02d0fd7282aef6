//! The client's side of an attempt over UDP: its configuration, and what is remembered of servers, so that the next connection
//! can say something in its first packets (0-RTT).

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use quinn::crypto::rustls::QuicClientConfig;

use super::{
    super::{ConnectError, Trust, trust},
    client_transport,
};
use crate::core::{frame, limits::Limits};

/// Servers that are remembered; of more, the one that was asked for longest ago is forgotten.
const REMEMBERED_MAX: usize = 32;

/// A server, and the TLS configuration that keeps its tickets.
///
/// Tickets must not be used under another trust than that which verified the server, nor for another protocol.
struct Remembered {
    trust: Trust,
    alpn: Vec<Vec<u8>>,
    host: String,
    port: u16,
    crypto: Arc<QuicClientConfig>,
}

static REMEMBERED: Mutex<Vec<Remembered>> = Mutex::new(Vec::new());

/// The configuration for a server. Asked for again, it has the tickets of earlier connections.
pub(in crate::transport) fn config(
    trust: &Trust,
    alpn: &[&[u8]],
    host: &str,
    port: u16,
) -> Result<quinn::ClientConfig, ConnectError> {
    let mut remembered = REMEMBERED.lock().unwrap_or_else(PoisonError::into_inner);
    let is_it = |one: &Remembered| one.trust == *trust && one.alpn == alpn && one.host == host && one.port == port;
    let one = match remembered.iter().position(is_it) {
        Some(at) => remembered.remove(at),
        None => {
            let mut tls = trust::config(trust, alpn)?;
            tls.enable_early_data = true;
            let crypto = Arc::new(QuicClientConfig::try_from(tls).map_err(io::Error::other)?);
            let alpn = alpn.iter().map(|name| name.to_vec()).collect();
            Remembered { trust: trust.clone(), alpn, host: host.to_owned(), port, crypto }
        }
    };
    let mut config = quinn::ClientConfig::new(Arc::clone(&one.crypto) as Arc<dyn quinn::crypto::ClientConfig>);
    config.transport_config(Arc::new(client_transport(&Limits::default())));
    remembered.push(one);
    if remembered.len() > REMEMBERED_MAX {
        remembered.remove(0);
    }
    Ok(config)
}

/// A connection with its stream.
pub(in crate::transport) struct Opened {
    pub(in crate::transport) connection: quinn::Connection,
    pub(in crate::transport) stream: (quinn::SendStream, quinn::RecvStream),
    /// The early frames were said on it.
    pub(in crate::transport) said: bool,
}

/// Opens a connection and its stream. `early` frames are said as early data (RFC 9001 §4.6) if the server is known and takes it,
/// and else not at all.
///
/// Early data can be replayed by whoever sees it: it must do no harm when it is said twice.
pub(in crate::transport) async fn open(
    endpoint: &quinn::Endpoint,
    config: quinn::ClientConfig,
    address: SocketAddr,
    host: &str,
    early: &[Bytes],
) -> Result<Opened, ConnectError> {
    let mut connecting = endpoint.connect_with(config, address, host).map_err(io::Error::other)?;
    if !early.is_empty() {
        connecting = match connecting.into_0rtt() {
            Ok((connection, accepted)) => return open_early(connection, accepted, early).await,
            Err(connecting) => connecting,
        };
    }
    let connection = connecting.await?;
    let stream = connection.open_bi().await?;
    Ok(Opened { connection, stream, said: false })
}

async fn open_early(
    connection: quinn::Connection,
    accepted: quinn::ZeroRttAccepted,
    early: &[Bytes],
) -> Result<Opened, ConnectError> {
    let mut bytes = Vec::new();
    early.iter().for_each(|frame| frame::put_delimited(&mut bytes, frame));
    let mut stream = connection.open_bi().await?;
    let said = stream.0.write_all(&bytes).await.is_ok() && accepted.await;
    if !said {
        // Streams of before the handshake are gone with what was said on them.
        stream = connection.open_bi().await?;
    }
    Ok(Opened { connection, stream, said })
}
