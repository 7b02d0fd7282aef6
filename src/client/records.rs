//! What a client keeps: keys and encodings of its storage. The storage is a map of byte strings; the native shell fills the
//! seam with a file, the browser with IndexedDB.
//!
//! | key | value (postcard) |
//! |---|---|
//! | `identity` | [`IdentityRecord`] |
//! | `room/ROOM` | [`RoomRecord`] |
//! | `group/ROOM` | [`GroupRecord`] |
//! | `past/ROOM` | [`PastRecord`], while it is read |
//! | `lost/ROOM` | [`LostRecord`], from falling behind the group to being back |
//! | `gap/ROOM/SEQ` | [`GapRecord`], until it is filled; SEQ as 16 hex digits: the newest record before it |
//! | `posting/ROOM` | [`PostingRecord`], where there is or was a drop-box |
//! | `log/ROOM/SEQ` | [`LogRecord`], SEQ as 16 hex digits |
//! | `out/NAME/NUMBER` | [`OutRecord`], NUMBER as 16 hex digits: its order in the outbox |
//! | `outbox/NAME` | [`OutboxRecord`]: NAME is the log's, or of the one for a room's commits ([`handshakes`]) |
//! | `invites/ROOM` | [`InvitesRecord`], while there are some |
//! | `contact/USER` | [`ContactRecord`] |
//! | `acquaintances` | [`AcquaintancesRecord`] |
//! | `packages` | [`PackagesRecord`] |
//! | `ticket` | [`super::TicketRecord`] |
//! | `token` | the login token, as it was given (no postcard) |
//! | `evidence/ROOM` | list of [`super::evidence::Contradicted`]: what the server said that contradicts |
//! | `former/ROOM/LIFE/SEQ` | [`LogRecord`] of a life of the log that the server no longer has |

mod gap;
mod inviting;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    core::{
        chain,
        id::{DeviceKey, Digest, LogId, MessageId, ProducerId, RoomId, Seq, UnixMillis},
    },
    group::{Change, Entrance, History, Roster, RungKey},
    seal::{
        body::{Body, Complaint, Content, Seen, SharedDropBox},
        devices::DeviceList,
        epoch::EpochSecrets,
        identity::{Certificate, IdentitySecrets, UserKey},
        message::Signed,
    },
};

pub use self::gap::{BackRecord, GapRecord, Over, gap_key};
pub use self::inviting::{
    ACQUAINTANCES_KEY, AcquaintancesRecord, Handed, InviteRecord, InvitesRecord, OfferRecord, PACKAGES_KEY, PackagesRecord,
    RequestRecord, RoomInvitation, ShelfRecord, invites_key,
};

/// Who this device is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityRecord {
    /// Format of this record: 2.
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
    /// The person's newest list of devices; none while there was one device only.
    pub devices: Option<DeviceList>,
    /// How far this device's inbox was read, in which life of its log.
    pub inbox: Option<(LogId, Seq)>,
}

/// A room on this device.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomRecord {
    /// Format of this record: 5.
    pub format: u8,
    /// Where it is: what its link carries.
    pub origin: String,
    /// What opens it at the server; another one once somebody went.
    pub access: [u8; 32],
    /// A change of the group when that was in force: the one that brought it, if this device knows; [`u64::MAX`] for now.
    pub access_at: Seq,
    /// What opened it before, newest first, at most [`FORMER_ACCESS_MAX`]: a server that was restored from a backup knows nothing newer.
    pub former: Vec<([u8; 32], Seq)>,
    /// Its link, if this device knows one that leads in.
    pub link: Option<KnownLink>,
    /// How far it is.
    pub stage: Stage,
    /// The log's life, once known.
    pub log: Option<LogId>,
    /// What this device reads of the log lies behind this seq: it came in with the next one.
    pub base: Seq,
    /// This device goes, and waits for another member to take it out.
    pub leaving: bool,
    /// When this device's leaf got its keys, by its own clock.
    pub renewed_ms: UnixMillis,
    /// It was made for two people: this is the other one.
    pub direct: Option<UserKey>,
    /// The change by which this device was added, until it was read.
    pub welcome: Option<WelcomeRecord>,
    /// Newcomers read so many days, as far as this device knows: what opens more is deleted.
    pub days: Option<u16>,
}

/// A change of a room's group that adds this device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WelcomeRecord {
    /// Where it is in the log.
    pub seq: Seq,
    /// SHA-256 of its record.
    pub record: Digest,
    /// Who made it.
    pub by: Who,
}

/// So many former access seeds are kept.
pub const FORMER_ACCESS_MAX: usize = 8;

/// A link into a room.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownLink {
    /// Its seed.
    pub seed: [u8; 32],
    /// Who made it.
    pub host: UserKey,
}

impl core::fmt::Debug for KnownLink {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("KnownLink").field("host", &self.host).finish_non_exhaustive()
    }
}

/// This device's place in a room's group.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// Format of this record: 2.
    pub format: u8,
    /// The group ([`crate::group::Group::snapshot`]).
    pub snapshot: Vec<u8>,
    /// The log has not ordered yet how this device comes in.
    pub joining: Option<JoiningRecord>,
    /// What this device wants of the group and has not made a commit of.
    pub wanted: Option<Change>,
    /// The newest change that is in the snapshot: should its log record be missing, it is this.
    pub last: Option<(Seq, Digest, ChangeRecord)>,
}

/// What can be read of a log besides the epoch that this device is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastRecord {
    /// Format of this record: 2.
    pub format: u8,
    /// What precedes this seq; [`u64::MAX`] while nobody knows.
    pub until: Seq,
    /// The changes of the group that were taken, by the digests of their records, oldest first; while they are looked for, newest first.
    pub changes: Vec<(Digest, ChangeRecord)>,
    /// Where this device stands in the room's ladder, while it goes down.
    pub climb: Option<ClimbRecord>,
}

/// An epoch of the past that a rung has opened, and whose own change is to be found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClimbRecord {
    /// Where in the log the change lies that began it, if no rubbish lies there.
    pub at: Seq,
    /// SHA-256 of that change's record.
    pub began: Digest,
    /// Its number.
    pub epoch: u64,
    /// Its authenticator.
    pub authenticator: Digest,
    /// Its secrets.
    pub secrets: EpochSecrets,
    /// Who was in it.
    pub roster: Roster,
    /// What the room was called.
    pub title: String,
    /// What opens the rungs from that change's on, where newcomers read the last days: what they do not open stays closed.
    pub keys: Option<Vec<RungKey>>,
}

/// A place in a room's group that this device lost, and how it asks for it. Members that were in its last epoch can open what it asks.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostRecord {
    /// Format of this record: 1.
    pub format: u8,
    /// The last epoch that it was in.
    pub epoch: u64,
    /// That epoch's authenticator.
    pub authenticator: Digest,
    /// The public X-Wing key of that epoch.
    pub xwing: Bytes,
    /// The name of what it asks.
    pub name: [u8; 32],
    /// The other devices of that epoch and their inboxes; whom to ask first comes first.
    pub members: Vec<(DeviceKey, RoomId)>,
    /// How often it has asked.
    pub asked: u32,
    /// When it asks next.
    pub next_ms: UnixMillis,
    /// What it wanted of the group.
    pub wanted: Option<Change>,
    /// The change that it could not follow, if others may.
    pub complaint: Option<Complaint>,
}

impl core::fmt::Debug for LostRecord {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("LostRecord").field("epoch", &self.epoch).field("asked", &self.asked).finish_non_exhaustive()
    }
}

/// A commit by which this device comes in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoiningRecord {
    /// The record, as the log has it or is given it.
    pub record: Bytes,
    /// How it comes in.
    pub entrance: Entrance,
}

impl core::fmt::Debug for GroupRecord {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("GroupRecord").field("snapshot", &self.snapshot.len()).finish_non_exhaustive()
    }
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

/// A person whose words were compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContactRecord {
    /// Format of this record: 1.
    pub format: u8,
    /// What they were called then.
    pub name: String,
    /// Their devices that were seen since.
    pub devices: Vec<DeviceKey>,
    /// When that was.
    pub verified_ms: UnixMillis,
}

/// How far a room is on this device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Being made: the server may not have it yet.
    Creating,
    /// On the way in.
    Invited,
    /// In use.
    Joined,
    /// Deleted here; the server has not confirmed yet.
    Deleting,
    /// Deleted by who made it.
    Deleted,
    /// This device was taken out of the group.
    Removed,
    /// A member has added this device: it comes in with the change that did.
    Added,
    /// It was added, and that change does not let it in.
    Missed,
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
    /// What it is.
    pub entry: Entry,
}

/// What a record of a log turned out to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// A member's message.
    Message(OpenedRecord),
    /// A change of the group.
    Change(ChangeRecord),
    /// A change that this device had taken in a former life of the log.
    Known,
    /// A change that breaks a rule: every member skips it.
    Invalid,
    /// Of an epoch that this device was not in.
    Sealed,
    /// Such a message, and this device's own.
    Sent(SentRecord),
    /// Nobody in the room wrote it.
    Foreign,
    /// A post through the drop-box, by somebody who is no member.
    Post(PostRecord),
    /// A post whose key this device does not have, or not yet: the envelope.
    Locked(Bytes),
    /// A change that breaks a rule, and has made the server ask for a key that nobody in the group has brought.
    Usurped,
}

/// A post, as somebody with the drop-box's address made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostRecord {
    /// The envelope's message id: the same post may be in the log again.
    pub message: MessageId,
    /// What its author calls itself.
    pub name: String,
    /// What it says.
    pub content: Content,
}

/// What this device knows of a room's drop-box.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PostingRecord {
    /// Format of this record: 0.
    pub format: u8,
    /// What opens posts, in the order of the log.
    pub keys: Vec<SharedDropBox>,
    /// Keys up to this counter are of a drop-box that was closed.
    pub closed: u64,
    /// Keys up to this counter are known to somebody who went.
    pub void: u64,
    /// This person hosts the drop-box that was opened with this counter, also while it has no key that is in force.
    pub hosted: Option<u64>,
    /// This device has closed it, and the server has not said yet that it knows.
    pub closing: bool,
}

impl core::fmt::Debug for PostingRecord {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("PostingRecord").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

/// A message of this device that it cannot open any more, as its outbox had it. Nothing of it can be compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentRecord {
    /// This device.
    pub sender: Who,
    /// The envelope's message id.
    pub message: MessageId,
    /// What it says.
    pub content: Content,
}

/// A message as its sender signed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenedRecord {
    /// The sender.
    pub sender: Who,
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
    /// How the sender signed it.
    pub signed: Signed,
}

impl OpenedRecord {
    /// Whether its sender said this in that room: what somebody who does not have the room's keys can check.
    #[must_use]
    pub fn is_signed(&self, room: RoomId) -> bool {
        let Self { sender, message, session, counter, previous, seen, content, signed } = self;
        let body = Body { session: *session, counter: *counter, previous: *previous, seen: *seen, content: content.clone() };
        signed.verifies(room, *message, sender.device, &body)
    }
}

/// A device of a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Who {
    /// The device.
    pub device: DeviceKey,
    /// Whose.
    pub user: UserKey,
}

/// A change of the group, as every member applies it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeRecord {
    /// Who made it.
    pub by: Who,
    /// The epoch that it began.
    pub epoch: u64,
    /// That epoch's authenticator (RFC 9420 §8.7) and secrets, unless it took this device out: as long as this device keeps what was said, it
    /// keeps what opens it, for the person's next device, or as long as newcomers read it where they read the last days.
    pub begun: Option<(Digest, Option<EpochSecrets>)>,
    /// Whose leaves are others than before.
    pub seats: Vec<(u32, Option<Who>)>,
    /// Who came in, by a link or because the maker added them.
    pub joined: Vec<Who>,
    /// What those are called who were not known before.
    pub names: Vec<(Who, String)>,
    /// Who was removed.
    pub gone: Vec<Who>,
    /// Who had said that they go.
    pub left: Vec<Who>,
    /// What the room is called since.
    pub title: String,
    /// What newcomers read since, where that is something else than before.
    pub history: Option<History>,
}

impl ChangeRecord {
    /// Whether the device is not in the group any more.
    #[must_use]
    pub fn took_out(&self, device: DeviceKey) -> bool {
        self.gone.iter().chain(&self.left).any(|who| who.device == device)
    }

    /// Whether anybody is not in the group any more: then every link has ended, and what opened the room.
    #[must_use]
    pub const fn took_anybody_out(&self) -> bool {
        !self.gone.is_empty() || !self.left.is_empty()
    }
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
    /// Its number. Whatever the order in which it becomes known, what is sealed again follows the last one.
    pub acked_seq: u64,
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
    /// Once set, a retry sends these very bytes.
    pub sealed: Option<Sealed>,
    /// It is not tried any more: why, in words.
    pub failed: Option<String>,
}

/// A message as it is published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Its client seq.
    pub client_seq: u64,
    /// The seq of the newest change of the group that this device had taken then.
    pub handshake: Seq,
    /// The bytes.
    pub envelope: Bytes,
}

/// What an outbox sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Letter {
    /// A message to the room.
    Content(Content),
    /// An envelope that is sealed already: a commit, an invitation.
    Envelope(Bytes),
}

/// What a backup keeps (inside [`crate::seal::backup`]).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupRecord {
    /// Format of this record: 3.
    pub format: u8,
    /// The person's seed.
    pub user: [u8; 32],
    /// The person's name.
    pub name: String,
    /// The person's devices.
    pub devices: Vec<Certificate>,
    /// The rooms.
    pub rooms: Vec<RoomBackup>,
}

/// What brings a room to another device of the same person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomBackup {
    /// Its link.
    pub link: String,
    /// What may be read of the log lies behind this seq.
    pub base: Seq,
    /// The changes of the group since then, by the digests of their records.
    pub changes: Vec<(Digest, ChangeRecord)>,
}

/// The key of what an earlier login left for the next one.
pub const TICKET_KEY: &str = "ticket";
/// The key of the login token.
pub const TOKEN_KEY: &str = "token";
/// The key of a room's record.
#[must_use]
pub fn room_key(room: RoomId) -> String {
    format!("room/{room}")
}

/// The key of this device's place in a room's group.
#[must_use]
pub fn group_key(room: RoomId) -> String {
    format!("group/{room}")
}

/// The name of the outbox for a room's commits.
#[must_use]
pub fn handshakes(room: RoomId) -> RoomId {
    let hash = chain::digest(&[&b"waxwing handshakes v1"[..], &room.0].concat());
    RoomId(hash.0.first_chunk().copied().unwrap_or_default())
}

/// The key of what can be read of a room's past.
#[must_use]
pub fn past_key(room: RoomId) -> String {
    format!("past/{room}")
}

/// The key of a place that this device lost.
#[must_use]
pub fn lost_key(room: RoomId) -> String {
    format!("lost/{room}")
}

/// The key of what is known of a room's drop-box.
#[must_use]
pub fn posting_key(room: RoomId) -> String {
    format!("posting/{room}")
}

/// The key of a record of a log.
#[must_use]
pub fn log_key(room: RoomId, seq: Seq) -> String {
    format!("log/{room}/{seq:016x}")
}

/// The key of what is remembered of a person.
#[must_use]
pub fn contact_key(user: UserKey) -> String {
    format!("contact/{user}")
}

/// The key of what a room's server said that contradicts.
#[must_use]
pub fn evidence_key(room: RoomId) -> String {
    format!("evidence/{room}")
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
