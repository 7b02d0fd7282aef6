//! What a client keeps of what it missed.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    core::id::{DeviceKey, Digest, RoomId, Seq, UnixMillis},
    seal::returning::EpochKeys,
};

/// A stretch of a room's log through which this device could not follow the group: members are asked for what opens it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapRecord {
    /// Format of this record: 2.
    pub format: u8,
    /// The newest record up to which the group is known: the one before the gap, or further on, where what a member gave led there.
    pub at: Seq,
    /// The chain value there.
    pub chain: Digest,
    /// The group's epoch there, and the group ([`crate::group::Onlooker::snapshot`]).
    pub epoch: u64,
    /// That group.
    pub onlooker: Bytes,
    /// How this device came in again.
    pub back: Option<BackRecord>,
    /// The name of what it asks.
    pub name: [u8; 32],
    /// Who answered, and what they gave: epochs of the gap, in ascending order.
    pub by: Option<DeviceKey>,
    /// That.
    pub keys: Vec<EpochKeys>,
    /// Whose answers led no further.
    pub passed: Vec<DeviceKey>,
    /// How often it has asked.
    pub asked: u32,
    /// How often everybody in the room was asked and nobody could lead it further.
    pub rounds: u32,
    /// When it asks next.
    pub next_ms: UnixMillis,
    /// Nothing more is asked: why.
    pub over: Option<Over>,
}

impl core::fmt::Debug for GapRecord {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("GapRecord")
            .field("epoch", &self.epoch)
            .field("back", &self.back)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

/// The change by which a device came in again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackRecord {
    /// Where it is in the log.
    pub seq: Seq,
    /// The chain value before it.
    pub chain: Digest,
    /// The epoch that it began.
    pub epoch: u64,
    /// SHA-256 of the context of that epoch's group ([`crate::group::Group::context`]).
    pub context: Digest,
}

/// Why a gap stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Over {
    /// The server does not keep all of it any more.
    Unkept,
    /// Nobody answered with what opens it.
    Unanswered,
}

/// The key of a gap behind that record.
#[must_use]
pub fn gap_key(room: RoomId, from: Seq) -> String {
    format!("gap/{room}/{from:016x}")
}
