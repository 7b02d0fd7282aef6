//! A chunk: consecutive records of one log in one row. Pure.
//!
//! | offset | length | field |
//! |---|---|---|
//! | 0 | 4 | CRC-32C over log id ‖ first seq, u64 ‖ all that follows |
//! | 4 | 4 | records, u32, at least one |
//! | 8 | 8 | time of the first record in ms, u64 |
//! | 16 | 32 | the chain value before the first record |
//! | 48 | … | for each record: length of its envelope, varint; its time less the time of the record before it (for the first: 0), zigzag varint |
//! | … | 32 each | the chain value after each record that [`keeps_chain`] |
//! | … | … | the envelopes |
//!
//! Integers are little-endian; varints are LEB128 in their shortest form, at most 64 bits. The log id and the first seq are
//! the row's key. So a chunk is spelled in one way only.

use std::borrow::Cow;

use bytes::Bytes;

use crate::{
    core::{
        chain,
        id::{Digest, LogId, RoomId, Seq, UnixMillis},
        log::Record,
    },
    engine::crc,
};

/// Bytes before the index.
pub const HEADER_LEN: usize = 48;
const CRC_LEN: usize = 4;
const CHAIN_LEN: usize = 32;
/// Of so many consecutive records at least one keeps its chain value.
const CHAIN_STEP: u64 = 8;
/// An envelope of so many bytes keeps its chain value always: hashing it again costs more than 32 bytes do.
const CHAIN_ENVELOPE_MIN: usize = 4096;

/// Whether the chain value after the record `seq`, with an envelope of `len` bytes, is stored in its chunk. It does not
/// depend on the chunk, so that chunks merge without hashing; and between two stored values lie at most seven small records.
#[must_use]
pub const fn keeps_chain(seq: Seq, len: usize) -> bool {
    seq.is_multiple_of(CHAIN_STEP) || len >= CHAIN_ENVELOPE_MIN
}

/// Seqs are smaller than this: no log comes near it, and reckoning with them cannot overflow.
pub(super) const SEQ_END: Seq = Seq::MAX / 2;

/// Why bytes are not a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Fewer bytes than its parts need.
    #[error("the chunk is cut short")]
    Truncated,
    /// The checksum does not match.
    #[error("the chunk's checksum does not match")]
    Checksum,
    /// The checksum matches, but the parts do not fit each other.
    #[error("the chunk is malformed")]
    Malformed,
}

/// One record on its way into a chunk.
#[derive(Debug, Clone, Copy)]
pub struct Item<'a> {
    /// When it was accepted.
    pub time_ms: UnixMillis,
    /// The sealed bytes.
    pub envelope: &'a [u8],
    /// The chain value after it, where it is known. A record that [`keeps_chain`] has one.
    pub chain: Option<Digest>,
}

/// How many bytes `item`, which has the seq `seq` and follows a record of time `previous_ms`, takes in a chunk. The first
/// of a chunk may take less.
#[must_use]
pub fn cost(seq: Seq, previous_ms: UnixMillis, item: &Item<'_>) -> usize {
    let len = item.envelope.len();
    let chain = if keeps_chain(seq, len) { CHAIN_LEN } else { 0 };
    varint_len(len as u64) + varint_len(zigzag(previous_ms, item.time_ms)) + chain + len
}

/// The bytes of a chunk of `items`, which begin at `first`.
#[must_use]
pub fn encoded_len(first: Seq, items: &[Item<'_>]) -> usize {
    HEADER_LEN + (first..).zip(items).zip(times_before(items)).map(|((seq, item), before)| cost(seq, before, item)).sum::<usize>()
}

/// For each item the time that its own is stored against.
fn times_before<'a>(items: &'a [Item<'_>]) -> impl Iterator<Item = UnixMillis> + 'a {
    items.first().into_iter().chain(items).map(|item| item.time_ms)
}

/// Writes a chunk of `items`, at least one, into `out`, which has [`encoded_len`] bytes. `before` is the chain value before
/// the first.
///
/// # Panics
/// If `out` has another length, or an item that [`keeps_chain`] has no chain value.
pub fn encode(log: LogId, first: Seq, before: Digest, items: &[Item<'_>], out: &mut [u8]) {
    let mut rest = Writer(out.split_at_mut(CRC_LEN).1);
    rest.put(&u32::try_from(items.len()).expect("a row's records are counted by u32").to_le_bytes());
    rest.put(&items.first().map_or(0, |item| item.time_ms).to_le_bytes());
    rest.put(&before.0);
    for (item, before) in items.iter().zip(times_before(items)) {
        rest.put_varint(item.envelope.len() as u64);
        rest.put_varint(zigzag(before, item.time_ms));
    }
    for (_, item) in (first..).zip(items).filter(|(seq, item)| keeps_chain(*seq, item.envelope.len())) {
        rest.put(&item.chain.expect("a record that keeps its chain value brings it").0);
    }
    for item in items {
        rest.put(item.envelope);
    }
    assert!(rest.0.is_empty(), "the chunk is as long as was computed");
    seal(log, first, out);
}

/// Gives the bytes the checksum that a chunk of them must have.
pub fn seal(log: LogId, first: Seq, row: &mut [u8]) {
    if let Some((crc, body)) = row.split_first_chunk_mut::<CRC_LEN>() {
        *crc = checksum(log, first, body).to_le_bytes();
    }
}

fn checksum(log: LogId, first: Seq, body: &[u8]) -> u32 {
    let key = crc::append(crc::of(&log.0), &first.to_le_bytes());
    crc::append(key, body)
}

struct Writer<'a>(&'a mut [u8]);

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) {
        let (here, rest) = std::mem::take(&mut self.0).split_at_mut(bytes.len());
        here.copy_from_slice(bytes);
        self.0 = rest;
    }

    fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.put(&[value.to_le_bytes()[0] | 0x80]);
            value >>= 7;
        }
        self.put(&[value.to_le_bytes()[0]]);
    }
}

const fn varint_len(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

fn zigzag(before: UnixMillis, now: UnixMillis) -> u64 {
    let delta = now.wrapping_sub(before).cast_signed();
    ((delta << 1) ^ (delta >> 63)).cast_unsigned()
}

const fn unzigzag(before: UnixMillis, delta: u64) -> UnixMillis {
    before.wrapping_add((delta >> 1) ^ (delta & 1).wrapping_neg())
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<&'a [u8; N], DecodeError> {
        let (here, rest) = self.0.split_first_chunk().ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(here)
    }

    /// A length, and a difference of times.
    #[inline]
    fn entry(&mut self) -> Result<(u32, u64), DecodeError> {
        // Nearly all have two bytes and one.
        if let [a @ 0x80..=0xff, b @ 1..0x80, c @ ..0x80, rest @ ..] = self.0 {
            self.0 = rest;
            return Ok((u32::from(a & 0x7f) | u32::from(*b) << 7, u64::from(*c)));
        }
        let len = u32::try_from(self.varint()?).map_err(|_| DecodeError::Malformed)?;
        Ok((len, self.varint()?))
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        match self.0 {
            [a @ ..0x80, rest @ ..] => {
                self.0 = rest;
                Ok(u64::from(*a))
            }
            [a, b @ 1..0x80, rest @ ..] => {
                self.0 = rest;
                Ok(u64::from(a & 0x7f) | u64::from(*b) << 7)
            }
            _ => self.long_varint(),
        }
    }

    #[cold]
    fn long_varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(DecodeError::Truncated)?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            value |= bits << shift;
            if byte & 0x80 == 0 {
                let shortest = *byte != 0 || shift == 0;
                let fits = (bits << shift) >> shift == bits;
                return if shortest && fits { Ok(value) } else { Err(DecodeError::Malformed) };
            }
        }
        Err(DecodeError::Malformed)
    }
}

/// A record's place in its chunk.
#[derive(Debug, Clone, Copy)]
struct Entry {
    time_ms: UnixMillis,
    /// Where its envelope ends.
    end: u32,
    /// How many chain values are kept up to and with it.
    chains: u32,
}

/// A chunk as it lies in its row, checked.
#[derive(Debug, Clone)]
pub struct Chunk<'a> {
    first: Seq,
    before: Digest,
    entries: Cow<'a, [Entry]>,
    chains: &'a [[u8; CHAIN_LEN]],
    envelopes: &'a [u8],
}

/// A chunk that was checked, without its row.
#[derive(Debug)]
pub struct OwnedChunk {
    first: Seq,
    before: Digest,
    entries: Box<[Entry]>,
    chains: Box<[[u8; CHAIN_LEN]]>,
    envelopes: Box<[u8]>,
}

impl OwnedChunk {
    /// To be read.
    #[must_use]
    pub fn as_chunk(&self) -> Chunk<'_> {
        let Self { first, before, ref entries, ref chains, ref envelopes } = *self;
        Chunk { first, before, entries: Cow::Borrowed(entries), chains, envelopes }
    }

    /// The seq of its first record.
    #[must_use]
    pub const fn first(&self) -> Seq {
        self.first
    }

    /// The seq of its last record.
    #[must_use]
    pub const fn last(&self) -> Seq {
        self.first + (self.entries.len() as u64 - 1)
    }

    /// Bytes of memory that its parts take.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        size_of_val(&*self.entries) + size_of_val(&*self.chains) + self.envelopes.len()
    }
}

impl<'a> Chunk<'a> {
    /// Reads the chunk of `log` that begins at `first`.
    ///
    /// # Errors
    /// [`DecodeError`]: whatever the bytes are, it does not panic.
    pub fn decode(log: LogId, first: Seq, row: &'a [u8]) -> Result<Self, DecodeError> {
        let (crc, body) = row.split_first_chunk::<CRC_LEN>().ok_or(DecodeError::Truncated)?;
        if u32::from_le_bytes(*crc) != checksum(log, first, body) {
            return Err(DecodeError::Checksum);
        }
        let mut rest = Reader(body);
        let count = u32::from_le_bytes(*rest.take()?);
        let time_ms = u64::from_le_bytes(*rest.take()?);
        let before = Digest(*rest.take()?);
        let entries = Self::entries(&mut rest, first, count, time_ms)?;
        let (end, kept) = entries.last().map_or((0, 0), |last| (last.end, last.chains));
        let kept = usize::try_from(kept).unwrap_or(usize::MAX).saturating_mul(CHAIN_LEN);
        let (chains, envelopes) = rest.0.split_at_checked(kept).ok_or(DecodeError::Truncated)?;
        match envelopes.len() as u64 {
            len if len < u64::from(end) => Err(DecodeError::Truncated),
            len if len > u64::from(end) => Err(DecodeError::Malformed),
            _ => Ok(Self { first, before, entries: Cow::Owned(entries), chains: chains.as_chunks().0, envelopes }),
        }
    }

    fn entries(rest: &mut Reader<'_>, first: Seq, count: u32, mut time_ms: UnixMillis) -> Result<Vec<Entry>, DecodeError> {
        let seqs = first..first.saturating_add(u64::from(count));
        let count = usize::try_from(count).map_err(|_| DecodeError::Malformed)?;
        if first == 0 || count == 0 || seqs.end > SEQ_END {
            return Err(DecodeError::Malformed);
        }
        // Each entry has two bytes at least.
        if count > rest.0.len() / 2 {
            return Err(DecodeError::Truncated);
        }
        let (mut end, mut chains) = (0_u32, 0);
        let mut entries = Vec::with_capacity(count);
        for seq in seqs {
            let (len, delta) = rest.entry()?;
            if seq == first && delta != 0 {
                return Err(DecodeError::Malformed);
            }
            time_ms = unzigzag(time_ms, delta);
            end = end.checked_add(len).ok_or(DecodeError::Malformed)?;
            chains += u32::from(keeps_chain(seq, usize::try_from(len).unwrap_or(usize::MAX)));
            entries.push(Entry { time_ms, end, chains });
        }
        Ok(entries)
    }

    /// The seq of its first record.
    #[must_use]
    pub const fn first(&self) -> Seq {
        self.first
    }

    /// The seq of its last record.
    #[must_use]
    pub fn last(&self) -> Seq {
        self.first + (self.entries.len() as u64 - 1)
    }

    /// A copy that does not need the row.
    #[must_use]
    pub fn detach(&self) -> OwnedChunk {
        let Self { first, before, ref entries, chains, envelopes } = *self;
        OwnedChunk { first, before, entries: entries.as_ref().into(), chains: chains.into(), envelopes: envelopes.into() }
    }

    /// The chain value before its first record.
    #[must_use]
    pub const fn before(&self) -> Digest {
        self.before
    }

    /// All of its envelopes, one after the other.
    #[must_use]
    pub const fn envelopes(&self) -> &'a [u8] {
        self.envelopes
    }

    /// The time of its latest record: not always that of its last.
    #[must_use]
    pub fn latest_ms(&self) -> UnixMillis {
        self.entries.iter().map(|entry| entry.time_ms).max().unwrap_or(0)
    }

    /// The time of its first record.
    #[must_use]
    pub fn first_ms(&self) -> UnixMillis {
        self.entries.first().map_or(0, |entry| entry.time_ms)
    }

    /// Its records, ascending.
    pub fn items(&self) -> impl ExactSizeIterator<Item = Item<'a>> + '_ {
        let mut kept = self.chains.iter();
        let (mut start, mut chains) = (0, 0);
        self.entries.iter().map(move |entry| {
            let envelope = self.envelopes.get(start..offset(entry.end)).unwrap_or_default();
            let keeps = entry.chains > chains;
            (start, chains) = (offset(entry.end), entry.chains);
            Item { time_ms: entry.time_ms, envelope, chain: if keeps { kept.next().copied().map(Digest) } else { None } }
        })
    }

    /// As [`Self::items`], without what only who checks the chain needs: times and envelopes.
    pub fn records(&self) -> impl ExactSizeIterator<Item = (UnixMillis, &'a [u8])> + '_ {
        let mut start = 0;
        self.entries.iter().map(move |entry| {
            let envelope = self.envelopes.get(start..offset(entry.end)).unwrap_or_default();
            start = offset(entry.end);
            (entry.time_ms, envelope)
        })
    }

    /// The first record whose time is at least `time_ms`.
    #[must_use]
    pub fn since(&self, time_ms: UnixMillis) -> Option<Seq> {
        (self.first..).zip(self.entries.iter()).find(|(_, entry)| entry.time_ms >= time_ms).map(|(seq, _)| seq)
    }

    /// Envelope bytes of the record `seq`; 0 where there is none.
    #[must_use]
    pub fn envelope_len(&self, seq: Seq) -> usize {
        self.end_of(seq) - self.end_of(seq.saturating_sub(1))
    }

    /// Where the envelope of `seq` ends; the last one's end for a larger `seq`, 0 for a smaller one.
    fn end_of(&self, seq: Seq) -> usize {
        match usize::try_from(seq.saturating_sub(self.first)) {
            _ if seq < self.first => 0,
            Ok(index) => self.entries.get(index).map_or(self.envelopes.len(), |entry| offset(entry.end)),
            Err(_) => self.envelopes.len(),
        }
    }

    /// The chain value after the record `seq`, which lies between `first − 1` and `last`: at most seven hashes.
    #[must_use]
    pub fn chain_at(&self, room: RoomId, seq: Seq) -> Digest {
        let known = usize::try_from(seq.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let kept = if seq < self.first { 0 } else { self.entries.get(known).map_or(0, |entry| entry.chains) };
        // The record that keeps the newest value up to `seq`, and that value.
        let index = self.entries.partition_point(|entry| entry.chains < kept);
        let value = offset(kept).checked_sub(1).and_then(|last| self.chains.get(last));
        let (mut at, mut value) = match value {
            Some(value) => (self.first + index as u64, Digest(*value)),
            None => (self.first - 1, self.before),
        };
        while at < seq && at < self.last() {
            at += 1;
            let envelope = self.envelopes.get(self.end_of(at - 1)..self.end_of(at)).unwrap_or_default();
            value = chain::next(room, value, at, envelope);
        }
        value
    }

    /// The records `from..=to`, as far as there are, put behind `records`. Their envelopes are copied once, together.
    pub fn copy(&self, from: Seq, to: Seq, records: &mut Vec<Record>) {
        let (from, to) = (from.max(self.first), to.min(self.last()));
        let start = self.end_of(from - 1);
        let bytes = Bytes::copy_from_slice(self.envelopes.get(start..self.end_of(to)).unwrap_or_default());
        let skip = usize::try_from(from - self.first).unwrap_or(usize::MAX);
        let mut at = start;
        records.extend((from..=to).zip(self.entries.iter().skip(skip)).map(|(seq, entry)| {
            let envelope = bytes.slice(at - start..offset(entry.end) - start);
            at = offset(entry.end);
            Record { seq, time_ms: entry.time_ms, envelope }
        }));
    }
}

/// An offset within a row.
fn offset(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROOM: RoomId = RoomId([1; 16]);
    const LOG: LogId = LogId([2; 16]);
    const BEFORE: Digest = Digest([3; 32]);

    /// Times and envelopes, and the chain values after them.
    type Plain = Vec<(UnixMillis, Vec<u8>)>;

    fn chains(first: Seq, records: &Plain) -> Vec<Digest> {
        let next = |value: &mut Digest, (seq, (_, envelope)): (Seq, &(UnixMillis, Vec<u8>))| {
            *value = chain::next(ROOM, *value, seq, envelope);
            Some(*value)
        };
        (first..).zip(records).scan(BEFORE, next).collect()
    }

    fn items<'a>(records: &'a Plain, chains: &[Digest]) -> Vec<Item<'a>> {
        let item = |(record, chain): (&'a (UnixMillis, Vec<u8>), &Digest)| Item {
            time_ms: record.0,
            envelope: &record.1,
            chain: Some(*chain),
        };
        records.iter().zip(chains).map(item).collect()
    }

    fn row(first: Seq, items: &[Item<'_>]) -> Vec<u8> {
        let mut row = vec![0; encoded_len(first, items)];
        encode(LOG, first, BEFORE, items, &mut row);
        row
    }

    fn records() -> impl Strategy<Value = Plain> {
        let time = prop_oneof![4 => 1_000..1_100_u64, 1 => any::<u64>()];
        let len = prop_oneof![8 => 0..200_usize, 1 => 4_090..4_100_usize];
        let record = (time, len, any::<u8>()).prop_map(|(time, len, byte)| (time, vec![byte; len]));
        proptest::collection::vec(record, 1..40)
    }

    proptest! {
        #[test]
        fn a_chunk_holds_its_records(records in records(), first in prop_oneof![1..20_u64, Just(SEQ_END - 40)]) {
            let chains = chains(first, &records);
            let items = items(&records, &chains);
            let row = row(first, &items);
            let chunk = Chunk::decode(LOG, first, &row).unwrap();
            prop_assert_eq!((chunk.first(), chunk.last(), chunk.before()), (first, first + records.len() as u64 - 1, BEFORE));
            for (((seq, item), record), value) in (first..).zip(chunk.items()).zip(&records).zip(&chains) {
                prop_assert_eq!((item.time_ms, item.envelope), (record.0, record.1.as_slice()));
                prop_assert_eq!(item.chain, keeps_chain(seq, record.1.len()).then_some(*value));
                prop_assert_eq!(chunk.chain_at(ROOM, seq), *value);
                prop_assert_eq!(chunk.envelope_len(seq), record.1.len());
            }
            prop_assert_eq!(chunk.items().len(), records.len());
            prop_assert_eq!(chunk.chain_at(ROOM, first - 1), BEFORE);
            let (from, to) = (first + 1, first + 5);
            let mut copied = Vec::new();
            chunk.copy(from, to, &mut copied);
            let expected: Vec<_> = (first..).zip(&records).filter(|(seq, _)| (from..=to).contains(seq)).collect();
            prop_assert_eq!(copied.len(), expected.len());
            for (copy, (seq, (time_ms, envelope))) in copied.iter().zip(expected) {
                prop_assert_eq!((copy.seq, copy.time_ms, copy.envelope.as_ref()), (seq, *time_ms, envelope.as_slice()));
            }
            prop_assert_eq!(chunk.latest_ms(), records.iter().map(|record| record.0).max().unwrap());
        }

        #[test]
        fn changed_bytes_are_found(records in records(), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let chains = chains(9, &records);
            let mut row = row(9, &items(&records, &chains));
            let other_log = Chunk::decode(LogId([9; 16]), 9, &row).map(drop);
            prop_assert_eq!((other_log, Chunk::decode(LOG, 10, &row).map(drop)), (Err(DecodeError::Checksum), Err(DecodeError::Checksum)));
            let at = at.index(row.len());
            prop_assert!(Chunk::decode(LOG, 9, &row[..at]).is_err());
            row[at] ^= 1 << bit;
            prop_assert_eq!(Chunk::decode(LOG, 9, &row).map(drop), Err(DecodeError::Checksum));
        }

        /// With a checksum that matches, whatever else the bytes are: it is an error, or a chunk that is spelled in no other way.
        #[test]
        fn hostile_bytes_are_a_chunk_or_an_error(
            records in records(),
            first in prop_oneof![0..20_u64, Just(SEQ_END - 3), Just(SEQ_END), Just(u64::MAX - 3), Just(u64::MAX)],
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            near in proptest::collection::vec((CRC_LEN..80_usize, any::<u8>()), 0..4),
            cut in proptest::option::of(any::<prop::sample::Index>()),
        ) {
            let chains = chains(16, &records);
            let mut row = row(16, &items(&records, &chains));
            for (at, byte) in changes {
                let at = at.index(row.len());
                row[at] = byte;
            }
            for (at, byte) in near {
                if let Some(place) = row.get_mut(at) {
                    *place = byte;
                }
            }
            if let Some(cut) = cut {
                row.truncate(cut.index(row.len()));
            }
            seal(LOG, first, &mut row);
            respell(first, &row);
        }
    }

    fn respell(first: Seq, row: &[u8]) {
        let Ok(chunk) = Chunk::decode(LOG, first, row) else { return };
        for seq in [first - 1, first, first + 3, chunk.last(), chunk.last().saturating_add(1)] {
            let _ = (chunk.chain_at(ROOM, seq), chunk.envelope_len(seq));
        }
        let items: Vec<_> = chunk.items().collect();
        let mut again = vec![0; encoded_len(first, &items)];
        encode(LOG, first, chunk.before(), &items, &mut again);
        assert_eq!(again, row);
    }

    #[test]
    fn chain_values_are_near() {
        for len in [0, 300, 4_095] {
            assert!((1..100).all(|first: Seq| (first..first + 8).any(|seq| keeps_chain(seq, len))));
        }
        assert!((1..100).all(|seq| keeps_chain(seq, 4_096)));
    }

    #[test]
    fn a_chunk_of_small_records_takes_little_more_than_they_do() {
        let records: Plain = (0..52).map(|number| (1_700_000_000_000 + number * 50, vec![1; 300])).collect();
        let chains = chains(1, &records);
        let row = row(1, &items(&records, &chains));
        assert!(row.len() < 52 * 300 * 103 / 100 + 1, "{}", row.len());
    }
}
