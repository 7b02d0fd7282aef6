//! The client's side of every transport.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::StatusCode;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, task::JoinSet};

use super::{
    Connection, Error, Info, Kind, Trust,
    quic::{self, Lanes, Streams},
    tls, trust,
    websocket::{self, Role, Socket},
    webtransport,
};
use crate::core::{
    frame::{ALPN, ClientFrame, Resume},
    lane,
};

/// Bytes of a server's frame at most, until the welcome tells the limits.
const FRAME_MAX: u32 = 256 << 10;
/// How long an attempt may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// A host and a port to dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dial {
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Dial {
    /// Reads `host:port`, with brackets around an IPv6 address.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if bare.is_empty() || (bare.contains(':') && bare == host) {
            return None;
        }
        Some(Self { host: bare.to_owned(), port: port.parse().ok()? })
    }

    /// `host:port`, as in a URL.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') { format!("[{}]:{}", self.host, self.port) } else { format!("{}:{}", self.host, self.port) }
    }

    async fn resolve(&self) -> Result<Vec<SocketAddr>, ConnectError> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let found: Vec<_> = found.map_err(|source| ConnectError::Resolve { host: self.host.clone(), source })?.collect();
        if found.is_empty() {
            let source = io::Error::from(io::ErrorKind::NotFound);
            return Err(ConnectError::Resolve { host: self.host.clone(), source });
        }
        Ok(found)
    }
}

/// An edge, and how it is reached. Usually made by [`super::discover::discover`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The authority of its origin, as the person typed it.
    pub authority: String,
    /// Whether WebSocket runs over TLS.
    pub tls: bool,
    /// The TCP listener.
    pub tcp: Dial,
    /// The UDP listener, if it has one.
    pub quic: Option<Dial>,
    /// Path of WebSocket.
    pub ws_path: String,
    /// Path of WebTransport.
    pub wt_path: String,
    /// Whom to trust over TCP.
    pub trust: Trust,
    /// Whom to trust over UDP.
    pub quic_trust: Trust,
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Not an origin that can be dialled.
    #[error("{0:?} is no origin: it must look like https://chat.example or http://localhost:8433")]
    Origin(String),
    /// Plain HTTP to another machine.
    #[error("http:// is for this machine only; {0} needs https://")]
    Insecure(String),
    /// The name has no address.
    #[error("cannot resolve {host}: {source}")]
    Resolve {
        /// The name.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// TCP, TLS or UDP failed.
    #[error("cannot connect: {0}")]
    Io(#[from] io::Error),
    /// HTTP failed.
    #[error("the server does not speak HTTP as it should: {0}")]
    Http(#[from] hyper::Error),
    /// HTTP answered with another status.
    #[error("the server answered with HTTP status {0}")]
    Status(u16),
    /// The description of the server is not understood.
    #[error("the server's description is not understood: {0}")]
    Answer(&'static str),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// QUIC failed.
    #[error("QUIC: {0}")]
    Quic(#[from] quinn::ConnectionError),
    /// WebTransport failed.
    #[error("WebTransport: {0}")]
    WebTransport(String),
    /// The transport opened and failed at once.
    #[error(transparent)]
    Transport(#[from] Error),
    /// The server does not offer this transport.
    #[error("the server does not offer {0}")]
    NotOffered(Kind),
    /// It took too long.
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    TimedOut,
}

/// Opens a connection over one transport.
///
/// # Errors
/// [`ConnectError`]
pub async fn connect(target: &Target, kind: Kind) -> Result<Connection, ConnectError> {
    connect_with(target, kind, Lanes::Client).await
}

/// Opens a raw QUIC connection with `resume` in its first packets (early data, RFC 8446 §2.3), if the server is known from an earlier
/// connection and takes it. Returns whether it did; if not, nothing was said.
///
/// Whoever sees those packets can repeat them. So nothing can be said in them but a resume, which a server accepts once. It must not
/// sign a TLS exporter, because there is none yet.
///
/// # Errors
/// [`ConnectError`]
pub async fn connect_resuming(target: &Target, resume: &Resume) -> Result<(Connection, bool), ConnectError> {
    let early = [ClientFrame::Resume(resume.clone()).encode()];
    in_time(connect_quic(target, Lanes::Client, &early)).await
}

/// As [`connect_resuming`], with anything, as a client that breaks the rules could.
///
/// # Errors
/// [`ConnectError`]
#[cfg(feature = "test-utils")]
pub async fn connect_saying(target: &Target, early: &[Bytes]) -> Result<(Connection, bool), ConnectError> {
    in_time(connect_quic(target, Lanes::Client, early)).await
}

/// The same, with everything on one stream: as clients do that do not know lanes.
///
/// # Errors
/// [`ConnectError`]
pub async fn connect_single(target: &Target, kind: Kind) -> Result<Connection, ConnectError> {
    connect_with(target, kind, Lanes::None).await
}

async fn connect_with(target: &Target, kind: Kind, lanes: Lanes) -> Result<Connection, ConnectError> {
    in_time(async {
        match kind {
            Kind::WebSocket => Box::pin(connect_websocket(target)).await,
            Kind::WebTransport => Box::pin(connect_webtransport(target, lanes)).await,
            Kind::Quic => Ok(Box::pin(connect_quic(target, lanes, &[])).await?.0),
            Kind::Memory => Err(ConnectError::NotOffered(kind)),
        }
    })
    .await
}

async fn in_time<T>(attempt: impl Future<Output = Result<T, ConnectError>>) -> Result<T, ConnectError> {
    tokio::time::timeout(TIMEOUT, attempt).await.unwrap_or(Err(ConnectError::TimedOut))
}

/// A TCP connection, with TLS if `trust` says whom to trust; and its exporter.
pub(super) async fn tcp(dial: &Dial, trust: Option<&Trust>) -> Result<(Socket, Option<[u8; 32]>), ConnectError> {
    let addresses = dial.resolve().await?;
    let stream = TcpStream::connect(addresses.as_slice()).await?;
    stream.set_nodelay(true)?;
    let Some(trust) = trust else { return Ok((Socket::Tcp(stream.into()), None)) };
    let config = trust::config(trust, &[b"http/1.1"])?;
    let name = ServerName::try_from(dial.host.clone()).map_err(|_| ConnectError::Origin(dial.host.clone()))?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream.into()).await?;
    let exporter = stream.get_ref().1.export_keying_material([0; 32], tls::EXPORTER_LABEL, None).ok();
    Ok((Socket::Tls(Box::new(stream.into())), exporter))
}

async fn connect_websocket(target: &Target) -> Result<Connection, ConnectError> {
    let (socket, exporter) = tcp(&target.tcp, target.tls.then_some(&target.trust)).await?;
    let remote = match &socket {
        Socket::Tcp(tcp) => tcp.peer_addr()?,
        Socket::Tls(tls) => tls.get_ref().0.peer_addr()?,
        Socket::Http2(_) => return Err(ConnectError::NotOffered(Kind::WebSocket)),
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    let request = websocket::request(&target.authority, &target.ws_path).map_err(|_| ConnectError::Answer("ws"))?;
    // hyper's connection runs until the response has come and the socket is handed over; the set ends it on failure.
    let mut driver = JoinSet::new();
    driver.spawn(connection.with_upgrades());
    let response = sender.send_request(request.map(|()| Empty::<Bytes>::new())).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(ConnectError::Status(response.status().as_u16()));
    }
    let upgraded = hyper::upgrade::on(response).await?;
    let parts = upgraded.downcast::<TokioIo<Socket>>().map_err(|_| ConnectError::NotOffered(Kind::WebSocket))?;
    let info = Info { kind: Kind::WebSocket, remote, exporter, authority: Some(target.authority.clone()) };
    Ok(websocket::connection(parts.io.into_inner(), &parts.read_buf, Role::Client, info, FRAME_MAX))
}

fn unspecified(address: &SocketAddr) -> SocketAddr {
    if address.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() }
}

/// Returns whether the early frames were said.
async fn connect_quic(target: &Target, lanes: Lanes, early: &[Bytes]) -> Result<(Connection, bool), ConnectError> {
    let dial = target.quic.as_ref().ok_or(ConnectError::NotOffered(Kind::Quic))?;
    let alpn: &[&[u8]] = if lanes == Lanes::None { &[ALPN] } else { &[lane::ALPN, ALPN] };
    let config = quic::client::config(&target.quic_trust, alpn, &dial.host, dial.port)?;
    let mut failure = ConnectError::TimedOut;
    for address in dial.resolve().await? {
        let endpoint = quinn::Endpoint::client(unspecified(&address))?;
        let opened = match quic::client::open(&endpoint, config.clone(), address, &dial.host, early).await {
            Ok(opened) => opened,
            Err(error) => {
                failure = error;
                continue;
            }
        };
        let quic::client::Opened { connection, stream, said } = opened;
        let exporter = quic::exporter(&connection);
        let info = Info { kind: Kind::Quic, remote: address, exporter, authority: Some(dial.authority()) };
        // A server that does not know lanes has chosen the other protocol.
        let lanes = if quic::protocol(&connection).as_deref() == Some(lane::ALPN) { Lanes::Client } else { Lanes::None };
        let streams = Streams::Quic { connection, _endpoint: Some(endpoint) };
        return Ok((quic::connection(streams, stream, lanes, info, FRAME_MAX), said));
    }
    Err(failure)
}

async fn connect_webtransport(target: &Target, lanes: Lanes) -> Result<Connection, ConnectError> {
    let dial = target.quic.as_ref().ok_or(ConnectError::NotOffered(Kind::WebTransport))?;
    let config = quic::client::config(&target.quic_trust, &[webtransport::ALPN], &dial.host, dial.port)?;
    let query = if lanes == Lanes::None { String::new() } else { format!("?{}", lane::QUERY) };
    let url = format!("https://{}{}{query}", dial.authority(), target.wt_path);
    let failed = |error: &dyn std::fmt::Display| ConnectError::WebTransport(error.to_string());
    let mut failure = ConnectError::TimedOut;
    for address in dial.resolve().await? {
        let builder = wtransport::ClientConfig::builder().with_bind_address(unspecified(&address));
        let mut config = builder.build_with_quic_config(config.clone());
        config.set_dns_resolver(Resolved(address));
        let endpoint = wtransport::Endpoint::client(config)?;
        let connection = match endpoint.connect(&url).await {
            Ok(connection) => connection,
            Err(error) => {
                failure = failed(&error);
                continue;
            }
        };
        let opening = connection.open_bi().await.map_err(|error| failed(&error))?;
        let stream = opening.await.map_err(|error| failed(&error))?;
        let exporter = quic::exporter(connection.quic_connection());
        let info = Info { kind: Kind::WebTransport, remote: address, exporter, authority: Some(dial.authority()) };
        let streams = Streams::WebTransport { connection, _endpoint: endpoint };
        return Ok(quic::webtransport_connection(streams, stream, lanes, info, FRAME_MAX));
    }
    Err(failure)
}

/// Names were resolved before, so that every address of a name is tried.
#[derive(Debug)]
struct Resolved(SocketAddr);

impl wtransport::config::DnsResolver for Resolved {
    fn resolve(&self, _host: &str) -> std::pin::Pin<Box<dyn wtransport::config::DnsLookupFuture>> {
        let address = self.0;
        Box::pin(async move { Ok(Some(address)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_are_told_apart() {
        let dial = |host: &str, port| Some(Dial { host: host.into(), port });
        assert_eq!(Dial::parse("chat.example:4433"), dial("chat.example", 4433));
        assert_eq!(Dial::parse("[::1]:80"), dial("::1", 80));
        assert_eq!(Dial::parse("[::1]:80").unwrap().authority(), "[::1]:80");
        for bad in ["chat.example", "::1:80", ":80", "chat.example:port", "chat.example:65536"] {
            assert_eq!(Dial::parse(bad), None, "{bad}");
        }
    }
}
