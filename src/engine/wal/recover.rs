//! Reading the log after a stop: which entries it proves, which it does not, and whether anything is damaged.
//!
//! Nothing here writes. Every byte may be hostile: what is read is bounded by the files' lengths, and a search for records
//! reads a body only if the head before it has the right check value.

use std::ops::{Range, RangeInclusive};

use bytes::Bytes;

use super::{
    Entry, Lsn, OpenError,
    files::Files,
    pool::Slot,
    record::{self, ALIGN, Head, Key, RECORD_LEN_MIN, Record},
    segment::{HEADER_LEN, Header, State},
};
use crate::core::id::RoomId;

/// The most bytes that a segment may have.
pub(super) const SEGMENT_BYTES_MAX: u64 = 256 << 20;
/// No generation and no base is greater.
const NUMBER_MAX: u64 = u64::MAX >> 1;
/// The most rooms that an error names.
const ROOMS_MAX: usize = 16;

/// A segment file and its header.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) slot: Slot,
    pub(super) header: Header,
}

/// What lies in the directory.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// By generation.
    pub(super) segments: Vec<Segment>,
    /// Files that were never used.
    pub(super) blank: Vec<Slot>,
}

/// Opens all files and reads their headers.
pub(super) fn survey(files: &dyn Files) -> Result<Survey, OpenError> {
    let mut survey = Survey::default();
    for name in files.list()? {
        let file = files.open(&name)?;
        let len = file.len()?;
        let mut block = [0; HEADER_LEN];
        let there = usize::try_from(len).unwrap_or(HEADER_LEN).min(HEADER_LEN);
        file.read_at(block.get_mut(..there).unwrap_or_default(), 0)?;
        let slot = Slot { name, file, len };
        match Header::read(&block) {
            // Numbers that no log reaches, so that what follows them can be told.
            State::Valid(header) if header.generation.max(header.base) > NUMBER_MAX || header.base == 0 => {
                return Err(OpenError::Header { segment: slot.name });
            }
            State::Valid(header) => survey.segments.push(Segment { slot, header }),
            State::Blank => survey.blank.push(slot),
            State::Newer(found) => {
                return Err(OpenError::NewerFormat { segment: slot.name, found, supported: super::segment::FORMAT });
            }
            State::Damaged => return Err(OpenError::Header { segment: slot.name }),
        }
    }
    survey.segments.sort_by_key(|segment| segment.header.generation);
    for (older, newer) in survey.segments.iter().zip(survey.segments.iter().skip(1)) {
        if older.header.generation == newer.header.generation || older.header.base > newer.header.base {
            return Err(OpenError::Disordered { older: older.slot.name.clone(), newer: newer.slot.name.clone() });
        }
    }
    Ok(survey)
}

/// What the segments hold after `applied`.
#[derive(Debug, Default)]
pub(super) struct Replayed {
    /// The number of the next entry.
    pub(super) next: Lsn,
    /// The first of the segments that hold entries after `applied`; those before it are of no more use.
    pub(super) needed_from: usize,
    /// The bodies of the entries after `applied` in the last batch, if no later batch proves that it is durable.
    pub(super) unproven: Vec<Vec<u8>>,
}

/// Hands the entries after `applied` to `each`, in order.
pub(super) fn replay(segments: &[Segment], applied: Lsn, mut each: impl FnMut(Lsn, Entry)) -> Result<Replayed, OpenError> {
    let first = applied.saturating_add(1);
    let mut replayed = Replayed { next: first, ..Replayed::default() };
    let Some(oldest) = segments.first() else { return Ok(replayed) };
    let Some(needed_from) = segments.iter().rposition(|segment| segment.header.base <= first) else {
        return Err(OpenError::Gap { after: applied, found: oldest.header.base, segment: oldest.slot.name.clone() });
    };
    replayed.needed_from = needed_from;
    let mut following = segments.iter().skip(needed_from).peekable();
    while let Some(segment) = following.next() {
        let next = following.peek().map(|next| next.header);
        if next.is_some_and(|next| next.base == segment.header.base) {
            continue;
        }
        let bytes = read_segment(&segment.slot)?;
        let scan = Scan {
            bytes: &bytes,
            key: segment.header.key(),
            base: segment.header.base,
            applied,
            end: next.map(|next| next.base),
        };
        let tail = scan.run(&mut each).map_err(|damage| damage.into_error(segment, next))?;
        replayed.next = tail.next.max(first);
        replayed.unproven.clear();
        if next.is_none() {
            replayed.unproven = scan.bodies(tail.batch);
        }
    }
    Ok(replayed)
}

/// The envelopes that are replayed share these bytes, so that none is copied.
fn read_segment(slot: &Slot) -> Result<Bytes, OpenError> {
    if slot.len > SEGMENT_BYTES_MAX {
        return Err(OpenError::TooLarge { segment: slot.name.clone(), len: slot.len });
    }
    let mut bytes = vec![0; usize::try_from(slot.len).unwrap_or_default()];
    slot.file.read_at(&mut bytes, 0)?;
    Ok(bytes.into())
}

/// Records that were durable and are not there.
#[derive(Debug)]
struct Damage {
    offset: usize,
    lsn: Lsn,
    /// The next entry that is there.
    until: Option<Lsn>,
    rooms: Vec<RoomId>,
}

impl Damage {
    fn into_error(self, segment: &Segment, next: Option<Header>) -> OpenError {
        let segment_name = segment.slot.name.clone();
        // Between a segment and one that is not the next there was another, unless that had no entries.
        match next {
            Some(next) if self.until.is_none() && segment.header.generation.checked_add(1) != Some(next.generation) => {
                OpenError::Gap { after: self.lsn.saturating_sub(1), found: next.base, segment: segment_name }
            }
            _ => OpenError::Corrupted {
                segment: segment_name,
                offset: self.offset as u64,
                lsn: self.lsn,
                until: self.until.or_else(|| next.map(|next| next.base)),
                rooms: self.rooms,
            },
        }
    }
}

/// Where a segment's good records end.
#[derive(Debug)]
struct Tail {
    next: Lsn,
    /// The bytes of the last batch that has a good record.
    batch: Range<usize>,
}

/// One pass over a segment.
struct Scan<'a> {
    bytes: &'a Bytes,
    key: Key,
    base: Lsn,
    applied: Lsn,
    /// The number at which the next segment takes over, which proves that all before it were durable.
    end: Option<Lsn>,
}

impl<'a> Scan<'a> {
    fn at(&self, offset: usize) -> &'a [u8] {
        self.bytes.get(offset..).unwrap_or_default()
    }

    fn run(&self, each: &mut impl FnMut(Lsn, Entry)) -> Result<Tail, Damage> {
        let mut at = HEADER_LEN;
        let mut tail = Tail { next: self.base, batch: at..at };
        // The index of a record that goes on with the batch before it; `None` where any will do.
        let mut follows = Some(0);
        while Some(tail.next) != self.end {
            let found = Record::read(self.at(at), self.key, &(tail.next..=tail.next));
            let Some(record) = found.filter(|record| record.index == 0 || follows.is_none_or(|index| index == record.index))
            else {
                let Some((offset, lsn)) = self.resync(at, tail.next)? else { break };
                (at, tail.next, follows) = (offset, lsn, None);
                continue;
            };
            if record.lsn > self.applied {
                let Some(entry) = record::decode(&self.bytes.slice_ref(record.body)) else {
                    return Err(self.damage(at, tail.next, None));
                };
                each(record.lsn, entry);
            }
            if record.index == 0 || follows.is_none() {
                tail.batch.start = at;
            }
            at += record.len();
            tail.batch.end = at;
            tail.next = tail.next.saturating_add(1);
            follows = record.index.checked_add(1);
        }
        Ok(tail)
    }

    /// At `at` there is no good record `lsn`. Either it, and all after it, were never durable: `None`. Or what is missing is
    /// applied already: where to go on. Or it was durable.
    fn resync(&self, at: usize, lsn: Lsn) -> Result<Option<(usize, Lsn)>, Damage> {
        let first = self.applied.saturating_add(1);
        let needed = lsn.max(first);
        let mut from = at;
        let mut until = None;
        while let Some((offset, record)) = self.find(from, at, lsn) {
            if record.lsn <= first {
                return Ok(Some((offset, record.lsn)));
            }
            // A batch begins only when the one before is durable.
            if record.lsn.saturating_sub(record.index.into()) > needed {
                return Err(self.damage(at, lsn, until.or(Some((offset, record.lsn)))));
            }
            until = until.or(Some((offset, record.lsn)));
            from = offset + record.len();
        }
        if self.end.is_some() { Err(self.damage(at, lsn, until)) } else { Ok(None) }
    }

    /// The first good record from `from` on whose number follows the `lsn` expected at `bad`.
    fn find(&self, from: usize, bad: usize, lsn: Lsn) -> Option<(usize, Record<'a>)> {
        (from..self.bytes.len().saturating_sub(RECORD_LEN_MIN - 1)).step_by(ALIGN).find_map(|offset| {
            let between = ((offset - bad) / RECORD_LEN_MIN) as u64;
            let plausible: RangeInclusive<Lsn> = lsn.saturating_add(1)..=lsn.saturating_add(between + 1);
            Record::read(self.at(offset), self.key, &plausible).map(|record| (offset, record))
        })
    }

    /// The rooms of the records from `at` on are told as far as their lengths and numbers make sense.
    fn damage(&self, at: usize, lsn: Lsn, until: Option<(usize, Lsn)>) -> Damage {
        let mut rooms = Vec::new();
        let (mut offset, mut expected) = (at, lsn);
        let end = until.map_or(self.bytes.len(), |(offset, _)| offset);
        while offset < end && rooms.len() < ROOMS_MAX {
            let Some((head, _)) = Head::parse(self.at(offset)).filter(|(head, _)| head.lsn == expected && head.len > 0) else {
                break;
            };
            let Some(body) = self.at(offset).get(record::HEAD_LEN..).and_then(|rest| rest.get(..head.len)) else { break };
            rooms.extend(record::room_of(body).filter(|room| !rooms.contains(room)));
            offset += record::padded(record::HEAD_LEN + head.len);
            expected = expected.saturating_add(1);
        }
        Damage { offset: at, lsn, until: until.map(|(_, lsn)| lsn), rooms }
    }

    /// The bodies of the records in `range` that are not applied.
    fn bodies(&self, mut range: Range<usize>) -> Vec<Vec<u8>> {
        let mut bodies = Vec::new();
        while let Some(record) = self.bytes.get(range.clone()).and_then(|bytes| Record::read(bytes, self.key, &(0..=Lsn::MAX))) {
            if record.lsn > self.applied {
                bodies.push(record.body.to_vec());
            }
            range.start += record.len();
        }
        bodies
    }
}
