//! Message framing (RFC 6455 §5), for binary messages only. Text is refused with 1003; compression is never negotiated.

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
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
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
    /// Messages on their way to a socket.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// Where sockets are read into.
    static ARRIVED: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into());
}

/// Bytes of one read at most.
const CHUNK: usize = SLICE;
/// Bytes of a frame's header at most (RFC 6455 §5.2).
const HEADER_LEN_MAX: usize = 14;
/// Payload bytes of a control frame at most (RFC 6455 §5.5).
const CONTROL_MAX: u64 = 125;
/// Payload bytes of a frame at most: the highest bit of a 64-bit length must be zero (RFC 6455 §5.2).
const FRAME_MAX: u64 = u64::MAX >> 1;
/// A kind of data that this end does not take (RFC 6455 §7.4.1).
const UNSUPPORTED: u16 = 1003;
/// Bytes of answers to pings that wait to be written. A peer that sends more pings than it reads answers loses answers.
const ANSWERS_MAX: usize = 1 << 10;

pub(super) fn halves(socket: Socket, leftover: BytesMut, role: Role) -> (Reader, Writer) {
    let out = Arc::new(Mutex::new(Outgoing {
        socket,
        pending: BytesMut::new(),
        role,
        dirty: false,
        owned: false,
        closed: false,
        refusal: None,
    }));
    let reader = Reader {
        raw: leftover,
        role,
        rest: 0,
        mask: None,
        fin: true,
        fragmented: false,
        takes_text: false,
        text: false,
        state: State::Header,
        out: Arc::clone(&out),
        code: None,
    };
    (reader, Writer { out, taken: 0 })
}

/// The socket, and what waits to be written to it. Locked only within a poll.
#[derive(Debug)]
struct Outgoing {
    socket: Socket,
    pending: BytesMut,
    role: Role,
    /// Something was added and not flushed yet.
    dirty: bool,
    /// A writer is sending: what the reader adds goes out with it.
    owned: bool,
    /// The close frame is queued: nothing may follow.
    closed: bool,
    /// Says more exactly than a close code of ours why the peer was not understood.
    refusal: Option<u16>,
}

impl Outgoing {
    fn put(&mut self, opcode: OpCode, payload: &[u8]) -> Result<(), Error> {
        let header = FrameHeader { opcode, mask: self.mask()?, ..FrameHeader::default() };
        let len = payload.len() as u64;
        self.dirty = true;
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
        let written = match Pin::new(&mut self.socket).poll_write(cx, message) {
            Poll::Ready(Ok(0)) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        self.pending.extend_from_slice(message.get(written..).unwrap_or_default());
        self.dirty = true;
        Ok(taken)
    }

    fn mask(&self) -> Result<Option<[u8; 4]>, Error> {
        if self.role == Role::Server {
            return Ok(None);
        }
        let mut mask = [0; 4];
        tls::provider().secure_random.fill(&mut mask).map_err(|_| io::Error::other("no randomness"))?;
        Ok(Some(mask))
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.pending.has_remaining() {
            match ready!(Pin::new(&mut self.socket).poll_write(cx, &self.pending))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.pending.advance(written),
            }
        }
        self.pending = BytesMut::new();
        ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
        self.dirty = false;
        Poll::Ready(Ok(()))
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

    /// As [`FrameWriter::look`](crate::transport::FrameWriter::look): what both halves share is reached without its lock.
    pub(in crate::transport) fn look(&self) -> usize {
        self.taken + usize::from(self.out.is_poisoned())
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

    /// One message of this kind, as it is.
    #[cfg(feature = "test-utils")]
    pub(super) async fn message(&self, kind: Data, payload: &[u8]) -> Result<(), Error> {
        {
            let mut out = lock(&self.out);
            if out.closed {
                return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
            }
            out.put(OpCode::Data(kind), payload)?;
        }
        self.drain().await
    }

    async fn drain(&self) -> Result<(), Error> {
        Ok(poll_fn(|cx| lock(&self.out).poll_drain(cx)).await?)
    }

    pub(in crate::transport) async fn close(self, code: CloseCode) {
        let queued = {
            let mut out = lock(&self.out);
            let number = out.refusal.unwrap_or_else(|| code.websocket());
            let queued = out.closed || out.put_close(number).is_ok();
            out.closed = true;
            queued
        };
        if queued && self.drain().await.is_ok() {
            // Half-closing tells the peer; the reader may still be at work.
            let _ = poll_fn(|cx| Pin::new(&mut lock(&self.out).socket).poll_shutdown(cx)).await;
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

/// The code of a close frame. What comes behind it is a reason for people, which must be text all the same.
fn close_number(payload: &[u8]) -> Result<u16, Error> {
    let (number, reason) = match payload {
        [] => return Ok(CloseCode::Normal.websocket()),
        [_] => return Err(Error::WebSocket("half a close code")),
        [high, low, reason @ ..] => (u16::from(*high) << 8 | u16::from(*low), reason),
    };
    // RFC 6455 §7.4 and its registry: the others are reserved, or must never be sent.
    if !matches!(number, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(Error::WebSocket("a close code that must not be sent"));
    }
    if std::str::from_utf8(reason).is_err() {
        return Err(Error::WebSocket("a reason that is not text"));
    }
    Ok(number)
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
    /// Bytes of the socket that are not decoded yet: less than a header, or a control frame.
    raw: BytesMut,
    role: Role,
    /// Payload bytes that the current frame still brings.
    rest: u64,
    mask: Option<[u8; 4]>,
    fin: bool,
    /// Within a message of several frames.
    fragmented: bool,
    takes_text: bool,
    /// The present message is text, or the last one was.
    #[cfg_attr(not(feature = "test-utils"), allow(dead_code, reason = "the product takes no text"))]
    text: bool,
    state: State,
    out: Arc<Mutex<Outgoing>>,
    code: Option<CloseCode>,
}

impl Reader {
    /// From now on text is no error. The bytes of a text message are not looked at.
    #[cfg(feature = "test-utils")]
    pub(super) const fn take_text(&mut self) {
        self.takes_text = true;
    }

    /// Whether the message whose bytes or end came last is text.
    #[cfg(feature = "test-utils")]
    pub(super) const fn is_text(&self) -> bool {
        self.text
    }

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

    /// Reads from the socket, and lets waiting answers go out meanwhile, unless somebody else writes.
    async fn read(&mut self) -> Result<(), Error> {
        if self.raw.is_empty() {
            // A connection that waits holds no buffer: what comes is read into one that all share, and copied.
            self.raw = BytesMut::new();
        }
        match poll_fn(|cx| self.poll_read(cx)).await? {
            // The peer is gone without a close frame.
            0 => Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
            _ => Ok(()),
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut out = lock(&self.out);
        // An answer may have to wait for room (on HTTP/2 it always does): it must not wait for the peer's next bytes too.
        if !out.owned && out.dirty {
            // A broken pipe shows when reading.
            let _ = out.poll_drain(cx);
        }
        ARRIVED.with_borrow_mut(|arrived| {
            let mut buffer = ReadBuf::new(arrived);
            ready!(Pin::new(&mut out.socket).poll_read(cx, &mut buffer))?;
            self.raw.extend_from_slice(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        })
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
        if len > FRAME_MAX || head != header.len(len) {
            return Err(Error::WebSocket("a length that is not written as it must be"));
        }
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
                    Data::Binary | Data::Text if self.fragmented => return Err(Error::WebSocket("a message within a message")),
                    Data::Continue if !self.fragmented => return Err(Error::WebSocket("a continuation of nothing")),
                    Data::Text if !self.takes_text => return Err(self.refuse(UNSUPPORTED, "not a binary message")),
                    Data::Binary | Data::Text => self.text = data == Data::Text,
                    Data::Continue => {}
                    Data::Reserved(_) => return Err(Error::WebSocket("an unknown kind of message")),
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

    /// The connection ends with `number`, whatever close code of ours it is closed with.
    pub(super) fn refuse(&self, number: u16, why: &'static str) -> Error {
        lock(&self.out).refusal = Some(number);
        Error::WebSocket(why)
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
                let number = close_number(&payload)?;
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
            if !matches!(poll_fn(|cx| self.poll_read(cx)).await, Ok(count) if count > 0) {
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
