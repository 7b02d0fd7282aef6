//! Coming into a room by its link: the newest change of the group holds what the link opens, and a commit of one's own lets this
//! device in, with nobody online.

use super::Room;
use super::past::Past;
use super::place::Place;
use crate::client::Client;
use crate::client::records::{ClimbRecord, Letter, Stage, encode, past_key};
use crate::client::view::Level;
use crate::core::frame::{ClientFrame, Page};
use crate::core::id::{ProducerId, RoomId, Seq};
use crate::group::{CommitError, Forbidden, GroupInfo, JoinError, Joining, LinkKeys, Record};
use crate::seal::Random as _;
use crate::seal::body::Complaint;

/// The link leads nowhere, or not yet: look again after this long.
const KNOCK_AGAIN_MS: u64 = 5_000;

impl Client {
    /// Asks for the newest change of the group, unless this device's own commit is on its way.
    pub(in crate::client) fn knock(&mut self, id: RoomId) {
        if self.rooms.get(&id).is_some_and(|room| room.handshakes.is_empty()) {
            self.ask_for_change(id, Seq::MAX, true);
        }
    }

    /// Asks for the change of the group right before this seq, or for the newest: all of it, or its outline.
    pub(super) fn ask_for_change(&mut self, id: RoomId, before: Seq, whole: bool) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        room.knocks = room.knocks.wrapping_add(1);
        let request = room.knocks;
        self.send(&ClientFrame::Handshake { request, room: id, before, whole });
    }

    /// The change that was asked for: whoever holds the link comes in by it.
    pub(in crate::client) fn on_fetched(&mut self, request: u32, page: &Page, now_ms: u64) {
        let id = page.room;
        if self.is_of_gap(id, request) {
            return self.on_gap_page(request, page, now_ms);
        }
        if self.on_way_in(request, page, now_ms) {
            return;
        }
        // An answer to an earlier question may not be the newest change any more.
        let Some(room) = self.rooms.get(&id).filter(|room| request == room.knocks) else { return };
        match room.record.stage {
            Stage::Joined => return self.on_rung(id, page),
            Stage::Added => return self.on_welcome(id, page, now_ms),
            Stage::Invited if room.handshakes.is_empty() => {}
            _ => return,
        }
        let Some(record) = page.items.first().and_then(|item| Record::decode(&item.envelope).ok()) else {
            return self.stay_outside(id, "the room is not ready: whoever made it has not been online yet", now_ms);
        };
        match self.make_joining(id, &record, now_ms) {
            Ok(Some(joining)) => self.come_in(id, joining, page.first, now_ms),
            Ok(None) => self.stay_outside(id, "the link names somebody who is not in the room: ask for a new one", now_ms),
            Err(JoinError::Commit(CommitError::Forbidden(Forbidden::Full))) => {
                self.stay_outside(id, "the room is full: it has as many devices as it may", now_ms);
            }
            // An older change may open, and leads into a past that no member is in.
            Err(_) => self.stay_outside(id, "the link does not lead in, or not any more: ask for a new one", now_ms),
        }
    }

    /// Gives the log the commit by which this device comes in, behind the change at `after`.
    pub(super) fn come_in(&mut self, id: RoomId, mut joining: Joining, after: Seq, now_ms: u64) {
        let envelope = joining.place_after(after).encode();
        let letter = self.letter(Letter::Envelope(envelope), now_ms);
        let Some(room) = self.rooms.get_mut(&id) else { return };
        room.place = Place::Joining(Box::new(joining));
        room.shut_out = None;
        let persist = room.handshakes.push(letter, false);
        self.persist_place(id);
        self.persist_all(persist);
        self.pump(id, now_ms);
        self.tell_room(id);
    }

    /// The commit that lets this device in; `None` when the link's maker is not there.
    fn make_joining(&mut self, id: RoomId, record: &Record, now_ms: u64) -> Result<Option<Joining>, JoinError> {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get(&id)) else { return Err(JoinError::NotForUs) };
        let link = room.record.link.ok_or(JoinError::NotForUs)?;
        let keys = LinkKeys::new(&link.seed);
        let info = GroupInfo::open(id, record, &keys)?;
        // Who was in the group before may still have its place there, even if it does not remember (a storage that was restored).
        let joining = match info.join(id, None, now_ms, &me.identity, &mut self.rng) {
            Err(JoinError::NotForUs) => info.join(id, Some(&keys), now_ms, &me.identity, &mut self.rng)?,
            rejoining => rejoining?,
        };
        let host = joining.group().members().iter().any(|member| member.user == link.host);
        Ok(host.then_some(joining))
    }

    pub(super) fn stay_outside(&mut self, id: RoomId, why: &str, now_ms: u64) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        room.shut_out = Some((why.to_owned(), now_ms.saturating_add(KNOCK_AGAIN_MS)));
        self.ask_for_place(id, now_ms);
        self.tell_room(id);
    }

    /// This device's commit is in the log at `seq`: from there on it reads.
    pub(in crate::client) fn on_let_in(&mut self, id: RoomId, seq: Seq) {
        let is_under_way = |room: &&mut Room| room.record.stage == Stage::Invited && matches!(room.place, Place::Joining(_));
        let Some(room) = self.rooms.get_mut(&id).filter(is_under_way) else { return };
        // It may be there since long ago, and what opens the room may have been told since.
        room.record.access_at = seq.max(room.wire.handshake);
        self.read_from(id, seq);
    }

    /// The change at `seq` lets this device in: it reads from there on, and before that what newcomers read.
    pub(super) fn read_from(&mut self, id: RoomId, seq: Seq) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let Place::Joining(joining) = &room.place else { return };
        let handed_over = room.past.as_mut().filter(|past| past.is_handed_over());
        match (handed_over, ClimbRecord::begin(joining)) {
            // Another device of this person has handed over what opens the time before.
            (Some(past), _) => past.ends_at(seq),
            // Here everybody reads what was before.
            (None, Some(climb)) => room.past = Some(Past::climbing(id, seq, climb)),
            // Whoever was in the room before reads on where it was; what was sealed while it was not is in its chain, too.
            (None, None) if room.timeline.head() > 0 => room.past = Some(Past::unknown(id, seq)),
            (None, None) => room.record.base = seq.saturating_sub(1),
        }
        let past = room.past.as_ref().map(|past| encode(past.record()));
        if room.timeline.head() < room.record.base {
            room.timeline.skip_to(room.record.base, None);
        }
        self.persist(past_key(id), past);
        self.set_stage(id, Stage::Joined);
        self.enter_and_subscribe(id);
        self.tell_room(id);
    }

    /// Outside from here on: a commit that is under way is for a place that this device does not have any more.
    pub(in crate::client) fn leave_group(&mut self, id: RoomId) {
        let fresh = ProducerId(self.rng.bytes());
        let Some(room) = self.rooms.get_mut(&id) else { return };
        room.place = Place::Out;
        room.gate = 0;
        let persist = room.handshakes.abandon(fresh);
        self.persist_all(persist);
        self.persist_place(id);
    }

    /// This device cannot follow the group: it takes its place again, by the link if it knows one that leads in, or else as a member tells it.
    pub(in crate::client) fn rejoin(&mut self, id: RoomId, complaint: Option<Complaint>, now_ms: u64) {
        self.remember_place(id, complaint);
        self.leave_group(id);
        let Some(room) = self.rooms.get_mut(&id) else { return };
        (room.wire.entered, room.wire.subscribed) = (false, None);
        let again = core::mem::replace(&mut room.wire.rejoined, true);
        self.send(&ClientFrame::Unsubscribe { room: id });
        self.set_stage(id, Stage::Invited);
        if again {
            // Whoever makes it fall behind again and again, a server or a member, costs it one attempt in a while.
            return self.stay_outside(id, "this device falls behind the room's group again and again; asking again", now_ms);
        }
        let text = "this device fell behind the room's group: it takes its place again, and asks members for what it missed";
        self.notice(Level::Warn, text, Some(id));
        self.begin(id);
        self.tell_room(id);
    }
}
