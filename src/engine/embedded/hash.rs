//! Maps by room, for the thread that acks: the id is looked up for each message.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hasher, RandomState},
};

use crate::core::id::RoomId;

/// A map by room.
pub(super) type RoomMap<T> = HashMap<RoomId, T, Keyed>;

/// Hashes ids of 16 bytes with one multiplication, under keys that differ for each map: whoever chooses ids cannot know which
/// of them meet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keyed([u64; 2]);

impl Default for Keyed {
    fn default() -> Self {
        let random = RandomState::new();
        Self([random.hash_one(0), random.hash_one(1)])
    }
}

impl BuildHasher for Keyed {
    type Hasher = Folding;

    fn build_hasher(&self) -> Folding {
        Folding { keys: self.0, hash: 0 }
    }
}

#[derive(Debug)]
pub(super) struct Folding {
    keys: [u64; 2],
    hash: u64,
}

impl Hasher for Folding {
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(16) {
            let mut id = [0; 16];
            id.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
            let (low, high) = halves(u128::from_le_bytes(id));
            let (low, high) = halves(u128::from(low ^ self.keys[0]) * u128::from(high ^ self.keys[1] ^ self.hash));
            self.hash = low ^ high;
        }
    }

    /// The length of an array is the same for all ids.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.hash
    }
}

/// The low and the high half.
fn halves(value: u128) -> (u64, u64) {
    let [a, b, c, d, e, f, g, h, high @ ..] = value.to_le_bytes();
    (u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes(high))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_that_differ_little_are_far_apart() {
        let keyed = Keyed::default();
        let ids = (0..=u8::MAX).flat_map(|byte| (0..16).map(move |at| (byte, at))).map(|(byte, at)| {
            let mut id = RoomId([0x5a; 16]);
            id.0[at] = byte;
            id
        });
        let ids: HashSet<RoomId> = ids.collect();
        let top: HashSet<u64> = ids.iter().map(|id| keyed.hash_one(id) >> 32).collect();
        let bottom: HashSet<u64> = ids.iter().map(|id| keyed.hash_one(id) & 0xffff_ffff).collect();
        // Of 4,081 random numbers of 32 bits hardly two are equal.
        assert!(top.len() + 4 > ids.len() && bottom.len() + 4 > ids.len());
        assert!(ids.iter().any(|id| keyed.hash_one(id) != Keyed::default().hash_one(id)));
    }
}
