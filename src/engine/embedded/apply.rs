//! Writes to the tables, within a transaction of the caller's.
//!
//! New records of a log first go into small rows, then into chunks that fill small pages, and once they fill a large one,
//! into a chunk for good (see `layout`).

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use redb::{ReadableTable as _, Table, WriteTransaction};

use super::{
    chunk::{self, Chunk, Item},
    layout::{Layout, Sizes},
    memtable::{Handle, RoomTail},
    tables::{self, ChunkKey, Error, LogRow, Stranded, StrandedRecord},
};
use crate::{
    core::{
        chain,
        id::{Digest, LogId, RoomId, Seq},
    },
    engine::{rows::Producers, wal::Lsn},
};

/// The tables, open for writing. An error of the storage means that the transaction must be given up. Any other error
/// concerns one log alone, of which nothing was written then; the others can go on.
pub(super) struct Apply<'t> {
    pub(super) logs: Table<'t, &'static [u8; 16], &'static [u8]>,
    pub(super) chunks: Table<'t, ChunkKey, &'static [u8]>,
    pub(super) tails: Table<'t, ChunkKey, &'static [u8]>,
    stranded: Table<'t, ChunkKey, &'static [u8]>,
    pub(super) handshakes: Table<'t, &'static [u8; 16], &'static [u8]>,
    producers: Producers<'t>,
    deleting: Table<'t, &'static [u8; 16], ()>,
    meta: Table<'t, &'static str, &'static [u8]>,
    /// Where a row is made, as long as the longest so far: a place that redb reserves would be cleared twice before.
    scratch: Vec<u8>,
    /// Bytes of rows that were made.
    pub(super) progress: Arc<AtomicU64>,
}

/// Open rows of a log: first seq, and a copy of the chunk.
type Rows = Vec<(Seq, Vec<u8>)>;

impl<'t> Apply<'t> {
    pub(super) fn open(txn: &'t WriteTransaction) -> Result<Self, Error> {
        Ok(Self {
            logs: txn.open_table(tables::LOGS)?,
            chunks: txn.open_table(tables::CHUNKS)?,
            tails: txn.open_table(tables::TAILS)?,
            stranded: txn.open_table(tables::STRANDED)?,
            handshakes: txn.open_table(tables::HANDSHAKES)?,
            producers: Producers::open(txn)?,
            deleting: txn.open_table(tables::DELETING)?,
            meta: txn.open_table(tables::META)?,
            scratch: Vec::new(),
            progress: Arc::default(),
        })
    }

    /// Applies what a memtable knows of `room`. Doing so again changes nothing: records up to the head are skipped, and a
    /// life other than the tail's is over.
    pub(super) fn apply_room(&mut self, room: RoomId, tail: &RoomTail) -> Result<(), Error> {
        let result = self.try_room(room, tail);
        self.producers.drop_all();
        result
    }

    fn try_room(&mut self, room: RoomId, tail: &RoomTail) -> Result<(), Error> {
        let stored = match self.row(room) {
            // It ended: that it cannot be read matters no more. Nobody knows its log id, so its chunks stay.
            Err(Error::Row(_) | Error::Log { .. }) if tail.log.is_none() || tail.made.is_some() => None,
            stored => stored?,
        };
        let Some(log) = tail.log else {
            if let Some(row) = stored {
                self.end(row.meta.log)?;
            }
            self.logs.remove(&room.0)?;
            return Ok(());
        };
        let (mut row, ended, is_new) = match (stored, &tail.made) {
            (Some(row), _) if row.meta.log == log => (row, None, false),
            (stored, Some(made)) if made.log == log => (LogRow::new(room, made.clone()), stored.map(|row| row.meta.log), true),
            _ => return Err(Error::Log { log, why: "there is no row of this log".to_owned() }),
        };
        let records = tail.after(row.state.head);
        for (seq, key) in tail.keys.iter().filter(|(seq, _)| *seq > row.state.head) {
            row.former.replace(&mut row.meta.access, *seq, *key);
        }
        if !records.is_empty() {
            self.append(room, &mut row, records)?;
        }
        if let Some(ended) = ended {
            self.end(ended)?;
        }
        row.state.handshake = row.state.handshake.max(tail.handshake);
        if is_new || !records.is_empty() {
            self.put(room, &row)?;
        }
        Ok(())
    }

    /// The log of `room`, if there is one.
    pub(super) fn row(&self, room: RoomId) -> Result<Option<LogRow>, Error> {
        self.logs.get(&room.0)?.map(|row| LogRow::decode(row.value())).transpose()
    }

    /// Writes the log's row.
    pub(super) fn put(&mut self, room: RoomId, row: &LogRow) -> Result<(), Error> {
        self.logs.insert(&room.0, row.encode().as_slice())?;
        Ok(())
    }

    fn end(&mut self, log: LogId) -> Result<(), Error> {
        self.deleting.insert(&log.0, ())?;
        Ok(())
    }

    /// Appends the records, at least one; all is read before anything is written.
    fn append(&mut self, room: RoomId, row: &mut LogRow, records: &[Handle]) -> Result<(), Error> {
        if !(row.state.head + 1..).zip(records).all(|(seq, record)| record.seq() == seq) {
            return Err(row.damaged(format!("the records after {} do not follow it", row.state.head)));
        }
        let log = row.meta.log;
        let new: Vec<Item<'_>> = records.iter().map(item).collect();
        let new_bytes = costs(row.state.head + 1, &new).sum();
        let (first, old) = self.movable(row, new_bytes)?;
        let chunks = old.iter().map(|(first, row)| tables::decode_chunk(log, *first, row)).collect::<Result<Vec<_>, _>>()?;
        let dense = chunks.iter().try_fold(first, |seq, chunk| (chunk.first() == seq).then(|| chunk.last() + 1));
        if dense != Some(row.state.head + 1) {
            return Err(row.damaged(format!("records from {first} are missing")));
        }
        let items: Vec<Item<'_>> = chunks.iter().flat_map(Chunk::items).chain(new).collect();
        let sizes = Sizes::new(costs(first, &items));
        let all = first == row.open.first;
        let layout = if all { sizes.all() } else { sizes.open(0) };
        for run in records.chunk_by(|a, b| a.producer() == b.producer()) {
            if let Some(record) = run.first() {
                self.producers.load(log, record.producer(), record.time_ms())?;
            }
        }

        let before = chunks.first().map_or(row.state.chain, Chunk::before);
        self.remove(row, &old)?;
        self.write(room, log, first, before, &items, &layout)?;
        self.producers.note(log, records.iter().map(Handle::publish));
        self.producers.write()?;
        note(row, records, &layout, first, if all { None } else { Some(new_bytes) });
        Ok(())
    }

    /// The rows that are moved together with the new records, which take `new` bytes, and the first seq of them: all open ones if they fill a chunk
    /// for good, or else the loose ones.
    fn movable(&self, row: &LogRow, new: u64) -> Result<(Seq, Rows), Error> {
        let (open, head, mut rows) = (row.open, row.state.head, Vec::new());
        let all = open.bytes + new > open.goal;
        let log = &row.meta.log.0;
        let first = if all { open.first } else { open.loose };
        if first < open.tails {
            for entry in self.chunks.range((log, first)..=(log, open.tails - 1))? {
                let (key, row) = entry?;
                rows.push((key.value().1, row.value().to_vec()));
            }
        }
        if open.tails <= head {
            for entry in self.tails.range((log, open.tails)..=(log, head))? {
                let (key, row) = entry?;
                rows.push((key.value().1, row.value().to_vec()));
            }
        }
        Ok((first, rows))
    }

    fn remove(&mut self, row: &LogRow, old: &Rows) -> Result<(), Error> {
        let log = &row.meta.log.0;
        for (seq, _) in old {
            let table = if *seq < row.open.tails { &mut self.chunks } else { &mut self.tails };
            table.remove((log, *seq))?;
        }
        Ok(())
    }

    fn write(
        &mut self,
        room: RoomId,
        log: LogId,
        first: Seq,
        before: Digest,
        items: &[Item<'_>],
        layout: &Layout,
    ) -> Result<(), Error> {
        let alone = layout.full.iter().chain(&layout.open).chain(&layout.loose).map(|chunk| (chunk, true));
        for (chunk, alone) in alone.chain(layout.small.iter().map(|chunk| (chunk, false))) {
            let seq = first + chunk.start as u64;
            let before = chain_before(room, first, before, items, chunk.start);
            let items = items.get(chunk.clone()).unwrap_or_default();
            let table = if alone { &mut self.chunks } else { &mut self.tails };
            let len = chunk::encoded_len(seq, items);
            if self.scratch.len() < len {
                self.scratch.resize(len, 0);
            }
            let (row, _) = self.scratch.split_at_mut(len);
            chunk::encode(log, seq, before, items, row);
            table.insert((&log.0, seq), &*row)?;
            self.progress.fetch_add(len as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Puts aside what a damaged log cannot take, so that nothing acked is thrown away; the log takes no more.
    pub(super) fn strand(&mut self, tail: &RoomTail, why: &str) -> Result<(), Error> {
        let (Some(log), Some(first)) = (tail.log, tail.records.first()) else { return Ok(()) };
        let records = tail.records.iter().map(|record| StrandedRecord {
            seq: record.seq(),
            time_ms: record.time_ms(),
            producer: *record.producer(),
            client_seq: record.client_seq(),
            envelope: Bytes::copy_from_slice(record.envelope()),
        });
        let row = Stranded { why: why.to_owned(), records: records.collect() };
        self.stranded.insert((&log.0, first.seq()), row.encode().as_slice())?;
        Ok(())
    }

    /// Notes that every entry up to `lsn` is in the tables.
    pub(super) fn set_applied(&mut self, lsn: Lsn) -> Result<(), Error> {
        self.meta.insert(tables::APPLIED_ROW, lsn.to_le_bytes().as_slice())?;
        Ok(())
    }

    /// Removes up to about `rows_max` rows of logs that have ended. Whether there are more.
    pub(super) fn sweep(&mut self, rows_max: usize) -> Result<bool, Error> {
        let Some(log) = self.deleting.first()?.map(|(log, _)| LogId(*log.value())) else { return Ok(false) };
        let mut left = rows_max.max(1);
        for table in [&mut self.chunks, &mut self.tails, &mut self.stranded] {
            for entry in table.extract_from_if((&log.0, 0)..=(&log.0, u64::MAX), |_, _| true)?.take(left) {
                entry?;
                left -= 1;
            }
        }
        self.handshakes.remove(&log.0)?;
        left -= self.producers.sweep(log, left)?;
        if left > 0 {
            self.deleting.remove(&log.0)?;
        }
        Ok(self.deleting.first()?.is_some())
    }
}

fn item(record: &Handle) -> Item<'_> {
    Item { time_ms: record.time_ms(), envelope: record.envelope(), chain: Some(record.chain()) }
}

/// What the items, which begin at `first`, take.
pub(super) fn costs(first: Seq, items: &[Item<'_>]) -> impl Iterator<Item = u64> {
    let times = items.first().into_iter().chain(items).map(|item| item.time_ms);
    (first..).zip(items).zip(times).map(|((seq, item), before)| chunk::cost(seq, before, item) as u64)
}

/// The chain value before item `index`; the items begin at `first`, with `before` before them.
fn chain_before(room: RoomId, first: Seq, before: Digest, items: &[Item<'_>], index: usize) -> Digest {
    let known = items.iter().take(index).rposition(|item| item.chain.is_some());
    let start = known.map_or(0, |known| known + 1);
    let value = known.and_then(|known| items.get(known)?.chain).unwrap_or(before);
    let items = (first + start as u64..).zip(items.get(start..index).unwrap_or_default());
    items.fold(value, |value, (seq, item)| chain::next(room, value, seq, item.envelope))
}

/// Notes the new records in the log's row. The layout begins at `first`; it is of all open records, or of the loose ones
/// and the new ones, which take so many bytes.
fn note(row: &mut LogRow, records: &[Handle], layout: &Layout, first: Seq, new: Option<u64>) {
    let Some(last) = records.last() else { return };
    let at = |chunk: Option<&std::ops::Range<usize>>| chunk.map(|chunk| first + chunk.start as u64);
    let (open, loose, small) = (at(layout.open.first()), at(layout.loose.as_ref()), at(layout.small.first()));
    let end = last.seq() + 1;
    row.state.head = last.seq();
    row.state.chain = last.chain();
    row.state.bytes += records.iter().map(|record| record.envelope_len() as u64).sum::<u64>();
    row.open.tails = small.unwrap_or(end);
    row.open.loose = loose.unwrap_or(row.open.tails);
    if let Some(new) = new {
        row.open.bytes += new;
    } else {
        row.open.first = open.unwrap_or(row.open.loose);
        row.open.bytes = layout.bytes;
        row.open.goal = layout.goal;
    }
}
