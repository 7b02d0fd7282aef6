//! How records are divided into chunks, so that a chunk fills the page it lies in. Pure.
//!
//! redb gives a value that is larger than its page of 4 KiB a page of its own, of the next power of two. A chunk is made for
//! good when its records fill such a page, from 16 KiB up to 1 MiB: the largest up to 64 KiB that they fill well, or else the
//! smallest, so that the larger the records are, the larger the page. What is left over is *open*: it is put on small pages
//! that it fills and will be moved once it fills a large one with what follows; and what does not even fill one of 4 KiB is
//! *loose*, moved by whatever follows: on a page of its own where it takes most of one, or else divided into rows of which
//! several lie on one page.

use std::ops::Range;

/// The smallest and the largest page of an open chunk, and the smallest of one that is made for good. Powers of two.
const OPEN_PAGE_MIN: u64 = 4 << 10;
const OPEN_PAGE_MAX: u64 = 512 << 10;
const PAGE_MIN: u64 = 16 << 10;
const PAGE_MAX: u64 = 1 << 20;
/// Records that fill such a page at once get it, if they fill it well: the fewer rows, the less each record costs to apply and to read.
const PAGE_BULK: u64 = 64 << 10;
/// What a page that holds one chunk has besides the chunk's records: redb's header, length and key, and the chunk's header.
const PAGE_OVERHEAD: u64 = 32 + super::chunk::HEADER_LEN as u64;
/// The least part of a page, in 1/256, for which a chunk that may still be moved has one of its own: small rows fill less of
/// theirs, as trees that grow at random do (ln 2).
const LOOSE_MIN: u64 = 180;
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
    /// A loose one on a page of its own; then there are no others.
    pub(super) loose: Option<Range<usize>>,
    /// Loose ones that share pages.
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
        // With sizes of 384·2^k and 512·2^k this is what a page can do.
        let well = |page: u64| self.filled(from, page).filter(|end| self.use_of(from..*end, page) >= 240);
        if let Some(end) = pages(PAGE_MIN, PAGE_BULK).filter_map(well).last() {
            return Ok(end);
        }
        let mut best: Option<(u64, usize)> = None;
        for page in pages(PAGE_MIN, PAGE_MAX) {
            if self.bytes(from..self.len()) <= page - PAGE_OVERHEAD {
                return Err(page - PAGE_OVERHEAD);
            }
            if let Some(end) = well(page) {
                return Ok(end);
            }
            let Some(end) = self.filled(from, page) else { continue };
            let part = self.use_of(from..end, page);
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
        let left = at..self.len();
        let fits = self.bytes(left.clone()) + PAGE_OVERHEAD <= OPEN_PAGE_MIN;
        if fits && self.use_of(left.clone(), OPEN_PAGE_MIN) >= LOOSE_MIN {
            layout.loose = Some(left);
            return layout;
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layout(costs: &[u64]) -> Layout {
        Sizes::new(costs.iter().copied()).all()
    }

    proptest! {
        #[test]
        fn every_record_is_in_one_chunk_and_chunks_fit_their_pages(costs in proptest::collection::vec(prop_oneof![
            4 => 2..400_u64, 1 => 400..5_000_u64, 1 => 5_000..70_000_u64], 0..300))
        {
            let sizes = Sizes::new(costs.iter().copied());
            let layout = sizes.all();
            let chunks: Vec<_> = layout.full.iter().chain(&layout.open).chain(&layout.loose).chain(&layout.small).cloned().collect();
            let mut at = 0;
            for chunk in &chunks {
                prop_assert_eq!(chunk.start, at);
                prop_assert!(chunk.end > chunk.start);
                at = chunk.end;
            }
            prop_assert_eq!(at, costs.len());
            let open: u64 = layout.open.iter().chain(&layout.loose).chain(&layout.small).map(|chunk| sizes.bytes(chunk.clone())).sum();
            prop_assert_eq!(open, layout.bytes);
            prop_assert!(layout.bytes <= layout.goal && layout.goal < PAGE_MAX);
            for chunk in &layout.open {
                let bytes = sizes.bytes(chunk.clone()) + PAGE_OVERHEAD;
                prop_assert!(bytes * 8 >= bytes.next_power_of_two() * 7, "{} bytes", bytes);
            }
            if let Some(chunk) = &layout.loose {
                prop_assert!(layout.small.is_empty() && sizes.bytes(chunk.clone()) + PAGE_OVERHEAD <= OPEN_PAGE_MIN);
            }
            for chunk in &layout.full {
                prop_assert!(sizes.bytes(chunk.clone()) + PAGE_OVERHEAD > PAGE_MIN / 2);
            }
        }
    }

    #[test]
    fn the_usual_sizes_fill_fifteen_sixteenths() {
        let sizes = (8..=16).flat_map(|k| [384_u64 << (k - 7), 1 << k]).filter(|size| *size <= 65_536);
        for size in sizes {
            let layout = layout(&vec![size + 40; 3_000_000 / usize::try_from(size).unwrap()]);
            assert!(!layout.full.is_empty());
            for chunk in layout.full {
                let bytes = (size + 40) * chunk.len() as u64 + PAGE_OVERHEAD;
                assert!(bytes * 16 >= bytes.next_power_of_two() * 15, "{size}: {} records", chunk.len());
            }
        }
    }

    #[test]
    fn boundaries() {
        assert_eq!(layout(&[]), Layout { goal: PAGE_MIN - PAGE_OVERHEAD, ..Layout::default() });
        // Exactly a page is not full for good: one more record might still fit a page that is not asked for yet.
        let page = PAGE_MIN - PAGE_OVERHEAD;
        let exact = layout(&[page / 16; 16]);
        assert!(exact.full.is_empty() && exact.bytes == page / 16 * 16);
        let more = layout(&[page / 16; 17]);
        assert_eq!((more.full.first(), more.small.first()), (Some(&(0..16)), Some(&(16..17))));
        // What comes at once is not divided more than it has to be.
        let much = layout(&vec![320; 330]);
        assert_eq!(much.full, [0..204, 204..306], "pages of 64 and 32 KiB");
        // What fills a small page to the byte has it alone, and with a byte more it would not lie on it.
        let page = OPEN_PAGE_MIN - PAGE_OVERHEAD;
        let (exact, more) = (layout(&[page - 1000, 1000]), layout(&[page - 1000, 1001]));
        assert_eq!((exact.loose, more.loose.is_none(), more.small.len()), (Some(0..2), true, 2));
        // A record larger than any page stands alone.
        assert_eq!(layout(&[2 * PAGE_MAX, 5]).full.first(), Some(&(0..1)));
    }
}
