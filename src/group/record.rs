//! What a change of the group is in the room's log: commit, welcomes and sealed group info in one record, so that none of them
//! is ever there without the others.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{ladder::Former, policy::LinkId};
use crate::core::{
    chain,
    handshake::{self, HandshakeError, Parts, Trailer},
    id::{AccessKey, DeviceKey, Digest, Seq},
};

/// Leads from an epoch to the next. [`crate::core::handshake`] gives the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The epoch that it leads to: one more than the one it ends.
    pub epoch: u64,
    /// The seq of the last record that the committer had taken from the log, valid or not. Whoever publishes says it: it
    /// is the log's, not the commit's.
    pub after: Seq,
    /// What opens the room at the server from here on; present if, and only if, somebody goes.
    pub access: Option<AccessKey>,
    /// The commit, in an envelope of kind 4: a `Handshake` inside.
    pub commit: Bytes,
    /// For who is added: an MLS Welcome (RFC 9420 §12.4.3.1), which is sealed to their key packages.
    pub welcome: Option<Part>,
    /// For who comes in by a link, or reads what was before; present if, and only if, there is something of either.
    pub group_info: Option<SealedGroupInfo>,
}

/// The group's tree and context (RFC 9420 §12.4.3), sealed under a key of the new epoch, and that key for each live link; and the former epoch's
/// secrets, under another one. All but the first is postcard, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedGroupInfo {
    /// AES-256-GCM of a `GroupInfoBody`; absent when no link is live after the commit.
    #[serde(skip)]
    pub info: Option<Part>,
    /// The key, sealed to each link, in the order in which they are listed.
    pub keys: Vec<SealedKey>,
    /// AES-256-GCM of a [`super::Rung`]; empty when newcomers read from their join.
    pub rung: Bytes,
    /// AES-256-GCM of the window's keys; empty unless newcomers read the last days.
    pub window: Bytes,
}

/// A part of a record that only who comes in needs, or what stands for it in the record's outline: its length and its SHA-256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole(Bytes),
    /// That it is there.
    Hash(u32, Digest),
}

impl Part {
    pub(super) fn hash(&self) -> Digest {
        match self {
            Self::Whole(bytes) => chain::digest(bytes),
            Self::Hash(_, hash) => *hash,
        }
    }

    /// The bytes, which an outline does not have.
    pub(super) fn whole(&self) -> Option<&[u8]> {
        match self {
            Self::Whole(bytes) => Some(bytes),
            Self::Hash(..) => None,
        }
    }

    fn len(&self) -> u32 {
        match self {
            Self::Whole(bytes) => u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            Self::Hash(len, _) => *len,
        }
    }

    /// Its bytes, or in an outline its hash.
    fn encode(&self, is_outline: bool) -> Bytes {
        match self {
            Self::Whole(bytes) if !is_outline => bytes.clone(),
            _ => Bytes::copy_from_slice(&self.hash().0),
        }
    }

    /// Reads one of `len` bytes; `None` where there is none.
    fn decode(bytes: Bytes, len: u32, is_outline: bool) -> Option<Self> {
        match len {
            0 => None,
            _ if is_outline => Some(Self::Hash(len, Digest(bytes[..].try_into().ok()?))),
            _ => Some(Self::Whole(bytes)),
        }
    }
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
    /// The epoch itself, where newcomers read what was before.
    pub former: Option<Former>,
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
    /// [`SealedGroupInfo::hash`] of the record's.
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
    /// Not laid out as a record.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The sealed group info is not laid out as one.
    #[error("malformed group info")]
    GroupInfo,
    /// No epoch follows the last one.
    #[error("the record ends the last epoch that can be")]
    Epoch,
}

impl Record {
    /// The bytes that the log keeps.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let parts = [self.welcome.as_ref(), self.group_info.as_ref().and_then(|beside| beside.info.as_ref())];
        let is_outline = !self.is_whole();
        let [welcome, info] = parts.map(|part| part.map(|part| part.encode(is_outline)).unwrap_or_default());
        let [welcome_len, group_info_len] = parts.map(|part| part.map(Part::len).unwrap_or_default());
        let beside = self.group_info.as_ref().map(SealedGroupInfo::encode).unwrap_or_default();
        let beside_len = u32::try_from(beside.len()).unwrap_or(u32::MAX);
        let trailer = Trailer { after: self.after, access: self.access, welcome_len, group_info_len, beside_len, is_outline };
        [&self.commit[..], &welcome, &info, &beside, &trailer.to_bytes()].concat().into()
    }

    /// Reads one, or its outline.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn decode(bytes: &Bytes) -> Result<Self, RecordError> {
        let (header, trailer) = Trailer::parse(bytes)?;
        let Parts { commit, welcome, group_info, beside } = trailer.split(bytes);
        let info = Part::decode(group_info, trailer.group_info_len, trailer.is_outline);
        let group_info = match (info, beside.is_empty()) {
            (None, true) => None,
            (Some(_), true) => return Err(RecordError::GroupInfo),
            (info, false) => Some(SealedGroupInfo { info, ..SealedGroupInfo::decode(&beside).ok_or(RecordError::GroupInfo)? }),
        };
        Ok(Self {
            epoch: header.epoch.checked_add(1).ok_or(RecordError::Epoch)?,
            after: trailer.after,
            access: trailer.access,
            commit,
            welcome: Part::decode(welcome, trailer.welcome_len, trailer.is_outline),
            group_info,
        })
    }

    /// Names the change, whole or in outline: the digest of all that its committer made.
    #[must_use]
    pub fn hash(&self) -> Digest {
        Self { after: 0, ..self.clone() }.digest()
    }

    /// Whether it has everything that its committer made, and is not in outline.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let parts = self.welcome.iter().chain(self.group_info.iter().filter_map(|beside| beside.info.as_ref()));
        parts.into_iter().all(|part| part.whole().is_some())
    }

    /// What members are brought of it.
    #[cfg(test)]
    pub(super) fn outline(&self) -> Self {
        Self::decode(&handshake::outline(&self.encode())).expect("the outline of a record is one")
    }

    /// What the log's chain has of it ([`handshake::entry`]): whole, or in outline.
    #[must_use]
    pub fn digest(&self) -> Digest {
        handshake::entry(&self.encode())
    }
}

impl Handshake {
    pub(super) fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("a handshake encodes into memory")
    }
}

impl SealedGroupInfo {
    /// All but the group info itself.
    fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("a group info encodes into memory")
    }

    /// Reads what is spelled in the one way that there is.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let info: Self = postcard::from_bytes(bytes).ok()?;
        (info.encode() == bytes).then_some(info)
    }

    /// SHA-256 of the group info's SHA-256, if there is one, and of all else.
    pub(super) fn hash(&self) -> Digest {
        let info = self.info.as_ref().map(|info| info.hash().0);
        chain::digest(&[info.as_ref().map_or(&[][..], |hash| hash), &self.encode()].concat())
    }
}
