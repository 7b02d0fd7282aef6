//! Epochs that this device is not in any more, or never was, and whose secrets it has: from its own copy of a former life of the
//! log, or from another device of the same person.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    client::{
        records::{ChangeRecord, Entry, PastRecord, Who},
        timeline::Reader,
    },
    core::{
        chain,
        envelope::{Header, Kind},
        id::{Digest, RoomId, Seq},
    },
    seal::epoch::Epoch,
};

/// The past of a room, while it is read.
#[derive(Debug)]
pub(super) struct Past {
    room: RoomId,
    record: PastRecord,
    /// Where the reading stands: the epoch, and who was in it.
    current: Option<Epoch>,
    roster: BTreeMap<u32, Who>,
}

impl Past {
    pub(super) const fn new(room: RoomId, record: PastRecord) -> Self {
        Self { room, record, current: None, roster: BTreeMap::new() }
    }

    /// What precedes `until`, of which this device knows nothing more.
    pub(super) const fn unknown(room: RoomId, until: Seq) -> Self {
        Self::new(room, PastRecord { format: 1, until, changes: Vec::new() })
    }

    pub(super) const fn record(&self) -> &PastRecord {
        &self.record
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
        let digest = chain::digest(envelope);
        let (_, change) = self.record.changes.iter().find(|(known, _)| *known == digest)?;
        self.current = Some(change.epoch_of(self.room));
        for (leaf, who) in &change.seats {
            match who {
                Some(who) => drop(self.roster.insert(*leaf, *who)),
                None => drop(self.roster.remove(leaf)),
            }
        }
        Some(change.clone())
    }

    /// A message.
    pub(super) fn message(&self, header: Option<&Header>, envelope: &Bytes) -> Entry {
        let Some(header) = header.filter(|header| header.kind == Kind::Room) else { return Entry::Foreign };
        let Some(epoch) = self.current.as_ref().filter(|epoch| epoch.number == header.epoch) else { return Entry::Sealed };
        Reader { epoch, roster: &self.roster }.open(envelope).map_or(Entry::Foreign, Entry::Message)
    }
}

impl ChangeRecord {
    /// The epoch that it began.
    fn epoch_of(&self, room: RoomId) -> Epoch {
        Epoch::new(room, self.epoch, self.authenticator, self.secrets.clone())
    }
}

/// Changes by the digests of their records.
pub(super) type Changes = Vec<(Digest, ChangeRecord)>;
