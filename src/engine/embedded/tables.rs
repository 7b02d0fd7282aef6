//! The tables of format 2, and how their rows are spelled. Integers are little-endian; rows named "postcard" are that
//! encoding.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | bytes: `format` = u32, `applied` = u64, the newest entry of the write-ahead log that is in the tables |
//! | `logs` | room id, 16 | postcard ([`LogMeta`], [`LogState`], [`Open`]), and, where there is a handshake record, what `rows::put_group` adds |
//! | `chunks` | (log id, 16; first seq, u64) | a chunk (see `chunk`) that fills the pages it lies in |
//! | `tails` | (log id, 16; first seq, u64) | a chunk that shares its page |
//! | `stranded` | (log id, 16; first seq, u64) | postcard ([`Stranded`]): acked records that a damaged log could not take |
//! | `producers` | log id, 16 ‖ device, 32 ‖ producer, 16 | postcard (last number, its time, [(seq less the one before, [`EnvelopeHash`](crate::core::log::EnvelopeHash))]), see `rows` |
//! | `handshakes` | log id, 16 | postcard ([`Kept`]): the newest handshake record, where it was trimmed. Not in older stores |
//! | `packages` | device, 32 | its key packages, as their owner spells them. Not in older stores |
//! | `deleting` | log id, 16 | nothing |
//!
//! The seqs of a log's chunks are dense, and all of its `tails` come after all of its `chunks`. They are two tables because
//! redb stores one large value on pages of its own, a power of two of them, and several small values on one page; a small
//! one on a page with a large one would double that.
//!
//! All but the log's row hang on the log id, not on the room id: when a life ends, its log row goes and its log id enters
//! `deleting` in one step, and the rows are swept in later steps, while the room may be made again with a new log id.

use bytes::Bytes;
use redb::{ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use super::chunk::{Chunk, DecodeError, SEQ_END};
pub(super) use crate::engine::rows::{DELETING, Error, FORMAT_ROW, META, PRODUCERS};
use crate::{
    core::{
        access::FormerKeys,
        id::{ClientSeq, Digest, LogId, RoomId, Seq, UnixMillis},
        log::{LogMeta, LogState, Producer},
    },
    engine::{rows, wal::Lsn},
};

/// The format that this build writes and reads.
pub(super) const FORMAT: u32 = 2;
/// The row of [`META`] with the newest applied entry.
pub(super) const APPLIED_ROW: &str = "applied";
/// The row of [`META`] that says that the store was made from one of the first format and was never opened since.
pub(super) const MIGRATED_ROW: &str = "migrated";

/// A key of [`CHUNKS`] and [`TAILS`].
pub(super) type ChunkKey = (&'static [u8; 16], u64);

pub(super) const LOGS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("logs");
pub(super) const CHUNKS: TableDefinition<'_, ChunkKey, &[u8]> = TableDefinition::new("chunks");
pub(super) const TAILS: TableDefinition<'_, ChunkKey, &[u8]> = TableDefinition::new("tails");
/// Made when it is first written to: older stores do not have it.
pub(super) const HANDSHAKES: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("handshakes");
pub(super) const STRANDED: TableDefinition<'_, ChunkKey, &[u8]> = TableDefinition::new("stranded");

/// Where the part of a log begins whose records may still be moved into other chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Open {
    /// Its first seq; one more than the head when it is empty.
    pub(super) first: Seq,
    /// Where the loose chunks begin, which are moved by whatever follows: one that does not fill its page, or those in `tails`.
    /// One more than the head when there are none.
    pub(super) loose: Seq,
    /// Where the chunks in `tails` begin; one more than the head when there are none.
    pub(super) tails: Seq,
    /// What its records take, in bytes (see `chunk::cost`).
    pub(super) bytes: u64,
    /// At so many bytes a part of it fills a chunk for good.
    pub(super) goal: u64,
}

/// A log's row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LogRow {
    pub(super) meta: LogMeta,
    pub(super) state: LogState,
    pub(super) open: Open,
    #[serde(skip)]
    pub(super) former: FormerKeys,
}

impl LogRow {
    /// A new log's.
    pub(super) fn new(room: RoomId, meta: LogMeta) -> Self {
        let open = Open { first: 1, loose: 1, tails: 1, bytes: 0, goal: 0 };
        Self { meta, state: LogState::empty(room), open, former: FormerKeys::default() }
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let (mut row, rest) = postcard::take_from_bytes::<Self>(bytes).map_err(|_| Error::Row("logs"))?;
        (row.state.handshake, row.former) = rows::take_group(rest, row.state.head).ok_or(Error::Row("logs"))?;
        let (state, open) = (&row.state, &row.open);
        let end = state.head.saturating_add(1);
        // What follows reckons with these.
        let plausible = [1, state.floor, open.first, open.loose, open.tails, end].is_sorted();
        if plausible && state.head < SEQ_END { Ok(row) } else { Err(Error::Row("logs")) }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let row = postcard::to_allocvec(self).expect("a row of fixed-size fields encodes into memory");
        rows::put_group(row, self.state.handshake, &self.former)
    }

    /// That this log is damaged.
    pub(super) fn damaged(&self, why: impl Into<String>) -> Error {
        Error::Log { log: self.meta.log, why: why.into() }
    }
}

/// A handshake record that is kept though it lies below the floor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) seq: Seq,
    pub(super) time_ms: UnixMillis,
    /// The chain value before it.
    pub(super) before: Digest,
    pub(super) envelope: Bytes,
}

impl Kept {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        postcard::from_bytes(bytes).map_err(|_| Error::Row("handshakes"))
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("a record encodes into memory")
    }
}

/// Acked records that could not be applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stranded {
    /// What is wrong with the log.
    pub(super) why: String,
    /// The records.
    pub(super) records: Vec<StrandedRecord>,
}

impl Stranded {
    pub(super) fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("a list of known length encodes into memory")
    }
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StrandedRecord {
    pub(super) seq: Seq,
    pub(super) time_ms: UnixMillis,
    pub(super) producer: Producer,
    pub(super) client_seq: ClientSeq,
    pub(super) envelope: Bytes,
}

/// The chunk of `log` at `first`, or which one is damaged, and how.
pub(super) fn decode_chunk(log: LogId, first: Seq, row: &[u8]) -> Result<Chunk<'_>, Error> {
    Chunk::decode(log, first, row).map_err(|why: DecodeError| Error::Log { log, why: format!("records from {first}: {why}") })
}

/// The newest entry of the write-ahead log that is in the tables; 0 if none is.
pub(super) fn applied(meta: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<Lsn, Error> {
    let Some(row) = meta.get(APPLIED_ROW)? else { return Ok(0) };
    row.value().try_into().map(u64::from_le_bytes).map_err(|_| Error::Row("meta"))
}

/// Makes the tables of an empty file.
pub(super) fn make(txn: &redb::WriteTransaction) -> Result<(), Error> {
    txn.open_table(META)?.insert(FORMAT_ROW, FORMAT.to_le_bytes().as_slice())?;
    txn.open_table(LOGS)?;
    txn.open_table(CHUNKS)?;
    txn.open_table(TAILS)?;
    txn.open_table(STRANDED)?;
    txn.open_table(PRODUCERS)?;
    txn.open_table(DELETING)?;
    Ok(())
}
