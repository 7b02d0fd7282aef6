//! Message framing (RFC 6455 §5), for binary messages only. Text is refused; compression is never negotiated.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::poll_fn,
    io::{self, Cursor},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, BytesMut};
use rustls::crypto::SecureRandom;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, ReadHalf, WriteHalf};
use tokio_tungstenite::tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Control, Data, OpCode},
};

use super::{Role, Socket};
use crate::{
    core::{close::CloseCode, lane},
    transport::{Error, Fill, SLICE, gather, tls},
};

thread_local! {
    /// Messages on their way between frames and socket, in either direction.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Bytes of one read at most.
const CHUNK: usize = SLICE;
/// Bytes of a frame's header at most (RFC 6455 §5.2).
const HEADER_LEN_MAX: usize = 14;
/// Payload bytes of a control frame at most (RFC 6455 §5.5).
const CONTROL_MAX: u64 = 125;
/// Bytes of answers to pings that wait to be written. A peer that sends more pings than it reads answers loses answers.
const ANSWERS_MAX: usize = 1 << 10;

pub(super) fn halves(socket: Socket, leftover: BytesMut, role: Role) -> (Reader, Writer) {
    let (read, write) = tokio::io::split(socket);
    let random = (role == Role::Client).then(|| tls::provider().secure_random);
    let out = Arc::new(Mutex::new(Outgoing { half: write, pending: BytesMut::new(), random, owned: false, closed: false }));
    let reader = Reader {
        half: read,
        raw: leftover,
        role,
        rest: 0,
        mask: None,
        fin: true,
        fragmented: false,
        state: State::Header,
        out: Arc::clone(&out),
        code: None,
    };
    (reader, Writer { out, taken: 0 })
}

/// The writing half and what waits for it. Locked only within a poll.
#[derive(Debug)]
struct Outgoing {
    half: WriteHalf<Socket>,
    pending: BytesMut,
    /// At a client: where masks come from.
    random: Option<&'static dyn SecureRandom>,
    /// A writer is sending: what the reader adds goes out with it.
    owned: bool,
    /// The close frame is queued: nothing may follow.
    closed: bool,
}

impl Outgoing {
    fn put(&mut self, opcode: OpCode, payload: &[u8]) -> Result<(), Error> {
        let header = FrameHeader { opcode, mask: self.mask()?, ..FrameHeader::default() };
        let len = payload.len() as u64;
        self.pending.reserve(header.len(len) + payload.len());
        header.format(len, &mut (&mut self.pending).writer()).map_err(io::Error::other)?;
        let start = self.pending.len();
        self.pending.extend_from_slice(payload);
        if let Some(sent) = self.pending.get_mut(start..) {
            apply_mask(sent, header.mask);
        }
        Ok(())
    }

    /// Writes one binary message of what is queued. What the socket does not take waits in `pending`. Returns its frames' bytes.
    fn write_message(
        &mut self,
        cx: &mut Context<'_>,
        queue: &mut VecDeque<lane::Outgoing>,
        scratch: &mut Vec<u8>,
    ) -> Result<usize, Error> {
        scratch.clear();
        scratch.resize(HEADER_LEN_MAX, 0);
        let taken = gather(queue, scratch);
        let mask = self.mask()?;
        let (header, payload) = scratch.split_at_mut(HEADER_LEN_MAX);
        apply_mask(payload, mask);
        let len = payload.len() as u64;
        let head = FrameHeader { opcode: OpCode::Data(Data::Binary), mask, ..FrameHeader::default() };
        // The header's length is known only now: it goes right before the payload.
        let start = HEADER_LEN_MAX - head.len(len);
        head.format(len, &mut header.get_mut(start..).unwrap_or_default()).map_err(io::Error::other)?;
        let message = scratch.get(start..).unwrap_or_default();
        let written = match Pin::new(&mut self.half).poll_write(cx, message) {
            Poll::Ready(Ok(0)) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        self.pending.extend_from_slice(message.get(written..).unwrap_or_default());
        Ok(taken)
    }

    fn mask(&self) -> Result<Option<[u8; 4]>, Error> {
        let Some(random) = self.random else { return Ok(None) };
        let mut mask = [0; 4];
        random.fill(&mut mask).map_err(|_| io::Error::other("no randomness"))?;
        Ok(Some(mask))
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.pending.has_remaining() {
            match ready!(Pin::new(&mut self.half).poll_write(cx, &self.pending))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.pending.advance(written),
            }
        }
        self.pending = BytesMut::new();
        Pin::new(&mut self.half).poll_flush(cx)
    }
}

fn lock(out: &Mutex<Outgoing>) -> MutexGuard<'_, Outgoing> {
    out.lock().unwrap_or_else(PoisonError::into_inner)
}

fn apply_mask(bytes: &mut [u8], mask: Option<[u8; 4]>) {
    let Some(mask) = mask else { return };
    for (byte, mask) in bytes.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

#[derive(Debug)]
pub(in crate::transport) struct Writer {
    out: Arc<Mutex<Outgoing>>,
    /// Frame bytes that are not written yet.
    taken: usize,
}

impl Writer {
    pub(in crate::transport) const fn unwritten_bytes(&self) -> usize {
        self.taken
    }

    /// Messages of as many frames as go together.
    pub(in crate::transport) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        queue: &mut VecDeque<lane::Outgoing>,
        sent: &mut u64,
    ) -> Poll<Result<(), Error>> {
        let mut out = lock(&self.out);
        loop {
            out.owned = true;
            ready!(out.poll_drain(cx))?;
            out.owned = false;
            self.taken = 0;
            if queue.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if out.closed {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::BrokenPipe).into()));
            }
            self.taken = SCRATCH.with_borrow_mut(|scratch| out.write_message(cx, queue, scratch))?;
            *sent += self.taken as u64;
        }
    }

    async fn drain(&self) -> Result<(), Error> {
        Ok(poll_fn(|cx| lock(&self.out).poll_drain(cx)).await?)
    }

    pub(in crate::transport) async fn close(self, code: CloseCode) {
        let queued = {
            let mut out = lock(&self.out);
            let queued = out.closed || out.put_close(code.websocket()).is_ok();
            out.closed = true;
            queued
        };
        if queued && self.drain().await.is_ok() {
            // Half-closing tells the peer; the reader may still be at work.
            let _ = poll_fn(|cx| Pin::new(&mut lock(&self.out).half).poll_shutdown(cx)).await;
        }
    }
}

impl Outgoing {
    fn put_close(&mut self, number: u16) -> Result<(), Error> {
        // RFC 6455 §5.5.1: network byte order.
        let bytes = [(number >> 8).to_le_bytes()[0], number.to_le_bytes()[0]];
        self.put(OpCode::Control(Control::Close), &bytes)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A frame header is next.
    Header,
    /// Payload of a data frame.
    Payload,
    /// The last frame of a message was read; its end has not been told.
    MessageEnd,
    /// The peer's close frame was read.
    Closed,
}

#[derive(Debug)]
pub(in crate::transport) struct Reader {
    half: ReadHalf<Socket>,
    /// Bytes of the socket that are not decoded yet: less than a header, or a control frame.
    raw: BytesMut,
    role: Role,
    /// Payload bytes that the current frame still brings.
    rest: u64,
    mask: Option<[u8; 4]>,
    fin: bool,
    /// Within a message of several frames.
    fragmented: bool,
    state: State,
    out: Arc<Mutex<Outgoing>>,
    code: Option<CloseCode>,
}

impl Reader {
    /// Appends what has arrived to `buffer`.
    pub(in crate::transport) async fn fill(&mut self, buffer: &mut BytesMut) -> Result<Fill, Error> {
        loop {
            match self.state {
                State::MessageEnd => {
                    self.state = State::Header;
                    return Ok(Fill::Boundary);
                }
                State::Closed => return self.end(),
                State::Payload if !self.raw.is_empty() => {
                    self.payload(buffer);
                    return Ok(Fill::Bytes);
                }
                State::Header => {
                    if !self.header()? {
                        self.read().await?;
                    }
                }
                State::Payload => self.read().await?,
            }
        }
    }

    fn end(&self) -> Result<Fill, Error> {
        match self.code {
            None | Some(CloseCode::Normal) => Ok(Fill::End),
            Some(code) => Err(Error::Closed(code)),
        }
    }

    /// Reads from the socket, and lets waiting answers go out while nobody else writes.
    async fn read(&mut self) -> Result<(), Error> {
        let out = Arc::clone(&self.out);
        poll_fn(|cx| {
            let mut out = lock(&out);
            if !out.owned && out.pending.has_remaining() {
                // What cannot be written now goes with the next frame that is sent; a broken pipe shows when reading.
                let _ = out.poll_drain(cx);
            }
            Poll::Ready(())
        })
        .await;
        if self.raw.is_empty() {
            // A connection that waits holds no buffer: what comes is read into one that all share, and copied.
            self.raw = BytesMut::new();
        }
        let read = poll_fn(|cx| {
            SCRATCH.with_borrow_mut(|scratch| {
                scratch.resize(CHUNK, 0);
                let mut buffer = ReadBuf::new(scratch);
                let read = Pin::new(&mut self.half).poll_read(cx, &mut buffer);
                self.raw.extend_from_slice(buffer.filled());
                read.map_ok(|()| buffer.filled().len())
            })
        });
        match read.await? {
            // The peer is gone without a close frame.
            0 => Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
            _ => Ok(()),
        }
    }

    /// Moves payload into `buffer`.
    fn payload(&mut self, buffer: &mut BytesMut) {
        let count = usize::try_from(self.rest).unwrap_or(usize::MAX).min(self.raw.len());
        let mut part = self.raw.split_to(count);
        apply_mask(&mut part, self.mask);
        buffer.extend_from_slice(&part);
        self.rest -= count as u64;
        if let Some(mask) = &mut self.mask {
            mask.rotate_left(count % 4);
        }
        if self.rest == 0 {
            self.state = if self.fin { State::MessageEnd } else { State::Header };
        }
    }

    /// Decodes a frame header, and a control frame whole. False when bytes are lacking.
    fn header(&mut self) -> Result<bool, Error> {
        let mut cursor = Cursor::new(&self.raw);
        let parsed = FrameHeader::parse(&mut cursor).map_err(|_| Error::WebSocket("malformed frame header"))?;
        let Some((header, len)) = parsed else { return Ok(false) };
        let head = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(Error::WebSocket("an extension that was not negotiated"));
        }
        if header.mask.is_some() != (self.role == Role::Server) {
            return Err(Error::WebSocket("masked by the wrong side"));
        }
        match header.opcode {
            OpCode::Control(control) => self.control(control, &header, head, len),
            OpCode::Data(data) => {
                match data {
                    Data::Binary if self.fragmented => return Err(Error::WebSocket("a message within a message")),
                    Data::Continue if !self.fragmented => return Err(Error::WebSocket("a continuation of nothing")),
                    Data::Binary | Data::Continue => {}
                    Data::Text | Data::Reserved(_) => return Err(Error::WebSocket("not a binary message")),
                }
                self.raw.advance(head);
                (self.rest, self.mask, self.fin, self.fragmented) = (len, header.mask, header.is_final, !header.is_final);
                self.state = match (len, header.is_final) {
                    (0, true) => State::MessageEnd,
                    (0, false) => State::Header,
                    _ => State::Payload,
                };
                Ok(true)
            }
        }
    }

    fn control(&mut self, control: Control, header: &FrameHeader, head: usize, len: u64) -> Result<bool, Error> {
        if !header.is_final || len > CONTROL_MAX {
            return Err(Error::WebSocket("a control frame in parts, or too large"));
        }
        let end = head + usize::try_from(len).unwrap_or(usize::MAX);
        if self.raw.len() < end {
            return Ok(false);
        }
        let mut frame = self.raw.split_to(end);
        let mut payload = frame.split_off(head);
        apply_mask(&mut payload, header.mask);
        let mut out = lock(&self.out);
        match control {
            Control::Ping if !out.closed && out.pending.len() < ANSWERS_MAX => {
                out.put(OpCode::Control(Control::Pong), &payload)?;
            }
            Control::Ping | Control::Pong => {}
            Control::Close => {
                let number = match payload.as_ref() {
                    [] => CloseCode::Normal.websocket(),
                    [high, low, ..] => u16::from(*high) << 8 | u16::from(*low),
                    [_] => return Err(Error::WebSocket("half a close code")),
                };
                self.code = Some(CloseCode::from_number(number.into()));
                self.state = State::Closed;
                if !out.closed {
                    out.put_close(number)?;
                    out.closed = true;
                }
            }
            Control::Reserved(_) => return Err(Error::WebSocket("an unknown control frame")),
        }
        drop(out);
        Ok(true)
    }

    /// Reads and drops bytes until the peer ends.
    pub(in crate::transport) async fn discard(&mut self) {
        loop {
            self.raw.clear();
            self.raw.reserve(CHUNK);
            if !matches!(self.half.read_buf(&mut self.raw).await, Ok(count) if count > 0) {
                return;
            }
        }
    }

    /// Reads on until the peer's close frame or the end.
    pub(in crate::transport) async fn closed(mut self) -> CloseCode {
        let mut rest = BytesMut::new();
        while !matches!(self.fill(&mut rest).await, Ok(Fill::End) | Err(_)) {
            rest.clear();
        }
        self.code.unwrap_or(CloseCode::Internal)
    }
}
