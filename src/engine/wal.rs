//! The write-ahead log: what makes a write durable with one sync.
//!
//! It knows rooms only as far as its entries name them. One thread owns the [`Wal`]: it pushes entries and commits them as
//! a batch, with one write and one sync. Another, which applies entries to the store, holds a [`Recycler`]: it frees
//! segments, and makes files before they are needed.
//!
//! # Layout
//! The log is a row of *segments*, each in a file of a fixed length. Files are used again and again: which segment one
//! holds is told by its header, not by its name. All numbers are little-endian.
//!
//! The header's block has 4096 bytes: two copies of the header, at 0 and at 512, and zeros.
//!
//! | offset | length | field of a header |
//! |---|---|---|
//! | 0 | 8 | `waxwal\r\n` |
//! | 8 | 4 | format, 1 |
//! | 12 | 4 | zero |
//! | 16 | 8 | generation: one more than that of the segment before |
//! | 24 | 8 | base: the number of the first entry. Later ones in older segments do not count |
//! | 32 | 8 | salt, random |
//! | 40 | 4 | CRC-32C of the above |
//! | 44 | 4 | zero |
//!
//! Then come records, each at a multiple of 8, until one is not good.
//!
//! | offset | length | field of a record |
//! |---|---|---|
//! | 0 | 4 | CRC-32C of salt, generation, and the record from 4 to the body's end |
//! | 4 | 4 | the body's length |
//! | 8 | 8 | the entry's number |
//! | 16 | 2 | how many records of its batch precede it |
//! | 18 | 2 | check value: the two halves, xored, of the CRC-32C of salt, generation, and the record from 4 to 18 |
//! | 20 | | body, and zeros to a multiple of 8 |
//!
//! As checksums begin with a salt that nobody outside knows, and with the generation, neither what a file held before nor
//! what a client puts into its envelope can pass for a record.
//!
//! | body | fields |
//! |---|---|
//! | 1, create | room (16), [`LogMeta`] in postcard |
//! | 2, append | log (16), device (32), producer (16), seq, `client_seq`, `time_ms` (LEB128), envelope. The room is the one that the envelope's header names |
//! | 3, append | room (16), then as 2 |
//! | 4, delete | room (16), log (16) |
//! | 5, key packages | device (32), what takes the place of its packages |
//!
//! # What is durable
//! A batch lies in one segment, and is begun only when the one before is durable. So a record that is not good
//! * was durable, and is damaged, if a later batch or segment has begun: the log does not open, and says what is missing;
//! * else it belongs to the last batch, which was never acked, or was damaged since: what of it is good counts.
//!
//! Whether the last batch is on the disk, or only in a cache that a failed sync left behind, cannot be told. So when the log
//! is opened, what is good of it is written again, to a new segment: first the records, then, when they are durable, the
//! header, whose base takes the older copy out of force. Only then does anybody hear of it. A segment of an earlier process
//! is never written to again, and after a failed write or sync nothing is.
//!
//! It is assumed that a disk writes 512 bytes whole or not at all, also where it refuses a write in the middle, and leaves
//! alone what it is not told to write.

mod files;
mod pool;
mod record;
mod recover;
mod segment;

use std::{fmt, io, sync::Arc};

use bytes::Bytes;

pub use self::files::{Directory, Files, SegmentFile};
use self::{
    pool::{Next, Pool, Slot},
    record::Key,
    segment::{HEADER_LEN, Header},
};
use crate::core::{
    id::{DeviceKey, LogId, RoomId},
    log::{Append, LogMeta},
};

/// The number of an entry: 1, 2, 3 … without gap, over the life of a store.
pub type Lsn = u64;

/// One logged write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A log was made.
    Create {
        /// Its room.
        room: RoomId,
        /// As it was made.
        meta: LogMeta,
    },
    /// A record was appended to the life `log` of its room. Its chain value is not logged: in
    /// its place a replayed one has the SHA-256 of its envelope, from which who knows the value before it computes it.
    Append {
        /// The log's life.
        log: LogId,
        /// The record.
        append: Append,
    },
    /// The life `log` of a room ended.
    Delete {
        /// Its room.
        room: RoomId,
        /// The log's life.
        log: LogId,
    },
    /// These took the place of a device's key packages.
    Packages {
        /// Whose.
        device: DeviceKey,
        /// No bytes: it has none.
        packages: Bytes,
    },
}

/// How much disk the log takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Bytes of a segment. Default 16 MiB; rounded to whole 4 KiB between 8 KiB and 256 MiB. No batch can have more.
    pub segment_bytes: u64,
    /// Bytes of all segments. Default 512 MiB; at least two segments. When they are full of entries that are not applied,
    /// nothing can be pushed. Opening the log may take one segment more.
    pub bytes_max: u64,
    /// Free segments that are kept for use again. Default 16, as many as two memtables need; at least 1.
    pub spares_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { segment_bytes: 16 << 20, bytes_max: 512 << 20, spares_max: 16 }
    }
}

impl Config {
    /// With every value in its range.
    fn checked(self) -> Self {
        let segment_bytes = self.segment_bytes.clamp(8 << 10, recover::SEGMENT_BYTES_MAX).next_multiple_of(4096);
        Self { segment_bytes, bytes_max: self.bytes_max.max(2 * segment_bytes), spares_max: self.spares_max.max(1) }
    }
}

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Entries that were durable are damaged.
    #[error("the log is damaged: in {segment}, at byte {offset}, entry {lsn} is not what was written there{}{}", Until(*until), Rooms(rooms))]
    Corrupted {
        /// The file.
        segment: String,
        /// Where in it.
        offset: u64,
        /// The first entry that is missing.
        lsn: Lsn,
        /// The next entry that is there, if one was found.
        until: Option<Lsn>,
        /// Rooms whose records are missing, as far as they can be told from what is damaged: there may be others.
        rooms: Vec<RoomId>,
    },
    /// The file's header is damaged, so it cannot be told what was in it.
    #[error("the log is damaged: {segment} has no readable header")]
    Header {
        /// The file.
        segment: String,
    },
    /// A segment is missing.
    #[error("the log is not whole: entry {after} is followed by {found}, near {segment}")]
    Gap {
        /// The last entry that is there, or applied.
        after: Lsn,
        /// The first that is there after it.
        found: Lsn,
        /// The file at the gap.
        segment: String,
    },
    /// Two files contradict each other.
    #[error("the log is damaged: {older} and {newer} do not belong to the same log")]
    Disordered {
        /// One of them.
        older: String,
        /// The other.
        newer: String,
    },
    /// The file is larger than any segment.
    #[error("the log is damaged: {segment} has {len} bytes")]
    TooLarge {
        /// The file.
        segment: String,
        /// Its length.
        len: u64,
    },
    /// A later version wrote it.
    #[error("{segment} is of format {found}, and this build reads up to {supported}")]
    NewerFormat {
        /// The file.
        segment: String,
        /// Its format.
        found: u32,
        /// The newest that this build reads.
        supported: u32,
    },
    /// The files could not be read or written.
    #[error("the log cannot be read or written: {0}")]
    Io(#[from] io::Error),
}

struct Until(Option<Lsn>);

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |lsn| write!(f, "; the next good one is {lsn}"))
    }
}

struct Rooms<'a>(&'a [RoomId]);

impl fmt::Display for Rooms<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, room) in self.0.iter().enumerate() {
            write!(f, "{}{room}", if number == 0 { "; rooms concerned: " } else { ", " })?;
        }
        Ok(())
    }
}

/// Why an entry was not pushed. The batch is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Full {
    /// The batch has no room for it: commit, then push it again.
    #[error("the batch is full")]
    Batch,
    /// The log has no room for it until older entries are applied.
    #[error("the log is full of entries that are not applied")]
    Log,
    /// No segment has room for it.
    #[error("the entry is larger than a segment")]
    TooLarge,
}

/// Why a batch was not committed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// No file could be made for the next segment. Nothing of the batch was written; it is dropped, its numbers will be
    /// given again, and the log can be used on.
    #[error("no segment could be made, and nothing was written: {0}")]
    NotStored(#[source] io::Error),
    /// Writing or syncing failed: the batch may or may not be on disk. Every later commit fails in this way too.
    #[error("the log failed for good: {0}")]
    Failed(#[source] io::Error),
}

/// A log that is open for writing.
pub struct Wal {
    pool: Arc<Pool>,
    salt: Box<dyn FnMut() -> u64 + Send>,
    /// Of the latest segment.
    generation: u64,
    /// The segment that is written to: one that this process began.
    current: Option<Current>,
    /// Where the next segment will lie; held when the batch does not fit the current one.
    next: Option<Next>,
    /// Space for a header, then the records of the batch.
    buffer: Vec<u8>,
    /// Records of the batch.
    records: u32,
    /// The last entry that is durable.
    durable: Lsn,
    /// Opening the log took more than the limit: nothing is pushed until enough is free.
    over_limit: bool,
    failed: bool,
}

#[derive(Debug)]
struct Current {
    slot: Slot,
    key: Key,
    /// Where the next record goes.
    at: u64,
}

impl fmt::Debug for Wal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wal")
            .field("generation", &self.generation)
            .field("durable", &self.durable)
            .field("records", &self.records)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

impl Wal {
    /// Opens the log in `files`, and makes it if there is none. The store has the entries up to `applied`, durably; those
    /// after it are handed to `replay`, in order. They count only if this succeeds. `salt` gives random numbers.
    ///
    /// # Errors
    /// [`OpenError`]. If it is not [`OpenError::Io`], nothing was written.
    pub fn open(
        files: Arc<dyn Files>,
        config: Config,
        applied: Lsn,
        salt: impl FnMut() -> u64 + Send + 'static,
        replay: impl FnMut(Lsn, Entry),
    ) -> Result<Self, OpenError> {
        let config = config.checked();
        let survey = recover::survey(&*files)?;
        let replayed = recover::replay(&survey.segments, applied, replay)?;
        let generation = survey.segments.last().map_or(0, |last| last.header.generation);
        let first_unproven = replayed.next - replayed.unproven.len() as u64;

        let pool = Arc::new(Pool::new(files, config));
        let slots = survey.segments.iter().map(|segment| &segment.slot).chain(&survey.blank);
        slots.for_each(|slot| pool.count(slot));
        pool.free(survey.blank)?;
        let mut useless = Vec::new();
        let mut segments = survey.segments.into_iter().enumerate().peekable();
        while let Some((number, segment)) = segments.next() {
            let end = segments.peek().map_or(first_unproven, |(_, next)| next.header.base);
            if number >= replayed.needed_from && end > applied.saturating_add(1) && end > segment.header.base {
                pool.fill(segment.slot, end);
            } else {
                useless.push(segment.slot);
            }
        }
        let mut wal = Self {
            pool,
            salt: Box::new(salt),
            generation,
            current: None,
            next: None,
            buffer: vec![0; HEADER_LEN],
            records: 0,
            durable: first_unproven - 1,
            over_limit: false,
            failed: false,
        };
        wal.rewrite(&replayed.unproven)?;
        // Until now they may have been all that the disk has of the last batch, whatever a newer header says that may be in
        // a cache alone.
        wal.pool.free(useless)?;
        wal.over_limit = wal.pool.is_over_limit();
        Ok(wal)
    }

    /// Puts the last batch, which may not be durable, into a new segment, in a file that has no header yet. Its header comes
    /// last, because it takes the older copy out of force.
    fn rewrite(&mut self, bodies: &[Vec<u8>]) -> io::Result<()> {
        if bodies.is_empty() {
            return Ok(());
        }
        for ((lsn, index), body) in (self.durable + 1..).zip(0..=u16::MAX).zip(bodies) {
            record::put(&mut self.buffer, lsn, index, |buffer| buffer.extend_from_slice(body));
            self.records += 1;
        }
        let header = self.next_header();
        let slot = self.pool.slot_beyond_limit(self.buffer.len() as u64)?;
        let records = self.buffer.get_mut(HEADER_LEN..).unwrap_or_default();
        record::stamp(records, header.key());
        slot.file.write_at(records, HEADER_LEN as u64)?;
        slot.file.sync_data()?;
        header.put(&mut self.buffer);
        slot.file.write_at(self.buffer.get(..HEADER_LEN).unwrap_or_default(), 0)?;
        slot.file.sync_data()?;
        self.begin(slot, header);
        self.committed();
        Ok(())
    }

    fn next_header(&mut self) -> Header {
        Header { generation: self.generation + 1, base: self.durable + 1, salt: (self.salt)() }
    }

    /// The segment is on disk, with the batch as its first.
    fn begin(&mut self, slot: Slot, header: Header) {
        self.generation = header.generation;
        let current = Current { slot, key: header.key(), at: self.buffer.len() as u64 };
        if let Some(before) = self.current.replace(current) {
            self.pool.fill(before.slot, header.base);
        }
    }

    /// The batch is durable.
    fn committed(&mut self) {
        self.durable += u64::from(self.records);
        self.clear();
    }

    fn clear(&mut self) {
        self.records = 0;
        self.buffer.truncate(HEADER_LEN);
    }

    /// Adds an entry to the batch, without any I/O, and tells its number.
    ///
    /// # Errors
    /// [`Full`]; the batch is as it was.
    pub fn push(&mut self, entry: &Entry) -> Result<Lsn, Full> {
        self.put(|buffer| record::put_body(buffer, entry))
    }

    /// As [`Wal::push`] of an [`Entry::Append`].
    ///
    /// # Errors
    /// [`Full`]; the batch is as it was.
    pub fn push_append(&mut self, log: LogId, append: &Append) -> Result<Lsn, Full> {
        self.put(|buffer| record::put_append(buffer, log, append))
    }

    fn put(&mut self, body: impl FnOnce(&mut Vec<u8>)) -> Result<Lsn, Full> {
        let index = u16::try_from(self.records).map_err(|_| Full::Batch)?;
        let start = self.buffer.len();
        let lsn = self.next_lsn();
        if !record::put(&mut self.buffer, lsn, index, body) {
            return Err(Full::TooLarge);
        }
        let refused = if self.batch_bytes() > self.batch_bytes_max() {
            if self.records == 0 { Full::TooLarge } else { Full::Batch }
        } else if self.is_allowed() && (self.fits_current() || self.reserve()) {
            self.records += 1;
            return Ok(lsn);
        } else {
            Full::Log
        };
        self.buffer.truncate(start);
        Err(refused)
    }

    fn is_allowed(&mut self) -> bool {
        self.over_limit = self.over_limit && self.pool.is_over_limit();
        !self.over_limit
    }

    fn fits_current(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.at + self.batch_bytes() <= current.slot.len)
    }

    fn reserve(&mut self) -> bool {
        if self.next.is_none() {
            self.next = self.pool.take();
        }
        self.next.is_some()
    }

    /// Makes the batch durable, with one write and one sync. Without entries it does nothing.
    ///
    /// # Errors
    /// [`CommitError`].
    pub fn commit(&mut self) -> Result<(), CommitError> {
        if self.failed {
            return Err(CommitError::Failed(io::Error::other("an earlier write failed")));
        }
        if self.records == 0 {
            return Ok(());
        }
        if self.fits_current() { self.go_on() } else { self.begin_segment() }
    }

    fn go_on(&mut self) -> Result<(), CommitError> {
        let Some(current) = &mut self.current else { return Ok(()) };
        let records = self.buffer.get_mut(HEADER_LEN..).unwrap_or_default();
        record::stamp(records, current.key);
        let written = current.slot.file.write_at(records, current.at).and_then(|()| current.slot.file.sync_data());
        current.at += records.len() as u64;
        self.finish(written)
    }

    fn begin_segment(&mut self) -> Result<(), CommitError> {
        let next = self.next.take().expect("a batch that does not fit the current segment was pushed with another one reserved");
        let slot = match self.pool.slot(next) {
            Ok(slot) => slot,
            Err(error) => {
                self.clear();
                return Err(CommitError::NotStored(error));
            }
        };
        let header = self.next_header();
        let (block, records) = self.buffer.split_at_mut(HEADER_LEN);
        header.put(block);
        record::stamp(records, header.key());
        let written = slot.file.write_at(&self.buffer, 0).and_then(|()| slot.file.sync_data());
        self.begin(slot, header);
        self.finish(written)
    }

    fn finish(&mut self, written: io::Result<()>) -> Result<(), CommitError> {
        written.map_err(|error| {
            self.failed = true;
            CommitError::Failed(error)
        })?;
        self.committed();
        Ok(())
    }

    /// The number that the next entry gets.
    #[must_use]
    pub const fn next_lsn(&self) -> Lsn {
        self.durable + 1 + self.records as u64
    }

    /// The last entry that is durable; 0 when there is none.
    #[must_use]
    pub const fn durable_lsn(&self) -> Lsn {
        self.durable
    }

    /// Entries pushed and not committed.
    #[must_use]
    pub const fn batch_len(&self) -> usize {
        self.records as usize
    }

    /// Their bytes.
    #[must_use]
    pub const fn batch_bytes(&self) -> u64 {
        (self.buffer.len() - HEADER_LEN) as u64
    }

    /// The most bytes that a batch can have.
    #[must_use]
    pub fn batch_bytes_max(&self) -> u64 {
        self.pool.config().segment_bytes - HEADER_LEN as u64
    }

    /// Bytes that [`Wal::push`] adds to the batch for this entry.
    #[must_use]
    pub fn encoded_len(entry: &Entry) -> usize {
        record::encoded_len(entry)
    }

    /// What the thread that applies entries holds.
    #[must_use]
    pub fn recycler(&self) -> Recycler {
        Recycler { pool: Arc::clone(&self.pool) }
    }
}

/// Frees segments and makes files, beside the thread that writes. Clones share the log.
#[derive(Debug, Clone)]
pub struct Recycler {
    pool: Arc<Pool>,
}

impl Recycler {
    /// The entries up to `applied` are durable elsewhere: segments that have no others are free. Those that are more than
    /// the spares are removed.
    ///
    /// # Errors
    /// Those of removing a file. The segments are free nevertheless.
    pub fn release(&self, applied: Lsn) -> io::Result<()> {
        self.pool.release(applied)
    }

    /// Makes a free file if there is none and the limit allows one. That takes a while; without it the next commit that
    /// begins a segment waits so long.
    ///
    /// # Errors
    /// Those of making a file. No harm is done.
    pub fn prepare(&self) -> io::Result<()> {
        self.pool.prepare()
    }

    /// Whether [`Recycler::prepare`] has something to do.
    #[must_use]
    pub fn wants_preparation(&self) -> bool {
        self.pool.wants_preparation()
    }

    /// Bytes of all segment files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.pool.bytes()
    }

    /// The most bytes that they may have.
    #[must_use]
    pub fn bytes_max(&self) -> u64 {
        self.pool.config().bytes_max
    }
}
