//! The hash chain of a room's log: what makes a dropped, reordered or injected record visible.
//!
//! `chain(n) = SHA-256("waxwing chain v1" ‖ room ‖ chain(n−1) ‖ n as u64 LE ‖ entry n)`, and
//! `chain(0) = SHA-256("waxwing chain v1" ‖ room)`. The entry is the record's SHA-256, of a change of the group that of its outline
//! ([`handshake::entry`]).

use sha2::{Digest as _, Sha256};

use super::{
    handshake,
    id::{Digest, RoomId, Seq},
    log::Record,
};

const LABEL: &[u8] = b"waxwing chain v1";

/// The chain value before the first record of `room`.
#[must_use]
pub fn start(room: RoomId) -> Digest {
    Digest(Sha256::new().chain_update(LABEL).chain_update(room.0).finalize().into())
}

/// The chain value after the record `seq` with these bytes, whole or in outline, given the value before it.
#[must_use]
pub fn next(room: RoomId, before: Digest, seq: Seq, envelope: &[u8]) -> Digest {
    next_hashed(room, before, seq, handshake::entry(envelope))
}

/// As [`next`], for a record whose entry is already known.
#[must_use]
pub fn next_hashed(room: RoomId, before: Digest, seq: Seq, entry: Digest) -> Digest {
    let hash = Sha256::new()
        .chain_update(LABEL)
        .chain_update(room.0)
        .chain_update(before.0)
        .chain_update(seq.to_le_bytes())
        .chain_update(entry.0);
    Digest(hash.finalize().into())
}

/// The chain values after each of `records`, given the value before the first.
pub fn along(room: RoomId, before: Digest, records: &[Record]) -> impl Iterator<Item = Digest> {
    records.iter().scan(before, move |value, record| {
        *value = next(room, *value, record.seq, &record.envelope);
        Some(*value)
    })
}

/// SHA-256 of `bytes`.
#[must_use]
pub fn digest(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_commits_to_room_order_and_bytes() {
        let (room, other) = (RoomId([1; 16]), RoomId([2; 16]));
        let value = next(room, start(room), 1, b"a");
        assert_ne!(value, next(other, start(room), 1, b"a"));
        assert_ne!(value, next(room, start(other), 1, b"a"));
        assert_ne!(value, next(room, start(room), 2, b"a"));
        assert_ne!(value, next(room, start(room), 1, b"b"));
        assert_eq!(value, next_hashed(room, start(room), 1, digest(b"a")));
    }
}
