//! A machine with files in memory, which loses, tears and refuses what a real one may: the log's segments and the history
//! on one disk, so that a power cut strikes all of them at the same moment.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
};

use waxwing::engine::{
    embedded::Storage,
    wal::{Files, SegmentFile},
};

use crate::disk::{Op, Rng};

const HISTORY: &str = "history";

#[derive(Debug, Default, Clone)]
struct File {
    durable: Vec<u8>,
    now: Vec<u8>,
    unsynced: Vec<Op>,
}

/// How many operations of a kind go well before one fails, and whether all that follow do too.
#[derive(Debug, Default, Clone, Copy)]
struct Fuse {
    left: Option<u64>,
    for_ever: bool,
}

impl Fuse {
    fn blows(&mut self) -> bool {
        match &mut self.left {
            Some(0) => {
                if !self.for_ever {
                    self.left = None;
                }
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    files: BTreeMap<String, File>,
    /// Files that were removed, and may come back after a crash.
    removed: BTreeMap<String, File>,
    power: Fuse,
    syncs: Fuse,
    writes: Fuse,
    reads: Fuse,
    /// Only the history's operations fail.
    history_only: bool,
    free: Option<u64>,
}

/// Clones share the machine.
#[derive(Debug, Clone, Default)]
pub(crate) struct Machine(Arc<Mutex<Inner>>);

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// From then on everything that changes the disk.
    Power,
    /// One sync.
    Sync,
    /// One write.
    Write,
    /// One read of the history.
    Read,
}

impl Machine {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// After `good` operations of its kind, the fault strikes.
    pub(crate) fn fail(&self, fault: Fault, good: u64) {
        let mut inner = self.lock();
        let fuse = Fuse { left: Some(good), for_ever: fault == Fault::Power };
        match fault {
            Fault::Power => inner.power = fuse,
            Fault::Sync => inner.syncs = fuse,
            Fault::Write => inner.writes = fuse,
            Fault::Read => inner.reads = fuse,
        }
    }

    /// Faults strike the history only, not the log.
    pub(crate) fn spare_the_log(&self) {
        self.lock().history_only = true;
    }

    pub(crate) fn set_free(&self, bytes: u64) {
        self.lock().free = Some(bytes);
    }

    /// The machine as it starts again after the power failed now: all that was synced, and of the rest each operation
    /// whole, torn or lost, as `rng` says; with none, nothing of the rest.
    pub(crate) fn crashed(&self, rng: Option<&mut Rng>) -> Self {
        let inner = self.lock();
        let mut files: BTreeMap<String, Vec<u8>> =
            inner.files.iter().map(|(name, file)| (name.clone(), file.durable.clone())).collect();
        if let Some(rng) = rng {
            for (name, file) in &inner.files {
                let image = files.get_mut(name).unwrap();
                for op in &file.unsynced {
                    op.tear(image, rng);
                }
            }
            for (name, file) in &inner.removed {
                if rng.below(2) == 0 && !files.contains_key(name) {
                    files.insert(name.clone(), file.durable.clone());
                }
            }
        }
        Self::with(files)
    }

    /// The machine after a stop of the process: what it wrote is there.
    pub(crate) fn stopped(&self) -> Self {
        let inner = self.lock();
        Self::with(inner.files.iter().map(|(name, file)| (name.clone(), file.now.clone())).collect())
    }

    fn with(files: BTreeMap<String, Vec<u8>>) -> Self {
        let whole = |bytes: Vec<u8>| File { durable: bytes.clone(), now: bytes, unsynced: Vec::new() };
        let files = files.into_iter().map(|(name, bytes)| (name, whole(bytes))).collect();
        Self(Arc::new(Mutex::new(Inner { files, ..Inner::default() })))
    }

    /// The names of its files, and their lengths.
    pub(crate) fn files(&self) -> Vec<(String, usize)> {
        self.lock().files.iter().map(|(name, file)| (name.clone(), file.now.len())).collect()
    }

    /// Flips one bit.
    pub(crate) fn flip(&self, name: &str, bit: usize) {
        let mut inner = self.lock();
        let file = inner.files.get_mut(name).unwrap();
        for bytes in [&mut file.durable, &mut file.now] {
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

/// One file of a machine.
#[derive(Debug)]
struct Handle {
    machine: Machine,
    name: String,
}

fn injected() -> io::Error {
    io::Error::other("injected")
}

impl Inner {
    fn strikes(&mut self, name: &str, fuse: fn(&mut Self) -> &mut Fuse) -> bool {
        let spared = self.history_only && name != HISTORY;
        !spared && fuse(self).blows()
    }
}

impl Handle {
    fn change(&self, op: Op) -> io::Result<()> {
        let mut inner = self.machine.lock();
        if inner.strikes(&self.name, |inner| &mut inner.power)
            || (matches!(op, Op::Write(..)) && inner.strikes(&self.name, |inner| &mut inner.writes))
        {
            return Err(injected());
        }
        let file = inner.files.get_mut(&self.name).ok_or(io::ErrorKind::NotFound)?;
        op.apply(&mut file.now);
        file.unsynced.push(op);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.machine.lock();
        if inner.strikes(&self.name, |inner| &mut inner.power) || inner.strikes(&self.name, |inner| &mut inner.syncs) {
            return Err(injected());
        }
        let file = inner.files.get_mut(&self.name).ok_or(io::ErrorKind::NotFound)?;
        for op in std::mem::take(&mut file.unsynced) {
            op.apply(&mut file.durable);
        }
        Ok(())
    }

    fn read_exact(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut inner = self.machine.lock();
        if self.name == HISTORY && inner.reads.blows() {
            return Err(injected());
        }
        let file = inner.files.get(&self.name).ok_or(io::ErrorKind::NotFound)?;
        let start = usize::try_from(offset).unwrap();
        out.copy_from_slice(file.now.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn length(&self) -> u64 {
        self.machine.lock().files.get(&self.name).map_or(0, |file| file.now.len() as u64)
    }
}

impl redb::StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.length())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read_exact(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Op::SetLen(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Op::Write(offset, data.to_vec()))
    }
}

impl SegmentFile for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.length())
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact(offset, out)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.change(Op::Write(offset, data.to_vec()))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }
}

impl Files for Machine {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().files.keys().filter(|name| *name != HISTORY).cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn SegmentFile>> {
        if !self.lock().files.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Box::new(Handle { machine: self.clone(), name: name.to_owned() }))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn SegmentFile>> {
        let mut inner = self.lock();
        if inner.strikes(name, |inner| &mut inner.power) || inner.strikes(name, |inner| &mut inner.writes) {
            return Err(injected());
        }
        let zeros = vec![0; usize::try_from(len).unwrap()];
        inner.files.insert(name.to_owned(), File { durable: zeros.clone(), now: zeros, unsynced: Vec::new() });
        drop(inner);
        self.open(name)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.lock();
        if inner.strikes(name, |inner| &mut inner.power) {
            return Err(injected());
        }
        if let Some(file) = inner.files.remove(name) {
            inner.removed.insert(name.to_owned(), file);
        }
        Ok(())
    }
}

impl Storage for Machine {
    fn files(&self) -> io::Result<Arc<dyn Files>> {
        Ok(Arc::new(self.clone()))
    }

    fn history(&self, _make: bool) -> Result<Box<dyn redb::StorageBackend>, redb::DatabaseError> {
        self.lock().files.entry(HISTORY.to_owned()).or_default();
        Ok(Box::new(Handle { machine: self.clone(), name: HISTORY.to_owned() }))
    }

    fn free_space(&self) -> io::Result<u64> {
        Ok(self.lock().free.unwrap_or(u64::MAX))
    }

    fn path(&self) -> &Path {
        Path::new("(machine)")
    }
}
