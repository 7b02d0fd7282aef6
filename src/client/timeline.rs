//! A room's log as one device has verified it: the chain, who is in the room, and what the comparison of messages finds.
//!
//! Records come in the order of their seqs, from storage or from the server, and go through the same [`Timeline::apply`].

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use bytes::Bytes;

use super::{
    records::{ChangeRecord, Entry, LogRecord, OpenedRecord, PostRecord, SentRecord, Who},
    view::{Check, Integrity},
};
use crate::{
    core::{
        chain,
        envelope::{Header, Kind},
        frame::{Item, Page},
        handshake,
        id::{DeviceKey, Digest, LogId, MessageId, ProducerId, RoomId, Seq},
    },
    seal::{
        body::{Body, Message, Seen, tidy},
        devices::DeviceList,
        epoch::Epoch,
        identity::UserKey,
        message::{self, Signed},
    },
};

/// How many chain values are kept for comparing what others have seen.
const CHAINS_MAX: usize = 16_384;
/// The room's words change at multiples of this many records, so that people whose heads differ a little see the same.
const WORDS_EVERY: Seq = 16;
/// How many contradictions are remembered: the first ones tell the most.
const FOUND_MAX: usize = 64;

/// A log as verified so far.
#[derive(Debug)]
pub struct Timeline {
    room: RoomId,
    /// The log's life: what others saw of another one cannot be compared.
    log: Option<LogId>,
    /// Before the oldest record that this device verified.
    base: Seq,
    head: Seq,
    /// Chain values of consecutive seqs; the last one is at `head`.
    chains: VecDeque<Digest>,
    /// What people are called, by device: those that went, too.
    names: BTreeMap<DeviceKey, (Who, String)>,
    introduced: BTreeSet<DeviceKey>,
    /// Of each person the newest list of devices.
    lists: BTreeMap<UserKey, DeviceList>,
    /// Devices that came in by themselves, and where: nobody else's message has crossed that yet.
    unconfirmed: BTreeMap<DeviceKey, Seq>,
    /// Of each session the newest message: its number, its hash, its seq.
    sessions: HashMap<(DeviceKey, ProducerId), (u64, Digest, Seq)>,
    /// Posts that were shown.
    posts: HashSet<MessageId>,
    /// The newest record that is sealed to an epoch that this device was not in: messages beyond it may follow some that it cannot read.
    sealed: Seq,
    /// How many of those there are.
    sealed_count: u64,
    /// The newest change of the group, valid or not; 0 when there is none.
    handshake: Seq,
    /// The newest change by which the room's key at the server became another one than the group's.
    usurped: Seq,
    /// Of the epoch that the newest valid one began, if this device knows it.
    authenticator: Option<Digest>,
    title: String,
    integrity: Integrity,
    found: Vec<Found>,
    words_at: (Seq, [Digest; 2]),
}

/// Something in the log that contradicts: what, at which seq.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Found {
    /// The sender of this message had seen another chain value than this device's.
    Seen(Seq),
    /// It had seen records that come behind its message.
    Ahead(Seq),
    /// It does not follow its sender's message before it: that one's seq, 0 if there is none.
    Gap(Seq, Seq),
    /// No member wrote the record of this hash there.
    Foreign(Seq, Digest),
}

/// With what messages of the newest epoch are opened and verified.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    /// The epoch.
    pub epoch: &'a Epoch,
    /// Who is in it, by leaf.
    pub roster: &'a BTreeMap<u32, Who>,
}

/// Who came in, as far as the room's log tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Newcomer {
    /// Somebody new, or a device that was there before.
    Plain,
    /// Another device of somebody who was known.
    Device,
    /// Somebody new who is called as somebody else is.
    Namesake,
}

/// Whether people take one name for the other: case and spaces do not count.
#[must_use]
pub fn is_alike(one: &str, other: &str) -> bool {
    let plain = |name: &str| name.chars().filter(|c| !c.is_whitespace()).flat_map(char::to_lowercase).collect::<String>();
    !one.is_empty() && plain(one) == plain(other)
}

/// What a page does not do: follow what this device has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Discontinuity {
    /// The page does not begin after the newest record here.
    #[error("the server left out messages: it sent {first} after {head}")]
    Gap {
        /// Where the page begins.
        first: Seq,
        /// The newest record here.
        head: Seq,
    },
    /// The chain value before the page is not the one here.
    #[error("the server's history before message {first} is not the one that this device has seen")]
    Chain {
        /// Where the page begins.
        first: Seq,
    },
}

/// What a record turned out to be.
#[derive(Debug, Clone)]
pub enum Applied {
    /// A message.
    Message {
        /// What the sender had seen, compared.
        check: Check,
        /// As its sender signed it.
        opened: Box<OpenedRecord>,
    },
    /// A message of this device that it cannot open any more.
    Sent(Box<SentRecord>),
    /// The group is another one.
    Change(Box<ChangeRecord>),
    /// A post by somebody who is no member: of its own session and of nothing that anybody has seen.
    Post(Box<PostRecord>),
    /// Nobody in the room wrote it, it was shown before, or it breaks a rule.
    Injected,
    /// Nothing to tell.
    Nothing,
}

impl Timeline {
    /// An empty log.
    #[must_use]
    pub fn new(room: RoomId) -> Self {
        let start = chain::start(room);
        Self {
            room,
            log: None,
            base: 0,
            head: 0,
            chains: VecDeque::from([start]),
            names: BTreeMap::new(),
            introduced: BTreeSet::new(),
            lists: BTreeMap::new(),
            unconfirmed: BTreeMap::new(),
            sessions: HashMap::new(),
            posts: HashSet::new(),
            sealed: 0,
            sealed_count: 0,
            handshake: 0,
            usurped: 0,
            authenticator: None,
            title: String::new(),
            integrity: Integrity::default(),
            found: Vec::new(),
            words_at: (0, [Digest([0; 32]), start]),
        }
    }

    /// Names the log's life.
    pub const fn set_log(&mut self, log: LogId) {
        self.log = Some(log);
    }

    /// The newest record here.
    #[must_use]
    pub const fn head(&self) -> Seq {
        self.head
    }

    /// The chain value at `seq`, if it is kept.
    #[must_use]
    pub fn chain_at(&self, seq: Seq) -> Option<Digest> {
        let back = usize::try_from(self.head.checked_sub(seq)?).ok()?;
        self.chains.get(self.chains.len().checked_sub(back + 1)?).copied()
    }

    /// What a message sent now says that it has seen.
    #[must_use]
    pub fn seen(&self, log: LogId) -> Seen {
        Seen { log, seq: self.head, chain: self.chain_at(self.head).unwrap_or(Digest([0; 32])) }
    }

    /// What a person is called: what this device of theirs says, or else another one.
    #[must_use]
    pub fn name_of(&self, who: Who) -> &str {
        let of_user = || self.names.values().find(|(other, _)| other.user == who.user);
        self.names.get(&who.device).or_else(of_user).map_or("", |(_, name)| name)
    }

    /// Of those that a change brings in, the one to look at first. To be asked before the change is applied.
    #[must_use]
    pub fn newcomer(&self, change: &ChangeRecord) -> Option<(Who, Newcomer)> {
        let sort = |who: &Who| {
            let known = || self.names.values();
            let name = change.names.iter().find(|(named, _)| named == who).map_or("", |(_, name)| name);
            if self.names.get(&who.device).is_some_and(|(known, _)| known == who) {
                Newcomer::Plain
            } else if known().any(|(other, _)| other.user == who.user) {
                Newcomer::Device
            } else if known().any(|(other, known)| other.user != who.user && is_alike(known, name)) {
                Newcomer::Namesake
            } else {
                Newcomer::Plain
            }
        };
        // Of equal ones the first.
        change.joined.iter().rev().map(|who| (*who, sort(who))).max_by_key(|(_, newcomer)| *newcomer)
    }

    /// Whether another member, itself confirmed, has written something since the device came in, having seen that. Who was added by
    /// a member is confirmed by that.
    #[must_use]
    pub fn is_confirmed(&self, device: DeviceKey) -> bool {
        !self.unconfirmed.contains_key(&device)
    }

    /// A confirmed member's message confirms whom it has seen coming in.
    fn confirm(&mut self, opened: &OpenedRecord) {
        if self.is_confirmed(opened.sender.device) && self.log == Some(opened.seen.log) {
            self.unconfirmed.retain(|_, seq| *seq > opened.seen.seq);
        }
    }

    /// Whether a post of this id was not shown yet; from now on it was.
    pub fn is_first(&mut self, post: MessageId) -> bool {
        self.posts.insert(post)
    }

    /// Whether a device has told its person's others of itself.
    #[must_use]
    pub fn introduced(&self, device: DeviceKey) -> bool {
        self.introduced.contains(&device)
    }

    /// A person's newest list of devices, as it was told here.
    #[must_use]
    pub fn list_of(&self, user: UserKey) -> Option<&DeviceList> {
        self.lists.get(&user)
    }

    /// A list that is newer than the one that is known: its number never goes down.
    fn learn_list(&mut self, list: DeviceList) {
        if self.lists.get(&list.user).is_none_or(|known| known.counter < list.counter) && list.is_signed() {
            self.lists.insert(list.user, list);
        }
    }

    /// The newest change of the group, valid or not.
    #[must_use]
    pub const fn handshake(&self) -> Seq {
        self.handshake
    }

    /// Whether the newest change made the server ask for a key that nobody in the group has brought.
    #[must_use]
    pub const fn is_usurped(&self) -> bool {
        self.usurped > 0 && self.usurped == self.handshake
    }

    /// The title that was set last.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.title
    }

    /// What was found so far.
    #[must_use]
    pub const fn integrity(&self) -> Integrity {
        self.integrity
    }

    /// What contradicts in the log, as far as it is remembered.
    #[must_use]
    pub fn found(&self) -> &[Found] {
        &self.found
    }

    fn find(&mut self, found: Found) {
        if self.found.len() < FOUND_MAX {
            self.found.push(found);
        }
    }

    /// The chain values that are kept: the seq of the first one, and all of them.
    pub fn chains(&self) -> (Seq, impl Iterator<Item = Digest>) {
        let kept = self.chains.len() as u64;
        (self.head.saturating_add(1).saturating_sub(kept), self.chains.iter().copied())
    }

    /// Messages of epochs that this device was not in.
    #[must_use]
    pub const fn sealed_count(&self) -> u64 {
        self.sealed_count
    }

    /// Counts an answer of the server that contradicts this copy.
    pub const fn contradicted(&mut self) {
        self.integrity.contradicts += 1;
    }

    /// Where the room's words are taken: a seq, and there the epoch's authenticator and the chain value. Until the first of these
    /// points is read they stand for the newest epoch alone.
    #[must_use]
    pub fn words_at(&self) -> (Seq, [Digest; 2]) {
        match self.words_at {
            (0, [_, start]) => (0, [self.authenticator.unwrap_or(Digest([0; 32])), start]),
            taken => taken,
        }
    }

    /// Begins again after `seq`, where the chain has this value, if it is known: what lies before cannot be checked.
    pub fn skip_to(&mut self, seq: Seq, chain: Option<Digest>) {
        self.base = seq;
        self.head = seq;
        self.chains = chain.into_iter().collect();
        self.sessions.clear();
    }

    /// The records that this device has.
    pub fn seqs(&self) -> impl Iterator<Item = Seq> + use<> {
        self.base.saturating_add(1)..=self.head
    }

    /// Checks that a page follows what is here.
    ///
    /// # Errors
    /// [`Discontinuity`]: nothing of the page may be used.
    pub fn follows(&self, page: &Page) -> Result<(), Discontinuity> {
        if Some(page.first) != self.head.checked_add(1) {
            return Err(Discontinuity::Gap { first: page.first, head: self.head });
        }
        if self.chain_at(self.head) != Some(page.chain) {
            return Err(Discontinuity::Chain { first: page.first });
        }
        Ok(())
    }

    /// The next item's record.
    #[must_use]
    pub fn record(&self, item: &Item, entry: Entry) -> LogRecord {
        let digest = handshake::entry(&item.envelope);
        let seq = self.head.saturating_add(1);
        let before = self.chain_at(self.head).unwrap_or(Digest([0; 32]));
        LogRecord {
            // The server's word; beyond the year 9999 no calendar shows it.
            time_ms: item.time_ms.min(253_402_300_799_000),
            digest,
            chain: chain::next_hashed(self.room, before, seq, digest),
            entry,
        }
    }

    /// Takes the next record.
    pub fn apply(&mut self, record: &LogRecord) -> Applied {
        let seq = self.head.saturating_add(1);
        let check = match &record.entry {
            Entry::Message(opened) => self.compare(seq, opened, record.digest),
            _ => None,
        };
        self.head = seq;
        self.chains.push_back(record.chain);
        if self.chains.len() > CHAINS_MAX {
            self.chains.pop_front();
        }
        let applied = self.enter((seq, record.digest), &record.entry, check);
        if let Some(authenticator) = self.authenticator.filter(|_| seq.is_multiple_of(WORDS_EVERY)) {
            self.words_at = (seq, [authenticator, record.chain]);
        }
        applied
    }

    fn enter(&mut self, (seq, digest): (Seq, Digest), entry: &Entry, check: Option<Check>) -> Applied {
        match (entry, check) {
            (Entry::Message(opened), Some(check)) => {
                match check {
                    Check::Matches => self.integrity.matches += 1,
                    Check::Unchecked => self.integrity.unchecked += 1,
                    Check::Contradicts => self.integrity.contradicts += 1,
                }
                self.confirm(opened);
                match opened.content.message() {
                    Message::Device(_) => {
                        self.introduced.insert(opened.sender.device);
                    }
                    Message::Devices(list) if list.user == opened.sender.user => self.learn_list(*list),
                    Message::Complaint(_) => self.integrity.complaints += 1,
                    _ => {}
                }
                Applied::Message { check, opened: Box::new(opened.clone()) }
            }
            (Entry::Change(change), _) => {
                self.handshake = seq;
                self.authenticator = change.begun.as_ref().map(|(authenticator, _)| *authenticator);
                self.title = tidy(&change.title);
                self.unconfirmed.retain(|device, _| !change.took_out(*device));
                let by_itself = change.joined.iter().filter(|who| **who == change.by);
                self.unconfirmed.extend(by_itself.map(|who| (who.device, seq)));
                self.names.extend(change.names.iter().map(|(who, name)| (who.device, (*who, name.clone()))));
                Applied::Change(Box::new(change.clone()))
            }
            (Entry::Known, _) => {
                self.handshake = seq;
                self.authenticator = None;
                Applied::Nothing
            }
            (entry @ (Entry::Invalid | Entry::Usurped), _) => {
                self.handshake = seq;
                if *entry == Entry::Usurped {
                    self.usurped = seq;
                }
                self.find(Found::Foreign(seq, digest));
                self.integrity.injected += 1;
                Applied::Injected
            }
            (Entry::Post(post), _) if self.is_first(post.message) => Applied::Post(Box::new(post.clone())),
            // A post that is in the log again, as a late repetition is, is the same one.
            (Entry::Post(_) | Entry::Locked(_), _) => Applied::Nothing,
            (Entry::Sealed, _) => {
                self.sealed = seq;
                self.sealed_count += 1;
                Applied::Nothing
            }
            (Entry::Sent(sent), _) => {
                self.sealed = seq;
                Applied::Sent(Box::new(sent.clone()))
            }
            (Entry::Foreign | Entry::Message(_), _) => {
                self.find(Found::Foreign(seq, digest));
                self.integrity.injected += 1;
                Applied::Injected
            }
        }
    }

    /// Compares a message with the session it belongs to and with what its sender had seen. `None`: a replay.
    fn compare(&mut self, seq: Seq, opened: &OpenedRecord, digest: Digest) -> Option<Check> {
        let session = (opened.sender.device, opened.session);
        let before = self.sessions.get(&session).map_or(0, |(.., at)| *at);
        let order = match self.sessions.get(&session) {
            Some((last, ..)) if opened.counter <= *last => return None,
            Some((last, hash, _)) if opened.counter == last + 1 && opened.previous == *hash => Check::Matches,
            Some((.., at)) if *at < self.sealed => Check::Unchecked,
            Some(_) => Check::Contradicts,
            None if opened.counter == 1 && opened.previous == Digest([0; 32]) => Check::Matches,
            None if self.base > 0 || self.sealed > 0 => Check::Unchecked,
            None => Check::Contradicts,
        };
        self.sessions.insert(session, (opened.counter, digest, seq));
        if order == Check::Contradicts {
            self.find(Found::Gap(seq, before));
        }
        let seen = self.compare_seen(seq, opened.seen);
        if seen == Check::Contradicts {
            self.find(if opened.seen.seq >= seq { Found::Ahead(seq) } else { Found::Seen(seq) });
        }
        Some(worse(order, seen))
    }

    fn compare_seen(&self, seq: Seq, seen: Seen) -> Check {
        if self.log != Some(seen.log) {
            return Check::Unchecked;
        }
        if seen.seq >= seq {
            return Check::Contradicts;
        }
        match self.chain_at(seen.seq) {
            Some(chain) if chain == seen.chain => Check::Matches,
            Some(_) => Check::Contradicts,
            None => Check::Unchecked,
        }
    }
}

const fn worse(a: Check, b: Check) -> Check {
    match (a, b) {
        (Check::Contradicts, _) | (_, Check::Contradicts) => Check::Contradicts,
        (Check::Unchecked, _) | (_, Check::Unchecked) => Check::Unchecked,
        _ => Check::Matches,
    }
}

impl Reader<'_> {
    /// Opens and verifies a message of the log.
    #[must_use]
    pub fn open(&self, envelope: &Bytes) -> Option<OpenedRecord> {
        let (header, sender, body, signed) = self.open_kind(Kind::Room, envelope)?;
        if let Message::Device(certificate) = body.content.message() {
            let own = Who { device: certificate.device, user: certificate.user } == sender;
            if !own || certificate.verify().is_err() {
                return None;
            }
        }
        let Body { session, counter, previous, seen, content } = body;
        Some(OpenedRecord { sender, message: header.message, session, counter, previous, seen, content, signed })
    }

    /// Opens an ephemeral envelope.
    #[must_use]
    pub fn open_ephemeral(&self, envelope: &Bytes) -> Option<(Who, Body)> {
        self.open_kind(Kind::Ephemeral, envelope).map(|(_, sender, body, _)| (sender, body))
    }

    fn open_kind(&self, kind: Kind, envelope: &Bytes) -> Option<(Header, Who, Body, Signed)> {
        let header = Header::parse(envelope).ok().filter(|header| header.kind == kind)?;
        let sender = *self.roster.get(&header.leaf)?;
        let opened = message::open(self.epoch, envelope).ok()?;
        let signed = opened.signed()?;
        Some((header, sender, opened.verify(sender.device).ok()?, signed))
    }
}
