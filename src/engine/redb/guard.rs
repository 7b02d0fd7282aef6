//! Reading on after a failed write.
//!
//! redb latches: after one failed operation on its file it refuses all others, reads too. What was durable before is
//! still there, because redb never overwrites a page that the last commit refers to; only the file's header may already
//! name the commit that failed. [`Guard`] sits between redb and the file and remembers the header as it was at the last
//! successful sync; [`Overlay`] shows a second redb the file under that header, and keeps whatever that redb writes
//! (it repairs as it opens) in memory. So the last durable state stays readable, and nothing more reaches the file.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use redb::{BackendError, StorageBackend};

/// Bytes of redb's header, which alone is overwritten in place.
const HEADER_LEN: u64 = 320;
const BLOCK: u64 = 4096;
const BLOCK_LEN: usize = 4096;

/// The file, and its header as of the last successful sync.
#[derive(Debug)]
pub(in crate::engine) struct Guard {
    inner: Box<dyn StorageBackend>,
    /// Operations that change the file hold it shared; latching waits for them.
    latched: RwLock<bool>,
    /// The header at the last successful sync, if it was overwritten since.
    header_before: Mutex<Option<Vec<u8>>>,
}

impl Guard {
    pub(in crate::engine) fn new(inner: Box<dyn StorageBackend>) -> Arc<Self> {
        Arc::new(Self { inner, latched: RwLock::new(false), header_before: Mutex::new(None) })
    }

    /// From now on nothing reaches the file.
    pub(in crate::engine) fn latch(&self) {
        *self.latched.write().unwrap_or_else(PoisonError::into_inner) = true;
    }

    fn is_latched(&self) -> bool {
        *self.latched.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let latched = self.latched.read().unwrap_or_else(PoisonError::into_inner);
        if *latched { Err(io::Error::other("an earlier write failed")) } else { change() }
    }

    fn remember_header(&self) -> io::Result<()> {
        let mut before = self.header_before.lock().unwrap_or_else(PoisonError::into_inner);
        if before.is_none() {
            *before = Some(self.header()?);
        }
        Ok(())
    }

    fn header(&self) -> io::Result<Vec<u8>> {
        let len = usize::try_from(self.inner.len()?.min(HEADER_LEN)).unwrap_or_default();
        let mut header = vec![0; len];
        self.inner.read(0, &mut header)?;
        Ok(header)
    }
}

/// What redb is given.
#[derive(Debug)]
pub(in crate::engine) struct Guarded(pub(in crate::engine) Arc<Guard>);

impl StorageBackend for Guarded {
    fn len(&self) -> io::Result<u64> {
        self.0.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.change(|| self.0.inner.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.change(|| {
            self.0.inner.sync_data()?;
            *self.0.header_before.lock().unwrap_or_else(PoisonError::into_inner) = None;
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.change(|| {
            if offset < HEADER_LEN {
                self.0.remember_header()?;
            }
            self.0.inner.write(offset, data)
        })
    }

    /// Once latched, the file stays locked for as long as the overlay reads it: until its descriptor is closed.
    fn close(&self) -> io::Result<()> {
        if self.0.is_latched() { Ok(()) } else { self.0.inner.close() }
    }

    fn try_lock_range(&self, start: std::ops::Bound<u64>, end: std::ops::Bound<u64>) -> Result<bool, BackendError> {
        self.0.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: std::ops::Bound<u64>, end: std::ops::Bound<u64>) -> Result<bool, BackendError> {
        self.0.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: std::ops::Bound<u64>, end: std::ops::Bound<u64>) -> Result<(), BackendError> {
        self.0.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: std::ops::Bound<u64>, end: std::ops::Bound<u64>) -> Result<(), BackendError> {
        self.0.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: std::ops::Bound<u64>, end: std::ops::Bound<u64>) -> Result<(), BackendError> {
        if self.0.is_latched() { Ok(()) } else { self.0.inner.unlock_range(start, end) }
    }

    fn query_lock_range(&self, start: std::ops::Bound<u64>, end: std::ops::Bound<u64>) -> Result<bool, BackendError> {
        self.0.inner.query_lock_range(start, end)
    }
}

/// The last durable state of a latched [`Guard`], with writes kept in memory.
#[derive(Debug)]
pub(in crate::engine) struct Overlay {
    base: Arc<Guard>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    len: u64,
    blocks: HashMap<u64, Box<[u8; BLOCK_LEN]>>,
}

impl Overlay {
    /// Latches `base` and shows what it had made durable.
    pub(in crate::engine) fn new(base: Arc<Guard>) -> io::Result<Self> {
        base.latch();
        let header = base.header_before.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let state = State { len: base.inner.len()?, blocks: HashMap::new() };
        let overlay = Self { base, state: Mutex::new(state) };
        if let Some(header) = header {
            overlay.write(0, &header)?;
        }
        Ok(overlay)
    }

    /// Block `index` as it is without the overlay; beyond the end it is zero.
    fn base_block(&self, index: u64) -> io::Result<Box<[u8; BLOCK_LEN]>> {
        let mut block = Box::new([0; BLOCK_LEN]);
        let start = index * BLOCK;
        let there = self.base.inner.len()?.saturating_sub(start).min(BLOCK);
        if let Some(part) = block.get_mut(..usize::try_from(there).unwrap_or_default()) {
            self.base.inner.read(start, part)?;
        }
        Ok(block)
    }
}

/// Splits `offset..offset + len` at block boundaries: (block, offset in the block, offset in the buffer, length).
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done >= len {
            return None;
        }
        let at = offset + done as u64;
        let within = usize::try_from(at % BLOCK).unwrap_or_default();
        let part = (BLOCK_LEN - within).min(len - done);
        let piece = (at / BLOCK, within, done, part);
        done += part;
        Some(piece)
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().unwrap_or_else(PoisonError::into_inner).len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if offset.saturating_add(out.len() as u64) > state.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let below = offset.saturating_add(out.len() as u64) <= self.base.inner.len()?;
        if below && !pieces(offset, out.len()).any(|(index, ..)| state.blocks.contains_key(&index)) {
            drop(state);
            return self.base.inner.read(offset, out);
        }
        for (index, within, at, part) in pieces(offset, out.len()) {
            let below;
            let block = match state.blocks.get(&index) {
                Some(block) => block,
                None => {
                    below = self.base_block(index)?;
                    &below
                }
            };
            if let (Some(to), Some(from)) = (out.get_mut(at..at + part), block.get(within..within + part)) {
                to.copy_from_slice(from);
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, within, at, part) in pieces(offset, data.len()) {
            let block = match state.blocks.entry(index) {
                std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::hash_map::Entry::Vacant(entry) => entry.insert(self.base_block(index)?),
            };
            if let (Some(to), Some(from)) = (block.get_mut(within..within + part), data.get(at..at + part)) {
                to.copy_from_slice(from);
            }
        }
        Ok(())
    }
}
