//! New keys for this device's leaf: a commit of nothing, after which what was stolen from the device before is worth nothing for what follows. On
//! a schedule, when a person asks, and when the device's storage turns out to be an older one. Whoever comes in has new keys by that.

use super::Room;
use crate::client::Client;
use crate::client::records::Stage;
use crate::client::view::Level;
use crate::core::id::RoomId;
use crate::group::Change;

/// A device's keys in a room's group are renewed when they are so old,
const RENEW_AFTER_MS: u64 = 7 * 24 * 3600 * 1000;
/// and up to so much later, so that a room's devices do not all do it at once.
const SPREAD_MS: u64 = 24 * 3600 * 1000;
/// One room after the other.
const NEXT_ROOM_MS: u64 = 60_000;

impl Room {
    /// When this device's keys are to be renewed, if it can be done now: it was not tried on this connection, and nothing is under way.
    pub(in crate::client) fn renews_at(&self) -> Option<u64> {
        let seat = self.place.seat()?;
        let at_rest = seat.wanted.is_none() && !seat.group.is_waiting() && self.handshakes.is_empty();
        let may = self.record.stage == Stage::Joined && !self.record.leaving && self.up_to_date() && !self.reborn;
        // The session is drawn at random whenever the client begins.
        let [low, high, ..] = self.ephemerals.0.0;
        let spread = SPREAD_MS / 65_536 * u64::from(u16::from_le_bytes([low, high]));
        let at_ms = self.record.renewed_ms.saturating_add(RENEW_AFTER_MS).saturating_add(spread);
        (may && at_rest && !self.wire.renewed).then_some(at_ms)
    }
}

impl Client {
    /// When the next room's keys are renewed.
    pub(in crate::client) fn renews_at(&self) -> Option<u64> {
        let due = self.rooms.values().filter_map(Room::renews_at).min()?;
        Some(due.max(self.renew_next_ms))
    }

    /// Renews the keys of one room, if they are due.
    pub(in crate::client) fn renew_due(&mut self, now_ms: u64) {
        if self.renews_at().is_none_or(|at_ms| at_ms > now_ms) {
            return;
        }
        let due = self.rooms.iter().filter_map(|(id, room)| Some((room.renews_at()?, *id))).min();
        let Some((_, id)) = due else { return };
        self.renew_next_ms = now_ms.saturating_add(NEXT_ROOM_MS);
        self.rooms.get_mut(&id).into_iter().for_each(|room| room.wire.renewed = true);
        self.want(id, Change::default(), now_ms);
    }

    /// A person suspects that somebody has this device's keys.
    pub(in crate::client) fn refresh(&mut self, id: RoomId, now_ms: u64) {
        if self.rooms.get(&id).is_some_and(|room| room.place.seat().is_some()) {
            let text = "this device gets new keys in this room: what was copied from it before opens nothing that follows";
            self.notice(Level::Info, text, Some(id));
        }
        self.want(id, Change::default(), now_ms);
    }

    /// This device's storage turned out to be an older one: somebody else may have what was there meanwhile.
    pub(in crate::client) fn renew_restored(&mut self, id: RoomId) {
        let Some(seat) = self.rooms.get_mut(&id).and_then(|room| room.place.seat_mut()) else { return };
        if seat.wanted.is_none() {
            seat.wants(Change::default());
            self.persist_place(id);
        }
    }
}
