//! Random histories of a group: joins, leaves, removals, races, devices that are away, restored snapshots, rubbish in the log.

use std::collections::HashMap;

use proptest::prelude::*;

use super::{Rng, *};

const DEVICES: usize = 6;
const SUITE: Suite = Suite::X25519;
const DAY_MS: u64 = 24 * 3600 * 1000;
/// Where an envelope's epoch stands (`core::envelope`).
const EPOCH: std::ops::Range<usize> = 20..28;

enum State {
    Out,
    In(Box<Group>),
    /// It cannot follow; the copy that it has is of no use.
    Lost,
}

struct Device {
    identity: Identity,
    state: State,
    /// How many records of the log it has read.
    cursor: usize,
    away: bool,
    kept: Option<(Vec<u8>, usize)>,
}

/// What an epoch is, as the first device that entered it found.
struct Known {
    secrets: EpochSecrets,
    authenticator: Digest,
    members: Vec<Member>,
    policy: Policy,
}

struct World {
    rng: Rng,
    devices: Vec<Device>,
    log: Vec<Record>,
    /// The epoch to which the newest record leads that anybody has applied.
    head: u64,
    epochs: HashMap<u64, Known>,
    /// What members made of each record: whether it was applied.
    verdicts: HashMap<usize, bool>,
    links: Vec<LinkKeys>,
    seen: Seen,
    now_ms: u64,
}

/// What a history contained.
#[derive(Debug, Default)]
struct Seen {
    added: usize,
    removed: usize,
    left: usize,
    joined: usize,
    rejoined: usize,
    restored: usize,
    lost_races: usize,
    skipped: usize,
    /// Epochs that a window has opened.
    read_back: usize,
    forgotten: usize,
}

impl Seen {
    fn is_whole(&self) -> bool {
        let Self { added, removed, left, joined, rejoined, restored, lost_races, skipped, read_back, forgotten } = *self;
        [added, removed, left, joined, rejoined, restored, lost_races, skipped, read_back, forgotten]
            .iter()
            .all(|count| *count > 0)
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let devices =
            (0..DEVICES).map(|_| Device { identity: identity(&mut rng), state: State::Out, cursor: 0, away: false, kept: None });
        let mut devices: Vec<_> = devices.collect();
        let group = Group::create(ROOM, SUITE, &devices[0].identity, &mut rng).unwrap();
        devices[0].state = State::In(Box::new(group));
        Self {
            rng,
            devices,
            log: Vec::new(),
            head: 0,
            epochs: HashMap::new(),
            verdicts: HashMap::new(),
            links: Vec::new(),
            seen: Seen::default(),
            now_ms: 1000 * DAY_MS,
        }
    }

    fn group(&mut self, at: usize) -> Option<&mut Group> {
        match &mut self.devices[at].state {
            State::In(group) if group.is_member() => Some(group),
            _ => None,
        }
    }

    /// Everybody who enters an epoch finds the same, and is in it.
    fn entered(&mut self, at: usize) {
        let device = self.devices[at].identity.device();
        let State::In(group) = &self.devices[at].state else { return };
        if !group.is_member() {
            return;
        }
        let (epoch, members, policy) = (group.epoch(), group.members(), group.policy());
        assert!(members.iter().any(|member| member.device == device));
        let (secrets, authenticator) = (epoch.secrets().clone(), epoch.authenticator);
        let known = self.epochs.entry(epoch.number).or_insert_with(|| Known {
            secrets: secrets.clone(),
            authenticator,
            members: members.clone(),
            policy: policy.clone(),
        });
        assert!(known.secrets == secrets && known.authenticator == authenticator, "epoch {}", epoch.number);
        assert_eq!((&known.members, &known.policy), (&members, &policy));
        self.head = self.head.max(epoch.number);
        self.seen.read_back += self.goes_down(at);
    }

    /// What a device's window opens is what was there. Returns how many epochs that is.
    fn goes_down(&self, at: usize) -> usize {
        let State::In(group) = &self.devices[at].state else { return 0 };
        let (mut epoch, mut began) = (group.epoch().clone(), group.began);
        for (count, key) in group.window().into_iter().flatten().enumerate() {
            let Some(record) = self.log.iter().find(|record| record.digest() == began) else { return count };
            let rung = record.rung_by(key, &epoch).expect("each key opens its rung");
            let former = rung.former;
            let known = self.epochs.get(&(epoch.number - 1));
            assert!(known.is_none_or(|known| known.secrets == former.secrets && known.authenticator == former.authenticator));
            epoch = Epoch::new(ROOM, epoch.number - 1, former.authenticator, former.secrets);
            began = former.began;
        }
        group.window().map_or(0, <[_]>::len)
    }

    /// Reads the log to its end. Returns the changes that lost.
    fn read(&mut self, at: usize) -> Option<Change> {
        let mut lost = None;
        while self.devices[at].cursor < self.log.len() {
            let cursor = self.devices[at].cursor;
            self.devices[at].cursor += 1;
            let record = self.log[cursor].clone();
            let State::In(group) = &mut self.devices[at].state else { continue };
            let before = group.snapshot();
            let applied = match group.process(&record.outline(), &mut self.rng) {
                Ok(applied) => {
                    self.seen.lost_races += usize::from(applied.rebase.is_some());
                    for event in &applied.events {
                        match event {
                            Event::Added(_) => self.seen.added += 1,
                            Event::Removed(_) => self.seen.removed += 1,
                            Event::Left(_) => self.seen.left += 1,
                            Event::Joined(_) => self.seen.joined += 1,
                            Event::Rejoined(_) => self.seen.rejoined += 1,
                            Event::Policy => {}
                        }
                    }
                    lost = applied.rebase.or(lost);
                    true
                }
                Err(Skipped::Lost) => {
                    self.devices[at].state = State::Lost;
                    continue;
                }
                Err(Skipped::NotAMember) => continue,
                Err(Skipped::Past | Skipped::Invalid(_)) => {
                    self.seen.skipped += 1;
                    assert!(before == group.snapshot(), "what is skipped changes nothing");
                    false
                }
                Err(skipped) => panic!("{skipped}"),
            };
            let verdict = *self.verdicts.entry(cursor).or_insert(applied);
            assert_eq!(verdict, applied, "members judge record {cursor} alike");
            self.entered(at);
        }
        lost
    }

    /// The delivery service: the first record for the next epoch, or another one while nobody could use the first.
    fn publish(&mut self, record: &Record) -> bool {
        let accepted = record.epoch == self.head + 1;
        if accepted {
            self.log.push(Record::decode(&record.encode()).unwrap());
        }
        accepted
    }

    /// A member that is there changes the group, again and again until the log took it.
    fn change(&mut self, at: usize, mut change: Change) {
        loop {
            self.read(at);
            let identity = self.devices[at].identity.clone();
            let Some(_) = self.group(at) else { return };
            let State::In(group) = &mut self.devices[at].state else { return };
            if group.is_waiting() {
                // A restored copy may wait for what was never given to the log.
                group.withdraw().unwrap();
            }
            let Ok(record) = group.commit(change, self.now_ms, &identity, &mut self.rng) else { return };
            self.publish(&record);
            match self.read(at) {
                Some(lost) => change = lost,
                None => return,
            }
        }
    }

    fn add(&mut self, at: usize, whom: usize) {
        if !matches!(self.devices[whom].state, State::Out) && self.devices[whom].state_is_member() {
            return;
        }
        let mut keys = KeyPackages::default();
        let identity = self.devices[whom].identity.clone();
        let package = keys.make(&identity, SUITE, 0, false, &mut self.rng).unwrap();
        let from = self.log.len();
        self.change(at, add(package));
        self.welcome(whom, from, &mut keys);
    }

    fn welcome(&mut self, whom: usize, from: usize, keys: &mut KeyPackages) {
        for at in from..self.log.len() {
            if !self.verdicts.get(&at).copied().unwrap_or_default() {
                continue;
            }
            if let Ok(group) = Group::join(ROOM, &self.log[at], keys, &mut self.rng) {
                self.devices[whom].state = State::In(Box::new(group));
                self.devices[whom].cursor = at + 1;
                self.devices[whom].kept = None;
                self.entered(whom);
            }
        }
    }

    /// Comes in by the newest group info, with a link or to its own place.
    fn join(&mut self, at: usize, info: &GroupInfo, link: Option<&LinkKeys>) {
        let identity = self.devices[at].identity.clone();
        let Ok(joining) = info.join(ROOM, link, self.now_ms, &identity, &mut self.rng) else { return };
        let record = joining.record().clone();
        if !self.publish(&record) {
            return;
        }
        let (group, _) = joining.confirm(&record).unwrap();
        self.devices[at].state = State::In(Box::new(group));
        self.devices[at].cursor = self.log.len();
        self.devices[at].kept = None;
        self.verdicts.insert(self.log.len() - 1, true);
        self.entered(at);
    }

    fn join_by_link(&mut self, at: usize, number: usize) {
        if self.devices[at].state_is_member() {
            return;
        }
        let Some(link) = self.links.get(number % self.links.len().max(1)).cloned() else { return };
        let newest = (0..self.log.len()).rev().find(|at| self.verdicts.get(at) == Some(&true));
        let Some(record) = newest.map(|at| self.log[at].clone()) else { return };
        let live = self.epochs.get(&record.epoch).is_some_and(|known| {
            let used = known.members.iter().any(|member| member.via == Some(link.id()));
            known.policy.link(link.id()).is_some_and(|listed| !listed.one_use || !used)
        });
        let Ok(info) = GroupInfo::open(ROOM, &record, &link) else {
            assert!(!live || record.epoch != self.head);
            return;
        };
        if live && record.epoch == self.head && !self.is_in(at) {
            self.join(at, &info, Some(&link));
        }
    }

    fn is_in(&self, at: usize) -> bool {
        let device = self.devices[at].identity.device();
        self.epochs.get(&self.head).is_some_and(|known| known.members.iter().any(|member| member.device == device))
    }

    /// A device that lost its place asks a member that is well.
    fn rejoin(&mut self, at: usize) {
        if !matches!(self.devices[at].state, State::Lost) {
            return;
        }
        for other in 0..DEVICES {
            self.read(other);
            let identity = self.devices[other].identity.clone();
            let State::In(group) = &self.devices[other].state else { continue };
            if group.is_member() && group.epoch().number == self.head {
                let info = group.group_info(&identity, &mut self.rng).unwrap();
                return self.join(at, &GroupInfo::decode(&info.encode()).unwrap(), None);
            }
        }
    }

    /// Whether another device than this one is where the group is: when none is, nobody can hand over the group info.
    fn another_is_well(&self, but: usize) -> bool {
        let is_well = |device: &Device| match &device.state {
            State::In(group) => group.is_member() && group.epoch().number == self.head,
            State::Out | State::Lost => false,
        };
        self.devices.iter().enumerate().any(|(at, device)| at != but && is_well(device))
    }

    fn step(&mut self, op: u8, one: usize, two: usize) {
        self.now_ms += DAY_MS / 4;
        let there: Vec<_> = (0..DEVICES).filter(|at| !self.devices[*at].away && self.group(*at).is_some()).collect();
        let Some(&at) = there.get(one % there.len().max(1)) else {
            self.devices[one % DEVICES].away = false;
            return;
        };
        let other = two % DEVICES;
        let whom = self.devices[other].identity.clone();
        match op {
            0 => self.change(at, Change::default()),
            1 | 2 => self.add(at, other),
            3 => self.change(at, Change { remove: vec![whom.device()], ..Change::default() }),
            4 => {
                let role = [None, Some(Role::Moderator), Some(Role::Owner)][one % 3];
                self.change(at, Change { roles: vec![(whom.user(), role)], ..Change::default() });
            }
            5 => {
                let keys = LinkKeys::new(&Random::bytes(&mut self.rng));
                let revoke = self.links.iter().take(two % 2).map(LinkKeys::id).collect();
                self.change(at, Change { list: vec![keys.listed(two.is_multiple_of(3), 0)], revoke, ..Change::default() });
                self.links.push(keys);
            }
            6 | 7 => self.join_by_link(other, one),
            8 => self.leave(at, other),
            9 => {
                let device = &mut self.devices[at];
                let State::In(group) = &device.state else { return };
                device.kept = Some((group.snapshot(), device.cursor));
            }
            10 => self.restore(other),
            11 => self.race(at, other),
            12 => self.rubbish(two),
            13 => self.devices[other].away ^= true,
            14 => drop(self.read(other)),
            15 => {
                let history = match two % 8 {
                    0 => History::FromJoin,
                    1 => History::Everything,
                    days => History::Days(days.try_into().unwrap()),
                };
                self.change(at, Change { history: Some(history), ..Change::default() });
            }
            16 => {
                let now_ms = self.now_ms + one as u64 * DAY_MS / 8;
                let forgot = self.group(at).is_some_and(|group| group.forget_rungs(now_ms));
                self.seen.forgotten += usize::from(forgot);
            }
            _ => self.rejoin(other),
        }
    }

    fn leave(&mut self, at: usize, committer: usize) {
        self.read(at);
        self.read(committer);
        let identity = self.devices[at].identity.clone();
        let State::In(group) = &mut self.devices[at].state else { return };
        let Ok(leave) = group.leave(&identity, &mut self.rng) else { return };
        if at != committer {
            self.change(committer, Change { leaves: vec![leave], ..Change::default() });
        }
    }

    fn restore(&mut self, at: usize) {
        if !self.another_is_well(at) {
            return;
        }
        if let Some((snapshot, cursor)) = self.devices[at].kept.clone() {
            let group = Group::restore(&snapshot, &mut self.rng).unwrap();
            self.devices[at].state = State::In(Box::new(group));
            self.devices[at].cursor = cursor;
            self.seen.restored += 1;
        }
    }

    /// Two commits for one epoch; the log takes the first.
    fn race(&mut self, first: usize, second: usize) {
        let mut records = Vec::new();
        for at in [first, second] {
            self.read(at);
            let identity = self.devices[at].identity.clone();
            let rng = &mut self.rng;
            let State::In(group) = &mut self.devices[at].state else { continue };
            if let Ok(record) = group.commit(Change::default(), self.now_ms, &identity, rng) {
                records.push(record);
            }
        }
        let head = self.head;
        for record in records {
            if record.epoch == head + 1 {
                self.log.push(record);
            }
        }
        for at in [first, second] {
            if let Some(lost) = self.read(at) {
                self.change(at, lost);
            }
        }
    }

    /// A server or a stranger puts something in the log that is almost a record. The delivery service reads the epoch that stands on the
    /// envelope, so that it is the next one whatever else is wrong.
    fn rubbish(&mut self, number: usize) {
        let Some(record) = self.log.get(number % self.log.len().max(1)) else { return };
        let mut bytes = record.encode().to_vec();
        let at = self.rng.below(bytes.len());
        bytes[at] ^= 1 << (number % 8);
        bytes[EPOCH].copy_from_slice(&self.head.to_le_bytes());
        if let Ok(record) = Record::decode(&bytes.into()) {
            self.publish(&record);
        }
    }

    /// Everybody comes back, and who lost its place takes it again.
    fn settle(&mut self) {
        for _ in 0..3 {
            for at in 0..DEVICES {
                self.read(at);
                self.rejoin(at);
            }
        }
        for at in 0..DEVICES {
            self.read(at);
            let number = match &self.devices[at].state {
                State::In(group) if group.is_member() => Some(group.epoch().number),
                State::In(group) => {
                    assert!(group.epoch().number < self.head, "who is out has no keys of what follows");
                    None
                }
                State::Out | State::Lost => None,
            };
            assert_eq!(number, self.is_in(at).then_some(self.head), "device {at}");
        }
    }
}

impl Device {
    fn state_is_member(&self) -> bool {
        match &self.state {
            State::Out => false,
            State::In(group) => group.is_member(),
            State::Lost => true,
        }
    }
}

/// The walk goes everywhere: what it does not do it proves nothing about.
#[test]
fn histories_contain_everything() {
    let mut rng = Rng(1);
    let mut world = World::new(1);
    for _ in 0..600 {
        let (op, one, two) = (rng.below(18), rng.below(64), rng.below(64));
        world.step(op.try_into().unwrap(), one, two);
        if world.seen.is_whole() {
            return;
        }
    }
    panic!("{:?}", world.seen);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn members_agree_on_everything_and_nobody_else_follows(
        seed in any::<u64>(),
        ops in proptest::collection::vec((0..18_u8, 0..64_usize, 0..64_usize), 10..60),
    ) {
        let mut world = World::new(seed);
        world.entered(0);
        for (op, one, two) in ops {
            world.step(op, one, two);
        }
        world.settle();
    }
}
