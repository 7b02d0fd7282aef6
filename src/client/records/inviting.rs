//! What a client keeps of how people are brought into rooms, and what it says to those who are.

use serde::{Deserialize, Serialize};

use super::{ChangeRecord, KnownLink, Who};
use crate::{
    core::{
        frame,
        id::{Digest, RoomId, Seq, UnixMillis},
    },
    group::{KeyPackage, Suite},
    seal::identity::UserKey,
};

/// Devices that are being invited into a room.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitesRecord {
    /// Format of this record: 1.
    pub format: u8,
    /// Each device once.
    pub invites: Vec<InviteRecord>,
}

/// A device that is being invited: until it is told where the change is that added it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteRecord {
    /// The device.
    pub who: Who,
    /// What the server gave for it; none yet: to be asked for.
    pub offer: Option<OfferRecord>,
}

/// What a device is added with, and told with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferRecord {
    /// Its key package: nobody else gets it.
    pub package: KeyPackage,
    /// Its X-Wing key.
    pub inbox: Vec<u8>,
    /// The newest record of the room's log then: what adds the device lies behind it.
    pub since: Seq,
}

/// People, besides those in the rooms.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcquaintancesRecord {
    /// Format of this record: 1.
    pub format: u8,
    /// Who may bring this device into rooms without being asked: whom this person has invited, written to or accepted.
    pub known: Vec<UserKey>,
    /// Invitations of others, which wait for an answer.
    pub requests: Vec<RequestRecord>,
}

/// An invitation that waits for an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// Who invites.
    pub by: Who,
    /// What they call themselves.
    pub name: String,
    /// Where to.
    pub invitation: RoomInvitation,
}

/// What one device says to another that it may not know (inside [`crate::seal::invitation::Contact`]). postcard, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Handed {
    /// It was added to a room.
    Room(Box<RoomInvitation>),
    /// To the person's own other devices: the sender is one of them.
    Device,
}

/// How to come into a room into which one was added.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomInvitation {
    /// The room.
    pub room: RoomId,
    /// What it is called.
    pub title: String,
    /// With whom the sender shares it, if it was made for two people.
    pub direct: Option<UserKey>,
    /// What opens it at the server.
    pub access: [u8; 32],
    /// A change of the group when that was in force.
    pub access_at: Seq,
    /// The change that added the recipient.
    pub seq: Seq,
    /// SHA-256 of its record.
    pub record: Digest,
    /// A link that leads in, should the key package's private half be gone.
    pub link: Option<KnownLink>,
    /// For the sender's own devices: what may be read of the log lies behind this seq.
    pub base: Seq,
    /// For the sender's own devices: the changes of the group since then, by the digests of their records.
    pub changes: Vec<(Digest, ChangeRecord)>,
}

impl core::fmt::Debug for RoomInvitation {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("RoomInvitation").field("room", &self.room).field("seq", &self.seq).finish_non_exhaustive()
    }
}

/// The key packages of this device: with one of them others add it to a room while it is away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackagesRecord {
    /// Format of this record: 2.
    pub format: u8,
    /// Of each suite once.
    pub shelves: Vec<ShelfRecord>,
}

/// Those for groups of one suite.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShelfRecord {
    /// Which.
    pub suite: Suite,
    /// Their private halves ([`crate::group::KeyPackages::snapshot`]).
    pub keys: Vec<u8>,
    /// When all were made anew the last time; 0 when none were made.
    pub made_ms: UnixMillis,
    /// The last resort as it was published, until it is used.
    pub resort: Option<frame::KeyPackage>,
    /// The server has said that it took it.
    pub resort_taken: bool,
}

impl core::fmt::Debug for ShelfRecord {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ShelfRecord").field("made_ms", &self.made_ms).finish_non_exhaustive()
    }
}

/// The key of [`AcquaintancesRecord`].
pub const ACQUAINTANCES_KEY: &str = "acquaintances";

/// The key of [`PackagesRecord`].
pub const PACKAGES_KEY: &str = "packages";

/// The key of the devices that are being invited into a room.
#[must_use]
pub fn invites_key(room: RoomId) -> String {
    format!("invites/{room}")
}
