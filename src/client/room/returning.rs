//! Coming back after falling behind the group: by the link, where this device knows one that leads in, or else by asking the members of
//! the last epoch that it was in, through their inboxes. Whoever of them still has this device in the tree tells it what opens the room now. What it
//! missed it asks for once it is back ([`super::asking`]).

use super::place::Place;
use crate::client::records::{FORMER_ACCESS_MAX, KnownLink, Letter, LostRecord, Stage, Who, encode, lost_key};
use crate::client::view::Level;
use crate::client::{Client, people};
use crate::core::envelope::Header;
use crate::core::id::{DeviceKey, RoomId};
use crate::group::{Change, GroupInfo};
use crate::seal::Random as _;
use crate::seal::body::{Complaint, Content, Message};
use crate::seal::epoch::Epoch;
use crate::seal::hpke::{XWingPrivate, XWingPublic};
use crate::seal::identity::Certificate;
use crate::seal::returning::{Answer, Ask, Given, Wants, Way};
use bytes::Bytes;
use std::collections::BTreeMap;

/// So many members are asked at once; the next time the next ones.
const ASKED_AT_ONCE: usize = 8;
/// Asks again after this long, twice as long after each time, and at most after [`ASK_AGAIN_MAX_MS`].
const ASK_AGAIN_MS: u64 = 30_000;
const ASK_AGAIN_MAX_MS: u64 = 24 * 3600 * 1000;
/// Asks of one room that wait for this device to be up to date.
const ASKS_MAX: usize = 64;
/// One device is not answered more often than this.
const ANSWER_AGAIN_MS: u64 = 10_000;
/// The same for keys, which come in several answers where they are many.
const KEYS_AGAIN_MS: u64 = 1_000;
/// So many letters are kept that do not open, while rooms are read.
const LETTERS_MAX: usize = 32;

/// Who asked for their place.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// With the epochs that they are sealed to.
    waiting: Vec<(Ask, u64)>,
    /// When each was answered last, by whether it was about keys.
    answered: BTreeMap<(DeviceKey, bool), u64>,
}

impl Client {
    /// Keeps what this device needs to ask for its place, what it wanted there, and what it has to complain about.
    pub(super) fn remember_place(&mut self, id: RoomId, complaint: Option<Complaint>) {
        // Also where an older copy of its storage has read how it took its place again.
        let Some(Place::In(seat)) = self.rooms.get_mut(&id).map(|room| &mut room.place) else { return };
        if let Ok(Some(change)) = seat.group.withdraw() {
            seat.wants(change);
        }
        // Who said in an epoch that it goes, says nothing in another.
        let wanted = seat.wanted.take().map(|wanted| Change { leaves: Vec::new(), ..wanted });
        self.keep_lost(id, wanted.filter(|wanted| !wanted.is_empty()), complaint);
        self.open_gap(id);
    }

    fn keep_lost(&mut self, id: RoomId, wanted: Option<Change>, complaint: Option<Complaint>) {
        let name = self.rng.bytes();
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        let (Place::In(seat), online) = (&room.place, &room.online) else { return };
        let mut members: Vec<_> = seat.group.inboxes();
        members.retain(|(device, _)| *device != me.identity.device());
        members.sort_by_key(|(device, _)| !online.contains(device));
        let epoch = seat.group.epoch();
        let (_, xwing) = XWingPrivate::from_seed(&epoch.secrets().xwing);
        let lost = LostRecord {
            format: 1,
            epoch: epoch.number,
            authenticator: epoch.authenticator,
            xwing: xwing.to_bytes().into(),
            name,
            members,
            asked: 0,
            next_ms: 0,
            wanted,
            complaint,
        };
        let value = encode(&lost);
        room.lost = Some(lost);
        self.persist(lost_key(id), Some(value));
    }

    /// The server has forgotten all keys that this device knows: it keeps its place, and asks what opens the room now.
    pub(super) fn ask_for_key(&mut self, id: RoomId, now_ms: u64) {
        if self.rooms.get(&id).is_some_and(|room| room.lost.is_none()) {
            self.keep_lost(id, None, None);
        }
        self.ask_for_place(id, now_ms);
    }

    /// Asks some members, if it is time.
    pub(super) fn ask_for_place(&mut self, id: RoomId, now_ms: u64) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        let is_out = room.record.stage == Stage::Invited && matches!(room.place, Place::Out);
        let asks = is_out || room.record.stage == Stage::Joined;
        let Some(lost) = room.lost.as_mut().filter(|lost| asks && !lost.members.is_empty() && now_ms >= lost.next_ms) else {
            return;
        };
        let Ok(to) = XWingPublic::from_bytes(&lost.xwing) else { return };
        let ask = Ask::new(id, lost.name, Wants::Place, &me.identity);
        let from = (lost.asked as usize).wrapping_mul(ASKED_AT_ONCE) % lost.members.len();
        let inboxes = lost.members.iter().cycle().skip(from).take(ASKED_AT_ONCE.min(lost.members.len()));
        let at = (lost.epoch, lost.authenticator);
        let seal =
            |(_, inbox): &(DeviceKey, RoomId)| Some((*inbox, ask.seal(&to, at, *inbox, &me.identity, &mut self.rng).ok()?));
        let asks: Vec<_> = inboxes.filter_map(seal).collect();
        let wait_ms = ASK_AGAIN_MS.saturating_mul(1 << lost.asked.min(12)).min(ASK_AGAIN_MAX_MS);
        lost.asked = lost.asked.saturating_add(1);
        lost.next_ms = now_ms.saturating_add(wait_ms);
        let value = encode(lost);
        self.persist(lost_key(id), Some(value));
        for (inbox, envelope) in asks {
            self.post_letter(inbox, envelope, now_ms);
        }
    }

    pub(super) fn post_letter(&mut self, inbox: RoomId, envelope: Bytes, now_ms: u64) {
        let letter = self.letter(Letter::Envelope(envelope), now_ms);
        people::post(self, inbox, letter);
    }

    /// What came to this device's inbox from who is no other device of this person: an ask, or an answer to one. Anybody may post.
    pub(in crate::client) fn on_letter(&mut self, envelope: &Bytes, now_ms: u64) {
        let (Some(me), Ok(header)) = (&self.me, Header::parse(envelope)) else { return };
        if header.epoch == 0 {
            let (with, public) = (me.identity.inbox(), me.identity.inbox_public());
            let open = |name: &[u8; 32]| Some((*name, Answer::open(with, public, name, envelope).ok()?));
            let names = |room: &super::Room| room.lost.iter().map(|lost| lost.name).chain(room.asks()).collect::<Vec<_>>();
            let answer = self.rooms.iter().find_map(|(id, room)| Some((*id, names(room).iter().find_map(open)?)));
            match answer.filter(|(id, (_, answer))| answer.room == *id) {
                Some((id, (_, Answer { by, given: Given::Place { access, way }, .. }))) => {
                    self.on_place(id, &by, access, &way, now_ms)
                }
                Some((id, (name, Answer { by, given: Given::Keys(keys), .. }))) => {
                    self.on_keys(id, name, by.device, keys, now_ms)
                }
                None => {}
            }
            return;
        }
        let inbox = me.identity.inbox_id();
        let open = |epoch: Epoch| Ask::open(&epoch, inbox, envelope).ok();
        let ask = self.rooms.values().find_map(|room| room.epoch(header.epoch).and_then(open));
        let Some(ask) = ask else { return self.keep_letter(envelope) };
        let id = ask.room;
        if let Some(room) = self.rooms.get_mut(&id) {
            let about = |ask: &Ask| (ask.asking.device, ask.wants == Wants::Place);
            room.asked.waiting.retain(|(other, _)| about(other) != about(&ask));
            if room.asked.waiting.len() < ASKS_MAX {
                room.asked.waiting.push((ask, header.epoch));
            }
        }
        self.answer_asks(id, now_ms);
    }

    /// One that does not open may be of an epoch that this device has not read yet.
    fn keep_letter(&mut self, envelope: &Bytes) {
        let behind = self.rooms.values().any(|room| room.record.stage == Stage::Joined && !room.up_to_date());
        if behind && self.letters.len() < LETTERS_MAX {
            self.letters.push(envelope.clone());
        }
    }

    /// This device knows another epoch.
    pub(super) fn open_letters(&mut self, now_ms: u64) {
        for letter in core::mem::take(&mut self.letters) {
            self.on_letter(&letter, now_ms);
        }
    }

    /// Answers those who asked and have a place, once this device knows what there is.
    pub(super) fn answer_asks(&mut self, id: RoomId, now_ms: u64) {
        let Some(room) = self.rooms.get_mut(&id).filter(|room| room.up_to_date() && !room.reborn) else { return };
        for (ask, epoch) in core::mem::take(&mut room.asked.waiting) {
            self.answer_ask(id, &ask, epoch, now_ms);
        }
    }

    fn answer_ask(&mut self, id: RoomId, ask: &Ask, epoch: u64, now_ms: u64) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        let Some(seat) = room.place.seat() else { return };
        let asking = &ask.asking;
        // Who was removed has no place to come back to.
        let is_in = seat.roster.values().any(|who| (who.device, who.user) == (asking.device, asking.user));
        let about = (asking.device, ask.wants != Wants::Place);
        let again_ms = if about.1 { KEYS_AGAIN_MS } else { ANSWER_AGAIN_MS };
        let lately = room.asked.answered.get(&about).is_some_and(|at_ms| now_ms < at_ms.saturating_add(again_ms));
        if !is_in || lately || asking.device == me.identity.device() {
            return;
        }
        let given = match (ask.wants, room.live_link()) {
            (Wants::Keys { after }, _) => {
                let who = Who { device: asking.device, user: asking.user };
                Some(Given::Keys(room.keys_of(who, after, epoch)))
            }
            (Wants::Place, Some(link)) => {
                Some(Given::Place { access: room.record.access, way: Way::Link { seed: link.seed, host: link.host } })
            }
            (Wants::Place, None) => {
                let info = seat.group.group_info(&me.identity, &mut self.rng).ok();
                let way = info.map(|info| Way::Group { handshake: room.timeline.handshake(), info: info.encode().into() });
                way.map(|way| Given::Place { access: room.record.access, way })
            }
        };
        let Some(given) = given else { return };
        match Answer::seal(ask, given, &me.identity, &mut self.rng) {
            Ok((inbox, envelope)) => {
                room.asked.answered.retain(|_, at_ms| now_ms < at_ms.saturating_add(ANSWER_AGAIN_MS));
                room.asked.answered.insert(about, now_ms);
                self.post_letter(inbox, envelope, now_ms);
            }
            // The tree of a large room fits into no envelope: where this device may, it makes a link, and answers the next ask with it.
            Err(_) if room.role(me.identity.user()).is_some() => self.make_link(id, now_ms),
            Err(_) => {}
        }
    }

    /// A member says what opens the room now.
    fn on_place(&mut self, id: RoomId, by: &Certificate, access: [u8; 32], way: &Way, now_ms: u64) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        // An answer of somebody whom this device never met says nothing.
        let known = room.lost.as_ref().is_some_and(|lost| lost.members.iter().any(|(device, _)| *device == by.device));
        if known && room.record.stage == Stage::Joined && !matches!(room.place, Place::Joining(_)) {
            // Whether it does open the room the server says: until then others are listened to, and what this device knew is kept.
            if room.record.access != access {
                room.record.former.insert(0, (room.record.access, room.record.access_at));
                room.record.former.truncate(FORMER_ACCESS_MAX);
            }
            (room.record.access, room.record.access_at) = (access, u64::MAX);
            self.persist_room(id);
            return self.enter_anew(id);
        }
        let is_out = room.record.stage == Stage::Invited && matches!(room.place, Place::Out);
        if !known || !is_out || !room.handshakes.is_empty() {
            return;
        }
        let joining = match way {
            Way::Link { .. } => None,
            Way::Group { handshake, info } => {
                let joining = GroupInfo::decode(info).and_then(|info| info.join(id, None, now_ms, &me.identity, &mut self.rng));
                let Ok(joining) = joining else { return };
                Some((joining, *handshake))
            }
        };
        (room.record.access, room.record.access_at) = (access, u64::MAX);
        if let Way::Link { seed, host } = *way {
            room.set_link(Some(KnownLink { seed, host }));
        }
        self.persist_room(id);
        match joining {
            None => self.begin(id),
            Some((joining, after)) => {
                self.enter(id, u64::MAX, &access);
                self.come_in(id, joining, after, now_ms);
            }
        }
    }

    /// This device has its place again: it wants what it wanted, and says what it could not follow.
    pub(super) fn is_back(&mut self, id: RoomId, now_ms: u64) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let Some(lost) = room.lost.take() else { return };
        if let (Some(wanted), Some(seat)) = (lost.wanted, room.place.seat_mut()) {
            seat.wants(wanted);
            self.persist_place(id);
        }
        if let Some(complaint) = lost.complaint {
            let letter = self.letter(Letter::Content(Content::new(&Message::Complaint(complaint))), now_ms);
            let persist = self.rooms.get_mut(&id).map(|room| room.outbox.push(letter, false)).unwrap_or_default();
            self.persist_all(persist);
        }
        self.persist(lost_key(id), None);
    }

    /// A member could not follow a change of the group. Whether its device was at fault or whoever made the change, people have to find out:
    /// they are told who says it of whom.
    pub(super) fn on_complaint(&mut self, id: RoomId, from: Who, complaint: Complaint) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get(&id)) else { return };
        if from.device == me.identity.device() {
            return;
        }
        let (name, Complaint { seq, record }) = (room.name_of(from), complaint);
        let text = match room.shown.get(&seq) {
            Some(super::Shown { digest, what: super::What::Change(change, _), .. }) if *digest == record => {
                let by = room.name_of(change.by);
                format!("{name} could not follow a change of the group that {by} made (record {seq}), and came in again")
            }
            _ => format!("{name} says that record {seq} could not be followed; on this device it is no change that others took"),
        };
        self.notice(Level::Warn, &text, Some(id));
    }
}

impl super::Room {
    /// An epoch that this device is or was in, as far as it keeps it.
    fn epoch(&self, number: u64) -> Option<Epoch> {
        let now = self.place.seat().map(|seat| seat.group.epoch()).filter(|epoch| epoch.number == number);
        now.cloned().or_else(|| {
            let changes = self.shown.values().rev().filter_map(|shown| match &shown.what {
                super::What::Change(change, _) => Some(change),
                _ => None,
            });
            changes.into_iter().find(|change| change.epoch == number).and_then(|change| change.epoch_of(self.id))
        })
    }
}
