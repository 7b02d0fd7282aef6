//! Raw QUIC with ALPN `waxwing/1`, and what WebTransport shares with it: the endpoint, its limits, one stream of frames.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use quinn::{ReadError, SendStream, VarInt, WriteError};

use super::{Connection, Error, Fill, FrameReader, FrameWriter, Info, Kind, Sink, Source, gather, tls, webtransport};
use crate::core::{close::CloseCode, frame::ALPN, lane::Outgoing, limits::Limits};

/// Bytes of one read from the stream's reassembly at most.
const CHUNK: usize = 16 << 10;
/// Bytes that the peer may have in flight on a stream. A frame may be larger: the reader drains as it comes.
const STREAM_RECEIVE_WINDOW: u32 = 64 << 10;
/// Bytes that the peer may have in flight on a connection.
const RECEIVE_WINDOW: u32 = 128 << 10;
/// Bytes unacknowledged or unsent that a connection buffers. What exceeds it waits in the outbox, which is counted.
const SEND_WINDOW: u64 = 128 << 10;
/// Bidirectional streams that the peer may open: frames use one; HTTP/3 uses one more for the session request, and a
/// browser may ask twice.
const STREAMS_BIDI: u32 = 4;
/// Unidirectional streams: none for frames; HTTP/3 has a control stream, two of QPACK, and greasing ones.
const STREAMS_UNI: u32 = 8;

/// The streams of one connection, and what must live as long as they do.
pub(super) enum Streams {
    Quic { connection: quinn::Connection, _endpoint: Option<quinn::Endpoint> },
    WebTransport { connection: wtransport::Connection, _endpoint: Option<webtransport::ClientEndpoint> },
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Streams({})", self.connection().stable_id())
    }
}

impl Streams {
    fn connection(&self) -> &quinn::Connection {
        match self {
            Self::Quic { connection, .. } => connection,
            Self::WebTransport { connection, .. } => connection.quic_connection(),
        }
    }
}

enum Receive {
    Quic(quinn::RecvStream),
    WebTransport(wtransport::RecvStream),
}

pub(super) struct Reader {
    stream: Receive,
    streams: Arc<Streams>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Reader").field(&self.streams).finish()
    }
}

impl Reader {
    pub(super) async fn fill(&mut self, buffer: &mut BytesMut) -> Result<Fill, Error> {
        let stream = match &mut self.stream {
            Receive::Quic(stream) => stream,
            Receive::WebTransport(stream) => stream.quic_stream_mut(),
        };
        match stream.read_chunk(CHUNK, true).await {
            Ok(Some(chunk)) => {
                buffer.extend_from_slice(&chunk.bytes);
                Ok(Fill::Bytes)
            }
            Ok(None) => Ok(Fill::End),
            Err(ReadError::ConnectionLost(reason)) => match ended(&reason) {
                Some(CloseCode::Normal) => Ok(Fill::End),
                Some(code) => Err(Error::Closed(code)),
                None => Err(io::Error::from(reason).into()),
            },
            Err(error) => Err(io::Error::from(error).into()),
        }
    }

    pub(super) async fn closed(self) -> CloseCode {
        ended(&self.streams.connection().closed().await).unwrap_or(CloseCode::Internal)
    }
}

/// The code with which an application closed the connection. HTTP/3's own "no error" counts as a normal end.
fn ended(reason: &quinn::ConnectionError) -> Option<CloseCode> {
    const H3_NO_ERROR: u64 = 0x100;
    match reason {
        quinn::ConnectionError::ApplicationClosed(close) => match close.error_code.into_inner() {
            0 | H3_NO_ERROR => Some(CloseCode::Normal),
            number => Some(CloseCode::from_number(number)),
        },
        quinn::ConnectionError::LocallyClosed => Some(CloseCode::Normal),
        _ => None,
    }
}

enum Send {
    Quic(SendStream),
    WebTransport(wtransport::SendStream),
}

pub(super) struct Writer {
    stream: Send,
    streams: Arc<Streams>,
    /// What the connection has not taken yet.
    pending: Vec<Bytes>,
    /// Frame bytes in it.
    taken: usize,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Writer").field(&self.streams).finish()
    }
}

impl Writer {
    pub(super) const fn unwritten_bytes(&self) -> usize {
        self.taken
    }

    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        queue: &mut VecDeque<Outgoing>,
        sent: &mut u64,
    ) -> Poll<Result<(), Error>> {
        let stream = match &mut self.stream {
            Send::Quic(stream) => stream,
            Send::WebTransport(stream) => stream.quic_stream_mut(),
        };
        loop {
            while !self.pending.is_empty() {
                // Each chunk is advanced as it is taken, so that nothing is sent twice.
                let written = pin!(stream.write_chunks(&mut self.pending)).poll(cx);
                match ready!(written) {
                    Ok(written) => drop(self.pending.drain(..written.chunks)),
                    Err(WriteError::ConnectionLost(reason)) => {
                        let error = ended(&reason).map_or_else(|| io::Error::from(reason.clone()).into(), Error::Closed);
                        return Poll::Ready(Err(error));
                    }
                    Err(error) => return Poll::Ready(Err(io::Error::from(error).into())),
                }
            }
            self.taken = 0;
            if queue.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let mut bytes = Vec::new();
            self.taken = gather(queue, &mut bytes);
            *sent += self.taken as u64;
            self.pending.push(bytes.into());
        }
    }

    pub(super) async fn close(mut self, code: CloseCode) {
        let stream = match &mut self.stream {
            Send::Quic(stream) => stream,
            Send::WebTransport(stream) => stream.quic_stream_mut(),
        };
        // Closing a QUIC connection discards what it has not sent: wait until the peer has acknowledged the stream.
        if stream.finish().is_ok() {
            let stopped = stream.stopped();
            let _ = tokio::time::timeout(Duration::from_millis(super::CLOSE_TIMEOUT_MS / 2), stopped).await;
        }
        self.streams.connection().close(VarInt::from_u32(code.quic()), code.name().as_bytes());
    }
}

/// A connection over raw QUIC streams.
pub(super) fn connection(
    streams: Streams,
    (send, receive): (SendStream, quinn::RecvStream),
    info: Info,
    frame_max: u32,
) -> Connection {
    assemble(Arc::new(streams), Send::Quic(send), Receive::Quic(receive), info, frame_max)
}

/// A connection over WebTransport streams.
pub(super) fn webtransport_connection(
    streams: Streams,
    (send, receive): (wtransport::SendStream, wtransport::RecvStream),
    info: Info,
    frame_max: u32,
) -> Connection {
    assemble(Arc::new(streams), Send::WebTransport(send), Receive::WebTransport(receive), info, frame_max)
}

fn assemble(streams: Arc<Streams>, send: Send, receive: Receive, info: Info, frame_max: u32) -> Connection {
    let reader = Reader { stream: receive, streams: Arc::clone(&streams) };
    let writer = Writer { stream: send, streams, pending: Vec::new(), taken: 0 };
    Connection { info, reader: FrameReader::new(Source::Quic(reader), frame_max), writer: FrameWriter::new(Sink::Quic(writer)) }
}

/// The TLS exporter of a QUIC connection.
pub(super) fn exporter(connection: &quinn::Connection) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    connection.export_keying_material(&mut bytes, tls::EXPORTER_LABEL, &[]).ok().map(|()| bytes)
}

/// Limits and timers of a QUIC connection, of either side.
#[must_use]
pub fn transport_config(limits: &Limits, keep_alive: Option<Duration>) -> quinn::TransportConfig {
    let mut config = quinn::TransportConfig::default();
    config
        .max_concurrent_bidi_streams(STREAMS_BIDI.into())
        .max_concurrent_uni_streams(STREAMS_UNI.into())
        .stream_receive_window(STREAM_RECEIVE_WINDOW.into())
        .receive_window(RECEIVE_WINDOW.into())
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(Some(CHUNK))
        .datagram_send_buffer_size(CHUNK)
        .max_idle_timeout(Some(VarInt::from_u32(limits.idle_timeout_ms).into()))
        .keep_alive_interval(keep_alive);
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
    WebTransport(#[from] wtransport::error::ConnectionError),
    /// The client speaks neither `h3` nor `waxwing/1`.
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
        Some(ALPN) => Ok(Accepted::Quic(Raw { connection: connecting.await?, name })),
        Some(webtransport::ALPN) => Ok(Accepted::WebTransport(Box::new(webtransport::accept(connecting).await?))),
        _ => Err(AcceptError::Alpn),
    }
}

/// A raw QUIC connection whose client has yet to open the stream.
#[derive(Debug)]
pub struct Raw {
    connection: quinn::Connection,
    name: Option<String>,
}

impl Raw {
    /// Waits for the client's stream.
    ///
    /// # Errors
    /// [`AcceptError::Quic`]
    pub async fn open(self, frame_max: u32) -> Result<Connection, AcceptError> {
        let stream = self.connection.accept_bi().await?;
        let info = Info {
            kind: Kind::Quic,
            remote: canonical(self.connection.remote_address()),
            exporter: exporter(&self.connection),
            authority: self.name,
        };
        Ok(connection(Streams::Quic { connection: self.connection, _endpoint: None }, stream, info, frame_max))
    }
}

/// An IPv4 address that a dual-stack socket reports as IPv6, in its own form.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
