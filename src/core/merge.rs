//! Puts the lanes of a connection together again, at a client, whatever its platform: bytes of the control stream, of
//! unidirectional streams and of datagrams in, whole frames out, in an order that one stream could have had.
//!
//! * Frames of the control stream come out as they come, and so does whatever is no page.
//! * A page waits until the announcements that preceded it are there. If its room was announced anew since, or deleted, it is
//!   stale, and dropped: the server sends what follows the new announcement.
//! * Then pages of a room come out by their seqs: one that does not follow waits for what is missing, one that was there
//!   already is dropped.
//!
//! So a later announcement may cut off pages that were on their way: as if this client had been a little slower. What waits is
//! limited in bytes; beyond that the connection is to be given up, and the session resumes from its cursors.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf as _, Bytes, BytesMut};
use serde::Deserialize;

use super::{
    frame::{self, DecodeError, Position},
    id::{Digest, RoomId, Seq},
    lane::{self, Marked, Sort},
};

/// Bytes of pages and of frames in part that wait, besides one frame of the largest size.
pub const WAITING_BYTES_MAX: usize = 4 << 20;
/// Rooms that may be announced on one connection.
const ROOMS_MAX: usize = 1 << 16;
/// What a page that waits costs besides its bytes.
const PAGE_OVERHEAD: usize = 96;

/// Where bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The bidirectional stream, or the only one that there is.
    Control,
    /// A unidirectional stream, by a number that the shell gives it.
    Stream(u64),
    /// A datagram: whole.
    Datagram,
}

/// Why nothing more can be made of what comes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// Bytes that are no frame.
    #[error(transparent)]
    Frame(#[from] DecodeError),
    /// A frame that does not belong there.
    #[error("a frame came on a lane that is not its own")]
    Misplaced,
    /// More waits than may.
    #[error("more than {WAITING_BYTES_MAX} bytes wait for something that does not come")]
    TooMuch,
}

/// The pages of one room.
#[derive(Debug)]
struct Flow {
    /// The announcement that they follow.
    since: u64,
    /// The seq that comes next.
    next: Seq,
    /// Pages beyond it.
    ahead: BTreeMap<Seq, Placed>,
}

#[derive(Debug)]
struct Placed {
    items: u64,
    frame: Bytes,
}

/// A page whose announcements have not come.
#[derive(Debug)]
struct Early {
    announced: u64,
    head: PageHead,
    frame: Bytes,
}

/// What of a page says where it belongs: its encoding up to the items.
#[derive(Debug, Deserialize)]
struct PageHead {
    room: RoomId,
    _position: Position,
    first: Seq,
    _chain: Digest,
    items: u64,
}

/// One connection's lanes.
#[derive(Debug)]
pub struct Merge {
    frame_max: u32,
    /// Announcements that have come.
    announced: u64,
    control: BytesMut,
    streams: BTreeMap<u64, BytesMut>,
    rooms: BTreeMap<RoomId, Flow>,
    early: Vec<Early>,
    /// Bytes in `streams`, `rooms` and `early`.
    waiting: usize,
    ready: VecDeque<Bytes>,
}

impl Merge {
    /// Refuses frames of more than `frame_max` bytes.
    #[must_use]
    pub fn new(frame_max: u32) -> Self {
        Self {
            frame_max,
            announced: 0,
            control: BytesMut::new(),
            streams: BTreeMap::new(),
            rooms: BTreeMap::new(),
            early: Vec::new(),
            waiting: 0,
            ready: VecDeque::new(),
        }
    }

    /// Refuses frames of more than this many bytes from now on.
    pub const fn set_frame_max(&mut self, bytes: u32) {
        self.frame_max = bytes;
    }

    /// The next frame, without its length.
    pub fn poll(&mut self) -> Option<Bytes> {
        self.ready.pop_front()
    }

    /// Bytes that wait for others: parts of frames of unidirectional streams, and pages.
    #[must_use]
    pub const fn waiting_bytes(&self) -> usize {
        self.waiting
    }

    /// Bytes have come, cut anywhere if it is a stream. What they complete is polled.
    ///
    /// # Errors
    /// [`MergeError`]; nothing more may be given to it after one.
    pub fn take(&mut self, origin: Origin, bytes: &[u8]) -> Result<(), MergeError> {
        match origin {
            Origin::Control => self.take_control(bytes)?,
            Origin::Stream(number) => self.take_stream(number, bytes)?,
            Origin::Datagram => self.take_datagram(bytes)?,
        }
        if self.waiting > WAITING_BYTES_MAX + self.frame_max as usize { Err(MergeError::TooMuch) } else { Ok(()) }
    }

    /// A unidirectional stream has ended.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] if that is within a frame.
    pub fn end(&mut self, number: u64) -> Result<(), MergeError> {
        match self.streams.remove(&number) {
            Some(rest) if !rest.is_empty() => Err(DecodeError::Truncated.into()),
            _ => Ok(()),
        }
    }

    /// Whether the control stream stands between two frames.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.control.is_empty()
    }

    fn take_control(&mut self, bytes: &[u8]) -> Result<(), MergeError> {
        self.control.extend_from_slice(bytes);
        loop {
            match frame::peek_delimited(&self.control, self.frame_max)? {
                Some((start, end)) if end <= self.control.len() => {
                    self.control.advance(start);
                    let frame = self.control.split_to(end - start).freeze();
                    self.control_frame(frame)?;
                }
                Some((_, end)) => {
                    self.control.reserve(end - self.control.len());
                    return Ok(());
                }
                None => {
                    if self.control.is_empty() {
                        // A connection that waits holds no buffer.
                        self.control = BytesMut::new();
                    }
                    return Ok(());
                }
            }
        }
    }

    fn control_frame(&mut self, frame: Bytes) -> Result<(), MergeError> {
        match Sort::of(&frame) {
            Sort::Page => return self.page(self.announced, frame),
            Sort::Subscribed => {
                if let Some((room, after)) = body::<(RoomId, Seq)>(&frame) {
                    self.announced += 1;
                    self.forget(room);
                    let flow = Flow { since: self.announced, next: after.saturating_add(1), ahead: BTreeMap::new() };
                    self.rooms.insert(room, flow);
                }
            }
            Sort::Deleted => {
                if let Some(room) = body::<RoomId>(&frame) {
                    self.announced += 1;
                    self.forget(room);
                }
            }
            Sort::Ephemeral | Sort::Other => {
                self.ready.push_back(frame);
                return Ok(());
            }
        }
        // What does not decode is told from by whoever decodes it.
        self.ready.push_back(frame);
        if self.rooms.len() > ROOMS_MAX {
            return Err(MergeError::TooMuch);
        }
        self.place_early();
        Ok(())
    }

    fn take_stream(&mut self, number: u64, bytes: &[u8]) -> Result<(), MergeError> {
        let mut buffer = self.streams.remove(&number).unwrap_or_default();
        self.waiting -= buffer.len();
        buffer.extend_from_slice(bytes);
        while let Some(Marked { announced, start, end }) = lane::peek_marked(&buffer, self.frame_max)? {
            if end > buffer.len() {
                buffer.reserve(end - buffer.len());
                break;
            }
            buffer.advance(start);
            let frame = buffer.split_to(end - start).freeze();
            match Sort::of(&frame) {
                Sort::Page => self.page(announced, frame)?,
                Sort::Subscribed | Sort::Deleted => return Err(MergeError::Misplaced),
                Sort::Ephemeral | Sort::Other => self.ready.push_back(frame),
            }
        }
        self.waiting += buffer.len();
        let kept = if buffer.is_empty() { BytesMut::new() } else { buffer };
        self.streams.insert(number, kept);
        Ok(())
    }

    fn take_datagram(&mut self, bytes: &[u8]) -> Result<(), MergeError> {
        let mut rest = Bytes::copy_from_slice(bytes);
        while !rest.is_empty() {
            let frame = frame::take_delimited(&mut rest, self.frame_max)?.ok_or(DecodeError::Truncated)?;
            if Sort::of(&frame) != Sort::Ephemeral {
                return Err(MergeError::Misplaced);
            }
            self.ready.push_back(frame);
        }
        Ok(())
    }

    fn page(&mut self, announced: u64, frame: Bytes) -> Result<(), MergeError> {
        match body::<PageHead>(&frame) {
            // What does not decode is told from by whoever decodes it.
            None => self.ready.push_back(frame),
            Some(head) if announced > self.announced => {
                self.waiting += frame.len() + PAGE_OVERHEAD;
                self.early.push(Early { announced, head, frame });
            }
            Some(head) => self.place(announced, &head, frame),
        }
        Ok(())
    }

    /// Places a page all of whose announcements have come.
    fn place(&mut self, announced: u64, head: &PageHead, frame: Bytes) {
        let Some(flow) = self.rooms.get_mut(&head.room).filter(|flow| flow.since <= announced) else { return };
        if head.first > flow.next {
            self.waiting += frame.len() + PAGE_OVERHEAD;
            if let Some(former) = flow.ahead.insert(head.first, Placed { items: head.items, frame }) {
                self.waiting -= former.frame.len() + PAGE_OVERHEAD;
            }
        } else if head.first == flow.next {
            flow.next = flow.next.saturating_add(head.items);
            self.ready.push_back(frame);
            while let Some(entry) = flow.ahead.first_entry().filter(|entry| *entry.key() <= flow.next) {
                let (first, page) = entry.remove_entry();
                self.waiting -= page.frame.len() + PAGE_OVERHEAD;
                if first == flow.next {
                    flow.next = flow.next.saturating_add(page.items);
                    self.ready.push_back(page.frame);
                }
            }
        }
    }

    fn place_early(&mut self) {
        if self.early.is_empty() {
            return;
        }
        for early in std::mem::take(&mut self.early) {
            if early.announced > self.announced {
                self.early.push(early);
            } else {
                self.waiting -= early.frame.len() + PAGE_OVERHEAD;
                self.place(early.announced, &early.head, early.frame);
            }
        }
    }

    fn forget(&mut self, room: RoomId) {
        let ahead = self.rooms.remove(&room).map(|flow| flow.ahead).unwrap_or_default();
        self.waiting -= ahead.values().map(|page| page.frame.len() + PAGE_OVERHEAD).sum::<usize>();
    }
}

/// The beginning of a frame's fields.
fn body<'a, T: Deserialize<'a>>(frame: &'a [u8]) -> Option<T> {
    postcard::take_from_bytes(frame.get(1..)?).ok().map(|(fields, _)| fields)
}

#[cfg(test)]
mod tests;
