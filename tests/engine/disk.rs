//! A disk in memory that loses, tears and refuses what a real one may.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard},
};

/// SplitMix64: small, seeded, good enough to choose schedules.
#[derive(Debug, Clone)]
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
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Op {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

impl Op {
    pub(crate) fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::SetLen(len) => image.resize(usize::try_from(*len).unwrap(), 0),
            Self::Write(offset, data) => {
                let start = usize::try_from(*offset).unwrap();
                if image.len() < start + data.len() {
                    image.resize(start + data.len(), 0);
                }
                image[start..start + data.len()].copy_from_slice(data);
            }
        }
    }
}

impl Op {
    /// What a power cut leaves of it: all, some sectors, or nothing.
    pub(crate) fn tear(&self, image: &mut Vec<u8>, rng: &mut Rng) {
        match (rng.below(3), self) {
            (0, _) => {}
            (1, Self::Write(offset, data)) => {
                // Sectors of 512 bytes are written whole, in any order.
                for (index, sector) in data.chunks(512).enumerate() {
                    if rng.below(2) == 0 {
                        Self::Write(offset + index as u64 * 512, sector.to_vec()).apply(image);
                    }
                }
            }
            (_, op) => op.apply(image),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    durable: Vec<u8>,
    now: Vec<u8>,
    unsynced: Vec<Op>,
    /// Operations that change the disk (writes, resizes, syncs) left until the power fails.
    power_for: Option<u64>,
    /// Syncs left until one fails.
    syncs_good: Option<u64>,
    /// Writes left until one fails.
    writes_good: Option<u64>,
    /// Reads left until one fails.
    reads_good: Option<u64>,
}

/// Clones share the disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk(Arc<Mutex<State>>);

fn count_down(left: &mut Option<u64>) -> bool {
    match left {
        Some(0) => true,
        Some(left) => {
            *left -= 1;
            false
        }
        None => false,
    }
}

impl Disk {
    pub(crate) fn new(image: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(State { durable: image.clone(), now: image, ..State::default() })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(crate) fn cut_power_after(&self, ops: u64) {
        self.lock().power_for = Some(ops);
    }

    pub(crate) fn fail_sync_after(&self, syncs: u64) {
        self.lock().syncs_good = Some(syncs);
    }

    pub(crate) fn fail_write_after(&self, writes: u64) {
        self.lock().writes_good = Some(writes);
    }

    pub(crate) fn fail_one_read_after(&self, reads: u64) {
        self.lock().reads_good = Some(reads);
    }

    /// What a machine would find after the power failed now: all that was synced, and of the rest each operation whole,
    /// torn or lost, as `rng` says; with none, nothing of the rest.
    pub(crate) fn crash_image(&self, rng: Option<&mut Rng>) -> Vec<u8> {
        let state = self.lock();
        let mut image = state.durable.clone();
        let Some(rng) = rng else { return image };
        for op in &state.unsynced {
            op.tear(&mut image, rng);
        }
        image
    }

    /// What a clean stop leaves.
    pub(crate) fn image(&self) -> Vec<u8> {
        self.lock().now.clone()
    }

    fn change(&self, op: Op) -> io::Result<()> {
        let mut state = self.lock();
        if count_down(&mut state.power_for) || (matches!(op, Op::Write(..)) && count_down(&mut state.writes_good)) {
            return Err(io::Error::other("injected"));
        }
        op.apply(&mut state.now);
        state.unsynced.push(op);
        Ok(())
    }
}

impl redb::StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.lock();
        if count_down(&mut state.reads_good) {
            state.reads_good = None;
            return Err(io::Error::other("injected"));
        }
        let start = usize::try_from(offset).unwrap();
        let from = state.now.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(from);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Op::SetLen(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.lock();
        if count_down(&mut state.power_for) || count_down(&mut state.syncs_good) {
            return Err(io::Error::other("injected"));
        }
        let state = &mut *state;
        for op in state.unsynced.drain(..) {
            op.apply(&mut state.durable);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Op::Write(offset, data.to_vec()))
    }
}
