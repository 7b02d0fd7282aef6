//! What is kept, and when it is looked at: the rooms that were just applied to, and all of them every so often.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Bound,
    sync::Arc,
    time::{Duration, Instant},
};

use redb::ReadTransaction;

pub use super::retain::Keep;
use super::{
    apply::Apply,
    clock,
    database::Database,
    read,
    tables::{Error, LOGS, LogRow},
};
use crate::{
    core::{
        frame::LogKind,
        id::{RoomId, Seq, UnixMillis},
    },
    engine::Observer,
};

/// Rooms that are looked at in one step.
const ROOMS_STEP: usize = 256;
/// Chunks that are dropped in one step.
const CHUNKS_STEP: usize = 64;

/// Which logs keep what. Whole chunks are dropped, so somewhat more is kept than was asked for, and the newest records of a
/// log always.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// Rooms that are not named. Default: they keep everything.
    ///
    /// It does not hold for inboxes: an invitation's inbox holds what its link opens, and a device's what others handed to
    /// it, which must not go because time passes, or because somebody posts much to it. Their size has a limit of its own.
    pub default: Keep,
    /// Logs that are named, inboxes too. What is absent there is kept: the default does not fill it in.
    pub rooms: BTreeMap<RoomId, Keep>,
    /// Milliseconds between two looks at all logs. Default an hour. Rooms that something was published in are looked at as
    /// soon as it is applied.
    pub sweep_every_ms: u32,
    /// What time it is.
    pub clock: Clock,
}

impl Default for Retention {
    fn default() -> Self {
        Self { default: Keep::default(), rooms: BTreeMap::new(), sweep_every_ms: 3_600_000, clock: Clock::default() }
    }
}

impl Retention {
    /// What a log keeps.
    fn of(&self, room: RoomId, kind: LogKind) -> Option<Keep> {
        let named = self.rooms.get(&room).copied();
        named.or_else(|| (kind == LogKind::Room).then_some(self.default)).filter(Keep::is_limited)
    }

    fn is_limited(&self) -> bool {
        self.default.is_limited() || self.rooms.values().any(Keep::is_limited)
    }

    /// The log is one that may have something to drop.
    fn may_drop(&self, txn: &ReadTransaction, room: RoomId, now: UnixMillis) -> Result<bool, Error> {
        let Some(row) = read::row(txn, room)? else { return Ok(false) };
        let Some(keep) = self.of(room, row.meta.kind) else { return Ok(false) };
        let (state, count) = (&row.state, row.state.head + 1 - row.state.floor);
        if keep.count.is_some_and(|most| count > most) || keep.bytes.is_some_and(|most| state.bytes > most) {
            return Ok(true);
        }
        let Some(age) = keep.age_ms.filter(|_| count > 0) else { return Ok(false) };
        let mut old = false;
        read::chunks(txn, room, &row, None)?.ascending(state.floor, state.floor, |chunk| {
            old = chunk.latest_ms().saturating_add(age) < now;
            Ok(false)
        })?;
        Ok(old)
    }
}

/// Tells the time, in milliseconds since the Unix epoch. By default it stands still at 0, at which nothing is old.
#[derive(Clone)]
pub struct Clock(pub Arc<dyn Fn() -> UnixMillis + Send + Sync>);

impl Default for Clock {
    fn default() -> Self {
        Self(Arc::new(|| 0))
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

impl PartialEq for Clock {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Clock {}

/// What is to be looked at, and what to be dropped.
pub(super) struct Schedule {
    retention: Retention,
    limited: bool,
    /// Rooms to look at.
    candidates: BTreeSet<RoomId>,
    /// Rooms that have something to drop.
    due: Vec<RoomId>,
    /// Where the sweep of all rooms is, if there is one.
    sweep: Option<Bound<RoomId>>,
    /// When the last one began; `None` before the first.
    swept: Option<Instant>,
}

impl Schedule {
    pub(super) fn new(retention: Retention) -> Self {
        let limited = retention.is_limited();
        Self { retention, limited, candidates: BTreeSet::new(), due: Vec::new(), sweep: None, swept: None }
    }

    /// These were applied to.
    pub(super) fn applied<'a>(&mut self, rooms: impl Iterator<Item = &'a RoomId>) {
        if self.limited {
            self.candidates.extend(rooms);
        }
    }

    /// Forgets which rooms were to be looked at.
    pub(super) fn put_aside(&mut self) {
        self.candidates.clear();
        self.due.clear();
    }

    /// How long until there is something to do; `None` when there never is.
    pub(super) fn due_in(&self) -> Option<Duration> {
        if !self.limited {
            return None;
        }
        if !self.due.is_empty() || !self.candidates.is_empty() || self.sweep.is_some() {
            return Some(Duration::ZERO);
        }
        let every = Duration::from_millis(self.retention.sweep_every_ms.into());
        Some(self.swept.map_or(Duration::ZERO, |swept| every.saturating_sub(swept.elapsed())))
    }

    /// Does a bounded part of what there is to do.
    pub(super) fn step(&mut self, database: &Database, observer: &dyn Observer) -> Result<(), Error> {
        if !self.due.is_empty() {
            return self.drop_some(database, observer);
        }
        if self.candidates.is_empty() {
            if self.sweep.is_none() && self.due_in().is_none_or(|wait| !wait.is_zero()) {
                return Ok(());
            }
            let from = self.sweep.take().unwrap_or_else(|| {
                self.swept = Some(clock());
                Bound::Unbounded
            });
            self.next_rooms(database, from)?;
        }
        self.look(database, observer)
    }

    fn next_rooms(&mut self, database: &Database, from: Bound<RoomId>) -> Result<(), Error> {
        let from = match &from {
            Bound::Excluded(room) => Bound::Excluded(&room.0),
            _ => Bound::Unbounded,
        };
        let rooms = database.read(|txn| {
            let logs = txn.open_table(LOGS)?;
            let rooms = logs.range::<&[u8; 16]>((from, Bound::Unbounded))?.take(ROOMS_STEP);
            rooms.map(|entry| Ok(RoomId(*entry?.0.value()))).collect::<Result<Vec<_>, Error>>()
        })?;
        self.sweep = rooms.last().filter(|_| rooms.len() == ROOMS_STEP).map(|last| Bound::Excluded(*last));
        self.candidates.extend(rooms);
        Ok(())
    }

    fn look(&mut self, database: &Database, observer: &dyn Observer) -> Result<(), Error> {
        let now = (self.retention.clock.0)();
        let rooms: Vec<RoomId> = self.candidates.iter().copied().take(ROOMS_STEP).collect();
        let looked = database.read(|txn| {
            let looked = rooms.iter().map(|room| match self.retention.may_drop(txn, *room, now) {
                Err(Error::Storage(error)) => Err(Error::Storage(error)),
                // It was told when it was found.
                other => Ok(other.unwrap_or(false)),
            });
            looked.collect::<Result<Vec<_>, _>>()
        })?;
        let _ = observer;
        for (room, drops) in rooms.into_iter().zip(looked) {
            self.candidates.remove(&room);
            if drops {
                self.due.push(room);
            }
        }
        Ok(())
    }

    fn drop_some(&mut self, database: &Database, observer: &dyn Observer) -> Result<(), Error> {
        let now = (self.retention.clock.0)();
        let (mut done, mut trimmed) = (0, Vec::new());
        let due = &self.due;
        let retention = &self.retention;
        database.write(|txn| {
            let mut apply = Apply::open(txn)?;
            let mut left = CHUNKS_STEP;
            for room in due.iter().rev().take(ROOMS_STEP) {
                if left == 0 {
                    break;
                }
                let before = floor(&apply.row(*room))?;
                let keep = before.and_then(|(kind, floor)| Some((retention.of(*room, kind)?, floor)));
                let Some((keep, before)) = keep else {
                    done += 1;
                    continue;
                };
                let more = match apply.trim(*room, &keep, now, left) {
                    Err(Error::Storage(error)) => return Err(Error::Storage(error)),
                    // Of a damaged log nothing is dropped.
                    other => other.unwrap_or(false),
                };
                if let Some((_, after)) = floor(&apply.row(*room))?.filter(|(_, after)| *after > before) {
                    trimmed.push((*room, after));
                    left = if more { 0 } else { left.saturating_sub(1) };
                }
                done += usize::from(!more);
            }
            Ok(())
        })?;
        self.due.truncate(self.due.len().saturating_sub(done));
        for (room, floor) in trimmed {
            observer.trimmed(room, floor);
        }
        Ok(())
    }
}

/// The kind of a log and its floor; a row that does not decode is not looked at.
fn floor(row: &Result<Option<LogRow>, Error>) -> Result<Option<(LogKind, Seq)>, Error> {
    match row {
        Ok(row) => Ok(row.as_ref().map(|row| (row.meta.kind, row.state.floor))),
        Err(Error::Storage(_)) => Err(Error::Storage(redb::Error::PreviousIo)),
        Err(_) => Ok(None),
    }
}
