//! The tables against a model: what was applied, however often and in whatever portions, is what is read.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use redb::{Builder, Database, ReadableDatabase as _, ReadableTable as _, backends::InMemoryBackend};

use super::{
    apply::Apply,
    chunk_cache::ChunkCache,
    memtable::{Handle, Memtable, RoomTail},
    read,
    retain::Keep,
    tables::{self, Error},
};
use crate::{
    core::{
        chain,
        frame::LogKind,
        id::{AccessKey, DeviceKey, Digest, LogId, ProducerId, RoomId, Seq},
        log::{Append, LogMeta, Producer, ProducerState, Record, Stored},
    },
    engine::wal::Entry,
};

/// A database in memory, and what was read of it lately, which is less than a few chunks.
struct Store(Database, ChunkCache);

impl Store {
    fn new() -> Self {
        Self::on(InMemoryBackend::new())
    }

    fn on(backend: impl redb::StorageBackend) -> Self {
        let db = Builder::new().create_with_backend(backend).unwrap();
        let txn = db.begin_write().unwrap();
        tables::make(&txn).unwrap();
        txn.commit().unwrap();
        Self(db, ChunkCache::new(100 << 10))
    }

    fn write<T>(&self, write: impl FnOnce(&mut Apply<'_>) -> T) -> T {
        let txn = self.0.begin_write().unwrap();
        let result = write(&mut Apply::open(&txn).unwrap());
        txn.commit().unwrap();
        result
    }

    fn apply(&self, table: &Memtable) {
        self.write(|apply| {
            for (room, tail) in &table.rooms {
                apply.apply_room(*room, tail).unwrap();
            }
            apply.set_applied(table.last).unwrap();
        });
    }

    /// Rows of all logs: chunks, tails, producers, logs being deleted.
    fn rows(&self) -> [usize; 4] {
        let txn = self.0.begin_read().unwrap();
        let count = |table| txn.open_table(table).unwrap().iter().unwrap().count();
        [
            count(tables::CHUNKS),
            count(tables::TAILS),
            txn.open_table(tables::PRODUCERS).unwrap().iter().unwrap().count(),
            txn.open_table(tables::DELETING).unwrap().iter().unwrap().count(),
        ]
    }
}

fn room_id(number: u8) -> RoomId {
    RoomId([number; 16])
}

fn meta(log: u64) -> LogMeta {
    let mut id = [7; 16];
    id[..8].copy_from_slice(&log.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    let (access, creator) = (AccessKey([1; 32]), DeviceKey([2; 32]));
    LogMeta { log: LogId(id), kind: LogKind::Room, access, creator, created_ms: 5 }
}

/// What a log must be.
#[derive(Debug, Clone)]
struct Log {
    room: RoomId,
    meta: LogMeta,
    records: Vec<Append>,
    producers: BTreeMap<Producer, ProducerState>,
}

impl Log {
    fn new(room: RoomId, log: u64) -> Self {
        Self { room, meta: meta(log), records: Vec::new(), producers: BTreeMap::new() }
    }

    fn chain(&self, seq: Seq) -> Digest {
        if seq == 0 { chain::start(self.room) } else { self.records[usize::try_from(seq).unwrap() - 1].chain }
    }

    fn append(&mut self, len: usize, time_ms: u64, producer: u8) -> Entry {
        let seq = self.records.len() as u64 + 1;
        let envelope: Vec<u8> = (0..len).map(|at| (at as u64 ^ seq).to_le_bytes()[0]).collect();
        let digest = chain::digest(&envelope);
        let producer = Producer { device: DeviceKey([producer / 2; 32]), id: ProducerId([producer; 16]) };
        let before = self.chain(seq - 1);
        let state = self.producers.entry(producer).or_default();
        let hash = digest.0[..8].try_into().unwrap();
        state.push(Stored { seq, hash }, time_ms);
        let append = Append {
            room: self.room,
            seq,
            chain: chain::next_hashed(self.room, before, seq, digest),
            time_ms,
            producer,
            client_seq: state.last,
            hash,
            envelope: Bytes::from(envelope),
        };
        self.records.push(append.clone());
        Entry::Append { log: self.meta.log, append }
    }

    /// Compares the log with the store; returns its floor.
    fn check(&self, store: &Store, limits: &[(u64, u32)]) -> Seq {
        let txn = store.0.begin_read().unwrap();
        let row = read::row(&txn, self.room).unwrap().expect("the log is there");
        let producers = read::producers(&txn, &row).unwrap();
        let state = row.state;
        let head = self.records.len() as u64;
        assert_eq!((row.meta.clone(), state.head, state.chain), (self.meta.clone(), head, self.chain(head)));
        assert_eq!(producers, self.producers.clone().into_iter().collect::<Vec<_>>());
        let kept = &self.records[usize::try_from(state.floor).unwrap() - 1..];
        assert_eq!(state.floor_chain, self.chain(state.floor - 1));
        assert_eq!(state.bytes, kept.iter().map(|record| record.envelope.len() as u64).sum::<u64>());
        let chunks = read::chunks(&txn, self.room, &row, None).unwrap();
        let mut seen = 0;
        chunks
            .verify(|chunk| {
                seen += chunk.items().len();
                Ok(())
            })
            .unwrap();
        assert_eq!(seen, kept.len());
        let cached = read::chunks(&txn, self.room, &row, Some(&store.1)).unwrap();
        for (cursor, bytes_max) in limits.iter().copied() {
            self.check_pages(&chunks, state.floor, cursor, bytes_max);
            self.check_pages(&cached, state.floor, cursor, bytes_max);
        }
        for time in [0, 1, kept.first().map_or(0, |record| record.time_ms), kept.last().map_or(9, |record| record.time_ms + 1)] {
            self.check_seek(&chunks, kept, time);
            self.check_seek(&cached, kept, time);
        }
        for (cursor, _) in limits {
            if let Some(record) = kept.get(usize::try_from(*cursor).unwrap_or(usize::MAX)) {
                self.check_seek(&chunks, kept, record.time_ms);
            }
        }
        state.floor
    }

    fn check_seek<T: read::ChunkTable>(&self, chunks: &read::Chunks<'_, T>, kept: &[Append], time: u64) {
        let expected = kept.iter().find(|record| record.time_ms >= time).map(|record| record.seq);
        assert_eq!(chunks.seek(time).unwrap(), expected, "time {time}");
    }

    fn check_pages<T: read::ChunkTable>(&self, chunks: &read::Chunks<'_, T>, floor: Seq, cursor: Seq, bytes_max: u32) {
        let head = self.records.len() as u64;
        for limit in [Seq::MAX, cursor.wrapping_mul(7) % (head + 2)] {
            let end = head.min(limit);
            let range = |from: u64, to: u64| from.max(floor)..=to.min(end);
            // Forward.
            let page = chunks.after(cursor, limit, bytes_max).unwrap();
            let mut bytes = 0;
            let expected: Vec<_> = range(cursor.saturating_add(1), end)
                .take_while(|seq| {
                    bytes += self.len(*seq);
                    bytes <= u64::from(bytes_max) || bytes == self.len(*seq)
                })
                .collect();
            let before = (cursor.min(end) + 1).max(floor) - 1;
            assert_eq!((page.before, seqs(&page.records)), (self.chain(before), expected), "after {cursor} up to {limit}");
            self.same(&page.records);
            // Backward.
            let count_max = bytes_max % 9;
            let page = chunks.before(cursor, limit, count_max, bytes_max).unwrap();
            let mut bytes = 0;
            let mut expected: Vec<_> = range(1, cursor.saturating_sub(1))
                .rev()
                .take_while(|seq| {
                    bytes += self.len(*seq);
                    bytes <= u64::from(bytes_max) || bytes == self.len(*seq)
                })
                .take(count_max.max(1) as usize)
                .collect();
            expected.reverse();
            let last = cursor.saturating_sub(1).min(end).max(floor - 1);
            let before = expected.first().map_or(last, |first| first - 1);
            assert_eq!((page.before, seqs(&page.records)), (self.chain(before), expected), "before {cursor} up to {limit}");
            self.same(&page.records);
        }
    }

    fn len(&self, seq: Seq) -> u64 {
        self.records[usize::try_from(seq).unwrap() - 1].envelope.len() as u64
    }

    fn same(&self, records: &[Record]) {
        for record in records {
            let append = &self.records[usize::try_from(record.seq).unwrap() - 1];
            assert_eq!((record.time_ms, &record.envelope), (append.time_ms, &append.envelope));
        }
    }
}

fn seqs(records: &[Record]) -> Vec<Seq> {
    records.iter().map(|record| record.seq).collect()
}

#[derive(Debug, Clone)]
enum Op {
    Create(u8),
    Append(u8, Vec<usize>),
    Delete(u8),
    Apply,
    /// The last table again, as after a crash, with what came since.
    Replay,
    Trim(u8, Keep),
    Sweep,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let len = prop_oneof![8 => 1..400_usize, 2 => Just(300_usize), 1 => 400..5_000_usize, 1 => 5_000..20_000_usize];
    let keep = (proptest::option::of(0..200_u64), proptest::option::of(0..300_u64), proptest::option::of(0..50_000_u64))
        .prop_map(|(age_ms, count, bytes)| Keep { age_ms, count, bytes });
    let op = prop_oneof![
        2 => (0..3_u8).prop_map(Op::Create),
        8 => (0..3_u8, proptest::collection::vec(len, 1..60)).prop_map(|(room, lens)| Op::Append(room, lens)),
        1 => (0..3_u8).prop_map(Op::Delete),
        6 => Just(Op::Apply),
        2 => Just(Op::Replay),
        2 => ((0..3_u8), keep).prop_map(|(room, keep)| Op::Trim(room, keep)),
        2 => Just(Op::Sweep),
    ];
    proptest::collection::vec(op, 1..40)
}

/// The store, the model, and what is not applied yet.
struct World {
    store: Store,
    logs: BTreeMap<u8, Log>,
    table: Memtable,
    /// The entries since the last table but one was applied.
    entries: Vec<Entry>,
    lsn: u64,
    now: u64,
}

impl World {
    fn new() -> Self {
        let (logs, table, entries) = (BTreeMap::new(), Memtable::default(), Vec::new());
        Self { store: Store::new(), logs, table, entries, lsn: 0, now: 1_000 }
    }

    fn log(&mut self, entry: Entry) {
        self.lsn += 1;
        self.entries.push(entry.clone());
        self.table.insert(self.lsn, entry);
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Create(room) if !self.logs.contains_key(room) => {
                let log = Log::new(room_id(*room), self.lsn);
                let entry = Entry::Create { room: log.room, meta: log.meta.clone() };
                self.logs.insert(*room, log);
                self.log(entry);
            }
            Op::Append(room, lens) => {
                for len in lens {
                    self.now += u64::try_from(len % 3).unwrap();
                    let (now, producer) = (self.now, u8::try_from(len % 4).unwrap());
                    let Some(log) = self.logs.get_mut(room) else { return };
                    let entry = log.append(*len, now, producer);
                    self.log(entry);
                }
            }
            Op::Delete(room) => {
                if let Some(log) = self.logs.remove(room) {
                    self.log(Entry::Delete { room: log.room, log: log.meta.log });
                }
            }
            Op::Apply => {
                self.entries.clear();
                let table = std::mem::take(&mut self.table);
                self.store.apply(&table);
                // Doing it again does no harm.
                self.store.apply(&table);
                self.check(&[(0, 3_000)]);
            }
            Op::Replay => {
                // Half of the rooms are applied, then all of it is replayed.
                self.store.write(|apply| {
                    for (room, tail) in self.table.rooms.iter().filter(|(room, _)| room.0[0] % 2 == 0) {
                        apply.apply_room(*room, tail).unwrap();
                    }
                });
                self.table = Memtable::default();
                let first = self.lsn - self.entries.len() as u64;
                for (lsn, entry) in (first + 1..).zip(self.entries.clone()) {
                    self.table.insert(lsn, entry);
                }
            }
            Op::Trim(room, keep) => while self.store.write(|apply| apply.trim(room_id(*room), keep, self.now, 2)).unwrap() {},
            Op::Sweep => drop(self.store.write(|apply| apply.sweep(5)).unwrap()),
            Op::Create(_) => {}
        }
    }

    fn check(&self, limits: &[(u64, u32)]) {
        for number in 0..3 {
            match self.logs.get(&number) {
                Some(log) => drop(log.check(&self.store, limits)),
                None => assert!(read::row(&self.store.0.begin_read().unwrap(), room_id(number)).unwrap().is_none()),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_was_applied_is_what_is_read(ops in ops(), cursors in proptest::collection::vec((0..700_u64, 0..40_000_u32), 1..8)) {
        let mut world = World::new();
        for op in &ops {
            world.step(op);
        }
        world.step(&Op::Apply);
        let mut limits = cursors;
        limits.extend([(0, 0), (0, u32::MAX), (Seq::MAX, 50_000), (1, 1)]);
        world.check(&limits);
        // Sweeping leaves nothing of what was deleted.
        while world.store.write(|apply| apply.sweep(7)).unwrap() {}
        world.check(&[]);
        for number in 0..3 {
            world.step(&Op::Delete(number));
        }
        world.step(&Op::Apply);
        while world.store.write(|apply| apply.sweep(7)).unwrap() {}
        prop_assert_eq!(world.store.rows(), [0; 4]);
    }
}

/// A store with one log of `count` records of `len` bytes, applied `each` at a time.
fn filled(count: usize, len: usize, each: usize) -> (Store, Log) {
    let (store, mut log) = (Store::new(), Log::new(room_id(1), 1));
    let mut table = Memtable::default();
    table.insert(1, Entry::Create { room: log.room, meta: log.meta.clone() });
    for number in 0..count {
        table.insert(2 + number as u64, log.append(len, 1_000 + number as u64, 0));
        if number % each == each - 1 {
            store.apply(&std::mem::take(&mut table));
        }
    }
    store.apply(&table);
    (store, log)
}

#[test]
fn trimming_keeps_what_was_asked_for_and_at_most_a_chunk_more() {
    let (store, log) = filled(1_000, 300, 7);
    let trim = |keep: Keep, now| {
        let mut steps = 1;
        while store.write(|apply| apply.trim(log.room, &keep, now, 3)).unwrap() {
            steps += 1;
        }
        (log.check(&store, &[(0, 10_000), (500, 10_000)]), steps)
    };
    assert_eq!(trim(Keep::default(), u64::MAX), (1, 1), "no limit, no loss");
    let (floor, steps) = trim(Keep { count: Some(700), ..Keep::default() }, 0);
    assert!((301 - 60..=301).contains(&floor) && steps > 1, "{floor} in {steps} steps");
    let (floor, _) = trim(Keep { bytes: Some(500 * 300), ..Keep::default() }, 0);
    assert!((501 - 60..=501).contains(&floor), "{floor}");
    let (floor, _) = trim(Keep { age_ms: Some(100), ..Keep::default() }, 1_800);
    assert!((701 - 60..=701).contains(&floor), "{floor}");
    let (floor, _) = trim(Keep { age_ms: Some(0), count: Some(0), bytes: Some(0) }, u64::MAX);
    assert!((990..=1_000).contains(&floor), "the newest chunk stays: {floor}");
}

#[test]
fn a_trimmed_log_goes_on() {
    let (store, mut log) = filled(70, 300, 7);
    while store.write(|apply| apply.trim(log.room, &Keep { count: Some(0), ..Keep::default() }, 0, 1)).unwrap() {}
    for turn in 0..200_u64 {
        let mut table = Memtable::default();
        table.insert(turn, log.append(300, 5_000, 0));
        store.apply(&table);
    }
    assert!(log.check(&store, &[(0, 9_000)]) > 50);
}

#[test]
fn seeking_by_a_clock_that_stepped_back_answers_a_record_of_at_least_that_time() {
    let (store, mut log) = (Store::new(), Log::new(room_id(1), 1));
    let mut table = Memtable::default();
    table.insert(1, Entry::Create { room: log.room, meta: log.meta.clone() });
    for number in 0..1_000_u64 {
        table.insert(2 + number, log.append(300, 10_000 + number * 37 % 1_009, 0));
    }
    store.apply(&table);
    let txn = store.0.begin_read().unwrap();
    let row = read::row(&txn, log.room).unwrap().unwrap();
    let chunks = read::chunks(&txn, log.room, &row, None).unwrap();
    for time in (9_990..11_020).step_by(13) {
        if let Some(seq) = chunks.seek(time).unwrap() {
            assert!(log.records[usize::try_from(seq).unwrap() - 1].time_ms >= time);
        }
    }
}

#[test]
fn a_damaged_chunk_fails_its_log_alone_and_is_named() {
    let (store, mut log) = filled(100, 300, 100);
    let mut other = Log::new(room_id(2), 2);
    let mut table = Memtable::default();
    table.insert(1, Entry::Create { room: other.room, meta: other.meta.clone() });
    table.insert(2, other.append(10, 1, 0));
    store.apply(&table);
    // The last small row, which the next append moves.
    store.write(|apply| {
        let row = apply.row(log.room).unwrap().unwrap();
        let (key, mut bytes) = {
            let (key, bytes) = apply
                .tails
                .range((&log.meta.log.0, 0)..=(&log.meta.log.0, row.state.head))
                .unwrap()
                .next_back()
                .unwrap()
                .unwrap();
            (key.value().1, bytes.value().to_vec())
        };
        bytes[60] ^= 1;
        apply.tails.insert((&log.meta.log.0, key), bytes.as_slice()).unwrap();
    });
    let before = store.rows();
    let mut table = Memtable::default();
    table.insert(1, log.append(300, 9_000, 3));
    table.insert(2, other.append(10, 2, 0));
    let error = store.write(|apply| {
        apply.apply_room(other.room, &table.rooms[&other.room]).unwrap();
        apply.apply_room(log.room, &table.rooms[&log.room]).unwrap_err()
    });
    assert!(matches!(&error, Error::Log { log: named, .. } if *named == log.meta.log), "{error}");
    assert!(error.to_string().contains("checksum"), "{error}");
    assert_eq!(store.rows(), before, "nothing was written");
    other.check(&store, &[(0, 100)]);
    let txn = store.0.begin_read().unwrap();
    let row = read::row(&txn, log.room).unwrap().unwrap();
    let chunks = read::chunks(&txn, log.room, &row, None).unwrap();
    assert!(chunks.verify(|_| Ok(())).is_err());
    assert!(chunks.after(99, Seq::MAX, 1_000).is_err());
    assert_eq!(chunks.after(0, Seq::MAX, 1_000).unwrap().records.len(), 3, "what is whole is read");
}

#[test]
fn a_tail_that_does_not_fit_is_refused() {
    let (store, mut log) = filled(10, 300, 3);
    let _skipped = log.append(300, 1, 0);
    let Entry::Append { append, .. } = log.append(300, 1, 0) else { unreachable!() };
    let gap = RoomTail { log: Some(log.meta.log), records: vec![Handle::alone(&append)], ..RoomTail::default() };
    let nowhere = RoomTail { log: Some(LogId([9; 16])), records: vec![Handle::alone(&append)], ..RoomTail::default() };
    store.write(|apply| {
        assert!(matches!(apply.apply_room(log.room, &gap), Err(Error::Log { .. })));
        assert!(matches!(apply.apply_room(log.room, &nowhere), Err(Error::Log { .. })));
        assert!(matches!(apply.apply_room(room_id(77), &nowhere), Err(Error::Log { .. })));
    });
    log.records.truncate(10);
    log.producers.clear();
    let txn = store.0.begin_read().unwrap();
    let row = read::row(&txn, log.room).unwrap().unwrap();
    let producers = read::producers(&txn, &row).unwrap();
    assert_eq!((row.state.head, producers[0].1.last), (10, 10));
}

/// Applies `count` records of `len` bytes to each of `rooms` logs, `each` at a time, to a file; what of the file is in use,
/// over the payload.
fn size_on_disk(rooms: u8, count: usize, len: usize, each: usize) -> f64 {
    let file = tempfile::NamedTempFile::new().unwrap();
    let store = Store::on(redb::backends::FileBackend::new(file.reopen().unwrap()).unwrap());
    let mut logs: Vec<Log> = (1..=rooms).map(|number| Log::new(room_id(number), u64::from(number))).collect();
    let mut table = Memtable::default();
    let mut lsn = 0;
    for log in &logs {
        lsn += 1;
        table.insert(lsn, Entry::Create { room: log.room, meta: log.meta.clone() });
    }
    for turn in 0..count {
        for log in &mut logs {
            lsn += 1;
            table.insert(lsn, log.append(len, lsn, 0));
        }
        if turn % each == each - 1 {
            store.apply(&std::mem::take(&mut table));
        }
    }
    store.apply(&table);
    // What the last commits freed is reused only after further ones.
    for _ in 0..3 {
        store.0.begin_write().unwrap().commit().unwrap();
    }
    let payload: usize = count * len * usize::from(rooms);
    let stats = store.0.begin_write().unwrap().stats().unwrap();
    (stats.allocated_pages() * 4096) as f64 / payload as f64
}

#[test]
fn history_takes_little_more_than_its_envelopes() {
    // Rooms of 60 KB, of 300 KB and of 2 MB, and large envelopes; keys, producers and redb's own pages included.
    for (rooms, count, len, each, most) in
        [(40, 200, 300, 10, 1.12), (8, 1_000, 300, 100, 1.09), (1, 6_000, 300, 500, 1.06), (4, 76, 65_536, 10, 1.10)]
    {
        let size = size_on_disk(rooms, count, len, each);
        assert!(size <= most, "{rooms} logs of {count} records of {len} bytes: {size}");
    }
}
