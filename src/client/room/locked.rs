//! A room that a member has locked at the server: by a record that no group has made, with an access key that nobody knows. The server cannot know that it
//! is rubbish, and asks everybody for that key. It listens to the device that made the room, whoever holds which key: that one has it take the
//! group's key back.

use crate::{
    client::Client,
    core::{
        close::Refusal,
        envelope::{Header, Kind, Suite},
        frame::{ClientFrame, Publish},
        handshake,
        id::{ClientSeq, MessageId, ProducerId, RoomId, Seq},
    },
    seal::{Random as _, epoch::access_key},
};

/// The outbox that the key is put back by: always the same one, because a device may have few, and whoever locks the room may do so often. The server
/// says which number comes next, when it is asked with none.
const PRODUCER: ProducerId = ProducerId(*b"the key put back");
/// So often it is tried at once, while whoever locks the room is faster.
const PUTS_MAX: u32 = 16;

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

    /// Has the server take the group's key back, unless that is under way. It listens to one device only; any other one has asked in vain once it has.
    pub(super) fn put_key_back(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get_mut(&id).filter(|room| room.wire.put_back.is_none()) else { return };
        room.wire.put_back = Some(PUTS_MAX);
        let handshake = room.timeline.handshake().max(room.wire.handshake);
        self.publish_key(id, 0, handshake);
    }

    fn publish_key(&mut self, id: RoomId, client_seq: ClientSeq, handshake: Seq) {
        let message = MessageId(self.rng.bytes());
        let Some(room) = self.rooms.get(&id) else { return };
        let Some(seat) = room.place.seat() else { return };
        let (epoch, leaf) = (seat.group.epoch().number, seat.group.leaf());
        let header = Header { kind: Kind::Handshake, suite: Suite::X25519Psk, room: id, epoch, leaf, message };
        let envelope = handshake::putting_back(&header, access_key(&room.record.access), handshake);
        self.send(&ClientFrame::Publish(Publish { room: id, producer: PRODUCER, client_seq, handshake, envelope }));
    }

    /// The server has taken the key back: whoever locks the room again has it taken back again.
    pub(super) fn key_is_back(&mut self, id: RoomId, producer: ProducerId) {
        let room = self.rooms.get_mut(&id).filter(|_| producer == PRODUCER);
        room.into_iter().for_each(|room| room.wire.put_back = None);
    }

    /// The server has not taken it back, and says what it lacks: the number that comes next, or the newest record, which this device is not given.
    pub(super) fn key_not_back(&mut self, id: RoomId, publish: &Publish, why: Refusal) {
        let Some(room) = self.rooms.get_mut(&id).filter(|_| publish.producer == PRODUCER) else { return };
        let Some(left) = room.wire.put_back else { return };
        let newest = room.timeline.handshake().max(room.wire.handshake);
        let again = match why {
            Refusal::NoAccess => return,
            Refusal::OutOfOrder { expected } => Some((expected, newest)),
            Refusal::StaleEpoch { handshake } => {
                room.wire.handshake = handshake;
                Some((publish.client_seq, handshake))
            }
            _ => None,
        };
        // Else when this device asks again to be let in.
        room.wire.put_back = again.and_then(|_| left.checked_sub(1));
        if let Some((client_seq, handshake)) = again.filter(|_| left > 0) {
            self.publish_key(id, client_seq, handshake);
        }
    }
}
