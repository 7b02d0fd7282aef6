//! Looking after the way in. Members are brought changes of the group in outline, without the group info by which who holds a link comes in. So
//! whoever made the newest change badly would leave no way in, and nobody would see it: one of the others, whom the change's hash chooses, asks for all of
//! it, looks, and makes an empty change if it leads nowhere.

use crate::{
    client::{Client, view::Level},
    core::{
        frame::{ClientFrame, Page},
        id::RoomId,
    },
    group::{Change, Record},
};

impl Client {
    /// Asks for the newest change, if it is this device that looks at it and it has not.
    pub(super) fn look_at_way_in(&mut self, id: RoomId) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        let me = me.identity.device();
        let Some(seq) = room.place.seat().and_then(|seat| seat.looks_at_way_in(me)).filter(|_| room.wire.way_in.is_none()) else {
            return;
        };
        room.knocks = room.knocks.wrapping_add(1);
        let request = room.knocks;
        room.wire.way_in = Some(request);
        // That one, whatever stands behind it: rubbish there would hide it, and be brought anew with each page.
        self.send(&ClientFrame::Handshake { request, room: id, before: seq.saturating_add(1), whole: true });
    }

    /// Whether it is that change; then it is looked at.
    pub(super) fn on_way_in(&mut self, request: u32, page: &Page, now_ms: u64) -> bool {
        let id = page.room;
        let Some(room) = self.rooms.get_mut(&id).filter(|room| room.wire.way_in == Some(request)) else { return false };
        room.wire.way_in = None;
        let record = page.items.first().and_then(|item| Record::decode(&item.envelope).ok()).filter(Record::is_whole);
        // If another one came meanwhile, this device asks for that one.
        let newest = room.place.seat_mut().and_then(|seat| Some((seat.looked_at(record.as_ref()?)?, seat)));
        if let Some((false, seat)) = newest {
            seat.wants(Change::default());
            self.notice(
                Level::Warn,
                "the last change of the room left no way in for who has its link: it is made anew",
                Some(id),
            );
            self.persist_place(id);
            self.pump(id, now_ms);
        }
        true
    }
}
