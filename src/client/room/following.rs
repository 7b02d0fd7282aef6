//! The changes of a part of the log that this device missed, followed with the keys that a member gave, and what opens between them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::place::{names_but, seats};
use crate::{
    client::{
        ClientRandom,
        records::{BackRecord, ChangeRecord, Entry, GapRecord, OpenedRecord, Who},
        timeline::Reader,
    },
    core::{
        chain,
        envelope::{Header, Kind, Suite},
        handshake,
        id::{DeviceKey, Digest, RoomId, Seq},
    },
    group::{Applied, History, Onlooker, Record, Roster},
    seal::{
        epoch::{Epoch, EpochSecrets},
        message::open,
        returning::EpochKeys,
    },
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
    /// There are as many changes as epochs: each of them began one, and nobody has to say which.
    plain: bool,
    /// Who was in the group that this device came back to, by leaf.
    there: Vec<(u32, Who)>,
    /// What is read lies behind an epoch that is not known.
    beyond: Option<Beyond>,
    /// Changes were followed.
    follows: bool,
    /// This device was taken out here.
    is_out: bool,
    /// Of this epoch something opened; and what did not.
    opened: bool,
    doubtful: Vec<Seq>,
    pub(super) found: BTreeMap<Seq, Entry>,
}

/// How far the group could be followed: what a gap begins with from then on.
#[derive(Debug)]
pub(super) struct Reached {
    pub(super) at: Seq,
    pub(super) chain: Digest,
    pub(super) epoch: u64,
    pub(super) onlooker: Bytes,
}

/// Where the group cannot be followed any more.
#[derive(Debug)]
struct Beyond {
    reached: Reached,
    /// The epoch that the log is in, and its keys, if the member has them.
    number: u64,
    epoch: Option<Epoch>,
    /// Who may have written there, and in which leaf they were seen.
    known: Vec<(u32, Who)>,
}

/// What came of a record.
#[derive(Debug)]
pub(super) enum Step {
    On,
    /// All of it is read, as far as this device was in the group.
    Done,
    /// It is read as far as what the member gave leads.
    Part(Reached),
    /// What the member gave leads nowhere.
    Wrong,
    /// The server showed another history before.
    Contradicts,
}

fn seated(roster: Roster) -> BTreeMap<u32, Who> {
    roster.into_iter().map(|(leaf, place)| (leaf, Who { device: place.device, user: place.user })).collect()
}

impl Beyond {
    /// A message there: of an epoch whose keys the member has, signed by a device that was in the group before or is in it afterwards. Who signs with an
    /// epoch's keys was in it, unless one who was has helped.
    fn open(&self, leaf: u32, envelope: &Bytes) -> Option<OpenedRecord> {
        let epoch = self.epoch.as_ref().filter(|epoch| open(epoch, envelope).is_ok())?;
        let (there, elsewhere): (Vec<_>, Vec<_>) = self.known.iter().partition(|(at, _)| *at == leaf);
        let signed = |(_, who): (u32, Who)| Reader { epoch, roster: &BTreeMap::from([(leaf, who)]) }.open(envelope);
        there.into_iter().chain(elsewhere).find_map(signed)
    }
}

impl Reading {
    /// From where the gap begins. `plain`: there are as many changes in it as epochs. `there`: who was in the group that this device came back to.
    pub(super) fn new(gap: &GapRecord, request: u32, plain: bool, there: Vec<(u32, Who)>) -> Option<Self> {
        let onlooker = Onlooker::restore(&gap.onlooker).ok()?;
        let roster = seated(onlooker.roster());
        let (next, chain) = (gap.at.saturating_add(1), gap.chain);
        Some(Self {
            request,
            next,
            count: RECORDS_MAX,
            chain,
            onlooker,
            roster,
            plain,
            there,
            beyond: None,
            follows: false,
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
            return self.meet(&back, envelope, rng);
        }
        let before = (self.next.saturating_sub(1), self.chain);
        let (seq, digest) = (self.next, handshake::entry(envelope));
        let room = self.onlooker.epoch().room;
        self.chain = chain::next_hashed(room, self.chain, seq, digest);
        self.next = seq.saturating_add(1);
        match Header::parse(envelope) {
            Ok(header) if header.kind == Kind::Handshake && self.goes_on() => {
                let number = self.number().saturating_add(1);
                let keys = gap.keys.iter().find(|keys| keys.epoch == number);
                if keys.is_some_and(|keys| keys.record != digest) {
                    // Everybody has skipped it, by the member's word; where nobody has skipped anything, the word is wrong.
                    self.found.insert(seq, Entry::Invalid);
                    return if self.plain { Step::Wrong } else { Step::On };
                }
                match &mut self.beyond {
                    Some(beyond) => {
                        beyond.number = number;
                        beyond.epoch = keys.map(|keys| epoch_of(room, keys));
                        Step::On
                    }
                    None => self.change(keys, before, &header, me, envelope, rng),
                }
            }
            Ok(header) if header.kind == Kind::Room && header.epoch == self.number() && self.goes_on() => {
                let opened = match &self.beyond {
                    None => Reader { epoch: self.onlooker.epoch(), roster: &self.roster }.open(envelope),
                    Some(beyond) => beyond.open(header.leaf, envelope),
                };
                match opened {
                    Some(opened) => {
                        self.opened = true;
                        self.found.insert(seq, Entry::Message(opened));
                    }
                    None if self.beyond.is_none() => self.doubtful.push(seq),
                    None => {}
                }
                Step::On
            }
            _ => Step::On,
        }
    }

    /// Whether anything that follows may be read. Behind its being taken out, this device may have been let in again.
    const fn goes_on(&self) -> bool {
        !self.is_out || self.beyond.is_some()
    }

    /// The epoch that the log is in.
    fn number(&self) -> u64 {
        self.beyond.as_ref().map_or_else(|| self.onlooker.epoch().number, |beyond| beyond.number)
    }

    /// A record that the server took for a change: the one that the member names, or one that everybody has skipped.
    fn change(
        &mut self,
        keys: Option<&EpochKeys>,
        before: (Seq, Digest),
        header: &Header,
        me: DeviceKey,
        envelope: &Bytes,
        rng: &mut ClientRandom,
    ) -> Step {
        let seq = before.0.saturating_add(1);
        let begun = keys.map(|keys| (keys.authenticator, keys.secrets.clone()));
        let history = self.onlooker.policy().history();
        let reached = (self.plain && begun.is_none()).then(|| self.reached(before));
        let followed = Record::decode(envelope).ok().and_then(|record| self.onlooker.follow(&record, begun.clone(), rng).ok());
        let Some(applied) = followed else {
            if self.plain || begun.is_some() {
                return Step::Wrong;
            }
            self.found.insert(seq, Entry::Invalid);
            return Step::On;
        };
        let was_there: Vec<_> = self.roster.iter().map(|(leaf, who)| (*leaf, *who)).collect();
        let change = self.told(&applied, begun.clone(), history);
        let is_out = change.took_out(me);
        if begun.is_none() && !is_out && reached.is_none() {
            return Step::Wrong;
        }
        // Another's member commit opens with the epoch's keys, so that these are right, and what did not open is nobody's.
        if self.opened || header.suite == Suite::X25519Psk || !self.follows {
            self.found.extend(self.doubtful.iter().map(|seq| (*seq, Entry::Foreign)));
        }
        self.doubtful.clear();
        (self.opened, self.is_out, self.follows) = (false, is_out, true);
        if is_out || reached.is_none() {
            self.found.insert(seq, Entry::Change(change));
        }
        if let Some(reached) = reached {
            let number = reached.epoch.saturating_add(1);
            let (now, there) = (self.roster.iter().map(|(leaf, who)| (*leaf, *who)), self.there.iter().copied());
            let known = was_there.into_iter().chain(now).chain(there).collect::<BTreeSet<_>>().into_iter().collect();
            self.beyond = Some(Beyond { reached, number, epoch: None, known });
        }
        Step::On
    }

    /// The group before a record behind which it may not be followed.
    fn reached(&self, (at, chain): (Seq, Digest)) -> Reached {
        Reached { at, chain, epoch: self.onlooker.epoch().number, onlooker: self.onlooker.snapshot().into() }
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
    fn meet(&mut self, back: &BackRecord, envelope: &Bytes, rng: &mut ClientRandom) -> Step {
        if self.chain != back.chain {
            return Step::Contradicts;
        }
        if self.is_out {
            return Step::Done;
        }
        if self.number().saturating_add(1) != back.epoch {
            return Step::Wrong;
        }
        if let Some(beyond) = self.beyond.take() {
            return Step::Part(beyond.reached);
        }
        let followed = Record::decode(envelope).is_ok_and(|record| self.onlooker.follow(&record, None, rng).is_ok());
        if followed && self.onlooker.context() == Some(back.context) { Step::Done } else { Step::Wrong }
    }
}

fn epoch_of(room: RoomId, keys: &EpochKeys) -> Epoch {
    Epoch::new(room, keys.epoch, keys.authenticator, keys.secrets.clone())
}
