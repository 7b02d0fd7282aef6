//! Rooms come and go on this device: made, joined, handed over, forgotten, deleted.

use super::{Invitation, Room};
use crate::client::outbox::{Outbox, Persist};
use crate::client::records::{Letter, OutRecord, RoomRecord, Stage, encode, log_key, room_key};
use crate::client::view::{Event, Level};
use crate::client::{Client, Output, Stored, people};
use crate::core::chain;
use crate::core::frame::{ClientFrame, LogKind, Page};
use crate::core::id::{LogId, MessageId, ProducerId, RoomId};
use crate::core::login::access_message;
use crate::seal::Random as _;
use crate::seal::body::{Message, Seen, tidy};
use crate::seal::epoch::{EpochKeys, EpochSecrets, access_key};
use crate::seal::hpke::XWingPrivate;
use crate::seal::identity::{Certificate, inbox_id, sign_with_seed};
use crate::seal::keyring::{FOR_DEVICE, FOR_INVITATION, Keyring, KeyringEpoch};
use crate::seal::link::Link;
use std::collections::BTreeSet;

impl Client {
    /// Rooms and outboxes as they were stored.
    pub(in crate::client) fn restore(&mut self, mut stored: Stored) {
        for (id, record) in core::mem::take(&mut stored.rooms) {
            let outbox = stored.outbox(id, &mut self.rng);
            let inbox = inbox_id(&XWingPrivate::from_seed(&record.invitation).1);
            let invite_outbox = stored.outbox(inbox, &mut self.rng);
            let session = ProducerId(self.rng.bytes());
            self.rooms.insert(id, Room::new(id, record, outbox, invite_outbox, session));
        }
        for ((id, seq), record) in core::mem::take(&mut stored.logs) {
            let Some(room) = self.rooms.get_mut(&id) else { continue };
            if seq != room.timeline.head() + 1 {
                // The first record here may be later than 1: what precedes it was below the floor.
                if room.timeline.head() != 0 || seq == 0 {
                    continue;
                }
                room.timeline.skip_to(seq - 1, None);
            }
            room.apply(&record);
        }
        let posts: BTreeSet<_> = stored.outboxes.keys().copied().collect();
        for log in posts {
            let outbox = stored.outbox(log, &mut self.rng);
            self.posts.insert(log, outbox);
        }
    }

    /// Makes a room: its secrets, its invitation, its keyring; the server hears of it when there is a connection.
    pub(in crate::client) fn create_room(&mut self, title: &str, now_ms: u64) {
        let Some(me) = &self.me else { return };
        let id = RoomId(self.rng.bytes());
        let invitation: [u8; 32] = self.rng.bytes();
        let secrets = EpochSecrets::random(&mut self.rng);
        let authenticator = secrets.authenticator(id, 1, &me.identity.user().0);
        let certificate = me.identity.certificate().clone();
        let issuer = certificate.hash();
        let keyring = Keyring {
            format: 1,
            room: id,
            counter: 1,
            creator: certificate.user,
            title: tidy(title),
            head_epoch: 1,
            seen: Seen { log: LogId([0; 16]), seq: 0, chain: chain::start(id) },
            invitation,
            invitation_issuer: issuer,
            epochs: vec![KeyringEpoch { number: 1, secrets, authenticator, roster: vec![issuer] }],
            issuer: certificate,
        };
        let (_, public) = XWingPrivate::from_seed(&invitation);
        let sealed = keyring.seal(&public, FOR_INVITATION, &me.identity, &mut self.rng);
        let Ok((_, envelope)) = sealed else { return self.notice(Level::Warn, "the room's keys could not be sealed", None) };
        let record = RoomRecord {
            format: 1,
            origin: self.origin.clone(),
            invitation,
            issuer,
            keyring: Some(keyring),
            stage: Stage::Creating,
            log: None,
        };
        self.add_room(id, record);
        let letter = self.letter(Letter::Envelope(envelope), now_ms);
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let persist = room.invite_outbox.push(letter, false);
        self.persist_all(persist);
        if !tidy(title).is_empty() {
            self.post(id, &Message::Topic(tidy(title)), now_ms);
        }
        self.hand_to_own_devices(id, now_ms);
        self.begin(id);
    }

    /// Joins by link; with a link that is known already, nothing changes.
    pub(in crate::client) fn join(&mut self, link: &Link, _now_ms: u64) {
        if let Some(room) = self.rooms.get(&link.room) {
            if room.record.stage == Stage::Deleted {
                self.set_stage(link.room, Stage::Invited);
                self.begin(link.room);
            }
            return self.tell_room(link.room);
        }
        let record = RoomRecord {
            format: 1,
            origin: link.origin.clone(),
            invitation: link.seed,
            issuer: link.issuer,
            keyring: None,
            stage: Stage::Invited,
            log: None,
        };
        self.add_room(link.room, record);
        self.begin(link.room);
    }

    /// A room whose keyring came from another device of this person, or from a backup.
    pub(in crate::client) fn add_handed_over(&mut self, origin: String, keyring: Keyring) {
        let id = keyring.room;
        if self.rooms.contains_key(&id) || keyring.epochs().is_err() {
            return;
        }
        let record = RoomRecord {
            format: 1,
            origin,
            invitation: keyring.invitation,
            issuer: keyring.invitation_issuer,
            keyring: Some(keyring),
            stage: Stage::Joined,
            log: None,
        };
        self.add_room(id, record);
        self.begin(id);
    }

    pub(in crate::client) fn add_room(&mut self, id: RoomId, record: RoomRecord) {
        let inbox = inbox_id(&XWingPrivate::from_seed(&record.invitation).1);
        let mut producer = || ProducerId(self.rng.bytes());
        let (outbox, invite_outbox, session) = (Outbox::new(id, producer()), Outbox::new(inbox, producer()), producer());
        self.persist(room_key(id), Some(encode(&record)));
        self.rooms.insert(id, Room::new(id, record, outbox, invite_outbox, session));
        self.tell_room(id);
    }

    pub(in crate::client) fn letter(&mut self, letter: Letter, now_ms: u64) -> OutRecord {
        OutRecord { message: MessageId(self.rng.bytes()), time_ms: now_ms, letter, sealed: None, failed: None }
    }

    pub(in crate::client) fn set_stage(&mut self, id: RoomId, stage: Stage) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        room.record.stage = stage;
        let value = encode(&room.record);
        self.persist(room_key(id), Some(value));
    }

    /// Begins the room on this connection: the first frames that its stage calls for.
    pub(in crate::client) fn begin(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get(&id) else { return };
        if !self.wire.is_attached() || room.wire.stopped {
            return;
        }
        match room.record.stage {
            Stage::Creating => {
                let inbox = ClientFrame::Create {
                    room: room.invitation.inbox,
                    access: access_key(&room.invitation.access_seed),
                    kind: LogKind::Inbox,
                };
                let create = room.keys.as_ref().map(|keys| ClientFrame::Create {
                    room: id,
                    access: access_key(&keys.current().secrets().access_seed(id)),
                    kind: LogKind::Room,
                });
                self.send(&inbox);
                create.into_iter().for_each(|create| self.send(&create));
            }
            Stage::Invited => {
                let (inbox, seed) = (room.invitation.inbox, room.invitation.access_seed);
                self.enter(inbox, &seed);
                self.send(&ClientFrame::Subscribe { room: inbox, after: 0 });
            }
            Stage::Deleting => {
                // The keys lie in the invitation's inbox: that goes first.
                let (inbox, seed) = (room.invitation.inbox, room.invitation.access_seed);
                let room_seed = room.keys.as_ref().map(|keys| keys.current().secrets().access_seed(id));
                self.enter(inbox, &seed);
                self.send(&ClientFrame::Delete { room: inbox });
                room_seed.into_iter().for_each(|seed| self.enter(id, &seed));
                self.send(&ClientFrame::Delete { room: id });
            }
            Stage::Joined => self.enter_and_subscribe(id),
            Stage::Deleted => {}
        }
    }

    /// Delivery begins behind what this device has; should the log have another life, its `Entered` says so first.
    fn enter_and_subscribe(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get(&id) else { return };
        let Some(keys) = &room.keys else { return };
        let (seed, after) = (keys.current().secrets().access_seed(id), room.timeline.head());
        self.enter(id, &seed);
        self.send(&ClientFrame::Subscribe { room: id, after });
    }

    pub(in crate::client) fn enter(&mut self, log: RoomId, seed: &[u8; 32]) {
        if let Some(binding) = self.wire.binding() {
            let (_, proof) = sign_with_seed(seed, &access_message(binding, log));
            self.send(&ClientFrame::Enter { room: log, handshake: 0, proof });
        }
    }

    /// The room that a log belongs to: its own, or that of the invitation whose inbox it is.
    pub(in crate::client) fn room_of(&self, log: RoomId) -> Option<RoomId> {
        if self.rooms.contains_key(&log) {
            return Some(log);
        }
        self.rooms.iter().find(|(_, room)| room.invitation.inbox == log).map(|(id, _)| *id)
    }

    pub(in crate::client) fn on_created(&mut self, log: RoomId, now_ms: u64) {
        let Some(id) = self.room_of(log) else { return };
        let Some(room) = self.rooms.get_mut(&id) else { return };
        if log == id {
            room.wire.created = true;
            self.enter_and_subscribe(id);
        } else {
            room.wire.inbox_created = true;
        }
        self.creation_done(id);
        self.pump(id, now_ms);
    }

    /// The room is made once the server has it and the keyring is where the link looks for it.
    pub(in crate::client) fn creation_done(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get(&id) else { return };
        if room.record.stage == Stage::Creating && room.wire.created && room.invite_outbox.is_empty() {
            self.set_stage(id, Stage::Joined);
        }
    }

    /// A page of an inbox: of an invitation, or this device's own.
    pub(in crate::client) fn on_inbox_page(&mut self, page: &Page, now_ms: u64) {
        let Some(id) = self.room_of(page.room) else { return self.on_own_inbox(page, now_ms) };
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let Invitation { private, public, .. } = &room.invitation;
        let issuer = room.record.issuer;
        let keyring = page.items.iter().find_map(|item| {
            let keyring = Keyring::open(private, public, FOR_INVITATION, issuer, &item.envelope).ok()?;
            (keyring.room == id && keyring.epochs().is_ok()).then_some(keyring)
        });
        if let (Some(keyring), Stage::Invited) = (keyring, &room.record.stage) {
            room.shut_out = None;
            room.keys = keyring.epochs().ok();
            room.record.keyring = Some(keyring);
            let inbox = page.room;
            self.set_stage(id, Stage::Joined);
            self.send(&ClientFrame::Leave { room: inbox });
            self.hand_to_own_devices(id, now_ms);
            self.begin(id);
            self.tell_room(id);
        }
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
        let Some(room) = self.rooms.remove(&id) else { return };
        let mut persist: Vec<Persist> = room.timeline.seqs().map(|seq| (log_key(id, seq), None)).collect();
        let (gone, kept) = core::mem::take(&mut self.former).into_iter().partition(|(room, _)| *room == id);
        self.former = kept;
        let gone: Vec<(RoomId, String)> = gone;
        persist.extend(gone.into_iter().map(|(_, key)| (key, None)));
        persist.extend(room.outbox.forget());
        persist.extend(room.invite_outbox.forget());
        persist.push((room_key(id), None));
        self.persist_all(persist);
        self.outputs.push_back(Output::Event(Event::RoomRemoved { room: id.to_string() }));
    }

    /// Seals the room's keyring to every other device of this person.
    pub(in crate::client) fn hand_to_own_devices(&mut self, id: RoomId, now_ms: u64) {
        let Some(me) = &self.me else { return };
        let devices = me.record.own_devices.clone();
        for certificate in &devices {
            self.hand_to_device(id, certificate, now_ms);
        }
    }

    pub(in crate::client) fn hand_to_device(&mut self, id: RoomId, certificate: &Certificate, now_ms: u64) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get(&id)) else { return };
        let (Some(keyring), Ok(public)) = (room.keyring(), certificate.verify()) else { return };
        let seen = room.record.log.map_or(keyring.seen, |log| room.timeline.seen(log));
        let keyring =
            Keyring { issuer: me.identity.certificate().clone(), counter: keyring.counter + 1, seen, ..keyring.clone() };
        if let Ok((inbox, envelope)) = keyring.seal(&public, FOR_DEVICE, &me.identity, &mut self.rng) {
            let letter = self.letter(Letter::Envelope(envelope), now_ms);
            people::post(self, inbox, letter);
        }
    }
}
