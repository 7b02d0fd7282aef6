//! Where newcomers read the last days, what opens more is deleted, on every device: the secrets of epochs that ended before, the keys
//! that lead down to them, and seeds of links, with which the server's copy of that time opens. What was read stays, as it was shown. Looked at
//! when the client begins, with each change of the group, and once a day.
//!
//! When an epoch ended the log says, unless this device was there before: the server can make it seem longer ago, and not later.

use super::{Changes, Room, Shown, What};
use crate::client::Client;
use crate::client::outbox::Persist;
use crate::client::records::{ChangeRecord, Entry, LogRecord, encode, log_key, room_key};
use crate::client::room::climbing::seated;
use crate::core::id::{RoomId, Seq};
use crate::group::History;
use bytes::Bytes;
use std::collections::BTreeMap;

const DAY_MS: u64 = 24 * 3600 * 1000;
/// The content number of [`crate::seal::body::Message::Link`].
const LINK_KIND: u16 = 3;

impl ChangeRecord {
    const fn opens(&self) -> bool {
        matches!(self.begun, Some((_, Some(_))))
    }
}

impl Shown {
    /// Its record of the log, with this entry.
    fn kept(&self, room: RoomId, seq: Seq, entry: Entry) -> Persist {
        let record = LogRecord { time_ms: self.time_ms, digest: self.digest, chain: self.chain, entry };
        (log_key(room, seq), Some(encode(&record)))
    }
}

impl Room {
    /// Deletes the secrets of epochs that ended too long ago. Returns what is kept instead.
    fn forget_epochs(&mut self, now_ms: u64) -> Vec<Persist> {
        let Some(days) = self.record.days else { return Vec::new() };
        let until_ms = now_ms.saturating_sub(u64::from(days) * DAY_MS);
        let since = self.shown.range(self.forgotten..);
        // What a change began ended with the next one.
        let ends = since.filter(|(_, shown)| matches!(shown.what, What::Change(..)) && shown.time_ms < until_ms);
        let Some(end) = ends.map(|(seq, _)| *seq).next_back() else { return Vec::new() };
        let mut persist = Vec::new();
        for (seq, shown) in self.shown.range_mut(self.forgotten..end) {
            let What::Change(change, _) = &mut shown.what else { continue };
            let Some((_, secrets @ Some(_))) = &mut change.begun else { continue };
            *secrets = None;
            let entry = Entry::Change(change.as_ref().clone());
            persist.push(shown.kept(self.id, *seq, entry));
        }
        self.forgotten = end;
        persist
    }

    /// Deletes the seeds of links from what members said of them.
    fn forget_links(&mut self) -> Vec<Persist> {
        let mut persist = Vec::new();
        for (seq, shown) in self.shown.range_mut(self.unlinked..) {
            let content = match &mut shown.what {
                What::Message(opened) => &mut opened.content,
                What::Sent(sent) => &mut sent.content,
                What::Change(..) | What::Post(_) => continue,
            };
            if content.kind != LINK_KIND || content.data.is_empty() {
                continue;
            }
            content.data = Bytes::new();
            let entry = match &shown.what {
                What::Message(opened) => Entry::Message(opened.as_ref().clone()),
                What::Sent(sent) => Entry::Sent(sent.as_ref().clone()),
                What::Change(..) | What::Post(_) => continue,
            };
            persist.push(shown.kept(self.id, *seq, entry));
        }
        self.unlinked = self.timeline.head().saturating_add(1);
        persist
    }

    /// What opens the log for another device of this person, and behind which seq.
    pub(super) fn handed_over(&self) -> (Seq, Changes) {
        let mut changes = self.changes();
        let base = self.record.base;
        let Some(first) = changes.iter().position(|(_, change)| change.opens()).filter(|first| *first > 0) else {
            return (base, changes);
        };
        let mut roster = BTreeMap::new();
        changes.iter().take(first + 1).for_each(|(_, change)| seated(&mut roster, change));
        let mut rest = changes.split_off(first);
        let Some((digest, change)) = rest.first_mut() else { return (base, rest) };
        // It begins with who was there.
        change.names = roster.values().map(|who| (*who, self.timeline.name_of(*who).to_owned())).collect();
        change.seats = roster.into_iter().map(|(leaf, who)| (leaf, Some(who))).collect();
        let at = self.shown.iter().find(|(_, shown)| shown.digest == *digest).map(|(seq, _)| seq.saturating_sub(1));
        (at.unwrap_or(base), rest)
    }
}

impl Client {
    /// When secrets are looked at next.
    pub(in crate::client) fn forgets_at(&self) -> Option<u64> {
        self.rooms.values().any(|room| room.record.days.is_some()).then_some(self.forget_next_ms)
    }

    /// Deletes what opens more than newcomers read, once a day.
    pub(in crate::client) fn forget_due(&mut self, now_ms: u64) {
        if now_ms < self.forget_next_ms {
            return;
        }
        self.forget_next_ms = now_ms.saturating_add(DAY_MS);
        let rooms: Vec<_> = self.rooms.keys().copied().collect();
        rooms.into_iter().for_each(|id| self.forget_secrets(id, now_ms));
    }

    /// Deletes what opens more of a room than newcomers read.
    pub(in crate::client) fn forget_secrets(&mut self, id: RoomId, now_ms: u64) {
        self.note_days(id);
        let Some(room) = self.rooms.get_mut(&id).filter(|room| room.record.days.is_some()) else { return };
        let mut persist = room.forget_epochs(now_ms);
        persist.extend(room.forget_links());
        // One that does not lead in any more never does again.
        if room.record.link.is_some() && room.up_to_date() && room.place.seat().is_some() && room.live_link().is_none() {
            room.set_link(None);
            persist.push((room_key(id), Some(encode(&room.record))));
        }
        let of_group = room.place.seat_mut().is_some_and(|seat| seat.group.forget_rungs(now_ms));
        self.persist_all(persist);
        if of_group {
            self.persist_place(id);
        }
    }

    /// Notes for how many days newcomers read, as the newest change of the group leaves it.
    fn note_days(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let Some(seat) = room.place.seat() else { return };
        let days = match seat.policy.history() {
            History::Days(days) => Some(days),
            History::FromJoin | History::Everything => None,
        };
        if core::mem::replace(&mut room.record.days, days) != days {
            self.persist_room(id);
        }
    }
}
