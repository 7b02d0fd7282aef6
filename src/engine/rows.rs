//! What the redb files of both formats have in common: their errors, and the rows of producers.

use std::collections::BTreeMap;

use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, TableError, WriteTransaction};

use crate::core::{
    id::{DeviceKey, LogId, ProducerId, UnixMillis},
    log::{Append, Producer, ProducerState, Stored},
};

/// An outbox that was idle for so long may be forgotten.
const PRODUCER_IDLE_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// A key of [`PRODUCERS`].
pub(super) type ProducerKey = [u8; 64];

/// By name: what the file is.
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// By log, device and producer: what the log remembers of an outbox.
pub(super) const PRODUCERS: TableDefinition<'_, &'static ProducerKey, &[u8]> = TableDefinition::new("producers");
/// The logs that have ended and whose rows are being removed.
pub(super) const DELETING: TableDefinition<'_, &[u8; 16], ()> = TableDefinition::new("deleting");
/// The row of [`META`] with the format.
pub(super) const FORMAT_ROW: &str = "format";

/// A row that this build did not write, or storage that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] redb::Error),
    /// A row does not decode.
    #[error("a row of table {0} does not decode")]
    Row(&'static str),
    /// The rows of a log are not what they must be.
    #[error("log {log}: {why}")]
    Log {
        /// The log.
        log: LogId,
        /// What was found.
        why: String,
    },
}

macro_rules! from_redb {
    ($($error:ident),*) => {
        $(impl From<redb::$error> for Error {
            fn from(error: redb::$error) -> Self {
                Self::Storage(error.into())
            }
        })*
    };
}
from_redb!(StorageError, TableError, TransactionError, CommitError);

pub(super) fn decode_producer(bytes: &[u8]) -> Result<ProducerState, Error> {
    postcard::from_bytes(bytes).map_err(|_| Error::Row("producers"))
}

pub(super) fn encode_producer(state: &ProducerState) -> Vec<u8> {
    postcard::to_allocvec(state).expect("a ring of known length encodes into memory")
}

/// The key of `producer` in `log`.
pub(super) fn producer_key(log: LogId, producer: &Producer) -> ProducerKey {
    let mut key = [0; 64];
    key[..16].copy_from_slice(&log.0);
    key[16..48].copy_from_slice(&producer.device.0);
    key[48..].copy_from_slice(&producer.id.0);
    key
}

/// The first and last possible key of `log`, or of one of its devices.
pub(super) fn producer_range(log: LogId, device: Option<DeviceKey>) -> (ProducerKey, ProducerKey) {
    let low = producer_key(log, &Producer { device: device.unwrap_or(DeviceKey([0; 32])), id: ProducerId([0; 16]) });
    let high = producer_key(log, &Producer { device: device.unwrap_or(DeviceKey([0xff; 32])), id: ProducerId([0xff; 16]) });
    (low, high)
}

/// Which producer a key names.
pub(super) fn producer_of(key: &ProducerKey) -> Producer {
    let mut producer = Producer { device: DeviceKey([0; 32]), id: ProducerId([0; 16]) };
    producer.device.0.copy_from_slice(&key[16..48]);
    producer.id.0.copy_from_slice(&key[48..]);
    producer
}

/// Every producer of `log`.
pub(super) fn producers(
    table: &impl ReadableTable<&'static ProducerKey, &'static [u8]>,
    log: LogId,
) -> Result<Vec<(Producer, ProducerState)>, Error> {
    let (low, high) = producer_range(log, None);
    let mut producers = Vec::new();
    for entry in table.range::<&ProducerKey>(&low..=&high)? {
        let (key, state) = entry?;
        producers.push((producer_of(key.value()), decode_producer(state.value())?));
    }
    Ok(producers)
}

/// Notes the publish. Its number decides: where the outbox was forgotten in between, what came before cannot be recognised
/// any more.
pub(super) fn note(state: &mut ProducerState, append: &Append) {
    if state.last + 1 != append.client_seq {
        state.ring.clear();
        state.last = append.client_seq.saturating_sub(1);
    }
    state.push(Stored { seq: append.seq, hash: append.hash }, append.time_ms);
}

/// The producers that a transaction changes: each is read once and written once.
pub(super) struct Producers<'t> {
    table: Table<'t, &'static ProducerKey, &'static [u8]>,
    states: BTreeMap<ProducerKey, ProducerState>,
}

impl<'t> Producers<'t> {
    pub(super) fn open(txn: &'t WriteTransaction) -> Result<Self, Error> {
        Ok(Self { table: txn.open_table(PRODUCERS)?, states: BTreeMap::new() })
    }

    /// Reads what [`Self::note`] will change, so that a broken row is found before anything is.
    pub(super) fn load(&mut self, log: LogId, append: &Append) -> Result<(), Error> {
        let key = producer_key(log, &append.producer);
        if self.states.contains_key(&key) {
            return Ok(());
        }
        let stored = self.table.get(&key)?.map(|row| decode_producer(row.value())).transpose()?;
        if stored.is_none() {
            self.forget_idle(log, append.producer.device, append.time_ms)?;
        }
        self.states.insert(key, stored.unwrap_or_default());
        Ok(())
    }

    /// Forgets the device's outboxes that were idle for [`PRODUCER_IDLE_MS`]: done when it begins another one, so that
    /// their number stays bounded.
    fn forget_idle(&mut self, log: LogId, device: DeviceKey, now: UnixMillis) -> Result<(), Error> {
        let (low, high) = producer_range(log, Some(device));
        let mut idle = Vec::new();
        for entry in self.table.range::<&ProducerKey>(&low..=&high)? {
            let (key, state) = entry?;
            if decode_producer(state.value())?.time_ms.saturating_add(PRODUCER_IDLE_MS) < now {
                idle.push(*key.value());
            }
        }
        for key in idle {
            self.table.remove(&key)?;
        }
        Ok(())
    }

    /// Notes the publish, whose producer was loaded.
    pub(super) fn note(&mut self, log: LogId, append: &Append) {
        if let Some(state) = self.states.get_mut(&producer_key(log, &append.producer)) {
            note(state, append);
        }
    }

    /// Drops what was loaded and noted of `log`.
    pub(super) fn drop_log(&mut self, log: LogId) {
        let (low, high) = producer_range(log, None);
        self.states.retain(|key, _| *key < low || *key > high);
    }

    /// Drops all that was loaded and noted since the last [`Self::write`].
    pub(super) fn drop_all(&mut self) {
        self.states.clear();
    }

    /// Writes what was noted.
    pub(super) fn write(&mut self) -> Result<(), Error> {
        for (key, state) in std::mem::take(&mut self.states) {
            self.table.insert(&key, encode_producer(&state).as_slice())?;
        }
        Ok(())
    }

    /// Removes up to `rows_max` producers of `log`; how many there were to remove.
    pub(super) fn sweep(&mut self, log: LogId, rows_max: usize) -> Result<usize, Error> {
        let (low, high) = producer_range(log, None);
        let mut swept = 0;
        for entry in self.table.extract_from_if::<&ProducerKey, _>(&low..=&high, |_, _| true)?.take(rows_max) {
            entry?;
            swept += 1;
        }
        Ok(swept)
    }
}

/// What a redb file says that it is.
pub(super) enum Contents {
    /// Nothing is in it yet.
    Empty,
    /// A store of this format.
    Store(u32),
    /// Something else.
    Foreign,
}

/// Tells an empty file, a store and its format, and something else apart.
pub(super) fn contents(txn: &ReadTransaction) -> Result<Contents, Error> {
    let meta = match txn.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => {
            let empty = txn.list_tables()?.next().is_none();
            return Ok(if empty { Contents::Empty } else { Contents::Foreign });
        }
        Err(TableError::Storage(error)) => return Err(error.into()),
        Err(_) => return Ok(Contents::Foreign),
    };
    let row = meta.get(FORMAT_ROW)?;
    let format = row.and_then(|row| Some(u32::from_le_bytes(row.value().try_into().ok()?)));
    Ok(format.map_or(Contents::Foreign, Contents::Store))
}
