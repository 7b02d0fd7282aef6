//! The tables, and how their rows are spelled. Integers are little-endian; rows named "postcard" are that encoding.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | bytes: `format` = u32 |
//! | `logs` | room id, 16 | postcard ([`LogMeta`], [`LogState`]) |
//! | `records` | (log id, 16; seq, u64) | chain, 32 ‖ time in ms, u64 ‖ envelope |
//! | `producers` | log id, 16 ‖ device, 32 ‖ producer, 16 | postcard [`ProducerState`] |
//! | `deleting` | log id, 16 | nothing |
//!
//! Records and producers hang on the log id, not on the room id: when a room is deleted, its log row goes and its log id
//! enters `deleting` in one step, and the rows are swept in later steps, while the room may be made again with a new log id.

use redb::TableDefinition;

use crate::core::{
    id::{DeviceKey, Digest, LogId, ProducerId, Seq, UnixMillis},
    log::{LogMeta, LogState, Producer, ProducerState},
};

/// The format that this build writes and reads.
pub(super) const FORMAT: u32 = 1;
/// The row of [`META`] with the format.
pub(super) const FORMAT_ROW: &str = "format";

/// A key of [`RECORDS`].
pub(super) type RecordKey = (&'static [u8; 16], u64);
/// A key of [`PRODUCERS`].
pub(super) type ProducerKey = [u8; 64];

pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
pub(super) const LOGS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("logs");
pub(super) const RECORDS: TableDefinition<'_, RecordKey, &[u8]> = TableDefinition::new("records");
pub(super) const PRODUCERS: TableDefinition<'_, &'static ProducerKey, &[u8]> = TableDefinition::new("producers");
pub(super) const DELETING: TableDefinition<'_, &[u8; 16], ()> = TableDefinition::new("deleting");

/// Bytes of a record's row before its envelope.
pub(super) const RECORD_PREFIX: usize = 32 + 8;

/// A row that this build did not write, or storage that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] redb::Error),
    /// A row does not decode.
    #[error("a row of table {0} does not decode")]
    Row(&'static str),
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

/// A log's row.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(super) struct LogRow {
    pub(super) meta: LogMeta,
    pub(super) state: LogState,
}

impl LogRow {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        postcard::from_bytes(bytes).map_err(|_| Error::Row("logs"))
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("a row of fixed-size fields encodes into memory")
    }
}

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

/// A record's row, taken apart.
pub(super) fn split_record(row: &[u8]) -> Result<(Digest, UnixMillis, &[u8]), Error> {
    let broken = Error::Row("records");
    let Some((chain, rest)) = row.split_first_chunk::<32>() else { return Err(broken) };
    let Some((time, envelope)) = rest.split_first_chunk::<8>() else { return Err(broken) };
    Ok((Digest(*chain), u64::from_le_bytes(*time), envelope))
}

/// The chain value at `seq`, which lies between `floor − 1` and `head`.
pub(super) fn chain_at(
    records: &impl redb::ReadableTable<RecordKey, &'static [u8]>,
    row: &LogRow,
    seq: Seq,
) -> Result<Digest, Error> {
    if seq >= row.state.head {
        return Ok(row.state.chain);
    }
    if seq < row.state.floor {
        return Ok(row.state.floor_chain);
    }
    let record = records.get((&row.meta.log.0, seq))?.ok_or(Error::Row("records"))?;
    Ok(split_record(record.value())?.0)
}
