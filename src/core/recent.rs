//! The newest records of one log in memory: a ring bounded in bytes.

use std::collections::VecDeque;

use super::{
    chain,
    frame::Item,
    id::{Digest, RoomId, Seq},
    log::Record,
};

/// What a record takes besides its bytes, about: its place in the ring, and what its bytes are shared by.
pub const ITEM_BYTES: usize = size_of::<(Item, Digest)>() + 48;

/// Consecutive records up to the newest durable one. A record is shared with whoever still writes it, not copied.
#[derive(Debug)]
pub(super) struct Recent {
    /// The seq before the first item.
    after: Seq,
    /// The chain value there.
    before: Digest,
    items: VecDeque<(Item, Digest)>,
    bytes: usize,
}

impl Recent {
    /// Nothing; what is pushed first follows `after`.
    pub(super) const fn new(after: Seq, before: Digest) -> Self {
        Self { after, before, items: VecDeque::new(), bytes: 0 }
    }

    /// The seq before the first item.
    pub(super) const fn after_seq(&self) -> Seq {
        self.after
    }

    /// What all of it takes, about.
    pub(super) fn memory(&self) -> usize {
        self.bytes + self.items.len() * ITEM_BYTES
    }

    pub(super) fn push(&mut self, item: Item, chain: Digest, bytes_max: usize) {
        self.bytes += item.envelope.len();
        self.items.push_back((item, chain));
        self.shrink(bytes_max);
    }

    /// Lets the oldest go until `bytes_max` bytes are left, or one record.
    pub(super) fn shrink(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max && self.items.len() > 1 {
            self.pop_oldest();
        }
    }

    /// Lets go of everything before `floor`.
    pub(super) fn trim(&mut self, floor: Seq) {
        while self.after + 1 < floor && self.pop_oldest() {}
    }

    fn pop_oldest(&mut self) -> bool {
        let Some((item, chain)) = self.items.pop_front() else { return false };
        self.bytes -= item.envelope.len();
        self.before = chain;
        self.after += 1;
        if self.items.is_empty() {
            self.items = VecDeque::new();
        }
        true
    }

    /// Puts records that were read in front, newest first, as many as `bytes_max` has room for; nothing unless the last of
    /// them is the one before the first item. `before` is the chain value before the first of them.
    pub(super) fn put_before(&mut self, room: RoomId, before: Digest, records: &[Record], bytes_max: usize) {
        let Some(last) = records.last().filter(|last| last.seq == self.after) else { return };
        // What does not fit is not hashed for nothing.
        if self.bytes + last.item().envelope.len() > bytes_max {
            return;
        }
        let chains: Vec<Digest> = chain::along(room, before, records).collect();
        let befores = std::iter::once(&before).chain(&chains);
        let mut linked: Vec<_> = records.iter().zip(befores).zip(&chains).collect();
        while let Some(((record, before), chain)) = linked.pop() {
            let item = record.item();
            if self.bytes + item.envelope.len() > bytes_max {
                return;
            }
            self.bytes += item.envelope.len();
            self.items.push_front((item, *chain));
            self.after -= 1;
            self.before = *before;
        }
    }

    /// The chain value at `seq`, if it is known here.
    pub(super) fn chain_at(&self, seq: Seq) -> Option<Digest> {
        let skip = usize::try_from(seq.checked_sub(self.after)?).ok()?;
        match skip.checked_sub(1) {
            None => Some(self.before),
            Some(index) => self.items.get(index).map(|(_, chain)| *chain),
        }
    }

    /// What follows `after` and goes no further than `upto`, and the chain value at `after`: as many as fit, at least one.
    pub(super) fn after(&self, after: Seq, upto: Seq, bytes_max: usize) -> Option<(Digest, Vec<Item>)> {
        let chain = self.chain_at(after)?;
        let skip = usize::try_from(after - self.after).ok()?;
        let take = usize::try_from(upto.saturating_sub(after)).unwrap_or(usize::MAX);
        let mut left = bytes_max;
        let mut items = Vec::new();
        for (item, _) in self.items.iter().skip(skip).take(take) {
            if !items.is_empty() && item.envelope.len() > left {
                break;
            }
            left = left.saturating_sub(item.envelope.len());
            items.push(item.clone());
        }
        Some((chain, items))
    }

    /// The newest up to `last`, ascending, as many as fit both limits but at least one, and the first one's seq and the chain
    /// value before it. `None` when an older one that would fit is not here: `floor` is the oldest that there is anywhere.
    pub(super) fn before(&self, last: Seq, floor: Seq, count_max: u32, bytes_max: usize) -> Option<(Seq, Digest, Vec<Item>)> {
        let end = usize::try_from(last.checked_sub(self.after)?).ok()?;
        let (mut first, mut bytes) = (end, 0);
        while end - first < count_max.max(1) as usize && self.after + first as u64 >= floor {
            if first < end && bytes >= bytes_max {
                break;
            }
            let (item, _) = self.items.get(first.checked_sub(1)?)?;
            bytes += item.envelope.len();
            if first < end && bytes > bytes_max {
                break;
            }
            first -= 1;
        }
        let before = self.after + first as u64;
        let items = self.items.iter().skip(first).take(end - first).map(|(item, _)| item.clone()).collect();
        Some((before + 1, self.chain_at(before)?, items))
    }
}
