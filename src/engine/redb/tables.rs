//! The tables, and how their rows are spelled. Integers are little-endian; rows named "postcard" are that encoding.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | bytes: `format` = u32 |
//! | `logs` | room id, 16 | postcard ([`LogMeta`], [`LogState`]), and what `rows::put_group` adds |
//! | `records` | (log id, 16; seq, u64) | chain, 32 ‖ time in ms, u64 ‖ envelope |
//! | `producers` | log id, 16 ‖ device, 32 ‖ producer, 16 | postcard (last number, its time, [(seq, 16 bytes of the envelope's SHA-256, of which eight count)]) |
//! | `deleting` | log id, 16 | nothing |
//!
//! Records and producers hang on the log id, not on the room id: when a room is deleted, its log row goes and its log id
//! enters `deleting` in one step, and the rows are swept in later steps, while the room may be made again with a new log id.

use redb::TableDefinition;

use crate::core::{
    access::FormerKeys,
    id::{Digest, Seq, UnixMillis},
    log::{LogMeta, LogState},
};
pub(super) use crate::engine::rows::{DELETING, Error, FORMAT_ROW, META, PRODUCERS};
use crate::engine::rows::{put_group, take_group};

/// The format that this build writes and reads.
pub(super) const FORMAT: u32 = 1;

/// A key of [`RECORDS`].
pub(super) type RecordKey = (&'static [u8; 16], u64);

pub(super) const LOGS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("logs");
pub(super) const RECORDS: TableDefinition<'_, RecordKey, &[u8]> = TableDefinition::new("records");

/// Bytes of a record's row before its envelope.
pub(super) const RECORD_PREFIX: usize = 32 + 8;

/// A log's row.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(super) struct LogRow {
    pub(super) meta: LogMeta,
    pub(super) state: LogState,
    #[serde(skip)]
    pub(super) former: FormerKeys,
}

impl LogRow {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let (mut row, rest) = postcard::take_from_bytes::<Self>(bytes).map_err(|_| Error::Row("logs"))?;
        (row.state.handshake, row.former) = take_group(rest, row.state.head).ok_or(Error::Row("logs"))?;
        Ok(row)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let row = postcard::to_allocvec(self).expect("a row of fixed-size fields encodes into memory");
        put_group(row, self.state.handshake, &self.former)
    }
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
