//! What this device missed while it could not follow the group. A device that fell behind and is back asks members for the keys of the epochs between
//! ([`crate::seal::returning`]), reads that part of the log again, and shows what it opens where it belongs.
//!
//! Nobody is believed who was in the room: with what a member gives, the changes of the log are followed from the last group that this device was in
//! ([`super::following`]), and have to lead to the one that it came back to. What does not, is dropped whole, and somebody else is asked.
//!
//! Nobody may have all of it: several devices were put back, and took the keys of some epoch with them. Where the log has as many changes as epochs have
//! gone by, each of them began one; then what leads to a part is read, the gap begins behind it, and the others are asked for the rest.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{
    Room, What,
    following::{RECORDS_MAX, Reached, Reading, Step},
    place::Place,
};
use crate::{
    client::{
        Client, Output,
        evidence::Said,
        records::{BackRecord, Entry, GapRecord, Over, Stage, Who, encode, gap_key},
        view::Event,
    },
    core::{
        frame::{ClientFrame, Page},
        id::{DeviceKey, Digest, RoomId, Seq},
    },
    group::Onlooker,
    seal::{
        Random as _,
        hpke::XWingPrivate,
        returning::{Ask, EpochKeys, KEYS_MAX, Wants},
    },
};

/// Gaps of one room: beyond that, the oldest stays.
const GAPS_MAX: usize = 8;
/// Epochs of one gap.
const EPOCHS_MAX: usize = 4096;
/// So many members are asked at once; the next time the next ones.
const ASKED_AT_ONCE: usize = 3;
/// So often members are asked: three weeks at least.
const ASKS_MAX: u32 = 32;
/// Asks again after this long, twice as long after each time, and at most after [`ASK_AGAIN_MAX_MS`].
const ASK_AGAIN_MS: u64 = 30_000;
const ASK_AGAIN_MAX_MS: u64 = 24 * 3600 * 1000;
/// Asks for the rest of an answer after this long.
const REST_MS: u64 = 2_000;

/// A gap of a room.
#[derive(Debug)]
pub(super) struct Gap {
    /// The newest record before it.
    from: Seq,
    record: GapRecord,
    /// Who answered is asked for the rest.
    asks_rest: bool,
    reading: Option<Box<Reading>>,
    /// What others answered meanwhile, who were asked at once.
    held: Vec<(DeviceKey, Vec<EpochKeys>)>,
}

impl Gap {
    pub(super) const fn new(from: Seq, record: GapRecord) -> Self {
        Self { from, record, asks_rest: false, reading: None, held: Vec::new() }
    }

    pub(super) fn stop_reading(&mut self) {
        self.reading = None;
    }

    /// The last epoch whose keys who answered has given.
    fn known(&self) -> u64 {
        self.record.keys.last().map_or(self.record.epoch, |keys| keys.epoch)
    }

    /// Whether nothing more has to be asked for.
    fn is_whole(&self) -> bool {
        self.record.back.is_some_and(|back| self.known().saturating_add(1) >= back.epoch)
    }

    /// Whether this device is to do something about it.
    fn is_open(&self) -> bool {
        self.record.back.is_some() && self.record.over.is_none()
    }

    /// What a member gave leads no further: somebody else is asked.
    fn pass(&mut self, now_ms: u64) {
        self.record.passed.extend(self.record.by.take());
        self.record.keys.clear();
        self.record.next_ms = now_ms;
        self.asks_rest = false;
    }

    /// What a member gave led up to here.
    fn advance(&mut self, reached: Reached, now_ms: u64) {
        if reached.epoch > self.record.epoch {
            let Reached { at, chain, epoch, onlooker } = reached;
            let record = &mut self.record;
            (record.at, record.chain, record.epoch, record.onlooker) = (at, chain, epoch, onlooker);
            // Whoever could not lead this far may lead on from here.
            record.passed.clear();
            (record.asked, record.rounds) = (0, 0);
        }
        self.pass(now_ms);
    }

    /// Everybody was asked: they are again after a while, when somebody else may be there, or may have been told.
    fn end_round(&mut self, now_ms: u64) {
        self.record.passed.clear();
        self.record.rounds = self.record.rounds.saturating_add(1);
        self.record.next_ms = now_ms.saturating_add(wait_ms(self.record.rounds));
    }
}

/// How long is waited before what was done so often is done again.
fn wait_ms(often: u32) -> u64 {
    ASK_AGAIN_MS.saturating_mul(1 << often.min(12)).min(ASK_AGAIN_MAX_MS)
}

impl Room {
    /// The names of what is asked.
    pub(super) fn asks(&self) -> impl Iterator<Item = [u8; 32]> {
        self.gaps.iter().filter(|gap| gap.is_open()).map(|gap| gap.record.name)
    }

    /// Whether this device does something about what it missed.
    fn tends_gaps(&self) -> bool {
        self.up_to_date()
            && !self.reborn
            && self.record.stage == Stage::Joined
            && self.past.is_none()
            && self.place.seat().is_some()
    }

    /// When.
    pub(super) fn asks_at(&self) -> Option<u64> {
        let waits = self.gaps.iter().filter(|gap| gap.is_open() && gap.reading.is_none());
        waits.map(|gap| gap.record.next_ms).min().filter(|_| self.tends_gaps())
    }

    /// What becomes of what this device missed, in words.
    pub(super) fn gap_words(&self) -> &'static str {
        let open = self.gaps.iter().filter(|gap| gap.record.over.is_none()).min_by_key(|gap| gap.record.rounds > 0);
        let over = self.gaps.iter().find_map(|gap| gap.record.over);
        match (open.map(|gap| (&gap.reading, gap.record.rounds, gap.record.asked)), over) {
            (Some((Some(_), ..)), _) => ": a member has answered, it is being read",
            (Some((None, 1.., _)), _) => ": nobody who is in the room now has what opens it; they will be asked again",
            (Some((None, 0, 1..)), _) => ": members were asked for what opens it, and none has answered yet",
            (Some((None, 0, 0)), _) => ": members will be asked for what opens it",
            (None, Some(Over::Unkept)) => ": the server does not keep all that would open it any more",
            (None, Some(Over::Unanswered)) => ": nobody who is left in the room could say what opens it",
            (None, None) => "",
        }
    }

    fn gap(&self, from: Seq) -> Option<&Gap> {
        self.gaps.iter().find(|gap| gap.from == from)
    }

    /// As [`Room::changes_between`], in a gap.
    fn changes_of(&self, gap: &Gap) -> Vec<(Digest, bool)> {
        gap.record.back.map(|back| self.changes_between(gap.record.at, back.seq)).unwrap_or_default()
    }

    /// Whether the group went from one side of a gap to the other by all of its changes, of which none was skipped then.
    fn is_plain(&self, gap: &Gap) -> bool {
        let epochs = self.changes_of(gap).len() as u64 + 1;
        gap.record.back.is_some_and(|back| gap.record.epoch.saturating_add(epochs) == back.epoch)
    }

    /// Whether what a member gave may lead further than what is known.
    fn leads_on(&self, gap: &Gap) -> bool {
        let (changes, plain) = (self.changes_of(gap), self.is_plain(gap));
        gap.record.keys.iter().any(|keys| {
            let at = keys.epoch.saturating_sub(gap.record.epoch).saturating_sub(1);
            let change = usize::try_from(at).ok().and_then(|at| changes.get(at)).filter(|_| plain);
            at == 0 || change.is_some_and(|(record, misses)| *misses && *record == keys.record)
        })
    }

    /// Who was in the group that this device came back to, behind a gap.
    fn who_was_there(&self, gap: &Gap) -> Vec<(u32, Who)> {
        match gap.record.back.and_then(|back| self.shown.get(&back.seq)).map(|shown| &shown.what) {
            // It named everybody.
            Some(What::Change(change, _)) => change.seats.iter().filter_map(|(leaf, who)| Some((*leaf, (*who)?))).collect(),
            _ => Vec::new(),
        }
    }

    /// The keys of epochs behind `after` and before `until`, in ascending order, as far as this device knows them, and that `who` was in them.
    pub(super) fn keys_of(&self, who: Who, after: u64, until: u64) -> Vec<EpochKeys> {
        let mut changes = self.changes();
        changes.sort_by_key(|(_, change)| change.epoch);
        let (mut roster, mut last, mut found) = (BTreeMap::new(), None, Vec::new());
        for (record, change) in changes {
            if last.and_then(|last: u64| last.checked_add(1)) != Some(change.epoch) {
                // What is not known between: the next change names everybody.
                roster.clear();
            }
            last = Some(change.epoch);
            super::climbing::seated(&mut roster, &change);
            let before = found.last().map_or(after, |keys: &EpochKeys| keys.epoch);
            let was_in = before < change.epoch && change.epoch < until && roster.values().any(|other| *other == who);
            if let Some((authenticator, Some(secrets))) = change.begun.filter(|_| was_in && found.len() < KEYS_MAX) {
                found.push(EpochKeys { epoch: change.epoch, record, authenticator, secrets });
            }
        }
        found
    }
}

impl Client {
    /// This device loses its place: what follows in the log it may read later.
    pub(super) fn open_gap(&mut self, id: RoomId) {
        let name = self.rng.bytes();
        let Some(room) = self.rooms.get_mut(&id) else { return };
        room.gaps.iter_mut().for_each(Gap::stop_reading);
        let (Place::In(seat), from) = (&room.place, room.timeline.head()) else { return };
        let (Some(chain), Ok(onlooker)) = (room.timeline.chain_at(from), seat.group.onlooker()) else { return };
        let record = GapRecord {
            format: 2,
            at: from,
            chain,
            epoch: seat.group.epoch().number,
            onlooker: onlooker.snapshot().into(),
            back: None,
            name,
            by: None,
            keys: Vec::new(),
            passed: Vec::new(),
            asked: 0,
            rounds: 0,
            next_ms: 0,
            over: None,
        };
        let (kept, dropped) =
            core::mem::take(&mut room.gaps).into_iter().partition(|gap| gap.record.back.is_some() && gap.from != from);
        let dropped: Vec<Gap> = dropped;
        room.gaps = kept;
        let oldest = (room.gaps.len() >= GAPS_MAX).then(|| room.gaps.remove(0));
        room.gaps.push(Gap::new(from, record));
        for gap in dropped.into_iter().chain(oldest) {
            self.persist(gap_key(id, gap.from), None);
        }
        self.persist_gap(id, from);
    }

    /// This device is in again, by the change that follows what it has.
    pub(super) fn end_gap(&mut self, id: RoomId, epoch: u64) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let (head, context) = (room.timeline.head(), room.place.seat().and_then(|seat| seat.group.context()));
        let chain = room.timeline.chain_at(head);
        let Some(gap) = room.gaps.iter_mut().find(|gap| gap.record.back.is_none()) else { return };
        let from = gap.from;
        match (chain, context) {
            (Some(chain), Some(context)) => {
                gap.record.back = Some(BackRecord { seq: head.saturating_add(1), chain, epoch, context });
                if epoch.saturating_sub(gap.record.epoch) > EPOCHS_MAX as u64 {
                    gap.record.over = Some(Over::Unanswered);
                }
                self.persist_gap(id, from);
            }
            _ => self.drop_gap(id, from),
        }
    }

    fn persist_gap(&mut self, id: RoomId, from: Seq) {
        let gap = self.rooms.get(&id).and_then(|room| room.gap(from));
        let value = gap.map(|gap| encode(&gap.record));
        self.persist(gap_key(id, from), value);
    }

    fn drop_gap(&mut self, id: RoomId, from: Seq) {
        self.rooms.get_mut(&id).into_iter().for_each(|room| room.gaps.retain(|gap| gap.from != from));
        self.persist(gap_key(id, from), None);
    }

    /// Nothing that is known of the log's gaps counts any more: another log, or none.
    pub(super) fn drop_gaps(&mut self, id: RoomId) {
        let gaps = self.rooms.get_mut(&id).map(|room| core::mem::take(&mut room.gaps)).unwrap_or_default();
        for gap in gaps {
            self.persist(gap_key(id, gap.from), None);
        }
    }

    /// It stays: nothing more of it is kept than why.
    fn give_up_gap(&mut self, id: RoomId, from: Seq, why: Over) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let Some(gap) = room.gaps.iter_mut().find(|gap| gap.from == from) else { return };
        gap.reading = None;
        (gap.record.over, gap.record.onlooker) = (Some(why), Bytes::new());
        gap.record.keys.clear();
        self.persist_gap(id, from);
        self.tell_room(id);
    }

    /// Does what is due about gaps.
    pub(in crate::client) fn tend_gaps(&mut self, id: RoomId, now_ms: u64) {
        let open = self.rooms.get(&id).into_iter().flat_map(|room| &room.gaps).filter(|gap| gap.is_open());
        let open: Vec<Seq> = open.map(|gap| gap.from).collect();
        open.into_iter().for_each(|from| self.tend_gap(id, from, now_ms));
    }

    fn tend_gap(&mut self, id: RoomId, from: Seq, now_ms: u64) {
        let Some(room) = self.rooms.get_mut(&id).filter(|room| room.tends_gaps()) else { return };
        let Some(at) = room.gaps.iter().position(|gap| gap.from == from) else { return };
        let (behind, until) = room.gaps.get(at).map_or((0, 0), |gap| (gap.record.at, gap.record.back.map_or(0, |back| back.seq)));
        if !room.misses(behind, until) {
            return self.drop_gap(id, from);
        }
        let Some(gap) = room.gaps.get_mut(at).filter(|gap| gap.reading.is_none()) else { return };
        if gap.record.by.is_none() && !gap.held.is_empty() {
            let (name, (by, keys)) = (gap.record.name, gap.held.remove(0));
            self.on_keys(id, name, by, keys, now_ms);
            return self.tend_gap(id, from, now_ms);
        }
        if now_ms < gap.record.next_ms {
            return;
        }
        // Who has no more may have come to where this device was taken out.
        let has_no_more = !gap.record.keys.is_empty() && !gap.record.keys.len().is_multiple_of(KEYS_MAX);
        if gap.is_whole() || has_no_more {
            return self.read_gap(id, from, now_ms);
        }
        if core::mem::take(&mut gap.asks_rest) {
            gap.pass(now_ms);
        }
        self.ask_for_keys(id, from, now_ms);
    }

    fn ask_for_keys(&mut self, id: RoomId, from: Seq, now_ms: u64) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        let (Place::In(seat), online) = (&room.place, &room.online) else { return };
        let Some(gap) = room.gaps.iter_mut().find(|gap| gap.from == from) else { return };
        let record = &gap.record;
        let there: Vec<DeviceKey> = Onlooker::restore(&record.onlooker)
            .map(|onlooker| onlooker.roster().values().map(|place| place.device).collect())
            .unwrap_or_default();
        let mut members = seat.group.inboxes();
        members.retain(|(device, _)| *device != me.identity.device() && !record.passed.contains(device));
        members.sort_by_key(|(device, _)| (!there.contains(device), !online.contains(device)));
        match record.by {
            Some(by) if members.iter().any(|(device, _)| *device == by) => members.retain(|(device, _)| *device == by),
            Some(_) => gap.pass(now_ms),
            None => {}
        }
        let known = gap.known();
        let record = &mut gap.record;
        if record.asked >= ASKS_MAX || record.rounds >= ASKS_MAX {
            return self.give_up_gap(id, from, Over::Unanswered);
        }
        if members.is_empty() {
            gap.end_round(now_ms);
            self.persist_gap(id, from);
            return self.tell_room(id);
        }
        gap.asks_rest = record.by.is_some();
        let epoch = seat.group.epoch();
        let (_, to) = XWingPrivate::from_seed(&epoch.secrets().xwing);
        let ask = Ask::new(id, record.name, Wants::Keys { after: known }, &me.identity);
        let first = (record.asked as usize).wrapping_mul(ASKED_AT_ONCE) % members.len();
        let inboxes = members.iter().cycle().skip(first).take(ASKED_AT_ONCE.min(members.len()));
        let at = (epoch.number, epoch.authenticator);
        let asks: Vec<_> = inboxes
            .filter_map(|(_, inbox)| Some((*inbox, ask.seal(&to, at, *inbox, &me.identity, &mut self.rng).ok()?)))
            .collect();
        record.next_ms = now_ms.saturating_add(wait_ms(record.asked.max(record.rounds)));
        record.asked = record.asked.saturating_add(1);
        self.persist_gap(id, from);
        for (inbox, envelope) in asks {
            self.post_letter(inbox, envelope, now_ms);
        }
        self.tell_room(id);
    }

    /// A member gives keys of epochs that this device missed, in the gap of this name; none, if it has no more.
    pub(super) fn on_keys(&mut self, id: RoomId, name: [u8; 32], by: DeviceKey, keys: Vec<EpochKeys>, now_ms: u64) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let is_in = room.everybody().iter().any(|who| who.device == by);
        let wanted = |gap: &&mut Gap| gap.record.name == name && gap.is_open() && !gap.record.passed.contains(&by);
        let Some(gap) = room.gaps.iter_mut().find(wanted).filter(|_| is_in) else { return };
        if gap.reading.is_some() || gap.record.by.is_some_and(|before| before != by) {
            // What another one gave comes first.
            gap.held.retain(|(other, _)| *other != by);
            if gap.held.len() < ASKED_AT_ONCE {
                gap.held.push((by, keys));
            }
            return;
        }
        if gap.is_whole() {
            return;
        }
        let is_page = keys.len() == KEYS_MAX;
        let (from, until) = (gap.from, gap.record.back.map_or(0, |back| back.epoch));
        for keys in keys {
            if gap.known() < keys.epoch && keys.epoch < until {
                gap.record.keys.push(keys);
            }
        }
        if is_page && !gap.is_whole() {
            (gap.record.by, gap.record.asked, gap.asks_rest) = (Some(by), 0, false);
            gap.record.next_ms = now_ms.saturating_add(REST_MS);
            return self.persist_gap(id, from);
        }
        (gap.record.by, gap.asks_rest) = (Some(by), false);
        let leads_on = room.gap(from).is_some_and(|gap| room.leads_on(gap));
        match (leads_on, room.tends_gaps()) {
            (true, true) => self.read_gap(id, from, now_ms),
            (true, false) => self.persist_gap(id, from),
            (false, _) => self.pass_gap(id, from, now_ms),
        }
    }

    /// Who answered has nothing that leads any further.
    fn pass_gap(&mut self, id: RoomId, from: Seq, now_ms: u64) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        let everybody = room.everybody();
        let Some(gap) = room.gaps.iter_mut().find(|gap| gap.from == from) else { return };
        // Whoever else was asked may still answer.
        gap.pass(gap.record.next_ms);
        let passed = |who: &Who| who.device == me.identity.device() || gap.record.passed.contains(&who.device);
        if everybody.iter().all(passed) {
            gap.end_round(now_ms);
        }
        self.persist_gap(id, from);
        self.tell_room(id);
    }

    /// Reads it again, with what is known.
    fn read_gap(&mut self, id: RoomId, from: Seq, now_ms: u64) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        room.knocks = room.knocks.wrapping_add(1);
        let request = room.knocks;
        let Some((plain, there)) = room.gap(from).map(|gap| (room.is_plain(gap), room.who_was_there(gap))) else { return };
        let Some(gap) = room.gaps.iter_mut().find(|gap| gap.from == from) else { return };
        gap.record.next_ms = now_ms.saturating_add(ASK_AGAIN_MS);
        gap.reading = Reading::new(&gap.record, request, plain, there).map(Box::new);
        if gap.reading.is_none() {
            return self.drop_gap(id, from);
        }
        self.persist_gap(id, from);
        self.fetch_gap(id, from);
        self.tell_room(id);
    }

    fn fetch_gap(&mut self, id: RoomId, from: Seq) {
        let gap = self.rooms.get(&id).and_then(|room| room.gap(from));
        let Some((back, reading)) = gap.and_then(|gap| gap.record.back.zip(gap.reading.as_ref())) else { return };
        let last = reading.next.saturating_add(u64::from(reading.count)).saturating_sub(1).min(back.seq);
        let count_max = u32::try_from(last.saturating_sub(reading.next)).unwrap_or(RECORDS_MAX).saturating_add(1);
        let (request, before) = (reading.request, last.saturating_add(1));
        self.send(&ClientFrame::Fetch { request, room: id, before, count_max });
    }

    /// Whether it is a page of a gap.
    pub(super) fn is_of_gap(&self, id: RoomId, request: u32) -> bool {
        let of = |gap: &Gap| gap.reading.as_ref().is_some_and(|reading| reading.request == request);
        self.rooms.get(&id).is_some_and(|room| room.gaps.iter().any(of))
    }

    /// The server does not give a page of it now.
    pub(super) fn gap_refused(&mut self, id: RoomId, now_ms: u64) {
        for gap in self.rooms.get_mut(&id).into_iter().flat_map(|room| &mut room.gaps).filter(|gap| gap.reading.is_some()) {
            (gap.reading, gap.record.next_ms) = (None, now_ms.saturating_add(ASK_AGAIN_MS));
        }
    }

    pub(super) fn on_gap_page(&mut self, request: u32, page: &Page, now_ms: u64) {
        let id = page.room;
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        let of = |gap: &&mut Gap| gap.reading.as_ref().is_some_and(|reading| reading.request == request);
        let is_log = room.record.log == Some(page.position.log);
        let Some(gap) = room.gaps.iter_mut().find(of) else { return };
        let from = gap.from;
        let Some(mut reading) = gap.reading.take().filter(|_| is_log) else { return };
        if page.items.is_empty() || page.first > reading.next {
            // A page holds so many bytes, and the newest records are those that it has.
            if reading.count == 1 {
                return self.give_up_gap(id, from, Over::Unkept);
            }
            reading.count = (reading.count / 2).max(1);
            gap.reading = Some(reading);
            return self.fetch_gap(id, from);
        }
        // Anything else was not asked for; it is looked at again after a while.
        if page.first < reading.next {
            return;
        }
        let mut step = Step::On;
        for item in &page.items {
            step = reading.take(&gap.record, me.identity.device(), &item.envelope, &mut self.rng);
            if !matches!(step, Step::On) {
                break;
            }
        }
        match step {
            Step::On => {
                reading.count = reading.count.saturating_mul(2).min(RECORDS_MAX);
                gap.reading = Some(reading);
                self.fetch_gap(id, from);
            }
            Step::Done => self.fill_gap(id, from, None, reading.found, now_ms),
            Step::Part(reached) => self.fill_gap(id, from, Some(reached), reading.found, now_ms),
            // By nobody's word.
            Step::Wrong if gap.record.by.is_none() => self.give_up_gap(id, from, Over::Unanswered),
            Step::Wrong => {
                gap.pass(now_ms);
                self.persist_gap(id, from);
                self.tend_gaps(id, now_ms);
            }
            Step::Contradicts => {
                let at = reading.next.saturating_sub(1);
                let said = Said::Chain { at, chain: reading.chain };
                self.contradiction(id, "the server's history is not the one that this device has seen", said, now_ms);
            }
        }
    }

    /// What was missed is shown in its place: all of it, or what could be read with what a member gave, which `reached` here.
    fn fill_gap(&mut self, id: RoomId, from: Seq, reached: Option<Reached>, found: BTreeMap<Seq, Entry>, now_ms: u64) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let (mut persist, opened, others) = room.retell(found);
        for opened in &opened {
            persist.extend(room.outbox.found_in_log(opened.message).into_iter().flatten());
        }
        let gap = room.gaps.iter_mut().find(|gap| gap.from == from);
        let goes_on = gap.zip(reached).map(|(gap, reached)| gap.advance(reached, now_ms)).is_some();
        self.persist_all(persist);
        if goes_on {
            self.persist_gap(id, from);
        } else {
            self.drop_gap(id, from);
        }
        for opened in opened {
            self.heed(id, &opened, true, now_ms);
        }
        self.forget_secrets(id, now_ms);
        let (Some(me), Some(room)) = (&self.me, self.rooms.get(&id)) else { return };
        let views: Vec<_> = others.into_iter().filter_map(|seq| room.message_view(&me.identity, seq)).collect();
        for message in views {
            self.outputs.push_back(Output::Event(Event::Message { room: id.to_string(), message }));
        }
        self.tell_room(id);
        self.tend_gaps(id, now_ms);
    }
}
