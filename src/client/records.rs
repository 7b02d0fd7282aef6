//! What a client keeps: keys and encodings of its storage. The storage is a map of byte strings; the native shell fills the
//! seam with a file, the browser with IndexedDB.
//!
//! | key | value (postcard) |
//! |---|---|
//! | `identity` | [`IdentityRecord`] |
//! | `room/ROOM` | [`RoomRecord`] |
//! | `log/ROOM/SEQ` | [`LogRecord`], SEQ as 16 hex digits |
//! | `out/LOG/NUMBER` | [`OutRecord`], NUMBER as 16 hex digits: its order in the outbox |
//! | `outbox/LOG` | [`OutboxRecord`] |
//! | `ticket` | [`super::TicketRecord`] |
//! | `former/ROOM/LIFE/SEQ` | [`LogRecord`] of a life of the log that the server no longer has |

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    core::id::{Digest, LogId, MessageId, ProducerId, RoomId, Seq, UnixMillis},
    seal::{
        body::{Content, Seen},
        identity::{Certificate, IdentitySecrets},
        keyring::Keyring,
    },
};

/// Who this device is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityRecord {
    /// Format of this record: 1.
    pub format: u8,
    /// The seeds.
    pub secrets: IdentitySecrets,
    /// The certificate's last moment.
    pub not_after_ms: UnixMillis,
    /// The certificate's counter.
    pub counter: u32,
    /// What the person wants to be called.
    pub name: String,
    /// Other devices of the same person, as learnt from their joins or from a backup.
    pub own_devices: Vec<Certificate>,
    /// How far this device's inbox was read, in which life of its log.
    pub inbox: Option<(LogId, Seq)>,
}

/// A room on this device.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomRecord {
    /// Format of this record: 1.
    pub format: u8,
    /// What its link carries.
    pub origin: String,
    /// The invitation's X-Wing seed.
    pub invitation: [u8; 32],
    /// The certificate hash that the link names.
    pub issuer: Digest,
    /// The keys, once known.
    pub keyring: Option<Keyring>,
    /// How far it is.
    pub stage: Stage,
    /// The log's life, once known.
    pub log: Option<LogId>,
}

impl core::fmt::Debug for RoomRecord {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("RoomRecord").field("stage", &self.stage).finish_non_exhaustive()
    }
}

impl core::fmt::Debug for BackupRecord {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("BackupRecord").field("rooms", &self.rooms.len()).finish_non_exhaustive()
    }
}

/// How far a room is on this device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Being made: the server may not have it yet.
    Creating,
    /// The keys are not known yet.
    Invited,
    /// In use.
    Joined,
    /// Deleted here; the server has not confirmed yet.
    Deleting,
    /// Deleted by who made it.
    Deleted,
}

/// One record of a log, opened and verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// When the server stored it. Not authenticated.
    pub time_ms: UnixMillis,
    /// SHA-256 of the envelope.
    pub digest: Digest,
    /// The chain value after it.
    pub chain: Digest,
    /// What it is; `None`: it did not open or verify.
    pub opened: Option<OpenedRecord>,
}

/// A message as its sender signed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenedRecord {
    /// The sender's leaf: the seq of its join (this record's own, for a join).
    pub leaf: u64,
    /// The envelope's message id.
    pub message: MessageId,
    /// The sender's session.
    pub session: ProducerId,
    /// The number in that session.
    pub counter: u64,
    /// The hash of the envelope before it.
    pub previous: Digest,
    /// What the sender had seen.
    pub seen: Seen,
    /// What it says.
    pub content: Content,
}

/// The outbox of one log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboxRecord {
    /// Its producer id, and the session id of its messages.
    pub producer: ProducerId,
    /// The client seq of the next message to be sealed.
    pub next: u64,
    /// SHA-256 of the last envelope sealed; zero when none was.
    pub previous: Digest,
    /// SHA-256 of the last envelope acked; zero when none was. What is sealed again follows it.
    pub acked: Digest,
}

/// A message that is not acked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutRecord {
    /// Its message id, and its name for the person.
    pub message: MessageId,
    /// When it was written.
    pub time_ms: UnixMillis,
    /// What it says.
    pub letter: Letter,
    /// Its client seq and sealed bytes: once set, a retry sends these very bytes.
    pub sealed: Option<(u64, Bytes)>,
    /// It is not tried any more: why, in words.
    pub failed: Option<String>,
}

/// What an outbox sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Letter {
    /// A message to the room.
    Content(Content),
    /// An envelope that is sealed already: a keyring.
    Envelope(Bytes),
}

/// What a backup keeps (inside [`crate::seal::backup`]).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupRecord {
    /// Format of this record: 1.
    pub format: u8,
    /// The person's seed.
    pub user: [u8; 32],
    /// The person's name.
    pub name: String,
    /// The person's devices.
    pub devices: Vec<Certificate>,
    /// The rooms: origin and keys.
    pub rooms: Vec<(String, Keyring)>,
}

/// The key of what an earlier login left for the next one.
pub const TICKET_KEY: &str = "ticket";

/// The key of a room's record.
#[must_use]
pub fn room_key(room: RoomId) -> String {
    format!("room/{room}")
}

/// The key of a record of a log.
#[must_use]
pub fn log_key(room: RoomId, seq: Seq) -> String {
    format!("log/{room}/{seq:016x}")
}

/// The key of a record of a former life of a log.
#[must_use]
pub fn former_key(room: RoomId, life: LogId, seq: Seq) -> String {
    format!("former/{room}/{life}/{seq:016x}")
}

/// The key of an outbox.
#[must_use]
pub fn outbox_key(log: RoomId) -> String {
    format!("outbox/{log}")
}

/// The key of a message in an outbox.
#[must_use]
pub fn out_key(log: RoomId, number: u64) -> String {
    format!("out/{log}/{number:016x}")
}

/// Encodes a record.
#[must_use]
pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    postcard::to_allocvec(record).expect("a record encodes into memory")
}
