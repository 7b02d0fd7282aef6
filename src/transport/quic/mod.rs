//! Raw QUIC with ALPN `waxwing/1`, and what WebTransport shares with it: the endpoint, its limits, its streams of frames.

#[cfg(feature = "client")]
pub(super) mod client;
mod congestion;
mod follower;
mod loss;
mod reader;
mod streams;
mod writer;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quinn::VarInt;

use self::streams::Send;
pub(super) use self::{
    reader::{Beside, LaneReader, Reader},
    streams::{Receive, Streams},
    writer::Writer,
};
use super::{Connection, FrameReader, FrameWriter, Info, Kind, Sink, Source, http3, tls, webtransport};
use crate::core::{frame::ALPN, lane, limits::Limits};

/// Bytes that the peer may have in flight on a stream. A frame may be larger: the reader drains as it comes.
const STREAM_RECEIVE_WINDOW: u32 = 64 << 10;
/// Bytes that the peer may have in flight on a connection.
const RECEIVE_WINDOW: u32 = 128 << 10;
/// The same for a client that is not logged in: it says hello and signs.
const STRANGER_RECEIVE_WINDOW: u32 = 16 << 10;
/// Bytes unacknowledged or unsent that a connection buffers. What exceeds it waits in the outbox, which is counted.
const SEND_WINDOW: u64 = 64 << 10;
/// Bytes of datagrams that wait to be sent, or to be read; more make the oldest go.
const DATAGRAM_BUFFER: usize = 8 << 10;
/// Bidirectional streams that the peer may open: frames use one; HTTP/3 uses one more for the session request, and a
/// browser may ask twice. Each one that is allowed costs memory.
const STREAMS_BIDI: u32 = 3;
/// Unidirectional streams that a client may open: none for frames; HTTP/3 has a control stream, two of QPACK, and greasing ones.
const STREAMS_UNI: u32 = 4;
/// Unidirectional streams that a server may open: those of HTTP/3, two long ones, and one for each page on a lossy path.
const SERVER_STREAMS_UNI: u32 = 64;

/// A connection over raw QUIC streams.
#[cfg(feature = "client")]
pub(super) fn connection(
    streams: Streams,
    (send, receive): (quinn::SendStream, quinn::RecvStream),
    lanes: Lanes,
    info: Info,
    frame_max: u32,
) -> Connection {
    assemble(Arc::new(streams), (Send::Quic(send), Receive::Quic(receive)), lanes, info, frame_max, Beside::default())
}

/// A client's connection over WebTransport streams.
#[cfg(feature = "client")]
pub(super) fn webtransport_connection(
    streams: Streams,
    (send, receive): (wtransport::SendStream, wtransport::RecvStream),
    lanes: Lanes,
    info: Info,
    frame_max: u32,
) -> Connection {
    let stream = (Send::WebTransport(send), Receive::WebTransport(receive));
    assemble(Arc::new(streams), stream, lanes, info, frame_max, Beside::default())
}

/// A server's connection over a WebTransport session.
pub(super) fn session(
    session: http3::Session,
    (send, receive): (quinn::SendStream, quinn::RecvStream),
    lanes: Lanes,
    info: Info,
    frame_max: u32,
) -> Connection {
    let streams = Streams::Session { connection: session.connection.clone(), id: session.id };
    let beside = Beside { session: Some(Box::new(session)), confirmed: None };
    assemble(Arc::new(streams), (Send::Quic(send), Receive::Quic(receive)), lanes, info, frame_max, beside)
}

/// Whether a connection has lanes, and which end of it this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lanes {
    /// Everything on one stream.
    None,
    /// The client's end of a connection that has some.
    #[cfg_attr(not(feature = "client"), expect(dead_code, reason = "a server alone has no such end"))]
    Client,
    /// The server's.
    Server,
}

fn assemble(
    streams: Arc<Streams>,
    (send, receive): (Send, Receive),
    lanes: Lanes,
    info: Info,
    frame_max: u32,
    beside: Beside,
) -> Connection {
    let source = match lanes {
        Lanes::Client => Source::Lanes(Box::new(LaneReader::new(Arc::clone(&streams), receive, frame_max))),
        Lanes::None | Lanes::Server => {
            Source::Quic(Box::new(Reader::new(Arc::clone(&streams), receive, lanes == Lanes::Server, beside)))
        }
    };
    let writer = Writer::new(streams, send, lanes);
    Connection { info, reader: FrameReader::new(source, frame_max), writer: FrameWriter::new(Sink::Quic(Box::new(writer))) }
}

/// The TLS exporter of a QUIC connection.
pub(super) fn exporter(connection: &quinn::Connection) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    connection.export_keying_material(&mut bytes, tls::EXPORTER_LABEL, &[]).ok().map(|()| bytes)
}

/// The application protocol that was agreed on.
#[cfg(feature = "client")]
pub(super) fn protocol(connection: &quinn::Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?.protocol
}

/// Limits and timers of a server's connections: for strangers. [`FrameReader::authenticated`] raises them.
#[must_use]
pub fn server_transport(limits: &Limits) -> quinn::TransportConfig {
    let mut config = transport(limits);
    config.max_concurrent_uni_streams(STREAMS_UNI.into()).receive_window(STRANGER_RECEIVE_WINDOW.into());
    config
}

/// Limits and timers of a client's connections.
#[must_use]
pub fn client_transport(limits: &Limits) -> quinn::TransportConfig {
    let mut config = transport(limits);
    config
        .max_concurrent_uni_streams(SERVER_STREAMS_UNI.into())
        .receive_window(RECEIVE_WINDOW.into())
        .keep_alive_interval(Some(Duration::from_millis(u64::from(limits.idle_timeout_ms) / 3)));
    config
}

fn transport(limits: &Limits) -> quinn::TransportConfig {
    let mut config = quinn::TransportConfig::default();
    config
        .max_concurrent_bidi_streams(STREAMS_BIDI.into())
        .stream_receive_window(STREAM_RECEIVE_WINDOW.into())
        .send_window(SEND_WINDOW)
        .congestion_controller_factory(Arc::new(congestion::FlooredCubic::default()))
        // Of streams of one priority the older one first: a page that is whole is worth more than two halves.
        .send_fairness(false)
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_BUFFER)
        .max_idle_timeout(Some(VarInt::from_u32(limits.idle_timeout_ms).into()));
    config
}

/// Why a connection attempt over UDP came to nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// The QUIC or TLS handshake failed, or the connection ended early.
    #[error("the QUIC handshake failed: {0}")]
    Quic(#[from] quinn::ConnectionError),
    /// The HTTP/3 or WebTransport handshake failed.
    #[error("the WebTransport handshake failed: {0}")]
    WebTransport(#[from] http3::Error),
    /// The client speaks neither `h3` nor `waxwing/1`, with or without lanes.
    #[error("the client offers no protocol of ours")]
    Alpn,
}

/// An attempt whose handshake is done.
#[derive(Debug)]
pub enum Accepted {
    /// Raw QUIC: await [`Raw::open`].
    Quic(Raw),
    /// A WebTransport session request, to be accepted or refused.
    WebTransport(Box<webtransport::Request>),
}

/// Completes the handshake of an incoming connection and tells what it speaks.
///
/// # Errors
/// [`AcceptError`]
pub async fn accept(incoming: quinn::Incoming) -> Result<Accepted, AcceptError> {
    let mut connecting = incoming.accept()?;
    let data = connecting.handshake_data().await?.downcast::<quinn::crypto::rustls::HandshakeData>();
    let (protocol, name) = data.map_or((None, None), |data| (data.protocol, data.server_name));
    match protocol.as_deref() {
        Some(ALPN) => Raw::new(connecting, name, Lanes::None).await.map(Accepted::Quic),
        Some(lane::ALPN) => Raw::new(connecting, name, Lanes::Server).await.map(Accepted::Quic),
        Some(webtransport::ALPN) => Ok(Accepted::WebTransport(Box::new(webtransport::accept(connecting).await?))),
        _ => Err(AcceptError::Alpn),
    }
}

/// A raw QUIC connection whose client has yet to open the stream. Its handshake may have to be completed yet, because the client
/// may have sent its first frame in its first packets (0-RTT).
pub struct Raw {
    connection: quinn::Connection,
    /// The handshake is complete.
    confirmed: Option<quinn::ZeroRttAccepted>,
    name: Option<String>,
    lanes: Lanes,
}

impl std::fmt::Debug for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Raw").field("connection", &self.connection).field("lanes", &self.lanes).finish_non_exhaustive()
    }
}

impl Raw {
    async fn new(connecting: quinn::Connecting, name: Option<String>, lanes: Lanes) -> Result<Self, AcceptError> {
        let (connection, confirmed) = match connecting.into_0rtt() {
            Ok((connection, confirmed)) => (connection, Some(confirmed)),
            Err(connecting) => (connecting.await?, None),
        };
        Ok(Self { connection, confirmed, name, lanes })
    }

    /// Waits for the client's stream.
    ///
    /// # Errors
    /// [`AcceptError::Quic`]
    pub async fn open(self, frame_max: u32) -> Result<Connection, AcceptError> {
        let (send, receive) = self.connection.accept_bi().await?;
        // Only early data comes before the handshake is complete. Then there is no exporter yet.
        let early = receive.is_0rtt();
        let info = Info {
            kind: Kind::Quic,
            remote: canonical(self.connection.remote_address()),
            exporter: if early { None } else { exporter(&self.connection) },
            authority: self.name,
        };
        let streams = Arc::new(Streams::Quic { connection: self.connection, _endpoint: None });
        let (send, receive) = (Send::Quic(send), Receive::Quic(receive));
        let beside = Beside { session: None, confirmed: self.confirmed.filter(|_| early) };
        Ok(assemble(streams, (send, receive), self.lanes, info, frame_max, beside))
    }
}

/// An IPv4 address that a dual-stack socket reports as IPv6, in its own form.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
