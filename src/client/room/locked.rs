//! A room that a member has locked at the server: by a record that no group has made, with an access key that nobody knows. The server cannot know that it
//! is rubbish, and asks everybody for that key. It listens to the device that made the room, whoever holds which key: that one has it take the
//! group's key back.

use crate::{
    client::Client,
    core::{
        envelope::{Header, Kind, Suite},
        frame::{ClientFrame, Publish},
        handshake,
        id::{MessageId, ProducerId, RoomId, Seq},
    },
    seal::{Random as _, epoch::access_key},
};

impl Client {
    /// A record at `seq` that every member skips, and the server does not. Whether it took the room's key: then the server says whether this
    /// device's is in force; and where it brings that one back, all is well.
    pub(super) fn takes_key(&mut self, id: RoomId, seq: Seq, record: &[u8]) -> bool {
        let Some(room) = self.rooms.get_mut(&id) else { return false };
        let Some(key) = handshake::new_access(record) else { return false };
        let is_own = key == access_key(&room.record.access);
        room.record.access_at = if is_own { seq } else { Seq::MAX };
        self.persist_room(id);
        !is_own
    }

    /// Has the server take the group's key back: once on a connection, since it listens to one device only.
    pub(super) fn put_key_back(&mut self, id: RoomId) {
        let (producer, message) = (ProducerId(self.rng.bytes()), MessageId(self.rng.bytes()));
        let Some(room) = self.rooms.get_mut(&id).filter(|room| !room.wire.put_key_back) else { return };
        let Some(seat) = room.place.seat() else { return };
        room.wire.put_key_back = true;
        let (epoch, leaf) = (seat.group.epoch().number, seat.group.leaf());
        let header = Header { kind: Kind::Handshake, suite: Suite::X25519Psk, room: id, epoch, leaf, message };
        let handshake = room.timeline.handshake();
        let envelope = handshake::putting_back(&header, access_key(&room.record.access), handshake);
        self.send(&ClientFrame::Publish(Publish { room: id, producer, client_seq: 1, handshake, envelope }));
    }
}
