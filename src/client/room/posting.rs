//! The room's drop-box on this device: its keys, the posts that they open, and who has to say what of it.
//!
//! The person who opened it hosts it: a device of theirs announces the next key before the former one is over, and at once when somebody
//! went, who knew it. A key is said in the room before the server is told of it, so that whoever is there can read every post when it
//! comes; who comes in later is told it by a member, and opens then what came meanwhile.

use std::collections::BTreeMap;

use super::{Room, Shown, What};
use crate::client::records::{
    ChangeRecord, Entry, Letter, LogRecord, PostRecord, PostingRecord, Stage, Who, encode, log_key, posting_key,
};
use crate::client::view::{self, Author, Check, Event, Level, Message as MessageView, MessageKind, MessageState};
use crate::client::{Client, Output};
use crate::core::close::Refusal;
use crate::core::dropbox;
use crate::core::envelope::Header;
use crate::core::frame::{ClientFrame, DropBoxOffer, Item};
use crate::core::id::{MessageId, RoomId, Seq};
use crate::seal::Random as _;
use crate::seal::body::{Message, SharedDropBox, tidy};
use crate::seal::dropbox::{Address, Announcement, PostingKey};
use crate::seal::identity::{Identity, UserKey};

/// Keys that are kept of a room at most: those of more than a month, or of as many removals.
const KEYS_MAX: usize = 16;
/// Posts that wait for their key at most, and their bytes.
const LOCKED_MAX: usize = 256;
const LOCKED_BYTES_MAX: usize = 4 << 20;
/// The next key is announced so long before the former one is over.
const RENEW_MS: u64 = 24 * 3600 * 1000;
/// How much longer each next device waits before it does what one of them has to do.
const TURN_MS: u64 = 2_000;
/// The server is told again after this long, if it could not store it.
const AGAIN_MS: u64 = 5_000;
/// A counter that is so much higher than the last one is not taken.
const COUNTER_STEP_MAX: u64 = 1 << 16;
/// The content number of [`Message::DropBox`].
const SHARED_KIND: u16 = 7;

/// What this device knows of a room's drop-box.
#[derive(Debug, Default)]
pub(super) struct Posting {
    record: PostingRecord,
    /// Those of the record, in its order: that of the log.
    keys: Vec<PostingKey>,
    /// Posts whose key is not known.
    locked: BTreeMap<Seq, LogRecord>,
    locked_bytes: usize,
    /// This device has announced a key that has not come back in the log.
    announcing: Option<u64>,
    /// When to announce the next key, unless another device has.
    renew_at_ms: Option<u64>,
    /// When to tell those who came in, unless another member has.
    tell_at_ms: Option<u64>,
    /// What the server was told on this connection: the counter, 0 for nothing.
    put: Option<u64>,
    put_again_ms: Option<u64>,
}

impl Posting {
    pub(super) fn load(record: PostingRecord) -> Self {
        let (shared, keys) =
            record.keys.into_iter().filter_map(|shared| Some((shared.clone(), PostingKey::new(&shared)?))).unzip();
        Self { record: PostingRecord { keys: shared, ..record }, keys, ..Self::default() }
    }

    pub(super) fn disconnected(&mut self) {
        (self.announcing, self.renew_at_ms, self.put, self.put_again_ms) = (None, None, None, None);
    }

    /// The newest key, if the drop-box is open. It may be known to somebody who went.
    fn newest(&self) -> Option<&Announcement> {
        let newest = self.keys.iter().map(|key| &key.announcement).max_by_key(|announcement| announcement.counter)?;
        (newest.counter > self.record.closed).then_some(newest)
    }

    /// The newest key, if posts are to be sealed to it.
    fn current(&self) -> Option<&Announcement> {
        self.newest().filter(|newest| newest.counter > self.record.void)
    }

    fn counter(&self) -> u64 {
        let known = self.keys.iter().map(|key| key.announcement.counter).max().unwrap_or(0);
        known.max(self.record.closed).max(self.record.void)
    }

    fn must_renew(&self, now_ms: u64) -> bool {
        self.current().is_none_or(|current| now_ms.saturating_add(RENEW_MS) >= current.expires_ms)
    }

    /// What a record of kind 2 is.
    pub(super) fn read(&self, header: &Header, item: &Item) -> Entry {
        let mut keys = self.keys.iter().filter(|key| key.announcement.counter == header.epoch).peekable();
        let fits = self.locked.len() < LOCKED_MAX && self.locked_bytes + item.envelope.len() <= LOCKED_BYTES_MAX;
        match keys.peek() {
            None if fits => Entry::Locked(item.envelope.clone()),
            None => Entry::Foreign,
            Some(_) => keys.find_map(|key| opened(key, &item.envelope)).map_or(Entry::Foreign, Entry::Post),
        }
    }

    /// Notes a record that cannot be read yet.
    pub(super) fn lock(&mut self, seq: Seq, record: &LogRecord) {
        if let Entry::Locked(envelope) = &record.entry {
            self.locked_bytes += envelope.len();
            self.locked.insert(seq, record.clone());
        }
    }

    /// Takes out what this key opens, or nothing will.
    fn unlock(&mut self, counter: u64) -> Vec<(Seq, LogRecord)> {
        let keys = &self.keys;
        let mut read = Vec::new();
        let is_for = |record: &LogRecord| match &record.entry {
            Entry::Locked(envelope) => Header::parse(envelope).is_ok_and(|header| header.epoch == counter),
            _ => false,
        };
        for (seq, record) in self.locked.extract_if(.., |_, record| is_for(record)) {
            let Entry::Locked(envelope) = &record.entry else { continue };
            self.locked_bytes -= envelope.len();
            let post = keys.iter().filter(|key| key.announcement.counter == counter).find_map(|key| opened(key, envelope));
            read.push((seq, LogRecord { entry: post.map_or(Entry::Foreign, Entry::Post), ..record }));
        }
        read
    }

    /// Takes a key that was shared; the second one of a counter stands behind the first. Whether it was not known. Whoever hosts the newest
    /// one is the host.
    fn learn(&mut self, shared: SharedDropBox, key: PostingKey, me: UserKey) -> bool {
        if self.record.keys.contains(&shared) {
            return false;
        }
        if key.announcement.counter >= self.counter() {
            self.record.hosted = Some(key.announcement.opening).filter(|_| key.announcement.host() == me);
        }
        self.record.keys.push(shared);
        self.keys.push(key);
        if self.keys.len() > KEYS_MAX {
            self.record.keys.remove(0);
            self.keys.remove(0);
        }
        true
    }

    /// Forgets keys that are over. Whether there were some.
    fn forget(&mut self, now_ms: u64) -> bool {
        let before = self.keys.len();
        let counter = self.counter();
        let over: Vec<bool> = self.keys.iter().map(|key| key.announcement.is_over(now_ms)).collect();
        let mut keep = over.iter().map(|over| !over);
        self.keys.retain(|_| keep.next().unwrap_or(true));
        let mut keep = over.iter().map(|over| !over);
        self.record.keys.retain(|_| keep.next().unwrap_or(true));
        // Counters are never used again, also when nothing is known any more of what they were used for.
        if counter > self.counter() {
            self.record.void = counter;
        }
        before != self.keys.len()
    }
}

fn opened(key: &PostingKey, envelope: &[u8]) -> Option<PostRecord> {
    let (message, body) = key.open(envelope).ok()?;
    Some(PostRecord { message, name: tidy(&body.name), content: body.content })
}

impl Room {
    /// When this device has something to do about the drop-box.
    pub(super) fn posting_at(&self) -> Option<u64> {
        let Posting { renew_at_ms, tell_at_ms, put_again_ms, .. } = self.posting;
        let waits = self.up_to_date() && !self.reborn && self.record.stage == Stage::Joined && !self.record.leaving;
        let waits = waits && self.place.seat().is_some();
        let over_ms = self.posting.put.and_then(|_| Some(self.posting.current()?.expires_ms.saturating_sub(RENEW_MS)));
        let hosts = self.posting.record.hosted.is_some();
        let over_ms = over_ms.filter(|_| hosts && renew_at_ms.is_none() && !self.is_announcing());
        [renew_at_ms.filter(|_| !self.is_announcing()), tell_at_ms, put_again_ms, over_ms]
            .into_iter()
            .flatten()
            .filter(|_| waits)
            .min()
    }

    fn is_announcing(&self) -> bool {
        let is_key = |letter: &Letter| matches!(letter, Letter::Content(content) if content.kind == SHARED_KIND);
        self.posting.announcing.is_some() || self.outbox.iter().any(|out| out.failed.is_none() && is_key(&out.letter))
    }

    /// The place of this device among those in the tree for which `wanted` holds.
    fn rank(&self, me: &Identity, wanted: impl Fn(&Who) -> bool) -> Option<u64> {
        let mut devices = self.place.seat()?.roster.values().filter(|who| wanted(who)).map(|who| who.device);
        devices.position(|device| device == me.device()).and_then(|rank| u64::try_from(rank).ok())
    }

    /// The drop-box, for people: its address is for its host's devices.
    pub(super) fn drop_box(&self, me: &Identity) -> Option<Box<view::DropBox>> {
        let address = |opening| Address::hosted(&self.record.origin, self.id, opening, me).to_string();
        let hosted = self.posting.record.hosted;
        let host = hosted.map(|_| me.user()).or_else(|| self.posting.newest().map(Announcement::host))?;
        let device = self.place.seat()?.roster.values().find(|who| who.user == host).copied()?;
        Some(Box::new(view::DropBox { address: hosted.map(address).unwrap_or_default(), host: self.name_of(device) }))
    }

    /// A post, for people: whatever name it gives itself, nobody has to take it for a member.
    pub(super) fn post_view(&self, seq: Seq, shown: &Shown, post: &PostRecord) -> Option<MessageView> {
        let text = match post.content.message() {
            Message::Text(text) => text,
            Message::Unknown(fallback) if !fallback.is_empty() => fallback,
            _ => return None,
        };
        let name = if post.name.is_empty() { "somebody" } else { &post.name };
        Some(MessageView {
            key: MessageId(super::first_16(&shown.digest)).to_string(),
            seq: Some(seq),
            author: Author { user: dropbox::kept_under(self.id).to_string(), name: format!("{name} (not a member)") },
            mine: false,
            kind: MessageKind::Post,
            text,
            time_ms: shown.time_ms,
            state: MessageState::Received,
            reason: None,
            check: Check::Unchecked,
        })
    }
}

impl Client {
    fn persist_posting(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get(&id) else { return };
        let value = encode(&room.posting.record);
        self.persist(posting_key(id), Some(value));
    }

    /// Whether this person may open and close it; if not, that is said.
    fn may_host(&mut self, id: RoomId) -> bool {
        let role = self.me.as_ref().and_then(|me| self.rooms.get(&id)?.role(me.identity.user()));
        if role.is_none() {
            self.notice(Level::Warn, "only owners and moderators open and close the room's drop-box", Some(id));
        }
        role.is_some()
    }

    pub(in crate::client) fn open_drop_box(&mut self, id: RoomId, now_ms: u64) {
        if !self.may_host(id) {
            return;
        }
        let Some(room) = self.rooms.get(&id) else { return };
        if room.posting.record.hosted.is_some() || room.is_announcing() {
            return self.tell_room(id);
        }
        let counter = room.posting.counter().saturating_add(1);
        self.announce(id, counter, counter, now_ms);
    }

    /// Says the next key in the room. When it comes back in the log, the server is told.
    fn announce(&mut self, id: RoomId, counter: u64, opening: u64, now_ms: u64) {
        let seed: [u8; 32] = self.rng.bytes();
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        let announcement = Announcement::new((id, counter, opening), &seed, &me.identity, now_ms).encode();
        (room.posting.announcing, room.posting.renew_at_ms) = (Some(counter), None);
        if core::mem::take(&mut room.posting.record.closing) {
            self.persist_posting(id);
        }
        self.post(id, &Message::DropBox(Box::new(SharedDropBox { announcement, seed })), now_ms);
    }

    pub(in crate::client) fn close_drop_box(&mut self, id: RoomId, now_ms: u64) {
        if !self.may_host(id) {
            return;
        }
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let counter = room.posting.counter();
        if room.posting.newest().is_none() && room.posting.record.hosted.is_none() {
            return self.notice(Level::Info, "the room has no open drop-box", Some(id));
        }
        (room.posting.record.closed, room.posting.record.closing, room.posting.record.hosted) = (counter, true, None);
        self.persist_posting(id);
        self.post(id, &Message::DropBoxClosed(counter), now_ms);
        self.tend_drop_box(id, now_ms);
        self.tell_room(id);
    }

    /// A member has shared a key, maybe one that is known.
    pub(in crate::client) fn learn_drop_box(&mut self, id: RoomId, shared: SharedDropBox, now_ms: u64) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        let user = me.identity.user();
        let Some(key) = PostingKey::new(&shared) else { return };
        let announcement = &key.announcement;
        let (counter, known) = (announcement.counter, room.posting.counter());
        // Whoever was away may have missed some, and nobody uses all of them up at once.
        let follows = known == 0 || counter <= known.saturating_add(COUNTER_STEP_MAX);
        let is_hosted = room.role(announcement.host()).is_some();
        if announcement.room != id || !announcement.is_short() || announcement.is_over(now_ms) || !is_hosted || !follows {
            return;
        }
        if counter >= known {
            // Whoever came in has heard it, too.
            room.posting.tell_at_ms = None;
        }
        if room.posting.announcing.is_some_and(|announced| announced <= counter) {
            room.posting.announcing = None;
        }
        if !room.posting.learn(shared, key, user) {
            return;
        }
        let read = room.posting.unlock(counter);
        self.persist_posting(id);
        for (seq, record) in read {
            self.unlocked(id, seq, record);
        }
        self.tend_drop_box(id, now_ms);
        self.tell_room(id);
    }

    /// A post that could not be read when it came.
    fn unlocked(&mut self, id: RoomId, seq: Seq, record: LogRecord) {
        self.persist(log_key(id, seq), Some(encode(&record)));
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        let LogRecord { time_ms, digest, chain, entry: Entry::Post(post) } = record else { return };
        if !room.timeline.is_first(post.message) {
            return;
        }
        room.shown.insert(seq, Shown { time_ms, digest, chain, check: Check::Unchecked, what: What::Post(Box::new(post)) });
        if let Some(message) = room.message_view(&me.identity, seq) {
            self.outputs.push_back(Output::Event(Event::Message { room: id.to_string(), message }));
        }
    }

    /// Somebody who may has closed the drop-box: `by` is who says so.
    pub(in crate::client) fn on_drop_box_closed(&mut self, id: RoomId, by: UserKey, counter: u64) {
        let Some(room) = self.rooms.get_mut(&id).filter(|room| room.role(by).is_some()) else { return };
        let closed = counter.min(room.posting.counter());
        if closed > room.posting.record.closed {
            (room.posting.record.closed, room.posting.record.hosted) = (closed, None);
            self.persist_posting(id);
            self.tell_room(id);
        }
    }

    /// The group is another one: whoever went knows the keys until now, whoever came in knows none.
    pub(in crate::client) fn posting_follows(&mut self, id: RoomId, change: &ChangeRecord, now_ms: u64) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        if change.took_anybody_out() && (room.posting.newest().is_some() || room.posting.announcing.is_some()) {
            // One that is on its way may have been sealed to them, and refused.
            room.posting.record.void = room.posting.counter().max(room.posting.announcing.unwrap_or(0));
            room.posting.put = None;
            return self.persist_posting(id);
        }
        let others = |who: &Who| !change.joined.contains(who);
        let rank = room.rank(&me.identity, others).filter(|_| !change.joined.is_empty() && room.posting.current().is_some());
        if let Some(rank) = rank {
            room.posting.tell_at_ms = Some(now_ms.saturating_add(rank.saturating_mul(TURN_MS)));
        }
    }

    /// Does what is due: forgets keys, announces the next one, tells those who came in, tells the server.
    pub(in crate::client) fn tend_drop_box(&mut self, id: RoomId, now_ms: u64) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        let ready = room.up_to_date() && !room.reborn && room.record.stage == Stage::Joined && !room.record.leaving;
        if !ready || room.place.seat().is_none() {
            return;
        }
        let user = me.identity.user();
        let forgot = room.posting.forget(now_ms);
        room.posting.put_again_ms.take_if(|at_ms| *at_ms <= now_ms);
        let opening = room.posting.record.hosted.filter(|_| room.role(user).is_some());
        let mut next = None;
        if opening.is_some() && room.posting.must_renew(now_ms) && !room.is_announcing() {
            let rank = room.rank(&me.identity, |who| who.user == user).unwrap_or(0);
            let at_ms = *room.posting.renew_at_ms.get_or_insert_with(|| now_ms.saturating_add(rank.saturating_mul(TURN_MS)));
            next = opening.filter(|_| at_ms <= now_ms);
        } else {
            room.posting.renew_at_ms = None;
        }
        let told = room.posting.tell_at_ms.take_if(|at_ms| *at_ms <= now_ms).is_some();
        let shared = room.posting.current().map(|current| current.counter).filter(|_| told);
        let shared = shared.and_then(|counter| {
            let at = room.posting.keys.iter().rposition(|key| key.announcement.counter == counter)?;
            room.posting.record.keys.get(at).cloned()
        });
        let counter = room.posting.counter().saturating_add(1);
        if forgot {
            self.persist_posting(id);
        }
        self.put_drop_box(id, opening.is_some());
        if let Some(opening) = next {
            self.announce(id, counter, opening, now_ms);
        } else if let Some(shared) = shared {
            self.post(id, &Message::DropBox(Box::new(shared)), now_ms);
        }
    }

    /// Tells the server, once on each connection.
    fn put_drop_box(&mut self, id: RoomId, hosts: bool) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let offer = match room.posting.current().filter(|_| hosts) {
            Some(current) => {
                Some(DropBoxOffer { epoch: current.counter, poster: current.poster, announcement: current.encode() })
            }
            None if room.posting.record.closing => None,
            None => {
                (room.posting.put, room.posting.put_again_ms) = (None, None);
                return;
            }
        };
        let counter = offer.as_ref().map_or(0, |offer| offer.epoch);
        if !room.wire.entered || room.posting.put_again_ms.is_some() || room.posting.put == Some(counter) {
            return;
        }
        room.posting.put = Some(counter);
        self.send(&ClientFrame::PutDropBox { room: id, offer });
    }

    /// The server has stored what it was told.
    pub(in crate::client) fn on_drop_box_put(&mut self, id: RoomId, open: bool) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        if !open && core::mem::take(&mut room.posting.record.closing) {
            self.persist_posting(id);
        }
        self.tell_room(id);
    }

    /// It has not.
    pub(in crate::client) fn on_drop_box_refused(&mut self, id: RoomId, why: Refusal, now_ms: u64) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        room.posting.put = None;
        room.posting.put_again_ms = Some(now_ms.saturating_add(AGAIN_MS));
        // Another access key opens the room since: it is told again by that one.
        if !why.is_transient() && why != Refusal::NoAccess {
            self.notice(Level::Warn, &format!("the server does not open the drop-box: {why}"), Some(id));
        }
    }
}
