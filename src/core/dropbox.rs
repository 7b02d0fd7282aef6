//! A room's drop-box: what the server keeps so that somebody who is no member may post into the room.
//!
//! The server knows who may post (the holder of a key), what it tells them (an announcement that it does not look at), and when
//! that ends: with the next announcement, and with any change by which somebody goes, because whoever goes knows what opens
//! posts. It cannot read a post, and what it keeps lets nobody post.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    chain,
    frame::DropBoxOffer,
    id::{DeviceKey, Digest, LogId, ProducerId, RoomId, Seq},
    log::Producer,
};

/// Where posts go, and where the announcement is: followed by the room's id.
pub const PATH: &str = "/post/";
/// Bytes of an announcement at most.
pub const ANNOUNCEMENT_LEN_MAX: usize = 4096;
/// Begins what is kept: no list of key packages begins so.
const MARK: &[u8] = b"drop-box 1";

/// What a poster signs with the drop-box's key: `"waxwing post v1" ‖ room ‖ SHA-256(envelope)`. A repetition stores nothing.
#[must_use]
pub fn post_message(room: RoomId, envelope: Digest) -> Vec<u8> {
    [&b"waxwing post v1"[..], &room.0, &envelope.0].concat()
}

fn name(room: RoomId) -> Digest {
    chain::digest(&[&b"waxwing drop-box v1"[..], &room.0].concat())
}

/// The name under which an engine keeps a room's drop-box, among those of devices' key packages. It is a hash: no device has that key.
#[must_use]
pub fn kept_under(room: RoomId) -> DeviceKey {
    DeviceKey(name(room).0)
}

/// The outbox that all posts of a room come from, as far as the log is concerned: its last ones are recognised by their bytes.
#[must_use]
pub fn producer(room: RoomId) -> Producer {
    Producer { device: kept_under(room), id: ProducerId([0; 16]) }
}

/// An open drop-box, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropBox {
    /// The life of the log that it belongs to.
    pub log: LogId,
    /// The handshake record that brought the room's access key when it was opened: it is closed as soon as another one does.
    pub since: Seq,
    /// What the member has said of it.
    pub offer: DropBoxOffer,
}

impl DropBox {
    /// Reads what [`DropBox::encode`] wrote; `None` if it is something else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (kept, rest) = postcard::take_from_bytes(bytes.strip_prefix(MARK)?).ok()?;
        rest.is_empty().then_some(kept)
    }

    /// As an engine keeps it.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        [MARK, &postcard::to_allocvec(self).expect("a drop-box encodes into memory")].concat().into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::{id::AccessKey, packages::Packages};

    #[test]
    fn it_is_kept_as_it_is_and_never_taken_for_key_packages() {
        let offer = DropBoxOffer { epoch: 7, poster: AccessKey([3; 32]), announcement: Bytes::from_static(b"hear") };
        let kept = DropBox { log: LogId([1; 16]), since: 9, offer };
        let bytes = kept.encode();
        assert_eq!(DropBox::decode(&bytes), Some(kept));
        assert_eq!(DropBox::decode(&[&bytes[..], b"!"].concat()), None);
        assert_eq!(DropBox::decode(b""), None);
        assert_eq!(Packages::decode(&bytes), None);
        assert_ne!(kept_under(RoomId([1; 16])), kept_under(RoomId([2; 16])));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = DropBox::decode(&[MARK, &bytes].concat());
            prop_assert_eq!(Packages::decode(&[MARK, &bytes].concat()), None);
        }
    }
}
