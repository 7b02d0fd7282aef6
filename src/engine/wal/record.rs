//! Records: one entry each. Their layout is in the documentation of [`super`].

use bytes::Bytes;

use super::{Entry, Lsn};
use crate::{
    core::{
        handshake,
        id::{DeviceKey, LogId, ProducerId, RoomId},
        log::{Append, LogMeta, Producer},
    },
    engine::crc,
};

/// Bytes before a record's body.
pub(super) const HEAD_LEN: usize = 20;
/// Records begin at multiples of this.
pub(super) const ALIGN: usize = 8;
/// The fewest bytes that a record takes.
pub(super) const RECORD_LEN_MIN: usize = 24;

const CREATE: u8 = 1;
/// An append whose room is the one that its envelope's header names.
const APPEND: u8 = 2;
/// An append that states its room.
const APPEND_ROOM: u8 = 3;
const DELETE: u8 = 4;
const PACKAGES: u8 = 5;

/// Where an envelope's header names its room.
const ROOM_AT: std::ops::Range<usize> = 4..20;
/// The most bytes that three variable-length numbers take.
const NUMBERS_LEN_MAX: usize = 30;
/// The most bytes of an append's body besides the envelope.
const APPEND_LEN_MAX: usize = 1 + 16 + 16 + 32 + 16 + NUMBERS_LEN_MAX;
/// The most bytes that a log's meta takes: 81 fixed ones, and two variable-length numbers.
const META_LEN_MAX: usize = 104;

/// What the checksums of a segment's records start from: the checksum of its salt and generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key(u32);

impl Key {
    pub(super) fn new(salt: u64, generation: u64) -> Self {
        Self(crc::append(crc::of(&salt.to_le_bytes()), &generation.to_le_bytes()))
    }

    /// The checksum of the rest of a record's head, so that a search need not read a body for each head it takes for one.
    fn check(self, head: &[u8; HEAD_LEN]) -> u16 {
        let [_, _, _, _, fields @ .., _, _] = head;
        let [a, b, c, d] = crc::append(self.0, fields).to_le_bytes();
        u16::from_le_bytes([a ^ c, b ^ d])
    }

    fn crc(self, record: &[u8]) -> u32 {
        crc::append(self.0, record)
    }
}

/// The head of a record as it is spelled; nothing is checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    crc: u32,
    pub(super) len: usize,
    pub(super) lsn: Lsn,
    pub(super) index: u16,
    check: u16,
}

impl Head {
    pub(super) fn parse(bytes: &[u8]) -> Option<(Self, &[u8; HEAD_LEN])> {
        let head = bytes.first_chunk::<HEAD_LEN>()?;
        let [c0, c1, c2, c3, l0, l1, l2, l3, lsn @ .., i0, i1, k0, k1] = head;
        let head_fields = Self {
            crc: u32::from_le_bytes([*c0, *c1, *c2, *c3]),
            len: usize::try_from(u32::from_le_bytes([*l0, *l1, *l2, *l3])).ok()?,
            lsn: u64::from_le_bytes(*lsn),
            index: u16::from_le_bytes([*i0, *i1]),
            check: u16::from_le_bytes([*k0, *k1]),
        };
        Some((head_fields, head))
    }
}

/// A record whose checksum is right.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record<'a> {
    pub(super) lsn: Lsn,
    /// Records of its batch before it.
    pub(super) index: u16,
    pub(super) body: &'a [u8],
}

impl<'a> Record<'a> {
    /// The record at the beginning of `bytes`, if one is there whose number is among `lsns`.
    #[inline]
    pub(super) fn read(bytes: &'a [u8], key: Key, lsns: &std::ops::RangeInclusive<Lsn>) -> Option<Self> {
        let (head, spelled) = Head::parse(bytes)?;
        if !lsns.contains(&head.lsn) || head.len == 0 || head.check != key.check(spelled) {
            return None;
        }
        let record = bytes.get(..HEAD_LEN.checked_add(head.len)?)?;
        let (_, covered) = record.split_at_checked(4)?;
        if head.crc != key.crc(covered) {
            return None;
        }
        Some(Self { lsn: head.lsn, index: head.index, body: record.get(HEAD_LEN..)? })
    }

    /// Bytes that it takes.
    pub(super) const fn len(&self) -> usize {
        padded(HEAD_LEN + self.body.len())
    }
}

/// The length `len` and what follows until the next record may begin.
pub(super) const fn padded(len: usize) -> usize {
    len.next_multiple_of(ALIGN)
}

/// Appends a record, whose body `body` appends, without checksums: [`stamp`] adds them once its segment is known. Leaves
/// `buffer` as it was, and returns false, if the body has more bytes than a record can state.
pub(super) fn put(buffer: &mut Vec<u8>, lsn: Lsn, index: u16, body: impl FnOnce(&mut Vec<u8>)) -> bool {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; HEAD_LEN]);
    body(buffer);
    finish(buffer, start, lsn, index)
}

fn finish(buffer: &mut Vec<u8>, start: usize, lsn: Lsn, index: u16) -> bool {
    let Ok(len) = u32::try_from(buffer.len() - start - HEAD_LEN) else {
        buffer.truncate(start);
        return false;
    };
    buffer.resize(start + padded(buffer.len() - start), 0);
    let head = buffer.get_mut(start + 4..).and_then(|rest| rest.first_chunk_mut::<14>());
    if let Some([l0, l1, l2, l3, lsn_bytes @ .., i0, i1]) = head {
        [*l0, *l1, *l2, *l3] = len.to_le_bytes();
        *lsn_bytes = lsn.to_le_bytes();
        [*i0, *i1] = index.to_le_bytes();
    }
    true
}

/// Adds the checksums of the records that `records` consists of.
pub(super) fn stamp(mut records: &mut [u8], key: Key) {
    while let Some((Head { len, .. }, spelled)) = Head::parse(records) {
        let check = key.check(spelled);
        let Some((record, rest)) = records.split_at_mut_checked(padded(HEAD_LEN + len)) else { return };
        if let Some([k0, k1]) = record.get_mut(HEAD_LEN - 2..HEAD_LEN).and_then(|bytes| bytes.as_mut_array()) {
            [*k0, *k1] = check.to_le_bytes();
        }
        if let Some((crc, covered)) = record.get_mut(..HEAD_LEN + len).and_then(|record| record.split_first_chunk_mut::<4>()) {
            *crc = key.crc(covered).to_le_bytes();
        }
        records = rest;
    }
}

/// Appends the body of an entry.
pub(super) fn put_body(buffer: &mut Vec<u8>, entry: &Entry) {
    match entry {
        Entry::Create { room, meta } => {
            buffer.push(CREATE);
            buffer.extend_from_slice(&room.0);
            let mut bytes = [0; META_LEN_MAX];
            let encoded = postcard::to_slice(meta, &mut bytes).expect("a log's meta is shorter than the buffer");
            buffer.extend_from_slice(encoded);
        }
        Entry::Append { log, append } => put_append(buffer, *log, append),
        Entry::Delete { room, log } => {
            buffer.push(DELETE);
            buffer.extend_from_slice(&room.0);
            buffer.extend_from_slice(&log.0);
        }
        Entry::Packages { device, packages } => {
            buffer.push(PACKAGES);
            buffer.extend_from_slice(&device.0);
            buffer.extend_from_slice(packages);
        }
    }
}

/// Appends the body of an [`Entry::Append`].
pub(super) fn put_append(buffer: &mut Vec<u8>, log: LogId, append: &Append) {
    // Once for all that follows.
    buffer.reserve(padded(HEAD_LEN + APPEND_LEN_MAX + append.envelope.len()));
    if names_room(append) {
        buffer.push(APPEND);
    } else {
        buffer.push(APPEND_ROOM);
        buffer.extend_from_slice(&append.room.0);
    }
    buffer.extend_from_slice(&log.0);
    buffer.extend_from_slice(&append.producer.device.0);
    buffer.extend_from_slice(&append.producer.id.0);
    buffer.extend_from_slice(numbers(append, &mut [0; NUMBERS_LEN_MAX]));
    buffer.extend_from_slice(&append.envelope);
}

fn names_room(append: &Append) -> bool {
    append.envelope.get(ROOM_AT) == Some(append.room.0.as_slice())
}

fn numbers<'a>(append: &Append, into: &'a mut [u8; NUMBERS_LEN_MAX]) -> &'a [u8] {
    let numbers = (append.seq, append.client_seq, append.time_ms);
    postcard::to_slice(&numbers, into).expect("three numbers are not longer than the buffer")
}

/// Bytes that the record of `entry` takes.
pub(super) fn encoded_len(entry: &Entry) -> usize {
    let body = match entry {
        Entry::Create { meta, .. } => {
            1 + 16 + postcard::to_slice(meta, &mut [0; META_LEN_MAX]).map_or(META_LEN_MAX, |meta| meta.len())
        }
        Entry::Append { append, .. } => {
            let room = if names_room(append) { 0 } else { 16 };
            let numbers = numbers(append, &mut [0; NUMBERS_LEN_MAX]).len();
            1 + room + 16 + 32 + 16 + numbers + append.envelope.len()
        }
        Entry::Delete { .. } => 1 + 16 + 16,
        Entry::Packages { packages, .. } => 1 + 32 + packages.len(),
    };
    padded(HEAD_LEN + body)
}

/// Reads a body. An envelope shares its bytes.
pub(super) fn decode(whole: &Bytes) -> Option<Entry> {
    let body: &[u8] = whole;
    let (kind, mut rest) = body.split_first()?;
    match *kind {
        CREATE => {
            let room = RoomId(take(&mut rest)?);
            let (meta, rest) = postcard::take_from_bytes::<LogMeta>(rest).ok()?;
            rest.is_empty().then_some(Entry::Create { room, meta })
        }
        APPEND | APPEND_ROOM => {
            let stated = if *kind == APPEND_ROOM { Some(take(&mut rest)?) } else { None };
            let log = LogId(take(&mut rest)?);
            let producer = Producer { device: DeviceKey(take(&mut rest)?), id: ProducerId(take(&mut rest)?) };
            let ((seq, client_seq, time_ms), envelope) = postcard::take_from_bytes(rest).ok()?;
            let room = match stated {
                Some(room) => room,
                None => envelope.get(ROOM_AT)?.try_into().ok()?,
            };
            // Who replays knows the value before the first record, and computes those that follow from the digests.
            let chain = handshake::entry(envelope);
            let hash = *chain.0.first_chunk()?;
            let envelope = whole.slice_ref(envelope);
            let append = Append { room: RoomId(room), seq, chain, time_ms, producer, client_seq, hash, envelope };
            Some(Entry::Append { log, append })
        }
        DELETE => {
            let entry = Entry::Delete { room: RoomId(take(&mut rest)?), log: LogId(take(&mut rest)?) };
            rest.is_empty().then_some(entry)
        }
        PACKAGES => {
            let device = DeviceKey(take(&mut rest)?);
            Some(Entry::Packages { device, packages: whole.slice_ref(rest) })
        }
        _ => None,
    }
}

/// The room that a body speaks of, as far as it can be told.
pub(super) fn room_of(body: &[u8]) -> Option<RoomId> {
    let (kind, mut rest) = body.split_first()?;
    match *kind {
        CREATE | APPEND_ROOM | DELETE => Some(RoomId(take(&mut rest)?)),
        APPEND => {
            let numbers = rest.get(16 + 32 + 16..)?;
            let (_, envelope) = postcard::take_from_bytes::<(u64, u64, u64)>(numbers).ok()?;
            Some(RoomId(envelope.get(ROOM_AT)?.try_into().ok()?))
        }
        _ => None,
    }
}

fn take<const LEN: usize>(rest: &mut &[u8]) -> Option<[u8; LEN]> {
    let (taken, left) = rest.split_first_chunk()?;
    *rest = left;
    Some(*taken)
}
