//! A room's log, told anew from what this device keeps of each record: what was sealed is another thing now, and with it what is compared with it.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Room, Shown, What};
use crate::{
    client::{
        outbox::Persist,
        records::{Entry, LogRecord, OpenedRecord, encode, log_key},
        timeline::Timeline,
        view::Check,
    },
    core::id::{Digest, Seq, UnixMillis},
};

/// A record of the log that is not shown.
#[derive(Debug)]
pub(super) struct Hidden {
    time_ms: UnixMillis,
    digest: Digest,
    chain: Digest,
    what: Plain,
}

/// What it is, without what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plain {
    Known,
    Invalid,
    Usurped,
    Sealed,
    Foreign,
    Nothing,
}

impl Hidden {
    pub(super) fn new(record: &LogRecord) -> Self {
        let what = match record.entry {
            Entry::Known => Plain::Known,
            Entry::Invalid => Plain::Invalid,
            Entry::Usurped => Plain::Usurped,
            Entry::Sealed => Plain::Sealed,
            Entry::Locked(_) | Entry::Post(_) => Plain::Nothing,
            _ => Plain::Foreign,
        };
        Self { time_ms: record.time_ms, digest: record.digest, chain: record.chain, what }
    }

    fn record(self) -> LogRecord {
        let Self { time_ms, digest, chain, what } = self;
        let entry = match what {
            Plain::Known => Entry::Known,
            Plain::Invalid => Entry::Invalid,
            Plain::Usurped => Entry::Usurped,
            Plain::Sealed => Entry::Sealed,
            Plain::Foreign => Entry::Foreign,
            Plain::Nothing => Entry::Locked(Bytes::new()),
        };
        LogRecord { time_ms, digest, chain, entry }
    }
}

impl Shown {
    fn record(self) -> LogRecord {
        let Self { time_ms, digest, chain, what, .. } = self;
        let entry = match what {
            What::Message(opened) => Entry::Message(*opened),
            What::Sent(sent) => Entry::Sent(*sent),
            What::Change(change, _) => Entry::Change(*change),
            What::Post(post) => Entry::Post(*post),
        };
        LogRecord { time_ms, digest, chain, entry }
    }
}

impl Room {
    /// Whether anything behind `from` and before `until` could not be read.
    pub(super) fn misses(&self, from: Seq, until: Seq) -> bool {
        let range = from.saturating_add(1)..until;
        let hidden = self.hidden.range(range.clone()).any(|(_, hidden)| matches!(hidden.what, Plain::Known | Plain::Sealed));
        hidden || self.shown.range(range).any(|(_, shown)| matches!(shown.what, What::Sent(_)))
    }

    /// The changes of the group behind `from` and before `until`, whatever became of them here, by their digests; and whether anything could not
    /// be read between each and the next.
    pub(super) fn changes_between(&self, from: Seq, until: Seq) -> Vec<(Digest, bool)> {
        let range = from.saturating_add(1)..until;
        let hidden = self.hidden.range(range.clone()).map(|(seq, hidden)| {
            let is_change = matches!(hidden.what, Plain::Known | Plain::Invalid);
            (*seq, (is_change.then_some(hidden.digest), hidden.what == Plain::Sealed))
        });
        let shown = self.shown.range(range).map(|(seq, shown)| {
            let is_change = matches!(shown.what, What::Change(..));
            (*seq, (is_change.then_some(shown.digest), matches!(shown.what, What::Sent(_))))
        });
        let records: BTreeMap<Seq, _> = hidden.chain(shown).collect();
        let mut changes: Vec<(Digest, bool)> = Vec::new();
        for (change, missed) in records.into_values() {
            match (change, changes.last_mut()) {
                (Some(digest), _) => changes.push((digest, false)),
                (None, Some((_, misses))) => *misses |= missed,
                (None, None) => {}
            }
        }
        changes
    }

    /// Tells the log anew, with what was found of it. Returns what is to be kept, the messages that were missed, and where something else is shown.
    pub(super) fn retell(&mut self, found: BTreeMap<Seq, Entry>) -> (Vec<Persist>, Vec<OpenedRecord>, Vec<Seq>) {
        let (shown, hidden) = (core::mem::take(&mut self.shown), core::mem::take(&mut self.hidden));
        let checks: BTreeMap<Seq, Check> = shown.iter().map(|(seq, shown)| (*seq, shown.check)).collect();
        let mut records: BTreeMap<Seq, LogRecord> = hidden.into_iter().map(|(seq, hidden)| (seq, hidden.record())).collect();
        records.extend(shown.into_iter().map(|(seq, shown)| (seq, shown.record())));
        let (mut persist, mut opened, mut others) = (Vec::new(), Vec::new(), Vec::new());
        // What is found now may be what is to be forgotten.
        let first = found.keys().next().copied().unwrap_or(Seq::MAX);
        (self.forgotten, self.unlinked) = (self.forgotten.min(first), self.unlinked.min(first));
        for (seq, entry) in found {
            let missed = |record: &&mut LogRecord| matches!(record.entry, Entry::Known | Entry::Sealed | Entry::Sent(_));
            if let Some(record) = records.get_mut(&seq).filter(missed) {
                if let Entry::Message(message) = &entry {
                    opened.push(message.clone());
                }
                record.entry = entry;
                persist.push((log_key(self.id, seq), Some(encode(&*record))));
                others.push(seq);
            }
        }
        let old = core::mem::replace(&mut self.timeline, Timeline::new(self.id));
        self.record.log.into_iter().for_each(|log| self.timeline.set_log(log));
        for (seq, record) in &records {
            let before = seq.saturating_sub(1);
            if before != self.timeline.head() {
                self.timeline.skip_to(before, old.chain_at(before));
            }
            self.enter_record(record);
        }
        let differs = |(seq, shown): (&Seq, &Shown)| checks.get(seq).is_some_and(|check| *check != shown.check).then_some(*seq);
        others.extend(self.shown.iter().filter_map(differs));
        (persist, opened, others)
    }
}
