//! Rooms come and go on this device: made, joined, forgotten, deleted.

use super::Room;
use super::asking::Gap;
use super::past::Past;
use super::place::{Place, Seat};
use crate::client::outbox::{Outbox, Persist};
use crate::client::records::{
    KnownLink, Letter, OutRecord, PastRecord, RoomBackup, RoomRecord, Stage, Who, encode, evidence_key, group_key, handshakes,
    invites_key, log_key, lost_key, past_key, posting_key, room_key,
};
use crate::client::timeline::Applied;
use crate::client::view::{Event, Level};
use crate::client::{Client, Output, Stored, people};
use crate::core::frame::{ClientFrame, LogKind};
use crate::core::id::{MessageId, ProducerId, RoomId, Seq};
use crate::core::login::access_message;
use crate::group::{Change, Group, LinkKeys, Suite};
use crate::seal::Random as _;
use crate::seal::body::{Message, tidy};
use crate::seal::epoch::access_key;
use crate::seal::identity::{Certificate, UserKey, sign_with_seed};
use crate::seal::invitation::Invitation;
use crate::seal::link::Link;
use std::collections::{BTreeMap, BTreeSet};

/// How long a link leads in: seven days.
pub(super) const LINK_LIFE_MS: u64 = 7 * 24 * 3600 * 1000;

impl Client {
    /// Rooms and outboxes as they were stored. `now_ms` is when this device begins to wait for others to carry out what it finds undone.
    pub(in crate::client) fn restore(&mut self, mut stored: Stored, now_ms: u64) {
        let mut goodbyes: BTreeMap<RoomId, Vec<_>> = BTreeMap::new();
        for (id, record) in core::mem::take(&mut stored.rooms) {
            let outbox = stored.outbox(id, id, &mut self.rng);
            let commits = stored.outbox(handshakes(id), id, &mut self.rng);
            let session = ProducerId(self.rng.bytes());
            let mut room = Room::new(id, record, outbox, commits, session);
            room.past = stored.pasts.remove(&id).map(|record| Past::new(id, record));
            room.lost = stored.losts.remove(&id);
            let gaps = stored.gaps.extract_if((id, 0)..=(id, Seq::MAX), |_, _| true);
            room.gaps = gaps.map(|((_, from), record)| Gap::new(from, record)).collect();
            // A log that is read anew is not known to its end.
            room.reborn = room.past.as_ref().is_some_and(|past| past.covers(u64::MAX - 1)) && room.record.stage == Stage::Joined;
            room.contradicted = stored.contradicted.remove(&id).unwrap_or_default();
            if let Some(record) = stored.postings.remove(&id) {
                room.posting = super::posting::Posting::load(record);
            }
            stored.invites.remove(&id).into_iter().for_each(|record| room.load_invites(record));
            // Whoever was taken out may not have come to letting go of it.
            if let Some(record) = stored.groups.remove(&id).filter(|_| room.record.stage != Stage::Removed) {
                match Place::restore(record, &mut self.rng) {
                    Ok(place) => room.place = place,
                    Err(_) => self.notice(Level::Warn, "what this device kept of the room's group is damaged", Some(id)),
                }
            }
            self.rooms.insert(id, room);
        }
        for ((id, seq), record) in core::mem::take(&mut stored.logs) {
            let Some(room) = self.rooms.get_mut(&id) else { continue };
            if seq != room.timeline.head() + 1 {
                // The first record here may be later than 1: what precedes it was below the floor.
                if room.timeline.head() != room.record.base || seq == 0 {
                    continue;
                }
                room.timeline.skip_to(seq - 1, None);
            }
            // Who said in this epoch that they go, and is there yet.
            match room.apply(&record) {
                Applied::Change(_) => drop(goodbyes.remove(&id)),
                Applied::Message { opened, .. } if room.is_past().is_none() => {
                    if let Message::Leave(proposal) = opened.content.message() {
                        goodbyes.entry(id).or_default().push((opened.sender.device, proposal));
                    }
                }
                _ => {}
            }
        }
        for (id, (device, proposal)) in goodbyes.into_iter().flat_map(|(id, all)| all.into_iter().map(move |one| (id, one))) {
            self.on_goodbye(id, device, proposal, now_ms);
        }
        let posts: BTreeSet<_> = stored.outboxes.keys().copied().collect();
        for log in posts {
            let outbox = stored.outbox(log, log, &mut self.rng);
            self.posts.insert(log, outbox);
        }
    }

    /// Makes a room: a group of one, and the commit that names it and lists its link; the server hears of it when there is a connection.
    /// A large one is of the classical suite.
    pub(in crate::client) fn create_room(&mut self, title: &str, large: bool, now_ms: u64) {
        let Some(me) = &self.me else { return };
        let id = RoomId(self.rng.bytes());
        let seed: [u8; 32] = self.rng.bytes();
        let host = me.identity.user();
        let suite = if large { Suite::X25519 } else { Suite::XWing };
        let Ok(group) = Group::create(id, suite, &me.identity, &mut self.rng) else {
            return self.notice(Level::Warn, "the room's group could not be made", None);
        };
        let record = RoomRecord {
            format: 5,
            origin: self.origin.clone(),
            access: group.epoch().secrets().access_seed(id),
            access_at: 0,
            former: Vec::new(),
            link: Some(KnownLink { seed, host }),
            stage: Stage::Creating,
            log: None,
            base: 0,
            leaving: false,
            renewed_ms: now_ms,
            direct: None,
            welcome: None,
            days: None,
        };
        let list = vec![LinkKeys::new(&seed).listed(false, now_ms + LINK_LIFE_MS)];
        let mut seat = Seat::new(group);
        seat.wants(Change { list, title: Some(tidy(title)), ..Change::default() });
        self.add_room(id, record, Place::In(Box::new(seat)));
        self.commit_wanted(id, now_ms);
        self.begin(id);
    }

    /// Makes a room for this person and another one: without a link, and without a name of its own. They come in by their key
    /// packages, and nothing is sealed before that.
    pub(in crate::client) fn create_direct(&mut self, peer: UserKey, now_ms: u64) -> Option<RoomId> {
        let me = self.me.as_ref()?;
        let id = RoomId(self.rng.bytes());
        let Ok(group) = Group::create(id, Suite::XWing, &me.identity, &mut self.rng) else {
            self.notice(Level::Warn, "the room's group could not be made", None);
            return None;
        };
        let record = RoomRecord {
            format: 5,
            origin: self.origin.clone(),
            access: group.epoch().secrets().access_seed(id),
            access_at: 0,
            former: Vec::new(),
            link: None,
            stage: Stage::Creating,
            log: None,
            base: 0,
            leaving: false,
            renewed_ms: now_ms,
            direct: Some(peer),
            welcome: None,
            days: None,
        };
        self.add_room(id, record, Place::In(Box::new(Seat::new(group))));
        self.begin(id);
        Some(id)
    }

    /// Joins by the link that another device of this person has handed over, with what opens the time before.
    pub(in crate::client) fn join_with(&mut self, backup: RoomBackup, now_ms: u64) {
        let Ok(link) = backup.link.parse::<Link>() else { return };
        let is_new = !self.rooms.contains_key(&link.room);
        self.join(&link, now_ms);
        let Some(room) = self.rooms.get_mut(&link.room).filter(|_| is_new && !backup.changes.is_empty()) else { return };
        let past = PastRecord { format: 2, until: u64::MAX, changes: backup.changes, climb: None };
        let value = encode(&past);
        room.record.base = backup.base;
        room.past = Some(Past::new(link.room, past));
        self.persist(past_key(link.room), Some(value));
        self.persist_room(link.room);
    }

    /// Joins by link; with a link into a room where this device is already, it is only remembered.
    pub(in crate::client) fn join(&mut self, link: &Link, now_ms: u64) {
        let known = KnownLink { seed: link.seed, host: link.host };
        let Some(room) = self.rooms.get_mut(&link.room) else {
            let record = RoomRecord {
                format: 5,
                origin: link.origin.clone(),
                access: link.access,
                access_at: u64::MAX,
                former: Vec::new(),
                link: Some(known),
                stage: Stage::Invited,
                log: None,
                base: 0,
                leaving: false,
                renewed_ms: now_ms,
                direct: None,
                welcome: None,
                days: None,
            };
            self.add_room(link.room, record, Place::Out);
            return self.begin(link.room);
        };
        let leads_in = room.live_link().is_some();
        match room.record.stage {
            Stage::Deleted | Stage::Removed | Stage::Invited | Stage::Missed => {
                room.set_link(Some(known));
                (room.record.access, room.record.access_at) = (link.access, u64::MAX);
                room.shut_out = None;
                room.record.leaving = false;
                if !matches!(room.place, Place::Joining(_)) {
                    self.leave_group(link.room);
                }
                self.set_stage(link.room, Stage::Invited);
                self.begin(link.room);
            }
            Stage::Joined if !leads_in => {
                room.set_link(Some(known));
                self.persist_room(link.room);
            }
            _ => {}
        }
        self.tell_room(link.room);
    }

    pub(super) fn add_room(&mut self, id: RoomId, record: RoomRecord, place: Place) {
        let mut producer = || ProducerId(self.rng.bytes());
        let outbox = Outbox::new(id, id, producer());
        let commits = Outbox::new(handshakes(id), id, producer());
        let mut room = Room::new(id, record, outbox, commits, producer());
        room.place = place;
        self.rooms.insert(id, room);
        self.persist_place(id);
        self.persist_room(id);
        self.tell_room(id);
    }

    pub(in crate::client) fn persist_room(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get(&id) else { return };
        let value = encode(&room.record);
        self.persist(room_key(id), Some(value));
    }

    pub(in crate::client) fn persist_place(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get(&id) else { return };
        let value = room.place.record().map(|record| encode(&record));
        self.persist(group_key(id), value);
    }

    pub(in crate::client) fn letter(&mut self, letter: Letter, now_ms: u64) -> OutRecord {
        OutRecord { message: MessageId(self.rng.bytes()), time_ms: now_ms, letter, sealed: None, failed: None }
    }

    pub(in crate::client) fn set_stage(&mut self, id: RoomId, stage: Stage) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        room.record.stage = stage;
        self.persist_room(id);
    }

    /// Begins the room on this connection: the first frames that its stage calls for.
    pub(in crate::client) fn begin(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get(&id) else { return };
        if !self.wire.is_attached() || room.wire.stopped {
            return;
        }
        let RoomRecord { access, access_at, stage, .. } = room.record.clone();
        match stage {
            Stage::Creating => self.send(&ClientFrame::Create { room: id, access: access_key(&access), kind: LogKind::Room }),
            Stage::Invited => {
                self.enter(id, access_at, &access);
                self.knock(id);
            }
            Stage::Deleting => {
                self.enter(id, access_at, &access);
                self.send(&ClientFrame::Delete { room: id });
            }
            Stage::Added => {
                self.enter(id, access_at, &access);
                self.ask_for_welcome(id);
            }
            Stage::Joined => self.enter_and_subscribe(id),
            Stage::Deleted | Stage::Removed | Stage::Missed => {}
        }
    }

    /// Delivery begins behind what this device has; should the log have another life, its `Entered` says so first. Whoever goes down the room's
    /// ladder subscribes once it is down.
    pub(in crate::client) fn enter_and_subscribe(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get(&id) else { return };
        let (access, access_at, after) = (room.record.access, room.record.access_at, room.timeline.head());
        self.enter(id, access_at, &access);
        if self.climb(id) {
            return;
        }
        self.rooms.get_mut(&id).into_iter().for_each(|room| room.wire.asked += 1);
        self.send(&ClientFrame::Subscribe { room: id, after });
    }

    /// Another key opens the room from here on; the server puts out who came in with the former one.
    pub(in crate::client) fn enter_anew(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        (room.wire.entered, room.wire.subscribed) = (false, None);
        self.enter_and_subscribe(id);
    }

    pub(in crate::client) fn enter(&mut self, log: RoomId, handshake: Seq, seed: &[u8; 32]) {
        if let Some(binding) = self.wire.binding() {
            let (_, proof) = sign_with_seed(seed, &access_message(binding, log));
            self.rooms.get_mut(&log).into_iter().for_each(|room| room.wire.entering += 1);
            self.send(&ClientFrame::Enter { room: log, handshake, proof });
        }
    }

    pub(in crate::client) fn on_created(&mut self, id: RoomId, now_ms: u64) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        room.wire.created = true;
        if room.record.stage == Stage::Creating {
            self.set_stage(id, Stage::Joined);
        }
        self.enter_and_subscribe(id);
        self.pump(id, now_ms);
    }

    /// Leaves the room on this device: its keys, its copy, its outbox.
    pub(in crate::client) fn forget(&mut self, id: RoomId) {
        self.send(&ClientFrame::Leave { room: id });
        self.remove(id);
    }

    pub(in crate::client) fn delete(&mut self, id: RoomId) {
        self.set_stage(id, Stage::Deleting);
        self.begin(id);
        self.tell_room(id);
    }

    pub(in crate::client) fn remove(&mut self, id: RoomId) {
        self.drop_gaps(id);
        let Some(room) = self.rooms.remove(&id) else { return };
        let mut persist: Vec<Persist> = room.timeline.seqs().map(|seq| (log_key(id, seq), None)).collect();
        let (gone, kept) = core::mem::take(&mut self.former).into_iter().partition(|(room, _)| *room == id);
        self.former = kept;
        let gone: Vec<(RoomId, String)> = gone;
        persist.extend(gone.into_iter().map(|(_, key)| (key, None)));
        persist.extend(room.outbox.forget());
        persist.extend(room.handshakes.forget());
        persist.push((group_key(id), None));
        persist.push((past_key(id), None));
        persist.push((evidence_key(id), None));
        persist.push((posting_key(id), None));
        persist.push((lost_key(id), None));
        persist.push((invites_key(id), None));
        persist.push((room_key(id), None));
        self.persist_all(persist);
        self.outputs.push_back(Output::Event(Event::RoomRemoved { room: id.to_string() }));
    }

    /// Hands the room's link to every other device of this person.
    pub(in crate::client) fn hand_to_own_devices(&mut self, id: RoomId, now_ms: u64) {
        let Some(me) = &self.me else { return };
        let devices = me.record.own_devices.clone();
        for certificate in &devices {
            self.hand_to_device(id, certificate, now_ms);
        }
    }

    pub(in crate::client) fn hand_to_device(&mut self, id: RoomId, certificate: &Certificate, now_ms: u64) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get(&id)) else { return };
        let is_in = room.everybody().iter().any(|who| who.device == certificate.device);
        if room.is_in() && !is_in && room.live_link().is_none() {
            let who = Who { device: certificate.device, user: certificate.user };
            return self.invite_devices(id, vec![who], now_ms);
        }
        let (false, Some(backup), Ok(public)) = (is_in, room.backup(), certificate.verify()) else { return };
        let whole = Invitation::seal(&encode(&backup), &public, &me.identity, &mut self.rng);
        // Where the past does not fit, the link alone leads in.
        let sealed = whole.or_else(|_| {
            let backup = RoomBackup { changes: Vec::new(), ..backup };
            Invitation::seal(&encode(&backup), &public, &me.identity, &mut self.rng)
        });
        if let Ok((inbox, envelope)) = sealed {
            let letter = self.letter(Letter::Envelope(envelope), now_ms);
            people::post(self, inbox, letter);
        }
    }
}
