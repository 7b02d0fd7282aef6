//! Which way a frame takes to its peer, where the transport has several, and how it is marked there.
//!
//! A connection with lanes has a control stream, unidirectional streams of the server for pages, and datagrams. The control
//! stream alone is ordered with itself only, so each frame on a unidirectional stream says how many *announcements* (frames
//! after which pages of a room mean something else) the server had put on the control stream before it. [`super::merge`] makes
//! one order of all of it again.

use bytes::Bytes;

use super::frame::{self, DecodeError};

/// The ALPN of raw QUIC with lanes.
pub const ALPN: &[u8] = b"waxwing/1+lanes";
/// The query that asks for lanes on WebTransport.
pub const QUERY: &str = "lanes=1";

/// Bytes of an envelope that may travel as a datagram, and what a frame and its length add.
pub const DATAGRAM_BYTES_MAX: usize = super::envelope::EPHEMERAL_LEN_MAX + 8;

/// Discriminants, which are a frame's first byte.
const CLIENT_EPHEMERAL: u8 = 9;
const SUBSCRIBED: u8 = 4;
const DELIVER: u8 = 5;
const SERVER_EPHEMERAL: u8 = 11;
const DELETED: u8 = 12;

/// What matters of a frame to a transport: how urgent it is, and whether it may be lost. On one ordered stream all lanes are
/// the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Answers, and whatever has no lane of its own: first.
    Control,
    /// Pages for live subscribers: next.
    Live,
    /// Pages for those who catch up or look back: after everything else.
    History,
    /// Ephemeral envelopes: worth nothing later, so that they may be dropped.
    Ephemeral,
}

/// An encoded frame on its way to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Which way.
    pub lane: Lane,
    /// The frame's bytes, without a length.
    pub frame: Bytes,
}

impl Outgoing {
    /// An answer.
    #[must_use]
    pub const fn control(frame: Bytes) -> Self {
        Self { lane: Lane::Control, frame }
    }

    /// A client's frame, on the lane that is its own.
    #[must_use]
    pub fn request(frame: Bytes) -> Self {
        let lane = if is_ephemeral_request(&frame) { Lane::Ephemeral } else { Lane::Control };
        Self { lane, frame }
    }
}

/// What an encoded frame of a server is to who puts lanes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// `Subscribed`: the pages of its room begin anew.
    Subscribed,
    /// `Deleted`: its room has no more pages.
    Deleted,
    /// `Deliver`.
    Page,
    /// `Ephemeral`.
    Ephemeral,
    /// Anything else: in no order with pages.
    Other,
}

impl Sort {
    /// By the first byte.
    #[must_use]
    pub fn of(frame: &[u8]) -> Self {
        match frame.first() {
            Some(&SUBSCRIBED) => Self::Subscribed,
            Some(&DELETED) => Self::Deleted,
            Some(&DELIVER) => Self::Page,
            Some(&SERVER_EPHEMERAL) => Self::Ephemeral,
            _ => Self::Other,
        }
    }

    /// Whether it is counted by the frames on other lanes.
    #[must_use]
    pub const fn is_announcement(self) -> bool {
        matches!(self, Self::Subscribed | Self::Deleted)
    }
}

/// Whether a client's encoded frame is an ephemeral: the only one that may come as a datagram.
#[must_use]
pub fn is_ephemeral_request(frame: &[u8]) -> bool {
    frame.first() == Some(&CLIENT_EPHEMERAL)
}

/// What precedes a frame of `len` bytes on a unidirectional stream: how many announcements precede it, and its length.
pub fn put_mark(out: &mut Vec<u8>, announced: u64, len: usize) {
    frame::put_varint(out, announced);
    frame::put_length(out, len);
}

/// Where the first frame of a unidirectional stream's bytes lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marked {
    /// Announcements that precede it.
    pub announced: u64,
    /// Its first byte.
    pub start: usize,
    /// The byte behind it; may be beyond what has arrived.
    pub end: usize,
}

/// Finds the first frame of a unidirectional stream's bytes; `None` while its mark is incomplete.
///
/// # Errors
/// [`DecodeError`] as soon as the mark shows it.
pub fn peek_marked(buffer: &[u8], max: u32) -> Result<Option<Marked>, DecodeError> {
    let Some((announced, mark)) = frame::peek_varint(buffer)? else { return Ok(None) };
    let rest = buffer.get(mark..).unwrap_or_default();
    let place = frame::peek_delimited(rest, max)?;
    Ok(place.map(|(start, end)| Marked { announced, start: mark + start, end: mark + end }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        frame::{ClientFrame, Page, Position, ServerFrame},
        id::{Digest, LogId, RoomId},
    };

    #[test]
    fn sorts_are_those_of_the_frames() {
        let (room, position) = (RoomId([1; 16]), Position { log: LogId([2; 16]), head: 3, floor: 1 });
        let page = Page { room, position, first: 1, chain: Digest([3; 32]), items: Vec::new() };
        let subscribed = ServerFrame::Subscribed { room, after: 0, chain: Digest([3; 32]), position };
        for (frame, sort) in [
            (subscribed, Sort::Subscribed),
            (ServerFrame::Deliver(page.clone()), Sort::Page),
            (ServerFrame::Fetched { request: 5, page }, Sort::Other),
            (ServerFrame::Ephemeral { envelope: Bytes::new() }, Sort::Ephemeral),
            (ServerFrame::Deleted { room }, Sort::Deleted),
            (ServerFrame::Pong { token: 4 }, Sort::Other),
        ] {
            assert_eq!(Sort::of(&frame.encode()), sort, "{frame:?}");
        }
        assert_eq!(Sort::of(&[]), Sort::Other);
        let ephemeral = ClientFrame::Ephemeral { envelope: Bytes::new() }.encode();
        assert_eq!(Outgoing::request(ephemeral).lane, Lane::Ephemeral);
        assert_eq!(Outgoing::request(ClientFrame::Close.encode()).lane, Lane::Control);
    }

    #[test]
    fn marks_come_back_and_half_of_one_waits() {
        for (announced, len) in [(0, 0), (1, 127), (300, 128), (u64::MAX, 70_000)] {
            let mut bytes = Vec::new();
            put_mark(&mut bytes, announced, len);
            let start = bytes.len();
            for cut in 0..start {
                assert_eq!(peek_marked(&bytes[..cut], 70_000), Ok(None), "{announced} {len} cut at {cut}");
            }
            assert_eq!(peek_marked(&bytes, 70_000), Ok(Some(Marked { announced, start, end: start + len })));
        }
        assert_eq!(peek_marked(&[0xff; 10], 9), Err(DecodeError::Prefix), "no varint of 64 bits");
        assert_eq!(peek_marked(&[0, 10], 9), Err(DecodeError::TooLarge { len: 10, max: 9 }));
    }
}
