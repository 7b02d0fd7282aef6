//! One transaction of the writer. Each log row and producer row that it touches is read once and written once.

use std::collections::BTreeMap;

use bytes::Bytes;
use redb::{ReadableTable as _, Table, WriteTransaction};

use super::{
    super::{
        Failure,
        jobs::Write,
        rows::{self, Producers, Spelling},
    },
    tables::{self, Error, LogRow, RecordKey},
};
use crate::core::{
    access::FormerKeys,
    id::{DeviceKey, LogId, RoomId},
    log::{Append, LogMeta, LogState},
};

/// Records that are swept in one transaction: enough to be quick, few enough not to hold up who waits for an ack.
const SWEEP_RECORDS: usize = 1000;

pub(super) struct Batch<'t> {
    txn: &'t WriteTransaction,
    logs: Table<'t, &'static [u8; 16], &'static [u8]>,
    records: Table<'t, RecordKey, &'static [u8]>,
    producers: Producers<'t>,
    deleting: Table<'t, &'static [u8; 16], ()>,
    /// The logs that this batch has read; `None` where there is none (any more).
    rows: BTreeMap<RoomId, Cached>,
    deleted: Vec<LogId>,
    full: bool,
    changed: bool,
}

#[derive(Default)]
struct Cached {
    row: Option<LogRow>,
    dirty: bool,
}

/// What a batch did.
pub(super) struct Outcome {
    /// Whether there is anything to commit.
    pub(super) changed: bool,
    /// Logs that were deleted: their rows are to be swept.
    pub(super) deleted: Vec<LogId>,
    /// Whether nothing is left of the log that was to be swept.
    pub(super) swept: bool,
}

impl<'t> Batch<'t> {
    /// `full`: the disk is at its reserve, so nothing but deletions is done.
    pub(super) fn open(txn: &'t WriteTransaction, full: bool) -> Result<Self, Error> {
        Ok(Self {
            txn,
            logs: txn.open_table(tables::LOGS)?,
            records: txn.open_table(tables::RECORDS)?,
            producers: Producers::open_as(txn, Spelling::First)?,
            deleting: txn.open_table(tables::DELETING)?,
            rows: BTreeMap::new(),
            deleted: Vec::new(),
            full,
            changed: false,
        })
    }

    /// Does one write. Fails outside when the storage failed, inside when this write alone cannot be done.
    pub(super) fn apply(&mut self, write: &Write) -> Result<Result<(), Failure>, Error> {
        let result = match write {
            Write::Create { room, meta } => self.create(*room, meta),
            Write::Append(append) => self.append(append),
            Write::Delete { room } => self.delete(*room),
            Write::Packages { device, packages } => self.packages(*device, packages),
        };
        match result {
            // One log's row is broken: that log fails, others go on.
            Err(Error::Row(_)) => Ok(Err(Failure::Read)),
            other => other,
        }
    }

    fn cached(&mut self, room: RoomId) -> Result<&mut Cached, Error> {
        match self.rows.entry(room) {
            std::collections::btree_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let row = self.logs.get(&room.0)?.map(|row| LogRow::decode(row.value())).transpose()?;
                Ok(entry.insert(Cached { row, dirty: false }))
            }
        }
    }

    fn create(&mut self, room: RoomId, meta: &LogMeta) -> Result<Result<(), Failure>, Error> {
        let full = self.full;
        let sweeping = self.deleting.get(&meta.log.0)?.is_some();
        let cached = self.cached(room)?;
        if cached.row.is_some() || sweeping {
            return Ok(Err(Failure::Exists));
        }
        if full {
            return Ok(Err(Failure::DiskFull));
        }
        *cached = Cached {
            row: Some(LogRow { meta: meta.clone(), state: LogState::empty(room), former: FormerKeys::default() }),
            dirty: true,
        };
        self.changed = true;
        Ok(Ok(()))
    }

    fn append(&mut self, append: &Append) -> Result<Result<(), Failure>, Error> {
        let full = self.full;
        let cached = self.cached(append.room)?;
        let Some(row) = &mut cached.row else { return Ok(Err(Failure::NotFound)) };
        if full {
            return Ok(Err(Failure::DiskFull));
        }
        if append.seq != row.state.head + 1 {
            return Ok(Err(Failure::Gap));
        }
        let log = row.meta.log;
        // Read before anything is changed, so that a broken row fails this write without a trace.
        self.producers.load(log, &append.producer, append.time_ms)?;
        let Some(Cached { row: Some(row), dirty }) = self.rows.get_mut(&append.room) else { return Ok(Err(Failure::NotFound)) };
        row.state.head = append.seq;
        row.state.chain = append.chain;
        row.state.bytes += append.envelope.len() as u64;
        if append.is_handshake() {
            row.state.handshake = append.seq;
        }
        if let Some(access) = append.new_access() {
            row.former.replace(&mut row.meta.access, append.seq, access);
        }
        *dirty = true;
        self.insert_record(log, append)?;
        self.producers.note(log, [append.into()]);
        self.changed = true;
        Ok(Ok(()))
    }

    fn insert_record(&mut self, log: LogId, append: &Append) -> Result<(), Error> {
        let mut row = self.records.insert_reserve((&log.0, append.seq), tables::RECORD_PREFIX + append.envelope.len())?;
        let (chain, rest) = row.as_mut().split_at_mut(32);
        let (time, envelope) = rest.split_at_mut(8);
        chain.copy_from_slice(&append.chain.0);
        time.copy_from_slice(&append.time_ms.to_le_bytes());
        envelope.copy_from_slice(&append.envelope);
        Ok(())
    }

    fn packages(&mut self, device: DeviceKey, packages: &Bytes) -> Result<Result<(), Failure>, Error> {
        if self.full && !packages.is_empty() {
            return Ok(Err(Failure::DiskFull));
        }
        rows::put_packages(self.txn, device, packages)?;
        self.changed = true;
        Ok(Ok(()))
    }

    fn delete(&mut self, room: RoomId) -> Result<Result<(), Failure>, Error> {
        let cached = self.cached(room)?;
        let Some(row) = cached.row.take() else { return Ok(Err(Failure::NotFound)) };
        cached.dirty = true;
        let log = row.meta.log;
        self.producers.drop_log(log);
        self.deleting.insert(&log.0, ())?;
        self.deleted.push(log);
        self.changed = true;
        Ok(Ok(()))
    }

    /// Writes the changed rows, and sweeps a slice of the log `sweep`.
    pub(super) fn finish(mut self, sweep: Option<LogId>) -> Result<Outcome, Error> {
        for (room, cached) in self.rows.iter().filter(|(_, cached)| cached.dirty) {
            match &cached.row {
                Some(row) => drop(self.logs.insert(&room.0, row.encode().as_slice())?),
                None => drop(self.logs.remove(&room.0)?),
            }
        }
        self.producers.write()?;
        let swept = match sweep {
            Some(log) => self.sweep(log)?,
            None => false,
        };
        Ok(Outcome { changed: self.changed || sweep.is_some(), deleted: self.deleted, swept })
    }

    fn sweep(&mut self, log: LogId) -> Result<bool, Error> {
        let mut swept = 0;
        for entry in self.records.extract_from_if((&log.0, 0)..=(&log.0, u64::MAX), |_, _| true)?.take(SWEEP_RECORDS) {
            entry?;
            swept += 1;
        }
        if swept == SWEEP_RECORDS {
            return Ok(false);
        }
        self.producers.sweep(log, usize::MAX)?;
        self.deleting.remove(&log.0)?;
        Ok(true)
    }
}
