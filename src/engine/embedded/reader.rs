//! The readers: each answer is composed of one snapshot of redb and what the tables had before it was taken.

use std::collections::BTreeMap;

use bytes::Bytes;
use redb::{ReadOnlyTable, ReadTransaction};

use super::{
    chunk_cache::ChunkCache,
    database::Database,
    layers::{Layers, Life, Tail, Want},
    memtable::Handle,
    read::{self, Chunks},
    tables::{ChunkKey, Error, Kept, LogRow},
};
use crate::{
    core::{
        access::FormerKeys,
        id::{Digest, RoomId, Seq, UnixMillis},
        log::{LoadedLog, LogMeta, LogState, Producer, ProducerState, Record, Records},
    },
    engine::{
        Answer, Failure,
        jobs::{Read, Subject},
        rows,
    },
};

/// How often a read begins anew because a log ended while it was read.
const ATTEMPTS: usize = 8;

/// Answers one read.
pub(super) fn answer(
    layers: &Layers,
    database: &Database,
    cache: Option<&ChunkCache>,
    subject: Subject,
) -> Result<Answer, Failure> {
    match subject {
        Subject::Room(room, read) => of_room(layers, database, cache, room, read),
        Subject::Packages(device) => {
            let packages = layers.packages(device).map_or_else(|| database.read(|txn| rows::packages(txn, device)), Ok);
            packages.map(Answer::Packages).map_err(|_: Error| Failure::Read)
        }
    }
}

fn of_room(
    layers: &Layers,
    database: &Database,
    cache: Option<&ChunkCache>,
    room: RoomId,
    read: Read,
) -> Result<Answer, Failure> {
    let want = match read {
        // Which records a time lies among is not known before: all handles, no bytes.
        Read::Load | Read::Seek { .. } => Want::All,
        Read::After { after, bytes_max } => Want::From { seq: after, bytes_max: bytes_max.into() },
        Read::Handshake { seq } => Want::Before { seq: seq.saturating_add(1), count_max: 1, bytes_max: 1 },
        Read::Before { before, count_max, bytes_max } => Want::Before {
            seq: before,
            count_max: usize::try_from(count_max.max(1)).unwrap_or(usize::MAX),
            bytes_max: bytes_max.into(),
        },
    };
    for _ in 0..ATTEMPTS {
        // The tables first: whatever leaves them is in redb by then.
        let tail = layers.tail(room, want);
        let found = database.read(|txn| {
            let Some(view) = View::of(txn, cache, room, &tail)? else { return Ok(None) };
            view.map(|view| view.answer(read)).transpose().map(Some)
        });
        match found {
            Ok(Some(Some(answer))) => return Ok(answer),
            Ok(Some(None)) if matches!(read, Read::Load) => return Ok(Answer::Loaded(None)),
            Ok(Some(None)) => return Err(Failure::NotFound),
            Ok(None) => {}
            Err(_) => return Err(Failure::Read),
        }
    }
    Err(Failure::Read)
}

/// Shows every record of a log, ascending, without copying any. How the log stands, if there is one.
pub(super) fn scan(
    layers: &Layers,
    database: &Database,
    cache: Option<&ChunkCache>,
    room: RoomId,
    visit: &mut dyn FnMut(Seq, UnixMillis, &[u8]),
) -> Result<Option<LogState>, Failure> {
    let tail = layers.tail(room, Want::All);
    let scanned = database.snapshot(|txn| {
        let Some(view) = View::of(txn, cache, room, &tail)?.flatten() else { return Ok(None) };
        if let Some(row) = &view.row {
            view.chunks(row)?.ascending(row.state.floor, row.state.head, |chunk| {
                (chunk.first()..).zip(chunk.records()).for_each(|(seq, (time_ms, envelope))| visit(seq, time_ms, envelope));
                Ok(true)
            })?;
        }
        view.tail.iter().for_each(|record| visit(record.seq(), record.time_ms(), record.envelope()));
        Ok(Some(view.state))
    });
    scanned.and_then(|scanned| scanned).map_err(|_: Error| Failure::Read)
}

/// One log at one moment.
struct View<'a> {
    txn: &'a ReadTransaction,
    cache: Option<&'a ChunkCache>,
    room: RoomId,
    meta: LogMeta,
    /// As redb has it, if it does.
    row: Option<LogRow>,
    state: LogState,
    /// Wanted records that redb does not have.
    tail: &'a [Handle],
    /// What the tables have.
    unapplied: &'a Tail,
}

impl<'a> View<'a> {
    /// `None` outside when the log ended in between; inside when there is none.
    fn of(
        txn: &'a ReadTransaction,
        cache: Option<&'a ChunkCache>,
        room: RoomId,
        tail: &'a Tail,
    ) -> Result<Option<Option<Self>>, Error> {
        let row = match tail.life {
            Life::Gone => return Ok(Some(None)),
            Life::Unknown => match read::row(txn, room)? {
                None => return Ok(Some(None)),
                row => row,
            },
            Life::Is(log) => read::row(txn, room)?.filter(|row| row.meta.log == log),
        };
        let Some(meta) = row.as_ref().map(|row| &row.meta).or(tail.made.as_ref()).cloned() else { return Ok(None) };
        let base = row.as_ref().map_or_else(|| LogState::empty(room), |row| row.state);
        if !tail.follows(base.head) {
            // What was between them was put aside: the log is damaged.
            return Err(Error::Row("logs"));
        }
        let applied = tail.records.iter().take_while(|record| record.seq() <= base.head).count();
        let records = tail.records.get(applied..).unwrap_or_default();
        Ok(Some(Some(View { txn, cache, room, meta, state: tail.state(base), row, tail: records, unapplied: tail })))
    }

    /// The log's chunks.
    fn chunks<'r>(&'r self, row: &'r LogRow) -> Result<Chunks<'r, ReadOnlyTable<ChunkKey, &'static [u8]>>, Error> {
        read::chunks(self.txn, self.room, row, self.cache)
    }

    /// The newest seq that redb has.
    fn applied(&self) -> Seq {
        self.row.as_ref().map_or(0, |row| row.state.head)
    }

    fn answer(&self, read: Read) -> Result<Answer, Error> {
        match read {
            Read::Load => self.load().map(|log| Answer::Loaded(Some(Box::new(log)))),
            Read::After { after, bytes_max } => self.after(after, bytes_max).map(Answer::Records),
            Read::Before { before, count_max, bytes_max } => {
                self.before(before, count_max.max(1), bytes_max).map(Answer::Records)
            }
            Read::Handshake { seq } => self.handshake(seq).map(Answer::Records),
            Read::Seek { time_ms } => self.seek(time_ms).map(Answer::Sought),
        }
    }

    fn load(&self) -> Result<LoadedLog, Error> {
        let stored = self.row.as_ref().map(|row| read::producers(self.txn, row)).transpose()?;
        let mut producers: BTreeMap<Producer, ProducerState> = stored.into_iter().flatten().collect();
        for record in self.tail {
            rows::note(producers.entry(*record.producer()).or_default(), &record.publish());
        }
        let (mut meta, mut former) =
            (self.meta.clone(), self.row.as_ref().map_or_else(FormerKeys::default, |row| row.former.clone()));
        for (seq, key) in self.unapplied.keys_after(self.applied()) {
            former.replace(&mut meta.access, seq, key);
        }
        Ok(LoadedLog { meta, state: self.state, former, producers: producers.into_iter().collect() })
    }

    fn after(&self, after: Seq, bytes_max: u32) -> Result<Records, Error> {
        let first = (after.min(self.state.head) + 1).max(self.state.floor);
        let mut page = match &self.row {
            Some(row) if first <= row.state.head => self.chunks(row)?.after(first - 1, row.state.head, bytes_max)?,
            _ => Records { state: self.state, before: self.chain_at(first - 1)?, records: Vec::new() },
        };
        page.state = self.state;
        let mut bytes: u64 = page.records.iter().map(|record| record.envelope.len() as u64).sum();
        let next = page.records.last().map_or(first, |record| record.seq + 1);
        let following = self.tail.iter().skip_while(|record| record.seq() < first);
        let (mut any, mut end) = (!page.records.is_empty(), next);
        let fits = |record: &&Handle| {
            bytes += record.envelope_len() as u64;
            let fits = record.seq() == end && (!any || bytes <= bytes_max.into());
            (any, end) = (true, end + 1);
            fits
        };
        let following: Vec<&Handle> = following.take_while(fits).collect();
        copy(&following, &mut page.records);
        Ok(page)
    }

    /// The newest handshake record, if it is the one at `seq`.
    fn handshake(&self, seq: Seq) -> Result<Records, Error> {
        if seq >= self.state.floor {
            return self.before(seq.saturating_add(1), 1, 1);
        }
        let kept = self.row.as_ref().map(|row| read::kept(self.txn, row)).transpose()?.flatten();
        let (before, records) = match kept.filter(|kept| kept.seq == seq) {
            Some(Kept { time_ms, before, envelope, .. }) => (before, vec![Record { seq, time_ms, envelope }]),
            None => (self.state.floor_chain, Vec::new()),
        };
        Ok(Records { state: self.state, before, records })
    }

    fn seek(&self, time_ms: UnixMillis) -> Result<Seq, Error> {
        let applied = match &self.row {
            Some(row) => self.chunks(row)?.seek(time_ms)?,
            None => None,
        };
        let unapplied = || self.tail.iter().find(|record| record.time_ms() >= time_ms).map(Handle::seq);
        Ok(applied.or_else(unapplied).unwrap_or(self.state.head + 1))
    }

    fn before(&self, before: Seq, count_max: u32, bytes_max: u32) -> Result<Records, Error> {
        let last = before.saturating_sub(1).min(self.state.head);
        let (mut newest_first, mut bytes, mut next) = (Vec::new(), 0_u64, last);
        let mut full = false;
        for record in self.tail.iter().rev().skip_while(|record| record.seq() > last) {
            bytes += record.envelope_len() as u64;
            full = !newest_first.is_empty() && (newest_first.len() as u64 >= count_max.into() || bytes > bytes_max.into());
            if full || record.seq() != next {
                break;
            }
            next -= 1;
            newest_first.push(record);
        }
        if newest_first.is_empty() && last > self.applied() {
            return Err(Error::Row("logs"));
        }
        let mut older = None;
        if let Some(row) = &self.row
            && !full
            && next >= self.state.floor
            && next == last.min(row.state.head)
        {
            older = self.older(row, next, (count_max, bytes_max), (newest_first.len(), bytes))?;
        }
        newest_first.reverse();
        Ok(match older {
            Some(mut page) => {
                copy(&newest_first, &mut page.records);
                Records { state: self.state, ..page }
            }
            None => {
                let first = newest_first.first().map_or(last + 1, |record| record.seq());
                let mut records = Vec::new();
                copy(&newest_first, &mut records);
                Records { state: self.state, before: self.chain_at(first.saturating_sub(1))?, records }
            }
        })
    }

    /// What precedes `taken` records, as far as the limits allow.
    fn older(&self, row: &LogRow, last: Seq, max: (u32, u32), taken: (usize, u64)) -> Result<Option<Records>, Error> {
        let (count, bytes) = taken;
        let chunks = self.chunks(row)?;
        if count == 0 {
            return chunks.before(last + 1, last, max.0, max.1).map(Some);
        }
        let count_left = max.0.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
        let bytes_left = u32::try_from(u64::from(max.1).saturating_sub(bytes)).unwrap_or(u32::MAX);
        if count_left == 0 {
            return Ok(None);
        }
        let page = chunks.before(last + 1, last, count_left, bytes_left)?;
        // It gives at least one; beside those that were taken it must fit.
        let fits = page.records.iter().map(|record| record.envelope.len() as u64).sum::<u64>() <= u64::from(bytes_left);
        Ok((fits && !page.records.is_empty()).then_some(page))
    }

    /// The chain value at `seq`.
    fn chain_at(&self, seq: Seq) -> Result<Digest, Error> {
        if seq == self.state.head {
            return Ok(self.state.chain);
        }
        if seq < self.state.floor {
            return Ok(self.state.floor_chain);
        }
        if seq > self.applied() {
            let found = self.tail.iter().find(|record| record.seq() == seq);
            return found.map(Handle::chain).ok_or(Error::Row("logs"));
        }
        match &self.row {
            Some(row) => self.chunks(row)?.chain_at(seq),
            None => Err(Error::Row("logs")),
        }
    }
}

/// Puts `logged` behind `records`. Their envelopes are copied once, together: who is answered must not hold the blocks of whole
/// batches.
fn copy(logged: &[&Handle], records: &mut Vec<Record>) {
    let mut bytes = Vec::with_capacity(logged.iter().map(|record| record.envelope_len()).sum());
    logged.iter().for_each(|record| bytes.extend_from_slice(record.envelope()));
    let mut rest = Bytes::from(bytes);
    records.extend(logged.iter().map(|record| {
        let envelope = rest.split_to(record.envelope_len());
        Record { seq: record.seq(), time_ms: record.time_ms(), envelope }
    }));
}
