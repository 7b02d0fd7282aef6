//! The log's writer: takes all that queued while the last batch was synced, checks it, logs it with one write and one sync,
//! shows it to readers, and completes it in order.

use std::{
    collections::hash_map::{self, HashMap},
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
    core::id::{LogId, RoomId, Seq},
    engine::{
        Failure, Observer,
        jobs::{Jobs, Replies, Write},
        wal::{CommitError, Entry, Full, Lsn, Recycler, Wal},
    },
};

/// Logs whose heads the writer remembers.
const KNOWN_MAX: usize = 64 << 10;

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
    pub(super) jobs: Arc<Jobs>,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) health: Arc<Health>,
    pub(super) config: Config,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) known: HashMap<RoomId, Option<Known>>,
}

impl Writer {
    /// Writes until the jobs are closed and drained.
    pub(super) fn run(mut self) {
        while let Some((writes, replies)) = self.take() {
            let begun = clock();
            let results = self.log_batch(writes, replies.len());
            replies.send(results, begun.elapsed(), &*self.observer);
            if self.layers.active_bytes() >= self.config.apply_bytes {
                self.layers.freeze(&self.health);
            }
        }
    }

    fn take(&self) -> Option<(Vec<Write>, Replies)> {
        let (count, bytes) = (self.config.batch_requests_max, self.config.batch_bytes_max);
        let (mut writes, mut replies) = self.jobs.take_writes(count, bytes, true)?;
        if self.config.commit_wait_us > 0 && writes.len() < count {
            std::thread::sleep(Duration::from_micros(self.config.commit_wait_us.into()));
            let left = (count - writes.len(), bytes.saturating_sub(replies.bytes()));
            if let Some((mut more, their)) = self.jobs.take_writes(left.0, left.1, false) {
                writes.append(&mut more);
                replies.append(their);
            }
        }
        Some((writes, replies))
    }

    /// Logs the batch; when that fails, in whatever way, nothing is logged ever after.
    fn log_batch(&mut self, writes: Vec<Write>, count: usize) -> Vec<Result<(), Failure>> {
        let unknown = || vec![Err(Failure::OutcomeUnknown); count];
        if !self.health.can_log() {
            return unknown();
        }
        let why = match catch_unwind(AssertUnwindSafe(|| self.try_batch(writes))) {
            Ok(Ok(results)) => return results,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the writer panicked".to_owned(),
        };
        self.health.latch(&why, &*self.observer);
        unknown()
    }

    fn try_batch(&mut self, writes: Vec<Write>) -> io::Result<Vec<Result<(), Failure>>> {
        if self.known.len() > KNOWN_MAX {
            self.known.clear();
        }
        let full = self.storage.free_space().is_ok_and(|free| free < self.config.disk_reserve_bytes);
        let mut batch = Batch { entries: Vec::with_capacity(writes.len()), results: Vec::with_capacity(writes.len()) };
        for write in writes {
            let result = match self.check(write, full) {
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
        if pushed == Err(Full::Batch) && self.commit(batch)? {
            pushed = self.wal.push(&entry);
        }
        if pushed == Err(Full::Log) && self.commit(batch)? {
            self.layers.drain(&self.health);
            pushed = self.wal.push(&entry);
        }
        let Ok(lsn) = pushed else {
            // What is known of its log says that it was logged.
            self.commit(batch)?;
            self.known.clear();
            return Ok(Err(Failure::DiskFull));
        };
        batch.entries.push((batch.results.len(), lsn, entry));
        Ok(Ok(()))
    }

    /// Makes the batch durable, and shows it to readers. False when nothing of it was stored: what was checked after it does
    /// not hold any more.
    fn commit(&mut self, batch: &mut Batch) -> io::Result<bool> {
        if batch.entries.is_empty() {
            return Ok(true);
        }
        let entries = std::mem::take(&mut batch.entries);
        match self.wal.commit() {
            Ok(()) => {
                self.layers.insert(entries.into_iter().map(|(_, lsn, entry)| (lsn, entry)));
                if self.recycler.wants_preparation() {
                    self.layers.chore();
                }
                Ok(true)
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
                Ok(false)
            }
            Err(CommitError::Failed(error)) => Err(error),
        }
    }

    /// What is to be logged, if the write can be done after all that precede it. From then on it counts as logged.
    fn check(&mut self, write: Write, full: bool) -> Result<Entry, Failure> {
        let room = match &write {
            Write::Create { room, .. } | Write::Delete { room } => *room,
            Write::Append(append) => append.room,
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
                Ok(Entry::Create { room, meta })
            }
            (Write::Append(append), Some(Known { log, .. })) => {
                *known = Some(Known { log, head: append.seq });
                Ok(Entry::Append { log, append })
            }
            (Write::Delete { .. }, Some(Known { log, .. })) => {
                *known = None;
                Ok(Entry::Delete { room, log })
            }
        }
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
