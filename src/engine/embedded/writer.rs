//! The log's writer: takes all that queued while the last batch was synced, checks it, logs it with one write and one sync,
//! shows it to readers, and completes it in order.

use std::{
    collections::{VecDeque, hash_map},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use super::{
    Config, Health, Storage, clock,
    database::Database,
    hash::RoomMap,
    layers::{Layers, Life, Want},
    memtable::{BlockBuilder, Change, Space},
    read,
    tables::Error,
};
use crate::{
    core::id::{LogId, RoomId, Seq},
    engine::{
        Failure, Observer,
        jobs::{self, Jobs, Write, WriteJob},
        queue::Weigh as _,
        wal::{CommitError, Entry, Full, Lsn, Recycler, Wal},
    },
};

/// Logs whose heads the writer remembers.
const KNOWN_MAX: usize = 64 << 10;

/// Which job, its number in the log, and what it changes.
pub(super) type Changes = Vec<(usize, Lsn, Change)>;

/// Writes that are under one sync.
struct Batch {
    changes: Changes,
    /// The records that are appended.
    block: BlockBuilder,
    /// Of the jobs so far.
    results: Vec<Result<(), Failure>>,
}

/// A log as the next write finds it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    log: LogId,
    head: Seq,
}

pub(super) struct Writer {
    pub(super) wal: Wal,
    pub(super) recycler: Recycler,
    pub(super) layers: Arc<Layers>,
    pub(super) database: Arc<Database>,
    pub(super) jobs: Arc<Jobs>,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) health: Arc<Health>,
    pub(super) config: Config,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) known: RoomMap<Option<Known>>,
    /// Where the blocks of batches lie.
    pub(super) space: Space,
    /// The space of a batch's changes, used again.
    pub(super) changes: Changes,
}

impl Writer {
    /// Writes until the jobs are closed and drained.
    pub(super) fn run(mut self) {
        let mut jobs = VecDeque::new();
        while self.take(&mut jobs) {
            let begun = clock();
            let results = self.log_batch(&jobs);
            jobs::answer(&jobs, &results, begun.elapsed(), &*self.observer);
            // The envelopes are freed when everybody has heard: those that are kept were copied.
            jobs.clear();
            if let Some(waited) = self.layers.make_room(self.config.apply_bytes, &self.health) {
                self.observer.slowed(waited);
            }
        }
    }

    fn take(&self, jobs: &mut VecDeque<WriteJob>) -> bool {
        let (count, bytes) = (self.config.batch_requests_max, self.config.batch_bytes_max);
        if !self.jobs.take_writes(jobs, count, bytes, true) {
            return false;
        }
        if self.config.commit_wait_us > 0 && jobs.len() < count {
            std::thread::sleep(Duration::from_micros(self.config.commit_wait_us.into()));
            let taken: usize = jobs.iter().map(WriteJob::bytes).sum();
            // When the queue is closed meanwhile, the next turn finds it so.
            let _ = self.jobs.take_writes(jobs, count - jobs.len(), bytes.saturating_sub(taken), false);
        }
        true
    }

    /// Logs the batch; when that fails, in whatever way, nothing is logged ever after.
    fn log_batch(&mut self, jobs: &VecDeque<WriteJob>) -> Vec<Result<(), Failure>> {
        let unknown = || vec![Err(Failure::OutcomeUnknown); jobs.len()];
        if !self.health.can_log() {
            return unknown();
        }
        let why = match catch_unwind(AssertUnwindSafe(|| self.try_batch(jobs))) {
            Ok(Ok(results)) => return results,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the writer panicked".to_owned(),
        };
        self.health.latch(&why, &*self.observer);
        unknown()
    }

    fn try_batch(&mut self, jobs: &VecDeque<WriteJob>) -> io::Result<Vec<Result<(), Failure>>> {
        if self.known.len() > KNOWN_MAX {
            self.known.clear();
        }
        let full = self.storage.free_space().is_ok_and(|free| free < self.config.disk_reserve_bytes);
        let mut batch = Batch {
            changes: std::mem::take(&mut self.changes),
            block: self.space.block(jobs.len(), jobs.iter().map(WriteJob::bytes).sum()),
            results: Vec::with_capacity(jobs.len()),
        };
        for job in jobs {
            let result = match self.check(&job.write, full) {
                Ok(log) => self.push(log, &job.write, &mut batch)?,
                Err(failure) => Err(failure),
            };
            batch.results.push(result);
        }
        self.commit(&mut batch)?;
        self.changes = batch.changes;
        Ok(batch.results)
    }

    /// Adds the write to the batch, which is committed first if it has no room.
    fn push(&mut self, log: LogId, write: &Write, batch: &mut Batch) -> io::Result<Result<(), Failure>> {
        let mut pushed = log_write(&mut self.wal, log, write);
        if pushed == Err(Full::Batch) && self.commit(batch)? {
            pushed = log_write(&mut self.wal, log, write);
        }
        if pushed == Err(Full::Log) && self.commit(batch)? {
            self.layers.drain(&self.health);
            pushed = log_write(&mut self.wal, log, write);
        }
        let Ok(lsn) = pushed else {
            // What is known of its log says that it was logged.
            self.commit(batch)?;
            self.known.clear();
            return Ok(Err(Failure::DiskFull));
        };
        let change = match write {
            Write::Create { room, meta } => Change::Create { room: *room, meta: Box::new(meta.clone()) },
            Write::Append(append) => Change::Append { room: append.room, log, number: batch.block.push(append) },
            Write::Delete { room } => Change::Delete { room: *room },
            Write::Packages { device, packages } => Change::Packages { device: *device, packages: packages.clone() },
        };
        batch.changes.push((batch.results.len(), lsn, change));
        Ok(Ok(()))
    }

    /// Makes the batch durable, and shows it to readers. False when nothing of it was stored: what was checked after it does
    /// not hold any more.
    fn commit(&mut self, batch: &mut Batch) -> io::Result<bool> {
        if batch.changes.is_empty() {
            return Ok(true);
        }
        let block = batch.block.finish();
        match self.wal.commit() {
            Ok(()) => {
                self.layers.insert(&block, batch.changes.drain(..).map(|(_, lsn, change)| (lsn, change)));
                if self.recycler.wants_preparation() || self.space.runs_low() {
                    self.layers.chore();
                }
                Ok(true)
            }
            Err(CommitError::NotStored(error)) => {
                self.observer.apply_failed(&error.to_string());
                for (job, ..) in batch.changes.drain(..) {
                    if let Some(result) = batch.results.get_mut(job) {
                        *result = Err(Failure::DiskFull);
                    }
                }
                // What was known included them.
                self.known.clear();
                Ok(false)
            }
            Err(CommitError::Failed(error)) => Err(error),
        }
    }

    /// Which log the write concerns, if it can be done after all that precede it. From then on it counts as logged.
    fn check(&mut self, write: &Write, full: bool) -> Result<LogId, Failure> {
        let room = match write {
            Write::Create { room, .. } | Write::Delete { room } => *room,
            Write::Append(append) => append.room,
            Write::Packages { packages, .. } if full && !packages.is_empty() => return Err(Failure::DiskFull),
            // They belong to no log.
            Write::Packages { .. } => return Ok(LogId([0; 16])),
        };
        let known = match self.known.entry(room) {
            hash_map::Entry::Occupied(entry) => entry.into_mut(),
            hash_map::Entry::Vacant(entry) => entry.insert(find(&self.layers, &self.database, room)?),
        };
        match (write, *known) {
            (Write::Create { .. }, Some(_)) => Err(Failure::Exists),
            (Write::Append(_) | Write::Delete { .. }, None) => Err(Failure::NotFound),
            (Write::Create { .. } | Write::Append(_), _) if full => Err(Failure::DiskFull),
            (Write::Append(_), Some(Known { log, .. })) if self.health.is_damaged(log) => Err(Failure::Read),
            (Write::Append(append), Some(Known { head, .. })) if append.seq != head + 1 => Err(Failure::Gap),
            (Write::Create { meta, .. }, None) => {
                *known = Some(Known { log: meta.log, head: 0 });
                Ok(meta.log)
            }
            (Write::Append(append), Some(Known { log, .. })) => {
                *known = Some(Known { log, head: append.seq });
                Ok(log)
            }
            (Write::Delete { .. }, Some(Known { log, .. })) => {
                *known = None;
                Ok(log)
            }
            (Write::Packages { .. }, _) => Ok(LogId([0; 16])),
        }
    }
}

/// Adds the write to the log's batch.
fn log_write(wal: &mut Wal, log: LogId, write: &Write) -> Result<Lsn, Full> {
    match write {
        Write::Append(append) => wal.push_append(log, append),
        Write::Create { room, meta } => wal.push(&Entry::Create { room: *room, meta: meta.clone() }),
        Write::Delete { room } => wal.push(&Entry::Delete { room: *room, log }),
        Write::Packages { device, packages } => wal.push(&Entry::Packages { device: *device, packages: packages.clone() }),
    }
}

/// The log of `room` after all that is durable. Fails with [`Failure::Read`]: nothing changed.
fn find(layers: &Layers, database: &Database, room: RoomId) -> Result<Option<Known>, Failure> {
    let tail = layers.tail(room, Want::State);
    Ok(match (tail.life, tail.head) {
        (Life::Gone, _) => None,
        (Life::Is(log), Some((head, _))) => Some(Known { log, head }),
        (life, _) => {
            let row = database.read(|txn| read::row(txn, room)).map_err(|_: Error| Failure::Read)?;
            let stored = row.map(|row| Known { log: row.meta.log, head: row.state.head });
            match life {
                Life::Is(log) => Some(stored.filter(|stored| stored.log == log).unwrap_or(Known { log, head: 0 })),
                _ => stored,
            }
        }
    })
}
