//! The streams and datagrams of one connection, raw QUIC or WebTransport, which puts a few bytes before each.

use std::{
    future::Future as _,
    io,
    pin::pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use quinn::{ReadError, SendStream, VarInt, WriteError};

#[cfg(feature = "client")]
use super::super::webtransport;
use super::super::{Error, http3};
use crate::core::{close::CloseCode, frame};

/// Bytes of one read from a stream's reassembly at most.
const CHUNK: usize = 16 << 10;

/// The streams of one connection, and what must live as long as they do.
pub(in crate::transport) enum Streams {
    Quic {
        connection: quinn::Connection,
        _endpoint: Option<quinn::Endpoint>,
    },
    /// A client's.
    #[cfg(feature = "client")]
    WebTransport {
        connection: wtransport::Connection,
        _endpoint: webtransport::ClientEndpoint,
    },
    /// A server's, of a session over HTTP/3.
    Session {
        connection: quinn::Connection,
        id: u64,
    },
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Streams({})", self.connection().stable_id())
    }
}

impl Streams {
    pub(super) fn connection(&self) -> &quinn::Connection {
        match self {
            Self::Quic { connection, .. } | Self::Session { connection, .. } => connection,
            #[cfg(feature = "client")]
            Self::WebTransport { connection, .. } => connection.quic_connection(),
        }
    }

    /// The number of the session's request, over WebTransport.
    fn session(&self) -> Option<u64> {
        match self {
            Self::Quic { .. } => None,
            #[cfg(feature = "client")]
            Self::WebTransport { connection, .. } => Some(connection.session_id().into_u64()),
            Self::Session { id, .. } => Some(*id),
        }
    }

    /// Opens a unidirectional stream, if the peer allows another one now. Tells also what goes before everything else on it.
    pub(super) fn open_uni(&self) -> Result<Option<(SendStream, Vec<u8>)>, Error> {
        let opened = pin!(self.connection().open_uni()).poll(&mut Context::from_waker(Waker::noop()));
        let mut first = Vec::new();
        if let Some(session) = self.session() {
            // The stream's type (0x54, draft-02 §4.2) and the session.
            first.extend_from_slice(&[0x40, 0x54]);
            put_quic_varint(&mut first, session);
        }
        match opened {
            Poll::Ready(Ok(stream)) => Ok(Some((stream, first))),
            Poll::Ready(Err(reason)) => Err(lost(reason)),
            Poll::Pending => Ok(None),
        }
    }

    /// The next unidirectional stream that the peer has opened. Cancel-safe.
    pub(super) async fn accept_uni(&self) -> Result<Receive, Error> {
        match self {
            Self::Quic { connection, .. } | Self::Session { connection, .. } => {
                connection.accept_uni().await.map(Receive::Quic).map_err(lost)
            }
            #[cfg(feature = "client")]
            Self::WebTransport { connection, .. } => {
                connection.accept_uni().await.map(Receive::WebTransport).map_err(|error| self.failed(error))
            }
        }
    }

    /// The next datagram's payload. Cancel-safe.
    pub(super) async fn read_datagram(&self) -> Result<Bytes, Error> {
        match self {
            Self::Quic { connection, .. } => connection.read_datagram().await.map_err(lost),
            Self::Session { connection, id } => loop {
                let mut datagram = connection.read_datagram().await.map_err(lost)?;
                // RFC 9297 §2.1. One of no session is dropped.
                if http3::take_value(&mut datagram) == Some(id / 4) {
                    return Ok(datagram);
                }
            },
            #[cfg(feature = "client")]
            Self::WebTransport { connection, .. } => {
                connection.receive_datagram().await.map(|datagram| datagram.payload()).map_err(|error| self.failed(error))
            }
        }
    }

    /// Why the connection is gone, where HTTP/3 does not know.
    #[cfg(feature = "client")]
    fn failed(&self, error: wtransport::error::ConnectionError) -> Error {
        self.broken(io::Error::other(error))
    }

    /// The same for whatever else has failed.
    pub(super) fn broken(&self, error: impl Into<io::Error>) -> Error {
        match self.connection().close_reason() {
            Some(reason) => lost(reason),
            None => error.into().into(),
        }
    }

    /// The beginning of a datagram, with room for so many bytes more.
    fn datagram(&self, len: usize) -> Vec<u8> {
        let mut payload = Vec::with_capacity(len + 8);
        if let Some(session) = self.session() {
            // RFC 9297 §2.1: the stream of the session's request, a quarter of its number.
            put_quic_varint(&mut payload, session / 4);
        }
        payload
    }

    /// Sends a datagram without a frame.
    pub(super) fn send_nothing(&self) {
        // A peer that takes none does without, and a connection that is gone is noticed elsewhere.
        let _ = self.connection().send_datagram(self.datagram(0).into());
    }

    /// Sends a frame as a datagram, instead of older ones if too many wait. False if the peer takes none, or none so large.
    pub(super) fn send_datagram(&self, frame: &[u8]) -> bool {
        let mut payload = self.datagram(frame.len() + 4);
        frame::put_delimited(&mut payload, frame);
        // A connection that is gone is noticed by whoever writes to its streams.
        !matches!(
            self.connection().send_datagram(payload.into()),
            Err(quinn::SendDatagramError::UnsupportedByPeer
                | quinn::SendDatagramError::Disabled
                | quinn::SendDatagramError::TooLarge)
        )
    }
}

/// A variable-length integer of QUIC (RFC 9000 §16).
#[expect(clippy::big_endian_bytes, reason = "QUIC's byte order")]
fn put_quic_varint(out: &mut Vec<u8>, value: u64) {
    let bytes = value.to_be_bytes();
    let (len, mark) = match value {
        0..0x40 => (1, 0),
        0x40..0x4000 => (2, 0x40),
        0x4000..0x4000_0000 => (4, 0x80),
        _ => (8, 0xc0),
    };
    let start = out.len();
    out.extend(bytes.iter().skip(bytes.len() - len));
    if let Some(first) = out.get_mut(start) {
        *first |= mark;
    }
}

/// A stream to read from.
pub(in crate::transport) enum Receive {
    Quic(quinn::RecvStream),
    #[cfg(feature = "client")]
    WebTransport(wtransport::RecvStream),
}

impl Receive {
    /// What has come; `None` at the end of the stream, or of the connection if that is in good order.
    pub(super) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Error>> {
        let stream = match self {
            Self::Quic(stream) => stream,
            #[cfg(feature = "client")]
            Self::WebTransport(stream) => stream.quic_stream_mut(),
        };
        // The connection remembers the waker: the future may be dropped.
        pin!(stream.read_chunk(CHUNK, true)).poll(cx).map(|read| match read {
            Ok(chunk) => Ok(chunk.map(|chunk| chunk.bytes)),
            Err(ReadError::ConnectionLost(reason)) => match lost(reason) {
                Error::Closed(CloseCode::Normal) => Ok(None),
                error => Err(error),
            },
            Err(error) => Err(io::Error::from(error).into()),
        })
    }
}

/// A stream to write to.
pub(super) enum Send {
    Quic(SendStream),
    #[cfg(feature = "client")]
    WebTransport(wtransport::SendStream),
}

impl Send {
    pub(super) fn stream(&mut self) -> &mut SendStream {
        match self {
            Self::Quic(stream) => stream,
            #[cfg(feature = "client")]
            Self::WebTransport(stream) => stream.quic_stream_mut(),
        }
    }
}

/// What a failed write means.
pub(super) fn write_failed(error: WriteError) -> Error {
    match error {
        WriteError::ConnectionLost(reason) => lost(reason),
        error => io::Error::from(error).into(),
    }
}

/// What the end of a connection means.
fn lost(reason: quinn::ConnectionError) -> Error {
    ended(&reason).map_or_else(|| io::Error::from(reason).into(), Error::Closed)
}

/// The code with which an application closed the connection. HTTP/3's own "no error" counts as a normal end.
pub(super) fn ended(reason: &quinn::ConnectionError) -> Option<CloseCode> {
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

/// Ends a connection with a code.
pub(super) fn close(connection: &quinn::Connection, code: CloseCode) {
    connection.close(VarInt::from_u32(code.quic()), code.name().as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_are_those_of_the_rfc() {
        // RFC 9000 §A.1.
        for (value, bytes) in [
            (37_u64, &[0x25][..]),
            (15_293, &[0x7b, 0xbd]),
            (494_878_333, &[0x9d, 0x7f, 0x3e, 0x7d]),
            (151_288_809_941_952_652, &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c]),
        ] {
            let mut out = vec![9];
            put_quic_varint(&mut out, value);
            assert_eq!(&out[1..], bytes);
        }
    }
}
