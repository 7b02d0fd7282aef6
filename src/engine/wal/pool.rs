//! The segment files that exist: which wait to be applied, which are free, and how many there may be.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    Config, Lsn,
    files::{self, Files, SegmentFile},
};

/// A segment file.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) file: Box<dyn SegmentFile>,
    pub(super) len: u64,
}

/// Where the next segment will lie.
#[derive(Debug)]
pub(super) enum Next {
    /// In a free file.
    Slot(Slot),
    /// In a file that is to be made; its bytes are counted already.
    Make,
}

#[derive(Debug)]
struct State {
    free: Vec<Slot>,
    /// Full segments, oldest first, and the number after their last entry.
    full: VecDeque<(Slot, Lsn)>,
    /// Bytes of all files.
    bytes: u64,
    /// For the name of the next file.
    number: u64,
}

#[derive(Debug)]
pub(super) struct Pool {
    files: Arc<dyn Files>,
    config: Config,
    state: Mutex<State>,
}

impl Pool {
    /// Without files.
    pub(super) fn new(files: Arc<dyn Files>, config: Config) -> Self {
        let state = State { free: Vec::new(), full: VecDeque::new(), bytes: 0, number: 1 };
        Self { files, config, state: Mutex::new(state) }
    }

    /// Counts a file that was found. It is to be filled or freed.
    pub(super) fn count(&self, slot: &Slot) {
        let mut state = self.lock();
        state.bytes += slot.len;
        // A name that is in use is never given again.
        let after = files::number(&slot.name).map_or(1, |number| number.saturating_add(1));
        state.number = state.number.max(after);
    }

    pub(super) const fn config(&self) -> &Config {
        &self.config
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// A free file, or leave to make one; `None` when the limit is reached.
    pub(super) fn take(&self) -> Option<Next> {
        let mut state = self.lock();
        if let Some(slot) = state.free.pop() {
            return Some(Next::Slot(slot));
        }
        if state.bytes + self.config.segment_bytes > self.config.bytes_max {
            return None;
        }
        state.bytes += self.config.segment_bytes;
        Some(Next::Make)
    }

    /// A file of `len` bytes at least, whatever the limit. While the log is opened, only files without a header are free.
    pub(super) fn slot_beyond_limit(&self, len: u64) -> io::Result<Slot> {
        let len = len.next_multiple_of(4096).max(self.config.segment_bytes);
        let free = if len == self.config.segment_bytes { self.lock().free.pop() } else { None };
        free.map_or_else(
            || {
                self.lock().bytes += len;
                self.make(len)
            },
            Ok,
        )
    }

    /// The file, made if need be.
    pub(super) fn slot(&self, next: Next) -> io::Result<Slot> {
        match next {
            Next::Slot(slot) => Ok(slot),
            Next::Make => self.make(self.config.segment_bytes),
        }
    }

    /// Makes a file whose bytes are counted already.
    fn make(&self, len: u64) -> io::Result<Slot> {
        let name = {
            let mut state = self.lock();
            let number = state.number;
            state.number = number.saturating_add(1);
            files::name(number)
        };
        match self.files.create(&name, len) {
            Ok(file) => Ok(Slot { name, file, len }),
            Err(error) => {
                self.lock().bytes -= len;
                Err(error)
            }
        }
    }

    /// Makes a free file if there is none and one is allowed.
    pub(super) fn prepare(&self) -> io::Result<()> {
        {
            let mut state = self.lock();
            if !self.lacks_free(&state) {
                return Ok(());
            }
            state.bytes += self.config.segment_bytes;
        }
        let slot = self.make(self.config.segment_bytes)?;
        self.lock().free.push(slot);
        Ok(())
    }

    fn lacks_free(&self, state: &State) -> bool {
        state.free.is_empty() && state.bytes + self.config.segment_bytes <= self.config.bytes_max
    }

    pub(super) fn wants_preparation(&self) -> bool {
        self.lacks_free(&self.lock())
    }

    /// The segment is full; its entries are those before `end`.
    pub(super) fn fill(&self, slot: Slot, end: Lsn) {
        self.lock().full.push_back((slot, end));
    }

    pub(super) fn is_over_limit(&self) -> bool {
        self.bytes() > self.config.bytes_max
    }

    /// Frees the full segments whose entries are all applied.
    pub(super) fn release(&self, applied: Lsn) -> io::Result<()> {
        let mut released = Vec::new();
        {
            let mut state = self.lock();
            while state.full.front().is_some_and(|(_, end)| *end <= applied.saturating_add(1)) {
                released.extend(state.full.pop_front().map(|(slot, _)| slot));
            }
        }
        self.free(released)
    }

    /// Keeps the spares among `slots`, and removes the others.
    pub(super) fn free(&self, slots: Vec<Slot>) -> io::Result<()> {
        let mut surplus = Vec::new();
        {
            let mut state = self.lock();
            // Above the limit nothing is spare.
            let mut bytes = state.bytes;
            for slot in slots {
                let spare = slot.len == self.config.segment_bytes
                    && state.free.len() < self.config.spares_max
                    && bytes <= self.config.bytes_max;
                if spare {
                    state.free.push(slot);
                } else {
                    bytes -= slot.len;
                    surplus.push(slot);
                }
            }
        }
        self.remove(surplus)
    }

    /// What cannot be removed stays counted; it is found again when the log is opened.
    fn remove(&self, slots: Vec<Slot>) -> io::Result<()> {
        for Slot { name, file, len } in slots {
            drop(file);
            self.files.remove(&name)?;
            self.lock().bytes -= len;
        }
        Ok(())
    }
}
