//! A room's log as one device has verified it: the chain, who is in the room, and what the comparison of messages finds.
//!
//! Records come in the order of their seqs, from storage or from the server, and go through the same [`Timeline::apply`].

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::{
    records::{LogRecord, OpenedRecord},
    view::{Check, Integrity},
};
use crate::{
    core::{
        chain,
        envelope::{Kind, NOT_A_MEMBER},
        frame::{Item, Page},
        id::{DeviceKey, Digest, LogId, ProducerId, RoomId, Seq},
    },
    seal::{
        body::{Body, Join, Message, Seen, tidy},
        epoch::EpochKeys,
        message,
    },
};

/// How many chain values are kept for comparing what others have seen.
const CHAINS_MAX: usize = 16_384;
/// The room's words change at multiples of this many records, so that people whose heads differ a little see the same.
const WORDS_EVERY: Seq = 16;

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
    members: BTreeMap<u64, Joined>,
    /// By device, not by leaf: a join that is told again has a leaf of its own.
    sessions: HashMap<(DeviceKey, ProducerId), (u64, Digest)>,
    title: String,
    integrity: Integrity,
    words_at: (Seq, Digest),
}

/// A device that joined.
#[derive(Debug, Clone)]
pub struct Joined {
    /// Whose, and its keys.
    pub join: Join,
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
    /// Nobody in the room wrote it, or it was shown before.
    Injected,
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
            members: BTreeMap::new(),
            sessions: HashMap::new(),
            title: String::new(),
            integrity: Integrity::default(),
            words_at: (0, start),
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

    /// The devices that joined, by leaf.
    #[must_use]
    pub const fn members(&self) -> &BTreeMap<u64, Joined> {
        &self.members
    }

    /// The newest leaf of a device.
    #[must_use]
    pub fn leaf_of(&self, device: DeviceKey) -> Option<u64> {
        self.members.iter().rev().find(|(_, joined)| joined.join.certificate.device == device).map(|(leaf, _)| *leaf)
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

    /// Counts an answer of the server that contradicts this copy.
    pub const fn contradicted(&mut self) {
        self.integrity.contradicts += 1;
    }

    /// Where the room's words are taken: a seq, and the chain value there.
    #[must_use]
    pub const fn words_at(&self) -> (Seq, Digest) {
        self.words_at
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

    /// Opens and verifies the next item. What does not open is recorded as that.
    #[must_use]
    pub fn record(&self, keys: &dyn EpochKeys, item: &Item) -> LogRecord {
        let digest = chain::digest(&item.envelope);
        let seq = self.head.saturating_add(1);
        let before = self.chain_at(self.head).unwrap_or(Digest([0; 32]));
        LogRecord {
            // The server's word; beyond the year 9999 no calendar shows it.
            time_ms: item.time_ms.min(253_402_300_799_000),
            digest,
            chain: chain::next_hashed(self.room, before, seq, digest),
            opened: self.open(keys, seq, item),
        }
    }

    fn open(&self, keys: &dyn EpochKeys, seq: Seq, item: &Item) -> Option<OpenedRecord> {
        let header = crate::core::envelope::Header::parse(&item.envelope).ok()?;
        let opened = message::open(keys.epoch(header.epoch)?, &item.envelope).ok()?;
        if header.kind != Kind::Room {
            return None;
        }
        let (leaf, body) = if header.leaf == NOT_A_MEMBER {
            (seq, opened.verify_with(|body: &Body| joining_device(body, item.time_ms)).ok()?)
        } else {
            let leaf = u64::from(header.leaf);
            let sender = self.members.get(&leaf)?.join.certificate.device;
            let body = opened.verify(sender).ok()?;
            // A member joins only as a newcomer: otherwise a leaf could be claimed twice.
            if matches!(body.content.message(), Message::Join(_)) {
                return None;
            }
            (leaf, body)
        };
        let Body { session, counter, previous, seen, content } = body;
        Some(OpenedRecord { leaf, message: header.message, session, counter, previous, seen, content })
    }

    /// Opens an ephemeral envelope of a member. Returns the sender's leaf and the body.
    #[must_use]
    pub fn open_ephemeral(&self, keys: &dyn EpochKeys, envelope: &[u8]) -> Option<(u64, Body)> {
        let header = crate::core::envelope::Header::parse(envelope).ok()?;
        let leaf = u64::from(header.leaf);
        let sender = self.members.get(&leaf)?.join.certificate.device;
        if header.kind != Kind::Ephemeral {
            return None;
        }
        let body = message::open(keys.epoch(header.epoch)?, envelope).ok()?.verify(sender).ok()?;
        Some((leaf, body))
    }

    /// Takes the next record.
    pub fn apply(&mut self, record: &LogRecord) -> Applied {
        let seq = self.head.saturating_add(1);
        let verdict = record.opened.as_ref().and_then(|opened| self.compare(seq, opened, record.digest));
        self.head = seq;
        self.chains.push_back(record.chain);
        if self.chains.len() > CHAINS_MAX {
            self.chains.pop_front();
        }
        if seq.is_multiple_of(WORDS_EVERY) {
            self.words_at = (seq, record.chain);
        }
        let (Some(check), Some(opened)) = (verdict, &record.opened) else {
            self.integrity.injected += 1;
            return Applied::Injected;
        };
        match check {
            Check::Matches => self.integrity.matches += 1,
            Check::Unchecked => self.integrity.unchecked += 1,
            Check::Contradicts => self.integrity.contradicts += 1,
        }
        match opened.content.message() {
            Message::Join(join) => {
                let join = Join { name: tidy(&join.name), ..*join };
                self.members.insert(opened.leaf, Joined { join });
            }
            Message::Topic(title) => self.title = tidy(&title),
            _ => {}
        }
        Applied::Message { check, opened: Box::new(opened.clone()) }
    }

    /// Compares a message with the session it belongs to and with what its sender had seen. `None`: a replay.
    fn compare(&mut self, seq: Seq, opened: &OpenedRecord, digest: Digest) -> Option<Check> {
        let device = match opened.content.message() {
            Message::Join(join) => join.certificate.device,
            _ => self.members.get(&opened.leaf)?.join.certificate.device,
        };
        let session = (device, opened.session);
        let order = match self.sessions.get(&session) {
            Some((last, _)) if opened.counter <= *last => return None,
            Some((last, hash)) if opened.counter == last + 1 && opened.previous == *hash => Check::Matches,
            Some(_) => Check::Contradicts,
            None if opened.counter == 1 && opened.previous == Digest([0; 32]) => Check::Matches,
            None if self.base > 0 => Check::Unchecked,
            None => Check::Contradicts,
        };
        self.sessions.insert(session, (opened.counter, digest));
        Some(worse(order, self.compare_seen(seq, opened.seen)))
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

/// The key that must have signed a join: the device's, if the person certified it and the certificate was good then.
fn joining_device(body: &Body, time_ms: u64) -> Option<DeviceKey> {
    let Message::Join(join) = body.content.message() else { return None };
    let good = join.certificate.verify().is_ok() && time_ms <= join.certificate.not_after_ms;
    good.then_some(join.certificate.device)
}
