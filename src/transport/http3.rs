//! A server's half of WebTransport over HTTP/3 (RFC 9114, RFC 9220, draft-ietf-webtrans-http3-02, as browsers speak it), on the bare
//! streams of QUIC: settings, one request for a session, and then nothing but watching that the client still wants it.
//!
//! There is neither task nor channel for a connection here: whoever reads the session's frames looks after the rest, and what is read
//! of a stream is never more than the next item of it, because behind that frames of ours may begin.

use std::{
    future::{Future as _, poll_fn},
    io,
    pin::pin,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use quinn::{ReadError, RecvStream, SendStream, VarInt};
use wtransport::proto::{
    frame::Frame,
    headers::Headers,
    session::{SessionRequest, SessionResponse},
    settings::Settings,
    varint::VarInt as Value,
};

use super::quic::AcceptError;

/// Payload bytes of a frame at most: a request with its headers, or settings.
const FRAME_MAX: u64 = 4096;
/// Codes with which a stream, or the connection, is refused (RFC 9114 §8.1; draft-02 §8.4 for the last).
const REQUEST_REJECTED: VarInt = VarInt::from_u32(0x10b);
const BUFFERED_STREAM_REJECTED: VarInt = VarInt::from_u32(0x3994_bd84);

/// Types of streams (RFC 9114 §6.2, RFC 9204 §4.2, draft-02 §4.1).
const CONTROL: u64 = 0;
const QPACK: [u64; 2] = [2, 3];
/// Types of frames (RFC 9114 §7.2, draft-02 §4.2).
const DATA: u64 = 0;
const HEADERS: u64 = 1;
const SETTINGS: u64 = 4;
const STREAM: u64 = 0x41;
/// The capsule that ends a session (draft-02 §5).
const CLOSE_SESSION: u64 = 0x2843;

/// Why HTTP/3 does not go on.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A stream ended that must not, or within an item.
    #[error("a stream of HTTP/3 ended early")]
    Ended,
    /// The connection is gone, or the client has reset a stream that is needed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The peer broke the protocol.
    #[error("malformed HTTP/3: {0}")]
    Malformed(&'static str),
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Read(error) => error.into(),
            error => Self::other(error),
        }
    }
}

/// A stream of the client, as far as it was read.
struct Incoming {
    stream: RecvStream,
    read: Vec<u8>,
}

/// An item of a stream of frames.
struct Item {
    kind: u64,
    /// For [`STREAM`], which has no payload: the session.
    session: u64,
    payload: Vec<u8>,
}

impl Incoming {
    const fn new(stream: RecvStream) -> Self {
        Self { stream, read: Vec::new() }
    }

    /// Reads until there are so many bytes, and no further. The connection remembers who waits.
    fn poll_read(&mut self, len: usize, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        while self.read.len() < len {
            let chunk = ready!(pin!(self.stream.read_chunk(len - self.read.len(), true)).poll(cx))?;
            self.read.extend_from_slice(&chunk.ok_or(Error::Ended)?.bytes);
        }
        Poll::Ready(Ok(()))
    }

    /// The variable-length integer (RFC 9000 §16) at `at`, which is then behind it.
    fn poll_value(&mut self, at: &mut usize, cx: &mut Context<'_>) -> Poll<Result<u64, Error>> {
        ready!(self.poll_read(*at + 1, cx))?;
        let len = self.read.get(*at).map_or(1, |first| 1 << (first >> 6));
        ready!(self.poll_read(*at + len, cx))?;
        let value = self.read.get(*at..).and_then(|mut rest| take_value(&mut rest)).unwrap_or_default();
        *at += len;
        Poll::Ready(Ok(value))
    }

    /// The type of a unidirectional stream, which begins it.
    fn poll_kind(&mut self, cx: &mut Context<'_>) -> Poll<Result<u64, Error>> {
        let kind = ready!(self.poll_value(&mut 0, cx));
        self.read = Vec::new();
        Poll::Ready(kind)
    }

    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Result<Item, Error>> {
        let mut at = 0;
        let kind = ready!(self.poll_value(&mut at, cx))?;
        let number = ready!(self.poll_value(&mut at, cx))?;
        let mut item = Item { kind, session: number, payload: Vec::new() };
        if kind != STREAM {
            if number > FRAME_MAX {
                return Poll::Ready(Err(Error::Malformed("a frame that is too large")));
            }
            ready!(self.poll_read(at + usize::try_from(number).unwrap_or(usize::MAX), cx))?;
            item.payload = self.read.split_off(at);
        }
        self.read = Vec::new();
        Poll::Ready(Ok(item))
    }

    /// Whether nothing is left of what a stream brings that means nothing to us.
    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        while let Some(_dropped) = ready!(pin!(self.stream.read_chunk(usize::MAX, true)).poll(cx))? {}
        Poll::Ready(Ok(()))
    }
}

/// The variable-length integer that `bytes` begin with, if it is there whole; they are then what follows.
pub(super) fn take_value(bytes: &mut impl Buf) -> Option<u64> {
    let first = *bytes.chunk().first()?;
    let len = 1_usize << (first >> 6);
    let value = bytes.chunk().get(1..len)?.iter().fold(u64::from(first & 0x3f), |value, byte| value << 8 | u64::from(*byte));
    bytes.advance(len);
    Some(value)
}

/// HTTP/3 on a connection: its streams, apart from those that carry frames of ours.
struct Streams {
    connection: quinn::Connection,
    /// Ours. It ends with the connection.
    _settings: SendStream,
    control: Option<Incoming>,
    /// Whether the client has told its settings.
    is_set: bool,
    qpack: Vec<Incoming>,
    /// Unidirectional streams whose type has not come yet, and bidirectional ones without a first frame.
    unis: Vec<Incoming>,
    bis: Vec<(SendStream, Incoming)>,
    /// Streams for the session, which may come before its request.
    early: Vec<(u64, (SendStream, RecvStream))>,
}

impl Streams {
    async fn new(connection: quinn::Connection) -> Result<Self, AcceptError> {
        let mut settings = connection.open_uni().await?;
        let ours = Settings::builder()
            .qpack_max_table_capacity(Value::from_u32(0))
            .qpack_blocked_streams(Value::from_u32(0))
            .enable_connect_protocol()
            .enable_webtransport()
            .enable_h3_datagrams()
            .webtransport_max_sessions(Value::from_u32(1))
            .build();
        let mut bytes = vec![0];
        put(&mut bytes, &ours.generate_frame())?;
        settings.write_all(&bytes).await.map_err(|_| Error::Ended)?;
        let (qpack, unis, bis, early) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Ok(Self { connection, _settings: settings, control: None, is_set: false, qpack, unis, bis, early })
    }

    /// Accepts streams until `found` finds what is waited for. How many there may be is limited by the connection's own settings.
    async fn until<T>(
        &mut self,
        mut found: impl FnMut(&mut Self, Item, SendStream, RecvStream) -> Option<T>,
    ) -> Result<T, AcceptError> {
        let connection = self.connection.clone();
        loop {
            tokio::select! {
                biased;
                item = poll_fn(|cx| self.poll(cx)) => {
                    let (item, send, receive) = item?;
                    if let Some(found) = found(self, item, send, receive) {
                        return Ok(found);
                    }
                }
                stream = connection.accept_uni() => self.unis.push(Incoming::new(stream?)),
                stream = connection.accept_bi() => {
                    let (send, receive) = stream?;
                    self.bis.push((send, Incoming::new(receive)));
                }
            }
        }
    }

    /// The first frame of a bidirectional stream. What begins unidirectional ones is dealt with.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Item, SendStream, RecvStream), Error>> {
        let mut index = 0;
        while let Some(stream) = self.unis.get_mut(index) {
            match stream.poll_kind(cx) {
                Poll::Pending => index += 1,
                Poll::Ready(kind) => {
                    let stream = self.unis.swap_remove(index);
                    match kind {
                        Ok(CONTROL) if self.control.is_none() => self.control = Some(stream),
                        Ok(kind) if QPACK.contains(&kind) && self.qpack.len() < QPACK.len() => self.qpack.push(stream),
                        Ok(CONTROL) => return Poll::Ready(Err(Error::Malformed("a second control stream"))),
                        // Nothing that we know of (RFC 9114 §9): it is stopped as it is dropped.
                        Ok(_) | Err(Error::Ended | Error::Read(ReadError::Reset(_))) => {}
                        Err(error) => return Poll::Ready(Err(error)),
                    }
                }
            }
        }
        if let Poll::Ready(Err(error)) = self.poll_control(cx) {
            return Poll::Ready(Err(error));
        }
        let mut index = 0;
        while let Some((_, stream)) = self.bis.get_mut(index).filter(|_| self.is_set) {
            match stream.poll_item(cx) {
                Poll::Pending => index += 1,
                Poll::Ready(Ok(Item { kind, .. })) if !matches!(kind, DATA | HEADERS | SETTINGS | STREAM) => {}
                Poll::Ready(item) => {
                    let (send, Incoming { stream, .. }) = self.bis.swap_remove(index);
                    match item {
                        Ok(item) => return Poll::Ready(Ok((item, send, stream))),
                        Err(Error::Ended | Error::Read(ReadError::Reset(_))) => {}
                        Err(error) => return Poll::Ready(Err(error)),
                    }
                }
            }
        }
        Poll::Pending
    }

    /// Ready only when the client broke something: its control stream has settings first, nothing of a request, and no end; and no
    /// table of QPACK has an end either.
    fn poll_control(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        while let Some(control) = &mut self.control
            && let Poll::Ready(item) = control.poll_item(cx)
        {
            let Item { kind, payload, .. } = item?;
            match (kind, self.is_set) {
                (SETTINGS, false) => {
                    let malformed = |_| Error::Malformed("settings");
                    Settings::with_frame(&Frame::new_settings(payload.into())).map_err(malformed)?;
                    self.is_set = true;
                }
                (_, false) => return Poll::Ready(Err(Error::Malformed("no settings first"))),
                (DATA | HEADERS | SETTINGS | STREAM, true) => return Poll::Ready(Err(Error::Malformed("a frame out of place"))),
                _ => {}
            }
        }
        for stream in &mut self.qpack {
            if let Poll::Ready(drained) = stream.poll_drained(cx) {
                return Poll::Ready(Err(drained.err().unwrap_or(Error::Ended)));
            }
        }
        Poll::Pending
    }
}

fn put(bytes: &mut Vec<u8>, frame: &Frame<'_>) -> Result<(), Error> {
    frame.write(bytes).map_err(|_| Error::Malformed("it cannot be written"))
}

/// A client's request for a session, to be answered.
pub(super) struct Request {
    streams: Box<Streams>,
    request: SessionRequest,
    send: SendStream,
    receive: RecvStream,
}

impl Request {
    /// Waits for one.
    pub(super) async fn accept(connection: quinn::Connection) -> Result<Self, AcceptError> {
        let mut streams = Box::new(Streams::new(connection).await?);
        let found = streams.until(|streams, item, mut send, receive| match item.kind {
            HEADERS => {
                let headers = Headers::with_frame(&Frame::new_headers(item.payload.into())).ok();
                match headers.and_then(|headers| SessionRequest::try_from(headers).ok()) {
                    Some(request) => Some(Ok((request, send, receive))),
                    None => {
                        // Some other request. A stream that is gone needs no answer.
                        let _ = send.reset(REQUEST_REJECTED);
                        None
                    }
                }
            }
            STREAM => {
                streams.early.push((item.session, (send, receive)));
                None
            }
            _ => Some(Err(Error::Malformed("no request first"))),
        });
        let (request, send, receive) = found.await??;
        Ok(Self { streams, request, send, receive })
    }

    pub(super) const fn request(&self) -> &SessionRequest {
        &self.request
    }

    async fn answer(&mut self, response: &SessionResponse) -> Result<(), Error> {
        let mut bytes = Vec::new();
        put(&mut bytes, &response.headers().generate_frame())?;
        self.send.write_all(&bytes).await.map_err(|_| Error::Ended)
    }

    /// Refuses it, and waits until the client knows.
    pub(super) async fn refuse(mut self, response: SessionResponse) {
        // Whoever left needs no answer.
        if self.answer(&response).await.is_ok() && self.send.finish().is_ok() {
            let _ = self.send.stopped().await;
        }
    }

    /// Opens the session, and waits for the client's stream.
    pub(super) async fn open(mut self) -> Result<(Session, (SendStream, RecvStream)), AcceptError> {
        self.answer(&SessionResponse::ok()).await?;
        let Self { mut streams, send, receive, .. } = self;
        let id = u64::from(VarInt::from(send.id()));
        let early = std::mem::take(&mut streams.early);
        let stream = match early.into_iter().find(|(session, _)| *session == id) {
            Some((_, stream)) => stream,
            None => {
                let is_ours = |_: &mut Streams, item: Item, mut send: SendStream, receive| {
                    if item.kind == STREAM && item.session == id {
                        return Some((send, receive));
                    }
                    let _ = send.reset(if item.kind == STREAM { BUFFERED_STREAM_REJECTED } else { REQUEST_REJECTED });
                    None
                };
                streams.until(is_ours).await?
            }
        };
        let connection = streams.connection.clone();
        Ok((Session { id, connection, streams, _send: send, receive: Incoming::new(receive) }, stream))
    }
}

/// An open session. It ends when it is dropped.
pub(super) struct Session {
    pub(super) id: u64,
    pub(super) connection: quinn::Connection,
    streams: Box<Streams>,
    _send: SendStream,
    receive: Incoming,
}

impl Session {
    /// Ready when the client has ended the session in good order, or broke something.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        while let Poll::Ready(item) = self.receive.poll_item(cx) {
            match item {
                Ok(item) if item.kind != DATA || take_value(&mut &*item.payload) != Some(CLOSE_SESSION) => {}
                Ok(_) | Err(Error::Ended) => return Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        self.streams.poll_control(cx)
    }
}
