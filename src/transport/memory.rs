//! Two ends in one process, for tests: the same framing as a QUIC stream, with a buffer of a chosen size between.

use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};

use super::{Connection, Error, Fill, FrameReader, FrameWriter, Info, Kind, SLICE, Sink, Source, gather};
use crate::core::{close::CloseCode, lane::Outgoing};

type Code = Arc<OnceLock<CloseCode>>;

#[derive(Debug)]
pub(super) struct Reader {
    half: ReadHalf<DuplexStream>,
    /// The peer's close code.
    code: Code,
}

impl Reader {
    pub(super) async fn fill(&mut self, buffer: &mut BytesMut) -> Result<Fill, Error> {
        buffer.reserve(SLICE);
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
    pending: Vec<u8>,
    /// Of it, written.
    done: usize,
    /// Frame bytes in it.
    taken: usize,
    code: Code,
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
        loop {
            while let Some(rest) = self.pending.get(self.done..).filter(|rest| !rest.is_empty()) {
                self.done += ready!(Pin::new(&mut self.half).poll_write(cx, rest))?;
            }
            self.pending.clear();
            (self.done, self.taken) = (0, 0);
            if queue.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.taken = gather(queue, &mut self.pending);
            *sent += self.taken as u64;
        }
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
    let writer = Writer { half: write, pending: Vec::new(), done: 0, taken: 0, code: ours };
    Connection {
        info: Info { kind: Kind::Memory, remote, exporter: None, authority: Some("memory".into()) },
        reader: FrameReader::new(Source::Memory(Box::new(Reader { half: read, code: theirs })), frame_max),
        writer: FrameWriter::new(Sink::Memory(Box::new(writer))),
    }
}
