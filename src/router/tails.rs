//! The budget of recent messages in memory, over all rooms of a shard.
//!
//! Least recently looked after goes first. The order is a queue with stale entries: a room that is looked after gets a new
//! entry, and the one before no longer counts; stale entries are dropped when they come to the front, or when they are
//! more than the rooms. So every step is a few operations, however many rooms there are. What nobody has looked after for a
//! while goes too, however much room there is: after a busy hour its memory is of more use elsewhere.

use std::collections::VecDeque;

use crate::core::id::{RoomId, UnixMillis};

/// Who comes back after a moment finds recent messages in memory; later they are read.
const RESTED_MS: u64 = 30_000;

/// A room's part in it.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// Which entry counts.
    stamp: u64,
    /// Its bytes, as counted.
    bytes: usize,
}

/// Who holds how much.
#[derive(Debug)]
pub(super) struct Tails {
    bytes_max: usize,
    bytes: usize,
    order: VecDeque<Entry>,
    last: u64,
}

/// A room was looked after.
#[derive(Debug)]
struct Entry {
    room: RoomId,
    stamp: u64,
    at_ms: UnixMillis,
}

impl Tails {
    pub(super) const fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, order: VecDeque::new(), last: 1 }
    }

    /// Bytes of all.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) const fn exceeds(&self) -> bool {
        self.bytes > self.bytes_max
    }

    /// A room was looked after, and holds so many bytes.
    pub(super) fn touch(&mut self, room: RoomId, place: &mut Place, bytes: usize, now_ms: UnixMillis) {
        self.count(place, bytes);
        match self.order.back_mut() {
            Some(newest) if place.is(newest.stamp) => newest.at_ms = now_ms,
            _ if bytes > 0 => {
                self.last += 1;
                place.stamp = self.last;
                self.order.push_back(Entry { room, stamp: self.last, at_ms: now_ms });
            }
            _ => {}
        }
    }

    /// A room holds so many bytes now.
    pub(super) const fn count(&mut self, place: &mut Place, bytes: usize) {
        self.bytes = self.bytes - place.bytes + bytes;
        place.bytes = bytes;
    }

    /// The room that was not looked after for longest, if this entry of it counts: ask [`Place::is`]. It is no longer in the
    /// order.
    pub(super) fn oldest(&mut self) -> Option<(RoomId, u64)> {
        self.order.pop_front().map(|Entry { room, stamp, .. }| (room, stamp))
    }

    /// As [`Tails::oldest`], if that was so long ago that what it holds may go.
    pub(super) fn rested(&mut self, now_ms: UnixMillis) -> Option<(RoomId, u64)> {
        let since = self.order.front()?.at_ms;
        if now_ms.saturating_sub(since) < RESTED_MS { None } else { self.oldest() }
    }

    /// Whether stale entries are too many; then the caller says which count.
    pub(super) fn tidy(&mut self, rooms: usize, counts: impl Fn(&RoomId, u64) -> bool) {
        if self.order.len() > 2 * rooms + 64 {
            self.order.retain(|Entry { room, stamp, .. }| counts(room, *stamp));
        }
    }

    /// How many entries there are, stale ones too.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }
}

impl Place {
    /// Whether the entry with this stamp counts.
    pub(super) const fn is(&self, stamp: u64) -> bool {
        self.stamp == stamp
    }

    /// No entry counts any more.
    pub(super) const fn leave(&mut self) {
        self.stamp = 0;
    }
}
