//! The applier: brings what was logged into redb, much at a time and sorted by room, and sweeps what is over.

use std::{
    io,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use redb::WriteTransaction;

use super::{
    Config, Health,
    apply::Apply,
    clock,
    database::Database,
    layers::{Layers, Next},
    memtable::{Memtable, RoomTail, Space},
    retention::Schedule,
    tables::Error,
};
use crate::{
    core::id::RoomId,
    engine::{
        Observer, rows,
        wal::{Lsn, Recycler},
    },
    memory,
};

/// For so long nothing comes when the store is quiet: a flood that stops for less finds its space where it was.
const QUIET: Duration = Duration::from_secs(1);
/// What went through redb until it is worth letting go of its cache: less is left there for who reads next.
const CACHED_MIN: usize = 8 << 20;
/// Rows that are swept in one transaction: enough to be quick, few enough not to hold up what was logged.
const SWEEP_ROWS: usize = 1_000;

pub(super) struct Applier {
    pub(super) layers: Arc<Layers>,
    pub(super) database: Arc<Database>,
    pub(super) recycler: Recycler,
    pub(super) health: Arc<Health>,
    pub(super) config: Config,
    pub(super) observer: Arc<dyn Observer>,
    /// Whether rows of logs that are over may be left.
    pub(super) sweeping: bool,
    /// Bytes that were applied since redb's cache was empty.
    pub(super) cached: usize,
    /// Where the blocks of batches lie.
    pub(super) space: Space,
    /// What is kept, and what is to be dropped.
    pub(super) schedule: Schedule,
}

impl Applier {
    /// Applies until the layers are closed and nothing is left, or cannot be applied.
    pub(super) fn run(mut self) {
        let age = Duration::from_millis(self.config.apply_after_ms.into());
        loop {
            self.prepare();
            let patience = if self.sweeping { Some(Duration::ZERO) } else { self.schedule.due_in() };
            match self.layers.next(age, QUIET, patience) {
                Next::Closed => return,
                Next::Idle if self.sweeping => self.sweep(),
                Next::Idle => self.trim(),
                Next::Quiet { last } => {
                    // Memory is of more use elsewhere.
                    self.space.clear();
                    if last && self.cached >= CACHED_MIN && self.database.let_go() {
                        self.cached = 0;
                    }
                    memory::give_back();
                }
                Next::Apply(table) => {
                    let full = table.bytes >= self.config.apply_bytes;
                    self.cached += table.bytes;
                    if self.apply(&table) {
                        // However much there is to apply, what is to be dropped is dropped too.
                        self.schedule.applied(table.rooms.keys());
                        drop(table);
                        if !full {
                            // It was applied for its age: little is written now, and memory is of more use elsewhere.
                            self.space.clear();
                        }
                        self.trim();
                    } else if self.layers.pause(self.retry()) {
                        return;
                    }
                }
            }
        }
    }

    /// Whether the table is in redb now.
    fn apply(&mut self, table: &Memtable) -> bool {
        let begun = clock();
        match self.try_apply(table) {
            Ok(()) => {
                // Freed before anybody who waits for room hears that it was applied.
                self.tidy(self.recycler.release(table.last));
                self.health.applying(true);
                self.layers.applied();
                self.sweeping = true;
                self.observer.applied(table.bytes, begun.elapsed());
                true
            }
            Err(error) => {
                self.health.applying(false);
                self.layers.wake();
                self.observer.apply_failed(&error.to_string());
                false
            }
        }
    }

    /// The writer seldom has to make a segment itself, or to wait for memory, which takes long.
    fn prepare(&self) {
        self.space.stock();
        if self.recycler.wants_preparation() {
            self.tidy(self.recycler.prepare());
        }
    }

    /// Nothing depends on it now; it is tried again.
    fn tidy(&self, result: io::Result<()>) {
        if let Err(error) = result {
            self.observer.apply_failed(&error.to_string());
        }
    }

    fn try_apply(&self, table: &Memtable) -> Result<(), Error> {
        let mut rooms: Vec<(&RoomId, &RoomTail)> = table.rooms.iter().collect();
        rooms.sort_unstable_by_key(|(room, _)| **room);
        let mut slices = Slices { rooms: &rooms, bytes: self.config.slice_bytes as u64 };
        let mut damaged = |room, tail: &RoomTail, error: &Error| {
            self.health.damaged(tail.log);
            self.observer.damaged(room, &error.to_string());
        };
        let only_packages = table.rooms.is_empty().then_some(table.last);
        if only_packages.is_some() || !table.packages.is_empty() {
            self.database.write(|txn| apply_packages(txn, table, only_packages))?;
        }
        let progress = self.layers.progress();
        while let Some(slice) = slices.next() {
            let done = slices.rooms.is_empty().then_some(table.last);
            self.database.write(|txn| apply_slice(txn, slice, done, &progress, &mut damaged))?;
            self.space.stock();
        }
        Ok(())
    }

    fn retry(&self) -> Duration {
        Duration::from_millis(self.config.apply_retry_ms.into())
    }

    fn trim(&mut self) {
        if let Err(error) = self.schedule.step(&self.database, &*self.observer) {
            // One unreadable page must not hold up all others: the next sweep looks at these rooms again.
            self.schedule.put_aside();
            self.observer.apply_failed(&error.to_string());
            self.layers.pause(self.retry());
        }
    }

    fn sweep(&mut self) {
        match self.database.write(|txn| Apply::open(txn)?.sweep(SWEEP_ROWS)) {
            Ok(more) => self.sweeping = more,
            Err(error) => {
                // Again after the next applying.
                self.sweeping = false;
                self.observer.apply_failed(&error.to_string());
                self.layers.pause(self.retry());
            }
        }
    }
}

/// All key packages at once: a table holds few.
fn apply_packages(txn: &WriteTransaction, table: &Memtable, done: Option<Lsn>) -> Result<(), Error> {
    for (device, packages) in &table.packages {
        rows::put_packages(txn, *device, packages)?;
    }
    done.map_or(Ok(()), |lsn| Apply::open(txn)?.set_applied(lsn))
}

fn apply_slice(
    txn: &WriteTransaction,
    slice: &[(&RoomId, &RoomTail)],
    done: Option<Lsn>,
    progress: &Arc<AtomicU64>,
    damaged: &mut dyn FnMut(RoomId, &RoomTail, &Error),
) -> Result<(), Error> {
    let mut apply = Apply::open(txn)?;
    apply.progress = Arc::clone(progress);
    for (room, tail) in slice {
        match apply.apply_room(**room, tail) {
            Err(Error::Storage(error)) => return Err(Error::Storage(error)),
            // One log is damaged: what was acked of it is put aside, and the others go on.
            Err(error) => {
                damaged(**room, tail, &error);
                apply.strand(tail, &error.to_string())?;
            }
            Ok(()) => {}
        }
    }
    done.map_or(Ok(()), |lsn| apply.set_applied(lsn))
}

/// Rooms in slices of about so many bytes.
struct Slices<'a> {
    rooms: &'a [(&'a RoomId, &'a RoomTail)],
    bytes: u64,
}

impl<'a> Iterator for Slices<'a> {
    type Item = &'a [(&'a RoomId, &'a RoomTail)];

    fn next(&mut self) -> Option<Self::Item> {
        let mut bytes = 0;
        let fits = |(_, tail): &&(&RoomId, &RoomTail)| {
            let fits = bytes < self.bytes;
            bytes += tail.envelope_bytes;
            fits
        };
        let count = self.rooms.iter().take_while(fits).count();
        let (slice, rest) = self.rooms.split_at_checked(count)?;
        self.rooms = rest;
        (!slice.is_empty()).then_some(slice)
    }
}
