//! What has been logged and is not yet applied, by room.
//!
//! Two tables at most exist: the *active* one, which grows, and the *frozen* one, which is being applied and does not
//! change. A reader looks at the active table, the frozen one and redb, in this order. **The newest of them that knows the
//! room decides which life of the log there is**; the older ones contribute only if they speak of the same life, and only
//! records that follow. So a table that has been applied already, in part or whole, does no harm. A life that redb has and
//! the table's room has no more is over.

use std::collections::HashMap;

use crate::{
    core::{
        chain,
        id::{Digest, LogId, RoomId, Seq},
        log::{Append, LogMeta, LogState},
    },
    engine::wal::{Entry, Lsn},
};

/// What a table knows of one room.
#[derive(Debug, Default, Clone)]
pub(super) struct RoomTail {
    /// The life of the log; `None` when the room was deleted and not made again.
    pub(super) log: Option<LogId>,
    /// As it was made, when that happened within this table.
    pub(super) made: Option<LogMeta>,
    /// Records of the life `log`, dense and ascending.
    pub(super) records: Vec<Append>,
    /// Their envelopes' bytes.
    pub(super) envelope_bytes: u64,
}

impl RoomTail {
    /// The newest seq and its chain value, if the table has a record.
    pub(super) fn head(&self) -> Option<(Seq, Digest)> {
        self.records.last().map(|record| (record.seq, record.chain))
    }

    /// The records after `after`.
    pub(super) fn after(&self, after: Seq) -> &[Append] {
        let first = self.records.first().map_or(0, |record| record.seq);
        let skip = usize::try_from((after + 1).saturating_sub(first)).unwrap_or(usize::MAX);
        self.records.get(skip..).unwrap_or_default()
    }
}

/// Logged writes, by room.
#[derive(Debug, Default)]
pub(super) struct Memtable {
    pub(super) rooms: HashMap<RoomId, RoomTail>,
    /// The newest entry in it; 0 when empty.
    pub(super) last: Lsn,
    /// Memory that it takes, roughly, in bytes.
    pub(super) bytes: usize,
}

/// Memory of a record besides its envelope.
const RECORD_BYTES: usize = size_of::<Append>();
/// Memory of a room besides its records.
const ROOM_BYTES: usize = 256;

impl Memtable {
    pub(super) fn is_empty(&self) -> bool {
        self.last == 0
    }

    /// Adds an entry that is durable. Entries come in the order of their numbers, and make sense.
    pub(super) fn insert(&mut self, lsn: Lsn, entry: Entry) {
        self.last = lsn;
        match entry {
            Entry::Create { room, meta } => {
                let tail = self.room(room);
                tail.log = Some(meta.log);
                tail.made = Some(meta);
            }
            Entry::Append { log, append } => {
                self.bytes += RECORD_BYTES + append.envelope.len();
                let tail = self.room(append.room);
                tail.log = Some(log);
                tail.envelope_bytes += append.envelope.len() as u64;
                tail.records.push(append);
            }
            Entry::Delete { room, .. } => {
                let tail = self.room(room);
                tail.log = None;
                tail.made = None;
                tail.envelope_bytes = 0;
                let records = std::mem::take(&mut tail.records);
                self.bytes -= records.iter().map(|record| RECORD_BYTES + record.envelope.len()).sum::<usize>();
            }
        }
    }

    /// Forgets the records of `room` up to the head of `stored`, which redb has, and computes the chain values of the others.
    pub(super) fn complete(&mut self, room: RoomId, stored: &LogState) {
        let Some(tail) = self.rooms.get_mut(&room) else { return };
        let kept = tail.after(stored.head).len();
        let forgotten = tail.records.drain(..tail.records.len() - kept);
        let envelope_bytes: usize = forgotten.map(|record| record.envelope.len()).sum();
        tail.envelope_bytes -= envelope_bytes as u64;
        let mut chain = stored.chain;
        for record in &mut tail.records {
            chain = chain::next(room, chain, record.seq, &record.envelope);
            record.chain = chain;
        }
    }

    fn room(&mut self, room: RoomId) -> &mut RoomTail {
        self.rooms.entry(room).or_insert_with(|| {
            self.bytes += ROOM_BYTES;
            RoomTail::default()
        })
    }
}
