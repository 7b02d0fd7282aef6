//! Epochs that this device is not in any more, or never was, and whose secrets it has: from its own copy of a former life of the
//! log, from another device of the same person, or from the room's ladder ([`super::climbing`]).

use std::collections::BTreeMap;

use bytes::Bytes;

use super::climbing::{oldest_first, seated};
use crate::{
    client::{
        records::{ChangeRecord, ClimbRecord, Entry, PastRecord, Who},
        timeline::Reader,
    },
    core::{
        envelope::{Header, Kind},
        handshake,
        id::{Digest, RoomId, Seq},
    },
    seal::epoch::Epoch,
};

/// The past of a room, while it is read.
#[derive(Debug)]
pub(super) struct Past {
    room: RoomId,
    record: PastRecord,
    /// Where the reading stands: the epoch, who was in it, and how many of the changes led there.
    current: Option<Epoch>,
    roster: BTreeMap<u32, Who>,
    taken: usize,
}

impl Past {
    pub(super) const fn new(room: RoomId, record: PastRecord) -> Self {
        Self { room, record, current: None, roster: BTreeMap::new(), taken: 0 }
    }

    /// What precedes `until`, of which this device knows nothing more.
    pub(super) const fn unknown(room: RoomId, until: Seq) -> Self {
        Self::new(room, PastRecord { format: 2, until, changes: Vec::new(), climb: None })
    }

    /// Whether another device of this person has handed over what opens the time before.
    pub(super) const fn is_handed_over(&self) -> bool {
        self.record.climb.is_none() && !self.record.changes.is_empty()
    }

    pub(super) const fn record(&self) -> &PastRecord {
        &self.record
    }

    /// What was found so far, newest first, and what is looked at.
    pub(super) const fn climb_mut(&mut self) -> (&mut Changes, &mut Option<ClimbRecord>) {
        (&mut self.record.changes, &mut self.record.climb)
    }

    /// Nothing more is found.
    pub(super) fn settle(&mut self) {
        self.record.climb = None;
        oldest_first(&mut self.record.changes);
    }

    /// Names the seq with which this device came in: what precedes it is the past.
    pub(super) const fn ends_at(&mut self, seq: Seq) {
        self.record.until = seq;
    }

    /// Whether the record at `seq` belongs to it.
    pub(super) const fn covers(&self, seq: Seq) -> bool {
        seq < self.record.until
    }

    /// A change of the group, if it is one that this device, or its other one, took.
    pub(super) fn change(&mut self, envelope: &Bytes) -> Option<ChangeRecord> {
        let digest = handshake::entry(envelope);
        let at = self.record.changes.iter().position(|(known, _)| *known == digest)?;
        if at >= self.taken {
            self.go_to(at);
        }
        self.record.changes.get(at).map(|(_, change)| change.clone())
    }

    /// The group is as it was after this change.
    fn go_to(&mut self, at: usize) {
        let between = self.record.changes.get(self.taken..=at).unwrap_or_default();
        for (_, change) in between {
            seated(&mut self.roster, change);
        }
        self.current = between.last().and_then(|(_, change)| change.epoch_of(self.room));
        self.taken = at.saturating_add(1);
    }

    /// A message.
    pub(super) fn message(&mut self, header: Option<&Header>, envelope: &Bytes) -> Entry {
        let Some(header) = header.filter(|header| header.kind == Kind::Room) else { return Entry::Foreign };
        // The change that led to its epoch may not be in the log any more: forwards, and never back, since who was put out must
        // not write behind that.
        let is_later = self.current.as_ref().is_none_or(|current| current.number < header.epoch);
        let later = self.record.changes.iter().skip(self.taken).position(|(_, change)| change.epoch == header.epoch);
        if let Some(at) = later.filter(|_| is_later) {
            self.go_to(self.taken.saturating_add(at));
        }
        let Some(epoch) = self.current.as_ref().filter(|epoch| epoch.number == header.epoch) else { return Entry::Sealed };
        Reader { epoch, roster: &self.roster }.open(envelope).map_or(Entry::Foreign, Entry::Message)
    }
}

impl ChangeRecord {
    /// The epoch that it began, if this device was in it and keeps it.
    pub(super) fn epoch_of(&self, room: RoomId) -> Option<Epoch> {
        let (authenticator, secrets) = self.begun.clone()?;
        Some(Epoch::new(room, self.epoch, authenticator, secrets?))
    }
}

/// Changes by the digests of their records.
pub(super) type Changes = Vec<(Digest, ChangeRecord)>;
