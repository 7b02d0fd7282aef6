//! A change of a room's group, as the log keeps it: one record, which begins like every envelope, so that the server orders it without
//! knowing what it does.
//!
//! | length | field |
//! |---|---|
//! | … | the commit's envelope, kind 4, beginning with the 48-byte header |
//! | … | the welcome for who is added; may be empty |
//! | … | the sealed group info for who comes in by a link; may be empty |
//! | 8 | `after`, u64 LE: the seq of the last record of kind 4 that the committer had processed; 0 when none |
//! | 32 | the room's new access key; zero when it stays |
//! | 4 | length of the welcome, u32 LE |
//! | 4 | length of the group info, u32 LE |

use bytes::Bytes;

use super::{
    envelope::{EnvelopeError, Header, Kind, is_handshake},
    id::{AccessKey, Seq},
};

/// Bytes of what follows the three parts.
pub const TRAILER_LEN: usize = 48;
/// Largest envelope of a commit, in bytes.
pub const COMMIT_LEN_MAX: usize = 1 << 20;
/// Largest record, in bytes.
pub const RECORD_LEN_MAX: usize = 3 << 20;

/// What ends a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// The seq of the last record of kind 4 that the committer had processed; 0 when none.
    pub after: Seq,
    /// What opens the room from here on, if it changes.
    pub access: Option<AccessKey>,
    /// Bytes of the welcome.
    pub welcome_len: u32,
    /// Bytes of the sealed group info.
    pub group_info_len: u32,
}

/// Why bytes are no record of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// More bytes than any record has.
    #[error("a record of {0} bytes exceeds {RECORD_LEN_MAX}")]
    TooLarge(usize),
    /// A commit of more bytes than any has.
    #[error("a commit of {0} bytes exceeds {COMMIT_LEN_MAX}")]
    CommitTooLarge(usize),
    /// The parts do not fit into it.
    #[error("the record is cut short")]
    Truncated,
    /// It begins with no envelope.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// It begins with an envelope of another kind.
    #[error("an envelope of kind {0:?} begins no change of a group")]
    Kind(Kind),
}

impl Trailer {
    /// Reads header and trailer of `record`, and checks that the parts fit.
    ///
    /// # Errors
    /// [`HandshakeError`], by the first check that fails.
    pub fn parse(record: &[u8]) -> Result<(Header, Self), HandshakeError> {
        if record.len() > RECORD_LEN_MAX {
            return Err(HandshakeError::TooLarge(record.len()));
        }
        let (parts, trailer) = record.split_last_chunk::<TRAILER_LEN>().ok_or(HandshakeError::Truncated)?;
        let field = |from: usize, to: usize| trailer.get(from..to).unwrap_or_default();
        let access: [u8; 32] = field(8, 40).try_into().unwrap_or_default();
        let trailer = Self {
            after: u64::from_le_bytes(field(0, 8).try_into().unwrap_or_default()),
            access: (access != [0; 32]).then_some(AccessKey(access)),
            welcome_len: u32::from_le_bytes(field(40, 44).try_into().unwrap_or_default()),
            group_info_len: u32::from_le_bytes(field(44, 48).try_into().unwrap_or_default()),
        };
        let beside = (trailer.welcome_len as usize).checked_add(trailer.group_info_len as usize);
        let commit_len = beside.and_then(|beside| parts.len().checked_sub(beside)).ok_or(HandshakeError::Truncated)?;
        if commit_len > COMMIT_LEN_MAX {
            return Err(HandshakeError::CommitTooLarge(commit_len));
        }
        let header = Header::parse(parts.get(..commit_len).unwrap_or_default())?;
        if header.kind == Kind::Handshake { Ok((header, trailer)) } else { Err(HandshakeError::Kind(header.kind)) }
    }

    /// The 48 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; TRAILER_LEN] {
        let mut bytes = [0; TRAILER_LEN];
        bytes[..8].copy_from_slice(&self.after.to_le_bytes());
        bytes[8..40].copy_from_slice(&self.access.map_or([0; 32], |key| key.0));
        bytes[40..44].copy_from_slice(&self.welcome_len.to_le_bytes());
        bytes[44..].copy_from_slice(&self.group_info_len.to_le_bytes());
        bytes
    }

    /// The parts of the record that this one ends: commit, welcome, group info.
    #[must_use]
    pub fn split(&self, record: &Bytes) -> (Bytes, Bytes, Bytes) {
        let end = record.len().saturating_sub(TRAILER_LEN);
        let info = end.saturating_sub(self.group_info_len as usize);
        let welcome = info.saturating_sub(self.welcome_len as usize);
        (record.slice(..welcome), record.slice(welcome..info), record.slice(info..end))
    }
}

/// The access key that a record brings; `None` for one that leaves it as it is, and for what is no record.
#[must_use]
pub fn new_access(record: &[u8]) -> Option<AccessKey> {
    if is_handshake(record) { Trailer::parse(record).ok()?.1.access } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::{
        envelope::{Suite, TAG_LEN},
        id::{MessageId, RoomId},
    };

    fn commit(kind: Kind, len: usize) -> Vec<u8> {
        let suite = if kind == Kind::Keyring { Suite::XWing } else { Suite::X25519Psk };
        let mut bytes =
            Header { kind, suite, room: RoomId([3; 16]), epoch: 7, leaf: 1, message: MessageId([9; 16]) }.to_bytes().to_vec();
        bytes.resize(48 + suite.enc_len() + TAG_LEN + len, 1);
        bytes
    }

    fn record(commit: &[u8], welcome: usize, info: usize, trailer: Trailer) -> Bytes {
        [commit, &vec![2; welcome], &vec![3; info], &trailer.to_bytes()].concat().into()
    }

    proptest! {
        #[test]
        fn parts_come_back(after in any::<u64>(), rotates in any::<bool>(), sizes in (0usize..50, 0u32..50, 0u32..50)) {
            let access = rotates.then_some(AccessKey([5; 32]));
            let trailer = Trailer { after, access, welcome_len: sizes.1, group_info_len: sizes.2 };
            let commit = commit(Kind::Handshake, sizes.0);
            let record = record(&commit, sizes.1 as usize, sizes.2 as usize, trailer);
            let (header, read) = Trailer::parse(&record).unwrap();
            prop_assert_eq!((header.epoch, read), (7, trailer));
            let parts = trailer.split(&record);
            prop_assert_eq!((&parts.0[..], parts.1.len(), parts.2.len()), (&commit[..], sizes.1 as usize, sizes.2 as usize));
        }

        #[test]
        fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok((_, trailer)) = Trailer::parse(&bytes) {
                let _ = trailer.split(&bytes.into());
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let trailer = Trailer { after: 1, access: None, welcome_len: 4, group_info_len: 5 };
        let commit_of = |kind| commit(kind, 0);
        let good = record(&commit_of(Kind::Handshake), 4, 5, trailer);
        assert!(Trailer::parse(&good).is_ok());
        assert_eq!(Trailer::parse(&good[..40]), Err(HandshakeError::Truncated));
        for lens in [(u32::MAX, u32::MAX), (4, u32::MAX), (200, 0)] {
            let trailer = Trailer { welcome_len: lens.0, group_info_len: lens.1, ..trailer };
            assert_eq!(Trailer::parse(&record(&commit_of(Kind::Handshake), 4, 5, trailer)), Err(HandshakeError::Truncated));
        }
        let foreign = record(&commit_of(Kind::Room), 4, 5, trailer);
        assert_eq!(Trailer::parse(&foreign), Err(HandshakeError::Kind(Kind::Room)));
        // The parts eat into the commit: what is left is no envelope.
        let trailer = Trailer { welcome_len: 12, ..trailer };
        assert!(matches!(
            Trailer::parse(&record(&commit_of(Kind::Handshake), 4, 5, trailer)),
            Err(HandshakeError::Envelope(EnvelopeError::Truncated { .. }))
        ));
        let large = record(&commit(Kind::Handshake, COMMIT_LEN_MAX), 4, 5, Trailer { welcome_len: 4, ..trailer });
        assert!(matches!(Trailer::parse(&large), Err(HandshakeError::CommitTooLarge(_))));
        assert_eq!(Trailer::parse(&vec![0; RECORD_LEN_MAX + 1]), Err(HandshakeError::TooLarge(RECORD_LEN_MAX + 1)));
    }
}
