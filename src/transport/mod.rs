//! Transports: WebSocket, WebTransport, raw QUIC and an in-memory pair, all behind one [`Connection`].
//!
//! A connection carries whole frames as opaque bytes, in order, in both directions: on WebSocket in binary messages, on QUIC
//! and WebTransport on one bidirectional stream that the client opens. If the client asks for lanes there, pages and
//! ephemerals go beside it ([`crate::core::lane`]), and its reader puts them in order again ([`crate::core::merge`]).
//! Nothing here knows more of a frame's meaning than that: sessions do.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes, BytesMut};

use crate::core::{
    close::CloseCode,
    frame::{self, DecodeError},
    lane::Outgoing,
    merge::MergeError,
};

#[cfg(feature = "client")]
pub mod connect;
#[cfg(feature = "client")]
pub mod discover;
#[cfg(feature = "client")]
pub mod http;
pub mod http3;
mod large;
pub mod memory;
pub mod quic;
pub mod tls;
#[cfg(feature = "client")]
pub mod trust;
pub mod websocket;
pub mod webtransport;

#[cfg(feature = "client")]
pub use connect::{ConnectError, Target, connect, connect_resuming};
pub use large::LargeFrames;
pub use tls::Trust;

/// Bytes that a transport takes off a queue at once, if the frames are not larger.
const SLICE: usize = 16 << 10;
/// Bytes that a close may take to reach the peer before the connection is dropped, in milliseconds.
const CLOSE_TIMEOUT_MS: u64 = 1000;

/// Bytes by which the buffer of a frame that is not complete grows at least: what a peer only announces takes no memory.
const GROWTH: usize = 64 << 10;

/// Which transport carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// WebSocket, over TLS or plain TCP (RFC 6455, RFC 8441).
    WebSocket,
    /// WebTransport over HTTP/3.
    WebTransport,
    /// QUIC with ALPN `waxwing/1`, or `waxwing/1+lanes`.
    Quic,
    /// Two ends in one process.
    Memory,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::WebSocket, Self::WebTransport, Self::Quic, Self::Memory];

    /// A short name: for metrics, logs and the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "ws",
            Self::WebTransport => "wt",
            Self::Quic => "quic",
            Self::Memory => "memory",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is known of a connection before its first frame.
#[derive(Debug, Clone)]
pub struct Info {
    /// The transport.
    pub kind: Kind,
    /// The peer: at a server the client's address (as a trusted proxy reported it, if one did).
    pub remote: SocketAddr,
    /// The TLS exporter with label [`tls::EXPORTER_LABEL`] and an empty context (RFC 8446 §7.5). `None` without TLS.
    pub exporter: Option<[u8; 32]>,
    /// The authority (`host:port`) that the client dialled: from `Host` or `:authority`; on raw QUIC the name of the TLS
    /// handshake, which has no port and is absent when an address was dialled.
    pub authority: Option<String>,
}

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    /// What is known of it.
    pub info: Info,
    /// Frames from the peer.
    pub reader: FrameReader,
    /// Frames to the peer.
    pub writer: FrameWriter,
}

/// Why a connection does not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The peer closed it, and not with [`CloseCode::Normal`].
    #[error("the peer closed the connection: {0}")]
    Closed(CloseCode),
    /// The peer's bytes are no frames, or a frame exceeds the limit.
    #[error(transparent)]
    Frame(#[from] DecodeError),
    /// The peer broke RFC 6455.
    #[error("malformed WebSocket message: {0}")]
    WebSocket(&'static str),
    /// It broke, or timed out.
    #[error("the connection was lost: {0}")]
    Lost(#[from] io::Error),
    /// A frame that is larger than usual, while many others are being received.
    #[error("too many large frames are being received")]
    Overloaded,
    /// The peer broke the rules of lanes.
    #[error("the lanes cannot be put together: {0}")]
    Lanes(MergeError),
}

impl From<MergeError> for Error {
    fn from(error: MergeError) -> Self {
        match error {
            MergeError::Frame(error) => Self::Frame(error),
            error => Self::Lanes(error),
        }
    }
}

impl Error {
    /// The close code that answers it, or that it carries.
    #[must_use]
    pub const fn close_code(&self) -> CloseCode {
        match self {
            Self::Closed(code) => *code,
            Self::Frame(error) => error.close_code(),
            Self::WebSocket(_) | Self::Lanes(_) => CloseCode::Protocol,
            Self::Lost(_) => CloseCode::Idle,
            Self::Overloaded => CloseCode::Overloaded,
        }
    }

    /// A short name for metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Closed(_) => "closed",
            Self::Frame(_) => "frame",
            Self::WebSocket(_) => "websocket",
            Self::Lanes(_) => "lanes",
            Self::Lost(_) => "lost",
            Self::Overloaded => "overloaded",
        }
    }
}

/// What a source of bytes has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fill {
    /// Some bytes.
    Bytes,
    /// A message is complete: no frame may cross this point.
    Boundary,
    /// The peer sends nothing more.
    End,
}

#[derive(Debug)]
enum Source {
    WebSocket(websocket::Reader),
    // Larger than that, which most connections are.
    Quic(Box<quic::Reader>),
    Lanes(Box<quic::LaneReader>),
    Memory(Box<memory::Reader>),
}

/// The receiving half of a connection.
#[derive(Debug)]
pub struct FrameReader {
    source: Source,
    buffer: BytesMut,
    frame_max: u32,
    received: u64,
    /// A frame has been given out.
    begun: bool,
    /// What frames larger than usual need a part of, and the part that the one has which is not complete.
    budget: Option<Arc<LargeFrames>>,
    part: Option<large::Part>,
}

impl FrameReader {
    fn new(source: Source, frame_max: u32) -> Self {
        Self { source, buffer: BytesMut::new(), frame_max, received: 0, begun: false, budget: None, part: None }
    }

    /// Frames larger than this many bytes are refused from now on. A connection starts with what its maker chose: at a
    /// server the limit before authentication.
    pub fn set_frame_max(&mut self, bytes: u32) {
        self.frame_max = bytes;
        if let Source::Lanes(reader) = &mut self.source {
            reader.set_frame_max(bytes);
        }
    }

    /// At a server: the client is logged in. Frames of up to `frame_max` bytes are accepted from now on, as far as `budget` has
    /// room for large ones, the transport lets it have more on its way, and datagrams are read.
    pub fn authenticated(&mut self, frame_max: u32, budget: Arc<LargeFrames>) {
        self.set_frame_max(frame_max);
        self.budget = Some(budget);
        if let Source::Quic(reader) = &mut self.source {
            reader.authenticated();
        }
    }

    /// At a server: whether the client speaks before the handshake is complete (early data), so that its first frame may be a replay.
    #[must_use]
    pub const fn is_early(&self) -> bool {
        matches!(&self.source, Source::Quic(reader) if reader.is_early())
    }

    /// At a server: whether a frame is being received that is larger than usual.
    #[must_use]
    pub const fn is_within_large(&self) -> bool {
        self.part.is_some()
    }

    /// Payload bytes received so far.
    #[must_use]
    pub const fn received_bytes(&self) -> u64 {
        self.received
    }

    /// The next frame; `None` when the peer has ended the connection in good order.
    ///
    /// Cancel-safe: a dropped future loses nothing.
    ///
    /// # Errors
    /// [`Error`]; nothing more can be received after one.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, Error> {
        match &mut self.source {
            Source::Lanes(reader) => return reader.recv(&mut self.received).await,
            // Of what came before the handshake was complete, only the first frame is looked at: a login, which a replay cannot use.
            Source::Quic(reader) if self.begun => reader.confirmed().await,
            _ => {}
        }
        loop {
            if let Some(frame) = self.take()? {
                self.begun = true;
                return Ok(Some(frame));
            }
            if let Source::Quic(reader) = &mut self.source
                && let Some(frame) = reader.aside()
            {
                self.received += frame.len() as u64;
                return Ok(Some(frame));
            }
            if self.buffer.is_empty() {
                // A connection that waits holds no buffer.
                self.buffer = BytesMut::new();
            }
            let before = self.buffer.len();
            let fill = match &mut self.source {
                Source::WebSocket(reader) => reader.fill(&mut self.buffer).await?,
                Source::Quic(reader) => reader.fill(&mut self.buffer).await?,
                Source::Lanes(_) => Fill::End,
                Source::Memory(reader) => reader.fill(&mut self.buffer).await?,
            };
            self.received += (self.buffer.len() - before) as u64;
            match fill {
                Fill::Bytes => {}
                Fill::Boundary | Fill::End if !self.buffer.is_empty() => return Err(DecodeError::Truncated.into()),
                Fill::Boundary => {}
                Fill::End => return Ok(None),
            }
        }
    }

    /// A frame that has arrived whole.
    fn take(&mut self) -> Result<Option<Bytes>, Error> {
        match frame::peek_delimited(&self.buffer, self.frame_max)? {
            Some((start, end)) if end <= self.buffer.len() => {
                self.part = None;
                self.buffer.advance(start);
                Ok(Some(self.buffer.split_to(end - start).freeze()))
            }
            Some((_, end)) => {
                if let Some(budget) = self.budget.as_ref().filter(|budget| self.part.is_none() && budget.concerns(end)) {
                    self.part = Some(budget.take(end).ok_or(Error::Overloaded)?);
                }
                self.buffer.reserve((end - self.buffer.len()).min(GROWTH));
                Ok(None)
            }
            None => Ok(None),
        }
    }

    /// Reads and drops what still arrives, until the peer ends or about a second has passed. To be awaited beside
    /// [`FrameWriter::close`] by a side that may have left bytes unread: closing a TCP socket with unread bytes resets it,
    /// and the peer may lose what was just sent. Does nothing on other transports.
    pub async fn linger(&mut self) {
        if let Source::WebSocket(reader) = &mut self.source {
            // A peer that goes on sending is cut off all the same.
            let _ = tokio::time::timeout(std::time::Duration::from_millis(CLOSE_TIMEOUT_MS), reader.discard()).await;
        }
    }

    /// Waits until the connection is closed, for any reason, discarding whatever still arrives, and tells the peer's
    /// code. On QUIC bounded by the idle time-out; on TCP the caller must bound it.
    pub async fn closed(self) -> CloseCode {
        match self.source {
            Source::WebSocket(reader) => reader.closed().await,
            Source::Quic(reader) => reader.closed().await,
            Source::Lanes(reader) => reader.closed().await,
            Source::Memory(reader) => reader.closed().await,
        }
    }
}

#[derive(Debug)]
enum Sink {
    WebSocket(websocket::Writer),
    Quic(Box<quic::Writer>),
    Memory(Box<memory::Writer>),
}

/// The sending half of a connection.
#[derive(Debug)]
pub struct FrameWriter {
    sink: Sink,
    /// What a dropped [`FrameWriter::send`] left behind.
    queue: VecDeque<Outgoing>,
    sent: u64,
}

impl FrameWriter {
    const fn new(sink: Sink) -> Self {
        Self { sink, queue: VecDeque::new(), sent: 0 }
    }

    /// Frame bytes taken so far.
    #[must_use]
    pub const fn sent_bytes(&self) -> u64 {
        self.sent
    }

    /// Frame bytes that were taken off a queue and are not written yet.
    #[must_use]
    pub fn unwritten_bytes(&self) -> usize {
        match &self.sink {
            Sink::WebSocket(writer) => writer.unwritten_bytes(),
            Sink::Quic(writer) => writer.unwritten_bytes(),
            Sink::Memory(writer) => writer.unwritten_bytes(),
        }
    }

    /// Touches what [`Self::poll_send`] will need, so that it is in the processor's cache by then. What it returns means nothing.
    #[must_use]
    pub fn look(&self) -> usize {
        match &self.sink {
            Sink::WebSocket(writer) => writer.look(),
            Sink::Quic(writer) => writer.unwritten_bytes(),
            Sink::Memory(writer) => writer.unwritten_bytes(),
        }
    }

    /// Whether a frame may be written although one before it cannot be yet.
    #[must_use]
    pub const fn has_lanes(&self) -> bool {
        match &self.sink {
            Sink::Quic(writer) => writer.has_lanes(),
            Sink::WebSocket(_) | Sink::Memory(_) => false,
        }
    }

    /// Takes frames off `queue` and writes them, without waiting: ready when the queue is empty and everything is written,
    /// pending when the transport takes no more now; then the waker of `cx` is woken when it does. Bytes that go together
    /// are written together.
    ///
    /// # Errors
    /// [`Error`]; nothing more can be sent after one.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, queue: &mut VecDeque<Outgoing>) -> Poll<Result<(), Error>> {
        Self::poll_sink(&mut self.sink, &mut self.sent, cx, queue)
    }

    fn poll_sink(
        sink: &mut Sink,
        sent: &mut u64,
        cx: &mut Context<'_>,
        queue: &mut VecDeque<Outgoing>,
    ) -> Poll<Result<(), Error>> {
        match sink {
            Sink::WebSocket(writer) => writer.poll_send(cx, queue, sent),
            Sink::Quic(writer) => writer.poll_send(cx, queue, sent),
            Sink::Memory(writer) => writer.poll_send(cx, queue, sent),
        }
    }

    /// Sends `frames`, in order. Returns when the transport has taken all of them.
    ///
    /// A dropped future leaves the frames queued; the next call sends them first. So a caller that gives up on a slow
    /// peer must also give up the connection.
    ///
    /// # Errors
    /// [`Error`]; nothing more can be sent after one.
    pub async fn send(&mut self, frames: &[Bytes]) -> Result<(), Error> {
        let Self { sink, queue, sent } = self;
        queue.extend(frames.iter().cloned().map(Outgoing::control));
        poll_fn(|cx| Self::poll_sink(sink, sent, cx, queue)).await?;
        *queue = VecDeque::new();
        Ok(())
    }

    /// As [`FrameWriter::send`], of a client: ephemerals go as datagrams where the connection has lanes, and may be lost.
    ///
    /// # Errors
    /// [`Error`]; nothing more can be sent after one.
    pub async fn send_requests(&mut self, frames: &[Bytes]) -> Result<(), Error> {
        let Self { sink, queue, sent } = self;
        queue.extend(frames.iter().cloned().map(Outgoing::request));
        poll_fn(|cx| Self::poll_sink(sink, sent, cx, queue)).await
    }

    /// Ends the connection with `code`, after what was sent before has gone out; waits at most about a second for that.
    /// The peer's reader sees the end; frames that it had not read are lost only if it stopped reading.
    pub async fn close(self, code: CloseCode) {
        let close = async {
            match self.sink {
                Sink::WebSocket(writer) => writer.close(code).await,
                Sink::Quic(writer) => writer.close(code).await,
                Sink::Memory(writer) => writer.close(code).await,
            }
        };
        // A peer that takes nothing is dropped: there is nobody to tell.
        let _ = tokio::time::timeout(std::time::Duration::from_millis(CLOSE_TIMEOUT_MS), close).await;
    }
}

/// Takes frames off `queue`, as many as a slice has room for but at least one if there is one, and puts them behind `into`, each
/// preceded by its length. Returns their bytes.
fn gather(queue: &mut VecDeque<Outgoing>, into: &mut Vec<u8>) -> usize {
    let mut taken = 0;
    while let Some(Outgoing { frame, .. }) = queue.pop_front_if(|next| taken == 0 || taken + next.frame.len() <= SLICE) {
        taken += frame.len();
        frame::put_delimited(into, &frame);
    }
    taken
}
