//! What a change of the group is in the room's log: commit, welcomes and sealed group info in one record, so that none of them
//! is ever there without the others.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::policy::LinkId;
use crate::core::{
    chain,
    id::{DeviceKey, Digest},
};

/// Largest record, in bytes.
pub const RECORD_LEN_MAX: usize = 3 << 20;
/// Format of a record.
const FORMAT: u8 = 1;

/// Leads from an epoch to the next. postcard, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    format: u8,
    /// The epoch that it leads to: one more than the one it ends.
    pub epoch: u64,
    /// The commit, in an envelope of kind 4: a [`Handshake`] inside.
    pub commit: Bytes,
    /// For who is added: an MLS Welcome (RFC 9420 §12.4.3.1), which is sealed to their key packages.
    pub welcome: Option<Bytes>,
    /// For who comes in by a link; present if, and only if, one is live after the commit.
    pub group_info: Option<SealedGroupInfo>,
}

/// The group's tree and context (RFC 9420 §12.4.3), sealed under a key of the new epoch, and that key for each live link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedGroupInfo {
    /// The key, sealed to each link, in the order in which they are listed.
    pub keys: Vec<SealedKey>,
    /// AES-256-GCM of a [`GroupInfoBody`].
    pub info: Bytes,
}

/// A group info's key, for who holds a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedKey {
    /// Which.
    pub link: LinkId,
    /// HPKE, X-Wing: `enc`.
    pub enc: Bytes,
    /// HPKE, X-Wing: the ciphertext.
    pub ciphertext: Bytes,
}

/// What a joiner needs of the group. postcard, in this order, then zeroes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GroupInfoBody {
    /// MLS GroupInfo with the ratchet tree and the external key.
    pub group_info: Bytes,
    /// The epoch's X25519 key: towards it the link's secret is proven.
    pub x25519: [u8; 32],
    /// The epoch's X-Wing key: to it the joiner's commit is sealed.
    pub xwing: Bytes,
}

impl GroupInfoBody {
    pub(super) fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("a group info encodes into memory")
    }
}

/// What is sealed and signed inside the commit's envelope. postcard, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Handshake {
    /// An MLS PublicMessage (RFC 9420 §6.2) with the commit.
    pub commit: Bytes,
    /// MLS PublicMessages with the proposals of those who leave.
    pub leaves: Vec<Bytes>,
    /// SHA-256 of the record's welcome.
    pub welcome: Option<Digest>,
    /// SHA-256 of the record's encoded group info.
    pub group_info: Option<Digest>,
    /// When the committer is not a member.
    pub joiner: Option<Joiner>,
}

/// A device that comes in by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Joiner {
    /// Which.
    pub device: DeviceKey,
    /// The link that it proves, and the encapsulation by which it does; none when it takes its own place again.
    pub link: Option<(LinkId, [u8; 32])>,
}

/// Why bytes are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// More bytes than any record has.
    #[error("a record of {0} bytes is too large")]
    TooLarge(usize),
    /// Not laid out as a record.
    #[error("malformed record")]
    Malformed,
    /// A format that this build does not know.
    #[error("record format {0} is not known")]
    Format(u8),
}

impl Record {
    pub(super) const fn new(epoch: u64, commit: Bytes, welcome: Option<Bytes>, group_info: Option<SealedGroupInfo>) -> Self {
        Self { format: FORMAT, epoch, commit, welcome, group_info }
    }

    /// The bytes that the log keeps.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        postcard::to_allocvec(self).expect("a record encodes into memory").into()
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > RECORD_LEN_MAX {
            return Err(RecordError::TooLarge(bytes.len()));
        }
        match bytes.first() {
            Some(&FORMAT) => {}
            Some(&other) => return Err(RecordError::Format(other)),
            None => return Err(RecordError::Malformed),
        }
        match postcard::take_from_bytes::<Self>(bytes) {
            Ok((record, [])) => Ok(record),
            _ => Err(RecordError::Malformed),
        }
    }

    /// Names the record: SHA-256 of its encoding.
    #[must_use]
    pub fn hash(&self) -> Digest {
        chain::digest(&self.encode())
    }
}

impl Handshake {
    pub(super) fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("a handshake encodes into memory")
    }
}

impl SealedGroupInfo {
    pub(super) fn hash(&self) -> Digest {
        chain::digest(&postcard::to_allocvec(self).expect("a group info encodes into memory"))
    }
}
