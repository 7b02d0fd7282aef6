//! What has been logged and is not yet applied, by room.
//!
//! Two tables at most exist: the *active* one, which grows, and the *frozen* one, which is being applied and does not
//! change. A reader looks at the active table, the frozen one and redb, in this order. **The newest of them that knows the
//! room decides which life of the log there is**; the older ones contribute only if they speak of the same life, and only
//! records that follow. So a table that has been applied already, in part or whole, does no harm. A life that redb has and
//! the table's room has no more is over.
//!
//! The records of a batch lie together in one [`Block`]: a few allocations for each batch, and none for each message. A block
//! is kept until its table is applied; whatever is answered from it is copied, so that an answer never holds more than it
//! shows. Its space is used again ([`Space`]).

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;

use super::{
    hash::RoomMap,
    spare::{Lent, Spares},
};
use crate::{
    core::{
        chain, envelope, handshake,
        id::{AccessKey, ClientSeq, DeviceKey, Digest, LogId, ProducerId, RoomId, Seq, UnixMillis},
        log::{Append, EnvelopeHash, LogMeta, LogState, Producer, Stored},
    },
    engine::{
        rows::Publish,
        wal::{Entry, Lsn},
    },
};

/// Records that were logged together.
#[derive(Debug, Default)]
pub(super) struct Block {
    envelopes: Bytes,
    records: Lent<Logged>,
}

/// Space for blocks.
#[derive(Debug, Clone)]
pub(super) struct Space {
    envelopes: Arc<Spares<u8>>,
    records: Arc<Spares<Logged>>,
}

impl Space {
    /// Keeps of what one table had so many bytes of envelopes for the next, and half as much of what goes with them.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { envelopes: Spares::new(bytes_max), records: Spares::new(bytes_max / 2) }
    }

    /// Gives what is kept back to the system.
    pub(super) fn clear(&self) {
        self.envelopes.clear();
        self.records.clear();
    }

    /// Whether little is kept in a flood, and somebody should call [`Self::stock`]. It is told once.
    pub(super) fn runs_low(&self) -> bool {
        self.envelopes.runs_low() | self.records.runs_low()
    }

    /// Fetches what a flood will ask for next, so that it need not wait for the system.
    pub(super) fn stock(&self) {
        self.envelopes.stock(0);
        self.records.stock(Logged::BLANK);
    }

    /// A block for so many records with so many bytes of envelopes.
    pub(super) fn block(&self, records: usize, envelope_bytes: usize) -> BlockBuilder {
        BlockBuilder { envelopes: self.envelopes.take(envelope_bytes), records: self.records.take(records) }
    }
}

/// A logged record without its envelope.
#[derive(Debug, Clone, Copy)]
struct Logged {
    seq: Seq,
    chain: Digest,
    time_ms: UnixMillis,
    producer: Producer,
    client_seq: ClientSeq,
    hash: EnvelopeHash,
    /// Where its envelope lies in the block.
    start: u32,
    end: u32,
}

impl Logged {
    const BLANK: Self = Self {
        seq: 0,
        chain: Digest([0; 32]),
        time_ms: 0,
        producer: Producer { device: DeviceKey([0; 32]), id: ProducerId([0; 16]) },
        client_seq: 0,
        hash: [0; 8],
        start: 0,
        end: 0,
    };

    fn new(append: &Append, start: usize) -> Self {
        let Append { seq, chain, time_ms, producer, client_seq, hash, envelope, .. } = append;
        let (seq, chain, time_ms, producer, client_seq, hash) = (*seq, *chain, *time_ms, *producer, *client_seq, *hash);
        let place = |at: usize| u32::try_from(at).expect("a batch lies in one segment, which is far smaller than 4 GiB");
        let (start, end) = (place(start), place(start + envelope.len()));
        Self { seq, chain, time_ms, producer, client_seq, hash, start, end }
    }
}

/// A block in the making.
#[derive(Debug, Default)]
pub(super) struct BlockBuilder {
    envelopes: Lent<u8>,
    records: Lent<Logged>,
}

impl BlockBuilder {
    /// Adds a record; its number in the block.
    pub(super) fn push(&mut self, append: &Append) -> u32 {
        let number = u32::try_from(self.records.len()).expect("a batch has fewer records than bytes");
        self.records.push(Logged::new(append, self.envelopes.len()));
        self.envelopes.extend_from_slice(&append.envelope);
        number
    }

    /// The block; what follows is another one.
    pub(super) fn finish(&mut self) -> Arc<Block> {
        let Self { envelopes, records } = std::mem::take(self);
        Arc::new(Block { envelopes: Bytes::from_owner(envelopes), records })
    }
}

/// A record in its block.
#[derive(Debug, Clone)]
pub(super) struct Handle {
    block: Arc<Block>,
    number: u32,
}

impl Handle {
    /// A record alone, which shares the envelope.
    pub(super) fn alone(append: &Append) -> Self {
        let block = Block { envelopes: append.envelope.clone(), records: vec![Logged::new(append, 0)].into() };
        Self { block: Arc::new(block), number: 0 }
    }

    fn logged(&self) -> &Logged {
        self.block.records.get(index(self.number)).expect("the number was given when the record was put into the block")
    }

    pub(super) fn seq(&self) -> Seq {
        self.logged().seq
    }

    pub(super) fn chain(&self) -> Digest {
        self.logged().chain
    }

    pub(super) fn time_ms(&self) -> UnixMillis {
        self.logged().time_ms
    }

    pub(super) fn producer(&self) -> &Producer {
        &self.logged().producer
    }

    pub(super) fn client_seq(&self) -> ClientSeq {
        self.logged().client_seq
    }

    pub(super) fn publish(&self) -> Publish {
        let Logged { seq, time_ms, producer, client_seq, hash, .. } = *self.logged();
        Publish { producer, client_seq, time_ms, stored: Stored { seq, hash } }
    }

    pub(super) fn envelope(&self) -> &[u8] {
        let Logged { start, end, .. } = self.logged();
        self.block.envelopes.get(index(*start)..index(*end)).unwrap_or_default()
    }

    pub(super) fn envelope_len(&self) -> usize {
        let Logged { start, end, .. } = self.logged();
        index(end - start)
    }
}

fn index(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// What a table knows of one room.
#[derive(Debug, Default, Clone)]
pub(super) struct RoomTail {
    /// The life of the log; `None` when the room was deleted and not made again.
    pub(super) log: Option<LogId>,
    /// As it was made, when that happened within this table.
    pub(super) made: Option<LogMeta>,
    /// Records of the life `log`, dense and ascending.
    pub(super) records: Vec<Handle>,
    /// Their envelopes' bytes.
    pub(super) envelope_bytes: u64,
    /// The seq of the newest handshake record among them, or among those that were forgotten because redb has them; 0 when there
    /// is none.
    pub(super) handshake: Seq,
    /// The access keys that such records brought, each with its record, ascending.
    pub(super) keys: Vec<(Seq, AccessKey)>,
}

impl RoomTail {
    /// The newest seq and its chain value, if the table has a record.
    pub(super) fn head(&self) -> Option<(Seq, Digest)> {
        self.records.last().map(|record| (record.seq(), record.chain()))
    }

    /// The records after `after`.
    pub(super) fn after(&self, after: Seq) -> &[Handle] {
        let first = self.records.first().map_or(0, Handle::seq);
        let skip = usize::try_from((after + 1).saturating_sub(first)).unwrap_or(usize::MAX);
        self.records.get(skip..).unwrap_or_default()
    }
}

/// What an entry changes.
#[derive(Debug)]
pub(super) enum Change {
    /// A log is made.
    Create { room: RoomId, meta: Box<LogMeta> },
    /// The life `log` of a room gets the record of this number in the batch's block.
    Append { room: RoomId, log: LogId, number: u32 },
    /// The room's log is over.
    Delete { room: RoomId },
    /// These take the place of a device's key packages.
    Packages { device: DeviceKey, packages: Bytes },
}

/// Logged writes, by room.
#[derive(Debug, Default)]
pub(super) struct Memtable {
    pub(super) rooms: RoomMap<RoomTail>,
    /// Key packages that were stored, the latest of each device.
    pub(super) packages: HashMap<DeviceKey, Bytes>,
    /// The newest entry in it; 0 when empty.
    pub(super) last: Lsn,
    /// Memory that it takes, roughly, in bytes.
    pub(super) bytes: usize,
}

/// Memory of a record besides its envelope.
const RECORD_BYTES: usize = size_of::<Logged>() + size_of::<Handle>();
/// Memory of a device's packages besides their bytes.
const PACKAGES_BYTES: usize = 128;
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
            Entry::Create { room, meta } => self.create(room, meta),
            Entry::Append { log, append } => self.append(append.room, log, Handle::alone(&append)),
            Entry::Delete { room, .. } => self.delete(room),
            // Its own bytes, not those of the segment that was read.
            Entry::Packages { device, packages } => self.packages(device, Bytes::copy_from_slice(&packages)),
        }
    }

    /// As [`Memtable::insert`], of a change whose record lies in `block`.
    pub(super) fn change(&mut self, lsn: Lsn, change: Change, block: &Arc<Block>) {
        self.last = lsn;
        match change {
            Change::Create { room, meta } => self.create(room, *meta),
            Change::Append { room, log, number } => self.append(room, log, Handle { block: Arc::clone(block), number }),
            Change::Delete { room } => self.delete(room),
            Change::Packages { device, packages } => self.packages(device, packages),
        }
    }

    fn create(&mut self, room: RoomId, meta: LogMeta) {
        let tail = self.room(room);
        tail.log = Some(meta.log);
        tail.made = Some(meta);
    }

    fn append(&mut self, room: RoomId, log: LogId, record: Handle) {
        let len = record.envelope_len();
        self.bytes += RECORD_BYTES + len;
        let tail = self.room(room);
        tail.log = Some(log);
        tail.envelope_bytes += len as u64;
        if envelope::is_handshake(record.envelope()) {
            tail.handshake = record.seq();
            tail.keys.extend(handshake::new_access(record.envelope()).map(|key| (record.seq(), key)));
        }
        tail.records.push(record);
    }

    fn packages(&mut self, device: DeviceKey, packages: Bytes) {
        // What is replaced counts until the table is applied, or a loud device would put that off for ever.
        self.bytes += PACKAGES_BYTES + packages.len();
        self.packages.insert(device, packages);
    }

    /// Its records may share their blocks with others, so that their memory counts until the table is applied.
    fn delete(&mut self, room: RoomId) {
        let tail = self.room(room);
        *tail = RoomTail::default();
    }

    /// Forgets the records of `room` up to the head of `stored`, which redb has, and computes the chain values of the
    /// others from their digests. They were replayed, and so inserted one by one.
    pub(super) fn complete(&mut self, room: RoomId, stored: &LogState) {
        let Some(tail) = self.rooms.get_mut(&room) else { return };
        let kept = tail.after(stored.head).len();
        let forgotten = tail.records.drain(..tail.records.len() - kept);
        let envelope_bytes: usize = forgotten.map(|record| record.envelope_len()).sum();
        tail.envelope_bytes -= envelope_bytes as u64;
        let mut chain = stored.chain;
        for record in &mut tail.records {
            let logged = Arc::get_mut(&mut record.block).and_then(|block| block.records.first_mut());
            let logged = logged.expect("a record that was inserted alone shares its block with nobody");
            chain = chain::next_hashed(room, chain, logged.seq, logged.chain);
            logged.chain = chain;
        }
    }

    fn room(&mut self, room: RoomId) -> &mut RoomTail {
        self.rooms.entry(room).or_insert_with(|| {
            self.bytes += ROOM_BYTES;
            RoomTail::default()
        })
    }
}
