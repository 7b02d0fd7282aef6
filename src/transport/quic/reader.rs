//! Frames from the streams and datagrams of a connection.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};

use super::{
    super::{Error, Fill, http3},
    streams::{self, Receive, Streams},
};
use crate::core::{
    close::CloseCode,
    frame::{self, DecodeError},
    lane,
    merge::{Merge, MergeError, Origin},
};

/// Reads one stream, and at a server with lanes datagrams beside it.
pub(in crate::transport) struct Reader {
    stream: Receive,
    streams: Arc<Streams>,
    /// `None` while datagrams are not read.
    datagrams: Option<Datagrams>,
    lanes: bool,
    beside: Beside,
}

/// What a server's reader looks after besides.
#[derive(Default)]
pub(in crate::transport) struct Beside {
    /// What the stream belongs to, over WebTransport.
    pub(super) session: Option<Box<http3::Session>>,
    /// The handshake of a client that sent early data is not complete.
    pub(super) confirmed: Option<quinn::ZeroRttAccepted>,
}

/// What comes as datagrams.
struct Datagrams {
    /// Frames not yet given out.
    frames: VecDeque<Bytes>,
    /// The next datagram. Kept between two polls: quinn forgets who waits for one when the future is dropped.
    next: Next,
}

type Next = Pin<Box<dyn Future<Output = Result<Bytes, Error>> + Send + Sync>>;

impl Datagrams {
    fn next(streams: &Arc<Streams>) -> Next {
        let streams = Arc::clone(streams);
        Box::pin(async move { streams.read_datagram().await })
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Reader").field(&self.streams).finish()
    }
}

impl Reader {
    pub(super) const fn new(streams: Arc<Streams>, stream: Receive, lanes: bool, beside: Beside) -> Self {
        Self { stream, streams, datagrams: None, lanes, beside }
    }

    /// Whether the handshake is not complete, as far as was asked for.
    pub(in crate::transport) const fn is_early(&self) -> bool {
        self.beside.confirmed.is_some()
    }

    /// Waits until the handshake is complete: until then, what the client said may be a replay. Cancel-safe.
    pub(in crate::transport) async fn confirmed(&mut self) {
        if let Some(confirmed) = &mut self.beside.confirmed {
            // It fails when the connection is lost, which reading tells.
            let _ = confirmed.await;
            self.beside.confirmed = None;
        }
    }

    /// The peer is logged in: it may have more on its way, and datagrams are read.
    pub(in crate::transport) fn authenticated(&mut self) {
        self.streams.connection().set_receive_window(super::RECEIVE_WINDOW.into());
        if self.lanes && self.datagrams.is_none() {
            self.datagrams = Some(Datagrams { frames: VecDeque::new(), next: Datagrams::next(&self.streams) });
        }
    }

    /// A frame that came as a datagram.
    pub(in crate::transport) fn aside(&mut self) -> Option<Bytes> {
        self.datagrams.as_mut()?.frames.pop_front()
    }

    /// Holds nothing between two polls.
    pub(in crate::transport) async fn fill(&mut self, buffer: &mut BytesMut) -> Result<Fill, Error> {
        poll_fn(|cx| self.poll_fill(cx, buffer)).await
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, buffer: &mut BytesMut) -> Poll<Result<Fill, Error>> {
        if let Poll::Ready(chunk) = self.stream.poll_chunk(cx) {
            return Poll::Ready(chunk.map(|chunk| match chunk {
                Some(bytes) => {
                    buffer.extend_from_slice(&bytes);
                    Fill::Bytes
                }
                None => Fill::End,
            }));
        }
        if let Some(session) = &mut self.beside.session
            && let Poll::Ready(ended) = session.poll_end(cx)
        {
            return Poll::Ready(ended.map(|()| Fill::End).map_err(|error| self.streams.broken(error)));
        }
        let Some(datagrams) = &mut self.datagrams else { return Poll::Pending };
        let datagram = ready!(datagrams.next.as_mut().poll(cx));
        datagrams.next = Datagrams::next(&self.streams);
        take_requests(&mut datagrams.frames, datagram?)?;
        Poll::Ready(Ok(Fill::Bytes))
    }

    pub(in crate::transport) async fn closed(self) -> CloseCode {
        streams::ended(&self.streams.connection().closed().await).unwrap_or(CloseCode::Internal)
    }
}

/// The frames of a client's datagram: ephemerals, and nothing else, because a datagram may be lost and overtake.
fn take_requests(frames: &mut VecDeque<Bytes>, mut datagram: Bytes) -> Result<(), Error> {
    while !datagram.is_empty() {
        let max = u32::try_from(lane::DATAGRAM_BYTES_MAX).unwrap_or(u32::MAX);
        let frame = frame::take_delimited(&mut datagram, max)?.ok_or(DecodeError::Truncated)?;
        if !lane::is_ephemeral_request(&frame) {
            return Err(MergeError::Misplaced.into());
        }
        frames.push_back(frame);
    }
    Ok(())
}

/// Reads all lanes, at a client.
pub(in crate::transport) struct LaneReader {
    streams: Arc<Streams>,
    control: Receive,
    /// The server's unidirectional streams, by a number of their own.
    unis: Vec<(u64, Receive)>,
    next: u64,
    merge: Merge,
    /// The control stream has ended.
    ended: bool,
}

impl std::fmt::Debug for LaneReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LaneReader").field(&self.streams).finish()
    }
}

enum Event {
    Control(Option<Bytes>),
    Uni(usize, Option<Bytes>),
    Opened(Receive),
    Datagram(Bytes),
}

impl LaneReader {
    pub(super) fn new(streams: Arc<Streams>, control: Receive, frame_max: u32) -> Self {
        Self { streams, control, unis: Vec::new(), next: 0, merge: Merge::new(frame_max), ended: false }
    }

    pub(in crate::transport) const fn set_frame_max(&mut self, bytes: u32) {
        self.merge.set_frame_max(bytes);
    }

    /// The next frame, in an order that one stream could have had; `None` when the server has ended the connection. Counts what
    /// is received. Cancel-safe.
    pub(in crate::transport) async fn recv(&mut self, received: &mut u64) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(frame) = self.merge.poll() {
                return Ok(Some(frame));
            }
            if self.ended && self.unis.is_empty() {
                return if self.merge.is_whole() { Ok(None) } else { Err(DecodeError::Truncated.into()) };
            }
            let (origin, bytes) = match self.event().await? {
                Event::Opened(stream) => {
                    self.unis.push((self.next, stream));
                    self.next += 1;
                    continue;
                }
                Event::Control(None) => {
                    self.ended = true;
                    continue;
                }
                Event::Uni(index, None) => {
                    let (number, _) = self.unis.swap_remove(index);
                    self.merge.end(number)?;
                    continue;
                }
                Event::Control(Some(bytes)) => (Origin::Control, bytes),
                Event::Uni(index, Some(bytes)) => {
                    (self.unis.get(index).map_or(Origin::Control, |(n, _)| Origin::Stream(*n)), bytes)
                }
                Event::Datagram(bytes) => (Origin::Datagram, bytes),
            };
            *received += bytes.len() as u64;
            self.merge.take(origin, &bytes)?;
        }
    }

    async fn event(&mut self) -> Result<Event, Error> {
        let Self { streams, control, unis, ended, .. } = self;
        tokio::select! {
            biased;
            event = poll_fn(|cx| poll_streams((!*ended).then_some(&mut *control), unis, cx)) => event,
            stream = streams.accept_uni() => stream.map(Event::Opened),
            datagram = streams.read_datagram() => datagram.map(Event::Datagram),
        }
    }

    pub(in crate::transport) async fn closed(self) -> CloseCode {
        streams::ended(&self.streams.connection().closed().await).unwrap_or(CloseCode::Internal)
    }
}

/// Whatever has come first on a stream.
fn poll_streams(control: Option<&mut Receive>, unis: &mut [(u64, Receive)], cx: &mut Context<'_>) -> Poll<Result<Event, Error>> {
    if let Some(control) = control
        && let Poll::Ready(chunk) = control.poll_chunk(cx)
    {
        return Poll::Ready(chunk.map(Event::Control));
    }
    for (index, (_, stream)) in unis.iter_mut().enumerate() {
        if let Poll::Ready(chunk) = stream.poll_chunk(cx) {
            return Poll::Ready(chunk.map(|chunk| Event::Uni(index, chunk)));
        }
    }
    Poll::Pending
}
