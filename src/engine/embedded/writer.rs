//! The log's writer: takes all that queued while the last batch was synced, checks it, logs it with one write and one sync,
//! shows it to readers, and completes it in order.

use std::{
    collections::HashMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use super::{
    Config, Health, Storage, clock,
    database::Database,
    layers::{Layers, Life, Want},
    read,
    tables::Error,
};
use crate::{
    core::{
        id::{LogId, RoomId, Seq},
        log::{Append, LogMeta},
    },
    engine::{
        Answer, Complete, Completion, Failure, Observer, Token,
        queue::Queue,
        wal::{CommitError, Entry, Full, Lsn, Recycler, Wal},
    },
};

/// Logs whose heads the writer remembers.
const KNOWN_MAX: usize = 64 << 10;

/// What the writer does.
#[derive(Debug)]
pub(super) enum Write {
    Create { room: RoomId, meta: LogMeta },
    Append(Append),
    Delete { room: RoomId },
}

/// A write, and where its result goes.
pub(super) struct WriteJob {
    pub(super) write: Write,
    pub(super) token: Token,
    pub(super) to: Arc<dyn Complete>,
}

impl Write {
    /// Envelope bytes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Append(append) => append.envelope.len(),
            Self::Create { .. } | Self::Delete { .. } => 0,
        }
    }
}

/// Writes that are under one sync.
struct Batch {
    /// Which job, its number in the log, and what is logged.
    entries: Vec<(usize, Lsn, Entry)>,
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
    pub(super) queue: Arc<Queue<WriteJob>>,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) health: Arc<Health>,
    pub(super) config: Config,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) known: HashMap<RoomId, Option<Known>>,
}

impl Writer {
    /// Writes until the queue is closed and drained.
    pub(super) fn run(mut self) {
        while let Some(jobs) = self.take() {
            self.turn(jobs);
        }
    }

    fn take(&self) -> Option<Vec<WriteJob>> {
        let (count, bytes) = (self.config.batch_requests_max, self.config.batch_bytes_max);
        let mut jobs = self.queue.take(count, bytes)?;
        if self.config.commit_wait_us > 0 && jobs.len() < count {
            std::thread::sleep(Duration::from_micros(self.config.commit_wait_us.into()));
            let taken: usize = jobs.iter().map(|job| job.write.bytes()).sum();
            jobs.extend(self.queue.try_take(count - jobs.len(), bytes.saturating_sub(taken)).into_iter().flatten());
        }
        Some(jobs)
    }

    fn turn(&mut self, jobs: Vec<WriteJob>) {
        let begun = clock();
        let results = self.log_batch(&jobs);
        let stored = |(job, result): (&WriteJob, &Result<(), Failure>)| result.is_ok().then(|| job.write.bytes());
        let (count, bytes) =
            jobs.iter().zip(&results).filter_map(stored).fold((0, 0), |(count, sum), bytes| (count + 1, sum + bytes));
        if count > 0 {
            self.observer.committed(count, bytes, begun.elapsed());
        }
        for failure in results.iter().filter_map(|result| result.err()) {
            self.observer.failed(failure);
        }
        complete(jobs, results);
        if self.layers.bytes() >= self.config.apply_bytes {
            self.layers.freeze(&self.health);
        }
    }

    /// Logs the batch; when that fails, in whatever way, nothing is logged ever after.
    fn log_batch(&mut self, jobs: &[WriteJob]) -> Vec<Result<(), Failure>> {
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

    fn try_batch(&mut self, jobs: &[WriteJob]) -> io::Result<Vec<Result<(), Failure>>> {
        if self.known.len() > KNOWN_MAX {
            self.known.clear();
        }
        let full = self.storage.free_space().is_ok_and(|free| free < self.config.disk_reserve_bytes);
        let mut batch = Batch { entries: Vec::with_capacity(jobs.len()), results: Vec::with_capacity(jobs.len()) };
        for job in jobs {
            let result = match self.check(&job.write, full) {
                Ok(entry) => self.push(entry, &mut batch)?,
                Err(failure) => Err(failure),
            };
            batch.results.push(result);
        }
        self.commit(&mut batch)?;
        Ok(batch.results)
    }

    /// Adds the entry to the batch, which is committed first if it has no room.
    fn push(&mut self, entry: Entry, batch: &mut Batch) -> io::Result<Result<(), Failure>> {
        let mut pushed = self.wal.push(&entry);
        if pushed == Err(Full::Batch) {
            self.commit(batch)?;
            pushed = self.wal.push(&entry);
        }
        if pushed == Err(Full::Log) {
            self.commit(batch)?;
            self.layers.drain(&self.health);
            pushed = self.wal.push(&entry);
        }
        let Ok(lsn) = pushed else { return Ok(Err(Failure::DiskFull)) };
        let (room, next) = match &entry {
            Entry::Create { room, meta } => (*room, Some(Known { log: meta.log, head: 0 })),
            Entry::Append { log, append } => (append.room, Some(Known { log: *log, head: append.seq })),
            Entry::Delete { room, .. } => (*room, None),
        };
        self.known.insert(room, next);
        batch.entries.push((batch.results.len(), lsn, entry));
        Ok(Ok(()))
    }

    /// Makes the batch durable, and shows it to readers.
    fn commit(&mut self, batch: &mut Batch) -> io::Result<()> {
        if batch.entries.is_empty() {
            return Ok(());
        }
        let entries = std::mem::take(&mut batch.entries);
        match self.wal.commit() {
            Ok(()) => {
                self.layers.insert(entries.into_iter().map(|(_, lsn, entry)| (lsn, entry)));
                if self.recycler.wants_preparation() {
                    self.layers.chore();
                }
                Ok(())
            }
            Err(CommitError::NotStored(error)) => {
                self.observer.apply_failed(&error.to_string());
                for (job, ..) in entries {
                    if let Some(result) = batch.results.get_mut(job) {
                        *result = Err(Failure::DiskFull);
                    }
                }
                // What was known included them.
                self.known.clear();
                Ok(())
            }
            Err(CommitError::Failed(error)) => Err(error),
        }
    }

    /// What is to be logged, if the write can be done after all that precede it.
    fn check(&mut self, write: &Write, full: bool) -> Result<Entry, Failure> {
        let room = match write {
            Write::Create { room, .. } | Write::Delete { room } => *room,
            Write::Append(append) => append.room,
        };
        let known = self.known(room)?;
        Ok(match (write, known) {
            (Write::Create { .. }, Some(_)) => return Err(Failure::Exists),
            (Write::Append(_) | Write::Delete { .. }, None) => return Err(Failure::NotFound),
            (Write::Create { .. } | Write::Append(_), _) if full => return Err(Failure::DiskFull),
            (Write::Append(_), Some(known)) if self.health.is_damaged(known.log) => return Err(Failure::Read),
            (Write::Append(append), Some(known)) if append.seq != known.head + 1 => return Err(Failure::Gap),
            (Write::Create { meta, .. }, None) => Entry::Create { room, meta: meta.clone() },
            (Write::Append(append), Some(known)) => Entry::Append { log: known.log, append: append.clone() },
            (Write::Delete { .. }, Some(known)) => Entry::Delete { room, log: known.log },
        })
    }

    /// The log of `room` after all that was logged before. Fails with [`Failure::Read`]: nothing changed.
    fn known(&mut self, room: RoomId) -> Result<Option<Known>, Failure> {
        if let Some(known) = self.known.get(&room) {
            return Ok(*known);
        }
        let tail = self.layers.tail(room, Want::State);
        let known = match (tail.life, tail.head) {
            (Life::Gone, _) => None,
            (Life::Is(log), Some((head, _))) => Some(Known { log, head }),
            (life, None) | (life @ Life::Unknown, _) => {
                let row = self.database.read(|txn| read::row(txn, room)).map_err(|_: Error| Failure::Read)?;
                let stored = row.map(|row| Known { log: row.meta.log, head: row.state.head });
                match life {
                    Life::Is(log) => Some(stored.filter(|stored| stored.log == log).unwrap_or(Known { log, head: 0 })),
                    _ => stored,
                }
            }
        };
        self.known.insert(room, known);
        Ok(known)
    }
}

/// Hands the results out: to each target one call, in order.
fn complete(jobs: Vec<WriteJob>, results: Vec<Result<(), Failure>>) {
    let mut groups: Vec<(Arc<dyn Complete>, Vec<Completion>)> = Vec::new();
    for (job, result) in jobs.into_iter().zip(results) {
        let completion = Completion { token: job.token, result: result.map(|()| Answer::Done) };
        match groups.iter_mut().find(|(to, _)| Arc::ptr_eq(to, &job.to)) {
            Some((_, group)) => group.push(completion),
            None => groups.push((job.to, vec![completion])),
        }
    }
    for (to, group) in groups {
        to.complete(group);
    }
}
