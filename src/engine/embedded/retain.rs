//! Retention: dropping a log's oldest chunks, whole ones.

use redb::ReadableTable as _;

use super::{
    apply::Apply,
    chunk::Chunk,
    tables::{self, ChunkKey, Error, Kept, LogRow},
};
use crate::core::{
    id::{Digest, RoomId, Seq, UnixMillis},
    log::Record,
};

/// What a log must keep; what none of the limits that are set protects from being dropped goes, in whole chunks, and the
/// newest chunk stays always. So somewhat more than was asked for is kept: up to a chunk, which is 16 to 64 KiB of small records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keep {
    /// A chunk may go when all of its records are older than so many milliseconds.
    pub age_ms: Option<u64>,
    /// A chunk may go when so many records are newer than all of its own.
    pub count: Option<u64>,
    /// A chunk may go when the newer ones have so many envelope bytes.
    pub bytes: Option<u64>,
}

impl Keep {
    /// Whether anything may ever go.
    #[must_use]
    pub const fn is_limited(&self) -> bool {
        self.age_ms.is_some() || self.count.is_some() || self.bytes.is_some()
    }
}

/// The chunks that go in one step.
#[derive(Default)]
struct Dropped {
    first_seqs: Vec<Seq>,
    /// Envelope bytes.
    bytes: u64,
    /// What was counted as open.
    open: u64,
    /// The last seq that goes, and the chain value there.
    last: Option<(Seq, Digest)>,
    /// The newest handshake record, if it goes.
    handshake: Option<Kept>,
    /// Whether a chunk was found that stays.
    done: bool,
}

impl Apply<'_> {
    /// Drops what `keep` lets go of the log of `room`, up to `rows_max` chunks, and raises the floor; the newest handshake record is
    /// put aside. Whether there is more to drop.
    pub(super) fn trim(&mut self, room: RoomId, keep: &Keep, now: UnixMillis, rows_max: usize) -> Result<bool, Error> {
        let Some(mut row) = self.row(room)? else { return Ok(false) };
        let mut dropped = Dropped::default();
        let (log, head, tails) = (&row.meta.log.0, row.state.head, row.open.tails);
        if row.state.floor < tails {
            let range = (log, row.state.floor)..=(log, tails - 1);
            dropped.collect(room, &row, self.chunks.range(range)?.take(rows_max), keep, now)?;
        }
        let left = rows_max - dropped.first_seqs.len();
        if !dropped.done && left > 0 && tails <= head {
            let range = (log, row.state.floor.max(tails))..=(log, head);
            dropped.collect(room, &row, self.tails.range(range)?.take(left), keep, now)?;
        }
        let Some((last, chain)) = dropped.last else { return Ok(false) };
        for seq in dropped.first_seqs {
            let table = if seq < tails { &mut self.chunks } else { &mut self.tails };
            table.remove((log, seq))?;
        }
        if let Some(kept) = dropped.handshake {
            self.handshakes.insert(log, kept.encode().as_slice())?;
        }
        row.state.floor = last + 1;
        row.state.floor_chain = chain;
        row.state.bytes = row.state.bytes.saturating_sub(dropped.bytes);
        row.open.first = row.open.first.max(row.state.floor);
        row.open.loose = row.open.loose.max(row.state.floor);
        row.open.tails = row.open.tails.max(row.state.floor);
        row.open.bytes = row.open.bytes.saturating_sub(dropped.open);
        self.put(room, &row)?;
        Ok(!dropped.done)
    }
}

/// The record `seq` of a chunk, as it is put aside.
fn kept(room: RoomId, chunk: &Chunk<'_>, seq: Seq) -> Option<Kept> {
    let mut records = Vec::new();
    chunk.copy(seq, seq, &mut records);
    let Record { time_ms, envelope, .. } = records.pop()?;
    Some(Kept { seq, time_ms, before: chunk.chain_at(room, seq.saturating_sub(1)), envelope })
}

impl Dropped {
    /// Collects the chunks that go, up to the first that stays.
    fn collect<'a>(
        &mut self,
        room: RoomId,
        row: &LogRow,
        rows: impl Iterator<
            Item = Result<(redb::AccessGuard<'a, ChunkKey>, redb::AccessGuard<'a, &'static [u8]>), redb::StorageError>,
        >,
        keep: &Keep,
        now: UnixMillis,
    ) -> Result<(), Error> {
        for entry in rows {
            let (key, bytes) = entry?;
            let chunk = tables::decode_chunk(row.meta.log, key.value().1, bytes.value())?;
            let newer = row.state.head.saturating_sub(chunk.last());
            let newer_bytes = row.state.bytes.saturating_sub(self.bytes + chunk.envelopes().len() as u64);
            let goes = keep.age_ms.is_some_and(|age| chunk.latest_ms().saturating_add(age) < now)
                || keep.count.is_some_and(|count| newer >= count)
                || keep.bytes.is_some_and(|bytes| newer_bytes >= bytes);
            if newer == 0 || !goes {
                self.done = true;
                return Ok(());
            }
            if chunk.first() != self.last.map_or(row.state.floor, |(last, _)| last + 1) {
                return Err(row.damaged(format!("records before {} are missing", chunk.first())));
            }
            if (chunk.first()..=chunk.last()).contains(&row.state.handshake) {
                self.handshake = kept(room, &chunk, row.state.handshake);
            }
            self.bytes += chunk.envelopes().len() as u64;
            if chunk.first() >= row.open.first {
                self.open += bytes.value().len() as u64;
            }
            self.last = Some((chunk.last(), chunk.chain_at(room, chunk.last())));
            self.first_seqs.push(chunk.first());
        }
        Ok(())
    }
}
