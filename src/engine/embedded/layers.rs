//! The memtables that writer, readers and applier share.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    Health,
    memtable::{Block, Change, Handle, Memtable, RoomTail},
};
use crate::{
    core::{
        id::{AccessKey, DeviceKey, Digest, LogId, RoomId, Seq},
        log::{LogMeta, LogState},
    },
    engine::wal::Lsn,
};

/// How often the applier is told that nothing comes: what is let go at first, the allocator gives to the system later.
const QUIETS: u32 = 4;
/// A quiet store keeps a table of fewer bytes until it is old: applying costs more than that memory is worth.
const QUIET_BYTES_MIN: usize = 1 << 20;
/// How often a writer that is slowed down looks how far applying has come.
const PACE: Duration = Duration::from_millis(1);

/// The active table and the frozen one.
pub(super) struct Layers {
    tables: Mutex<Tables>,
    changed: Condvar,
    /// Bytes of the frozen table's rows that were made.
    progress: Arc<AtomicU64>,
}

struct Tables {
    active: Memtable,
    /// When the active table got its oldest entry.
    since: Option<Instant>,
    /// When the last entry came.
    written: Instant,
    /// How often the applier was told so since.
    quiet: u32,
    frozen: Option<Arc<Memtable>>,
    /// How many tables were frozen, and how many of them were applied.
    freezes: u64,
    applies: u64,
    closing: bool,
    /// Whether the applier has something else to do.
    chore: bool,
}

/// Which life of its log a room has, as far as the tables know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// The tables do not know the room: redb decides.
    Unknown,
    /// It was deleted.
    Gone,
    /// This one.
    Is(LogId),
}

/// Which records of a tail are wanted.
#[derive(Debug, Clone, Copy)]
pub(super) enum Want {
    /// None: only how the log stands.
    State,
    /// All.
    All,
    /// From this seq on, until those after it exceed so many envelope bytes.
    From { seq: Seq, bytes_max: u64 },
    /// Those before this seq, newest first, until so many records or envelope bytes are exceeded.
    Before { seq: Seq, count_max: usize, bytes_max: u64 },
}

/// What the tables have of one room.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) life: Life,
    pub(super) made: Option<LogMeta>,
    /// The newest seq and its chain value.
    pub(super) head: Option<(Seq, Digest)>,
    /// The seq of the newest handshake record; 0 when they have none.
    handshake: Seq,
    /// The access keys that handshake records brought, each with its record, ascending; redb may have some of them.
    keys: Vec<(Seq, AccessKey)>,
    /// What was wanted, ascending and without gap.
    pub(super) records: Vec<Handle>,
    /// For each table with records: its first seq, and its envelope bytes.
    parts: Vec<(Seq, u64)>,
}

impl Tail {
    /// Whether what is unapplied begins right after `head`.
    pub(super) fn follows(&self, head: Seq) -> bool {
        let oldest = self.parts.iter().map(|(first, _)| *first).filter(|first| *first > head).min();
        oldest.is_none_or(|first| first == head + 1)
    }

    /// The access keys that records after `head` brought.
    pub(super) fn keys_after(&self, head: Seq) -> impl Iterator<Item = (Seq, AccessKey)> {
        self.keys.iter().copied().filter(move |(seq, _)| *seq > head)
    }

    /// How the log stands, given how it stands in redb.
    pub(super) fn state(&self, base: LogState) -> LogState {
        let unapplied = |(first, _): &&(Seq, u64)| *first > base.head;
        let bytes = base.bytes + self.parts.iter().filter(unapplied).map(|(_, bytes)| bytes).sum::<u64>();
        let handshake = self.handshake.max(base.handshake);
        match self.head {
            Some((head, chain)) if head > base.head => LogState { head, chain, bytes, handshake, ..base },
            _ => base,
        }
    }
}

impl Layers {
    pub(super) fn new(active: Memtable) -> Self {
        let written = super::clock();
        let since = (!active.is_empty()).then_some(written);
        let (frozen, quiet, freezes, applies, closing, chore) = (None, 0, 0, 0, false, false);
        let tables = Tables { active, since, written, quiet, frozen, freezes, applies, closing, chore };
        Self { tables: Mutex::new(tables), changed: Condvar::new(), progress: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        // No code panics while it holds the lock half-way through a change.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows durable entries, whose records lie in `block`, to readers, and has `tell` tell of them at once: who has heard of them
    /// and reads waits here until they are shown.
    pub(super) fn insert(&self, block: &Arc<Block>, changes: impl IntoIterator<Item = (Lsn, Change)>, tell: impl FnOnce()) {
        let mut tables = self.lock();
        tell();
        tables.written = super::clock();
        tables.since = tables.since.or(Some(tables.written));
        let wakes = std::mem::take(&mut tables.quiet) == QUIETS;
        for (lsn, change) in changes {
            tables.active.change(lsn, change, block);
        }
        drop(tables);
        if wakes {
            // The applier sleeps until somebody comes: from now on the table has an age.
            self.changed.notify_all();
        }
    }

    /// After each batch: freezes the active table when it has `bytes_max`. Has its writer wait as long as it fills the second half faster than the
    /// frozen one is applied: so all wait a little, and nobody for a whole table. While applying fails nobody waits; then the log's
    /// own limit holds. How long it waited, if it did.
    pub(super) fn make_room(&self, bytes_max: usize, health: &Health) -> Option<Duration> {
        let mut tables = self.lock();
        let mut since = None;
        while let Some(frozen) = &tables.frozen
            && !tables.closing
            && health.can_apply()
        {
            let (filled, made) = (tables.active.bytes as u64, self.progress.load(Ordering::Relaxed));
            if filled < bytes_max as u64 && !is_ahead(filled, bytes_max as u64, made, frozen.bytes as u64) {
                break;
            }
            since.get_or_insert_with(super::clock);
            tables = self.changed.wait_timeout(tables, PACE).unwrap_or_else(PoisonError::into_inner).0;
        }
        if tables.frozen.is_none() && tables.active.bytes >= bytes_max {
            tables.freeze();
            drop(tables);
            self.changed.notify_all();
        }
        since.map(|since| since.elapsed())
    }

    /// Where whoever applies the frozen table adds the bytes of each row that is made. It begins at 0.
    pub(super) fn progress(&self) -> Arc<AtomicU64> {
        self.progress.store(0, Ordering::Relaxed);
        Arc::clone(&self.progress)
    }

    /// Waits until everything is applied, or cannot be.
    pub(super) fn drain(&self, health: &Health) {
        let mut tables = self.lock();
        while (tables.frozen.is_some() || !tables.active.is_empty()) && !tables.closing && health.can_apply() {
            if tables.frozen.is_none() {
                tables.freeze();
                self.changed.notify_all();
            }
            tables = self.changed.wait(tables).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Has all that is there now applied, and waits for that; what comes meanwhile is not waited for. Whether it is.
    pub(super) fn checkpoint(&self, health: &Health) -> bool {
        let mut tables = self.lock();
        let wanted = tables.freezes + u64::from(!tables.active.is_empty());
        while tables.applies < wanted {
            if !health.can_apply() || (tables.closing && !health.can_log()) {
                return false;
            }
            if tables.frozen.is_none() && tables.freezes < wanted {
                tables.freeze();
                self.changed.notify_all();
            }
            tables = self.changed.wait(tables).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    /// Waits until there is a frozen table, and freezes the active one when it is older than `age`, when it holds much and nothing
    /// has come for as long as `quiet`, or on closing. With `patience`, it waits no longer than that.
    pub(super) fn next(&self, age: Duration, quiet: Duration, patience: Option<Duration>) -> Next {
        let begun = super::clock();
        let mut tables = self.lock();
        loop {
            if let Some(frozen) = &tables.frozen {
                return Next::Apply(Arc::clone(frozen));
            }
            let old = tables.since.map(|since| since.elapsed());
            let until_quiet = (quiet * (tables.quiet + 1)).saturating_sub(tables.written.elapsed());
            let is_silent = tables.quiet < QUIETS && until_quiet.is_zero();
            let is_due = old.is_some_and(|old| old >= age) || (is_silent && tables.active.bytes >= QUIET_BYTES_MIN);
            if tables.closing || is_due {
                match tables.since {
                    Some(_) => tables.freeze(),
                    None => return Next::Closed,
                }
                continue;
            }
            let left = patience.map(|patience| patience.saturating_sub(begun.elapsed()));
            if std::mem::take(&mut tables.chore) || left.is_some_and(|left| left.is_zero()) {
                return Next::Idle;
            }
            if is_silent {
                tables.quiet += 1;
                return Next::Quiet { last: tables.quiet == QUIETS };
            }
            let until_old = old.map(|old| age.saturating_sub(old));
            let until_quiet = (tables.quiet < QUIETS).then_some(until_quiet);
            let wait = [until_old, until_quiet, left].into_iter().flatten().min().unwrap_or(Duration::from_secs(3600));
            tables = self.changed.wait_timeout(tables, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits a while, less when the tables are closed. Whether they are.
    pub(super) fn pause(&self, duration: Duration) -> bool {
        let tables = self.lock();
        let paused = self.changed.wait_timeout_while(tables, duration, |tables| !tables.closing);
        paused.unwrap_or_else(PoisonError::into_inner).0.closing
    }

    /// The frozen table was applied.
    pub(super) fn applied(&self) {
        let mut tables = self.lock();
        tables.frozen = None;
        tables.applies += 1;
        drop(tables);
        self.changed.notify_all();
    }

    /// Has the applier look after what else there is to do.
    pub(super) fn chore(&self) {
        self.lock().chore = true;
        self.changed.notify_all();
    }

    /// Applying failed: who waits for it looks again.
    pub(super) fn wake(&self) {
        drop(self.lock());
        self.changed.notify_all();
    }

    /// No more entries come: what there is is applied.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.changed.notify_all();
    }

    /// Memory of both tables, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let tables = self.lock();
        tables.active.bytes + tables.frozen.as_ref().map_or(0, |frozen| frozen.bytes)
    }

    /// The key packages of `device`, if the tables know of them.
    pub(super) fn packages(&self, device: DeviceKey) -> Option<Bytes> {
        let tables = self.lock();
        let frozen = || tables.frozen.as_ref().and_then(|frozen| frozen.packages.get(&device));
        tables.active.packages.get(&device).or_else(frozen).cloned()
    }

    /// What the tables have of `room`.
    pub(super) fn tail(&self, room: RoomId, want: Want) -> Tail {
        let tables = self.lock();
        let newest_first = [tables.active.rooms.get(&room), tables.frozen.as_ref().and_then(|frozen| frozen.rooms.get(&room))];
        gather(newest_first, want)
    }
}

/// What the applier does next.
pub(super) enum Next {
    Apply(Arc<Memtable>),
    /// What there is to do besides.
    Idle,
    /// Nothing has come for a while, and what there was of any size is applied. A few times, and then no more.
    Quiet {
        last: bool,
    },
    Closed,
}

impl Tables {
    fn freeze(&mut self) {
        self.since = None;
        if !self.active.is_empty() {
            self.frozen = Some(Arc::new(std::mem::take(&mut self.active)));
            self.freezes += 1;
        }
    }
}

/// Whether a table with `filled` of `bytes_max` bytes is in the half that is filled as the one before it is applied, and further than that one,
/// of whose `all` bytes so many were `made` into rows.
fn is_ahead(filled: u64, bytes_max: u64, made: u64, all: u64) -> bool {
    let [filled, bytes_max, made, all] = [filled, bytes_max, made.min(all), all.max(1)].map(u128::from);
    // Of a table's bytes most are rows.
    2 * filled * all > bytes_max * (all + made)
}

fn gather(newest_first: [Option<&RoomTail>; 2], want: Want) -> Tail {
    let (records, parts, keys) = (Vec::new(), Vec::new(), Vec::new());
    let mut tail = Tail { life: Life::Unknown, made: None, head: None, handshake: 0, keys, records, parts };
    let mut left = Left::new(want);
    let mut wanted: Vec<&[Handle]> = Vec::new();
    for part in newest_first.into_iter().flatten() {
        match (tail.life, part.log) {
            (Life::Unknown, None) => {
                tail.life = Life::Gone;
                break;
            }
            (Life::Unknown, Some(log)) => tail.life = Life::Is(log),
            (Life::Is(log), other) if other == Some(log) => {}
            _ => break,
        }
        tail.head = tail.head.or_else(|| part.head());
        tail.handshake = tail.handshake.max(part.handshake);
        tail.keys.splice(0..0, part.keys.iter().copied());
        if let Some(first) = part.records.first() {
            tail.parts.push((first.seq(), part.envelope_bytes));
            wanted.push(left.select(part));
        }
        if part.made.is_some() {
            tail.made.clone_from(&part.made);
            break;
        }
    }
    let oldest_first = wanted.into_iter().rev().flatten();
    tail.records = match want {
        Want::From { seq, bytes_max } => {
            let mut bytes = 0;
            let fits = |record: &&Handle| {
                let fits = bytes <= bytes_max;
                // The first one is there for its chain value.
                bytes += if record.seq() > seq { record.envelope_len() as u64 } else { 0 };
                fits
            };
            oldest_first.take_while(fits).cloned().collect()
        }
        _ => oldest_first.cloned().collect(),
    };
    tail
}

/// What is still wanted, from the newest table to the oldest.
struct Left {
    want: Want,
    count: usize,
    bytes: u64,
}

impl Left {
    const fn new(want: Want) -> Self {
        let (count, bytes) = match want {
            Want::Before { count_max, bytes_max, .. } => (count_max, bytes_max),
            _ => (0, 0),
        };
        // One more than asked: its chain value is the one before the first.
        Self { want, count: count.saturating_add(1), bytes }
    }

    fn select<'a>(&mut self, part: &'a RoomTail) -> &'a [Handle] {
        match self.want {
            Want::State => &[],
            Want::All => &part.records,
            Want::From { seq, .. } => part.after(seq.saturating_sub(1)),
            Want::Before { seq, .. } => {
                let newer = part.after(seq.saturating_sub(1)).len();
                let older = part.records.get(..part.records.len() - newer).unwrap_or_default();
                let mut from = older.len();
                for record in older.iter().rev() {
                    if self.count == 0 {
                        break;
                    }
                    self.count -= 1;
                    from -= 1;
                    let len = record.envelope_len() as u64;
                    match self.bytes.checked_sub(len) {
                        Some(bytes) => self.bytes = bytes,
                        // This one is too much, or the only one: the one before it gives its chain value.
                        None => (self.bytes, self.count) = (0, self.count.min(1)),
                    }
                }
                older.get(from..).unwrap_or_default()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const SOON: Duration = Duration::from_millis(1);

    fn put(layers: &Layers, lsn: Lsn, len: usize) {
        let packages = Change::Packages { device: DeviceKey([1; 32]), packages: Bytes::from(vec![7; len]) };
        layers.insert(&Arc::default(), [(lsn, packages)], || {});
    }

    #[test]
    fn who_has_heard_of_an_entry_is_shown_it() {
        let (layers, device) = (Layers::new(Memtable::default()), DeviceKey([1; 32]));
        let packages = Change::Packages { device, packages: Bytes::from_static(b"new") };
        let (heard, shown) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            layers.insert(&Arc::default(), [(1, packages)], || {
                scope.spawn(|| heard.send(layers.packages(device)).unwrap());
                // Long enough for a reader who does not wait.
                shown.recv_timeout(20 * SOON).unwrap_err();
            });
            assert_eq!(shown.recv().unwrap().as_deref(), Some(b"new".as_slice()));
        });
    }

    #[test]
    fn what_is_much_is_applied_when_nothing_more_comes() {
        let layers = Layers::new(Memtable::default());
        put(&layers, 1, 100);
        for told in 1..=QUIETS {
            let next = layers.next(HOUR, SOON, None);
            assert!(matches!(next, Next::Quiet { last } if last == (told == QUIETS)), "little is kept until it is old");
        }
        assert!(matches!(layers.next(HOUR, SOON, Some(10 * SOON)), Next::Idle), "that was told often enough");
        put(&layers, 2, QUIET_BYTES_MIN);
        let Next::Apply(table) = layers.next(HOUR, SOON, None) else { panic!("much is applied") };
        assert_eq!(table.last, 2);
        layers.applied();
        assert!(matches!(layers.next(HOUR, SOON, None), Next::Quiet { last: false }), "it is quiet anew");
    }

    #[test]
    fn the_second_half_is_filled_as_the_table_before_it_is_applied() {
        for (made, up_to) in [(0, 50), (500, 75), (900, 95), (1000, 100), (9000, 100)] {
            assert!(!is_ahead(up_to, 100, made, 1000) && is_ahead(up_to + 1, 100, made, 1000), "{made}");
        }
        assert!(!is_ahead(50, 100, 0, 0) && is_ahead(51, 100, 0, 0));
        let much = 1 << 60;
        assert!(is_ahead(much, much, 0, much) && !is_ahead(0, 0, 0, 0));
    }

    #[test]
    fn a_writer_that_was_slowed_down_goes_on_when_the_table_is_applied_or_cannot_be() {
        let layers = Layers::new(Memtable::default());
        let health = Health::new(std::collections::HashSet::new());
        let frozen = |layers: &Layers| layers.lock().frozen.as_ref().map(|frozen| frozen.last);
        put(&layers, 1, 1000);
        assert!(layers.make_room(1 << 20, &health).is_none() && frozen(&layers).is_none(), "there is room");
        assert!(layers.make_room(1000, &health).is_none() && frozen(&layers) == Some(1), "it is full, and nobody waits");
        layers.progress();
        put(&layers, 2, 1000);
        assert!(layers.make_room(1 << 20, &health).is_none());
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| layers.make_room(1500, &health));
            while !writer.is_finished() {
                // It may look before or after.
                layers.progress().store(u64::MAX, Ordering::Relaxed);
            }
            writer.join().unwrap();
        });
        assert_eq!(frozen(&layers), Some(1), "there is room as far as it is applied");
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| layers.make_room(1000, &health));
            layers.applied();
            writer.join().unwrap();
        });
        assert_eq!(frozen(&layers), Some(2), "it was full, and the one before is applied");
        put(&layers, 3, 1000);
        health.applying(false);
        assert!(layers.make_room(1000, &health).is_none() && frozen(&layers) == Some(2));
    }

    #[test]
    fn an_applier_that_sleeps_hears_of_what_comes() {
        let layers = Layers::new(Memtable::default());
        for _ in 0..QUIETS {
            assert!(matches!(layers.next(SOON, SOON, None), Next::Quiet { .. }));
        }
        // It would sleep for an hour.
        std::thread::scope(|scope| {
            let applier = scope.spawn(|| layers.next(SOON, HOUR, None));
            put(&layers, 1, 100);
            assert!(matches!(applier.join().unwrap(), Next::Apply(_)), "it is old soon");
        });
    }
}
