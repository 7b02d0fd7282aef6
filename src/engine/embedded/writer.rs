//! The log's writer: takes all that queues until it has no more to check, logs it with one write and one sync, completes it in
//! order, and shows it to readers before they can miss it.

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
    memtable::{Block, Change, Space},
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
type Changes = Vec<(usize, Lsn, Change)>;

/// What becomes of jobs that are done together. Its space is used again.
#[derive(Default)]
struct Batch {
    /// Of the jobs so far.
    results: Vec<Result<(), Failure>>,
    /// What is not shown to readers yet.
    changes: Changes,
    /// Records among the changes, and bytes of their envelopes.
    records: u32,
    bytes: usize,
    /// The records, once they are durable.
    block: Arc<Block>,
}

impl Batch {
    fn clear(&mut self) {
        self.results.clear();
        self.forget();
    }

    /// Forgets what is not shown.
    fn forget(&mut self) {
        self.changes.clear();
        (self.records, self.bytes, self.block) = (0, 0, Arc::default());
    }
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
}

impl Writer {
    /// Writes until the jobs are closed and drained.
    pub(super) fn run(mut self) {
        let (mut jobs, mut batch) = (VecDeque::new(), Batch::default());
        while self.wait(&mut jobs) {
            let begun = clock();
            self.log_batch(&mut jobs, &mut batch);
            self.show(&mut batch, |results| jobs::answer(&jobs, results, begun.elapsed(), &*self.observer));
            batch.clear();
            // The envelopes are freed when everybody has heard: those that are kept were copied.
            jobs.clear();
            if let Some(waited) = self.layers.make_room(self.config.apply_bytes, &self.health) {
                self.observer.slowed(waited);
            }
        }
    }

    /// Waits for jobs. False when there will be none.
    fn wait(&self, jobs: &mut VecDeque<WriteJob>) -> bool {
        let (count, bytes) = (self.config.batch_requests_max, self.config.batch_bytes_max);
        if !self.jobs.take_writes(jobs, count, bytes, true) {
            return false;
        }
        if self.config.commit_wait_us > 0 && jobs.len() < count {
            std::thread::sleep(Duration::from_micros(self.config.commit_wait_us.into()));
        }
        true
    }

    /// Logs the jobs, and those that queue meanwhile; when that fails, in whatever way, nothing is logged ever after.
    fn log_batch(&mut self, jobs: &mut VecDeque<WriteJob>, batch: &mut Batch) {
        if self.health.can_log() {
            let why = match catch_unwind(AssertUnwindSafe(|| self.try_batch(jobs, batch))) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the writer panicked".to_owned(),
            };
            self.health.latch(&why, &*self.observer);
        }
        batch.clear();
        batch.results.resize(jobs.len(), Err(Failure::OutcomeUnknown));
    }

    fn try_batch(&mut self, jobs: &mut VecDeque<WriteJob>, batch: &mut Batch) -> io::Result<()> {
        if self.known.len() > KNOWN_MAX {
            self.known.clear();
        }
        let full = self.storage.free_space().is_ok_and(|free| free < self.config.disk_reserve_bytes);
        let mut bytes = 0_usize;
        loop {
            for job in jobs.range(batch.results.len()..) {
                bytes = bytes.saturating_add(job.bytes());
                let result = match self.check(&job.write, full) {
                    Ok(log) => self.push(log, &job.write, jobs, batch)?,
                    Err(failure) => Err(failure),
                };
                batch.results.push(result);
            }
            // What has queued meanwhile comes along, and needs no sync of its own.
            let left = |max: usize, taken: usize| max.checked_sub(taken).filter(|left| *left > 0);
            let (count, bytes) = (left(self.config.batch_requests_max, jobs.len()), left(self.config.batch_bytes_max, bytes));
            let (Some(count), Some(bytes)) = (count, bytes) else { break };
            // When the queue is closed, the next turn finds it so.
            let _ = self.jobs.take_writes(jobs, count, bytes, false);
            if jobs.len() == batch.results.len() {
                break;
            }
        }
        self.commit(jobs, batch)?;
        Ok(())
    }

    /// Adds the write to the batch, which is committed first if it has no room.
    fn push(
        &mut self,
        log: LogId,
        write: &Write,
        jobs: &VecDeque<WriteJob>,
        batch: &mut Batch,
    ) -> io::Result<Result<(), Failure>> {
        let mut pushed = log_write(&mut self.wal, log, write);
        if pushed == Err(Full::Batch) && self.finish(jobs, batch)? {
            pushed = log_write(&mut self.wal, log, write);
        }
        if pushed == Err(Full::Log) && self.finish(jobs, batch)? {
            self.layers.drain(&self.health);
            pushed = log_write(&mut self.wal, log, write);
        }
        let Ok(lsn) = pushed else {
            // What is known of its log says that it was logged.
            self.finish(jobs, batch)?;
            self.known.clear();
            return Ok(Err(Failure::DiskFull));
        };
        let change = match write {
            Write::Create { room, meta } => Change::Create { room: *room, meta: Box::new(meta.clone()) },
            Write::Append(append) => {
                let number = batch.records;
                batch.records += 1;
                batch.bytes += append.envelope.len();
                Change::Append { room: append.room, log, number }
            }
            Write::Delete { room } => Change::Delete { room: *room },
            Write::Packages { device, packages } => Change::Packages { device: *device, packages: packages.clone() },
        };
        batch.changes.push((batch.results.len(), lsn, change));
        Ok(Ok(()))
    }

    /// Makes durable what there is of the batch, and shows it to readers. False when nothing of it was stored.
    fn finish(&mut self, jobs: &VecDeque<WriteJob>, batch: &mut Batch) -> io::Result<bool> {
        let stored = self.commit(jobs, batch)?;
        self.show(batch, |_| {});
        Ok(stored)
    }

    /// Makes durable what there is of the batch. False when nothing of it was stored: what was checked after it does not hold any
    /// more.
    fn commit(&mut self, jobs: &VecDeque<WriteJob>, batch: &mut Batch) -> io::Result<bool> {
        if batch.changes.is_empty() {
            return Ok(true);
        }
        let mut block = self.space.block(batch.records as usize, batch.bytes);
        for (job, ..) in &batch.changes {
            if let Some(WriteJob { write: Write::Append(append), .. }) = jobs.get(*job) {
                block.push(append);
            }
        }
        batch.block = block.finish();
        match self.wal.commit() {
            Ok(()) => Ok(true),
            Err(CommitError::NotStored(error)) => {
                self.observer.apply_failed(&error.to_string());
                for (job, ..) in &batch.changes {
                    if let Some(result) = batch.results.get_mut(*job) {
                        *result = Err(Failure::DiskFull);
                    }
                }
                batch.forget();
                // What was known included them.
                self.known.clear();
                Ok(false)
            }
            Err(CommitError::Failed(error)) => Err(error),
        }
    }

    /// Has `tell` tell what became of the jobs, and shows what is durable to readers.
    fn show(&self, batch: &mut Batch, tell: impl FnOnce(&[Result<(), Failure>])) {
        let Batch { results, changes, block, .. } = batch;
        if changes.is_empty() {
            return tell(results);
        }
        self.layers.insert(block, changes.drain(..).map(|(_, lsn, change)| (lsn, change)), || tell(results));
        batch.forget();
        if self.recycler.wants_preparation() || self.space.runs_low() {
            self.layers.chore();
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
