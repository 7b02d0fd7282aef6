//! The changes of a part of the log that this device missed, followed with the keys that a member gave, and what opens between them.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::place::{names_but, seats};
use crate::{
    client::{
        ClientRandom,
        records::{BackRecord, ChangeRecord, Entry, GapRecord, Who},
        timeline::Reader,
    },
    core::{
        chain,
        envelope::{Header, Kind, Suite},
        handshake,
        id::{DeviceKey, Digest, Seq},
    },
    group::{Applied, History, Onlooker, Record, Roster},
    seal::{epoch::EpochSecrets, returning::EpochKeys},
};

/// So many records are fetched at once.
pub(super) const RECORDS_MAX: u32 = 64;

/// A gap, while it is read.
#[derive(Debug)]
pub(super) struct Reading {
    /// Names the page that was asked for.
    pub(super) request: u32,
    /// The next record, and how many are asked for.
    pub(super) next: Seq,
    pub(super) count: u32,
    /// The chain value before it.
    pub(super) chain: Digest,
    onlooker: Onlooker,
    roster: BTreeMap<u32, Who>,
    /// How many of the epochs that a member gave are behind.
    taken: usize,
    /// This device was taken out here.
    is_out: bool,
    /// Of this epoch something opened; and what did not.
    opened: bool,
    doubtful: Vec<Seq>,
    pub(super) found: BTreeMap<Seq, Entry>,
}

/// What came of a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    On,
    /// All of it is read, as far as this device was in the group.
    Done,
    /// What the member gave leads nowhere.
    Wrong,
    /// The server showed another history before.
    Contradicts,
}

fn seated(roster: Roster) -> BTreeMap<u32, Who> {
    roster.into_iter().map(|(leaf, place)| (leaf, Who { device: place.device, user: place.user })).collect()
}

impl Reading {
    /// From the record behind `from` on.
    pub(super) fn new(from: Seq, gap: &GapRecord, request: u32) -> Option<Self> {
        let onlooker = Onlooker::restore(&gap.onlooker).ok()?;
        let roster = seated(onlooker.roster());
        let (next, chain) = (from.saturating_add(1), gap.chain);
        Some(Self {
            request,
            next,
            count: RECORDS_MAX,
            chain,
            onlooker,
            roster,
            taken: 0,
            is_out: false,
            opened: false,
            doubtful: Vec::new(),
            found: BTreeMap::new(),
        })
    }

    /// Takes the next record of the log.
    pub(super) fn take(&mut self, gap: &GapRecord, me: DeviceKey, envelope: &Bytes, rng: &mut ClientRandom) -> Step {
        let Some(back) = gap.back else { return Step::Wrong };
        if self.next == back.seq {
            return self.meet(gap, &back, envelope, rng);
        }
        let (seq, digest) = (self.next, handshake::entry(envelope));
        let room = self.onlooker.epoch().room;
        self.chain = chain::next_hashed(room, self.chain, seq, digest);
        self.next = seq.saturating_add(1);
        match Header::parse(envelope) {
            Ok(header) if header.kind == Kind::Handshake && !self.is_out => {
                self.change(gap.keys.get(self.taken), (seq, digest), &header, me, envelope, rng)
            }
            Ok(header) if header.kind == Kind::Room && header.epoch == self.onlooker.epoch().number && !self.is_out => {
                let reader = Reader { epoch: self.onlooker.epoch(), roster: &self.roster };
                match reader.open(envelope) {
                    Some(opened) => {
                        self.opened = true;
                        self.found.insert(seq, Entry::Message(opened));
                    }
                    None => self.doubtful.push(seq),
                }
                Step::On
            }
            _ => Step::On,
        }
    }

    /// A record that the server took for a change: the one that the member names, or one that everybody has skipped.
    fn change(
        &mut self,
        keys: Option<&EpochKeys>,
        (seq, digest): (Seq, Digest),
        header: &Header,
        me: DeviceKey,
        envelope: &Bytes,
        rng: &mut ClientRandom,
    ) -> Step {
        if keys.is_some_and(|keys| keys.record != digest) {
            self.found.insert(seq, Entry::Invalid);
            return Step::On;
        }
        let begun = keys.map(|keys| (keys.authenticator, keys.secrets.clone()));
        let history = self.onlooker.policy().history();
        let followed = Record::decode(envelope).ok().and_then(|record| self.onlooker.follow(&record, begun.clone(), rng).ok());
        let change = followed.map(|applied| self.told(&applied, begun.clone(), history));
        match (change, begun) {
            (Some(change), None) if !change.took_out(me) => return Step::Wrong,
            (Some(change), _) => {
                // Another's member commit opens with the epoch's keys, so that these are right, and what did not open is nobody's.
                if self.opened || header.suite == Suite::X25519Psk || self.taken == 0 {
                    self.found.extend(self.doubtful.iter().map(|seq| (*seq, Entry::Foreign)));
                }
                self.doubtful.clear();
                (self.opened, self.is_out) = (false, change.took_out(me));
                self.taken = self.taken.saturating_add(1);
                self.found.insert(seq, Entry::Change(change));
            }
            (None, Some(_)) => return Step::Wrong,
            (None, None) => drop(self.found.insert(seq, Entry::Invalid)),
        }
        Step::On
    }

    fn told(&mut self, applied: &Applied, begun: Option<(Digest, EpochSecrets)>, was: History) -> ChangeRecord {
        let (roster, policy) = (self.onlooker.roster(), self.onlooker.policy());
        let names = roster.iter().map(|(leaf, place)| (*leaf, place.name.clone())).collect();
        let before = core::mem::replace(&mut self.roster, seated(roster));
        ChangeRecord {
            begun: begun.map(|(authenticator, secrets)| (authenticator, Some(secrets))),
            seats: seats(&before, &self.roster),
            names: names_but(&before, &self.roster, &names),
            title: policy.title().to_owned(),
            history: Some(policy.history()).filter(|history| *history != was),
            ..ChangeRecord::told(applied, &before)
        }
    }

    /// The record by which this device came in again: everything before has to lead there.
    fn meet(&mut self, gap: &GapRecord, back: &BackRecord, envelope: &Bytes, rng: &mut ClientRandom) -> Step {
        if self.chain != back.chain {
            return Step::Contradicts;
        }
        if self.is_out {
            return Step::Done;
        }
        let is_next = self.taken == gap.keys.len() && self.onlooker.epoch().number.saturating_add(1) == back.epoch;
        let record = Record::decode(envelope).ok().filter(|_| is_next);
        let followed = record.is_some_and(|record| self.onlooker.follow(&record, None, rng).is_ok());
        if followed && self.onlooker.context() == Some(back.context) { Step::Done } else { Step::Wrong }
    }
}
