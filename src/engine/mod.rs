//! The engine seam: what keeps logs durable. The router speaks to it in requests and hears completions; it never waits.
//!
//! No caller may assume that the log is local or that a request is quick. An append is complete only when its bytes would
//! survive a crash; completions of one log's appends come in the order of their seqs, and one failure fails all that
//! were submitted behind it, so that a log never has a gap.

mod crc;
pub mod embedded;
mod jobs;
mod queue;
pub mod redb;
mod rows;
pub mod wal;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use crate::core::{
    id::{DeviceKey, RoomId, Seq, UnixMillis},
    log::{Append, LoadedLog, LogMeta, Records},
};

/// Identifies a request to whoever made it.
pub type Token = u64;

/// What the router asks.
#[derive(Debug, Clone)]
pub enum Request {
    /// Load a log's meta, state and producers.
    Load {
        /// The log.
        room: RoomId,
    },
    /// Make an empty log, durably. Fails with [`Failure::Exists`] if there is one of that id.
    Create {
        /// The log.
        room: RoomId,
        /// As it is made.
        meta: LogMeta,
    },
    /// Store a record, durably, with its producer's state and the log's state, in one step.
    Append(Append),
    /// Records after `after`, ascending: as many as fit `bytes_max`, but at least one if there is one.
    ReadAfter {
        /// The log.
        room: RoomId,
        /// The cursor; a cursor below `floor − 1` reads from the floor.
        after: Seq,
        /// Envelope bytes at most.
        bytes_max: u32,
    },
    /// The newest records before `before`, ascending: as many as fit both limits, but at least one if there is one.
    ReadBefore {
        /// The log.
        room: RoomId,
        /// Only smaller seqs.
        before: Seq,
        /// Records at most.
        count_max: u32,
        /// Envelope bytes at most.
        bytes_max: u32,
    },
    /// The newest handshake record, if it is the one at `seq`: also where it lies below the floor, as that one is kept. Any other
    /// record is found by [`Request::ReadBefore`].
    ReadHandshake {
        /// The log.
        room: RoomId,
        /// Its place.
        seq: Seq,
    },
    /// Forget the log and all of its records, durably.
    Delete {
        /// The log.
        room: RoomId,
    },
    /// Load the key packages of a device.
    LoadPackages {
        /// Whose.
        device: DeviceKey,
    },
    /// Put these bytes in the place of a device's key packages, durably; no bytes: it has none.
    StorePackages {
        /// Whose.
        device: DeviceKey,
        /// What their owner makes of them; the engine does not look at it.
        packages: Bytes,
    },
    /// Where a time lies. A log's times ascend as far as the clock that gave them never went back; where it did, the answer is
    /// one of the places that the time fits.
    Seek {
        /// The log.
        room: RoomId,
        /// The time.
        time_ms: UnixMillis,
    },
}

/// What comes back.
#[derive(Debug)]
pub enum Answer {
    /// To [`Request::Load`]; `None` when there is no such log.
    Loaded(Option<Box<LoadedLog>>),
    /// To [`Request::Create`], [`Request::Delete`], [`Request::StorePackages`], and to [`Request::Append`]: it is on disk.
    Done,
    /// To [`Request::ReadAfter`], [`Request::ReadBefore`] and [`Request::ReadHandshake`].
    Records(Records),
    /// To [`Request::LoadPackages`]: as they were stored last; no bytes where there are none.
    Packages(Bytes),
    /// To [`Request::Seek`]: the first seq kept that was accepted at or after that time; `head + 1` when there is none.
    Sought(Seq),
}

/// Why a request was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// No such log.
    #[error("no such log")]
    NotFound,
    /// A log of that id exists.
    #[error("the log exists")]
    Exists,
    /// The disk is at its reserve; nothing was stored.
    #[error("the disk is at its reserve")]
    DiskFull,
    /// The write or the sync failed: it may or may not be on disk. Every later append fails in the same way until the
    /// process starts again.
    #[error("the write failed; its outcome is unknown")]
    OutcomeUnknown,
    /// A record before this one was not stored, so this one cannot be; nothing was stored.
    #[error("a record before this one was not stored")]
    Gap,
    /// The read failed; nothing changed.
    #[error("the read failed")]
    Read,
}

/// One finished request.
#[derive(Debug)]
pub struct Completion {
    /// As given with the request.
    pub token: Token,
    /// How it went.
    pub result: Result<Answer, Failure>,
}

/// Where an engine puts completions: one call may carry a whole committed batch. Called from the engine's threads; it
/// may block them, never the router, and must not wait there for another answer of the engine, which may come only after it.
pub trait Complete: Send + Sync {
    /// Takes finished requests, in order.
    fn complete(&self, batch: Vec<Completion>);
}

/// The request queue is full: nothing was submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the engine's queue is full")]
pub struct Busy;

/// Hears how an engine fares, for metrics. Called from the engine's threads; it must not block.
pub trait Observer: Send + Sync {
    /// A batch is on disk: its writes, their envelope bytes, and how long storing and syncing took.
    fn committed(&self, requests: usize, bytes: usize, took: Duration) {
        let _ = (requests, bytes, took);
    }

    /// What was logged is in the history file now: its memory in bytes, and how long that took.
    fn applied(&self, bytes: usize, took: Duration) {
        let _ = (bytes, took);
    }

    /// The next batch waited so long, because messages come faster than they are brought into the history file.
    fn slowed(&self, waited: Duration) {
        let _ = waited;
    }

    /// What was logged could not be brought into the history file; it will be tried again.
    fn apply_failed(&self, why: &str) {
        let _ = why;
    }

    /// The history of a room is damaged: it takes no more, and what was acked and is not in it was put aside.
    fn damaged(&self, room: RoomId, why: &str) {
        let _ = (room, why);
    }

    /// Older records of a room were dropped, as its retention says; this one is the oldest now.
    fn trimmed(&self, room: RoomId, floor: Seq) {
        let _ = (room, floor);
    }

    /// A load or read was answered with so many envelope bytes.
    fn read(&self, bytes: usize, took: Duration) {
        let _ = (bytes, took);
    }

    /// A request failed.
    fn failed(&self, failure: Failure) {
        let _ = failure;
    }

    /// The engine became unhealthy: no write can succeed until the process starts again.
    fn latched(&self, why: &str) {
        let _ = why;
    }
}

/// Hears nothing.
impl Observer for () {}

/// A durable log store.
pub trait Engine: Send + Sync {
    /// Submits a request; its completion goes to `to`, tagged with `token`. Never blocks.
    ///
    /// # Errors
    /// [`Busy`] when the queue is full (it is limited in requests and in bytes).
    fn submit(&self, request: Request, token: Token, to: &Arc<dyn Complete>) -> Result<(), Busy>;

    /// Whether appends can still succeed: false after a failed sync. `/readyz` tells it.
    fn is_healthy(&self) -> bool;
}

/// The one place where engines read a clock; only metrics, the age of a memtable and that of what is known of the disk depend on it.
#[cfg(feature = "server")]
fn clock() -> std::time::Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "durations for metrics, and when to apply or to look at the disk; no answer depends on them"
    )]
    std::time::Instant::now()
}
