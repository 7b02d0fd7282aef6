//! The copier: from a snapshot of a store into a fresh history file, checking everything on the way.

use std::{
    ops::{Bound, ControlFlow},
    path::Path,
    sync::Arc,
};

use redb::{BackendError, Builder, Database, ReadTransaction, ReadableDatabase as _, ReadableTable as _};

use super::{
    Damaged, Disk, Error, Progress, Report,
    target::{Place, Row, Target},
};
use crate::{
    core::{
        chain, envelope,
        id::{Digest, LogId, RoomId, Seq, UnixMillis},
        log::{LogMeta, LogState},
        packages::Packages,
    },
    engine::{
        embedded::{
            apply,
            chunk::{self, Item},
            layout::Sizes,
            read,
            tables::{self, CHUNKS, LOGS, LogRow, META, Open, STRANDED, TAILS},
        },
        redb::{self as direct, OldStore},
        rows::{self, Contents},
        wal::Lsn,
    },
};

/// Bytes of the first format's records that are laid out together.
const BATCH_BYTES: u64 = 4 << 20;

/// The sum of what was copied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Copied {
    pub(super) logs: u64,
    pub(super) records: u64,
    pub(super) bytes: u64,
    pub(super) damaged: Vec<Damaged>,
    /// How far it came.
    pub(super) progress: Progress,
    /// Chunks of the whole ones.
    pub(super) chunks: u64,
}

/// Which ids the logs of a copy have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ids {
    /// Those that they have.
    Same,
    /// New ones: it is another life.
    New,
}

/// What happens to a damaged log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnDamage {
    /// It is left out.
    LeaveOut,
    /// Its rows are copied as they are.
    AsItIs,
}

/// Where logs come from.
pub(super) enum Source<'a> {
    /// A snapshot of a history of this format.
    History(&'a ReadTransaction),
    /// A store of the first format.
    First(&'a OldStore),
}

/// One copying.
pub(super) struct Copier<'a, 'd, 'r> {
    pub(super) source: Source<'a>,
    /// What the source is called, for messages.
    pub(super) path: &'a Path,
    pub(super) target: Target<'d>,
    pub(super) ids: Ids,
    pub(super) on_damage: OnDamage,
    pub(super) report: Report<'r>,
    progress: Progress,
    chunks: u64,
    /// What ended a walk through a log, other than damage.
    failed: Option<Error>,
}

/// The logs that can be read, and the rooms whose row cannot.
type Found = (Vec<(LogId, RoomId)>, Vec<Damaged>);

impl<'a, 'd, 'r> Copier<'a, 'd, 'r> {
    pub(super) fn new(source: Source<'a>, path: &'a Path, target: Target<'d>, report: Report<'r>) -> Self {
        Self {
            source,
            path,
            target,
            ids: Ids::Same,
            on_damage: OnDamage::LeaveOut,
            report,
            progress: Progress::default(),
            chunks: 0,
            failed: None,
        }
    }

    /// Copies every log. The target has yet to be finished.
    pub(super) fn run(mut self) -> Result<(Copied, Target<'d>), Error> {
        let (mut logs, damaged) = self.logs()?;
        if self.on_damage == OnDamage::AsItIs && !damaged.is_empty() {
            // Nobody knows which chunks are theirs, and a copy that has all but those would end them.
            return Err(Error::Damaged { rooms: damaged });
        }
        // In the order of the ids under which they are written, a file fills from its left to its right.
        logs.sort_unstable();
        let ids = self.new_ids(&logs)?;
        let mut copied = Copied { damaged, ..Copied::default() };
        self.tell()?;
        for ((log, room), id) in logs.into_iter().zip(ids) {
            let before = self.progress;
            match self.log(room, log, id) {
                Ok(()) => copied.logs += 1,
                Err(found) => {
                    if let Some(failed) = self.failed.take() {
                        return Err(failed);
                    }
                    let why = match found {
                        rows::Error::Storage(error) if !matches!(error, redb::Error::Corrupted(_)) => {
                            return Err(Error::read(self.path, &error));
                        }
                        rows::Error::Log { why, .. } => why,
                        other => other.to_string(),
                    };
                    copied.damaged.push(Damaged { room, why });
                    self.target.forget(id)?;
                    self.progress.records = before.records;
                    self.progress.bytes = before.bytes;
                    if self.on_damage == OnDamage::AsItIs {
                        self.as_it_is(room, log)?;
                    }
                }
            }
            self.progress.logs += 1;
            self.tell()?;
        }
        self.packages()?;
        copied.progress = self.progress;
        (copied.records, copied.bytes, copied.chunks) = (self.progress.records, self.progress.bytes, self.chunks);
        Ok((copied, self.target))
    }

    fn tell(&mut self) -> Result<(), Error> {
        match (self.report)(self.progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Stopped),
        }
    }

    /// The key packages of all devices. Another life of the store begins without those that are handed out once: nobody knows
    /// which of them were handed out after the backup.
    fn packages(&mut self) -> Result<(), Error> {
        let Source::History(txn) = self.source else { return Ok(()) };
        let (ids, target, mut put) = (self.ids, &mut self.target, Ok(()));
        let read = rows::each_packages(txn, |device, bytes| {
            let bytes = if ids == Ids::New {
                let mut packages = Packages::decode(bytes).unwrap_or_default();
                packages.keep_last_resort();
                packages.encode().into()
            } else {
                bytes.to_vec()
            };
            put = target.put(Row::Packages(device, bytes));
            put.is_ok()
        });
        read.map_err(|error| Error::read(self.path, &error))?;
        put
    }

    /// All logs; what they have is added up. And the rooms whose rows cannot be read.
    fn logs(&mut self) -> Result<Found, Error> {
        let (mut logs, mut damaged) = (Vec::new(), Vec::new());
        let mut bytes = 0_u64;
        let mut each = |room, log, state: &LogState| {
            logs.push((log, room));
            bytes = bytes.saturating_add(state.bytes);
        };
        match &self.source {
            Source::History(txn) => each_row(txn, |room, row| match row {
                Ok(row) => each(room, row.meta.log, &row.state),
                Err(error) => damaged.push(Damaged { room, why: error.to_string() }),
            }),
            Source::First(old) => old.each_log(each),
        }
        .map_err(|error| Error::read(self.path, &error))?;
        self.progress.logs_total = logs.len() as u64;
        self.progress.bytes_total = bytes;
        Ok((logs, damaged))
    }

    fn new_ids(&self, logs: &[(LogId, RoomId)]) -> Result<Vec<LogId>, Error> {
        if self.ids == Ids::Same {
            return Ok(logs.iter().map(|(log, _)| *log).collect());
        }
        let mut ids = vec![LogId([0; 16]); logs.len()];
        for id in &mut ids {
            getrandom::fill(&mut id.0).map_err(|error| Error::read(Path::new("the system's randomness"), &error))?;
        }
        ids.sort_unstable();
        Ok(ids)
    }

    fn log(&mut self, room: RoomId, log: LogId, id: LogId) -> Result<(), rows::Error> {
        match self.source {
            Source::History(txn) => self.log_of_history(txn, room, id),
            Source::First(old) => self.log_of_first(old, room, log, id),
        }
    }

    /// Notes what is no damage, and ends the walk.
    fn put(&mut self, row: Row) -> Result<(), rows::Error> {
        self.target.put(row).map_err(|error| {
            self.failed = Some(error);
            rows::Error::Row("(the walk ends)")
        })
    }

    fn count(&mut self, records: usize, bytes: u64) -> Result<(), rows::Error> {
        self.progress.records += records as u64;
        self.progress.bytes += bytes;
        self.tell().map_err(|error| {
            self.failed = Some(error);
            rows::Error::Row("(the walk ends)")
        })
    }

    fn log_of_history(&mut self, txn: &ReadTransaction, room: RoomId, id: LogId) -> Result<(), rows::Error> {
        let row = read::row(txn, room)?.ok_or(rows::Error::Row("logs"))?;
        let place = |first| if first < row.open.tails { Place::Chunks } else { Place::Tails };
        read::chunks(txn, room, &row, None)?.verify(|chunk| {
            if self.target.keeps() {
                let items: Vec<Item<'_>> = chunk.items().collect();
                let mut bytes = vec![0; chunk::encoded_len(chunk.first(), &items)];
                chunk::encode(id, chunk.first(), chunk.before(), &items, &mut bytes);
                self.put(Row::Chunk(place(chunk.first()), id, chunk.first(), bytes))?;
            }
            self.chunks += 1;
            self.count(chunk.items().len(), chunk.envelopes().len() as u64)
        })?;
        for (producer, state) in read::producers(txn, &row)? {
            self.put(Row::Producer(id, producer, rows::encode_producer(&state)))?;
        }
        raw(txn, Place::Stranded, row.meta.log, |first, bytes| self.put(Row::Chunk(Place::Stranded, id, first, bytes)))?;
        if (1..row.state.floor).contains(&row.state.handshake) {
            let kept = read::kept(txn, &row)?.filter(|kept| envelope::is_handshake(&kept.envelope));
            let kept = kept.ok_or_else(|| row.damaged("its newest handshake record is not kept"))?;
            self.put(Row::Kept(id, kept.encode()))?;
        }
        let row = LogRow { meta: LogMeta { log: id, ..row.meta.clone() }, ..row };
        self.put(Row::Log(room, row.encode()))
    }

    fn log_of_first(&mut self, old: &OldStore, room: RoomId, log: LogId, id: LogId) -> Result<(), rows::Error> {
        let (meta, state, former) = old.log(room)?.ok_or(rows::Error::Row("logs"))?;
        let mut pending = Pending { id, first: state.floor, before: state.floor_chain, records: Vec::new(), bytes: 0 };
        let damaged = |why: String| rows::Error::Log { log, why };
        let (mut value, mut bytes, mut next) = (state.floor_chain, 0, state.floor);
        old.records(log, state.floor, state.head, &mut |seq, kept, time_ms, envelope| {
            if seq != next {
                return Err(damaged(format!("record {next} is missing")));
            }
            value = chain::next(room, value, seq, envelope);
            if value != kept {
                return Err(damaged(format!("the hash chain breaks at record {seq}")));
            }
            next += 1;
            bytes += envelope.len() as u64;
            pending.push(time_ms, value, envelope);
            if pending.bytes >= BATCH_BYTES {
                pending.write(self, false)?;
            }
            self.count(1, envelope.len() as u64)
        })?;
        if next != state.head + 1 {
            return Err(damaged(format!("record {next} is missing")));
        }
        if value != state.chain || bytes != state.bytes {
            return Err(damaged("its records are not those that its row tells of".to_owned()));
        }
        let open = pending.write(self, true)?;
        for (producer, state) in old.producers(log)? {
            self.put(Row::Producer(id, producer, rows::encode_producer(&state)))?;
        }
        let row = LogRow { meta: LogMeta { log: id, ..meta }, state, former, open };
        self.put(Row::Log(room, row.encode()))
    }

    /// The rows of a damaged log.
    fn as_it_is(&mut self, room: RoomId, log: LogId) -> Result<(), Error> {
        let Source::History(txn) = self.source else { return Ok(()) };
        let path = self.path;
        let failed = |error: &rows::Error| Error::read(path, error);
        let row = read::row(txn, room).and_then(|row| row.ok_or(rows::Error::Row("logs"))).map_err(|error| failed(&error))?;
        for place in [Place::Chunks, Place::Tails, Place::Stranded] {
            let copied = raw(txn, place, log, |seq, bytes| self.put(Row::Chunk(place, log, seq, bytes)));
            copied.map_err(|error| self.failed.take().unwrap_or_else(|| Error::read(self.path, &error)))?;
        }
        if let Some(kept) = read::kept_row(txn, &row).map_err(|error| failed(&error))? {
            self.target.put(Row::Kept(log, kept))?;
        }
        for (producer, state) in read::producers(txn, &row).map_err(|error| failed(&error))? {
            self.target.put(Row::Producer(log, producer, rows::encode_producer(&state)))?;
        }
        self.target.put(Row::Log(room, row.encode()))
    }
}

/// Records of the first format that are not laid out yet.
struct Pending {
    id: LogId,
    first: Seq,
    /// The chain value before the first.
    before: Digest,
    records: Vec<(UnixMillis, Digest, Vec<u8>)>,
    bytes: u64,
}

impl Pending {
    fn push(&mut self, time_ms: UnixMillis, chain: Digest, envelope: &[u8]) {
        self.bytes += envelope.len() as u64;
        self.records.push((time_ms, chain, envelope.to_vec()));
    }

    /// Writes full chunks; with `all` the rest too, as the log's open part.
    fn write(&mut self, copier: &mut Copier<'_, '_, '_>, all: bool) -> Result<Open, rows::Error> {
        let records = std::mem::take(&mut self.records);
        let items: Vec<Item<'_>> =
            records.iter().map(|(time_ms, chain, envelope)| Item { time_ms: *time_ms, envelope, chain: Some(*chain) }).collect();
        let layout = Sizes::new(apply::costs(self.first, &items)).all();
        let (first, before) = (self.first, self.before);
        let (full, open, loose, small) = (&*layout.full, &*layout.open, layout.loose.as_slice(), &*layout.small);
        let kinds = [(full, Place::Chunks), (open, Place::Chunks), (loose, Place::Chunks), (small, Place::Tails)];
        for (ranges, place) in kinds.into_iter().take(if all { kinds.len() } else { 1 }) {
            for range in ranges {
                let seq = first + range.start as u64;
                let before = range.start.checked_sub(1).and_then(|last| records.get(last)).map_or(before, |(_, chain, _)| *chain);
                let items = items.get(range.clone()).unwrap_or_default();
                let mut bytes = vec![0; chunk::encoded_len(seq, items)];
                chunk::encode(self.id, seq, before, items, &mut bytes);
                copier.put(Row::Chunk(place, self.id, seq, bytes))?;
            }
        }
        let at = |ranges: &[std::ops::Range<usize>]| ranges.first().map(|range| first + range.start as u64);
        let end = first + records.len() as u64;
        let tails = at(small).unwrap_or(end);
        let loose = at(loose).unwrap_or(tails);
        let place = Open { first: at(open).unwrap_or(loose), loose, tails, bytes: layout.bytes, goal: layout.goal };
        let done = full.last().map_or(0, |range| range.end);
        if let Some((_, chain, _)) = done.checked_sub(1).and_then(|last| records.get(last)) {
            self.before = *chain;
        }
        self.first += done as u64;
        self.records = records.into_iter().skip(done).collect();
        self.bytes = self.records.iter().map(|(.., envelope)| envelope.len() as u64).sum();
        Ok(place)
    }
}

/// Calls `each` for every room, with its row or what is wrong with it.
fn each_row(txn: &ReadTransaction, mut each: impl FnMut(RoomId, Result<LogRow, rows::Error>)) -> Result<(), rows::Error> {
    for entry in txn.open_table(LOGS)?.iter()? {
        let (room, row) = entry?;
        each(RoomId(*room.value()), LogRow::decode(row.value()));
    }
    Ok(())
}

/// The envelopes of all logs, in bytes.
pub(super) fn envelope_bytes(txn: &ReadTransaction) -> Result<u64, rows::Error> {
    let mut bytes = 0_u64;
    each_row(txn, |_, row| bytes = bytes.saturating_add(row.map_or(0, |row| row.state.bytes)))?;
    Ok(bytes)
}

/// Calls `each` for the rows of a log, as they are.
fn raw(
    txn: &ReadTransaction,
    place: Place,
    log: LogId,
    mut each: impl FnMut(Seq, Vec<u8>) -> Result<(), rows::Error>,
) -> Result<(), rows::Error> {
    let table = match place {
        Place::Chunks => CHUNKS,
        Place::Tails => TAILS,
        Place::Stranded => STRANDED,
    };
    for entry in txn.open_table(table)?.range((&log.0, 0)..=(&log.0, u64::MAX))? {
        let (key, bytes) = entry?;
        each(key.value().1, bytes.value().to_vec())?;
    }
    Ok(())
}

/// The newest entry of the write-ahead log that the snapshot has.
pub(super) fn applied(txn: &ReadTransaction) -> Result<Lsn, rows::Error> {
    tables::applied(&txn.open_table(META)?)
}

/// Opens the history at `path` without ever writing to it: what redb writes as it opens stays in memory. Meanwhile nobody
/// else can write to it, where the file system has locks.
pub(super) fn open_unchanged(disk: &dyn Disk, path: &Path, cache_bytes: usize) -> Result<Database, Error> {
    let backend = disk.open_read_only(path).map_err(|error| Error::read(path, &error))?;
    // Shared: a file that cannot be written to cannot be locked otherwise.
    match backend.try_lock_shared_range(Bound::Unbounded, Bound::Unbounded) {
        Ok(true) | Err(BackendError::Unsupported) => {}
        Ok(false) => return Err(super::OpenError::from(direct::OpenError::Locked { path: path.into() }).into()),
        Err(error) => return Err(Error::read(path, &error)),
    }
    let open = || {
        let overlay = direct::overlay(backend)?;
        let mut builder = Builder::new();
        builder.set_cache_size(cache_bytes);
        builder.create_with_backend(overlay)
    };
    // redb panics over some damages of the file.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(open)) {
        Ok(opened) => opened.map_err(|error| Error::read(path, &error)),
        Err(_) => Err(Error::read(path, &"it cannot be made sense of")),
    }
}

/// Begins to read, and checks the format.
pub(super) fn begin(database: &Database, path: &Path) -> Result<Arc<ReadTransaction>, Error> {
    let txn = database.begin_read().map_err(|error| Error::read(path, &error))?;
    match rows::contents(&txn).map_err(|error| Error::read(path, &error))? {
        Contents::Store(tables::FORMAT) => Ok(Arc::new(txn)),
        Contents::Store(found) if found > tables::FORMAT => {
            let error = direct::OpenError::NewerFormat { path: path.into(), found, supported: tables::FORMAT };
            Err(super::OpenError::from(error).into())
        }
        _ => Err(super::OpenError::from(direct::OpenError::NotAStore { path: path.into() }).into()),
    }
}
