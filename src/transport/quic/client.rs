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

/// A connection with its stream, on which `first` was said: as early data if the server is known and takes it.
///
/// Early data can be replayed by whoever sees it: `first` must do no harm when it is said twice.
pub(in crate::transport) async fn open(
    endpoint: &quinn::Endpoint,
    config: quinn::ClientConfig,
    address: SocketAddr,
    host: &str,
    first: &[Bytes],
) -> Result<(quinn::Connection, quinn::SendStream, quinn::RecvStream), ConnectError> {
    let mut bytes = Vec::new();
    first.iter().for_each(|frame| frame::put_delimited(&mut bytes, frame));
    let connecting = endpoint.connect_with(config, address, host).map_err(io::Error::other)?;
    let connection = match connecting.into_0rtt() {
        Ok((connection, accepted)) => {
            let (mut send, receive) = connection.open_bi().await?;
            let said = send.write_all(&bytes).await;
            if accepted.await && said.is_ok() {
                return Ok((connection, send, receive));
            }
            // The server does not take it: streams of before the handshake are gone.
            connection
        }
        Err(connecting) => connecting.await?,
    };
    let (mut send, receive) = connection.open_bi().await?;
    send.write_all(&bytes).await.map_err(io::Error::from)?;
    Ok((connection, send, receive))
}
