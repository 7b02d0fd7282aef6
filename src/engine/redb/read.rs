//! The readers: loads and pages of records, each from one snapshot.

use bytes::Bytes;
use redb::ReadTransaction;

use super::{
    super::{
        Answer, Failure,
        jobs::{Read, Subject},
        rows,
    },
    store::Store,
    tables::{self, Error, LogRow},
};
use crate::core::{
    id::{RoomId, Seq, UnixMillis},
    log::{LoadedLog, Record, Records},
};

/// Answers one read.
pub(super) fn read(store: &Store, subject: Subject) -> Result<Answer, Failure> {
    let answer = store.read(|txn| match subject {
        Subject::Room(room, read) => answer(txn, room, read),
        Subject::Packages(device) => rows::packages(txn, device).map(|packages| Ok(Answer::Packages(packages))),
    });
    answer.unwrap_or(Err(Failure::Read))
}

/// Fails outside when the storage failed, inside when the request cannot be answered.
fn answer(txn: &ReadTransaction, room: RoomId, read: Read) -> Result<Result<Answer, Failure>, Error> {
    let row = match txn.open_table(tables::LOGS)?.get(&room.0)? {
        Some(row) => LogRow::decode(row.value())?,
        None if matches!(read, Read::Load) => return Ok(Ok(Answer::Loaded(None))),
        None => return Ok(Err(Failure::NotFound)),
    };
    match read {
        Read::Load => load(txn, row).map(|log| Ok(Answer::Loaded(Some(Box::new(log))))),
        Read::After { after, bytes_max } => after_cursor(txn, &row, after, bytes_max),
        Read::Before { before, count_max, bytes_max } => before_cursor(txn, &row, before, count_max, bytes_max),
        // Nothing is ever trimmed here.
        Read::Handshake { seq } => before_cursor(txn, &row, seq.saturating_add(1), 1, 1),
        Read::Seek { time_ms } => seek(txn, &row, time_ms).map(|seq| Ok(Answer::Sought(seq))),
    }
}

/// Halves the seqs that may be the answer.
fn seek(txn: &ReadTransaction, row: &LogRow, time_ms: UnixMillis) -> Result<Seq, Error> {
    let table = txn.open_table(tables::RECORDS)?;
    let (mut low, mut high) = (row.state.floor, row.state.head + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        let record = table.get((&row.meta.log.0, middle))?.ok_or(Error::Row("records"))?;
        let (_, stored_ms, _) = tables::split_record(record.value())?;
        if stored_ms < time_ms { low = middle + 1 } else { high = middle }
    }
    Ok(low)
}

fn load(txn: &ReadTransaction, row: LogRow) -> Result<LoadedLog, Error> {
    let producers = rows::producers(&txn.open_table(tables::PRODUCERS)?, rows::Spelling::First, row.meta.log)?;
    Ok(LoadedLog { meta: row.meta, state: row.state, former: row.former, producers })
}

/// Collects records until a limit is met, but at least one.
fn collect<'a>(
    rows: impl Iterator<
        Item = Result<(redb::AccessGuard<'a, tables::RecordKey>, redb::AccessGuard<'a, &'static [u8]>), redb::StorageError>,
    >,
    count_max: usize,
    bytes_max: u32,
) -> Result<Vec<Record>, Error> {
    let (mut records, mut bytes) = (Vec::new(), 0_u64);
    for entry in rows {
        let (key, row) = entry?;
        let (_, time_ms, envelope) = tables::split_record(row.value())?;
        bytes += envelope.len() as u64;
        if !records.is_empty() && (records.len() >= count_max || bytes > u64::from(bytes_max)) {
            break;
        }
        records.push(Record { seq: key.value().1, time_ms, envelope: Bytes::copy_from_slice(envelope) });
    }
    Ok(records)
}

fn after_cursor(txn: &ReadTransaction, row: &LogRow, after: Seq, bytes_max: u32) -> Result<Result<Answer, Failure>, Error> {
    let table = txn.open_table(tables::RECORDS)?;
    let (log, first) = (&row.meta.log.0, (after.min(row.state.head) + 1).max(row.state.floor));
    let records = if first > row.state.head {
        Vec::new()
    } else {
        collect(table.range((log, first)..=(log, row.state.head))?, usize::MAX, bytes_max)?
    };
    if !is_dense(&records, first) {
        return Err(Error::Row("records"));
    }
    let before = tables::chain_at(&table, row, first - 1)?;
    Ok(Ok(Answer::Records(Records { state: row.state, before, records })))
}

fn before_cursor(
    txn: &ReadTransaction,
    row: &LogRow,
    before: Seq,
    count_max: u32,
    bytes_max: u32,
) -> Result<Result<Answer, Failure>, Error> {
    let table = txn.open_table(tables::RECORDS)?;
    let (log, last) = (&row.meta.log.0, before.saturating_sub(1).min(row.state.head));
    let mut records = if last < row.state.floor {
        Vec::new()
    } else {
        let rows = table.range((log, row.state.floor)..=(log, last))?.rev();
        collect(rows, usize::try_from(count_max).unwrap_or(usize::MAX), bytes_max)?
    };
    records.reverse();
    let first = records.first().map_or(last + 1, |record| record.seq);
    if !is_dense(&records, first) {
        return Err(Error::Row("records"));
    }
    let before = tables::chain_at(&table, row, first.saturating_sub(1))?;
    Ok(Ok(Answer::Records(Records { state: row.state, before, records })))
}

fn is_dense(records: &[Record], first: Seq) -> bool {
    records.iter().zip(first..).all(|(record, seq)| record.seq == seq)
}
