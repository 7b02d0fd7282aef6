//! Files in memory that lose, tear and refuse what real ones may.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use waxwing::engine::wal::{Files, SegmentFile};

/// Sectors are written whole or not at all.
const SECTOR: usize = 512;

/// `SplitMix64`: small, seeded, good enough to choose schedules.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rng(pub u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap()
    }

    pub(crate) fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }
}

#[derive(Debug, Clone, Default)]
struct Bytes {
    durable: Vec<u8>,
    now: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

/// What is to go wrong, and after how many operations of the kind that go well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// The power fails at the so-manieth operation of any kind that changes the disk.
    Power(usize),
    /// A write is refused; a part of it may have been done.
    Write(usize),
    /// A sync fails; what it was to write is on the disk in part, and is not written by any later sync.
    Sync(usize),
    /// There is no space for a file.
    Create(usize),
    /// A file cannot be removed.
    Remove(usize),
}

#[derive(Debug)]
struct State {
    files: BTreeMap<String, Bytes>,
    fault: Fault,
    dead: bool,
    /// Operations that changed the disk.
    ops: usize,
    rng: Rng,
    /// Of salts: none is drawn twice in the life of a disk, whatever stops.
    salts: Rng,
}

/// Clones share the disk.
#[derive(Debug, Clone)]
pub(crate) struct Disk(Arc<Mutex<State>>);

#[derive(Debug)]
struct Handle {
    disk: Disk,
    name: String,
}

#[derive(Clone, Copy)]
enum Kind {
    Write,
    Sync,
    Create,
    Remove,
}

fn injected() -> io::Error {
    io::Error::other("injected")
}

impl State {
    /// Whether this operation is to fail.
    fn fails(&mut self, kind: Kind) -> bool {
        if self.dead {
            return true;
        }
        self.ops += 1;
        let ((Fault::Power(left), _)
        | (Fault::Write(left), Kind::Write)
        | (Fault::Sync(left), Kind::Sync)
        | (Fault::Create(left), Kind::Create)
        | (Fault::Remove(left), Kind::Remove)) = (&mut self.fault, kind)
        else {
            return false;
        };
        if *left > 0 {
            *left -= 1;
            return false;
        }
        self.dead = matches!(self.fault, Fault::Power(_));
        self.fault = Fault::None;
        true
    }

    fn file(&mut self, name: &str) -> io::Result<&mut Bytes> {
        self.files.get_mut(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Bytes {
    /// What the disk holds if of the writes that were not synced each is whole, torn or lost.
    fn settle(&mut self, rng: &mut Rng) {
        for (offset, data) in std::mem::take(&mut self.unsynced) {
            let mode = rng.below(4);
            let kept = rng.below(data.len() / SECTOR + 2);
            let mut at = 0;
            let mut sector = 0;
            while at < data.len() {
                let end = (at + SECTOR - (offset + at) % SECTOR).min(data.len());
                let reached = match mode {
                    0 => false,
                    1 => true,
                    2 => sector < kept,
                    _ => rng.one_in(2),
                };
                if reached {
                    self.durable[offset + at..offset + end].copy_from_slice(&data[at..end]);
                }
                (at, sector) = (end, sector + 1);
            }
        }
    }
}

impl Disk {
    pub(crate) fn new(seed: u64) -> Self {
        let (rng, salts) = (Rng(seed), Rng(seed ^ 0xabcd));
        Self(Arc::new(Mutex::new(State { files: BTreeMap::new(), fault: Fault::None, dead: false, ops: 0, rng, salts })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(crate) fn arm(&self, fault: Fault) {
        self.lock().fault = fault;
    }

    /// A number that a log begins a segment with.
    pub(crate) fn salt(&self) -> u64 {
        self.lock().salts.next()
    }

    /// Operations that changed the disk.
    pub(crate) fn ops(&self) -> usize {
        self.lock().ops
    }

    /// Whether the power has failed.
    pub(crate) fn is_dead(&self) -> bool {
        self.lock().dead
    }

    pub(crate) fn files(&self) -> Arc<dyn Files> {
        Arc::new(self.clone())
    }

    /// The process stops, and the machine goes on: what was written is there, and what was not synced is still not.
    pub(crate) fn killed(&self) -> Self {
        let mut state = self.lock();
        let (files, rng, salts) = (state.files.clone(), Rng(state.rng.next()), state.salts.clone());
        Self(Arc::new(Mutex::new(State { files, fault: Fault::None, dead: false, ops: 0, rng, salts })))
    }

    /// The machine stops.
    pub(crate) fn power_cut(&self) -> Self {
        let after = self.killed();
        {
            let state = &mut *after.lock();
            for file in state.files.values_mut() {
                file.settle(&mut state.rng);
                file.now = file.durable.clone();
            }
        }
        after
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.lock().files.keys().cloned().collect()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.lock().files.values().map(|file| file.now.len() as u64).sum()
    }

    /// Changes a file behind everybody's back.
    pub(crate) fn alter<T>(&self, name: &str, change: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let mut state = self.lock();
        let file = state.files.entry(name.to_owned()).or_default();
        let result = change(&mut file.now);
        file.durable = file.now.clone();
        file.unsynced.clear();
        result
    }
}

impl Files for Disk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn SegmentFile>> {
        self.lock().file(name)?;
        Ok(Box::new(Handle { disk: self.clone(), name: name.to_owned() }))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn SegmentFile>> {
        let state = &mut *self.lock();
        assert!(!state.files.contains_key(name), "{name} exists");
        let mut len = usize::try_from(len).unwrap();
        let was_dead = state.dead;
        let fails = state.fails(Kind::Create);
        if fails {
            // Half a file may be left.
            if was_dead || state.rng.one_in(2) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            len = state.rng.below(len + 1);
        }
        let zeros = vec![0; len];
        state.files.insert(name.to_owned(), Bytes { durable: zeros.clone(), now: zeros, unsynced: Vec::new() });
        if fails {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(Box::new(Handle { disk: self.clone(), name: name.to_owned() }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let state = &mut *self.lock();
        state.file(name)?;
        let was_dead = state.dead;
        let fails = state.fails(Kind::Remove);
        if !fails || (state.dead && !was_dead && state.rng.one_in(2)) {
            state.files.remove(name);
        }
        if fails { Err(injected()) } else { Ok(()) }
    }
}

impl SegmentFile for Handle {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        let mut state = self.disk.lock();
        let from = state.file(&self.name)?.now.get(offset..offset + into.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(from);
        Ok(())
    }

    fn write_at(&self, from: &[u8], offset: u64) -> io::Result<()> {
        let state = &mut *self.disk.lock();
        let offset = usize::try_from(offset).unwrap();
        let was_dead = state.dead;
        let fails = state.fails(Kind::Write);
        let done = match fails {
            _ if was_dead => 0,
            // Whole sectors of it: less than one is assumed of no disk.
            true => {
                let end = (offset + state.rng.below(from.len() + 1)) / SECTOR * SECTOR;
                end.max(offset) - offset
            }
            false => from.len(),
        };
        let from = &from[..done];
        let file = state.file(&self.name)?;
        assert!(offset + from.len() <= file.now.len(), "a segment file does not grow");
        file.now[offset..offset + from.len()].copy_from_slice(from);
        file.unsynced.push((offset, from.to_vec()));
        if fails { Err(injected()) } else { Ok(()) }
    }

    fn sync_data(&self) -> io::Result<()> {
        let state = &mut *self.disk.lock();
        let fails = state.fails(Kind::Sync);
        let (dead, mut rng) = (state.dead, state.rng.clone());
        let file = state.file(&self.name)?;
        if fails {
            if !dead {
                file.settle(&mut rng);
                state.rng = rng;
            }
            return Err(injected());
        }
        for (offset, data) in file.unsynced.drain(..) {
            file.durable[offset..offset + data.len()].copy_from_slice(&data);
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.lock().file(&self.name)?.now.len() as u64)
    }
}
