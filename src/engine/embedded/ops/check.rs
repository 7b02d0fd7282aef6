//! Checking a store that nobody has open, without changing it.

use std::{
    collections::HashMap,
    fmt, io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use redb::{ReadTransaction, ReadableTable as _, ReadableTableMetadata as _};

use super::{
    Damaged, Disk, Error, HISTORY, Report, System,
    copy::{self, Copier, Source},
    target::Target,
};
use crate::{
    core::id::{LogId, RoomId, Seq},
    engine::{
        embedded::{
            memtable::{Memtable, RoomTail},
            read,
            tables::{self, CHUNKS, DELETING, LOGS, LogRow, STRANDED, TAILS},
        },
        rows,
        wal::{self, Files, SegmentFile, Wal},
    },
};

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// With the history file as a whole.
    History(String),
    /// With one room.
    Room(Damaged),
    /// With the write-ahead log.
    Log(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::History(why) => write!(f, "the history file: {why}"),
            Self::Room(Damaged { room, why }) => write!(f, "room {room}: {why}"),
            Self::Log(why) => write!(f, "the write-ahead log: {why}"),
        }
    }
}

/// Acked records that a damaged log could not take, and that were put aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranded {
    /// Their room, if it still has that log.
    pub room: Option<RoomId>,
    /// The log.
    pub log: LogId,
    /// The first of them.
    pub first: Seq,
    /// How many.
    pub records: u64,
    /// What is wrong with the log.
    pub why: String,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// Logs that are whole.
    pub logs: u64,
    /// Their records in the history.
    pub records: u64,
    /// Those records' envelopes, in bytes.
    pub bytes: u64,
    /// Records that are only in the write-ahead log.
    pub unapplied: u64,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// What was put aside.
    pub stranded: Vec<Stranded>,
}

impl Checked {
    /// Whether nothing is wrong.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.problems.is_empty() && self.stranded.is_empty()
    }
}

/// Checks the store in `directory`: the history file's own structure, every log in it, and that the write-ahead log can be
/// read and follows the history. Nothing is changed.
///
/// # Errors
/// [`Error`] when it could not be checked; what is damaged is in the answer.
pub fn check(directory: &Path, report: Report<'_>) -> Result<Checked, Error> {
    check_on(&System, directory, report)
}

/// As [`check`], on any disk.
///
/// # Errors
/// As [`check`].
pub fn check_on(disk: &dyn Disk, directory: &Path, report: Report<'_>) -> Result<Checked, Error> {
    let history = directory.join(HISTORY);
    if !super::exists(disk, &history)? {
        return Err(Error::NoStore { path: directory.into() });
    }
    let storage = disk.store(directory)?;
    let mut checked = Checked::default();
    let mut database = match copy::open_unchanged(disk, &history, super::backup::CACHE_BYTES) {
        Err(Error::Read { why, .. }) => {
            checked.problems.push(Problem::History(why));
            return Ok(checked);
        }
        opened => opened?,
    };
    let sound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| database.check_integrity()));
    match sound.map_err(|_| "it cannot be made sense of".to_owned()).and_then(|sound| sound.map_err(|error| error.to_string())) {
        Ok(true) => {}
        Ok(false) => {
            checked.problems.push(Problem::History("its pages do not have the checksums or the owners they must have".into()))
        }
        Err(why) => checked.problems.push(Problem::History(why)),
    }
    let txn = copy::begin(&database, &history)?;
    match Copier::new(Source::History(&txn), &history, Target::nothing(), report).run() {
        Ok((copied, _)) => {
            (checked.logs, checked.records, checked.bytes) = (copied.logs, copied.records, copied.bytes);
            if copied.damaged.is_empty() {
                match strays(&txn, copied.chunks) {
                    Ok(0) => {}
                    Ok(count) => checked.problems.push(Problem::History(format!("{count} of its chunks belong to no room"))),
                    Err(error) => checked.problems.push(Problem::History(error.to_string())),
                }
            }
            checked.problems.extend(copied.damaged.into_iter().map(Problem::Room));
        }
        Err(Error::Read { why, .. }) => checked.problems.push(Problem::History(why)),
        Err(other) => return Err(other),
    }
    match stranded(&txn) {
        Ok(stranded) => checked.stranded = stranded,
        Err(error) => checked.problems.push(Problem::History(error.to_string())),
    }
    let files = storage.files().map_err(|error| Error::read(directory, &error))?;
    check_log(directory, files, &txn, &mut checked)?;
    Ok(checked)
}

/// Chunks that are there beside the `known` ones and do not belong to a log whose rows are being removed.
fn strays(txn: &ReadTransaction, known: u64) -> Result<u64, rows::Error> {
    let (chunks, tails) = (txn.open_table(CHUNKS)?, txn.open_table(TAILS)?);
    let mut ending = 0;
    for entry in txn.open_table(DELETING)?.iter()? {
        let log = *entry?.0.value();
        for table in [&chunks, &tails] {
            for row in table.range((&log, 0)..=(&log, u64::MAX))? {
                row?;
                ending += 1;
            }
        }
    }
    Ok((chunks.len()? + tails.len()?).saturating_sub(known + ending))
}

fn stranded(txn: &ReadTransaction) -> Result<Vec<Stranded>, rows::Error> {
    let mut found = Vec::new();
    let table = txn.open_table(STRANDED)?;
    if table.is_empty()? {
        return Ok(found);
    }
    let mut rooms = HashMap::new();
    for entry in txn.open_table(LOGS)?.iter()? {
        let (room, row) = entry?;
        if let Ok(row) = LogRow::decode(row.value()) {
            rooms.insert(row.meta.log, RoomId(*room.value()));
        }
    }
    for entry in table.iter()? {
        let (key, row) = entry?;
        let (log, first) = (LogId(*key.value().0), key.value().1);
        let row: tables::Stranded = postcard::from_bytes(row.value()).map_err(|_| rows::Error::Row("stranded"))?;
        found.push(Stranded { room: rooms.get(&log).copied(), log, first, records: row.records.len() as u64, why: row.why });
    }
    Ok(found)
}

fn check_log(directory: &Path, files: Arc<dyn Files>, txn: &ReadTransaction, checked: &mut Checked) -> Result<(), Error> {
    let applied = match copy::applied(txn) {
        Ok(applied) => applied,
        Err(error) => {
            checked.problems.push(Problem::History(error.to_string()));
            return Ok(());
        }
    };
    let mut table = Memtable::default();
    let opened =
        Wal::open(Arc::new(Unchanged(files)), wal::Config::default(), applied, || 0, |lsn, entry| table.insert(lsn, entry));
    match opened {
        Ok(_) => {}
        Err(wal::OpenError::Io(error)) => return Err(Error::read(directory, &error)),
        Err(error) => {
            checked.problems.push(Problem::Log(error.to_string()));
            return Ok(());
        }
    }
    for (room, tail) in &table.rooms {
        match follows(txn, *room, tail) {
            Ok(count) => checked.unapplied += count,
            Err(why) => checked.problems.push(Problem::Room(Damaged { room: *room, why })),
        }
    }
    Ok(())
}

/// Whether what was logged of `room` follows what the history has, and how many records are new.
fn follows(txn: &ReadTransaction, room: RoomId, tail: &RoomTail) -> Result<u64, String> {
    let Some(log) = tail.log else { return Ok(0) };
    let stored = read::row(txn, room).map_err(|error| error.to_string())?.filter(|row| row.meta.log == log);
    let state = match (stored, &tail.made) {
        (Some(row), _) => row.state,
        (None, Some(_)) => crate::core::log::LogState::empty(room),
        (None, None) => return Err("what is in the write-ahead log belongs to a log that the history does not have".to_owned()),
    };
    // Their chain values are not logged; their checksums were compared as they were read.
    let mut next = state.head + 1;
    for record in tail.after(state.head) {
        if record.seq() != next {
            return Err(format!("record {next} is neither in the history nor in the write-ahead log"));
        }
        next += 1;
    }
    Ok(next - state.head - 1)
}

/// The log's files, of which nothing is ever changed: what is written to one stays in memory.
#[derive(Debug)]
struct Unchanged(Arc<dyn Files>);

impl Files for Unchanged {
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn SegmentFile>> {
        Ok(Box::new(InMemory { below: Some(self.0.open(name)?), bytes: Mutex::default() }))
    }

    fn create(&self, _: &str, len: u64) -> io::Result<Box<dyn SegmentFile>> {
        let bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        Ok(Box::new(InMemory { below: None, bytes: Mutex::new(Some(bytes)) }))
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct InMemory {
    below: Option<Box<dyn SegmentFile>>,
    /// All of the file, once it was written to.
    bytes: Mutex<Option<Vec<u8>>>,
}

impl InMemory {
    fn part(at: u64, len: usize) -> io::Result<std::ops::Range<usize>> {
        let start = usize::try_from(at).map_err(io::Error::other)?;
        Ok(start..start.saturating_add(len))
    }
}

impl SegmentFile for InMemory {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*bytes, &self.below) {
            (Some(bytes), _) => {
                let from = bytes.get(Self::part(offset, into.len())?).ok_or(io::ErrorKind::UnexpectedEof)?;
                into.copy_from_slice(from);
                Ok(())
            }
            (None, Some(below)) => below.read_at(into, offset),
            (None, None) => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn write_at(&self, from: &[u8], offset: u64) -> io::Result<()> {
        let mut held = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = match (held.take(), &self.below) {
            (Some(bytes), _) => bytes,
            (None, Some(below)) => {
                let mut bytes = vec![0; usize::try_from(below.len()?).map_err(io::Error::other)?];
                below.read_at(&mut bytes, 0)?;
                bytes
            }
            (None, None) => Vec::new(),
        };
        let part = Self::part(offset, from.len())?;
        bytes.resize(bytes.len().max(part.end), 0);
        bytes.get_mut(part).unwrap_or_default().copy_from_slice(from);
        *held = Some(bytes);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*bytes, &self.below) {
            (Some(bytes), _) => Ok(bytes.len() as u64),
            (None, Some(below)) => below.len(),
            (None, None) => Ok(0),
        }
    }
}
