//! A store of this format as something to copy from.

use std::{path::Path, sync::Arc};

use redb::{ReadTransaction, ReadableTable as _, StorageBackend};

use super::{
    OpenError,
    guard::{Guard, Guarded},
    store::Store,
    tables::{self, Error, LogRow},
};
use crate::{
    core::{
        access::FormerKeys,
        id::{Digest, LogId, RoomId, Seq, UnixMillis},
        log::{LogMeta, LogState, Producer, ProducerState},
    },
    engine::rows,
};

/// Takes a record: its seq, the chain value after it, when it was accepted, its envelope.
pub(in crate::engine) type EachRecord<'a> = &'a mut dyn FnMut(Seq, Digest, UnixMillis, &[u8]) -> Result<(), Error>;

/// One snapshot of the store, whose file nobody else can open.
pub(in crate::engine) struct OldStore {
    txn: ReadTransaction,
    _store: Store,
}

impl OldStore {
    /// Opens the store in `file`, which is called `path`.
    pub(in crate::engine) fn open(path: &Path, file: Box<dyn StorageBackend>, cache_bytes: usize) -> Result<Self, OpenError> {
        let store = Store::open(path, Guarded(Guard::new(file)), cache_bytes, Arc::new(()))?;
        let txn = store.begin_read().map_err(|error| OpenError::Corrupted { path: path.into(), why: error.to_string() })?;
        Ok(Self { txn, _store: store })
    }

    /// Calls `each` for all logs.
    pub(in crate::engine) fn each_log(&self, mut each: impl FnMut(RoomId, LogId, &LogState)) -> Result<(), Error> {
        for entry in self.txn.open_table(tables::LOGS)?.iter()? {
            let (room, row) = entry?;
            let row = LogRow::decode(row.value())?;
            each(RoomId(*room.value()), row.meta.log, &row.state);
        }
        Ok(())
    }

    /// One log.
    pub(in crate::engine) fn log(&self, room: RoomId) -> Result<Option<(LogMeta, LogState, FormerKeys)>, Error> {
        let row = self.txn.open_table(tables::LOGS)?.get(&room.0)?.map(|row| LogRow::decode(row.value())).transpose()?;
        Ok(row.map(|row| (row.meta, row.state, row.former)))
    }

    /// Calls `each` for the records `from..=to` of a log.
    pub(in crate::engine) fn records(&self, log: LogId, from: Seq, to: Seq, each: EachRecord<'_>) -> Result<(), Error> {
        if from > to {
            return Ok(());
        }
        for entry in self.txn.open_table(tables::RECORDS)?.range((&log.0, from)..=(&log.0, to))? {
            let (key, row) = entry?;
            let (chain, time_ms, envelope) = tables::split_record(row.value())?;
            each(key.value().1, chain, time_ms, envelope)?;
        }
        Ok(())
    }

    /// The producers of a log.
    pub(in crate::engine) fn producers(&self, log: LogId) -> Result<Vec<(Producer, ProducerState)>, Error> {
        rows::producers(&self.txn.open_table(tables::PRODUCERS)?, rows::Spelling::First, log)
    }
}
