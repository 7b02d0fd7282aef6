//! What the server tells of a room: its log, who is there, what it refuses.

use super::past::Past;
use super::{ENTER_AGAIN_MS, RoomWire, Shown, What};
use crate::client::evidence::Said;
use crate::client::outbox::Persist;
use crate::client::records::{
    Entry, Letter, LogRecord, OpenedRecord, PastRecord, Stage, encode, former_key, log_key, past_key, room_key,
};
use crate::client::timeline::{Applied, Discontinuity, Timeline};
use crate::client::view::{Check, Event, Level};
use crate::client::{Client, Output};
use crate::core::close::Refusal;
use crate::core::envelope::{Header, Kind};
use crate::core::frame::{ClientFrame, Item, Operation, Page, Position};
use crate::core::id::{DeviceKey, Digest, LogId, ProducerId, RoomId, Seq};
use crate::seal::Random as _;
use crate::seal::body::{Content, Message};
use bytes::Bytes;

impl Client {
    pub(in crate::client) fn on_entered(&mut self, log: RoomId, position: Position, handshake: Seq, now_ms: u64) {
        let Some(room) = self.rooms.get_mut(&log) else { return };
        room.wire.entering = room.wire.entering.saturating_sub(1);
        room.wire.handshake = handshake;
        if room.record.stage == Stage::Deleting {
            return;
        }
        room.shut_out = None;
        room.wire.too_early = false;
        if room.record.stage == Stage::Joined && room.place.seat().is_some() {
            self.is_back(log, now_ms);
        }
        let Some(room) = self.rooms.get_mut(&log) else { return };
        if core::mem::replace(&mut room.wire.entered, true) {
            return self.pump(log, now_ms);
        }
        match room.record.log {
            // Whoever is on the way in has subscribed to nothing yet.
            _ if matches!(room.record.stage, Stage::Invited | Stage::Added) => {
                if let Some(known) = room.record.log.filter(|known| *known != position.log && room.timeline.head() > 0) {
                    self.log_changed(log, known, position.log);
                }
                let Some(room) = self.rooms.get_mut(&log) else { return };
                room.record.log = Some(position.log);
                room.timeline.set_log(position.log);
                self.persist_room(log);
                self.pump(log, now_ms);
            }
            Some(known) if known != position.log => {
                // Whoever was still going down the ladder has subscribed to nothing.
                let subscribes = room.wire.asked > 0;
                room.wire.stale = subscribes;
                self.log_changed(log, known, position.log);
                if !subscribes {
                    self.enter_and_subscribe(log);
                }
            }
            Some(_) => self.pump(log, now_ms),
            None => {
                room.record.log = Some(position.log);
                room.timeline.set_log(position.log);
                let value = encode(&room.record);
                self.persist(room_key(log), Some(value));
            }
        }
    }

    /// Whether this is the answer to the latest subscription.
    fn is_latest(&mut self, id: RoomId) -> bool {
        let Some(room) = self.rooms.get_mut(&id) else { return false };
        room.wire.asked = room.wire.asked.saturating_sub(1);
        room.wire.asked == 0
    }

    /// Whether this was the answer to a subscription in a former life of the log; then delivery is asked for anew.
    fn was_stale(&mut self, id: RoomId) -> bool {
        let Some(room) = self.rooms.get_mut(&id) else { return false };
        if !core::mem::take(&mut room.wire.stale) {
            return false;
        }
        let after = room.timeline.head();
        room.wire.asked += 1;
        self.send(&ClientFrame::Subscribe { room: id, after });
        true
    }

    /// The server has another life of the log (it was restored from a backup, say). This device's copy is kept aside, and
    /// the log is read anew; what waits in the outbox is compared with it before it is sent.
    pub(in crate::client) fn log_changed(&mut self, id: RoomId, known: LogId, now: LogId) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let mut moves: Vec<Persist> = room.timeline.seqs().map(|seq| (log_key(id, seq), None)).collect();
        let past = PastRecord { format: 2, until: u64::MAX, changes: room.changes(), climb: None };
        for (seq, shown) in core::mem::take(&mut room.shown) {
            let Shown { time_ms, digest, chain, what, .. } = shown;
            let entry = match what {
                What::Message(opened) => Entry::Message(*opened),
                What::Post(post) => Entry::Post(*post),
                What::Sent(sent) => Entry::Sent(*sent),
                What::Change(..) => continue,
            };
            let record = LogRecord { time_ms, digest, chain, entry };
            let key = former_key(id, known, seq);
            self.former.push((id, key.clone()));
            moves.push((key, Some(encode(&record))));
        }
        room.hidden.clear();
        moves.push((past_key(id), Some(encode(&past))));
        room.past = Some(Past::new(id, past));
        room.reborn = true;
        room.record.base = 0;
        (room.forgotten, room.unlinked) = (0, 0);
        room.timeline = Timeline::new(id);
        room.timeline.set_log(now);
        room.record.log = Some(now);
        let value = encode(&room.record);
        self.persist(room_key(id), Some(value));
        self.persist_all(moves);
        self.drop_gaps(id);
        let text = "the server's log of this room was replaced (restored from a backup?): it is read anew and compared; \
                    your copy of the former one is kept on this device";
        self.notice(Level::Warn, text, Some(id));
    }

    pub(in crate::client) fn on_subscribed(&mut self, log: RoomId, after: Seq, chain: Digest, position: Position, now_ms: u64) {
        if !self.is_latest(log) || self.was_stale(log) {
            return;
        }
        let Some(room) = self.rooms.get_mut(&log) else { return };
        if let Some(known) = room.record.log.filter(|known| *known != position.log) {
            // Deleted and made anew since it was entered.
            room.wire.stale = true;
            self.log_changed(log, known, position.log);
            self.was_stale(log);
            return;
        }
        let head = room.timeline.head();
        let mut lacks_change = false;
        match room.timeline.chain_at(head) {
            // Below the server's floor, or a copy whose beginning is unknown: what lies between cannot be checked.
            _ if after > head => {
                if after.checked_add(1) != Some(position.floor) || after > position.head {
                    let said = Said::Next(after.saturating_add(1));
                    return self.contradiction(log, "the server left out messages that it says it has", said, now_ms);
                }
                room.timeline.skip_to(after, Some(chain));
                lacks_change = room.timeline.handshake() < room.wire.handshake && room.wire.handshake <= after;
                let text = format!("messages {} to {after} are no longer on the server: they cannot be checked", head + 1);
                self.notice(Level::Info, &text, Some(log));
            }
            Some(known) if after == head && known != chain => {
                let said = Said::Chain { at: after, chain };
                return self.contradiction(log, "the server's history is not the one that this device has seen", said, now_ms);
            }
            // Where this device came in.
            None if after == head => room.timeline.skip_to(after, Some(chain)),
            _ => {}
        }
        let Some(room) = self.rooms.get_mut(&log) else { return };
        if lacks_change && room.place.seat().is_some() {
            return self.rejoin(log, None, now_ms);
        }
        room.wire.subscribed = Some(position.head);
        self.up_to_date(log, now_ms);
        self.tell_room(log);
    }

    pub(in crate::client) fn on_page(&mut self, page: &Page, now_ms: u64) {
        if !self.rooms.contains_key(&page.room) {
            return self.on_own_inbox(page, now_ms);
        }
        let id = page.room;
        let Some(room) = self.rooms.get_mut(&id) else { return };
        if room.wire.stopped || room.wire.subscribed.is_none() {
            return;
        }
        if let Err(error) = room.timeline.follows(page) {
            let said = match error {
                Discontinuity::Gap { first, .. } => Said::Next(first),
                Discontinuity::Chain { first } => Said::Chain { at: first.saturating_sub(1), chain: page.chain },
            };
            return self.contradiction(id, &error.to_string(), said, now_ms);
        }
        for item in &page.items {
            if !self.take_item(id, item, now_ms) {
                return;
            }
        }
        self.up_to_date(id, now_ms);
        self.tell_room(id);
    }

    /// Takes the next record of the log; `false` when nothing more can be taken.
    fn take_item(&mut self, id: RoomId, item: &Item, now_ms: u64) -> bool {
        let Some(room) = self.rooms.get_mut(&id) else { return false };
        let header = Header::parse(&item.envelope).ok();
        let entry = match header {
            Some(header) if header.kind == Kind::Handshake => match self.take_change(id, item, now_ms) {
                Ok(entry) => entry,
                Err(complaint) => {
                    // A room that is being deleted is not come into again.
                    if self.rooms.get(&id).is_some_and(|room| room.record.stage == Stage::Joined) {
                        self.rejoin(id, complaint, now_ms);
                    }
                    return false;
                }
            },
            _ => room.read(header.as_ref(), item),
        };
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return false };
        let entry = match (entry, header) {
            (Entry::Sealed, Some(header)) => room.sent(&me.identity, header.message).map_or(Entry::Sealed, Entry::Sent),
            (entry, _) => entry,
        };
        let mut record = room.timeline.record(item, entry);
        if matches!(record.entry, Entry::Change(_)) {
            // How old an epoch is the server does not make less.
            record.time_ms = record.time_ms.min(now_ms);
        }
        let applied = room.apply(&record);
        let seq = room.timeline.head();
        let mut persist = vec![(log_key(id, seq), Some(encode(&record)))];
        let own = match &applied {
            Applied::Message { opened, .. } if opened.sender.device == me.identity.device() => {
                Some((opened.message, Some((opened.session, opened.counter))))
            }
            Applied::Sent(sent) => Some((sent.message, None)),
            _ => None,
        };
        let restored = own.is_some_and(|(message, named)| room.outbox.is_outrun(message, named, record.digest));
        persist.extend(own.into_iter().filter_map(|(message, _)| room.outbox.found_in_log(message)).flatten());
        if restored {
            persist.extend(room.outbox.restart(ProducerId(self.rng.bytes())));
        }
        let event = room.message_view(&me.identity, seq);
        let (going_on, is_past) = (room.record.stage != Stage::Removed, room.past.as_ref().is_some_and(|past| past.covers(seq)));
        self.persist_all(persist);
        if restored {
            self.renew_restored(id);
        }
        if let Some(message) = event {
            self.outputs.push_back(Output::Event(Event::Message { room: id.to_string(), message }));
        }
        match applied {
            Applied::Message { opened, check } => {
                if check == Check::Contradicts {
                    self.notice(Level::Alarm, &format!("message {seq} contradicts what this device has seen"), Some(id));
                }
                self.heed(id, &opened, is_past, now_ms);
            }
            Applied::Change(change) => {
                if !is_past {
                    self.look_at_arrivals(id, &change);
                }
                if going_on && !is_past && change.took_anybody_out() {
                    self.enter_anew(id);
                }
                self.settle_invites(id, now_ms);
                self.tell_link(id, &change, now_ms);
                self.forget_secrets(id, now_ms);
                self.open_letters(now_ms);
            }
            Applied::Injected if record.entry == Entry::Usurped => {
                if going_on && !is_past {
                    self.enter_anew(id);
                }
            }
            Applied::Injected if record.entry == Entry::Invalid => {}
            Applied::Injected => {
                self.notice(Level::Warn, &format!("record {seq} was written by nobody in this room; it is not shown"), Some(id));
            }
            Applied::Sent(_) | Applied::Post(_) | Applied::Nothing => {}
        }
        if !going_on && self.rooms.get(&id).is_some_and(|room| room.record.leaving) {
            self.forget(id);
        } else if !going_on {
            self.leave_group(id);
            self.rooms
                .get_mut(&id)
                .into_iter()
                .for_each(|room| room.wire = RoomWire { asked: room.wire.asked, ..RoomWire::default() });
            self.send(&ClientFrame::Leave { room: id });
            self.notice(Level::Info, "this device was removed from the room; your copy is kept until you forget it", Some(id));
            self.tell_room(id);
        }
        going_on
    }

    /// What a message says besides what people read.
    pub(super) fn heed(&mut self, id: RoomId, opened: &OpenedRecord, is_past: bool, now_ms: u64) {
        match opened.content.message() {
            Message::Device(certificate) => self.learn_device(&certificate, now_ms),
            Message::Devices(list) if list.user == opened.sender.user && list.is_signed() => self.learn_devices(&list),
            Message::Link(link) => {
                if !is_past {
                    self.learn_link(id, opened.sender.user, link);
                }
                self.forget_secrets(id, now_ms);
            }
            Message::DropBox(shared) => self.learn_drop_box(id, *shared, now_ms),
            Message::DropBoxClosed(counter) => self.on_drop_box_closed(id, opened.sender.user, counter),
            Message::Complaint(complaint) => self.on_complaint(id, opened.sender, complaint),
            Message::Leave(proposal) if !is_past => self.on_goodbye(id, opened.sender.device, proposal, now_ms),
            _ => {}
        }
    }

    /// Once everything is read that was there at subscribing: what follows from it, and what waits is sent.
    pub(in crate::client) fn up_to_date(&mut self, id: RoomId, now_ms: u64) {
        let Some(room) = self.rooms.get(&id) else { return };
        if !room.up_to_date() {
            return;
        }
        if room.reborn {
            // What the new life has of the outbox was found while reading it, unless it is on its way there: what is sealed
            // may have been sent before this client knew. Only the answer to the same bytes decides.
            if room.outbox.has_sealed() {
                return self.pump(id, now_ms);
            }
            // What was acked in the former life may not be in this one: a session that went on would look like one that
            // lost messages.
            let fresh = ProducerId(self.rng.bytes());
            let Some(room) = self.rooms.get_mut(&id) else { return };
            room.reborn = false;
            room.past = None;
            let mut persist = room.outbox.restart(fresh);
            persist.push((past_key(id), None));
            self.persist_all(persist);
        }
        self.close_the_past(id);
        self.answer_asks(id, now_ms);
        self.introduce(id, now_ms);
        self.tell_devices(id, now_ms);
        self.tell_devices_everywhere(now_ms);
        self.end_links(id, now_ms);
        self.look_at_way_in(id);
        self.settle_invites(id, now_ms);
        self.ask_for_packages(id);
        self.say_that_it_goes(id, now_ms);
        self.tend_drop_box(id, now_ms);
        self.pump(id, now_ms);
        self.tend_gaps(id, now_ms);
    }

    /// The past is read: what was in it is in this device's own copy now.
    fn close_the_past(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        if room.past.is_some() && room.is_past().is_none() {
            room.past = None;
            self.persist(past_key(id), None);
        }
    }

    /// Tells other devices of the same person of this one: what opens its inbox is in the certificate.
    fn introduce(&mut self, id: RoomId, now_ms: u64) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get(&id)) else { return };
        let known = room.timeline.introduced(me.identity.device()) || room.is_introduced();
        // Once on each connection: what this device does not recognise must not be said again and again.
        if room.place.seat().is_none() || known || room.wire.introduced || me.record.own_devices.is_empty() {
            return;
        }
        let certificate = Box::new(me.identity.certificate().clone());
        let letter = self.letter(Letter::Content(Content::new(&Message::Device(certificate))), now_ms);
        let Some(room) = self.rooms.get_mut(&id) else { return };
        room.wire.introduced = true;
        let persist = room.outbox.push(letter, true);
        self.persist_all(persist);
    }

    pub(in crate::client) fn on_failed(&mut self, log: RoomId, what: Operation, why: Refusal, now_ms: u64) {
        let id = log;
        if what == Operation::Subscribe && (!self.is_latest(id) || self.was_stale(id)) {
            return;
        }
        let Some(room) = self.rooms.get_mut(&id) else { return };
        if what == Operation::Enter {
            room.wire.entering = room.wire.entering.saturating_sub(1);
        }
        let later = room.wire.entering > 0;
        let (is_in, entered, has) = (room.record.stage == Stage::Joined, room.wire.entered, room.timeline.head());
        let (outside, added) = (room.record.stage == Stage::Invited, room.record.stage == Stage::Added);
        match (what, why) {
            (Operation::Subscribe, Refusal::CursorAhead { head }) => {
                let text = format!("the server has only {head} of the {has} messages that this device has seen");
                self.contradiction(id, &text, Said::Head(head), now_ms);
            }
            (Operation::Enter | Operation::Subscribe | Operation::Create | Operation::Handshake, why) if is_passing(why) => {
                self.try_again(id, now_ms);
            }
            (Operation::Enter, Refusal::BadProof) if is_in && later => {}
            (Operation::Enter, Refusal::BadProof) if is_in && room.timeline.is_usurped() => {
                self.put_key_back(id);
                self.shut_out(id, now_ms);
            }
            (Operation::Enter, Refusal::BadProof) if is_in => {
                if !self.try_former_key(id) {
                    self.ask_for_key(id, now_ms);
                    self.shut_out(id, now_ms);
                }
            }
            // An invitation that opens nothing takes nobody's way back.
            (Operation::Enter, Refusal::BadProof) if added && room.was_on_another_way() => self.missed(id),
            (Operation::Enter, Refusal::NoAccess | Refusal::BadProof) => self.shut_out(id, now_ms),
            // A former key opens what it opened, and not the newest change.
            (Operation::Handshake, Refusal::NoAccess) if entered && outside => {
                self.stay_outside(id, "what this device knows does not open the room any more: a member has to tell it", now_ms);
            }
            // The change that this device was told of is none that it may read.
            (Operation::Handshake, Refusal::NoAccess) if entered && added => self.missed(id),
            // The answer to the entering that failed says it.
            (Operation::Subscribe | Operation::Handshake, Refusal::NoAccess) => {}
            (Operation::Create, Refusal::RoomExists) => {}
            (Operation::Delete, Refusal::NoAccess) => self.remove(id),
            (Operation::Delete, Refusal::NotCreator) => {
                self.set_stage(id, Stage::Joined);
                self.notice(Level::Warn, "only the device that made the room can delete it", Some(id));
                self.begin(id);
                self.tell_room(id);
            }
            (Operation::Ephemeral, _) => {}
            (Operation::Fetch, _) => self.gap_refused(id, now_ms),
            (Operation::DropBox, why) => self.on_drop_box_refused(id, why, now_ms),
            (_, why) => self.notice(Level::Warn, &format!("the server refused: {why}"), Some(id)),
        }
    }

    /// The server cannot now; everything of this room begins again in a while.
    fn try_again(&mut self, id: RoomId, now_ms: u64) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        room.wire = RoomWire {
            stopped: room.wire.stopped,
            introduced: room.wire.introduced,
            asked: room.wire.asked,
            ..RoomWire::default()
        };
        room.shut_out = Some(("the server is busy; asking again".to_owned(), now_ms + ENTER_AGAIN_MS));
        self.tell_room(id);
    }

    /// What opens the room is unknown to the server: it may have been restored to a time when something else did. Each key that this device
    /// knows is tried once on a connection; all are kept.
    fn try_former_key(&mut self, id: RoomId) -> bool {
        let Some(room) = self.rooms.get_mut(&id).filter(|room| room.wire.keys_tried < room.record.former.len()) else {
            return false;
        };
        room.wire.keys_tried += 1;
        let record = &mut room.record;
        record.former.push((record.access, record.access_at));
        (record.access, record.access_at) = record.former.remove(0);
        self.persist_room(id);
        self.enter_anew(id);
        true
    }

    /// The server does not let this device in. Ask again later: who made the room may not have reached the server yet.
    pub(in crate::client) fn shut_out(&mut self, id: RoomId, now_ms: u64) {
        let Some(room) = self.rooms.get(&id) else { return };
        if room.record.stage == Stage::Invited && room.lost.is_some() {
            // What this device was told opens the room no more; a commit by which it comes in leads nowhere, or is in the log already.
            self.leave_group(id);
            self.ask_for_place(id, now_ms);
        }
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let why = match room.record.stage {
            Stage::Deleting => return self.remove(id),
            // Asked for while it is being made; the creation comes again.
            Stage::Creating => return,
            Stage::Invited => "the room is not on the server: it is gone, or not there yet, or the link was changed",
            _ if room.lost.is_some() => "what this device knows does not open the room any more: a member has to tell it",
            Stage::Added => "the room is not on the server any more, or the invitation is too old: ask for another one",
            _ if room.timeline.is_usurped() => {
                "a member has had the server lock the room; the device that made it opens it again"
            }
            _ => "the room is no longer on the server",
        };
        let first = room.shut_out.is_none();
        room.shut_out = Some((why.to_owned(), now_ms + ENTER_AGAIN_MS));
        if first {
            self.tell_room(id);
        }
    }

    pub(in crate::client) fn on_presence(&mut self, log: RoomId, online: &[DeviceKey], offline: &[DeviceKey]) {
        let Some(room) = self.rooms.get_mut(&log) else { return };
        if !core::mem::replace(&mut room.wire.presence, true) {
            room.online.clear();
        }
        room.online.extend(online);
        for device in offline {
            room.online.remove(device);
        }
        self.tell_room(log);
    }

    pub(in crate::client) fn on_ephemeral(&mut self, envelope: &Bytes) {
        let Ok(header) = Header::parse(envelope) else { return };
        let Some(room) = self.rooms.get_mut(&header.room) else { return };
        let opened = room.place.seat().and_then(|seat| seat.reader().open_ephemeral(envelope));
        let Some((sender, body)) = opened else { return };
        let heard = room.ephemerals.2.entry((sender.device, body.session)).or_default();
        if body.counter <= *heard {
            return;
        }
        *heard = body.counter;
        if body.content.message() == Message::Typing {
            let name = room.name_of(sender);
            self.outputs.push_back(Output::Event(Event::Typing { room: header.room.to_string(), name }));
        }
    }

    pub(in crate::client) fn on_deleted(&mut self, log: RoomId) {
        let id = log;
        if !self.rooms.contains_key(&id) {
            return;
        }
        if self.rooms.get(&id).is_some_and(|room| room.record.stage == Stage::Deleting) {
            return self.remove(id);
        }
        self.set_stage(id, Stage::Deleted);
        if let Some(room) = self.rooms.get_mut(&id) {
            room.wire = RoomWire::default();
        }
        self.notice(Level::Info, "the room was deleted by who made it; your copy is kept until you forget it", Some(id));
        self.tell_room(id);
    }

    pub(in crate::client) fn tell_room(&mut self, id: RoomId) {
        if let (Some(me), Some(room)) = (&self.me, self.rooms.get(&id)) {
            let room = room.view(&me.identity, &self.contacts);
            self.outputs.push_back(Output::Event(Event::Room { room }));
        }
    }

    /// The room and all of its messages, at start.
    pub(in crate::client) fn tell_history(&mut self, id: RoomId) {
        self.tell_room(id);
        let (Some(me), Some(room)) = (&self.me, self.rooms.get(&id)) else { return };
        let stored = room.shown.keys().filter_map(|seq| room.message_view(&me.identity, *seq));
        let waiting = room.waiting().filter_map(|out| room.out_view(&me.identity, &me.record.name, out));
        let events = stored.chain(waiting).map(|message| Output::Event(Event::Message { room: id.to_string(), message }));
        self.outputs.extend(events);
    }
}

/// Refusals that say nothing about the room.
const fn is_passing(why: Refusal) -> bool {
    why.is_transient() || matches!(why, Refusal::Internal | Refusal::TooManyRooms)
}
