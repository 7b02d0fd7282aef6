//! Two ends in one process, for tests: the same framing as a QUIC stream, with a buffer of a chosen size between.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, OnceLock},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};

use super::{Connection, Error, Fill, FrameReader, FrameWriter, Info, Kind, READ_BUFFER, Sink, Source};
use crate::core::close::CloseCode;

type Code = Arc<OnceLock<CloseCode>>;

#[derive(Debug)]
pub(super) struct Reader {
    half: ReadHalf<DuplexStream>,
    /// The peer's close code.
    code: Code,
}

impl Reader {
    pub(super) async fn fill(&mut self, buffer: &mut BytesMut) -> Result<Fill, Error> {
        buffer.reserve(READ_BUFFER);
        if self.half.read_buf(buffer).await? > 0 {
            return Ok(Fill::Bytes);
        }
        match self.code.get() {
            Some(CloseCode::Normal) => Ok(Fill::End),
            Some(code) => Err(Error::Closed(*code)),
            None => Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
        }
    }

    pub(super) async fn closed(mut self) -> CloseCode {
        let mut rest = BytesMut::new();
        while self.half.read_buf(&mut rest).await.is_ok_and(|n| n > 0) {
            rest.clear();
        }
        self.code.get().copied().unwrap_or(CloseCode::Internal)
    }
}

#[derive(Debug)]
pub(super) struct Writer {
    half: WriteHalf<DuplexStream>,
    pending: BytesMut,
    code: Code,
}

impl Writer {
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.pending.extend_from_slice(bytes);
        while self.pending.has_remaining() {
            self.half.write_buf(&mut self.pending).await?;
        }
        Ok(())
    }

    pub(super) async fn close(mut self, code: CloseCode) {
        // The first code stands, and a peer that is gone needs none.
        let _ = self.code.set(code);
        let _ = self.half.shutdown().await;
    }
}

/// Two connected ends: the client's and the server's. `capacity` bytes fit between them in each direction; `frame_max` is
/// what both readers start with.
#[must_use]
pub fn pair(capacity: usize, frame_max: u32) -> (Connection, Connection) {
    let (a, b) = tokio::io::duplex(capacity);
    let (from_a, from_b) = (Code::default(), Code::default());
    (end(a, Arc::clone(&from_b), Arc::clone(&from_a), frame_max), end(b, from_a, from_b, frame_max))
}

fn end(stream: DuplexStream, theirs: Code, ours: Code, frame_max: u32) -> Connection {
    let (read, write) = tokio::io::split(stream);
    let remote = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Connection {
        info: Info { kind: Kind::Memory, remote, exporter: None, authority: Some("memory".into()) },
        reader: FrameReader::new(Source::Memory(Reader { half: read, code: theirs }), frame_max),
        writer: FrameWriter::new(Sink::Memory(Writer { half: write, pending: BytesMut::new(), code: ours })),
    }
}
