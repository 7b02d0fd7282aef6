//! A change of a room's group, as the log keeps it: one record, which begins like every envelope, so that the server orders it without
//! knowing what it does.
//!
//! | length | field |
//! |---|---|
//! | … | the commit's envelope, kind 4, beginning with the 48-byte header |
//! | … | the welcome for who is added; may be empty |
//! | … | the sealed group info for who comes in by a link; may be empty |
//! | … | what opens it, and what leads to the time before; may be empty |
//! | 8 | `after`, u64 LE: the seq of the last record of kind 4 that the committer had processed; 0 when none |
//! | 32 | the room's new access key; zero when it stays |
//! | 4 | length of the welcome, u32 LE |
//! | 4 | length of the group info, u32 LE; the highest bit is set in an outline |
//! | 4 | length of what stands behind it, u32 LE |
//!
//! Welcome and group info have the whole tree, which grows with the group, and only who comes in needs them. So members are brought the record's
//! *outline*, in which the SHA-256 of either stands in its place; and the outline is what the chain has of the record ([`entry`]), so that
//! both are the same record. A record with neither is its own outline.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::{
    chain,
    envelope::{EnvelopeError, Header, Kind, TAG_LEN, is_handshake},
    id::{AccessKey, Digest, Seq},
};

/// Bytes of what follows the parts.
pub const TRAILER_LEN: usize = 52;
/// Largest envelope of a commit, in bytes.
pub const COMMIT_LEN_MAX: usize = 1 << 20;
/// Largest record, in bytes.
pub const RECORD_LEN_MAX: usize = 3 << 20;

/// Of the group info's length: hashes stand in the places of welcome and group info.
const OUTLINE: u32 = 1 << 31;
const HASH_LEN: usize = 32;

/// What ends a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// The seq of the last record of kind 4 that the committer had processed; 0 when none.
    pub after: Seq,
    /// What opens the room from here on, if it changes.
    pub access: Option<AccessKey>,
    /// Bytes of the welcome, wherever they are.
    pub welcome_len: u32,
    /// Bytes of the sealed group info, wherever they are.
    pub group_info_len: u32,
    /// Bytes of what stands behind it.
    pub beside_len: u32,
    /// Whether this is the record's outline.
    pub is_outline: bool,
}

/// The parts of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// The commit's envelope.
    pub commit: Bytes,
    /// For who is added; its SHA-256 in an outline.
    pub welcome: Bytes,
    /// For who comes in by a link; its SHA-256 in an outline.
    pub group_info: Bytes,
    /// What opens it, and what leads to the time before.
    pub beside: Bytes,
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
    /// Reads header and trailer of `record`, or of its outline, and checks that the parts fit.
    ///
    /// # Errors
    /// [`HandshakeError`], by the first check that fails.
    pub fn parse(record: &[u8]) -> Result<(Header, Self), HandshakeError> {
        if record.len() > RECORD_LEN_MAX {
            return Err(HandshakeError::TooLarge(record.len()));
        }
        let (parts, trailer) = record.split_last_chunk::<TRAILER_LEN>().ok_or(HandshakeError::Truncated)?;
        let field = |from: usize, to: usize| trailer.get(from..to).unwrap_or_default();
        let number = |from: usize| u32::from_le_bytes(field(from, from + 4).try_into().unwrap_or_default());
        let access: [u8; 32] = field(8, 40).try_into().unwrap_or_default();
        let group_info = number(44);
        let trailer = Self {
            after: u64::from_le_bytes(field(0, 8).try_into().unwrap_or_default()),
            access: (access != [0; 32]).then_some(AccessKey(access)),
            welcome_len: number(40),
            group_info_len: group_info & !OUTLINE,
            beside_len: number(48),
            is_outline: group_info & OUTLINE != 0,
        };
        if trailer.is_outline && !trailer.has_outline() {
            // It would be spelled in two ways.
            return Err(HandshakeError::Truncated);
        }
        let beside = trailer
            .here(trailer.welcome_len)
            .checked_add(trailer.here(trailer.group_info_len))
            .and_then(|beside| beside.checked_add(trailer.beside_len as usize));
        let commit_len = beside.and_then(|beside| parts.len().checked_sub(beside)).ok_or(HandshakeError::Truncated)?;
        if commit_len > COMMIT_LEN_MAX {
            return Err(HandshakeError::CommitTooLarge(commit_len));
        }
        // A short part has a longer hash: the server would take the record, and members would be brought an outline that is none.
        let outline_len = record.len() + trailer.longer_in_outline();
        if outline_len > RECORD_LEN_MAX {
            return Err(HandshakeError::TooLarge(outline_len));
        }
        let header = Header::parse(parts.get(..commit_len).unwrap_or_default())?;
        if header.kind == Kind::Handshake { Ok((header, trailer)) } else { Err(HandshakeError::Kind(header.kind)) }
    }

    /// The 52 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; TRAILER_LEN] {
        let mut bytes = [0; TRAILER_LEN];
        let group_info = self.group_info_len | if self.is_outline { OUTLINE } else { 0 };
        bytes[..8].copy_from_slice(&self.after.to_le_bytes());
        bytes[8..40].copy_from_slice(&self.access.map_or([0; 32], |key| key.0));
        bytes[40..44].copy_from_slice(&self.welcome_len.to_le_bytes());
        bytes[44..48].copy_from_slice(&group_info.to_le_bytes());
        bytes[48..].copy_from_slice(&self.beside_len.to_le_bytes());
        bytes
    }

    /// The parts of the record that this one ends.
    #[must_use]
    pub fn split(&self, record: &Bytes) -> Parts {
        let (welcome, group_info, beside, end) = self.places(record.len());
        Parts {
            commit: record.slice(..welcome),
            welcome: record.slice(welcome..group_info),
            group_info: record.slice(group_info..beside),
            beside: record.slice(beside..end),
        }
    }

    /// Where the parts behind the commit begin, and where the last one ends.
    const fn places(&self, len: usize) -> (usize, usize, usize, usize) {
        let end = len.saturating_sub(TRAILER_LEN);
        let beside = end.saturating_sub(self.beside_len as usize);
        let group_info = beside.saturating_sub(self.here(self.group_info_len));
        let welcome = group_info.saturating_sub(self.here(self.welcome_len));
        (welcome, group_info, beside, end)
    }

    /// Bytes that are there of a welcome or group info of this length, or for it.
    const fn here(&self, len: u32) -> usize {
        if self.is_outline && len > 0 { HASH_LEN } else { len as usize }
    }

    /// By how many bytes the hashes in an outline are longer than what they stand for, where they are.
    fn longer_in_outline(&self) -> usize {
        let longer = |len: u32| if len > 0 { HASH_LEN.saturating_sub(self.here(len)) } else { 0 };
        longer(self.welcome_len) + longer(self.group_info_len)
    }

    /// Whether there is anything that an outline leaves out.
    const fn has_outline(&self) -> bool {
        self.welcome_len > 0 || self.group_info_len > 0
    }
}

/// The outline of a whole record that is not its own: the commit, what stands for welcome and group info, what stands behind them, and the trailer.
fn outlined(record: &[u8]) -> Option<[Piece<'_>; 5]> {
    if !is_handshake(record) {
        return None;
    }
    let (_, trailer) = Trailer::parse(record).ok()?;
    if trailer.is_outline || !trailer.has_outline() {
        return None;
    }
    let (welcome, group_info, beside, end) = trailer.places(record.len());
    let hashed = |part: &'_ [u8]| if part.is_empty() { Piece::Of(&[]) } else { Piece::Hash(chain::digest(part)) };
    let trailer = Trailer { is_outline: true, ..trailer };
    Some([
        Piece::Of(record.get(..welcome)?),
        hashed(record.get(welcome..group_info)?),
        hashed(record.get(group_info..beside)?),
        Piece::Of(record.get(beside..end)?),
        Piece::Trailer(trailer.to_bytes()),
    ])
}

enum Piece<'a> {
    Of(&'a [u8]),
    Hash(Digest),
    Trailer([u8; TRAILER_LEN]),
}

impl AsRef<[u8]> for Piece<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Of(bytes) => bytes,
            Self::Hash(hash) => &hash.0,
            Self::Trailer(bytes) => bytes,
        }
    }
}

/// A record behind the one at `after` that changes no group, and puts back an access key that was replaced: where a header stands, and behind it nothing
/// that opens.
#[must_use]
pub fn putting_back(header: &Header, access: AccessKey, after: Seq) -> Bytes {
    let trailer = Trailer { after, access: Some(access), welcome_len: 0, group_info_len: 0, beside_len: 0, is_outline: false };
    let sealed = vec![0; header.suite.enc_len() + TAG_LEN];
    [&header.to_bytes()[..], &sealed, &trailer.to_bytes()].concat().into()
}

/// What members are brought of a record of any kind: the outline of a change of the group, and everything else as it is.
#[must_use]
pub fn outline(record: &Bytes) -> Bytes {
    match outlined(record) {
        Some(pieces) => pieces.iter().flat_map(AsRef::as_ref).copied().collect::<Vec<u8>>().into(),
        None => record.clone(),
    }
}

/// What the chain has of a record of any kind: SHA-256 of its bytes, and of a change of the group, whole or in outline, that of its outline.
#[must_use]
pub fn entry(record: &[u8]) -> Digest {
    match outlined(record) {
        Some(pieces) => Digest(pieces.iter().fold(Sha256::new(), Sha256::chain_update).finalize().into()),
        None => chain::digest(record),
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
        envelope::Suite,
        id::{MessageId, RoomId},
    };

    fn commit(kind: Kind, len: usize) -> Vec<u8> {
        let suite = if kind == Kind::Keyring { Suite::XWing } else { Suite::X25519Psk };
        let mut bytes =
            Header { kind, suite, room: RoomId([3; 16]), epoch: 7, leaf: 1, message: MessageId([9; 16]) }.to_bytes().to_vec();
        bytes.resize(48 + suite.enc_len() + TAG_LEN + len, 1);
        bytes
    }

    fn record(commit: &[u8], trailer: Trailer) -> Bytes {
        let part = |byte: u8, len: u32| vec![byte; len as usize];
        let Trailer { welcome_len, group_info_len, beside_len, .. } = trailer;
        let parts = [part(2, welcome_len), part(3, group_info_len), part(4, beside_len)].concat();
        [commit, &parts, &trailer.to_bytes()].concat().into()
    }

    fn trailer(welcome_len: u32, group_info_len: u32, beside_len: u32) -> Trailer {
        Trailer { after: 1, access: None, welcome_len, group_info_len, beside_len, is_outline: false }
    }

    proptest! {
        #[test]
        fn parts_come_back(after in any::<u64>(), rotates in any::<bool>(), sizes in (0usize..50, 0u32..50, 0u32..50, 0u32..50)) {
            let access = rotates.then_some(AccessKey([5; 32]));
            let trailer = Trailer { after, access, ..trailer(sizes.1, sizes.2, sizes.3) };
            let commit = commit(Kind::Handshake, sizes.0);
            let whole = record(&commit, trailer);
            let (header, read) = Trailer::parse(&whole).unwrap();
            prop_assert_eq!((header.epoch, read), (7, trailer));
            let parts = trailer.split(&whole);
            prop_assert_eq!(&parts.commit, &commit);
            let lens = [&parts.welcome, &parts.group_info, &parts.beside].map(|part| u32::try_from(part.len()).unwrap());
            prop_assert_eq!(lens, [sizes.1, sizes.2, sizes.3]);

            let outline = outline(&whole);
            let (header, read) = Trailer::parse(&outline).unwrap();
            prop_assert_eq!((header.epoch, read), (7, Trailer { is_outline: sizes.1 + sizes.2 > 0, ..trailer }));
            let hashed = |part: Bytes| if part.is_empty() { part } else { Bytes::copy_from_slice(&chain::digest(&part).0) };
            let expected = Parts { welcome: hashed(parts.welcome), group_info: hashed(parts.group_info), ..parts };
            prop_assert_eq!(read.split(&outline), expected);
            prop_assert_eq!(entry(&whole), chain::digest(&outline));
            prop_assert_eq!((entry(&outline), super::outline(&outline)), (entry(&whole), outline));
        }

        #[test]
        fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let bytes = Bytes::from(bytes);
            if let Ok((_, trailer)) = Trailer::parse(&bytes) {
                let _ = trailer.split(&bytes);
            }
            prop_assert_eq!(entry(&bytes), chain::digest(&outline(&bytes)));
        }
    }

    #[test]
    fn a_key_is_put_back_by_a_record_that_the_server_takes() {
        let header = Header::parse(&commit(Kind::Handshake, 0)).unwrap();
        let record = putting_back(&header, AccessKey([6; 32]), 12);
        let (read, trailer) = Trailer::parse(&record).unwrap();
        assert_eq!((read, trailer.after, new_access(&record)), (header, 12, Some(AccessKey([6; 32]))));
        assert_eq!(outline(&record), record);
    }

    #[test]
    fn every_part_counts() {
        let good = record(&commit(Kind::Handshake, 0), trailer(4, 5, 6));
        for at in 0..good.len() {
            let mut other = good.to_vec();
            other[at] ^= 1;
            assert_ne!(entry(&other), entry(&good), "byte {at}");
        }
        let message = Bytes::from(commit(Kind::Room, 60));
        assert_eq!((entry(&message), outline(&message)), (chain::digest(&message), message.clone()));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let fits = trailer(4, 5, 0);
        let commit_of = |kind| commit(kind, 0);
        let good = record(&commit_of(Kind::Handshake), fits);
        let with = |kind, trailer: Trailer| {
            let mut bytes = record(&commit_of(kind), fits).to_vec();
            let at = bytes.len() - TRAILER_LEN;
            bytes[at..].copy_from_slice(&trailer.to_bytes());
            bytes
        };
        assert!(Trailer::parse(&good).is_ok());
        assert_eq!(Trailer::parse(&good[..40]), Err(HandshakeError::Truncated));
        let max = u32::MAX >> 1;
        for (welcome_len, group_info_len, beside_len) in [(u32::MAX, max, u32::MAX), (4, max, 0), (200, 0, 0), (0, 0, 200)] {
            let trailer = trailer(welcome_len, group_info_len, beside_len);
            assert_eq!(Trailer::parse(&with(Kind::Handshake, trailer)), Err(HandshakeError::Truncated));
        }
        // An outline of nothing, and one without its hashes.
        for (welcome_len, group_info_len) in [(0, 0), (300, 300)] {
            let trailer = Trailer { is_outline: true, ..trailer(welcome_len, group_info_len, 0) };
            assert!(Trailer::parse(&with(Kind::Handshake, trailer)).is_err());
        }
        let foreign = record(&commit_of(Kind::Room), fits);
        assert_eq!(Trailer::parse(&foreign), Err(HandshakeError::Kind(Kind::Room)));
        // The parts eat into the commit: what is left is no envelope.
        assert!(matches!(
            Trailer::parse(&with(Kind::Handshake, trailer(12, 5, 0))),
            Err(HandshakeError::Envelope(EnvelopeError::Truncated { .. }))
        ));
        let large = record(&commit(Kind::Handshake, COMMIT_LEN_MAX), fits);
        assert!(matches!(Trailer::parse(&large), Err(HandshakeError::CommitTooLarge(_))));
        assert_eq!(Trailer::parse(&vec![0; RECORD_LEN_MAX + 1]), Err(HandshakeError::TooLarge(RECORD_LEN_MAX + 1)));
    }

    #[test]
    fn what_is_a_record_is_one_in_outline_too() {
        let commit = commit(Kind::Handshake, 0);
        let of_len = |len: usize, welcome_len: u32, group_info_len: u32| {
            let rest = len - commit.len() - TRAILER_LEN - (welcome_len + group_info_len) as usize;
            let access = Some(AccessKey([6; 32]));
            record(&commit, Trailer { access, ..trailer(welcome_len, group_info_len, u32::try_from(rest).unwrap()) })
        };
        for (welcome_len, group_info_len, longer) in [(1, 1, 62), (1, 0, 31), (0, 31, 1), (32, 32, 0), (100, 1, 31)] {
            let most = RECORD_LEN_MAX - longer;
            for len in [most, most + 1, RECORD_LEN_MAX] {
                let whole = of_len(len, welcome_len, group_info_len);
                let outline = outline(&whole);
                assert_eq!(Trailer::parse(&whole).is_ok(), len == most || longer == 0 && len == RECORD_LEN_MAX, "{len}");
                assert_eq!(Trailer::parse(&whole).is_ok(), Trailer::parse(&outline).is_ok(), "{len}");
                assert_eq!((new_access(&whole), entry(&whole)), (new_access(&outline), entry(&outline)), "{len}");
            }
        }
    }
}
