//! How records are divided into chunks, so that a chunk fills the page it lies in. Pure.
//!
//! redb gives a value that is larger than its page of 4 KiB a page of its own, of the next power of two. A chunk is made for
//! good when its records fill such a page, the smallest that they fill well, from 16 KiB up to 1 MiB: the larger the records
//! are, the larger the page. What is left over is *open*: it is put on small pages that it fills and will be moved once it
//! fills a large one with what follows; and what does not even fill one of 4 KiB is divided into rows of which several lie
//! on one page.

use std::ops::Range;

/// The smallest and the largest page of an open chunk, and the smallest of one that is made for good. Powers of two.
const OPEN_PAGE_MIN: u64 = 4 << 10;
const OPEN_PAGE_MAX: u64 = 512 << 10;
const PAGE_MIN: u64 = 16 << 10;
const PAGE_MAX: u64 = 1 << 20;
/// What a page that holds one chunk has besides the chunk's records: redb's header, length and key, and the chunk's header.
const PAGE_OVERHEAD: u64 = 32 + super::chunk::HEADER_LEN as u64;
/// A small row has so many bytes at most, if it has more than one record. Three of them fit a page of 4 KiB, which is what
/// keeps redb from dividing a page so that one half does not fit a page.
const SMALL_MAX: u64 = 1280;

/// Records by what they take in a chunk.
pub(super) struct Sizes {
    /// The sum up to and with each record, after a 0.
    ends: Vec<u64>,
}

/// A division of records into chunks, in their order.
#[derive(Debug, PartialEq, Eq, Default)]
pub(super) struct Layout {
    /// Chunks that are full for good.
    pub(super) full: Vec<Range<usize>>,
    /// Open ones that fill a smaller page.
    pub(super) open: Vec<Range<usize>>,
    /// Open ones that fill no page.
    pub(super) small: Vec<Range<usize>>,
    /// What the open ones take.
    pub(super) bytes: u64,
    /// When the open ones take so much, part of them fills a chunk for good.
    pub(super) goal: u64,
}

impl Sizes {
    pub(super) fn new(costs: impl Iterator<Item = u64>) -> Self {
        let mut ends = vec![0];
        ends.extend(costs.scan(0, |sum, cost| {
            *sum += cost;
            Some(*sum)
        }));
        Self { ends }
    }

    fn len(&self) -> usize {
        self.ends.len() - 1
    }

    /// What the records take.
    fn bytes(&self, records: Range<usize>) -> u64 {
        let end = |index: usize| self.ends.get(index).copied().unwrap_or_default();
        end(records.end).saturating_sub(end(records.start))
    }

    /// How far the records from `from` reach within `bytes`.
    fn reach(&self, from: usize, bytes: u64) -> usize {
        let base = self.bytes(0..from);
        self.ends.partition_point(|end| *end <= base + bytes).saturating_sub(1).max(from)
    }

    /// Whether the records from `from` fill a page of `page` bytes (so that the next one does not fit), and how far.
    fn filled(&self, from: usize, page: u64) -> Option<usize> {
        let end = self.reach(from, page - PAGE_OVERHEAD);
        (end > from && end < self.len()).then_some(end)
    }

    /// The part of a page, in 1/256, that `records` would use.
    fn use_of(&self, records: Range<usize>, page: u64) -> u64 {
        (self.bytes(records) + PAGE_OVERHEAD) * 256 / page
    }

    /// All records, of which none is in a full chunk yet.
    pub(super) fn all(&self) -> Layout {
        let (mut full, mut from) = (Vec::new(), 0);
        let goal = loop {
            match self.next_full(from) {
                Ok(end) => full.push(from..end),
                Err(goal) => break goal,
            }
            from = full.last().map_or(0, |chunk| chunk.end);
        };
        Layout { full, goal, ..self.open(from) }
    }

    /// The end of the full chunk that begins at `from`, or how many bytes it takes until there can be one.
    fn next_full(&self, from: usize) -> Result<usize, u64> {
        let mut best: Option<(u64, usize)> = None;
        for page in pages(PAGE_MIN, PAGE_MAX) {
            if self.bytes(from..self.len()) <= page - PAGE_OVERHEAD {
                return Err(page - PAGE_OVERHEAD);
            }
            let Some(end) = self.filled(from, page) else { continue };
            let part = self.use_of(from..end, page);
            // With sizes of 384·2^k and 512·2^k this is what a page can do.
            if part >= 240 {
                return Ok(end);
            }
            if best.is_none_or(|(other, _)| part > other) {
                best = Some((part, end));
            }
        }
        // A record that is larger than the largest page stands alone.
        Ok(best.map_or(from + 1, |(_, end)| end))
    }

    /// The records from `from`, as open chunks.
    pub(super) fn open(&self, from: usize) -> Layout {
        let mut layout = Layout { bytes: self.bytes(from..self.len()), ..Layout::default() };
        let mut at = from;
        let filled = |at: usize| {
            let fitting = pages(OPEN_PAGE_MIN, OPEN_PAGE_MAX).filter_map(|page| Some((page, self.filled(at, page)?)));
            fitting.filter(|(page, end)| self.use_of(at..*end, *page) >= 224).last()
        };
        while let Some((_, end)) = filled(at) {
            layout.open.push(at..end);
            at = end;
        }
        while at < self.len() {
            let end = self.reach(at, SMALL_MAX).max(at + 1);
            layout.small.push(at..end);
            at = end;
        }
        layout
    }
}

/// The powers of two from `min` to `max`.
fn pages(min: u64, max: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(min), |page| Some(page * 2)).take_while(move |page| *page <= max)
}
