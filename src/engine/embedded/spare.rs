//! Space for the blocks of batches, which is used again: what a table has left behind when it is applied takes the batches that follow.
//!
//! Memory that is given back to the system and asked for again is cleared by it, page by page, on the thread that acks; that cost
//! as much as all else this thread does. And what was never used is found by it first. So in a flood another thread fetches it in
//! advance ([`Spares::stock`]).

use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Less than this, in bytes, is not worth keeping.
const KEPT_MIN: usize = 512;
/// What is handed out has at most so many times the space that was asked for.
const SLACK: usize = 2;
/// Fetched in advance is what is asked for in pieces of so many bytes at least: who asks for less writes little.
const STOCKED_MIN: usize = 16 << 10;
/// As much as this part of the limit is fetched in advance, when half of it is left.
const STOCK_PART: usize = 8;
/// In each so many bytes one is written, for the system to find the page.
const PAGE: usize = 4096;

/// Vectors that nobody uses now, up to so many bytes, and those that were fetched in advance.
#[derive(Debug)]
pub(super) struct Spares<T> {
    shelf: Mutex<Shelf<T>>,
    bytes_max: usize,
}

#[derive(Debug)]
struct Shelf<T> {
    by_capacity: BTreeMap<usize, Vec<Vec<T>>>,
    bytes: usize,
    /// What was asked for when little was left; none as long as there is enough.
    wanted: Option<Wanted>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Wanted {
    /// The largest space.
    capacity: usize,
    /// Whether whoever asked was told.
    told: bool,
}

impl<T> Shelf<T> {
    fn take(&mut self, capacity: usize) -> Option<Vec<T>> {
        let group = self.by_capacity.get_mut(&capacity)?;
        let vec = group.pop();
        if group.is_empty() {
            self.by_capacity.remove(&capacity);
        }
        self.bytes -= vec.as_ref().map_or(0, bytes_of);
        vec
    }
}

fn bytes_of<T>(vec: &Vec<T>) -> usize {
    vec.capacity() * size_of::<T>()
}

impl<T> Spares<T> {
    /// None yet.
    pub(super) fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { shelf: Mutex::new(Shelf { by_capacity: BTreeMap::new(), bytes: 0, wanted: None }), bytes_max })
    }

    fn lock(&self) -> MutexGuard<'_, Shelf<T>> {
        // No code panics while it holds the lock half-way through a change.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An empty vector with space for `len`. Where none of those kept fits, as much of them is let go as is made, so that the
    /// sum does not grow with every change of the batches' size.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Lent<T> {
        // Of few sizes, so that they fit again.
        let capacity = len.next_multiple_of((len.next_power_of_two() / 8).max(1));
        let mut shelf = self.lock();
        let fitting = shelf.by_capacity.range(len..=capacity.saturating_mul(SLACK)).next().map(|(capacity, _)| *capacity);
        let kept = fitting.and_then(|fitting| shelf.take(fitting));
        let mut dropped = Vec::new();
        let mut left = if kept.is_some() { 0 } else { capacity * size_of::<T>() };
        while left > 0 {
            let smallest = shelf.by_capacity.first_key_value().map(|(capacity, _)| *capacity);
            let Some(vec) = smallest.and_then(|smallest| shelf.take(smallest)) else { break };
            left = left.saturating_sub(bytes_of(&vec));
            dropped.push(vec);
        }
        let low = self.stock_bytes() / 2;
        if shelf.bytes < low && (STOCKED_MIN..=low).contains(&(capacity * size_of::<T>())) {
            let Wanted { capacity: other, told } = shelf.wanted.unwrap_or_default();
            shelf.wanted = Some(Wanted { capacity: capacity.max(other), told });
        }
        drop(shelf);
        Lent { vec: kept.unwrap_or_else(|| Vec::with_capacity(capacity)), home: Some(Arc::clone(self)) }
    }

    const fn stock_bytes(&self) -> usize {
        self.bytes_max / STOCK_PART
    }

    /// Whether little is left, and somebody should call [`Self::stock`]. It is told once.
    pub(super) fn runs_low(&self) -> bool {
        self.lock().wanted.as_mut().is_some_and(|wanted| !std::mem::replace(&mut wanted.told, true))
    }

    fn give(&self, mut vec: Vec<T>) {
        vec.clear();
        let bytes = bytes_of(&vec);
        let mut shelf = self.lock();
        if bytes >= KEPT_MIN && shelf.bytes + bytes <= self.bytes_max + self.stock_bytes() {
            shelf.bytes += bytes;
            shelf.by_capacity.entry(vec.capacity()).or_default().push(vec);
        }
    }

    /// Gives all that is kept back to the system.
    pub(super) fn clear(&self) {
        let kept = {
            let mut shelf = self.lock();
            (shelf.bytes, shelf.wanted) = (0, None);
            std::mem::take(&mut shelf.by_capacity)
        };
        drop(kept);
    }

    /// What is kept, in bytes.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }
}

impl<T: Copy> Spares<T> {
    /// Fetches space of the size that was asked for, if little is left, with `blank` here and there in it.
    pub(super) fn stock(&self, blank: T) {
        // It may go as fast as it comes.
        let mut left = self.stock_bytes();
        while let Some(Wanted { capacity, .. }) = { self.lock().wanted }
            && left > 0
        {
            left = left.saturating_sub(capacity * size_of::<T>());
            let mut vec: Vec<T> = Vec::with_capacity(capacity);
            for element in vec.spare_capacity_mut().iter_mut().step_by((PAGE / size_of::<T>()).max(1)) {
                element.write(blank);
            }
            self.give(vec);
            let mut shelf = self.lock();
            if shelf.bytes >= self.stock_bytes() {
                shelf.wanted = None;
            }
        }
        if let Some(wanted) = &mut self.lock().wanted {
            wanted.told = false;
        }
    }
}

/// A vector that goes back to where it came from when it is dropped.
#[derive(Debug)]
pub(super) struct Lent<T> {
    vec: Vec<T>,
    home: Option<Arc<Spares<T>>>,
}

impl<T> Default for Lent<T> {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl<T> From<Vec<T>> for Lent<T> {
    /// One that came from nowhere.
    fn from(vec: Vec<T>) -> Self {
        Self { vec, home: None }
    }
}

impl<T> Deref for Lent<T> {
    type Target = Vec<T>;

    fn deref(&self) -> &Vec<T> {
        &self.vec
    }
}

impl<T> DerefMut for Lent<T> {
    fn deref_mut(&mut self) -> &mut Vec<T> {
        &mut self.vec
    }
}

impl AsRef<[u8]> for Lent<u8> {
    fn as_ref(&self) -> &[u8] {
        &self.vec
    }
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            home.give(std::mem::take(&mut self.vec));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_used_again() {
        let spares = Spares::<u8>::new(1 << 20);
        let mut first = spares.take(50_000);
        assert!(first.capacity() >= 50_000 && first.is_empty());
        first.extend_from_slice(&[7; 50_000]);
        let place = first.as_ptr();
        drop(first);
        assert!(spares.bytes() >= 50_000);
        let again = spares.take(40_000);
        assert_eq!((again.as_ptr(), again.len(), spares.bytes()), (place, 0, 0), "as it was, and empty");
        drop(again);
        // It is not given for what is much smaller or larger than it, and goes when another one is made.
        let other = spares.take(10_000);
        assert!(other.as_ptr() != place && other.capacity() < 20_000);
        assert_eq!(spares.bytes(), 0);
    }

    #[test]
    fn what_a_flood_will_ask_for_is_fetched_in_advance_and_no_more() {
        let spares = Spares::<u64>::new(8 << 20);
        drop(spares.take(20));
        assert!(!spares.runs_low(), "little is no flood");
        let lent = spares.take(4 << 10);
        assert!(spares.runs_low() && !spares.runs_low(), "it is told once");
        spares.stock(7);
        assert!((1 << 20..(1 << 20) + (64 << 10)).contains(&spares.bytes()), "{}", spares.bytes());
        spares.stock(7);
        assert!(spares.bytes() < (1 << 20) + (64 << 10), "once");
        let more: Vec<_> = std::iter::repeat_with(|| spares.take(4 << 10)).take_while(|_| !spares.runs_low()).collect();
        assert!((12..=20).contains(&more.len()), "half of it was there: {}", more.len());
        assert!(more.iter().all(|lent| lent.is_empty()));
        spares.clear();
        spares.stock(7);
        assert_eq!(spares.bytes(), 0, "the flood is over");
        drop((lent, more));
    }

    #[test]
    fn what_is_kept_has_a_limit() {
        let spares = Spares::<u64>::new(1 << 20);
        let lent: Vec<_> = (0..100).map(|_| spares.take(8 << 10)).collect();
        drop(lent);
        assert!((1 << 19..=(1 << 20) + (1 << 17)).contains(&spares.bytes()), "{}", spares.bytes());
        spares.clear();
        assert_eq!(spares.bytes(), 0);
        drop(spares.take(20));
        assert_eq!(spares.bytes(), 0, "little is not worth keeping");
        let lent: Vec<_> = (0..100).map(|_| spares.take(4 << 10)).collect();
        drop(lent);
        // Larger and larger batches do not pile up.
        for len in (8 << 10..200 << 10).step_by(1 << 10) {
            drop(spares.take(len));
            assert!(spares.bytes() <= (1 << 20) + (1 << 17));
        }
    }
}
