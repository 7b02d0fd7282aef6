//! One log at its owner: order, deduplication, and the recent tail. Pure: it decides; the router asks the engine and sends.
//!
//! Durability is an input. [`RoomLog::publish`] assigns a seq and returns what must be stored; only [`RoomLog::persisted`]
//! makes it visible. The checks come in the order that the contract needs: deduplication before the newest handshake record,
//! so that [`Refusal::StaleEpoch`] proves that nothing was stored.
//!
//! Who has not processed the newest handshake record publishes nothing, neither a message nor a handshake record of its own. So
//! handshake records are in one order, whoever loses a race is told, and nothing is sealed to a group that was left behind;
//! and one that nobody can make sense of holds nobody up: who skipped it has processed it.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::{
    access::FormerKeys,
    chain,
    close::Refusal,
    dropbox,
    envelope::{self, Header, Kind},
    frame::{Item, LogKind, Page, Position, Publish},
    handshake::{COMMIT_LEN_MAX, HandshakeError, Trailer, entry, new_access, outline},
    id::{AccessKey, ClientSeq, DeviceKey, Digest, RoomId, Seq, UnixMillis},
    limits::Limits,
    log::{Append, EnvelopeHash, LoadedLog, LogMeta, LogState, Producer, ProducerState, Records, Stored},
    recent::Recent,
};

pub use super::recent::ITEM_BYTES;

/// A producer that stored nothing for this long may be forgotten; a client never retries anything older.
pub const PRODUCER_IDLE_MAX_MS: u64 = 30 * 24 * 3600 * 1000;

/// Publishes on their way to the disk that a room keeps space for when there are none.
const PENDING_KEPT: usize = 4;

/// Outboxes that one room remembers, of all devices together.
pub const PRODUCERS_MAX: usize = 16_384;

/// A log in memory.
#[derive(Debug)]
pub struct RoomLog {
    id: RoomId,
    meta: LogMeta,
    former: FormerKeys,
    /// What is on disk.
    durable: LogState,
    /// What will be when everything submitted is.
    assigned: LogState,
    producers: HashMap<Producer, ProducerState>,
    /// Submitted and not yet on disk, in the order of their seqs.
    pending: VecDeque<Append>,
    recent: Recent,
    /// Set by the first failed append; nothing is accepted until the log has been loaded anew.
    failed: bool,
}

/// What a publish leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Store this; then it is acked.
    Append(Append),
    /// It was stored before, at this seq: ack it now.
    Stored(Seq),
    /// The same bytes are being stored at this seq: ack it with them.
    Pending(Seq),
    /// Nothing was stored.
    Refused(Refusal),
}

impl RoomLog {
    /// A log as the engine loaded it.
    #[must_use]
    pub fn new(id: RoomId, loaded: LoadedLog) -> Self {
        let LoadedLog { meta, state, former, producers } = loaded;
        Self {
            id,
            meta,
            former,
            durable: state,
            assigned: state,
            producers: producers.into_iter().collect(),
            pending: VecDeque::new(),
            recent: Recent::new(state.head, state.chain),
            failed: false,
        }
    }

    /// As it was made, with the access key that is in force.
    #[must_use]
    pub const fn meta(&self) -> &LogMeta {
        &self.meta
    }

    /// What opens it for those who have processed the handshake record at `handshake` and none after it, and the record that
    /// brought that key. `None` when it was replaced so long ago that it is forgotten.
    #[must_use]
    pub fn opening(&self, handshake: Seq) -> Option<(Seq, AccessKey)> {
        self.former.opening(handshake, self.meta.access)
    }

    /// How far those may read who proved the key that the record at `since` brought: [`Seq::MAX`] while it is in force.
    #[must_use]
    pub fn until(&self, since: Seq) -> Seq {
        self.former.until(since)
    }

    /// Where a page after `after` must end: no page goes on behind a record that brought an access key, so that everybody may have
    /// all of it or nothing.
    #[must_use]
    pub fn page_end(&self, after: Seq) -> Seq {
        self.former.next_after(after).unwrap_or(Seq::MAX)
    }

    /// What is on disk.
    #[must_use]
    pub const fn durable(&self) -> &LogState {
        &self.durable
    }

    /// The position that answers and pages state.
    #[must_use]
    pub const fn position(&self) -> Position {
        Position { log: self.meta.log, head: self.durable.head, floor: self.durable.floor }
    }

    /// Whether nothing is being stored.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether an append failed: once quiet, the log must be loaded anew.
    #[must_use]
    pub const fn has_failed(&self) -> bool {
        self.failed
    }

    /// Whether it is a record by which the device that made the room says what opens it, whatever opens it now. Nobody else who knows a former key
    /// only can be told apart from somebody who was removed; that device may delete the room anyway.
    #[must_use]
    pub fn puts_key_back(&self, device: DeviceKey, record: &[u8]) -> bool {
        self.meta.creator == device && new_access(record).is_some()
    }

    /// Decides about a publish of the authenticated `device`.
    pub fn publish(&mut self, device: DeviceKey, publish: Publish, now_ms: UnixMillis, limits: &Limits) -> Verdict {
        if self.failed {
            return Verdict::Refused(Refusal::OutcomeUnknown);
        }
        let producer = Producer { device, id: publish.producer };
        let digest = entry(&publish.envelope);
        let hash = hash_of(digest);
        if let Some(verdict) = self.recognise(&producer, publish.client_seq, hash) {
            return verdict;
        }
        if let Err(refusal) = self.admissible(&publish, limits).and_then(|()| self.make_room_for(&producer, now_ms, limits)) {
            return Verdict::Refused(refusal);
        }
        Verdict::Append(self.append((producer, publish.client_seq), publish.envelope, digest, now_ms))
    }

    /// Decides about a post through the drop-box, which is open for posts of this epoch, if for any. A post has no number: one whose
    /// bytes are those of one of the last [`PRODUCER_RING`](super::log::PRODUCER_RING) is that one.
    pub fn post(&mut self, envelope: Bytes, epoch: Option<u64>, now_ms: UnixMillis, limits: &Limits) -> Verdict {
        if self.failed {
            return Verdict::Refused(Refusal::OutcomeUnknown);
        }
        let producer = dropbox::producer(self.id);
        let digest = chain::digest(&envelope);
        let hash = hash_of(digest);
        let known = self.producers.get(&producer);
        if let Some(stored) = known.and_then(|state| state.ring.iter().rfind(|stored| stored.hash == hash)) {
            return if stored.seq > self.durable.head { Verdict::Pending(stored.seq) } else { Verdict::Stored(stored.seq) };
        }
        let number = known.map_or(0, |state| state.last) + 1;
        if let Err(refusal) = self.may_post(&envelope, epoch, limits).and_then(|()| self.make_room_for(&producer, now_ms, limits))
        {
            return Verdict::Refused(refusal);
        }
        Verdict::Append(self.append((producer, number), envelope, digest, now_ms))
    }

    fn may_post(&self, envelope: &[u8], epoch: Option<u64>, limits: &Limits) -> Result<(), Refusal> {
        if envelope.len() > limits.envelope_bytes_max as usize {
            return Err(Refusal::TooLarge { max: limits.envelope_bytes_max });
        }
        let header = parse(envelope)?;
        let is_post = header.kind == Kind::DropBox && header.leaf == envelope::NOT_A_MEMBER;
        if self.meta.kind != LogKind::Room || header.room != self.id || !is_post {
            return Err(Refusal::BadEnvelope);
        }
        if epoch != Some(header.epoch) || self.is_changing_hands() {
            return Err(Refusal::StaleEpoch { handshake: self.assigned.handshake });
        }
        // The last part of the room is its members'.
        let bytes_max = limits.room_bytes_max - limits.room_bytes_max / 8;
        if self.assigned.bytes + envelope.len() as u64 > bytes_max {
            return Err(Refusal::RoomFull);
        }
        Ok(())
    }

    /// The handshake record that brought the access key that is in force; 0 if the log was made with it.
    #[must_use]
    pub fn opened_at(&self) -> Seq {
        self.former.opening(Seq::MAX, self.meta.access).map_or(0, |(since, _)| since)
    }

    /// Whether a handshake record that brings another access key is being stored.
    fn is_changing_hands(&self) -> bool {
        self.pending.iter().any(|append| append.new_access().is_some())
    }

    fn append(
        &mut self,
        (producer, client_seq): (Producer, ClientSeq),
        envelope: Bytes,
        digest: Digest,
        now_ms: UnixMillis,
    ) -> Append {
        let seq = self.assigned.head + 1;
        let chain = chain::next_hashed(self.id, self.assigned.chain, seq, digest);
        let hash = hash_of(digest);
        self.assigned.head = seq;
        self.assigned.chain = chain;
        self.assigned.bytes += envelope.len() as u64;
        self.producers.entry(producer).or_default().push(Stored { seq, hash }, now_ms);
        let append = Append { room: self.id, seq, chain, time_ms: now_ms, producer, client_seq, hash, envelope };
        if append.is_handshake() {
            self.assigned.handshake = seq;
        }
        if self.pending.capacity() == 0 {
            // One at a time is the rule.
            self.pending.reserve_exact(1);
        }
        self.pending.push_back(append.clone());
        append
    }

    /// What an earlier publish of the same number, or a missing one, decides.
    fn recognise(&self, producer: &Producer, client_seq: u64, hash: EnvelopeHash) -> Option<Verdict> {
        let known = self.producers.get(producer);
        let last = known.map_or(0, |state| state.last);
        if client_seq == last + 1 {
            return None;
        }
        if client_seq == 0 || client_seq > last {
            return Some(Verdict::Refused(Refusal::OutOfOrder { expected: last + 1 }));
        }
        Some(match known.and_then(|state| state.find(client_seq)) {
            None => Verdict::Refused(Refusal::Expired),
            Some(stored) if stored.hash != hash => Verdict::Refused(Refusal::Conflict),
            Some(stored) if stored.seq > self.durable.head => Verdict::Pending(stored.seq),
            Some(stored) => Verdict::Stored(stored.seq),
        })
    }

    fn admissible(&self, publish: &Publish, limits: &Limits) -> Result<(), Refusal> {
        let is_handshake = self.meta.kind == LogKind::Room && envelope::is_handshake(&publish.envelope);
        let max = if is_handshake { limits.handshake_bytes_max } else { limits.envelope_bytes_max };
        if publish.envelope.len() > max as usize {
            return Err(Refusal::TooLarge { max });
        }
        let header = if is_handshake { handshake(publish)? } else { parse(&publish.envelope)? };
        let (belongs, bytes_max) = match self.meta.kind {
            LogKind::Room => (matches!(header.kind, Kind::Room | Kind::Handshake), limits.room_bytes_max),
            LogKind::Inbox => (header.kind == Kind::Keyring, limits.inbox_bytes_max),
        };
        if header.room != self.id || !belongs {
            return Err(Refusal::BadEnvelope);
        }
        if publish.handshake != self.assigned.handshake {
            return Err(Refusal::StaleEpoch { handshake: self.assigned.handshake });
        }
        if self.assigned.bytes + publish.envelope.len() as u64 > bytes_max {
            return Err(Refusal::RoomFull);
        }
        Ok(())
    }

    /// A device may use a limited number of outboxes; those idle for long make way.
    fn make_room_for(&mut self, producer: &Producer, now_ms: UnixMillis, limits: &Limits) -> Result<(), Refusal> {
        if self.producers.contains_key(producer) {
            return Ok(());
        }
        let fresh = |state: &ProducerState| now_ms.saturating_sub(state.time_ms) < PRODUCER_IDLE_MAX_MS;
        self.producers.retain(|other, state| other.device != producer.device || fresh(state));
        if self.producers.len() >= PRODUCERS_MAX {
            self.producers.retain(|_, state| fresh(state));
        }
        let used = self.producers.keys().filter(|other| other.device == producer.device).count();
        if used < limits.producers_per_device_max as usize && self.producers.len() < PRODUCERS_MAX {
            Ok(())
        } else {
            Err(Refusal::TooManyProducers)
        }
    }

    /// The oldest pending append is on disk. Returns it; it is now visible.
    ///
    /// Call it once for each append, in the order of their seqs.
    pub fn persisted(&mut self, recent_bytes_max: u32) -> Option<Append> {
        let append = self.pending.pop_front()?;
        if self.pending.is_empty() {
            // A burst leaves no space behind.
            self.pending.shrink_to(PENDING_KEPT);
        }
        self.durable.head = append.seq;
        self.durable.chain = append.chain;
        self.durable.bytes += append.envelope.len() as u64;
        if append.is_handshake() {
            self.durable.handshake = append.seq;
        }
        if let Some(access) = append.new_access() {
            self.former.replace(&mut self.meta.access, append.seq, access);
        }
        let item = Item { time_ms: append.time_ms, envelope: outline(&append.envelope) };
        self.recent.push(item, append.chain, recent_bytes_max as usize);
        Some(append)
    }

    /// The oldest pending append was not stored, or nobody knows. Returns it; nothing more is accepted.
    pub fn failed(&mut self) -> Option<Append> {
        self.failed = true;
        self.pending.pop_front()
    }

    /// Takes back the newest publish, which was not submitted after all: its seq and its producer's number are free again.
    ///
    /// A producer whose ring was full has forgotten one more of its oldest publishes: a retry of that one is `Expired`.
    pub fn unpublish_last(&mut self) -> Option<Append> {
        let append = self.pending.pop_back()?;
        self.assigned.head = append.seq - 1;
        self.assigned.chain = self.pending.back().map_or(self.durable.chain, |last| last.chain);
        self.assigned.bytes -= append.envelope.len() as u64;
        if append.is_handshake() {
            let before = self.pending.iter().rev().find(|append| append.is_handshake());
            self.assigned.handshake = before.map_or(self.durable.handshake, |append| append.seq);
        }
        if let Some(state) = self.producers.get_mut(&append.producer) {
            state.last -= 1;
            state.ring.pop_back();
            if state.last == 0 {
                self.producers.remove(&append.producer);
            }
        }
        Some(append)
    }

    /// Envelope bytes of the oldest pending append.
    #[must_use]
    pub fn next_pending_bytes(&self) -> Option<usize> {
        self.pending.front().map(|append| append.envelope.len())
    }

    /// Takes over where the log begins and what it keeps, as a read found it: the engine trims logs by itself. Nothing is
    /// ever lowered. `state` is of this life of the log; it may be older than what is durable here, or newer.
    pub fn adopt(&mut self, state: &LogState) {
        let durable = &mut self.durable;
        if state.floor > durable.floor {
            // What is not visible here yet cannot be gone: then everything that is visible was trimmed.
            let anchor =
                if state.floor <= durable.head { (state.floor, state.floor_chain) } else { (durable.head + 1, durable.chain) };
            (durable.floor, durable.floor_chain) = anchor;
            (self.assigned.floor, self.assigned.floor_chain) = anchor;
            self.recent.trim(anchor.0);
        }
        // An older state lacks bytes that nobody can add up here; after a failure they are loaded anew.
        if state.head >= durable.head && !self.failed {
            let bytes =
                |appends: &mut dyn Iterator<Item = &Append>| appends.map(|append| append.envelope.len() as u64).sum::<u64>();
            let counted = bytes(&mut self.pending.iter().filter(|append| append.seq <= state.head));
            let uncounted = bytes(&mut self.pending.iter().filter(|append| append.seq > state.head));
            durable.bytes = state.bytes.saturating_sub(counted);
            self.assigned.bytes = state.bytes + uncounted;
        }
    }

    /// Keeps records that were read, when the recent tail begins right behind them.
    pub fn remember(&mut self, read: &Records, recent_bytes_max: u32) {
        self.recent.put_before(self.id, read.before, &read.records, recent_bytes_max as usize);
        self.recent.trim(self.durable.floor);
    }

    /// The chain value at `seq`, if memory has it.
    #[must_use]
    pub fn chain_at(&self, seq: Seq) -> Option<Digest> {
        if seq == self.durable.head {
            return Some(self.durable.chain);
        }
        if seq + 1 == self.durable.floor {
            return Some(self.durable.floor_chain);
        }
        self.recent.chain_at(seq)
    }

    /// What follows `after`, if memory has it: as many as fit `bytes_max`, at least one. `None`: ask the engine. An `after`
    /// at the head gives an empty page.
    #[must_use]
    pub fn recent_after(&self, after: Seq, bytes_max: u32) -> Option<Page> {
        self.recent_between(after, self.durable.head, bytes_max)
    }

    /// As [`RoomLog::recent_after`], but nothing beyond `upto`.
    #[must_use]
    pub fn recent_between(&self, after: Seq, upto: Seq, bytes_max: u32) -> Option<Page> {
        let (chain, items) = self.recent.after(after, upto, bytes_max as usize)?;
        Some(Page { room: self.id, position: self.position(), first: after + 1, chain, items })
    }

    /// The newest before `before`, if memory has all that fit: as [`super::frame::ClientFrame::Fetch`] asks for. `None`: ask
    /// the engine.
    #[must_use]
    pub fn recent_before(&self, before: Seq, count_max: u32, bytes_max: u32) -> Option<Page> {
        let LogState { head, floor, floor_chain, .. } = self.durable;
        let last = before.saturating_sub(1).min(head);
        let (first, chain, items) = if last < floor {
            (floor, floor_chain, Vec::new())
        } else {
            self.recent.before(last, floor, count_max, bytes_max as usize)?
        };
        Some(Page { room: self.id, position: self.position(), first, chain, items })
    }

    /// What the recent tail takes in memory, about, in bytes.
    #[must_use]
    pub fn recent_bytes(&self) -> usize {
        self.recent.memory()
    }

    /// Whether the recent tail has everything after `after`.
    #[must_use]
    pub const fn recent_covers(&self, after: Seq) -> bool {
        after >= self.recent.after_seq()
    }

    /// Lets the oldest of the recent tail go until it has at most so many bytes, or one record.
    pub fn shrink_recent(&mut self, bytes_max: u32) {
        self.recent.shrink(bytes_max as usize);
    }

    /// Forgets the recent tail up to `upto`.
    pub fn forget_recent(&mut self, upto: Seq) {
        self.recent.trim(upto.saturating_add(1));
    }
}

fn hash_of(digest: Digest) -> EnvelopeHash {
    digest.0.first_chunk().copied().unwrap_or_default()
}

fn parse(envelope: &[u8]) -> Result<Header, Refusal> {
    Header::parse(envelope).map_err(|_| Refusal::BadEnvelope)
}

/// The header of a whole handshake record whose parts fit, and which says the same as the frame of what its sender had processed.
fn handshake(publish: &Publish) -> Result<Header, Refusal> {
    match Trailer::parse(&publish.envelope) {
        Ok((header, trailer)) if trailer.after == publish.handshake && !trailer.is_outline => Ok(header),
        Err(HandshakeError::CommitTooLarge(_)) => {
            Err(Refusal::TooLarge { max: u32::try_from(COMMIT_LEN_MAX).unwrap_or(u32::MAX) })
        }
        Ok(_) | Err(_) => Err(Refusal::BadEnvelope),
    }
}

#[cfg(test)]
mod tests;
