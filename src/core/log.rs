//! What a log consists of, as the engine stores it and the room's owner loads it.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    access::FormerKeys,
    envelope,
    frame::{Item, LogKind, Position},
    handshake,
    id::{AccessKey, ClientSeq, DeviceKey, Digest, LogId, ProducerId, RoomId, Seq, UnixMillis},
};

/// What was decided when the log was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredMeta", into = "StoredMeta")]
pub struct LogMeta {
    /// The log's life.
    pub log: LogId,
    /// Room or inbox.
    pub kind: LogKind,
    /// What opens it: as it was made, or as its newest handshake record that brought one says.
    pub access: AccessKey,
    /// Who made it, and may delete it.
    pub creator: DeviceKey,
    /// When it was made.
    pub created_ms: UnixMillis,
}

/// How a [`LogMeta`] is stored.
#[derive(Serialize, Deserialize)]
struct StoredMeta {
    log: LogId,
    kind: LogKind,
    access: AccessKey,
    creator: DeviceKey,
    /// Zero; in older stores the epoch of the log's messages, which is the clients' alone now.
    reserved: u64,
    created_ms: UnixMillis,
}

impl From<StoredMeta> for LogMeta {
    fn from(StoredMeta { log, kind, access, creator, created_ms, .. }: StoredMeta) -> Self {
        Self { log, kind, access, creator, created_ms }
    }
}

impl From<LogMeta> for StoredMeta {
    fn from(LogMeta { log, kind, access, creator, created_ms }: LogMeta) -> Self {
        Self { log, kind, access, creator, reserved: 0, created_ms }
    }
}

/// Where the log stands on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogState {
    /// The newest seq; 0 when empty.
    pub head: Seq,
    /// The chain value at `head`.
    pub chain: Digest,
    /// The oldest seq kept.
    pub floor: Seq,
    /// The chain value at `floor − 1`.
    pub floor_chain: Digest,
    /// Envelope bytes kept.
    pub bytes: u64,
    /// The seq of the newest handshake record (an envelope of kind 4); 0 when there was none. It may lie below the floor. Not
    /// part of the encoding: engines store it beside the others, where it is not 0, as older logs have none.
    #[serde(skip)]
    pub handshake: Seq,
}

impl LogState {
    /// An empty log's.
    #[must_use]
    pub fn empty(room: RoomId) -> Self {
        let chain = super::chain::start(room);
        Self { head: 0, chain, floor: 1, floor_chain: chain, bytes: 0, handshake: 0 }
    }
}

/// How many of a producer's latest publishes can still be recognised.
pub const PRODUCER_RING: usize = 64;

/// What the log remembers of one outbox: enough to recognise a retry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProducerState {
    /// The last number stored.
    pub last: ClientSeq,
    /// When.
    pub time_ms: UnixMillis,
    /// The latest publishes, oldest first; the newest has number `last`.
    pub ring: VecDeque<Stored>,
}

/// The first bytes of an envelope's SHA-256. They tell a client's own retry from its own other bytes; a client that makes two
/// envelopes with one hash is told that the second was stored as the first, and fools nobody but itself.
pub type EnvelopeHash = [u8; 8];

/// One recognisable publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Its place in the log.
    pub seq: Seq,
    /// Of its envelope.
    pub hash: EnvelopeHash,
}

/// Names an outbox within a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Producer {
    /// The authenticated device.
    pub device: DeviceKey,
    /// Its outbox.
    pub id: ProducerId,
}

/// A log as its owner loads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedLog {
    /// As made.
    pub meta: LogMeta,
    /// As it stands.
    pub state: LogState,
    /// What opened it before.
    pub former: FormerKeys,
    /// Its outboxes.
    pub producers: Vec<(Producer, ProducerState)>,
}

impl LoadedLog {
    /// The position that answers state.
    #[must_use]
    pub const fn position(&self) -> Position {
        Position { log: self.meta.log, head: self.state.head, floor: self.state.floor }
    }
}

/// One record to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    /// The log.
    pub room: RoomId,
    /// The next seq: exactly one more than the last one submitted for this log.
    pub seq: Seq,
    /// The chain value after it.
    pub chain: Digest,
    /// When it was accepted.
    pub time_ms: UnixMillis,
    /// Whose it is.
    pub producer: Producer,
    /// Its number there.
    pub client_seq: ClientSeq,
    /// Of the envelope.
    pub hash: EnvelopeHash,
    /// The sealed bytes.
    pub envelope: Bytes,
}

impl Append {
    /// Whether it is a handshake record: an envelope of kind 4.
    #[must_use]
    pub fn is_handshake(&self) -> bool {
        envelope::is_handshake(&self.envelope)
    }

    /// The access key that it brings, if it is a handshake record that brings one.
    #[must_use]
    pub fn new_access(&self) -> Option<AccessKey> {
        handshake::new_access(&self.envelope)
    }
}

/// One stored record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place.
    pub seq: Seq,
    /// When it was accepted.
    pub time_ms: UnixMillis,
    /// The sealed bytes.
    pub envelope: Bytes,
}

impl Record {
    /// What members are brought of it.
    #[must_use]
    pub fn item(&self) -> Item {
        Item { time_ms: self.time_ms, envelope: handshake::outline(&self.envelope) }
    }
}

/// Consecutive records and where the log stood when they were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Records {
    /// Where the log stood.
    pub state: LogState,
    /// The chain value before the first record (at the cursor when there is none).
    pub before: Digest,
    /// The records, ascending.
    pub records: Vec<Record>,
}

impl ProducerState {
    /// Notes that number `last + 1` was stored at `seq`.
    pub fn push(&mut self, stored: Stored, time_ms: UnixMillis) {
        self.last += 1;
        self.time_ms = time_ms;
        if self.ring.len() == PRODUCER_RING {
            self.ring.pop_front();
        }
        self.ring.push_back(stored);
    }

    /// The stored publish with this number, if it is still in the ring.
    #[must_use]
    pub fn find(&self, client_seq: ClientSeq) -> Option<Stored> {
        let back = usize::try_from(self.last.checked_sub(client_seq)?).ok()?;
        self.ring.get(self.ring.len().checked_sub(back + 1)?).copied()
    }
}
