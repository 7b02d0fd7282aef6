//! Going down the ladder of a room whose newcomers read what was before ([`crate::group::Rung`]): from the change that let this device in, change
//! by change, with nobody online. Each step asks the server for one change and opens its rung; what is found is a [`Past`], which
//! the log is then read with, from where the ladder ends.
//!
//! Nothing here trusts the server: a change is the one that the rung above names by its hash, and the rung was checked by every member of
//! its time.

use std::collections::BTreeMap;

use super::past::Past;
use crate::{
    client::{
        Client,
        records::{ChangeRecord, ClimbRecord, PastRecord, Who, encode, past_key, room_key},
    },
    core::{
        frame::Page,
        handshake::{self, Trailer},
        id::{Digest, RoomId, Seq},
    },
    group::{Joining, Place, Record, Roster, Rung, RungKey},
    seal::epoch::Epoch,
};

/// How many changes are gone down at most: what precedes them stays closed.
const CHANGES_MAX: usize = 4096;
/// What was found is kept every so many changes, so that who is interrupted goes on from there.
const KEEP_EVERY: usize = 32;

impl ClimbRecord {
    /// Where it begins: at the change that lets this device in, if that has a rung.
    pub(super) fn begin(joining: &Joining) -> Option<Self> {
        let (group, record) = (joining.group(), joining.record());
        let mut keys = group.window().map(<[RungKey]>::to_vec);
        let rung = open(record, group.epoch(), &mut keys)?;
        Self::below(rung, group.epoch().number, group.roster(), record.after, keys)
    }

    /// The epoch that `rung` opens, below the one that has this number and roster.
    fn below(rung: Rung, epoch: u64, mut roster: Roster, at: Seq, keys: Option<Vec<RungKey>>) -> Option<Self> {
        for (leaf, place) in rung.places {
            match place {
                Some(place) => drop(roster.insert(leaf, place)),
                None => drop(roster.remove(&leaf)),
            }
        }
        let crate::group::Former { secrets, authenticator, began } = rung.former;
        Some(Self { at, began, epoch: epoch.checked_sub(1)?, authenticator, secrets, roster, title: rung.title, keys })
    }

    fn epoch(&self, room: RoomId) -> Epoch {
        Epoch::new(room, self.epoch, self.authenticator, self.secrets.clone())
    }

    /// The change that began it, as far as it alone tells: as if everybody had been there before, or nobody.
    fn lowest(&self) -> ChangeRecord {
        let who = |place: &Place| Who { device: place.device, user: place.user };
        let first =
            self.roster.values().next().map_or(Who { device: NOBODY, user: crate::seal::identity::UserKey([0; 32]) }, who);
        ChangeRecord {
            by: first,
            epoch: self.epoch,
            begun: Some((self.authenticator, Some(self.secrets.clone()))),
            seats: self.roster.iter().map(|(leaf, place)| (*leaf, Some(who(place)))).collect(),
            joined: Vec::new(),
            names: self.roster.values().map(|place| (who(place), place.name.clone())).collect(),
            gone: Vec::new(),
            left: Vec::new(),
            title: self.title.clone(),
            history: None,
        }
    }

    /// The change that began it, whose rung is known.
    fn change(&self, rung: &Rung) -> ChangeRecord {
        let who = |place: &Place| Who { device: place.device, user: place.user };
        let now = |leaf: &u32| self.roster.get(leaf).map(who);
        let seats = rung.places.iter().map(|(leaf, _)| (*leaf, now(leaf))).collect();
        let is_in = |device| self.roster.values().any(|place| place.device == device);
        let was: Vec<(u32, Who)> = rung.places.iter().filter_map(|(leaf, place)| Some((*leaf, who(place.as_ref()?)))).collect();
        let came = |place: &&Place| !was.iter().any(|(_, who)| who.device == place.device);
        let new: Vec<&Place> = rung.places.iter().filter_map(|(leaf, _)| self.roster.get(leaf)).filter(came).collect();
        let out = was.iter().filter(|(_, who)| !is_in(who.device));
        let (left, gone): (Vec<_>, Vec<_>) = out.copied().partition(|(leaf, _)| rung.left.contains(leaf));
        let by = self.roster.values().find(|place| place.device == rung.by).map(who);
        ChangeRecord {
            by: by.unwrap_or(Who { device: rung.by, user: crate::seal::identity::UserKey(rung.by.0) }),
            joined: new.iter().map(|place| who(place)).collect(),
            names: new.iter().map(|place| (who(place), place.name.clone())).collect(),
            gone: gone.into_iter().map(|(_, who)| who).collect(),
            left: left.into_iter().map(|(_, who)| who).collect(),
            seats,
            ..self.lowest()
        }
    }
}

/// The rung of the record that began this epoch. Where newcomers read the last days, the first key opens it, and is used up.
fn open(record: &Record, epoch: &Epoch, keys: &mut Option<Vec<RungKey>>) -> Option<Rung> {
    match keys {
        None => record.rung(epoch),
        Some(keys) if keys.is_empty() => None,
        Some(keys) => record.rung_by(&keys.remove(0), epoch),
    }
}

const NOBODY: crate::core::id::DeviceKey = crate::core::id::DeviceKey([0; 32]);

/// What a step found.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// There is more below.
    On,
    /// This was the lowest rung, or nothing more can be had; what is read of the log lies behind this seq.
    End(Seq),
}

impl Past {
    /// The past of a room whose ladder leads down from the change at `until`.
    pub(super) const fn climbing(room: RoomId, until: Seq, climb: ClimbRecord) -> Self {
        Self::new(room, PastRecord { format: 2, until, changes: Vec::new(), climb: Some(climb) })
    }

    /// Which change is needed next: the one before this seq.
    pub(super) fn wants(&self) -> Option<Seq> {
        self.record().climb.as_ref().map(|climb| climb.at.saturating_add(1))
    }

    /// Takes what the server has at the place that was asked for. What this device has read itself, up to `head`, is not gone down to.
    fn step(&mut self, room: RoomId, page: &Page, head: Seq) -> Step {
        let (changes, climb) = self.climb_mut();
        let Some(mut here) = climb.take() else { return Step::End(head) };
        let item = page.items.first().filter(|_| page.first == here.at);
        let Some(envelope) = item.map(|item| &item.envelope) else {
            // The server does not keep that change any more: what it began is read as far as it is there.
            changes.push((here.began, here.lowest()));
            return Step::End(here.at.saturating_sub(1));
        };
        if handshake::entry(envelope) != here.began {
            // Rubbish that every member has skipped; it names the one before it.
            let before = Trailer::parse(envelope).ok().map(|(_, trailer)| trailer.after).filter(|after| *after < here.at);
            return match before.filter(|after| *after > 0) {
                Some(at) => {
                    *climb = Some(ClimbRecord { at, ..here });
                    Step::On
                }
                None => {
                    changes.push((here.began, here.lowest()));
                    Step::End(here.at.saturating_sub(1))
                }
            };
        }
        let record = Record::decode(envelope).ok().filter(|_| here.at > head && changes.len() < CHANGES_MAX);
        let epoch = here.epoch(room);
        let rung = record.as_ref().and_then(|record| Some((record.after, open(record, &epoch, &mut here.keys)?)));
        let Some((after, rung)) = rung else {
            changes.push((here.began, here.lowest()));
            return Step::End(here.at.saturating_sub(1));
        };
        let change = here.change(&rung);
        let keys = here.keys.take();
        let below = ClimbRecord::below(rung, here.epoch, here.roster.clone(), after, keys).filter(|below| below.at < here.at);
        match below.filter(|below| below.at > 0) {
            Some(below) => {
                changes.push((here.began, change));
                *climb = Some(below);
                Step::On
            }
            None => {
                changes.push((here.began, here.lowest()));
                Step::End(here.at.saturating_sub(1))
            }
        }
    }
}

impl Client {
    /// Asks for the next change to go down to; `false` when there is nothing to go down.
    pub(super) fn climb(&mut self, id: RoomId) -> bool {
        let wanted = self.rooms.get(&id).and_then(|room| room.past.as_ref()?.wants());
        // What leads down is in the outline.
        wanted.into_iter().for_each(|before| self.ask_for_change(id, before, false));
        wanted.is_some()
    }

    /// A change below the one that let this device in.
    pub(super) fn on_rung(&mut self, id: RoomId, page: &Page) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let head = room.timeline.head();
        let Some(past) = room.past.as_mut().filter(|past| past.wants().is_some()) else { return };
        let step = past.step(id, page, head);
        let Step::End(base) = step else {
            let keep = past.record().changes.len().is_multiple_of(KEEP_EVERY);
            let value = keep.then(|| encode(past.record()));
            value.into_iter().for_each(|value| self.persist(past_key(id), Some(value)));
            self.climb(id);
            return;
        };
        past.settle();
        let value = encode(past.record());
        // Whoever was in the room before reads on where it was, so that its chain has no gap.
        if head == 0 && base > 0 {
            room.record.base = base;
            room.timeline.skip_to(base, None);
        }
        let record = encode(&room.record);
        self.persist(past_key(id), Some(value));
        self.persist(room_key(id), Some(record));
        self.enter_and_subscribe(id);
        self.tell_room(id);
    }
}

/// What is found going down comes in the order of the log.
pub(super) fn oldest_first(changes: &mut [(Digest, ChangeRecord)]) {
    changes.sort_by_key(|(_, change)| change.epoch);
}

/// Leaves and whose they are, as changes since the first one say.
pub(super) fn seated(roster: &mut BTreeMap<u32, Who>, change: &ChangeRecord) {
    for (leaf, who) in &change.seats {
        match who {
            Some(who) => drop(roster.insert(*leaf, *who)),
            None => drop(roster.remove(leaf)),
        }
    }
}
