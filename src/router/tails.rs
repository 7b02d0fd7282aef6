//! The budget of recent messages in memory, over all rooms of a shard.
//!
//! Least recently looked after goes first. The order is a queue with stale entries: a room that is looked after gets a new
//! entry, and the one before no longer counts; stale entries are dropped when they come to the front, or when they are
//! more than the rooms. So every step is a few operations, however many rooms there are.

use std::collections::VecDeque;

use crate::core::id::RoomId;

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
    order: VecDeque<(RoomId, u64)>,
    last: u64,
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
    pub(super) fn touch(&mut self, room: RoomId, place: &mut Place, bytes: usize) {
        self.count(place, bytes);
        if bytes > 0 && place.stamp != self.last {
            self.last += 1;
            place.stamp = self.last;
            self.order.push_back((room, self.last));
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
        self.order.pop_front()
    }

    /// Whether stale entries are too many; then the caller says which count.
    pub(super) fn tidy(&mut self, rooms: usize, counts: impl Fn(&RoomId, u64) -> bool) {
        if self.order.len() > 2 * rooms + 64 {
            self.order.retain(|(room, stamp)| counts(room, *stamp));
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
