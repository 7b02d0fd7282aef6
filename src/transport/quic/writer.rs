//! Frames onto the streams and datagrams of a connection.
//!
//! Without lanes everything goes onto the control stream. With them, pages go onto streams of their own: the live ones onto
//! one long stream, or, while the path loses packets, each onto a stream of its own, so that what one lost packet holds up is
//! one page. What the connection does not take yet is kept by lane, so that no lane waits for one behind it.

use std::{
    collections::VecDeque,
    future::Future as _,
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;

use super::{
    super::{CLOSE_TIMEOUT_MS, Error, SLICE},
    SEND_WINDOW,
    follower::Follower,
    loss::Loss,
    streams::{self, Send, Streams},
};
use crate::core::{
    close::CloseCode,
    frame,
    lane::{self, Lane, Outgoing, Sort},
};

/// Bytes unacknowledged or unsent up to which history is written: the rest of the window is for what is more urgent.
const HISTORY_WINDOW: u64 = SEND_WINDOW / 2;
/// Frames of at least so many bytes are not copied.
const LARGE: usize = 1 << 10;
/// Live frames after which the path is looked at again.
const LOOK_EVERY: u32 = 16;

/// Priorities of streams: the connection sends what waits on a higher one first.
const CONTROL_PRIORITY: i32 = 2;
const LIVE_PRIORITY: i32 = 1;
const HISTORY_PRIORITY: i32 = 0;

pub(in crate::transport) struct Writer {
    streams: Arc<Streams>,
    control: Line,
    lanes: Option<Box<Lanes>>,
}

/// The other lanes of a connection that has some.
#[derive(Default)]
struct Lanes {
    /// Announcements that went onto the control stream.
    announced: u64,
    live: Option<Line>,
    /// The stream of a page of its own, until it is written.
    alone: Option<Line>,
    history: Option<Line>,
    loss: Loss,
    lossy: bool,
    looked: u32,
    /// A client's own messages are followed always: they are few. A server's, where the path is lossy.
    follows: bool,
    follower: Follower,
    /// The send window is [`HISTORY_WINDOW`] now.
    narrow: bool,
}

/// What goes onto one stream.
struct Line {
    stream: Send,
    /// What precedes everything else, until it is written.
    first: Vec<u8>,
    /// Frames not yet given to the stream, with their marks if it is a lane's.
    waiting: VecDeque<(Option<u64>, Bytes)>,
    waiting_bytes: usize,
    /// What was given to it and is not taken yet.
    chunks: Vec<Bytes>,
    /// Frame bytes in it.
    taken: usize,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Writer").field(&self.streams).finish()
    }
}

impl Line {
    const fn new(stream: Send, first: Vec<u8>) -> Self {
        Self { stream, first, waiting: VecDeque::new(), waiting_bytes: 0, chunks: Vec::new(), taken: 0 }
    }

    /// Keeps a frame for the next write.
    fn put(&mut self, mark: Option<u64>, frame: Bytes) {
        self.waiting_bytes += frame.len();
        self.waiting.push_back((mark, frame));
    }

    const fn unwritten_bytes(&self) -> usize {
        self.waiting_bytes + self.taken
    }

    fn is_written(&self) -> bool {
        self.chunks.is_empty() && self.waiting.is_empty()
    }

    /// Writes what there is, as far as the connection takes it.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            while !self.chunks.is_empty() {
                // Each chunk is advanced as it is taken, so that nothing is sent twice.
                let written = pin!(self.stream.stream().write_chunks(&mut self.chunks)).poll(cx);
                match written {
                    Poll::Ready(Ok(written)) => drop(self.chunks.drain(..written.chunks)),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(streams::write_failed(error))),
                    Poll::Pending => return Poll::Pending,
                }
            }
            self.taken = 0;
            if self.waiting.is_empty() {
                // A burst leaves nothing behind.
                self.waiting.shrink_to(8);
                self.chunks.shrink_to(2);
                return Poll::Ready(Ok(()));
            }
            self.gather();
        }
    }

    /// Gives the stream as many frames as a slice has room for, at least one. Small ones are copied together.
    fn gather(&mut self) {
        let mut bytes = std::mem::take(&mut self.first);
        while let Some((mark, frame)) = self.waiting.pop_front_if(|(_, next)| self.taken == 0 || self.taken + next.len() <= SLICE)
        {
            self.taken += frame.len();
            match mark {
                Some(announced) => lane::put_mark(&mut bytes, announced, frame.len()),
                None => frame::put_length(&mut bytes, frame.len()),
            }
            if frame.len() < LARGE {
                bytes.extend_from_slice(&frame);
            } else {
                self.chunks.push(std::mem::take(&mut bytes).into());
                self.chunks.push(frame);
            }
        }
        self.waiting_bytes -= self.taken;
        if !bytes.is_empty() {
            self.chunks.push(bytes.into());
        }
    }
}

impl Writer {
    /// Writes to the control stream, and with lanes to the others too.
    pub(super) fn new(streams: Arc<Streams>, control: Send, lanes: super::Lanes) -> Self {
        let mut control = Line::new(control, Vec::new());
        // A stream that is gone is noticed when it is written to.
        let _ = control.stream.stream().set_priority(CONTROL_PRIORITY);
        let end = |follows| Some(Box::new(Lanes { follows, ..Lanes::default() }));
        let lanes = match lanes {
            super::Lanes::None => None,
            super::Lanes::Client => end(true),
            super::Lanes::Server => end(false),
        };
        Self { streams, control, lanes }
    }

    pub(in crate::transport) const fn has_lanes(&self) -> bool {
        self.lanes.is_some()
    }

    pub(in crate::transport) fn unwritten_bytes(&self) -> usize {
        let lanes = self.lanes.as_ref().map_or(0, |lanes| {
            let lines = [&lanes.live, &lanes.alone, &lanes.history];
            lines.into_iter().flatten().map(Line::unwritten_bytes).sum()
        });
        self.control.unwritten_bytes() + lanes
    }

    pub(in crate::transport) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        queue: &mut VecDeque<Outgoing>,
        sent: &mut u64,
    ) -> Poll<Result<(), Error>> {
        while let Some(next) = queue.pop_front() {
            *sent += next.frame.len() as u64;
            if let Err(error) = self.put(next) {
                return Poll::Ready(Err(error));
            }
        }
        self.poll_write(cx)
    }

    /// Puts a frame onto its lane.
    fn put(&mut self, Outgoing { lane, frame }: Outgoing) -> Result<(), Error> {
        let Some(lanes) = &mut self.lanes else {
            self.control.put(None, frame);
            return Ok(());
        };
        match lane {
            Lane::Control => lanes.announced += u64::from(Sort::of(&frame).is_announcement()),
            Lane::Ephemeral if self.streams.send_datagram(&frame) => return Ok(()),
            // A peer that takes no datagrams.
            Lane::Ephemeral => {}
            Lane::Live | Lane::History => {
                let mark = Some(lanes.announced);
                if let Some(line) = lanes.line(lane, &self.streams)? {
                    line.put(mark, frame);
                    return Ok(());
                }
            }
        }
        self.control.put(None, frame);
        Ok(())
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let Some(lanes) = &mut self.lanes else { return self.control.poll_write(cx) };
        let connection = self.streams.connection();
        let mut pending = false;
        let mut urgent = [Some(&mut self.control), lanes.alone.as_mut(), lanes.live.as_mut()];
        for line in urgent.iter_mut().flatten().filter(|line| !line.is_written()) {
            if std::mem::take(&mut lanes.narrow) {
                connection.set_send_window(SEND_WINDOW);
            }
            match line.poll_write(cx) {
                Poll::Ready(written) => written?,
                Poll::Pending => pending = true,
            }
            if lanes.follows || lanes.lossy {
                lanes.follower.written(&self.streams);
            }
        }
        if let Some(mut line) = lanes.alone.take_if(|line| line.is_written()) {
            // One that is reset is noticed elsewhere.
            let _ = line.stream.stream().finish();
        }
        if let Some(line) = lanes.history.as_mut().filter(|line| !pending && !line.is_written()) {
            if !std::mem::replace(&mut lanes.narrow, true) {
                connection.set_send_window(HISTORY_WINDOW);
            }
            match line.poll_write(cx) {
                Poll::Ready(written) => written?,
                Poll::Pending => pending = true,
            }
        }
        // History that waits behind what is blocked is looked at when that is not.
        if pending { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    pub(in crate::transport) async fn close(mut self, code: CloseCode) {
        let mut lines = vec![self.control];
        if let Some(lanes) = self.lanes.take() {
            lines.extend([lanes.alone, lanes.live, lanes.history].into_iter().flatten());
        }
        // Closing a QUIC connection discards what it has not sent: wait until the peer has acknowledged the streams.
        let acknowledged = async {
            let finished = lines.iter_mut().filter_map(|line| {
                let stream = line.stream.stream();
                stream.finish().is_ok().then(|| stream.stopped())
            });
            let all: Vec<_> = finished.collect();
            for one in all {
                // Stopped or lost, there is nothing more to wait for.
                let _ = one.await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(CLOSE_TIMEOUT_MS / 2), acknowledged).await;
        streams::close(self.streams.connection(), code);
    }
}

impl Lanes {
    /// Where the next page of this lane goes; `None` if the peer allows no more streams.
    fn line(&mut self, lane: Lane, streams: &Streams) -> Result<Option<&mut Line>, Error> {
        if lane == Lane::History {
            return open(&mut self.history, streams, HISTORY_PRIORITY);
        }
        // While such a stream is not written, what follows cannot be sooner: it goes behind it.
        if self.alone.is_some() || self.is_lossy(streams) {
            let opened = open(&mut self.alone, streams, LIVE_PRIORITY)?.is_some();
            if opened {
                return Ok(self.alone.as_mut());
            }
        }
        open(&mut self.live, streams, LIVE_PRIORITY)
    }

    fn is_lossy(&mut self, streams: &Streams) -> bool {
        self.looked += 1;
        if self.looked >= LOOK_EVERY {
            self.looked = 0;
            let path = streams.connection().stats().path;
            self.lossy = self.loss.look(path.sent_packets, path.lost_packets);
        }
        self.lossy
    }
}

fn open<'a>(line: &'a mut Option<Line>, streams: &Streams, priority: i32) -> Result<Option<&'a mut Line>, Error> {
    if line.is_none()
        && let Some((stream, first)) = streams.open_uni()?
    {
        // A stream that is gone is noticed when it is written to.
        let _ = stream.set_priority(priority);
        *line = Some(Line::new(Send::Quic(stream), first));
    }
    Ok(line.as_mut())
}
