//! Reads of one snapshot of the tables.

use std::{collections::HashSet, sync::Arc};

use redb::{AccessGuard, Range, ReadTransaction, ReadableTable, TableError};

use super::{
    chunk::{Chunk, OwnedChunk},
    chunk_cache::ChunkCache,
    tables::{self, CHUNKS, ChunkKey, Error, HANDSHAKES, Kept, LOGS, LogRow, PRODUCERS, STRANDED, TAILS},
};
use crate::{
    core::{
        chain, envelope, handshake,
        id::{Digest, LogId, RoomId, Seq, UnixMillis},
        log::{Producer, ProducerState, Record, Records},
    },
    engine::rows,
};

/// A table of chunks.
pub(super) trait ChunkTable: ReadableTable<ChunkKey, &'static [u8]> {}
impl<T: ReadableTable<ChunkKey, &'static [u8]>> ChunkTable for T {}

type Row<'a> = (AccessGuard<'a, ChunkKey>, AccessGuard<'a, &'static [u8]>);

/// The log of `room`, if there is one.
pub(super) fn row(txn: &ReadTransaction, room: RoomId) -> Result<Option<LogRow>, Error> {
    txn.open_table(LOGS)?.get(&room.0)?.map(|row| LogRow::decode(row.value())).transpose()
}

/// The logs that could not take what was acked, because they are damaged.
pub(super) fn damaged(txn: &ReadTransaction) -> Result<HashSet<LogId>, Error> {
    txn.open_table(STRANDED)?.iter()?.map(|entry| Ok(LogId(*entry?.0.value().0))).collect()
}

/// The producers of a log.
pub(super) fn producers(txn: &ReadTransaction, row: &LogRow) -> Result<Vec<(Producer, ProducerState)>, Error> {
    rows::producers(&txn.open_table(PRODUCERS)?, rows::Spelling::Second, row.meta.log)
}

/// The newest handshake record of a log, if it lies below the floor and was put aside; its row as it is.
pub(super) fn kept_row(txn: &ReadTransaction, row: &LogRow) -> Result<Option<Vec<u8>>, Error> {
    let table = match txn.open_table(HANDSHAKES) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        table => table?,
    };
    Ok(table.get(&row.meta.log.0)?.map(|kept| kept.value().to_vec()))
}

/// As [`kept_row`], read; `None` where the row is of an older record, which a newer one has replaced.
pub(super) fn kept(txn: &ReadTransaction, row: &LogRow) -> Result<Option<Kept>, Error> {
    let kept = kept_row(txn, row)?.map(|kept| Kept::decode(&kept)).transpose()?;
    Ok(kept.filter(|kept| kept.seq == row.state.handshake))
}

/// The chunks of one log.
pub(super) struct Chunks<'r, T> {
    room: RoomId,
    row: &'r LogRow,
    chunks: T,
    tails: T,
    cache: Option<&'r ChunkCache>,
}

/// The chunks of the log `row` of `room`, in this snapshot. Those that are in `cache` are not read from the file, and not checked again.
pub(super) fn chunks<'r>(
    txn: &ReadTransaction,
    room: RoomId,
    row: &'r LogRow,
    cache: Option<&'r ChunkCache>,
) -> Result<Chunks<'r, redb::ReadOnlyTable<ChunkKey, &'static [u8]>>, Error> {
    Ok(Chunks { room, row, chunks: txn.open_table(CHUNKS)?, tails: txn.open_table(TAILS)?, cache })
}

impl<'r, T: ChunkTable> Chunks<'r, T> {
    fn range<'t>(&self, table: &'t T, from: Seq, to: Seq) -> Result<Range<'t, ChunkKey, &'static [u8]>, Error> {
        let log = &self.row.meta.log.0;
        if from > to {
            // redb refuses a range whose end comes before its start.
            return Ok(table.range((log, 1)..(log, 1))?);
        }
        Ok(table.range((log, from)..=(log, to))?)
    }

    /// The first seq of the chunk with the record `seq`, which lies between `floor` and `head`.
    fn start_of(&self, seq: Seq) -> Result<Seq, Error> {
        let (floor, tails) = (self.row.state.floor, self.row.open.tails);
        let rows = match seq < tails {
            true => self.range(&self.chunks, floor, seq)?,
            false => self.range(&self.tails, floor.max(tails), seq)?,
        };
        let row = { rows }.next_back().ok_or_else(|| self.missing(seq))??;
        Ok(row.0.value().1)
    }

    fn missing(&self, seq: Seq) -> Error {
        self.row.damaged(format!("record {seq} is missing"))
    }

    /// Before this seq, chunks were made for good and may be in the cache.
    fn cached_before(&self) -> Seq {
        self.cache.map_or(0, |_| self.row.open.first)
    }

    /// The chunk with the record `seq`, which is at least the floor and in a chunk that was made for good.
    fn cached(&self, seq: Seq) -> Result<Arc<OwnedChunk>, Error> {
        let log = self.row.meta.log;
        if let Some(chunk) = self.cache.and_then(|cache| cache.covering(log, seq)) {
            return Ok(chunk);
        }
        let row = { self.range(&self.chunks, self.row.state.floor, seq)? }.next_back();
        let (key, row) = row.ok_or_else(|| self.missing(seq))??;
        let chunk = Arc::new(tables::decode_chunk(log, key.value().1, row.value())?.detach());
        if chunk.last() < seq || chunk.last() >= self.row.open.first {
            return Err(self.missing(seq));
        }
        if let Some(cache) = self.cache {
            cache.insert(log, &chunk);
        }
        Ok(chunk)
    }

    /// Calls `each` for the chunks with the records `from..=to`, which lie between `floor` and `head`, ascending, until it
    /// says `false`. What it is given is dense.
    pub(super) fn ascending(
        &self,
        from: Seq,
        to: Seq,
        mut each: impl FnMut(&Chunk<'_>) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        // The next record that is wanted. But for the first one, a chunk begins with it.
        let mut next = from;
        while next <= to && next < self.cached_before() {
            let chunk = self.cached(next)?;
            if next != from && chunk.first() != next {
                return Err(self.missing(next));
            }
            next = chunk.last() + 1;
            if !each(&chunk.as_chunk())? {
                return Ok(());
            }
        }
        if next > to {
            return Ok(());
        }
        let (start, tails) = (if next == from { self.start_of(from)? } else { next }, self.row.open.tails);
        let mut expected = start;
        let mut visit = |entry: Result<Row<'_>, redb::StorageError>| {
            let (key, row) = entry?;
            let chunk = tables::decode_chunk(self.row.meta.log, key.value().1, row.value())?;
            if chunk.first() != expected || chunk.last() > self.row.state.head {
                return Err(self.missing(expected));
            }
            expected = chunk.last() + 1;
            each(&chunk)
        };
        if start < tails {
            for entry in self.range(&self.chunks, start, to.min(tails - 1))? {
                if !visit(entry)? {
                    return Ok(());
                }
            }
        }
        if to >= tails {
            for entry in self.range(&self.tails, start.max(tails), to)? {
                if !visit(entry)? {
                    return Ok(());
                }
            }
        }
        if expected > to { Ok(()) } else { Err(self.missing(expected)) }
    }

    /// As [`Self::ascending`], descending.
    pub(super) fn descending(
        &self,
        from: Seq,
        to: Seq,
        mut each: impl FnMut(&Chunk<'_>) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        if from > to {
            return Ok(());
        }
        let (tails, cached_before) = (self.row.open.tails, self.cached_before());
        // The chunk that is visited next must have this record.
        let mut expected = to;
        let mut show = |expected: &mut Seq, chunk: &Chunk<'_>| {
            let joins = if *expected == to { chunk.last() >= to } else { chunk.last() == *expected };
            if !joins || chunk.last() > self.row.state.head {
                return Err(self.missing(*expected));
            }
            *expected = chunk.first() - 1;
            Ok(each(chunk)? && chunk.first() > from)
        };
        let mut visit = |expected: &mut Seq, entry: Result<Row<'_>, redb::StorageError>| {
            let (key, row) = entry?;
            show(expected, &tables::decode_chunk(self.row.meta.log, key.value().1, row.value())?)
        };
        if to >= tails {
            for entry in self.range(&self.tails, tails.max(self.row.state.floor), to)?.rev() {
                if !visit(&mut expected, entry)? {
                    return Ok(());
                }
            }
        }
        let floor = self.row.state.floor.max(cached_before);
        for entry in self.range(&self.chunks, floor, to.min(tails.saturating_sub(1)))?.rev() {
            if !visit(&mut expected, entry)? {
                return Ok(());
            }
        }
        while expected >= from && expected < cached_before {
            let chunk = self.cached(expected)?;
            if !show(&mut expected, &chunk.as_chunk())? {
                return Ok(());
            }
        }
        if expected < from { Ok(()) } else { Err(self.missing(expected)) }
    }

    /// The chain value at `seq`, which lies between `floor − 1` and `head`.
    pub(super) fn chain_at(&self, seq: Seq) -> Result<Digest, Error> {
        if seq >= self.row.state.head {
            return Ok(self.row.state.chain);
        }
        if seq < self.row.state.floor {
            return Ok(self.row.state.floor_chain);
        }
        let mut value = self.row.state.chain;
        self.ascending(seq, seq, |chunk| {
            value = chunk.chain_at(self.room, seq);
            Ok(false)
        })?;
        Ok(value)
    }

    fn page(&self, before: Digest, records: Vec<Record>) -> Records {
        Records { state: self.row.state, before, records }
    }

    /// Records after `after`, none after `limit`: as many as fit `bytes_max`, but at least one if there is one.
    pub(super) fn after(&self, after: Seq, limit: Seq, bytes_max: u32) -> Result<Records, Error> {
        let (end, bytes_max) = (self.row.state.head.min(limit), u64::from(bytes_max));
        let first = (after.min(end) + 1).max(self.row.state.floor);
        if first > end {
            return Ok(self.page(self.chain_at(first - 1)?, Vec::new()));
        }
        let (mut records, mut bytes, mut before) = (Vec::new(), 0, None);
        self.ascending(first, end, |chunk| {
            let start = chunk.first().max(first);
            before.get_or_insert_with(|| chunk.chain_at(self.room, start - 1));
            let last = chunk.last().min(end);
            let fitting = (start..=last).take_while(|seq| {
                bytes += chunk.envelope_len(*seq) as u64;
                *seq == first || bytes <= bytes_max
            });
            let fitting = fitting.count() as u64;
            if fitting > 0 {
                chunk.copy(start, start + fitting - 1, &mut records);
            }
            Ok(start + fitting > last)
        })?;
        Ok(self.page(before.ok_or_else(|| self.missing(first))?, records))
    }

    /// The newest records before `before`, none after `limit`, ascending: as many as fit both limits, but at least one if
    /// there is one.
    pub(super) fn before(&self, before: Seq, limit: Seq, count_max: u32, bytes_max: u32) -> Result<Records, Error> {
        let (floor, bytes_max) = (self.row.state.floor, u64::from(bytes_max));
        let last = before.saturating_sub(1).min(self.row.state.head).min(limit);
        if last < floor {
            return Ok(self.page(self.chain_at(last)?, Vec::new()));
        }
        let from = floor.max((last + 1).saturating_sub(u64::from(count_max.max(1))));
        let (mut parts, mut bytes, mut chain) = (Vec::new(), 0, self.row.state.chain);
        self.descending(from, last, |chunk| {
            let (low, high) = (chunk.first().max(from), chunk.last().min(last));
            let fitting = (low..=high).rev().take_while(|seq| {
                bytes += chunk.envelope_len(*seq) as u64;
                *seq == last || bytes <= bytes_max
            });
            let fitting = fitting.count() as u64;
            if fitting > 0 {
                let mut part = Vec::new();
                chunk.copy(high + 1 - fitting, high, &mut part);
                chain = chunk.chain_at(self.room, high - fitting);
                parts.push(part);
            }
            Ok(high + 1 - fitting == low)
        })?;
        Ok(self.page(chain, parts.into_iter().rev().flatten().collect()))
    }

    /// The first record whose time is at least `time_ms`; `None` if all are older. It is exact as long as the clock did not
    /// step back. Otherwise: by bisection a chunk is found that begins earlier than that and is followed by one that does
    /// not (or by nothing); it is the first such record from there on.
    pub(super) fn seek(&self, time_ms: UnixMillis) -> Result<Option<Seq>, Error> {
        let (floor, head) = (self.row.state.floor, self.row.state.head);
        // Records before `low` lie in or before a chunk that begins earlier; `high` does not, or is beyond the head.
        let (mut low, mut high) = (floor, head + 1);
        let mut found = floor;
        while low < high {
            let middle = low.midpoint(high);
            let (mut first, mut next, mut earlier) = (middle, middle + 1, false);
            self.ascending(middle, middle, |chunk| {
                (first, next, earlier) = (chunk.first(), chunk.last() + 1, chunk.first_ms() < time_ms);
                Ok(false)
            })?;
            if earlier {
                (found, low) = (first, next);
            } else {
                high = first.max(low);
            }
        }
        let mut seq = None;
        self.ascending(found, head, |chunk| {
            seq = chunk.since(time_ms);
            Ok(seq.is_none())
        })?;
        Ok(seq)
    }

    /// Shows every chunk to `visit`, ascending, and checks all of the log: checksums, that no record is missing, the hash
    /// chain from the floor to the head, the sum of the envelopes, which handshake record is the newest, and that the log has no
    /// other rows.
    pub(super) fn verify(&self, mut visit: impl FnMut(&Chunk<'_>) -> Result<(), Error>) -> Result<(), Error> {
        let state = &self.row.state;
        let (mut value, mut bytes, mut rows, mut newest, mut access) = (state.floor_chain, 0, 0_u64, 0, None);
        self.ascending(state.floor, state.head, |chunk| {
            if chunk.before() != value {
                return Err(self.row.damaged(format!("the hash chain breaks before record {}", chunk.first())));
            }
            for (seq, item) in (chunk.first()..).zip(chunk.items()) {
                value = chain::next(self.room, value, seq, item.envelope);
                if item.chain.is_some_and(|kept| kept != value) {
                    return Err(self.row.damaged(format!("the hash chain breaks at record {seq}")));
                }
                if envelope::is_handshake(item.envelope) {
                    newest = seq;
                    access = handshake::new_access(item.envelope).or(access);
                }
            }
            bytes += chunk.envelopes().len() as u64;
            rows += 1;
            visit(chunk)?;
            Ok(true)
        })?;
        if state.floor == 0 || state.floor > state.head + 1 {
            return Err(self.row.damaged(format!("its floor is {} and its head {}", state.floor, state.head)));
        }
        if value != state.chain {
            return Err(self.row.damaged("the hash chain does not end in the head's value"));
        }
        if bytes != state.bytes {
            return Err(self.row.damaged(format!("its records have {bytes} bytes, not {}", state.bytes)));
        }
        if newest != state.handshake && !(newest == 0 && state.handshake < state.floor) {
            return Err(self.row.damaged(format!("its newest handshake record is {newest}, not {}", state.handshake)));
        }
        if access.is_some_and(|access| access != self.row.meta.access) {
            return Err(self.row.damaged("its access key is not the one that its records name"));
        }
        // One by one: a range of redb that fails goes on failing, and never ends.
        let mut stored = 0_u64;
        for row in self.range(&self.chunks, 0, Seq::MAX)?.chain(self.range(&self.tails, 0, Seq::MAX)?) {
            row?;
            stored += 1;
        }
        if stored != rows {
            return Err(self.row.damaged(format!("it has {stored} chunks, not {rows}")));
        }
        Ok(())
    }
}
