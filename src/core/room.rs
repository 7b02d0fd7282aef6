//! One log at its owner: order, deduplication, and the recent tail. Pure: it decides; the router asks the engine and sends.
//!
//! Durability is an input. [`RoomLog::publish`] assigns a seq and returns what must be stored; only [`RoomLog::persisted`]
//! makes it visible. The checks come in the order that the contract needs: deduplication before the epoch, so that
//! [`Refusal::StaleEpoch`] proves that nothing was stored.

use std::collections::{HashMap, VecDeque};

use super::{
    chain,
    close::Refusal,
    envelope::{Header, Kind},
    frame::{Item, LogKind, Page, Position, Publish},
    id::{DeviceKey, Digest, RoomId, Seq, UnixMillis},
    limits::Limits,
    log::{Append, EnvelopeHash, LoadedLog, LogMeta, LogState, Producer, ProducerState, Records, Stored},
    recent::Recent,
};

/// A producer that stored nothing for this long may be forgotten; a client never retries anything older.
pub const PRODUCER_IDLE_MAX_MS: u64 = 30 * 24 * 3600 * 1000;

/// Outboxes that one room remembers, of all devices together.
pub const PRODUCERS_MAX: usize = 16_384;

/// A log in memory.
#[derive(Debug)]
pub struct RoomLog {
    id: RoomId,
    meta: LogMeta,
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
        let LoadedLog { meta, state, producers } = loaded;
        Self {
            id,
            meta,
            durable: state,
            assigned: state,
            producers: producers.into_iter().collect(),
            pending: VecDeque::new(),
            recent: Recent::new(state.head, state.chain),
            failed: false,
        }
    }

    /// As it was made.
    #[must_use]
    pub const fn meta(&self) -> &LogMeta {
        &self.meta
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

    /// Decides about a publish of the authenticated `device`.
    pub fn publish(&mut self, device: DeviceKey, publish: Publish, now_ms: UnixMillis, limits: &Limits) -> Verdict {
        if self.failed {
            return Verdict::Refused(Refusal::OutcomeUnknown);
        }
        let producer = Producer { device, id: publish.producer };
        let digest = chain::digest(&publish.envelope);
        let hash: EnvelopeHash = digest.0.first_chunk().copied().unwrap_or_default();
        if let Some(verdict) = self.recognise(&producer, publish.client_seq, hash) {
            return verdict;
        }
        if let Err(refusal) = self.admissible(&publish, limits).and_then(|()| self.make_room_for(&producer, now_ms, limits)) {
            return Verdict::Refused(refusal);
        }
        let seq = self.assigned.head + 1;
        let chain = chain::next_hashed(self.id, self.assigned.chain, seq, digest);
        self.assigned.head = seq;
        self.assigned.chain = chain;
        self.assigned.bytes += publish.envelope.len() as u64;
        self.producers.entry(producer).or_default().push(Stored { seq, hash }, now_ms);
        let append = Append {
            room: self.id,
            seq,
            chain,
            time_ms: now_ms,
            producer,
            client_seq: publish.client_seq,
            hash,
            envelope: publish.envelope,
        };
        self.pending.push_back(append.clone());
        Verdict::Append(append)
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
        if publish.envelope.len() > limits.envelope_bytes_max as usize {
            return Err(Refusal::TooLarge { max: limits.envelope_bytes_max });
        }
        let header = Header::parse(&publish.envelope).map_err(|_| Refusal::BadEnvelope)?;
        let (kind, bytes_max) = match self.meta.kind {
            LogKind::Room => (Kind::Room, limits.room_bytes_max),
            LogKind::Inbox => (Kind::Keyring, limits.inbox_bytes_max),
        };
        if header.room != self.id || header.kind != kind {
            return Err(Refusal::BadEnvelope);
        }
        if self.meta.kind == LogKind::Room && header.epoch != self.meta.epoch {
            return Err(Refusal::StaleEpoch { epoch: self.meta.epoch });
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
        self.durable.head = append.seq;
        self.durable.chain = append.chain;
        self.durable.bytes += append.envelope.len() as u64;
        let item = Item { time_ms: append.time_ms, envelope: append.envelope.clone() };
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

    /// Envelope bytes of the recent tail.
    #[must_use]
    pub const fn recent_bytes(&self) -> usize {
        self.recent.bytes()
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::core::{
        envelope::{HEADER_LEN, Suite, TAG_LEN},
        id::{AccessKey, LogId, MessageId, ProducerId},
    };

    const ROOM: RoomId = RoomId([1; 16]);
    const DEVICE: DeviceKey = DeviceKey([2; 32]);

    fn room() -> RoomLog {
        let meta = LogMeta {
            log: LogId([3; 16]),
            kind: LogKind::Room,
            access: AccessKey([4; 32]),
            creator: DEVICE,
            epoch: 1,
            created_ms: 0,
        };
        RoomLog::new(ROOM, LoadedLog { meta, state: LogState::empty(ROOM), producers: Vec::new() })
    }

    fn envelope(tag: u8, epoch: u64) -> Bytes {
        let header =
            Header { kind: Kind::Room, suite: Suite::X25519Psk, room: ROOM, epoch, leaf: 1, message: MessageId([tag; 16]) };
        let mut bytes = header.to_bytes().to_vec();
        bytes.resize(HEADER_LEN + 32 + TAG_LEN, tag);
        bytes.into()
    }

    fn publish(client_seq: u64, envelope: Bytes) -> Publish {
        Publish { room: ROOM, producer: ProducerId([5; 16]), client_seq, envelope }
    }

    fn go(room: &mut RoomLog, client_seq: u64, tag: u8) -> Verdict {
        room.publish(DEVICE, publish(client_seq, envelope(tag, 1)), 0, &Limits::default())
    }

    #[test]
    fn a_retry_gets_the_first_seq_and_other_bytes_are_refused() {
        let mut room = room();
        assert!(matches!(go(&mut room, 1, 1), Verdict::Append(append) if append.seq == 1));
        assert_eq!(go(&mut room, 1, 1), Verdict::Pending(1), "not yet on disk");
        assert_eq!(room.position().head, 0, "nothing is visible before it is on disk");
        room.persisted(1000);
        assert_eq!(go(&mut room, 1, 1), Verdict::Stored(1));
        assert_eq!(go(&mut room, 1, 2), Verdict::Refused(Refusal::Conflict));
        assert_eq!(go(&mut room, 3, 3), Verdict::Refused(Refusal::OutOfOrder { expected: 2 }));
        assert_eq!(go(&mut room, 0, 3), Verdict::Refused(Refusal::OutOfOrder { expected: 2 }));
        assert!(matches!(go(&mut room, 2, 3), Verdict::Append(append) if append.seq == 2));
    }

    #[test]
    fn a_refusal_refuses_what_was_pipelined_behind_it() {
        let mut room = room();
        assert_eq!(
            room.publish(DEVICE, publish(1, envelope(1, 9)), 0, &Limits::default()),
            Verdict::Refused(Refusal::StaleEpoch { epoch: 1 })
        );
        assert_eq!(go(&mut room, 2, 2), Verdict::Refused(Refusal::OutOfOrder { expected: 1 }));
        assert!(matches!(go(&mut room, 1, 3), Verdict::Append(_)), "sealed again under the same number");
    }

    #[test]
    fn deduplication_comes_before_the_epoch() {
        let mut room = room();
        go(&mut room, 1, 1);
        room.persisted(1000);
        room.meta.epoch = 2;
        assert_eq!(go(&mut room, 1, 1), Verdict::Stored(1));
        assert_eq!(go(&mut room, 2, 2), Verdict::Refused(Refusal::StaleEpoch { epoch: 2 }));
    }

    #[test]
    fn too_old_to_decide_is_expired_and_never_stored() {
        let mut room = room();
        for n in 1..=100 {
            assert!(matches!(go(&mut room, n, 1), Verdict::Append(_)));
            room.persisted(1000);
        }
        assert_eq!(go(&mut room, 36, 1), Verdict::Refused(Refusal::Expired));
        assert_eq!(go(&mut room, 37, 1), Verdict::Stored(37));
    }

    #[test]
    fn a_failed_append_stops_the_log_until_it_is_loaded_anew() {
        let mut room = room();
        go(&mut room, 1, 1);
        go(&mut room, 2, 2);
        assert_eq!(room.failed().map(|append| append.seq), Some(1));
        assert!(!room.is_quiet());
        assert_eq!(go(&mut room, 3, 3), Verdict::Refused(Refusal::OutcomeUnknown));
        assert_eq!(room.failed().map(|append| append.seq), Some(2));
        assert!(room.is_quiet() && room.has_failed());
        assert_eq!(room.position().head, 0);
    }

    #[test]
    fn what_was_not_submitted_is_taken_back() {
        let mut room = room();
        go(&mut room, 1, 1);
        let before = format!("{room:?}");
        go(&mut room, 2, 2);
        assert_eq!(room.unpublish_last().map(|append| append.seq), Some(2));
        assert_eq!(format!("{room:?}"), before);
        assert!(matches!(go(&mut room, 2, 3), Verdict::Append(append) if append.seq == 2), "with other bytes, even");
        room.unpublish_last();
        room.unpublish_last();
        assert_eq!((room.is_quiet(), room.unpublish_last(), room.producers.len()), (true, None, 0));
        let Verdict::Append(append) = go(&mut room, 1, 9) else { panic!() };
        assert_eq!(append.chain, chain::next(ROOM, chain::start(ROOM), 1, &envelope(9, 1)));
    }

    #[test]
    fn producers_are_limited_and_idle_ones_make_way() {
        let mut room = room();
        let limits = Limits { producers_per_device_max: 2, ..Limits::default() };
        let mut from = |id: u8, now| {
            let publish = Publish { producer: ProducerId([id; 16]), ..publish(1, envelope(id, 1)) };
            room.publish(DEVICE, publish, now, &limits)
        };
        assert!(matches!(from(1, 0), Verdict::Append(_)));
        assert!(matches!(from(2, 5), Verdict::Append(_)));
        assert_eq!(from(3, 5), Verdict::Refused(Refusal::TooManyProducers));
        assert!(matches!(from(3, PRODUCER_IDLE_MAX_MS), Verdict::Append(_)));
    }

    #[test]
    fn foreign_malformed_and_oversized_envelopes_are_refused() {
        let mut room = room();
        let mut refused = |envelope: Bytes| {
            let limits = Limits { envelope_bytes_max: 200, ..Limits::default() };
            match room.publish(DEVICE, publish(1, envelope), 0, &limits) {
                Verdict::Refused(why) => why,
                other => panic!("{other:?}"),
            }
        };
        let mut foreign = envelope(1, 1).to_vec();
        foreign[4] ^= 1;
        assert_eq!(refused(foreign.into()), Refusal::BadEnvelope);
        assert_eq!(refused(Bytes::from_static(b"short")), Refusal::BadEnvelope);
        assert_eq!(refused(vec![0; 201].into()), Refusal::TooLarge { max: 200 });
    }

    #[test]
    fn the_recent_tail_is_bounded_in_bytes_and_proves_its_chain() {
        let mut room = room();
        let size = u32::try_from(envelope(1, 1).len()).unwrap();
        let mut chains = vec![chain::start(ROOM)];
        for n in 1..=5 {
            let Verdict::Append(append) = go(&mut room, n, 1) else { panic!() };
            chains.push(append.chain);
            room.persisted(3 * size);
        }
        assert_eq!(room.recent_after(1, u32::MAX), None, "only the last three are in memory");
        for (after, chain) in chains.iter().copied().enumerate().skip(2) {
            let page = room.recent_after(after as u64, u32::MAX).unwrap();
            assert_eq!((page.first, page.chain, page.items.len()), (after as u64 + 1, chain, 5 - after));
        }
        assert_eq!(room.recent_after(2, 1).unwrap().items.len(), 1, "at least one");
        assert_eq!(
            [0, 1, 2, 5, 6].map(|seq| room.chain_at(seq)),
            [Some(chains[0]), None, Some(chains[2]), Some(chains[5]), None]
        );
        assert_eq!(room.recent_after(6, 1), None);
    }

    #[test]
    fn pages_backwards_come_from_memory_only_when_it_has_all_that_fits() {
        let mut room = room();
        let size = u32::try_from(envelope(1, 1).len()).unwrap();
        for n in 1..=5 {
            go(&mut room, n, 1);
            room.persisted(3 * size);
        }
        let page = |before, count, bytes| {
            let page = room.recent_before(before, count, bytes)?;
            Some((page.first, page.items.len(), room.chain_at(page.first - 1) == Some(page.chain)))
        };
        assert_eq!(page(u64::MAX, 2, u32::MAX), Some((4, 2, true)));
        assert_eq!(page(5, 100, 2 * size), Some((3, 2, true)), "cut by bytes");
        assert_eq!(page(5, 100, 1), Some((4, 1, true)), "at least one");
        assert_eq!(page(u64::MAX, 3, u32::MAX), Some((3, 3, true)));
        assert_eq!(page(u64::MAX, 4, u32::MAX), None, "the engine has one more");
        assert_eq!(page(3, 1, u32::MAX), None);
        assert_eq!(page(1, 9, u32::MAX), Some((1, 0, true)));
        assert_eq!(page(0, 9, u32::MAX), Some((1, 0, true)));
    }

    #[test]
    fn what_was_read_is_kept_in_front_of_the_tail() {
        let (mut room, mut read, mut chains) = (room(), Vec::new(), Vec::new());
        let size = u32::try_from(envelope(1, 1).len()).unwrap();
        for n in 1..=6 {
            let Verdict::Append(Append { seq, chain, time_ms, envelope, .. }) = go(&mut room, n, 1) else { panic!() };
            chains.push(chain);
            read.push(super::super::log::Record { seq, time_ms, envelope });
            room.persisted(size);
        }
        let before = chain::start(ROOM);
        let records = |end| Records { state: room.durable, before, records: read[..end].to_vec() };
        let (apart, whole) = (records(4), records(5));
        room.remember(&apart, u32::MAX);
        assert_eq!(room.recent_after(4, 1), None, "a gap");
        room.remember(&whole, 4 * size);
        assert_eq!((room.recent_bytes(), room.recent_after(1, 1)), (4 * size as usize, None), "as many as may be kept");
        let page = room.recent_after(2, u32::MAX).unwrap();
        assert_eq!((page.first, page.chain, page.items.len()), (3, chains[1], 4));
        room.shrink_recent(2 * size);
        assert!(room.recent_covers(4) && !room.recent_covers(3));
    }

    #[test]
    fn a_floor_that_the_engine_raised_is_adopted_and_makes_room() {
        let mut room = room();
        let size = envelope(1, 1).len() as u64;
        let limits = Limits { room_bytes_max: 4 * size, ..Limits::default() };
        let mut chains = vec![chain::start(ROOM)];
        for n in 1..=4 {
            let Verdict::Append(append) = room.publish(DEVICE, publish(n, envelope(1, 1)), 0, &limits) else { panic!() };
            chains.push(append.chain);
            if n < 4 {
                room.persisted(1000);
            }
        }
        assert_eq!(room.publish(DEVICE, publish(5, envelope(1, 1)), 0, &limits), Verdict::Refused(Refusal::RoomFull));
        // The engine is ahead by the pending one.
        let state = LogState { head: 4, chain: chains[4], floor: 3, floor_chain: chains[2], bytes: 2 * size };
        room.adopt(&state);
        assert_eq!((room.durable.floor, room.durable.bytes, room.assigned.bytes), (3, size, 2 * size));
        assert_eq!((room.recent_after(1, 1), room.chain_at(2)), (None, Some(chains[2])));
        assert_eq!(room.recent_after(2, 1000).map(|page| page.items.len()), Some(1));
        room.persisted(1000);
        assert_eq!((room.durable.head, room.durable.bytes), (4, 2 * size));
        assert!(matches!(room.publish(DEVICE, publish(5, envelope(1, 1)), 0, &limits), Verdict::Append(_)));
        // An older view changes nothing.
        room.adopt(&LogState { head: 3, chain: chains[3], floor: 1, floor_chain: chains[0], bytes: 3 * size });
        assert_eq!((room.durable.floor, room.assigned.bytes), (3, 3 * size));
        // A floor beyond what is visible here.
        room.adopt(&LogState { head: 5, chain: chains[0], floor: 6, floor_chain: chains[0], bytes: 0 });
        assert_eq!((room.durable.floor, room.chain_at(4)), (5, Some(chains[4])));
    }
}
