//! The file that is copied into: rows are gathered, and written much at a time.

use std::path::{Path, PathBuf};

use redb::{Builder, Database, Durability, StorageBackend};

use super::{Disk, Error};
use crate::{
    core::{
        id::{DeviceKey, LogId, RoomId, Seq},
        log::Producer,
    },
    engine::{
        embedded::tables::{self, CHUNKS, HANDSHAKES, LOGS, META, PRODUCERS, STRANDED, TAILS},
        redb as direct, rows,
    },
};

/// Bytes of rows that are gathered for one transaction.
const FLUSH_BYTES: usize = 16 << 20;
/// Bytes of the cache of the file that is written: it is written once and hardly read.
const TARGET_CACHE_BYTES: usize = 16 << 20;

/// A fresh history file, or nothing.
pub(super) struct Target<'a> {
    file: Option<Fresh<'a>>,
    rows: Vec<Row>,
    bytes: usize,
    /// Logs of which rows may be in the file already: the latest only, as logs come one after the other.
    flushed: Option<LogId>,
}

struct Fresh<'a> {
    database: Database,
    disk: &'a dyn Disk,
    path: PathBuf,
}

/// A row of a history file.
pub(super) enum Row {
    Log(RoomId, Vec<u8>),
    Chunk(Place, LogId, Seq, Vec<u8>),
    Producer(LogId, Producer, Vec<u8>),
    /// The newest handshake record of a log, which was trimmed.
    Kept(LogId, Vec<u8>),
    /// The key packages of a device.
    Packages(DeviceKey, Vec<u8>),
}

/// A table of chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Chunks,
    Tails,
    Stranded,
}

impl<'a> Target<'a> {
    /// Keeps nothing.
    pub(super) const fn nothing() -> Self {
        Self { file: None, rows: Vec::new(), bytes: 0, flushed: None }
    }

    /// A new file at `path`.
    pub(super) fn create(disk: &'a dyn Disk, path: &Path) -> Result<Self, Error> {
        let file = disk.create(path).map_err(Error::write(path))?;
        let created = Self::create_in(file, disk, path);
        if created.is_err() {
            // It is ours, and nobody will finish it.
            let _ = disk.remove(path);
        }
        created
    }

    fn create_in(file: Box<dyn StorageBackend>, disk: &'a dyn Disk, path: &Path) -> Result<Self, Error> {
        let mut builder = Builder::new();
        builder.set_cache_size(TARGET_CACHE_BYTES);
        let database = builder
            .create_with_backend(direct::guarded(file))
            .map_err(|error| Error::Write { path: path.into(), why: error.to_string() })?;
        let target = Self { file: Some(Fresh { database, disk, path: path.into() }), ..Self::nothing() };
        target.write(false, tables::make)?;
        Ok(target)
    }

    /// Whether rows are kept.
    pub(super) const fn keeps(&self) -> bool {
        self.file.is_some()
    }

    fn write(&self, last: bool, write: impl FnOnce(&redb::WriteTransaction) -> Result<(), rows::Error>) -> Result<(), Error> {
        let Some(Fresh { database, path, .. }) = &self.file else { return Ok(()) };
        let run = || {
            let mut txn = database.begin_write()?;
            txn.set_durability(Durability::Immediate).map_err(|error| rows::Error::Storage(error.into()))?;
            // Only what is whole is ever opened again.
            txn.set_quick_repair(last);
            write(&txn)?;
            txn.commit()?;
            Ok(())
        };
        run().map_err(|error: rows::Error| Error::Write { path: path.clone(), why: error.to_string() })
    }

    /// Takes a row.
    pub(super) fn put(&mut self, row: Row) -> Result<(), Error> {
        if self.file.is_none() {
            return Ok(());
        }
        let log = match &row {
            Row::Chunk(_, log, ..) | Row::Producer(log, ..) | Row::Kept(log, _) => Some(*log),
            Row::Log(..) | Row::Packages(..) => None,
        };
        self.bytes += match &row {
            Row::Log(_, bytes)
            | Row::Chunk(.., bytes)
            | Row::Producer(_, _, bytes)
            | Row::Kept(_, bytes)
            | Row::Packages(_, bytes) => bytes.len() + size_of::<Row>(),
        };
        self.rows.push(row);
        if self.bytes >= FLUSH_BYTES {
            self.flush()?;
            self.flushed = log.or(self.flushed);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        self.write(false, |txn| {
            let (mut logs, mut producers) = (txn.open_table(LOGS)?, txn.open_table(PRODUCERS)?);
            let (mut chunks, mut tails, mut stranded) =
                (txn.open_table(CHUNKS)?, txn.open_table(TAILS)?, txn.open_table(STRANDED)?);
            let mut handshakes = txn.open_table(HANDSHAKES)?;
            for row in &rows {
                match row {
                    Row::Packages(device, bytes) => rows::put_packages(txn, *device, bytes)?,
                    Row::Kept(log, bytes) => drop(handshakes.insert(&log.0, bytes.as_slice())?),
                    Row::Log(room, bytes) => drop(logs.insert(&room.0, bytes.as_slice())?),
                    Row::Producer(log, producer, bytes) => {
                        producers.insert(&rows::producer_key(*log, producer), bytes.as_slice())?;
                    }
                    Row::Chunk(place, log, seq, bytes) => {
                        let table = match place {
                            Place::Chunks => &mut chunks,
                            Place::Tails => &mut tails,
                            Place::Stranded => &mut stranded,
                        };
                        table.insert((&log.0, *seq), bytes.as_slice())?;
                    }
                }
            }
            Ok(())
        })
    }

    /// Takes back what was put of `log`.
    pub(super) fn forget(&mut self, log: LogId) -> Result<(), Error> {
        self.rows.retain(|row| match row {
            Row::Chunk(_, of, ..) | Row::Producer(of, ..) | Row::Kept(of, _) => *of != log,
            Row::Log(..) | Row::Packages(..) => true,
        });
        if self.flushed != Some(log) {
            return Ok(());
        }
        self.write(false, |txn| {
            for table in [CHUNKS, TAILS, STRANDED] {
                let mut table = txn.open_table(table)?;
                for entry in table.extract_from_if((&log.0, 0)..=(&log.0, u64::MAX), |_, _| true)? {
                    entry?;
                }
            }
            txn.open_table(HANDSHAKES)?.remove(&log.0)?;
            rows::Producers::open(txn)?.sweep(log, usize::MAX)?;
            Ok(())
        })
    }

    /// Everything is there: makes it durable, and lets go of the file.
    pub(super) fn finish(mut self, meta: &[(&'static str, Vec<u8>)]) -> Result<(), Error> {
        self.flush()?;
        self.write(true, |txn| {
            let mut table = txn.open_table(META)?;
            for (name, value) in meta {
                table.insert(name, value.as_slice())?;
            }
            Ok(())
        })?;
        let Some(Fresh { mut database, disk, path }) = self.file.take() else { return Ok(()) };
        // Pages that were written more than once left gaps.
        database.compact().map_err(|error| Error::Write { path: path.clone(), why: error.to_string() })?;
        drop(database);
        disk.open_read_only(&path).and_then(|file| file.sync_data()).map_err(Error::write(&path))
    }
}
