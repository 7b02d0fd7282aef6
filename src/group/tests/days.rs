//! Rooms whose newcomers read the last days.

use super::{Rng, *};
use crate::group::{
    ladder::open_sealed,
    window::{context, seal},
};

const DAY_MS: u64 = 24 * 3600 * 1000;

fn days(days: u16) -> Change {
    Change { history: Some(History::Days(days)), ..Change::default() }
}

/// All epochs that the keys of a group's window lead down to: each one's number, and its secrets.
fn climb(group: &Group, records: &[Record]) -> Vec<(u64, EpochSecrets)> {
    let find = |digest: Digest| records.iter().find(|record| record.digest() == digest);
    let (mut epoch, mut began, mut found) = (group.epoch().clone(), group.began, Vec::new());
    for key in group.window().unwrap() {
        let Some(rung) = find(began).and_then(|record| record.rung_by(key, &epoch)) else { break };
        let former = rung.former;
        epoch = Epoch::new(ROOM, epoch.number - 1, former.authenticator, former.secrets);
        found.push((epoch.number, epoch.secrets().clone()));
        began = former.began;
    }
    found
}

fn copy(group: &Group, rng: &mut Rng) -> Group {
    Group::restore(&group.snapshot(), rng).unwrap()
}

/// Alice (owner) and Bob in a room that changes once a day; newcomers read so many days from the first change on.
struct Room {
    alice: Identity,
    bob: Identity,
    one: Group,
    two: Group,
    link: LinkKeys,
    records: Vec<Record>,
    /// Of each epoch since, its number and secrets.
    epochs: Vec<(u64, EpochSecrets)>,
    today: u64,
    rng: Rng,
}

impl Room {
    fn new(suite: Suite, seed: u64, last: u16) -> Self {
        let mut rng = Rng(seed);
        let ((alice, one), (bob, two)) = pair(suite, &mut rng);
        let link = LinkKeys::new(&[1; 32]);
        let mut room = Self { alice, bob, one, two, link, records: Vec::new(), epochs: Vec::new(), today: 100, rng };
        let list = vec![room.link.listed(false, 0)];
        room.change(0, Change { list, ..days(last) });
        room
    }

    const fn now_ms(&self) -> u64 {
        self.today * DAY_MS
    }

    /// Another day, and one of them changes the group.
    fn change(&mut self, by: usize, change: Change) -> Record {
        self.today += 1;
        let now_ms = self.now_ms();
        let (group, identity) = if by == 0 { (&mut self.one, &self.alice) } else { (&mut self.two, &self.bob) };
        let record = group.commit(change, now_ms, identity, &mut self.rng).unwrap();
        let record = Record::decode(&record.encode()).unwrap();
        self.take(&record);
        record
    }

    fn take(&mut self, record: &Record) {
        for group in [&mut self.one, &mut self.two] {
            group.process(record, &mut self.rng).unwrap();
        }
        self.records.push(record.clone());
        self.epochs.push((self.one.epoch().number, self.one.epoch().secrets().clone()));
    }

    /// The last epochs but the present one, newest first.
    fn last(&self, count: usize) -> Vec<(u64, EpochSecrets)> {
        self.epochs.iter().rev().skip(1).take(count).cloned().collect()
    }

    /// Somebody comes in by the link, with nobody there, and goes down.
    fn newcomer(&mut self) -> (Identity, Group) {
        self.today += 1;
        let (carol, now_ms) = (identity(&mut self.rng), self.now_ms());
        let info = GroupInfo::open(ROOM, self.records.last().unwrap(), &self.link).unwrap();
        let joining = info.join(ROOM, Some(&self.link), now_ms, &carol, &mut self.rng).unwrap();
        let record = Record::decode(&joining.record().encode()).unwrap();
        self.take(&record);
        let group = joining.confirm(&record).unwrap().0;
        (carol, group)
    }
}

#[test]
fn whoever_comes_in_goes_down_as_far_as_the_days_reach_and_no_further() {
    for suite in [Suite::XWing, Suite::X25519] {
        let mut room = Room::new(suite, 30, 3);
        assert!(room.records[0].group_info.as_ref().unwrap().rung.is_empty(), "the ladder ends above the commit that chose it");
        for day in 0..6 {
            room.change(day % 2, Change::default());
        }
        for _ in 0..2 {
            let (_, group) = room.newcomer();
            assert_eq!(group.window().unwrap().len(), 4, "today's change, and those of three days");
            let found = climb(&group, &room.records);
            assert_eq!(found, room.last(4));
            assert_eq!(climb(&Group::restore(&group.snapshot(), &mut room.rng).unwrap(), &room.records), found);
        }
        // What a rung hands down leads no further: neither as where newcomers read everything, nor by the group info for links.
        let (number, secrets) = room.last(4).pop().unwrap();
        let record = room.records.iter().find(|record| record.epoch == number).unwrap();
        let epoch = Epoch::new(ROOM, number, Digest([0; 32]), secrets.clone());
        let beside = record.group_info.as_ref().unwrap();
        assert!(record.rung(&epoch).is_none() && beside.info.is_some());
        let bound_to = context(ROOM, number);
        for key in ["waxwing group info v1", "waxwing rung v1", "waxwing rung key v1", "waxwing window v1"] {
            let key = crate::seal::derive(&secrets.psk, key, &bound_to);
            for sealed in [beside.info.as_ref().unwrap().whole().unwrap(), &beside.rung, &beside.window] {
                assert!(open_sealed::<Bytes>(&key, &bound_to, sealed).is_none());
            }
        }
        for key in room.one.window().unwrap() {
            assert!(record.rung_by(key, &epoch).is_none(), "of the rungs that are left none is this one's");
        }
    }
}

#[test]
fn nobody_brings_back_what_was_left_out() {
    let mut room = Room::new(Suite::X25519, 31, 30);
    (0..5).for_each(|_| drop(room.change(0, Change::default())));
    let before = copy(&room.two, &mut room.rng);
    room.change(0, days(2));
    assert_eq!((room.one.window().unwrap().len(), room.two.window().unwrap().len()), (3, 3), "of today, and of two days");
    room.change(0, days(365));
    assert_eq!(room.one.window().unwrap().len(), 4);
    let kept = room.two.snapshot();
    for lie in 0..6 {
        let mut liar = copy(&room.one, &mut room.rng);
        let keys = &mut liar.window.keys;
        match lie {
            0 => keys.extend(before.window.keys[1..].iter().cloned()),
            1 => drop(keys.remove(1)),
            2 => keys.swap(0, 1),
            3 => keys[2].made_ms += DAY_MS,
            4 => keys[3].key = [9; 32],
            _ => keys.truncate(2),
        }
        let record = liar.commit(Change::default(), room.now_ms(), &room.alice, &mut room.rng).unwrap();
        let skipped = room.two.process(&record, &mut room.rng);
        if lie == 5 {
            assert!(skipped.is_ok(), "to leave out more is everybody's right: nobody's clock is the room's");
            assert_eq!(room.two.window().unwrap().len(), 3);
        } else {
            assert_eq!(skipped.map(|_| ()), Err(Skipped::Invalid(Invalid::Rung)), "lie {lie}");
            assert!(kept == room.two.snapshot());
        }
    }
}

#[test]
fn what_is_deleted_is_gone_and_does_not_keep_a_member_from_following() {
    let mut room = Room::new(Suite::X25519, 33, 3);
    (0..3).for_each(|_| drop(room.change(0, Change::default())));
    // Bob deletes by a clock that is two days ahead of Alice's.
    let ahead_ms = room.now_ms() + 2 * DAY_MS;
    let gone: Vec<_> = room.two.window().unwrap()[2..].iter().map(|key| key.key).collect();
    assert!(room.two.forget_rungs(ahead_ms) && !room.two.forget_rungs(ahead_ms));
    assert_eq!(room.two.window().unwrap().len(), 2);
    let kept = room.two.snapshot();
    assert!(gone.iter().all(|key| !kept.windows(32).any(|part| part == key)));
    room.two = copy(&room.two, &mut room.rng);
    // A device that has lost its place gets what Bob has left, and its commit is everybody's.
    let info = room.two.group_info(&room.bob, &mut room.rng).unwrap();
    let info = GroupInfo::decode(&info.encode()).unwrap();
    let joining = info.join(ROOM, None, room.now_ms(), &room.alice, &mut room.rng).unwrap();
    let record = joining.record().clone();
    let mut alone = copy(&room.two, &mut room.rng);
    alone.process(&record, &mut room.rng).unwrap();
    assert_eq!(alone.window().unwrap().len(), 3);
    // Alice still has all, and commits it: Bob follows, and so does whoever is made of what he has.
    room.change(0, Change::default());
    assert_eq!((room.one.window().unwrap().len(), room.two.window().unwrap().len()), (4, 4));
    let none = copy(&room.one, &mut room.rng).forget_rungs(room.now_ms());
    assert!(!none, "what was left out is not there to be deleted");
}

#[test]
fn whoever_is_added_has_the_window_and_hands_it_on() {
    let mut room = Room::new(Suite::X25519, 34, 30);
    (0..3).for_each(|_| drop(room.change(0, Change::default())));
    let (carol, mut keys) = (identity(&mut room.rng), KeyPackages::default());
    let package = keys.make(&carol, Suite::X25519, 0, false, &mut room.rng).unwrap();
    let record = room.change(1, add(package));
    let mut three = Group::join(ROOM, &record, &mut keys, &mut room.rng).unwrap();
    assert_eq!(three.window(), room.one.window());
    let record = three.commit(Change::default(), room.now_ms(), &carol, &mut room.rng).unwrap();
    room.take(&record);
    assert_eq!(room.one.window().unwrap().len(), 5);
    let found = climb(&room.newcomer().1, &room.records);
    assert_eq!(found, room.last(6));
}

#[test]
fn a_change_of_the_policy_ends_what_leads_down() {
    let mut room = Room::new(Suite::X25519, 35, 30);
    (0..2).for_each(|_| drop(room.change(0, Change::default())));
    for history in [History::Everything, History::Days(30), History::FromJoin, History::Days(365)] {
        let ended = room.change(0, Change { history: Some(history), ..Change::default() });
        let beside = ended.group_info.as_ref().unwrap();
        assert!(beside.rung.is_empty() && beside.window.is_empty() && room.one.window.keys.is_empty());
        let next = room.change(1, Change::default());
        let beside = next.group_info.as_ref().unwrap();
        assert_eq!(
            (beside.rung.is_empty(), beside.window.is_empty()),
            match history {
                History::FromJoin => (true, true),
                History::Everything => (false, true),
                History::Days(_) => (false, false),
            }
        );
        let former = GroupInfo::open(ROOM, &next, &room.link).unwrap().body_former().is_some();
        assert_eq!(former, history != History::FromJoin);
        let (_, group) = room.newcomer();
        match history {
            History::Days(_) => assert_eq!(climb(&group, &room.records), room.last(2)),
            _ => assert!(group.window().is_none()),
        }
    }
}

#[test]
fn a_window_has_so_many_keys_and_no_more() {
    let mut window = Window::default();
    for number in 0..WINDOW_MAX as u64 + 10 {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_le_bytes());
        let keys = window.next(key, number, 1);
        assert!(window.leads_to(&keys, &key) && !window.leads_to(&keys, &[9; 32]) && !window.leads_to(&[], &key));
        let ladder = LadderSecret([7; 32]);
        let sealed = seal(&keys, &ladder, b"here").unwrap();
        assert!(Window::open(&ladder, b"there", &sealed).is_none());
        window = Window::open(&ladder, b"here", &sealed).unwrap();
        assert_eq!(window.keys, keys);
    }
    assert_eq!(window.keys.len(), WINDOW_MAX);
    let more = [window.keys.clone(), window.keys].concat();
    let sealed = seal(&more, &LadderSecret([7; 32]), b"here").unwrap();
    assert!(Window::open(&LadderSecret([7; 32]), b"here", &sealed).is_none());
}

#[test]
fn days_are_at_least_one_and_at_most_a_year() {
    let (alice, rng) = (identity(&mut Rng(36)), &mut Rng(36));
    let mut policy = Policy::new(alice.user());
    for (count, good) in [(0, false), (1, true), (365, true), (366, false), (u16::MAX, false)] {
        policy.set_history(History::Days(count));
        assert_eq!(Policy::decode(&policy.encode()).is_some(), good, "{count}");
    }
    let mut group = Group::create(ROOM, Suite::X25519, &alice, rng).unwrap();
    assert!(group.commit(days(0), 0, &alice, rng).is_err());
}
