//! One room on this device, and what the client does in it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{
    Client, Stored,
    outbox::{Outbox, Persist, Settled, ToSeal},
    people,
    records::{Letter, LogRecord, OpenedRecord, OutRecord, RoomRecord, Stage, encode, former_key, log_key, room_key},
    timeline::{Applied, Timeline},
    view::{self, Author, Check, Event, Level, Member, MessageKind, MessageState},
};
use crate::{
    core::{
        chain,
        close::Refusal,
        envelope::{Kind, NOT_A_MEMBER},
        frame::{ClientFrame, LogKind, Operation, Page, Position, Publish},
        id::{DeviceKey, Digest, LogId, MessageId, ProducerId, RoomId, Seq},
        login::access_message,
    },
    seal::{
        Random as _,
        body::{Body, Content, Join, Message, Seen, TEXT_LEN_MAX, tidy},
        epoch::{EpochKeys, EpochSecrets, HandedOver, access_key},
        hpke::{XWingPrivate, XWingPublic},
        identity::{Identity, inbox_access_seed, inbox_id, sign_with_seed},
        keyring::{FOR_DEVICE, FOR_INVITATION, Keyring, KeyringEpoch},
        link::Link,
        message::{self, SealError},
        words::words,
    },
};

/// Say "typing" at most this often.
const TYPING_EVERY_MS: u64 = 3_000;

/// Ask again after this long to be let into a room that the server does not have.
const ENTER_AGAIN_MS: u64 = 5_000;

/// A room on this device.
#[derive(Debug)]
pub(super) struct Room {
    id: RoomId,
    record: RoomRecord,
    invitation: Invitation,
    keys: Option<HandedOver>,
    timeline: Timeline,
    /// Log records of which a message was shown, oldest first: what a person scrolls through.
    shown: BTreeMap<Seq, Shown>,
    outbox: Outbox,
    /// Carries the keyring to the invitation's inbox.
    invite_outbox: Outbox,
    online: BTreeSet<DeviceKey>,
    wire: RoomWire,
    retry_at_ms: Option<u64>,
    /// The server does not let this device in: why, in words, and when to ask again.
    shut_out: Option<(String, u64)>,
    typed_ms: u64,
    /// Ephemeral messages sent, and the highest counters heard.
    ephemerals: (ProducerId, u64, BTreeMap<(u64, ProducerId), u64>),
}

/// The inbox whose key the link carries.
#[derive(Debug)]
struct Invitation {
    private: XWingPrivate,
    public: XWingPublic,
    inbox: RoomId,
    access_seed: [u8; 32],
}

/// A message as it was shown.
#[derive(Debug)]
struct Shown {
    time_ms: u64,
    digest: Digest,
    check: Check,
    opened: Box<OpenedRecord>,
}

/// How far the room is on this connection.
#[derive(Debug, Default, PartialEq, Eq)]
struct RoomWire {
    created: bool,
    inbox_created: bool,
    entered: bool,
    /// The head at the time of subscribing: once reached, the room is up to date.
    subscribed: Option<Seq>,
    /// The server contradicted this device's copy: nothing more is taken from it.
    stopped: bool,
}

impl Room {
    pub(super) fn new(id: RoomId, record: RoomRecord, outbox: Outbox, invite_outbox: Outbox, session: ProducerId) -> Self {
        let (private, public) = XWingPrivate::from_seed(&record.invitation);
        let invitation =
            Invitation { inbox: inbox_id(&public), access_seed: inbox_access_seed(&record.invitation), private, public };
        let keys = record.keyring.as_ref().and_then(|keyring| keyring.epochs().ok());
        let mut timeline = Timeline::new(id);
        record.log.into_iter().for_each(|log| timeline.set_log(log));
        Self {
            id,
            record,
            invitation,
            keys,
            timeline,
            shown: BTreeMap::new(),
            outbox,
            invite_outbox,
            online: BTreeSet::new(),
            wire: RoomWire::default(),
            retry_at_ms: None,
            shut_out: None,
            typed_ms: 0,
            ephemerals: (session, 0, BTreeMap::new()),
        }
    }

    pub(super) fn disconnected(&mut self) {
        self.wire = RoomWire { stopped: self.wire.stopped, ..RoomWire::default() };
        self.online.clear();
        self.outbox.disconnected();
        self.invite_outbox.disconnected();
        self.retry_at_ms = None;
        self.shut_out = None;
    }

    /// Whether the outbox may be tried again.
    pub(super) fn retry_due(&self, now_ms: u64) -> bool {
        self.retry_at_ms.is_some_and(|at_ms| now_ms >= at_ms)
    }

    /// Whether to ask again to be let in; then not again for a while.
    pub(super) fn ask_again(&mut self, now_ms: u64) -> bool {
        let due = self.shut_out.as_mut().filter(|(_, at_ms)| now_ms >= *at_ms);
        due.map(|(_, at_ms)| *at_ms = now_ms + ENTER_AGAIN_MS).is_some()
    }

    pub(super) fn retry_at(&self) -> Option<u64> {
        self.shut_out.iter().map(|(_, at_ms)| *at_ms).chain(self.retry_at_ms).min()
    }

    pub(super) const fn keyring(&self) -> Option<&Keyring> {
        self.record.keyring.as_ref()
    }

    pub(super) fn origin(&self) -> &str {
        &self.record.origin
    }

    /// Takes the next record; remembers what is to be shown.
    fn apply(&mut self, record: &LogRecord) -> Applied {
        let applied = self.timeline.apply(record);
        if let Applied::Message { check, opened } = &applied {
            let shown = Shown { time_ms: record.time_ms, digest: record.digest, check: *check, opened: opened.clone() };
            self.shown.insert(self.timeline.head(), shown);
        }
        applied
    }

    fn link(&self) -> Link {
        let RoomRecord { origin, invitation, issuer, .. } = &self.record;
        Link { origin: origin.clone(), room: self.id, seed: *invitation, issuer: *issuer }
    }

    fn view(&self, me: &Identity) -> view::Room {
        let owner = self.record.keyring.as_ref().is_some_and(|keyring| keyring.creator == me.user());
        let (state, reason) = match &self.record.stage {
            _ if self.wire.stopped => {
                (view::RoomState::Refused, Some("the server's history contradicts what this device has seen".to_owned()))
            }
            Stage::Deleted | Stage::Deleting => (view::RoomState::Deleted, None),
            _ if self.shut_out.is_some() => (view::RoomState::Refused, self.shut_out.as_ref().map(|(why, _)| why.clone())),
            _ if self.timeline.leaf_of(me.device()).is_some() => (view::RoomState::Open, None),
            Stage::Creating | Stage::Invited | Stage::Joined => (view::RoomState::Joining, None),
        };
        let title = match (self.timeline.title(), &self.record.keyring) {
            ("", Some(keyring)) => tidy(&keyring.title),
            (title, _) => title.to_owned(),
        };
        let (words_at, chain) = self.timeline.words_at();
        let authenticator = self.keys.as_ref().map_or(Digest([0; 32]), |keys| keys.current().authenticator);
        let hash = chain::digest(&[&b"waxwing room words v1"[..], &authenticator.0, &chain.0].concat());
        view::Room {
            id: self.id.to_string(),
            title,
            link: self.link().to_string(),
            owner,
            state,
            reason,
            members: self.members(me),
            head: self.timeline.head(),
            up_to_date: self.up_to_date(),
            settled: self.settled(),
            integrity: self.timeline.integrity(),
            words: words(&hash.0),
            words_at,
        }
    }

    /// Everything is read that was there at subscribing.
    fn up_to_date(&self) -> bool {
        !self.wire.stopped && self.wire.subscribed.is_some_and(|head| self.timeline.head() >= head)
    }

    /// Nothing waits: the room is made, and every message is acked or given up.
    fn settled(&self) -> bool {
        let waits = |outbox: &Outbox| outbox.iter().any(|out| out.failed.is_none());
        self.record.stage == Stage::Joined && !waits(&self.outbox) && !waits(&self.invite_outbox)
    }

    fn members(&self, me: &Identity) -> Vec<Member> {
        let mut people: BTreeMap<_, (String, BTreeSet<DeviceKey>)> = BTreeMap::new();
        for joined in self.timeline.members().values() {
            let Join { certificate, name } = &joined.join;
            let entry = people.entry(certificate.user).or_default();
            entry.0.clone_from(name);
            entry.1.insert(certificate.device);
        }
        let member = |(user, (name, devices)): (crate::seal::identity::UserKey, (String, BTreeSet<DeviceKey>))| Member {
            user: user.to_string(),
            name,
            you: user == me.user(),
            online: devices.iter().any(|device| self.online.contains(device)),
            devices: u32::try_from(devices.len()).unwrap_or(u32::MAX),
        };
        people.into_iter().map(member).collect()
    }

    /// A message of the log, for people; `None` for what is not shown as one.
    fn message_view(&self, me: &Identity, seq: Seq) -> Option<view::Message> {
        let Shown { time_ms, digest, check, opened } = self.shown.get(&seq)?;
        let join = &self.timeline.members().get(&opened.leaf)?.join;
        let author = Author { user: join.certificate.user.to_string(), name: join.name.clone() };
        let (kind, text) = content_view(&opened.content.message())?;
        let mine = join.certificate.user == me.user();
        let of_this_device = join.certificate.device == me.device();
        Some(view::Message {
            key: if of_this_device { opened.message.to_string() } else { MessageId(first_16(digest)).to_string() },
            seq: Some(seq),
            author,
            mine,
            kind,
            text,
            time_ms: *time_ms,
            state: if of_this_device { MessageState::Sent } else { MessageState::Received },
            reason: None,
            check: *check,
        })
    }

    /// A message of the outbox, for people.
    fn out_view(&self, me: &Identity, name: &str, out: &OutRecord) -> Option<view::Message> {
        let Letter::Content(content) = &out.letter else { return None };
        let (kind, text) = content_view(&content.message())?;
        if kind == MessageKind::Join {
            return None;
        }
        Some(view::Message {
            key: out.message.to_string(),
            seq: None,
            author: Author { user: me.user().to_string(), name: name.to_owned() },
            mine: true,
            kind,
            text,
            time_ms: out.time_ms,
            state: if out.failed.is_some() { MessageState::Failed } else { MessageState::Pending },
            reason: out.failed.clone(),
            check: Check::Unchecked,
        })
    }

    /// Whether this device's join is on its way.
    fn is_joining(&self) -> bool {
        self.outbox.iter().any(|out| matches!(&out.letter, Letter::Content(content) if content.kind == JOIN_KIND))
    }
}

/// The content number of [`Message::Join`].
const JOIN_KIND: u16 = 2;

fn first_16(digest: &Digest) -> [u8; 16] {
    digest.0.first_chunk().copied().unwrap_or_default()
}

fn content_view(message: &Message) -> Option<(MessageKind, String)> {
    match message {
        Message::Text(text) => Some((MessageKind::Text, text.clone())),
        Message::Join(join) => Some((MessageKind::Join, tidy(&join.name))),
        Message::Topic(title) => Some((MessageKind::Topic, tidy(title))),
        Message::Typing => None,
        Message::Unknown(fallback) if fallback.is_empty() => None,
        Message::Unknown(fallback) => Some((MessageKind::Unknown, fallback.clone())),
    }
}

impl Client {
    /// Rooms and outboxes as they were stored.
    pub(super) fn restore(&mut self, mut stored: Stored) {
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
                room.timeline.skip_to(seq - 1, Digest([0; 32]));
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
    pub(super) fn create_room(&mut self, title: &str, now_ms: u64) {
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
    pub(super) fn join(&mut self, link: &Link, _now_ms: u64) {
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
    pub(super) fn add_handed_over(&mut self, origin: String, keyring: Keyring) {
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

    fn add_room(&mut self, id: RoomId, record: RoomRecord) {
        let inbox = inbox_id(&XWingPrivate::from_seed(&record.invitation).1);
        let mut producer = || ProducerId(self.rng.bytes());
        let (outbox, invite_outbox, session) = (Outbox::new(id, producer()), Outbox::new(inbox, producer()), producer());
        self.persist(room_key(id), Some(encode(&record)));
        self.rooms.insert(id, Room::new(id, record, outbox, invite_outbox, session));
        self.tell_room(id);
    }

    pub(super) fn letter(&mut self, letter: Letter, now_ms: u64) -> OutRecord {
        OutRecord { message: MessageId(self.rng.bytes()), time_ms: now_ms, letter, sealed: None, failed: None }
    }

    fn set_stage(&mut self, id: RoomId, stage: Stage) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        room.record.stage = stage;
        let value = encode(&room.record);
        self.persist(room_key(id), Some(value));
    }

    /// Begins the room on this connection: the first frames that its stage calls for.
    pub(super) fn begin(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get(&id) else { return };
        if !self.wire.is_online() || room.wire.stopped {
            return;
        }
        match room.record.stage {
            Stage::Creating => {
                let inbox = ClientFrame::Create {
                    room: room.invitation.inbox,
                    access: access_key(&room.invitation.access_seed),
                    kind: LogKind::Inbox,
                    epoch: 0,
                };
                let create = room.keys.as_ref().map(|keys| ClientFrame::Create {
                    room: id,
                    access: access_key(&keys.current().secrets().access_seed(id)),
                    kind: LogKind::Room,
                    epoch: keys.current().number,
                });
                self.send(&inbox);
                create.into_iter().for_each(|create| self.send(&create));
            }
            Stage::Invited => {
                let (inbox, seed) = (room.invitation.inbox, room.invitation.access_seed);
                self.enter(inbox, &seed);
                self.send(&ClientFrame::Subscribe { room: inbox, after: 0 });
            }
            Stage::Joined | Stage::Deleting => {
                if let Some(keys) = &room.keys {
                    let seed = keys.current().secrets().access_seed(id);
                    self.enter(id, &seed);
                }
            }
            Stage::Deleted => {}
        }
    }

    pub(super) fn enter(&mut self, log: RoomId, seed: &[u8; 32]) {
        if let Some(binding) = self.wire.binding() {
            let (_, proof) = sign_with_seed(seed, &access_message(binding, log));
            self.send(&ClientFrame::Enter { room: log, proof });
        }
    }

    /// The room that a log belongs to: its own, or that of the invitation whose inbox it is.
    pub(super) fn room_of(&self, log: RoomId) -> Option<RoomId> {
        if self.rooms.contains_key(&log) {
            return Some(log);
        }
        self.rooms.iter().find(|(_, room)| room.invitation.inbox == log).map(|(id, _)| *id)
    }

    pub(super) fn on_created(&mut self, log: RoomId, now_ms: u64) {
        let Some(id) = self.room_of(log) else { return };
        let Some(room) = self.rooms.get_mut(&id) else { return };
        if log == id {
            room.wire.created = true;
            let seed = room.keys.as_ref().map(|keys| keys.current().secrets().access_seed(id));
            seed.into_iter().for_each(|seed| self.enter(id, &seed));
        } else {
            room.wire.inbox_created = true;
        }
        self.pump(id, now_ms);
    }

    pub(super) fn on_entered(&mut self, log: RoomId, position: Position) {
        let Some(room) = self.rooms.get_mut(&log) else { return };
        if room.record.stage == Stage::Deleting {
            return self.send(&ClientFrame::Delete { room: log });
        }
        if core::mem::replace(&mut room.wire.entered, true) {
            return;
        }
        room.shut_out = None;
        match room.record.log {
            Some(known) if known != position.log => self.log_changed(log, known, position.log),
            Some(_) => {}
            None => {
                room.record.log = Some(position.log);
                room.timeline.set_log(position.log);
                let value = encode(&room.record);
                self.persist(room_key(log), Some(value));
            }
        }
        let Some(room) = self.rooms.get(&log) else { return };
        let after = room.timeline.head();
        self.send(&ClientFrame::Subscribe { room: log, after });
    }

    /// The server has another life of the log (it was restored from a backup, say). This device's copy is kept aside, and
    /// the log is read anew; what waits in the outbox is compared with it before it is sent.
    fn log_changed(&mut self, id: RoomId, known: LogId, now: LogId) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let head = room.timeline.head();
        let base = room.shown.keys().next().copied().unwrap_or(1);
        let mut moves: Vec<Persist> = Vec::new();
        for seq in base..=head {
            moves.push((log_key(id, seq), None));
        }
        for (seq, shown) in core::mem::take(&mut room.shown) {
            let Shown { time_ms, digest, opened, .. } = shown;
            let record = LogRecord { time_ms, digest, chain: Digest([0; 32]), opened: Some(*opened) };
            moves.push((former_key(id, known, seq), Some(encode(&record))));
        }
        room.timeline = Timeline::new(id);
        room.timeline.set_log(now);
        room.record.log = Some(now);
        let value = encode(&room.record);
        self.persist(room_key(id), Some(value));
        self.persist_all(moves);
        let text = "the server's log of this room was replaced (restored from a backup?): it is read anew and compared; \
                    your copy of the former one is kept on this device";
        self.notice(Level::Warn, text, Some(id));
    }

    pub(super) fn on_subscribed(&mut self, log: RoomId, after: Seq, chain: Digest, position: Position, now_ms: u64) {
        let Some(room) = self.rooms.get_mut(&log) else { return };
        let head = room.timeline.head();
        match room.timeline.chain_at(head) {
            // Below the server's floor, or a copy whose beginning is unknown: what lies between cannot be checked.
            _ if after > head => {
                room.timeline.skip_to(after, chain);
                let text = format!("messages {} to {after} are no longer on the server: they cannot be checked", head + 1);
                self.notice(Level::Info, &text, Some(log));
            }
            Some(known) if after == head && known != chain => {
                return self.contradiction(log, "the server's history is not the one that this device has seen");
            }
            _ => {}
        }
        let Some(room) = self.rooms.get_mut(&log) else { return };
        room.wire.subscribed = Some(position.head);
        self.up_to_date(log, now_ms);
        self.tell_room(log);
    }

    /// The server contradicts this device's copy: stop taking anything from it, keep the copy, say so.
    fn contradiction(&mut self, id: RoomId, text: &str) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        room.wire.stopped = true;
        room.timeline.contradicted();
        self.send(&ClientFrame::Leave { room: id });
        self.notice(Level::Alarm, text, Some(id));
        self.tell_room(id);
    }

    pub(super) fn on_page(&mut self, page: &Page, now_ms: u64) {
        if !self.rooms.contains_key(&page.room) {
            return self.on_inbox_page(page, now_ms);
        }
        let id = page.room;
        let Some(room) = self.rooms.get_mut(&id) else { return };
        if room.wire.stopped || room.wire.subscribed.is_none() {
            return;
        }
        if let Err(error) = room.timeline.follows(page) {
            return self.contradiction(id, &error.to_string());
        }
        for item in &page.items {
            self.take_item(id, item);
        }
        self.up_to_date(id, now_ms);
        self.tell_room(id);
    }

    fn take_item(&mut self, id: RoomId, item: &crate::core::frame::Item) {
        let Some(me) = &self.me else { return };
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let Some(keys) = &room.keys else { return };
        let record = room.timeline.record(keys, item);
        let applied = room.apply(&record);
        let seq = room.timeline.head();
        let mut persist = vec![(log_key(id, seq), Some(encode(&record)))];
        if let Applied::Message { opened, check } = applied {
            let mine = room
                .timeline
                .members()
                .get(&opened.leaf)
                .is_some_and(|joined| joined.join.certificate.device == me.identity.device());
            if mine {
                persist.extend(room.outbox.found_in_log(opened.message).into_iter().flatten());
            }
            let event = room.message_view(&me.identity, seq);
            self.persist_all(persist);
            if let Some(message) = event {
                self.outputs.push_back(super::Output::Event(Event::Message { room: id.to_string(), message }));
            }
            if check == Check::Contradicts {
                self.notice(Level::Alarm, &format!("message {seq} contradicts what this device has seen"), Some(id));
            }
            if let Message::Join(join) = opened.content.message() {
                self.learn_device(&join.certificate);
            }
        } else {
            self.persist_all(persist);
            self.notice(Level::Warn, &format!("record {seq} was written by nobody in this room; it is not shown"), Some(id));
        }
    }

    /// Once everything is read that was there at subscribing: join if this device has not, and send what waits.
    fn up_to_date(&mut self, id: RoomId, now_ms: u64) {
        let Some(me) = &self.me else { return };
        let Some(room) = self.rooms.get(&id) else { return };
        if !room.up_to_date() {
            return;
        }
        if room.timeline.leaf_of(me.identity.device()).is_none() && !room.is_joining() {
            let join = Join { certificate: me.identity.certificate().clone(), name: me.record.name.clone() };
            let letter = self.letter(Letter::Content(Content::new(&Message::Join(Box::new(join)))), now_ms);
            let Some(room) = self.rooms.get_mut(&id) else { return };
            let persist = room.outbox.push(letter, true);
            self.persist_all(persist);
        }
        self.pump(id, now_ms);
    }

    /// Seals and sends what may be sent.
    pub(super) fn pump(&mut self, id: RoomId, now_ms: u64) {
        self.settle(id, now_ms);
        let online = self.wire.is_online();
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        if !online || room.retry_at_ms.is_some_and(|at_ms| now_ms < at_ms) {
            return;
        }
        room.retry_at_ms = None;
        let mut persist = Vec::new();
        let mut publish = Vec::new();
        let mut failed = Vec::new();
        if room.wire.inbox_created || room.record.stage == Stage::Joined {
            let (pumped, _) = room.invite_outbox.pump(|_| Ok::<_, SealError>(None));
            persist.extend(pumped.persist);
            publish.extend(pumped.publish);
        }
        let caught_up = room.up_to_date();
        if let (true, Some(keys), Some(log)) = (caught_up, &room.keys, room.record.log) {
            let leaf = room.timeline.leaf_of(me.identity.device()).and_then(|leaf| u32::try_from(leaf).ok());
            let seen = room.timeline.seen(log);
            let rng = &mut self.rng;
            let (pumped, failures) = room.outbox.pump(|to_seal| seal(keys, leaf, seen, &me.identity, to_seal, rng));
            persist.extend(pumped.persist);
            publish.extend(pumped.publish);
            failed = failures;
        }
        for (message, error) in failed {
            persist.extend(room.outbox.fail(message, error.to_string()));
        }
        self.persist_all(persist);
        for publish in publish {
            self.send(&ClientFrame::Publish(publish));
        }
    }

    /// Acts on refusals.
    fn settle(&mut self, id: RoomId, now_ms: u64) {
        loop {
            let fresh = ProducerId(self.rng.bytes());
            let Some(room) = self.rooms.get_mut(&id) else { return };
            let (settled, persist) = match room.invite_outbox.settle(fresh) {
                (Settled::Nothing, _) => room.outbox.settle(fresh),
                other => other,
            };
            match &settled {
                Settled::RetryAfter(0) | Settled::Nothing | Settled::Failed(_) => {}
                Settled::RetryAfter(wait) => room.retry_at_ms = Some(now_ms + u64::from(*wait)),
                // The first form has one epoch: a newer one needs keys that nobody hands out yet.
                Settled::Reseal => room.retry_at_ms = Some(now_ms + 5_000),
            }
            let retry = room.retry_at_ms;
            self.persist_all(persist);
            match settled {
                Settled::Nothing => return,
                Settled::Failed(message) => self.tell_out(id, message),
                _ => retry.into_iter().for_each(|at_ms| self.outputs.push_back(super::Output::Timer { at_ms })),
            }
        }
    }

    pub(super) fn on_ack(&mut self, log: RoomId, producer: ProducerId, client_seq: u64, seq: Seq, now_ms: u64) {
        let Some(id) = self.room_of(log) else { return self.on_post_ack(log, producer, client_seq) };
        let Some(me) = &self.me else { return };
        let Some(room) = self.rooms.get_mut(&id) else { return };
        if log != id {
            let Some((_, persist)) = room.invite_outbox.acked(producer, client_seq) else { return };
            self.persist_all(persist);
        } else {
            // The message stays in sight until it comes back in the log.
            let waiting = room.outbox.iter().cloned().collect::<Vec<_>>();
            let Some((message, persist)) = room.outbox.acked(producer, client_seq) else { return };
            let out = waiting.iter().find(|out| out.message == message);
            let view = out.and_then(|out| room.out_view(&me.identity, &me.record.name, out));
            self.persist_all(persist);
            if let Some(view) = view {
                let message = view::Message { seq: Some(seq), state: MessageState::Sent, ..view };
                self.outputs.push_back(super::Output::Event(Event::Message { room: id.to_string(), message }));
            }
        }
        self.creation_done(id);
        self.pump(id, now_ms);
        if self.rooms.get(&id).is_some_and(Room::settled) {
            self.tell_room(id);
        }
    }

    /// The room is made once the server has it and the keyring is where the link looks for it.
    fn creation_done(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get(&id) else { return };
        if room.record.stage == Stage::Creating && room.wire.created && room.invite_outbox.is_empty() {
            self.set_stage(id, Stage::Joined);
        }
    }

    pub(super) fn on_refused(&mut self, publish: &Publish, why: Refusal, now_ms: u64) {
        let Some(id) = self.room_of(publish.room) else { return self.on_post_refused(publish, why) };
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let outbox = if publish.room == id { &mut room.outbox } else { &mut room.invite_outbox };
        outbox.refused(publish.producer, publish.client_seq, why);
        self.pump(id, now_ms);
    }

    pub(super) fn on_failed(&mut self, log: RoomId, what: Operation, why: Refusal, now_ms: u64) {
        let Some(id) = self.room_of(log) else { return };
        let Some(room) = self.rooms.get(&id) else { return };
        match (what, why) {
            (Operation::Subscribe, Refusal::CursorAhead { head }) if log == id => {
                let text =
                    format!("the server has only {head} of the {} messages that this device has seen", room.timeline.head());
                self.contradiction(id, &text);
            }
            (Operation::Enter, Refusal::NoAccess | Refusal::BadProof) => self.shut_out(id, now_ms),
            // The answer to the entering that failed says it.
            (Operation::Subscribe, Refusal::NoAccess) => {}
            (Operation::Create, Refusal::RoomExists) => {}
            (Operation::Delete, Refusal::NoAccess) => self.remove(id),
            (Operation::Ephemeral, _) => {}
            (_, why) => self.notice(Level::Warn, &format!("the server refused: {why}"), Some(id)),
        }
    }

    /// The server does not let this device in. Ask again later: who made the room may not have reached the server yet.
    fn shut_out(&mut self, id: RoomId, now_ms: u64) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let why = match room.record.stage {
            Stage::Deleting => return self.remove(id),
            // Asked for while it is being made; the creation comes again.
            Stage::Creating => return,
            Stage::Invited => "the room is not on the server: it is gone, or not there yet, or the link was changed",
            _ => "the room is no longer on the server",
        };
        let first = room.shut_out.is_none();
        room.shut_out = Some((why.to_owned(), now_ms + ENTER_AGAIN_MS));
        if first {
            self.tell_room(id);
        }
    }

    pub(super) fn on_presence(&mut self, log: RoomId, online: &[DeviceKey], offline: &[DeviceKey]) {
        let Some(room) = self.rooms.get_mut(&log) else { return };
        room.online.extend(online);
        for device in offline {
            room.online.remove(device);
        }
        self.tell_room(log);
    }

    pub(super) fn on_ephemeral(&mut self, envelope: &Bytes) {
        let Ok(header) = crate::core::envelope::Header::parse(envelope) else { return };
        let Some(room) = self.rooms.get_mut(&header.room) else { return };
        let Some((leaf, body)) = room.keys.as_ref().and_then(|keys| room.timeline.open_ephemeral(keys, envelope)) else { return };
        let heard = room.ephemerals.2.entry((leaf, body.session)).or_default();
        if body.counter <= *heard {
            return;
        }
        *heard = body.counter;
        let Some(joined) = room.timeline.members().get(&leaf) else { return };
        if body.content.message() == Message::Typing {
            let name = joined.join.name.clone();
            self.outputs.push_back(super::Output::Event(Event::Typing { room: header.room.to_string(), name }));
        }
    }

    pub(super) fn on_deleted(&mut self, log: RoomId) {
        let Some(id) = self.room_of(log).filter(|id| *id == log) else { return };
        if self.rooms.get(&id).is_some_and(|room| room.record.stage == Stage::Deleting) {
            return self.remove(id);
        }
        self.set_stage(id, Stage::Deleted);
        self.notice(Level::Info, "the room was deleted by who made it; your copy is kept until you forget it", Some(id));
        self.tell_room(id);
    }

    /// A page of an inbox: of an invitation, or this device's own.
    fn on_inbox_page(&mut self, page: &Page, now_ms: u64) {
        let Some(id) = self.room_of(page.room) else { return self.on_own_inbox(page, now_ms) };
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let Invitation { private, public, .. } = &room.invitation;
        let issuer = room.record.issuer;
        let keyring = page.items.iter().find_map(|item| {
            let keyring = Keyring::open(private, public, FOR_INVITATION, issuer, &item.envelope).ok()?;
            (keyring.room == id && keyring.epochs().is_ok()).then_some(keyring)
        });
        if let (Some(keyring), Stage::Invited) = (keyring, &room.record.stage) {
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

    /// Puts a message into the outbox and shows it.
    pub(super) fn post(&mut self, id: RoomId, message: &Message, now_ms: u64) {
        let letter = self.letter(Letter::Content(Content::new(message)), now_ms);
        let key = letter.message;
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let persist = room.outbox.push(letter, false);
        self.persist_all(persist);
        self.tell_out(id, key);
        self.pump(id, now_ms);
    }

    pub(super) fn send_text(&mut self, id: RoomId, text: &str, now_ms: u64) {
        let text = text.trim_end();
        if text.is_empty() {
            return;
        }
        if text.len() > TEXT_LEN_MAX {
            let text = format!("the message has {} bytes; {TEXT_LEN_MAX} fit", text.len());
            return self.notice(Level::Warn, &text, Some(id));
        }
        self.post(id, &Message::Text(text.to_owned()), now_ms);
    }

    pub(super) fn retry(&mut self, id: RoomId, key: &str, now_ms: u64) {
        let Some((out, persist)) = self.take_failed(id, key) else { return };
        self.persist_all(vec![persist]);
        self.outputs.push_back(super::Output::Event(Event::MessageRemoved { room: id.to_string(), key: key.to_owned() }));
        if let Letter::Content(content) = &out.letter {
            self.post(id, &content.message(), now_ms);
        }
    }

    pub(super) fn discard(&mut self, id: RoomId, key: &str) {
        if let Some((_, persist)) = self.take_failed(id, key) {
            self.persist_all(vec![persist]);
            self.outputs.push_back(super::Output::Event(Event::MessageRemoved { room: id.to_string(), key: key.to_owned() }));
        }
    }

    fn take_failed(&mut self, id: RoomId, key: &str) -> Option<(OutRecord, Persist)> {
        let message = key.parse().ok()?;
        self.rooms.get_mut(&id)?.outbox.take_failed(message)
    }

    pub(super) fn typing(&mut self, id: RoomId, now_ms: u64) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        let leaf = room.timeline.leaf_of(me.identity.device()).and_then(|leaf| u32::try_from(leaf).ok());
        let (Some(leaf), Some(keys)) = (leaf, &room.keys) else { return };
        if now_ms < room.typed_ms + TYPING_EVERY_MS || !room.wire.entered {
            return;
        }
        room.typed_ms = now_ms;
        room.ephemerals.1 += 1;
        let body = Body {
            session: room.ephemerals.0,
            counter: room.ephemerals.1,
            previous: Digest([0; 32]),
            seen: room.timeline.seen(room.record.log.unwrap_or(LogId([0; 16]))),
            content: Content::new(&Message::Typing),
        };
        let message = MessageId(self.rng.bytes());
        let sealed = message::seal(keys.current(), Kind::Ephemeral, leaf, message, &me.identity, &body, &mut self.rng);
        if let Ok(envelope) = sealed {
            self.send(&ClientFrame::Ephemeral { envelope });
        }
    }

    /// Leaves the room on this device: its keys, its copy, its outbox.
    pub(super) fn forget(&mut self, id: RoomId) {
        self.send(&ClientFrame::Leave { room: id });
        self.remove(id);
    }

    pub(super) fn delete(&mut self, id: RoomId) {
        self.set_stage(id, Stage::Deleting);
        self.send(&ClientFrame::Delete { room: id });
        self.tell_room(id);
    }

    fn remove(&mut self, id: RoomId) {
        let Some(room) = self.rooms.remove(&id) else { return };
        let mut persist: Vec<Persist> = (1..=room.timeline.head()).map(|seq| (log_key(id, seq), None)).collect();
        persist.extend(room.outbox.forget());
        persist.extend(room.invite_outbox.forget());
        persist.push((room_key(id), None));
        self.persist_all(persist);
        self.outputs.push_back(super::Output::Event(Event::RoomRemoved { room: id.to_string() }));
    }

    pub(super) fn tell_room(&mut self, id: RoomId) {
        if let (Some(me), Some(room)) = (&self.me, self.rooms.get(&id)) {
            let room = room.view(&me.identity);
            self.outputs.push_back(super::Output::Event(Event::Room { room }));
        }
    }

    fn tell_out(&mut self, id: RoomId, message: MessageId) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get(&id)) else { return };
        let out = room.outbox.iter().find(|out| out.message == message);
        if let Some(message) = out.and_then(|out| room.out_view(&me.identity, &me.record.name, out)) {
            self.outputs.push_back(super::Output::Event(Event::Message { room: id.to_string(), message }));
        }
    }

    /// The room and all of its messages, at start.
    pub(super) fn tell_history(&mut self, id: RoomId) {
        self.tell_room(id);
        let (Some(me), Some(room)) = (&self.me, self.rooms.get(&id)) else { return };
        let stored = room.shown.keys().filter_map(|seq| room.message_view(&me.identity, *seq));
        let waiting = room.outbox.iter().filter_map(|out| room.out_view(&me.identity, &me.record.name, out));
        let events = stored.chain(waiting).map(|message| super::Output::Event(Event::Message { room: id.to_string(), message }));
        self.outputs.extend(events);
    }

    /// Seals the room's keyring to every other device of this person.
    pub(super) fn hand_to_own_devices(&mut self, id: RoomId, now_ms: u64) {
        let Some(me) = &self.me else { return };
        let devices = me.record.own_devices.clone();
        for certificate in &devices {
            self.hand_to_device(id, certificate, now_ms);
        }
    }

    pub(super) fn hand_to_device(&mut self, id: RoomId, certificate: &crate::seal::identity::Certificate, now_ms: u64) {
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

/// Seals one message of the outbox; `None` while this device has not joined (except for the join itself).
fn seal(
    keys: &HandedOver,
    leaf: Option<u32>,
    seen: Seen,
    identity: &Identity,
    to_seal: ToSeal<'_>,
    rng: &mut super::ClientRandom,
) -> Result<Option<Bytes>, SealError> {
    let leaf = match (to_seal.content.kind == JOIN_KIND, leaf) {
        (true, _) => NOT_A_MEMBER,
        (false, Some(leaf)) => leaf,
        (false, None) => return Ok(None),
    };
    let ToSeal { content, message, session, counter, previous } = to_seal;
    let body = Body { session, counter, previous, seen, content: content.clone() };
    message::seal(keys.current(), Kind::Room, leaf, message, identity, &body, rng).map(Some)
}
