//! Chunks that were read lately, checked and ready to be read again: what comes from the file is compared with its checksum
//! then, and not each time that it is used (the block cache of `LevelDB` does the same).
//!
//! Only chunks that were made for good are here. They never change until they are dropped, and nobody asks for those that were
//! dropped; so nothing here is out of date, whatever snapshot is read. What is longest unused goes first, by the clock
//! algorithm (Corbató, 1968).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::chunk::OwnedChunk;
use crate::core::id::{LogId, Seq};

/// What an entry takes beside its chunk, about.
const ENTRY_BYTES: usize = 128;

type Key = (LogId, Seq);

#[derive(Debug)]
pub(super) struct ChunkCache {
    bytes_max: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    slots: Vec<Slot>,
    /// Where in `slots` the chunk that begins there is.
    places: BTreeMap<Key, usize>,
    bytes: usize,
    /// Whose turn it is to go, unless it was used since it was looked at last.
    hand: usize,
}

#[derive(Debug)]
struct Slot {
    key: Key,
    chunk: Arc<OwnedChunk>,
    used: bool,
}

impl ChunkCache {
    /// Holds chunks of about so many bytes together.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, held: Mutex::default() }
    }

    /// The chunk of `log` that has the record `seq`, if it is here.
    pub(super) fn covering(&self, log: LogId, seq: Seq) -> Option<Arc<OwnedChunk>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, place) = held.places.range((log, 0)..=(log, seq)).next_back()?;
        let place = *place;
        let slot = held.slots.get_mut(place)?;
        if slot.chunk.last() < seq {
            return None;
        }
        slot.used = true;
        Some(Arc::clone(&slot.chunk))
    }

    /// Takes a chunk of `log` that was made for good.
    pub(super) fn insert(&self, log: LogId, chunk: &Arc<OwnedChunk>) {
        let bytes = chunk.bytes() + ENTRY_BYTES;
        if bytes > self.bytes_max {
            return;
        }
        let key = (log, chunk.first());
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.places.contains_key(&key) {
            return;
        }
        while held.bytes + bytes > self.bytes_max {
            held.evict();
        }
        let place = held.slots.len();
        held.slots.push(Slot { key, chunk: Arc::clone(chunk), used: false });
        held.places.insert(key, place);
        held.bytes += bytes;
    }
}

impl Held {
    /// Lets one go. There is one.
    fn evict(&mut self) {
        loop {
            if self.hand >= self.slots.len() {
                self.hand = 0;
            }
            match self.slots.get_mut(self.hand) {
                Some(slot) if slot.used => {
                    slot.used = false;
                    self.hand += 1;
                }
                _ => break,
            }
        }
        let gone = self.slots.swap_remove(self.hand);
        self.places.remove(&gone.key);
        self.bytes -= gone.chunk.bytes() + ENTRY_BYTES;
        if let Some(moved) = self.slots.get(self.hand) {
            self.places.insert(moved.key, self.hand);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::id::Digest,
        engine::embedded::chunk::{Chunk, Item, encode, encoded_len},
    };

    const LOG: LogId = LogId([1; 16]);

    /// Four records from `first`, of so many bytes.
    fn chunk(log: LogId, first: Seq, len: usize) -> Arc<OwnedChunk> {
        let envelope = vec![7; len];
        let item = Item { time_ms: 1, envelope: &envelope, chain: Some(Digest([3; 32])) };
        let mut row = vec![0; encoded_len(first, &[item; 4])];
        encode(log, first, Digest([2; 32]), &[item; 4], &mut row);
        Arc::new(Chunk::decode(log, first, &row).unwrap().detach())
    }

    #[test]
    fn what_has_a_record_is_found_and_nothing_else() {
        let cache = ChunkCache::new(1 << 20);
        for first in [1, 5, 13] {
            cache.insert(LOG, &chunk(LOG, first, 100));
        }
        let found = |log, seq| cache.covering(log, seq).map(|chunk| chunk.first());
        assert_eq!(
            [0, 1, 4, 5, 8, 9, 12, 13, 16, 17].map(|seq| found(LOG, seq)),
            [None, Some(1), Some(1), Some(5), Some(5), None, None, Some(13), Some(13), None]
        );
        assert_eq!([found(LogId([0; 16]), 3), found(LogId([2; 16]), 3)], [None, None]);
        assert!(ChunkCache::new(0).covering(LOG, 1).is_none());
    }

    #[test]
    fn it_keeps_its_limit_and_what_is_used() {
        let each = chunk(LOG, 1, 1_000).bytes() + ENTRY_BYTES;
        let cache = ChunkCache::new(8 * each);
        for number in 0..100 {
            cache.insert(LOG, &chunk(LOG, 1 + number * 8, 1_000));
            // The first is asked for all the time.
            assert_eq!(cache.covering(LOG, 2).unwrap().first(), 1);
            let held = cache.held.lock().unwrap();
            assert!(held.bytes <= 8 * each && held.bytes == held.slots.len() * each, "{}", held.bytes);
            assert!(held.slots.iter().enumerate().all(|(place, slot)| held.places[&slot.key] == place));
            assert_eq!(held.places.len(), held.slots.len());
        }
        assert_eq!(cache.held.lock().unwrap().slots.len(), 8);
        // One that is larger than all of it is not taken.
        cache.insert(LOG, &chunk(LOG, 1_001, 10_000));
        assert!(cache.covering(LOG, 1_001).is_none() && cache.covering(LOG, 1).is_some());
    }
}
